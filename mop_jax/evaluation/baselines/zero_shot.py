"""Zero-shot: the language model is given the request and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mop_jax.evaluation.baselines.base import Pending, PromptedResponder, Request, Setting, register


@dataclass(frozen=True)
class ZeroShot:
    """The context alone, in the form of `PromptBuilder.zero_shot`.

    References:
        Brown et al. (2020), Language Models are Few-Shot Learners.
    """

    name: str = "zero_shot"
    title: str = "zero-shot"
    reference: str = "Brown et al. (2020)"
    needs_labels: ClassVar[bool] = False

    def fit(self, setting: Setting) -> PromptedResponder:
        """Nothing is fitted."""

        def write(sample: Pending) -> Request:
            return Request(setting.prompts.zero_shot(sample.context))

        return PromptedResponder(setting, write)


register(ZeroShot())
