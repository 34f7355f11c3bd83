"""Fine-tuning: low-rank adapters trained on the training records, with the same language model.

What prompting is compared with in the end: the weights themselves may learn. The adapters are
trained on responses after zero-shot prompts, merged into a copy of the weights, and that copy is
sampled zero-shot. The language model of the setting is left as it is.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mop_jax import atomic
from mop_jax.errors import DataError
from mop_jax.evaluation.baselines.base import (
    Pending,
    PromptedResponder,
    Request,
    Setting,
    derived_seed,
    register,
)
from mop_jax.population.population import Population

if TYPE_CHECKING:
    # JAX is loaded when something is fitted: the names in a table must not need it.
    from mop_jax.evaluation.baselines.lora_training import Example
    from mop_jax.lm.flax_lm import FlaxLM

_STREAM = 41
_HELD_OUT = 0.1


@dataclass(frozen=True)
class LoRA:
    """Adapters on all projections of attention and feed-forward blocks, trained with Adam.

    It differs from the original, which adapts queries and values only, as has become usual. A tenth
    of the training records, whole groups where there are groups, decides when to stop. Under
    `Setting.cache` the course is saved every few seconds, and its end kept.

    Attributes:
        rank: r.
        alpha: α; updates are scaled by α/r.
        learning_rate: at its highest.
        num_epochs: at most.
        patience: epochs without a better held-out loss after which training ends.
        tokens_per_batch: padding included.

    References:
        Hu et al. (2022), LoRA: Low-Rank Adaptation of Large Language Models, ICLR.
    """

    rank: int = 8
    alpha: float = 16.0
    learning_rate: float = 5e-4
    num_epochs: int = 5
    patience: int = 1
    tokens_per_batch: int = 1024
    name: str = "lora"
    title: str = "fine-tuning (LoRA)"
    reference: str = "Hu et al. (2022)"
    needs_labels: ClassVar[bool] = False

    def __post_init__(self) -> None:
        """Refuses sizes that train nothing."""
        sizes = (self.rank, self.num_epochs, self.patience, self.tokens_per_batch)
        if min(sizes) < 1 or self.learning_rate <= 0 or self.alpha <= 0:
            raise DataError(
                "LoRA needs a positive rank, alpha, learning_rate, num_epochs, patience and "
                f"tokens_per_batch; got {self.rank}, {self.alpha}, {self.learning_rate}, "
                f"{self.num_epochs}, {self.patience} and {self.tokens_per_batch}."
            )

    def fit(self, setting: Setting) -> PromptedResponder:
        """Trains the adapters and merges them into a copy of the language model.

        Raises:
            DataError: if the language model's weights are not at hand, or a record does not fit
                into its context window.
            FaultError: if training diverges.
        """
        language_model: Any = setting.language_model
        if not hasattr(language_model, "decoder"):
            raise DataError(
                f"Baseline {self.name!r} trains weights, and the language model has none at hand; "
                "accepted is a FlaxLM."
            )
        tuned, report = self._train(setting, language_model)

        def write(sample: Pending) -> Request:
            return Request(setting.prompts.zero_shot(sample.context))

        return PromptedResponder(replace(setting, language_model=tuned), write, report=report)

    def _train(self, setting: Setting, language_model: FlaxLM) -> tuple[FlaxLM, dict[str, Any]]:
        import jax
        from flax import nnx

        from mop_jax.evaluation.baselines import lora_training
        from mop_jax.evaluation.baselines.lora_layers import adapted, merged, split_adapters
        from mop_jax.inference.checkpoints import remove
        from mop_jax.lm.flax_lm import FlaxLM

        learnt, held_out = split_for_stopping(setting.train, derived_seed(setting.seed, _STREAM))
        examples = _examples(setting, language_model, learnt)
        checking = _examples(setting, language_model, held_out)
        key = jax.random.key(derived_seed(setting.seed, _STREAM, 1))
        decoder = language_model.decoder
        model = adapted(decoder, self.rank, self.alpha, key)
        graph, start, frozen = split_adapters(model)
        fingerprint = self._fingerprint(setting)
        kept = None if setting.cache is None else setting.cache / f"lora-{fingerprint}.safetensors"
        exact = str(decoder.dtype) == "float32"
        with jax.default_matmul_precision("highest" if exact else "default"):
            if kept is not None and kept.exists():
                adapters, report = _read(kept, start)
            else:
                settings = lora_training.Settings(
                    self.learning_rate,
                    self.num_epochs,
                    self.patience,
                    self.tokens_per_batch,
                    derived_seed(setting.seed, _STREAM, 2),
                )
                checkpoints = lora_training.open_checkpoints(setting.cache, fingerprint)
                try:
                    trained = lora_training.train(
                        model, examples, checking, settings, checkpoints=checkpoints
                    )
                finally:
                    if checkpoints is not None:
                        checkpoints.close()
                adapters = trained.adapters
                report = {
                    "records": len(learnt),
                    "held_out_records": len(held_out),
                    "steps": len(trained.losses),
                    "held_out_nats": trained.held_out,
                    "best_epoch": int(np.argmin(trained.held_out)),
                }
                if kept is not None and setting.cache is not None:
                    _write(kept, adapters, report)
                    remove(setting.cache / "lora-checkpoints" / fingerprint[:32])
            whole = merged(decoder, nnx.merge(graph, adapters, frozen))
        tuned = FlaxLM(whole, language_model.tokenizer, mesh=language_model.mesh)
        return tuned, report

    def _fingerprint(self, setting: Setting) -> str:
        """SHA-256 of all that decides the adapters."""
        parts = [
            setting.language_model.fingerprint,
            setting.prompts.fingerprint,
            setting.train.fingerprint,
            setting.seed,
            astuple(self),
        ]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def split_for_stopping(population: Population, seed: int) -> tuple[Population, Population]:
    """Training records, and the tenth of them, or the smallest group, that says when to stop.

    Raises:
        DataError: if there are fewer than two records.
    """
    size = max(1, round(_HELD_OUT * len(population)))
    groups = population.groups
    if groups is None or len(set(groups)) < 2:
        return population.split(size, seed=seed)
    smallest = int(np.unique(groups, return_counts=True)[1].min())
    return population.split(max(size, smallest), by="group", seed=seed)


def _examples(setting: Setting, language_model: FlaxLM, records: Population) -> list[Example]:
    from mop_jax.evaluation.baselines.lora_training import Example

    found = []
    for id_, context, text in zip(records.ids, records.contexts, records.responses, strict=True):
        prompt = tuple(setting.prompts.zero_shot(context).token_ids)
        response = setting.prompts.response(text)
        language_model.check_length(len(prompt) + len(response), f"Record {id_}")
        found.append(Example(prompt, response))
    return found


def _write(path: Path, adapters: Any, report: dict[str, Any]) -> None:
    from flax import nnx
    from safetensors.numpy import save_file

    arrays = {
        ".".join(map(str, name)): np.asarray(leaf[...])
        for name, leaf in nnx.to_flat_state(adapters)
    }
    with atomic.replacing(path) as temporary:
        save_file(arrays, temporary, metadata={"report": json.dumps(report)})


def _read(path: Path, like: Any) -> tuple[Any, dict[str, Any]]:
    import jax.numpy as jnp
    from flax import nnx
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            report = json.loads(file.metadata()["report"])
            flat = {
                name: leaf.replace(jnp.asarray(file.get_tensor(".".join(map(str, name)))))
                for name, leaf in nnx.to_flat_state(like)
            }
    except (SafetensorError, KeyError, TypeError) as error:
        raise DataError(f"{path} is damaged; delete it, and it is trained anew.") from error
    return nnx.from_flat_state(flat), report


register(LoRA())
