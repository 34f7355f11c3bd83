"""Writes encoder_minilm.npz: texts and their all-MiniLM-L6-v2 embeddings by sentence_transformers.

Needs torch and sentence_transformers, which the package itself does not:

    python tests/golden/make_encoder_golden.py [--out FOLDER] FOLDER_OF_THE_MODEL
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import sentence_transformers
import torch
from sentence_transformers import SentenceTransformer

TEXTS = [
    "",
    " ",
    ".",
    "a",
    "Good.",
    "good.",
    "GOOD!!!",
    "A three-hour cinema master class.",
    "Write a positive review of the movie Alien.",
    "Write a negative review of the movie Alien.",
    "  leading and trailing blanks   ",
    "tabs\tand\nline\n\nbreaks",
    "Naïve café, façade, Ångström, Łódź, Здравствуйте",
    "Schadenfreude über Weltschmerz: Donaudampfschifffahrtsgesellschaftskapitän",
    "美しい映画です。とても感動しました。",
    "这部电影很好看",
    "فيلم رائع",
    "It's 5/5 ⭐⭐⭐⭐⭐ — I ❤️ it 👍🏽",
    "zero\u200bwidth, non\u00a0breaking, soft\u00adhyphen, combining e\u0301",
    '<html>&amp;</html> {"json": [1, 2.5e-3, null]} http://example.org/a?b=c#d',
    "[CLS] special [SEP] tokens [PAD] in the [MASK] text [UNK]",
    "supercalifragilisticexpialidocious" * 4,
    "x" * 150,
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20",
    "You are a sarcastic film critic who dislikes formula.",
    "You are a warm, enthusiastic movie fan. You forgive a weak plot if the heart is there. " * 2,
    "the cat sat on the mat and " * 10,
    "Long sentences are cut where the encoder was trained to stop reading, not before. " * 12,
    "One hundred words make a paragraph. " * 36,
    "Longer than the limit of two hundred and fifty-six tokens by a wide margin. " * 40,
    " ".join(f"word{i}" for i in range(300)),
    "映画" * 300,
]


def main(folder: str, out: Path) -> None:
    torch.set_num_threads(1)
    model = SentenceTransformer(folder, device="cpu")
    # One text at a time: no padding, hence the reference for every padded batch.
    embeddings = np.stack([model.encode([text])[0] for text in TEXTS]).astype(np.float32)
    target = out / "encoder_minilm.npz"
    np.savez_compressed(
        target,
        texts=np.array(TEXTS),
        embeddings=embeddings,
        versions=np.array(
            [
                f"sentence_transformers {sentence_transformers.__version__}",
                f"torch {torch.__version__}",
            ]
        ),
    )
    print(target, embeddings.shape)


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("folder")
    main(**vars(parser.parse_args()))
