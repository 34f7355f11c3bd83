"""Few-shot: k random training records stand before the request, drawn anew for each sample."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mop_jax.errors import DataError
from mop_jax.evaluation.baselines.base import (
    Pending,
    PromptedResponder,
    Request,
    Setting,
    draw_records,
    register,
)
from mop_jax.prompts import ConversationBuilder


@dataclass(frozen=True)
class FewShot:
    """k exemplars, each a turn of its own, in random order and without a persona.

    Records are drawn in proportion to their weights, without replacement.

    Attributes:
        num_exemplars: k.

    References:
        Brown et al. (2020), Language Models are Few-Shot Learners.
    """

    num_exemplars: int
    reference: str = "Brown et al. (2020)"
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses an impossible k."""
        if self.num_exemplars < 1:
            raise DataError(f"num_exemplars is {self.num_exemplars}; at least 1 is needed.")

    @property
    def name(self) -> str:
        """In files."""
        return f"few_shot_{self.num_exemplars}"

    @property
    def title(self) -> str:
        """In tables and figures."""
        return f"few-shot, {self.num_exemplars} random"

    def fit(self, setting: Setting) -> PromptedResponder:
        """Nothing is fitted."""
        writer, train = ConversationBuilder(setting.prompts), setting.train

        def write(sample: Pending) -> Request:
            rows = draw_records(train, self.num_exemplars, sample.rng)
            pairs = [(train.contexts[row], train.responses[row]) for row in rows]
            return Request(
                writer.conversation(pairs, sample.context),
                tuple(y for _, y in pairs),
                {"exemplars": [train.ids[row] for row in rows]},
            )

        return PromptedResponder(setting, write)


register(FewShot(1))
register(FewShot(4))
