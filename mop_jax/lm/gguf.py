"""GGUF files: one file that holds configuration, quantised weights, tokenizer and chat template.

Weights are dequantised to float32 as they are read. llama.cpp stores the rows of the Llama family's
q and k projections with each head's rotary pairs interleaved; they are put back into the half-split
order that the decoder rotates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.config import DecoderConfig

_LAYER_NAMES = {
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
_TOP_NAMES = {"token_embd": "embed_tokens", "output_norm": "norm", "output": "lm_head"}
# Tables of rotary constants, which the decoder computes itself from the metadata.
_CONSTANTS = ("rope_freqs.weight",)


class GGUFFile:
    """An open GGUF file of the Llama family.

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
        try:
            self._reader = GGUFReader(path)
        except (ValueError, IndexError, OSError, KeyError, UnicodeDecodeError) as error:
            raise FaultError(
                f"{path} is no readable GGUF file, or it is cut off ({error}); fetch it again."
            ) from error
        architecture = self.get("general.architecture")
        if architecture != "llama":
            raise DataError(
                f"{path}: GGUF architecture {architecture!r} is not supported; supported: 'llama' "
                "(Llama 2, 3, SmolLM2)."
            )
        self._prefix = f"{architecture}."
        self.tensor_names = {tensor.name for tensor in self._reader.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        """The value of a metadata field as a Python object, or `default`."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def _architecture_value(self, key: str, default: Any = None) -> Any:
        value = self.get(self._prefix + key, default)
        if value is None:
            raise FaultError(f"{self.path} lacks the metadata field {self._prefix + key}.")
        return value

    def config(self) -> DecoderConfig:
        """The architecture, from the metadata.

        Raises:
            DataError: for rotary scaling that is not supported.
        """
        scaling = self.get(self._prefix + "rope.scaling.type", "none")
        if scaling != "none" or "rope_freqs.weight" in self.tensor_names:
            raise DataError(
                f"{self.path}: rope scaling in a GGUF file is not supported; load the model from "
                "its safetensors checkpoint."
            )
        if self.get(self._prefix + "expert_count", 0):
            raise DataError(f"{self.path}: mixture-of-experts GGUF files are not supported.")
        heads = int(self._architecture_value("attention.head_count"))
        hidden = int(self._architecture_value("embedding_length"))
        head_dim = int(self.get(self._prefix + "attention.key_length", hidden // heads))
        rotated = int(self.get(self._prefix + "rope.dimension_count", head_dim))
        if rotated != head_dim:
            raise DataError(
                f"{self.path}: rotating {rotated} of {head_dim} head dimensions is not supported."
            )
        tokens = self.get("tokenizer.ggml.tokens", [])
        end = self.get("tokenizer.ggml.eos_token_id")
        return DecoderConfig(
            vocab_size=len(tokens) or int(self._architecture_value("vocab_size")),
            hidden_size=hidden,
            intermediate_size=int(self._architecture_value("feed_forward_length")),
            num_layers=int(self._architecture_value("block_count")),
            num_heads=heads,
            num_kv_heads=int(self._architecture_value("attention.head_count_kv", heads)),
            head_dim=head_dim,
            max_position=int(self._architecture_value("context_length")),
            norm_eps=float(self._architecture_value("attention.layer_norm_rms_epsilon")),
            rope_theta=float(self._architecture_value("rope.freq_base", 10_000.0)),
            tie_embeddings="output.weight" not in self.tensor_names,
            attention_bias="blk.0.attn_q.bias" in self.tensor_names,
            attention_output_bias="blk.0.attn_output.bias" in self.tensor_names,
            eos_token_ids=() if end is None else (int(end),),
        )

    def tensors(self) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
        """Tensors under their Hugging Face names, dequantised to float32 when read.

        Raises:
            FaultError: for a tensor whose name is not known.
        """
        for tensor in self._reader.tensors:
            if tensor.name in _CONSTANTS:
                continue
            yield self._hugging_face_name(tensor.name), partial(self._read, tensor)

    def _hugging_face_name(self, name: str) -> str:
        parts = name.split(".")
        if parts[0] == "blk" and len(parts) == 4 and parts[2] in _LAYER_NAMES:
            return f"layers.{parts[1]}.{_LAYER_NAMES[parts[2]]}.{parts[3]}"
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
        if ".attn_q." in tensor.name:
            return _half_split(value, int(self._architecture_value("attention.head_count")))
        if ".attn_k." in tensor.name:
            heads = int(self._architecture_value("attention.head_count"))
            return _half_split(
                value, int(self._architecture_value("attention.head_count_kv", heads))
            )
        return value


def _half_split(rows: np.ndarray, num_heads: int) -> np.ndarray:
    # Row 2e + s of a head in the file is row s · E/2 + e of the half-split order.
    paired = rows.reshape(num_heads, rows.shape[0] // num_heads // 2, 2, *rows.shape[1:])
    return paired.swapaxes(1, 2).reshape(rows.shape)
