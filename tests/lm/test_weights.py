"""Checkpoint folders: shards, and every kind of damage or unsupported setting refused by name."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from mop_jax.errors import DataError, FaultError
from mop_jax.lm.families import read_config
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.weights import (
    checkpoint_name,
    safetensors_files,
    safetensors_tensors,
    target_name,
)

Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


@pytest.fixture
def case(golden):
    return golden("gqa_tied")


def load(folder):
    return FlaxLM.from_pretrained(folder)


def test_shards_and_names_without_a_leading_model(case, golden_lm, write_checkpoint):
    folder = write_checkpoint(case.config, case.weights, num_shards=2)
    assert not (folder / "model.safetensors").exists()
    np.testing.assert_array_equal(
        load(folder).logits(case.token_ids, case.lengths),
        golden_lm("gqa_tied").logits(case.token_ids, case.lengths),
    )
    bare = {name.removeprefix("model."): value for name, value in case.weights.items()}
    again = load(write_checkpoint(case.config, bare))
    found = np.asarray(again.logits(case.token_ids, case.lengths))
    np.testing.assert_allclose(found[case.real], case.logits[case.real], atol=1e-4)


def test_tensors_that_say_nothing_new_are_passed_over(case, golden_lm, write_checkpoint):
    """Old checkpoints repeat a tied projection and store rotary constants."""
    case.weights["lm_head.weight"] = case.weights["model.embed_tokens.weight"]
    case.weights["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(3, np.float32)
    lm = load(write_checkpoint(case.config, case.weights))
    assert lm.fingerprint == golden_lm("gqa_tied").fingerprint


def test_names_map_there_and_back(golden):
    for name in golden("biased_untied").weights:
        assert checkpoint_name(*target_name(name)) == name


def test_fingerprint_covers_weights_and_configuration(case, golden_lm, write_checkpoint):
    known = golden_lm("gqa_tied").fingerprint
    assert load(write_checkpoint(case.config, case.weights)).fingerprint == known
    case.weights[Q_PROJ][3, 5] += 1e-3
    assert load(write_checkpoint(case.config, case.weights)).fingerprint != known
    case.weights[Q_PROJ][3, 5] -= 1e-3
    case.config["rms_norm_eps"] = 1e-4
    assert load(write_checkpoint(case.config, case.weights)).fingerprint != known


def test_missing_tensors_are_named(case, write_checkpoint):
    for name in (Q_PROJ, "model.norm.weight", "model.embed_tokens.weight"):
        fewer = {key: value for key, value in case.weights.items() if key != name}
        with pytest.raises(FaultError, match=f"{name} is missing"):
            load(write_checkpoint(case.config, fewer))
    case.config["tie_word_embeddings"] = False
    with pytest.raises(FaultError, match=r"lm_head\.weight is missing"):
        load(write_checkpoint(case.config, case.weights))


@pytest.mark.parametrize(
    "name", ["model.layers.1.self_attn.q_norm.weight", "model.layers.1.self_attn.q_proj.bias"]
)
def test_a_tensor_without_a_place_is_named(case, write_checkpoint, name):
    case.weights[name] = np.ones(24, np.float32)
    with pytest.raises(FaultError, match=f"{name} has no place"):
        load(write_checkpoint(case.config, case.weights))


def test_a_layer_too_many_is_refused(case, write_checkpoint):
    case.config["num_hidden_layers"] = 2
    with pytest.raises(FaultError, match=r"model\.layers\.2\."):
        load(write_checkpoint(case.config, case.weights))


def test_misshapen_tensors_are_named(case, write_checkpoint):
    name = "model.layers.0.self_attn.k_proj.weight"
    case.weights[name] = np.ascontiguousarray(case.weights[name].T)
    with pytest.raises(FaultError, match=f"{name} has shape"):
        load(write_checkpoint(case.config, case.weights))


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_value_that_is_not_finite_is_named(case, write_checkpoint, value):
    case.weights[Q_PROJ][2, 3] = value
    with pytest.raises(FaultError, match=f"{Q_PROJ} holds a NaN or an infinity"):
        load(write_checkpoint(case.config, case.weights))


@pytest.mark.parametrize("kept", [0, 5, 300, -40])
def test_a_truncated_file_is_named(case, write_checkpoint, kept):
    folder = write_checkpoint(case.config, case.weights)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:kept])
    with pytest.raises(FaultError, match=r"model\.safetensors is no readable safetensors file"):
        load(folder)


def test_the_first_tensor_that_is_cut_off_is_named(case, write_checkpoint):
    """A shard that lost its end, in the middle of one tensor; others follow it in the file."""
    folder = write_checkpoint(case.config, case.weights, num_shards=2)
    file = folder / "model-00002-of-00002.safetensors"
    content = file.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    entries = json.loads(content[8:size])
    entries.pop("__metadata__", None)
    in_order = sorted(entries, key=lambda name: entries[name]["data_offsets"])
    begin, end = entries[in_order[3]]["data_offsets"]
    file.write_bytes(content[: size + (begin + end) // 2])
    with pytest.raises(FaultError) as caught:
        load(folder)
    assert str(file) in str(caught.value)
    assert f"it ends before tensor {in_order[3]} does" in str(caught.value)


def test_a_file_cut_off_while_it_is_read_is_named(case, write_checkpoint):
    folder = write_checkpoint(case.config, case.weights)
    file = folder / "model.safetensors"
    tensors = safetensors_tensors(folder)
    next(tensors)[1]()
    file.write_bytes(file.read_bytes()[:-9_000])
    with pytest.raises(FaultError, match=r"model\.safetensors ends before tensor model\.\S+ does"):
        [read() for _, read in tensors]


def test_numbers_of_an_unknown_type_are_named(case, write_checkpoint):
    case.weights[Q_PROJ] = case.weights[Q_PROJ].astype(np.complex64)
    with pytest.raises(FaultError, match=f"{Q_PROJ} is of type C64, which is not supported"):
        load(write_checkpoint(case.config, case.weights))


def test_a_tensor_that_is_there_twice_is_named(case, write_checkpoint):
    case.weights[Q_PROJ.removeprefix("model.")] = case.weights[Q_PROJ]
    with pytest.raises(FaultError, match=f"{Q_PROJ} is there twice"):
        load(write_checkpoint(case.config, case.weights))


@pytest.mark.parametrize("stored", ["float16", "bfloat16", "float32"])
def test_tensors_are_read_as_the_library_reads_them(case, write_checkpoint, stored):
    weights = {name: value.astype(jnp.dtype(stored)) for name, value in case.weights.items()}
    folder = write_checkpoint(case.config, weights, num_shards=3)
    found = {name: read() for name, read in safetensors_tensors(folder)}
    assert list(found) == [name for file in safetensors_files(folder) for name in load_file(file)]
    for name, value in found.items():
        assert value.dtype == stored
        np.testing.assert_array_equal(value, weights[name])
    lm = FlaxLM.from_pretrained(folder, dtype="bfloat16")
    assert lm.decoder.layers.self_attn.q_proj.kernel[...].dtype == jnp.bfloat16
    np.testing.assert_array_equal(
        lm.decoder.layers.self_attn.q_proj.kernel[...][1], weights[Q_PROJ].T.astype(jnp.bfloat16)
    )


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", "float32"), ("tpu", "bfloat16")])
def test_the_default_dtype_is_the_backends(case, write_checkpoint, monkeypatch, backend, dtype):
    folder = write_checkpoint(case.config, case.weights)
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    for given in (None, "auto"):
        assert FlaxLM.from_pretrained(folder, given).decoder.dtype == dtype
    assert FlaxLM.from_pretrained(folder, "float32").decoder.dtype == "float32"


# Loads a checkpoint twice, the first time to compile; prints resident MiB after it that are not
# parameters: at rest, and at the peak of the second time.
MEASURE = r"""
import sys, re, gc, jax
from mop_jax.lm.flax_lm import FlaxLM

def status(field):
    return int(re.search(field + r":\s+(\d+) kB", open("/proc/self/status").read())[1]) / 1024

lm = FlaxLM.from_pretrained(sys.argv[1], "float32")
held = sum(leaf.nbytes for leaf in jax.tree.leaves(lm._state)) / 2**20
del lm
gc.collect()
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
lm = FlaxLM.from_pretrained(sys.argv[1], "float32")
print(held, before, status("VmRSS"), status("VmHWM"))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_loading_takes_no_more_than_a_shard_and_a_tensor(case, even_checkpoint):
    """Eight shards of 16 MiB, of which the largest tensor is 4: all at once would be 128 MiB."""
    folder = even_checkpoint(
        "gqa_tied", vocab_size=1024, hidden_size=512, intermediate_size=2048, head_dim=64,
        num_attention_heads=8, num_key_value_heads=8, num_hidden_layers=8, num_shards=8,
    )  # fmt: skip
    sizes = [file.stat().st_size / 2**20 for file in folder.glob("*.safetensors")]
    assert len(sizes) == 8
    tensor = 4.0
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, str(folder)],
        env={**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    held, before, after, peak = map(float, done.stdout.split())
    assert held == pytest.approx(sum(sizes), rel=0.01)
    # Parameters are resident at the end, and hardly anything else is new.
    assert after - before == pytest.approx(held, abs=8)
    assert peak - before - held < max(sizes) + tensor


def test_missing_files_are_named(case, write_checkpoint, tmp_path):
    folder = write_checkpoint(case.config, case.weights, num_shards=2)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FaultError, match=r"model-00002-of-00002\.safetensors is missing"):
        load(folder)
    index = folder / "model.safetensors.index.json"
    index.write_text("{")
    with pytest.raises(FaultError, match=r"index\.json is no readable shard index"):
        load(folder)
    index.unlink()
    with pytest.raises(FaultError, match=r"holds neither model\.safetensors nor"):
        load(folder)
    (folder / "config.json").unlink()
    with pytest.raises(FaultError, match=r"config\.json is missing"):
        load(folder)
    other = tmp_path / "weights.bin"
    other.write_bytes(b"x")
    with pytest.raises(DataError, match=r"weights\.bin is no checkpoint"):
        load(other)
    with pytest.raises(DataError, match="nowhere was not found"):
        load("nowhere")


@pytest.mark.parametrize("text", ["{", "\xff"])
def test_a_damaged_config_is_a_fault(case, write_checkpoint, text):
    folder = write_checkpoint(case.config, case.weights)
    (folder / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(FaultError, match=r"config\.json is not valid JSON"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "phi3"}, "model_type 'phi3'"),
        ({"model_type": None}, "model_type None"),
        ({"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        ({"sliding_window": 64}, "sliding_window = 64"),
        ({"rope_interleaved": True}, "rope_interleaved"),
        ({"rope_parameters": {"rope_type": "yarn", "factor": 2.0}}, "rope_type = 'yarn'"),
        ({"rope_parameters": {"rope_type": "default", "beta_fast": 3}}, "beta_fast = 3"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial"),
        ({"num_key_value_heads": 3}, "num_key_value_heads = 3"),
        ({"head_dim": 5}, "even rotary dimension, but got `head_dim`=5"),
    ],
)
def test_unsupported_settings_are_named(case, write_checkpoint, change, named):
    with pytest.raises(DataError, match=named):
        load(write_checkpoint({**case.config, **change}, case.weights))


@pytest.mark.parametrize("field", ["vocab_size", "rms_norm_eps", "max_position_embeddings"])
def test_a_missing_field_is_named(case, write_checkpoint, field):
    del case.config[field]
    with pytest.raises(FaultError, match=f"lacks the field '{field}'"):
        load(write_checkpoint(case.config, case.weights))


def test_an_unknown_setting_that_is_off_is_no_obstacle(case, write_checkpoint):
    case.config |= {"sliding_window": None, "use_sliding_window": False}
    read_config(write_checkpoint(case.config, case.weights))


def test_end_tokens_of_both_configurations_count(case, write_checkpoint):
    folder = write_checkpoint(case.config, case.weights)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    assert read_config(folder)[0].eos_token_ids == (2, 5)


def test_unsupported_dtype_is_named(case, write_checkpoint):
    with pytest.raises(DataError, match="'float16' is not supported"):
        FlaxLM.from_pretrained(write_checkpoint(case.config, case.weights), dtype="float16")


def test_a_folder_without_tokenizer_serves_ids_only(golden_lm):
    lm = golden_lm("gqa_tied")
    assert lm.tokenizer is None
    assert lm.log_likelihood([[5, 7]], [[9]])[0] < 0
    drawn = lm.generate([[5, 7]], max_new_tokens=3)
    assert drawn.texts == [""]
    assert len(drawn.token_ids[0]) <= 3
    for prompt, response in (("text", [9]), ([5], "text")):
        with pytest.raises(DataError, match="came without a tokenizer; give token ids"):
            lm.log_likelihood([prompt], [response])
    with pytest.raises(DataError, match="came without a tokenizer; give token ids"):
        lm.generate(["text"])


def test_a_damaged_tokenizer_is_a_fault(case, write_checkpoint):
    folder = write_checkpoint(case.config, case.weights)
    (folder / "tokenizer.json").write_text('{"version": "1.0", "model": ')
    with pytest.raises(FaultError, match="its tokenizer could not be read"):
        load(folder)


def test_a_tokenizer_in_the_folder_is_loaded(case, write_checkpoint, word_tokenizer):
    folder = write_checkpoint(case.config, case.weights)
    word_tokenizer.save_pretrained(folder)
    lm = load(folder)
    np.testing.assert_array_equal(
        lm.log_likelihood(["w1 w2"], ["w3"]), lm.log_likelihood([[8, 9]], [[10]])
    )
