"""The loop of a sampling peer: it stays alive, and draws its timed batch when it is told to.

Commands come as JSON lines on stdin, answers go as JSON lines to the original stdout; whatever
libraries print goes to stderr. Runs in the peers' environment, without the package.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

# (indices of prompts, batch size) → counts of tokens and `slot_steps`.
Draw = Callable[[list[int], int], dict]


def obey(load: Callable[[Path, dict, int], Draw], versions: dict[str, str]) -> None:
    """Loads a sampler and obeys commands until stdin closes.

    Args:
        load: from a model's file or folder, the work and a number of threads to a sampler. The
            work has `prompts` and `prefix_lengths` (how much of each is shared), and `settings`.
        versions: of the libraries, for the results.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder with the weights, or a GGUF file")
    parser.add_argument("--work", required=True, help="JSON file of prompts and settings")
    parser.add_argument("--threads", type=int, required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    work = json.loads(Path(options.work).read_text())
    draw = load(Path(options.model), work, options.threads)
    print(json.dumps({"versions": versions}), file=answers)
    for line in sys.stdin:
        command = json.loads(line)
        start, processor = time.perf_counter(), time.process_time()
        found = draw(command["indices"], command["batch_size"])
        found["seconds"] = time.perf_counter() - start
        found["processor_seconds"] = time.process_time() - processor
        print(json.dumps(found), file=answers)
