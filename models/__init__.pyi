from .data import (
    FeatureMap,
    FeatureMaps,
    MixtureData,
    fit_feature_maps,
    full_table_data,
    mixture_data,
)
from .explicit import explicit_mixture_of_personas
from .gate import Gate, GateLogits
from .mixture import mixture_of_personas, random_gate, uniform_gate_logits

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
