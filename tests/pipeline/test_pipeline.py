"""The whole job in miniature: every artefact is there, and its numbers hold by other means."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import arviz
import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp

from mop_jax import pipeline
from mop_jax.evaluation.predictors import PREDICTORS, fitted_predictors
from mop_jax.inference import gate_at, load_posterior, simulate
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.pipeline import evaluation, read_config
from mop_jax.pipeline.run_folder import RunFolder, file_hash
from mop_jax.pipeline.scoring import RoundReport, round_sizes
from mop_jax.pipeline.simulation import simulate_held_out
from mop_jax.pipeline.workspace import Workspace
from mop_jax.prompts import DEFAULT_INSTRUCTION
from tests.run_fixtures import contents, read_json, read_lines, records, unfinished_files

pytest_plugins = ("tests.run_fixtures",)

FIGURES = ("elbo", "persona_weights", "exemplar_gate", "embedding_map", "held_out",
           "candidate_check")  # fmt: skip


@pytest.fixture(scope="module")
def workspace(finished_run):
    return Workspace(RunFolder(finished_run, read_config(finished_run)))


def test_every_artefact_is_there_and_nothing_else(finished_run):
    wanted = {name for step in pipeline.STEPS for name in step.outputs}
    found = set(contents(finished_run)) - {"manifest.json"}
    journals = {name for name in found if name.startswith("likelihoods/") and "/" in name[12:]}
    assert {Path(name).name for name in journals} == {"scores.bin", "about.json"}
    assert found - journals == wanted
    assert not unfinished_files(finished_run)


def test_the_manifest_tells_how_the_run_was_made(finished_run, materials):
    manifest = read_json(finished_run / "manifest.json")
    assert manifest["configuration"] == materials.config().model_dump(mode="json")
    inputs = {"population", "language model", "sentence encoder"}
    assert set(manifest["sources"]) == inputs | {"prompt template", "personas file"}
    assert manifest["versions"]["jax"]
    assert list(manifest["steps"]) == [step.name for step in pipeline.STEPS]
    for step in manifest["steps"].values():
        assert step["state"] == "done"
        assert step["seconds"] >= 0
        for name, digest in step["outputs"].items():
            assert file_hash(finished_run / name) == digest


def test_records_personas_and_exemplars(finished_run, materials):
    split = pd.read_parquet(finished_run / "records.parquet")
    train, test = (split[split["split"] == side] for side in ("train", "test"))
    assert (len(train), len(test)) == (24, 12)
    assert not set(train["group"]) & set(test["group"])
    original = records().set_index("id").loc[split["id"]]
    assert split["response"].tolist() == original["review"].tolist()
    assert split["weight"].tolist() == original["weight"].tolist()
    personas = read_json(finished_run / "personas.json")
    assert len(personas) == 2
    assert sum(persona["cluster_size"] for persona in personas) == 24
    for k, persona in enumerate(personas):
        assert persona["text"].startswith("You are")
        assert persona["source"] == "synthesised"
        assert len(persona["record_ids"]) == 3
        shown = train.set_index("id").loc[persona["record_ids"]]
        assert (shown["cluster"] == k).all()
    pool = pd.read_parquet(finished_run / "exemplars.parquet")
    assert len(pool) == 4
    assert set(pool["id"]) <= set(train["id"])
    assert pool["text_key"].is_unique


def test_no_candidate_is_an_exemplar_of_the_records_own_group(finished_run):
    pool = pd.read_parquet(finished_run / "exemplars.parquet")
    group_of = records().set_index("id")["film"]
    for side, own in (("train", True), ("held_out", False)):
        table = pd.read_parquet(finished_run / "likelihoods" / f"{side}.parquet")
        records_group = group_of.loc[table["record"]].to_numpy()
        exemplars_group = pool["group"].to_numpy()[table["exemplar"]]
        assert not (records_group == exemplars_group).any()
        # Guards the line above: there was something to leave out.
        assert set(group_of.loc[table["record"].unique()]) & set(pool["group"]) if own else True
    posterior = arviz.from_netcdf(finished_run / "posterior.nc")
    train = posterior.constant_data["leave_out"]
    same = group_of.loc[train["record"].to_numpy()].to_numpy()[:, None] == pool["group"].to_numpy()
    np.testing.assert_array_equal(train.to_numpy().astype(bool), same)
    assert same.any()


def whole_prompt(model: FlaxLM, system: list[str], turns: list[str]) -> str:
    """A prompt by the model's own chat template; `turns` are the user's and the assistant's."""
    messages = [{"role": "system", "content": text} for text in system]
    for number, text in enumerate(turns):
        messages.append({"role": ("user", "assistant")[number % 2], "content": text})
    return model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


def test_likelihoods_are_those_of_whole_prompts(finished_run, workspace):
    """Against the model's own chat template and whole-prompt scoring: another road altogether."""
    model, grid = workspace.language_model, workspace.grid.temperatures
    personas = [p["text"] for p in read_json(finished_run / "personas.json")]
    pool = pd.read_parquet(finished_run / "exemplars.parquet")
    everyone = pd.read_parquet(finished_run / "records.parquet").set_index("id")
    samples = []
    for side in ("train", "held_out"):
        table = pd.read_parquet(finished_run / "likelihoods" / f"{side}.parquet")
        assert not table.duplicated(["record", "persona", "exemplar"]).any()
        samples.append(table.sample(5, random_state=0))
    rows = pd.concat(samples)
    prompts, responses = [], []
    for row in rows.itertuples():
        shown, asked = pool.iloc[row.exemplar], everyone.loc[row.record]
        system = [f"{personas[row.persona]} {DEFAULT_INSTRUCTION}"]
        turns = [shown["context"], shown["response"], asked["context"]]
        prompts.append(whole_prompt(model, system, turns))
        responses.append(f"{asked['response']}<|im_end|>")
    columns = [name for name in rows if name.startswith("log_likelihood_")]
    assert len(columns) == len(grid)
    for column in (columns[0], "log_likelihood_1.0000", columns[-1]):
        temperature = grid[columns.index(column)]
        exact = model.log_likelihood(prompts, responses, temperature=temperature)
        np.testing.assert_allclose(rows[column], exact, atol=1e-3)
    assert rows["log_likelihood_1.0000"].std() > 0.1


def test_the_posterior_files_agree(finished_run):
    posterior = load_posterior(finished_run / "posterior.safetensors")
    assert posterior.num_draws == 8
    assert posterior.losses.shape == (60,)
    stored = arviz.from_netcdf(finished_run / "posterior.nc")
    groups = {"posterior", "log_likelihood", "sample_stats", "observed_data", "constant_data"}
    assert groups <= set(stored.groups())
    # Independent draws, in two equal parts, so that ArviZ's diagnostics are defined.
    assert (stored.posterior.sizes["chain"], stored.posterior.sizes["draw"]) == (2, 4)
    assert stored.observed_data["response_words"].dims == ("record",)
    assert stored.posterior.sizes["persona"] == 2
    assert stored.posterior["log_temperature"].dims == ("chain", "draw", "persona")
    quantities = {"temperature", "persona_share"}
    assert set(stored.posterior.data_vars) == {*posterior.samples, *quantities}
    assert set(stored.prior.data_vars) == {*posterior.samples, *quantities}
    assert stored.prior.sizes["draw"] == 200
    for name, values in posterior.samples.items():
        np.testing.assert_array_equal(np.concatenate(stored.posterior[name].to_numpy()), values)
    assert stored.log_likelihood["response"].dims == ("chain", "draw", "record")
    assert stored.log_likelihood.sizes["record"] == 24
    pool = pd.read_parquet(finished_run / "exemplars.parquet")
    assert stored.constant_data["exemplar"].to_numpy().tolist() == pool["id"].tolist()
    assert json.loads(stored.posterior.attrs["configuration"])["name"] == "miniature"
    names = [entry.name for entry in fitted_predictors()]
    for name in names[:-1]:
        load_posterior(finished_run / "ablations" / f"{name}.safetensors")
    assert set(read_json(finished_run / "fit.json")) == set(names)


def test_metrics_hold_every_predictor(finished_run):
    metrics = read_json(finished_run / "metrics.json")
    held_out = metrics["held_out"]
    differences = {f"{name}_minus_uniform" for name in PREDICTORS if name != "uniform_mixture"}
    assert set(held_out) == set(PREDICTORS) | differences
    frame = pd.read_parquet(finished_run / "held_out.parquet")
    weights = frame["weight"].to_numpy()
    assert len(set(weights)) > 1
    for name in PREDICTORS:
        mean = np.average(frame[name], weights=weights)
        assert held_out[name]["mean"] == pytest.approx(mean)
        assert held_out[name]["se"] > 0
        difference = mean - np.average(frame["uniform_mixture"], weights=weights)
        if name != "uniform_mixture":
            assert held_out[f"{name}_minus_uniform"]["mean"] == pytest.approx(difference)
    assert metrics["num_train"] == 24
    assert metrics["num_held_out"] == 12
    check = read_json(finished_run / "figures" / "candidate_check.json")
    assert (check["candidates"], check["compared_candidates"]) == (6, 3)
    assert {k: check[k] for k in metrics["candidate_check"]} == metrics["candidate_check"]
    assert check["mop_minus_uniform"] == held_out["mop_minus_uniform"]
    low, high = np.transpose(metrics["temperature"]["interval_94"])
    assert (low <= metrics["temperature"]["mean"]).all()
    assert (metrics["temperature"]["mean"] <= high).all()


def test_the_uniform_mixture_by_brute_force(finished_run, workspace):
    """From the table of likelihoods, with sums written out; importance weights as proposed."""
    table = pd.read_parquet(finished_run / "likelihoods" / "held_out.parquet")
    scores = table.set_index(["record", "persona", "exemplar"])["log_likelihood_1.0000"]
    side = workspace.sides["test"]
    posterior = load_posterior(finished_run / "posterior.safetensors")
    made = evaluation._held_out_rounds(workspace, side, posterior)
    chosen = made.readings[0]
    assert len(table) == len(chosen.triples()) == 6 * len(side.records)
    allowed = (~workspace.components.leave_out(side.records, held_out=True)).sum(axis=1)
    expected = []
    for i, record in enumerate(side.records.ids):
        terms = [
            scores[record, k, j] + weight - np.log(2) - np.log(allowed[i])
            for k, j, weight in zip(
                chosen.persona_index[i], chosen.exemplar_index[i], chosen.log_weight[i], strict=True
            )
            if weight > -np.inf
        ]
        expected.append(logsumexp(terms))
    frame = pd.read_parquet(finished_run / "held_out.parquet")
    assert frame["record"].tolist() == side.records.ids
    np.testing.assert_allclose(frame["uniform_mixture"], expected, atol=1e-4)


def test_training_pairs_are_scored_in_rounds(finished_run):
    """One by similarity, one by what it scored, two where the first fit points: four in all."""
    sizes = round_sizes(4, 3)
    assert sizes == [1, 2, 4]
    tables = [
        pd.read_parquet(finished_run / "likelihoods" / f"{name}.parquet")
        for name in ("train", "train_refreshed")
    ]
    rounds = [RoundReport(**made) for made in read_json(finished_run / "rounds.json")]
    assert [made.pairs for made in rounds] == [24 * size for size in sizes]
    assert [len(table) for table in tables] == [24 * size for size in sizes[1:]]
    assert [made.new for made in rounds] == [24 * size for size in np.diff([0, *sizes])]
    assert rounds[0].tightened is None
    assert all(np.isfinite([made.tightened, made.standard_error]).all() for made in rounds[1:])
    # The last one was proposed by a fit.
    assert [made.gate_tightened is None for made in rounds] == [True, True, False]
    assert np.isfinite([rounds[-1].gate_tightened, rounds[-1].gate_standard_error]).all()
    first, last = (set(map(tuple, t[["record", "persona", "exemplar"]].values)) for t in tables)
    assert first < last
    # What the model was fitted to is the last round.
    stored = arviz.from_netcdf(finished_run / "posterior.nc").constant_data
    assert np.isfinite(stored["log_weight"]).sum() == 24 * 4


def test_slack_is_reported_of_every_estimate(finished_run):
    metrics = read_json(finished_run / "metrics.json")
    slack, check = metrics["candidate_slack"], metrics["candidate_check"]
    fitted = [entry.name for entry in fitted_predictors()]
    estimates = {"uniform_mixture", *fitted, *(f"{name}_minus_uniform" for name in fitted)}
    assert set(slack) == estimates
    for name in fitted:
        difference = slack[name]["mean"] - slack["uniform_mixture"]["mean"]
        assert slack[f"{name}_minus_uniform"]["mean"] == pytest.approx(difference, abs=1e-9)
    main = slack["mop_minus_uniform"]
    assert check["left"] == pytest.approx(abs(main["mean"]) + 2 * main["se"])
    assert check["foreseen"] >= 0
    error = metrics["held_out"]["mop_minus_uniform"]["se"]
    belied = abs(check["moved"]) > max(error, 4 * check["left"], 2 * check["foreseen"])
    assert check["passed"] == (check["left"] < error and not belied)


def test_the_baselines_by_whole_prompts(finished_run, workspace):
    model = workspace.language_model
    personas = [p["text"] for p in read_json(finished_run / "personas.json")]
    frame = pd.read_parquet(finished_run / "held_out.parquet").iloc[:3]
    everyone = pd.read_parquet(finished_run / "records.parquet").set_index("id")
    systems = [[], *([f"{text} {DEFAULT_INSTRUCTION}"] for text in personas)]
    prompts, responses = [], []
    for record in frame["record"]:
        asked = everyone.loc[record]
        prompts += [whole_prompt(model, system, [asked["context"]]) for system in systems]
        responses += [f"{asked['response']}<|im_end|>"] * len(systems)
    exact = model.log_likelihood(prompts, responses).reshape(len(frame), len(systems))
    np.testing.assert_allclose(frame["zero_shot"], exact[:, 0], atol=1e-3)
    mixed = logsumexp(exact[:, 1:], axis=1) - np.log(len(personas))
    np.testing.assert_allclose(frame["persona_only"], mixed, atol=1e-3)


def test_simulated_responses_say_how_they_came_about(finished_run, workspace):
    rows = read_lines(finished_run / "simulated.jsonl")
    assert [row["sample"] for row in rows] == list(range(20))
    test = workspace.sides["test"].records
    personas = [p["text"] for p in read_json(finished_run / "personas.json")]
    pool = pd.read_parquet(finished_run / "exemplars.parquet")
    posterior = load_posterior(finished_run / "posterior.safetensors")
    gate = gate_at(posterior, workspace.sides["test"].context_embeddings)
    omega = np.asarray(gate.exemplar_log_probs())
    for row in rows:
        i = row["sample"] % len(test)
        assert row["record"] == test.ids[i]
        assert row["context"] == test.contexts[i]
        assert row["label"] == test.labels[i]
        assert row["persona_text"] == personas[row["persona"]]
        assert row["exemplar_record"] == pool["id"][row["exemplar"]]
        assert row["seed"] == 3
        s, k, j = row["draw"], row["persona"], row["exemplar"]
        assert row["temperature"] == pytest.approx(float(gate.temperature[s, k]), rel=1e-5)
        log_prob = float(gate.persona_log_probs[s, i, k]) + omega[s, i, k, j]
        assert row["component_log_prob"] == pytest.approx(log_prob, abs=1e-4)
        assert row["response_log_prob"] < 0
    assert len({row["text"] for row in rows}) > 10
    # One of the random model's eight components is some ten nats more probable than the others: a
    # gate fitted to all pairs gives it 0.85.
    assert len({(row["persona"], row["exemplar"]) for row in rows}) > 1


def test_what_held_out_people_answered_leaves_no_trace_in_what_is_simulated(copy_of_run):
    """Not one byte changes where every one of them had given an exemplar's very own answer."""
    before = (copy_of_run / "simulated.jsonl").read_bytes()
    space = Workspace(RunFolder(copy_of_run, read_config(copy_of_run)))
    side, pool = space.sides["test"], space.components.exemplars
    answers = [pool.responses[i % len(pool)] for i in range(len(side.records))]
    assert answers != side.records.responses
    records = dataclasses.replace(side.records, responses=answers)
    space.sides["test"] = side._replace(records=records)
    simulate_held_out(space)
    assert (copy_of_run / "simulated.jsonl").read_bytes() == before


class Recorder:
    """A language model that keeps the ids which it samples."""

    def __init__(self, model: FlaxLM):
        self.model, self.ids = model, {}

    def __getattr__(self, name: str) -> Any:
        return getattr(self.model, name)

    def sample_pairs(self, *args: Any, on_generated: Any, **options: Any) -> Any:
        def record(indices, generation):
            self.ids.update(zip(indices.tolist(), generation.token_ids, strict=True))
            on_generated(indices, generation)

        return self.model.sample_pairs(*args, on_generated=record, **options)


def test_simulated_responses_again_by_hand(finished_run, workspace):
    """The same samples in another batch, and their log-probabilities by whole prompts."""
    components, side = workspace.components, workspace.sides["test"]
    recorder = Recorder(workspace.language_model)
    responses = simulate(
        load_posterior(finished_run / "posterior.safetensors"),
        recorder,
        workspace.prompts,
        personas=components.persona_texts,
        exemplars=components.exemplar_texts,
        contexts=side.records.contexts,
        context_embeddings=side.context_embeddings,
        num_samples=7,
        seed=3,
        max_new_tokens=8,
    )
    rows = read_lines(finished_run / "simulated.jsonl")[:7]
    prompts = []
    for response, row in zip(responses, rows, strict=True):
        assert response.text == row["text"]
        assert response.finished == row["finished"]
        k, j = row["persona"], row["exemplar"]
        assert (response.persona, response.exemplar, response.draw) == (k, j, row["draw"])
        prompt = workspace.prompts.component(
            components.persona_texts[k], components.exemplar_texts[j], row["context"]
        )
        prompts.append(prompt.token_ids)
    drawn = [recorder.ids[row["sample"]] for row in rows]
    for i, row in enumerate(rows):
        # All of them each time, one at its temperature is looked at: a single compiled shape.
        exact = recorder.log_likelihood(prompts, drawn, temperature=row["temperature"])
        assert row["response_log_prob"] == pytest.approx(exact[i], abs=1e-3)


def test_figures_are_pictures(finished_run):
    for name in FIGURES:
        data = (finished_run / "figures" / f"{name}.png").read_bytes()
        assert data[:8] == b"\x89PNG\r\n\x1a\n"
        assert data[-8:-4] == b"IEND"
        assert len(data) > 5_000
