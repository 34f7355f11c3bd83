"""What fits ask of the language model: texts and log-likelihoods, kept by content.

Every answer is a JSON file named by the SHA-256 of all that decides it: the language model, the
prompts' ids, the seed and how it is sampled. A fit that was killed finds what it had, and nothing
stale can be found.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from mop_jax import atomic, progress
from mop_jax.errors import DataError
from mop_jax.evaluation.baselines.base import Setting
from mop_jax.lm.base import NO_TRUNCATION, Continuation, Ends, TemperatureGrid, Truncation
from mop_jax.prompts import Prompt
from mop_jax.prompts.conversations import common_length

CHUNK = 64
"""Prompts of one file: what a kill costs."""


class Draft(NamedTuple):
    """A text that a fit had written.

    Attributes:
        text: without blanks around it.
        finished: whether it ended by itself.
    """

    text: str
    finished: bool


def write_drafts(
    setting: Setting,
    prompts: Sequence[Prompt],
    *,
    task: str,
    seed: int,
    max_new_tokens: int | None = None,
    temperature: float = 1.0,
    truncation: Truncation = NO_TRUNCATION,
    end_ids: Ends | None = None,
) -> list[Draft]:
    """One text for each prompt; prompt i draws from `fold_in(seed, i)`.

    Args:
        setting: its language model writes, its cache keeps.
        prompts: n of them.
        task: what progress calls it.
        seed: of the draws; see `derived_seed`.
        max_new_tokens: longest text; the setting's longest response by default.
        temperature: of the language model.
        truncation: which tokens may be drawn.
        end_ids: what ends a text; by default what ends a response.
    """
    longest = max_new_tokens or setting.max_new_tokens
    ends = [tuple(setting.prompts.end_ids)] if end_ids is None else list(end_ids)
    drafts: list[Draft] = []
    with progress.task(task, len(prompts)) as advance:
        for start in range(0, len(prompts), CHUNK):
            chunk = prompts[start : start + CHUNK]
            ids = [prompt.token_ids for prompt in chunk]

            def draw(start: int = start, ids: list[list[int]] = ids) -> list[list[Any]]:
                generation = setting.language_model.sample_pairs(
                    [()],
                    ids,
                    np.stack([np.zeros(len(ids), int), np.arange(len(ids))], axis=1),
                    seed=seed,
                    temperature=np.full(len(ids), temperature),
                    sample_ids=start + np.arange(len(ids)),
                    end_ids=ends,
                    truncation=truncation,
                    max_new_tokens=longest,
                )
                return [
                    [text.strip(), bool(done)]
                    for text, done in zip(generation.texts, generation.finished, strict=True)
                ]

            rules = [truncation.top_k, truncation.top_p, truncation.min_p]
            what = ["drafts", ids, seed, start, longest, temperature, rules, ends]
            drafts += [Draft(*found) for found in kept(setting, what, draw)]
            advance(len(chunk))
    return drafts


def score_responses(
    setting: Setting, prompts: Sequence[Prompt], responses: Sequence[Sequence[int]], *, task: str
) -> np.ndarray:
    """Log p(response | prompt) at τ = 1, nats, float64 [n]; what all prompts begin with runs once.

    Args:
        setting: its language model scores, its cache keeps.
        prompts: n of them.
        responses: ids with their end, n of them; see `PromptBuilder.response`.
        task: what progress calls it.
    """
    if not len(prompts):
        return np.zeros(0)
    ids = [prompt.token_ids for prompt in prompts]
    # A request must not be empty.
    cut = min(len(one) - 1 for one in ids)
    for one in ids[1:]:
        cut = min(cut, common_length(ids[0], one))
    prefix = ((tuple(ids[0][:cut])),) if cut else ()
    tails = [
        Continuation(tuple(one[cut:]), tuple(response))
        for one, response in zip(ids, responses, strict=True)
    ]
    scores = np.full(len(tails), np.nan)

    def score() -> list[float]:
        with progress.task(task, len(tails)) as advance:

            def store(done: np.ndarray, values: np.ndarray) -> None:
                scores[done] = values[:, 0]
                advance(len(done))

            setting.language_model.score_pairs(
                [prefix],
                tails,
                np.stack([np.zeros(len(tails), int), np.arange(len(tails))], axis=1),
                grid=TemperatureGrid.single(1.0),
                on_scores=store,
            )
        return scores.tolist()

    what = ["scores", ids, [list(map(int, response)) for response in responses]]
    return np.asarray(kept(setting, what, score), np.float64)


def kept(setting: Setting, what: list[Any], make: Callable[[], Any]) -> Any:
    """What `make` gives for a question to this language model, from the cache if it is there.

    Args:
        setting: names the folder and the language model.
        what: JSON values that decide the answer, beside the language model.
        make: gives JSON values.

    Raises:
        DataError: if a file of the cache is damaged.
    """
    if setting.cache is None:
        return make()
    question = json.dumps([setting.language_model.fingerprint, what], default=int)
    name = hashlib.sha256(question.encode()).hexdigest()
    path = setting.cache / f"{name}.json"
    if path.exists():
        try:
            return json.loads(path.read_text("utf-8"))
        except json.JSONDecodeError as error:
            raise DataError(
                f"{path} is damaged (line {error.lineno}); delete it, and it is made anew."
            ) from error
    value = make()
    atomic.write_json(path, value)
    return value
