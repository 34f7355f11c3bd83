"""Run folders: one configuration each, steps done once, nobody else's folder touched."""

from __future__ import annotations

import json
import subprocess

import pytest

from mop_jax.config import RunConfig
from mop_jax.errors import DataError, FaultError
from mop_jax.pipeline.run_folder import RunFolder, file_hash, fingerprint, read_manifest


def config(**changes) -> RunConfig:
    return RunConfig.model_validate(
        {
            "population": {"path": "a.csv", "context": "x", "response": "y"},
            "language_model": {"path": "m.gguf"},
            "encoder": {"path": "e"},
            **changes,
        }
    )


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


def stored(folder):
    return json.loads((folder / "manifest.json").read_text("utf-8"))


def test_a_new_folder_has_a_manifest(folder):
    run = RunFolder(folder, config(name="first"))
    manifest = stored(folder)
    assert manifest == run.manifest
    assert manifest["name"] == "first"
    assert RunConfig.model_validate(manifest["configuration"]) == run.config
    assert {"python", "jax", "flax", "numpyro"} <= manifest["versions"].keys()
    assert read_manifest(folder) == manifest


class Work:
    """Writes its content, and counts how often."""

    def __init__(self, run, name="out.txt", content="x"):
        self.target, self.content, self.count = run.path / name, content, 0

    def __call__(self):
        self.count += 1
        self.target.write_text(self.content)


def test_a_step_is_done_once(folder):
    run = RunFolder(folder, config())
    work = Work(run)
    assert run.perform("fit", "f1", ["out.txt"], work)
    assert not run.perform("fit", "f1", ["out.txt"], work)
    assert not RunFolder(folder, config()).perform("fit", "f1", ["out.txt"], work)
    assert work.count == 1
    entry = stored(folder)["steps"]["fit"]
    assert entry["state"] == "done"
    assert entry["outputs"] == {"out.txt": file_hash(run.path / "out.txt")}
    assert entry["seconds"] >= 0


def test_a_step_is_done_again_if_its_inputs_or_outputs_change(folder):
    run = RunFolder(folder, config())
    work = Work(run)
    run.perform("fit", "f1", ["out.txt"], work)
    (folder / "out.txt").write_text("y")
    assert not run.is_done("fit", "f1")
    assert run.perform("fit", "f1", ["out.txt"], work)
    assert (folder / "out.txt").read_text() == "x"
    (folder / "out.txt").unlink()
    assert run.perform("fit", "f1", ["out.txt"], work)
    assert run.perform("fit", "f2", ["out.txt"], work)
    assert not run.is_done("fit", "f1")
    assert not run.is_done("other", "f2")
    assert work.count == 4


def test_a_step_that_fails_or_is_interrupted_is_not_done(folder):
    run = RunFolder(folder, config())

    def fail():
        assert stored(folder)["steps"]["fit"]["state"] == "running"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.perform("fit", "f1", ["out.txt"], fail)
    again = RunFolder(folder, config())
    assert not again.is_done("fit", "f1")
    with pytest.raises(FaultError, match=r"fit ended without writing .*out\.txt"):
        again.perform("fit", "f1", ["out.txt"], lambda: None)
    assert not again.is_done("fit", "f1")
    assert again.perform("fit", "f1", ["out.txt"], Work(again))


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"seed": 3}, "seed is 0 there and 3 here"),
        ({"personas": {"num_personas": 5}}, "personas.num_personas is 8 there and 5 here"),
        ({"split": {"test_size": 0.5}}, "split.test_size is 0.25 there and 0.5 here"),
    ],
)
def test_another_configuration_is_refused_by_field(folder, changes, named):
    run = RunFolder(folder, config())
    run.perform("fit", fingerprint("fit", run.config.seed), ["out.txt"], Work(run))
    before = stored(folder)
    with pytest.raises(DataError, match="another configuration") as caught:
        RunFolder(folder, config(**changes))
    assert named in str(caught.value)
    assert "--update" in str(caught.value)
    assert stored(folder) == before


def test_a_folder_without_a_finished_step_takes_any_configuration(folder):
    """As after a first run that ended at a misspelt name of the data file."""
    RunFolder(folder, config(seed=3))
    RunFolder(folder, config())
    assert stored(folder)["configuration"]["seed"] == 0


def test_update_adopts_the_configuration_and_keeps_steps_that_it_does_not_concern(folder):
    run = RunFolder(folder, config())
    work = Work(run)
    run.perform("fit", fingerprint("fit", run.config.seed), ["out.txt"], work)
    updated = RunFolder(folder, config(simulation={"num_samples": 3}), update=True)
    assert stored(folder)["configuration"]["simulation"]["num_samples"] == 3
    assert updated.is_done("fit", fingerprint("fit", updated.config.seed))
    reseeded = RunFolder(folder, config(seed=1, simulation={"num_samples": 3}), update=True)
    assert not reseeded.is_done("fit", fingerprint("fit", reseeded.config.seed))
    RunFolder(folder, config(seed=1, simulation={"num_samples": 3}))  # now its own


def test_a_source_that_changed_is_refused(folder):
    run = RunFolder(folder, config())
    run.source("population", "abc")
    run.source("population", "abc")
    with pytest.raises(DataError, match="The population has changed since"):
        RunFolder(folder, config()).source("population", "abd")
    assert stored(folder)["sources"] == {"population": "abc"}
    RunFolder(folder, config()).source("population", "abc")


LOCK = """
import sys
from mop_jax.config import RunConfig
from mop_jax.pipeline.run_folder import RunFolder

run = RunFolder(sys.argv[1], RunConfig.model_validate_json(sys.argv[2]))
with run.locked():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_two_processes_do_not_work_in_one_folder(folder, bare_python):
    run = RunFolder(folder, config())
    with subprocess.Popen(
        [*bare_python, LOCK, str(folder), run.config.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as other:
        assert other.stdout.readline() == "locked\n"
        with pytest.raises(DataError, match="Another process is working in"), run.locked():
            pass
        other.stdin.close()
        assert other.wait() == 0
    with run.locked():
        pass
    other = subprocess.Popen(
        [*bare_python, LOCK, str(folder), run.config.model_dump_json()],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "locked\n"
    other.kill()
    other.communicate()
    with run.locked():  # a killed process leaves no lock
        pass


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"\xff",
        b'{"format": "mop-jax run 0", "configuration": {}, "sources": {}, "steps": {}}',
        b'{"format": "mop-jax run 1", "sources": {}, "steps": {}}',
        b'{"format": "mop-jax run 1", "configuration": {}, "steps": {}}',
    ],
)
def test_a_damaged_manifest_is_a_fault(folder, content):
    folder.mkdir()
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(FaultError, match=r"manifest\.json is damaged or of another version"):
        RunFolder(folder, config())
    assert (folder / "manifest.json").read_bytes() == content


def test_somebody_elses_folder_is_refused(folder, tmp_path):
    folder.mkdir()
    RunFolder(folder, config())  # an empty folder is fine
    other = tmp_path / "other"
    other.mkdir()
    (other / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="is not empty and no run folder"):
        RunFolder(other, config())
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]
    with pytest.raises(DataError, match="is a file; give a folder"):
        RunFolder(other / "thesis.tex", config())


def test_a_folder_with_scores_only_is_taken(folder):
    """Scores are worth keeping when all else is deleted."""
    (folder / "likelihoods").mkdir(parents=True)
    RunFolder(folder, config())


def test_fingerprints_cover_their_parts():
    parts = [{"b": 1, "a": [1, 2.5, None]}, "x"]
    assert fingerprint(*parts) == fingerprint({"a": [1, 2.5, None], "b": 1}, "x")
    assert len({fingerprint(*parts), fingerprint(parts[0]), fingerprint("x", parts[0])}) == 3
