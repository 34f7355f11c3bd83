"""The store of log-likelihoods: what is written stays, whatever happens; nothing stale is read."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from mop_jax.errors import DataError, FaultError, NotFiniteError
from mop_jax.likelihoods import LikelihoodStore, pair_key, score_missing
from mop_jax.lm.base import TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.prompts import Prompt

GRID = TemperatureGrid(0.5, (4, 2, 1))
ENTRY = 16 + 3 * 8 + 4


def entries(count, seed=0):
    rng = np.random.default_rng(seed)
    # Zeros at either end of a key must survive.
    keys = [bytes([0, i, *rng.integers(0, 256, 13).tolist(), 0]) for i in range(count)]
    return keys, rng.normal(-100, 20, (count, 3))


def opened(folder, key="model", grid=GRID):
    return LikelihoodStore(folder, key, grid)


@pytest.fixture
def filled(tmp_path):
    """A closed journal of seven entries, written in two pieces."""
    keys, scores = entries(7)
    with opened(tmp_path) as store:
        store.append(keys[:4], scores[:4])
        store.append(keys[4:], scores[4:])
    return store.path, keys, scores


def test_what_is_appended_is_there_bit_for_bit(tmp_path):
    keys, scores = entries(7)
    with opened(tmp_path) as store:
        assert len(store) == 0
        store.append(keys[:4], scores[:4])
        np.testing.assert_array_equal(store.get(keys[1:3]), scores[1:3])
        assert keys[3] in store
        assert keys[4] not in store
        with pytest.raises(KeyError):
            store.get([keys[4]])
    with opened(tmp_path) as store:
        store.append(keys[4:], scores[4:])
    with opened(tmp_path) as store:
        assert len(store) == 7
        order = [6, 0, 3, 3]
        np.testing.assert_array_equal(store.get([keys[i] for i in order]), scores[order])
        assert store.get([]).shape == (0, 3)
    assert store.path.stat().st_size == 7 * ENTRY


def test_scores_are_visible_to_others_as_soon_as_append_returns(tmp_path):
    """A kill -9 right after `append` loses nothing, since nothing waits in this process."""
    keys, scores = entries(2)
    with opened(tmp_path) as store:
        store.append(keys, scores)
        assert store.path.stat().st_size == 2 * ENTRY


@pytest.mark.parametrize("lost", range(1, ENTRY + 1))
def test_a_journal_cut_anywhere_in_its_last_entry_keeps_the_others(tmp_path, filled, lost):
    path, keys, scores = filled
    path.write_bytes(path.read_bytes()[:-lost])
    with opened(tmp_path) as store:
        assert len(store) == 6
        np.testing.assert_array_equal(store.get(keys[:6]), scores[:6])
        assert keys[6] not in store
        store.append(keys[6:], scores[6:])
    with opened(tmp_path) as store:
        np.testing.assert_array_equal(store.get(keys), scores)


def test_a_broken_last_entry_is_cut_off(tmp_path, filled):
    path, keys, scores = filled
    for offset in (1, 10, 30, ENTRY - 1):
        data = bytearray(path.read_bytes())
        data[-offset] ^= 0x40
        path.write_bytes(data)
        with opened(tmp_path) as store:
            assert len(store) == 6
            store.append(keys[6:], scores[6:])


@pytest.mark.parametrize("entry", range(6))
def test_damage_before_the_end_is_a_fault(tmp_path, filled, entry):
    path = filled[0]
    before = bytearray(path.read_bytes())
    for offset in (0, 15, 16, 39, 40, 43):
        data = bytearray(before)
        data[entry * ENTRY + offset] ^= 0x01
        path.write_bytes(data)
        with pytest.raises(FaultError, match=rf"scores\.bin: entry {entry} of 7 is damaged"):
            opened(tmp_path)
        assert path.read_bytes() == data  # left for inspection


def test_a_lost_entry_in_the_middle_shifts_the_rest_and_is_a_fault(tmp_path, filled):
    path = filled[0]
    data = path.read_bytes()
    path.write_bytes(data[: 2 * ENTRY] + data[2 * ENTRY + 9 :])
    with pytest.raises(FaultError, match="entry 2 of 6 is damaged"):
        opened(tmp_path)


APPEND_FOREVER = """
import sys
import numpy as np
from mop_jax.likelihoods import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM

store = LikelihoodStore(sys.argv[1], "model", TemperatureGrid(0.5, (4, 2, 1)))
i = len(store)
while True:
    numbers = np.arange(i, i + 1 + i % 7)
    store.append([int(n).to_bytes(16, "big") for n in numbers], np.outer(numbers, [1.0, 2, 3]))
    i += len(numbers)
    if i % 40 < 7:
        print(i, flush=True)
"""


def test_kill_minus_nine_loses_nothing_that_was_reported(tmp_path, bare_python):
    reported = 0
    for _ in range(3):
        process = subprocess.Popen(
            [*bare_python, APPEND_FOREVER, str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        while (line := process.stdout.readline()) and int(line) < reported + 500:
            pass
        time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        rest = process.stdout.read().split()
        process.wait()
        reported = int(rest[-1]) if rest else int(line)
        with opened(tmp_path) as store:
            count = len(store)
            assert count >= reported > 0
            keys = [n.to_bytes(16, "big") for n in range(count)]
            np.testing.assert_array_equal(store.get(keys), np.outer(np.arange(count), [1, 2, 3]))


def test_compact_does_not_depend_on_history(tmp_path):
    keys, scores = entries(9)
    contents = []
    for name, order in (("a", range(9)), ("b", [3, 8, 0, 1, 7, 2, 6, 5, 4])):
        with opened(tmp_path / name) as store:
            for i in order:
                store.append([keys[i]], scores[[i]])
            raw = store.path.read_bytes()
            store.compact()
            contents.append((raw, store.path.read_bytes()))
            # It can be read and appended to afterwards.
            np.testing.assert_array_equal(store.get(keys), scores)
            store.append([b"x" * 16], np.zeros((1, 3)))
        with opened(tmp_path / name) as store:
            assert len(store) == 10
            np.testing.assert_array_equal(store.get(keys), scores)
    assert contents[0][0] != contents[1][0]
    assert contents[0][1] == contents[1][1]


def test_another_model_or_grid_has_another_journal(tmp_path, filled):
    path, keys, _ = filled
    others = [
        opened(tmp_path, "other model"),
        opened(tmp_path, grid=TemperatureGrid(0.25, (4, 2, 1))),
        opened(tmp_path, grid=TemperatureGrid(0.5, (4, 2))),
    ]
    assert len({path, *(store.path for store in others)}) == 4
    for store in others:
        assert keys[0] not in store
        store.close()
    with opened(tmp_path) as store:
        assert store.path == path
        assert len(store) == 7


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_scores_that_are_not_finite_are_refused(tmp_path, filled, value):
    _, keys, scores = filled
    new, bad = entries(3, seed=1)
    bad[1, 2] = value
    with opened(tmp_path) as store:
        with pytest.raises(FaultError, match="not finite must not enter"):
            store.append(new, bad)
        assert len(store) == 7
    with opened(tmp_path) as store:
        assert new[0] not in store
        np.testing.assert_array_equal(store.get(keys), scores)


def test_what_is_stored_keeps_its_first_scores(tmp_path, filled):
    path, keys, scores = filled
    with opened(tmp_path) as store:
        store.append(keys[2:4], np.zeros((2, 3)))
        store.append([keys[0], b"n" * 16], np.zeros((2, 3)))
        np.testing.assert_array_equal(store.get(keys), scores)
    assert path.stat().st_size == 8 * ENTRY


class FullDisk:
    """A file handle of a disk that is full after some bytes."""

    def __init__(self, handle, room):
        self.handle, self.room = handle, room

    def write(self, data):
        self.handle.write(data[: self.room])
        self.room -= len(data)
        if self.room < 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name):
        return getattr(self.handle, name)


@pytest.mark.parametrize("room", [0, 20, ENTRY + 3])
def test_a_full_disk_is_a_fault_and_keeps_what_was_written(tmp_path, filled, room):
    _, keys, scores = filled
    new, more = entries(4, seed=1)
    with opened(tmp_path) as store:
        store._handle = FullDisk(store._handle, room)
        with pytest.raises(FaultError, match=r"disk is full: .*scores\.bin"):
            store.append(new, more)
    with opened(tmp_path) as store:
        assert len(store) == 7 + room // ENTRY
        np.testing.assert_array_equal(store.get(keys), scores)
        store.append(new, more)
        np.testing.assert_array_equal(store.get(new), more)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full on this system")
def test_the_systems_own_full_disk(tmp_path, filled):
    store = opened(tmp_path)
    with open("/dev/full", "ab", buffering=0) as full:
        store._handle.close()
        store._handle = full
        with pytest.raises(FaultError, match="disk is full"):
            store.append(*entries(1, seed=1))


def test_a_folder_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("pathlib.Path.mkdir", refuse)
    with pytest.raises(FaultError, match="could not be written: Read-only file system"):
        opened(tmp_path / "new")


def test_address_of_a_pair():
    """It covers every id and the boundary before the response, but not how a prompt is cut."""
    base = pair_key(Prompt(((1, 2), (3,)), (4, 5)), (6, 7))
    assert len(base) == 16
    assert pair_key(Prompt(((1, 2, 3),), (4, 5)), (6, 7)) == base
    others = [
        pair_key(Prompt(((1, 2), (3,)), (4, 5)), (6, 8)),
        pair_key(Prompt(((1, 2), (9,)), (4, 5)), (6, 7)),
        pair_key(Prompt(((1, 2), (3,)), (5, 4)), (6, 7)),
        pair_key(Prompt(((1, 2), (3,)), (4,)), (5, 6, 7)),
        pair_key(Prompt(((1, 2), (3,)), (4, 5, 6)), (7,)),
        pair_key(Prompt(((1, 2), (3,)), (4, 5)), (6, 7, 0)),
    ]
    assert len({base, *others}) == 7


class CountingLM:
    """Scores a pair by a formula, in batches of three, and remembers what it was asked."""

    def __init__(self, stop_after=None):
        self.scored, self.planned, self.stop_after = [], [], stop_after
        self.context_window = None

    def score_pairs(self, prefixes, continuations, pairs, *, grid, on_scores, memory, skip):
        assert len(set(prefixes)) == len(prefixes)
        assert len(set(continuations)) == len(continuations)
        self.planned.append(len(pairs))
        for start in range(0, len(pairs), 3):
            batch = np.arange(start, min(start + 3, len(pairs)))
            if skip[batch].all():
                continue
            if self.stop_after is not None and len(self.scored) >= self.stop_after:
                raise KeyboardInterrupt
            values = []
            for i in batch:
                prefix, tail = prefixes[pairs[i, 0]], continuations[pairs[i, 1]]
                ids = [t for segment in prefix for t in segment]
                if not skip[i]:
                    self.scored.append((*ids, *tail.request, *tail.response))
                values.append(formula(Prompt(prefix, tail.request), tail.response))
            on_scores(batch, np.asarray(values))


def formula(prompt, response):
    ids = [*prompt.token_ids, *response]
    return -np.dot(ids, np.arange(1, len(ids) + 1)) * np.asarray([0.5, 1.0, 2.0])


def components(count=11):
    prompts = [Prompt(((1, 2), (3 + i % 3,)), (7, 8 + i % 2)) for i in range(count)]
    responses = [(20 + i // 6, 2) for i in range(count)]
    return prompts, responses


def test_only_what_is_missing_is_scored(tmp_path):
    prompts, responses = components()
    expected = np.stack([formula(p, r) for p, r in zip(prompts, responses)])
    with opened(tmp_path) as store:
        lm = CountingLM()
        first = score_missing(store, lm, prompts[:4], responses[:4])
        np.testing.assert_array_equal(first, expected[:4])
        assert len(lm.scored) == 4
        found = score_missing(store, lm, prompts, responses)
        np.testing.assert_array_equal(found, expected)
        # Equal pairs are scored once; here every one of the eleven is new.
        assert len(lm.scored) == len(set(lm.scored)) == 11
        order = [10, 0, 5, 5]
        again = score_missing(store, lm, [prompts[i] for i in order], [responses[i] for i in order])
        np.testing.assert_array_equal(again, expected[order])
        assert len(lm.scored) == 11
        assert score_missing(store, lm, [], []).shape == (0, 3)


def test_pairs_of_earlier_jobs_are_not_run_again(tmp_path, tiny_lm):
    """Rounds of candidates: a round runs its own pairs, not those of the rounds before."""
    prompts, responses = components(40)
    planned = []
    real = tiny_lm.score_pairs

    class Watching:
        context_window, fingerprint = 512, "tiny"

        def score_pairs(self, prefixes, continuations, pairs, *, skip, **options):
            planned.append((len(pairs), int(skip.sum())))
            real(prefixes, continuations, pairs, skip=skip, **options)

    with opened(tmp_path) as store:
        half = score_missing(store, Watching(), prompts[::2], responses[::2])
        whole = score_missing(store, Watching(), prompts, responses)
        score_missing(store, Watching(), prompts, responses)
        assert planned == [(20, 0), (20, 0)]
        np.testing.assert_array_equal(whole[::2], half)
        assert not (store.path.parent / ".jobs").exists()


def test_processes_that_share_a_folder_do_not_trip_over_each_others_jobs(tmp_path):
    keys = [[i.to_bytes(2, "big") * 8 for i in range(n, n + 3)] for n in range(200)]

    def work(store):
        for job in keys:
            store.begin(job)
            store.end(job)

    with opened(tmp_path) as one, opened(tmp_path) as other, ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, store) for store in (one, other)]:
            done.result()


def test_what_an_unfinished_job_lost_is_scored_again(tmp_path):
    prompts, responses = components()
    with opened(tmp_path) as store:
        score_missing(store, CountingLM(), prompts[:5], responses[:5])
        with pytest.raises(KeyboardInterrupt):
            score_missing(store, CountingLM(stop_after=3), prompts, responses)
        journal = store.path
    with opened(tmp_path) as store:
        lm = CountingLM()
        score_missing(store, lm, prompts, responses)
        assert lm.planned == [6]
        assert len(lm.scored) == 3
    others = [Prompt(((9,), (9,)), (9, i)) for i in range(4)], [(5, 2)] * 4
    with opened(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        score_missing(store, CountingLM(stop_after=1), *others)
    journal.unlink()
    with opened(tmp_path) as store:
        lm = CountingLM()
        score_missing(store, lm, *others)
        assert len(lm.scored) == 4


def test_equal_pairs_are_scored_once(tmp_path):
    prompts, responses = components(6)
    with opened(tmp_path) as store:
        lm = CountingLM()
        found = score_missing(store, lm, prompts * 3, responses * 3)
        assert lm.planned == [6]
        assert len(store) == 6
        np.testing.assert_array_equal(found, np.tile(found[:6], (3, 1)))


def test_an_interrupted_run_keeps_its_scores_and_plans_as_before(tmp_path):
    prompts, responses = components()
    with opened(tmp_path) as store, pytest.raises(KeyboardInterrupt):
        score_missing(store, CountingLM(stop_after=6), prompts, responses)
    with opened(tmp_path) as store:
        assert len(store) == 6
        lm = CountingLM()
        score_missing(store, lm, prompts, responses)
        assert len(lm.scored) == 5
        assert lm.planned == [11]  # all pairs are planned, so that batches are the same
        store.compact()
        resumed = store.path.read_bytes()
    with opened(tmp_path / "straight") as store:
        score_missing(store, CountingLM(), prompts, responses)
        store.compact()
        assert store.path.read_bytes() == resumed


def test_a_record_beyond_the_context_window_is_named_before_any_scoring(tmp_path):
    prompts, responses = components(5)
    responses[3] = tuple(range(50))
    names = [f"review-{i}" for i in range(5)]
    lm = CountingLM()
    lm.context_window = 54
    with opened(tmp_path) as store:
        with pytest.raises(DataError, match=r"Record review-3: .* take 55 tokens, .* holds 54;"):
            score_missing(store, lm, prompts, responses, names=names)
        assert not lm.planned
        lm.context_window = 55
        score_missing(store, lm, prompts, responses, names=names)


def test_a_record_whose_logits_are_not_finite_is_named(tmp_path, make_tiny_lm):
    """What was scored before stays in the store."""
    decoder = make_tiny_lm(tie_embeddings=False).decoder
    table = decoder.embed_tokens.embedding
    table[...] = table[...].at[77].set(np.nan)
    prompts = [Prompt(((5, 6), (7,)), (8,)) for _ in range(3)]
    responses = [(9,), (10, 77, 4), (11,)]
    names = ["review-a", "review-b", "review-c"]
    grid = TemperatureGrid()
    with opened(tmp_path, grid=grid) as store:
        for i, known in (([0, 2], 2), ([0, 1, 2], 2)):
            arguments = [prompts[j] for j in i], [responses[j] for j in i]
            if 1 in i:
                with pytest.raises(NotFiniteError, match=r"not finite for record review-b\."):
                    score_missing(store, FlaxLM(decoder), *arguments, names=[names[j] for j in i])
            else:
                score_missing(store, FlaxLM(decoder), *arguments)
            assert len(store) == known


def test_a_real_scorer_resumes_with_the_same_bits(tmp_path, tiny_lm):
    """Half of the pairs, in whatever batches they came, then all: as if never interrupted."""
    rng = np.random.default_rng(0)
    prompts = [
        Prompt(
            ((5, 6, 7 + i % 3), tuple(rng.integers(4, 6060, 3 + i % 5).tolist())), (9, 4 + i % 50)
        )
        for i in range(120)
    ]
    responses = [tuple(rng.integers(4, 6060, 1 + i % 9).tolist()) for i in range(120)]
    grid = TemperatureGrid()

    class Interrupted(Exception):
        pass

    with opened(tmp_path / "a", grid=grid) as store:
        straight = score_missing(store, tiny_lm, prompts, responses, memory=50_000.0)
        store.compact()
        expected = store.path.read_bytes()
    with opened(tmp_path / "b", grid=grid) as store:
        append, seen = store.append, []

        def stop(keys, scores):
            append(keys, scores)
            seen.extend(keys)
            if len(seen) >= 40:
                raise Interrupted

        store.append = stop
        with pytest.raises(Interrupted):
            score_missing(store, tiny_lm, prompts, responses, memory=50_000.0)
    with opened(tmp_path / "b", grid=grid) as store:
        assert 40 <= len(store) < 120
        resumed = score_missing(store, tiny_lm, prompts, responses, memory=50_000.0)
        store.compact()
        assert store.path.read_bytes() == expected
    np.testing.assert_array_equal(resumed, straight)
    whole = tiny_lm.log_likelihood([p.token_ids for p in prompts], responses)
    np.testing.assert_allclose(straight[:, grid.unit_index], whole, atol=2e-4)
