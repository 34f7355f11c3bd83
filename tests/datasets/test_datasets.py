"""Data sets from small files of the same formats; Rotten Tomatoes from the package itself."""

from __future__ import annotations

import io
import logging
import sys
import tarfile
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import yaml

import mop_jax
from mop_jax.datasets import DATASETS, Dataset, load_dataset, register
from mop_jax.datasets import hub as hub_module
from mop_jax.datasets.packages import TOPICS, installed_file
from mop_jax.errors import DataError, FaultError
from mop_jax.population import Population


def test_every_data_set_has_an_entry() -> None:
    packaged = ["rotten_tomatoes", "reuters_r8", "tweets", "amazon", "films"]
    wanted = [*packaged, "ag_news", "yelp", "sst2", "imdb"]
    assert wanted == list(DATASETS)
    assert [d.name for d in DATASETS.values()] == wanted
    with pytest.raises(DataError, match="There is no data set 'mnist'; there are rotten_tomatoes"):
        load_dataset("mnist")
    with pytest.raises(DataError, match="'imdb' already"):
        register(DATASETS["imdb"])
    with pytest.raises(DataError, match="'a b'; accepted are letters"):
        register(Dataset("a b", "", DATASETS["imdb"].read, ""))


def test_rotten_tomatoes_is_that_of_the_demo() -> None:
    train, test = load_dataset("rotten_tomatoes", train_size=60, test_size=40, seed=0)
    config = yaml.safe_load((Path(mop_jax.__file__).parent / "configs" / "demo.yaml").read_text())
    whole = Population.from_file(**config["population"])
    for found, wanted in zip((train, test), whole.split(seed=0, **config["split"]), strict=True):
        assert found.ids == wanted.ids
        assert (found.contexts, found.labels, found.groups) == (
            wanted.contexts,
            wanted.labels,
            wanted.groups,
        )
        assert found.responses == [" ".join(text.split()) for text in wanted.responses]
    assert not set(train.groups) & set(test.groups)
    again = load_dataset("rotten_tomatoes", train_size=60, test_size=40, seed=0)
    assert again.train.fingerprint == train.fingerprint
    other = load_dataset("rotten_tomatoes", train_size=60, test_size=40, seed=1)
    assert other.train.fingerprint != train.fingerprint


@pytest.fixture
def reuters(tmp_path):
    """Orange's files: 16 training and 8 held-out news, one of which is a training record too."""
    long = "the very same news of more than eight words in all"
    rows = {
        "train": [(t, f"{t} news number {n}") for n in range(2) for t in TOPICS],
        "test": [(t, f"{t} news of the test") for t in TOPICS],
    }
    rows["train"][3] = ("grain", long)
    rows["test"][5] = ("money-fx", long.upper())
    for part, found in rows.items():
        lines = ["Category\tText", "d\tstring", "class\t", *("\t".join(row) for row in found), ""]
        (tmp_path / f"reuters-r8-{part}.tab").write_text("\n".join(lines))
    return tmp_path


def test_reuters_keeps_its_own_split_without_twins(reuters, caplog) -> None:
    with caplog.at_level(logging.INFO, "mop_jax"):
        train, test = load_dataset("reuters_r8", source=reuters)
    assert (len(train), len(test)) == (15, 8)
    assert "1 training records are held out too" in caplog.text
    assert train.ids[:4] == ["train-1", "train-2", "train-3", "train-5"]
    assert test.ids[0] == "test-1"
    assert train.contexts[0] == "Write a news report about company takeovers and mergers."
    assert set(test.labels) == set(TOPICS)
    small = load_dataset("reuters_r8", source=reuters, train_size=8, test_size=8, seed=3)
    assert sorted(small.train.labels) == sorted(TOPICS)
    assert (
        len(load_dataset("reuters_r8", source=reuters, max_words=2).train.responses[0].split()) == 2
    )
    with pytest.raises(DataError, match="train_size is 16; the data set has 15"):
        load_dataset("reuters_r8", source=reuters, train_size=16)


def test_damaged_reuters_files_are_named(reuters) -> None:
    path = reuters / "reuters-r8-test.tab"
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:4], "weather\tRain.", *lines[4:]]))
    with pytest.raises(DataError, match=r"test.tab, line 5, has the topic 'weather'"):
        load_dataset("reuters_r8", source=reuters)
    path.write_text("a\tb\n")
    with pytest.raises(DataError, match="no table of Orange's"):
        load_dataset("reuters_r8", source=reuters)
    path.unlink()
    with pytest.raises(DataError, match=r"test.tab was not found"):
        load_dataset("reuters_r8", source=reuters)


RATED = {
    "tweets": ("tweets", ["1\t2.7\tSo &amp; so  lucky.", "2\t-1.5\tNo \"way\"", "3\t0\tHm."]),
    "amazon": ("amazonReviewSnippets", ["1_1\t-0.9\tno picture.", "1_2\t0.4\tit plays.",
                                        "2_1\t1.0\tgreat.", "3_1\t-2\tbad."]),
    "films": ("movieReviewSnippets", ["1\t2.3\tThe Rock is destined.", "2\t-0.6\tToo tepid"]),
}  # fmt: skip


@pytest.fixture
def vader(tmp_path):
    """A source archive with the archive of rated sentences inside."""

    def pack(path, files: dict[str, bytes]) -> bytes:
        with tarfile.open(path, "w:gz") as archive:
            for name, content in files.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
        return path.read_bytes()

    texts = {
        f"hutto_ICWSM_2014/{file}_GroundTruth.txt": "\n".join([*lines, ""]).encode()
        for file, lines in RATED.values()
    }
    inner = pack(tmp_path / "inner.tar.gz", texts)
    name = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    pack(tmp_path / "vaderSentiment-3.3.2.tar.gz", {name: inner})
    pack(tmp_path / "other.tar.gz", {"x": b"y"})
    return tmp_path


def test_rated_sentences(vader, caplog) -> None:
    with caplog.at_level(logging.INFO, "mop_jax"):
        train, test = load_dataset("tweets", source=vader, test_size=1)
    assert "tweets: 1 sentences of the mean rating 0 are left out" in caplog.text
    found = {
        text: (context, label)
        for part in (train, test)
        for text, context, label in zip(part.responses, part.contexts, part.labels, strict=True)
    }
    assert found == {
        "So & so lucky.": ("Write a positive tweet.", "positive"),
        'No "way"': ("Write a negative tweet.", "negative"),
    }
    train, test = load_dataset("amazon", source=vader / "vaderSentiment-3.3.2.tar.gz", test_size=1)
    assert sorted([*train.groups, *test.groups]) == ["1", "1", "2", "3"]
    assert not set(train.groups) & set(test.groups)
    assert "Write a sentence of a positive review of a product." in train.contexts
    assert len(load_dataset("films", source=vader, test_size=1).train) == 1


def test_files_of_rated_sentences_that_are_not_what_they_should_be(vader, tmp_path) -> None:
    with pytest.raises(DataError, match=r"fetch it with: pip download .*vaderSentiment==3.3.2"):
        load_dataset("films", source=tmp_path / "none.tar.gz")
    with pytest.raises(DataError, match=r"other.tar.gz holds no hutto_ICWSM_2014"):
        load_dataset("films", source=vader / "other.tar.gz")
    (tmp_path / "cut.tar.gz").write_bytes(
        (vader / "vaderSentiment-3.3.2.tar.gz").read_bytes()[:300]
    )
    with pytest.raises(DataError, match=r"cut.tar.gz could not be unpacked"):
        load_dataset("films", source=tmp_path / "cut.tar.gz")
    file = tmp_path / "movieReviewSnippets_GroundTruth.txt"
    file.write_text("1\t2.0\tFine.\n2\tx\tBad.\n")
    with pytest.raises(DataError, match="line 2, is not an id, a mean rating and a text"):
        load_dataset("films", source=file)


def test_packages_that_are_not_installed_are_named() -> None:
    with pytest.raises(DataError, match="install it with: pip install --no-deps nothing==1"):
        installed_file("nothing==1", "no_such_package", "x")
    with pytest.raises(DataError, match="pip install --no-deps nothing==1"):
        installed_file("nothing==1", "mop_jax", "no-such-file")
    assert installed_file("mop-jax", "mop_jax", "py.typed").name == "py.typed"


def frames(text: str, labels: range, test_labels: range) -> tuple[pd.DataFrame, pd.DataFrame]:
    train = pd.DataFrame({text: [f"Text<br />{n}, NA" for n in labels], "label": list(labels)})
    test = pd.DataFrame({text: [f"Other {n}" for n in test_labels], "label": list(test_labels)})
    return train, test


HUB = [("ag_news", "text", "test", 4), ("yelp", "text", "test", 2), ("sst2", "sentence",
        "validation", 2), ("imdb", "text", "test", 2)]  # fmt: skip


@pytest.mark.parametrize(("name", "column", "split", "number"), HUB)
@pytest.mark.parametrize("kind", ["parquet", "shards", "csv"])
def test_hub_data_from_a_folder(name, column, split, number, kind, tmp_path) -> None:
    train, test = frames(column, range(number), range(number))
    if kind == "csv":
        train.to_csv(tmp_path / "train.csv", index=False)
        test.to_csv(tmp_path / f"{split}.csv", index=False)
    else:
        folder = tmp_path / "data" if kind == "shards" else tmp_path
        folder.mkdir(exist_ok=True)
        if kind == "shards":
            train[:1].to_parquet(folder / "train-00000-of-00002.parquet")
            train[1:].to_parquet(folder / "train-00001-of-00002.parquet")
            # Labels of this split are not public.
            hidden = test.assign(label=-1)
            hidden.to_parquet(folder / "unused-00000-of-00001.parquet")
        else:
            train.to_parquet(folder / "train.parquet")
        tail = "-00000-of-00001" if kind == "shards" else ""
        test.to_parquet(folder / f"{split}{tail}.parquet")
    found = load_dataset(name, source=tmp_path)
    assert found.train.responses == [f"Text {n}, NA" for n in range(number)]
    assert found.test.responses == [f"Other {n}" for n in range(number)]
    spec = hub_module.SOURCES[name]
    assert found.train.labels == list(spec.labels)
    for context, label in zip(found.train.contexts, found.train.labels, strict=True):
        assert context == spec.request.format(spec.words.get(label, label))


def test_hub_data_through_the_package_datasets(monkeypatch) -> None:
    asked = []

    def load(repository, config, *, split):
        asked.append((repository, config, split))
        parts = dict(zip(("train", "validation"), frames("sentence", range(2), range(2)),
                         strict=True))  # fmt: skip
        return SimpleNamespace(to_pandas=lambda: parts[split])

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load))
    found = load_dataset("sst2")
    assert found.test.labels == ["negative", "positive"]
    load_dataset("sst2", source="owner/copy")
    assert asked == [
        ("stanfordnlp/sst2", None, "train"),
        ("stanfordnlp/sst2", None, "validation"),
        ("owner/copy", None, "train"),
        ("owner/copy", None, "validation"),
    ]

    def fail(*arguments, **rest):
        raise ConnectionError("no route\nat all")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=fail))
    with pytest.raises(FaultError, match=r"could not be loaded from the hub \(no route\); give a"):
        load_dataset("sst2")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"install it with: pip install 'mop-jax\[datasets\]'"):
        load_dataset("sst2")


def test_hub_files_that_are_not_what_they_should_be(tmp_path) -> None:
    with pytest.raises(DataError, match="holds no file of the split 'train'"):
        load_dataset("imdb", source=tmp_path)
    with pytest.raises(DataError, match="was not found; accepted is a folder or a hub id"):
        load_dataset("imdb", source=tmp_path / "none")
    train, test = frames("text", range(3), range(2))
    train.to_csv(tmp_path / "train.csv", index=False)
    test.to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(DataError, match=r"\(train\), row 3, has the label 2; accepted are 0 \(neg"):
        load_dataset("imdb", source=tmp_path)
    train.rename(columns={"text": "words"}).to_csv(tmp_path / "train.csv", index=False)
    with pytest.raises(DataError, match="has no column 'text'; it has words, label"):
        load_dataset("imdb", source=tmp_path)


@pytest.mark.parametrize("sizes", [{"train_size": 0}, {"test_size": 0}, {"max_words": 0}])
def test_sizes_are_positive(sizes, vader) -> None:
    with pytest.raises(DataError, match=r"accepted is a (count from 1|positive integer)"):
        load_dataset("films", source=vader, **sizes)
