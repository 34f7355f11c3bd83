"""NumPyro models and gates: arrays in, posterior out; no language model in sight."""

from mop_jax.models.bilinear_gate import Gate, bilinear_gate
from mop_jax.models.data import (
    FeatureMap,
    FeatureMaps,
    MixtureData,
    fit_feature_maps,
    full_table_data,
    mixture_data,
)
from mop_jax.models.explicit import explicit_mixture_of_personas
from mop_jax.models.gate_logits import GateLogits
from mop_jax.models.gates import GATES, find_gate, module_gate, uniform_gate_logits
from mop_jax.models.linear_gate import linear_gate
from mop_jax.models.mixture import mixture_of_personas

__all__ = [
    "GATES",
    "FeatureMap",
    "FeatureMaps",
    "Gate",
    "GateLogits",
    "MixtureData",
    "bilinear_gate",
    "explicit_mixture_of_personas",
    "find_gate",
    "fit_feature_maps",
    "full_table_data",
    "linear_gate",
    "mixture_data",
    "mixture_of_personas",
    "module_gate",
    "uniform_gate_logits",
]
