"""A language model that is a script, and a small population."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from mop_jax.evaluation.baselines import Setting
from mop_jax.lm.base import Generation
from mop_jax.population import Population
from mop_jax.prompts import PromptBuilder


class ScriptedLM:
    """Answers a prompt's text with `answer(prompt, seed, sample)`, and scores with `score`."""

    context_window = None

    def __init__(
        self,
        tokenizer: Any,
        answer: Callable[[str, int, int], str],
        score: Callable[[str, str], float] = lambda prompt, response: 0.0,
        unfinished: Callable[[str], bool] = lambda answer: False,
    ) -> None:
        self.tokenizer, self.answer, self.score = tokenizer, answer, score
        self.unfinished = unfinished
        self.fingerprint = "scripted"
        self.calls: list[SimpleNamespace] = []
        self.scored: list[tuple[str, str]] = []

    def _text(self, prefix: Sequence, rest: Sequence[int]) -> str:
        return self.tokenizer.decode([i for part in prefix for i in part] + list(rest))

    def sample_pairs(
        self, prefixes, requests, pairs, *, seed, sample_ids, skip=None, on_generated=None, **rest
    ) -> Generation:
        """Answers come in two batches, the last samples first."""
        prompts = [self._text(prefixes[p], requests[r]) for p, r in pairs]
        self.calls.append(SimpleNamespace(prompts=prompts, seed=seed, **rest))
        texts = [
            "" if skip is not None and skip[n] else self.answer(prompt, seed, int(sample_ids[n]))
            for n, prompt in enumerate(prompts)
        ]
        finished = np.asarray([not self.unfinished(text) for text in texts])
        order = np.arange(len(texts))[::-1]
        for part in (order[::2], order[1::2]):
            if skip is not None:
                part = part[~skip[part]]
            if on_generated is not None and len(part):
                on_generated(part, _generation([texts[n] for n in part], finished[part]))
        return _generation(texts, finished)

    def score_pairs(self, prefixes, continuations, pairs, *, grid, on_scores, **rest) -> None:
        """Scores each pair's texts."""
        assert grid.temperatures.tolist() == [1.0]
        for n, (p, c) in enumerate(pairs):
            one = continuations[c]
            assert len(one.request) > 0
            prompt = self._text(prefixes[p], one.request)
            response = self.tokenizer.decode(list(one.response))
            self.scored.append((prompt, response))
            on_scores(np.asarray([n]), np.asarray([[self.score(prompt, response)]]))


def _generation(texts: list[str], finished: np.ndarray) -> Generation:
    return Generation(texts, [[] for _ in texts], np.zeros(len(texts)), finished)


@pytest.fixture
def population() -> Population:
    """Twelve records, two labels; every response is another."""
    labels = ["good", "bad"] * 6
    return Population(
        ids=[f"r{i}" for i in range(12)],
        contexts=[f"Review film {i}, {label}." for i, label in enumerate(labels)],
        responses=[f"{label} film number {i}" for i, label in enumerate(labels)],
        labels=labels,
    )


def bag_of_letters(texts: Sequence[str]) -> np.ndarray:
    """Counts of letters, scaled to length one."""
    counts = np.asarray([[t.lower().count(c) for c in "abcdefghijklmnopqrstuvwxyz"] for t in texts])
    return counts / np.maximum(np.linalg.norm(counts, axis=1, keepdims=True), 1e-9)


@pytest.fixture
def make_setting(byte_tokenizer, population):
    """A setting with a scripted language model; fields can be changed."""

    def make(answer=None, *, template=None, score=None, unfinished=None, **changes) -> Setting:
        script = {"score": score, "unfinished": unfinished}
        lm = ScriptedLM(
            byte_tokenizer,
            answer or (lambda prompt, seed, sample: f"answer {sample}"),
            **{name: value for name, value in script.items() if value is not None},
        )
        arguments = {
            "train": population,
            "language_model": lm,
            "prompts": PromptBuilder(byte_tokenizer, template),
            "encode": bag_of_letters,
            "personas": ["You are glad.", "You are sad."],
            "seed": 5,
        }
        return Setting(**{**arguments, **changes})

    return make
