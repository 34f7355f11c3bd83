"""The linear maps from embeddings to the features that gates see."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

Array = Any  # numpy or jax array: maps travel through jit


class FeatureMap(NamedTuple):
    """An affine map from embeddings to gate features: (h − mean) @ basis.

    Attributes:
        mean: [D].
        basis: [D, R].
    """

    mean: Array
    basis: Array

    def __call__(self, embeddings: Array) -> Array:
        """Features [..., R] of embeddings [..., D]."""
        return product(embeddings - self.mean, self.basis)


def product(left: Array, right: Array) -> jax.Array:
    """A matrix product in full precision: accelerators would round the gate's logits to 8 bits."""
    return jnp.matmul(left, right, precision=jax.lax.Precision.HIGHEST)


class FeatureMaps(NamedTuple):
    """One `FeatureMap` each for contexts, personas and exemplars."""

    context: FeatureMap
    persona: FeatureMap
    exemplar: FeatureMap


def fit_feature_maps(
    contexts: Array, personas: Array, exemplars: Array, *, max_features: int = 32
) -> FeatureMaps:
    """Maps embeddings [·, D] to centred principal coordinates with total variance one.

    Sentence embeddings of one task point nearly the same way (the template dominates), so the mean
    goes, and the rest is scaled alike for contexts, personas and exemplars; only then does one
    prior scale mean the same for all. Rotating to principal axes changes nothing about a gate whose
    weights have an isotropic normal prior, except that directions nobody occupies are dropped (K
    personas span K − 1) and that a mean-field posterior follows the axes of the data.
    """
    return FeatureMaps(*(_principal_map(x, max_features) for x in (contexts, personas, exemplars)))


def _principal_map(embeddings: Array, max_features: int) -> FeatureMap:
    x = np.asarray(embeddings, np.float64)
    mean = x.mean(0)
    _, singular, axes = np.linalg.svd(x - mean, full_matrices=False)
    # What rounding leaves of embeddings that are alike is no feature, however small the rest.
    least = max(1e-5 * singular.max(initial=0.0), 1e-4 * float(np.linalg.norm(x)))
    kept = min(max_features, int((singular > least).sum()))
    if kept == 0:  # all alike: one feature that is zero, so that shapes stay ordinary
        return FeatureMap(mean.astype(np.float32), np.zeros((x.shape[1], 1), np.float32))
    axes = axes[:kept]
    # The sign of a singular vector is arbitrary; its largest entry made positive, it is not.
    largest = np.take_along_axis(axes, np.abs(axes).argmax(1)[:, None], 1)
    scale = np.sqrt((singular**2).sum() / len(x))
    return FeatureMap(
        mean.astype(np.float32), (axes * np.sign(largest) / scale).T.astype(np.float32)
    )
