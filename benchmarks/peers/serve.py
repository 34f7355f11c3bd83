"""The loop of a peer process: it stays alive, and runs its timed batch when it is told to.

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

import torch

# (contexts, responses, batch size) → log-probabilities, nats per response.
Score = Callable[[list[list[int]], list[list[int]], int], list[float]]


def serve(load: Callable[[str, str], Score], versions: dict[str, str]) -> None:
    """Loads a scorer and obeys commands until stdin closes.

    Args:
        load: from a checkpoint folder and a torch device to a scorer.
        versions: of the libraries, for the results.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True, help="folder with config.json and safetensors")
    parser.add_argument("--work", required=True, help="JSON file of token ids, by workload")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--device", required=True)
    options = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)

    def answer(value: dict) -> None:
        print(json.dumps(value), file=answers)

    torch.set_num_threads(options.threads)
    work = json.loads(Path(options.work).read_text())
    score = load(options.model, options.device)
    answer({"versions": {"torch": torch.__version__, **versions}})
    for line in sys.stdin:
        command = json.loads(line)
        if command["do"] == "peak":
            answer({"peak": matrix_product_peak(options.device)})
            continue
        given = work[command["workload"]]
        contexts = [given["prefixes"][c] + given["requests"][i] for c, i in command["pairs"]]
        responses = [given["responses"][i] for _, i in command["pairs"]]
        start = time.perf_counter()
        found = score(contexts, responses, command["batch_size"])
        answer({"seconds": time.perf_counter() - start, "log_probs": found})


def matrix_product_peak(device: str, size: int = 2048, seconds: float = 1.0) -> float:
    """FLOP/s of the best of repeated float32 [size, size] products within about `seconds`."""
    left, right = torch.ones(size, size, device=device), torch.ones(size, size, device=device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times) < 4:
        start = time.perf_counter()
        # Reading one number waits for an asynchronous device.
        torch.matmul(left, right)[0, 0].item()
        times.append(time.perf_counter() - start)
    return 2.0 * size**3 / min(times[1:])
