"""MPNet: equal to torch in any batch; what its folder asks for is computed or refused by name."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mop_jax.encoder.checkpoint import load_parameters
from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.encoder.mpnet import MPNet, relative_buckets
from mop_jax.errors import DataError, FaultError

GOLDEN = dict(np.load(Path(__file__).parents[1] / "golden" / "encoder_mpnet.npz"))
TEXTS = GOLDEN["texts"].tolist()
LENGTHS = GOLDEN["lengths"]
ENDS = np.cumsum(LENGTHS)
# Hidden values reach 4 and embeddings lie 0.07 apart; rounding gives 4e-6 and 2e-7.
HIDDEN_ATOL, EMBEDDING_ATOL = 1e-5, 2e-6


def write_folder(folder: Path) -> Path:
    """The encoder's folder as sentence_transformers wrote it."""
    for name, content in json.loads(str(GOLDEN["files"])).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(content, "utf-8")
    prefix = "weights/"
    weights = {n.removeprefix(prefix): GOLDEN[n] for n in GOLDEN if n.startswith(prefix)}
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_folder(tmp_path)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(write_folder(tmp_path_factory.mktemp("mpnet")))


def change_config(folder: Path, **change: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


@pytest.mark.parametrize("padding", [0, 1, 52])
def test_hidden_states_equal_torch(folder: Path, padding: int) -> None:
    """One batch, whatever token pads it; the reference saw one text at a time, without padding."""
    config = json.loads((folder / "config.json").read_text())
    network, _ = load_parameters(
        lambda: MPNet.from_config(config), folder / "model.safetensors", unused=MPNet.unused
    )
    # The last row only fills up the batch.
    ids = np.full((len(LENGTHS) + 1, 161), padding)
    for row, (length, end) in enumerate(zip(LENGTHS, ENDS, strict=True)):
        ids[row, :length] = GOLDEN["token_ids"][end - length : end]
    hidden = np.asarray(network(ids, np.append(LENGTHS, 0)))
    assert np.isfinite(hidden).all()
    for row, (length, end) in enumerate(zip(LENGTHS, ENDS, strict=True)):
        expected = GOLDEN["hidden"][end - length : end]
        np.testing.assert_allclose(hidden[row, :length], expected, atol=HIDDEN_ATOL, rtol=0)


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_embeddings_equal_sentence_transformers(shared: SentenceEncoder, batch_size: int) -> None:
    """Text to embedding in any batch and order: none, padding spelt out, cut at the limit."""
    order = np.random.default_rng(batch_size).permutation(len(TEXTS))
    got = shared.encode([TEXTS[i] for i in order], batch_size=batch_size)
    expected = GOLDEN["embeddings"][order]
    np.testing.assert_allclose(got, expected, atol=EMBEDDING_ATOL, rtol=0)


def test_padding_changes_no_embedding(shared: SentenceEncoder) -> None:
    """The same text alone, and beside ones that widen its batch."""
    text = TEXTS[2]
    alone = shared.encode([text])[0]
    for others in (20, 60, 170):
        got = shared.encode([text, "w1 " * others], batch_size=2)[0]
        np.testing.assert_allclose(got, alone, atol=EMBEDDING_ATOL, rtol=0)


def test_buckets_equal_torch() -> None:
    """Every distance either way, far beyond the last bucket, and all 32 buckets are met."""
    reach = len(GOLDEN["buckets"]) // 2
    buckets = relative_buckets(reach + 1)
    assert set(np.unique(buckets)) == set(range(32)) - {16}  # 16: ahead, yet at distance 0
    for row in (0, 1, 17, reach):
        seen = GOLDEN["buckets"][reach - row : 2 * reach + 1 - row]
        np.testing.assert_array_equal(buckets[row], seen)


def test_limits(folder: Path) -> None:
    """Two of the 163 rows of the position table stand before the first position."""
    assert SentenceEncoder.from_pretrained(folder).max_length == 161
    for name in ("sentence_bert_config.json", "tokenizer_config.json"):
        (folder / name).unlink()
    assert SentenceEncoder.from_pretrained(folder).max_length == 161
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 512}')
    assert SentenceEncoder.from_pretrained(folder).max_length == 161
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    cut = SentenceEncoder.from_pretrained(folder)
    assert cut.max_length == 6
    np.testing.assert_array_equal(cut.encode(["w1 w2 w3 w4"]), cut.encode(["w1 w2 w3 w4 w5 w6"]))
    assert np.abs(cut.encode(["w1 w2 w3 w4"]) - cut.encode(["w1 w2 w3"])).max() > 1e-3


BAD_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "buckets": (
        {"relative_attention_num_buckets": 64},
        "relative_attention_num_buckets 64; accepted is 32",
    ),
    "padding": ({"pad_token_id": 0}, "pad_token_id 0; accepted is 1"),
    "activation": ({"hidden_act": "relu"}, "hidden_act 'relu'; accepted is 'gelu'"),
    "decoder": ({"is_decoder": True}, "is_decoder True"),
    "heads": ({"num_attention_heads": 2}, "2 attention heads do not divide"),
    "positions": ({"max_position_embeddings": 4}, "field max_position_embeddings"),
    "missing field": ({"layer_norm_eps": None}, "field layer_norm_eps"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_unsupported_configurations_are_refused(case: str, folder: Path) -> None:
    change, message = BAD_CONFIGS[case]
    change_config(folder, **change)
    with pytest.raises(DataError, match=message) as caught:
        SentenceEncoder.from_pretrained(folder)
    assert "config.json" in str(caught.value)


KEY = "encoder.layer.2.attention.attn.k.weight"
BIAS = "encoder.relative_attention_bias.weight"


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        (BIAS, None, rf"lacks the tensor {BIAS}\."),
        (KEY, None, rf"lacks the tensor {KEY}\."),
        (BIAS, (31, 3), rf"{BIAS} has shape \[31, 3\]; .* for \[32, 3\]"),
        ("embeddings.position_embeddings.weight", (161, 21), r"\[161, 21\]; .* for \[163, 21\]"),
        ("embeddings.token_type_embeddings.weight", (2, 21), "no place here: embeddings.token_typ"),
        ("encoder.layer.3.output.dense.bias", (21,), "no place here: encoder.layer.3.output"),
    ],
)
def test_bad_tensors_are_named(
    name: str, shape: tuple[int, ...] | None, message: str, folder: Path
) -> None:
    values = load_file(folder / "model.safetensors")
    if shape is None:
        del values[name]
    else:
        values[name] = np.ones(shape, np.float32)
    save_file(values, folder / "model.safetensors")
    with pytest.raises(FaultError, match=message):
        SentenceEncoder.from_pretrained(folder)


def test_tensors_beside_the_encoder_may_be_missing(folder: Path) -> None:
    """The head that sentence encoders do not use is in some files and not in others."""
    values = load_file(folder / "model.safetensors")
    assert set(MPNet.unused) & values.keys() == {"pooler.dense.weight", "pooler.dense.bias"}
    kept = {name: value for name, value in values.items() if name not in MPNet.unused}
    save_file(kept, folder / "model.safetensors")
    got = SentenceEncoder.from_pretrained(folder).encode(TEXTS[:3])
    np.testing.assert_allclose(got, GOLDEN["embeddings"][:3], atol=EMBEDDING_ATOL, rtol=0)
