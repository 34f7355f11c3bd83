"""FID: the Fréchet distance between Gaussian fits to the embeddings of two samples of texts.

Heusel et al. (2017) proposed it for images; on sentence embeddings it is the alignment metric of
Bui et al. (2025). Its bias grows with D / n: compare values of equal sample sizes only, and look at
the noise floor, which is far from zero (0.34 for 256 and 256 real film reviews in 384 dimensions).
"""

from __future__ import annotations

import warnings

import numpy as np

from mop_jax.evaluation.metrics.comparison import Comparison, at_least, directions
from mop_jax.evaluation.metrics.registry import Metric, register


def frechet_distance(
    mean_p: np.ndarray, covariance_p: np.ndarray, mean_q: np.ndarray, covariance_q: np.ndarray
) -> float:
    """Squared 2-Wasserstein distance between two Gaussians (Dowson and Landau, 1982).

    |μ_P − μ_Q|² + tr(Σ_P + Σ_Q − 2 (Σ_P^½ Σ_Q Σ_P^½)^½). The trace of the last root is the sum of
    the roots of the eigenvalues of a symmetric matrix: real for singular covariances too, where the
    usual `sqrtm(Σ_P Σ_Q)` turns complex.

    Args:
        mean_p: μ_P, [D].
        covariance_p: Σ_P, [D, D], positive semidefinite.
        mean_q: μ_Q, [D].
        covariance_q: Σ_Q, [D, D], positive semidefinite.

    Returns:
        The distance, not negative, in squared units of the vectors.
    """
    values, vectors = np.linalg.eigh(covariance_p)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    product = np.linalg.eigvalsh(root.T @ covariance_q @ root)
    overlap = np.sqrt(np.clip(product, 0, None)).sum()
    gap = np.sum((mean_p - mean_q) ** 2)
    return max(0.0, float(gap + np.trace(covariance_p) + np.trace(covariance_q) - 2 * overlap))


def fid(comparison: Comparison, *, normalize: bool = True, scale: float = 1.0) -> float:
    """Fréchet distance of Gaussian fits to real and simulated embeddings (Heusel et al., 2017).

    Args:
        comparison: texts to compare.
        normalize: scale embeddings to unit length first, as sentence encoders do at the end; the
            value is then at most about 4 scale².
        scale: factor on the embeddings; the value goes with its square. The paper does not say its
            scale, and its values of up to 4.7 are not those of unit vectors.

    Returns:
        The distance, in squared units of the embeddings. Covariances divide by n − 1.

    Raises:
        DataError: if a sample has fewer than two texts.
    """
    at_least(comparison, 2, "FID")
    samples = (comparison.real, comparison.simulated)
    width = comparison.real.embeddings.shape[1]
    fewest = min(map(len, samples))
    if fewest <= width:
        warnings.warn(
            f"FID of {fewest} texts with {width} dimensions fits a singular covariance; the value "
            f"is dominated by its bias below {width + 1} texts, so compare it with its floor only.",
            stacklevel=2,
        )
    means, roots = [], []
    for sample in samples:
        vectors = scale * (directions(sample) if normalize else sample.embeddings)
        means.append(vectors.mean(axis=0))
        roots.append((vectors - means[-1]) / np.sqrt(len(vectors) - 1))
    if fewest > width:
        return frechet_distance(means[0], roots[0].T @ roots[0], means[1], roots[1].T @ roots[1])
    return _distance_of_few(means, roots)


def _distance_of_few(means: list[np.ndarray], roots: list[np.ndarray]) -> float:
    """`frechet_distance` of Gaussians of which one has a lower rank than it has dimensions.

    With Σ_P = AᵀA and Σ_Q = BᵀB, of n and m rows, tr (Σ_P^½ Σ_Q Σ_P^½)^½ is the sum of the singular
    values of A Bᵀ [n, m]: no matrix of the dimensions' size is taken apart.
    """
    overlap = np.linalg.svd(roots[0] @ roots[1].T, compute_uv=False).sum()
    gap = np.sum((means[0] - means[1]) ** 2)
    spread = sum(np.sum(root**2) for root in roots)
    return max(0.0, float(gap + spread - 2 * overlap))


register(
    Metric(
        name="fid",
        title="FID, Fréchet distance of unit embeddings",
        function=fid,
        direction="lower",
        range=(0.0, float("inf")),
        reference="Heusel et al. (2017)",
        takes=Comparison,
        family="alignment",
    )
)
