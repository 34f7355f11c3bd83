"""GGUF files: one file that holds configuration, quantised weights, tokenizer and chat template.

Weights are dequantised to float32 as they are read. llama.cpp stores the rows of the Llama family's
q and k projections with each head's rotary pairs interleaved; they are put back into the half-split
order that the decoder rotates. It stores Gemma's norm scales with their offset of one added.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.config import DecoderConfig, RopeScaling

_LLAMA_NAMES = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_GEMMA3_NAMES = _LLAMA_NAMES | {
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
_TOP_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
# How files of a model that was split are named; they can be read from any of them.
_PART = re.compile(r"(?P<stem>.+)-[0-9]{5}-of-(?P<count>[0-9]{5})\.gguf")
# Divisors of the rotary frequencies, which are part of the configuration.
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Architecture:
    """What distinguishes the files of one architecture.

    Attributes:
        title: for messages.
        layer_names: from a block's tensor names to the decoder's.
        interleaved: whether rows of q and k come with rotary pairs interleaved.
        settings: settings of the decoder beyond those that all architectures share.
    """

    title: str
    layer_names: dict[str, str]
    interleaved: bool
    settings: Callable[[GGUFFile], dict[str, Any]]


class GGUFFile:
    """An open GGUF file.

    Raises:
        DataError: if the architecture is not supported, or the `gguf` package is not installed.
        FaultError: if the file is no GGUF file or is cut off.
    """

    def __init__(self, path: Path):
        """Reads the metadata; tensors stay on disk until `tensors` is iterated."""
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise DataError(
                f"{path} is a GGUF file, which needs the gguf package: pip install 'mop-jax[gguf]'"
            ) from error
        self.path = path
        reader = _plain_reader(GGUFReader)
        # Metadata are in the first part only.
        self._reader, *others = [_open(reader, part) for part in split_parts(path)]
        self._tensors = list(self._reader.tensors)
        self._tensors += [tensor for other in others for tensor in other.tensors]
        self._check_parts(1 + len(others))
        name = self.get("general.architecture")
        if name not in ARCHITECTURES:
            supported = ", ".join(f"{n!r} ({a.title})" for n, a in ARCHITECTURES.items())
            raise DataError(
                f"{path}: GGUF architecture {name!r} is not supported; supported: {supported}."
            )
        self._prefix = f"{name}."
        self._architecture = ARCHITECTURES[name]
        self.tensor_names = {tensor.name for tensor in self._tensors}

    def _check_parts(self, found: int) -> None:
        count = int(self.get("split.count", 0) or 1)
        if count != found:
            raise DataError(
                f"{self.path} is one of {count} parts of a model; give the first of them, with all "
                f"others beside it under the names that they were split into: "
                f"NAME-00001-of-{count:05d}.gguf and so on."
            )
        tensors = int(self.get("split.tensors.count", 0) or len(self._tensors))
        if tensors != len(self._tensors):
            raise FaultError(
                f"The parts of {self.path} hold {len(self._tensors)} tensors where the first says "
                f"{tensors}; they do not belong together, or one was cut off: fetch them again."
            )

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata field as a Python object, or `default`."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def setting(self, key: str, default: Any = None) -> Any:
        """The value of a field of the architecture's own; without a default it must be there."""
        value = self.get(self._prefix + key, default)
        if value is None:
            raise FaultError(f"{self.path} lacks the metadata field {self._prefix + key}.")
        return value

    def config(self) -> DecoderConfig:
        """The architecture, from the metadata.

        Raises:
            DataError: for rotary scaling that is not supported.
        """
        if self.get(self._prefix + "expert_count", 0):
            raise DataError(f"{self.path}: mixture-of-experts GGUF files are not supported.")
        heads = int(self.setting("attention.head_count"))
        hidden = int(self.setting("embedding_length"))
        head_dim = int(self.get(self._prefix + "attention.key_length", hidden // heads))
        rotated = int(self.get(self._prefix + "rope.dimension_count", head_dim))
        if rotated != head_dim:
            raise DataError(
                f"{self.path}: rotating {rotated} of {head_dim} head dimensions is not supported."
            )
        tokens = self.get("tokenizer.ggml.tokens", [])
        ends = [self.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
        return DecoderConfig(
            vocab_size=len(tokens) or int(self.setting("vocab_size")),
            hidden_size=hidden,
            intermediate_size=int(self.setting("feed_forward_length")),
            num_layers=int(self.setting("block_count")),
            num_heads=heads,
            num_kv_heads=int(self.setting("attention.head_count_kv", heads)),
            head_dim=head_dim,
            max_position=int(self.setting("context_length")),
            norm_eps=float(self.setting("attention.layer_norm_rms_epsilon")),
            rope_theta=float(self.setting("rope.freq_base", 10_000.0)),
            rope_scaling=self._rope_scaling(),
            tie_embeddings="output.weight" not in self.tensor_names,
            attention_bias="blk.0.attn_q.bias" in self.tensor_names,
            attention_output_bias="blk.0.attn_output.bias" in self.tensor_names,
            eos_token_ids=tuple(dict.fromkeys(int(end) for end in ends if end is not None)),
            **self._architecture.settings(self),
        )

    def _rope_scaling(self) -> RopeScaling:
        kind = str(self.setting("rope.scaling.type", "none"))
        factor = float(self.setting("rope.scaling.factor", 1.0))
        if kind not in ("none", "linear"):
            raise DataError(
                f"{self.path}: rope scaling of type {kind!r} is not supported; supported: none, "
                "linear, and a table of factors."
            )
        if _ROPE_FACTORS not in self.tensor_names:
            return RopeScaling() if kind == "none" else RopeScaling("linear", factor)
        if kind != "none":
            raise DataError(f"{self.path}: rope factors together with scaling are not supported.")
        (table,) = (t for t in self._tensors if t.name == _ROPE_FACTORS)
        return RopeScaling("factors", factors=tuple(map(float, table.data)))

    def tensors(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """Tensors under their Hugging Face names, dequantised to float32 when read.

        Raises:
            FaultError: for a tensor whose name is not known.
        """
        for tensor in self._tensors:
            if tensor.name == _ROPE_FACTORS:
                continue
            yield self._hugging_face_name(tensor.name), partial(self._read, tensor)

    def _hugging_face_name(self, name: str) -> str:
        parts = name.split(".")
        names = self._architecture.layer_names
        if parts[0] == "blk" and len(parts) == 4 and parts[2] in names:
            return f"layers.{parts[1]}.{names[parts[2]]}.{parts[3]}"
        if len(parts) == 2 and parts[0] in _TOP_NAMES:
            return f"{_TOP_NAMES[parts[0]]}.{parts[1]}"
        raise FaultError(f"{self.path}: tensor {name} has no place in this architecture.")

    def _read(self, tensor: Any) -> np.ndarray:
        from gguf.quants import dequantize

        try:
            value = np.asarray(dequantize(tensor.data, tensor.tensor_type), np.float32)
        except (NotImplementedError, ValueError) as error:
            raise FaultError(
                f"{self.path}: tensor {tensor.name} of type {tensor.tensor_type.name} could not be "
                f"dequantised ({error})."
            ) from error
        heads = int(self.setting("attention.head_count"))
        if self._architecture.interleaved and ".attn_q." in tensor.name:
            return _half_split(value, heads)
        if self._architecture.interleaved and ".attn_k." in tensor.name:
            return _half_split(value, int(self.setting("attention.head_count_kv", heads)))
        return value


def split_parts(path: Path) -> list[Path]:
    """All parts of the model that a file belongs to, in order; most models have one.

    Raises:
        FaultError: if a part is missing.
    """
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    stem, count = named["stem"], int(named["count"])
    parts = [path.with_name(f"{stem}-{i:05d}-of-{count:05d}.gguf") for i in range(1, count + 1)]
    missing = [part.name for part in parts if not part.exists()]
    if missing:
        raise FaultError(
            f"{path.parent / missing[0]} is missing, a part of the model that {path.name} belongs "
            f"to ({len(missing)} of {count} parts are missing); fetch all parts into one folder."
        )
    return parts


def _open(reader: type, path: Path) -> Any:
    try:
        return reader(path)
    except (ValueError, IndexError, OSError, KeyError, UnicodeDecodeError) as error:
        raise FaultError(
            f"{path} is no readable GGUF file, or it is cut off ({error}); fetch it again."
        ) from error


def _plain_reader(base: type) -> type:
    """A reader whose file is a plain array on the map.

    Slices of `numpy.memmap` carry attributes of their own, which takes most of the time that a
    vocabulary's fields need; an array on the same map does not.
    """

    class PlainReader(base):  # type: ignore[valid-type,misc]
        def __setattr__(self, name: str, value: Any) -> None:
            super().__setattr__(name, np.asarray(value) if name == "data" else value)

    return PlainReader


def _half_split(rows: np.ndarray, num_heads: int) -> np.ndarray:
    # Row 2e + s of a head in the file is row s · E/2 + e of the half-split order.
    paired = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)


def _gemma3_settings(file: GGUFFile) -> dict[str, Any]:
    # What the metadata leaves open is fixed in llama.cpp: five layers in six slide, local rotary
    # base 10,000, and scores scaled by the width of a head in all sizes but 27B (62 layers).
    layers, period = int(file.setting("block_count")), 6
    heads = int(file.setting("attention.head_count"))
    hidden = int(file.setting("embedding_length"))
    width = hidden / heads if layers == 62 else file.setting("attention.key_length")
    softcap = file.setting("final_logit_softcapping", 0.0)
    return {
        "activation": "gelu_tanh",
        "qk_norm": True,
        "post_norms": True,
        "attention_scale": float(width) ** -0.5,
        "logit_softcap": float(softcap) or None,
        "sliding_window": int(file.setting("attention.sliding_window")),
        "sliding_layers": tuple((i + 1) % period != 0 for i in range(layers)),
        "local_rope_theta": float(file.setting("rope.freq_base_swa", 10_000.0)),
        "embedding_scale": float(hidden) ** 0.5,
    }


ARCHITECTURES: dict[str, Architecture] = {
    "llama": Architecture("Llama 2, 3, SmolLM2", _LLAMA_NAMES, True, lambda file: {}),
    "gemma3": Architecture("Gemma 3", _GEMMA3_NAMES, False, _gemma3_settings),
}
"""Supported values of `general.architecture`."""
