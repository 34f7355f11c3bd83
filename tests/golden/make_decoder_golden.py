"""Writes decoder_*.npz: small random Llama checkpoints and their logits by torch transformers.

Needs torch and transformers, which the package itself does not (it never runs torch):

    python tests/golden/make_decoder_golden.py

Each file holds the checkpoint's `config.json`, its weights (float16 values, so that float32 holds
them exactly), padded token ids with their lengths, logits, and a greedy continuation of the first
row. Sizes are unequal and mostly prime, so that no transposed or swapped axis can hide. Weights are
large enough that attention is far from uniform and every rotation matters.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

GREEDY_STEPS = 9
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
    },
}


def random_model(values: dict, seed: int) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=101,
        intermediate_size=37,
        max_position_embeddings=128,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        **values,
    )
    config._attn_implementation = "eager"
    model = LlamaForCausalLM(config).eval().to(torch.float32)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if "norm" in name:
                drawn = 1 + 0.3 * noise
            elif name.endswith("bias"):
                drawn = 0.3 * noise
            elif "embed" in name or "lm_head" in name:
                drawn = 0.7 * noise
            else:
                drawn = noise * (1.5 / parameter.shape[1] ** 0.5)
            parameter.copy_(drawn.half().float())
    return model


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompt: list[int]) -> list[int]:
    ids = list(prompt)
    for _ in range(GREEDY_STEPS):
        best, second = model(torch.tensor([ids])).logits[0, -1].topk(2)
        assert best[0] - best[1] > 1e-2, "two tokens are too close: choose another seed"
        ids.append(int(second[0]))
    return ids[len(prompt) :]


@torch.no_grad()
def make(name: str, values: dict, lengths: list[int], seed: int) -> Path:
    model = random_model(values, seed)
    rng = np.random.default_rng(seed)
    token_ids = rng.integers(3, 101, (len(lengths), max(lengths)))
    logits = np.zeros((len(lengths), max(lengths), 101), np.float32)
    for row, length in enumerate(lengths):
        # One row at a time, without padding: the reference for every padded batch.
        logits[row, :length] = model(torch.tensor(token_ids[row : row + 1, :length])).logits[0]
    tied = values["tie_word_embeddings"]
    weights = {
        f"weights/{key}": value.numpy().astype(np.float16)
        for key, value in model.state_dict().items()
        if not (tied and key == "lm_head.weight")
    }
    prompt = token_ids[0, : lengths[0]].tolist()
    target = Path(__file__).with_name(f"decoder_{name}.npz")
    np.savez_compressed(
        target,
        config=np.array(json.dumps(model.config.to_diff_dict())),
        token_ids=token_ids,
        lengths=np.array(lengths),
        logits=logits,
        greedy=np.array(greedy(model, prompt)),
        versions=np.array(
            [f"transformers {transformers.__version__}", f"torch {torch.__version__}"]
        ),
        **weights,
    )
    return target


if __name__ == "__main__":
    torch.set_num_threads(1)
    for number, (case, parts) in enumerate(CASES.items()):
        path = make(case, parts["config"], parts["lengths"], seed=number + 4)
        print(path.name, path.stat().st_size)
