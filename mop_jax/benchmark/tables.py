"""Tables of methods by metrics, over data sets and seeds, with noise floors and intervals.

Each seed is a whole repetition: split, personas, exemplars, fit and responses. What is finished is
kept, so that a benchmark that was stopped goes on, and one that is asked for more adds only that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mop_jax import atomic, pipeline, plots, progress
from mop_jax.benchmark.responses import METHODS, Responses, respond, title_of
from mop_jax.config import RunConfig
from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import METRICS, Comparison, report
from mop_jax.evaluation.metrics.uncertainty import smaller_floors
from mop_jax.evaluation.predictors import MAIN
from mop_jax.pipeline import RunFolder, Workspace
from mop_jax.pipeline.judging import compared, reported_as_json
from mop_jax.plots.style import save_figure

_LOG = logging.getLogger(__name__)

TABLES = {
    "table1": ("fid", "mauve", "kl_cosine", "mean_words", "copied_4grams"),
    "table2": ("downstream_f1",),
}
"""The metrics that a table shows; all others are in its CSV file."""
COLUMNS = ["data", "method", "metric", "seed", "value", "low", "high", "floor", "n"]

# Counts up when the same responses would be measured otherwise.
_VERSION = 2

Source = str | Path | RunConfig
OnStep = Callable[[str, bool], None]


def make_table(
    table: str,
    data: Sequence[Source],
    out: str | Path,
    *,
    language_model: str | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    num_samples: int = 1000,
    methods: Sequence[str] = METHODS,
    on_step: OnStep = lambda step, begun: None,
) -> pd.DataFrame:
    """Runs what is missing, and writes `<table>.csv`, `<table>.md` and `<table>.png`.

    Args:
        table: one of `TABLES`.
        data: configurations, by name or file: each is a data set with a split, an encoder, a
            language model and the mixture's settings.
        out: the benchmark's folder.
        language_model: in place of that of the configurations.
        seeds: of whole repetitions.
        num_samples: simulated responses of each method, seed and data set.
        methods: names, of `METHODS`.
        on_step: see `mop_jax.pipeline.run`.

    Returns:
        A row for each data set, method, metric and seed; see `COLUMNS`.

    Raises:
        DataError: if there is no such table or method, or nothing is asked for.
    """
    if table not in TABLES:
        raise DataError(f"There is no table {table!r}; there are {', '.join(TABLES)}.")
    for method in methods:
        if method not in METHODS:
            raise DataError(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
    if not (data and seeds and methods):
        raise DataError("A benchmark needs at least one data set, one seed and one method.")
    if len(set(seeds)) < len(seeds):
        raise DataError(f"The seeds {list(seeds)} repeat themselves; each is wanted once.")
    if num_samples < 2:
        raise DataError(f"num_samples is {num_samples}; at least 2 are needed.")
    out, rows = Path(out), []
    seen: set[tuple[str, int]] = set()
    notes: dict[str, list[str]] = {}
    with progress.task("Benchmark", len(data) * len(seeds) * len(methods)) as advance:
        for source in data:
            for seed in seeds:
                config = _configured(source, language_model, seed, num_samples)
                _refuse(config, seed, seen)
                folder = out / config.name / f"seed-{seed}"
                pipeline.simulate(config, folder / "run", update=True, on_step=on_step)
                space = Workspace(RunFolder(folder / "run", config))
                for method in methods:
                    try:
                        found = _measured(space, config.name, method, seed, folder)
                    except DataError as error:
                        # A method that cannot do with these records is no reason to lose the rest.
                        _LOG.warning("%s is left out: %s", title_of(method), error)
                        notes.setdefault(config.name, []).append(
                            f"{title_of(method)}, seed {seed}, is left out: {error}"
                        )
                        continue
                    finally:
                        advance(1)
                    rows += found[0]
                    notes.setdefault(config.name, []).extend(found[1])
                    _write(out, table, pd.DataFrame(rows, columns=COLUMNS), notes)
    return pd.DataFrame(rows, columns=COLUMNS)


def _configured(
    source: Source, language_model: str | None, seed: int, num_samples: int
) -> RunConfig:
    config = source if isinstance(source, RunConfig) else pipeline.read_config(source)
    changes: dict[str, Any] = {
        "seed": seed,
        "simulation": config.simulation.model_copy(update={"num_samples": num_samples}),
    }
    if language_model is not None:
        changes["language_model"] = config.language_model.model_copy(
            update={"path": language_model}
        )
    return config.model_copy(update=changes)


def _refuse(config: RunConfig, seed: int, seen: set[tuple[str, int]]) -> None:
    """Refuses what would share a folder, or show baselines what the mixture must not see."""
    if (config.name, seed) in seen:
        raise DataError(f"Two data sets are called {config.name!r}; give each a name of its own.")
    seen.add((config.name, seed))
    if config.exemplars.leave_out == "group" and config.split.by != "group":
        raise DataError(
            f"{config.name}: exemplars.leave_out is group, so the mixture is not shown a context's "
            "own group, while split.by is not, so baselines may be; split by group."
        )


def _measured(
    space: Workspace, data: str, method: str, seed: int, folder: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one method, from `measures/` where these very responses were measured before.

    Also the notes that belong under a table: floors that are not of the same sizes.
    """
    responses = respond(space, method, folder / "responses")
    names = [metric.name for metric in METRICS.values() if metric.takes is Comparison]
    sides = [space.sides[side].records.fingerprint for side in ("train", "test")]
    parts = [_VERSION, responses.digest, names, *sides, space.encoder.fingerprint, seed]
    key = hashlib.sha256(json.dumps(parts).encode()).hexdigest()
    path = folder / "measures" / f"{method}.json"
    found = json.loads(path.read_text("utf-8")) if path.exists() else {}
    if found.get("key") != key:
        found = {"key": key, **_measure(space, responses)}
        atomic.write_json(path, found)
    same = {"data": data, "method": method, "seed": seed}
    rows = [
        {**same, "metric": name, **{column: values[column] for column in COLUMNS[4:]}}
        for name, values in found["metrics"].items()
    ]
    sizes = {n: v["floor_sizes"] for n, v in found["metrics"].items() if v["floor_sizes"]}
    return rows, smaller_floors(sizes, found["num_real"], len(responses.texts))


def _measure(space: Workspace, responses: Responses) -> dict[str, Any]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        comparison = compared(space, responses.rows, responses.texts, responses.shown)
        reported = report(comparison)
    return {
        "metrics": {name: reported_as_json(found) for name, found in reported.items()},
        "fit": responses.report,
        "num_real": len(comparison.real),
        "notes": list(dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning)),
    }


def _write(out: Path, table: str, frame: pd.DataFrame, notes: dict[str, list[str]]) -> None:
    atomic.write_text(out / f"{table}.csv", frame.to_csv(index=False))
    atomic.write_text(out / f"{table}.md", markdown(table, frame, notes))
    for data, part in frame.groupby("data", sort=False):
        shown = [name for name in TABLES[table] if (part["metric"] == name).any()]
        if shown:
            save_figure(out / f"{table}-{data}.png", plots.method_comparison(*_points(part, shown)))


def _points(part: pd.DataFrame, metrics: Sequence[str]) -> tuple[list, list, dict]:
    methods = list(dict.fromkeys(part["method"]))
    values = {
        METRICS[name].title: [
            part[(part["metric"] == name) & (part["method"] == method)][
                ["value", "low", "high", "floor"]
            ].to_numpy(float)
            for method in methods
        ]
        for name in metrics
    }
    directions = [METRICS[name].direction for name in metrics]
    return [title_of(method) for method in methods], directions, values


def markdown(
    table: str, frame: pd.DataFrame, notes: Mapping[str, Sequence[str]] | None = None
) -> str:
    """A benchmark's table in words and figures: means over seeds, their spread, and the floor."""
    text = []
    for data, part in frame.groupby("data", sort=False):
        metrics = [name for name in TABLES[table] if (part["metric"] == name).any()]
        seeds, n = sorted(set(part["seed"])), int(part["n"].max())
        text += [
            f"## {data}",
            "",
            f"{n} simulated responses per method and seed; seeds {', '.join(map(str, seeds))}. "
            "Mean over seeds ± standard deviation between them; one seed: the value and its 95 % "
            "interval. *Real responses instead* is the noise floor: responses of people, to other "
            "contexts, in the place of the simulated ones. The mixture samples at its fitted "
            "temperatures, baselines at 1.",
            "",
            "| | " + " | ".join(f"{METRICS[m].title} {_arrow(m)}" for m in metrics) + " |",
            "| --- |" + " ---: |" * len(metrics),
        ]
        for method in dict.fromkeys(part["method"]):
            of = part[part["method"] == method]
            cells = [_cell(of[of["metric"] == m]) for m in metrics]
            text.append(f"| {title_of(method)} | " + " | ".join(cells) + " |")
        floors = [part.loc[part["metric"] == m, "floor"].mean() for m in metrics]
        cells = [f"{x:.3f}" if np.isfinite(x) else "" for x in floors]
        text += ["| *real responses instead* | " + " | ".join(cells) + " |", ""]
        text += [*_margins(part, metrics)]
        said = dict.fromkeys((notes or {}).get(str(data), []))
        text += [*(f"- {note}" for note in said), ""]
    return "\n".join(text)


def _arrow(metric: str) -> str:
    return {"higher": "↑", "lower": "↓"}.get(METRICS[metric].direction, "(as real)")


def _cell(rows: pd.DataFrame) -> str:
    if rows.empty:
        return ""
    if len(rows) > 1:
        return f"{rows['value'].mean():.3f} ± {rows['value'].std(ddof=1):.3f}"
    value, low, high = rows[["value", "low", "high"]].to_numpy(float)[0]
    interval = f" ({low:.3f} to {high:.3f})" if np.isfinite([low, high]).all() else ""
    return f"{value:.3f}{interval}"


def _margins(part: pd.DataFrame, metrics: Sequence[str]) -> list[str]:
    """The mixture's margin over the best baseline, metric by metric, paired by seed."""
    lines = []
    for name in metrics:
        direction = METRICS[name].direction
        wide = part[part["metric"] == name].pivot(index="seed", columns="method", values="value")
        # Seeds for which all methods have a value, and methods that have one at all.
        wide = wide.dropna(axis=1, how="all").dropna()
        if direction == "match" or MAIN not in wide or wide.shape[1] < 2 or wide.empty:
            continue
        others = wide.drop(columns=MAIN).mean()
        best = str(others.idxmin() if direction == "lower" else others.idxmax())
        change = wide[MAIN] / wide[best] - 1
        spread = f" (by seed {', '.join(f'{c:+.0%}' for c in change)})" if len(change) > 1 else ""
        if not others[best]:
            continue  # nothing is so many per cent of zero
        margin = wide[MAIN].mean() / others[best] - 1
        lines.append(
            f"- {METRICS[name].title}: mixture of personas {margin:+.0%} against the best "
            f"baseline, {title_of(best)}{spread}."
        )
    return lines
