"""Simulation beyond the steps of a run: for new contexts, or by another language model."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mop_jax.errors import DataError
from mop_jax.pipeline.inputs import Inputs

if TYPE_CHECKING:
    from mop_jax.pipeline.running import Run
    from mop_jax.pipeline.simulation import Voice
    from mop_jax.pipeline.workspace import Workspace
    from mop_jax.population.population import Population

_LOG = logging.getLogger(__name__)
_OTHER = "other language model"


@dataclass(frozen=True)
class FurtherSimulation:
    """Responses in a file of their own, made from the run's fit.

    Attributes:
        records: contexts that were in no file of the run; the held-out ones without it.
        num_samples: how many responses.
        output: the file to write, if it is to be another than one in the run folder.
        language_model: path or hub id, if it is to be another than the run's.
    """

    records: Population | None
    num_samples: int
    output: Path | None = None
    language_model: str | None = None

    def __call__(self, run: Run, on_step: Callable[[str, bool], None]) -> Path:
        """Writes the responses, or finds them written; returns the file.

        Raises:
            DataError: if the file is somebody else's, or of another model of the same name.
        """
        folder = run.folder
        output = (self.output or folder.path / self._file_name()).absolute()
        name = str(output) if self.output else output.name
        # Known by the file: another output is another simulation.
        step = f"simulate {name}"
        inputs = run.step_inputs("simulate")
        if self.records is not None:
            inputs["configuration"] |= {"num_samples": self.num_samples}
            inputs["inputs"] |= {"contexts": self.records.fingerprint}
        if self.language_model is not None:
            inputs["inputs"] |= {_OTHER: self._digest(run)}
            self._refuse_namesakes(run, step, output, inputs)
        if step not in folder.written and output.exists():
            raise DataError(f"{output} is there already; name another file with --output.")
        on_step("simulate", True)
        if folder.reasons(step, inputs, [name]) is not None:

            def work() -> None:
                space = run.space
                from mop_jax.pipeline.simulation import simulate_further

                simulate_further(
                    space,
                    self.records,
                    num_samples=self.num_samples,
                    output=output,
                    step=step,
                    voice=None
                    if self.language_model is None
                    else _voice(space, self.language_model),
                )

            folder.perform(step, inputs, [name], work)
        on_step("simulate", False)
        return output

    def _file_name(self) -> str:
        model = [] if self.language_model is None else [name_of_model(self.language_model)]
        contexts = [] if self.records is None else [self.records.fingerprint[:12]]
        return "-".join(["simulated", *model, *contexts]) + ".jsonl"

    def _digest(self, run: Run) -> str | None:
        """What the other language model is made from."""
        path = self.language_model
        config = run.folder.config
        changed = config.language_model.model_copy(update={"path": path})
        inputs = Inputs(config.model_copy(update={"language_model": changed}))
        stamp = inputs.stamp("language model", None, needed=True)
        if stamp is None:  # of a hub, and not fetched yet
            from mop_jax.resources import resolve_path

            resolve_path(str(path))
            stamp = inputs.stamp("language model", None, needed=True)
        return None if stamp is None else stamp["digest"]

    def _refuse_namesakes(self, run: Run, step: str, output: Path, inputs: dict[str, Any]) -> None:
        entry = run.folder.manifest["steps"].get(step, {})
        known = entry.get("inputs", {}).get("inputs", {}).get(_OTHER)
        if output.exists() and known not in (None, inputs["inputs"][_OTHER]):
            raise DataError(
                f"{output} was written by another language model of that name than "
                f"{self.language_model} is now; name another file with --output, or delete it."
            )


def name_of_model(path: str) -> str:
    """What files are called after a language model: the last part of its path or hub id."""
    name = Path(path.rstrip("/")).name.removesuffix(".gguf")
    return re.sub(r"[^\w.]+", "-", name).strip("-.") or "model"


def _voice(space: Workspace, path: str) -> Voice:
    """Another language model with prompts of its own; personas and exemplars stay as they are."""
    from mop_jax.pipeline.simulation import Voice
    from mop_jax.prompts import PromptBuilder, make_template
    from mop_jax.prompts.tokens import template_source

    language_model = space.load_language_model(path)
    section, tokenizer = space.config.prompt, language_model.tokenizer
    form = section.form
    if form in ("auto", "chat") and not template_source(tokenizer):
        form = "plain"
        _LOG.info("%s has no chat template; its prompts are written in the plain form.", path)
    _LOG.info("%s is sampled at the temperatures fitted with the run's own model.", path)
    template = make_template(form, tokenizer, section)
    return Voice(
        language_model, PromptBuilder(tokenizer, template, instruction=section.instruction)
    )
