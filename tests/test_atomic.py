"""Files are replaced whole or not at all; a full disk is one clear sentence."""

from __future__ import annotations

import errno
import os
import signal
import subprocess

import pytest

from mop_jax import atomic
from mop_jax.errors import FaultError


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_bytes_text_and_json(tmp_path):
    atomic.write_bytes(tmp_path / "a.bin", b"\x00\xff")
    assert (tmp_path / "a.bin").read_bytes() == b"\x00\xff"
    atomic.write_text(str(tmp_path / "b.txt"), "naïve\n")
    assert (tmp_path / "b.txt").read_bytes() == "naïve\n".encode()
    atomic.write_json(tmp_path / "new" / "folder" / "c.json", {"ü": [1, None]})
    assert (tmp_path / "new" / "folder" / "c.json").read_text("utf-8") == (
        '{\n  "ü": [\n    1,\n    null\n  ]\n}\n'
    )
    assert names(tmp_path) == ["a.bin", "b.txt", "new"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), {1, 2}])
def test_json_that_would_not_be_json_leaves_the_old_file(tmp_path, value):
    target = tmp_path / "m.json"
    atomic.write_json(target, {"old": 1})
    with pytest.raises((ValueError, TypeError)):
        atomic.write_json(target, {"new": value})
    assert target.read_text() == '{\n  "old": 1\n}\n'
    assert names(tmp_path) == ["m.json"]


def test_the_target_changes_only_at_the_end(tmp_path):
    target = tmp_path / "f.nc"
    target.write_bytes(b"old")
    with atomic.replacing(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".nc"
        temporary.write_bytes(b"half of the new")
        assert target.read_bytes() == b"old"
    assert target.read_bytes() == b"half of the new"
    assert names(tmp_path) == ["f.nc"]


def interrupted_write(target, error):
    with atomic.replacing(target) as temporary:
        temporary.write_bytes(b"half")
        raise error


@pytest.mark.parametrize("kind", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_the_old_file(tmp_path, kind):
    target = tmp_path / "f.json"
    target.write_bytes(b"old")
    with pytest.raises(kind):
        interrupted_write(target, kind())
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["f.json"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_names_the_file(tmp_path, code):
    target = tmp_path / "f.json"
    target.write_bytes(b"old")
    with pytest.raises(FaultError, match=r"disk is full: .*f\.json could not be written"):
        interrupted_write(target, OSError(code, os.strerror(code)))
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["f.json"]


def test_a_disk_that_fills_up_while_syncing(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(FaultError, match="disk is full"):
        atomic.write_bytes(tmp_path / "f.bin", b"new")
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS, errno.EPERM])
def test_a_forbidden_file_is_named(tmp_path, code):
    with pytest.raises(FaultError, match=rf"f\.bin could not be written: {os.strerror(code)}"):
        interrupted_write(tmp_path / "f.bin", OSError(code, os.strerror(code)))


def test_other_errors_pass(tmp_path):
    with pytest.raises(IsADirectoryError), atomic.disk_errors(tmp_path):
        raise IsADirectoryError(errno.EISDIR, "x")


KILLED = """
import os, signal, sys
from mop_jax import atomic

with atomic.replacing(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_stray_of_a_killed_writer_is_gone_after_the_next_write(tmp_path, bare_python):
    target = tmp_path / "f.bin"
    target.write_bytes(b"old")
    done = subprocess.run([*bare_python, KILLED, str(target)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_bytes() == b"old"
    assert len(names(tmp_path)) == 2
    atomic.write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert names(tmp_path) == ["f.bin"]
