"""Where the time of a small run goes: the demo with nothing compiled before, step by step.

Runs `mop run demo` in a process of its own, with an empty cache of compiled programs and an empty
run folder, and prints for each step its wall time, its processor time (all threads), how much of
the latter went into preparing programs (tracing and lowering) and into compiling them, and how
many there were; then the programs that took longest. `--warm` adds a second run, which finds the
first one's programs. Processor times depend little on what else a machine does; those of compiling
include what is computed beside it.

    python benchmarks/small_run.py [--config demo] [--warm]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "small_run.json"
_COMPILATION = "/jax/core/compile/backend_compile_duration"
_EVENTS = {
    "/jax/core/compile/jaxpr_trace_duration": "preparing",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "preparing",
    _COMPILATION: "compiling",
}
_COLUMNS = ("wall", "cpu", "preparing", "compiling", "programs")


class Meter:
    """Adds up seconds by step."""

    def __init__(self) -> None:
        """Begins in the step `start`: imports, and whatever comes before the first one."""
        self.step = "start"
        self.steps: dict[str, Counter[str]] = {}
        self.programs: dict[str, list[float]] = defaultdict(list)
        self._open: list[tuple[str, float]] = []
        self._totals: Counter[str] = Counter()
        self._mark: Counter[str] = Counter()
        self._begun = time.monotonic()

    def begin(self, event: str, value: float, **_: object) -> None:
        """Takes the beginning of a span of JAX's own bookkeeping."""
        if event in _EVENTS:
            self._open.append((event, time.process_time()))

    def end(self, event: str, seconds: float, fun_name: str = "", **_: object) -> None:
        """Takes its end."""
        if event not in _EVENTS or not self._open:
            return
        _, begun = self._open.pop()
        spent = time.process_time() - begun
        # Of spans within spans the outermost counts.
        if not self._open:
            self._totals[_EVENTS[event]] += spent
        if event == _COMPILATION:
            self._totals["programs"] += 1
            self.programs[fun_name].append(spent)

    def turn(self, following: str) -> None:
        """Ends a step and begins the next."""
        self._totals["wall"] = time.monotonic() - self._begun
        self._totals["cpu"] = time.process_time()
        entry = self.steps.setdefault(self.step, Counter())
        entry.update({name: self._totals[name] - self._mark[name] for name in _COLUMNS})
        self._mark, self.step = Counter(self._totals), following


def measured(config: str, folder: Path, result: Path) -> None:
    """Runs the job in this process and writes what it took."""
    meter = Meter()
    import jax

    jax.monitoring.register_scalar_listener(meter.begin)
    jax.monitoring.register_event_duration_secs_listener(meter.end)

    from mop_jax import cli, pipeline

    original = pipeline.run

    def run(*args: Any, on_step: Any, **kwargs: Any) -> Path:
        def both(step: str, begun: bool) -> None:
            meter.turn(step if begun else "between")
            on_step(step, begun)

        return original(*args, on_step=both, **kwargs)

    pipeline.run = run  # type: ignore[assignment]
    try:
        cli.main(["run", config, "--out", str(folder)])
    except SystemExit as end:
        if end.code:
            raise
    meter.turn("")
    result.write_text(json.dumps({"steps": meter.steps, "programs": meter.programs}))


def shown(title: str, measurement: dict[str, Any]) -> None:
    """Prints the tables."""
    print(f"\n{title}\n{'step':<12}" + "".join(f"{name:>11}" for name in _COLUMNS))
    for name, values in [*measurement["steps"].items(), ("all", measurement["all"])]:
        print(f"{name:<12}" + "".join(f"{values[column]:>11.1f}" for column in _COLUMNS))
    print("\nprograms that took longest to compile (count, processor seconds)")
    for name, (count, seconds) in list(measurement["programs"].items())[:15]:
        print(f"  {name:<40}{count:>5}{seconds:>8.1f}")


def main() -> None:
    """Runs the measurement; see the module's docstring."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", default="demo")
    parser.add_argument("--warm", action="store_true")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        measured(arguments.config, *arguments.child)
        return
    results = {}
    with tempfile.TemporaryDirectory() as scratch:
        environment = {**os.environ, "XDG_CACHE_HOME": scratch}
        for title in ("cold", "warm") if arguments.warm else ("cold",):
            folder, written = Path(scratch) / title, Path(scratch) / f"{title}.json"
            command = [sys.executable, __file__, "--config", arguments.config, "--child"]
            subprocess.run([*command, folder, written], env=environment, check=True)
            found = json.loads(written.read_text())
            total: Counter[str] = Counter()
            for values in found["steps"].values():
                total.update(values)
            found["all"] = total
            summed = {name: (len(s), sum(s)) for name, s in found["programs"].items()}
            found["programs"] = dict(sorted(summed.items(), key=lambda item: -item[1][1]))
            results[title] = found
            shown(title, found)
    arguments.out.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
