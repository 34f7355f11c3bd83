"""Multilevel regression (the MR of MRP) on the covariates, without any language model.

Gelman and Little (1997); Park, Gelman and Bafumi (2004). Each question has a multinomial logit with
partially pooled effects of every covariate's levels, of interactions that are named, and of the
cell itself (`mrp_model.multilevel_logit`), fitted by NUTS. Poststratification is a weighted mean of
its cells: `group_shares` takes it with the survey's own weights.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.base import (
    Fitted,
    answered_questions,
    asked_questions,
    check_covariates,
    covariate_rows,
)
from mop_jax.evaluation.surveys.mrp_model import CellData, polynomial_contrasts, sampler
from mop_jax.evaluation.surveys.shares import effective_counts
from mop_jax.survey import Items, Question

_MAX_R_HAT = 1.05


@dataclass(frozen=True)
class MRP:
    """Partially pooled multinomial logit of the cells' shares.

    An unseen cell's effect, and that of an unseen level, is drawn from its prior with the draw's σ.
    Counts are weighted and scaled to the number of people.

    Attributes:
        interactions: tuples of covariates whose combinations have effects, too.
        num_warmup: adaptation steps per chain.
        num_samples: draws kept per chain; S is this times the chains.
        num_chains: at least two, so that R-hat tells whether they agree.
        prior_scale: of all σ's HalfNormal priors, logits.
        intercept_scale: prior standard deviation of the intercept, logits.
        design_effect: by which people count less than they are, see `effective_counts`.
    """

    interactions: tuple[tuple[str, ...], ...] = ()
    num_warmup: int = 300
    num_samples: int = 300
    num_chains: int = 2
    prior_scale: float = 1.0
    intercept_scale: float = 2.0
    design_effect: float = 1.0
    name: str = "mrp"
    title: str = "MRP"
    reference: str = "Gelman and Little, 1997"
    can_predict_unseen_questions: bool = False

    def fit(self, items: Items, *, seed: int = 0) -> Fitted:
        """See `SurveyMethod.fit`; warns where the chains do not agree.

        The report has, by question: `r_hat`, the largest of the cells' logits and of the σ's,
        `effective_size`, the least of them, and `divergences`.

        Raises:
            DataError: if nobody answered, an interaction names no covariate, or there is one chain.
        """
        if self.num_chains < 2:
            raise DataError("MRP was given one chain; R-hat compares two at least.")
        terms: list[tuple[str, ...]] = [(name,) for name in items.covariates]
        for interaction in self.interactions:
            for name in interaction:
                if name not in items.covariates:
                    raise DataError(
                        f"An interaction names the covariate {name!r}; there are "
                        f"{', '.join(items.covariates)}."
                    )
            terms.append(tuple(interaction))
        counts = effective_counts(items, self.design_effect)
        of_question, report = {}, {}
        for place, (question, index) in enumerate(answered_questions(items).items()):
            rows = covariate_rows(items, index, items.covariates)
            key = jax.random.fold_in(jax.random.key(seed), place)
            fit = self._fit_question(
                key, question, rows, counts[index, : question.num_options], terms, items.covariates
            )
            of_question[question], report[question.id] = fit
        return _FittedMRP(items.covariates, terms, of_question, seed, report)

    def _fit_question(
        self,
        key: jax.Array,
        question: Question,
        rows: list[tuple[str, ...]],
        counts: np.ndarray,
        terms: list[tuple[str, ...]],
        names: list[str],
    ) -> tuple[_Draws, dict[str, Any]]:
        cells = sorted(set(rows))
        place = {row: c for c, row in enumerate(cells)}
        totals = np.zeros((len(cells), question.num_options))
        np.add.at(totals, [place[row] for row in rows], counts)
        columns = [
            (v, level)
            for v, term in enumerate(terms)
            for level in sorted({_level(row, term, names) for row in cells})
        ]
        design = [
            [1.0, *(_level(row, terms[v], names) == level for v, level in columns)] for row in cells
        ]
        basis = polynomial_contrasts(question.num_options)
        data = CellData(*(jnp.asarray(x, jnp.float32) for x in (totals, design, basis)))
        mcmc = sampler(
            totals.shape, tuple(v for v, _ in columns), question.ordered, self.prior_scale,
            self.intercept_scale, self.num_warmup, self.num_samples, self.num_chains,
        )  # fmt: skip
        mcmc.run(key, data, extra_fields=("diverging",))
        chains = {k: np.asarray(v) for k, v in mcmc.get_samples(group_by_chain=True).items()}
        judged = [chains["logits"], chains["term_scale"], chains["cell_scale"]]
        report = {
            "cells": len(cells),
            "r_hat": float(max(np.max(split_gelman_rubin(x)) for x in judged)),
            "effective_size": float(min(np.min(effective_sample_size(x)) for x in judged)),
            "divergences": int(np.sum(mcmc.get_extra_fields()["diverging"])),
        }
        if not report["r_hat"] <= _MAX_R_HAT:
            warnings.warn(
                f"The chains of MRP for question {question.id} do not agree yet: R-hat is "
                f"{report['r_hat']:.2f}, above {_MAX_R_HAT}; use more warm-up steps or samples.",
                stacklevel=3,
            )
        flat = {name: array.reshape(-1, *array.shape[2:]) for name, array in chains.items()}
        draws = _Draws(
            cells, columns, basis, flat["effect"], flat["term_scale"], flat["cell_scale"],
            flat["logits"],
        )  # fmt: skip
        return draws, report


class _Draws(NamedTuple):
    """Posterior draws of one question, with D contrasts."""

    cells: list[tuple[str, ...]]
    columns: list[tuple[int, tuple[str, ...]]]  # term and level of each effect but the first
    basis: np.ndarray  # [D, M]
    effects: np.ndarray  # the intercept and those of the columns [S, P, D]
    term_scale: np.ndarray  # [S, V, D or 1]
    cell_scale: np.ndarray  # [S, D or 1]
    logits: np.ndarray  # of training cells [S, C, D]


@dataclass(frozen=True, eq=False)
class _FittedMRP:
    names: list[str]
    terms: list[tuple[str, ...]]
    of_question: Mapping[Question, _Draws]
    seed: int
    report: Mapping[str, Any]

    def predict(self, items: Items) -> np.ndarray:
        check_covariates(items, self.names, "MRP")
        num_draws = len(next(iter(self.of_question.values())).effects)
        draws = np.zeros((num_draws, *items.mask.shape))
        for question, index in asked_questions(items, self.of_question, "MRP").items():
            place = list(self.of_question).index(question)
            fitted = self.of_question[question]
            rows = covariate_rows(items, index, self.names)
            unique = sorted(set(rows))
            logits = self._logits(fitted, unique, np.random.default_rng([self.seed, 33, place]))
            shares = logits @ fitted.basis
            shares = np.exp(shares - shares.max(-1, keepdims=True))
            shares /= shares.sum(-1, keepdims=True)
            where = [unique.index(row) for row in rows]
            draws[:, index, : question.num_options] = shares[:, where]
        return draws

    def _logits(
        self, fitted: _Draws, rows: list[tuple[str, ...]], rng: np.random.Generator
    ) -> np.ndarray:
        """Of distinct cells, [S, cells, D]."""
        intercept = fitted.effects[:, 0].astype(np.float64)
        shape = intercept.shape
        logits = np.repeat(intercept[:, None], len(rows), axis=1)
        place = {column: 1 + p for p, column in enumerate(fitted.columns)}
        for v, term in enumerate(self.terms):
            # One draw for a level that training has not seen, whichever cells have it.
            unseen: dict[tuple[str, ...], np.ndarray] = {}
            for r, row in enumerate(rows):
                level = _level(row, term, self.names)
                if (v, level) in place:
                    logits[:, r] += fitted.effects[:, place[v, level]]
                    continue
                if level not in unseen:
                    unseen[level] = fitted.term_scale[:, v] * rng.standard_normal(shape)
                logits[:, r] += unseen[level]
        for r, row in enumerate(rows):
            if row in fitted.cells:
                logits[:, r] = fitted.logits[:, fitted.cells.index(row)]
            else:
                logits[:, r] += fitted.cell_scale * rng.standard_normal(shape)
        return logits


def _level(row: tuple[str, ...], term: tuple[str, ...], names: list[str]) -> tuple[str, ...]:
    return tuple(row[names.index(name)] for name in term)
