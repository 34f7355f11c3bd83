"""Pairs per second of naive whole-prompt scoring and of prefix-shared scoring, and their ratio.

Both score real reviews under the demo's components with SmolLM2-135M in float32, in one process,
in alternating rounds (these machines drift, ratios hold). Naive scoring runs every prompt whole:
prompts are sorted by length and batched, and projected to the vocabulary at response
positions only, at one temperature; prefix-shared scoring includes computing the prefixes and
gives the whole temperature grid.

    python benchmarks/scoring.py [--run runs/demo] [--records 16] [--naive-pairs 48] [--rounds 3]
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time
from pathlib import Path

import jax
import numpy as np

import mop_jax
from mop_jax import atomic
from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.lm.scoring import choose_lengths
from mop_jax.pipeline import read_config
from mop_jax.run_folder import RunFolder
from mop_jax.workspace import Workspace


def main() -> None:
    """Runs the benchmark and writes benchmarks/results/scoring.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", default="runs/demo", help="run folder with the demo's components")
    parser.add_argument("--records", type=int, default=16)
    parser.add_argument("--naive-pairs", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    folder = mop_jax.personas("demo", options.run)
    space = Workspace(RunFolder(folder, read_config(folder)))
    model, prompts = space.language_model, space.prompts
    records = space.sides["train"].records.take(range(options.records))
    exemplars = space.components.exemplar_texts
    texts = space.components.persona_texts
    components = [(k, j) for k in range(len(texts)) for j in range(len(exemplars))]
    prefixes = [
        prompts.component(texts[k], exemplars[j], records.contexts[0]).prefix for k, j in components
    ]
    tails = [
        Continuation(
            prompts.component(texts[0], exemplars[0], context).request, prompts.response(response)
        )
        for context, response in zip(records.contexts, records.responses, strict=True)
    ]
    pairs = np.asarray([(c, i) for c in range(len(prefixes)) for i in range(len(tails))])
    chosen = np.random.default_rng(0).choice(len(pairs), options.naive_pairs, replace=False)

    def shared() -> np.ndarray:
        scores = np.zeros((len(pairs), len(TemperatureGrid().multiples)))

        def store(indices: np.ndarray, values: np.ndarray) -> None:
            scores[indices] = values

        model.score_pairs(prefixes, tails, pairs, grid=TemperatureGrid(), on_scores=store)
        return scores[:, TemperatureGrid().unit_index]

    def naive() -> np.ndarray:
        whole = [
            [i for segment in (*prefixes[c], tails[t].request) for i in segment]
            for c, t in pairs[chosen]
        ]
        return model.log_likelihood(whole, [tails[t].response for _, t in pairs[chosen]])

    difference = float(np.abs(shared()[chosen] - naive()).max())  # compiles both
    rates: dict[str, list[float]] = {"shared": [], "naive": []}
    for _ in range(options.rounds):
        for name, function, count in (
            ("naive", naive, len(chosen)),
            ("shared", shared, len(pairs)),
        ):
            start = time.perf_counter()
            function()
            rates[name].append(count / (time.perf_counter() - start))
            print(f"{name}: {rates[name][-1]:.2f} pairs/s", flush=True)
    ratios = [s / n for s, n in zip(rates["shared"], rates["naive"], strict=True)]
    lengths = [len(t.request) + len(t.response) for t in tails]
    padded = [min(size for size in choose_lengths(lengths) if size >= n) for n in lengths]
    result = {
        "pairs": len(pairs),
        "naive_pairs": len(chosen),
        "prefix_tokens": float(np.mean([sum(map(len, p)) for p in prefixes])),
        "suffix_tokens": float(np.mean(lengths)),
        "suffix_padding": 1 - sum(lengths) / sum(padded),
        "temperatures": len(TemperatureGrid().multiples),
        "pairs_per_second": {name: statistics.median(values) for name, values in rates.items()},
        "ratio_shared_to_naive": {
            "median": statistics.median(ratios),
            "min": min(ratios),
            "max": max(ratios),
        },
        "max_difference_nats": difference,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
    }
    for name, values in rates.items():
        print(f"{name:>7}: {statistics.median(values):6.2f} pairs/s (median of {len(values)})")
    print(f"  ratio: {statistics.median(ratios):.2f} (from {min(ratios):.2f} to {max(ratios):.2f})")
    print(f"largest difference: {difference:.1e} nats per response")
    atomic.write_json(Path(__file__).parent / "results" / "scoring.json", result)
    print(json.dumps(result["ratio_shared_to_naive"]))


if __name__ == "__main__":
    main()
