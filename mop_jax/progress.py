"""Progress bars with an ETA for everything that takes longer than a glance.

`task` draws one Rich bar on standard error. Bars are off by default in library calls made outside
a terminal (notebook cells and logs stay readable) and can be forced on or off with `enabled`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

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
def task(description: str, total: int) -> Iterator[Callable[[int], None]]:
    """Shows a bar for `total` units of work; yields a function that advances it."""
    console = Console(stderr=True)
    forced = _forced.get()
    if not (console.is_terminal if forced is None else forced) or total == 0:
        yield _nothing
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


def _nothing(amount: int) -> None:
    """Advances no bar."""
