"""Runs that are killed or interrupted go on where they were, and end with the very same bytes."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path

from mop_jax import pipeline
from mop_jax.pipeline.steps import BY_NAME
from tests.pipeline.resume_driver import POINTS
from tests.run_fixtures import (
    PYTHON,
    REPOSITORY,
    contents,
    environment,
    unfinished_files,
    write_yaml,
)

pytest_plugins = ("tests.run_fixtures",)
DRIVER = Path(__file__).with_name("resume_driver.py")


def test_killed_at_every_step_a_run_ends_with_the_same_bytes(finished_run, materials, tmp_path):
    """Kill -9 in one process after the other, at ten points; then one that may finish."""
    config = tmp_path / "config.json"
    config.write_text(materials.config().model_dump_json(exclude_unset=True), encoding="utf-8")
    folder = tmp_path / "run"
    done = subprocess.run(
        [PYTHON, "-W", "ignore", DRIVER, config, folder, finished_run, *POINTS],
        env=environment(),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    reports = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(reports) == len(POINTS) + 1, done.stderr
    for report in reports[:-1]:
        assert report["signal"] == signal.SIGKILL, f"{report} {done.stderr}"
    assert reports[-1]["status"] == 0, done.stderr
    for report in reports:
        assert report["differing"] == [], report
    assert contents(folder) == contents(finished_run)
    assert not unfinished_files(folder)
    # A fit goes on where it was killed, and one that was finished is not fitted again.
    steps = {report["point"]: report["restored"] for report in reports}
    num_steps = materials.config().inference.num_steps
    chunk = -(-num_steps // 20)
    assert steps["fit, first model"] == [0]
    assert steps["fit, while a checkpoint is written"] == [6 * chunk]
    assert 6 * chunk <= steps["fit, second model"][0] < num_steps
    assert steps["evaluate, scoring"][0] == num_steps
    assert 0 < steps["evaluate, scoring"][1] < num_steps


def test_every_step_is_among_the_points():
    assert {name.partition(",")[0] for name in POINTS} == set(BY_NAME)


def test_ctrl_c_ends_in_one_sentence_and_the_run_goes_on(finished_run, materials, tmp_path):
    """A real SIGINT to a real `mop`, while it scores; then the same run to its end."""
    config = write_yaml(tmp_path / "config.yaml", materials.settings())
    folder = tmp_path / "run"
    process = subprocess.Popen(
        [PYTHON, "-W", "ignore", "-m", "mop_jax", "run", config, "--out", folder],
        env=environment(),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while process.poll() is None:
            if any(p.stat().st_size for p in folder.glob("likelihoods/*/scores.bin")):
                process.send_signal(signal.SIGINT)
                break
            time.sleep(0.02)
        out, err = process.communicate()
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, err
    sentence = "mop: Interrupted; finished work is kept, the same command goes on from here."
    assert err.splitlines()[-1] == sentence
    assert "Traceback" not in err
    assert out == ""
    assert not (folder / "posterior.safetensors").exists()
    pipeline.score(materials.config(), folder)
    for name in (*BY_NAME["personas"].outputs, *BY_NAME["score"].outputs):
        assert (folder / name).read_bytes() == (finished_run / name).read_bytes()
    assert not unfinished_files(folder)
