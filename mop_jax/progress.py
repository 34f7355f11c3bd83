"""Progress bars with an ETA for everything that takes longer than a glance.

`task` draws one Rich bar on standard error. Outside a terminal it is off by default (notebook cells
stay readable); forced on with `enabled`, as the command line does, it writes a line to the log
every half minute instead.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

SECONDS_BETWEEN_LINES = 30.0

_forced: ContextVar[bool | None] = ContextVar("progress_forced", default=None)


@contextmanager
def enabled(value: bool) -> Iterator[None]:
    """Forces progress bars on or off inside the block."""
    token = _forced.set(value)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def on_by_default() -> Iterator[None]:
    """Turns progress on inside the block, terminal or not, where nobody has decided otherwise."""
    with enabled(True if _forced.get() is None else bool(_forced.get())):
        yield


@contextmanager
def task(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar for `total` units of work; yields a function that advances it."""
    console = Console(stderr=True, soft_wrap=True)
    forced = _forced.get()
    if not (console.is_terminal if forced is None else forced) or total == 0:
        yield _nothing
        return
    if not console.is_terminal:
        yield _Lines(console, description, total)
        return
    columns = (
        TextColumn("[progress.description]{task.description:<28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("eta"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        handle = bar.add_task(description, total=total)

        def advance(amount: int) -> None:
            bar.advance(handle, amount)

        yield advance


class _Lines:
    """Progress as lines of a log."""

    def __init__(self, console: Console, description: str, total: int):
        self._console, self._description, self._total = console, description, total
        self._done = 0
        self._begun = self._told = time.monotonic()

    def __call__(self, amount: int) -> None:
        """Advances, and says so if the last line is long past."""
        self._done += amount
        now = time.monotonic()
        if self._done == 0 or now - self._told < SECONDS_BETWEEN_LINES:
            return
        self._told = now
        elapsed = now - self._begun
        left = elapsed * (self._total - self._done) / self._done
        self._console.print(
            f"  {self._description}: {self._done:,} of {self._total:,}, "
            f"{timedelta(seconds=round(elapsed))} elapsed, eta {timedelta(seconds=round(left))}",
            highlight=False,
        )


def _nothing(amount: int) -> None:
    """Advances no bar."""
