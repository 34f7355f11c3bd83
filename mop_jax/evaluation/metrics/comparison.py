"""What a metric of likeness sees: real texts, simulated texts, their embeddings, and no model.

Everything that can be wrong with the texts as such is found here, once: what no metric could judge
is refused in one sentence, and what makes every value doubtful (copies, texts that are all equal)
is said as a warning. What concerns one metric only, such as too few texts, its own function says.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from mop_jax.errors import DataError

_MANY_COPIES = 0.1
# Two lists with as many different texts in the same order are one list.
_SURELY_ONE_LIST = 5


@dataclass(frozen=True, eq=False)
class Sample:
    """Texts of one origin.

    Attributes:
        texts: n of them.
        embeddings: float [n, D], one row a text.
        labels: what each text is about, or was asked to be about, [n].
        groups: of the texts, [n]; texts of one group (a film, a respondent) are not independent.
        shown: of simulated texts, the exemplar texts in each one's prompt, [n] sequences.
    """

    texts: Sequence[str]
    embeddings: np.ndarray
    labels: Sequence[str] | None = None
    groups: Sequence[str] | None = None
    shown: Sequence[Sequence[str]] | None = None

    def __post_init__(self) -> None:
        """Brings all fields to tuples and float64, and refuses what is not n of each.

        Raises:
            DataError: if there are no texts, lengths differ, or an embedding is not finite.
        """
        texts = tuple(self.texts)
        if not texts:
            raise DataError("A sample has no texts; at least one is needed.")
        embeddings = np.asarray(self.embeddings, np.float64)
        if embeddings.ndim != 2 or embeddings.shape[1] == 0:
            raise DataError(
                f"Embeddings have the shape {list(embeddings.shape)}; accepted is [texts, width]."
            )
        fields = {"embeddings": embeddings, "labels": self.labels, "groups": self.groups,
                  "shown": self.shown}  # fmt: skip
        for name, values in fields.items():
            if values is not None and len(values) != len(texts):
                raise DataError(
                    f"A sample has {len(texts)} texts and {len(values)} {name}; "
                    "their numbers must be equal."
                )
        finite = np.isfinite(embeddings).all(axis=1)
        if not finite.all():
            raise DataError(
                f"{(~finite).sum()} of {len(texts)} embeddings are not finite numbers, the first "
                f"that of text {int(np.argmin(finite))}; encode these texts again."
            )
        object.__setattr__(self, "texts", texts)
        object.__setattr__(self, "embeddings", embeddings)
        for name in ("labels", "groups"):
            if (values := getattr(self, name)) is not None:
                object.__setattr__(self, name, tuple(map(str, values)))
        if self.shown is not None:
            if any(isinstance(shown, str) for shown in self.shown):
                raise DataError("A text's exemplars are one string; accepted is a list of strings.")
            object.__setattr__(self, "shown", tuple(map(tuple, self.shown)))

    def __len__(self) -> int:
        """Number of texts."""
        return len(self.texts)

    def take(self, indices: Sequence[int] | np.ndarray) -> Sample:
        """The texts at these indices, in their order."""

        def chosen(values: Sequence | None) -> list | None:
            return None if values is None else [values[i] for i in indices]

        indices = np.asarray(indices, np.intp)
        return Sample(
            [self.texts[i] for i in indices],
            self.embeddings[indices],
            chosen(self.labels),
            chosen(self.groups),
            chosen(self.shown),
        )


@dataclass(frozen=True, eq=False)
class Comparison:
    """A simulated population beside the real one.

    Attributes:
        real: held-out texts of people: what the simulation is judged by.
        simulated: texts of the simulation.
        train: the real records that the simulation was made from.
        seed: of everything random in a metric: folds, permutations, clusters.
    """

    real: Sample
    simulated: Sample
    train: Sample | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuses samples that cannot be compared, and warns of copies.

        Raises:
            DataError: if embeddings differ in width, the samples are the same list, or real texts
                have exemplars (a sign that the two were swapped).
        """
        widths = {"real": self.real, "simulated": self.simulated, "train": self.train}
        found = {name: s.embeddings.shape[1] for name, s in widths.items() if s is not None}
        if len(set(found.values())) > 1:
            stated = ", ".join(f"{name} {width}" for name, width in found.items())
            raise DataError(f"Embeddings differ in width ({stated}); use one encoder for all.")
        of_people = set(self.real.texts)
        if self.real.shown is not None:
            raise DataError(
                "The real texts come with exemplars that were shown, which only simulated texts "
                "have; are the two swapped?"
            )
        # A few answers to a closed question may well agree in order, too.
        if self.real.texts == self.simulated.texts and len(of_people) >= _SURELY_ONE_LIST:
            raise DataError(
                f"The {len(self.real)} simulated texts are the real texts, the very same list; "
                "give texts that were simulated."
            )
        self._warn_of_copies(of_people)
        for name, sample in (("real", self.real), ("simulated", self.simulated)):
            if len(sample) > 1 and len(set(sample.texts)) == 1:
                warnings.warn(
                    f"All {len(sample)} {name} texts are equal ({sample.texts[0][:60]!r}); what is "
                    "measured of them says little.",
                    stacklevel=3,
                )

    def _warn_of_copies(self, of_people: set[str]) -> None:
        shares = [("simulated texts", self.simulated, of_people, "real texts they are compared to")]
        if self.train is not None:
            known = set(self.train.texts)
            shares += [("simulated texts", self.simulated, known, "training records"),
                       ("real texts", self.real, known, "training records")]  # fmt: skip
        for whose, sample, others, what in shares:
            share = sum(text in others for text in sample.texts) / len(sample)
            if share > _MANY_COPIES:
                warnings.warn(
                    f"{share:.0%} of the {len(sample)} {whose} are exact copies of {what}: unless "
                    "they are short answers that many give, the samples overlap or are swapped, "
                    "and every value is flattered.",
                    stacklevel=4,
                )

    @property
    def provides(self) -> frozenset[str]:
        """Which of `labels`, `shown` and `train` there are."""
        have = {
            "labels": self.real.labels is not None and self.simulated.labels is not None,
            "shown": self.simulated.shown is not None,
            "train": self.train is not None,
        }
        return frozenset(name for name, there in have.items() if there)

    def take(self, real: np.ndarray, simulated: np.ndarray, seed: int | None = None) -> Comparison:
        """The real and the simulated texts at these indices; training records stay."""
        return replace(
            self,
            real=self.real.take(real),
            simulated=self.simulated.take(simulated),
            seed=self.seed if seed is None else seed,
        )


def directions(sample: Sample) -> np.ndarray:
    """Embeddings scaled to unit length, [n, D].

    Raises:
        DataError: if an embedding is zero and has no direction.
    """
    norms = np.linalg.norm(sample.embeddings, axis=1, keepdims=True)
    if not norms.all():
        raise DataError(
            f"The embedding of text {int(np.argmin(norms))} is zero and has no direction."
        )
    return sample.embeddings / norms


def at_least(comparison: Comparison, count: int, what: str) -> None:
    """Refuses a comparison with fewer texts on a side than a metric needs.

    Raises:
        DataError: if there are.
    """
    for name, sample in (("real", comparison.real), ("simulated", comparison.simulated)):
        if len(sample) < count:
            raise DataError(
                f"{what} needs at least {count} {name} texts; there "
                f"{'is' if len(sample) == 1 else 'are'} {len(sample)}."
            )


@lru_cache(maxsize=2**16)
def words(text: str) -> tuple[str, ...]:
    """Words of a text: what stands between blanks, in lower case."""
    return tuple(text.lower().split())


def ngrams(tokens: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """All runs of n words, in order; none where there are fewer words."""
    return list(zip(*(tokens[i:] for i in range(n)))) if n > 0 else []
