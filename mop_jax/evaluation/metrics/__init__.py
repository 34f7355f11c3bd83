"""Metrics by name; importing this package registers those that ship with it."""

from mop_jax.evaluation.metrics import log_prob as log_prob
from mop_jax.evaluation.metrics.registry import (
    METRICS,
    Estimate,
    Evidence,
    Metric,
    measure,
    register,
)

__all__ = ["METRICS", "Estimate", "Evidence", "Metric", "measure", "register"]
