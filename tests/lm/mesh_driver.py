"""Runs checkpoints on meshes of this process's devices, and writes what came out.

    python mesh_driver.py OUT.npz SPLITS NAME=FOLDER…

SPLITS are meshes such as 1x1,4x2. As one process of several (JAX_COORDINATOR_ADDRESS and so on) it
first joins the others; each writes its own file. Arrays are named NAME/SPLIT/WHAT; `EVERYTHING`
says which checkpoints give more than logits, and on which meshes.
"""

from __future__ import annotations

import os
import re
import sys
import warnings
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import numpy as np
from flax import nnx

from mop_jax.errors import NotFiniteError
from mop_jax.lm import attention, flax_lm, planning, scoring, vocabulary
from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.memory import kv_bytes_per_token
from mop_jax.lm.mesh import initialize_distributed, is_writer, shard_rows, to_host

# Only one model does all of it on all meshes: what takes time is to compile it.
EVERYTHING = {
    "llama": ("1x1", "8x1", "4x2", "2x4", "1x8", "2x2"),
    "gemma3": ("1x1", "2x4"),
}
GRID = TemperatureGrid(0.25, (5, 4, 3))


def work(vocab_size: int) -> tuple[list, list, np.ndarray]:
    """Prefixes that share a persona, continuations of two lengths, and pairs."""
    rng = np.random.default_rng(0)

    def ids(length: int) -> tuple[int, ...]:
        return tuple(rng.integers(4, vocab_size, length).tolist())

    persona = ids(5)
    prefixes = [(), (persona,), *((persona, ids(n)) for n in (7, 3, 11))]
    tails = [Continuation(ids(2), ids(n)) for n in (6, 9, 5, 8)]
    pairs = np.asarray([(i, j) for i in range(len(prefixes)) for j in range(len(tails))])
    return prefixes, tails, pairs


def logits(lm: FlaxLM) -> dict[str, np.ndarray]:
    """Of five rows, which no number of devices divides; padding is set to zero."""
    rng = np.random.default_rng(1)
    lengths = np.asarray([13, 4, 9, 1, 12])
    tokens = rng.integers(4, lm.config.vocab_size, (5, 13))
    found = to_host(lm.logits(tokens, lengths))
    real = (np.arange(13) < lengths[:, None])[..., None]
    return {"tokens": tokens, "lengths": lengths, "logits": np.where(real, found, 0.0)}


def collectives(lm: FlaxLM) -> np.ndarray:
    """How many all-reduces the program of the logits holds, and how many others."""
    batch = shard_rows(lm.mesh, (np.zeros((8, 16), np.int32), np.full(8, 16, np.int32)))
    return count_collectives(flax_lm._logits.lower(lm._graph, lm._state, *batch))


def count_collectives(lowered: Any) -> np.ndarray:
    """How many all-reduces a compiled program holds, and how many others."""
    text = lowered.compile().as_text()
    other = r" (all-gather|all-to-all|collective-permute|reduce-scatter)(-start)?\("
    return np.asarray([len(re.findall(p, text)) for p in (r" all-reduce(?:-start)?\(", other)])


def scores(lm: FlaxLM, skip: np.ndarray | None = None) -> np.ndarray:
    """Log-likelihoods [n, G], in several pools of prefixes."""
    prefixes, tails, pairs = work(lm.config.vocab_size)
    found = np.full((len(pairs), len(GRID.multiples)), np.nan)

    def store(indices: np.ndarray, values: np.ndarray) -> None:
        assert np.isnan(found[indices]).all()
        found[indices] = values

    model = 1 if lm.mesh is None else lm.mesh.shape["model"]
    row = 16 * kv_bytes_per_token(lm.config, lm.decoder.dtype, model)
    lm.score_pairs(prefixes, tails, pairs, grid=GRID, on_scores=store, memory=4.5 * row, skip=skip)
    return found


def more_scores(lm: FlaxLM) -> dict[str, np.ndarray]:
    """Scores with many pairs skipped, on full devices, and of a model with a fault.

    Besides them the collectives of the two programs that score.
    """
    prefixes, tails, pairs = work(lm.config.vocab_size)
    # The last prefix has a pool of its own, which need not be run at all.
    skip = (np.random.default_rng(2).random(len(pairs)) < 0.7) | (pairs[:, 0] == len(prefixes) - 1)
    found = {"skip": skip, "scores_skipped": scores(lm, skip)}
    real, programs, tried = scoring.run_suffixes, [], []

    def limited(*args: Any, **options: Any) -> Any:
        if not programs:
            programs.append(real.lower(*args, **options))
        tried.append(args[3].tokens.shape[-3] * options["packed"])
        if tried[-1] > 24:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        return real(*args, **options)

    real_states = scoring.score_states

    def watched(*args: Any, **options: Any) -> Any:
        if len(programs) == 1:
            programs.append(real_states.lower(*args, **options))
        return real_states(*args, **options)

    with (
        mock.patch.object(scoring, "run_suffixes", limited),
        mock.patch.object(scoring, "score_states", watched),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        found["scores_full"] = scores(lm)
    found["tried"] = np.asarray(sorted(set(tried)))
    found["scoring_collectives"] = sum(map(count_collectives, programs))

    read = [tail.request + tail.response[:-1] for tail in tails]
    others = {i for ids in (*read[:2], *read[3:], *sum(prefixes, ())) for i in ids}
    poison = next(i for i in read[2] if i not in others)
    graph, state = nnx.split(lm.decoder)
    state.embed_tokens.embedding[...] = state.embed_tokens.embedding[...].at[poison].set(np.nan)
    found["faulty"] = np.flatnonzero(pairs[:, 1] == 2)
    try:
        scores(FlaxLM(nnx.merge(graph, state), mesh=lm.mesh))
    except NotFiniteError as error:
        found["named"] = np.asarray(error.pair)
    return found


def samples(lm: FlaxLM) -> dict[str, np.ndarray]:
    """Drawn ids, padded with −1, and their log-probabilities."""
    prefixes, tails, pairs = work(lm.config.vocab_size)
    drawn = lm.sample_pairs(
        prefixes, [tail.request for tail in tails], pairs[:12], seed=3,
        temperature=np.linspace(0.6, 1.4, 12), sample_ids=np.arange(12), end_ids=(3,),
        max_new_tokens=8,
    )  # fmt: skip
    ids = np.full((12, 8), -1)
    for row, tokens in enumerate(drawn.token_ids):
        ids[row, : len(tokens)] = tokens
    each = np.concatenate(drawn.token_log_probs)
    return {"drawn": ids, "drawn_log_probs": each}


def shards(lm: FlaxLM) -> dict[str, np.ndarray]:
    """For each parameter the shape, and per device its number and the shape it holds."""
    found = {}
    for path, leaf in nnx.to_flat_state(nnx.state(lm.decoder)):
        name, value = ".".join(map(str, path)), leaf[...]
        held = [(s.device.id, *s.data.shape) for s in value.addressable_shards]
        found[f"shape/{name}"] = np.asarray(value.shape)
        found[f"held/{name}"] = np.asarray(sorted(held))
    return found


def main(out: str, splits: str, *checkpoints: str) -> None:
    """Writes everything asked for."""
    if "JAX_PROCESS_ID" in os.environ:
        initialize_distributed()
    # A short vocabulary still makes several blocks, few tokens several batches, few rows several
    # portions of attention.
    vocabulary.VOCABULARY_BLOCK["cpu"] = 64
    vocabulary.POSITION_BLOCK["cpu"] = 16
    attention.SCORES["cpu"] = 4_000
    planning.TOKENS_PER_CHUNK["cpu"] = 24
    planning.CHUNKS_PER_CALL["cpu"] = 2
    # Compiled programs are kept where the suite keeps its own.
    folder = Path(__file__).parents[2] / ".cache" / "mop-jax" / "xla"
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    found: dict[str, Any] = {
        "device_count": np.asarray(jax.device_count()),
        "is_writer": np.asarray(is_writer()),
    }
    for name, folder_of in (checkpoint.split("=") for checkpoint in checkpoints):
        for split in splits.split(","):
            lm = FlaxLM.from_pretrained(folder_of, mesh=split)
            parts = {**logits(lm), **shards(lm), "collectives": collectives(lm)}
            if split in EVERYTHING.get(name, ()):
                parts |= {"scores": scores(lm), **samples(lm)}
            if (name, split) in (("llama", "8x1"), ("llama", "4x2")):
                more = more_scores(lm)
                parts |= {f"more/{what}": value for what, value in more.items()}
            found |= {f"{name}/{split}/{what}": value for what, value in parts.items()}
            found[f"{name}/{split}/fingerprint"] = np.asarray(lm.fingerprint)
    np.savez(out, **found)


if __name__ == "__main__":
    main(*sys.argv[1:])
