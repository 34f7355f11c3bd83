"""Components without an exemplar, and one without a persona either, beside all the others.

A persona that is shown no exemplar, and the language model asked with nothing at all (zero-shot),
are components as any: the mixture then says how much of the population needs no exemplar. They are
one more exemplar and one more persona, which stand for none, at the end of the pools, so that
gates, posteriors and simulation serve them as they are. All are scored for every record.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

from mop_jax.errors import DataError
from mop_jax.models import checks
from mop_jax.models.bare_places import BareComponents
from mop_jax.models.data import MixtureData
from mop_jax.models.gate_logits import GateLogits

Array = Any  # numpy or jax array: travels through jit

# As good as impossible in either precision; −∞ would be NaN in a matrix product.
_NEVER = -1e9


def with_bare_components(
    data: MixtureData, persona_only: Array, zero_shot: Array | None = None
) -> MixtureData:
    """Adds K components that show no exemplar, and one without a persona.

    Their embeddings are the pools' means, where all features of gates are zero, and no context,
    label or group is like theirs. Candidates that were there keep their weights: what is added is
    listed whole, so that an estimate stays unbiased.

    Args:
        data: N records with C candidates.
        persona_only: nats of each response under each persona alone, [N, K, G] (or [N, K], G = 1).
        zero_shot: nats of each response without either, [N, G] (or [N]); no such component without.

    Returns:
        Data of J + 1 exemplars, K + 1 personas (K without `zero_shot`) and C + K + 1 candidates
        (C + K).

    Raises:
        DataError: naming the array that is at fault; for closed answers; if they are there already.
    """
    if data.choices is not None:
        raise DataError("Closed answers have no bare components: their table is one of options.")
    if data.bare is not None:
        raise DataError("These data have bare components already.")
    dtype, (number, _, grid) = data.log_likelihood.dtype, np.shape(data.log_likelihood)
    num_personas, num_exemplars = data.num_personas, data.num_exemplars

    def table(name: str, values: Array, shape: tuple[int, ...]) -> np.ndarray:
        array = np.asarray(values)
        array = array[..., None] if array.ndim == len(shape) - 1 else array
        array = checks.finite(name, array, dtype, len(shape))
        checks.check_shape(name, array, shape)
        return array

    tables = [table("persona_only", persona_only, (number, num_personas, grid))]
    persona, exemplar = list(range(num_personas)), num_personas * [num_exemplars]
    personas = np.asarray(data.persona_embeddings)
    if zero_shot is not None:
        tables.append(table("zero_shot", zero_shot, (number, grid))[:, None])
        persona, exemplar = [*persona, num_personas], [*exemplar, num_exemplars]
        personas = np.concatenate([personas, np.asarray(data.feature_maps.persona.mean)[None]])

    def listed(known: Array, added: list[int]) -> np.ndarray:
        rows = np.broadcast_to(np.asarray(added, np.int32), (number, len(added)))
        return np.concatenate([np.asarray(known), rows], axis=1)

    mean = np.asarray(data.feature_maps.exemplar.mean)[None]
    weight = np.zeros((number, len(persona)), np.asarray(data.log_weight).dtype)
    similarity = data.similarity
    if similarity is not None:
        similarity = similarity.with_none()
    return data._replace(
        persona_embeddings=personas.astype(dtype),
        exemplar_embeddings=np.concatenate([data.exemplar_embeddings, mean]).astype(dtype),
        leave_out=np.pad(np.asarray(data.leave_out), ((0, 0), (0, 1))),
        persona_index=listed(data.persona_index, persona),
        exemplar_index=listed(data.exemplar_index, exemplar),
        log_weight=np.concatenate([data.log_weight, weight], axis=1),
        log_likelihood=np.concatenate([data.log_likelihood, *tables], axis=1),
        similarity=similarity,
        bare=BareComponents(
            np.arange(num_exemplars + 1) == num_exemplars,
            None if zero_shot is None else np.arange(num_personas + 1) == num_personas,
        ),
    )


def add_bare_components(
    logits_of: Callable[[MixtureData], GateLogits],
    data: MixtureData,
    *,
    log_odds: float,
    log_odds_scale: float,
    learned: bool = True,
) -> Callable[[MixtureData], GateLogits]:
    """A gate that may choose to show no exemplar, or neither exemplar nor persona:

        logit of no exemplar = log(J) + η,   of no persona = log(K) + ζ
        η, ζ ~ Normal(log_odds, log_odds_scale²)        sites gate.no_exemplar, gate.no_persona

    with J exemplars and K personas that are some. So e^η is about the odds of a persona's speaking
    without an exemplar, whatever J is, and e^ζ those of zero-shot. Without a persona there is no
    exemplar either.

    Args:
        logits_of: the gate that is added to.
        data: with `bare`.
        log_odds: prior mean of η and ζ.
        log_odds_scale: their prior standard deviation.
        learned: whether they are; else nothing is bare, so that the uniform mixture, the baseline
            of claims, is the same with and without bare components.
    """
    bare = data.bare
    assert bare is not None
    offsets = {}
    for name, is_none in bare._asdict().items():
        if is_none is None:
            continue
        offsets[name] = jnp.asarray(_NEVER, data.log_likelihood.dtype)
        if learned:
            prior = dist.Normal(log_odds, log_odds_scale)
            odds = numpyro.sample(f"gate.{name}", prior)
            offsets[name] = jnp.log(is_none.shape[0] - 1.0) + odds

    def logits(batch: MixtureData) -> GateLogits:
        found = logits_of(batch)
        none = jnp.asarray(bare.no_exemplar)
        record = found.exemplar_record + jnp.where(none, offsets["no_exemplar"], 0)
        if bare.no_persona is None:
            return found._replace(exemplar_record=record)
        nobody = jnp.asarray(bare.no_persona)
        return GateLogits(
            found.persona + jnp.where(nobody, offsets["no_persona"], 0),
            record,
            jnp.where(nobody[:, None] & ~none, _NEVER, found.exemplar_persona),
        )

    return logits
