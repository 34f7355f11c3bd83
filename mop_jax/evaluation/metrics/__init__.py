"""Metrics by name; importing this package registers those that ship with it."""

from mop_jax.evaluation.metrics import cosine as cosine
from mop_jax.evaluation.metrics import diversity as diversity
from mop_jax.evaluation.metrics import downstream as downstream
from mop_jax.evaluation.metrics import frechet as frechet
from mop_jax.evaluation.metrics import log_prob as log_prob
from mop_jax.evaluation.metrics import mauve as mauve
from mop_jax.evaluation.metrics import memorisation as memorisation
from mop_jax.evaluation.metrics import two_sample as two_sample
from mop_jax.evaluation.metrics.comparison import Comparison, Sample
from mop_jax.evaluation.metrics.effective_size import EffectiveSize, effective_sample_size
from mop_jax.evaluation.metrics.registry import (
    METRICS,
    Estimate,
    Evidence,
    Metric,
    evaluate,
    measure,
    register,
)
from mop_jax.evaluation.metrics.reporting import (
    Reported,
    by_group,
    by_label,
    report,
    stable_from,
    values_by_size,
)
from mop_jax.evaluation.metrics.uncertainty import Floor, Interval, interval, noise_floor

__all__ = [
    "METRICS",
    "Comparison",
    "EffectiveSize",
    "Estimate",
    "Evidence",
    "Floor",
    "Interval",
    "Metric",
    "Reported",
    "Sample",
    "by_group",
    "by_label",
    "effective_sample_size",
    "evaluate",
    "interval",
    "measure",
    "noise_floor",
    "register",
    "report",
    "stable_from",
    "values_by_size",
]
