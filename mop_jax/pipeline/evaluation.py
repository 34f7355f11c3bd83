"""The fourth step of a run: every predictor's log-probability of the held-out records."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from mop_jax import atomic
from mop_jax.components.candidates import CandidateSet
from mop_jax.evaluation.held_out import candidate_check, summarise
from mop_jax.evaluation.metrics import METRICS, Evidence, measure
from mop_jax.evaluation.predictors import BASELINE, MAIN, PREDICTORS, HeldOut, fitted_predictors
from mop_jax.inference import (
    Posterior,
    gate_at,
    load_posterior,
)
from mop_jax.likelihoods.scoring import response_ids, spread
from mop_jax.pipeline.fitting import mixture_class, posterior_path
from mop_jax.pipeline.scoring import candidates_for
from mop_jax.pipeline.workspace import Split, Workspace, write_parquet
from mop_jax.population.population import Population
from mop_jax.prompts import Prompt

# Draws of held-out candidates have a stream of their own.
_HELD_OUT = 1_000_003


def evaluate_held_out(space: Workspace) -> None:
    """Writes metrics.json: held-out log-probabilities of every predictor, and their checks."""
    side = space.sides["test"]
    posteriors = {
        p.name: load_posterior(posterior_path(space, p.name)) for p in fitted_predictors()
    }
    main = posteriors[MAIN]
    chosen, other = _held_out_candidates(space, side)
    # The larger set holds the smaller one: it is scored once, and both are read from it.
    larger = max(chosen, other, key=lambda candidates: candidates.num_candidates)
    scored = space.score_candidates(side.records, larger, "Scoring held-out records")
    write_parquet(
        space.path / "likelihoods" / "held_out.parquet", space.pair_table(side.records, scored)
    )

    def task(candidates: CandidateSet) -> HeldOut:
        table = spread(candidates, scored.triples, scored.scores)
        maps = main.data.feature_maps
        return HeldOut(
            train=space.sides["train"].records,
            test=side.records,
            data=space.mixture_data(side, candidates, table, feature_maps=maps),
            distribution=mixture_class(space.config),
            posteriors=posteriors,
            prompts=space.prompts,
            personas=space.components.persona_texts,
            score=partial(_score_prompts, space, side.records),
        )

    held_out, compared = task(chosen), task(other)
    log_probs = {name: entry.log_prob(held_out) for name, entry in PREDICTORS.items()}
    weights, groups = side.records.weights, side.records.groups
    baseline = PREDICTORS[BASELINE].log_prob(compared)
    check = candidate_check(
        (chosen.num_candidates, other.num_candidates),
        {name: log_probs[name] - log_probs[BASELINE] for name in posteriors},
        {name: PREDICTORS[name].log_prob(compared) - baseline for name in posteriors},
        weights,
        groups,
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
            "num_exemplars": len(space.components.exemplars),
            "unit": "nats per record",
            "held_out": summarise(log_probs, weights, groups),
            "metrics": {
                metric: {name: estimates[metric]._asdict() for name, estimates in measured.items()}
                for metric in METRICS
            },
            "candidate_check": check,
            "temperature": _temperatures(main, side),
            "fit": json.loads((space.path / "fit.json").read_text("utf-8")),
        },
    )


def _temperatures(posterior: Posterior, side: Split) -> dict[str, Any]:
    """The posterior of τ, and how much of it presses against the ends of the scored grid."""
    temperature = np.asarray(gate_at(posterior, side.context_embeddings[:1]).temperature)
    at_ends = np.isin(temperature, np.asarray(posterior.data.temperature_grid)[[0, -1]])
    low, high = np.quantile(temperature, [0.03, 0.97], axis=0)
    return {
        "mean": temperature.mean(axis=0).round(6).tolist(),
        "interval_94": np.stack([low, high], axis=1).round(6).tolist(),
        "share_at_ends_of_grid": float(at_ends.mean()),
    }


def _held_out_candidates(space: Workspace, side: Split) -> tuple[CandidateSet, CandidateSet]:
    """The candidates of the reported estimates, and those of the check on their number.

    The check doubles the candidates; where all components are taken it halves them instead.
    """
    count = space.config.evaluation.num_candidates
    total = len(space.components.personas) * len(space.components.exemplars)
    chosen = candidates_for(space, side, count, seed_offset=_HELD_OUT)
    if chosen.method != "full":
        return chosen, candidates_for(space, side, 2 * count, seed_offset=_HELD_OUT)
    half = candidates_for(
        space, side, max(1, total // 2), method="importance", seed_offset=_HELD_OUT
    )
    return chosen, half


def _score_prompts(
    space: Workspace, records: Population, prompts: Sequence[Sequence[Prompt]]
) -> np.ndarray:
    """Log-likelihoods at τ = 1 of each record's response after each of its prompts, [N, P]."""
    responses = [response_ids(records, i, space.prompts) for i in range(len(records))]
    owners = [i for i, built in enumerate(prompts) for _ in built]
    scores = space.score(
        [prompt for built in prompts for prompt in built],
        [responses[i] for i in owners],
        [records.ids[i] for i in owners],
        "Scoring baselines",
    )
    return scores[:, space.grid.unit_index].reshape(len(records), -1)
