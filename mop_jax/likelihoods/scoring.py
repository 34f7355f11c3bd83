"""From records and their candidate components to log-likelihoods; the one road of all scoring.

Runs and notebooks, training and held-out records, baselines and components: each asks
`score_missing` for (prompt, response) pairs, and it asks the language model only for those that
the store lacks.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd

from mop_jax import progress
from mop_jax.errors import DataError, NotFiniteError
from mop_jax.likelihoods.store import LikelihoodStore, pair_key
from mop_jax.lm.base import Continuation, ScoringModel
from mop_jax.population.population import Population
from mop_jax.prompts import Prompt, PromptBuilder

if TYPE_CHECKING:
    # Components are scored here: importing them would be a cycle where all is imported at once.
    from mop_jax.components.candidates import CandidateSet


class ScoredCandidates(NamedTuple):
    """Log-likelihoods of the candidates of N records.

    Attributes:
        triples: distinct (record, persona, exemplar), int32 [M, 3], sorted.
        scores: nats, float64 [M, G], of the triples.
        log_likelihood: nats, float32 [N, C, G], of the candidates; zero where one is padding.
    """

    triples: np.ndarray
    scores: np.ndarray
    log_likelihood: np.ndarray


def score_candidates(
    records: Population,
    candidates: CandidateSet,
    personas: Sequence[str],
    exemplars: Sequence[tuple[str, str] | None],
    prompts: PromptBuilder,
    store: LikelihoodStore,
    language_model: ScoringModel,
    *,
    description: str = "Scoring",
) -> ScoredCandidates:
    """Log p(y_i | persona k, exemplar j, x_i) of every candidate, from the store as far as it goes.

    Args:
        records: N records.
        candidates: C components of each.
        personas: K texts.
        exemplars: J (context, response) texts; None where no exemplar is shown.
        prompts: builds prompts for the language model.
        store: where scores are looked up and filed; its grid decides the temperatures.
        language_model: scores what the store lacks.
        description: of the progress bar.

    Raises:
        DataError: if a record does not fit into the context window, or its response cannot be
            scored; names the record.
        NotFiniteError: see `score_missing`.
    """
    triples = candidates.triples()
    responses = {i: response_ids(records, i, prompts) for i in np.unique(triples[:, 0]).tolist()}
    scores = score_missing(
        store,
        language_model,
        [prompts.component(personas[k], exemplars[j], records.contexts[i]) for i, k, j in triples],
        [responses[i] for i in triples[:, 0].tolist()],
        names=[records.ids[i] for i in triples[:, 0]],
        description=description,
    )
    return ScoredCandidates(triples, scores, spread(candidates, triples, scores))


def score_prompts(
    records: Population,
    prompted: Sequence[Sequence[Prompt]],
    prompts: PromptBuilder,
    store: LikelihoodStore,
    language_model: ScoringModel,
    *,
    description: str = "Scoring",
) -> np.ndarray:
    """Log-likelihoods of each record's response after each of its prompts, float64 [N, P, G].

    Args:
        records: N records.
        prompted: P prompts of each.
        prompts: what they were built with.
        store: see `score_candidates`.
        language_model: see there.
        description: of the progress bar.

    Raises:
        DataError: see `score_candidates`.
        NotFiniteError: see `score_missing`.
    """
    responses = [response_ids(records, i, prompts) for i in range(len(records))]
    owners = [i for i, built in enumerate(prompted) for _ in built]
    scores = score_missing(
        store,
        language_model,
        [prompt for built in prompted for prompt in built],
        [responses[i] for i in owners],
        names=[records.ids[i] for i in owners],
        description=description,
    )
    return scores.reshape(len(records), -1, scores.shape[1])


def response_ids(records: Population, index: int, prompts: PromptBuilder) -> tuple[int, ...]:
    """Scored ids of a record's response; errors name the record."""
    try:
        return prompts.response(records.responses[index])
    except DataError as error:
        raise DataError(f"Record {records.ids[index]}: {error}") from error


def spread(candidates: CandidateSet, triples: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores [M, G] of sorted triples [M, 3] as a table float32 [N, C, G]; padding is zero."""
    frame = pd.DataFrame(triples, columns=["record", "persona", "exemplar"])
    row_of = pd.Series(np.arange(len(triples)), index=pd.MultiIndex.from_frame(frame))
    table = np.zeros((*candidates.persona_index.shape, scores.shape[1]), np.float32)
    i, c = np.nonzero(candidates.log_weight > -np.inf)
    wanted = [i, candidates.persona_index[i, c], candidates.exemplar_index[i, c]]
    table[i, c] = scores[row_of.loc[pd.MultiIndex.from_arrays(wanted)].to_numpy()]
    return table


def score_missing(
    store: LikelihoodStore,
    language_model: ScoringModel,
    prompts: Sequence[Prompt],
    responses: Sequence[Sequence[int]],
    *,
    names: Sequence[str] | None = None,
    memory: float | None = None,
    description: str = "Scoring",
) -> np.ndarray:
    """Log-likelihoods of (prompt, response) pairs; only what the store lacks is scored.

    Args:
        store: where scores are looked up and filed as they arrive; its grid decides the
            temperatures.
        language_model: scores pairs; nothing is scored before all are known to fit its window.
        prompts: n prompts; those with equal prefixes share the work.
        responses: n id sequences, end-of-turn included.
        names: n names of the records, for messages.
        memory: bytes of pooled prefixes at a time; by default the language model's own choice.
        description: of the progress bar.

    Returns:
        float64 [n, G], nats.

    Raises:
        DataError: if a pair does not fit into the context window; names the record.
        NotFiniteError: if the language model gives a NaN or an infinity; names the record. What
            was scored before is kept.
    """
    window = language_model.context_window
    for i, (prompt, response) in enumerate(zip(prompts, responses, strict=True)):
        total = len(prompt.token_ids) + len(response)
        if window is not None and total > window:
            name = names[i] if names else str(i)
            raise DataError(
                f"Record {name}: its prompt and response take {total} tokens, but the language "
                f"model's context window holds {window}; shorten the record or its exemplars, or "
                "leave it out."
            )
    every = [pair_key(p, r) for p, r in zip(prompts, responses, strict=True)]
    # Of equal pairs the first.
    first = list({key: i for i, key in reversed(list(enumerate(every)))}.values())[::-1]
    # What earlier jobs scored is not planned. What this one scored before it was interrupted is
    # planned and skipped by whole batches: it goes on with the batches that it would have run
    # anyway, to the same bits.
    job = [every[i] for i in first]
    unique = [first[n] for n in np.flatnonzero(store.begin(job))]
    keys = [every[i] for i in unique]
    prefixes, prefix_index = _distinct(prompts[i].prefix for i in unique)
    tails, tail_index = _distinct(
        Continuation(prompts[i].request, tuple(responses[i])) for i in unique
    )
    pairs = np.stack([prefix_index, tail_index], axis=1) if unique else np.zeros((0, 2), int)
    done = np.asarray([key in store for key in keys], bool)

    # Time goes with the tokens that are run, not with the pairs.
    num_tokens = np.asarray([len(tails[t].request) + len(tails[t].response) for t in tail_index])
    with progress.task(
        description,
        len(first),
        found=len(first) - len(unique) + int(done.sum()),
        work=float(num_tokens[~done].sum()) if unique else 0.0,
    ) as advance:

        def file(indices: np.ndarray, scores: np.ndarray) -> None:
            store.append([keys[i] for i in indices], scores)
            advance(len(indices), float(num_tokens[indices].sum()))

        if not done.all():
            try:
                language_model.score_pairs(
                    prefixes,
                    tails,
                    pairs,
                    grid=store.grid,
                    on_scores=_new_only(file, done),
                    memory=memory,
                    skip=done,
                )
            except NotFiniteError as error:
                i = unique[error.pair]
                raise NotFiniteError(i, f"record {names[i]}" if names else f"pair {i}") from error
    store.end(job)
    return store.get(every)


def _new_only(
    file: Callable[[np.ndarray, np.ndarray], None], done: np.ndarray
) -> Callable[[np.ndarray, np.ndarray], None]:
    def on_scores(indices: np.ndarray, scores: np.ndarray) -> None:
        fresh = ~done[indices]
        file(indices[fresh], scores[fresh])

    return on_scores


def _distinct(values: Any) -> tuple[list[Any], np.ndarray]:
    places: dict[Any, int] = {}
    index = np.asarray([places.setdefault(value, len(places)) for value in values], int)
    return list(places), index
