from .bilinear_gate import Gate, bilinear_gate
from .data import (
    FeatureMap,
    FeatureMaps,
    MixtureData,
    fit_feature_maps,
    full_table_data,
    mixture_data,
)
from .explicit import explicit_mixture_of_personas
from .gate_logits import GateLogits
from .gates import GATES, find_gate, module_gate, uniform_gate_logits
from .linear_gate import linear_gate
from .mixture import mixture_of_personas

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
