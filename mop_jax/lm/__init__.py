"""The frozen language model: what is asked of one, and `FlaxLM`, which runs it in JAX.

Nothing is imported before it is asked for: `mop_jax.lm.base` alone is light.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mop_jax.lm.base import (
        Continuation,
        Generation,
        LanguageModel,
        SamplingModel,
        ScoringModel,
        TemperatureGrid,
    )
    from mop_jax.lm.config import DecoderConfig
    from mop_jax.lm.decoder import Decoder
    from mop_jax.lm.flax_lm import FlaxLM

_PLACES = {
    "Continuation": "base",
    "Generation": "base",
    "LanguageModel": "base",
    "SamplingModel": "base",
    "ScoringModel": "base",
    "TemperatureGrid": "base",
    "DecoderConfig": "config",
    "Decoder": "decoder",
    "FlaxLM": "flax_lm",
}

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
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_PLACES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
