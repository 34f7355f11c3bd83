"""Layers run one by one, a token at a time, against torch's logits and against stacked layers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mop_jax.lm import unstacked
from mop_jax.lm.cache import empty_unstacked_cache
from mop_jax.lm.unstacked import merged, unstacked_layers
from tests.lm.test_decoder import CASES, TOLERANCE


@partial(jax.jit, static_argnames=("graph", "structure"))
def step(graph, state, structure, layers, cache, tokens, live):
    decoder = nnx.merge(graph, state)
    hidden, cache = decoder.step(cache, tokens, live, merged(structure, layers))
    return decoder.next_logits(hidden), cache


@pytest.mark.parametrize("name", CASES)
def test_token_by_token_equals_torch(name, golden, golden_lm):
    """Rows of unequal lengths: those that are over stay as they are, and disturb no other."""
    case, lm = golden(name), golden_lm(name)
    structure, layers = unstacked_layers(lm.decoder, None)
    assert structure is not None
    rows, longest = case.token_ids.shape
    cache = empty_unstacked_cache(lm.config, rows, longest + 3, lm.decoder.dtype)
    for place in range(longest):
        live = place < case.lengths
        logits, cache = step(
            *nnx.split(lm.decoder), structure, layers, cache, case.token_ids[:, place], live
        )
        np.testing.assert_allclose(
            np.asarray(logits)[live], case.logits[live, place], atol=TOLERANCE
        )
    np.testing.assert_array_equal(cache.lengths, case.lengths)
    for length, values in zip(case.lengths, cache.values[-1]):
        assert (np.asarray(values)[:, :length] != 0).any(axis=-1).all()
        assert not np.asarray(values)[:, length:].any()


def test_each_weight_is_laid_out_once(golden_lm):
    lm = golden_lm(CASES[0])
    _, layers = unstacked_layers(lm.decoder, None)
    stacked = jax.tree.leaves(nnx.state(lm.decoder.layers))
    assert sum(leaf.size for leaf in jax.tree.leaves(layers)) == sum(s.size for s in stacked)


def test_what_the_memory_has_no_room_for_stays_stacked(make_tiny_lm, monkeypatch):
    """The same texts either way, and other programs."""
    lm, work = make_tiny_lm(seed=4), np.stack([np.zeros(12, int), np.arange(12) % 3], 1)
    draw = partial(
        lm.sample_pairs, [((5, 6, 7),)], [(8,), (9, 4), (11, 12, 13)], work, seed=3,
        temperature=np.ones(12), sample_ids=np.arange(12), end_ids=[3], max_new_tokens=12,
    )  # fmt: skip
    found = draw()
    monkeypatch.setattr(unstacked, "_SHARE_OF_HOST", 0.0)
    assert unstacked_layers(lm.decoder, None) == (None, ())
    expected = draw()
    assert found.token_ids == expected.token_ids
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-3)


def test_next_logits_are_the_logits(make_tiny_lm):
    decoder = make_tiny_lm(logit_softcap=2.0).decoder
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(5, 24)), jnp.float32)
    np.testing.assert_allclose(decoder.next_logits(hidden), decoder.logits(hidden), atol=1e-5)
