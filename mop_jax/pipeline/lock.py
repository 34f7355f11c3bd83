"""Only one process at a time works in a run folder.

The lock is the operating system's (`flock`), which ends with the process that holds it, however it
ends. Some network and FUSE disks have none: there a lock file with the process's number takes its
place, which a killed process leaves behind. Where `fcntl` does not exist, as on Windows, the
library `filelock` uses that system's own locks.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from mop_jax import atomic
from mop_jax.errors import DataError

if sys.platform == "win32":
    fcntl = None
else:
    import fcntl

_LOG = logging.getLogger(__name__)
_BUSY = {errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES}
NAME = ".lock"
FALLBACK = ".lock.pid"


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder, which must exist.

    Raises:
        DataError: if another process holds it.
        FaultError: if the folder cannot be written to.
    """
    if fcntl is None:
        with _held(filelock.FileLock(folder / NAME), _busy(folder)):
            yield
        return
    with atomic.disk_errors(folder / NAME):
        handle = open(folder / NAME, "w")  # noqa: SIM115 (closed below)
    with handle:
        reason = _flock(folder, handle.fileno())
        if reason is None:
            yield
            return
    (folder / NAME).unlink(missing_ok=True)
    mark = folder / FALLBACK
    busy = (
        f"{_busy(folder)} This disk has no file locks ({reason}), so a killed process leaves its "
        f"mark: if none is at work, delete {mark}."
    )
    with _held(filelock.SoftFileLock(mark), busy):
        _LOG.warning(
            "The disk of %s has no file locks (%s); %s marks it as in use instead: if this process "
            "is killed, delete that file.",
            folder,
            reason,
            mark,
        )
        yield


@contextmanager
def _held(lock: filelock.BaseFileLock, busy: str) -> Iterator[None]:
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise DataError(busy) from error
    try:
        yield
    finally:
        lock.release()


def _busy(folder: Path) -> str:
    return f"Another process is working in {folder}; wait for it or stop it."


def _flock(folder: Path, descriptor: int) -> str | None:
    """Takes the lock; or says why there is none to take."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in _BUSY:
            return f"flock: {os.strerror(error.errno or errno.ENOSYS)}"
        raise DataError(_busy(folder)) from error
    return None
