"""The command `mop`: its commands, its sentences and its exit statuses."""

from __future__ import annotations

import errno
import os
import signal
from pathlib import Path

import jax
import pytest

from mop_jax import pipeline
from mop_jax.errors import DataError, FaultError
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.pipeline.pipeline import Run
from mop_jax.pipeline.run_folder import RunFolder
from tests.run_fixtures import CACHE, contents, write_yaml

pytest_plugins = ("tests.run_fixtures",)
COMMANDS = (
    "demo",
    "run",
    "personas",
    "score",
    "fit",
    "evaluate",
    "simulate",
    "figures",
    "poststratify",
    "ask",
)


def raising(error: BaseException):
    def run(*args, **kwargs):
        raise error

    return run


def test_help_names_every_command(mop):
    shown = mop("--help")
    assert shown.status == 0
    for name in COMMANDS:
        assert f" {name} " in shown.out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(mop, name):
    shown = mop(name, "--help")
    assert shown.status == 0
    assert "--out" in shown.out
    assert f"Example:  mop {name}" in shown.out
    assert "--update" in shown.out
    assert "--memory" in shown.out


@pytest.mark.parametrize(
    "arguments", [["fly"], ["run"], ["run", "demo", "--fast"], ["run", "a", "b"], ["demo", "x"]]
)
def test_wrong_usage_ends_with_status_2(mop, arguments):
    ended = mop(*arguments)
    assert ended.status == 2
    assert "Usage: mop" in ended.err
    assert "Traceback" not in ended.err


def test_a_finished_run_shows_its_table_and_loads_no_language_model(mop, finished_run, monkeypatch):
    monkeypatch.setattr(FlaxLM, "from_pretrained", raising(AssertionError("a model was loaded")))
    before = contents(finished_run)
    ended = mop("run", finished_run)
    assert ended.status == 0
    assert ended.err.count("already there") == len(pipeline.STEPS)
    for text in ("mixture of personas", "uniform mixture", "minus uniform", "12 records"):
        assert text in ended.out
    assert str(finished_run / "metrics.json") in ended.out
    assert contents(finished_run) == before


@pytest.mark.parametrize("name", ["personas", "score", "fit", "evaluate", "simulate"])
def test_a_single_step_says_where_it_wrote(mop, finished_run, name):
    ended = mop(name, finished_run)
    assert ended.status == 0
    assert ended.out.endswith(f"done in {finished_run}\n")


@pytest.mark.parametrize("command", ["run", "simulate"])
@pytest.mark.parametrize(("kind", "status"), [(DataError, 2), (FaultError, 1)])
def test_refusals_are_one_sentence_with_their_status(mop, monkeypatch, command, kind, status):
    long = "word " * 60
    error = kind(f"Row 3 of [bold]x.csv[/bold]\n  is wrong; accepted: [1, 2] {long}end.")
    monkeypatch.setattr(pipeline, command, raising(error))
    ended = mop(command, "demo")
    assert ended.status == status
    assert ended.sentence == f"Row 3 of [bold]x.csv[/bold] is wrong; accepted: [1, 2] {long}end."
    assert ended.out == ""


def test_ctrl_c_is_a_sentence_and_status_130(mop, monkeypatch):
    monkeypatch.setattr(pipeline, "run", lambda *a, **k: signal.raise_signal(signal.SIGINT))
    ended = mop("run", "demo")
    assert ended.status == 130
    assert ended.sentence.startswith("Interrupted; finished work is kept")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_anywhere_is_a_sentence(mop, monkeypatch, number):
    monkeypatch.setattr(pipeline, "run", raising(OSError(number, os.strerror(number))))
    ended = mop("run", "demo")
    assert ended.status == 1
    assert ended.sentence.startswith("The disk is full")


def test_a_defect_is_not_passed_off_as_a_refusal(mop, monkeypatch):
    monkeypatch.setattr(pipeline, "run", raising(ZeroDivisionError("a defect of ours")))
    with pytest.raises(ZeroDivisionError):
        mop("run", "demo")


def test_a_second_process_is_refused_and_writes_nothing(mop, finished_run, materials, tmp_path):
    """Not even the manifest, with `--update` and another configuration in hand."""
    other = write_yaml(tmp_path / "other.yaml", materials.settings(seed=4))
    before = contents(finished_run, hidden=True)
    exact = (finished_run / "manifest.json").read_bytes()
    with RunFolder(finished_run, materials.config()).locked():
        for arguments in (["run", finished_run], ["run", other, "-o", finished_run, "--update"]):
            ended = mop(*arguments)
            assert ended.status == 2
            assert ended.sentence.startswith(f"Another process is working in {finished_run}")
            assert contents(finished_run, hidden=True) == before
            assert (finished_run / "manifest.json").read_bytes() == exact
    assert mop("run", finished_run).status == 0


def test_the_shipped_name_and_the_default_folder(mop, monkeypatch, tmp_path):
    """`mop demo` is `mop run demo`; both work in runs/demo."""
    seen = []

    def run(config, out, **options):
        seen.append((config, out, options["update"]))
        raise DataError("seen")

    monkeypatch.setattr(pipeline, "run", run)
    for arguments in (["demo"], ["run", "demo"], ["demo", "-o", tmp_path, "--update"]):
        mop(*arguments)
    assert seen == [("demo", None, False), ("demo", None, False), ("demo", tmp_path, True)]


@pytest.mark.parametrize("command", ["run", "score"])
@pytest.mark.parametrize(("option", "expected"), [("0.25", 2**28), (None, None)])
def test_the_memory_option_reaches_the_language_model(
    mop, materials, monkeypatch, tmp_path, command, option, expected
):
    given = []

    def loaded(path, *args, memory=None, **kwargs):
        given.append(memory)
        raise DataError("Enough seen.")

    monkeypatch.setattr(FlaxLM, "from_pretrained", loaded)
    config = write_yaml(tmp_path / "c.yaml", materials.settings())
    options = [] if option is None else ["--memory", option]
    assert mop(command, config, "--out", tmp_path / "run", *options).status == 2
    assert given == [expected]


def test_a_folder_by_default_is_named_after_the_run(mop, materials, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    seen = []
    monkeypatch.setattr(Run, "check", lambda run, steps: seen.append(run.folder.path) or 1 / 0)
    settings = materials.settings()
    for name in ("miniature", None):
        settings.pop("name", None)
        given = {**settings, "name": name} if name else settings
        config = write_yaml(tmp_path / "second.yaml", given)
        with pytest.raises(ZeroDivisionError):
            mop("personas", config)
    assert seen == [Path("runs") / "miniature", Path("runs") / "second"]


def test_the_command_line_keeps_compiled_programs(mop, monkeypatch):
    """Libraries leave JAX's settings alone; the command sets a cache under XDG_CACHE_HOME."""
    seen = []
    monkeypatch.setattr(
        pipeline, "run", lambda *a, **k: seen.append(jax.config.jax_compilation_cache_dir) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        mop("run", "demo")
    assert seen == [str(CACHE / "mop-jax" / "xla")]
