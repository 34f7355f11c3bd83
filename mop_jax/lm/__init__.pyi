from .base import (
    Continuation,
    Generation,
    LanguageModel,
    SamplingModel,
    ScoringModel,
    TemperatureGrid,
    Truncation,
)
from .config import DecoderConfig
from .decoder import Decoder
from .flax_lm import FlaxLM

__all__ = [
    "Continuation",
    "Decoder",
    "DecoderConfig",
    "FlaxLM",
    "Generation",
    "LanguageModel",
    "SamplingModel",
    "ScoringModel",
    "TemperatureGrid",
    "Truncation",
]
