"""Ctrl-C ends the command in one sentence, with status 130, within two seconds, whatever it does.

Python looks at signals between two of its own instructions, and a compilation or a long product of
matrices is a single one: it may take half a minute. So a thread waits for the signal beside it,
gives the main thread a second to end by itself (which closes its files in good order), and ends the
process where it does not. What is on the disk is as sound as after a kill at any other moment.

The process ends without taking the interpreter down: XLA's threads may still be at work, and would
find their memory gone. This module imports nothing that takes time, so that it can be at its post
before the imports that do.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from types import FrameType

STATUS = 130
SENTENCE = "Interrupted; finished work is kept, the same command goes on from here."
# How long the main thread may take to end by itself.
SECONDS = 1.0

_ending = threading.Lock()
_watched = _orderly = False


def watch() -> None:
    """Lets Ctrl-C end this process from now on; for the main thread of a command."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        return  # started in the background: Ctrl-C is meant for others
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    # Python writes the signal's number as soon as it arrives, whatever the main thread does.
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    signal.signal(signal.SIGINT, _interrupted)
    global _watched
    _watched = True
    threading.Thread(target=_wait, args=(reading,), name="mop Ctrl-C", daemon=True).start()
    # Where an interruption is swallowed, as in a callback, the thread sees to the end.
    hook = sys.unraisablehook
    sys.unraisablehook = lambda raised: (
        None if issubclass(raised.exc_type, KeyboardInterrupt) else hook(raised)
    )


class orderly:
    """Inside, the main thread is interrupted by a `KeyboardInterrupt`; outside it ends at once."""

    def __enter__(self) -> None:
        """From here on there is something to be closed in good order."""
        global _orderly
        _orderly = True

    def __exit__(self, *details: object) -> None:
        """From here on there is not."""
        global _orderly
        _orderly = False


def end_if_watched() -> None:
    """Ends the process if it is a command's own, and not another program that calls one."""
    if _watched:
        end()


def end() -> None:
    """Says the sentence and ends the process; whoever comes second waits for the end."""
    _ending.acquire()
    # A progress bar hides the cursor, and leaves its line open.
    terminal = "\r\x1b[K\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
    # Not by way of `sys.stderr`, whose lock the main thread may hold.
    os.write(2, f"{terminal}mop: {SENTENCE}\n".encode())
    os._exit(STATUS)


def _interrupted(signum: int, frame: FrameType | None) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Compiled modules that are interrupted while they are imported may crash the process.
    if not _orderly or _imports(frame):
        end()
    raise KeyboardInterrupt


def _imports(frame: FrameType | None) -> bool:
    """Whether a module is being imported, in this frame or one that waits for it."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _wait(reading: int) -> None:
    while os.read(reading, 1) != bytes([signal.SIGINT]):
        pass
    time.sleep(SECONDS)
    end()
