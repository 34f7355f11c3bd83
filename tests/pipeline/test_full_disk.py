"""A full disk at every step: one sentence, nothing half-written, and the run goes on afterwards.

/dev/full refuses every write as a full disk does, in Python's files as in those of C libraries.
"""

from __future__ import annotations

import builtins
from pathlib import Path

import arviz
import pytest

from mop_jax import pipeline
from mop_jax.errors import FaultError
from mop_jax.inference import write_netcdf
from mop_jax.likelihoods import LikelihoodStore
from mop_jax.pipeline import simulation
from tests.run_fixtures import contents, undo, unfinished_files

pytest_plugins = ("tests.run_fixtures",)
pytestmark = pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")


def fill(path: Path) -> None:
    """The next atomic write of `path` goes to a full disk."""
    path.with_name(f".{path.stem}.partial{path.suffix}").symlink_to("/dev/full")


@pytest.mark.parametrize(
    ("step", "name"),
    [
        ("personas", "records.parquet"),
        ("score", "likelihoods/train.parquet"),
        ("simulate", "simulated.jsonl"),
        ("figures", "figures/elbo.png"),
    ],
)
def test_a_full_disk_loses_nothing(mop, copy_of_run, finished_run, step, name):
    undo(copy_of_run, step)
    before = contents(copy_of_run)
    fill(copy_of_run / name)
    ended = mop("run", copy_of_run)
    assert ended.status == 1
    assert f"The disk is full: {copy_of_run / name}" in ended.sentence
    after = contents(copy_of_run)
    assert not (copy_of_run / name).exists()
    for kept in before:
        assert kept == "manifest.json" or after[kept] == before[kept]
    assert mop("run", copy_of_run).status == 0
    done = contents(copy_of_run)
    for kept, data in contents(finished_run).items():
        assert kept == "manifest.json" or done[kept] == data
    assert not unfinished_files(copy_of_run)


def test_a_full_disk_while_scoring(mop, copy_of_run, finished_run, monkeypatch):
    """Entries that fitted stay; the run goes on from them and ends with the same bytes."""
    undo(copy_of_run, "score")
    (path,) = copy_of_run.glob("likelihoods/*/scores.bin")
    path.unlink()
    append = LikelihoodStore.append

    def until_full(self, keys, scores):
        half = len(keys) // 2
        append(self, keys[:half], scores[:half])
        self._handle.close()
        self._handle = open("/dev/full", "ab")  # noqa: SIM115
        append(self, keys[half:], scores[half:])

    with monkeypatch.context() as patch:
        patch.setattr(LikelihoodStore, "append", until_full)
        ended = mop("score", copy_of_run)
    assert ended.status == 1
    assert f"The disk is full: {path}" in ended.sentence
    assert path.stat().st_size > 0
    pipeline.score(copy_of_run)
    done = contents(copy_of_run)
    for kept, data in contents(finished_run).items():
        # The journal held the scores of evaluation too.
        assert kept == "manifest.json" or kept.endswith("scores.bin") or done[kept] == data


def test_a_full_disk_while_simulating(mop, copy_of_run, monkeypatch):
    undo(copy_of_run, "simulate", "likeness", "figures")

    def open_full(path, *args, **kwargs):
        full = str(path).endswith(".simulated.journal.jsonl")
        return builtins.open("/dev/full" if full else path, *args, **kwargs)

    monkeypatch.setattr(simulation, "open", open_full, raising=False)
    ended = mop("simulate", copy_of_run)
    assert ended.status == 1
    assert "The disk is full" in ended.sentence
    assert not (copy_of_run / "simulated.jsonl").exists()


def test_a_full_disk_under_the_posterior(copy_of_run):
    """HDF5 reports a full disk in its own words, deep inside C."""
    path = copy_of_run / "posterior.nc"
    before = path.read_bytes()
    posterior = arviz.from_netcdf(path)
    fill(path)
    with pytest.raises(FaultError, match=r"The disk is full: .*posterior\.nc"):
        write_netcdf(path, posterior)
    assert path.read_bytes() == before
    assert not unfinished_files(copy_of_run)
