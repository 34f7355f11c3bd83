"""The predictors whose held-out log-probabilities a run compares, as one table.

A predictor is one entry of `PREDICTORS`: its name in files, its title in tables and figures, and
how it comes to log p(y | x). The order of the entries is that of tables and figures: each adds
something to the one before. A further one, a baseline say, is a class with the same three members
and one call of `register`; steps, tables and figures follow the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
from scipy.special import logsumexp

# By its module: the names in a table of results must not need JAX.
from mop_jax import inference
from mop_jax.registry import check_name

if TYPE_CHECKING:
    from mop_jax.distributions import PersonaMixture
    from mop_jax.inference import Posterior
    from mop_jax.models import MixtureData
    from mop_jax.population.population import Population
    from mop_jax.prompts import Prompt, PromptBuilder


@dataclass(frozen=True)
class HeldOut:
    """What a predictor may use to say how probable held-out responses are.

    Attributes:
        train: the records that anything may be fitted to.
        test: N held-out records.
        data: their candidate components and log-likelihoods.
        distribution: the mixture that belongs to how candidates were chosen.
        posteriors: fitted predictors' posteriors by name.
        prompts: builds prompts for the language model.
        personas: K texts.
        score: prompts of each record → log-likelihoods of its response at τ = 1, nats, float64
            [N, P]; every record has equally many prompts. Nothing is scored twice.
    """

    train: Population
    test: Population
    data: MixtureData
    distribution: type[PersonaMixture]
    posteriors: Mapping[str, Posterior]
    prompts: PromptBuilder
    personas: Sequence[str]
    score: Callable[[Sequence[Sequence[Prompt]]], np.ndarray]


class Predictor(Protocol):
    """A predictor of held-out responses.

    One that estimates from `HeldOut.data`, the candidates, says so with `estimated = True`: it is
    asked again with fewer of them, to tell what they hide. Of `HeldOut` it may then look at `data`,
    `posteriors` and `distribution` only.
    """

    @property
    def name(self) -> str:
        """In files: letters, digits and underscores."""
        ...

    @property
    def title(self) -> str:
        """In tables and figures."""
        ...

    def log_prob(self, held_out: HeldOut) -> np.ndarray:
        """Log p(y_i | x_i) of each held-out record, nats, float64 [N]."""
        ...


@dataclass(frozen=True)
class Prompted:
    """The language model under one or several prompts, each as probable as the others, at τ = 1.

    Attributes:
        name: see `Predictor`.
        title: see `Predictor`.
        build: (prompt builder, personas, context) → the prompts of a record.
    """

    name: str
    title: str
    build: Callable[[PromptBuilder, Sequence[str], str], list[Prompt]]

    def prompts_of(self, held_out: HeldOut) -> list[list[Prompt]]:
        """The prompts of each held-out record."""
        return [
            self.build(held_out.prompts, held_out.personas, context)
            for context in held_out.test.contexts
        ]

    def log_prob(self, held_out: HeldOut) -> np.ndarray:
        """Log mean_p p(y_i | prompt p), nats, [N]."""
        return uniform_over_prompts(held_out.score(self.prompts_of(held_out)))


@dataclass(frozen=True)
class Uniform:
    """The uniform mixture over the same components at τ = 1: the baseline of every claim."""

    name: str
    title: str
    estimated: ClassVar[bool] = True

    def log_prob(self, held_out: HeldOut) -> np.ndarray:
        """See `uniform_log_prob`."""
        return inference.uniform_log_prob(held_out.data, distribution=held_out.distribution)


@dataclass(frozen=True)
class Fitted:
    """A mixture of personas fitted to the training records.

    Attributes:
        name: see `Predictor`.
        title: see `Predictor`.
        model_kwargs: what differs from the configured model's arguments.
    """

    name: str
    title: str
    model_kwargs: Mapping[str, Any]
    estimated: ClassVar[bool] = True

    def log_prob(self, held_out: HeldOut) -> np.ndarray:
        """See `posterior_predictive_log_prob`."""
        return inference.posterior_predictive_log_prob(
            held_out.posteriors[self.name], held_out.data
        )


MAIN = "mop"
"""The predictor that a run is about: the configured model, whose posterior it simulates from."""
BASELINE = "uniform_mixture"
"""The predictor that all others are compared with."""

PREDICTORS: dict[str, Predictor] = {}
"""Every predictor by name, in the order of tables and figures."""


def register(predictor: Predictor, *, before: str = BASELINE) -> None:
    """Adds a predictor to those that runs report.

    Args:
        predictor: see `Predictor`.
        before: name of the predictor in front of which it stands in tables and figures.

    Raises:
        DataError: if its name is taken or no plain word.
    """
    check_name("predictor", predictor.name, PREDICTORS)
    entries = list(PREDICTORS.items())
    place = list(PREDICTORS).index(before) if before in PREDICTORS else len(entries)
    entries.insert(place, (predictor.name, predictor))
    PREDICTORS.clear()
    PREDICTORS.update(entries)


def fitted_predictors() -> list[Fitted]:
    """Those that are fitted, the ablations first and the main one last."""
    return [entry for entry in PREDICTORS.values() if isinstance(entry, Fitted)]


def score_prompted(held_out: HeldOut) -> None:
    """Scores the prompts of all `Prompted` predictors in one job, where each will find its own."""
    prompted = [e.prompts_of(held_out) for e in PREDICTORS.values() if isinstance(e, Prompted)]
    if prompted:
        held_out.score([list(chain(*prompts)) for prompts in zip(*prompted, strict=True)])


def is_estimated(predictor: Predictor) -> bool:
    """Whether a predictor's log-probabilities are estimates from candidates."""
    return bool(getattr(predictor, "estimated", False))


def uniform_over_prompts(log_likelihood: np.ndarray) -> np.ndarray:
    """Log p(y | x) of the uniform mixture over prompts, [n], from log-likelihoods [n, prompts]."""
    return logsumexp(log_likelihood, axis=1) - np.log(log_likelihood.shape[1])


for _entry in (
    Prompted("zero_shot", "zero-shot", lambda prompts, personas, x: [prompts.zero_shot(x)]),
    Prompted(
        "persona_only",
        "personas, no exemplar",
        lambda prompts, personas, x: [prompts.persona_only(g, x) for g in personas],
    ),
    Uniform(BASELINE, "uniform mixture"),
    Fitted("uniform_gate_temperature", "uniform gate, learned τ", {"uniform_gate": True}),
    Fitted("mop_no_temperature", "learned gate, τ = 1", {"temperature": False}),
    Fitted(MAIN, "mixture of personas", {}),
):
    register(_entry, before="")
