"""The main job as resumable steps on a run folder.

`run` does them all; each step is also a function of its own and first does, or finds done, the
steps that it needs: personas → score → fit → evaluate → simulate → likeness → figures.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from mop_jax import progress
from mop_jax.config import FILES, RunConfig, load_config
from mop_jax.errors import DataError
from mop_jax.pipeline.inputs import INPUTS, Inputs
from mop_jax.pipeline.manifest import read_manifest, step_inputs, with_given, without_resources
from mop_jax.pipeline.run_folder import InputChanged, RunFolder
from mop_jax.pipeline.steps import Step, with_needs

if TYPE_CHECKING:
    from mop_jax.pipeline.workspace import Workspace
    from mop_jax.population.population import Population

_LOG = logging.getLogger(__name__)

Source = str | Path | RunConfig
OnStep = Callable[[str, bool], None]


def run(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Does every step that is not done yet, and returns the run folder.

    Args:
        config: a configuration file, the name of a shipped one (`demo`, `rotten_tomatoes`), a
            `RunConfig`, or an existing run folder.
        out: the run folder; `runs/<name>` by default.
        update: adopt a changed configuration in an existing folder; see `RunFolder`.
        memory: GiB that the keys and values of prompts' prefixes may take at a time, in place of
            the configuration's `language_model.memory_gib`.
        on_step: called as (step, True) before a step and (step, False) after it.

    Raises:
        DataError: if the configuration or the data are at fault.
        FaultError: if a checkpoint, the disk or a computation is.
    """
    return _run_until("figures", config, out, update, memory, on_step)


def personas(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Splits and embeds the records, synthesises personas and draws the exemplar pool."""
    return _run_until("personas", config, out, update, memory, on_step)


def score(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Scores the training records' candidate components."""
    return _run_until("score", config, out, update, memory, on_step)


def fit(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Fits the gate and the temperatures, and the ablations that evaluation reports."""
    return _run_until("fit", config, out, update, memory, on_step)


def evaluate(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Scores the held-out records and writes `metrics.json`."""
    return _run_until("evaluate", config, out, update, memory, on_step)


def simulate(
    config: Source,
    out: str | Path | None = None,
    *,
    contexts: str | Path | Sequence[str] | None = None,
    num_samples: int | None = None,
    output: str | Path | None = None,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Simulates responses to the held-out contexts, or to new ones.

    Args:
        config: see `run`.
        out: see `run`.
        contexts: new contexts, from a file or as texts (see `read_contexts`); the held-out ones
            without it.
        num_samples: how many responses to new contexts, sample s to context s mod N; by default
            as many as the configuration says, but at least one to each.
        output: the file of the responses to new contexts; by default one in the run folder whose
            name tells the contexts by a hash.
        update: see `run`.
        memory: see `run`.
        on_step: see `run`.

    Returns:
        The run folder; with new contexts the file that was written.

    Raises:
        DataError: if the contexts are at fault, or `output` is a file of somebody else's.
    """
    if contexts is None:
        if num_samples is not None or output is not None:
            raise DataError(
                "num_samples and output are for new contexts; for the held-out ones set "
                "simulation.num_samples."
            )
        return _run_until("simulate", config, out, update, memory, on_step)
    from mop_jax.pipeline.contexts import read_contexts

    settings = config if isinstance(config, RunConfig) else read_config(config)
    new = read_contexts(contexts, settings.population)
    number = max(settings.simulation.num_samples, len(new)) if num_samples is None else num_samples
    if number < 1:
        raise DataError(f"num_samples is {number}; at least 1 is needed.")
    job = NewContexts(new, number, None if output is None else Path(output))
    written: list[Path] = []
    _run_until(
        "fit", config, out, update, memory, on_step, lambda run: written.append(job(run, on_step))
    )
    return written[0]


def likeness(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Sets simulated responses beside real ones and writes `likeness.json`."""
    return _run_until("likeness", config, out, update, memory, on_step)


def figures(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Draws the figures of a run; does what they need first."""
    return _run_until("figures", config, out, update, memory, on_step)


def read_config(source: str | Path) -> RunConfig:
    """The configuration of a file, a shipped name, or an existing run folder."""
    path = Path(source)
    manifest = read_manifest(path) if (path / "manifest.json").exists() else None
    if manifest is None:
        return load_config(source)
    config = RunConfig.model_validate(manifest["configuration"])
    return with_given(_found_again(config, path), manifest["given"])


def _found_again(config: RunConfig, folder: Path) -> RunConfig:
    """Older runs keep paths as they were counted from a project's folder, above that of the run."""
    changes: dict[str, Any] = {}
    for section, field in FILES:
        path = Path(getattr(getattr(config, section), field) or "/")
        if path.is_absolute() or path.exists():
            continue
        for base in (folder.absolute().parent.parent, folder.absolute().parent):
            if (base / path).exists():
                there = {field: str(base / path)}
                changes[section] = getattr(config, section).model_copy(update=there)
                break
    return config.model_copy(update=changes)


def _default_folder(config: RunConfig) -> Path:
    """`runs/NAME`; a run without a name may be of a time when such were all called `run`."""
    folder, former = Path("runs") / config.name, Path("runs") / "run"
    if "name" in config.model_fields_set or folder.exists() or folder == former:
        return folder
    if not (former / "manifest.json").exists():
        return folder
    stored = read_manifest(former)
    wanted = config.model_dump(mode="json")
    if (
        stored
        and stored["name"] == "run"
        and all(
            without_resources(stored["configuration"]).get(section)
            == without_resources(wanted)[section]
            for section in ("population", "split", "personas", "exemplars")
        )
    ):
        _LOG.warning("Going on in %s, where this run was begun; name it to move it.", former)
        return former
    return folder


def _run_until(
    last: str,
    source: Source,
    out: str | Path | None,
    update: bool,
    memory: float | None,
    on_step: OnStep,
    afterwards: Callable[[Run], Any] | None = None,
) -> Path:
    config = source if isinstance(source, RunConfig) else read_config(source)
    if isinstance(source, str | Path) and (Path(source) / "manifest.json").exists():
        out = out or source
    folder = RunFolder(out or _default_folder(config), config, update=update)
    run = Run(folder, memory)
    steps = with_needs(last)
    run.check(steps)
    if afterwards is None and not (run.is_due(steps) or os.access(folder.path, os.W_OK)):
        return folder.path  # all is there to be read, on a disk that takes no writes
    with folder.locked():
        while not _did(run, steps, on_step, afterwards):
            pass
        folder.keep()
    return folder.path


def _did(
    run: Run, steps: list[Step], on_step: OnStep, afterwards: Callable[[Run], Any] | None
) -> bool:
    """Does what is not done; False if a loaded model showed that steps must be looked at again."""
    try:
        run.perform(steps, on_step)
        if afterwards is not None:
            afterwards(run)
    except InputChanged:
        return False
    return True


@dataclass(frozen=True)
class NewContexts:
    """Simulation for contexts that were in no file of the run.

    Attributes:
        records: the contexts.
        num_samples: how many responses.
        output: the file to write, if it is to be another than one in the run folder.
    """

    records: Population
    num_samples: int
    output: Path | None

    def __call__(self, run: Run, on_step: OnStep) -> Path:
        """Writes the responses, or finds them written; returns the file."""
        folder = run.folder
        digest = self.records.fingerprint[:12]
        output = (self.output or folder.path / f"simulated-{digest}.jsonl").absolute()
        name = str(output) if self.output else output.name
        # Known by the file: another output is another simulation.
        step = f"simulate {name}"
        inputs = run.step_inputs("simulate")
        inputs["configuration"] |= {"num_samples": self.num_samples}
        inputs["inputs"] |= {"contexts": self.records.fingerprint}
        if step not in folder.written and output.exists():
            raise DataError(f"{output} is there already; name another file with --output.")
        on_step("simulate", True)
        if folder.reasons(step, inputs, [name]) is not None:

            def work() -> None:
                space = run.space
                from mop_jax.pipeline.simulation import simulate_contexts

                simulate_contexts(
                    space, self.records, num_samples=self.num_samples, output=output, step=step
                )

            folder.perform(step, inputs, [name], work)
        on_step("simulate", False)
        return output


class Run:
    """A run folder at work.

    Attributes:
        folder: the folder.
        inputs: what is read from outside it.
    """

    def __init__(self, folder: RunFolder, memory: float | None = None):
        """Nothing is read yet."""
        self.folder = folder
        self.inputs = Inputs(folder.config)
        self._memory = memory
        self._space: Workspace | None = None

    @property
    def space(self) -> Workspace:
        """What steps work with; loads JAX."""
        if self._space is None:
            if "jax" not in sys.modules:
                _LOG.info("Loading JAX and NumPyro …")
            from mop_jax.pipeline.workspace import Workspace

            self._space = Workspace(self.folder, self._memory, self.inputs)
        return self._space

    def check(self, steps: list[Step]) -> None:
        """Refuses inputs that are not there, at fault, or not those of the finished steps."""
        due = {step.name for step in self._due(steps)}
        for name in INPUTS:
            readers = {step.name for step in steps if name in step.inputs}
            if readers:
                known = self.folder.source(name)
                self.folder.input(name, self.inputs.stamp(name, known, needed=bool(readers & due)))
        if any(step.name == "personas" for step in self._due(steps)):
            evaluated = any(step.name == "evaluate" for step in steps)
            self.inputs.check_sizes(evaluated=evaluated)

    def is_due(self, steps: list[Step]) -> bool:
        """Whether any step is to be done."""
        return bool(self._due(steps))

    def _due(self, steps: list[Step]) -> list[Step]:
        """Steps to be done, as far as can be told before any is."""
        due: list[Step] = []
        for step in steps:
            before = {other.name for other in with_needs(step.name)}
            if before & {other.name for other in due} or self.reasons(step) is not None:
                due.append(step)
        return due

    def step_inputs(self, step: str) -> dict[str, Any]:
        """All that a step would be made from now."""
        digests = {name: (self.folder.source(name) or {}).get("digest") for name in INPUTS}
        return step_inputs(step, self.folder.config, digests, self.folder.written)

    def reasons(self, step: Step) -> list[str] | None:
        """Why a step must be done; see `RunFolder.reasons`."""
        inputs = self.step_inputs(step.name)
        return self.folder.reasons(step.name, inputs, step.outputs, step.changes)

    def perform(self, steps: list[Step], on_step: OnStep) -> None:
        """Does what is not done.

        Raises:
            InputChanged: if steps must be looked at again; see `RunFolder.loaded`.
        """
        for step in steps:
            on_step(step.name, True)
            reasons = self.reasons(step)
            if reasons:
                more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
                _LOG.info("%s: done again, since %s%s.", step.title, reasons[0], more)
            if reasons is not None:
                work = partial(self._work, step)
                inputs = self.step_inputs(step.name)
                self.folder.perform(step.name, inputs, step.outputs, work)
            on_step(step.name, False)

    def _work(self, step: Step) -> None:
        space = self.space  # says that JAX is being loaded, which the step's module does too
        with progress.task(step.title):
            resolve_name(step.work)(space)
