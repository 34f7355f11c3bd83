"""What a fitted choice model says of cells and of whole populations, with its uncertainty."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd

from mop_jax.distributions import ChoiceCounts
from mop_jax.errors import DataError
from mop_jax.inference.posterior import Posterior, map_draws
from mop_jax.models import MixtureData
from mop_jax.survey.frames import Frame
from mop_jax.survey.items import Items


@dataclass(frozen=True, eq=False)
class ShareDraws:
    """Posterior draws of the options' probabilities for N items.

    Attributes:
        probs: p(y = m | x_i, θ_s), float32 [S, N, M]; zero where there is no option.
        concentration: φ, [S, N]; infinite without dispersion.
    """

    probs: np.ndarray
    concentration: np.ndarray

    def cells(self, rng: np.random.Generator) -> np.ndarray:
        """Draws of the cells' own shares, p̃ ~ Dirichlet(φ p), float64 [S, N, M].

        They differ from p as cells of the survey differ from the model beyond sampling error.
        """
        shares = self.probs.astype(np.float64)
        finite = np.isfinite(self.concentration)
        # In float32 the least of concentrations may have become zero.
        concentration = np.maximum(np.where(finite, self.concentration, 1.0), 1e-30)
        pseudo = concentration.astype(np.float64)[..., None] * shares
        # Gammas of small shape by Γ(a) = Γ(a + 1) U^(1/a), in logarithms: they would vanish.
        present = pseudo > 0
        shape = np.where(present, pseudo, 1.0)
        logs = np.log(rng.gamma(shape + 1)) + np.log(rng.random(shape.shape)) / shape
        logs = np.where(present, logs, -np.inf)
        logs -= logs.max(-1, keepdims=True)
        drawn = np.exp(logs)
        drawn /= drawn.sum(-1, keepdims=True)
        return np.where(finite[..., None], drawn, shares / shares.sum(-1, keepdims=True))


def share_draws(posterior: Posterior, data: MixtureData) -> ShareDraws:
    """Posterior draws of the shares of the items in `data` (see `ChoiceDesign.data`).

    A question may have more options than any of the fit: what they have beyond the language model's
    own preference is then drawn from the prior, as it is for every question unseen so far.
    """

    def shares(answers: ChoiceCounts, data: MixtureData) -> tuple:
        batch = answers.probs.shape[:-1]
        return answers.probs, jnp.broadcast_to(answers.concentration, batch)

    probs, concentration = map_draws(_with_options(posterior, data), data, shares)
    return ShareDraws(np.asarray(probs), np.asarray(concentration))


def persona_draws(posterior: Posterior, data: MixtureData) -> np.ndarray:
    """Posterior draws of π, how often each persona speaks for an item: [S, N, K]."""

    def weights(answers: ChoiceCounts, data: MixtureData) -> jax.Array:
        return jnp.exp(answers.mixing_distribution.persona_log_probs)

    return np.asarray(map_draws(_with_options(posterior, data), data, weights))


def _with_options(posterior: Posterior, data: MixtureData) -> Posterior:
    """The posterior with as many options as the data have, those that the fit had not at the end.

    No answer told of them, and their effects are standardised: standard normals.
    """
    fitted, asked = posterior.data.choices, data.choices
    if fitted is None or asked is None:
        return posterior
    more = np.shape(asked.counts)[-1] - np.shape(fitted.counts)[-1]
    if more <= 0:
        return posterior
    rng = np.random.default_rng([more, 43])
    samples = dict(posterior.samples)
    for name in sorted(samples):
        if name == "option_bias" or name.startswith("option_effect."):
            values = samples[name]
            new = rng.standard_normal((*values.shape[:-1], more)).astype(values.dtype)
            samples[name] = np.concatenate([values, new], -1)
    return posterior.replace(samples=samples)


def poststratify(
    shares: np.ndarray,
    items: Items,
    frame: Frame,
    by: Sequence[str] = (),
    *,
    level: float = 0.9,
) -> pd.DataFrame:
    """Shares of options in a population and its groups, with posterior intervals:

        share_gm = Σ_{c in g} N_c p̃_cm / Σ_{c in g} N_c    under every draw (Gelman & Little 1997)

    Args:
        shares: draws for every item, [S, N, M] (`ShareDraws.cells`).
        items: N items, one for each cell of the frame and each question.
        frame: which share of the population each cell has.
        by: covariates whose levels, or combinations of levels, are reported; the population as a
            whole if there are none.
        level: of the intervals.

    Returns:
        A row for each question, group and option: `question`, the covariates of `by`, `option`,
        `share` (posterior mean), `low`, `high`, and `population`, the group's share of the frame.

    Raises:
        DataError: if a cell of the frame has no item.
    """
    lacking = [name for name in by if name not in frame.cells]
    if lacking:
        raise DataError(
            f"The frame has no covariate {lacking[0]!r}; it has {', '.join(frame.covariates)}."
        )
    weight_of = _cell_weights(items, frame)
    tail = (1 - level) / 2
    rows = []
    for q in np.unique(items.question):
        own = items.question == q
        seen = np.unique(items.cell[own])
        if (np.delete(weight_of, seen) > 0).any():
            cell = int(np.argmax(np.where(np.isin(np.arange(len(weight_of)), seen), 0, weight_of)))
            raise DataError(
                f"Question {items.questions[q].id} has no item for the cell "
                f"{', '.join(items.covariates_of(cell).values())}, which is in the frame."
            )
        weights = weight_of[items.cell[own]]
        cells = items.cells.iloc[items.cell[own]].reset_index(drop=True)
        groups = cells.groupby(list(by), sort=False).indices if by else {(): np.arange(len(cells))}
        for group, members in groups.items():
            total = weights[members].sum()
            if total == 0:
                continue  # nobody of the population is in it
            drawn = np.einsum("n,snm->sm", weights[members] / total, shares[:, own][:, members])
            low, high = np.quantile(drawn, [tail, 1 - tail], axis=0)
            names = group if isinstance(group, tuple) else (group,)
            for m, option in enumerate(items.questions[q].options):
                rows.append(
                    {
                        "question": items.questions[q].id,
                        **dict(zip(by, names, strict=True)),
                        "option": option,
                        "share": drawn[:, m].mean(),
                        "low": low[m],
                        "high": high[m],
                        "population": total,
                    }
                )
    return pd.DataFrame(rows)


def _cell_weights(items: Items, frame: Frame) -> np.ndarray:
    """The frame's share of each of the items' cells, [cells].

    A frame of fewer covariates than the items have is no frame of theirs: it is refused.
    """
    return frame.shares_of(items.cells)
