"""Works on one run folder in a chain of processes, each of which but the last is killed (SIGKILL).

    python resume_driver.py CONFIG.json FOLDER REFERENCE POINT…

All processes are forked from this one, which imports everything once and computes nothing. One line
of JSON per process says how it ended, which finished artefacts differ from the reference run's, and
how many steps of which fits it did not have to do again.
"""

from __future__ import annotations

import itertools
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from jax._src import xla_bridge

from mop_jax import pipeline, progress
from mop_jax.config import RunConfig
from mop_jax.inference import checkpoints
from mop_jax.likelihoods import LikelihoodStore
from mop_jax.pipeline import simulation


def die() -> None:
    """Ends this process as a power cut would."""
    os.kill(os.getpid(), signal.SIGKILL)


def before_move(name: str) -> None:
    """Dies with an artefact written beside its place, just before it is moved there."""
    replace = os.replace

    def move(source: Any, target: Any) -> None:
        if Path(target).name == name:
            die()
        replace(source, target)

    os.replace = move


def at_append(number: int, *, torn: bool = False) -> None:
    """Dies at an append to the likelihood store, with half an entry on the disk if `torn`."""
    calls, append = itertools.count(1), LikelihoodStore.append

    def appended(self: LikelihoodStore, keys: Any, scores: Any) -> None:
        if next(calls) == number:
            if torn:
                self._handle.write(keys[0] + b"torn")
                self._handle.flush()
            die()
        append(self, keys, scores)

    LikelihoodStore.append = appended  # type: ignore[method-assign]


def at_fit_chunk(number: int) -> None:
    """Dies in the middle of a fit."""
    calls, task = itertools.count(1), progress.task

    @contextmanager
    def counted(description: str, *details: Any, **more: Any):
        with task(description, *details, **more) as advance:

            def count(amount: int, work: float | None = None) -> None:
                if description.startswith("Fitting") and next(calls) == number:
                    die()
                advance(amount, work)

            yield count

    progress.task = counted


def at_checkpoint(number: int) -> None:
    """Dies with a fit's checkpoint written beside its place, just before it is moved there."""
    moves = itertools.count(1)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "os.rename" and "/.fit/" in str(arguments[1]) and next(moves) == number:
            die()

    sys.addaudithook(watch)


def note_restored(file: Path) -> None:
    """Checkpoints after every few steps, and a line in `file` for each that a fit goes on from."""
    checkpoints.SECONDS_BETWEEN, checkpoints.SHARE_OF_TIME = 0.0, float("inf")
    restore = checkpoints.FitCheckpoints.restore

    def restored(self: checkpoints.FitCheckpoints, like: Any) -> Any:
        found = restore(self, like)
        with open(file, "a", encoding="utf-8") as handle:
            handle.write(f"{0 if found is None else len(found.losses)}\n")
        return found

    checkpoints.FitCheckpoints.restore = restored  # type: ignore[method-assign]


def at_response(number: int) -> None:
    """Dies while simulated responses are filed, with half a line in the journal."""
    calls, make_row = itertools.count(1), simulation._simulated_row

    def row(space: Any, *details: Any) -> str:
        if next(calls) == number:
            (journal,) = space.path.glob(".simulated*")
            with open(journal, "a", encoding="utf-8") as handle:
                handle.write('{"sample": 17, "text": "ha')
            die()
        return make_row(space, *details)

    simulation._simulated_row = row


POINTS: dict[str, Callable[[], None]] = {
    "personas, last artefact": lambda: before_move("embeddings.safetensors"),
    "score, torn entry": lambda: at_append(2, torn=True),
    "score, journal in order": lambda: before_move("scores.bin"),
    "fit, first model": lambda: at_fit_chunk(7),
    "fit, while a checkpoint is written": lambda: at_checkpoint(3),
    "fit, second model": lambda: at_fit_chunk(27),
    "evaluate, scoring": lambda: at_append(2),
    "evaluate, metrics": lambda: before_move("metrics.json"),
    "simulate, second batch": lambda: at_response(18),
    "likeness": lambda: before_move("likeness.json"),
    "figures": lambda: before_move("held_out.png"),
}


def work(config: RunConfig, folder: Path) -> None:
    """The body of a forked process."""
    status = 1
    try:
        with progress.enabled(False):
            pipeline.run(config, folder)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def differing(folder: Path, reference: Path) -> list[str]:
    """Finished artefacts that are not what they should be; journals and manifest grow in place."""
    return [
        path.relative_to(folder).as_posix()
        for path in folder.rglob("*.*")
        if path.is_file()
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
        and path.name not in ("manifest.json", "scores.bin")
        and path.read_bytes() != (reference / path.relative_to(folder)).read_bytes()
    ]


def main() -> None:
    """Forks a process for each point, and one to finish."""
    config = RunConfig.model_validate_json(Path(sys.argv[1]).read_text("utf-8"))
    folder, reference, points = Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4:]
    assert not xla_bridge.backends_are_initialized()
    restored = folder.with_suffix(".restored")
    warnings.simplefilter("ignore", RuntimeWarning)  # of forking beside JAX, which is idle here
    for point in [*points, None]:
        child = os.fork()
        if child == 0:
            note_restored(restored)
            if point is not None:
                POINTS[point]()
            work(config, folder)
        _, ended = os.waitpid(child, 0)
        report = {
            "point": point,
            "signal": os.WTERMSIG(ended) if os.WIFSIGNALED(ended) else None,
            "status": os.WEXITSTATUS(ended) if os.WIFEXITED(ended) else None,
            "differing": differing(folder, reference),
            "restored": [int(n) for n in restored.read_text().split()] if restored.exists() else [],
        }
        restored.unlink(missing_ok=True)
        print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
