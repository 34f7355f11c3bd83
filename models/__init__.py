"""NumPyro models and gates: arrays in, posterior out; no language model in sight."""

from mop_jax.models.data import (
    FeatureMap,
    FeatureMaps,
    MixtureData,
    fit_feature_maps,
    full_table_data,
    mixture_data,
)
from mop_jax.models.explicit import explicit_mixture_of_personas
from mop_jax.models.gate import Gate, GateLogits
from mop_jax.models.mixture import mixture_of_personas, random_gate, uniform_gate_logits

__all__ = [
    "FeatureMap",
    "FeatureMaps",
    "Gate",
    "GateLogits",
    "MixtureData",
    "explicit_mixture_of_personas",
    "fit_feature_maps",
    "full_table_data",
    "mixture_data",
    "mixture_of_personas",
    "random_gate",
    "uniform_gate_logits",
]
