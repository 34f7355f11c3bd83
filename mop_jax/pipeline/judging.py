"""The step that judges a simulation: is the simulated population like the real one?

Simulated responses to the held-out contexts are set beside the held-out responses of people, by
every metric that takes a `Comparison`; the noise floor of each is what real training responses in
their place would give.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np

from mop_jax import atomic
from mop_jax.components.codes import labels_of_contexts
from mop_jax.errors import DataError
from mop_jax.evaluation.metrics import METRICS, Comparison, Sample
from mop_jax.evaluation.metrics.effective_size import (
    Criterion,
    EffectiveSize,
    effective_sample_size,
)
from mop_jax.evaluation.metrics.reporting import Reported, by_label, report
from mop_jax.pipeline.simulation import read_simulated
from mop_jax.pipeline.workspace import Workspace
from mop_jax.population.population import Population

# Of a text with no word in it there is nothing to embed.
NOTHING = "…"
# Metrics that are read label by label: each on its own needs no more texts than a label has.
_BY_LABEL = ("energy_distance", "kl_cosine", "length_distance", "distinct_2")


def judge_likeness(space: Workspace) -> None:
    """Writes likeness.json: every metric of the simulated responses, with intervals and floors."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        comparison = _comparison(space)
        reported = report(comparison)
        labels = (
            {name: by_label(METRICS[name], comparison) for name in _BY_LABEL}
            if "labels" in comparison.provides
            else {}
        )
        sizes = _effective_sizes(comparison)
    notes = list(dict.fromkeys(str(w.message) for w in caught if w.category is UserWarning))
    atomic.write_json(
        space.path / "likeness.json",
        {
            "num_real": len(comparison.real),
            "num_simulated": len(comparison.simulated),
            "num_train": 0 if comparison.train is None else len(comparison.train),
            "metrics": {name: reported_as_json(value) for name, value in reported.items()},
            "by_label": labels,
            "effective_size": {name: _size_as_json(size) for name, size in sizes.items()},
            "notes": notes,
        },
    )


def compared(
    space: Workspace,
    rows: Sequence[int],
    texts: Sequence[str],
    shown: Sequence[Sequence[str]],
) -> Comparison:
    """Simulated responses to held-out contexts beside what people said to the same ones.

    Args:
        space: the run.
        rows: which held-out record's context each text answers, [n].
        texts: simulated, [n].
        shown: the exemplar responses in each one's prompt, [n].
    """
    test = space.sides["test"].records
    asked = sorted(set(rows))
    place = {row: i for i, row in enumerate(asked)}
    # Contexts that nothing was simulated for would only shift the mix.
    real = _sample(space, test.take(np.asarray(asked)))
    written = [text or NOTHING for text in texts]

    def of(values: Sequence[str] | None) -> list[str] | None:
        return None if values is None else [values[place[row]] for row in rows]

    embeddings = space.encoder.encode(written)
    simulated = Sample(written, embeddings, of(real.labels), of(real.groups), shown)
    return Comparison(
        real, simulated, _sample(space, space.sides["train"].records), space.config.seed
    )


def _sample(space: Workspace, records: Population) -> Sample:
    """What people said, embedded by itself."""
    contexts, groups = records.contexts, records.groups
    # Answers to one context are not independent; where nearly every record has one of its own, a
    # real text and the simulated ones to its context are a group. A few contexts that all are asked
    # again and again are a design, not a sample.
    if groups is None and 2 * len(set(contexts)) > len(contexts):
        groups = contexts
    # Responses alone: with the requests, whatever is simulated would resemble the real.
    return Sample(
        records.responses,
        space.encoder.encode(records.responses),
        labels_of_contexts(records),
        groups,
    )


def _comparison(space: Workspace) -> Comparison:
    found = read_simulated(space, space.path / "simulated.jsonl")
    return compared(space, found.rows, found.texts, found.shown)


def _effective_sizes(comparison: Comparison) -> dict[str, EffectiveSize]:
    found: dict[str, EffectiveSize] = {}
    # Label shares say nothing here: contexts, and with them labels, are those of the real texts.
    criteria: tuple[Criterion, ...] = ("embedding_mean", "fid")
    for criterion in criteria:
        try:
            found[criterion] = effective_sample_size(comparison, criterion)
        except DataError as error:
            warnings.warn(f"No effective sample size by {criterion}: {error}", stacklevel=2)
    return found


def reported_as_json(reported: Reported) -> dict[str, Any]:
    """A metric's value and what stands beside it as JSON values: null is what is not known."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in reported._asdict().items()
    }


def _size_as_json(size: EffectiveSize) -> dict[str, Any]:
    return {
        "size": "inf" if math.isinf(size.size) else size.size,
        "simulated_error": size.simulated_error,
        "sizes": [int(n) for n in size.sizes],
        "errors": [float(e) for e in size.errors],
        "spread": [float(s) for s in size.spread],
    }
