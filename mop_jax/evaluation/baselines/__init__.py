"""Baselines by name; importing this package registers those that ship with it."""

# isort: off
# In the order of tables and figures.
from mop_jax.evaluation.baselines import zero_shot as zero_shot
from mop_jax.evaluation.baselines import persona_only as persona_only
from mop_jax.evaluation.baselines import few_shot as few_shot
from mop_jax.evaluation.baselines import zerogen as zerogen
from mop_jax.evaluation.baselines import attrprompt as attrprompt
from mop_jax.evaluation.baselines import progen as progen
from mop_jax.evaluation.baselines import picle as picle
from mop_jax.evaluation.baselines import verbalized_sampling as verbalized_sampling
from mop_jax.evaluation.baselines import lora as lora
from mop_jax.evaluation.baselines import uniform_mixture as uniform_mixture

# isort: on
from mop_jax.evaluation.baselines.base import (
    BASELINES,
    Baseline,
    PromptedResponder,
    Responder,
    Response,
    Setting,
    register,
)

__all__ = [
    "BASELINES",
    "Baseline",
    "PromptedResponder",
    "Responder",
    "Response",
    "Setting",
    "register",
]
