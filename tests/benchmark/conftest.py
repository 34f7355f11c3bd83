"""What the tests of tables share."""

from __future__ import annotations

import pytest

from mop_jax.lm.flax_lm import FlaxLM


@pytest.fixture
def nothing_is_done_again(monkeypatch) -> None:
    """Drawing, scoring, fitting and measuring are refused."""

    def refuse(*args, **kwargs):
        raise AssertionError("done again")

    monkeypatch.setattr(FlaxLM, "sample_pairs", refuse)
    monkeypatch.setattr(FlaxLM, "score_pairs", refuse)
    monkeypatch.setattr("mop_jax.pipeline.fitting.fit_svi", refuse)
    monkeypatch.setattr("mop_jax.benchmark.tables.report", refuse)
