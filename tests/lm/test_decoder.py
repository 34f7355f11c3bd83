"""The decoder against torch: whole, padded, cached in pieces, split as in scoring and sampling."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.lm.config import DecoderConfig, RopeScaling
from mop_jax.lm.decoder import KVCache, empty_cache, rotary_frequencies
from mop_jax.lm.families import parse_config
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.prefixes import append

GOLDEN = Path(__file__).parents[1] / "golden"
# One for each golden file: a further family brings its own and is tested here at once.
CASES = sorted(path.stem.removeprefix("decoder_") for path in GOLDEN.glob("decoder_*.npz"))
TOLERANCE = 1e-4  # logits have a standard deviation of about 3


@pytest.fixture(params=CASES)
def case(request, golden):
    return golden(request.param)


@pytest.fixture
def lm(request, case, golden_lm) -> FlaxLM:
    return golden_lm(request.node.callspec.params["case"])


@partial(jax.jit, static_argnames="graph")
def run(graph, state, cache, tokens, lengths, rows):
    """Logits of new tokens, and the cache continued by them (where its rows are the batch's)."""
    decoder = nnx.merge(graph, state)
    hidden, new = decoder.extend(cache, tokens, lengths, rows)
    return decoder.logits(hidden), new if rows is not None else append(cache, new)


def extend(lm, cache, sequences, width, rows=None):
    """Runs sequences of any lengths, padded to `width` with token 7."""
    tokens = np.full((len(sequences), width), 7, np.int32)
    for place, sequence in enumerate(sequences):
        tokens[place, : len(sequence)] = sequence
    lengths = np.asarray([len(sequence) for sequence in sequences], np.int32)
    rows = None if rows is None else np.asarray(rows, np.int32)
    logits, cache = run(*nnx.split(lm.decoder), cache, tokens, lengths, rows)
    return [np.asarray(row)[:length] for row, length in zip(logits, lengths)], cache


def test_padded_logits_equal_torch(case, lm):
    found = np.asarray(lm.logits(case.token_ids, case.lengths))
    assert found.dtype == np.float32
    assert case.logits.std() > 1
    np.testing.assert_allclose(found[case.real], case.logits[case.real], atol=TOLERANCE)


def test_what_stands_in_the_padding_does_not_matter(case, lm):
    for filling in (0, 2, 100):
        ids = np.where(case.real, case.token_ids, filling)
        found = np.asarray(lm.logits(ids, case.lengths))
        np.testing.assert_allclose(found[case.real], case.logits[case.real], atol=TOLERANCE)


@pytest.mark.parametrize("width", [1, 20])
def test_pieces_through_a_cache_equal_torch(case, lm, width):
    """Token by token; and in two or three pieces of unequal lengths."""
    config, dtype = lm.config, lm.decoder.dtype
    cache = empty_cache(config, len(case.lengths), int(case.lengths.max()) + 3, dtype)
    found = [np.zeros((0, config.vocab_size))] * len(case.lengths)
    size = np.asarray([1] * len(case.lengths) if width == 1 else [17, 20, 7, 3])[: len(found)]
    starts = np.zeros(len(found), int)
    while (starts < case.lengths).any():
        stops = np.minimum(starts + size, case.lengths)
        sequences = [ids[a:b] for ids, a, b in zip(case.token_ids, starts, stops)]
        logits, cache = extend(lm, cache, sequences, width)
        found = [np.concatenate(pair) for pair in zip(found, logits)]
        starts = stops
    for row, length in enumerate(case.lengths):
        np.testing.assert_allclose(found[row], case.logits[row, :length], atol=TOLERANCE)


def test_rows_of_a_ragged_cache_are_continued_by_number(case, lm):
    """Suffixes after prefixes of unequal lengths, in another order and more than once."""
    cut = np.minimum(case.lengths - 1, [5, 9, 2, 3][: len(case.lengths)])
    cache = empty_cache(lm.config, len(cut), int(case.lengths.max()) + 3, lm.decoder.dtype)
    heads = [ids[:stop] for ids, stop in zip(case.token_ids, cut)]
    _, cache = extend(lm, cache, heads, 20)
    rows = [*range(len(cut)), 0][::-1]
    tails = [case.token_ids[r, cut[r] : case.lengths[r]] for r in rows]
    found, _ = extend(lm, cache, tails, max(map(len, tails)) + 2, rows)
    for place, r in enumerate(rows):
        expected = case.logits[r, cut[r] : case.lengths[r]]
        np.testing.assert_allclose(found[place], expected, atol=TOLERANCE)


def split_points(case) -> list[tuple[int, int]]:
    """Where the first row is cut: one first segment with two different second ones, and others."""
    length = int(case.lengths[0])
    first = length // 3
    return [(first, 2 * first), (first, 2 * first + 2), (2, length - 3), (0, 1)]


def unmet(case) -> list[int]:
    """An end token that the continuation does not hold."""
    return [next(i for i in range(101) if i not in case.greedy)]


def test_split_scores_equal_torch(case, lm):
    """Prefixes of two segments, longer than the window, pooled; suffixes after them; on a grid."""
    row, length = case.token_ids[0].tolist(), int(case.lengths[0])
    cuts = split_points(case)
    assert any(lm.config.sliding_layers) == bool(lm.config.sliding_window)
    # Windows that end inside the prefix, straddle the cut, and lie within the suffix.
    assert (lm.config.sliding_window or 0) < 2 * (length // 3) - 1
    prefixes = [[row[:a], row[a:b]] for a, b in cuts]
    tails = [Continuation(tuple(row[b : b + 1]), tuple(row[b + 1 : length])) for _, b in cuts]
    order = [2, 0, 3, 1]
    pairs = np.asarray([(i, i) for i in order])
    grid = TemperatureGrid(0.25, (5, 4, 3))
    found = np.full((len(order), len(grid.multiples)), np.nan)

    def store(indices, scores):
        found[indices] = scores

    lm.score_pairs(prefixes, tails, pairs, grid=grid, on_scores=store)
    for place, i in enumerate(order):
        start = cuts[i][1] + 1
        logits = case.logits[0, start - 1 : length - 1].astype(np.float64)
        for g, temperature in enumerate(grid.temperatures):
            scaled = logits / temperature
            log_probs = scaled - np.logaddexp.reduce(scaled, axis=-1, keepdims=True)
            expected = log_probs[np.arange(length - start), row[start:length]].sum()
            assert abs(found[place, g] - expected) < TOLERANCE * (length - start)


def test_greedy_decoding_follows_torch_token_by_token(case, lm):
    prompt = case.token_ids[0, : case.lengths[0]].tolist()
    drawn = lm.generate(
        [prompt], temperature=0, max_new_tokens=len(case.greedy), end_ids=unmet(case)
    )
    assert len(set(case.greedy)) >= 4
    assert drawn.token_ids == [case.greedy]


def test_greedy_decoding_on_shared_prefixes_follows_torch(case, lm):
    """The same continuation wherever the prompt is cut, all cuts in one batch."""
    row = case.token_ids[0, : case.lengths[0]].tolist()
    cuts = split_points(case)
    drawn = lm.sample_pairs(
        [[row[:a], row[a:b]] for a, b in cuts],
        [row[b:] for _, b in cuts],
        np.asarray([(i, i) for i in range(len(cuts))]),
        seed=0,
        temperature=np.zeros(len(cuts)),
        sample_ids=np.arange(len(cuts)),
        end_ids=unmet(case),
        max_new_tokens=len(case.greedy),
    )
    assert drawn.token_ids == [case.greedy] * len(cuts)


def test_slots_beyond_a_caches_lengths_are_not_seen(golden, golden_lm):
    case, lm = golden("gqa_tied"), golden_lm("gqa_tied")
    clean = empty_cache(lm.config, 1, 4, lm.decoder.dtype)
    dirty = KVCache(clean.keys + 9.0, clean.values - 9.0, clean.lengths)
    ((found,), _) = extend(lm, dirty, case.token_ids[:1, :4], 4)
    np.testing.assert_allclose(found, case.logits[0, :4], atol=TOLERANCE)


@pytest.mark.parametrize("name", ["gqa_tied", "llama3_rope"])
def test_older_spelling_of_the_rotary_settings(golden, write_checkpoint, name):
    """`rope_theta` and `rope_scaling` (before transformers 5) mean the same."""
    case = golden(name)
    rope = case.config.pop("rope_parameters")
    case.config["rope_theta"] = rope.pop("rope_theta")
    kind = rope.pop("rope_type")
    case.config["rope_scaling"] = {"type": kind, **rope} if kind != "default" else None
    lm = FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights))
    found = np.asarray(lm.logits(case.token_ids, case.lengths))
    np.testing.assert_allclose(found[case.real], case.logits[case.real], atol=TOLERANCE)


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("gqa_tied", "rms_norm_eps", 2e-2),
        ("gpt2", "layer_norm_epsilon", 2e-2),
        ("biased_untied", "rope_parameters.rope_theta", 10_500.0),
        ("llama3_rope", "rope_parameters.factor", 8.4),
        ("llama3_rope", "rope_parameters.low_freq_factor", 1.1),
        ("llama3_rope", "rope_parameters.high_freq_factor", 4.4),
        ("llama3_rope", "rope_parameters.original_max_position_embeddings", 17),
        ("linear_rope", "rope_parameters.factor", 3.15),
        ("mistral", "sliding_window", 8),
        ("mistral", "sliding_window", None),
        ("qwen2", "sliding_window", 6),
        ("qwen3", "sliding_window", 6),
        ("gemma2", "sliding_window", 6),
        ("gemma2", "query_pre_attn_scalar", 12),
        ("gemma2", "attn_logit_softcapping", 3.2),
        ("gemma2", "final_logit_softcapping", 7.3),
        ("gemma3", "sliding_window", 7),
        ("gemma3", "query_pre_attn_scalar", 12),
        ("gemma3", "final_logit_softcapping", 9.4),
        ("gemma3", "rope_parameters.sliding_attention.rope_theta", 53.0),
        ("gemma3", "rope_parameters.full_attention.rope_theta", 950.0),
        ("gemma3", "rope_parameters.full_attention.factor", 2.1),
    ],
)
def test_constants_reach_the_logits(golden, write_checkpoint, name, path, value):
    """Guards the golden cases themselves: a setting that is ignored would show in them."""
    case = golden(name)
    *parents, field = path.split(".")
    place = case.config
    for parent in parents:
        place = place[parent]
    assert place[field] != value
    place[field] = value
    changed = FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights))
    found = np.asarray(changed.logits(case.token_ids, case.lengths))
    assert abs(found - case.logits)[case.real].max() > 20 * TOLERANCE


@pytest.mark.parametrize("name", ["qwen2", "qwen3", "gemma2", "gemma3"])
def test_which_layers_slide_reaches_the_logits(golden, write_checkpoint, name):
    case = golden(name)
    types = case.config["layer_types"]
    assert set(types) == {"sliding_attention", "full_attention"}
    case.config["layer_types"] = types[::-1] if name != "gemma3" else [*types[1:], types[0]]
    changed = FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights))
    found = np.asarray(changed.logits(case.token_ids, case.lengths))
    assert abs(found - case.logits)[case.real].max() > 20 * TOLERANCE


def test_llama3_frequencies_in_words():
    """Short wavelengths kept, long ones divided by the factor, and between them in between."""
    scaling = RopeScaling("llama3", 8.0, 1.0, 4.0, 8192)
    values = {"head_dim": 128, "rope_theta": 500_000.0, "rope_scaling": scaling}
    config = parse_config(
        {
            "model_type": "llama",
            "vocab_size": 11,
            "hidden_size": 256,
            "intermediate_size": 3,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "max_position_embeddings": 131_072,
            "rms_norm_eps": 1e-5,
        }
    )
    plain = rotary_frequencies(DecoderConfig(**{**config.__dict__, "rope_theta": 500_000.0}))
    scaled = rotary_frequencies(DecoderConfig(**{**config.__dict__, **values}))
    wavelengths = 2 * np.pi / np.asarray(plain, np.float64)
    ratio = np.asarray(scaled / plain, np.float64)
    np.testing.assert_allclose(ratio[wavelengths < 8192 / 4], 1.0, rtol=1e-6)
    np.testing.assert_allclose(ratio[wavelengths > 8192], 1 / 8, rtol=1e-6)
    between = (wavelengths > 8192 / 4) & (wavelengths < 8192)
    weight = (8192 / wavelengths[between] - 1.0) / 3.0
    np.testing.assert_allclose(ratio[between], weight + (1 - weight) / 8, rtol=1e-5)
    assert between.sum() > 3


def test_bfloat16_is_close_and_sums_in_float32(golden, write_checkpoint):
    case = golden("gqa_tied")
    folder = write_checkpoint(case.config, case.weights)
    lm = FlaxLM.from_pretrained(folder, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(lm._state)} == {jnp.dtype("bfloat16")}
    found = np.asarray(lm.logits(case.token_ids, case.lengths))
    assert found.dtype == np.float32
    error = (found - case.logits)[case.real]
    # bfloat16 keeps 8 bits: a relative error of 2^-9 a rounding, and it takes some thirty in a row.
    assert 1e-4 < np.sqrt((error**2).mean()) < 0.05 * case.logits.std()
    assert lm.fingerprint != FlaxLM.from_pretrained(folder).fingerprint


def test_weights_stored_in_bfloat16_are_read_exactly(golden, write_checkpoint):
    case = golden("gqa_tied")
    short = {name: value.astype(jnp.bfloat16) for name, value in case.weights.items()}
    assert load_file(write_checkpoint(case.config, short) / "model.safetensors")
    stored = FlaxLM.from_pretrained(write_checkpoint(case.config, short))
    found = stored.logits(case.token_ids, case.lengths)
    widened = {name: value.astype(np.float32) for name, value in short.items()}
    exact = FlaxLM.from_pretrained(write_checkpoint(case.config, widened))
    np.testing.assert_array_equal(found, exact.logits(case.token_ids, case.lengths))
