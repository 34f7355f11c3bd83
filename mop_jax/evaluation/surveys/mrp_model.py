"""Multilevel regression of shares as a NumPyro program, and the sampler that is compiled once.

Sampled as it is written, standardised effects z and their scales σ, the posterior is a poor place
for NUTS: cells of thousands of answers fix the sum of effects to a hundredth, and trajectories of
640 steps follow the ridges that this leaves. So z is written as the posterior that it would have if
the observed log-shares were Gaussian, known in closed form for every σ, with ξ ~ Normal(0, 1) for
what is random in it. This is a change of variables with its Jacobian, hence exact; it makes the ξ
nearly independent of one another and of σ: on the CES trajectories have 15 steps.

Per contrast d, with observed log-ratios ỹ_c of variance v_c (delta method) and design A = X·σ:

    z_v  = Λ⁻¹ A'(v + σ²)⁻¹ỹ + L⁻ᵀ ξ_v,  Λ = I + A'(v + σ²)⁻¹A = LL'    effects of levels, jointly
    z_c  = (σ/v)(ỹ_c − μ_c) r² + r ξ_c,  r² = (1 + σ²/v)⁻¹              effects of cells, given them
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import cho_solve, solve_triangular
from numpyro.infer import MCMC, NUTS, init_to_median


class CellData(NamedTuple):
    """Answers of one question, counted by cell.

    Attributes:
        counts: [C, M].
        design: one-hot levels of all terms behind a column of ones, [C, P].
        basis: orthonormal contrasts of the options, [D, M] with D = M − 1.
    """

    counts: jax.Array
    design: jax.Array
    basis: jax.Array


def multilevel_logit(
    data: CellData,
    *,
    term: tuple[int, ...],
    by_contrast: bool,
    prior_scale: float,
    intercept_scale: float,
) -> None:
    """A multinomial logit with partially pooled effects of levels and of cells.

        σ_v ~ HalfNormal(prior_scale)                                    site term_scale [V, D or 1]
        σ ~ HalfNormal(prior_scale)                                      site cell_scale [D or 1]
        z_p, z_c ~ Normal(0, 1), through ξ (see the module)              sites effect, cell
        μ_c = intercept_scale z_0 + Σ_v σ_v z_v[level_v(c)]
        η_c = μ_c + σ z_c                                                site logits [C, D]
        p_c = softmax(B'η_c),  counts_c ~ Multinomial(n_c, p_c)

    with D = M − 1 contrasts B, so that no option is set apart as the reference. In unordered
    questions a term has one σ for all contrasts, which makes the choice of B irrelevant; in ordered
    ones the contrasts are polynomials of the scale and each has its own: what moves people along
    the scale need not move them to its ends.

    Args:
        data: counts and levels.
        term: which of the V terms each column of the design belongs to, the ones left out.
        by_contrast: whether each contrast has scales of its own.
        prior_scale: of the σ's, in logits.
        intercept_scale: prior standard deviation of the intercept, logits.
    """
    (num_cells, num_effects), num_contrasts = data.design.shape, data.basis.shape[0]
    width = num_contrasts if by_contrast else 1
    half_normal = dist.HalfNormal(prior_scale)
    term_scale = numpyro.sample(
        "term_scale", half_normal.expand([max(term) + 1, width]).to_event(2)
    )
    cell_scale = numpyro.sample("cell_scale", half_normal.expand([width]).to_event(1))
    xi = numpyro.sample("effect_xi", _standard_normal(num_contrasts, num_effects))
    cell_xi = numpyro.sample("cell_xi", _standard_normal(num_contrasts, num_cells))

    # Half an answer more keeps the log-ratios finite; the guess need not be good to be exact.
    padded = data.counts + 0.5
    observed = data.basis @ jnp.log(padded).T
    variance = data.basis**2 @ (1 / padded).T
    scale = jnp.concatenate([jnp.full((1, width), intercept_scale), term_scale[jnp.asarray(term)]])
    scale = jnp.broadcast_to(scale.T, (num_contrasts, num_effects))
    sigma = jnp.broadcast_to(cell_scale, (num_contrasts,))[:, None]
    effect, mean, effect_jacobian = jax.vmap(_effects, (0, 0, 0, 0, None))(
        xi, scale, observed, variance + sigma**2, data.design
    )
    root = (1 + sigma**2 / variance) ** -0.5
    cell = sigma / variance * (observed - mean) * root**2 + root * cell_xi
    logits = (mean + sigma * cell).T

    log_prior = -0.5 * ((effect**2).sum() + (cell**2).sum())
    log_proposal = -0.5 * ((xi**2).sum() + (cell_xi**2).sum())
    log_jacobian = effect_jacobian.sum() + jnp.log(root).sum()
    log_shares = jax.nn.log_softmax(logits @ data.basis)
    # Less the greatest value that it can take: float32 keeps the digits that differ.
    total = jnp.maximum(data.counts.sum(1, keepdims=True), 1e-9)
    best = jnp.log(jnp.where(data.counts > 0, data.counts / total, 1.0))
    log_likelihood = (data.counts * (log_shares - best)).sum()
    numpyro.factor("answers", log_likelihood + log_prior - log_proposal + log_jacobian)
    numpyro.deterministic("effect", (scale * effect).T)
    numpyro.deterministic("logits", logits)


def _effects(
    xi: jax.Array, scale: jax.Array, observed: jax.Array, variance: jax.Array, design: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of one contrast: z [P], what it adds up to in each cell [C], and log |dz/dξ|."""
    scaled = design * scale
    precision = jnp.eye(len(xi)) + scaled.T @ (scaled / variance[:, None])
    root = jnp.linalg.cholesky(precision)
    centre = cho_solve((root, True), scaled.T @ (observed / variance))
    z = centre + solve_triangular(root, xi, trans=1, lower=True)
    return z, scaled @ z, -jnp.log(jnp.diagonal(root)).sum()


def _standard_normal(rows: int, columns: int) -> dist.Distribution:
    return dist.Normal(0.0, 1.0).expand([rows, columns]).to_event(2)


@lru_cache(maxsize=16)
def sampler(
    shape: tuple[int, int],
    term: tuple[int, ...],
    by_contrast: bool,
    prior_scale: float,
    intercept_scale: float,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
) -> MCMC:
    """A sampler that keeps what it compiled for counts of one shape [C, M].

    Learning curves and repeated studies fit many surveys of the same cells, and compiling takes as
    long as sampling.
    """

    def model(data: CellData) -> None:
        multilevel_logit(
            data,
            term=term,
            by_contrast=by_contrast,
            prior_scale=prior_scale,
            intercept_scale=intercept_scale,
        )

    return MCMC(
        NUTS(model, init_strategy=init_to_median),
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method="sequential",
        progress_bar=False,
        jit_model_args=True,
    )


def polynomial_contrasts(num_options: int) -> np.ndarray:
    """Orthonormal polynomials of the scale 1 … M without the constant: linear first, [M − 1, M]."""
    scale = np.linspace(-1.0, 1.0, num_options)
    q, r = np.linalg.qr(np.vander(scale, increasing=True))
    return (q * np.sign(np.diag(r))).T[1:]
