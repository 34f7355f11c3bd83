"""Pools of prefixes: each segment run once, memory bounded, a full device survived."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from mop_jax.errors import FaultError
from mop_jax.lm import prefixes as prefix_module
from mop_jax.lm.base import TemperatureGrid
from mop_jax.lm.memory import kv_bytes_per_token
from mop_jax.lm.prefixes import KeptPool, prefix_pools


def test_little_memory_makes_several_pools_of_one_shape(tiny_lm, random_work):
    prefixes, _, pairs = random_work(3)
    longest = max(sum(map(len, prefix)) for prefix in prefixes)
    row = -(-longest // 16) * 16 * 2 * 3 * 2 * 6 * 4  # slots × 2 × layers × heads × width × bytes
    assert row % kv_bytes_per_token(tiny_lm.config, np.float32) == 0
    all_at_once = list(prefix_pools(tiny_lm.decoder, prefixes, pairs[:, 0], 1e9))
    assert len(all_at_once) == 1
    few = list(prefix_pools(tiny_lm.decoder, prefixes, pairs[:, 0], 5 * row))
    assert len(few) > 3
    assert len({pool.cache.keys.shape for pool, _ in few}) == 1
    assert sorted(i for _, members in few for i in members) == list(range(len(pairs)))
    for pool, members in few:
        assert {int(pairs[i, 0]) for i in members} == set(pool.row_of)
        assert pool.cache.keys.nbytes + pool.cache.values.nbytes <= 5 * row
    one_each = list(prefix_pools(tiny_lm.decoder, prefixes, pairs[:, 0], 1))
    assert len(one_each) == len(set(pairs[:, 0].tolist()))


def test_pooled_rows_are_the_prefixes_run_alone(tiny_lm, random_work):
    """Keys and values of each row, whatever level of the tree it came from and however packed."""
    prefixes, _, _ = random_work(4)
    ((pool, _),) = prefix_pools(tiny_lm.decoder, prefixes, np.arange(len(prefixes)), 1e9)
    for i, prefix in enumerate(prefixes):
        ids = [token for segment in prefix for token in segment]
        row = pool.row_of[i]
        assert int(pool.cache.lengths[row]) == len(ids)
        if not ids:
            continue
        ((alone, _),) = prefix_pools(tiny_lm.decoder, [(tuple(ids),)], np.zeros(1, int), 1e9)
        found, expected = (cache.resized(len(ids)) for cache in (pool.cache, alone.cache))
        for ours, theirs in zip(found[:2], expected[:2], strict=True):
            np.testing.assert_allclose(ours[:, row], theirs[:, alone.row_of[0]], atol=2e-5)


def test_a_shared_persona_is_run_once(tiny_lm, monkeypatch):
    persona, other = (5, 6, 7), (8, 9)
    prefixes = [(persona, (10 + j,)) for j in range(5)] + [(other, (10,)), (persona,)]
    seen = []
    real = prefix_module.pad
    monkeypatch.setattr(prefix_module, "pad", lambda s, *rest: seen.extend(s) or real(s, *rest))
    list(prefix_pools(tiny_lm.decoder, prefixes, np.arange(7), 1e9))
    expected = [persona, other, *((10 + j,) for j in range(5)), (10,)]
    assert sorted(seen) == sorted(expected)


def test_empty_segments_leave_no_trace(tiny_lm):
    prefixes = [((), (5, 6)), ((5, 6), ()), ((5, 6),), ((),)]
    ((pool, _),) = prefix_pools(tiny_lm.decoder, prefixes, np.arange(4), 1e9)
    assert pool.row_of[0] == pool.row_of[1] == pool.row_of[2] != pool.row_of[3]
    assert pool.cache.lengths[pool.row_of[0]] == 2
    assert pool.cache.lengths[pool.row_of[3]] == 0


def full_device(monkeypatch, most_rows):
    """Lets pools of more rows fail as on a full device; gives the sizes that were tried."""
    real, tried = prefix_module.empty_cache, []

    def limited(config, num_rows, *rest):
        tried.append(num_rows)
        if num_rows > most_rows:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(config, num_rows, *rest)

    monkeypatch.setattr(prefix_module, "empty_cache", limited)
    return tried


def test_a_full_device_halves_the_pool_and_says_so(tiny_lm, monkeypatch):
    prefixes = [((5, 6), (7 + i,)) for i in range(100)]
    tried = full_device(monkeypatch, 40)
    with pytest.warns(UserWarning, match=r"does not hold .* prefixes at a time; going on with"):
        pools = list(prefix_pools(tiny_lm.decoder, prefixes, np.arange(100), 1e9))
    assert tried[0] > 100
    assert max(pool.cache.keys.shape[1] for pool, _ in pools) <= 40
    assert sorted(i for _, members in pools for i in members) == list(range(100))


def test_a_device_too_small_for_one_prefix_is_an_error(tiny_lm, monkeypatch):
    full_device(monkeypatch, 0)
    with (
        pytest.warns(UserWarning, match="going on with"),
        pytest.raises(FaultError, match="does not hold a single prefix of 1 tokens"),
    ):
        list(prefix_pools(tiny_lm.decoder, [((5,),), ((6,),)], np.arange(2), 1e9))


def made_pools(monkeypatch):
    """Gives the sizes of the pools that are made from now on."""
    real, made = prefix_module.empty_cache, []

    def noted(config, num_rows, *rest):
        made.append(num_rows)
        return real(config, num_rows, *rest)

    monkeypatch.setattr(prefix_module, "empty_cache", noted)
    return made


def test_a_pool_is_kept_for_the_same_prefixes_in_any_order(tiny_lm, monkeypatch):
    made, kept = made_pools(monkeypatch), KeptPool()
    prefixes = [((5, 6), (7 + i,)) for i in range(9)]
    ((first, _),) = prefix_pools(tiny_lm.decoder, prefixes, np.arange(9), 1e9, kept=kept)
    order = np.asarray([4, 1, 8, 0, 2, 7, 3, 6, 5])
    again = [prefixes[i] for i in order]
    ((second, members),) = prefix_pools(tiny_lm.decoder, again, np.arange(9), 1e9, kept=kept)
    assert len(made) == 1
    assert members == list(range(9))
    assert second.cache is first.cache
    assert [second.row_of[i] for i in range(9)] == [first.row_of[int(i)] for i in order]
    # Fewer prefixes are other work: what they get must not depend on what was run before.
    list(prefix_pools(tiny_lm.decoder, prefixes, np.arange(3), 1e9, kept=kept))
    list(prefix_pools(tiny_lm.decoder, prefixes, np.arange(9), 1e9, kept=kept))
    assert len(made) == 3


def test_a_large_pool_is_not_kept(tiny_lm, monkeypatch):
    made, kept = made_pools(monkeypatch), KeptPool()
    prefixes = [((5, 6), (7 + i,)) for i in range(9)]
    ((pool, _),) = prefix_pools(tiny_lm.decoder, prefixes, np.arange(9), 1e9)
    memory = 2 * (pool.cache.keys.nbytes + pool.cache.values.nbytes)
    for _ in range(2):
        list(prefix_pools(tiny_lm.decoder, prefixes, np.arange(9), memory, kept=kept))
    assert len(made) == 3


def test_scores_on_kept_prefixes_are_the_same_bits(tiny_lm, random_work, monkeypatch):
    prefixes, continuations, pairs = random_work(5)
    made = made_pools(monkeypatch)

    def scores():
        found = {}
        tiny_lm.score_pairs(
            prefixes,
            continuations,
            pairs,
            grid=TemperatureGrid(),
            on_scores=lambda i, s: found.update(zip(i.tolist(), s.tolist(), strict=True)),
        )
        return found

    tiny_lm._kept = KeptPool()
    fresh = scores()
    assert scores() == fresh
    assert len(made) == 1
    tiny_lm._kept = KeptPool()
    assert scores() == fresh
    assert len(made) == 2


def test_a_kept_pool_belongs_to_its_weights(make_tiny_lm, monkeypatch):
    lm = make_tiny_lm()
    made, kept = made_pools(monkeypatch), KeptPool()
    prefixes = [((5, 6), (7 + i,)) for i in range(9)]
    list(prefix_pools(lm.decoder, prefixes, np.arange(9), 1e9, kept=kept))
    table = lm.decoder.embed_tokens.embedding
    table[...] = 1.5 * table[...]
    list(prefix_pools(lm.decoder, prefixes, np.arange(9), 1e9, kept=kept))
    assert len(made) == 2
