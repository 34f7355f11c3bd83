"""A run folder at work: which steps are due, and doing them."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from functools import partial
from pkgutil import resolve_name
from typing import TYPE_CHECKING, Any

from mop_jax import progress
from mop_jax.pipeline.inputs import INPUTS, Inputs
from mop_jax.pipeline.manifest import step_inputs
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.steps import Step, steps_of, with_needs

if TYPE_CHECKING:
    from mop_jax.pipeline.workspace import Workspace

_LOG = logging.getLogger(__name__)

OnStep = Callable[[str, bool], None]


class Run:
    """A run folder at work.

    Attributes:
        folder: the folder.
        inputs: what is read from outside it.
        beside: see `workspace_after`.
    """

    def __init__(
        self, folder: RunFolder, memory: float | None = None, beside: Workspace | None = None
    ):
        """Nothing is read yet."""
        self.folder = folder
        self.beside = beside
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

            self._space = Workspace(self.folder, self._memory, self.inputs, self.beside)
        return self._space

    def check(self, steps: list[Step]) -> None:
        """Refuses inputs that are not there, at fault, or not those of the finished steps."""
        due = {step.name for step in self._due(steps)}
        for name in INPUTS:
            readers = {step.name for step in steps if name in step.inputs}
            if readers:
                known = self.folder.source(name)
                self.folder.input(name, self.inputs.stamp(name, known, needed=bool(readers & due)))
        if self.folder.config.survey is not None:
            return
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
            own = steps_of(self.folder.config)
            before = {other.name for other in with_needs(step.name, steps=own)}
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
                other = None if self.beside is None else self.beside.folder
                if other is None or not self.folder.take_over(step.name, inputs, other):
                    self.folder.perform(step.name, inputs, step.outputs, work)
            on_step(step.name, False)

    def _work(self, step: Step) -> None:
        space = self.space  # says that JAX is being loaded, which the step's module does too
        with progress.task(step.title):
            resolve_name(step.work)(space)
