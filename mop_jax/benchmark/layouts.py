"""What each table compares and shows; `make_table` fills it, and `writing` writes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from mop_jax.benchmark.ablations import ABLATIONS, FULL, GAIN, respond_ablation
from mop_jax.benchmark.responses import METHODS, Options, Responses, respond, title_of
from mop_jax.benchmark.transfer import TRANSFERRED, TRANSFERS, respond_transfer
from mop_jax.evaluation.predictors import MAIN
from mop_jax.pipeline import Workspace


@dataclass(frozen=True)
class Layout:
    """A table of the paper.

    Attributes:
        metrics: those that it shows; all others are in its CSV file.
        kind: what one of its rows is called.
        titles: gives each row's title by its name, in their order.
        respond: (run, row, folder, options) → what it writes.
        headline: the row whose margin over the best of the others is told.
        others: what the others are called.
        note: what a reader must know, a sentence.
        place: of its runs and measures, below the folder of a data set and seed.
        steps: of the run that its rows start from.
        definitions: what each row is, by name.
        is_transfer: whether `--lm` is a second language model, beside the configuration's.
        has_baselines: whether rows see training records by themselves, past the mixture's masks.
    """

    metrics: tuple[str, ...]
    kind: str
    titles: Callable[[], Mapping[str, str]]
    respond: Callable[[Workspace, str, Path, Options], Responses]
    headline: str
    others: str
    note: str
    place: str = ""
    steps: tuple[str, ...] = ("simulate",)
    definitions: Callable[[], Mapping[str, str]] = dict
    is_transfer: bool = False
    has_baselines: bool = False


_ALIGNMENT = ("fid", "mauve", "kl_cosine")
_METHODS_NOTE = "The mixture samples at its fitted temperatures, baselines at 1."


def _methods(*metrics: str) -> Layout:
    return Layout(
        metrics,
        "method",
        lambda: {name: title_of(name) for name in METHODS},
        respond,
        MAIN,
        "baseline",
        _METHODS_NOTE,
        has_baselines=True,
    )


TABLES = {
    "table1": _methods(*_ALIGNMENT, "mean_words", "copied_4grams"),
    "table2": _methods("downstream_f1"),
    "table3": Layout(
        (*_ALIGNMENT, "downstream_f1", "mean_words", "copied_4grams"),
        "row",
        lambda: TRANSFERS,
        respond_transfer,
        TRANSFERRED,
        "other",
        "All responses are written by the language model that the gate is carried over to, with "
        "the personas and exemplars of the first, and prompts of its own form.",
        place="transfer/{language_model}",
        is_transfer=True,
        definitions=lambda: {
            TRANSFERRED: "fitted to the first language model's scores, and sampled at the "
            "temperatures of that fit",
            "refitted": "fitted, temperatures too, to the scores of the language model that writes",
            "uniform_gate": ABLATIONS["uniform_gate"].definition,
        },
    ),
    "table4": Layout(
        (
            *_ALIGNMENT,
            "downstream_f1",
            "mean_words",
            "copied_4grams",
            "held_out_log_prob",
            GAIN.name,
        ),
        "ablation",
        lambda: {ablation.name: ablation.title for ablation in ABLATIONS.values()},
        respond_ablation,
        FULL,
        "ablation",
        "Log-probabilities are those of held-out responses, with intervals over records.",
        place="ablations",
        steps=("evaluate", "simulate"),
        definitions=lambda: {a.name: a.definition for a in ABLATIONS.values()},
    ),
}
"""Every table by name."""
