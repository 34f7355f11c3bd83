"""Progress with an honest ETA for everything that takes longer than a glance.

`task` draws a Rich bar on standard error. Outside a terminal (a log, a notebook) it writes a line
whenever the last one is half a minute old, whether or not anything has been done by then: a long
step is never silent. Tasks may stand inside one another; the innermost speaks.

An ETA is the work that is left at the pace of this process: what was found in a store does not
count as done here, and time in which programs were compiled does not count as work.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.text import Text

SECONDS_BETWEEN_LINES = 30.0

_COMPILATION = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)

_forced: ContextVar[bool | None] = ContextVar("progress_forced", default=None)

Advance = Callable[..., None]
"""`advance(amount)`, or `advance(amount, work)` for units that differ in work."""


@contextmanager
def enabled(value: bool) -> Iterator[None]:
    """Forces progress on or off inside the block."""
    token = _forced.set(value)
    try:
        yield
    finally:
        _forced.reset(token)


@contextmanager
def on_by_default() -> Iterator[None]:
    """Turns progress on inside the block where nobody has decided otherwise."""
    with enabled(True if _forced.get() is None else bool(_forced.get())):
        yield


@contextmanager
def task(
    description: str,
    total: int | None = None,
    *,
    found: int = 0,
    work: float | None = None,
) -> Iterator[Advance]:
    """Shows how far some work is; yields a function that advances it.

    Args:
        description: of the work.
        total: units of it; None where they cannot be counted.
        found: units that were there beforehand.
        work: of the units that were not, in any measure in which time is proportional to it; by
            default units are alike.
    """
    if _forced.get() is False or (total is not None and found >= total):
        yield _nothing
        return
    pace = Pace(total, found, work)
    display = _BARS if Console(stderr=True).is_terminal else _LINES
    handle = display.begin(description, pace)
    try:

        def advance(amount: int, work: float | None = None) -> None:
            pace.advance(amount, work)
            display.refresh(handle)

        yield advance
    finally:
        display.end(handle)


class Pace:
    """What is done, what is left, and how long that takes at the pace so far.

    Attributes:
        total: units, or None.
        done: units, those found beforehand included.
        begun: when, on the clock.
    """

    def __init__(self, total: int | None, found: int = 0, work: float | None = None):
        """Begins now; the arguments are those of `task`."""
        self.total, self.done = total, found
        self._found = found
        self._work = work if work is not None else float((total or 0) - found)
        self._work_done = 0.0
        self.begun = self._last = _clock()
        self._compiled_before = self._compiled_at_last = _compilation.seconds

    def advance(self, amount: int, work: float | None = None) -> None:
        """Takes note of units done, and of their work."""
        self.done += amount
        self._work_done += amount if work is None else work
        self._last, self._compiled_at_last = _clock(), _compilation.seconds

    @property
    def elapsed(self) -> float:
        """Seconds since the beginning."""
        return _clock() - self.begun

    @property
    def eta(self) -> float | None:
        """Seconds that are left, or None as long as nothing tells."""
        if self._work_done <= 0:
            return None
        spent = self._last - self.begun - (self._compiled_at_last - self._compiled_before)
        left = max(0.0, self._work - self._work_done) * max(0.0, spent) / self._work_done
        since = _clock() - self._last - (_compilation.seconds - self._compiled_at_last)
        return max(0.0, left - max(0.0, since))

    def __str__(self) -> str:
        """What a log is told."""
        parts = [] if self.total is None else [f"{self.done:,} of {self.total:,}"]
        parts.append(f"{timedelta(seconds=round(self.elapsed))} elapsed")
        if self.eta is not None:
            parts.append(f"eta {timedelta(seconds=round(self.eta))}")
        return ", ".join(parts)


class _Compilation:
    """Adds up the seconds in which JAX compiles; nothing where JAX is not loaded."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._listens = False

    def listen(self) -> None:
        """Listens to JAX's own bookkeeping from now on."""
        if self._listens or "jax" not in sys.modules:
            return
        self._listens = True
        sys.modules["jax"].monitoring.register_event_duration_secs_listener(self._add)

    def _add(self, event: str, seconds: float, **_: Any) -> None:
        if event in _COMPILATION:
            self.seconds += seconds


class _Lines:
    """Progress as lines of a log: one thread watches that none is overdue."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._tasks: list[tuple[str, Pace]] = []
        self._told = 0.0
        self._watched = False

    def begin(self, description: str, pace: Pace) -> tuple[str, Pace]:
        _compilation.listen()
        with self._lock:
            if not self._tasks:
                self._told = pace.begun
            self._tasks.append((description, pace))
            if not self._watched:
                self._watched = True
                threading.Thread(target=self._watch, name="mop progress", daemon=True).start()
        return self._tasks[-1]

    def refresh(self, handle: tuple[str, Pace] | None = None) -> None:
        with self._lock:
            now = _clock()
            if not self._tasks or now - self._told < SECONDS_BETWEEN_LINES:
                return
            self._told = now
            description, pace = handle or self._tasks[-1]
            print(f"  {description}: {pace}", file=sys.stderr, flush=True)

    def end(self, handle: tuple[str, Pace]) -> None:
        with self._lock:
            self._tasks.remove(handle)

    def _watch(self) -> None:
        while True:
            time.sleep(min(1.0, SECONDS_BETWEEN_LINES / 4))
            with self._lock:
                if not self._tasks:
                    self._watched = False
                    return
                self.refresh()


class _Bars:
    """Progress as bars of one live display, however tasks are nested."""

    def __init__(self) -> None:
        self._progress: Progress | None = None
        self._count = 0

    def begin(self, description: str, pace: Pace) -> Any:
        _compilation.listen()
        if self._progress is None:
            self._progress = Progress(
                TextColumn("[progress.description]{task.description:<28}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                _Eta(),
                console=Console(stderr=True, soft_wrap=True),
            )
            self._progress.start()
        self._count += 1
        return self._progress.add_task(
            description, total=pace.total, completed=pace.done, pace=pace
        ), pace

    def refresh(self, handle: Any) -> None:
        if self._progress is not None:
            self._progress.update(handle[0], completed=handle[1].done)

    def end(self, handle: Any) -> None:
        if self._progress is None:
            return
        if handle[1].total is None:
            self._progress.remove_task(handle[0])
        self._count -= 1
        if self._count == 0:
            self._progress.stop()
            self._progress = None


class _Eta(ProgressColumn):
    max_refresh = 0.5

    def render(self, task: Any) -> Text:
        eta = task.fields["pace"].eta
        return Text("" if eta is None else f"eta {timedelta(seconds=round(eta))}", "cyan")


def _clock() -> float:
    return time.monotonic()


def _nothing(amount: int, work: float | None = None) -> None:
    """Advances no bar."""


_compilation = _Compilation()
_LINES, _BARS = _Lines(), _Bars()
