"""Personas: clusters of the population, each summed up by the language model in the second person.

Records are clustered by k-means over the embeddings of (context, response); the records nearest
each centre are shown to the language model, which describes their author ("You are …"; paper §3.1).
The opened assistant turn already holds these words, so that even a small model keeps the form. Or
the personas are the user's own, read from a file. Persona and provenance are stored together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from mop_jax import atomic
from mop_jax.errors import DataError, FaultError
from mop_jax.lm.base import SamplingModel
from mop_jax.population.population import Population
from mop_jax.prompts import answer_prompt
from mop_jax.resources import resolve_path

OPENING = "You are"
_NUM_STARTS = 4
_ATTEMPTS = 5
_EXCERPT_WORDS = 60
_SHORT_WORDS = 6
_INSTRUCTION = (
    "Read the texts and describe the person who wrote them in two sentences: what they like, their "
    "mood, and how they write."
)
_EXAMPLES = (
    (
        ("The soup was cold again, and nobody said sorry.", "Forty minutes for a burger? Never."),
        "You are an impatient diner who notices every fault in the service. Your sentences are "
        "short and blunt.",
    ),
    (
        ("We got lost twice and laughed the whole way.", "The tent leaked, but what a sunrise!"),
        "You are a cheerful traveller who finds something to love in every trip. You write the "
        "way you talk, with warmth and jokes.",
    ),
    (
        ("The second edition corrects the errors of the first.", "Sound, but the sample is small."),
        "You are a careful reader who weighs every claim before judging it. Your tone is dry and "
        "fair.",
    ),
)
# What a chat model says when it speaks of itself instead of the author.
_NOT_AN_AUTHOR = re.compile(r"^You are (an?|the) (\S+ ){0,2}(AI|chatbot|language model)\b", re.I)
_SENTENCE_END = re.compile(r"[.!?…。！？][\"'”’)\]]*(?=\s|$)")


@dataclass(frozen=True)
class Persona:
    """A description of a subgroup and where it came from.

    Attributes:
        text: what the language model is told to be.
        cluster_size: records in its cluster; 0 for a user's own.
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


def summary_messages(records: Population) -> list[dict[str, str]]:
    """Chat messages that ask for a short second-person description of the records' author.

    Three worked examples come first: without them a small model describes itself ("You are a
    helpful AI assistant"). A response of a few words is shown behind its context, without which it
    says nothing; one of more than 60 words is shown by its first 60, marked with "…": this prompt
    asks for an impression, and nothing is scored with it.
    """
    messages = [{"role": "system", "content": _INSTRUCTION}]
    for texts, description in _EXAMPLES:
        shown = "\n".join(f"- {text}" for text in texts)
        messages.append({"role": "user", "content": shown})
        messages.append({"role": "assistant", "content": description})
    pairs = zip(records.contexts, records.responses, strict=True)
    shown = "\n".join(f"- {_excerpt(context, response)}" for context, response in pairs)
    return [*messages, {"role": "user", "content": shown}]


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
) -> tuple[list[Persona], np.ndarray]:
    """Clusters the population and has the language model describe each cluster's author.

    All prompts go to the language model at once. A description that is blank, repeats another or
    an example of the prompt, or is of a chatbot is asked for again with a derived seed.

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
    shown = [_distinct(population, rows)[:records_per_persona] for rows in clusters.nearest]
    tokenizer, settings = language_model.tokenizer, chat_settings or {}
    prompts = [
        _summary_prompt(summary_messages(population.take(rows)), tokenizer, settings)
        for rows in shown
    ]
    texts, seeds = _describe(
        prompts,
        language_model,
        seed,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
    )
    personas = [
        Persona(
            text=texts[k],
            cluster_size=len(clusters.nearest[k]),
            record_ids=[population.ids[row] for row in shown[k]],
            seed=seeds[k],
            source="synthesised",
        )
        for k in range(num_personas)
    ]
    return personas, clusters.labels


def clean_persona(continuation: str) -> str:
    """The persona that a continuation of "You are" holds, or "" if it holds none.

    Its first paragraph, blanks collapsed, up to the last whole sentence; a fragment without any end
    of a sentence loses its last, perhaps unfinished, word.
    """
    paragraphs = [part for part in re.split(r"\n\s*\n", continuation.strip("\n")) if part.strip()]
    # Special tokens that a tokenizer leaves in the text end it.
    words = re.split(r"<\||</?s>", paragraphs[0])[0].split() if paragraphs else []
    if not words:
        return ""
    glue = "" if re.match(r"[,.;:!?'’]", words[0]) else " "
    text = OPENING + glue + " ".join(words)
    ends = list(_SENTENCE_END.finditer(text))
    if ends:
        text = text[: ends[-1].end()]
    else:
        whole = text.rsplit(" ", 1)[0].rstrip(",;:–— ")
        text = f"{whole}." if len(words) > 1 else ""
    return text if re.search(r"\w", text.removeprefix(OPENING)) else ""


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
        if persona.text in seen:
            raise DataError(
                f"{name}, {what} {number}, repeats {what} {seen[persona.text]}; personas must "
                "differ."
            )
        seen[persona.text] = number
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


def _describe(
    prompts: list[str], language_model: SamplingModel, seed: int, **settings: Any
) -> tuple[list[str], list[int]]:
    texts = [""] * len(prompts)
    seeds = [seed] * len(prompts)
    # Derived, so that a run with the next seed does not repeat this run's second attempts.
    attempt_seeds = np.random.SeedSequence(seed).generate_state(_ATTEMPTS) >> 1
    for attempt in range(_ATTEMPTS):
        open_ = [k for k, text in enumerate(texts) if not text]
        attempt_seed = seed if attempt == 0 else int(attempt_seeds[attempt])
        result = language_model.generate([prompts[k] for k in open_], seed=attempt_seed, **settings)
        for k, continuation in zip(open_, result.texts, strict=True):
            text = clean_persona(continuation)
            copied = any(text == description for _, description in _EXAMPLES)
            if text not in texts and not copied and not _NOT_AN_AUTHOR.match(text):
                texts[k], seeds[k] = text, attempt_seed
        if all(texts):
            return texts, seeds
    missing = [k + 1 for k, text in enumerate(texts) if not text]
    raise FaultError(
        f"The language model gave no description of its own for persona {missing[0]} "
        f"({len(missing)} of {len(prompts)}) in {_ATTEMPTS} attempts; "
        "raise the temperature, use another model, or give a persona file."
    )


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


def _excerpt(context: str, response: str) -> str:
    words = response.split()
    if len(words) < _SHORT_WORDS:
        words = [*context.split(), "→", *words]
    return " ".join(words[:_EXCERPT_WORDS]) + (" …" if len(words) > _EXCERPT_WORDS else "")
