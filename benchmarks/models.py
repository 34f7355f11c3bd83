"""What each model and each guide is worth on held-out records, on the very same scores.

    python benchmarks/models.py [--out benchmarks/results/models.json]
    python benchmarks/models.py --config study.yaml --folder runs/study [--out …/models.json]

Without a run: the real table (tests/data/rt_table.npz: 160 reviews × 4 personas × 12 exemplars, all
scored at τ = 1), five folds by film; each fold's posterior has never seen its records, which lie in
no array that it is fitted to. With one: a run that is evaluated, of which training and held-out
scores are read from its store; temperatures are learned. Nothing is scored.

Gains are nats per held-out record over the uniform mixture at τ = 1; standard errors are those of
films, where films are kept apart, else of records. Differences from the paper's estimator are
paired. The last rows are ceilings that nobody can reach without the test data: the best static
weights of the components, fitted to the held-out records themselves, and the best component of each
record with hindsight.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from gates import NUM_FOLDS, ROOT, real_table
from rich.console import Console
from rich.table import Table
from scipy.special import logsumexp
from similarity import scored_without_a_gate, with_similarity

from mop_jax import pipeline
from mop_jax.config import load_config
from mop_jax.distributions import PersonaMixture, RenormalisedPersonaMixture
from mop_jax.errors import FaultError
from mop_jax.evaluation.held_out import mean_and_error
from mop_jax.inference import (
    Posterior,
    fit_svi,
    posterior_draws,
    posterior_predictive_log_prob,
    uniform_log_prob,
)
from mop_jax.models import MixtureData
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.workspace import Workspace

_NUM_DRAWS = 400
PAPER = {
    "gate": "bilinear",
    "gate_width": 128,
    "distribution": RenormalisedPersonaMixture,
    "num_kept": 4,
}


class Method(NamedTuple):
    """A way to fit: arguments of the model, and of `fit_svi`."""

    title: str
    model: dict[str, Any]
    fit: dict[str, Any]


METHODS: dict[str, Method] = {
    "paper": Method(
        "the paper's estimator",
        PAPER,
        {"guide": "AutoDelta", "maximum_likelihood": True, "num_steps": 1000},
    ),
    "map": Method("linear gate, mode", {}, {"guide": "AutoDelta"}),
    "bilinear_map": Method("the paper's gate, mode", {"gate": "bilinear"}, {"guide": "AutoDelta"}),
    "mop": Method("linear gate (default)", {}, {}),
    "mean_field": Method("… mean-field guide", {}, {"guide": "AutoNormal"}),
    "low_rank": Method("… low-rank guide", {}, {"guide": "AutoLowRankMultivariateNormal"}),
    "laplace": Method("… Laplace", {}, {"guide": "AutoLaplaceApproximation"}),
    "flow": Method("… normalising flow", {}, {"guide": "AutoIAFNormal"}),
    "uniform_gate": Method("uniform gate, learned τ", {"uniform_gate": True}, {}),
    "similarity": Method("… with similarity", {"similarity": True}, {}),
    "hierarchical": Method("learnt scales", {"gate": "hierarchical"}, {}),
    "sparse": Method("sparse personas", {"sparse_personas": True}, {}),
    "pooled": Method("τ of exemplars, too", {"temperature": "pooled"}, {}),
    "contextual": Method("τ of the context, too", {"temperature": "contextual"}, {}),
    "all": Method(
        "learnt scales, similarity, contextual τ",
        {"gate": "hierarchical", "similarity": True, "temperature": "contextual"},
        {},
    ),
}


def fitted(data: MixtureData, method: Method, *, temperatures: bool) -> Posterior:
    """The posterior of a method; its mixture is the whole one, whatever it was fitted with."""
    kwargs = dict(method.model)
    options = dict(method.fit)
    if not temperatures:
        kwargs["temperature"] = False
    elif method.title == METHODS["paper"].title:
        level = float(np.log(0.6))
        options["initial_values"] = {"mean_log_temperature": level, "log_temperature": level}
    if kwargs.get("distribution") is RenormalisedPersonaMixture:
        weight = np.where(np.isfinite(data.log_weight), 0.0, -np.inf).astype(np.float32)
        data = data._replace(log_weight=weight)
    fit = fit_svi(jax.random.key(1), data, model_kwargs=kwargs, progress=False, **options)
    posterior = posterior_draws(fit, jax.random.key(2), _NUM_DRAWS)
    whole = {k: v for k, v in kwargs.items() if k not in ("distribution", "num_kept")}
    return posterior.replace(model_kwargs={**whole, "distribution": PersonaMixture})


def gains_on_the_table(method: Method) -> tuple[np.ndarray, MixtureData, list[str]]:
    """Held-out gain of each record, five folds by film."""
    plain, fold = real_table()
    similar, films = with_similarity(plain)
    table = similar if method.model.get("similarity") else plain
    gains = np.zeros(len(fold))
    for number in range(NUM_FOLDS):
        inside, outside = np.flatnonzero(fold != number), np.flatnonzero(fold == number)
        # Folds differ in size by a film; filled up with records of no weight to speak of, one
        # program serves all.
        size = max(np.count_nonzero(fold != f) for f in range(NUM_FOLDS))
        rows = np.concatenate([inside, inside[: size - len(inside)]])
        weights = np.where(np.arange(size) < len(inside), 1.0, 1e-6).astype(np.float32)
        posterior = fitted(table.take(rows)._replace(weights=weights), method, temperatures=False)
        held_out = table.take(outside)
        gains[outside] = posterior_predictive_log_prob(posterior, held_out) - uniform_log_prob(
            held_out
        )
    return gains, plain, films


def ceilings(data: MixtureData, unit: int) -> dict[str, np.ndarray]:
    """Log p of held-out records at τ = 1 with the test data in hand, less the uniform mixture's.

    The static weights are those of personas and exemplars, by EM on the held-out candidates.
    """
    table = np.asarray(data.log_likelihood, np.float64)[..., unit]
    log_weight = np.asarray(data.log_weight, np.float64)
    pair = np.asarray(data.persona_index) * data.num_exemplars + np.asarray(data.exemplar_index)
    allowed = log_weight > -np.inf
    size = data.num_personas * data.num_exemplars
    weights = np.full(size, 1 / size)
    for _ in range(300):
        log_joint = np.where(allowed, np.log(weights[pair] + 1e-300) + log_weight + table, -np.inf)
        responsibility = np.exp(log_joint - logsumexp(log_joint, axis=1, keepdims=True))
        weights = np.bincount(pair.ravel(), responsibility.ravel(), size) / len(table)
    uniform = uniform_log_prob(data)
    best = np.where(allowed, table, -np.inf).max(axis=1)
    return {
        "best_static_weights": logsumexp(log_joint, axis=1) - uniform,
        "best_component_of_each_record": best - uniform,
    }


def rows_of(
    gains: dict[str, np.ndarray], clusters: list[str] | None
) -> dict[str, dict[str, dict[str, float]]]:
    """Each method's gain, and its paired difference from the paper's estimator."""

    def rounded(values: np.ndarray) -> dict[str, float]:
        return {k: round(v, 4) for k, v in mean_and_error(values, None, clusters).items()}

    found = {name: {"over_uniform": rounded(values)} for name, values in gains.items()}
    for name, values in gains.items():
        if "paper" in gains and name != "paper":
            found[name]["over_paper"] = rounded(values - gains["paper"])
    return found


def on_the_table(names: list[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The report after every method."""
    gains: dict[str, np.ndarray] = {}
    for name in names:
        began = time.time()
        try:
            gains[name], plain, films = gains_on_the_table(METHODS[name])
        except FaultError as error:
            yield f"{METHODS[name].title}: {error}", rows_of(gains, None)
            continue
        found = rows_of(gains | ceilings(plain, 0), films)
        yield f"{METHODS[name].title}: {time.time() - began:.0f} s", found


def on_a_run(
    config_path: str, folder: Path, names: list[str], count: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The report after every method, on a run's one split; personas and scores are kept."""
    pipeline.personas(config_path, folder)
    config = load_config(config_path)
    space = Workspace(RunFolder(folder, config))
    train, held_out, side = scored_without_a_gate(space, len(space.sides["test"].records), count)
    clusters = side.records.groups if config.split.by == "group" else None
    uniform = uniform_log_prob(held_out)
    gains: dict[str, np.ndarray] = {}
    for name in names:
        began = time.time()
        try:
            posterior = fitted(train, METHODS[name], temperatures=True)
        except FaultError as error:
            yield f"{METHODS[name].title}: {error}", rows_of(gains, clusters)
            continue
        gains[name] = posterior_predictive_log_prob(posterior, held_out) - uniform
        found = rows_of(gains | ceilings(held_out, space.grid.unit_index), clusters)
        yield f"{METHODS[name].title}: {time.time() - began:.0f} s", found


def show(report: dict[str, Any], console: Console) -> None:
    """The report as a table."""
    table = Table("method", "over the uniform mixture", "over the paper's estimator")
    for name, row in report.items():
        title = METHODS[name].title if name in METHODS else name.replace("_", " ")
        cells = [
            f"{row[key]['mean']:+.3f} ± {row[key]['se']:.3f}" if key in row else ""
            for key in ("over_uniform", "over_paper")
        ]
        table.add_row(title, *cells)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", help="a configuration, in place of the real table")
    parser.add_argument("--folder", type=Path, help="its run folder")
    parser.add_argument("--candidates", type=int, default=24, help="of each held-out record")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks/results/models.json")
    options = parser.parse_args()
    console = Console()
    # Folds and methods share many programs.
    jax.config.update("jax_compilation_cache_dir", str(Path.home() / ".cache/mop-jax/xla"))
    if options.config is None:
        reports = on_the_table(options.methods)
    else:
        reports = on_a_run(options.config, options.folder, options.methods, options.candidates)
    report: dict[str, Any] = {}
    for number, (said, report) in enumerate(reports, start=1):
        console.print(f"{number} of {len(options.methods)}: {said}", highlight=False)
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    show(report, console)


if __name__ == "__main__":
    main()
