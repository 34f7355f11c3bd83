"""Mixture of Personas as a probabilistic program in JAX.

A population is simulated by a contextual mixture: each component is a language model prompted with
a persona and an exemplar, and a gate, fitted by SVI over the language model's log-likelihoods, says
how often each component speaks in each context. `run` does the whole job; the parts compose by
hand.
"""

import os

# transformers announces at import that it has found no PyTorch, which is as intended here.
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

from mop_jax import inference, models
from mop_jax.components.components import Components
from mop_jax.config import RunConfig, load_config
from mop_jax.distributions import PersonaMixture
from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.errors import DataError, FaultError, MopError
from mop_jax.lm.base import TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM

# The step `personas` shadows the module of that name as an attribute of the package;
# `from mop_jax.components.personas import Persona` reaches the module all the same.
from mop_jax.pipeline import evaluate, fit, personas, run, score, simulate
from mop_jax.population import Population
from mop_jax.prompts import PromptBuilder, PromptTemplate

__version__ = "0.1.0"

__all__ = [
    "Components",
    "DataError",
    "FaultError",
    "FlaxLM",
    "MopError",
    "PersonaMixture",
    "Population",
    "PromptBuilder",
    "PromptTemplate",
    "RunConfig",
    "SentenceEncoder",
    "TemperatureGrid",
    "evaluate",
    "fit",
    "inference",
    "load_config",
    "models",
    "personas",
    "run",
    "score",
    "simulate",
]
