"""Gates × guides against NUTS, on a real table and on a synthetic one with known temperatures.

    python benchmarks/gates.py [--only real synthetic curved] [--out benchmarks/results/gates.json]

The real table (tests/data/rt_table.npz: 160 reviews × 48 components, all scored at τ = 1) says two
things of every pair of a gate and a guide. First, what the guide keeps of the posterior: π and Ω at
the 160 contexts are identified whatever the parametrisation, so their means, standard deviations
and the variation of E π over records are compared with those of NUTS under the same gate. Second,
what it predicts: log p of held-out reviews over that of the uniform mixture, five folds by film
(records of a fold get next to no weight, so that every fold has the same shapes). The synthetic
table has a grid of temperatures and judges τ. About a quarter of an hour on two quiet cores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.scipy.special import logsumexp
from numpyro.diagnostics import gelman_rubin
from rich.console import Console
from rich.table import Table

from mop_jax.errors import FaultError
from mop_jax.inference import (
    Posterior,
    fit_nuts,
    fit_svi,
    gate_at,
    posterior_draws,
    posterior_predictive_log_prob,
    uniform_log_prob,
)
from mop_jax.models import MixtureData, full_table_data

ROOT = Path(__file__).parents[1]
PAIRS = [
    ("linear", "AutoWhitenedNormal"),
    ("linear", "AutoLaplaceApproximation"),
    ("linear", "AutoMultivariateNormal"),
    ("linear", "AutoLowRankMultivariateNormal"),
    ("linear", "AutoNormal"),
    ("bilinear", "AutoNormal"),
    ("bilinear", "AutoWhitenedNormal"),
    ("bilinear", "AutoLaplaceApproximation"),
]
NUM_FOLDS, NUM_CHAINS = 5, 2


def real_table() -> tuple[MixtureData, np.ndarray]:
    """The reviews as data, and the fold of each."""
    with np.load(ROOT / "tests" / "data" / "rt_table.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    films = np.unique(arrays["record_film"])
    order = np.random.default_rng(0).permutation(films)
    fold_of = {film: i % NUM_FOLDS for i, film in enumerate(order)}
    data = full_table_data(
        log_likelihood=arrays["log_likelihood"],
        **{name: arrays[name] for name in arrays if name.endswith("_embeddings")},
    )
    return data, np.array([fold_of[film] for film in arrays["record_film"]])


def synthetic_table(seed: int = 0) -> MixtureData:
    """120 responses of 30 tokens under 3 personas × 4 exemplars whose τ are 0.8, 1 and 1.3."""
    rng = np.random.default_rng(seed)
    num_records, num_personas, num_exemplars, true = 120, 3, 4, np.log([0.8, 1.0, 1.3])
    grid = np.array([0.6, 0.8, 1.0, 1.25, 1.6])
    speaker = rng.integers(num_personas, size=num_records)
    peak = true[None, :, None] + rng.normal(0, 0.15, (num_records, num_personas, num_exemplars))
    height = rng.normal(-60, 1.5, (num_records, num_personas, num_exemplars))
    height[np.arange(num_records), speaker] += 2
    table = height[..., None] - 15 * (np.log(grid) - peak[..., None]) ** 2
    embeddings = {
        "context_embeddings": rng.normal(size=(num_records, 6)) + np.eye(3, 6)[speaker] * 2,
        "persona_embeddings": rng.normal(size=(num_personas, 6)),
        "exemplar_embeddings": rng.normal(size=(num_exemplars, 6)),
    }
    return full_table_data(log_likelihood=table, temperature_grid=grid, **embeddings)


def curved_table(seed: int = 0) -> MixtureData:
    """160 records under 4 personas × 12 exemplars: log p = height − 100 (log τ − 0.1)²."""
    rng = np.random.default_rng(seed)
    num_records, num_personas, num_exemplars = 160, 4, 12
    grid = np.array([0.6, 0.8, 1.0, 1.25, 1.6])
    speaker = rng.integers(num_personas, size=num_records)
    height = rng.normal(-120, 1.5, (num_records, num_personas, num_exemplars))
    height[np.arange(num_records), speaker] += 2
    context = rng.normal(size=(num_records, 12)) + 2 * np.eye(num_personas, 12)[speaker]
    return full_table_data(
        log_likelihood=height[..., None] - 100 * (np.log(grid) - 0.1) ** 2,
        temperature_grid=grid,
        context_embeddings=context,
        persona_embeddings=rng.normal(size=(num_personas, 12)),
        exemplar_embeddings=rng.normal(size=(num_exemplars, 12)),
    )


SYNTHETIC = {"synthetic": synthetic_table, "curved": curved_table}


def identified(posterior: Posterior, data: MixtureData) -> dict[str, np.ndarray]:
    """Draws [S, …] of what is compared.

    π and Ω at every context (every fourth), log τ, and the weights of a linear gate, of which the
    data tell least.
    """
    gate = gate_at(posterior, data.context_embeddings)
    found = {
        "π": np.exp(np.asarray(gate.persona_log_probs)),
        "Ω": np.exp(np.asarray(gate.exemplar_log_probs())[:, ::4]),
    }
    if "log_temperature" in posterior.samples:
        found["log τ"] = posterior.samples["log_temperature"]
    weights = [v for name, v in posterior.samples.items() if name.startswith("gate.")]
    if "gate.exemplar_context_weight" in posterior.samples:
        found["weights"] = np.concatenate([np.reshape(v, (len(v), -1)) for v in weights], axis=1)
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def agreement(found: dict[str, np.ndarray], oracle: dict[str, np.ndarray]) -> dict[str, Any]:
    """How far posterior means are off, in posterior sd, and the ratios of sds, by quantity."""
    report: dict[str, Any] = {}
    for name, judge in oracle.items():
        distance = np.abs(found[name].mean(0) - judge.mean(0)) / judge.std(0)
        ratio = found[name].std(0) / judge.std(0)
        report[name] = {
            "mean_off_by_sd": _quantiles(distance, (0.5, 0.95, 1.0)),
            "sd_ratio": _quantiles(ratio, (0.05, 0.5, 0.95)),
        }
    report["sd_over_records_of_mean_π"] = found["π"].mean(0).std(0).round(4).tolist()
    return report


def _quantiles(values: np.ndarray, levels: tuple[float, ...]) -> dict[str, float]:
    return {f"q{level:g}": round(float(np.quantile(values, level)), 3) for level in levels}


def nuts(data: MixtureData, kwargs: dict[str, Any]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Draws of identified quantities, and what says whether the chains can be trusted."""
    begun = time.perf_counter()
    posterior, mcmc = fit_nuts(
        jax.random.key(0),
        data,
        model_kwargs=kwargs,
        num_warmup=500,
        num_samples=600,
        num_chains=NUM_CHAINS,
        progress=False,
    )
    draws = identified(posterior, data)
    by_chain = {k: v.reshape(NUM_CHAINS, -1, *v.shape[1:]) for k, v in draws.items()}
    report = {
        "seconds": round(time.perf_counter() - begun, 1),
        "divergences": int(mcmc.get_extra_fields()["diverging"].sum()),
        "largest_r_hat": {k: round(float(gelman_rubin(v).max()), 3) for k, v in by_chain.items()},
        "sd_over_records_of_mean_π": draws["π"].mean(0).std(0).round(4).tolist(),
    }
    return draws, report


def svi(data: MixtureData, guide: str, kwargs: dict[str, Any], num_draws: int) -> tuple[Any, Any]:
    """A fit by `guide` and its draws."""
    fit = fit_svi(jax.random.key(1), data, guide=guide, model_kwargs=kwargs, progress=False)
    return fit, posterior_draws(fit, jax.random.key(2), num_draws)


def held_out_gain(
    data: MixtureData, fold: np.ndarray, guide: str, kwargs: dict[str, Any]
) -> dict[str, float]:
    """Mean gain over the uniform mixture, nats per record, and its standard error."""
    gain = np.zeros(len(fold))
    for number in range(NUM_FOLDS):
        test = np.flatnonzero(fold == number)
        weights = np.where(fold == number, 1e-6, 1.0).astype(np.float32)
        _, posterior = svi(data._replace(weights=weights), guide, kwargs, 300)
        held_out = data.take(test)
        log_prob = posterior_predictive_log_prob(posterior, held_out)
        gain[test] = log_prob - uniform_log_prob(held_out)
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    return {"gain": round(float(gain.mean()), 4), "standard_error": round(float(error), 4)}


def ceiling(data: MixtureData) -> float:
    """The gain of the best context-free weights, chosen with the test data in hand."""
    table = np.asarray(data.log_likelihood[..., 0], np.float64)
    weights = np.full(table.shape[1], 1 / table.shape[1])
    for _ in range(2000):
        joint = table + np.log(weights)
        weights = np.exp(joint - logsumexp(joint, axis=1)[:, None]).mean(0)
        weights = np.asarray(np.maximum(weights, 1e-12))
    best = np.asarray(logsumexp(table + np.log(weights), axis=1))
    return round(float((best - uniform_log_prob(data)).mean()), 4)


def main() -> None:
    """Runs the parts asked for, prints the table, writes the JSON after every line."""
    parts = ["real", *SYNTHETIC]
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--out", default=str(ROOT / "benchmarks" / "results" / "gates.json"))
    arguments = parser.parse_args()
    out = Path(arguments.out)
    report = json.loads(out.read_text("utf-8")) if out.exists() else {}

    def write() -> None:
        out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")

    if "real" in arguments.only:
        for _ in compare_on_reviews(report):
            write()
    for name in SYNTHETIC:
        if name in arguments.only:
            compare_on_synthetic(report, name)
            write()
    show(report)


def compare_on_reviews(report: dict[str, Any]) -> Iterator[None]:
    """Adds every pair of gate and guide to `report`; stops after each."""
    data, fold = real_table()
    report.get("not_run_since", {}).pop("pairs", None)
    report |= {"ceiling_of_context_free_weights": ceiling(data), "pairs": []}
    oracles: dict[str, dict[str, np.ndarray]] = {}
    for gate, guide in PAIRS:
        kwargs = {"gate": gate, "temperature": False}
        if gate not in oracles:
            oracles[gate], report[f"nuts_{gate}"] = nuts(data, kwargs)
        row: dict[str, Any] = {"gate": gate, "guide": guide}
        begun = time.perf_counter()
        try:
            fit, posterior = svi(data, guide, kwargs, 1000)
            row["seconds"] = round(time.perf_counter() - begun, 1)
            row["steps"], row["converged"] = len(fit.losses), fit.convergence.converged
            row |= agreement(identified(posterior, data), oracles[gate])
            row["held_out"] = held_out_gain(data, fold, guide, kwargs)
        except FaultError as error:
            row["refused"] = str(error)
        report["pairs"].append(row)
        yield


def compare_on_synthetic(report: dict[str, Any], name: str) -> None:
    """Adds the default fit of a synthetic table, judged by NUTS, to `report`."""
    data = SYNTHETIC[name]()
    report.get("not_run_since", {}).pop(name, None)
    oracle, report[f"nuts_{name}"] = nuts(data, {})
    fit, posterior = svi(data, "AutoWhitenedNormal", {}, 1000)
    report[name] = {
        "steps": len(fit.losses),
        "converged": fit.convergence.converged,
        "loss_per_record": round(fit.convergence.final_loss, 3),
        **agreement(identified(posterior, data), oracle),
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table."""
    table = Table(title="Against NUTS; held-out gain in nats per record")
    columns = "gate guide steps off_π off_Ω sd_π sd_Ω spread_of_E_π held-out"
    for column in columns.split():
        table.add_column(column.replace("_", " "))
    for row in report.get("pairs", []):
        if "refused" in row:
            table.add_row(row["gate"], row["guide"], row["refused"].split(",")[0])
            continue
        judge = np.array(report[f"nuts_{row['gate']}"]["sd_over_records_of_mean_π"])
        spread = np.array(row["sd_over_records_of_mean_π"]) / judge
        table.add_row(
            row["gate"],
            row["guide"],
            f"{row['steps']}",
            *(f"{row[k]['mean_off_by_sd']['q0.95']:.2f}" for k in ("π", "Ω")),
            *(
                "–".join(f"{row[k]['sd_ratio'][q]:.2f}" for q in ("q0.05", "q0.95"))
                for k in ("π", "Ω")
            ),
            " ".join(f"{ratio:.2f}" for ratio in spread),
            "{gain:+.3f} ± {standard_error:.3f}".format(**row["held_out"]),
        )
    Console(width=140).print(table)
    for name in SYNTHETIC:
        for quantity in ("π", "Ω", "log τ", "weights") if name in report else ():
            found = report[name].get(quantity)
            if found:  # files written before weights were compared have none
                print(name, quantity, found)


if __name__ == "__main__":
    main()
