"""How long a fresh process takes until its first score, with a persistent compilation cache.

Run by `benchmarks/scoring.py`: `first_score.py MODEL WORK CACHE STARTED`, where STARTED is the wall
clock just before the process was started. Prints seconds as JSON, split into start and import, load
and first score (all prefixes run, one batch of pairs reported).
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path


class FirstScore(Exception):
    """The first scores are there."""


def main() -> None:
    """Loads, scores until the first report, prints."""
    model, work, cache, started = sys.argv[1:]
    import jax
    import numpy as np

    from mop_jax.lm.base import Continuation, TemperatureGrid
    from mop_jax.lm.flax_lm import FlaxLM

    # As the command line does.
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    imported = time.time()
    lm = FlaxLM.from_pretrained(model)
    jax.block_until_ready(jax.live_arrays())
    loaded = time.time()
    given = json.loads(Path(work).read_text())["reviews"]
    prefixes = [tuple(tuple(segment) for segment in path) for path in given["segments"]]
    tails = [
        Continuation(tuple(request), tuple(response))
        for request, response in zip(given["requests"], given["responses"], strict=True)
    ]
    pairs = np.asarray([(c, i) for i in range(min(8, len(tails))) for c in range(len(prefixes))])

    def stop(indices: np.ndarray, scores: np.ndarray) -> None:
        raise FirstScore

    try:
        lm.score_pairs(prefixes, tails, pairs, grid=TemperatureGrid(), on_scores=stop)
    except FirstScore:
        scored = time.time()
    begun = float(started)
    print(
        json.dumps(
            {
                "total": scored - begun,
                "start_and_import": imported - begun,
                "load": loaded - imported,
                "first_score": scored - loaded,
            }
        )
    )


if __name__ == "__main__":
    main()
