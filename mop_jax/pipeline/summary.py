"""What a finished run found, in a table and a few sentences."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mop_jax.errors import FaultError
from mop_jax.evaluation.metrics import METRICS
from mop_jax.evaluation.predictors import PREDICTORS

FAMILIES = {
    "alignment": "Alignment",
    "diversity": "Diversity",
    "memorisation": "Memorisation",
    "downstream": "Downstream",
}
"""Tables of likeness, in their order."""


SIZES = {"embedding_mean": "the embeddings' mean", "fid": "their Gaussian fit"}
"""What effective sample sizes are given for."""


SIMILAR = {
    "context_similarity": "whose context is a standard deviation nearer",
    "same_label": "of the same label",
    "same_group": "of the same group",
}
"""The coefficients of similarity, as sites `gate.*`, in words."""


def check_sentence(check: dict[str, Any]) -> str:
    """The candidate check in a sentence or two; see `mop_jax.evaluation.held_out`."""
    counts = (check["candidates"], check["compared_candidates"])
    action = "Doubling" if counts[1] > counts[0] else "Halving"
    size = abs(check["moved"])
    # Runs made before the slack was reported, and renormalised candidates, have the move alone.
    left = check.get("left", size)
    se = check["mop_minus_uniform"]["se"]
    error = f"{'less' if left < se else 'NOT less'} than its standard error {se:.3f}"
    moved = (
        f"{action} the candidates ({counts[0]} → {counts[1]}) moves mop − uniform by "
        f"{check['moved']:+.3f}"
    )
    if left == size:
        return f"{moved}, {error}."
    if left == 0:
        return f"{moved}; all components are scored, so nothing is hidden."
    estimated = f"{moved}; what they still hide is estimated at up to {left:.3f}, {error}"
    if left < se and not check["passed"]:
        belied = "The move is far more than such estimates foresee, so this one may be too low"
        return f"{estimated}. {belied}: NOT enough."
    if size > se:
        return f"{estimated}. The half was proposed before anything was scored, so it hides more."
    return f"{estimated}."


def temperature_warning(metrics: dict[str, Any]) -> str:
    """A sentence where the posterior presses against the ends of the temperature grid, else ""."""
    share = metrics["temperature"]["share_at_ends_of_grid"]
    if share <= 0.01:
        return ""
    return (
        f"{share:.0%} of the posterior's temperatures lie at an end of the grid on which responses "
        "were scored: widen `temperatures` in the configuration."
    )


def similarity_sentence(metrics: dict[str, Any]) -> str:
    """How much likelier similar exemplars are, with 94 % intervals; "" where no gate looked."""
    found = metrics.get("similarity", {})
    parts = []
    for term, what in SIMILAR.items():
        if term in found:
            times, low, high = map(math.exp, [found[term]["mean"], *found[term]["interval_94"]])
            parts.append(f"{what} is {times:.2f} times likelier ({low:.2f} to {high:.2f})")
    return f"An exemplar {', one '.join(parts)}." if parts else ""


def convergence_warning(metrics: dict[str, Any]) -> str:
    """What to know of fits that were still changing, or too short to judge; else "".

    A fit that is only too noisy to be sure of says so in fit.json and above its ELBO trace.
    """
    open_ended = [
        name
        for name, fit in metrics["fit"].items()
        if not fit["converged"] and (fit["improvement"] is None or _surely_changed(fit))
    ]
    if not open_ended:
        return ""
    reason = metrics["fit"][open_ended[0]]["reason"]
    names = ", ".join(PREDICTORS[name].title for name in open_ended)
    return f"Not converged: {names}. {reason} Set inference.num_steps."


def _surely_changed(fit: dict[str, Any]) -> bool:
    """Whether one of the changes that were judged is not mere noise, and not small enough."""
    return any(
        abs(fit[gain]) > 2 * fit[error] and abs(fit[gain]) + 2 * fit[error] >= fit["tolerance"]
        for gain, error in (
            ("improvement", "standard_error"),
            ("round_improvement", "round_standard_error"),
        )
        # Fits of one round, and those of earlier versions, know of no further round.
        if fit.get(gain) is not None
    )


def read_metrics(path: Path) -> dict[str, Any]:
    """A run's metrics.json."""
    try:
        return json.loads((path / "metrics.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise FaultError(f"{path / 'metrics.json'} could not be read: {error}") from error


def read_likeness(path: Path) -> dict[str, Any]:
    """A run's likeness.json."""
    try:
        return json.loads((path / "likeness.json").read_text("utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise FaultError(f"{path / 'likeness.json'} could not be read: {error}") from error


def results_table(path: Path, console: Console) -> None:
    """Prints the held-out results of a finished run, and where its artefacts are."""
    console.print(held_out_table(path))
    if (path / "likeness.json").exists():  # older runs have none
        for table in likeness_tables(path):
            console.print(table)
    for name in (
        "metrics.json",
        "likeness.json",
        "simulated.jsonl",
        "posterior.nc",
        "posterior.safetensors",
        "figures",
    ):
        console.print(f"  {path / name}", highlight=False, soft_wrap=True)


def likeness_tables(path: Path) -> list[Table]:
    """How like the simulated responses are to the real ones: a table for each family of metrics."""
    found = read_likeness(path)
    beside = f"{found['num_simulated']} simulated, {found['num_real']} real responses"
    tables = []
    for family, title in FAMILIES.items():
        rows = {n: v for n, v in found["metrics"].items() if _family(n) == family}
        if not rows:
            continue
        table = Table(title=f"{title} ({beside})")
        for name, justify in (("metric", "left"), ("simulated", "right"), ("interval", "right"),
                              ("real instead", "right"), ("better", "left")):  # fmt: skip
            table.add_column(name, justify=justify)  # type: ignore[arg-type]
        for name, value in rows.items():
            low, high, floor = (_number(value[key]) for key in ("low", "high", "floor"))
            interval = f"{low} to {high}" if low and high else ""
            better = {"match": "like real"}.get(METRICS[name].direction, METRICS[name].direction)
            table.add_row(METRICS[name].title, _number(value["value"]), interval, floor, better)
        tables.append(table)
    if tables:
        tables[-1].caption = " ".join([_sizes_sentence(found), *found["notes"]]).strip()
    return tables


def _family(name: str) -> str | None:
    # Registered by code that is not there any more.
    return METRICS[name].family if name in METRICS else None


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _sizes_sentence(found: dict[str, Any]) -> str:
    sizes = found["effective_size"]
    parts = []
    for criterion, what in SIZES.items():
        if criterion in sizes:
            size, tried = sizes[criterion]["size"], sizes[criterion]["sizes"]
            number = f"more than {tried[-1]}" if size == "inf" else f"{size:.0f}"
            parts.append(f"{what} as well as {number} real ones would")
    return f"The simulated responses estimate {' and '.join(parts)}." if parts else ""


def held_out_table(path: Path) -> Table:
    """The held-out results of a run that has been evaluated."""
    metrics = read_metrics(path)
    held_out = metrics["held_out"]
    table = Table(
        title=f"Held-out log p(response | context), {metrics['num_held_out']} records",
        caption=" ".join(
            filter(
                None,
                [
                    check_sentence(metrics["candidate_check"]),
                    similarity_sentence(metrics),
                    temperature_warning(metrics),
                    convergence_warning(metrics),
                ],
            )
        ),
    )
    table.add_column("predictor")
    table.add_column("nats per record", justify="right")
    table.add_column("minus uniform mixture", justify="right")
    slack = metrics.get("candidate_slack", {})
    if slack:
        table.add_column("hidden by candidates", justify="right")
    for name, predictor in PREDICTORS.items():
        if name not in held_out:  # registered since the run was evaluated
            continue
        level = held_out[name]
        difference = held_out.get(f"{name}_minus_uniform")
        row = [
            predictor.title,
            f"{level['mean']:.2f} ± {level['se']:.2f}",
            "" if difference is None else f"{difference['mean']:+.2f} ± {difference['se']:.2f}",
        ]
        if slack:
            hidden = slack.get(f"{name}_minus_uniform")
            row.append("" if hidden is None else f"{hidden['mean']:+.2f} ± {hidden['se']:.2f}")
        table.add_row(*row)
    return table
