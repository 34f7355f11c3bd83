"""The methods by name; importing this module registers those that ship with the package."""

from __future__ import annotations

from mop_jax.evaluation.surveys.base import SURVEY_METHODS, register_method
from mop_jax.evaluation.surveys.logistic import MultinomialLogistic
from mop_jax.evaluation.surveys.marginals import PooledMarginal, Uniform
from mop_jax.evaluation.surveys.mrp import MRP

__all__ = ["SURVEY_METHODS"]

# Here and not beside each class: whoever imports one class must not change the order of tables.
for _method in (Uniform(), PooledMarginal(), MultinomialLogistic(), MRP()):
    register_method(_method)
