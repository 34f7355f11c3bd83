"""The same language model without a mixture: what prompts alone say of held-out items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mop_jax.choices import new_items, score_prompts
from mop_jax.choices.options import Ask
from mop_jax.choices.verbalised import read_shares, verbalised_text
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.workspace import Workspace
from mop_jax.prompts import Prompt
from mop_jax.survey import Items, Question

# Real answers that a few-shot prompt shows.
_SHOTS = 4
# Answers in words that are averaged for an item, and tokens of each.
_STATED, _TOKENS = 2, 64
# Of a stated share, to the uniform one: stated percentages are rounded, and nobody means never.
_ROUNDING = 0.01
# Whom a content-free prompt asks.
_NOBODY = "N/A"


def prompted_shares(
    space: Workspace, run: SurveyRun, store: LikelihoodStore
) -> dict[str, np.ndarray]:
    """Shares by prompts alone, float32 [N, M]; NaN for items that are not held out.

    `zero_shot` puts the item as it is; `demographic_persona` speaks as the person and asks without
    one; `few_shot` shows real answers first, to the same question where there are any; all three
    average over the orders in which options are shown. `verbalised` states percentages in words,
    and `verbalised_read` says which items' could be read; the others are uniform. All are told the
    items' earlier answers; those whose answers are shown to begin with are not.
    """
    index = np.flatnonzero(held_out(run))
    items = run.items.take(index)
    found = {}
    for name, build in _builders(space, run).items():
        table = score_prompts(
            items,
            build,
            space.prompts,
            store,
            space.language_model,
            wording=run.wording,
            num_orders=run.section.num_orders,
            seed=space.config.seed,
            description=f"Scoring options, {name.replace('_', ' ')}",
        )
        found[name] = table.shares()
    found["verbalised"], found["verbalised_read"] = _stated(space, run, items)
    whole = {}
    for name, values in found.items():
        whole[name] = np.full((len(run.items), *values.shape[1:]), np.nan, np.float32)
        whole[name][index] = values
    return whole


def content_free_offsets(
    space: Workspace,
    run: SurveyRun,
    questions: tuple[Question, ...],
    which: Sequence[int],
    store: LikelihoodStore,
) -> np.ndarray:
    """Minus the log-probability of options when nobody in particular is asked, nats [Q, M].

    It is what the language model prefers of an option's words alone (contextual calibration, Zhao
    et al. 2021), averaged over the orders in which options are shown. Zero for questions that are
    not among `which`.
    """
    items = new_items(run.items.cells.iloc[:1], questions, which)
    table = score_prompts(
        items,
        lambda ask, person, question: space.prompts.zero_shot(ask(_NOBODY)),
        space.prompts,
        store,
        space.language_model,
        wording=run.wording,
        num_orders=run.section.num_orders,
        seed=space.config.seed,
        description="Scoring options, nobody in particular",
    )
    offsets = np.zeros((len(questions), items.counts.shape[1]))
    with np.errstate(divide="ignore"):
        offsets[items.question] = np.where(items.mask, -np.log(table.shares()), 0.0)
    return offsets


def held_out(run: SurveyRun) -> np.ndarray:
    """Items of held-out cells and of the held-out question, bool [N]."""
    unseen = [q.id == run.section.hold_out_question for q in run.questions]
    return run.is_test | np.asarray(unseen)[run.items.question]


def _builders(space: Workspace, run: SurveyRun) -> dict[str, Callable[[Ask, str, int], Prompt]]:
    prompts = space.prompts

    def zero_shot(ask: Ask, person: str, question: int) -> Prompt:
        return prompts.zero_shot(ask(person))

    def demographic_persona(ask: Ask, person: str, question: int) -> Prompt:
        return prompts.persona_only(f"You are {person}.", ask("you"))

    def few_shot(ask: Ask, person: str, question: int) -> Prompt:
        return prompts.zero_shot(f"{_shots(run, question)}\n\n{ask(person)}")

    return {
        "zero_shot": zero_shot,
        "demographic_persona": demographic_persona,
        "few_shot": few_shot,
    }


def _shots(run: SurveyRun, question: int) -> str:
    """Real answers as a few-shot prompt shows them."""
    pool = run.exemplars
    own = pool[pool["question"] == question]
    shown = own if len(own) else pool
    lines = ["Answers that people gave:"]
    for row in shown.head(_SHOTS).to_dict("records"):
        person = run.wording.describe(run.items.covariates_of(row["cell"]))
        lines.append(f"{run.questions[row['question']].text} {person}: {row['response']}")
    return "\n".join(lines)


def _stated(space: Workspace, run: SurveyRun, items: Items) -> tuple[np.ndarray, np.ndarray]:
    """Shares stated in words [N, M], and whether any could be read [N]."""
    people = [run.wording.describe(items.covariates_of(int(i))) for i in items.cell]
    prompts = [
        space.prompts.zero_shot(
            verbalised_text(items.questions[q], run.wording.knowing(person, items.earlier(n)))
        )
        for n, (person, q) in enumerate(zip(people, items.question, strict=True))
    ]
    number = len(prompts) * _STATED
    which = np.arange(number) % len(prompts)
    drawn = space.language_model.sample_pairs(
        [prompt.prefix for prompt in prompts],
        [prompt.request for prompt in prompts],
        np.stack([which, which], 1),
        seed=space.config.seed,
        temperature=np.ones(number),
        sample_ids=np.arange(number),
        end_ids=[space.prompts.end_ids],
        max_new_tokens=_TOKENS,
    )
    shares = items.mask / items.mask.sum(1, keepdims=True)
    uniform, was_read = shares.copy(), np.zeros(len(items), bool)
    for n in range(len(items)):
        question = items.questions[items.question[n]]
        stated = [read_shares(question, drawn.texts[row]) for row in np.flatnonzero(which == n)]
        given = [values for values in stated if values is not None]
        if given:
            mean = np.pad(np.mean(given, axis=0), (0, shares.shape[1] - question.num_options))
            shares[n] = (1 - _ROUNDING) * mean + _ROUNDING * uniform[n]
            was_read[n] = True
    return shares, was_read
