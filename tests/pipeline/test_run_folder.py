"""Run folders: one configuration each, steps done once, nobody else's folder touched."""

from __future__ import annotations

import copy
import errno
import json
import os
import subprocess

import pytest

from mop_jax.config import RunConfig
from mop_jax.errors import DataError, FaultError
from mop_jax.pipeline import lock
from mop_jax.pipeline.manifest import read_manifest
from mop_jax.pipeline.run_folder import InputChanged, RunFolder, file_hash, fingerprint


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


INPUTS = {
    "version": 1,
    "configuration": {"seed": 0},
    "inputs": {"population": "p"},
    "artefacts": {"personas.json": "d"},
}


def inputs(**changes):
    """What a step is made from; `changes` by part, or the seed."""
    made = copy.deepcopy(INPUTS)
    made["configuration"]["seed"] = changes.pop("seed", 0)
    return {**made, **changes}


def perform(run, work, step="fit", made_from=INPUTS, outputs=("out.txt",)):
    """Does a step if it must be done; says whether it did."""
    with run.locked():
        if run.reasons(step, made_from, outputs) is None:
            return False
        run.perform(step, made_from, outputs, work)
    return True


class Work:
    """Writes its content, and counts how often."""

    def __init__(self, run, name="out.txt", content="x"):
        self.target, self.content, self.count = run.path / name, content, 0

    def __call__(self):
        self.count += 1
        self.target.write_text(self.content)


def test_opening_a_folder_writes_nothing(folder):
    run = RunFolder(folder, config(name="first"))
    assert not folder.exists()
    with run.locked():
        assert folder.is_dir()
    assert not folder.exists()
    perform(run, Work(run))
    manifest = stored(folder)
    assert manifest == run.manifest
    assert manifest["name"] == "first"
    assert RunConfig.model_validate(manifest["configuration"]) == run.config
    assert {"python", "jax", "flax", "numpyro"} <= manifest["versions"].keys()
    assert read_manifest(folder) == manifest


def test_a_step_is_done_once(folder):
    run = RunFolder(folder, config())
    work = Work(run)
    assert perform(run, work)
    assert not perform(run, work)
    assert not perform(RunFolder(folder, config()), work)
    assert work.count == 1
    entry = stored(folder)["steps"]["fit"]
    assert entry["state"] == "done"
    assert entry["inputs"] == INPUTS
    assert entry["outputs"] == {"out.txt": file_hash(run.path / "out.txt")}
    assert entry["seconds"] >= 0


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        (inputs(seed=1), "seed is 1 where it was 0"),
        (inputs(inputs={"population": "q"}), "the population has changed"),
        (inputs(artefacts={"personas.json": "e"}), "personas.json has changed"),
        (inputs(artefacts={}), "personas.json has changed"),
        (inputs(configuration={"seed": 0, "new": 1}), "new is 1 where it was None"),
    ],
)
def test_a_step_is_done_again_if_anything_that_it_is_made_from_changes(folder, changed, reason):
    run = RunFolder(folder, config())
    assert perform(run, Work(run))
    assert run.reasons("fit", changed, ["out.txt"]) == [reason]
    assert perform(run, Work(run), made_from=changed)
    assert not perform(run, Work(run), made_from=changed)
    assert run.reasons("fit", inputs(), ["out.txt"]) is not None


def test_what_nobody_knows_of_an_input_is_no_change(folder):
    run = RunFolder(folder, config())
    perform(run, Work(run), made_from=inputs(inputs={"population": None}))
    assert run.reasons("fit", inputs(), ["out.txt"]) is None
    perform(run, Work(run), "score")
    assert run.reasons("score", inputs(inputs={"population": None}), ["out.txt"]) is None


def test_a_step_that_does_otherwise_than_before_says_what(folder):
    run = RunFolder(folder, config())
    perform(run, Work(run))
    found = run.reasons("fit", inputs(version=3), ["out.txt"], ["it guesses", "it knows"])
    assert found == ["it guesses", "it knows"]
    perform(run, Work(run), "score", inputs(version=2))
    found = run.reasons("score", inputs(version=3), ["out.txt"], ["it guesses", "it knows"])
    assert found == ["it knows"]


def test_a_step_is_done_again_if_its_outputs_change(folder):
    run = RunFolder(folder, config())
    work = Work(run)
    perform(run, work)
    (folder / "out.txt").write_text("y")
    assert run.reasons("fit", INPUTS, ["out.txt"]) == ["out.txt is not as it was written"]
    assert perform(run, work)
    assert (folder / "out.txt").read_text() == "x"
    (folder / "out.txt").unlink()
    assert run.reasons("fit", INPUTS, ["out.txt"]) == ["out.txt is gone"]
    assert perform(run, work)
    assert work.count == 3
    assert run.reasons("fit", INPUTS, ["out.txt", "b.txt"]) == ["b.txt was never written"]
    assert run.reasons("other", INPUTS, []) == []


def test_personas_that_were_edited_are_not_written_over(folder):
    run = RunFolder(folder, config())
    perform(run, Work(run, "personas.json"), outputs=["personas.json"])
    (folder / "personas.json").write_text("mine")
    with pytest.raises(DataError, match=r"personas\.json was changed by hand: .*personas\.path"):
        run.reasons("fit", INPUTS, ["personas.json"])
    (folder / "personas.json").unlink()
    assert run.reasons("fit", INPUTS, ["personas.json"]) == ["personas.json is gone"]


def test_a_step_that_fails_or_is_interrupted_is_not_done(folder):
    run = RunFolder(folder, config())

    def fail():
        assert stored(folder)["steps"]["fit"]["state"] == "running"
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        perform(run, fail)
    again = RunFolder(folder, config())
    with pytest.raises(FaultError, match=r"fit ended without writing .*out\.txt"):
        perform(again, lambda: None)
    assert perform(again, Work(again))


def test_what_is_refused_leaves_the_folder_as_it_was(folder):
    """A new one is not made; the manifest of an old one is not touched."""

    def refuse():
        raise DataError("no")

    run = RunFolder(folder / "deep" / "er", config())
    with pytest.raises(DataError, match="no"):
        perform(run, refuse)
    assert not folder.exists()
    run = RunFolder(folder, config())
    perform(run, Work(run))
    before = (folder / "manifest.json").read_bytes()
    for other in (config(), config(seed=2)):
        with pytest.raises(DataError, match="no"):
            perform(RunFolder(folder, other, update=True), refuse, "score")
        assert (folder / "manifest.json").read_bytes() == before


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
    perform(run, Work(run))
    before = stored(folder)
    with pytest.raises(DataError, match="another configuration") as caught:
        RunFolder(folder, config(**changes))
    assert named in str(caught.value)
    assert "--update" in str(caught.value)
    assert stored(folder) == before
    # Nor is one that says the old default no more.
    other = RunFolder(folder, config(**changes), update=True)
    perform(other, Work(other), "score")
    with pytest.raises(DataError, match="another configuration"):
        RunFolder(folder, config())


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "b"},
        {"population": {"path": "elsewhere/a.csv", "context": "x", "response": "y"}},
        {"language_model": {"path": "elsewhere/m.gguf", "mesh": "1x1", "memory_gib": 2}},
        {"encoder": {"path": "elsewhere"}},
    ],
)
def test_names_places_and_resources_are_no_other_configuration(folder, changes):
    """Files are known by their content."""
    run = RunFolder(folder, config())
    perform(run, Work(run))
    again = RunFolder(folder, config(**changes))
    with again.locked():
        again.keep()
    assert RunConfig.model_validate(stored(folder)["configuration"]) == config(**changes)


def test_a_default_that_has_changed_since_is_no_other_configuration(folder):
    run = RunFolder(folder, config())
    made_from = inputs(configuration={"simulation": config().simulation.model_dump()})
    perform(run, Work(run), made_from=made_from)
    manifest = stored(folder)
    manifest["configuration"]["candidates"]["refresh"] = 7
    del manifest["configuration"]["simulation"]["top_k"]  # as if the field had come since
    del manifest["steps"]["fit"]["inputs"]["configuration"]["simulation"]["top_k"]
    (folder / "manifest.json").write_text(json.dumps(manifest))
    assert RunFolder(folder, config()).reasons("fit", made_from, ["out.txt"]) is None
    with pytest.raises(DataError, match="refresh is 7 there and 1 here"):
        RunFolder(folder, config(candidates={"refresh": 1}))


def test_what_never_finished_protects_nothing(folder):
    """As after a first run that ended at a misspelt name of the data file, or was killed."""
    run = RunFolder(folder, config(seed=3))
    with pytest.raises(KeyboardInterrupt), run.locked():
        run.perform("fit", INPUTS, ["out.txt"], raise_interrupt)
    assert stored(folder)["steps"]["fit"]["state"] == "running"
    again = RunFolder(folder, config())
    perform(again, Work(again))
    assert stored(folder)["configuration"]["seed"] == 0


def raise_interrupt():
    raise KeyboardInterrupt


def test_update_adopts_the_configuration(folder):
    run = RunFolder(folder, config())
    perform(run, Work(run))
    updated = RunFolder(folder, config(simulation={"num_samples": 3}), update=True)
    with updated.locked():
        updated.keep()
    assert stored(folder)["configuration"]["simulation"]["num_samples"] == 3
    assert updated.reasons("fit", INPUTS, ["out.txt"]) is None
    RunFolder(folder, config(simulation={"num_samples": 3}))  # now its own


def test_an_input_that_changed_is_refused_or_taken(folder):
    run = RunFolder(folder, config())
    run.input("population", {"digest": "abc", "files": {}})
    perform(run, Work(run))
    same, other = ({"digest": digest, "files": {}} for digest in ("abc", "abd"))
    RunFolder(folder, config()).input("population", same)
    with pytest.raises(DataError, match=r"The population has changed since .*--update") as caught:
        RunFolder(folder, config()).input("population", other)
    assert "a.csv" in str(caught.value)
    RunFolder(folder, config()).input("population", None)  # it is gone
    updated = RunFolder(folder, config(), update=True)
    updated.input("population", other)
    assert updated.source("population") == other


@pytest.fixture
def older(folder):
    """A folder whose run knew its language model only by what was loaded."""
    run = RunFolder(folder, config())
    perform(run, Work(run), made_from=inputs(inputs={"language model": None}))
    perform(run, Work(run, "b.txt"), "split", inputs(inputs={}), ["b.txt"])
    manifest = stored(folder)
    manifest["sources"]["language model"] = {"digest": None, "fingerprint": "loaded"}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


STAMP = {"digest": "files", "files": {"m.gguf": [1, 2]}}


def test_models_of_older_runs_are_compared_when_they_are_loaded(older):
    run = RunFolder(older, config())
    run.input("language model", STAMP)
    with pytest.raises(DataError, match="The language model has changed since"):
        run.loaded("language model", "another", lambda: None)
    run.loaded("language model", "loaded", lambda: None)
    assert run.source("language model") == STAMP
    run.loaded("language model", "whatever", lambda: None)  # known by its files from now on
    # A model that had to be fetched first has files only now.
    run = RunFolder(older, config())
    run.input("language model", None)
    run.loaded("language model", "loaded", lambda: STAMP)
    assert run.source("language model") == STAMP


def test_another_model_than_that_of_an_older_run_makes_its_steps_be_forgotten(older):
    run = RunFolder(older, config(), update=True)
    run.input("language model", STAMP)
    with pytest.raises(InputChanged):
        run.loaded("language model", "another", lambda: None)
    assert set(run.written) == {"split"}
    run.loaded("language model", "another", lambda: None)


def test_prompts_that_are_made_otherwise_are_said(folder):
    made_from = inputs(inputs={"language model": "files"})
    run = RunFolder(folder, config())
    run.rendered("template")
    perform(run, Work(run), made_from=made_from)
    RunFolder(folder, config()).rendered("template")
    with pytest.raises(DataError, match=r"Prompts are not made any more as when .*--update"):
        RunFolder(folder, config()).rendered("another")
    updated = RunFolder(folder, config(), update=True)
    with pytest.raises(InputChanged):
        updated.rendered("another")
    assert not updated.written
    updated.rendered("another")


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
    RunFolder(folder, config())  # an empty folder is fine, and left where it is
    with RunFolder(folder, config()).locked():
        pass
    assert folder.exists()
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
    run = RunFolder(folder, config())
    assert perform(run, Work(run))


def test_a_folder_without_its_manifest_is_begun_anew_with_its_scores(folder):
    (folder / "likelihoods").mkdir(parents=True)
    (folder / "likelihoods" / "scores.bin").write_bytes(b"s")
    (folder / "metrics.json").write_text("{}")
    with pytest.raises(DataError, match=r"lost its manifest\.json.*--update.*likelihoods/"):
        RunFolder(folder, config())
    run = RunFolder(folder, config(), update=True)
    assert perform(run, Work(run))
    assert (folder / "likelihoods" / "scores.bin").read_bytes() == b"s"
    RunFolder(folder, config())
    # With a file of somebody's among them it is nobody's run folder.
    (folder / "manifest.json").unlink()
    (folder / "thesis.tex").write_text("x")
    with pytest.raises(DataError, match="is not empty and no run folder"):
        RunFolder(folder, config(), update=True)


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOLCK])
def test_a_disk_without_locks_is_no_other_process(folder, monkeypatch, caplog, number):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock.fcntl, "flock", flock)
    run = RunFolder(folder, config())
    with run.locked():
        (record,) = caplog.records
        assert "no file locks" in record.getMessage()
        assert os.strerror(number) in record.getMessage()
        busy = pytest.raises(DataError, match=r"Another process is .*delete .*\.lock\.pid")
        with busy, RunFolder(folder, config()).locked():
            pass
    with run.locked():
        run.perform("fit", INPUTS, ["out.txt"], Work(run))
    assert {p.name for p in folder.iterdir()} == {"manifest.json", "out.txt"}


def test_without_fcntl_the_system_has_locks_of_its_own(folder, monkeypatch):
    monkeypatch.setattr(lock, "fcntl", None)
    run = RunFolder(folder, config())
    busy = pytest.raises(DataError, match="Another process is working")
    with run.locked(), busy, RunFolder(folder, config()).locked():
        pass
    assert perform(run, Work(run))


def test_a_folder_that_takes_no_writes_is_refused_at_once(folder, monkeypatch):
    run = RunFolder(folder, config())
    perform(run, Work(run))
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(FaultError, match="cannot be written to; choose another with --out"):
        perform(RunFolder(folder, config()), Work(run), "score")


def test_fingerprints_cover_their_parts():
    parts = [{"b": 1, "a": [1, 2.5, None]}, "x"]
    assert fingerprint(*parts) == fingerprint({"a": [1, 2.5, None], "b": 1}, "x")
    assert len({fingerprint(*parts), fingerprint(parts[0]), fingerprint("x", parts[0])}) == 3
