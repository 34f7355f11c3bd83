"""Training of adapters on responses: batches of a few shapes, early stopping, checkpoints.

The loss is the negative log-likelihood of a response and its end after the zero-shot prompt of its
context, the mean over the tokens of a batch. After every epoch it is measured on held-out records;
the adapters of the best epoch are kept. What decides the course is the seed and the number of the
step, so that training which was killed goes on to the same adapters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from mop_jax import progress as progress_bars
from mop_jax.errors import DataError, FaultError
from mop_jax.evaluation.baselines.lora_layers import split_adapters
from mop_jax.inference.checkpoints import FitCheckpoints, Progress
from mop_jax.lm.decoder import Decoder, empty_cache

# Lengths of rows: few, since each is a program to compile, and none much longer than its tokens.
_LENGTHS = (32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 1536, 2048, 3072, 4096, 8192)
_CLIP = 1.0
_WARMUP = 0.05


class Example(NamedTuple):
    """A prompt and the response to be learnt.

    Attributes:
        prompt: ids; at least one.
        response: ids, the end included.
    """

    prompt: tuple[int, ...]
    response: tuple[int, ...]


class Batch(NamedTuple):
    """Rows of one length.

    Attributes:
        tokens: int32 [B, T].
        lengths: int32 [B], real tokens; a row that fills the batch up has one.
        starts: int32 [B], where responses begin.
        targets: int32 [B, R], the responses.
        mask: float32 [B, R], 1 where there is a token of a response.
    """

    tokens: jax.Array
    lengths: jax.Array
    starts: jax.Array
    targets: jax.Array
    mask: jax.Array


class Settings(NamedTuple):
    """How to train.

    Attributes:
        learning_rate: at its highest, after the warm-up; it decays to zero along a cosine.
        num_epochs: at most.
        patience: epochs without a better held-out loss after which training ends.
        tokens_per_batch: rows of a batch times their length, about.
        seed: of the batches' order.
    """

    learning_rate: float
    num_epochs: int
    patience: int
    tokens_per_batch: int
    seed: int


class Trained(NamedTuple):
    """What came of it.

    Attributes:
        adapters: of the epoch with the lowest held-out loss.
        losses: of every step, nats per token.
        held_out: loss on the held-out records, nats per record, before training and after each
            epoch.
    """

    adapters: nnx.State
    losses: np.ndarray
    held_out: list[float]


class _State(NamedTuple):
    adapters: Any
    optimizer: Any
    best: Any
    held_out: jax.Array  # [num_epochs + 1], infinite where it is not known yet


def train(
    model: Decoder,
    examples: Sequence[Example],
    held_out: Sequence[Example],
    settings: Settings,
    *,
    checkpoints: FitCheckpoints | None = None,
) -> Trained:
    """Trains the adapters of a decoder; its other weights are not touched.

    Args:
        model: made by `adapted`.
        examples: to learn from.
        held_out: to stop by.
        settings: see `Settings`.
        checkpoints: where a training that was killed goes on from.

    Raises:
        FaultError: if a loss is not finite.
    """
    graph, start, frozen = split_adapters(model)
    shapes = _shapes([*examples, *held_out], settings.tokens_per_batch)
    per_epoch = len(_epoch(examples, shapes, settings, 0))
    total = per_epoch * settings.num_epochs
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, settings.learning_rate, max(1, round(_WARMUP * total)), max(2, total)
    )
    optimizer = optax.chain(optax.clip_by_global_norm(_CLIP), optax.adam(schedule))
    checking = _batches(held_out, np.arange(len(held_out)), shapes)

    def measured(adapters: Any) -> float:
        sums = [float(_sums(graph, adapters, frozen, batch)) for batch in checking]
        return sum(sums) / len(held_out)

    first = _State(start, optimizer.init(start), start, jnp.full(settings.num_epochs + 1, jnp.inf))
    found = None if checkpoints is None else checkpoints.restore(first)
    state, losses = (first, []) if found is None else (found.state, found.losses.tolist())
    if found is None:
        state = state._replace(held_out=state.held_out.at[0].set(measured(start)))
    with progress_bars.task("Fine-tuning", total, found=len(losses)) as advance:
        while len(losses) < total and not _has_settled(state.held_out, settings.patience):
            epoch, at = divmod(len(losses), per_epoch)
            for batch in _epoch(examples, shapes, settings, epoch)[at:]:
                adapters, opt_state, loss = _step(
                    optimizer, graph, state.adapters, frozen, state.optimizer, batch
                )
                if not math.isfinite(float(loss)):
                    raise FaultError(
                        f"The loss of fine-tuning is not finite in step {len(losses) + 1}; lower "
                        "the learning rate."
                    )
                losses.append(float(loss))
                state = state._replace(adapters=adapters, optimizer=opt_state)
                if len(losses) % per_epoch == 0:
                    state = _with_epoch(state, epoch + 1, measured(adapters))
                if checkpoints is not None:
                    checkpoints.save(Progress(state, np.asarray(losses)))
                advance(1)
    known = [float(value) for value in state.held_out if np.isfinite(value)]
    return Trained(state.best, np.asarray(losses), known)


def response_log_probs(model: Decoder, batch: Batch) -> jax.Array:
    """Log p of each response of a batch after its prompt, nats, float32 [B]."""
    config = model.config
    cache = empty_cache(config, batch.tokens.shape[0], 0, model.dtype)
    hidden, _ = model.extend(cache, batch.tokens, batch.lengths)
    # Logits are a table of the whole vocabulary: only where a token of a response comes next.
    before = batch.starts[:, None] - 1 + jnp.arange(batch.targets.shape[1])
    before = jnp.minimum(before, batch.tokens.shape[1] - 1)
    logits = model.logits(jnp.take_along_axis(hidden, before[..., None], axis=1))
    scores = jnp.take_along_axis(logits, batch.targets[..., None], axis=-1)[..., 0]
    return ((scores - jax.nn.logsumexp(logits, axis=-1)) * batch.mask).sum(axis=1)


@partial(jax.jit, static_argnums=(0, 1))
def _step(optimizer, graph, adapters, frozen, opt_state, batch):
    def loss(adapters):
        model = nnx.merge(graph, adapters, frozen)
        return -response_log_probs(model, batch).sum() / jnp.maximum(batch.mask.sum(), 1)

    value, gradient = jax.value_and_grad(loss)(adapters)
    updates, opt_state = optimizer.update(gradient, opt_state)
    return optax.apply_updates(adapters, updates), opt_state, value


@partial(jax.jit, static_argnums=0)
def _sums(graph, adapters, frozen, batch):
    return -response_log_probs(nnx.merge(graph, adapters, frozen), batch).sum()


def _with_epoch(state: _State, epoch: int, loss: float) -> _State:
    better = loss < float(state.held_out.min())
    best = state.adapters if better else state.best
    return state._replace(best=best, held_out=state.held_out.at[epoch].set(loss))


def _has_settled(held_out: jax.Array, patience: int) -> bool:
    known = np.asarray(held_out)[np.isfinite(np.asarray(held_out))]
    return len(known) - 1 - int(known.argmin()) >= patience if len(known) else False


class _Shape(NamedTuple):
    """Rows B, their length T, and the longest response R among them."""

    rows: int
    length: int
    response: int


def _shapes(examples: Sequence[Example], tokens_per_batch: int) -> dict[int, _Shape]:
    """Shapes of batches by the length of their rows."""
    longest: dict[int, int] = {}
    for example in examples:
        length = _row_length(example)
        longest[length] = max(longest.get(length, 1), len(example.response))
    return {
        length: _Shape(max(1, tokens_per_batch // length), length, most)
        for length, most in longest.items()
    }


def _row_length(example: Example) -> int:
    tokens = len(example.prompt) + len(example.response)
    length = next((length for length in _LENGTHS if length >= tokens), None)
    if length is None:
        raise DataError(
            f"A training record has {tokens} tokens with its prompt; fine-tuning takes up to "
            f"{_LENGTHS[-1]}."
        )
    return length


def _epoch(
    examples: Sequence[Example], shapes: dict[int, _Shape], settings: Settings, epoch: int
) -> list[Batch]:
    rng = np.random.default_rng([settings.seed, epoch])
    batches = _batches(examples, rng.permutation(len(examples)), shapes)
    return [batches[i] for i in rng.permutation(len(batches))]


def _batches(
    examples: Sequence[Example], order: np.ndarray, shapes: dict[int, _Shape]
) -> list[Batch]:
    """Batches of records in this order, each of records of one row length."""
    rows: dict[int, list[Example]] = {length: [] for length in sorted(shapes)}
    for i in order:
        rows[_row_length(examples[i])].append(examples[i])
    found = []
    for length, members in rows.items():
        shape = shapes[length]
        found += [
            _batch(members[at : at + shape.rows], shape)
            for at in range(0, len(members), shape.rows)
        ]
    return found


def _batch(examples: Sequence[Example], shape: _Shape) -> Batch:
    tokens = np.zeros((shape.rows, shape.length), np.int32)
    lengths, starts = np.ones(shape.rows, np.int32), np.ones(shape.rows, np.int32)
    targets = np.zeros((shape.rows, shape.response), np.int32)
    mask = np.zeros((shape.rows, shape.response), np.float32)
    for row, (prompt, response) in enumerate(examples):
        ids = (*prompt, *response)
        tokens[row, : len(ids)] = ids
        lengths[row], starts[row] = len(ids), len(prompt)
        targets[row, : len(response)] = response
        mask[row, : len(response)] = 1.0
    return Batch(*map(jnp.asarray, (tokens, lengths, starts, targets, mask)))


def open_checkpoints(folder: Path | None, fingerprint: str) -> FitCheckpoints | None:
    """Checkpoints of one training, or None where there is no folder for them."""
    return None if folder is None else FitCheckpoints(folder / "lora-checkpoints", fingerprint)
