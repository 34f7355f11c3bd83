"""Closed answers in an ArviZ export: options, counts, and which question and levels they are of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro

from mop_jax.errors import DataError
from mop_jax.inference.export.netcdf_values import coordinate
from mop_jax.inference.posterior import Posterior
from mop_jax.models.choice_data import Choices
from mop_jax.models.data import MixtureData


def choice_constants(choices: Choices) -> dict[str, np.ndarray]:
    """The table of options, and what else an item is given."""
    preference = choices.option_preference
    return {
        "option_log_likelihood": np.asarray(choices.option_log_likelihood),
        "option_offset": np.asarray(choices.option_offset),
        **({} if preference is None else {"option_preference": np.asarray(preference)}),
        "question_index": _codes(choices.question),
        **{f"level_index.{name}": _codes(design) for name, design in choices.groups.items()},
    }


def _codes(design: Any) -> np.ndarray:
    """The column that each row is in; −1 for the last, which is of what was not known."""
    column = np.asarray(design).argmax(1)
    return np.where(column == np.shape(design)[1] - 1, -1, column)


def choice_dims(choices: Choices) -> dict[str, list[str]]:
    """The dimensions of counts and constants."""
    return {
        "counts": ["record", "option"],
        "option_log_likelihood": ["record", "candidate", "option"],
        "option_offset": ["record", "option"],
        "option_preference": ["record", "option"],
        "question_index": ["record"],
        **{f"level_index.{name}": ["record"] for name in choices.groups},
    }


def choice_coords(choices: Choices, names: Mapping[str, Sequence[Any]]) -> dict[str, list[Any]]:
    """The entries of the dimensions that closed answers add, by `names` where it has them.

    Raises:
        DataError: if `names` has a dimension that there is not, or one of another size.
    """
    sizes = {"option": np.shape(choices.counts)[1], "question": np.shape(choices.question)[1]}
    sizes |= {f"{name}_level": np.shape(v)[1] for name, v in choices.groups.items()}
    unknown = [name for name in names if name not in sizes]
    if unknown:
        raise DataError(
            f"names has {unknown[0]!r}, which is no dimension; there are {', '.join(sizes)}."
        )
    coords = {}
    for name, size in sizes.items():
        given = None if name not in names else list(names[name])
        if name != "option":
            given = [*range(size - 1)] if given is None else given
            if len(given) == size - 1:
                given = [*map(str, given), "unseen"]
        coords[name] = coordinate(f"names[{name!r}]", given, size)
    return coords


def drawn_counts(posterior: Posterior, data: MixtureData, rng_key: jax.Array) -> np.ndarray:
    """Counts drawn for as many people as were counted, [S, N, M]."""
    data = data._replace(
        feature_maps=posterior.data.feature_maps, similarity=posterior.data.similarity
    )
    draws = {name: jnp.asarray(values) for name, values in posterior.samples.items()}
    predictive = numpyro.infer.Predictive(
        numpyro.handlers.uncondition(posterior.model),
        draws,
        num_samples=None if draws else 1,
        return_sites=["response"],
    )
    return np.asarray(predictive(rng_key, data, **posterior.model_kwargs)["response"])
