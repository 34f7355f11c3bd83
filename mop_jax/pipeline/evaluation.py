"""The fourth step of a run: every predictor's log-probability of the held-out records."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from mop_jax import atomic
from mop_jax.components.candidates import CandidateSet
from mop_jax.components.components import SECOND_ROUND
from mop_jax.components.rounds import half_sets
from mop_jax.evaluation.held_out import candidate_check, summarise, summarise_slack
from mop_jax.evaluation.metrics import Evidence, measure
from mop_jax.evaluation.predictors import (
    BASELINE,
    MAIN,
    PREDICTORS,
    HeldOut,
    fitted_predictors,
    is_estimated,
    score_prompted,
)
from mop_jax.inference import (
    Posterior,
    gate_at,
    load_posterior,
)
from mop_jax.likelihoods.scoring import spread
from mop_jax.models import MixtureData
from mop_jax.models.data import concatenated
from mop_jax.pipeline.fitting import mixture_class, posterior_path
from mop_jax.pipeline.scoring import Round, extended_round, first_candidates, write_pairs
from mop_jax.pipeline.summary import SIMILAR
from mop_jax.pipeline.workspace import Split, Workspace, write_parquet
from mop_jax.population.population import Population
from mop_jax.prompts import Prompt

# Draws of held-out candidates have a stream of their own; see SECOND_ROUND.
_HELD_OUT = 10**15
_SCORING = "Scoring held-out records"
# For the share of temperatures at the ends of the grid.
_COMPONENTS_LOOKED_AT = 10_000


def evaluate_held_out(space: Workspace) -> None:
    """Writes metrics.json: held-out log-probabilities of every predictor, and their checks."""
    side = space.sides["test"]
    posteriors = {
        p.name: load_posterior(posterior_path(space, p.name)) for p in fitted_predictors()
    }
    main = posteriors[MAIN]
    made = _held_out_rounds(space, side, main)
    write_pairs(space, side, made.scored, "held_out.parquet")
    # All readings of the candidates in one batch: a predictor is compiled once.
    readings = [_data(space, side, made.scored, candidates, main) for candidates in made.readings]
    held_out = HeldOut(
        train=space.sides["train"].records,
        test=side.records,
        data=readings[0],
        distribution=mixture_class(space.config),
        posteriors=posteriors,
        prompts=space.prompts,
        personas=space.components.persona_texts,
        score=partial(_score_prompts, space, side.records),
    )
    together = replace(held_out, data=concatenated(readings))
    score_prompted(held_out)
    log_probs, compared, slack, compared_slack = {}, {}, {}, {}
    for name, entry in PREDICTORS.items():
        if not is_estimated(entry):
            log_probs[name] = entry.log_prob(held_out)
            continue
        values = np.asarray(entry.log_prob(together)).reshape(len(readings), len(side.records))
        log_probs[name], compared[name] = values[0], values[1]
        if len(values) > 2:
            slack[name] = values[0] - values[2:4].mean(axis=0)
            compared_slack[name] = values[1] - values[4:6].mean(axis=0)
        else:
            slack[name] = np.zeros_like(values[0])
    weights, groups = side.records.weights, side.records.groups
    claims = [name for name in compared if name != BASELINE]
    estimates = made.readings[0].method != "renormalised"
    check = candidate_check(
        (made.readings[0].num_candidates, made.compared),
        _differences(log_probs, claims),
        _differences(compared, claims),
        weights,
        groups,
        slack=_differences(slack, claims) if estimates else None,
        compared_slack=_differences(compared_slack, claims) if compared_slack else None,
    )
    write_parquet(
        space.path / "held_out.parquet",
        pd.DataFrame({"record": side.records.ids, "weight": weights, **log_probs}),
    )
    measured = {
        name: measure(Evidence(values, weights, groups)) for name, values in log_probs.items()
    }
    atomic.write_json(
        space.path / "metrics.json",
        {
            "num_train": len(space.sides["train"].records),
            "num_held_out": len(side.records),
            "num_held_out_groups": None if groups is None else len(set(groups)),
            "num_personas": len(space.components.personas),
            "num_exemplars": len(space.components.exemplars) if space.components.shown else 0,
            "unit": "nats per record",
            "held_out": summarise(log_probs, weights, groups),
            "metrics": {
                metric: {name: estimates[metric]._asdict() for name, estimates in measured.items()}
                for metric in next(iter(measured.values()))
            },
            "candidate_slack": summarise_slack(slack, weights, groups) if estimates else {},
            "candidate_check": check,
            "temperature": _temperatures(main, side),
            **_similarity(main),
            **_bare(main, side),
            "fit": json.loads((space.path / "fit.json").read_text("utf-8")),
        },
    )


def _differences(values: Mapping[str, np.ndarray], claims: Sequence[str]) -> dict[str, np.ndarray]:
    return {name: values[name] - values[BASELINE] for name in claims}


class _HeldOutRounds(NamedTuple):
    """Candidates of the held-out records.

    Attributes:
        scored: the largest set, whose scores serve all readings.
        readings: the reported set, one to compare it with and, of an estimate, the two halves of
            either (`half_sets`).
        compared: number of candidates of the second.
    """

    scored: Round
    readings: list[CandidateSet]
    compared: int


def _held_out_rounds(space: Workspace, side: Split, posterior: Posterior) -> _HeldOutRounds:
    """Scores held-out records in two rounds, the second proposed by the gate and the first."""
    count = space.config.evaluation.num_candidates
    chosen = first_candidates(space, side, count, seed_offset=_HELD_OUT, held_out=True)
    half = max(1, min(count, chosen.num_candidates) // 2)
    if chosen.method == "renormalised":
        # The larger set holds the smaller one: it is scored once, and both are read from it.
        scored = Round(chosen, space.score_candidates(side.records, chosen, _SCORING))
        smaller = first_candidates(space, side, half, seed_offset=_HELD_OUT, held_out=True)
        return _HeldOutRounds(scored, [chosen, smaller], half)
    first = first_candidates(
        space, side, half, method="importance", seed_offset=_HELD_OUT, held_out=True
    )
    if chosen.method == "full":
        scored = Round(chosen, space.score_candidates(side.records, chosen, _SCORING))
        return _HeldOutRounds(scored, [chosen, first], half)
    known = Round(first, space.score_candidates(side.records, first, _SCORING))
    scored = extended_round(
        space,
        side,
        known,
        count,
        _SCORING,
        posterior=posterior,
        seed_offset=_HELD_OUT + SECOND_ROUND,
        held_out=True,
    )
    extended = scored.candidates
    return _HeldOutRounds(scored, [extended, first, *half_sets(extended), *half_sets(first)], half)


def _data(
    space: Workspace, side: Split, scored: Round, candidates: CandidateSet, posterior: Posterior
) -> MixtureData:
    """Held-out records as a model sees them, all readings of one width."""
    candidates = candidates.padded(scored.candidates.num_candidates)
    return space.mixture_data(
        side,
        candidates,
        spread(candidates, scored.scored.triples, scored.scored.scores),
        feature_maps=posterior.data.feature_maps,
        held_out=True,
    )


def _temperatures(posterior: Posterior, side: Split) -> dict[str, Any]:
    """The posterior of τ, and how much of it presses against the ends of the scored grid."""
    gate = gate_at(posterior, side.context_embeddings)
    temperature = np.asarray(gate.temperature)
    used = temperature
    if gate.exemplar_log_temperature is not None or gate.record_log_temperature is not None:
        # Components have temperatures of their own: some of all that there are.
        sizes = (*gate.persona_log_probs.shape[:2], *gate.exemplar_persona_logits.shape[1:])
        drawn = np.random.default_rng(0).integers(sizes, size=(_COMPONENTS_LOOKED_AT, 4)).T
        used = gate.component_temperature(*drawn)
    at_ends = np.isin(used, np.asarray(posterior.data.temperature_grid)[[0, -1]])
    low, high = np.quantile(temperature, [0.03, 0.97], axis=0)
    return {
        "mean": temperature.mean(axis=0).round(6).tolist(),
        "interval_94": np.stack([low, high], axis=1).round(6).tolist(),
        "share_at_ends_of_grid": float(at_ends.mean()),
    }


def _similarity(posterior: Posterior) -> dict[str, Any]:
    """The posterior of similarity's coefficients, nats of log Ω, where the gate has any."""
    found = {}
    for term in SIMILAR:
        draws = posterior.samples.get(f"gate.{term}")
        if draws is not None:
            interval = np.quantile(draws, [0.03, 0.97])
            found[term] = {
                "mean": round(float(np.mean(draws)), 6),
                "interval_94": interval.round(6).tolist(),
            }
    return {"similarity": found} if found else {}


def _bare(posterior: Posterior, side: Split) -> dict[str, Any]:
    """The population's share that needs no exemplar, and no persona, where a gate may say so."""
    if posterior.data.bare is None:
        return {}
    gate = gate_at(posterior, side.context_embeddings)
    weights = side.records.weights / side.records.weights.sum()
    shares = np.zeros((2, posterior.num_draws))
    for draw in range(posterior.num_draws):
        probs = np.exp(np.asarray(gate.mixing_distribution(draw).mixing_log_probs))
        shares[0, draw] = weights @ probs[:, :, -1].sum(axis=1)
        shares[1, draw] = weights @ probs[:, -1, -1]
    if posterior.data.bare.no_persona is None:
        shares = shares[:1]
    names = ("no_exemplar", "no_exemplar_and_no_persona")
    return {
        "bare": {
            name: {
                "mean": round(float(values.mean()), 6),
                "interval_94": np.quantile(values, [0.03, 0.97]).round(6).tolist(),
            }
            for name, values in zip(names, shares, strict=False)
        }
    }


def _score_prompts(
    space: Workspace, records: Population, prompts: Sequence[Sequence[Prompt]]
) -> np.ndarray:
    """Log-likelihoods at τ = 1 of each record's response after each of its prompts, [N, P]."""
    scores = space.score_prompts(records, prompts, "Scoring baselines")
    return scores[..., space.grid.unit_index]
