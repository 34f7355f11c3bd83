"""Tokenizers of GGUF files: ids, special tokens, ends of turns, fingerprints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mop_jax.errors import DataError
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.gguf import GGUFFile
from mop_jax.lm.tokenizer import gguf_tokenizer, tokenizer_fingerprint
from mop_jax.prompts import PromptBuilder
from tests.lm.gguf_files import MERGES, vocabulary, write

SENTENCEPIECE = Path(__file__).parents[1] / "golden" / "sentencepiece.json"
TEXTS = [
    "The capital of France is Paris.",
    " leading, trailing and  double blanks ",
    "12345 and 3.14159",
    "It's naïve — 美しい映画 🎬\n\ttabs\r\nlines\n\n\n",
    "don't DON'T we'll",
    "",
]


@pytest.fixture
def case(golden):
    return golden("gqa_tied")


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
