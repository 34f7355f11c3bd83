"""Whether a fit by stochastic variational inference has settled, judged on its loss trace."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

NATS_PER_DIMENSION = 0.015
"""Change of the whole ELBO, per latent dimension, that a settled fit may still show.

A Gaussian whose standard deviations are all wrong by an eighth is as far from the right one, and
so is one whose mean is off by a sixth of a standard deviation in every direction.
"""
_NUM_BATCHES = 10  # of a quarter of the steps, for its standard error


class ConvergenceReport(NamedTuple):
    """Whether a run of SVI had settled, judged on the windows of steps that were compared.

    Attributes:
        converged: whether each change + 2 standard errors lies below `tolerance`, either way.
        reason: one sentence for a reader.
        improvement: fall of the mean loss from the third to the last quarter of the last round,
            nats per record.
        standard_error: of `improvement`, from the means of ten consecutive batches per quarter
            (neighbouring losses share their parameters, so they are not independent).
        tolerance: the one that was used, nats per record.
        final_loss: mean loss of the last quarter, nats per record.
        round_improvement: fall of the mean loss from the last quarter of the round before to that
            of the last round, nats per record; NaN for a fit of one round.
        round_standard_error: of `round_improvement`.
        windows: first step and last, counted from 1, of each window that was compared: the last
            quarter of the round before, if any, then the third and the last of the last round.
    """

    converged: bool
    reason: str
    improvement: float
    standard_error: float
    tolerance: float
    final_loss: float
    round_improvement: float = float("nan")
    round_standard_error: float = float("nan")
    windows: tuple[tuple[int, int], ...] = ()


def convergence_report(
    losses: np.ndarray,
    total_weight: float,
    tolerance: float = 0.02,
    *,
    rounds: Sequence[int] | None = None,
    latent_dim: int | None = None,
) -> ConvergenceReport:
    """Judges a loss trace: does it still change, within its last round and from the one before?

    Within a round the learning rate decays, so that the last quarter differs little from the third
    wherever the fit is; a further round, from the full learning rate, would take it elsewhere if
    there were anything to gain. Both must have changed nothing.

    The verdict is an equivalence test, so a noisy trace cannot pass by being noisy: converged means
    that we are sure (two standard errors) that the change is below `tolerance`, either way.

    Args:
        losses: negative ELBO per step, nats, [num_steps].
        total_weight: sum of the records' weights, by which the losses are divided.
        tolerance: nats per record.
        rounds: lengths of the rounds that the steps are, one after another; one by default.
        latent_dim: dimension of the posterior. Where it is given, the whole ELBO may change by
            `NATS_PER_DIMENSION` times it at most, however many records share the change.
    """
    per_record = np.asarray(losses, np.float64) / total_weight
    if latent_dim is not None:
        tolerance = min(tolerance, NATS_PER_DIMENSION * latent_dim / total_weight)
    last = rounds[-1] if rounds else len(per_record)
    ends = [len(per_record) - last + (3 * last) // 4, len(per_record)]
    lengths = [last // 4, last // 4]
    if rounds and len(rounds) > 1:
        ends.insert(0, len(per_record) - last)
        lengths.insert(0, rounds[-2] // 4)
    if min(lengths) < 2 * _NUM_BATCHES:
        final = float(per_record[-max(last // 4, 1) :].mean())
        reason = f"{last} steps are too few to judge; at least {8 * _NUM_BATCHES} are needed."
        return ConvergenceReport(False, reason, float("nan"), float("nan"), tolerance, final)
    windows = tuple((end - length + 1, end) for end, length in zip(ends, lengths, strict=True))
    *before, third, fourth = [_mean_and_error(per_record[i - 1 : j]) for i, j in windows]
    changes = [_change(third, fourth, "in the last quarter of the steps")]
    if before:
        changes = [
            _change(third, fourth, f"in the last quarter of the last {last:,} steps"),
            _change(before[0], fourth, f"by those {last:,} steps as a whole"),
        ]
    return ConvergenceReport(
        converged=all(change.is_below(tolerance) for change in changes),
        reason=_reason(changes, tolerance),
        improvement=changes[0].gain,
        standard_error=changes[0].error,
        tolerance=tolerance,
        final_loss=fourth[0],
        round_improvement=changes[1].gain if before else float("nan"),
        round_standard_error=changes[1].error if before else float("nan"),
        windows=windows,
    )


class _Change(NamedTuple):
    """A fall of the mean loss and its standard error, nats per record."""

    gain: float
    error: float
    when: str

    def is_below(self, tolerance: float) -> bool:
        return abs(self.gain) + 2 * self.error < tolerance

    def __str__(self) -> str:
        return f"{self.gain:+.4f} ± {self.error:.4f} nats per record {self.when}"


def _change(before: tuple[float, float], after: tuple[float, float], when: str) -> _Change:
    return _Change(before[0] - after[0], float(np.hypot(before[1], after[1])), when)


def _mean_and_error(losses: np.ndarray) -> tuple[float, float]:
    """Mean of consecutive batches' means, and its standard error."""
    width = len(losses) // _NUM_BATCHES
    batches = losses[-_NUM_BATCHES * width :].reshape(_NUM_BATCHES, width).mean(axis=1)
    return float(batches.mean()), float(batches.std(ddof=1) / np.sqrt(_NUM_BATCHES))


def _reason(changes: Sequence[_Change], tolerance: float) -> str:
    """What was tested, and what came of it; of several changes the one that failed first."""
    failed = next((change for change in changes if not change.is_below(tolerance)), None)
    if failed is None:
        gained = ", and ".join(map(str, changes))
        return f"Converged: the ELBO gained {gained}, within {tolerance:.2g} of nothing."
    if failed.gain < -2 * failed.error:
        return f"Getting worse: the ELBO gained {failed}; use a smaller learning rate."
    if failed.gain > 2 * failed.error:
        return f"Still improving: the ELBO gained {failed}; more steps are needed."
    return (
        f"Too noisy to tell within {tolerance:.2g}: the ELBO gained {failed}; use more steps, "
        "more particles or larger batches."
    )
