"""The command `mop`: the whole job, or one step of it, on a run folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mop_jax.cli import surveys
from mop_jax.cli.feedback import StepNotes, one_sentence, prepare
from mop_jax.cli.options import (
    ConfigArgument,
    ContextsOption,
    MemoryOption,
    NumSamplesOption,
    OutOption,
    OutputOption,
    UpdateOption,
    VersionOption,
)

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Mixture of Personas: fit a mixture of language-model voices to a population, and "
    "simulate from its posterior.",
)


@app.callback(
    invoke_without_command=True,
    epilog="Example:  mop run config.yaml, or mop demo for one that is ready to run.",
)
def mop(context: typer.Context, version: VersionOption = False) -> None:
    """Says its version where that is all that is asked for."""
    if version:
        Console().print(f"mop {metadata.version('mop-jax')}", highlight=False)
    elif context.invoked_subcommand is None:
        Console().print(context.get_help())
    else:
        return
    raise typer.Exit


@app.command(epilog="Example:  mop demo --out runs/demo")
def demo(
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Runs the whole job on real reviews with a real language model, in a few minutes."""
    _whole("demo", out, update, memory)


@app.command(epilog="Example:  mop run config.yaml --out runs/first")
def run(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Does everything: personas, score, fit, evaluate, simulate, likeness, figures."""
    _whole(config, out, update, memory)


@app.command(epilog="Example:  mop personas config.yaml")
def personas(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Splits and embeds the records, synthesises personas, draws the exemplar pool."""
    _step("personas", config, out, update, memory)


@app.command(epilog="Example:  mop score config.yaml --memory 4")
def score(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Scores the training records' candidate components."""
    _step("score", config, out, update, memory)


@app.command(epilog="Example:  mop fit config.yaml --update")
def fit(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Fits the gate and the temperatures."""
    _step("fit", config, out, update, memory)


@app.command(epilog="Example:  mop evaluate config.yaml")
def evaluate(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Compares the predictors on held-out records, and simulated responses with real ones."""
    _evaluated(config, out, update, memory)


@app.command(epilog="Example:  mop simulate config.yaml --contexts new.csv --num-samples 200")
def simulate(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
    contexts: ContextsOption = None,
    num_samples: NumSamplesOption = None,
    output: OutputOption = None,
    language_model: Annotated[
        str | None,
        typer.Option(
            "--lm",
            help="Another language model, path or hub id, that speaks through the fitted mixture: "
            "personas, exemplars, gate and temperatures stay; prompts are built for it.",
        ),
    ] = None,
) -> None:
    """Simulates responses to the held-out contexts or new ones, by the run's model or another."""
    options: dict[str, Any] = {
        "contexts": contexts,
        "num_samples": num_samples,
        "output": output,
        "language_model": language_model,
    }
    _step("simulate", config, out, update, memory, **options)


@app.command(epilog="Example:  mop figures runs/first")
def figures(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Draws the figures of a run."""
    _step("figures", config, out, update, memory)


@app.command(
    epilog="Example:  mop benchmark table1 --data rotten_tomatoes --seeds 3 --n 1000 "
    "--methods zero_shot,few_shot_4,uniform_mixture,mop"
)
def benchmark(
    table: Annotated[
        str,
        typer.Argument(
            help="table1: alignment and diversity; table2: downstream F1; table3: transfer to "
            "another language model; table4: ablations."
        ),
    ],
    data: Annotated[
        list[str],
        typer.Option(
            "--data", help="A configuration, by name or file; may be given more than once."
        ),
    ] = ["rotten_tomatoes"],  # noqa: B006 (Typer's way)
    language_model: Annotated[
        str | None,
        typer.Option(
            "--lm",
            help="Another language model than the configurations'; for table3 the one that the "
            "fitted gate is carried over to.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", help="Repetitions, seeds 0, 1, …", min=1)] = 3,
    number: Annotated[
        int, typer.Option("--n", help="Simulated responses of each method and seed.", min=2)
    ] = 1000,
    methods: Annotated[
        str | None,
        typer.Option("--methods", help="Names of rows, with commas; all by default."),
    ] = None,
    out: Annotated[
        Path, typer.Option("--out", "-o", help="The folder that keeps responses and tables.")
    ] = Path("runs/benchmark"),
) -> None:
    """Sets simulated populations beside real ones, method by method, as the paper's tables do."""
    with one_sentence():
        prepare()
        from mop_jax.benchmark import make_table
        from mop_jax.pipeline.steps import STEPS

        titles = {step.name: step.title for step in STEPS}
        chosen = None if methods is None else [name.strip() for name in methods.split(",")]
        make_table(
            table,
            data,
            out,
            language_model=language_model,
            seeds=range(seeds),
            num_samples=number,
            methods=chosen,
            on_step=StepNotes(Console(stderr=True), titles),
        )
        Console().print((out / f"{table}.md").read_text("utf-8"), markup=False, highlight=False)
        Console().print(f"{out / table}.csv, .md and figures are written.", soft_wrap=True)


@app.command()
def init(
    data: Annotated[str, typer.Argument(help="The file with the records.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="The configuration; DATA.yaml by default.")
    ] = None,
    context: Annotated[
        list[str] | None,
        typer.Option("--context", help="A column of the context; may be given more than once."),
    ] = None,
    response: Annotated[
        str | None, typer.Option("--response", help="The column of the responses.")
    ] = None,
) -> None:
    """Looks at a file of records and writes a commented configuration for it.

    Columns that are not named are asked for on a terminal, and guessed elsewhere.
    Example: mop init survey.csv --response answer
    """
    with one_sentence():
        from mop_jax.init_config import write_config

        path = write_config(
            data, out, context=context or (), response=response, ask=_ask_for_columns()
        )
        Console().print(f"{path} is written; read it, then: mop run {path}", soft_wrap=True)


def _ask_for_columns() -> Callable[[str, str], str] | None:
    """How a column is asked for: on a terminal only."""
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    return lambda what, guess: str(typer.prompt(what, default=guess, err=True))


def _whole(config: str, out: Path | None, update: bool, memory: float | None) -> None:
    with one_sentence():
        from mop_jax import pipeline

        prepare()
        steps = StepNotes(Console(stderr=True), pipeline.step_titles(config))
        path = pipeline.run(config, out, update=update, memory=memory, on_step=steps)
        if pipeline.read_config(path).survey is not None:
            from mop_jax.pipeline.surveys.summary import survey_tables

            survey_tables(path, Console())
            return
        from mop_jax.pipeline.summary import results_table

        results_table(path, Console())


def _evaluated(config: str, out: Path | None, update: bool, memory: float | None) -> None:
    with one_sentence():
        from mop_jax import pipeline

        prepare()
        titles, console = pipeline.step_titles(config), Console()
        steps = StepNotes(Console(stderr=True), titles)
        if "likeness" not in titles:
            path = pipeline.evaluate(config, out, update=update, memory=memory, on_step=steps)
            from mop_jax.pipeline.surveys.summary import survey_tables

            survey_tables(path, console)
            return
        for step in (pipeline.evaluate, pipeline.likeness):
            path = step(config, out, update=update, memory=memory, on_step=steps)
        from mop_jax.pipeline.summary import held_out_table, likeness_tables

        for table in (held_out_table(path), *likeness_tables(path)):
            console.print(table)
        console.print(f"{titles['evaluate']}: done in {path}", soft_wrap=True)


def _step(
    name: str,
    config: str,
    out: Path | None,
    update: bool,
    memory: float | None,
    **options: Any,
) -> None:
    with one_sentence():
        from mop_jax import pipeline

        prepare()
        step: Callable[..., Path] = getattr(pipeline, name)
        titles = pipeline.step_titles(config)
        steps = StepNotes(Console(stderr=True), titles)
        path = step(config, out, update=update, memory=memory, on_step=steps, **options)
        Console().print(f"{titles[name]}: done in {path}", soft_wrap=True)


app.command(epilog="Example:  mop poststratify runs/ces --frame frame.csv --by age")(
    surveys.poststratify
)
app.command(
    epilog='Example:  mop ask runs/ces "Should taxes rise?" --options "Yes,No" --by education'
)(surveys.ask)


def main(arguments: list[str] | None = None) -> Any:
    """Runs `mop`; usage errors exit with status 2."""
    # transformers announces at import that it has found no PyTorch, which is as intended here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app(args=arguments, prog_name="mop")
