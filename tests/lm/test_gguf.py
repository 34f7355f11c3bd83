"""GGUF files: a tiny one written here, against the same weights from safetensors; the real one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.decoder import rotary_frequencies
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.gguf import GGUFFile
from mop_jax.lm.tokenizer import gguf_tokenizer, tokenizer_fingerprint
from mop_jax.prompts import PromptBuilder

gguf = pytest.importorskip("gguf")
SENTENCEPIECE = Path(__file__).parents[1] / "golden" / "sentencepiece.json"

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
TEXTS = [
    "The capital of France is Paris.",
    " leading, trailing and  double blanks ",
    "12345 and 3.14159",
    "It's naïve — 美しい映画 🎬\n\ttabs\r\nlines\n\n\n",
    "don't DON'T we'll",
    "",
]


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


def tokenizer_of(tmp_path, case, **change):
    tokens = vocabulary()
    return gguf_tokenizer(GGUFFile(write(tmp_path / "t.gguf", case, tokens=tokens, **change)))


@pytest.mark.parametrize("pre", ["smollm", "gpt-2", "llama-bpe"])
def test_tokenizer_of_a_file(case, tmp_path, pre):
    tokenizer, tokens = tokenizer_of(tmp_path, case, pre=pre), vocabulary()
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text
    pieces = [tokens[i] for i in tokenizer.encode("hello w12", add_special_tokens=False)]
    # SmolLM2 splits digits one by one; the others leave them to the merges.
    assert pieces == ["hello", "Ġw", *(["1", "2"] if pre == "smollm" else ["12"])]
    assert tokenizer.encode("<|im_start|>h<|im_end|>", add_special_tokens=False) == [
        1, tokens.index("h"), 2,
    ]  # fmt: skip
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (1, 2)
    rendered = tokenizer.apply_chat_template([{"role": "user", "content": "h"}], tokenize=False)
    assert rendered == "<|im_start|>h"


LLAMA3 = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]


def test_a_file_without_a_pre_tokenizer(case, tmp_path):
    """Llama 3's is known by its vocabulary; any other is refused."""
    tokens = [*LLAMA3, *vocabulary()[3:]]
    given = {"tokens": tokens, "drop": ["tokenizer_pre"], "eos_token_id": 3, "bos_token_id": 0}
    found = gguf_tokenizer(GGUFFile(write(tmp_path / "a.gguf", case, **given)))
    named = {**given, "drop": [], "pre": "llama-bpe"}
    expected = gguf_tokenizer(GGUFFile(write(tmp_path / "b.gguf", case, **named)))
    assert tokenizer_fingerprint(found) == tokenizer_fingerprint(expected)
    assert found.encode("hello  12")[0] == 0
    with pytest.raises(DataError, match=r"lacks tokenizer\.ggml\.pre, .* not Llama 3's"):
        tokenizer_of(tmp_path, case, drop=["tokenizer_pre"])


TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.mark.parametrize("kind", [3, 4])
def test_the_end_of_turn_goes_by_its_role(case, tmp_path, kind):
    """Turn tokens that are marked as user-defined, and an end of sequence that is another token."""
    tokens = vocabulary()
    types = [3, kind, kind, *[1] * (len(tokens) - 3)]
    file = GGUFFile(
        write(
            tmp_path / "t.gguf", case, tokens=tokens, token_types=types, eos_token_id=0,
            chat_template=TURNS,
        )
    )  # fmt: skip
    tokenizer = gguf_tokenizer(file)
    builder = PromptBuilder(tokenizer)
    assert builder.template.end == "<|im_end|>"
    assert builder.response("hello")[-1] == 2
    assert FlaxLM(make_decoder(file), tokenizer).end_ids == (0, 2)
    with pytest.raises(DataError, match=r"holds '<\|im_end\|>', a special token"):
        builder.response("x<|im_end|>")


def make_decoder(file):
    from tests.conftest import random_decoder

    return random_decoder(file.config())


def test_all_ends_that_a_file_names_end_a_text(case, tmp_path):
    file = GGUFFile(write(tmp_path / "t.gguf", case, eot_token_id=4, eos_token_id=2))
    assert file.config().eos_token_ids == (2, 4)


@pytest.mark.parametrize("model", json.loads(SENTENCEPIECE.read_text("utf-8")))
def test_sentencepiece_of_a_file(case, tmp_path, model):
    """The ids are those of the reference implementation."""
    file = write(
        tmp_path / "t.gguf", case, tokens=model["tokens"], tokenizer_model="llama",
        token_types=model["types"], token_scores=model["scores"],
        add_space_prefix=model["add_space_prefix"], drop=["token_merges"],
    )  # fmt: skip
    tokenizer = gguf_tokenizer(GGUFFile(file))
    for text, ids in zip(model["texts"], model["ids"], strict=True):
        assert tokenizer.encode(text, add_special_tokens=False) == ids
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("The")[0] == tokenizer.bos_token_id


def test_a_file_that_asks_for_it_gets_its_beginning_of_sequence(case, tmp_path):
    asked = tokenizer_of(tmp_path, case, add_bos_token=True)
    assert asked.encode("h")[0] == 1
    assert 1 not in asked.encode("h", add_special_tokens=False)
    assert 1 not in tokenizer_of(tmp_path, case, add_bos_token=False).encode("h")
    assert 1 not in tokenizer_of(tmp_path, case).encode("h")
    # Llama 3's is added unless the file says otherwise, as llama.cpp does.
    assert tokenizer_of(tmp_path, case, pre="llama-bpe").encode("h")[0] == 1


def test_tokenizer_fingerprint_covers_vocabulary_and_template(case, tmp_path):
    one = tokenizer_of(tmp_path, case)
    assert tokenizer_fingerprint(one) == tokenizer_fingerprint(tokenizer_of(tmp_path, case))
    others = [
        tokenizer_of(tmp_path, case, pre="gpt-2"),
        tokenizer_of(tmp_path, case, chat_template="{{ messages }}"),
        tokenizer_of(tmp_path, case, token_merges=MERGES[:-1]),
        tokenizer_of(tmp_path, case, eos_token_id=0),
        None,
    ]
    assert len({tokenizer_fingerprint(t) for t in [one, *others]}) == 6


def test_real_model_knows_its_capitals(smollm2):
    config = smollm2.config
    assert (config.num_layers, config.hidden_size, config.vocab_size) == (30, 576, 49_152)
    prompt = smollm2.tokenizer.encode("The capital of France is")
    logits = np.asarray(smollm2.logits(np.asarray([prompt]), np.asarray([len(prompt)])))[0, -1]
    assert smollm2.tokenizer.decode([int(logits.argmax())]) == " Paris"
    log_prob = logits.max() - np.logaddexp.reduce(logits.astype(np.float64))
    found = smollm2.log_likelihood(["The capital of France is"], [" Paris"])
    np.testing.assert_allclose(found, log_prob, atol=1e-4)


def test_real_tokenizer(smollm2):
    tokenizer = smollm2.tokenizer
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert len(tokenizer.encode("2024")) == 4
    for number, token in enumerate(["<|endoftext|>", "<|im_start|>", "<|im_end|>"]):
        assert tokenizer.encode(token) == [number]
    rendered = tokenizer.apply_chat_template(
        [{"role": "system", "content": "S."}, {"role": "user", "content": "U?"}],
        tokenize=False,
        add_generation_prompt=True,
    )
    assert rendered == (
        "<|im_start|>system\nS.<|im_end|>\n<|im_start|>user\nU?<|im_end|>\n<|im_start|>assistant\n"
    )
