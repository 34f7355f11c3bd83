"""The families of decoders: what each one's configuration means, and how its tensors are named.

A family is one entry of `FAMILIES`: the fields of `config.json` that it reads, a function from the
configuration (with transformers' defaults filled in) to settings of the decoder, and, where its
checkpoints do not carry the decoder's names, a translation of tensors.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.config import DecoderConfig, RopeScaling

# A checkpoint's tensors: name, and a function that reads the tensor when it is its turn.
Tensors = Iterable[tuple[str, Callable[[], np.ndarray]]]
Settings = dict[str, Any]

_ACTIVATIONS = {
    "silu": "silu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
}


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Fields that bear on training, storage, generation or other tasks, not on the logits.
_WITHOUT_EFFECT = _names(
    """architectures attention_dropout bos_token_id dtype torch_dtype initializer_range
    is_llama_config pad_token_id transformers_version transformers.js_config use_cache _name_or_path
    id2label label2id chunk_size_feed_forward output_attentions output_hidden_states problem_type
    return_dict is_encoder_decoder add_cross_attention pretraining_tp
    cache_implementation model_type eos_token_id
    tokenizer_class processor_class finetuning_task num_labels task_specific_params license tags
    sep_token_id cls_token_id mask_token_id unk_token_id decoder_start_token_id forced_bos_token_id
    forced_eos_token_id prefix model_max_length max_length min_length do_sample early_stopping
    num_beams num_beam_groups diversity_penalty temperature top_k top_p min_p typical_p
    epsilon_cutoff eta_cutoff repetition_penalty length_penalty no_repeat_ngram_size
    encoder_no_repeat_ngram_size bad_words_ids num_return_sequences output_scores
    return_dict_in_generate remove_invalid_values suppress_tokens begin_suppress_tokens
    exponential_decay_length_penalty max_new_tokens
    attn_implementation use_flash_attn use_flash_attention gradient_checkpointing torchscript
    use_bfloat16 tf_legacy_loss tie_encoder_decoder initializer_factor neftune_noise_alpha"""
)
# Private notes of the software that wrote the file.
_NOTES = re.compile(r"_|unsloth_|axolotl_|trl_")
# What is dropped at random in training is kept when a model is used.
_DROPOUT = re.compile(r".*(dropout|_pdrop|dropout_prob|dropout_rate)")
_EMPTY: tuple[Any, ...] = (None, False, "", [], {})
# Settings of other families, at the value that changes nothing.
_NEUTRAL = {"partial_rotary_factor": 1.0, "logit_scale": 1.0, "residual_multiplier": 1.0}


def _moves_no_logit(name: str, value: Any) -> bool:
    """Whether a field can be passed over, whatever the family."""
    known = name in _WITHOUT_EFFECT or _NOTES.match(name) or _DROPOUT.fullmatch(name)
    return bool(known) or value in _EMPTY or (name in _NEUTRAL and value == _NEUTRAL[name])


_COMMON = _names(
    """vocab_size hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim max_position_embeddings rms_norm_eps rope_theta rope_parameters
    rope_scaling tie_word_embeddings hidden_act"""
)
# What every checkpoint of the rotary families states; a default here would be a guess.
_REQUIRED = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "max_position_embeddings",
    "rms_norm_eps",
)


@dataclass(frozen=True)
class Family:
    """How to read checkpoints of one family.

    Attributes:
        title: for messages.
        fields: names in `config.json` that are read.
        settings: from the configuration object, and a place for messages, to `DecoderConfig`
            fields.
        required: names that must be there.
        translate: from tensors as stored to tensors named as the decoder's, less the `model.`.
        nested: the field that holds the text model's configuration, in models of several kinds of
            input; other fields beside it concern those.
    """

    title: str
    fields: frozenset[str]
    settings: Callable[[Any, str], Settings]
    required: tuple[str, ...] = _REQUIRED
    translate: Callable[[Tensors], Tensors] | None = None
    nested: str | None = None


def read_config(folder: Path) -> tuple[DecoderConfig, Family]:
    """Reads `config.json` (and `generation_config.json`'s end tokens) of a checkpoint folder.

    Raises:
        DataError: for an unsupported `model_type` or value, by name.
        FaultError: if `config.json` is missing, is no JSON or lacks a field.
    """
    values = _read_json(folder / "config.json")
    config = parse_config(values, where=str(folder / "config.json"))
    ends = list(config.eos_token_ids)
    generation = folder / "generation_config.json"
    if generation.exists():
        ends += _as_ids(_read_json(generation).get("eos_token_id"))
    config = replace(config, eos_token_ids=tuple(dict.fromkeys(ends)))
    return config, FAMILIES[str(values["model_type"])]


def parse_config(values: Mapping[str, Any], where: str = "config.json") -> DecoderConfig:
    """Turns the fields of a Hugging Face configuration into a `DecoderConfig`.

    Raises:
        DataError: for an unsupported `model_type`, an unknown field, or an unsupported value.
        FaultError: if a field that every checkpoint of the family has is missing.
    """
    model_type = values.get("model_type")
    family = FAMILIES.get(str(model_type))
    if family is None:
        supported = ", ".join(f"{name!r} ({f.title})" for name, f in FAMILIES.items())
        raise DataError(
            f"{where}: model_type {model_type!r} is not supported; supported: {supported}."
        )
    if family.nested is not None:
        values = _nested(values, family, where)
    for name, value in values.items():
        if name not in family.fields and not _moves_no_logit(name, value):
            raise DataError(f"{where}: {name} = {value!r} is not supported by this decoder.")
    for name in family.required:
        if values.get(name) is None:
            raise FaultError(f"{where} lacks the field {name!r}.")
    config = _with_defaults(family, values, where)
    heads = config.num_attention_heads
    settings = {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_layers": config.num_hidden_layers,
        "num_heads": heads,
        "num_kv_heads": getattr(config, "num_key_value_heads", None) or heads,
        "head_dim": getattr(config, "head_dim", None) or config.hidden_size // heads,
        "max_position": config.max_position_embeddings,
        "tie_embeddings": bool(config.tie_word_embeddings),
        "eos_token_ids": tuple(_as_ids(values.get("eos_token_id"))),
    }
    return DecoderConfig(**settings, **family.settings(config, where))


def _nested(values: Mapping[str, Any], family: Family, where: str) -> dict[str, Any]:
    """The text model's configuration out of a larger one, with the end tokens of the whole."""
    field = str(family.nested)
    for name, value in values.items():
        if name not in _BESIDE_TEXT | {field} and not _moves_no_logit(name, value):
            raise DataError(f"{where}: {name} = {value!r} is not supported by this decoder.")
    inner = values.get(field)
    if not isinstance(inner, Mapping):
        raise FaultError(f"{where} lacks the field {field!r}.")
    shared = ("eos_token_id", "tie_word_embeddings")
    outer = {name: values[name] for name in shared if name in values}
    return {"model_type": f"{values['model_type']}_text"} | dict(inner) | outer


def _with_defaults(family: Family, values: Mapping[str, Any], where: str) -> Any:
    from transformers import AutoConfig

    given = {name: value for name, value in values.items() if name in family.fields}
    try:
        return AutoConfig.for_model(values["model_type"], **given)
    except Exception as error:  # each configuration class raises whatever its checks raise
        reason = str(error).strip().splitlines()
        raise DataError(
            f"{where} was refused by transformers: {reason[-1].strip() if reason else error!r}."
        ) from error


def _activation(name: str, field: str, where: str) -> str:
    if name not in _ACTIVATIONS:
        supported = ", ".join(_ACTIVATIONS)
        raise DataError(f"{where}: {field} = {name!r} is not supported; supported: {supported}.")
    return _ACTIVATIONS[name]


def _rotary(config: Any, where: str) -> Settings:
    """Settings that all rotary families share."""
    rope = dict(config.rope_parameters or {})
    local = None
    if "full_attention" in rope or "sliding_attention" in rope:
        local, kind = _parse_rope(rope["sliding_attention"], config, where)
        if kind != RopeScaling(original_max_position=kind.original_max_position):
            raise DataError(f"{where}: rope scaling in sliding layers is not supported.")
        rope = rope["full_attention"]
    theta, scaling = _parse_rope(rope, config, where)
    return {
        "intermediate_size": config.intermediate_size,
        "norm_eps": config.rms_norm_eps,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "local_rope_theta": local,
    }


def _parse_rope(
    parameters: Mapping[str, Any], config: Any, where: str
) -> tuple[float, RopeScaling]:
    rope = dict(parameters)
    theta = float(rope.pop("rope_theta", 10_000.0))
    kind = str(rope.pop("rope_type", rope.pop("type", "default")))
    rope.pop("type", None)
    scaling = RopeScaling(
        kind=kind,
        factor=float(rope.pop("factor", 1.0)),
        low_freq_factor=float(rope.pop("low_freq_factor", 1.0)),
        high_freq_factor=float(rope.pop("high_freq_factor", 4.0)),
        original_max_position=int(
            rope.pop("original_max_position_embeddings", config.max_position_embeddings)
        ),
    )
    if kind not in ("default", "linear", "llama3"):
        raise DataError(
            f"{where}: rope_type = {kind!r} is not supported; supported: default, linear, llama3."
        )
    unknown = {name: value for name, value in rope.items() if value not in (None, 1.0)}
    if unknown:
        name, value = next(iter(unknown.items()))
        raise DataError(f"{where}: rope parameter {name} = {value!r} is not supported.")
    return theta, scaling


def _sliding(config: Any, where: str, default: str = "full_attention") -> Settings:
    types = getattr(config, "layer_types", None) or [default] * config.num_hidden_layers
    unknown = set(types) - {"full_attention", "sliding_attention"}
    if unknown:
        raise DataError(
            f"{where}: layer type {min(unknown)!r} is not supported; supported: full_attention, "
            "sliding_attention."
        )
    window = config.sliding_window
    if window is None:
        return {}
    layers = tuple(kind == "sliding_attention" for kind in types)
    return {"sliding_window": int(window), "sliding_layers": layers} if any(layers) else {}


def _llama(config: Any, where: str) -> Settings:
    bias = bool(config.attention_bias)
    return _rotary(config, where) | {
        "activation": _activation(config.hidden_act, "hidden_act", where),
        "attention_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": bool(config.mlp_bias),
    }


def _mistral(config: Any, where: str) -> Settings:
    return (
        _rotary(config, where)
        | _sliding(config, where, "sliding_attention")
        | {"activation": _activation(config.hidden_act, "hidden_act", where)}
    )


def _qwen2(config: Any, where: str) -> Settings:
    return _mistral(config, where) | {"attention_bias": True}


def _qwen3(config: Any, where: str) -> Settings:
    bias = bool(config.attention_bias)
    biases = {"attention_bias": bias, "attention_output_bias": bias}
    return _qwen2(config, where) | biases | {"qk_norm": True}


def _gemma2(config: Any, where: str) -> Settings:
    if config.use_bidirectional_attention:
        raise DataError(f"{where}: use_bidirectional_attention = true is not supported.")
    bias = bool(config.attention_bias)
    return (
        _rotary(config, where)
        | _sliding(config, where)
        | {
            "activation": _activation(config.hidden_activation, "hidden_activation", where),
            "attention_bias": bias,
            "attention_output_bias": bias,
            "norm": "rms_offset",
            "post_norms": True,
            "attention_scale": float(config.query_pre_attn_scalar) ** -0.5,
            "attention_softcap": config.attn_logit_softcapping,
            "logit_softcap": config.final_logit_softcapping,
            "embedding_scale": float(config.hidden_size) ** 0.5,
        }
    )


def _gemma3(config: Any, where: str) -> Settings:
    if config.sliding_window is None:
        # Layers of the sliding type rotate by a base of their own, window or none.
        raise DataError(f"{where}: sliding_window = null is not supported in Gemma 3.")
    if config.attn_logit_softcapping is not None:
        # transformers has the field and does not apply it, so what it would mean is open.
        value = config.attn_logit_softcapping
        raise DataError(f"{where}: attn_logit_softcapping = {value!r} is not supported in Gemma 3.")
    return _gemma2(config, where) | {"qk_norm": True}


def _gpt2(config: Any, where: str) -> Settings:
    if not config.scale_attn_weights or config.scale_attn_by_inverse_layer_idx:
        raise DataError(
            f"{where}: scale_attn_weights = false and scale_attn_by_inverse_layer_idx = true are "
            "not supported."
        )
    return {
        "intermediate_size": config.n_inner or 4 * config.hidden_size,
        "norm_eps": config.layer_norm_epsilon,
        "rope_theta": 0.0,
        "learned_positions": True,
        "attention_bias": True,
        "attention_output_bias": True,
        "mlp_bias": True,
        "activation": _activation(config.activation_function, "activation_function", where),
        "gated_mlp": False,
        "norm": "layer",
    }


_GPT2_NAMES = {
    "wte": "embed_tokens",
    "wpe": "embed_positions",
    "ln_f": "norm",
    "ln_1": "input_layernorm",
    "ln_2": "post_attention_layernorm",
    "attn.c_proj": "self_attn.o_proj",
    "mlp.c_fc": "mlp.up_proj",
    "mlp.c_proj": "mlp.down_proj",
}


def _gpt2_tensors(tensors: Tensors) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """GPT-2 stores projections input-major, and q, k and v as one."""
    for name, read in tensors:
        path, _, leaf = name.removeprefix("transformer.").rpartition(".")
        block, layer = path, ""
        if path.startswith("h."):
            _, number, block = path.split(".", 2)
            layer = f"layers.{number}."
        if block == "attn" and leaf in ("bias", "masked_bias"):
            continue  # the causal mask, stored by old checkpoints
        if block == "attn.c_attn":
            for part, projection in enumerate("qkv"):
                yield f"{layer}self_attn.{projection}_proj.{leaf}", partial(_third, read, part)
            continue
        transposed = leaf == "weight" and ".c_" in block
        renamed = f"{layer}{_GPT2_NAMES.get(block, block)}.{leaf}"
        yield renamed, partial(_transposed, read) if transposed else read


def _third(read: Callable[[], np.ndarray], part: int) -> np.ndarray:
    return np.split(read(), 3, axis=-1)[part].T


def _transposed(read: Callable[[], np.ndarray]) -> np.ndarray:
    return read().T


def _gemma3_text_tensors(tensors: Tensors) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """The text model's tensors out of Gemma 3 with images; older and newer files name it so."""
    for name, read in tensors:
        short = name.removeprefix("model.")
        if short.startswith(("vision_tower.", "multi_modal_projector.")):
            continue
        yield short.removeprefix("language_model.").removeprefix("model."), read


_SLIDING = {"sliding_window", "layer_types"}
_QWEN = _COMMON | _SLIDING | {"use_sliding_window", "max_window_layers"}
_GEMMA2 = _COMMON | _SLIDING | {
    "hidden_activation",
    "attention_bias",
    "query_pre_attn_scalar",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "use_bidirectional_attention",
    "sliding_window_size",
}  # fmt: skip
_GEMMA3 = _GEMMA2 | _names("rope_local_base_freq sliding_window_pattern _sliding_window_pattern")
_BESIDE_TEXT = _names(
    """vision_config mm_tokens_per_image boi_token_index eoi_token_index image_token_index
    tie_word_embeddings"""
)
_GPT2 = _names(
    """vocab_size n_positions n_ctx n_embd n_layer n_head n_inner activation_function resid_pdrop
    embd_pdrop attn_pdrop layer_norm_epsilon scale_attn_weights scale_attn_by_inverse_layer_idx
    reorder_and_upcast_attn tie_word_embeddings summary_type summary_use_proj summary_activation
    summary_proj_to_labels summary_first_dropout task_specific_params"""
)
FAMILIES: dict[str, Family] = {
    "llama": Family(
        "Llama 2, 3, 3.x, SmolLM2", _COMMON | {"attention_bias", "mlp_bias"}, _llama
    ),
    "mistral": Family("Mistral", _COMMON | {"sliding_window"}, _mistral),
    "qwen2": Family("Qwen2, 2.5", _QWEN, _qwen2),
    "qwen3": Family("Qwen3", _QWEN | {"attention_bias"}, _qwen3),
    "gemma2": Family("Gemma 2", _GEMMA2, _gemma2),
    "gemma3_text": Family("Gemma 3, text", _GEMMA3, _gemma3),
    "gemma3": Family(
        "Gemma 3 with images, its text part",
        _GEMMA3,
        _gemma3, ("hidden_size", "intermediate_size", "num_hidden_layers"),
        _gemma3_text_tensors, "text_config",
    ),
    "gpt2": Family(
        "GPT-2", _GPT2, _gpt2, ("vocab_size", "n_positions", "n_embd", "n_layer", "n_head"),
        _gpt2_tensors,
    ),
}  # fmt: skip
"""Supported values of `model_type`."""


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
