"""From items and components to the table of options: what the language model says of each answer.

A prompt is persona, exemplar, question and options in one of their orders, and the person who
answers, with earlier answers where they are known; every option's whole text is scored behind it.
Prompts are cut where they begin to differ, so that a question is run once for all persons, and a
person once for all options.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from scipy.special import log_softmax, logsumexp

from mop_jax.choices.wording import Wording, option_orders
from mop_jax.errors import DataError
from mop_jax.likelihoods.scoring import score_missing
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import ScoringModel
from mop_jax.prompts import Prompt, PromptBuilder
from mop_jax.survey.items import Items


@dataclass(frozen=True, eq=False)
class OptionTable:
    """Log-likelihoods of options after prompts: N items, C candidates each.

    A candidate is a component with one of the orders in which options are shown: orders share a
    component's weight equally, so that they are averaged in probability at any temperature.

    Attributes:
        log_likelihood: ℓ, nats of the whole option and its end at τ = 1, float64 [N, C, M]; zero
            where a question has no option.
        persona_index: int32 [N, C].
        exemplar_index: int32 [N, C].
        order_index: which order of the question's, int32 [N, C].
        log_weight: −log R, R the question's orders; −∞ for padding, [N, C].
        mask: which places hold an option, bool [N, M].
    """

    log_likelihood: np.ndarray
    persona_index: np.ndarray
    exemplar_index: np.ndarray
    order_index: np.ndarray
    log_weight: np.ndarray
    mask: np.ndarray

    @property
    def log_mass(self) -> np.ndarray:
        """Log-probability of all options together under each candidate, [N, C]; NaN for padding.

        What is missing to 0 went to texts that are no option: a model that does not take the
        question as a closed one says so here.
        """
        masked = np.where(self.mask[:, None], self.log_likelihood, -np.inf)
        return np.where(self.log_weight > -np.inf, logsumexp(masked, axis=-1), np.nan)

    def probs(self) -> np.ndarray:
        """Options' probabilities under each candidate at τ = 1, [N, C, M]."""
        masked = np.where(self.mask[:, None], self.log_likelihood, -np.inf)
        return np.exp(log_softmax(masked, axis=-1))

    def calibrated(self, offsets: np.ndarray) -> OptionTable:
        """The table with something added to every option, nats [N, M].

        It is added to log-likelihoods, so that a temperature divides it, too: what a language model
        prefers of an option's words is taken off at the strength that it is believed with.
        """
        return replace(self, log_likelihood=self.log_likelihood + offsets[:, None])

    def showing(self, exemplars: np.ndarray) -> OptionTable:
        """The table of those candidates alone that show one of `exemplars`, bool [J].

        Raises:
            DataError: if an item is left without any.
        """
        log_weight = np.where(exemplars[self.exemplar_index], self.log_weight, -np.inf)
        if (bare := np.isneginf(log_weight).all(1)).any():
            raise DataError(
                f"Item {np.flatnonzero(bare)[0]} has no candidate with one of the "
                f"{np.count_nonzero(exemplars)} exemplars that are kept; keep more."
            )
        return replace(self, log_weight=log_weight)

    def mean_log_probs(self, weights: np.ndarray) -> np.ndarray:
        """Options' log-probabilities at τ = 1, averaged over candidates, nats [N, M].

        Args:
            weights: of the candidates, up to a factor, [N, C]; not all zero.
        """
        masked = np.where(self.mask[:, None], self.log_likelihood, -np.inf)
        log_probs = np.where(self.mask[:, None], log_softmax(masked, axis=-1), 0.0)
        return np.einsum("nc,ncm->nm", weights / weights.sum(1, keepdims=True), log_probs)

    def shares(self) -> np.ndarray:
        """Shares at τ = 1, candidates weighted as listed: the language model as it is, [N, M]."""
        weights = np.exp(self.log_weight)
        weights /= weights.sum(1, keepdims=True)
        return np.einsum("nc,ncm->nm", weights, self.probs())

    def take(self, index: np.ndarray) -> OptionTable:
        """The table of the items `index`."""
        return OptionTable(**{name: values[index] for name, values in vars(self).items()})

    def order_effect(self) -> tuple[float, float]:
        """Total variation that an order makes: of one order from the mean over them.

        Returns:
            Its mean over items and components for single orders, and what is expected to be left
            of it in the mean over R random orders, 1/√R of that.
        """
        probs = self.probs()
        distances, numbers = [], []
        for n in range(len(probs)):
            used = self.log_weight[n] > -np.inf
            pairs = np.stack([self.persona_index[n], self.exemplar_index[n]], 1)[used]
            for pair in np.unique(pairs, axis=0):
                own = probs[n][used][(pairs == pair).all(1)]
                if len(own) > 1:
                    # Unbiased for a mean over all orders: the mean over R leans on each of them.
                    unbias = np.sqrt(len(own) / (len(own) - 1))
                    distances.append(unbias * abs(own - own.mean(0)).sum(1).mean() / 2)
                    numbers.append(len(own))
        if not distances:
            return float("nan"), float("nan")
        found = np.asarray(distances)
        return float(found.mean()), float((found / np.sqrt(numbers)).mean())


Ask = Callable[[str], str]
"""The text of an item, its options in some order, put to a person who is described so.

What the person is known to have answered before, if anything, is in it.
"""


def score_options(
    items: Items,
    personas: Sequence[str],
    exemplars: Sequence[tuple[str, str] | None],
    prompts: PromptBuilder,
    store: LikelihoodStore,
    language_model: ScoringModel,
    *,
    wording: Wording | None = None,
    num_orders: int = 2,
    seed: int = 0,
    components: np.ndarray | None = None,
    description: str = "Scoring options",
) -> OptionTable:
    """Scores every option of every item after each component's prompt, in several orders.

    Args:
        items: N items; only their cells, questions and histories count.
        personas: K texts.
        exemplars: J (context, response) texts; None where no exemplar is shown.
        prompts: builds prompts for the language model.
        store: where scores are looked up and filed; its grid must be τ = 1 alone.
        language_model: scores what the store lacks.
        wording: how items are put.
        num_orders: R; see `option_orders`.
        seed: of the orders.
        components: (persona, exemplar) pairs of each item, integers [N, B, 2]; all by default.
        description: of the progress bar.

    Raises:
        DataError: if two options are one to the tokenizer, or a prompt does not fit into the
            context window.
    """
    if components is None:
        pairs = np.stack(np.divmod(np.arange(len(personas) * len(exemplars)), len(exemplars)), 1)
        components = np.broadcast_to(pairs, (len(items), *pairs.shape))

    def build(ask: Ask, person: str, question: int, k: int, j: int) -> Prompt:
        return prompts.component(personas[k], exemplars[j], ask(person))

    return _scored(
        items,
        components,
        build,
        prompts,
        store,
        language_model,
        wording or Wording(),
        num_orders,
        seed,
        description,
    )


def score_prompts(
    items: Items,
    build: Callable[[Ask, str, int], Prompt],
    prompts: PromptBuilder,
    store: LikelihoodStore,
    language_model: ScoringModel,
    *,
    wording: Wording | None = None,
    num_orders: int = 2,
    seed: int = 0,
    description: str = "Scoring options",
) -> OptionTable:
    """Scores every option of every item after prompts of one's own: a baseline.

    Args:
        items: N items.
        build: makes a prompt; called as (ask, person, question), where `ask(person)` is the item's
            text and `question` its index.
        prompts: see `score_options`, as for the others.
        store: see there.
        language_model: see there.
        wording: see there.
        num_orders: see there.
        seed: see there.
        description: see there.
    """
    return _scored(
        items,
        np.zeros((len(items), 1, 2), int),
        lambda ask, person, question, k, j: build(ask, person, question),
        prompts,
        store,
        language_model,
        wording or Wording(),
        num_orders,
        seed,
        description,
    )


def _scored(
    items: Items,
    components: np.ndarray,
    build: Callable[[Ask, str, int, int, int], Prompt],
    prompts: PromptBuilder,
    store: LikelihoodStore,
    language_model: ScoringModel,
    wording: Wording,
    num_orders: int,
    seed: int,
    description: str,
) -> OptionTable:
    if len(store.grid.multiples) != 1 or store.grid.unit_index != 0:
        raise DataError("Options are scored at τ = 1; give a store of that temperature alone.")
    responses = _responses(items, prompts)
    orders = [option_orders(question, num_orders, seed) for question in items.questions]
    people = {i: wording.describe(items.covariates_of(i)) for i in np.unique(items.cell).tolist()}

    most = max((len(orders[q]) for q in items.question), default=1)
    shape = (len(items), components.shape[1] * most)
    persona, exemplar = (np.repeat(components[..., s], most, axis=1) for s in (0, 1))
    order = np.broadcast_to(np.tile(np.arange(most), components.shape[1]), shape)
    numbers = np.asarray([len(orders[q]) for q in items.question])[:, None]
    used = order < numbers
    asked: list[Prompt] = []
    groups: list[tuple[int, ...]] = []
    pairs: list[tuple[int, int]] = []  # prompt and option
    for n, c in zip(*(index.tolist() for index in np.nonzero(used)), strict=True):
        k, j, r = (int(index[n, c]) for index in (persona, exemplar, order))
        q = int(items.question[n])
        ask = partial(wording.ask, items.questions[q], order=orders[q][r], earlier=items.earlier(n))
        pairs += [(len(asked), m) for m in range(len(responses[q]))]
        asked.append(build(ask, people[int(items.cell[n])], q, k, j))
        groups.append((k, j, r, q))
    shared = share_beginnings(asked, groups)
    items_of = np.nonzero(used)[0].tolist()
    scores = score_missing(
        store,
        language_model,
        [shared[p] for p, _ in pairs],
        [responses[groups[p][-1]][m] for p, m in pairs],
        names=[_name(items, items_of[p]) for p, _ in pairs],
        description=description,
    )[:, 0]
    mask = items.mask
    table = np.zeros((*shape, mask.shape[1]))
    table[used[..., None] & mask[:, None]] = scores
    return OptionTable(
        table,
        persona.astype(np.int32),
        exemplar.astype(np.int32),
        order.astype(np.int32),
        np.where(used, -np.log(numbers), -np.inf),
        mask,
    )


def share_beginnings(prompts: Sequence[Prompt], groups: Sequence[tuple]) -> list[Prompt]:
    """The same prompts, cut so that what they share is run once.

    Prompts of a group, which share all but their end, are cut where they begin to differ; and all
    of them before their last token, which is the request that every option follows.
    """
    members: dict[tuple, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    found: list[Prompt] = list(prompts)
    for indices in members.values():
        requests = [prompts[i].request for i in indices]
        least, greatest = min(requests), max(requests)
        # The common beginning of all is that of the first and the last in order.
        same = (a != b for a, b in zip(least, greatest, strict=False))
        common = next((n for n, differs in enumerate(same) if differs), len(least))
        common = min(common, min(map(len, requests)) - 1)
        for i in indices:
            request = prompts[i].request
            segments = (*prompts[i].prefix, request[:common], request[common:-1])
            found[i] = Prompt(tuple(s for s in segments if s), request[-1:])
    return found


def _responses(items: Items, prompts: PromptBuilder) -> list[list[tuple[int, ...]]]:
    """Scored ids of every question's options.

    Raises:
        DataError: if two options have the same ids.
    """
    found = []
    for question in items.questions:
        options = [prompts.response(option) for option in question.options]
        if len(set(options)) < len(options):
            raise DataError(
                f"Question {question.id} has two options that the language model's tokenizer does "
                f"not tell apart: {', '.join(map(repr, question.options))}."
            )
        found.append(options)
    return found


def _name(items: Items, item: int) -> str:
    cell = ", ".join(map(str, items.cells.iloc[items.cell[item]]))
    return f"{items.questions[items.question[item]].id} of {cell}"
