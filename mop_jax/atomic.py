"""Writing files so that a reader sees the old content or the new, never half of it.

Every artefact goes through `replacing`: written beside its target, flushed to the disk, then moved
over it in one step. A kill -9 leaves at most a stray temporary file, which the next write removes.
"""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mop_jax.errors import FaultError


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary path beside `path`; moves it over `path` if the block succeeds.

    Raises:
        FaultError: if the disk is full; nothing of the unfinished file is left.
    """
    target = Path(path)
    # The suffix is kept: writers such as NetCDF's choose the format by it.
    temporary = target.with_name(f".{target.stem}.partial{target.suffix}")
    with disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield temporary
            with open(temporary, "rb+") as handle:
                os.fsync(handle.fileno())
            os.replace(temporary, target)
            _sync_directory(target.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise


@contextmanager
def disk_errors(target: str | os.PathLike[str]) -> Iterator[None]:
    """Turns a full or read-only disk into one sentence that names the file."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise FaultError(
                f"The disk is full: {os.fspath(target)} could not be written; "
                "free some space and run the same command again, finished work is kept."
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise FaultError(
                f"{os.fspath(target)} could not be written: {os.strerror(error.errno)}."
            ) from error
        raise


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Writes `data` to `path` atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """Writes `text` to `path` atomically, as UTF-8."""
    write_bytes(path, text.encode("utf-8"))


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Writes `value` to `path` atomically, as indented JSON; NaN and infinities are refused."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def _sync_directory(directory: Path) -> None:
    # Without this the rename itself may be lost in a power cut; not every file system allows it.
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)
