"""Multilevel regression of shares as a NumPyro program, and the sampler that is compiled once."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS, init_to_median


# Of one answer about a contrast of logits, p (1 − p) of a share of a fifth; and what σ may be.
_INFORMATION = 0.16
_TYPICAL_SCALE = 0.2


class CellData(NamedTuple):
    """Answers of one question, counted by cell.

    Attributes:
        counts: [C, M]; rows of zeros are cells without answers.
        level: of each term (a covariate, or an interaction) in each cell, int [V, C].
        basis: orthonormal contrasts of the options, [M − 1, M].
    """

    counts: jax.Array
    level: jax.Array
    basis: jax.Array


def multilevel_logit(
    data: CellData,
    *,
    num_levels: tuple[int, ...],
    by_contrast: bool,
    prior_scale: float,
    intercept_scale: float,
) -> None:
    """A multinomial logit with partially pooled effects of levels and of cells.

        α ~ Normal(0, intercept_scale²)                                  site intercept [D]
        σ_v ~ HalfNormal(prior_scale)                                    site term_scale [V, D or 1]
        σ ~ HalfNormal(prior_scale)                                      site cell_scale [D or 1]
        z_v ~ Normal(0, 1)                                               sites term_<v>
        μ_c = α + Σ_v σ_v z_v[level_v(c)]                                [C, D]
        x_c ~ Normal(a_c μ_c, σ^2a_c)                                    site cell
        η_c = μ_c + σ^(1 − a_c) (x_c − a_c μ_c), so that η_c ~ Normal(μ_c, σ²)
        p_c = softmax(B'η_c),  counts_c ~ Multinomial(n_c, p_c)

    with D = M − 1 contrasts B, so that no option is set apart as the reference. In unordered
    questions a term has one σ for all contrasts, which makes the choice of B irrelevant; in ordered
    ones the contrasts are polynomials of the scale and each has its own: what moves people along
    the scale need not move them to its ends.

    a_c says where between non-centred (0) and centred (1) a cell's effect stands (Gorinova et al.,
    2020): a cell of hundreds of answers fixes η_c, and z_c = (η_c − μ_c)/σ would chase σ; one of a
    few leaves it to the prior. It changes the geometry and not the model.

    Args:
        data: counts and levels.
        num_levels: of each term; their effects are drawn for levels without answers, too.
        by_contrast: whether each contrast has scales of its own.
        prior_scale: of the σ's, in logits.
        intercept_scale: prior standard deviation of α.
    """
    num_cells, num_contrasts = data.counts.shape[0], data.basis.shape[0]
    width = num_contrasts if by_contrast else 1
    half_normal = dist.HalfNormal(prior_scale)
    intercept = numpyro.sample(
        "intercept", dist.Normal(0.0, intercept_scale).expand([num_contrasts]).to_event(1)
    )
    term_scale = numpyro.sample(
        "term_scale", half_normal.expand([len(num_levels), width]).to_event(2)
    )
    cell_scale = numpyro.sample("cell_scale", half_normal.expand([width]).to_event(1))
    logits = jnp.broadcast_to(intercept, (num_cells, num_contrasts))
    for v, size in enumerate(num_levels):
        standard = numpyro.sample(f"term_{v}", _standard_normal(size, num_contrasts))
        logits = logits + (term_scale[v] * standard)[data.level[v]]
    total = data.counts.sum(1, keepdims=True)
    information = _INFORMATION * total
    centred = information / (information + 1 / _TYPICAL_SCALE**2)
    cell = numpyro.sample(
        "cell", dist.Normal(centred * logits, cell_scale**centred).to_event(2)
    )
    logits = logits + cell_scale ** (1 - centred) * (cell - centred * logits)
    numpyro.deterministic("logits", logits)
    log_shares = jax.nn.log_softmax(logits @ data.basis)
    # Less the greatest value that it can take: float32 keeps the digits that differ.
    best = jnp.log(jnp.where(data.counts > 0, data.counts / jnp.maximum(total, 1e-9), 1.0))
    numpyro.factor("answers", (data.counts * (log_shares - best)).sum())


def _standard_normal(rows: int, columns: int) -> dist.Distribution:
    return dist.Normal(0.0, 1.0).expand([rows, columns]).to_event(2)


@lru_cache(maxsize=16)
def sampler(
    num_levels: tuple[int, ...],
    by_contrast: bool,
    prior_scale: float,
    intercept_scale: float,
    num_warmup: int,
    num_samples: int,
    num_chains: int,
) -> MCMC:
    """A sampler that keeps what it compiled for data of one shape."""

    def model(data: CellData) -> None:
        multilevel_logit(
            data,
            num_levels=num_levels,
            by_contrast=by_contrast,
            prior_scale=prior_scale,
            intercept_scale=intercept_scale,
        )

    return MCMC(
        NUTS(model, init_strategy=init_to_median, target_accept_prob=0.85),
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
