"""NumPyro models and gates: arrays in, posterior out; no language model in sight."""

from mop_jax.models.bare_components import with_bare_components
from mop_jax.models.bare_places import BareComponents
from mop_jax.models.bilinear_gate import Gate, bilinear_gate
from mop_jax.models.choice import mixture_of_choices
from mop_jax.models.choice_data import Choices
from mop_jax.models.data import MixtureData, choice_data, full_table_data, mixture_data
from mop_jax.models.explicit import explicit_mixture_of_personas
from mop_jax.models.feature_maps import FeatureMap, FeatureMaps, fit_feature_maps
from mop_jax.models.gate_logits import GateLogits
from mop_jax.models.gates import (
    GATES,
    add_persona_weights,
    add_similarity,
    find_gate,
    module_gate,
    uniform_gate_logits,
)
from mop_jax.models.hierarchical_gate import hierarchical_gate
from mop_jax.models.linear_gate import linear_gate
from mop_jax.models.mixture import mixture_of_personas
from mop_jax.models.scales import learnt_scale, standard_normals
from mop_jax.models.similarity import SimilarityMap, fit_similarity_map
from mop_jax.models.temperatures import TEMPERATURES, LogTemperatures

__all__ = [
    "GATES",
    "TEMPERATURES",
    "BareComponents",
    "Choices",
    "FeatureMap",
    "FeatureMaps",
    "Gate",
    "GateLogits",
    "LogTemperatures",
    "MixtureData",
    "SimilarityMap",
    "add_persona_weights",
    "add_similarity",
    "bilinear_gate",
    "choice_data",
    "explicit_mixture_of_personas",
    "find_gate",
    "fit_feature_maps",
    "fit_similarity_map",
    "full_table_data",
    "hierarchical_gate",
    "learnt_scale",
    "linear_gate",
    "mixture_data",
    "mixture_of_choices",
    "mixture_of_personas",
    "module_gate",
    "standard_normals",
    "uniform_gate_logits",
    "with_bare_components",
]
