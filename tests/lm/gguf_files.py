"""Writes tiny GGUF files: a golden checkpoint in the names, order and metadata of llama.cpp."""

from __future__ import annotations

import numpy as np
import pytest

gguf = pytest.importorskip("gguf")

LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def interleave(rows: np.ndarray, num_heads: int) -> np.ndarray:
    """The file's order: row 2i + s of a head is its row i + s · (width / 2), for s = 0 and 1."""
    width = len(rows) // num_heads
    order = [
        head * width + i + s * (width // 2)
        for head in range(num_heads)
        for i in range(width // 2)
        for s in (0, 1)
    ]
    return np.ascontiguousarray(rows[order])


def gguf_tensors(case) -> dict[str, np.ndarray]:
    heads = {"q": case.config["num_attention_heads"], "k": case.config["num_key_value_heads"]}
    tensors = {}
    for name, value in case.weights.items():
        parts = name.removeprefix("model.").split(".")
        if parts[0] != "layers":
            top = {"embed_tokens": "token_embd", "norm": "output_norm", "lm_head": "output"}
            tensors[f"{top[parts[0]]}.{parts[1]}"] = value
            continue
        inner, leaf = ".".join(parts[2:-1]), parts[-1]
        if inner[-6:] in ("q_proj", "k_proj"):
            value = interleave(value, heads[inner[-6]])
        tensors[f"blk.{parts[1]}.{LAYER_NAMES[inner]}.{leaf}"] = value
    return tensors


SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["h e", "l l", "1 2", "Ġ w", "he ll", "hell o"]


def vocabulary(size: int = 0) -> list[str]:
    """Special tokens, the letters by which byte-level vocabularies write bytes, and merges."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*SPECIAL, *(merge.replace(" ", "") for merge in MERGES), *letters]
    return tokens[: size or None]


def write(
    path, case, *, quantise=None, arch="llama", tokens=None, pre="smollm", drop=(), tensors=None,
    **extra,
):  # fmt: skip
    """Writes the tiny model.

    Args:
        path: where to.
        case: the golden checkpoint.
        quantise: picks tensors to be stored as Q8_0.
        arch: the architecture that the file claims.
        tokens: the vocabulary.
        pre: the pre-tokenizer that the file claims.
        drop: tensors and metadata that are left out.
        tensors: in place of the case's.
        extra: metadata by the names of the writer's methods.
    """
    config = case.config
    tokens = vocabulary(config["vocab_size"]) if tokens is None else tokens
    writer = gguf.GGUFWriter(path, arch)
    metadata = {
        "context_length": config["max_position_embeddings"],
        "embedding_length": config["hidden_size"],
        "block_count": config["num_hidden_layers"],
        "feed_forward_length": config["intermediate_size"],
        "head_count": config["num_attention_heads"],
        "head_count_kv": config["num_key_value_heads"],
        "key_length": config["head_dim"],
        "rope_freq_base": config["rope_parameters"]["rope_theta"],
        "layer_norm_rms_eps": config["rms_norm_eps"],
        "tokenizer_model": "gpt2",
        "tokenizer_pre": pre,
        "token_list": tokens,
        "token_types": [3 if token.startswith("<|") else 1 for token in tokens],
        "token_merges": [m for m in MERGES if {*m.split(), m.replace(" ", "")} <= set(tokens)],
        "bos_token_id": 1,
        "eos_token_id": 2,
        "unk_token_id": 0,
        "chat_template": "{% for m in messages %}<|im_start|>{{ m.content }}{% endfor %}",
    }
    for key, value in {**metadata, **extra}.items():
        if key not in drop:
            add = getattr(writer, f"add_{key}", None)
            # Newer fields have no method of their own yet.
            add(value) if add else writer.add_float32(f"{arch}.{key}", value)
    for name, value in (gguf_tensors(case) if tensors is None else tensors).items():
        if name in drop:
            continue
        if quantise and quantise(name):
            kind = gguf.GGMLQuantizationType.Q8_0
            writer.add_tensor(name, gguf.quants.quantize(value, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
