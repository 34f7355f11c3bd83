"""Progress outside a terminal: silent in library calls, lines with an ETA where it is wanted."""

from __future__ import annotations

from mop_jax import progress


def lines(capsys) -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.strip()]


def test_lines_of_a_log(capsys, monkeypatch):
    clock = iter([0.0, 20.0, 40.0, 50.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.enabled(True), progress.task("Scoring", total=4000) as advance:
        for _ in range(4):
            advance(1000)
    assert lines(capsys) == [
        "  Scoring: 2,000 of 4,000, 0:00:40 elapsed, eta 0:00:40",
        "  Scoring: 4,000 of 4,000, 0:01:40 elapsed, eta 0:00:00",
    ]


def test_a_resumed_task_that_has_done_nothing_yet_has_no_eta(capsys, monkeypatch):
    clock = iter([0.0, 60.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.enabled(True), progress.task("Scoring", total=10) as advance:
        advance(0)
    assert lines(capsys) == []


def test_who_decides(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0.0)

    def speak() -> bool:
        with progress.task("Scoring", total=1) as advance:
            advance(1)
        return bool(lines(capsys))

    # The suite itself forces bars off; outside it nothing is forced.
    token = progress._forced.set(None)
    try:
        assert not speak()
        with progress.on_by_default():
            assert speak()
            with progress.enabled(False):
                assert not speak()
                with progress.on_by_default():
                    assert not speak()
        assert not speak()
    finally:
        progress._forced.reset(token)
