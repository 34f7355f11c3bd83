"""One road from records and candidates to scores: spreading them, and refusals by name."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax.components import CandidateSet
from mop_jax.errors import DataError
from mop_jax.likelihoods.scoring import response_ids, spread
from mop_jax.population import Population


def test_spread_equals_a_loop_over_candidates() -> None:
    rng = np.random.default_rng(0)
    shape, grid = (5, 7), 3
    persona = rng.integers(0, 3, shape).astype(np.int32)
    exemplar = rng.integers(0, 4, shape).astype(np.int32)
    log_weight = np.where(rng.random(shape) < 0.3, -np.inf, rng.normal(size=shape))
    candidates = CandidateSet(persona, exemplar, log_weight, "importance")
    triples = candidates.triples()
    scores = rng.normal(size=(len(triples), grid))
    table = spread(candidates, triples, scores)
    lookup = {tuple(t): score for t, score in zip(triples.tolist(), scores, strict=True)}
    for i in range(shape[0]):
        for c in range(shape[1]):
            key = (i, int(persona[i, c]), int(exemplar[i, c]))
            padding = log_weight[i, c] == -np.inf
            expected = np.zeros(grid) if padding else lookup[key]
            np.testing.assert_array_equal(table[i, c], expected.astype(np.float32))


class _Refusing:
    """Prompts that refuse every response, as one that holds a special token is refused."""

    def response(self, text: str) -> tuple[int, ...]:
        raise DataError(f"The response {text!r} is refused.")


def test_a_refused_response_names_its_record() -> None:
    records = Population(["r-7"], ["context"], ["bad"])
    with pytest.raises(DataError, match=r"Record r-7: The response 'bad'"):
        response_ids(records, 0, _Refusing())  # type: ignore[arg-type]
