"""A survey of four cells and two questions, and a tiny language model that reads bytes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.prompts import PromptBuilder, PromptTemplate
from mop_jax.survey import Items, Question

QUESTIONS = (
    Question("vote", "Did you vote?", ("Yes", "No", "Yes, by mail")),
    Question("trust", "Do you trust it?", ("a lot", "some", "little", "none"), ordered=True),
)


@pytest.fixture(scope="session")
def items() -> Items:
    """Eight items; the fourth place is no option of the first question."""
    cells = pd.DataFrame({"age": ["18-29", "30+", "18-29", "30+"], "sex": ["w", "w", "m", "m"]})
    counts = np.array(
        [[3, 1, 2, 0], [5, 0, 1, 0], [2, 2, 2, 0], [0, 7, 0, 0], *[[1, 2, 3, 4.5]] * 4]
    )
    return Items(
        QUESTIONS,
        cells,
        np.tile(np.arange(4), 2),
        np.repeat([0, 1], 4),
        counts,
        counts.sum(1).round(),
    )


@pytest.fixture(scope="session")
def lm(make_tiny_lm, byte_tokenizer):
    """A random model with a window for whole prompts."""
    return make_tiny_lm(tokenizer=byte_tokenizer, max_position=1_024)


@pytest.fixture(scope="session")
def prompts(lm) -> PromptBuilder:
    """Prompts in the plain form."""
    return PromptBuilder(lm.tokenizer, PromptTemplate.plain())


@pytest.fixture
def store(tmp_path, lm):
    """An empty store at τ = 1."""
    with LikelihoodStore(tmp_path, lm.fingerprint, TemperatureGrid.single(1.0)) as opened:
        yield opened
