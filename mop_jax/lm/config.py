"""What the decoder needs to know of an architecture, read from a checkpoint and checked in full.

A checkpoint's configuration is read value by value. One that the decoder does not implement is
refused by name: an ignored setting would corrupt every likelihood without a sign.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mop_jax.errors import DataError, FaultError


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies are stretched for long contexts.

    Attributes:
        kind: `default` (none), `linear` (all frequencies divided by `factor`) or `llama3` (only the
            slow ones, with a smooth transition; Llama 3.1's scheme).
        factor: the stretch.
        low_freq_factor: `llama3`: wavelengths above original/low are stretched in full.
        high_freq_factor: `llama3`: wavelengths below original/high are kept.
        original_max_position: `llama3`: the context length before stretching, tokens.
    """

    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_position: int = 8192


@dataclass(frozen=True)
class DecoderConfig:
    """Sizes and constants of a decoder-only transformer of the Llama family.

    Attributes:
        vocab_size: V, rows of the embedding.
        hidden_size: width of the residual stream.
        intermediate_size: width of the gated feed-forward block.
        num_layers: L.
        num_heads: query heads.
        num_kv_heads: key and value heads, shared by groups of query heads.
        head_dim: width of one head.
        max_position: context window, tokens.
        norm_eps: added to the mean square in RMS normalisation.
        rope_theta: base of the rotary frequencies.
        rope_scaling: see `RopeScaling`.
        tie_embeddings: whether the output projection is the embedding itself.
        attention_bias: biases on the q, k, v and o projections.
        mlp_bias: biases in the feed-forward block.
        eos_token_ids: ids that end a text or a turn, as the checkpoint declares them.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    max_position: int
    norm_eps: float
    rope_theta: float
    rope_scaling: RopeScaling = RopeScaling()
    tie_embeddings: bool = False
    attention_bias: bool = False
    mlp_bias: bool = False
    eos_token_ids: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        """Refuses sizes that do not fit together."""
        if self.num_heads % self.num_kv_heads:
            raise DataError(
                f"num_attention_heads = {self.num_heads} is not a multiple of "
                f"num_key_value_heads = {self.num_kv_heads}."
            )
        if self.head_dim % 2:
            raise DataError(f"head_dim = {self.head_dim} is odd; rotary positions need it even.")


# Keys of a Llama configuration that bear on training, storage or generation, not on the logits.
_WITHOUT_EFFECT = frozenset(
    [
        "architectures",
        "attention_dropout",
        "bos_token_id",
        "dtype",
        "torch_dtype",
        "initializer_range",
        "is_llama_config",
        "pad_token_id",
        "rope_interleaved",
        "transformers_version",
        "transformers.js_config",
        "use_cache",
        "_name_or_path",
        "id2label",
        "label2id",
        "chunk_size_feed_forward",
        "output_attentions",
        "output_hidden_states",
        "problem_type",
        "return_dict",
        "is_encoder_decoder",
        "add_cross_attention",
        "unsloth_fixed",
        "pretraining_tp",
    ]
)
_READ = frozenset(
    [
        "model_type",
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
        "rms_norm_eps",
        "rope_theta",
        "rope_parameters",
        "rope_scaling",
        "tie_word_embeddings",
        "attention_bias",
        "mlp_bias",
        "eos_token_id",
        "hidden_act",
    ]
)


def read_config(folder: Path) -> DecoderConfig:
    """Reads `config.json` (and `generation_config.json`'s end tokens) of a checkpoint folder.

    Raises:
        DataError: for an unsupported `model_type` or value, by name.
        FaultError: if `config.json` is missing, is no JSON or lacks a field.
    """
    values = _read_json(folder / "config.json")
    config_end_ids = _as_ids(values.get("eos_token_id"))
    generation = folder / "generation_config.json"
    if generation.exists():
        config_end_ids += _as_ids(_read_json(generation).get("eos_token_id"))
    config = parse_llama_config(values, where=str(folder / "config.json"))
    unique = tuple(dict.fromkeys(config_end_ids))
    return DecoderConfig(**{**config.__dict__, "eos_token_ids": unique})


def parse_llama_config(values: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Turns the fields of a Hugging Face Llama configuration into a `DecoderConfig`.

    Raises:
        DataError: for an unsupported `model_type`, an unknown field, or an unsupported value.
        FaultError: if a field that every Llama checkpoint has is missing.
    """
    model_type = values.get("model_type")
    if model_type != "llama":
        raise DataError(
            f"{where}: model_type {model_type!r} is not supported; supported: 'llama' "
            "(Llama 2, 3, 3.x, SmolLM2)."
        )
    for name, value in values.items():
        if name not in _READ | _WITHOUT_EFFECT and value not in (None, False):
            raise DataError(f"{where}: {name} = {value!r} is not supported by this decoder.")
    activation = values.get("hidden_act", "silu")
    if activation != "silu":
        raise DataError(f"{where}: hidden_act = {activation!r} is not supported; supported: silu.")
    if values.get("rope_interleaved"):
        raise DataError(f"{where}: rope_interleaved = true is not supported.")
    try:
        num_heads = int(values["num_attention_heads"])
        hidden = int(values["hidden_size"])
        theta, scaling = _parse_rope(values, where)
        return DecoderConfig(
            vocab_size=int(values["vocab_size"]),
            hidden_size=hidden,
            intermediate_size=int(values["intermediate_size"]),
            num_layers=int(values["num_hidden_layers"]),
            num_heads=num_heads,
            num_kv_heads=int(values.get("num_key_value_heads") or num_heads),
            head_dim=int(values.get("head_dim") or hidden // num_heads),
            max_position=int(values["max_position_embeddings"]),
            norm_eps=float(values["rms_norm_eps"]),
            rope_theta=theta,
            rope_scaling=scaling,
            tie_embeddings=bool(values.get("tie_word_embeddings", False)),
            attention_bias=bool(values.get("attention_bias", False)),
            mlp_bias=bool(values.get("mlp_bias", False)),
            eos_token_ids=tuple(_as_ids(values.get("eos_token_id"))),
        )
    except KeyError as error:
        raise FaultError(f"{where} lacks the field {error.args[0]!r}.") from error


def _parse_rope(values: Mapping[str, Any], where: str) -> tuple[float, RopeScaling]:
    # transformers 5 writes rope_parameters; older checkpoints have rope_theta and rope_scaling.
    rope = dict(values.get("rope_parameters") or values.get("rope_scaling") or {})
    theta = float(rope.pop("rope_theta", values.get("rope_theta", 10_000.0)))
    kind = str(rope.pop("rope_type", rope.pop("type", "default")))
    rope.pop("type", None)
    scaling = RopeScaling(
        kind=kind,
        factor=float(rope.pop("factor", 1.0)),
        low_freq_factor=float(rope.pop("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.pop("high_freq_factor", 4.0)),
        original_max_position=int(
            rope.pop("original_max_position_embeddings", values["max_position_embeddings"])
        ),
    )
    if kind not in ("default", "linear", "llama3"):
        raise DataError(
            f"{where}: rope_type = {kind!r} is not supported; supported: default, linear, llama3."
        )
    unknown = {name: value for name, value in rope.items() if value is not None}
    if unknown:
        name, value = next(iter(unknown.items()))
        raise DataError(f"{where}: rope parameter {name} = {value!r} is not supported.")
    return theta, scaling


def _as_ids(value: Any) -> list[int]:
    if value is None:
        return []
    return [int(v) for v in value] if isinstance(value, list | tuple) else [int(value)]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FaultError(
            f"{path} is missing; a checkpoint folder needs config.json and *.safetensors."
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise FaultError(f"{path} is not valid JSON: {error}.") from error
