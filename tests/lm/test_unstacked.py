"""Layers run one by one, a token at a time, against torch's logits and against stacked layers."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mop_jax.lm import sampling, unstacked
from mop_jax.lm.drawing import TruncationArrays
from mop_jax.lm.slots import Whole
from mop_jax.lm.unstacked import Layerwise, has_room
from tests.lm.test_decoder import CASES, TOLERANCE


def run_token_by_token(runner, decoder, case):
    """Logits [T, B, V] behind every token, by what `advance` runs; and the cache in the end."""
    rows, longest = case.token_ids.shape
    cache = runner.idle(rows, longest + 3, 1).cache
    keys, values, lengths = list(cache.keys), list(cache.values), cache.lengths
    programs, found = runner._programs, []
    for place in range(longest):
        live = jnp.asarray(place < case.lengths)
        tokens = jnp.asarray(case.token_ids[:, place])
        x, lengths, context = programs.begin(runner._leaves, tokens, lengths, live, longest + 3)
        for index, layer in enumerate(runner._layers):
            seen = context.near if runner._slides[index] else context.far
            x, keys[index], values[index] = programs.layer(
                layer, x, keys[index], values[index], context.places, *seen
            )
        found.append(np.asarray(decoder.next_logits(decoder.norm(x))))
    return np.stack(found), values, lengths


@pytest.mark.parametrize("name", CASES)
def test_token_by_token_equals_torch(name, golden, golden_lm):
    """Rows of unequal lengths: those that are over stay as they are, and disturb no other."""
    case, decoder = golden(name), golden_lm(name).decoder
    found, values, lengths = run_token_by_token(Layerwise(decoder), decoder, case)
    for place, logits in enumerate(found):
        live = place < case.lengths
        np.testing.assert_allclose(logits[live], case.logits[live, place], atol=TOLERANCE)
    np.testing.assert_array_equal(lengths, case.lengths)
    for length, row in zip(case.lengths, np.asarray(values[-1]).swapaxes(1, 2)):
        assert (row[:length] != 0).any(axis=(1, 2)).all()
        assert not row[length:].any()


def test_each_weight_is_laid_out_once(golden_lm):
    decoder = golden_lm(CASES[0]).decoder
    stacked = jax.tree.leaves(nnx.state(decoder.layers))
    held = jax.tree.leaves(Layerwise(decoder)._layers)
    assert sum(leaf.size for leaf in held) == sum(leaf.size for leaf in stacked)


def test_layers_share_their_programs(make_tiny_lm):
    """One is compiled, whatever the number of layers; another call compiles none."""
    decoder = make_tiny_lm(seed=5, num_layers=7, vocab_size=607).decoder

    def draw():
        runner = Layerwise(decoder)
        slots = runner.idle(4, 32, 6)
        slots = runner.place(
            slots, Whole(decoder).idle(5, 16, 6).cache, np.asarray([0, 1]), np.asarray([9, 8]),
            np.asarray([2, 0]),
        )  # fmt: skip
        runner.advance(
            slots, jax.random.key(0), np.arange(4, dtype=np.uint32), np.ones(4, np.float32),
            np.asarray([[3]], np.int32), TruncationArrays(), 2,
        )  # fmt: skip
        return runner._programs

    programs = draw()
    assert [program._cache_size() for program in programs] == [1, 1, 1]
    assert draw() is programs
    assert [program._cache_size() for program in programs] == [1, 1, 1]


def test_layers_are_updated_in_place(make_tiny_lm):
    runner = Layerwise(make_tiny_lm(seed=6).decoder)
    slots = runner.idle(8, 640, 6)
    x, _, context = runner._programs.begin(
        runner._leaves, slots.pending, slots.cache.lengths, slots.live, 640
    )
    keys, values = slots.cache.keys[0], slots.cache.values[0]
    program = runner._programs.layer.lower(
        runner._layers[0], x, keys, values, context.places, *context.far
    ).compile()
    memory, size = program.memory_analysis(), keys.nbytes + values.nbytes
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2


def test_what_the_memory_has_no_room_for_stays_stacked(make_tiny_lm, monkeypatch):
    """The same texts either way, by other programs."""
    lm, work = make_tiny_lm(seed=4), np.stack([np.zeros(12, int), np.arange(12) % 3], 1)
    made = []
    for kind in (Layerwise, Whole):
        monkeypatch.setattr(
            sampling, kind.__name__, lambda *args, kind=kind: made.append(kind) or kind(*args)
        )
    draw = partial(
        lm.sample_pairs, [((5, 6, 7),)], [(8,), (9, 4), (11, 12, 13)], work, seed=3,
        temperature=np.ones(12), sample_ids=np.arange(12), end_ids=[3], max_new_tokens=12,
    )  # fmt: skip
    assert has_room(lm.decoder)
    found = draw()
    monkeypatch.setattr(unstacked, "_SHARE_OF_HOST", 0.0)
    assert not has_room(lm.decoder)
    expected = draw()
    assert made == [Layerwise, Whole]
    assert found.token_ids == expected.token_ids
    np.testing.assert_allclose(found.log_probs, expected.log_probs, atol=1e-3)


def test_next_logits_are_the_logits(make_tiny_lm):
    decoder = make_tiny_lm(logit_softcap=2.0).decoder
    hidden = jnp.asarray(np.random.default_rng(0).normal(size=(5, 24)), jnp.float32)
    np.testing.assert_allclose(decoder.next_logits(hidden), decoder.logits(hidden), atol=1e-5)
