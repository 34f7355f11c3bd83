"""The main job as resumable steps on a run folder.

`run` does them all; each step is also a function of its own and first does, or finds done, the
steps that it needs: personas → score → fit → evaluate → simulate → figures.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

from pydantic import ValidationError

from mop_jax import progress
from mop_jax.config import RunConfig, load_config
from mop_jax.errors import FaultError
from mop_jax.pipeline.run_folder import RunFolder, fingerprint, read_manifest
from mop_jax.pipeline.steps import with_needs
from mop_jax.pipeline.workspace import Workspace

# Fields of the language model's that say how it is run, not what comes of it.
_RESOURCES = {"mesh", "memory_gib"}

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
    update: bool = False,
    memory: float | None = None,
    on_step: OnStep = lambda step, begun: None,
) -> Path:
    """Simulates responses to the held-out contexts."""
    return _run_until("simulate", config, out, update, memory, on_step)


def read_config(source: str | Path) -> RunConfig:
    """The configuration of a file, a shipped name, or an existing run folder."""
    manifest = read_manifest(Path(source)) if (Path(source) / "manifest.json").exists() else None
    if manifest is None:
        return load_config(source)
    try:
        return RunConfig.model_validate(manifest["configuration"])
    except ValidationError as error:
        raise FaultError(
            f"{Path(source) / 'manifest.json'} holds a configuration of another version; "
            "give the configuration file, and another folder with --out."
        ) from error


def _run_until(
    last: str,
    source: Source,
    out: str | Path | None,
    update: bool,
    memory: float | None,
    on_step: OnStep,
) -> Path:
    config = source if isinstance(source, RunConfig) else read_config(source)
    if isinstance(source, str | Path) and (Path(source) / "manifest.json").exists():
        out = out or source
    folder = RunFolder(out or Path("runs") / config.name, config, update=update)
    space = Workspace(folder, memory)
    prints: dict[str, str] = {}
    with folder.locked():
        for step in with_needs(last):
            read: dict[str, Any] = dict.fromkeys(step.sections, True) | step.parts
            sections = config.model_dump(
                mode="json", include=read, exclude={"language_model": _RESOURCES}
            )
            # Of parts that have their defaults nothing is left: as in runs that had none.
            sections = {name: section for name, section in sections.items() if section != {}}
            prints[step.name] = fingerprint(
                step.name, sections, [prints[name] for name in step.needs]
            )
            on_step(step.name, True)
            work = partial(resolve_name(step.work), space)
            with progress.task(step.title):
                folder.perform(step.name, prints[step.name], step.outputs, work)
            on_step(step.name, False)
    return folder.path
