"""A benchmark's table as CSV, Markdown and figures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from mop_jax import atomic, plots
from mop_jax.benchmark.ablations import GAIN
from mop_jax.benchmark.layouts import TABLES, Layout
from mop_jax.evaluation.metrics import METRICS, Comparison, Metric
from mop_jax.plots.style import save_figure

Notes = Mapping[str, Sequence[str]]


def write(out: Path, table: str, frame: pd.DataFrame, notes: Notes) -> None:
    """Writes `<table>.csv`, `<table>.md` and a figure for each data set."""
    layout = TABLES[table]
    atomic.write_text(out / f"{table}.csv", frame.to_csv(index=False))
    atomic.write_text(out / f"{table}.md", markdown(table, frame, notes))
    for data, part in frame.groupby("data", sort=False):
        shown = [name for name in layout.metrics if (part["metric"] == name).any()]
        if shown:
            titles = layout.titles()
            names = list(dict.fromkeys(part["method"]))
            headline = titles[layout.headline] if layout.headline in names else None
            figure = plots.method_comparison(
                [titles[name] for name in names], *_points(part, names, shown), headline=headline
            )
            save_figure(out / f"{table}-{data}.png", figure)


def _metric(name: str) -> Metric:
    return GAIN if name == GAIN.name else METRICS[name]


def _points(
    part: pd.DataFrame, methods: Sequence[str], metrics: Sequence[str]
) -> tuple[list[str], dict[str, list[np.ndarray]]]:
    """Directions, and values by metric and method, as `method_comparison` takes them."""
    values = {
        _metric(name).title: [
            part[(part["metric"] == name) & (part["method"] == method)][
                ["value", "low", "high", "floor"]
            ].to_numpy(float)
            for method in methods
        ]
        for name in metrics
    }
    return [_metric(name).direction for name in metrics], values


def markdown(table: str, frame: pd.DataFrame, notes: Notes | None = None) -> str:
    """A benchmark's table in words and figures: means over seeds, their spread, and the floor."""
    text = []
    layout = TABLES[table]
    titles, definitions = layout.titles(), layout.definitions()
    for data, part in frame.groupby("data", sort=False):
        metrics = [name for name in layout.metrics if (part["metric"] == name).any()]
        compared = part[[_metric(name).takes is Comparison for name in part["metric"]]]
        seeds, n = sorted(set(part["seed"])), int(compared["n"].max())
        text += [
            f"## {data}",
            "",
            f"{n} simulated responses per {layout.kind} and seed; "
            f"seeds {', '.join(map(str, seeds))}. "
            "Mean over seeds ± standard deviation between them; one seed: the value and its 95 % "
            "interval. *Real responses instead* is the noise floor: responses of people, to other "
            f"contexts, in the place of the simulated ones. {layout.note}",
            "",
            "| | " + " | ".join(map(_heading, metrics)) + " |",
            "| --- |" + " ---: |" * len(metrics),
        ]
        for method in dict.fromkeys(part["method"]):
            of = part[part["method"] == method]
            cells = [_cell(of[of["metric"] == m]) for m in metrics]
            text.append(f"| {titles[method]} | " + " | ".join(cells) + " |")
        floors = [part.loc[part["metric"] == m, "floor"].mean() for m in metrics]
        cells = [f"{x:.3f}" if np.isfinite(x) else "" for x in floors]
        text += ["| *real responses instead* | " + " | ".join(cells) + " |", ""]
        text += _margins(part, metrics, layout)
        defined = [name for name in dict.fromkeys(part["method"]) if name in definitions]
        text += [f"- *{titles[name]}*: {definitions[name]}." for name in defined]
        said = dict.fromkeys((notes or {}).get(str(data), []))
        text += [*(f"- {note}" for note in said), ""]
    return "\n".join(text)


def _heading(metric: str) -> str:
    # A bar would begin another column.
    return f"{_metric(metric).title} {_arrow(metric)}".replace("|", r"\|")


def _arrow(metric: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(_metric(metric).direction, "(as real)")


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    if len(rows) > 1:
        return f"{rows['value'].mean():.3f} ± {rows['value'].std(ddof=1):.3f}"
    value, low, high = rows[["value", "low", "high"]].to_numpy(float)[0]
    interval = f" ({low:.3f} to {high:.3f})" if np.isfinite([low, high]).all() else ""
    return f"{value:.3f}{interval}"


def _margins(part: pd.DataFrame, metrics: Sequence[str], layout: Layout) -> list[str]:
    """The headline's margin over the best of the others, metric by metric, paired by seed."""
    lines, titles, first = [], layout.titles(), layout.headline
    for name in metrics:
        direction = _metric(name).direction
        if _metric(name).takes is not Comparison:
            continue  # a share of a log-probability says nothing
        wide = part[part["metric"] == name].pivot(index="seed", columns="method", values="value")
        # Seeds for which all methods have a value, and methods that have one at all.
        wide = wide.dropna(axis=1, how="all").dropna()
        if direction == "match" or first not in wide or wide.shape[1] < 2 or wide.empty:
            continue
        others = wide.drop(columns=first).mean()
        best = str(others.idxmin() if direction == "lower" else others.idxmax())
        change = wide[first] / wide[best] - 1
        spread = f" (by seed {', '.join(f'{c:+.0%}' for c in change)})" if len(change) > 1 else ""
        if not others[best]:
            continue  # nothing is so many per cent of zero
        margin = wide[first].mean() / others[best] - 1
        lines.append(
            f"- {_metric(name).title}: {titles[first]} {margin:+.0%} against the best "
            f"{layout.others}, {titles[best]}{spread}."
        )
    return lines
