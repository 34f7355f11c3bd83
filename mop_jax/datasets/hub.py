"""Data sets of the Hugging Face hub: AG News, Yelp, SST-2 and IMDB, in their official splits.

They are read with the package `datasets`, or, where there is no hub, from a folder that holds the
same files: one or several of each split, Parquet or CSV, named as the hub names them
(`train-00000-of-00001.parquet`) or simply (`train.csv`), at any depth.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from mop_jax.datasets.packages import Records
from mop_jax.errors import DataError, FaultError

_FILES = (".parquet", ".csv")


class HubSource(NamedTuple):
    """Where a data set is on the hub, and what its columns are.

    Attributes:
        repository: hub id.
        config: of the repository, or None where it has one only.
        text: column.
        labels: what the codes 0, 1, … mean.
        request: with a place for the label's words.
        words: of labels in a request; the label itself by default.
        test: split that is held out.
        label: column.
    """

    repository: str
    config: str | None
    text: str
    labels: tuple[str, ...]
    request: str
    words: Mapping[str, str] = {}
    test: str = "test"
    label: str = "label"


_SENTIMENT = ("negative", "positive")
SOURCES = {
    "ag_news": HubSource(
        "fancyzhx/ag_news",
        None,
        "text",
        ("World", "Sports", "Business", "Sci/Tech"),
        "Write a news item about {}.",
        {
            "World": "world affairs",
            "Sports": "sports",
            "Business": "business",
            "Sci/Tech": "science and technology",
        },
    ),
    "yelp": HubSource(
        "fancyzhx/yelp_polarity",
        None,
        "text",
        _SENTIMENT,
        "Write a {} review of a restaurant or another business.",
    ),
    # Its test labels are not public: the validation split is what everybody reports.
    "sst2": HubSource(
        "stanfordnlp/sst2",
        None,
        "sentence",
        _SENTIMENT,
        "Write a sentence of a {} movie review.",
        test="validation",
    ),
    "imdb": HubSource(
        "stanfordnlp/imdb", None, "text", _SENTIMENT, "Write a {} review of a movie."
    ),
}
"""By name of the data set."""


def reader(name: str) -> Callable[[str | Path | None], list[Records]]:
    """Reads training and held-out records, from the hub or a folder."""
    spec = SOURCES[name]

    def read(source: str | Path | None) -> list[Records]:
        splits = ("train", spec.test)
        if source is None or not Path(source).expanduser().exists():
            if source is not None and str(source).count("/") != 1:
                raise DataError(f"{source} was not found; accepted is a folder or a hub id.")
            frames = [_from_hub(name, spec, source, split) for split in splits]
        else:
            frames = [_from_folder(Path(source).expanduser(), split) for split in splits]
        return [
            _records(name, spec, part, frame)
            for part, frame in zip(("train", "test"), frames, strict=True)
        ]

    return read


def _from_hub(name: str, spec: HubSource, source: str | Path | None, split: str) -> pd.DataFrame:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"Data set {name!r} is read from the hub with the package datasets, which is not "
            "installed; install it with: pip install 'mop-jax[datasets]' (or give a folder with "
            f"its train and {spec.test} files as source)"
        ) from error
    repository = spec.repository if source is None else str(source)
    config = spec.config if source is None else None
    try:
        loaded: Any = datasets.load_dataset(repository, config, split=split)
    except Exception as error:  # the hub client raises many unrelated kinds
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FaultError(
            f"{repository} could not be loaded from the hub ({reason}); give a folder with its "
            f"train and {spec.test} files as source."
        ) from error
    return loaded.to_pandas()


def _from_folder(folder: Path, split: str) -> pd.DataFrame:
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in _FILES and (path.stem == split or path.stem.startswith(f"{split}-"))
    )
    # The same split in two forms is there once.
    for suffix in _FILES:
        files = [path for path in found if path.suffix == suffix]
        if files:
            read = pd.read_parquet if suffix == ".parquet" else _read_csv
            return pd.concat([read(path) for path in files], ignore_index=True)
    raise DataError(
        f"{folder} holds no file of the split {split!r}; accepted are {split}.parquet, {split}.csv "
        f"and {split}-00000-of-00001.parquet, in it or in folders of it."
    )


def _read_csv(path: Path) -> pd.DataFrame:
    # "NA" and "null" are words that people write.
    return pd.read_csv(path, keep_default_na=False)


def _records(name: str, spec: HubSource, part: str, frame: pd.DataFrame) -> Records:
    for column in (spec.text, spec.label):
        if column not in frame.columns:
            raise DataError(
                f"Data set {name!r} ({part}) has no column {column!r}; it has "
                f"{', '.join(map(str, frame.columns))}."
            )
    labels = [_label(name, spec, part, row, v) for row, v in enumerate(frame[spec.label].tolist())]
    contexts = [spec.request.format(spec.words.get(label, label)) for label in labels]
    texts = ["" if text is None else str(text) for text in frame[spec.text].tolist()]
    return Records(part, [str(row) for row in range(len(frame))], contexts, texts, labels)


def _label(name: str, spec: HubSource, part: str, row: int, value: Any) -> str:
    if isinstance(value, str) and value in spec.labels:
        return value
    try:
        code = int(value)
    except (TypeError, ValueError):
        code = -1
    if not 0 <= code < len(spec.labels):
        known = ", ".join(f"{c} ({label})" for c, label in enumerate(spec.labels))
        raise DataError(
            f"Data set {name!r} ({part}), row {row + 1}, has the label {value!r}; accepted are "
            f"{known}."
        )
    return spec.labels[code]
