"""Tokenizers of every kind that the supported families have, trained on a few lines, and templates.

The classes, normalisers, pre-tokenizers and decoders are those of the families; only vocabularies
are small.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

TEMPLATES = Path(__file__).parents[1] / "data" / "chat_templates"
FAMILIES: dict[str, dict] = json.loads((TEMPLATES / "families.json").read_text("utf-8"))
CORPUS = """
You are an impatient diner who notices every fault. You embody the persona in the description to
complete the task. A harmless and mildly amusing family comedy, the kind of movie you see once.
Write a positive review of the movie The Grey Zone. Write a negative review of the movie Dahmer.
<|user|> <|assistant|> <|system|> [INST] [/INST] <<SYS>> <</SYS>> user assistant system model
The filmmakers try to balance pointed satire, often incisive, and unabashed sweetness: 12 345 times.
Request: a Response: x  two   three    blanks and\n\nlines\n\n\nand\ttabs. né café; 美しい映画 🎬
Cutting Knowledge Date: December 2023 Today Date: 26 Jul 2024 You are a helpful assistant.
""".strip().split("\n")  # fmt: skip
LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")


def _byte_level(splitter, normaliser=None) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    if normaliser is not None:
        tokenizer.normalizer = normaliser
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=560, initial_alphabet=alphabet, show_progress=False, special_tokens=["<unk>"]
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


def _split(pattern: str):
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), level])


@cache
def _pieces() -> tuple[str, str]:
    """Vocabulary and merges as SentencePiece trains them: no piece goes on behind a blank."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    specials = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=620, show_progress=False, special_tokens=specials)
    tokenizer.train_from_iterator([line.replace("\n", " ") for line in CORPUS * 3], trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return json.dumps(model["vocab"]), json.dumps(model["merges"])


def _sentencepiece(prefix: str) -> Tokenizer:
    """SentencePiece BPE with the prefix blank as `prefix` says."""
    vocab, merges = (json.loads(part) for part in _pieces())
    tokenizer = Tokenizer(
        models.BPE(
            vocab=vocab, merges=[tuple(m) for m in merges], unk_token="<unk>", fuse_unk=True,
            byte_fallback=True,
        )
    )  # fmt: skip
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    blanks = [normalizers.Replace(" ", "▁")]
    if prefix == "gemma":
        tokenizer.normalizer = blanks[0]
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        tokenizer.add_tokens([AddedToken(n, normalized=False) for n in ("\n", "\n\n", "\n\n\n")])
    elif prefix == "normaliser":
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), *blanks])
        ends.append(decoders.Strip(" ", 1, 0))
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix, split=False)
        if prefix != "never":
            ends.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(ends)
    return tokenizer


def _unigram(prefix: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prefix)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prefix)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return tokenizer


BUILDERS = {
    "gpt2": lambda: _byte_level(pre_tokenizers.ByteLevel(add_prefix_space=False)),
    "gpt2 with a prefix blank": lambda: _byte_level(
        pre_tokenizers.ByteLevel(add_prefix_space=True)
    ),
    "llama3": lambda: _byte_level(_split(LLAMA3)),
    "qwen": lambda: _byte_level(_split(QWEN), normalizers.NFC()),
    "gemma": lambda: _sentencepiece("gemma"),
    "sentencepiece normaliser": lambda: _sentencepiece("normaliser"),
    "sentencepiece first": lambda: _sentencepiece("first"),
    "sentencepiece always": lambda: _sentencepiece("always"),
    "sentencepiece never": lambda: _sentencepiece("never"),
    "unigram first": lambda: _unigram("first"),
    "unigram always": lambda: _unigram("always"),
}
"""What makes a backend, by kind."""


@cache
def _backend(kind: str) -> str:
    return BUILDERS[kind]().to_str()


def make_tokenizer(
    kind: str,
    family: str | None = None,
    *,
    adds_bos: bool = False,
    flags: dict[str, bool] | None = None,
    **options,
):
    """A fast tokenizer of a kind with the special tokens and the chat template of a family.

    `flags` are those of its special tokens.
    """
    backend = Tokenizer.from_str(_backend(kind))
    if family is None:
        told, template = {"bos": "<s>", "eos": "</s>", "special": [], "added": []}, None
    else:
        told, template = FAMILIES[family], (TEMPLATES / f"{family}.jinja").read_text("utf-8")
    special = [t for t in (told["bos"], told["eos"], *told["special"]) if t]
    flagged = {"normalized": False, "special": True} | (flags or {})
    backend.add_special_tokens([AddedToken(t, **flagged) for t in special])
    backend.add_tokens([AddedToken(t, normalized=False) for t in told["added"]])
    if adds_bos and told["bos"]:
        bos = told["bos"]
        backend.post_processor = processors.TemplateProcessing(
            single=[bos, "$A"], pair=[bos, "$A", bos, "$B"],
            special_tokens=[(bos, backend.token_to_id(bos))],
        )  # fmt: skip
    given = {
        "bos_token": told["bos"],
        "eos_token": told["eos"],
        "unk_token": "<unk>",
        "chat_template": template,
        "clean_up_tokenization_spaces": False,
    }
    return PreTrainedTokenizerFast(tokenizer_object=backend, **{**given, **options})
