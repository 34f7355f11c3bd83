"""What each method of a benchmark writes: drawn once, kept by content, resumed where it broke off.

The mixture is a run of the pipeline; a baseline responds to the same held-out contexts, from the
same training records, personas, exemplars, prompts and language model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mop_jax import atomic
from mop_jax.components.codes import labels_of_contexts
from mop_jax.errors import DataError
from mop_jax.evaluation.baselines import BASELINES, Response, Setting
from mop_jax.evaluation.predictors import MAIN
from mop_jax.lm.base import Truncation
from mop_jax.pipeline.simulation import read_simulated
from mop_jax.pipeline.workspace import Workspace

METHODS = (*BASELINES, MAIN)
"""Names of all methods, in the order of tables and figures."""
# Counts up when the same inputs would give other responses.
_VERSION = 1


class Responses(NamedTuple):
    """Responses of one method, sample by sample.

    Attributes:
        texts: n responses.
        rows: which held-out record's context each answers, [n].
        shown: the exemplar responses in each one's prompt, [n].
        report: what came of the method's fit, as JSON values.
        digest: of all of it.
        held_out: rows of a table (value, low, high, floor, n) by metrics of held-out records.
        notes: what else to know, sentences.
    """

    texts: list[str]
    rows: list[int]
    shown: list[tuple[str, ...]]
    report: dict[str, Any]
    digest: str
    held_out: Mapping[str, Mapping[str, Any]] = {}
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Options:
    """What a row of a table is made with besides its run.

    Attributes:
        language_model: another one than the run's, where a table compares two.
        on_step: see `mop_jax.pipeline.run`.
    """

    language_model: str | None = None
    on_step: Callable[[str, bool], None] = lambda step, begun: None


def respond(space: Workspace, method: str, folder: Path, options: Options = Options()) -> Responses:
    """A method's responses to the held-out contexts, as many as the run's configuration says.

    Args:
        space: the finished run of the mixture.
        method: one of `METHODS`.
        folder: responses are kept in its `responses/`; what is there already is not drawn again.
        options: none of them concerns methods.

    Raises:
        DataError: if there is no such method, or it needs labels that the records lack.
    """
    if method == MAIN:
        return _of_mixture(space)
    if method == "uniform_mixture" and not space.components.shown:
        raise DataError(
            "The run's prompts show no exemplars, so its uniform mixture is persona_only; ask for "
            "that."
        )
    if method not in BASELINES:
        raise DataError(f"There is no method {method!r}; there are {', '.join(METHODS)}.")
    return _of_baseline(space, method, folder / "responses")


def title_of(method: str) -> str:
    """What tables and figures call a method."""
    return "mixture of personas" if method == MAIN else BASELINES[method].title


def _of_mixture(space: Workspace) -> Responses:
    found = read_simulated(space, space.path / "simulated.jsonl")
    return Responses(found.texts, found.rows, found.shown, {}, found.digest)


def _of_baseline(space: Workspace, method: str, folder: Path) -> Responses:
    test, count = space.sides["test"].records, space.config.simulation.num_samples
    path, header = folder / f"{method}.jsonl", json.dumps({"key": _key(space, method)})
    done, report = _read(path, header)
    if not all(s in done for s in range(count)):
        setting = _setting(space, folder)
        responder = BASELINES[method].fit(setting)
        report = dict(responder.report)
        first = json.dumps({"report": report}, ensure_ascii=False)
        lines = [header, first, *(_line(done[s]) for s in sorted(done))]
        atomic.write_text(path, "\n".join(lines) + "\n")
        with atomic.disk_errors(path), open(path, "a", encoding="utf-8") as handle:

            def keep(responses: list[Response]) -> None:
                for response in responses:
                    done[response.sample] = response
                    handle.write(_line(response) + "\n")
                handle.flush()

            responder.respond(
                test.contexts,
                labels=labels_of_contexts(test),
                num_samples=count,
                skip=list(done),
                on_responses=keep,
            )
    responses = [done[s] for s in range(count)]
    texts = "\n".join(map(_line, responses))
    return Responses(
        [response.text for response in responses],
        [response.context_index for response in responses],
        [tuple(response.shown) for response in responses],
        report,
        hashlib.sha256(texts.encode()).hexdigest(),
    )


def _setting(space: Workspace, folder: Path) -> Setting:
    section = space.config.simulation
    return Setting(
        train=space.sides["train"].records,
        language_model=space.language_model,
        prompts=space.prompts,
        encode=space.encoder.encode,
        personas=space.components.persona_texts,
        exemplars=space.components.exemplars,
        seed=space.config.seed,
        cache=folder / "cache",
        truncation=Truncation(section.top_k, section.top_p, section.min_p),
        max_new_tokens=section.max_new_tokens,
    )


def _key(space: Workspace, method: str) -> str:
    """Changes with whatever a response may depend on."""
    train, test = space.sides["train"].records, space.sides["test"].records
    parts: Sequence[Any] = (
        _VERSION,
        method,
        space.language_model.fingerprint,
        space.prompts.fingerprint,
        space.encoder.fingerprint,
        train.fingerprint,
        test.fingerprint,
        space.components.persona_texts,
        space.components.exemplars.fingerprint,
        space.config.seed,
        # However many there are: a sample's text depends on its number alone.
        space.config.simulation.model_dump(mode="json", exclude={"num_samples", "num_components"}),
    )
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def _line(response: Response) -> str:
    return json.dumps(response._asdict(), ensure_ascii=False)


def _read(path: Path, header: str) -> tuple[dict[int, Response], dict[str, Any]]:
    # The last line of a killed job may be cut off; it is drawn again.
    done: dict[int, Response] = {}
    if not path.exists():
        return done, {}
    first, *lines = path.read_text("utf-8", errors="replace").split("\n")
    if first != header:
        return done, {}
    report: dict[str, Any] = {}
    for line in lines:
        try:
            row = json.loads(line)
        except json.JSONDecodeError:
            continue
        if "report" in row:
            report = row["report"]
        else:
            row["shown"] = tuple(row["shown"])
            done[row["sample"]] = Response(**row)
    return done, report
