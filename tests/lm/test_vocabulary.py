"""The vocabulary's projection in blocks against float64 log-softmax."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax.lm.vocabulary import grid_log_probs, power_sums, vocabulary_block

MULTIPLES, INVERSES = (13, 8, 5), (1.625, 1.0, 0.625)


@pytest.fixture(scope="module")
def case():
    """Logits in the hundreds, the largest in the first, a middle or the last block of 6."""
    rng = np.random.default_rng(0)
    embedding = rng.normal(0, 10, (30, 4)).astype(np.float32)
    hidden = rng.normal(0, 10, (50, 4)).astype(np.float32)
    targets = rng.integers(30, size=50)
    logits = hidden.astype(np.float64) @ embedding.T.astype(np.float64)
    assert len({int(v) // 6 for v in logits.argmax(1)}) == 5
    assert logits.max() > 300
    return embedding, hidden, targets


def oracle(embedding, hidden, targets, cap=None):
    logits = hidden.astype(np.float64) @ embedding.T.astype(np.float64)
    if cap is not None:
        logits = cap * np.tanh(logits / cap)
    chosen = logits[np.arange(len(targets)), targets]
    columns = [i * chosen - np.logaddexp.reduce(i * logits, axis=1) for i in INVERSES]
    return np.stack(columns, axis=1)


def found(case, *, count=None, block=6, positions=None, cap=None, parts=1):
    return np.asarray(
        grid_log_probs(
            *case,
            np.float32(0.125),
            count,
            multiples=MULTIPLES,
            block=block,
            positions=positions,
            cap=cap,
            parts=parts,
        )
    )


@pytest.mark.parametrize("positions", [None, 50, 10, 1])
@pytest.mark.parametrize("block", [6, 30, 1])
def test_blocks_whatever_the_size_of_logits(case, block, positions):
    np.testing.assert_allclose(
        found(case, block=block, positions=positions), oracle(*case), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize(("block", "parts"), [(6, 2), (6, 3), (30, 5), (30, 6)])
def test_blocks_of_rows_from_every_part(case, block, parts):
    np.testing.assert_allclose(
        found(case, block=block, parts=parts), oracle(*case), rtol=1e-5, atol=1e-3
    )


def test_soft_capped_logits(case):
    np.testing.assert_allclose(
        found(case, cap=20.0, positions=10), oracle(*case, cap=20.0), rtol=1e-5, atol=1e-3
    )


@pytest.mark.parametrize("count", [1, 10, 23, 50])
def test_only_the_wanted_positions_are_promised(case, count):
    """The others may be anything: here poisoned ones do not reach those before them."""
    embedding, hidden, targets = case
    hidden = hidden.copy()
    hidden[count:] = np.nan
    some = found((embedding, hidden, targets), count=np.int32(count), positions=10)
    np.testing.assert_allclose(some[:count], oracle(*case)[:count], rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("token", [0, 17, 29])
def test_one_infinite_logit_spoils_its_position_alone(case, token):
    """It is the logit of no target, in the first, a middle or the last block."""
    embedding, hidden, targets = (array.copy() for array in case)
    hidden[:, 3] = 0.0
    hidden[20, 3], embedding[token, 3] = 10.0, 3e38
    targets[20] = 5
    scores = found((embedding, hidden, targets), positions=10)
    assert np.isnan(scores[20]).all()
    others = np.arange(50) != 20
    expected = oracle(embedding, hidden[others], targets[others])
    np.testing.assert_allclose(scores[others], expected, rtol=1e-5, atol=1e-3)


def test_hidden_states_that_are_not_finite_spoil_their_position_alone(case):
    embedding, hidden, targets = (array.copy() for array in case)
    hidden[20, 1] = np.nan
    scores = found((embedding, hidden, targets), positions=10)
    np.testing.assert_array_equal(np.isnan(scores).all(axis=1), np.arange(50) == 20)


@pytest.mark.parametrize("vocab_size", [49_152, 128_256, 32_000, 151_936, 101, 6_060, 50_257])
def test_blocks_divide_the_vocabulary(vocab_size):
    for target in (2_048, 32_768):
        block = vocabulary_block(vocab_size, target)
        assert vocab_size % block == 0
        assert block == vocab_size or target / 4 <= block <= target * 4


@pytest.mark.parametrize(("block", "parts"), [(48, 1), (7, 1), (33, 1), (96, 2), (50, 2)])
def test_power_sums_of_blocks_of_any_size(block, parts):
    u = np.random.default_rng(0).random((block, 5)).astype(np.float32)
    found = power_sums(u, (13, 5, 1), parts)
    expected = [(u.astype(np.float64) ** m).sum(axis=0) for m in (13, 5, 1)]
    np.testing.assert_allclose(found, expected, rtol=1e-6)
