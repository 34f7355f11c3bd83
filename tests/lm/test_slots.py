"""Slots that refill draw what a slow loop draws, one sample at a time and every prompt whole."""

from __future__ import annotations

from functools import partial

import jax
import numpy as np
import pytest
from flax import nnx

from mop_jax.errors import DeviceFullError, FaultError
from mop_jax.lm import sampling
from mop_jax.lm import slots as device
from mop_jax.lm.base import Truncation
from mop_jax.lm.drawing import TruncationArrays
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.memory import kv_bytes_per_token
from mop_jax.lm.unstacked import Layerwise
from tests.lm.test_drawing import drawn_slowly, kept_by_numpy

NUM_SAMPLES = 45
LONGEST = 11
PREFIXES = [((5, 99, 234), (77, 8)), ((5, 99, 234), (300, 301, 302, 303)), ((41,) * 30,), ()]
REQUESTS = [(42, 50), (9,), (60, 61, 62, 63, 64, 65, 66, 67, 68), (100, 7)]
# One token in nine ends a response, so that lengths from one to LONGEST occur.
ENDS = tuple(range(0, 606, 9))
RULES = [(None, 1.0, 0.0), (60, 0.9, 0.02)]


@pytest.fixture(scope="module")
def lm(make_tiny_lm):
    return make_tiny_lm(vocab_size=606)


@pytest.fixture(scope="module")
def work():
    """Pairs, temperatures (some 0) and sample numbers."""
    rng = np.random.default_rng(1)
    pairs = np.stack([rng.integers(4, size=NUM_SAMPLES), rng.integers(4, size=NUM_SAMPLES)], 1)
    heat = rng.choice([0.0, 0.7, 1.0, 1.4], NUM_SAMPLES, p=[0.1, 0.3, 0.3, 0.3])
    return pairs, heat, rng.permutation(1000)[:NUM_SAMPLES]


def draw(lm, work, rule=RULES[0], order=None, **options):
    pairs, heat, ids = work if order is None else tuple(x[order] for x in work)
    settings = {"max_new_tokens": LONGEST, "seed": 7} | options
    return lm.sample_pairs(
        PREFIXES, REQUESTS, pairs, temperature=heat, sample_ids=ids, end_ids=ENDS,
        truncation=Truncation(*rule), **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def expected(lm, work):
    """Texts and log-probabilities of the slow loop, for each of RULES."""

    def one(prompt, heat, sample_id, rule):
        key = jax.random.fold_in(jax.random.key(7), int(sample_id))
        drawn, log_probs = [], []
        while len(drawn) < LONGEST and not (drawn and drawn[-1] in ENDS):
            ids = np.zeros((1, 64), np.int32)
            length = len(prompt) + len(drawn)
            ids[0, :length] = [*prompt, *drawn]
            logits = lm.logits(ids, np.asarray([length]))[0, length - 1]
            tempered = jax.nn.log_softmax(logits / (heat or 1.0))
            kept = np.where(kept_by_numpy(tempered, *rule), tempered, -np.inf)
            luck = drawn_slowly(jax.random.fold_in(key, len(drawn)), kept)
            drawn.append(int(luck if heat else np.argmax(logits)))
            log_probs.append(float(tempered[drawn[-1]]))
        return drawn, log_probs

    pairs, heat, ids = work
    prompts = [[i for segment in (*PREFIXES[p], REQUESTS[r]) for i in segment] for p, r in pairs]
    return [[one(*each, rule) for each in zip(prompts, heat, ids)] for rule in RULES]


@pytest.fixture
def slots(monkeypatch):
    """Sets the number of slots."""
    return lambda number: monkeypatch.setitem(sampling.SLOTS, "cpu", number)


@pytest.mark.parametrize("layerwise", [True, False])
@pytest.mark.parametrize("rule", [0, 1])
@pytest.mark.parametrize("num_slots", [8, 16, 64])
def test_draws_are_those_of_the_slow_loop(
    lm, work, expected, slots, rule, num_slots, layerwise, monkeypatch
):
    slots(num_slots)
    monkeypatch.setattr(sampling, "has_room", lambda decoder: layerwise)
    drawn = draw(lm, work, RULES[rule])
    lengths = [len(ids) for ids, _ in expected[rule]]
    assert set(lengths) >= {1, 2, 3, LONGEST}
    assert drawn.token_ids == [ids for ids, _ in expected[rule]]
    for found, (_, log_probs) in zip(drawn.token_log_probs, expected[rule], strict=True):
        np.testing.assert_allclose(found, log_probs, atol=1e-4)
    np.testing.assert_allclose(drawn.log_probs, [sum(x) for _, x in expected[rule]], atol=1e-4)
    np.testing.assert_array_equal(drawn.finished, [ids[-1] in ENDS for ids, _ in expected[rule]])


def test_order_and_left_out_samples_change_no_text(lm, work, expected, slots):
    slots(8)
    texts = [ids for ids, _ in expected[0]]
    order = np.random.default_rng(2).permutation(NUM_SAMPLES)
    assert draw(lm, work, order=order).token_ids == [texts[i] for i in order]
    skip = np.random.default_rng(3).random(NUM_SAMPLES) < 0.5
    reported = []
    some = draw(
        lm, work, skip=skip, on_generated=lambda indices, drawn: reported.append((indices, drawn))
    )
    for i, text in enumerate(texts):
        assert some.token_ids[i] == ([] if skip[i] else text)
    assert sorted(np.concatenate([i for i, _ in reported])) == np.flatnonzero(~skip).tolist()
    for indices, drawn in reported:
        assert drawn.token_ids == [texts[i] for i in indices]
        for i, log_probs in zip(indices, drawn.token_log_probs, strict=True):
            np.testing.assert_array_equal(log_probs, some.token_log_probs[i])
        np.testing.assert_array_equal(drawn.log_probs, some.log_probs[indices])
    nothing = draw(lm, work, skip=np.ones(NUM_SAMPLES, bool))
    assert nothing.token_ids == [[]] * NUM_SAMPLES


def test_several_pools_draw_the_same(lm, work, expected, slots, monkeypatch):
    """Pools of one prompt each: slots go on drawing while the next pool is filled."""
    slots(8)
    monkeypatch.setattr(lm, "_memory", 1)
    made = []
    pools = sampling.prefix_pools
    monkeypatch.setattr(
        sampling,
        "prefix_pools",
        lambda *args, **rest: (made.append(pool) or pool for pool in pools(*args, **rest)),
    )
    assert draw(lm, work).token_ids == [ids for ids, _ in expected[0]]
    # Requests of one token are run when the first token is drawn.
    prompts = {(PREFIXES[p], REQUESTS[r][:-1]) for p, r in work[0]}
    assert len(made) == len(prompts) > 4


def test_pools_are_a_few_times_as_large_as_the_slots(lm, work, expected, slots, monkeypatch):
    slots(8)
    monkeypatch.setattr(sampling, "POOL_ROWS", 1)
    held = []
    pools = sampling.prefix_pools

    def watched(*args, **rest):
        for pool, members in pools(*args, **rest):
            held.append(len(pool.cache.lengths))
            yield pool, members

    monkeypatch.setattr(sampling, "prefix_pools", watched)
    assert draw(lm, work).token_ids == [ids for ids, _ in expected[0]]
    assert len(held) > 1
    assert max(held) <= 8


def test_windows_follow_the_tokens_in_use(lm, work, expected, slots, monkeypatch):
    """Caches that grow and shrink between draws give the same texts."""
    slots(8)
    monkeypatch.setattr(device, "SHORT_WINDOW", 16)
    sizes = []
    resize = Layerwise.resize

    def recorded(runner, slots, size):
        sizes.append(size)
        return resize(runner, slots, size)

    monkeypatch.setattr(Layerwise, "resize", recorded)
    assert draw(lm, work).token_ids == [ids for ids, _ in expected[0]]
    assert {32, 64} <= set(sizes)
    assert max(sizes) == 64  # 39 tokens of the longest prompt, and 11


def test_windows_have_room_and_halve():
    assert device.windows(100) == [112]
    assert device.windows(511) == [256, 512]
    assert device.windows(2000) == [256, 512, 1008, 2000]
    for longest in range(1, 3000, 7):
        sizes = device.windows(longest)
        assert longest <= sizes[-1] < longest + 16
        assert sizes[0] < 2 * device.SHORT_WINDOW


def full_device(monkeypatch, fits):
    """Lets `advance` fail as a full device does, whenever `fits` refuses the number of slots."""
    real, tried = Layerwise.advance, []

    def limited(runner, slots, *rest):
        tried.append(len(slots.live))
        if not fits(tried):
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 GiB")
        return real(runner, slots, *rest)

    monkeypatch.setattr(Layerwise, "advance", limited)
    return tried


@pytest.mark.parametrize("good", [0, 3])
def test_a_full_device_halves_the_slots_and_says_so(lm, work, expected, slots, monkeypatch, good):
    """At once, or midway: what was being drawn begins again, and what was handed over does not."""
    slots(32)
    tried = full_device(monkeypatch, lambda tried: tried[-1] <= 8 or len(tried) <= good)
    reported = []
    with pytest.warns(UserWarning, match="memory is full: going on with") as said:
        drawn = draw(lm, work, on_generated=lambda indices, _: reported.extend(indices.tolist()))
    told = [str(w.message) for w in said if "responses at a time" in str(w.message)]
    assert [t.split("with ")[1] for t in told] == [f"{n} responses at a time." for n in (16, 8)]
    assert sorted(set(tried)) == [8, 16, 32]
    assert drawn.token_ids == [ids for ids, _ in expected[0]]
    assert sorted(reported) == list(range(NUM_SAMPLES))


def test_a_device_that_holds_no_response_is_a_fault(lm, work, slots, monkeypatch):
    slots(4)
    full_device(monkeypatch, lambda tried: False)
    single = pytest.raises(FaultError, match="does not hold a single response")
    with pytest.warns(UserWarning, match="going on with 1 responses"), single:
        draw(lm, work)


def test_slots_give_way_to_prefixes(lm, work, expected, slots, monkeypatch):
    """No pool fits beside more than eight slots, and none is made while more of them are alive."""
    slots(32)
    pools = sampling.prefix_pools
    alive: list[int] = []
    # Other language models of the process keep pools of such shapes.
    others = jax.live_arrays()

    def limited(decoder, prefixes, wanted, memory, *rest, **options):
        mine = [a for a in jax.live_arrays() if not any(a is other for other in others)]
        alive.append(max(a.shape[0] for a in mine if a.ndim == 4 and a.shape[0] in (32, 16, 8)))
        if alive[-1] > 8:
            raise DeviceFullError("No single prefix fits.")
        return pools(decoder, prefixes, wanted, memory, *rest, **options)

    monkeypatch.setattr(sampling, "prefix_pools", limited)
    with pytest.warns(UserWarning, match="going on with 8 responses"):
        drawn = draw(lm, work)
    assert alive == [32, 16, 8]
    assert drawn.token_ids == [ids for ids, _ in expected[0]]


def test_an_error_of_the_callback_is_not_taken_for_a_full_device(lm, work, slots):
    slots(8)

    def full(indices, drawn):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: the caller's own")

    with pytest.raises(jax.errors.JaxRuntimeError, match="the caller's own"):
        draw(lm, work, on_generated=full)


def test_slots_that_cannot_be_made_are_halved(lm, work, expected, slots, monkeypatch):
    slots(32)
    make = Layerwise.idle

    def limited(runner, num_slots, *sizes):
        if num_slots > 8:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return make(runner, num_slots, *sizes)

    monkeypatch.setattr(Layerwise, "idle", limited)
    with pytest.warns(UserWarning, match="going on with 8 responses"):
        drawn = draw(lm, work)
    assert drawn.token_ids == [ids for ids, _ in expected[0]]


def test_slots_are_within_the_memory_budget(lm, work, expected, slots, monkeypatch):
    slots(64)
    made = []
    make = Layerwise.idle

    def recorded(runner, num_slots, *sizes):
        made.append(num_slots)
        return make(runner, num_slots, *sizes)

    monkeypatch.setattr(Layerwise, "idle", recorded)
    row = 64 * kv_bytes_per_token(lm.config, lm.decoder.dtype)  # 39 tokens of a prompt, and 11
    for budget, num_slots in ((1, 4), (4 * 12 * row, 12), (4 * 1000 * row, 48)):
        drawn = sampling.sample_pairs(
            lm.decoder, PREFIXES, REQUESTS, work[0], temperature=work[1], sample_ids=work[2],
            end_ids=ENDS, max_new_tokens=LONGEST, seed=7, memory=budget,
        )  # fmt: skip
        assert made.pop() == num_slots
        assert drawn.token_ids == [ids for ids, _ in expected[0]]


def test_refills_waste_less_than_fixed_batches(lm, slots):
    """Responses of very different lengths: a fixed batch lasts as long as its longest."""
    slots(16)
    count = 320
    drawn = sampling.sample_pairs(
        lm.decoder, [()], [(5, 6)], np.zeros((count, 2), int), seed=0, temperature=np.ones(count),
        sample_ids=np.arange(count), end_ids=ENDS, max_new_tokens=60,
    )  # fmt: skip
    lengths = np.asarray([len(ids) for ids in drawn.token_ids])
    assert drawn.slot_steps % 16 == 0
    wasted = 1 - lengths.sum() / drawn.slot_steps
    fixed = 1 - lengths.sum() / (16 * lengths.reshape(-1, 16).max(axis=1).sum())
    assert fixed > 0.5
    assert wasted < 0.3
    # Even if fixed batches knew the lengths beforehand, the last responses would hold some up.
    assert wasted > 0


def test_refills_compile_nothing(lm, work, slots, monkeypatch):
    slots(8)
    traces, refills, runs = [], [], []
    draw_tokens, place, advance = device.draw_tokens, Layerwise.place, Layerwise.advance
    monkeypatch.setattr(device, "draw_tokens", lambda *args: traces.append(1) or draw_tokens(*args))
    monkeypatch.setattr(Layerwise, "place", lambda *a: refills.append(1) or place(*a))
    monkeypatch.setattr(Layerwise, "advance", lambda *args: runs.append(1) or advance(*args))
    draw(lm, work, max_new_tokens=10)  # a shape of this test's own
    first = len(traces)
    assert len(refills) >= 6
    assert len(runs) >= 6
    assert 1 <= first <= 2
    draw(lm, (work[0], work[1] + 0.2, work[2] + 1), max_new_tokens=10, seed=8)
    assert len(traces) == first


def test_slots_are_updated_in_place(lm):
    """By the program of all layers; for that of one see test_unstacked."""
    graph, state = nnx.split(lm.decoder)
    slots = device.Whole(lm.decoder).idle(8, 640, LONGEST)
    size = slots.cache.keys.nbytes + slots.cache.values.nbytes
    program = device._advance.lower(
        graph, state, slots, jax.random.key(0), np.zeros(8, np.uint32), np.ones(8, np.float32),
        np.asarray([3], np.int32), TruncationArrays(), 2, shardings=None,
    ).compile()  # fmt: skip
    memory = program.memory_analysis()
    assert memory.alias_size_in_bytes >= size
    assert memory.temp_size_in_bytes < size / 2


def test_a_fault_names_its_sample(make_tiny_lm):
    decoder = make_tiny_lm(vocab_size=606, tie_embeddings=False).decoder
    table = decoder.embed_tokens.embedding
    table[...] = table[...].at[7].set(np.nan)
    faulty = FlaxLM(decoder)
    run = partial(
        faulty.sample_pairs, [()], seed=0, temperature=np.ones(20), end_ids=ENDS,
        pairs=np.stack([np.zeros(20, int), np.arange(20)], 1), sample_ids=np.arange(20) + 500,
        max_new_tokens=1,
    )  # fmt: skip
    requests = [(5, 6 + 2 * i) for i in range(20)]
    assert len(run(requests=requests).token_ids) == 20
    requests[13] = (7, 5)
    with pytest.raises(FaultError, match=r"not finite in sample 513\."):
        run(requests=requests)


def test_infinite_logits_of_tokens_that_are_not_drawn_are_found(make_tiny_lm):
    decoder = make_tiny_lm(vocab_size=606, tie_embeddings=False).decoder
    decoder.norm.scale[...] = decoder.norm.scale[...].at[0].set(1e4)
    head = decoder.lm_head.embedding
    rows = np.zeros((2, head.shape[1]), np.float32)
    # Whatever the sign of the hidden state, one of the two is +∞ and the other −∞.
    rows[:, 0] = 3e38, -3e38
    head[...] = head[...].at[np.asarray([100, 200])].set(rows)
    with pytest.raises(FaultError, match="not finite in sample 0"):
        FlaxLM(decoder).generate([[5]], max_new_tokens=1, top_k=1)
    # An impossible token is no fault.
    decoder.lm_head.embedding[...] = head[...].at[np.asarray([100, 200])].set(0.0)
    FlaxLM(decoder).generate([[5]], max_new_tokens=1)
