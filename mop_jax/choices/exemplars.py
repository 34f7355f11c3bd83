"""Real answers that prompts show: who they are of, and which items must not see them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from mop_jax.choices.wording import Wording
from mop_jax.errors import DataError
from mop_jax.survey.items import Items


def draw_exemplars(
    items: Items, num_exemplars: int, wording: Wording, *, seed: int = 0
) -> pd.DataFrame:
    """Draws J answers: people at random, their options as they chose, in turns of the questions.

    No two are of the same cell and question. An exemplar is one of the people counted: a fit
    should count the others only, see `without_shown`.

    Args:
        items: training items.
        num_exemplars: J.
        wording: how items are put.
        seed: of the draw.

    Returns:
        A row for each: `cell`, `question`, `option` (indices), `context` and `response` (texts).

    Raises:
        DataError: if fewer than J items were answered.
    """
    answered = np.flatnonzero(items.counts.sum(1) > 0)
    if len(answered) < num_exemplars:
        raise DataError(
            f"{num_exemplars} exemplars were asked for, and only {len(answered)} items (cells × "
            "questions) were answered; ask for fewer."
        )
    rng = np.random.default_rng([seed, 31])
    # People at random: a cell is as likely as it has people (Efraimidis and Spirakis 2006).
    keys = np.log(rng.random(len(answered))) / items.counts[answered].sum(1)
    order = answered[np.argsort(-keys)]
    # In turns of the questions, so that none goes without.
    turn = pd.Series(items.question[order]).groupby(items.question[order]).cumcount().to_numpy()
    chosen = order[np.argsort(turn, kind="stable")][:num_exemplars]
    rows = []
    for item in chosen:
        cell, number = int(items.cell[item]), int(items.question[item])
        question = items.questions[number]
        option = int(rng.choice(items.counts.shape[1], p=items.shares[item]))
        person = wording.describe(items.covariates_of(cell))
        rows.append((cell, number, option, wording.ask(question, person), question.options[option]))
    return pd.DataFrame(rows, columns=["cell", "question", "option", "context", "response"])


def without_shown(items: Items, exemplars: pd.DataFrame, *, seed: int = 0) -> Items:
    """The same items without the people whose answers are shown: nobody is shown and counted.

    Which earlier answers somebody has who is shown is drawn among those who chose the same.

    Args:
        items: that the exemplars were drawn from, or more.
        exemplars: see `draw_exemplars`.
        seed: of the draw among histories; nothing else is random.

    Raises:
        DataError: if nobody is counted who gave the answer of an exemplar.
    """
    counts, people = items.counts.copy(), items.people.copy()
    rng = np.random.default_rng([seed, 43])
    for cell, question, option in exemplars[["cell", "question", "option"]].to_numpy():
        own = np.flatnonzero((items.cell == cell) & (items.question == question))
        chose = counts[own, option]
        if not chose.any():
            asked = items.questions[question]
            raise DataError(
                f"Nobody of cell {cell} is counted who answered question {asked.id} with "
                f"{asked.options[option]!r}, which an exemplar shows; give the items that "
                "exemplars were drawn from, once."
            )
        item = rng.choice(own, p=chose / chose.sum())
        # Whoever is alone in an item goes with all of the weight.
        weight = counts[item, option] if people[item] <= 1 else min(1.0, counts[item, option])
        counts[item, option] -= weight
        people[item] = max(people[item] - 1.0, 0.0)
    return replace(items, counts=counts, people=people)


def exemplar_contexts(exemplars: pd.DataFrame, items: Items, wording: Wording) -> list[str]:
    """What the encoder reads of the exemplars' items, without their options."""
    cell, question = (exemplars[name].to_numpy(int) for name in ("cell", "question"))
    counts = np.zeros((len(exemplars), items.counts.shape[1]))
    asked = Items(items.questions, items.cells, cell, question, counts, counts.sum(1))
    return wording.contexts(asked)


def choose_components(
    leave_out: np.ndarray,
    num_personas: int,
    num_components: int,
    *,
    keys: Sequence[str] | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Which components are scored for each item: int [N, B, 2] of (persona, exemplar).

    All of them where there are no more than `num_components`; else every persona equally often,
    with exemplars drawn without replacement among those that the item may see. Nothing of the
    answers is looked at, so that the mixture over these is a predictive distribution.

    Args:
        leave_out: True where exemplar j must not serve item n, bool [N, J].
        num_personas: K.
        num_components: B; a multiple of K is best.
        keys: a text for each item, such as its question, that decides its draws: items of one key
            are given the same components, as far as they may see them, so that what differs
            between them is not the exemplars. By default its place.
        seed: of the draws.

    Raises:
        DataError: if an item may see no exemplar.
    """
    num_items, num_exemplars = leave_out.shape
    if leave_out.all(1).any():
        raise DataError(
            f"Item {int(np.argmax(leave_out.all(1)))} may see no exemplar: all are of its own "
            "cell; ask for more exemplars."
        )
    if num_components >= num_personas * num_exemplars:
        pairs = np.stack(np.divmod(np.arange(num_personas * num_exemplars), num_exemplars), 1)
        return np.broadcast_to(pairs, (num_items, *pairs.shape))
    found = np.empty((num_items, num_components, 2), np.int64)
    for n in range(num_items):
        key = str(n) if keys is None else keys[n]
        digest = hashlib.blake2b(key.encode(), digest_size=8).digest()
        rng = np.random.default_rng([seed, 32, int.from_bytes(digest, "little")])
        # Drawn from all of them first: another item of the key differs in what it may not see.
        order = rng.permutation(num_exemplars)
        allowed = order[~leave_out[n, order]]
        place = np.arange(num_components)
        # Both in turns; shifted by one whenever the turns would begin anew with the same pair.
        shift = place // np.lcm(num_personas, len(allowed))
        found[n, :, 0] = rng.permutation(num_personas)[place % num_personas]
        found[n, :, 1] = allowed[(place + shift) % len(allowed)]
    return found
