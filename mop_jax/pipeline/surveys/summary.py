"""What a person reads of a survey's run: tables in the terminal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console
from rich.table import Table

_SHOWN = {
    "total_variation": "total variation",
    "nemd": "Wasserstein",
    "log_score": "log score",
    "log_score_individual": "log score of individuals",
}
_TITLES = {
    "mop": "mixture of personas",
    "mrp": "MRP",
    "logistic_regression": "logistic regression",
    "pooled_marginal": "pooled marginal",
    "zero_shot": "zero-shot",
    "demographic_persona": "demographic persona",
    "few_shot": "few-shot",
}


def survey_tables(path: Path, console: Console) -> None:
    """Prints how well held-out cells, and the held-out question, are predicted."""
    metrics = json.loads((path / "metrics.json").read_text("utf-8"))
    console.print(_method_table("Held-out cells", metrics["unseen_cells"], metrics["coverage_90"]))
    unseen = metrics.get("unseen_question")
    if unseen is not None:
        name = unseen.pop("question")
        console.print(_method_table(f"Held-out question {name}", unseen, {}))
    console.print(
        f"Options have {metrics['option_mass']:.0%} of the language model's probability; another "
        f"order of them moves an answer by {metrics['order_effect']['single'] or 0:.2f} (total "
        f"variation), {metrics['order_effect']['averaged'] or 0:.2f} once orders are averaged.",
        soft_wrap=True,
    )
    console.print(f"All is in {path}: metrics.json, shares.csv, figures.", soft_wrap=True)


def _method_table(title: str, methods: dict[str, Any], coverage: dict[str, Any]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("method")
    shown = [name for name in _SHOWN if name in next(iter(methods.values()))]
    for name in shown:
        table.add_column(_SHOWN[name], justify="right")
    if coverage:
        table.add_column("90 % covers", justify="right")
    for name, measures in methods.items():
        row = [_TITLES.get(name, name)]
        row += [_interval(measures[measure]) for measure in shown]
        if coverage:
            row.append(f"{coverage[name]:.0%}" if coverage.get(name) is not None else "")
        table.add_row(*row)
    return table


def _interval(value: dict[str, Any]) -> str:
    mean, low, high = (value[key] for key in ("mean", "low", "high"))
    if not all(isinstance(x, float) for x in (mean, low, high)):
        return str(mean)
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def shares_table(shares: pd.DataFrame, level: float) -> Table:
    """Shares by group with their intervals."""
    table = Table(title=f"Shares with {level:.0%} intervals", title_justify="left")
    groups = [
        str(name)
        for name in shares.columns
        if name not in ("option", "share", "low", "high", "population")
    ]
    for name in (*groups, "option"):
        table.add_column(name)
    for name in ("share", "interval"):
        table.add_column(name, justify="right")
    before: list[str] = []
    for row in shares.to_dict("records"):
        names = [str(row[name]) for name in groups]
        if names != before:
            table.add_section()
        shown = names if names != before else [""] * len(names)
        before = names
        interval = f"{row['low']:.1%} to {row['high']:.1%}"
        table.add_row(*shown, str(row["option"]), f"{row['share']:.1%}", interval)
    return table
