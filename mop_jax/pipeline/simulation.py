"""The fifth step of a run: simulated responses to the held-out contexts."""

from __future__ import annotations

import json
from pathlib import Path

from mop_jax import atomic, progress
from mop_jax.inference import (
    SimulatedResponse,
    load_posterior,
    simulate,
)
from mop_jax.pipeline.workspace import Split, Workspace


def simulate_held_out(space: Workspace) -> None:
    """Writes simulated.jsonl: responses to the held-out contexts, with how each came about."""
    section, side = space.config.simulation, space.sides["test"]
    posterior = load_posterior(space.path / "gate.safetensors")
    journal = space.path / ".simulated.journal.jsonl"
    header = json.dumps({"journal_of": space.folder.fingerprint_of("simulate")})
    done = _read_journal(journal, header)
    atomic.write_text(journal, "\n".join([header, *done.values()]) + "\n")
    with (
        progress.task("Simulating responses", total=section.num_samples) as advance,
        atomic.disk_errors(journal),
        open(journal, "a", encoding="utf-8") as handle,
    ):
        advance(len(done))

        def file(responses: list[SimulatedResponse]) -> None:
            for response in responses:
                done[response.sample] = _simulated_row(space, side, response)
                handle.write(done[response.sample] + "\n")
            handle.flush()
            advance(len(responses))

        simulate(
            posterior,
            space.language_model,
            space.prompts,
            personas=space.components.persona_texts,
            exemplars=space.components.exemplar_texts,
            contexts=side.records.contexts,
            context_embeddings=side.context_embeddings,
            num_samples=section.num_samples,
            seed=space.config.seed,
            leave_out=space.components.leave_out(side.records, held_out=True),
            top_p=section.top_p,
            top_k=section.top_k,
            min_p=section.min_p,
            max_new_tokens=section.max_new_tokens,
            skip=list(done),
            on_responses=file,
        )
    lines = [done[s] for s in range(section.num_samples)]
    atomic.write_text(space.path / "simulated.jsonl", "\n".join(lines) + "\n")
    journal.unlink()


def _simulated_row(space: Workspace, side: Split, response: SimulatedResponse) -> str:
    row = response._asdict()
    index = row.pop("context_index")
    row["record"] = side.records.ids[index]
    if side.records.labels is not None:
        row["label"] = side.records.labels[index]
    row["persona_text"] = space.components.personas[response.persona].text
    row["exemplar_record"] = space.components.exemplars.ids[response.exemplar]
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
