"""Persona only: each sample embodies one of the mixture's personas, drawn uniformly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mop_jax.errors import DataError
from mop_jax.evaluation.baselines.base import Pending, PromptedResponder, Request, Setting, register


@dataclass(frozen=True)
class PersonaOnly:
    """A persona and no exemplar, in the form of `PromptBuilder.persona_only`.

    References:
        Bui et al. (2025), the ablation without exemplars.
    """

    name: str = "persona_only"
    title: str = "personas, no exemplar"
    reference: str = "Bui et al. (2025)"
    needs_labels: ClassVar[bool] = False

    def fit(self, setting: Setting) -> PromptedResponder:
        """Takes the mixture's personas.

        Raises:
            DataError: if there are none.
        """
        personas = refuse_no_personas(self.name, setting)

        def write(sample: Pending) -> Request:
            k = int(sample.rng.integers(len(personas)))
            prompt = setting.prompts.persona_only(personas[k], sample.context)
            return Request(prompt, details={"persona": k})

        return PromptedResponder(setting, write)


def refuse_no_personas(name: str, setting: Setting) -> list[str]:
    """The setting's personas.

    Raises:
        DataError: if there are none.
    """
    if not len(setting.personas):
        raise DataError(f"Baseline {name!r} needs personas, and the setting has none.")
    return list(setting.personas)


register(PersonaOnly())
