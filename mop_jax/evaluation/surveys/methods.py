"""The methods by name; importing this module registers those that ship with the package."""

# isort: off
# In the order of tables and figures.
from mop_jax.evaluation.surveys import marginals as marginals
from mop_jax.evaluation.surveys import logistic as logistic
from mop_jax.evaluation.surveys import mrp as mrp

# isort: on
from mop_jax.evaluation.surveys.base import SURVEY_METHODS

__all__ = ["SURVEY_METHODS"]
