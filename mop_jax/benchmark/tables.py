"""Tables of methods, ablations or transfers by metrics, with noise floors and intervals.

Each seed is a whole repetition: split, personas, exemplars, fit and responses. What is finished is
kept, so that a benchmark that was stopped goes on, and one that is asked for more adds only that.
"""

from __future__ import annotations

import hashlib
import json
import logging
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from mop_jax import atomic, pipeline, progress
from mop_jax.benchmark.layouts import TABLES
from mop_jax.benchmark.responses import Options, Responses
from mop_jax.benchmark.writing import write
from mop_jax.config import RunConfig
from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import METRICS, Comparison, report
from mop_jax.evaluation.metrics.uncertainty import smaller_floors
from mop_jax.pipeline import Workspace
from mop_jax.pipeline.further import name_of_model
from mop_jax.pipeline.judging import compared, reported_as_json
from mop_jax.pipeline.pipeline import workspace_after

_LOG = logging.getLogger(__name__)

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
    methods: Sequence[str] | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> pd.DataFrame:
    """Runs what is missing, and writes `<table>.csv`, `<table>.md` and `<table>.png`.

    Args:
        table: one of `TABLES`.
        data: configurations, by name or file: each is a data set with a split, an encoder, a
            language model and the mixture's settings.
        out: the benchmark's folder.
        language_model: in place of that of the configurations; for `table3` the one to which the
            gate is carried over.
        seeds: of whole repetitions.
        num_samples: simulated responses of each method, seed and data set.
        methods: names of the table's rows (`METHODS`, `TRANSFERS`, `ABLATIONS`); all by default.
        on_step: see `mop_jax.pipeline.run`.

    Returns:
        A row for each data set, method, metric and seed; see `COLUMNS`.

    Raises:
        DataError: if there is no such table or method, nothing is asked for, or a transfer is to
            the language model that it comes from.
    """
    if table not in TABLES:
        raise DataError(f"There is no table {table!r}; there are {', '.join(TABLES)}.")
    layout = TABLES[table]
    titles = layout.titles()
    methods = list(titles) if methods is None else methods
    for method in methods:
        if method not in titles:
            raise DataError(
                f"There is no {layout.kind} {method!r} in {table}; there are {', '.join(titles)}."
            )
    own, options = language_model, Options(on_step=on_step)
    if layout.is_transfer:
        if language_model is None:
            raise DataError(
                f"{table} needs the language model to which the gate is carried over; name it with "
                "--lm."
            )
        own, options = None, Options(language_model, on_step)
    if not (data and seeds and methods):
        raise DataError(f"A benchmark needs at least one data set, one seed and one {layout.kind}.")
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
                config = _configured(source, own, seed, num_samples)
                _refuse(config, seed, seen, baselines=layout.has_baselines)
                if options.language_model == config.language_model.path:
                    raise DataError(
                        f"{config.name}: a transfer needs another language model than the "
                        f"configuration's own, {config.language_model.path}."
                    )
                folder = out / config.name / f"seed-{seed}"
                space = workspace_after(layout.steps, config, folder / "run", on_step=on_step)
                about = notes.setdefault(config.name, _models(config, options))
                place = folder / layout.place.format(
                    language_model=name_of_model(language_model or "")
                )
                for method in methods:
                    try:
                        responses = layout.respond(space, method, place, options)
                        found = _measured(space, responses, config.name, method, seed, place)
                    except DataError as error:
                        # A method that cannot do with these records is no reason to lose the rest.
                        _LOG.warning("%s is left out: %s", titles[method], error)
                        about.append(f"{titles[method]}, seed {seed}, is left out: {error}")
                    else:
                        rows += found[0]
                        about += found[1]
                    advance(1)
                    if rows:
                        write(out, table, pd.DataFrame(rows, columns=COLUMNS), notes)
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


def _models(config: RunConfig, options: Options) -> list[str]:
    """Which language models a transfer is between."""
    if options.language_model is None:
        return []
    first, other = map(name_of_model, (config.language_model.path, options.language_model))
    return [f"The first language model is {first}; responses are written by {other}."]


def _refuse(config: RunConfig, seed: int, seen: set[tuple[str, int]], *, baselines: bool) -> None:
    """Refuses what would share a folder, or show baselines what the mixture must not see."""
    if (config.name, seed) in seen:
        raise DataError(f"Two data sets are called {config.name!r}; give each a name of its own.")
    seen.add((config.name, seed))
    if baselines and config.exemplars.leave_out == "group" and config.split.by != "group":
        raise DataError(
            f"{config.name}: exemplars.leave_out is group, so the mixture is not shown a context's "
            "own group, while split.by is not, so baselines may be; split by group."
        )


def _measured(
    space: Workspace, responses: Responses, data: str, method: str, seed: int, folder: Path
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one method, from `measures/` where these very responses were measured before.

    Also the notes that belong under a table: floors that are not of the same sizes, and what else
    there is to know.
    """
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
        for name, values in [*found["metrics"].items(), *responses.held_out.items()]
    ]
    sizes = {n: v["floor_sizes"] for n, v in found["metrics"].items() if v["floor_sizes"]}
    floors = smaller_floors(sizes, found["num_real"], len(responses.texts))
    return rows, [*floors, *responses.notes]


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
