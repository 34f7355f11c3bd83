"""The command `mop`: the whole job, or one step of it, on a run folder."""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from mop_jax import interruption, progress
from mop_jax.errors import MopError
from mop_jax.pipeline.steps import BY_NAME

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Mixture of Personas: fit a mixture of language-model voices to a population, and "
    "simulate from its posterior.",
)

ConfigArgument = Annotated[
    str,
    typer.Argument(
        help="A YAML file, the name of a shipped configuration (demo, rotten_tomatoes), or an "
        "existing run folder."
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


@app.command()
def demo(out: OutOption = None, update: UpdateOption = False, memory: MemoryOption = None) -> None:
    """Runs the whole job on real reviews with a real language model, in a few minutes."""
    _whole("demo", out, update, memory)


@app.command()
def run(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Does everything: personas, score, fit, evaluate, simulate, figures."""
    _whole(config, out, update, memory)


@app.command()
def personas(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Splits and embeds the records, synthesises personas, draws the exemplar pool."""
    _step("personas", config, out, update, memory)


@app.command()
def score(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Scores the training records' candidate components."""
    _step("score", config, out, update, memory)


@app.command()
def fit(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Fits the gate and the temperatures."""
    _step("fit", config, out, update, memory)


@app.command()
def evaluate(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Scores the held-out records and compares the predictors."""
    _step("evaluate", config, out, update, memory, table=True)


@app.command()
def simulate(
    config: ConfigArgument,
    out: OutOption = None,
    update: UpdateOption = False,
    memory: MemoryOption = None,
) -> None:
    """Simulates responses to the held-out contexts."""
    _step("simulate", config, out, update, memory)


def _whole(config: str, out: Path | None, update: bool, memory: float | None) -> None:
    with _one_sentence():
        from mop_jax import pipeline
        from mop_jax.pipeline.summary import results_table

        _prepare()
        path = pipeline.run(
            config, out, update=update, memory=memory, on_step=_Steps(Console(stderr=True))
        )
        results_table(path, Console())


def _step(
    name: str,
    config: str,
    out: Path | None,
    update: bool,
    memory: float | None,
    *,
    table: bool = False,
) -> None:
    with _one_sentence():
        from mop_jax import pipeline
        from mop_jax.pipeline.summary import held_out_table

        _prepare()
        step: Callable[..., Path] = getattr(pipeline, name)
        path = step(config, out, update=update, memory=memory, on_step=_Steps(Console(stderr=True)))
        if table:
            Console().print(held_out_table(path))
        Console().print(f"{BY_NAME[name].title}: done in {path}", soft_wrap=True)


@contextmanager
def _one_sentence() -> Iterator[None]:
    """Ends every failure in one sentence and an exit status.

    1 for a fault (checkpoint, disk, computation), 2 for usage or data, 130 for Ctrl-C.
    """
    try:
        with interruption.orderly(), progress.on_by_default():
            yield
    except MopError as error:
        _fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        interruption.end_if_watched()
        _fail(interruption.SENTENCE, interruption.STATUS)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _fail("The disk is full; free some space and run the same command again.", 1)


class _Steps:
    """Says which step is under way and how long each took."""

    def __init__(self, console: Console):
        self._console = console
        self._begun: dict[str, float] = {}

    def __call__(self, step: str, begun: bool) -> None:
        if begun:
            self._begun[step] = time.monotonic()
            self._console.print(f"[bold]{BY_NAME[step].title}[/bold]")
            return
        seconds = time.monotonic() - self._begun[step]
        self._console.print(f"  done in {seconds:.1f} s" if seconds > 0.5 else "  already there")


def _prepare() -> None:
    """What only the command line sets: the compilation cache and quiet libraries."""
    import jax

    folder = os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache"))
    jax.config.update("jax_compilation_cache_dir", str(Path(folder) / "mop-jax" / "xla"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.3)
    warnings.filterwarnings("ignore", category=FutureWarning)


def main(arguments: list[str] | None = None) -> Any:
    """Runs `mop`; usage errors exit with status 2."""
    # transformers announces at import that it has found no PyTorch, which is as intended here.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    app(args=arguments, prog_name="mop")


def _fail(sentence: str, status: int) -> None:
    line = " ".join(f"mop: {sentence}".split())
    Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)
    sys.exit(status)
