"""Simulation-based calibration: of likelihoods exactly, of NUTS, and of guides.

    python -m benchmarks.calibration [--only exact nuts guides] [--data-sets 200] [--fits 60]

Sites are drawn from the prior, responses of 40 records from a language of six (`finite_language` in
tests/models, which says how). Where what was drawn lies in its posterior, a number in [0, 1], is
uniform over data sets if posteriors are right: sagging to one side if they are shifted, piling up
at both ends if too narrow. `exact` needs no sampler and judges the likelihoods of several models;
`nuts` and `guides` judge what approximates the posterior of the default one, in full: the guides by
`fit_svi` as it is, with its own rounds.

Prints, and writes benchmarks/results/calibration.json and docs/figures/calibration.png; about ten
minutes on two quiet cores, most of it compilation of guides.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.infer.hmc import hmc
from numpyro.infer.util import constrain_fn, initialize_model, unconstrain_fn
from scipy.stats import kstest

from benchmarks.evidence_figures import calibration_figure
from mop_jax import progress
from mop_jax.inference import fit_svi, posterior_draws
from mop_jax.models import mixture_of_personas
from mop_jax.plots import save_figure
from tests.models.finite_language import (
    FiniteLanguage,
    Model,
    drawn_at,
    exact_calibration,
    finite_language,
    prior_draw,
)

ROOT = Path(__file__).parents[1]
SMALL = {"gate_width": 2}
MODELS: dict[str, tuple[Model, dict[str, Any], dict[str, bool]]] = {
    "default": (mixture_of_personas, {}, {}),
    "bilinear gate": (mixture_of_personas, {"gate": "bilinear"}, {}),
    "learnt scales": (mixture_of_personas, {"gate": "hierarchical"}, {}),
    "similarity": (mixture_of_personas, {"similarity": True}, {}),
    "sparse personas": (mixture_of_personas, {"sparse_personas": True}, {}),
    "pooled temperatures": (mixture_of_personas, {"temperature": "pooled"}, {}),
    "contextual temperatures": (mixture_of_personas, {"temperature": "contextual"}, {}),
    "groups": (mixture_of_personas, {}, {"groups": True}),
    "no exemplar, no persona": (mixture_of_personas, {}, {"bare": True}),
}
"""Models whose likelihood is judged, their arguments, and what their population has besides."""

GUIDES = ("AutoWhitenedNormal", "AutoLowRankMultivariateNormal", "AutoNormal")
NUM_RECORDS = 40
WARMUP, DRAWS, THIN, DEPTH = 300, 127, 4, 6
GUIDE_DRAWS = 1023

BINS = 40

Positions = dict[str, np.ndarray]
"""Where drawn values lie in their posteriors, [M data sets] by quantity."""


def kind(quantity: str) -> str:
    """What a quantity is of."""
    if quantity.startswith("log π"):
        return "gate"
    return "temperature" if "τ" in quantity or "temperature" in quantity else "other"


def summary(positions: Positions) -> dict[str, Any]:
    """What tells shifted, narrow and wide posteriors apart; [M] is the number of data sets.

    `p_value` is that of the least uniform quantity by Kolmogorov and Smirnov's test, of positions
    and of their distances from the middle, times the number of tests. Coverage is that of central
    intervals, over the quantities of a kind; its standard error takes data sets as a whole.
    """
    tests = {
        name: min(kstest(v, "uniform").pvalue for v in (u, np.abs(2 * u - 1)))
        for name, u in positions.items()
    }
    worst = min(tests, key=lambda name: tests[name])
    found: dict[str, Any] = {
        "data_sets": len(positions[worst]),
        "quantities": len(positions),
        "p_value": min(1.0, float(tests[worst]) * 2 * len(tests)),
        "least_uniform": worst,
    }
    for group in ("gate", "temperature", "other"):
        u = np.array([values for name, values in positions.items() if kind(name) == group])
        if u.size:
            found[group] = {"mean": _mean(u), "relative_width": round(float(u.std()) * 12**0.5, 3)}
            for level in (0.5, 0.9):
                found[group][f"coverage_{level}"] = _mean(np.abs(2 * u - 1) < level)
    counts = {name: np.histogram(u, BINS, (0, 1))[0].tolist() for name, u in positions.items()}
    return found | {"histograms": counts}


def _mean(values: np.ndarray) -> list[float]:
    """Mean of [Q, M] and its standard error over M data sets."""
    by_data_set = values.mean(0)
    error = by_data_set.std(ddof=1) / np.sqrt(len(by_data_set))
    return [round(float(by_data_set.mean()), 4), round(float(error), 4)]


def position(draws: Any, truth: Any, key: jax.Array) -> jax.Array:
    """Where the truth [] lies among draws [S]: uniform if it is one of them, ties broken at random.

    All S + 1 are then exchangeable.
    """
    below, equal = (draws < truth).sum(), (draws == truth).sum()
    return (below + jax.random.uniform(key) * (1 + equal)) / (draws.shape[0] + 1)


def simulated(
    key: jax.Array, language: FiniteLanguage, model: Model, kwargs: dict[str, Any], number: int
) -> tuple[dict[str, jax.Array], jax.Array]:
    """Sites and responses [N] of `number` data sets."""

    @jax.jit
    @jax.vmap
    def one(key: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
        draw_key, response_key = jax.random.split(key)
        drawn = prior_draw(draw_key, language.data, model, kwargs)
        return drawn.sites, language.respond(response_key, drawn.mixture)

    return one(jax.random.split(key, number))


def quantities(
    sites: dict[str, jax.Array],
    response: jax.Array,
    language: FiniteLanguage,
    model: Model,
    kwargs: dict[str, Any],
) -> dict[str, jax.Array]:
    """`Drawn.quantities` of one draw, and the log-likelihood of the responses."""
    drawn = drawn_at(sites, language.data, model, kwargs)
    log_probs = language.log_probs(drawn.mixture)
    said = jnp.take_along_axis(log_probs, response[:, None], axis=1)
    return drawn.quantities(language.data) | {"log-likelihood": said.sum()}


def with_nuts(
    key: jax.Array,
    language: FiniteLanguage,
    model: Model,
    kwargs: dict[str, Any],
    truth: dict[str, jax.Array],
    responses: jax.Array,
) -> Positions:
    """NUTS on all data sets at once, a chain each, from another draw of the prior."""
    info = initialize_model(
        jax.random.key(0),
        model,
        dynamic_args=True,
        model_args=(language.data,),
        model_kwargs=kwargs,
    )
    start, sample = hmc(potential_fn_gen=info.potential_fn, algo="NUTS")

    def run(
        key: jax.Array, truth: Any, response: jax.Array
    ) -> tuple[dict[str, jax.Array], jax.Array]:
        args = (language.observed(response),)
        elsewhere_key, chain_key, tie_key = jax.random.split(key, 3)
        elsewhere = prior_draw(elsewhere_key, language.data, model, kwargs).sites
        state = start(
            unconstrain_fn(model, args, kwargs, elsewhere),
            WARMUP,
            max_tree_depth=DEPTH,  # chains wait for one another
            model_args=args,
            model_kwargs=kwargs,
            rng_key=chain_key,
        )

        def go(state: Any, steps: int) -> Any:
            return jax.lax.fori_loop(0, steps, lambda _, s: sample(s, args, kwargs), state)

        def draw(state: Any, _: None) -> tuple[Any, Any]:
            state = go(state, THIN)
            sites = constrain_fn(model, args, kwargs, state.z)
            found = quantities(sites, response, language, model, kwargs)
            return state, (found, state.diverging)

        _, (draws, diverging) = jax.lax.scan(draw, go(state, WARMUP), None, length=DRAWS)
        true = quantities(truth, response, language, model, kwargs)
        found = {name: position(draws[name], true[name], tie_key) for name in true}
        return found, diverging.sum()

    keys = jax.random.split(key, len(responses))
    found, diverging = jax.jit(jax.vmap(run))(keys, truth, responses)
    print(f"divergent draws: {int(diverging.sum())} of {len(responses) * DRAWS}", flush=True)
    return {name: np.asarray(value) for name, value in found.items()}


def with_guide(
    guide: str,
    language: FiniteLanguage,
    model: Model,
    kwargs: dict[str, Any],
    truth: dict[str, jax.Array],
    responses: jax.Array,
) -> tuple[Positions, dict[str, Any]]:
    """`fit_svi` on one data set after the other, as users call it."""

    @jax.jit
    def positions(key: jax.Array, samples: Any, truth: Any, response: jax.Array) -> Any:
        def of(sites: Any) -> dict[str, jax.Array]:
            return quantities(sites, response, language, model, kwargs)

        draws, true = jax.lax.map(of, samples, batch_size=64), of(truth)
        return {name: position(draws[name], true[name], key) for name in true}

    found, steps, converged = [], [], []
    with progress.task(f"Fitting {guide}", total=len(responses)) as advance:
        for number, response in enumerate(responses):
            fit_key, draw_key, tie_key = jax.random.split(jax.random.key(number), 3)
            data = jax.tree.map(np.asarray, language.observed(response))
            fit = fit_svi(
                fit_key, data, model=model, model_kwargs=kwargs, guide=guide, progress=False
            )
            samples = posterior_draws(fit, draw_key, GUIDE_DRAWS).samples
            own = {name: value[number] for name, value in truth.items()}
            found.append(positions(tie_key, {k: samples[k] for k in own}, own, response))
            steps.append(len(fit.losses))
            converged.append(fit.convergence.converged)
            advance(1)
    more = {"steps": float(np.mean(steps)), "converged": float(np.mean(converged))}
    return {name: np.array([each[name] for each in found]) for name in found[0]}, more


def exact(data_sets: int) -> Iterator[tuple[str, Positions, dict[str, Any]]]:
    """Every model's likelihood."""
    keys = jax.random.split(jax.random.key(2), len(MODELS))
    for key, (name, (model, kwargs, parts)) in zip(keys, MODELS.items(), strict=True):
        language = finite_language(num_records=NUM_RECORDS // 2, **parts)
        (found,) = exact_calibration(key, language, model, SMALL | kwargs, num_data_sets=data_sets)
        more = {
            "effective_size": float(np.median(found.effective_size)),
            "largest_log_total": float(np.abs(found.log_total).max()),
        }
        yield f"exact: {name}", found.positions, more


def approximate(
    parts: list[str], data_sets: int, fits: int
) -> Iterator[tuple[str, Positions, dict[str, Any]]]:
    """NUTS and guides, on the same data sets."""
    model, kwargs, _ = MODELS["default"]
    kwargs = SMALL | kwargs
    language = finite_language(num_records=NUM_RECORDS)
    truth, responses = simulated(jax.random.key(3), language, model, kwargs, data_sets)
    few = {name: value[:fits] for name, value in truth.items()}
    if "nuts" in parts:
        found = with_nuts(jax.random.key(4), language, model, kwargs, truth, responses)
        yield "NUTS", found, {"draws": DRAWS}
        # Guides see few data sets, which may be odd ones.
        same = {name: positions[:fits] for name, positions in found.items()}
        yield "NUTS, as guides", same, {"draws": DRAWS}
    if "guides" in parts:
        with tempfile.TemporaryDirectory() as folder:
            _compile_quickly(folder)
            for guide in GUIDES:
                yield guide, *with_guide(guide, language, model, kwargs, few, responses[:fits])


def _compile_quickly(folder: str) -> None:
    """From here on: fits are short, and a program each, of which most are alike."""
    jax.config.update("jax_disable_most_optimizations", True)
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)


def main() -> None:
    """Measures, prints, and writes JSON and figure."""
    parts = ["exact", "nuts", "guides"]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=parts, default=parts)
    parser.add_argument("--data-sets", type=int, default=200, help="NUTS; ten times as many exact")
    parser.add_argument("--fits", type=int, default=60, help="data sets that guides are fitted to")
    arguments = parser.parse_args()
    out = ROOT / "benchmarks" / "results" / "calibration.json"
    report = json.loads(out.read_text("utf-8")) if out.exists() else {}
    report["versions"] = {"jax": jax.__version__, "python": platform.python_version()}
    measured = [approximate(arguments.only, arguments.data_sets, arguments.fits)]
    if "exact" in arguments.only:
        measured.insert(0, exact(10 * arguments.data_sets))
    begun = time.perf_counter()
    with progress.on_by_default():
        for name, positions, more in chain.from_iterable(measured):
            row = summary(positions) | more
            row["seconds"] = round(time.perf_counter() - begun)
            report[name] = row
            out.write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", "utf-8")
            print(f"{name}: p = {row['p_value']:.3g} ({row['least_uniform']})", flush=True)
            for group in ("gate", "temperature", "other"):
                if group in row:
                    print("   ", group, row[group], flush=True)
            begun = time.perf_counter()
    figures = ROOT / "docs" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    save_figure(figures / "calibration.png", calibration_figure(report, list(GUIDES)))


if __name__ == "__main__":
    main()
