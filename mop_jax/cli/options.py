"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigArgument = Annotated[
    str,
    typer.Argument(
        help="A YAML file, the name of a shipped configuration (demo, rotten_tomatoes, reuters_r8, "
        "ces, anes), or an existing run folder."
    ),
]
OutOption = Annotated[
    Path | None, typer.Option("--out", "-o", help="The run folder; runs/NAME by default.")
]
UpdateOption = Annotated[
    bool,
    typer.Option(
        "--update",
        help="Adopt a changed configuration in an existing run folder; scores are kept, and only "
        "what the change concerns is done again.",
    ),
]
MemoryOption = Annotated[
    float | None,
    typer.Option(
        "--memory",
        help="GiB that the keys and values of prompts' shared beginnings, and of responses being "
        "drawn, may take at a time; by default a share of what the machine or its accelerator has.",
        min=0.001,
    ),
]
ContextsOption = Annotated[
    Path | None,
    typer.Option(
        "--contexts",
        help="New contexts: a text file with one on each line, or a table with the context columns "
        "of the configuration. The held-out ones without it.",
    ),
]
NumSamplesOption = Annotated[
    int | None,
    typer.Option(
        "--num-samples",
        help="How many responses to the new contexts, which take turns; by default as many as the "
        "configuration says, but at least one to each.",
        min=1,
    ),
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        help="The JSON Lines file of the responses to new contexts, or of another language model; "
        "else in the folder.",
    ),
]
VersionOption = Annotated[
    bool, typer.Option("--version", help="Says which version this is, and ends.", is_eager=True)
]
FrameOption = Annotated[
    Path | None,
    typer.Option(
        "--frame",
        help="The population: a table with the survey's covariates and a count or share of each "
        "cell; the cells as the survey had them without it.",
    ),
]
MarginsOption = Annotated[
    Path | None,
    typer.Option(
        "--margins",
        help="Margins that the population has: a table with variable, level and share.",
    ),
]
ByOption = Annotated[
    list[str],
    typer.Option("--by", help="A covariate whose levels are reported; may be given repeatedly."),
]
LevelOption = Annotated[
    float, typer.Option("--level", help="Of the intervals.", min=0.01, max=0.999)
]
TableOption = Annotated[
    Path | None, typer.Option("--output", help="The CSV file; else in the folder.")
]
