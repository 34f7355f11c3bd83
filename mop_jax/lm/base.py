"""What the rest of the package asks of a language model, and the records that pass between them.

Any object with these methods will do in place of `FlaxLM`: a client of a remote model, another
framework, a small fake in a test. Scoring needs a `ScoringModel`, personas and simulation a
`SamplingModel`; a `LanguageModel` is both.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np

from mop_jax.errors import DataError

TokenIds = Sequence[int]
Ends = Sequence[int | TokenIds]
"""What ends a response: ids, or sequences of ids."""


@dataclass(frozen=True)
class TemperatureGrid:
    """Temperatures whose inverses are whole multiples of a step: 1/τ_g = multiples[g] · step.

    The form makes every grid point a power of one exponential, so that a whole grid costs little
    more than one temperature. The default runs from τ = 0.615 to 1.6 and holds τ = 1 exactly.

    Attributes:
        step: spacing of the inverse temperatures.
        multiples: positive whole numbers; temperatures increase when they decrease.
    """

    step: float = 0.125
    multiples: tuple[int, ...] = (13, 12, 11, 10, 9, 8, 7, 6, 5)

    def __post_init__(self) -> None:
        """Checks that temperatures are positive and increase."""
        decreasing = list(self.multiples) == sorted(set(self.multiples), reverse=True)
        if self.step <= 0 or not self.multiples or self.multiples[-1] < 1 or not decreasing:
            raise DataError(
                "A temperature grid needs a positive step and decreasing positive multiples; got "
                f"step {self.step} and multiples {list(self.multiples)}."
            )

    @classmethod
    def single(cls, temperature: float) -> TemperatureGrid:
        """A grid of one temperature."""
        return cls(1.0 / temperature, (1,))

    @property
    def temperatures(self) -> np.ndarray:
        """Increasing temperatures τ, float64 [G]."""
        return 1.0 / (self.step * np.asarray(self.multiples, np.float64))

    @property
    def unit_index(self) -> int:
        """Index of τ = 1.

        Raises:
            DataError: if the grid does not hold it.
        """
        index = int(np.argmin(abs(self.temperatures - 1.0)))
        if abs(self.temperatures[index] - 1.0) > 1e-9:
            raise DataError(
                "The temperature grid must hold τ = 1, at which baselines are scored: one of the "
                f"multiples must be 1 / step = {1 / self.step:g}; they are {list(self.multiples)}."
            )
        return index


class Continuation(NamedTuple):
    """A request and the response to be scored after it.

    Attributes:
        request: ids that follow the prefix and are not scored; at least one.
        response: scored ids, end-of-turn included; at least one.
    """

    request: tuple[int, ...]
    response: tuple[int, ...]


@dataclass(frozen=True)
class Generation:
    """Sampled texts.

    Attributes:
        texts: decoded responses, without the end-of-turn token.
        token_ids: sampled ids, the end-of-turn token included where it was drawn.
        log_probs: float64 [n], nats: log-probability of each sampled sequence under the
            untruncated distribution at the sampling temperature.
        finished: bool [n], False where `max_new_tokens` came before the end-of-turn token.
        token_log_probs: of each sampled id, float32 arrays whose sums are `log_probs`.
    """

    texts: list[str]
    token_ids: list[list[int]]
    log_probs: np.ndarray
    finished: np.ndarray
    token_log_probs: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class Truncation:
    """Which tokens may be drawn; each rule applies to what the one before left.

    Attributes:
        top_k: how many of the likeliest tokens, at least 1; None for all.
        top_p: the probability that the kept tokens have together at least, in (0, 1]; 1 for all.
        min_p: the least probability of a kept token as a share of the likeliest one's, in [0, 1]; 0
            for all.

    Raises:
        DataError: if one is out of its range.
    """

    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0

    def __post_init__(self) -> None:
        """Checks the ranges."""
        many_enough = self.top_k is None or self.top_k >= 1
        if not (many_enough and 0 < self.top_p <= 1 and 0 <= self.min_p <= 1):
            raise DataError(
                "Truncation needs top_k ≥ 1 (or None), 0 < top_p ≤ 1 and 0 ≤ min_p ≤ 1; got "
                f"{self.top_k}, {self.top_p} and {self.min_p}."
            )


NO_TRUNCATION = Truncation()
"""Samples the model itself."""

OnScores = Callable[[np.ndarray, np.ndarray], None]
OnGenerated = Callable[[np.ndarray, Generation], None]


class ScoringModel(Protocol):
    """A frozen language model that says how probable responses are."""

    @property
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer, with a chat template if the model is a chat model."""
        ...

    @property
    def fingerprint(self) -> str:
        """Changes whenever a log-likelihood could: weights, tokenizer, dtype."""
        ...

    @property
    def context_window(self) -> int | None:
        """Tokens that a prompt and its response may have together; None if there is no limit."""
        ...

    def score_pairs(
        self,
        prefixes: Sequence[Sequence[TokenIds]],
        continuations: Sequence[Continuation],
        pairs: np.ndarray,
        *,
        grid: TemperatureGrid,
        on_scores: OnScores,
        memory: float | None = None,
        skip: np.ndarray | None = None,
    ) -> None:
        """Scores (prefix, continuation) pairs on a grid of temperatures, reporting as it goes."""
        ...


class SamplingModel(Protocol):
    """A frozen language model that writes."""

    @property
    def tokenizer(self) -> Any:
        """A Hugging Face tokenizer, with a chat template if the model is a chat model."""
        ...

    def sample_pairs(
        self,
        prefixes: Sequence[Sequence[TokenIds]],
        requests: Sequence[TokenIds],
        pairs: np.ndarray,
        *,
        seed: int,
        temperature: np.ndarray,
        sample_ids: np.ndarray,
        end_ids: Ends,
        truncation: Truncation = NO_TRUNCATION,
        max_new_tokens: int,
        skip: np.ndarray | None = None,
        on_generated: OnGenerated | None = None,
    ) -> Generation:
        """Samples a response for each (prefix, request) pair at its own temperature."""
        ...

    def generate(
        self,
        prompts: Sequence[str],
        *,
        seed: int,
        max_new_tokens: int,
        temperature: float,
        top_p: float,
    ) -> Generation:
        """Continues each prompt until the model ends its turn."""
        ...


class LanguageModel(ScoringModel, SamplingModel, Protocol):
    """A frozen language model that scores and samples."""
