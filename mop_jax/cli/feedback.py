"""How commands speak: one sentence for every failure, a line for every step."""

from __future__ import annotations

import errno
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from mop_jax import interruption, notes, progress
from mop_jax.errors import MopError


@contextmanager
def one_sentence() -> Iterator[None]:
    """Ends every failure in one sentence and an exit status.

    1 for a fault (checkpoint, disk, computation), 2 for usage or data, 130 for Ctrl-C.
    """
    try:
        with interruption.orderly(), progress.on_by_default(), notes.on_stderr():
            yield
    except MopError as error:
        fail(str(error), error.exit_status)
    except KeyboardInterrupt:
        interruption.end_if_watched()
        fail(interruption.SENTENCE, interruption.STATUS)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        fail("The disk is full; free some space and run the same command again.", 1)


class StepNotes:
    """Says which step is under way and how long each took."""

    def __init__(self, console: Console, titles: dict[str, str]):
        self._console = console
        self._titles = titles
        self._begun: dict[str, float] = {}

    def __call__(self, step: str, begun: bool) -> None:
        if begun:
            self._begun[step] = time.monotonic()
            self._console.print(f"[bold]{self._titles[step]}[/bold]")
            return
        seconds = time.monotonic() - self._begun[step]
        self._console.print(f"  done in {seconds:.1f} s" if seconds > 0.5 else "  already there")


def prepare() -> None:
    """What only the command line sets: the compilation cache and quiet libraries."""
    folder = Path(os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
    settings = {
        "jax_compilation_cache_dir": str(folder / "mop-jax" / "xla"),
        "jax_persistent_cache_min_compile_time_secs": 0.3,
    }
    jax = sys.modules.get("jax")
    for name, value in settings.items():
        # JAX reads them when it is imported, which takes long: only where there is work to do.
        os.environ[name.upper()] = str(value)
        if jax is not None:
            jax.config.update(name, value)
    warnings.filterwarnings("ignore", category=FutureWarning)


def fail(sentence: str, status: int) -> None:
    line = " ".join(f"mop: {sentence}".split())
    Console(stderr=True, soft_wrap=True).print(line, markup=False, highlight=False)
    sys.exit(status)
