"""Commands of surveys' runs: whole populations, and new questions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mop_jax.cli.feedback import StepNotes, one_sentence, prepare
from mop_jax.cli.options import (
    ByOption,
    ConfigArgument,
    FrameOption,
    LevelOption,
    MarginsOption,
    MemoryOption,
    OutOption,
    TableOption,
    UpdateOption,
)


def poststratify(
    config: ConfigArgument,
    out: OutOption = None,
    frame: FrameOption = None,
    margins: MarginsOption = None,
    by: ByOption = [],  # noqa: B006 (Typer's way)
    level: LevelOption = 0.9,
    output: TableOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Shares of options in a whole population and its groups, with intervals (surveys)."""
    options: dict[str, Any] = {
        "frame": frame, "margins": margins, "by": by, "level": level, "output": output
    }  # fmt: skip
    _population("poststratify", config, (), out, update, memory, options)


def ask(
    config: ConfigArgument,
    question: Annotated[str, typer.Argument(help="A question that the survey did not ask.")],
    options: Annotated[
        str,
        typer.Option("--options", help="Its options, with commas; or, if they hold commas, with |"),
    ],
    ordered: Annotated[
        bool, typer.Option("--ordered", help="Whether the options are ordered.")
    ] = False,
    out: OutOption = None,
    frame: FrameOption = None,
    margins: MarginsOption = None,
    by: ByOption = [],  # noqa: B006 (Typer's way)
    level: LevelOption = 0.9,
    output: TableOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """The fitted population answers a closed question that it has never been asked (surveys)."""
    separator = "|" if "|" in options else ","
    texts = [text.strip() for text in options.split(separator)]
    further: dict[str, Any] = {
        "frame": frame, "margins": margins, "by": by, "level": level, "output": output,
        "ordered": ordered,
    }  # fmt: skip
    _population("ask", config, (question, texts), out, update, memory, further)


def _population(
    name: str,
    config: str,
    asked: tuple[Any, ...],
    out: Path | None,
    update: bool,
    memory: float | None,
    options: dict[str, Any],
) -> None:
    with one_sentence():
        from mop_jax import pipeline

        prepare()
        work: Callable[..., tuple[Path, Any]] = getattr(pipeline, name)
        steps = StepNotes(Console(stderr=True), pipeline.step_titles(config))
        path, shares = work(
            config, *asked, out, update=update, memory=memory, on_step=steps, **options
        )
        from mop_jax.pipeline.surveys.summary import shares_table

        Console().print(shares_table(shares, options["level"]))
        Console().print(f"{path} is written.", soft_wrap=True)
