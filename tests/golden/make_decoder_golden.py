"""Writes decoder_*.npz: small random checkpoints of every family, and their logits by torch.

Needs torch and transformers, which the package itself does not (it never runs torch):

    python tests/golden/make_decoder_golden.py [--out FOLDER] [CASE …]

Each file holds the checkpoint's `config.json`, its weights (float16 values, so that float32 holds
them exactly), padded token ids with their lengths, logits, and a greedy continuation of the first
row, of several different tokens. Each case switches on every feature that its family has. Sizes
are unequal and mostly prime, so that no transposed or swapped axis can hide. Weights are large
enough that attention is far from uniform and every rotation matters. A `seed` is where the search
for a telling greedy continuation would arrive (with tied embeddings most random models repeat one
token).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

GREEDY_STEPS = 9
GREEDY_DISTINCT = 4  # a model that repeats one token would prove little
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 300.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
CASES = {
    # Grouped queries, tied head.
    "gqa_tied": {
        "config": {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
            "rms_norm_eps": 1e-3,
        },
        "lengths": [13, 11, 1, 7],
        "seed": 4,
    },
    # Head of its own, biases everywhere, heads wider than hidden / heads.
    "biased_untied": {
        "config": {
            "num_attention_heads": 3,
            "num_key_value_heads": 1,
            "head_dim": 10,
            "hidden_size": 21,
            "num_hidden_layers": 2,
            "attention_bias": True,
            "mlp_bias": True,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "rms_norm_eps": 1e-5,
        },
        "lengths": [11, 13, 5],
        "seed": 5,
    },
    # Positions far beyond the window before stretching.
    "llama3_rope": {
        "config": {
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 14,
            "hidden_size": 20,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "rope_parameters": LLAMA3,
            "rms_norm_eps": 1e-5,
        },
        "lengths": [53, 47],
        "seed": 6,
    },
    "linear_rope": {
        "config": {
            "num_attention_heads": 2,
            "num_key_value_heads": 2,
            "head_dim": 14,
            "hidden_size": 22,
            "num_hidden_layers": 2,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "linear", "rope_theta": 300.0, "factor": 3.0},
            "rms_norm_eps": 1e-5,
        },
        "lengths": [31, 29],
        "seed": 7,
    },
    # Every layer slides; sequences are several windows long.
    "mistral": {
        "config": {
            "model_type": "mistral",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "hidden_size": 22,
            "num_hidden_layers": 3,
            "sliding_window": 7,
            "tie_word_embeddings": False,
            "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
            "rms_norm_eps": 1e-5,
        },
        "lengths": [31, 23, 5],
        "seed": 8,
    },
    # Biases on q, k and v only; the last layers slide.
    "qwen2": {
        "config": {
            "model_type": "qwen2",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "hidden_size": 24,
            "num_hidden_layers": 3,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
            "rms_norm_eps": 1e-5,
        },
        "lengths": [23, 29, 3],
        "seed": 9,
    },
    # Queries and keys normalised; biases on q, k, v and o; the last two layers slide.
    "qwen3": {
        "config": {
            "model_type": "qwen3",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 10,
            "hidden_size": 22,
            "num_hidden_layers": 3,
            "attention_bias": True,
            "use_sliding_window": True,
            "sliding_window": 5,
            "max_window_layers": 1,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 900.0},
            "rms_norm_eps": 1e-3,
        },
        "lengths": [23, 19, 2],
        "seed": 10,
    },
    # Soft caps on scores and logits, every other layer slides, norms behind the blocks, biases.
    "gemma2": {
        "config": {
            "model_type": "gemma2",
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 6,
            "hidden_size": 20,
            "num_hidden_layers": 4,
            "sliding_window": 5,
            "query_pre_attn_scalar": 11,
            "attn_logit_softcapping": 3.0,
            "final_logit_softcapping": 7.0,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {"rope_type": "default", "rope_theta": 700.0},
            "rms_norm_eps": 1e-3,
        },
        "lengths": [29, 23, 4],
        "seed": 266411,
    },
    # Two rotary bases, the global one stretched; normalised queries and keys; five in six slide;
    # soft-capped logits, biases. (torch reads attn_logit_softcapping in Gemma 3 and ignores it.)
    "gemma3": {
        "config": {
            "model_type": "gemma3_text",
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 14,
            "hidden_size": 22,
            "num_hidden_layers": 7,
            "sliding_window": 6,
            "query_pre_attn_scalar": 11,
            "final_logit_softcapping": 9.0,
            "attention_bias": True,
            "tie_word_embeddings": True,
            "rope_parameters": {
                "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
                "full_attention": {"rope_type": "linear", "rope_theta": 900.0, "factor": 2.0},
            },
            "rms_norm_eps": 1e-3,
        },
        "lengths": [29, 31, 6],
        "seed": 13612,
    },
    # Learned positions, layer norms, one product for q, k and v, a plain feed-forward block.
    "gpt2": {
        "config": {
            "model_type": "gpt2",
            "n_head": 3,
            "n_embd": 21,
            "n_layer": 3,
            "n_inner": 37,
            "n_positions": 64,
            "layer_norm_epsilon": 1e-3,
            "tie_word_embeddings": True,
        },
        "lengths": [23, 19, 1],
        "seed": 13,
    },
}


def random_model(values: dict, seed: int) -> PreTrainedModel:
    values = {
        "model_type": "llama",
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 2,
    } | values
    if values["model_type"] != "gpt2":
        values = {"intermediate_size": 37, "max_position_embeddings": 128} | values
    family = values.pop("model_type")
    config = AutoConfig.for_model(family, vocab_size=101, **values)
    config._attn_implementation = "eager"
    model = AutoModelForCausalLM.from_config(config).eval().to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("bias"):
                drawn = 0.3 * noise
            elif "norm" in name or "ln_" in name:
                drawn = 0.3 * noise + (not family.startswith("gemma"))  # Gemma's scale is 1 + w
            elif "embed" in name or "lm_head" in name or ".wte" in name or ".wpe" in name:
                drawn = 0.7 * noise
            else:
                fan_in = parameter.shape[0 if family == "gpt2" else 1]
                drawn = noise * (1.5 / fan_in**0.5)
            parameter.copy_(drawn.half().float())
    return model


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int]) -> list[int] | None:
    """The likeliest continuation, or None if rounding could decide it or it repeats itself."""
    ids = list(prompt)
    for _ in range(GREEDY_STEPS):
        best, second = model(torch.tensor([ids])).logits[0, -1].topk(2)
        if best[0] - best[1] < 1e-2:
            return None
        ids.append(int(second[0]))
    drawn = ids[len(prompt) :]
    return drawn if len(set(drawn)) >= GREEDY_DISTINCT else None


@torch.no_grad()
def make(name: str, config: dict, lengths: list[int], seed: int, out: Path) -> Path:
    continuation = None
    while continuation is None:
        model = random_model(config, seed)
        rng = np.random.default_rng(seed)
        token_ids = rng.integers(3, 101, (len(lengths), max(lengths)))
        continuation = greedy(model, token_ids[0, : lengths[0]].tolist())
        seed += 100
    logits = np.zeros((len(lengths), max(lengths), 101), np.float32)
    for row, length in enumerate(lengths):
        # One row at a time, without padding: the reference for every padded batch.
        logits[row, :length] = model(torch.tensor(token_ids[row : row + 1, :length])).logits[0]
    tied = config["tie_word_embeddings"]
    weights = {
        f"weights/{key}": value.numpy().astype(np.float16)
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    target = out / f"decoder_{name}.npz"
    np.savez_compressed(
        target,
        config=np.array(json.dumps(model.config.to_diff_dict())),
        token_ids=token_ids,
        lengths=np.array(lengths),
        logits=logits,
        greedy=np.array(continuation),
        versions=np.array(
            [f"transformers {transformers.__version__}", f"torch {torch.__version__}"]
        ),
        **weights,
    )
    return target


if __name__ == "__main__":
    torch.set_num_threads(1)
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("cases", nargs="*")
    arguments = parser.parse_args()
    for case, parts in CASES.items():
        if arguments.cases and case not in arguments.cases:
            continue
        path = make(case, out=arguments.out, **{"seed": 4, **parts})
        print(path.name, path.stat().st_size)
