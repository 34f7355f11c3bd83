"""Truncations against plain NumPy in float64, and draws against `jax.random.categorical`."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from mop_jax.errors import DataError
from mop_jax.lm.base import Truncation
from mop_jax.lm.drawing import BLOCK, TruncationArrays, draw_tokens, truncate

RULES = [
    (1, 1.0, 0.0),
    (7, 1.0, 0.0),
    (10_000, 1.0, 0.0),
    (None, 0.6, 0.0),
    (None, 1e-6, 0.0),
    (None, 1.0, 0.15),
    (None, 1.0, 1.0),
    (20, 0.6, 0.0),
    (20, 1.0, 0.3),
    (None, 0.8, 0.3),
    (20, 0.8, 0.05),
]


def kept_by_numpy(log_probs, top_k, top_p, min_p):
    """Which tokens of one row are kept: each rule renormalises what the one before left."""
    probs = np.exp(np.asarray(log_probs, np.float64))
    order = np.argsort(-probs)
    keep = np.ones(len(probs), bool)
    if top_k is not None:
        keep[order[top_k:]] = False
    if top_p < 1:
        left = [i for i in order if keep[i]]
        shares = np.cumsum(probs[left] / probs[left].sum())
        keep[left[int(np.searchsorted(shares, top_p)) + 1 :]] = False
    left = np.where(keep, probs, 0.0)
    return keep & (left / left.sum() >= min_p * (left / left.sum()).max())


@pytest.fixture(scope="module")
def logits():
    """Ten rows over a prime number of tokens, from nearly flat to sharp."""
    rng = np.random.default_rng(0)
    return (rng.normal(size=(10, 499)) * np.linspace(0.5, 5, 10)[:, None]).astype(np.float32)


@pytest.fixture(scope="module")
def keys():
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(3)))(jnp.arange(10))


@pytest.mark.parametrize(("top_k", "top_p", "min_p"), RULES)
def test_truncations_keep_what_numpy_keeps(logits, top_k, top_p, min_p):
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    found = np.asarray(truncate(log_probs, TruncationArrays.of(Truncation(top_k, top_p, min_p))))
    for row in range(10):
        keep = kept_by_numpy(log_probs[row], top_k, top_p, min_p)
        np.testing.assert_array_equal(found[row] > -np.inf, keep)
        np.testing.assert_array_equal(found[row][keep], np.asarray(log_probs)[row][keep])


def test_the_rules_of_this_file_differ(logits):
    """Each keeps another number of tokens, or the comparison above would compare little."""
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    sizes = [tuple(kept_by_numpy(row, *rule).sum() for row in log_probs) for rule in RULES]
    # The likeliest token alone, in three ways.
    assert len(set(sizes)) == len(RULES) - 2


def test_equally_likely_tokens_are_kept_together():
    log_probs = jnp.log(jnp.asarray([[0.4, 0.2, 0.2, 0.1, 0.1]]))
    for rule in (TruncationArrays(np.int32(2)), TruncationArrays(None, np.float32(0.5))):
        assert (np.asarray(truncate(log_probs, rule)) > -np.inf).tolist() == [[1, 1, 1, 0, 0]]


def drawn_slowly(key, kept):
    """One row by the definition: a block by its probability, then a token of the block by its."""
    first, second = jax.random.split(key)
    blocks = [kept[i : i + BLOCK] for i in range(0, len(kept), BLOCK)]
    totals = jnp.asarray([jax.nn.logsumexp(jnp.asarray(block)) for block in blocks])
    block = int(jax.random.categorical(first, totals, mode="high"))
    inside = np.full(BLOCK, -np.inf, np.float32)
    inside[: len(blocks[block])] = blocks[block]
    return block * BLOCK + int(jax.random.categorical(second, jnp.asarray(inside), mode="high"))


@pytest.mark.parametrize("rule", [(None, 1.0, 0.0), (20, 0.8, 0.05)])
def test_draws_are_those_of_two_slow_stages(logits, keys, rule):
    heat = np.linspace(0.6, 1.5, 10).astype(np.float32)
    truncation = TruncationArrays.of(Truncation(*rule))
    log_probs = jax.nn.log_softmax(logits / heat[:, None], axis=-1)
    kept = log_probs if rule[0] is None else truncate(log_probs, truncation)
    distinct = set()
    for position in range(30):
        folded = jax.vmap(partial(jax.random.fold_in, data=position))(keys)
        token, log_prob = draw_tokens(folded, jnp.asarray(logits), heat, truncation)
        slow = [drawn_slowly(key, np.asarray(row)) for key, row in zip(folded, kept)]
        np.testing.assert_array_equal(token, slow)
        expected = np.asarray(log_probs)[range(10), token]
        np.testing.assert_allclose(log_prob, expected, atol=2e-6)
        distinct.update(np.asarray(token).tolist())
    assert len(distinct) > 50


@pytest.mark.parametrize("rule", [(None, 1.0, 0.0), (20, 0.8, 0.05)])
def test_draws_follow_the_probabilities(logits, rule):
    """χ² over 40,000 draws of each row, in cells of 20 expected draws: false-failure rate 1e-5."""
    truncation, number = TruncationArrays.of(Truncation(*rule)), 40_000
    log_probs = np.asarray(jax.nn.log_softmax(logits / 1.3, axis=-1))
    draw = jax.jit(jax.vmap(partial(draw_tokens, truncation=truncation), in_axes=(0, None, None)))
    keys = jax.random.split(jax.random.key(11), (number, 10))
    tokens = np.asarray(draw(keys, jnp.asarray(logits), jnp.full(10, 1.3))[0])
    for row in range(10):
        kept = kept_by_numpy(log_probs[row], *rule) if rule[0] else np.ones(499, bool)
        probs = np.where(kept, np.exp(log_probs[row].astype(np.float64)), 0.0)
        expected = number * probs / probs.sum()
        counts = np.bincount(tokens[:, row], minlength=499)
        assert not counts[~kept].any()
        order = np.argsort(expected)
        cell = np.minimum(np.cumsum(expected[order]) // 20, np.inf).astype(int)
        wanted, found = (np.bincount(cell, values[order]) for values in (expected, counts))
        wanted, found = wanted[wanted > 5], found[wanted > 5]
        if len(wanted) > 1:
            p = chisquare(found, wanted * found.sum() / wanted.sum()).pvalue
            assert p > 1e-5 / 20


def test_temperature_zero_needs_no_luck(logits, keys):
    cold = np.zeros(10, np.float32)
    token, log_prob = draw_tokens(keys, jnp.asarray(logits), cold, TruncationArrays())
    np.testing.assert_array_equal(token, logits.argmax(axis=1))
    expected = jax.nn.log_softmax(logits, axis=-1).max(axis=1)
    np.testing.assert_allclose(log_prob, expected, atol=1e-6)


def test_at_temperature_zero_the_first_of_equals_is_taken(keys):
    values = np.full((10, 300), -1.0, np.float32)
    for row in range(10):
        values[row, [20 + row, 150, 299]] = 3.0
    token, _ = draw_tokens(keys, jnp.asarray(values), np.zeros(10, np.float32), TruncationArrays())
    np.testing.assert_array_equal(token, values.argmax(axis=1))


@pytest.mark.parametrize(
    ("rule", "sorts"),
    [((None, 1.0, 0.0), 0), ((None, 1.0, 0.1), 0), ((5, 1.0, 0.0), 1), ((5, 0.5, 0.0), 1)],
)
def test_the_vocabulary_is_sorted_only_where_a_rule_needs_it(logits, keys, rule, sorts):
    truncation = TruncationArrays.of(Truncation(*rule))
    heat = np.ones(10, np.float32)
    program = jax.make_jaxpr(draw_tokens)(keys, jnp.asarray(logits), heat, truncation)
    assert str(program).count(" sort[") == sorts
    assert "top_k[" not in str(program)


@pytest.mark.parametrize(
    "rule", [(0, 1.0, 0.0), (None, 0.0, 0.0), (None, 1.1, 0.0), (None, 1.0, -0.1), (None, 1.0, 2)]
)
def test_rules_out_of_range_are_refused(rule):
    with pytest.raises(DataError, match=r"Truncation needs top_k ≥ 1"):
        Truncation(*rule)
