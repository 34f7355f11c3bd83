"""A whole run of ours, cut into rounds between which the peers and the machine are measured.

Shared machines drift by factors within the hour, so nothing is compared with what was measured at
another time: our run over the whole workload, prefixes included, is paused after equal shares of
its work, and each pause measures the matrix-product peak and a sample of each peer. Only one
process computes at a time. Under a drift that slows all alike, our rate over the whole run divided
by the time-weighted mean of a peer's rates is the ratio on a steady machine.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import jax
import numpy as np
from peer import Peer
from useful_work import (
    matrix_product_peak,
    model_shapes_peak,
    pair_flops,
    prefix_flops,
    whole_flops,
)
from workloads import Workload

from mop_jax.lm.base import TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM


@dataclass(frozen=True)
class Pause:
    """What was measured between two rounds.

    Attributes:
        peaks: FLOP/s of matrix products, by name.
        rates: pairs of average cost per second of each peer.
        log_probs: what each peer found for its sample, nats.
    """

    peaks: dict[str, float]
    rates: dict[str, float]
    log_probs: dict[str, np.ndarray]

    @property
    def peak(self) -> float:
        """The larger of JAX's and torch's 2048² product."""
        return max(self.peaks["jax_2048"], self.peaks["torch_2048"])


@dataclass(frozen=True)
class Round:
    """A part of our run: its seconds, and the pairs that were reported in it."""

    seconds: float
    pairs: np.ndarray


@dataclass(frozen=True)
class Sampling:
    """How a peer is sampled: the process, its batch size, and the pairs."""

    peer: Peer
    batch_size: int
    pairs: np.ndarray


def measure(model: FlaxLM, work: Workload, samplings: list[Sampling]) -> Pause:
    """Measures the peaks and each peer once, one after the other."""
    peaks = {
        "jax_2048": matrix_product_peak(),
        "jax_model_shapes": model_shapes_peak(model.config),
        # The first peer is torch.
        "torch_2048": samplings[0].peer.peak(),
    }
    costs = whole_flops(model.config, work)
    rates, log_probs = {}, {}
    for sampling in samplings:
        name = sampling.peer.name
        sample = sampling.peer.score(work, sampling.pairs, sampling.batch_size)
        rates[name] = float(costs[sampling.pairs].sum() / costs.mean() / sample.seconds)
        log_probs[name] = sample.log_probs
    pause = Pause(peaks, rates, log_probs)
    products = ", ".join(f"{name} {value / 1e9:.0f}" for name, value in peaks.items())
    peers = ", ".join(f"{name} {value:.2f}" for name, value in rates.items())
    print(f"  products {products} GFLOP/s; {peers} pairs/s", flush=True)
    return pause


def run_in_rounds(
    model: FlaxLM,
    work: Workload,
    num_rounds: int,
    pause: Callable[[], Pause],
    memory: float | None,
) -> tuple[np.ndarray, list[Round], list[Pause]]:
    """Scores the whole workload on the grid, pausing after equal shares of its work.

    Returns:
        Log-probabilities at τ = 1, float64 [pairs]; the rounds; the pauses, one more than rounds.
    """
    grid, costs = TemperatureGrid(), pair_flops(model.config, work)
    scores = np.full(len(work.pairs), np.nan)
    rounds: list[Round] = []
    pauses = [pause()]
    reported: list[np.ndarray] = []
    finished, began = 0.0, time.perf_counter()

    def close() -> None:
        nonlocal began
        # What was dispatched ahead is finished on our clock, not while a peer is measured.
        jax.block_until_ready([array for array in jax.live_arrays() if not array.is_deleted()])
        seconds = time.perf_counter() - began
        pairs = np.concatenate([*reported, np.empty(0, int)])
        reported.clear()
        rounds.append(Round(seconds, pairs))
        pace = costs[pairs].sum() / costs.mean() / seconds
        print(f"  ours {pace:.2f} pairs/s over {seconds:.0f} s", flush=True)
        pauses.append(pause())
        began = time.perf_counter()

    def store(indices: np.ndarray, values: np.ndarray) -> None:
        nonlocal finished
        scores[indices] = values[:, grid.unit_index]
        reported.append(np.asarray(indices))
        finished += float(costs[indices].sum())
        next_one = len(rounds) + 1
        if next_one < num_rounds and finished >= costs.sum() * next_one / num_rounds:
            close()

    model.score_pairs(
        work.prefixes, work.continuations, work.pairs, grid=grid, on_scores=store, memory=memory
    )
    close()
    return scores, rounds, pauses


def summarise(model: FlaxLM, work: Workload, rounds: list[Round], pauses: list[Pause]) -> dict:
    """Rates, ratios and the share of the peak.

    A round's ratio counts its pairs by their cost (the longest come first) and charges each prefix
    to the round in which it is run; the overall ratio needs neither.
    """
    seconds = np.asarray([r.seconds for r in rounds])
    costs = pair_flops(model.config, work)
    paces = np.asarray([costs[r.pairs].sum() for r in rounds]) / costs.mean() / seconds
    ours = len(work.pairs) / seconds.sum()

    def between(values: list[float]) -> np.ndarray:
        return np.asarray([(a + b) / 2 for a, b in pairwise(values)])

    rates, ratios, by_round = {"ours": float(ours)}, {}, {}
    for name in pauses[0].rates:
        around = between([pause.rates[name] for pause in pauses])
        rates[name] = float(np.average(around, weights=seconds))
        ratios[name] = float(ours / rates[name])
        each = (paces / around).tolist()
        by_round[name] = {"median": statistics.median(each), "min": min(each), "max": max(each)}
    useful = float(costs.sum()) + prefix_flops(model.config, work)
    peak = float(np.average(between([pause.peak for pause in pauses]), weights=seconds))
    return {
        "pairs_per_second": rates,
        "ratios": ratios,
        "ratios_by_round": by_round,
        "useful_gflops_per_second": useful / seconds.sum() / 1e9,
        "share_of_peak": useful / seconds.sum() / peak,
        "peak_gflops_per_second": {
            name: statistics.median(pause.peaks[name] for pause in pauses) / 1e9
            for name in pauses[0].peaks
        },
        "seconds": float(seconds.sum()),
        "rounds": len(rounds),
    }
