"""What each step of a run does; `mop_jax.pipeline` says in which order and when.

Every function reads and writes artefacts of a `Workspace`; none keeps state of its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd

from mop_jax import atomic, progress
from mop_jax.candidates import CandidateSet
from mop_jax.components import Components, Method, response_ids
from mop_jax.config import RunConfig
from mop_jax.distributions import PersonaMixture, RenormalisedPersonaMixture
from mop_jax.errors import DataError
from mop_jax.evaluation.held_out import candidate_check, summarise, uniform_over_prompts
from mop_jax.inference import (
    Posterior,
    SimulatedResponse,
    SVIFit,
    default_optimizer,
    fit_svi,
    gate_at,
    load_posterior,
    posterior_draws,
    posterior_predictive_log_prob,
    save_posterior,
    simulate,
    to_inference_data,
    uniform_log_prob,
    write_netcdf,
)
from mop_jax.models import MixtureData
from mop_jax.personas import (
    cluster_records,
    read_personas,
    record_texts,
    synthesise_personas,
    write_personas,
)
from mop_jax.resources import resolve_path
from mop_jax.workspace import Split, Workspace, write_arrays, write_parquet

# Independent streams of random numbers, one for each use.
# Far from small numbers: those are samples' own keys when responses are simulated.
_FIT, _DRAWS, _ABLATION = 2**31 + 1, 2**31 + 2, 2**31 + 3
_HELD_OUT, _REFRESH = 1_000_003, 2_000_003

ABLATIONS: dict[str, dict[str, Any]] = {
    "mop_no_temperature": {"temperature": False},
    "uniform_gate_temperature": {"uniform_gate": True},
}
"""Models fitted beside the main one, to say what each part of it earns."""


def make_personas(space: Workspace) -> None:
    config, seed = space.config, space.config.seed
    train, test = space.read_population()
    distinct, wanted = len(set(train.text_keys)), config.exemplars.num_exemplars
    if wanted > distinct:  # said now, not after personas are written
        raise DataError(
            f"{wanted} exemplars were asked for, but only {distinct} distinct records are for "
            f"training ({len(test)} more are held out); set exemplars.num_exemplars to at most "
            f"{distinct}."
        )
    vectors: dict[str, np.ndarray] = {}
    for side, records in (("train", train), ("test", test)):
        vectors[f"{side}_context"] = space.encoder.encode(records.contexts)
        vectors[f"{side}_record"] = space.encoder.encode(record_texts(records))
    if config.personas.path is not None:
        made = read_personas(resolve_path(config.personas.path))
        clusters = cluster_records(vectors["train_record"], len(made), seed).labels
    else:
        made, clusters = synthesise_personas(
            train,
            vectors["train_record"],
            space.language_model,
            config.personas.num_personas,
            seed=seed,
            records_per_persona=config.personas.records_per_persona,
            max_new_tokens=config.personas.max_new_tokens,
        )
    components = Components.assemble(
        train,
        vectors["train_record"],
        made,
        clusters,
        space.encoder,
        num_exemplars=config.exemplars.num_exemplars,
        seed=seed,
        allocation=config.exemplars.allocation,
        stratify_labels=config.exemplars.stratify_labels,
    )
    vectors["persona"] = components.persona_embeddings
    vectors["exemplar"] = components.exemplar_embeddings
    pool = components.exemplars
    cluster_of = dict(zip(train.ids, np.asarray(clusters).tolist(), strict=True))
    pool_frame = pool.frame.assign(
        cluster=[cluster_of[i] for i in pool.ids], text_key=pool.text_keys
    )
    sides = [
        train.frame.assign(split="train", cluster=clusters),
        test.frame.assign(split="test", cluster=-1),
    ]
    write_personas(space.path / "personas.json", made)
    write_parquet(space.path / "exemplars.parquet", pool_frame)
    write_parquet(space.path / "records.parquet", pd.concat(sides, ignore_index=True))
    write_arrays(space.path / "embeddings.safetensors", vectors)


def candidates_for(
    space: Workspace,
    side: Split,
    num_candidates: int,
    *,
    posterior: Posterior | None = None,
    method: Method | None = None,
    seed_offset: int = 0,
) -> CandidateSet:
    """The candidate components of some records.

    Args:
        space: the run.
        side: the records.
        num_candidates: C.
        posterior: propose from this gate instead of from embedding similarity.
        method: instead of the configuration's.
        seed_offset: distinguishes independent draws.
    """
    section = space.config.candidates
    chosen = method or section.method
    return space.components.propose(
        side.records,
        side.contexts if chosen == "renormalised" else side.texts,
        num_candidates,
        method=chosen,
        seed=space.config.seed + seed_offset,
        uniform_share=section.uniform_share,
        similarity_temperature=section.similarity_temperature,
        posterior=posterior,
        context_embeddings=side.contexts,
    )


def training_data(
    space: Workspace, posterior: Posterior | None = None, *, refresh: int = 0
) -> MixtureData:
    """The training records as the model sees them; scores what is not scored yet.

    Args:
        space: the run.
        posterior: proposes candidates from its gate; from embedding similarity without one.
        refresh: number of the round of refreshed candidates; each round has draws of its own, since
            the gate that proposes was fitted on those of the round before.
    """
    side = space.sides["train"]
    chosen = candidates_for(
        space,
        side,
        space.config.candidates.num_candidates,
        posterior=posterior,
        seed_offset=_REFRESH * refresh,
    )
    table, log_likelihood = space.score_candidates(side.records, chosen, "Scoring training records")
    # Rounds have files of their own: those of the step that scored the first stay as it left them.
    name = f"train_{refresh}.parquet" if refresh else "train.parquet"
    write_parquet(space.path / "likelihoods" / name, table)
    return space.mixture_data(side, chosen, log_likelihood)


def score_training(space: Workspace) -> None:
    training_data(space)


def fit_models(space: Workspace) -> None:
    config = space.config
    data = training_data(space)
    main = _fit_model(space, data, _FIT, {})
    for number in range(1, config.candidates.refresh + 1):
        data = training_data(space, posterior_of(space, main), refresh=number)
        main = _fit_model(space, data, _FIT, {})
    posterior = posterior_of(space, main)
    ablations = {
        name: _fit_model(space, data, _ABLATION, changes) for name, changes in ABLATIONS.items()
    }
    inference_data = to_inference_data(
        posterior,
        data,
        record_ids=space.sides["train"].records.ids,
        exemplar_ids=space.components.exemplars.ids,
        attributes={"configuration": json.dumps(config.model_dump(mode="json"))},
    )
    report = {"mop": _convergence(main)}
    save_posterior(space.path / "gate.safetensors", posterior)
    for name, ablation in ablations.items():
        report[name] = _convergence(ablation)
        save_posterior(ablation_path(space, name), posterior_of(space, ablation))
    write_netcdf(space.path / "posterior.nc", inference_data)
    atomic.write_json(space.path / "fit.json", report)


def _convergence(fitted: SVIFit) -> dict[str, Any]:
    # Too short a run has no improvement to speak of; JSON has no NaN.
    report = fitted.convergence._asdict()
    return {k: None if isinstance(v, float) and np.isnan(v) else v for k, v in report.items()}


def ablation_path(space: Workspace, name: str) -> Path:
    """Where the posterior of an ablation is kept."""
    return space.path / "ablations" / f"{name}.safetensors"


def _fit_model(space: Workspace, data: MixtureData, stream: int, changes: dict[str, Any]) -> Any:
    config = space.config
    arguments: dict[str, Any] = {**config.model.model_dump(), **changes}
    arguments["distribution"] = mixture_class(config)
    section = config.inference
    return fit_svi(
        jax.random.fold_in(jax.random.key(config.seed), stream),
        data,
        model_kwargs=arguments,
        guide=section.guide,
        optimizer=default_optimizer(section.num_steps, section.learning_rate),
        num_steps=section.num_steps,
        batch_size=section.batch_size,
        num_particles=section.num_particles,
    )


def mixture_class(config: RunConfig) -> type[PersonaMixture]:
    """The distribution that belongs to a candidate method."""
    renormalised = config.candidates.method == "renormalised"
    return RenormalisedPersonaMixture if renormalised else PersonaMixture


def posterior_of(space: Workspace, fitted: Any) -> Posterior:
    """Posterior draws of a fit."""
    key = jax.random.fold_in(jax.random.key(space.config.seed), _DRAWS)
    return posterior_draws(fitted, key, space.config.inference.num_draws)


def evaluate_held_out(space: Workspace) -> None:
    """Writes metrics.json: held-out log-probabilities of every predictor, and their checks."""
    side = space.sides["test"]
    posterior = load_posterior(space.path / "gate.safetensors")
    chosen, other = _held_out_candidates(space, side)
    larger = max(chosen, other, key=lambda candidates: candidates.num_candidates)
    table, _ = space.score_candidates(side.records, larger, "Scoring held-out records")
    write_parquet(space.path / "likelihoods" / "held_out.parquet", table)

    def data_of(candidates: CandidateSet) -> MixtureData:
        _, scores = space.score_candidates(side.records, candidates, "Reading held-out scores")
        return space.mixture_data(
            side, candidates, scores, feature_maps=posterior.data.feature_maps
        )

    data, data_other = data_of(chosen), data_of(other)
    log_probs = _baselines(space, side)
    kind = mixture_class(space.config)
    log_probs["uniform_mixture"] = uniform_log_prob(data, distribution=kind)
    fitted = {name: load_posterior(ablation_path(space, name)) for name in ABLATIONS}
    fitted["mop"] = posterior
    for name, draws in fitted.items():
        log_probs[name] = posterior_predictive_log_prob(draws, data)
    weights, groups = side.records.weights, side.records.groups
    compared = {name: posterior_predictive_log_prob(p, data_other) for name, p in fitted.items()}
    baseline = uniform_log_prob(data_other, distribution=kind)
    check = candidate_check(
        (chosen.num_candidates, other.num_candidates),
        {name: log_probs[name] - log_probs["uniform_mixture"] for name in fitted},
        {name: value - baseline for name, value in compared.items()},
        weights,
        groups,
    )
    temperature = np.asarray(gate_at(posterior, side.contexts[:1]).temperature)
    at_ends = np.isin(temperature, np.asarray(posterior.data.temperature_grid)[[0, -1]])
    low, high = np.quantile(temperature, [0.03, 0.97], axis=0)
    write_parquet(
        space.path / "held_out.parquet",
        pd.DataFrame({"record": side.records.ids, "weight": weights, **log_probs}),
    )
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
            "candidate_check": check,
            "temperature": {
                "mean": temperature.mean(axis=0).round(6).tolist(),
                "interval_94": np.stack([low, high], axis=1).round(6).tolist(),
                "share_at_ends_of_grid": float(at_ends.mean()),
            },
            "fit": json.loads((space.path / "fit.json").read_text("utf-8")),
        },
    )


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


def _baselines(space: Workspace, side: Split) -> dict[str, np.ndarray]:
    """Zero-shot and persona-only log p(y | x) at τ = 1, nats, [N] each."""
    records, texts = side.records, space.components.persona_texts
    count, num_personas = len(records), len(texts)
    prompts = [space.prompts.zero_shot(context) for context in records.contexts]
    prompts += [
        space.prompts.persona_only(t, context) for context in records.contexts for t in texts
    ]
    responses = [response_ids(records, i, space.prompts) for i in range(count)]
    owners = [*range(count), *np.repeat(np.arange(count), num_personas)]
    scores = space.score(
        prompts,
        [responses[i] for i in owners],
        [records.ids[i] for i in owners],
        "Scoring baselines",
    )[:, space.grid.unit_index]
    personas = scores[count:].reshape(count, num_personas)
    return {"zero_shot": scores[:count], "persona_only": uniform_over_prompts(personas)}


def simulate_held_out(space: Workspace) -> None:
    """Writes simulated.jsonl: responses to the held-out contexts, with how each came about."""
    section, side = space.config.simulation, space.sides["test"]
    posterior = load_posterior(space.path / "gate.safetensors")
    journal = space.path / ".simulated.journal.jsonl"
    header = json.dumps({"journal_of": space.folder.fingerprint_of("simulate")})
    done = _read_journal(journal, header)
    atomic.write_text(journal, "\n".join([header, *done.values()]) + "\n")
    with (
        progress.task("Simulating responses", total=section.num_samples) as advance,
        atomic.disk_errors(journal),
        open(journal, "a", encoding="utf-8") as handle,
    ):
        advance(len(done))

        def file(responses: list[SimulatedResponse]) -> None:
            for response in responses:
                done[response.sample] = _simulated_row(space, side, response)
                handle.write(done[response.sample] + "\n")
            handle.flush()
            advance(len(responses))

        simulate(
            posterior,
            space.language_model,
            space.prompts,
            personas=space.components.persona_texts,
            exemplars=space.components.exemplar_texts,
            contexts=side.records.contexts,
            context_embeddings=side.contexts,
            num_samples=section.num_samples,
            seed=space.config.seed,
            leave_out=space.components.leave_out(side.records),
            top_p=section.top_p,
            top_k=section.top_k,
            min_p=section.min_p,
            max_new_tokens=section.max_new_tokens,
            skip=list(done),
            on_responses=file,
        )
    lines = [done[s] for s in range(section.num_samples)]
    atomic.write_text(space.path / "simulated.jsonl", "\n".join(lines) + "\n")
    journal.unlink()


def _simulated_row(space: Workspace, side: Split, response: SimulatedResponse) -> str:
    row = response._asdict()
    index = row.pop("context_index")
    row["record"] = side.records.ids[index]
    if side.records.labels is not None:
        row["label"] = side.records.labels[index]
    row["persona_text"] = space.components.personas[response.persona].text
    row["exemplar_record"] = space.components.exemplars.ids[response.exemplar]
    return json.dumps(row, ensure_ascii=False)


def _read_journal(path: Path, header: str) -> dict[int, str]:
    # The last line of a killed run may be cut off; it is simulated again. Nothing is taken from the
    # journal of another configuration.
    done: dict[int, str] = {}
    if not path.exists():
        return done
    # Not splitlines(): a model may well write U+2028 and its like.
    first, *lines = path.read_text("utf-8", errors="replace").split("\n")
    if first != header:
        return done
    for line in lines:
        try:
            done[json.loads(line)["sample"]] = line
        except json.JSONDecodeError:
            continue
    return done
