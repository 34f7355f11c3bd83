"""Ancestral sampling of responses on shared prefixes, in slots that refill.

A slot is a row of one batch: it holds the keys and values of a prompt and of the response drawn so
far. When a response ends, its slot takes the next sample that waits: the prompt's row of a pool is
copied in, and drawing goes on; long responses do not hold short ones up. Prompts are run in pools a
few times as large as the slots, what they share once and requests side by side. The device draws on
its own until enough slots are free, then the host collects and refills. Few shapes occur, and the
slots are updated in place.

Each sample draws from a key of its own, `fold_in(seed, sample id)`, folded again with the position:
its text does not depend on what is drawn beside it, on the order, or on the number of slots.
Temperatures may differ between samples, as the mixture's personas do.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax import Array
from jax.sharding import Mesh

from mop_jax.errors import DeviceFullError, FaultError
from mop_jax.lm.base import NO_TRUNCATION, Ends, TokenIds, Truncation
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.drawing import TruncationArrays
from mop_jax.lm.memory import default_memory, is_out_of_memory, kv_bytes_per_token
from mop_jax.lm.mesh import MODEL, num_lanes, replicate, to_host
from mop_jax.lm.planning import TOKENS_PER_CHUNK_ACCELERATOR, by_backend
from mop_jax.lm.prefixes import OUT_OF_RANGE, PrefixPool, prefix_pools
from mop_jax.lm.slots import Whole, end_table, windows
from mop_jax.lm.unstacked import Layerwise, has_room

# On each device along `data`.
SLOTS = {"cpu": 32}
SLOTS_ACCELERATOR = 128
# Prompts that wait in a pool, for each slot: they are run, and dropped, in step with the slots.
POOL_ROWS = 4
# Such a pool is small.
POOL_CHUNK_TOKENS = {"cpu": 256}
# Slots are refilled when this share of them is free: a smaller one leaves fewer idle, a larger one
# runs more requests at a time.
REFILL_SHARE = 1 / 8
MIN_REFILL = 4
# Share of the memory budget that slots may take, the rest is for prefixes. Growing slots are
# there twice for a moment.
_SHARE_OF_BUDGET = 1 / 2


class Samples(NamedTuple):
    """What was drawn for each pair.

    Attributes:
        token_ids: drawn ids, the end included.
        token_log_probs: of each drawn id, float32 arrays, nats, under the untruncated distribution.
        log_probs: their sums, float64 [n].
        finished: bool [n], whether an end was drawn.
        slot_steps: tokens that were computed until then, those of idle slots included.
    """

    token_ids: list[list[int]]
    token_log_probs: list[np.ndarray]
    log_probs: np.ndarray
    finished: np.ndarray
    slot_steps: int


OnSamples = Callable[[np.ndarray, Samples], None]


def sample_pairs(
    decoder: Decoder,
    prefixes: Sequence[Sequence[TokenIds]],
    requests: Sequence[TokenIds],
    pairs: np.ndarray,
    *,
    seed: int,
    temperature: np.ndarray,
    sample_ids: np.ndarray,
    end_ids: Ends,
    truncation: Truncation = NO_TRUNCATION,
    max_new_tokens: int = 96,
    memory: float | None = None,
    skip: np.ndarray | None = None,
    on_samples: OnSamples = lambda indices, samples: None,
    mesh: Mesh | None = None,
) -> Samples:
    """Draws one response for each (prefix, request) pair.

    Where a device's memory does not hold the slots, they are halved, with a warning; responses that
    were being drawn begin again, with the same keys and so the same text.

    Args:
        decoder: the model.
        prefixes: paths of segments of ids.
        requests: ids that follow a prefix; at least one each.
        pairs: int [n, 2], indices of prefix and request.
        seed: with `sample_ids`, decides every draw.
        temperature: [n]; 0 takes the likeliest token at each step.
        sample_ids: int [n], distinct; the sample's identity whatever the batch.
        end_ids: ids, or sequences of ids, that end a response.
        truncation: which tokens may be drawn; by default all.
        max_new_tokens: longest response, end token included.
        memory: bytes of a device that pooled prefixes and slots may take at a time; by default a
            share of what the machine has. There are at least a few slots whatever the budget.
        skip: bool [n], samples that are not needed and not drawn; they come back empty. Slots are
            planned as if they were needed, so that the others are drawn in the same shapes.
        on_samples: called with the indices of samples just drawn, and the samples; in any order.
        mesh: the decoder's; slots are split over `data`.

    Raises:
        FaultError: if the logits are not finite (names the sample), or if the device's memory does
            not hold the fewest slots.
    """
    rules = TruncationArrays.of(truncation)
    drawn = Samples(
        [[] for _ in pairs],
        [np.zeros(0, np.float32) for _ in pairs],
        np.zeros(len(pairs)),
        np.zeros(len(pairs), bool),
        0,
    )
    if not len(pairs) or (skip is not None and skip.all()):
        return drawn
    work = _Work(
        decoder,
        np.asarray(temperature, np.float32),
        np.asarray(sample_ids),
        _prompt_lengths(prefixes, requests, pairs),
        jax.random.key(seed),
        end_table(end_ids),
        rules,
        max_new_tokens,
        default_memory(decoder) if memory is None else memory,
        drawn,
        mesh,
    )
    parts = work.run(prefixes, requests, pairs, skip)
    while True:
        try:
            part = next(parts, None)
        except (jax.errors.JaxRuntimeError, DeviceFullError) as error:
            if isinstance(error, jax.errors.JaxRuntimeError) and not is_out_of_memory(error):
                raise
            full = str(error)
        else:
            if part is None:
                return drawn._replace(slot_steps=work.slot_steps)
            on_samples(*part)
            continue
        # Behind the handler: its traceback holds arrays.
        work.halve(full)
        parts = work.run(prefixes, requests, pairs, skip)


class _Work:
    """The slots on the device, and which sample each of them draws."""

    def __init__(
        self,
        decoder: Decoder,
        temperature: np.ndarray,
        sample_ids: np.ndarray,
        prompt_lengths: np.ndarray,
        root: Array,
        end_ids: np.ndarray,
        truncation: TruncationArrays,
        max_new_tokens: int,
        memory: float,
        drawn: Samples,
        mesh: Mesh | None,
    ):
        """Decides on the slots; the arguments are those of `sample_pairs`, by sample."""
        self._decoder, self._max_new_tokens = decoder, max_new_tokens
        # Accelerators read stacked weights as they lie, and a mesh splits them.
        alone = jax.default_backend() == "cpu" and mesh is None and has_room(decoder)
        self._runner = Layerwise(decoder) if alone else Whole(decoder, mesh)
        self._temperature, self._sample_ids = temperature, sample_ids
        self._prompt_lengths, self._mesh = prompt_lengths, mesh
        # As plain numbers: typed keys cannot be put on devices of other hosts.
        root_data: Any = replicate(mesh, np.asarray(jax.random.key_data(root)))
        self._root = jax.random.wrap_key_data(root_data)
        self._end_ids, self._truncation = replicate(mesh, (end_ids, truncation))
        self._drawn = drawn
        self._done = np.zeros(len(sample_ids), bool)
        self._windows = windows(int(prompt_lengths.max()) + max_new_tokens)
        model = 1 if mesh is None else mesh.shape[MODEL]
        slot_bytes = (
            2 * self._windows[-1] * kv_bytes_per_token(decoder.config, decoder.dtype, model)
        )
        # On each device along `data`: no more than there is work for, or memory.
        lanes = num_lanes(mesh)
        needed = -(-len(sample_ids) // 4) * 4
        fitting = int(_SHARE_OF_BUDGET * memory / slot_bytes)
        most = by_backend(SLOTS, SLOTS_ACCELERATOR)
        each = min(most, -(-needed // lanes), max(MIN_REFILL, fitting))
        # What slots leave is for prefixes, and stays so when there are fewer slots later on.
        self._memory = max(memory - each * slot_bytes, (1 - _SHARE_OF_BUDGET) * memory)
        self._set_slots(each)
        self.slot_steps = 0

    def _set_slots(self, on_each_lane: int) -> None:
        lanes = num_lanes(self._mesh)
        self.num_slots = on_each_lane * lanes
        self.num_refill = max(MIN_REFILL, int(self.num_slots * REFILL_SHARE))
        self.num_refill = min(-(-self.num_refill // lanes) * lanes, self.num_slots)
        self._owner = np.full(self.num_slots, -1)
        self._filled = np.zeros(self.num_slots, int)
        # Made when a run begins.
        self._slots: Any = None

    def halve(self, reason: str) -> None:
        """Half the slots: what they were drawing is lost.

        Raises:
            FaultError: if there is one slot only.
        """
        each = self.num_slots // num_lanes(self._mesh)
        if each == 1:
            raise FaultError(
                "The device's memory does not hold a single response of up to "
                f"{self._max_new_tokens} tokens after a prompt of "
                f"{int(self._prompt_lengths.max())} beside the prefixes ({reason}); give a smaller "
                "--memory, shorter responses, or a model that takes less."
            )
        self._set_slots(each // 2)
        warnings.warn(
            f"The device's memory is full: going on with {self.num_slots} responses at a time.",
            stacklevel=3,
        )

    def run(
        self, prefixes, requests, pairs: np.ndarray, skip: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, Samples]]:
        """Draws what is neither skipped nor done; the arguments are those of `sample_pairs`.

        Yields what is handed to `on_samples`.
        """
        self._slots = self._runner.idle(self.num_slots, self._windows[0], self._max_new_tokens)
        done = self._done if skip is None else self._done | skip
        # All but the last token: that one is run when the first token is drawn.
        prompts = [(*prefixes[p], requests[r][:-1]) for p, r in pairs]
        pools = prefix_pools(
            self._decoder, prompts, np.arange(len(pairs)), self._memory, done, self._mesh,
            most_rows=POOL_ROWS * self.num_slots,
            chunk_tokens=by_backend(POOL_CHUNK_TOKENS, TOKENS_PER_CHUNK_ACCELERATOR),
        )  # fmt: skip
        for pool, members in pools:
            for batch in self.batches([i for i in members if not done[i]]):
                yield from self.run_until_free(len(batch))
                self.refill(pool, batch, [int(requests[pairs[i, 1]][-1]) for i in batch])
            # Gone before the next one is made: the budget is for one.
            del pool
        yield from self.run_until_free(self.num_slots)

    def batches(self, waiting: Sequence[int]) -> Iterator[list[int]]:
        """Samples in the portions that are refilled together, short prompts first.

        Slots of about the same length need the smallest window.
        """
        order = sorted(waiting, key=lambda i: self._prompt_lengths[i])
        for begin in range(0, len(order), self.num_refill):
            yield order[begin : begin + self.num_refill]

    def refill(self, pool: PrefixPool, batch: list[int], last_tokens: list[int]) -> None:
        """Gives free slots the samples `batch`, whose prompts end with `last_tokens`."""
        rows, pending = np.zeros((2, self.num_refill), np.int32)
        rows[: len(batch)] = [pool.row_of[i] for i in batch]
        pending[: len(batch)] = last_tokens
        free = np.flatnonzero(self._owner < 0)[: len(batch)]
        places = np.full(self.num_refill, OUT_OF_RANGE, np.int32)
        places[: len(batch)] = free
        self._owner[free], self._filled[free] = batch, self._prompt_lengths[batch] - 1
        self._fit()
        self._slots = self._runner.place(self._slots, pool.cache, rows, pending, places)

    def run_until_free(self, wanted: int) -> Iterator[tuple[np.ndarray, Samples]]:
        """Draws until that many slots are free, and yields what has ended."""
        while (missing := wanted - int((self._owner < 0).sum())) > 0:
            self._fit()
            owner = np.maximum(self._owner, 0)
            self._slots, steps = self._runner.advance(
                self._slots,
                self._root,
                self._sample_ids[owner].astype(np.uint32),
                self._temperature[owner],
                self._end_ids,
                self._truncation,
                min(missing, self.num_refill),
            )
            self.slot_steps += steps * self.num_slots
            yield from self._collect()

    def _fit(self) -> None:
        # The smallest window with room for one more token in every slot that is in use.
        needed = max(self._filled[self._owner >= 0], default=0) + 1
        size = next((size for size in self._windows if size >= needed), self._windows[-1])
        if size != self._slots.cache.size:
            self._slots = self._runner.resize(self._slots, size)

    def _collect(self) -> Iterator[tuple[np.ndarray, Samples]]:
        slots = self._slots
        faulty, live, ended = to_host((slots.faulty, slots.live, slots.ended))
        if faulty.any():
            raise FaultError(
                "The language model gave logits that are not finite in sample "
                f"{int(self._sample_ids[self._owner[np.flatnonzero(faulty)[0]]])}."
            )
        self._filled = np.array(to_host(slots.cache.lengths))
        over = np.flatnonzero(~live & (self._owner >= 0))
        if not len(over):
            return
        counts, tokens, log_probs = to_host((slots.counts, slots.tokens, slots.log_probs))
        drawn, indices = self._drawn, self._owner[over]
        for slot, i in zip(over, indices, strict=True):
            drawn.token_ids[i] = tokens[slot, : counts[slot]].tolist()
            drawn.token_log_probs[i] = log_probs[slot, : counts[slot]].copy()
            drawn.log_probs[i] = drawn.token_log_probs[i].sum(dtype=np.float64)
            drawn.finished[i] = ended[slot]
        self._owner[over] = -1
        self._done[indices] = True
        yield (
            indices,
            Samples(
                [drawn.token_ids[i] for i in indices],
                [drawn.token_log_probs[i] for i in indices],
                drawn.log_probs[indices],
                drawn.finished[indices],
                self.slot_steps,
            ),
        )


def _prompt_lengths(prefixes, requests, pairs: np.ndarray) -> np.ndarray:
    before = np.asarray([sum(map(len, prefix)) for prefix in prefixes])
    return before[pairs[:, 0]] + np.asarray([len(request) for request in requests])[pairs[:, 1]]
