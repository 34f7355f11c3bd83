"""Held-out log-probability: the logarithmic score, a strictly proper scoring rule."""

from __future__ import annotations

import math

from mop_jax.evaluation.held_out import mean_and_error
from mop_jax.evaluation.metrics.registry import Estimate, Evidence, Metric, register


def held_out_log_prob(evidence: Evidence) -> Estimate:
    """Weighted mean of log p(y_i | x_i), nats per record, with its clustered standard error."""
    return Estimate(**mean_and_error(*evidence))


register(
    Metric(
        name="held_out_log_prob",
        title="held-out log p(response | context), nats per record",
        function=held_out_log_prob,
        direction="higher",
        # Responses are discrete: their probabilities never exceed one.
        range=(-math.inf, 0.0),
        reference="Good (1952)",
    )
)
