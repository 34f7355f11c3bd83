"""Writes sentencepiece.json: a small SentencePiece vocabulary and how the reference splits texts.

Needs the sentencepiece package, which mop-jax itself does not:

    python tests/golden/make_sentencepiece_golden.py [--out FOLDER]

BPE models with byte fallback are trained on the texts below: one as Gemma's, with pieces for runs
of blanks and newlines that users defined; one as Llama 2's, with a blank before each text.
"""

from __future__ import annotations

import argparse
import io
import json
from pathlib import Path

import sentencepiece

CORPUS = """
The film overcomes the regular minefield of coming-of-age cliches with potent doses of honesty.
A harmless and mildly amusing family comedy, the kind of movie you see once and forget.
Write a positive review of the movie The Grey Zone. Write a negative review of the movie Dahmer.
The filmmakers try to balance pointed, often incisive satire and unabashed sweetness.
It's mildly sentimental, unabashedly consumerist, studiously inoffensive and completely disposable.
There's not much going on in this movie unless you simply decide to buy into the notion.
""".strip().split("\n")
TEXTS = [
    "The movie is honest.",
    " leading, trailing and  double   blanks ",
    "12345 and 3.14159",
    "It's naïve — 美しい映画 🎬\n\ttabs\nlines\n\n\nend",
    "unabashedly unabashed",
    "    four",
    "",
    *CORPUS[:3],
]
USER_DEFINED = ["▁▁", "▁▁▁", "\n", "\n\n"]


def make(prefix: bool) -> dict:
    """One model, with or without the blank that Llama 2 puts before a text."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS * 3),
        model_writer=model,
        model_type="bpe",
        vocab_size=460,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=prefix,
        user_defined_symbols=[] if prefix else USER_DEFINED,
        pad_id=3,
    )
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    pieces = range(processor.get_piece_size())

    def kind(i: int) -> int:  # llama.cpp's numbers
        if processor.is_unknown(i):
            return 2
        if processor.is_control(i):
            return 3
        if processor.id_to_piece(i) in USER_DEFINED:
            return 4
        return 6 if processor.is_byte(i) else 1

    return {
        "add_space_prefix": prefix,
        "tokens": [processor.id_to_piece(i) for i in pieces],
        "scores": [processor.get_score(i) for i in pieces],
        "types": [kind(i) for i in pieces],
        "texts": TEXTS,
        "ids": [processor.encode(text) for text in TEXTS],
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    path = parser.parse_args().out / "sentencepiece.json"
    path.write_text(json.dumps([make(False), make(True)], ensure_ascii=False), encoding="utf-8")
    print(path.name, path.stat().st_size)
