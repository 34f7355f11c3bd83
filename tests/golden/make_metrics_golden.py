"""Writes `metrics.json`: MAUVE by mauve-text and sentence BLEU by nltk, the tests' oracles.

    pip install mauve-text==0.4.0 nltk
    python tests/golden/make_metrics_golden.py

MAUVE's value moves with the k-means' seed, so the file holds one value a seed. The tests make the
texts and vectors anew (`mauve_samples`, `bleu_texts`).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

SHIFTS = (0.0, 0.5, 1.0, 2.0)
SEEDS = range(25, 33)


def mauve_samples(shift: float) -> tuple[np.ndarray, np.ndarray]:
    """Vectors of 400 real and 500 simulated texts whose means are `shift` apart in 4 of 24 axes."""
    rng = np.random.default_rng(11)
    scale = np.arange(1, 25) ** -0.5
    real, simulated = rng.normal(size=(400, 24)) * scale, rng.normal(size=(500, 24)) * scale
    simulated[:, :4] += shift
    return real, simulated


def bleu_texts() -> list[str]:
    """Forty texts of 3 to 15 words, with repeated words and one pair of twins."""
    rng = np.random.default_rng(12)
    vocabulary = [
        "the",
        "a",
        "film",
        "plot",
        "was",
        "is",
        "very",
        "not",
        "good",
        "bad",
        "long",
        "and",
        "but",
    ]
    texts = [" ".join(rng.choice(vocabulary, rng.integers(3, 16))) for _ in range(39)]
    return [*texts, texts[0]]


def main() -> None:
    from mauve import compute_mauve
    from nltk.translate.bleu_score import SmoothingFunction, sentence_bleu

    mauve = {}
    for shift in SHIFTS:
        real, simulated = mauve_samples(shift)
        mauve[str(shift)] = [
            float(compute_mauve(p_features=real, q_features=simulated, seed=seed).mauve)
            for seed in SEEDS
        ]
    tokens = [text.split() for text in bleu_texts()]
    smoothing = SmoothingFunction().method1
    bleu = {}
    for n in (1, 2, 4):
        scores = [
            sentence_bleu(
                tokens[:i] + tokens[i + 1 :],
                text,
                weights=(1 / n,) * n,
                smoothing_function=smoothing,
            )
            for i, text in enumerate(tokens)
        ]
        bleu[str(n)] = float(np.mean(scores))
    path = Path(__file__).with_name("metrics.json")
    path.write_text(json.dumps({"mauve": mauve, "self_bleu": bleu}, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
