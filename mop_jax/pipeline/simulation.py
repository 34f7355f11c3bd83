"""The fifth step of a run: simulated responses to the held-out contexts, or to new ones."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mop_jax import atomic
from mop_jax.evaluation.predictors import MAIN
from mop_jax.inference import (
    SimulatedResponse,
    load_posterior,
    simulate,
)
from mop_jax.lm.base import Truncation
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.pipeline.fitting import posterior_path
from mop_jax.pipeline.workspace import Workspace
from mop_jax.population.population import Population
from mop_jax.prompts import PromptBuilder


def simulate_held_out(space: Workspace) -> None:
    """Writes simulated.jsonl: responses to the held-out contexts, with how each came about."""
    side = space.sides["test"]
    _simulate(
        space,
        side.records,
        side.context_embeddings,
        num_samples=space.config.simulation.num_samples,
        output=space.path / "simulated.jsonl",
        fingerprint=space.folder.fingerprint_of("simulate"),
        leave_out=space.components.leave_out(side.records, held_out=True),
    )


def simulate_further(
    space: Workspace,
    contexts: Population | None,
    *,
    num_samples: int,
    output: Path,
    step: str,
    voice: Voice | None = None,
) -> None:
    """Writes responses that are no step of a run.

    Args:
        space: the run.
        contexts: records that were in no file of the run, of which the responses are not looked at;
            the held-out ones without it.
        num_samples: how many; sample s answers context s mod N.
        output: a JSON Lines file.
        step: the name under which the run folder knows of them.
        voice: another language model than the run's.
    """
    side, leave_out = space.sides["test"], None
    records, embeddings = side.records, side.context_embeddings
    if contexts is not None:
        records, embeddings = contexts, space.encoder.encode(contexts.contexts)
    else:
        leave_out = space.components.leave_out(records, held_out=True)
    _simulate(
        space,
        records,
        embeddings,
        num_samples=num_samples,
        output=output,
        fingerprint=space.folder.fingerprint_of(step),
        leave_out=leave_out,
        voice=voice,
    )


class Voice(NamedTuple):
    """What speaks: a language model, and what builds prompts for it."""

    language_model: FlaxLM
    prompts: PromptBuilder


class Simulated(NamedTuple):
    """Responses to held-out contexts as a file holds them.

    Attributes:
        texts: n responses.
        rows: which held-out record's context each answers, [n].
        shown: the exemplar responses in each one's prompt, [n].
        digest: of the file.
    """

    texts: list[str]
    rows: list[int]
    shown: list[tuple[str, ...]]
    digest: str


def read_simulated(space: Workspace, path: Path) -> Simulated:
    """Reads `simulated.jsonl`, or another file of responses to the held-out contexts."""
    components, number = space.components, len(space.sides["test"].records)
    # Not splitlines(): a model may well write U+2028 and its like.
    content = path.read_text("utf-8")
    rows = [json.loads(line) for line in content.split("\n") if line]
    texts = components.shown_exemplars
    shown = [
        tuple(pair[1] for j in (row["exemplar"], *_further(row)) if (pair := texts[j]) is not None)
        for row in rows
    ]
    return Simulated(
        [row["text"] for row in rows],
        [row["sample"] % number for row in rows],
        shown,
        hashlib.sha256(content.encode()).hexdigest(),
    )


def _further(row: dict[str, Any]) -> list[int]:
    """Exemplars after the first; rows of one component do not speak of them."""
    return row.get("further_exemplars", [])


def _simulate(
    space: Workspace,
    records: Population,
    context_embeddings: np.ndarray,
    *,
    num_samples: int,
    output: Path,
    fingerprint: str,
    leave_out: np.ndarray | None = None,
    voice: Voice | None = None,
) -> None:
    section = space.config.simulation
    voice = voice or Voice(space.language_model, space.prompts)
    posterior = load_posterior(posterior_path(space, MAIN))
    journal = output.with_name(f".{output.stem}.journal.jsonl")
    header = json.dumps({"journal_of": fingerprint})
    done = _read_journal(journal, header)
    atomic.write_text(journal, "\n".join([header, *done.values()]) + "\n")
    with atomic.disk_errors(journal), open(journal, "a", encoding="utf-8") as handle:

        def file(responses: list[SimulatedResponse]) -> None:
            for response in responses:
                done[response.sample] = _simulated_row(space, records, response)
                handle.write(done[response.sample] + "\n")
            handle.flush()

        simulate(
            posterior,
            voice.language_model,
            voice.prompts,
            personas=space.components.speakers,
            exemplars=space.components.shown_exemplars,
            contexts=records.contexts,
            context_embeddings=context_embeddings,
            num_samples=num_samples,
            seed=space.config.seed,
            leave_out=leave_out,
            **space.components.codes(records),
            truncation=Truncation(section.top_k, section.top_p, section.min_p),
            max_new_tokens=section.max_new_tokens,
            num_components=section.num_components,
            skip=list(done),
            on_responses=file,
        )
    atomic.write_text(output, "\n".join(done[s] for s in range(num_samples)) + "\n")
    journal.unlink()


def _simulated_row(space: Workspace, records: Population, response: SimulatedResponse) -> str:
    row = response._asdict()
    index = row.pop("context_index")
    row["record"] = records.ids[index]
    if records.labels is not None:
        row["label"] = records.labels[index]
    row["persona_text"] = space.components.speakers[response.persona]
    shown = space.components.shown_exemplars[response.exemplar] is not None
    ids = space.components.exemplars.ids
    row["exemplar_record"] = ids[response.exemplar] if shown else None
    if space.config.simulation.num_components == 1:
        del row["further_exemplars"]
    return json.dumps(row, ensure_ascii=False)


def _read_journal(path: Path, header: str) -> dict[int, str]:
    # The last line of a killed run may be cut off; it is simulated again. Nothing is taken from the
    # journal of another configuration.
    done: dict[int, str] = {}
    if not path.exists():
        return done
    # Not splitlines(): a model may well write U+2028 and its like.
    first, *lines = path.read_text("utf-8", errors="replace").split("\n")
    if first != header:
        return done
    for line in lines:
        try:
            done[json.loads(line)["sample"]] = line
        except json.JSONDecodeError:
            continue
    return done
