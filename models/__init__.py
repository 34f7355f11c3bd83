"""NumPyro models and gates: arrays in, posterior out; no language model in sight."""

from mop_jax.models.bilinear_gate import Gate, bilinear_gate
from mop_jax.models.choice import mixture_of_choices
from mop_jax.models.choice_data import Choices
from mop_jax.models.data import MixtureData, choice_data, full_table_data, mixture_data
from mop_jax.models.explicit import explicit_mixture_of_personas
from mop_jax.models.feature_maps import FeatureMap, FeatureMaps, fit_feature_maps
from mop_jax.models.gate_logits import GateLogits
from mop_jax.models.gates import (
    GATES,
    add_similarity,
    find_gate,
    module_gate,
    uniform_gate_logits,
)
from mop_jax.models.linear_gate import linear_gate
from mop_jax.models.mixture import mixture_of_personas
from mop_jax.models.similarity import SimilarityMap, fit_similarity_map

__all__ = [
    "GATES",
    "Choices",
    "FeatureMap",
    "FeatureMaps",
    "Gate",
    "GateLogits",
    "MixtureData",
    "SimilarityMap",
    "add_similarity",
    "bilinear_gate",
    "choice_data",
    "explicit_mixture_of_personas",
    "find_gate",
    "fit_feature_maps",
    "fit_similarity_map",
    "full_table_data",
    "linear_gate",
    "mixture_data",
    "mixture_of_choices",
    "mixture_of_personas",
    "module_gate",
    "uniform_gate_logits",
]
