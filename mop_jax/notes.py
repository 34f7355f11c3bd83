"""What the package notes while it works (its `logging` records), for readers of a terminal."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console


@contextmanager
def on_stderr() -> Iterator[None]:
    """Shows what the package notes (its `logging` records), one line each."""
    logger, handler = logging.getLogger("mop_jax"), _Notes(logging.INFO)
    level, propagate = logger.level, logger.propagate
    logger.setLevel(logging.INFO)
    logger.addHandler(handler)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
        logger.propagate = propagate


class _Notes(logging.Handler):
    """Writes records as lines on standard error; warnings say that they are."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes one."""
        text = " ".join(record.getMessage().split())
        mark = "note: " if record.levelno >= logging.WARNING else "  "
        console = Console(stderr=True, soft_wrap=True)
        console.print(f"{mark}{text}", markup=False, highlight=False)
