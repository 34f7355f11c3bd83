"""The step that judges a simulation: is the simulated population like the real one?

Simulated responses to the held-out contexts are set beside the held-out responses of people, by
every metric that takes a `Comparison`; the noise floor of each is what real training responses in
their place would give.
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Sequence
from typing import Any

from mop_jax import atomic
from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import METRICS, Comparison, Sample
from mop_jax.evaluation.metrics.effective_size import EffectiveSize, effective_sample_size
from mop_jax.evaluation.metrics.reporting import Reported, by_label, report
from mop_jax.pipeline.workspace import Workspace
from mop_jax.population.population import Population

# Of a text with no word in it there is nothing to embed.
NOTHING = "…"
# Metrics that are read label by label: each on its own needs no more texts than a label has.
_BY_LABEL = ("energy_distance", "kl_cosine", "length_distance", "distinct_2")


def judge_likeness(space: Workspace) -> None:
    """Writes likeness.json: every metric of the simulated responses, with intervals and floors."""
    comparison = _comparison(space)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        reported = report(comparison)
        labels = (
            {name: by_label(METRICS[name], comparison) for name in _BY_LABEL}
            if "labels" in comparison.provides
            else {}
        )
        sizes = _effective_sizes(comparison)
    notes = joined_notes([str(w.message) for w in caught if w.category is UserWarning])
    atomic.write_json(
        space.path / "likeness.json",
        {
            "num_real": len(comparison.real),
            "num_simulated": len(comparison.simulated),
            "num_train": 0 if comparison.train is None else len(comparison.train),
            "metrics": {name: _as_json(value) for name, value in reported.items()},
            "by_label": labels,
            "effective_size": {name: _size_as_json(size) for name, size in sizes.items()},
            "notes": notes,
        },
    )


def joined_notes(messages: Sequence[str]) -> list[str]:
    """Each message once; those that differ in the metric that they name only, as one."""
    about: dict[str, list[str]] = {}
    for message in dict.fromkeys(messages):
        begin, mark, rest = message.partition("'")
        name, end, rest = rest.partition("' is ")
        if mark and end and begin == "The noise floor of ":
            about.setdefault(rest, []).append(name)
        else:
            about.setdefault(message, [])
    notes = []
    for rest, names in about.items():
        if len(names) > 1:
            notes.append(f"The noise floors of {', '.join(names[:-1])} and {names[-1]} are {rest}")
        else:
            notes.append(f"The noise floor of {names[0]} is {rest}" if names else rest)
    return notes


def sample_of(space: Workspace, records: Population) -> Sample:
    """The responses of people as a sample, embedded by themselves."""
    # Responses alone: with the requests, whatever is simulated would resemble the real.
    return Sample(
        records.responses, space.encoder.encode(records.responses), records.labels, records.groups
    )


def simulated_sample(
    space: Workspace,
    records: Population,
    rows: Sequence[int],
    texts: Sequence[str],
    shown: Sequence[Sequence[str]],
) -> Sample:
    """Simulated responses to the contexts of `records` at `rows`, with the labels asked for."""
    written = [text or NOTHING for text in texts]

    def of(values: Sequence[str] | None) -> list[str] | None:
        return None if values is None else [values[row] for row in rows]

    embeddings = space.encoder.encode(written)
    return Sample(written, embeddings, of(records.labels), of(records.groups), shown)


def _comparison(space: Workspace) -> Comparison:
    test, train = space.sides["test"].records, space.sides["train"].records
    # Not splitlines(): a model may well write U+2028 and its like.
    lines = (space.path / "simulated.jsonl").read_text("utf-8").split("\n")
    responses = [json.loads(line) for line in lines if line]
    exemplars = space.components.exemplars.responses
    simulated = simulated_sample(
        space,
        test,
        [response["sample"] % len(test) for response in responses],
        [response["text"] for response in responses],
        [(exemplars[response["exemplar"]],) for response in responses],
    )
    return Comparison(sample_of(space, test), simulated, sample_of(space, train), space.config.seed)


def _effective_sizes(comparison: Comparison) -> dict[str, EffectiveSize]:
    found = {}
    for criterion in ("label_shares", "embedding_mean", "fid"):
        try:
            found[criterion] = effective_sample_size(comparison, criterion)
        except DataError as error:
            warnings.warn(f"No effective sample size by {criterion}: {error}", stacklevel=2)
    return found


def _as_json(reported: Reported) -> dict[str, float | int | None]:
    return {name: _finite(value) for name, value in reported._asdict().items()}


def _size_as_json(size: EffectiveSize) -> dict[str, Any]:
    return {
        "size": "inf" if math.isinf(size.size) else size.size,
        "simulated_error": size.simulated_error,
        "sizes": [int(n) for n in size.sizes],
        "errors": [float(e) for e in size.errors],
        "spread": [float(s) for s in size.spread],
    }


def _finite(value: float | None) -> float | None:
    # NaN is no JSON; what is not known is null.
    return None if value is None or not math.isfinite(value) else value
