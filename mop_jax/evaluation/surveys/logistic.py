"""Multinomial logistic regression on the covariates: what most people would try first."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from mop_jax.errors import DataError
from mop_jax.evaluation.surveys.base import (
    Fitted,
    answered_questions,
    asked_questions,
    check_covariates,
    covariate_rows,
)
from mop_jax.evaluation.surveys.shares import effective_counts
from mop_jax.survey import Items, Question

_STRENGTHS = tuple(10.0**power for power in np.arange(-4, 2.1, 0.5))


@dataclass(frozen=True)
class MultinomialLogistic:
    """log p_m = α_m + Σ_v β_v[x_v, m] − log Z, main effects of every covariate, by question.

    Fitted by scikit-learn with an L2 penalty whose strength is chosen by cross-validation over
    cells. Every option is given half an answer more, spread evenly over the cells: an option that
    no training cell chose would otherwise not exist. Draws are fits to cells drawn anew with
    replacement, the strength kept. A level that training has not seen has no effect.

    Attributes:
        num_draws: S, bootstrap fits a question.
        folds: of the cross-validation; as many as there are cells, if they are fewer.
        strengths: scikit-learn's C, tried in turn.
    """

    num_draws: int = 100
    folds: int = 5
    strengths: tuple[float, ...] = _STRENGTHS
    name: str = "logistic_regression"
    title: str = "Multinomial logistic regression"
    reference: str = "McFadden, 1974"
    can_predict_unseen_questions: bool = False

    def fit(self, items: Items, *, seed: int = 0) -> Fitted:
        """See `SurveyMethod.fit`.

        Raises:
            DataError: if nobody answered, or a question has one cell.
        """
        counts = effective_counts(items)
        names = items.covariates
        of_question, report = {}, {}
        for place, (question, index) in enumerate(answered_questions(items).items()):
            rows = covariate_rows(items, index, names)
            if len(set(rows)) < 2:
                raise DataError(
                    f"Question {question.id} has answers of one cell; a regression needs two."
                )
            columns = _columns(rows)
            design = _one_hot(rows, columns)
            answers = counts[index, : question.num_options] + 0.5 / len(index)
            rng = np.random.default_rng([seed, 32, place])
            strength = self._chosen(design, answers, rng)
            draws = []
            for _ in range(self.num_draws):
                times = rng.multinomial(len(index), np.full(len(index), 1 / len(index)))
                # An option's half answer stays even where the cells that chose it do not.
                drawn = counts[index, : question.num_options] * times[:, None] + 0.5 / len(index)
                draws.append(_coefficients(design, drawn, strength))
            of_question[question] = (columns, np.stack(draws))
            report[question.id] = {"C": float(strength), "cells": len(index)}
        return _FittedLogistic(names, of_question, report)

    def _chosen(self, design: np.ndarray, answers: np.ndarray, rng: np.random.Generator) -> float:
        """The strength with the best log score of left-out cells; the stronger penalty of two."""
        fold = rng.permutation(np.arange(len(design)) % min(self.folds, len(design)))
        scores = []
        for strength in self.strengths:
            score = 0.0
            for f in range(fold.max() + 1):
                train, test = fold != f, fold == f
                coefficients = _coefficients(design[train], answers[train], strength)
                score += (answers[test] * _log_shares(design[test], coefficients)).sum()
            scores.append(score)
        return self.strengths[int(np.argmax(scores))]


@dataclass(frozen=True, eq=False)
class _FittedLogistic:
    names: list[str]
    of_question: Mapping[Question, tuple[list[tuple[int, str]], np.ndarray]]
    report: Mapping[str, Any]

    def predict(self, items: Items) -> np.ndarray:
        check_covariates(items, self.names, "Logistic regression")
        num_draws = len(next(iter(self.of_question.values()))[1])
        draws = np.zeros((num_draws, *items.mask.shape))
        for question, index in asked_questions(
            items, self.of_question, "Logistic regression"
        ).items():
            columns, coefficients = self.of_question[question]
            design = _one_hot(covariate_rows(items, index, self.names), columns)
            draws[:, index, : question.num_options] = np.exp(_log_shares(design, coefficients))
        return draws


def _columns(rows: list[tuple[str, ...]]) -> list[tuple[int, str]]:
    """(covariate, level) of each column: all levels, which the penalty keeps identified."""
    return [(v, level) for v in range(len(rows[0])) for level in sorted({r[v] for r in rows})]


def _one_hot(rows: list[tuple[str, ...]], columns: list[tuple[int, str]]) -> np.ndarray:
    return np.asarray([[row[v] == level for v, level in columns] for row in rows], float)


def _coefficients(design: np.ndarray, answers: np.ndarray, strength: float) -> np.ndarray:
    """Penalised maximum likelihood, [1 + columns, M]; the intercept, first, is not penalised."""
    from sklearn.linear_model import LogisticRegression  # slow to import

    num_cells, num_options = answers.shape
    option = np.tile(np.arange(num_options), num_cells)
    model = LogisticRegression(C=strength, max_iter=1000, tol=1e-5)
    with warnings.catch_warnings():
        # A weak penalty on separated cells has no sharp optimum; cross-validation passes it over.
        warnings.simplefilter("ignore")
        model.fit(np.repeat(design, num_options, axis=0), option, sample_weight=answers.ravel())
    weights = np.vstack([model.intercept_, model.coef_.T])
    # Of two options scikit-learn keeps the log-odds of the second alone.
    return np.hstack([np.zeros_like(weights), weights]) if num_options == 2 else weights


def _log_shares(design: np.ndarray, coefficients: np.ndarray) -> np.ndarray:
    """Logarithms of shares of cells, [cells, M], or of draws of coefficients, [S, cells, M]."""
    logits = coefficients[..., :1, :] + design @ coefficients[..., 1:, :]
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))
