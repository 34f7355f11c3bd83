"""The main job as resumable steps on a run folder.

`run` does them all; each step is also a function of its own and first does, or finds done, the
steps that it needs: personas → score → fit → evaluate → simulate → likeness → figures.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mop_jax.config import FILES, RunConfig, load_config
from mop_jax.errors import DataError
from mop_jax.pipeline.manifest import read_manifest, with_given, without_resources
from mop_jax.pipeline.run_folder import InputChanged, RunFolder
from mop_jax.pipeline.running import OnStep, Run
from mop_jax.pipeline.steps import Step, steps_of, with_needs

if TYPE_CHECKING:
    from mop_jax.pipeline.workspace import Workspace

_LOG = logging.getLogger(__name__)

Source = str | Path | RunConfig


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
    return run_until("figures", config, out, update, memory, on_step)


def personas(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Splits and embeds the records, synthesises personas and draws the exemplar pool."""
    return run_until("personas", config, out, update, memory, on_step)


def score(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Scores the training records' candidate components."""
    return run_until("score", config, out, update, memory, on_step)


def fit(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Fits the gate and the temperatures, and the ablations that evaluation reports."""
    return run_until("fit", config, out, update, memory, on_step)


def evaluate(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Scores the held-out records and writes `metrics.json`."""
    return run_until("evaluate", config, out, update, memory, on_step)


def simulate(
    config: Source,
    out: str | Path | None = None,
    *,
    contexts: str | Path | Sequence[str] | None = None,
    num_samples: int | None = None,
    output: str | Path | None = None,
    language_model: str | Path | None = None,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Simulates responses to the held-out contexts or to new ones, by the run's model or another.

    Args:
        config: see `run`.
        out: see `run`.
        contexts: new contexts, from a file or as texts (see `read_contexts`); the held-out ones
            without it.
        num_samples: how many responses to new contexts, sample s to context s mod N; by default
            as many as the configuration says, but at least one to each.
        output: the file of these responses; by default one in the run folder whose name tells the
            language model, and new contexts by a hash.
        language_model: another one than the run's, hub id or path. It speaks through the personas,
            exemplars, gate and temperatures that were made and fitted with the run's own; prompts
            are built for it, in the plain form where it has no chat template.
        update: see `run`.
        memory: see `run`.
        on_step: see `run`.

    Returns:
        The run folder; with new contexts or another language model the file that was written.

    Raises:
        DataError: if the contexts are at fault, the language model is not there, or `output` is a
            file of somebody else's.
    """
    if contexts is None and num_samples is not None:
        raise DataError("num_samples is for new contexts; else set simulation.num_samples.")
    if contexts is None and language_model is None:
        if output is not None:
            raise DataError("output is for new contexts or another language model.")
        return run_until("simulate", config, out, update, memory, on_step)
    from mop_jax.pipeline.further import FurtherSimulation

    settings = config if isinstance(config, RunConfig) else read_config(config)
    number, new = settings.simulation.num_samples, None
    if contexts is not None:
        from mop_jax.pipeline.contexts import read_contexts

        new = read_contexts(contexts, settings.population)
        number = max(number, len(new)) if num_samples is None else num_samples
        if number < 1:
            raise DataError(f"num_samples is {number}; at least 1 is needed.")
    place = None if output is None else Path(output)
    other = None if language_model is None else str(language_model)
    job = FurtherSimulation(new, number, place, other)
    written: list[Path] = []
    run_until(
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
    return run_until("likeness", config, out, update, memory, on_step)


def figures(
    config: Source,
    out: str | Path | None = None,
    *,
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Draws the figures of a run; does what they need first."""
    return run_until("figures", config, out, update, memory, on_step)


def read_config(source: str | Path) -> RunConfig:
    """The configuration of a file, a shipped name, or an existing run folder."""
    path = Path(source)
    manifest = read_manifest(path) if (path / "manifest.json").exists() else None
    if manifest is None:
        return load_config(source)
    config = RunConfig.model_validate(manifest["configuration"])
    return with_given(_found_again(config, path), manifest["given"])


def step_titles(source: Source) -> dict[str, str]:
    """What each step of a run is called for a reader, by its name."""
    config = source if isinstance(source, RunConfig) else read_config(source)
    return {step.name: step.title for step in steps_of(config)}


def _found_again(config: RunConfig, folder: Path) -> RunConfig:
    """Older runs keep paths as they were counted from a project's folder, above that of the run."""
    changes: dict[str, Any] = {}
    for section, field in FILES:
        path = Path(getattr(getattr(config, section), field, None) or "/")
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


def workspace_after(
    lasts: Sequence[str],
    config: RunConfig,
    out: str | Path,
    *,
    beside: Workspace | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Workspace:
    """Does steps and all that they need, as far as they are not done, and returns the workspace.

    Args:
        lasts: names of steps.
        config: the configuration; a folder that has another one takes it.
        out: the run folder.
        beside: a run whose finished steps are taken over where they were made from the very same,
            and whose likelihood store and models are shared: a variant of that run does only what
            the difference concerns.
        on_step: see `run`.

    Raises:
        DataError: see `run`.
        FaultError: see `run`.
    """
    folder = RunFolder(out, config, update=True)
    steps = with_needs(*lasts, steps=steps_of(config))
    return _performed(Run(folder, None, beside), steps, on_step, None).space


def run_until(
    last: str,
    source: Source,
    out: str | Path | None,
    update: bool,
    memory: float | None,
    on_step: OnStep,
    afterwards: Callable[[Run], Any] | None = None,
) -> Path:
    """Does a step and all that it needs, then something else with the run; see `run`."""
    config = source if isinstance(source, RunConfig) else read_config(source)
    if isinstance(source, str | Path) and (Path(source) / "manifest.json").exists():
        out = out or source
    steps = with_needs(last, steps=steps_of(config))
    folder = RunFolder(out or _default_folder(config), config, update=update)
    return _performed(Run(folder, memory), steps, on_step, afterwards).folder.path


def _performed(
    run: Run, steps: list[Step], on_step: OnStep, afterwards: Callable[[Run], Any] | None
) -> Run:
    folder = run.folder
    run.check(steps)
    if afterwards is None and not (run.is_due(steps) or os.access(folder.path, os.W_OK)):
        return run  # all is there to be read, on a disk that takes no writes
    with ExitStack() as locks:
        if run.beside is not None and run.is_due(steps):
            locks.enter_context(run.beside.folder.locked())  # its scores are added to
        locks.enter_context(folder.locked())
        while not _did(run, steps, on_step, afterwards):
            pass
        folder.keep()
    return run


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
