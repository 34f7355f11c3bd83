"""The two predictions that know nothing of a cell: uniform, and everybody's answers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mop_jax.evaluation.surveys.base import (
    Fitted,
    answered_questions,
    asked_questions,
)
from mop_jax.evaluation.surveys.shares import effective_counts
from mop_jax.survey import Items, Question


@dataclass(frozen=True)
class Uniform:
    """Every option as likely as any other: p_m = 1/M. It needs no answers, and has no error.

    Attributes:
        num_draws: S of its predictions, all equal.
    """

    num_draws: int = 500
    name: str = "uniform"
    title: str = "Uniform"
    reference: str = "—"
    can_predict_unseen_questions: bool = True

    def fit(self, items: Items, *, seed: int = 0) -> Fitted:
        """See `SurveyMethod.fit`; nothing is learned."""
        return _FittedUniform(self.num_draws)


@dataclass(frozen=True)
class _FittedUniform:
    num_draws: int
    report: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, items: Items) -> np.ndarray:
        shares = items.mask / items.mask.sum(1, keepdims=True)
        return np.repeat(shares[None], self.num_draws, axis=0)


@dataclass(frozen=True)
class PooledMarginal:
    """All training answers to the question together: p ~ Dirichlet(Σ_i c_im + ½), for every cell.

    Counts are weighted, and scaled to the number of people. The posterior is that of everybody's
    shares: it is narrow, and says nothing of how far a cell lies from everybody.

    Attributes:
        num_draws: S of its predictions.
    """

    num_draws: int = 500
    name: str = "pooled_marginal"
    title: str = "Pooled marginal"
    reference: str = "—"
    can_predict_unseen_questions: bool = False

    def fit(self, items: Items, *, seed: int = 0) -> Fitted:
        """See `SurveyMethod.fit`."""
        counts = items.counts
        totals = {}
        for question, index in answered_questions(items).items():
            total = counts[index].sum(0)
            people = effective_counts(items)[index].sum()
            totals[question] = (total / total.sum() * people)[: question.num_options]
        return _FittedMarginal(totals, self.num_draws, seed)


@dataclass(frozen=True, eq=False)
class _FittedMarginal:
    totals: Mapping[Question, np.ndarray]
    num_draws: int
    seed: int
    report: Mapping[str, Any] = field(default_factory=dict)

    def predict(self, items: Items) -> np.ndarray:
        draws = np.zeros((self.num_draws, *items.mask.shape))
        for question, index in asked_questions(items, self.totals, "The pooled marginal").items():
            place = list(self.totals).index(question)
            rng = np.random.default_rng([self.seed, 31, place])
            shares = rng.dirichlet(self.totals[question] + 0.5, size=self.num_draws)
            draws[:, index, : question.num_options] = shares[:, None]
        return draws
