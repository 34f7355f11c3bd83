"""Progress outside a terminal, and ETAs against what then happened."""

from __future__ import annotations

import io
import sys
import threading
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax import progress


class Clock:
    """A clock that is set by hand."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    """The clock of the package's progress; no thread watches it."""
    clock = Clock()
    monkeypatch.setattr(progress, "_clock", clock)
    monkeypatch.setattr(progress, "_LINES", progress._Lines())
    monkeypatch.setattr(progress._LINES, "_watched", True)
    return clock


@pytest.fixture(autouse=True)
def undecided():
    """The suite itself forces progress off; here nothing is forced."""
    token = progress._forced.set(None)
    yield
    progress._forced.reset(token)


def lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.strip()]


def test_lines_of_a_log(capsys, clock):
    with progress.task("Scoring", total=4000) as advance:
        for seconds in (20, 20, 10, 50):
            clock.now += seconds
            advance(1000)
    assert lines(capsys) == [
        "  Scoring: 2,000 of 4,000, 0:00:40 elapsed, eta 0:00:40",
        "  Scoring: 4,000 of 4,000, 0:01:40 elapsed, eta 0:00:00",
    ]


def test_what_was_found_is_no_pace(capsys, clock):
    """Of 1,000 units 900 were there; 10 took a minute: nine more minutes, not seconds."""
    with progress.task("Scoring", total=1000, found=900) as advance:
        clock.now += 60
        advance(10)
    assert lines(capsys) == ["  Scoring: 910 of 1,000, 0:01:00 elapsed, eta 0:09:00"]


def test_compilation_is_no_pace(capsys, clock, monkeypatch):
    monkeypatch.setattr(progress, "_compilation", progress._Compilation())
    with progress.task("Scoring", total=100) as advance:
        progress._compilation.seconds += 40.0
        clock.now += 50
        advance(10)
    assert lines(capsys) == ["  Scoring: 10 of 100, 0:00:50 elapsed, eta 0:01:30"]


def test_jax_tells_of_its_compilations(monkeypatch):
    monkeypatch.setattr(progress, "_compilation", progress._Compilation())
    with progress.enabled(True), progress.task("Work", total=1):
        before = progress._compilation.seconds
        jax.jit(lambda x: jnp.sin(x) * 3.25 + 77)(np.arange(7.0)).block_until_ready()
        assert progress._compilation.seconds > before


@given(
    work=st.lists(st.integers(1, 500), min_size=2, max_size=30),
    found=st.integers(0, 50),
    compiled=st.lists(st.floats(0, 40), min_size=2, max_size=30),
    pace=st.floats(0.01, 5.0),
)
def test_the_eta_is_what_the_rest_takes(work, found, compiled, pace):
    """Oracle: units whose time goes with their work, with compilations strewn among them."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(progress, "_clock", clock)
        patch.setattr(progress, "_compilation", progress._Compilation())
        measured = progress.Pace(len(work) + found, found, float(sum(work)))
        assert measured.eta is None
        for i, amount in enumerate(work):
            extra = compiled[i % len(compiled)]
            progress._compilation.seconds += extra
            clock.now += amount * pace + extra
            measured.advance(1, amount)
            left = sum(work[i + 1 :]) * pace
            assert measured.eta == pytest.approx(left, abs=1e-6)
            clock.now += left / 2  # it runs down between reports
            assert measured.eta == pytest.approx(left / 2, abs=1e-6)
            clock.now -= left / 2
        assert measured.done == measured.total


def test_a_long_step_that_reports_nothing_is_not_silent(monkeypatch):
    """A thread speaks while the work is a single call, and stops with it."""
    err = io.StringIO()
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.2)
    with progress.task("Whole step"), progress.task("Compiling", total=5):
        time.sleep(1.5)
    said = err.getvalue().splitlines()
    assert len(said) >= 2
    assert all(line.startswith("  Compiling: 0 of 5, 0:00:0") for line in said)
    time.sleep(0.6)
    assert err.getvalue().splitlines() == said
    assert not any(thread.name == "mop progress" for thread in threading.enumerate())


def test_lines_of_nested_tasks_are_half_a_minute_apart(capsys, clock):
    with progress.task("Outer"):
        for _ in range(3):
            with progress.task("Inner", total=2) as advance:
                for _ in range(2):
                    clock.now += 11
                    advance(1)
    assert lines(capsys) == [
        "  Inner: 1 of 2, 0:00:11 elapsed, eta 0:00:11",
        "  Inner: 2 of 2, 0:00:22 elapsed, eta 0:00:00",
    ]


def test_a_task_that_fails_leaves_nothing_behind(clock):
    with pytest.raises(ZeroDivisionError), progress.task("Work", total=3):
        raise ZeroDivisionError
    assert progress._LINES._tasks == []


def test_who_decides(capsys, clock):
    def speaks() -> bool:
        with progress.task("Scoring", total=2) as advance:
            clock.now += 31
            advance(1)
        return bool(lines(capsys))

    assert speaks()  # from Python too
    with progress.enabled(False):
        assert not speaks()
        with progress.on_by_default():
            assert not speaks()
    with progress.on_by_default():
        assert speaks()


def test_bars_on_a_terminal_stand_in_one_display(monkeypatch):
    """Tasks within tasks share it; a step without a count leaves no bar."""
    err = io.StringIO()
    monkeypatch.setattr(err, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", err)
    monkeypatch.setenv("TERM", "xterm")
    with progress.task("Whole step"), progress.task("Scoring", total=3, found=1) as advance:
        advance(1)
        advance(1)
    assert progress._BARS._progress is None
    last = err.getvalue().rsplit("Scoring", 1)[1]
    assert "3/3" in last
    assert "Whole step" not in last
