"""The uniform mixture over the mixture's own components: what a gate has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mop_jax.evaluation.baselines.base import Pending, PromptedResponder, Request, Setting, register
from mop_jax.evaluation.baselines.persona_only import refuse_no_personas


@dataclass(frozen=True)
class UniformMixture:
    """Persona and exemplar are drawn uniformly and independently, whatever the context.

    The prompts are those of the mixture (`PromptBuilder.component`); the exemplars are its pool,
    `Setting.exemplars`.

    References:
        Bui et al. (2025), section 3, with π and Ω uniform.
    """

    name: str = "uniform_mixture"
    title: str = "uniform mixture"
    reference: str = "Bui et al. (2025)"
    needs_labels: ClassVar[bool] = False

    def fit(self, setting: Setting) -> PromptedResponder:
        """Takes the mixture's personas and exemplars.

        Raises:
            DataError: if there are no personas.
        """
        personas = refuse_no_personas(self.name, setting)
        pool = setting.train if setting.exemplars is None else setting.exemplars

        def write(sample: Pending) -> Request:
            k, j = int(sample.rng.integers(len(personas))), int(sample.rng.integers(len(pool)))
            exemplar = (pool.contexts[j], pool.responses[j])
            return Request(
                setting.prompts.component(personas[k], exemplar, sample.context),
                (exemplar[1],),
                {"persona": k, "exemplars": [pool.ids[j]]},
            )

        return PromptedResponder(setting, write)


register(UniformMixture())
