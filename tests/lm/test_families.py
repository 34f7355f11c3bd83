"""Published configurations mean what their models compute; what is not supported is named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.config import RopeScaling
from mop_jax.lm.families import parse_config
from mop_jax.lm.flax_lm import FlaxLM

PUBLISHED = json.loads((Path(__file__).parents[1] / "data" / "published_configs.json").read_text())
LLAMA3 = {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position": 8192}
FIVE_IN_SIX = [True, True, True, True, True, False]
# What each model computes with beyond plain sizes; everything else is as a plain Llama.
EXPECTED = {
    "meta-llama/Llama-2-7b-hf": {"rope_theta": 1e4, "num_kv_heads": 32, "max_position": 4096},
    "meta-llama/Meta-Llama-3-8B-Instruct": {
        "rope_theta": 5e5,
        "num_kv_heads": 8,
        "head_dim": 128,
        "max_position": 8192,
        "rope_scaling": RopeScaling(original_max_position=8192),
        "tie_embeddings": False,
        "eos_token_ids": (128009,),
    },
    "meta-llama/Llama-3.1-8B-Instruct": {
        "rope_theta": 5e5,
        "rope_scaling": RopeScaling("llama3", 8.0, **LLAMA3),
        "max_position": 131072,
        "eos_token_ids": (128001, 128008, 128009),
    },
    "meta-llama/Llama-3.2-1B-Instruct": {
        "rope_theta": 5e5,
        "rope_scaling": RopeScaling("llama3", 32.0, **LLAMA3),
        "head_dim": 64,
        "tie_embeddings": True,
    },
    "HuggingFaceTB/SmolLM2-135M-Instruct": {"rope_theta": 1e5, "head_dim": 64, "num_kv_heads": 3},
    "mistralai/Mistral-7B-Instruct-v0.1": {
        "rope_theta": 1e4,
        "sliding_window": 4096,
        "sliding_layers": (True,) * 32,
        "num_kv_heads": 8,
    },
    "mistralai/Mistral-7B-Instruct-v0.2": {"rope_theta": 1e6, "sliding_window": None},
    "mistralai/Mistral-7B-Instruct-v0.3": {
        "rope_theta": 1e6,
        "sliding_window": None,
        "vocab_size": 32768,
        "tie_embeddings": False,
    },
    "Qwen/Qwen2-7B-Instruct": {
        "rope_theta": 1e6,
        "sliding_window": None,
        "attention_bias": True,
        "attention_output_bias": False,
        "tie_embeddings": False,
    },
    "Qwen/Qwen2.5-0.5B": {"sliding_layers": (), "attention_bias": True, "tie_embeddings": True},
    "Qwen/Qwen3-0.6B": {
        "rope_theta": 1e6,
        "head_dim": 128,
        "qk_norm": True,
        "attention_bias": False,
        "sliding_window": None,
    },
    "google/gemma-2-9b": {
        "attention_softcap": 50.0,
        "logit_softcap": 30.0,
        "attention_scale": 256**-0.5,
        "sliding_window": 4096,
        "sliding_layers": (True, False) * 21,
        "embedding_scale": 3584**0.5,
        "activation": "gelu_tanh",
        "norm": "rms_offset",
        "post_norms": True,
        "qk_norm": False,
        "tie_embeddings": True,
        "head_dim": 256,
        "rope_theta": 1e4,
    },
    "google/gemma-2-27b": {"attention_scale": 144**-0.5, "head_dim": 128, "num_kv_heads": 16},
    "google/gemma-3-270m": {
        "sliding_window": 512,
        "sliding_layers": tuple(FIVE_IN_SIX * 3),
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "qk_norm": True,
        "attention_softcap": None,
        "logit_softcap": None,
        "tie_embeddings": True,
    },
    "google/gemma-3-1b-it": {
        "sliding_layers": tuple(FIVE_IN_SIX * 4 + FIVE_IN_SIX[:2]),
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "eos_token_ids": (1, 106),
    },
    "google/gemma-3-4b-it": {
        "vocab_size": 262208,
        "num_heads": 8,
        "num_kv_heads": 4,
        "head_dim": 256,
        "max_position": 131072,
        "sliding_window": 1024,
        "sliding_layers": tuple(FIVE_IN_SIX * 5 + FIVE_IN_SIX[:4]),
        "rope_theta": 1e6,
        "local_rope_theta": 1e4,
        "rope_scaling": RopeScaling("linear", 8.0, original_max_position=131072),
        "attention_scale": 256**-0.5,
        "eos_token_ids": (1, 106),
        "tie_embeddings": True,
    },
    "openai-community/gpt2": {
        "learned_positions": True,
        "intermediate_size": 3072,
        "norm": "layer",
        "norm_eps": 1e-5,
        "gated_mlp": False,
        "tie_embeddings": True,
        "max_position": 1024,
    },
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_configurations(name):
    config = parse_config(PUBLISHED[name])
    found = {field: getattr(config, field) for field in EXPECTED[name]}
    assert found == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "change", "named"),
    [
        (
            "Qwen/Qwen3-0.6B",
            {
                "rope_scaling": {
                    "rope_type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                }
            },
            "rope_type = 'yarn' is not supported; supported: default, linear, llama3",
        ),
        (
            "Qwen/Qwen2-7B-Instruct",
            {
                "rope_scaling": {
                    "type": "yarn",
                    "factor": 4.0,
                    "original_max_position_embeddings": 32768,
                }
            },
            "rope_type = 'yarn'",
        ),
        (
            "meta-llama/Llama-2-7b-hf",
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope_type = 'dynamic'",
        ),
        (
            "meta-llama/Meta-Llama-3-8B-Instruct",
            {
                "rope_scaling": {
                    "type": "longrope",
                    "factor": 2.0,
                    "short_factor": [1.0] * 64,
                    "long_factor": [2.0] * 64,
                    "original_max_position_embeddings": 4096,
                }
            },
            "rope_type = 'longrope'",
        ),
        ("google/gemma-2-9b", {"hidden_activation": "relu"}, "hidden_activation = 'relu'"),
        (
            "google/gemma-3-270m",
            {"attn_logit_softcapping": 50.0},
            r"attn_logit_softcapping = 50\.0 is not supported in Gemma 3",
        ),
        (
            "google/gemma-3-270m",
            {"use_bidirectional_attention": True},
            "use_bidirectional_attention = true",
        ),
        ("google/gemma-3-270m", {"sliding_window": None}, "sliding_window = null"),
        ("google/gemma-3-4b-it", {"sliding_window": 4096}, "sliding_window = 4096"),
        ("Qwen/Qwen2.5-0.5B", {"use_mrope": True}, "use_mrope = True"),
        ("Qwen/Qwen3-0.6B", {"layer_types": ["chunked_attention"] * 28}, "chunked_attention"),
        (
            "openai-community/gpt2",
            {"scale_attn_by_inverse_layer_idx": True},
            "scale_attn_by_inverse_layer_idx = true",
        ),
        ("openai-community/gpt2", {"activation_function": "relu"}, "activation_function = 'relu'"),
        ("mistralai/Mistral-7B-Instruct-v0.3", {"model_type": "mixtral"}, "model_type 'mixtral'"),
        (
            "meta-llama/Meta-Llama-3-8B-Instruct",
            {"quantization_config": {"quant_method": "gptq"}},
            "quantization_config",
        ),
    ],
)
def test_unsupported_values_are_named(name, change, named):
    with pytest.raises(DataError, match=named):
        parse_config(PUBLISHED[name] | change)


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_notes_that_move_no_logit_are_passed_over(name):
    """What trainers and converters leave in published configurations."""
    notes = {
        "_num_labels": 1,
        "_name_or_path": "somewhere/else",
        "_attn_implementation": "flash_attention_2",
        "_flash_attn_2_enabled": True,
        "unsloth_version": "2024.9",
        "unsloth_fixed": True,
        "tokenizer_class": "PreTrainedTokenizerFast",
        "torch_dtype": "float16",
        "id2label": {"0": "LABEL_0"},
        "label2id": {"LABEL_0": 0},
        "num_labels": 2,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
        "classifier_dropout": 0.1,
        "summary_first_dropout": 0.1,
        "hidden_dropout_prob": 0.1,
        "resid_pdrop": 0.1,
        "temperature": 0.6,
        "pruned_heads": {},
        "gradient_checkpointing": True,
        "pad_token_id": 11,
        "partial_rotary_factor": 1.0,
    }
    assert parse_config(PUBLISHED[name] | notes) == parse_config(PUBLISHED[name])


@pytest.mark.parametrize(
    "change",
    [
        {"logit_scale": 0.5},
        {"residual_multiplier": 0.22},
        {"pruned_heads": {"0": [1]}},
        {"auto_map": {"AutoModelForCausalLM": "modeling_other.OtherForCausalLM"}},
        {"rope_interleaved": True},
        {"partial_rotary_factor": 0.5},
    ],
)
def test_what_may_move_a_logit_is_refused_by_name(change):
    with pytest.raises(DataError, match=next(iter(change))):
        parse_config(PUBLISHED["meta-llama/Meta-Llama-3-8B-Instruct"] | change)


def test_the_two_spellings_of_rotary_settings_agree():
    old = PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"]
    new = {name: value for name, value in old.items() if not name.startswith("rope_")}
    new["rope_parameters"] = old["rope_scaling"] | {"rope_theta": old["rope_theta"]}
    assert parse_config(new) == parse_config(old)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model."])
def test_the_text_part_of_gemma_3_with_images(golden, golden_lm, write_checkpoint, prefix):
    """Older and newer names; tensors for images are passed over, all others still count."""
    case = golden("gemma3")
    config = PUBLISHED["google/gemma-3-4b-it"] | {"text_config": case.config}
    config["eos_token_id"] = [2, 9]
    text = {prefix + name.removeprefix("model."): value for name, value in case.weights.items()}
    head = prefix.partition(".")[0] if prefix.startswith("model") else ""
    around = f"{head}." if head else ""
    images = {
        f"{around}vision_tower.vision_model.post_layernorm.bias": np.ones(5, np.float32),
        f"{around}multi_modal_projector.mm_input_projection_weight": np.ones((5, 3), np.float32),
    }
    lm = FlaxLM.from_pretrained(write_checkpoint(config, text | images))
    np.testing.assert_array_equal(
        lm.logits(case.token_ids, case.lengths),
        golden_lm("gemma3").logits(case.token_ids, case.lengths),
    )
    assert lm.config.eos_token_ids == (2, 9)
    with pytest.raises(FaultError, match="audio_tower"):
        FlaxLM.from_pretrained(
            write_checkpoint(config, text | {"audio_tower.x.weight": np.ones(3, np.float32)})
        )
    del config["text_config"]
    with pytest.raises(FaultError, match="lacks the field 'text_config'"):
        FlaxLM.from_pretrained(write_checkpoint(config, text))
