"""A fit that is killed goes on where it was, to the same last bit."""

import json
import signal
import subprocess
import sys

import jax
import numpy as np
import optax
import pytest

from mop_jax.inference import checkpoints, fit_svi

# The gate is left out, and the mode is sought, because more takes long to compile.
FIT = {
    "model_kwargs": {"uniform_gate": True},
    "guide": "AutoDelta",
    "num_steps": 60,
    "num_particles": 1,
    "progress": False,
}


class Killed(BaseException):
    """In place of a signal."""


@pytest.fixture
def often(monkeypatch):
    """A checkpoint after every few steps."""
    monkeypatch.setattr(checkpoints, "SECONDS_BETWEEN", 0.0)
    monkeypatch.setattr(checkpoints, "SHARE_OF_TIME", float("inf"))


@pytest.fixture
def restored(monkeypatch):
    """How many steps each fit found done."""
    found = []
    restore = checkpoints.FitCheckpoints.restore

    def noted(self, like):
        progress = restore(self, like)
        found.append(0 if progress is None else len(progress.losses))
        return progress

    monkeypatch.setattr(checkpoints.FitCheckpoints, "restore", noted)
    return found


def kill_after(monkeypatch, number):
    """The fit dies right after its `number`-th checkpoint."""
    save = checkpoints.FitCheckpoints.save
    count = iter(range(1, 1000))

    def saved(self, progress):
        save(self, progress)
        if next(count) == number:
            raise Killed

    monkeypatch.setattr(checkpoints.FitCheckpoints, "save", saved)


def assert_same(one, other):
    np.testing.assert_array_equal(one.losses, other.losses)
    assert jax.tree.structure(one.params) == jax.tree.structure(other.params)
    jax.tree.map(np.testing.assert_array_equal, one.params, other.params)
    assert one.convergence.reason == other.convergence.reason


@pytest.mark.parametrize("batch_size", [None, 4])
def test_killed_and_resumed_is_never_interrupted(
    make_data, tmp_path, monkeypatch, often, restored, batch_size
):
    data = make_data()
    key, settings = jax.random.key(3), {**FIT, "batch_size": batch_size}
    expected = fit_svi(key, data, **settings)
    with monkeypatch.context() as patch:
        kill_after(patch, 7)
        with pytest.raises(Killed):
            fit_svi(key, data, **settings, checkpoint=tmp_path)
    assert_same(fit_svi(key, data, **settings, checkpoint=tmp_path), expected)
    assert restored == [0, 21]
    # What is finished comes back, without a step.
    assert_same(fit_svi(key, data, **settings, checkpoint=tmp_path), expected)
    assert restored == [0, 21, 60]


def test_another_fit_is_never_resumed(make_data, tmp_path, often, restored):
    data = make_data()
    fit_svi(jax.random.key(3), data, **FIT, checkpoint=tmp_path)
    others = [
        {"rng_key": jax.random.key(4)},
        {"data": data._replace(log_likelihood=data.log_likelihood + np.float32(1e-3))},
        {"num_steps": 59},
        {"optimizer": optax.adam(0.011)},
        {"model_kwargs": {"uniform_gate": True, "temperature_spread": 0.2}},
    ]
    for change in others:
        arguments = {"rng_key": jax.random.key(3), "data": data, **FIT, **change}
        key, population = arguments.pop("rng_key"), arguments.pop("data")
        fit_svi(key, population, **arguments, checkpoint=tmp_path)
    assert restored == [0] * (1 + len(others))
    assert len(list(tmp_path.iterdir())) == 1 + len(others)


def test_a_damaged_checkpoint_is_said_and_passed_over(make_data, tmp_path, often, restored):
    data = make_data()
    expected = fit_svi(jax.random.key(3), data, **FIT, checkpoint=tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.warns(UserWarning, match="is damaged .*; the fit begins again"):
        again = fit_svi(jax.random.key(3), data, **FIT, checkpoint=tmp_path)
    assert_same(again, expected)
    assert restored == [0, 0]


def test_a_short_fit_writes_nothing(make_data, tmp_path):
    fit_svi(jax.random.key(3), make_data(), **FIT, checkpoint=tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_checkpoints_compile_nothing(make_data, tmp_path, often, monkeypatch):
    """As many programs with checkpoints as without: none more for the chunks that follow."""
    names = []

    def listen(event, duration, **details):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(event)

    data = make_data()
    jax.monitoring.register_event_duration_secs_listener(listen)
    counts = []
    try:
        for folder in (None, None, tmp_path):
            names.clear()
            fit_svi(jax.random.key(3), data, **FIT, checkpoint=folder)
            counts.append(len(names))
    finally:
        jax.monitoring.clear_event_listeners()
    assert counts[2] == counts[1] <= counts[0]


DRIVER = """
import json, os, signal, sys
import jax, numpy as np
from mop_jax.inference import checkpoints, fit_svi
from mop_jax.models import full_table_data

folder, moves = sys.argv[1], int(sys.argv[2])
checkpoints.SECONDS_BETWEEN, checkpoints.SHARE_OF_TIME = 0.0, float("inf")
count = iter(range(1, 10**6))

def watch(event, arguments):
    # Every change of a name or removal in the folder is a moment at which the power may go.
    if event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "shutil.rmtree"):
        if folder in str(arguments) and next(count) == moves:
            os.kill(os.getpid(), signal.SIGKILL)

sys.addaudithook(watch)
rng = np.random.default_rng(0)
data = full_table_data(
    log_likelihood=rng.normal(-20, 2, (6, 3, 5)), context_embeddings=rng.normal(size=(6, 8)),
    persona_embeddings=rng.normal(size=(3, 8)), exemplar_embeddings=rng.normal(size=(5, 8)),
)
fit = fit_svi(
    jax.random.key(0), data, model_kwargs={"uniform_gate": True}, num_steps=40, progress=False,
    guide="AutoDelta", checkpoint=folder,
)
print(json.dumps([fit.losses.tolist(), {k: v.tolist() for k, v in sorted(fit.params.items())}]))
"""


def test_a_real_kill_at_any_moment_of_writing(tmp_path):
    """SIGKILL at one file operation after another; what is left is always good to go on from."""

    def run(folder, moves):
        return subprocess.run(
            [sys.executable, "-W", "error::UserWarning", "-c", DRIVER, folder, str(moves)],
            capture_output=True,
            text=True,
            check=False,
        )

    whole = run(tmp_path / "whole", 0)
    assert whole.returncode == 0, whole.stderr
    for moves in (3, 14):
        killed = run(tmp_path / "killed", moves)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    again = run(tmp_path / "killed", 0)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout) == json.loads(whole.stdout)
