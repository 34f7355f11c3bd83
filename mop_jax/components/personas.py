"""Personas: clusters of the population, each summed up by the language model in the second person.

Records are clustered by k-means over the embeddings of (context, response); the records nearest
each centre are shown to the language model, which describes their author ("You are …"; paper §3.1).
The opened assistant turn already holds these words, so that even a small model keeps the form. Or
the personas are the user's own, read from a file. Persona and provenance are stored together.
"""

from __future__ import annotations

import json
import logging
import os
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from mop_jax import atomic, progress
from mop_jax.components.descriptions import (
    EXAMPLES,
    OPENING,
    are_alike,
    clean_persona,
    copied_sentences,
    likeness,
    speaks_of_itself,
    summary_messages,
    without_sentences,
)
from mop_jax.errors import DataError, FaultError
from mop_jax.lm.base import SamplingModel
from mop_jax.population.population import Population
from mop_jax.prompts import answer_prompt
from mop_jax.resources import resolve_path

_NUM_STARTS = 4
_ATTEMPTS = 5
# A stream of random numbers of its own.
_RANDOM_RECORDS = 1
DescribedFrom = Literal["clusters", "random_records"]
_log = logging.getLogger("mop_jax")


@dataclass(frozen=True)
class Persona:
    """A description of a subgroup and where it came from.

    Attributes:
        text: what the language model is told to be.
        cluster_size: records in its cluster; 0 for a user's own, and one of no cluster.
        record_ids: ids of the records that the language model was shown.
        seed: that the text was generated with; None for a user's own.
        source: "synthesised" or "user".
    """

    text: str
    cluster_size: int = 0
    record_ids: list[str] = field(default_factory=list)
    seed: int | None = None
    source: Literal["synthesised", "user"] = "user"


class ClusterResult(NamedTuple):
    """K clusters of N records.

    Attributes:
        labels: int64 [N], the cluster of each record.
        centres: float64 [K, D].
        nearest: for each cluster its records, the nearest to the centre first.
    """

    labels: np.ndarray
    centres: np.ndarray
    nearest: list[list[int]]


def record_texts(population: Population) -> list[str]:
    """N texts for the encoder: context and response, one below the other."""
    return [f"{x}\n{y}" for x, y in zip(population.contexts, population.responses, strict=True)]


def cluster_records(embeddings: np.ndarray, num_personas: int, seed: int) -> ClusterResult:
    """k-means with a fixed number of seeded starts; clusters are numbered from the largest.

    Args:
        embeddings: float [N, D] of `record_texts`.
        num_personas: K.
        seed: of the starts.

    Raises:
        DataError: if K exceeds the number of distinct embeddings, or an embedding is not finite.
    """
    points = np.asarray(embeddings, dtype=np.float64)
    if points.ndim != 2 or not np.isfinite(points).all():
        raise DataError(f"Embeddings must be a finite table [N, D], not of shape {points.shape}.")
    if num_personas < 1:
        raise DataError(f"num_personas is {num_personas}; accepted is a positive integer.")
    # Equal texts may differ in the last bits of their embeddings, by the batch they were in.
    num_distinct = len(np.unique(np.round(points, 5), axis=0))
    if num_personas > num_distinct:
        raise DataError(
            f"{num_personas} personas were asked for, but there are only {num_distinct} distinct "
            f"records; accepted is up to {num_distinct}."
        )
    # One thread: sums taken in another order would move centres in their last bits.
    with threadpool_limits(limits=1):
        fit = KMeans(n_clusters=num_personas, n_init=_NUM_STARTS, random_state=seed).fit(points)
    sizes = np.bincount(fit.labels_, minlength=num_personas)
    first = [int(np.flatnonzero(fit.labels_ == k)[0]) for k in range(num_personas)]
    order = np.lexsort((np.asarray(first), -sizes))
    labels = np.argsort(order)[fit.labels_].astype(np.int64)
    centres = fit.cluster_centers_[order]
    distance = np.linalg.norm(points - centres[labels], axis=1)
    nearest = []
    for k in range(num_personas):
        members = np.flatnonzero(labels == k)
        nearest.append(members[np.argsort(distance[members], kind="stable")].tolist())
    return ClusterResult(labels, centres, nearest)


def synthesise_personas(
    population: Population,
    embeddings: np.ndarray,
    language_model: SamplingModel,
    num_personas: int,
    *,
    seed: int,
    records_per_persona: int = 8,
    max_new_tokens: int = 80,
    temperature: float = 0.7,
    top_p: float = 0.9,
    chat_settings: Mapping[str, Any] | None = None,
    described_from: DescribedFrom = "clusters",
) -> tuple[list[Persona], np.ndarray]:
    """Clusters the population and has the language model describe each cluster's author.

    All prompts go to the language model at once. A description that is blank, of a chatbot, or
    repeats another or an example of the prompt, word for word or nearly, is asked for again with a
    derived seed, and without the example that it repeated. If nothing better comes, the attempt
    that is least like the other personas is kept, without copied sentences, with a warning to the
    logger "mop_jax"; copies are never.

    Args:
        population: N records.
        embeddings: float [N, D] of `record_texts(population)`.
        language_model: see `mop_jax.lm.base.SamplingModel`.
        num_personas: K.
        seed: of clustering and generation; the same seed gives the same personas.
        records_per_persona: how many records nearest the centre are shown, repeated texts once.
        max_new_tokens: of each description; it ends with its last whole sentence.
        temperature: of generation.
        top_p: of generation.
        chat_settings: how the chat template is rendered; see `mop_jax.prompts.ChatTemplate`.
        described_from: the records that a description is written from: those nearest a cluster's
            centre, or as many drawn at random from all (an ablation of the clusters).

    Returns:
        K personas, largest cluster first, and the cluster of each record, int64 [N].

    Raises:
        DataError: if there are fewer than K distinct records.
        FaultError: if no description of a cluster was acceptable in five attempts.
    """
    if len(embeddings) != len(population):
        raise DataError(f"{len(embeddings)} embeddings are given for {len(population)} records.")
    if records_per_persona < 1:
        raise DataError(f"records_per_persona is {records_per_persona}; accepted is 1 or more.")
    num_distinct = len(set(population.text_keys))
    if num_personas > num_distinct:
        raise DataError(
            f"{num_personas} personas were asked for, but the population has only {num_distinct} "
            f"distinct records; accepted is up to {num_distinct}."
        )
    clusters = cluster_records(embeddings, num_personas, seed)
    rows_of = clusters.nearest
    if described_from == "random_records":
        rng = np.random.default_rng([seed, _RANDOM_RECORDS])
        rows_of = [rng.permutation(len(population)).tolist() for _ in range(num_personas)]
    shown = [_distinct(population, rows)[:records_per_persona] for rows in rows_of]
    drafts = _describe(
        [population.take(rows) for rows in shown],
        language_model,
        seed,
        chat_settings or {},
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
    )
    personas = [
        Persona(
            text=drafts[k].text,
            cluster_size=len(clusters.nearest[k]) if described_from == "clusters" else 0,
            record_ids=[population.ids[row] for row in shown[k]],
            seed=drafts[k].seed,
            source="synthesised",
        )
        for k in range(num_personas)
    ]
    return personas, clusters.labels


def read_personas(path: str | os.PathLike[str]) -> list[Persona]:
    """Reads personas from a JSON list (strings, or objects with "text") or a text file, one a line.

    Raises:
        DataError: if the file is not there, empty, not UTF-8 or malformed, or an entry is blank or
            repeats another; the sentence names the entry or the line.
    """
    name = os.fspath(path)
    file = resolve_path(name)
    try:
        content = file.read_text(encoding="utf-8-sig")
    except IsADirectoryError as error:
        raise DataError(f"{name} is a folder; accepted is a .json or .txt file.") from error
    except UnicodeDecodeError as error:
        raise DataError(
            f"{name} is not UTF-8 (byte at offset {error.start}); accepted is UTF-8."
        ) from error
    kind = Path(file).suffix.lower()
    if kind == ".json":
        personas = [_parse_entry(name, n, e) for n, e in enumerate(_json_list(name, content), 1)]
        what = "entry"
    elif kind == ".txt":
        lines = content.rstrip().split("\n") if content.strip() else []
        personas = [Persona(text=" ".join(line.split())) for line in lines]
        what = "line"
    else:
        raise DataError(f"{name} is of no known kind; accepted are .json and .txt.")
    if not personas:
        raise DataError(f"{name} holds no personas; at least one is needed.")
    seen: dict[str, int] = {}
    for number, persona in enumerate(personas, start=1):
        if not persona.text:
            raise DataError(f"{name}, {what} {number}, is blank; accepted is a persona's text.")
        key = unicodedata.normalize("NFC", persona.text)
        if key in seen:
            raise DataError(
                f"{name}, {what} {number}, repeats {what} {seen[key]}; personas must differ."
            )
        seen[key] = number
    return personas


def write_personas(path: str | os.PathLike[str], personas: Sequence[Persona]) -> None:
    """Writes personas with their provenance as a JSON list that `read_personas` reads."""
    atomic.write_json(path, [asdict(persona) for persona in personas])


def _json_list(name: str, content: str) -> list[Any]:
    if not content.strip():
        return []
    try:
        entries = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}, line {error.lineno}, is not JSON: {error.msg}.") from error
    if not isinstance(entries, list):
        raise DataError(f"{name} is not a JSON list; accepted is a list of personas.")
    return entries


def _parse_entry(name: str, number: int, entry: Any) -> Persona:
    if isinstance(entry, str):
        return Persona(text=" ".join(entry.split()))
    if not isinstance(entry, dict) or not isinstance(entry.get("text"), str):
        raise DataError(
            f'{name}, entry {number}, is neither a text nor an object with "text"; '
            "accepted is either."
        )
    text = " ".join(entry["text"].split())
    if entry.get("source") != "synthesised":
        return Persona(text=text)
    try:
        return Persona(
            text=text,
            cluster_size=int(entry["cluster_size"]),
            record_ids=[str(record_id) for record_id in entry["record_ids"]],
            seed=int(entry["seed"]),
            source="synthesised",
        )
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            f"{name}, entry {number}, is synthesised but its cluster_size, record_ids or seed is "
            "missing or malformed."
        ) from error


class _Draft(NamedTuple):
    text: str
    seed: int


def _describe(
    shown: list[Population],
    language_model: SamplingModel,
    seed: int,
    chat_settings: Mapping[str, Any],
    **settings: Any,
) -> list[_Draft]:
    """A description of each of K groups of records, no two alike and none copied."""
    drafts: list[_Draft | None] = [None] * len(shown)
    spares: list[list[_Draft]] = [[] for _ in shown]
    # An example that was repeated is not shown to that prompt again.
    examples = [list(EXAMPLES) for _ in shown]
    # Derived, so that a run with the next seed does not repeat this run's second attempts.
    attempt_seeds = [seed, *(np.random.SeedSequence(seed).generate_state(_ATTEMPTS) >> 1)[1:]]
    for attempt_seed in map(int, attempt_seeds):
        open_ = [k for k, draft in enumerate(drafts) if draft is None]
        prompts = [
            _summary_prompt(
                summary_messages(shown[k], examples[k]), language_model.tokenizer, chat_settings
            )
            for k in open_
        ]
        with progress.task("Describing personas"):
            result = language_model.generate(prompts, seed=attempt_seed, **settings)
        for k, continuation in zip(open_, result.texts, strict=True):
            text = clean_persona(continuation)
            if not text or speaks_of_itself(text):
                continue
            copied = copied_sentences(text)
            like = [n for n, d in enumerate(drafts, 1) if d is not None and are_alike(text, d.text)]
            if not copied and not like:
                drafts[k] = _Draft(text, attempt_seed)
                continue
            spares[k].append(_Draft(without_sentences(text, copied), attempt_seed))
            examples[k] = [example for example in examples[k] if example not in copied.values()]
            what = "an example of the prompt" if copied else f"persona {like[0]}"
            _log.info('Persona %d repeats %s and is drawn again: "%s"', k + 1, what, text)
        if all(drafts):
            break
    return _fill(drafts, spares)


def _fill(drafts: list[_Draft | None], spares: list[list[_Draft]]) -> list[_Draft]:
    """Puts the spare that is least like any other where nothing better was drawn, and says so."""
    for k in [k for k, draft in enumerate(drafts) if draft is None]:
        others = [draft.text for draft in drafts if draft is not None]
        likest = [max((likeness(s.text, o) for o in others), default=0.0) for s in spares[k]]
        usable = [(a, n) for n, a in enumerate(likest) if a < 1.0 and spares[k][n].text]
        if not usable:
            continue
        alike, number = min(usable)
        drafts[k] = spares[k][number]
        _log.warning(
            "In %d attempts the language model gave no persona %d that is wholly its own; kept is "
            'the one least like the others (%.0f %% shared), without copied sentences: "%s"',
            _ATTEMPTS,
            k + 1,
            100 * alike,
            spares[k][number].text,
        )
    missing = [k + 1 for k, draft in enumerate(drafts) if draft is None]
    if missing:
        raise FaultError(
            f"The language model gave no description of its own for persona {missing[0]} "
            f"({len(missing)} of {len(drafts)}) in {_ATTEMPTS} attempts; all were blank, of a "
            "chatbot, or copies of another persona or of the prompt's examples. Raise the "
            "temperature, use another model, or give a persona file."
        )
    return [draft for draft in drafts if draft is not None]


def _summary_prompt(
    messages: list[dict[str, str]], tokenizer: Any, chat_settings: Mapping[str, Any]
) -> str:
    if getattr(tokenizer, "chat_template", None):
        return f"{answer_prompt(tokenizer, messages, **chat_settings)}{OPENING}"
    plain = "\n\n".join(message["content"] for message in messages)
    return f"{plain}\n\n{OPENING}"


def _distinct(population: Population, rows: Sequence[int]) -> list[int]:
    first: dict[str, int] = {}
    for row in rows:
        first.setdefault(population.text_keys[row], row)
    return list(first.values())
