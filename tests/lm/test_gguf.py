"""GGUF files: a tiny one written here, against the same weights from safetensors; the real one."""

from __future__ import annotations

import numpy as np
import pytest

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.decoder import rotary_frequencies
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.gguf import GGUFFile
from tests.lm.gguf_files import (
    LAYER_NAMES,
    gguf_tensors,
    write,
)

gguf = pytest.importorskip("gguf")


@pytest.fixture
def case(golden):
    return golden("gqa_tied")


def assert_same(found: FlaxLM, expected: FlaxLM, case) -> None:
    np.testing.assert_allclose(
        np.asarray(found.logits(case.token_ids, case.lengths))[case.real],
        np.asarray(expected.logits(case.token_ids, case.lengths))[case.real],
        atol=1e-5,
    )


@pytest.mark.parametrize("name", ["gqa_tied", "llama3_rope", "biased_untied"])
def test_equals_the_same_weights_from_safetensors(golden, write_checkpoint, tmp_path, name):
    case = golden(name)
    # What a GGUF file of the Llama family cannot say, or this reader refuses.
    case.config |= {"attention_bias": False, "mlp_bias": False}
    case.config["rope_parameters"] = {"rope_type": "default", "rope_theta": 300.0}
    case.weights = {k: v for k, v in case.weights.items() if not k.endswith("bias")}
    expected = FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights))
    found = FlaxLM.from_pretrained(write(tmp_path / "m.gguf", case))
    for field, value in expected.config.__dict__.items():
        if isinstance(value, float):
            assert getattr(found.config, field) == pytest.approx(value)
        elif field != "rope_scaling":
            assert getattr(found.config, field) == value
    assert_same(found, expected, case)


def test_biases_of_attention_are_reordered_with_their_rows(golden, write_checkpoint, tmp_path):
    case = golden("biased_untied")
    case.config["mlp_bias"] = False
    case.weights = {
        k: v for k, v in case.weights.items() if not ("mlp" in k and k.endswith("bias"))
    }
    expected = FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights))
    assert_same(FlaxLM.from_pretrained(write(tmp_path / "m.gguf", case)), expected, case)


def test_quantised_tensors_are_dequantised(golden, write_checkpoint, tmp_path):
    """Blocks of 32 share a scale in Q8_0, so matrices need rows of a multiple of 32."""
    case = golden("gqa_tied")
    rng = np.random.default_rng(0)
    case.config |= {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    case.config |= {"num_attention_heads": 4, "head_dim": 16}
    shapes = {
        "model.embed_tokens.weight": (101, 64),
        "model.norm.weight": (64,),
        "model.layers.0.input_layernorm.weight": (64,),
        "model.layers.0.post_attention_layernorm.weight": (64,),
        "model.layers.0.self_attn.q_proj.weight": (64, 64),
        "model.layers.0.self_attn.k_proj.weight": (32, 64),
        "model.layers.0.self_attn.v_proj.weight": (32, 64),
        "model.layers.0.self_attn.o_proj.weight": (64, 64),
        "model.layers.0.mlp.gate_proj.weight": (96, 64),
        "model.layers.0.mlp.up_proj.weight": (96, 64),
        "model.layers.0.mlp.down_proj.weight": (64, 96),
    }
    case.weights = {k: rng.normal(size=s).astype(np.float32) for k, s in shapes.items()}
    file = write(tmp_path / "m.gguf", case, quantise=lambda name: "norm" not in name)

    def rounded(value: np.ndarray) -> np.ndarray:
        """Q8_0 in words: blocks of 32, each in whole steps of (largest magnitude) / 127."""
        blocks = value.reshape(-1, 32).astype(np.float64)
        scale = (abs(blocks).max(axis=1, keepdims=True) / 127).astype(np.float32)
        steps = np.round(blocks / scale)
        return (steps * scale.astype(np.float16)).astype(np.float32).reshape(value.shape)

    quantised = {k: rounded(v) if v.ndim == 2 else v for k, v in case.weights.items()}
    name = "model.embed_tokens.weight"
    assert abs(quantised[name] - case.weights[name]).max() > 1e-3
    expected = FlaxLM.from_pretrained(write_checkpoint(case.config, quantised))
    found = FlaxLM.from_pretrained(file)
    np.testing.assert_allclose(
        np.asarray(found.logits(case.token_ids, case.lengths))[case.real],
        np.asarray(expected.logits(case.token_ids, case.lengths))[case.real],
        atol=5e-3,  # a value halfway between two steps may be rounded either way
    )


def test_rotary_factors_are_those_of_the_configuration(golden, write_checkpoint, tmp_path):
    """Llama 3.1's stretch comes as a table of divisors."""
    case = golden("llama3_rope")
    expected = FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights))
    scaled = np.asarray(rotary_frequencies(expected.config))
    plain = 300.0 ** -(np.arange(0, 14, 2) / 14)
    tensors = {**gguf_tensors(case), "rope_freqs.weight": (plain / scaled).astype(np.float32)}
    assert tensors["rope_freqs.weight"].max() > 7
    found = FlaxLM.from_pretrained(write(tmp_path / "m.gguf", case, tensors=tensors))
    np.testing.assert_allclose(
        np.asarray(found.logits(case.token_ids, case.lengths))[case.real],
        np.asarray(expected.logits(case.token_ids, case.lengths))[case.real],
        atol=1e-4,
    )


def test_gemma_3(golden, write_checkpoint, tmp_path):
    """Norm scales with their one added, two rotary bases, five layers in six that slide."""
    case = golden("gemma3")
    # The golden checkpoint switches on more than a file of llama.cpp's can say.
    case.weights = {k: v for k, v in case.weights.items() if not k.endswith(".bias")}
    case.config |= {"attention_bias": False, "final_logit_softcapping": None}
    names = {
        **LAYER_NAMES,
        "post_attention_layernorm": "post_attention_norm",
        "pre_feedforward_layernorm": "ffn_norm",
        "post_feedforward_layernorm": "post_ffw_norm",
        "self_attn.q_norm": "attn_q_norm",
        "self_attn.k_norm": "attn_k_norm",
    }
    tensors = {}
    for name, value in case.weights.items():
        parts = name.removeprefix("model.").split(".")
        value = value + 1 if parts[-2].endswith("norm") else value
        if parts[0] == "layers":
            tensors[f"blk.{parts[1]}.{names['.'.join(parts[2:-1])]}.weight"] = value
        else:
            top = {"embed_tokens": "token_embd", "norm": "output_norm"}
            tensors[f"{top[parts[0]]}.weight"] = value
    # llama.cpp scales scores by the heads' width: a checkpoint that asks for another has no file.
    case.config["query_pre_attn_scalar"] = case.config["head_dim"]
    rope = case.config["rope_parameters"]
    case.config["rope_parameters"] = rope["full_attention"]
    found = FlaxLM.from_pretrained(
        write(
            tmp_path / "m.gguf", case, arch="gemma3", tensors=tensors, sliding_window=6,
            rope_scaling_type=gguf.RopeScalingType.LINEAR, rope_scaling_factor=2.0,
            **{"rope.freq_base_swa": 50.0},
        )
    )  # fmt: skip
    case.config["rope_parameters"] = rope
    expected = FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights))
    assert_same(found, expected, case)


@pytest.mark.parametrize("arch", ["gemma2", "qwen2"])
def test_unsupported_architectures_are_named(case, tmp_path, arch):
    file = write(tmp_path / "m.gguf", case, arch=arch)
    with pytest.raises(DataError, match=f"architecture '{arch}' is not supported"):
        FlaxLM.from_pretrained(file)


@pytest.mark.parametrize("kept", [0, 3, 40, 2_000, -100])
def test_a_cut_off_file_is_refused(case, tmp_path, kept):
    file = write(tmp_path / "m.gguf", case)
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(FaultError, match=r"m\.gguf is no readable GGUF file, or it is cut off"):
        FlaxLM.from_pretrained(file)


def test_what_is_no_gguf_file_is_refused(tmp_path):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"PK\x03\x04" + bytes(4_000))
    with pytest.raises(FaultError, match=r"m\.gguf is no readable GGUF file"):
        FlaxLM.from_pretrained(file)


@pytest.mark.parametrize(
    ("change", "kind", "named"),
    [
        (
            {"rope_scaling_type": gguf.RopeScalingType.YARN},
            DataError,
            "type 'yarn' is not supported",
        ),
        ({"rope_dimension_count": 4}, DataError, "rotating 4 of 6"),
        ({"expert_count": 8}, DataError, "mixture-of-experts"),
        ({"pre": "qwen2"}, DataError, "pre-tokenizer 'qwen2' is not supported"),
        (
            {"tokenizer_model": "llama", "token_scores": [0.0] * 101, "token_types": [4] * 101},
            DataError,
            "begins texts with a blank and has pieces that users defined",
        ),
        ({"tokenizer_model": "bert"}, DataError, "GGUF tokenizer 'bert'"),
        ({"token_merges": ["h ü"]}, FaultError, "its tokenizer could not be built"),
        ({"drop": ["token_merges"]}, FaultError, "metadata field tokenizer.ggml.merges"),
        ({"drop": ["embedding_length"]}, FaultError, "metadata field llama.embedding_length"),
        ({"drop": ["blk.1.attn_k.weight"]}, FaultError, r"layers\.1\.self_attn\.k_proj\.weight is"),
        ({"drop": ["token_embd.weight"]}, FaultError, r"embed_tokens\.weight is missing"),
    ],
)
def test_unsupported_and_missing_parts_are_named(case, tmp_path, change, kind, named):
    with pytest.raises(kind, match=named):
        FlaxLM.from_pretrained(write(tmp_path / "m.gguf", case, **change))


def test_tensors_without_a_place_are_named(case, tmp_path):
    case.weights["model.layers.0.self_attn.q_norm.weight"] = np.ones(6, np.float32)
    LAYER_NAMES["self_attn.q_norm"] = "attn_q_norm"
    try:
        with pytest.raises(FaultError, match=r"blk\.0\.attn_q_norm\.weight has no place"):
            FlaxLM.from_pretrained(write(tmp_path / "m.gguf", case))
    finally:
        del LAYER_NAMES["self_attn.q_norm"]


def split(file, count, keep=None):
    """A file's tensors shared out over parts, named and marked as llama.cpp splits a model."""
    reader = gguf.GGUFReader(file)
    parts = []
    for number in range(count):
        part = file.with_name(f"m-{number + 1:05d}-of-{count:05d}.gguf")
        writer = gguf.GGUFWriter(part, "llama")
        if number == 0:
            for field in reader.fields.values():
                if field.name.startswith(("GGUF.", "general.architecture")):
                    continue
                kind, value = field.types[0], field.contents()
                inner = field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, value, kind, sub_type=inner)
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", count)
        writer.add_int32("split.tensors.count", len(reader.tensors))
        for i in np.array_split(np.arange(len(reader.tensors)), count)[number]:
            tensor = reader.tensors[i]
            writer.add_tensor(tensor.name, np.array(tensor.data))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        parts.append(part)
    return parts


def test_all_parts_of_a_split_model_are_read(case, write_checkpoint, tmp_path):
    whole = write(tmp_path / "m.gguf", case)
    parts = split(whole, 3)
    expected = FlaxLM.from_pretrained(whole)
    for part in (parts[0], parts[2]):
        found = FlaxLM.from_pretrained(part)
        assert_same(found, expected, case)
        assert found.fingerprint == expected.fingerprint


def test_parts_that_are_missing_or_renamed_are_refused_at_once(case, tmp_path, monkeypatch):
    parts = split(write(tmp_path / "m.gguf", case), 3)
    monkeypatch.setattr(GGUFFile, "tensors", None)  # nothing may be read
    renamed = parts[0].rename(tmp_path / "other.gguf")
    with pytest.raises(DataError, match=r"other\.gguf is one of 3 parts of a model"):
        FlaxLM.from_pretrained(renamed)
    renamed.rename(parts[0])
    parts[1].rename(tmp_path / "away")
    with pytest.raises(FaultError, match=r"m-00002-of-00003\.gguf is missing.*1 of 3 parts"):
        FlaxLM.from_pretrained(parts[0])
    write(tmp_path / "n.gguf", case, drop=["blk.0.attn_q.weight"])
    split(tmp_path / "n.gguf", 3)[1].replace(tmp_path / "n-of-two")
    (tmp_path / "away").replace(parts[1])
    with pytest.raises(FaultError, match="do not belong together"):
        FlaxLM.from_pretrained(parts[0])


def test_real_model_knows_its_capitals(smollm2):
    config = smollm2.config
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49_152)
    prompt = smollm2.tokenizer.encode("The capital of France is")
    logits = np.asarray(smollm2.logits(np.asarray([prompt]), np.asarray([len(prompt)])))[0, -1]
    assert smollm2.tokenizer.decode([int(logits.argmax())]) == " Paris"
    log_prob = logits.max() - np.logaddexp.reduce(logits.astype(np.float64))
    found = smollm2.log_likelihood(["The capital of France is"], [" Paris"])
    np.testing.assert_allclose(found, log_prob, atol=1e-4)
