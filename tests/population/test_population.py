"""Population: what is read is what was written, splits are exact, and bad input is named."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.config import load_config
from mop_jax.errors import DataError
from mop_jax.population import Population, text_key
from mop_jax.population.splits import apportion

FRAME = pd.DataFrame(
    {
        "film": ["alien", "alien", "big_fish", "casablanca", "dune"],
        "mood": ["fresh", "rotten", "fresh", "fresh", "rotten"],
        "stars": [4, 1, 3, 5, 2],
        "text": ["Cold, slow.", ' Says "no". ', "Naïve — 美しい", "NA", "Dry\nas sand"],
        "key": ["007", "008", "009", "010", "011"],
    }
)
TEMPLATE = "A {{ {'fresh': 'good', 'rotten': 'bad'}[mood] }} review of {{ film | title }}."


def read_frame(df: pd.DataFrame = FRAME, **overrides: object) -> Population:
    options: dict = {"context": "film", "response": "text"}
    return Population.from_dataframe(df, **(options | overrides))


def toy(num_records: int, num_groups: int = 3) -> Population:
    return Population(
        ids=[f"r{i}" for i in range(num_records)],
        contexts=["x"] * num_records,
        responses=[f"y{i}" for i in range(num_records)],
        labels=["ab"[i % 3 == 0] for i in range(num_records)],
        groups=[str(i % num_groups) for i in range(num_records)],
    )


def test_columns_template_and_defaults() -> None:
    population = read_frame(context=["film", "mood"], template=TEMPLATE, id="key", label="mood")
    assert population.contexts[0] == "A good review of Alien."
    assert population.contexts[2] == "A good review of Big_fish."
    assert population.responses[1] == 'Says "no".'
    assert population.ids == ["007", "008", "009", "010", "011"]
    assert population.labels == FRAME["mood"].tolist()
    assert population.groups is None
    np.testing.assert_array_equal(population.weights, np.ones(5))
    assert population.weights.dtype == np.float64
    plain = read_frame(group="film", weight="stars")
    assert plain.ids == ["1", "2", "3", "4", "5"]
    assert plain.groups == FRAME["film"].tolist()
    np.testing.assert_array_equal(plain.weights, FRAME["stars"])
    frame = plain.frame
    assert frame.columns.tolist() == ["id", "context", "response", "group", "weight"]
    assert frame["response"].tolist() == plain.responses


def test_query_keeps_row_numbers_as_ids() -> None:
    population = read_frame(query="mood == 'fresh' and stars > 3")
    assert population.ids == ["1", "4"]


def test_limit_is_a_seeded_subset_in_order() -> None:
    one = read_frame(limit=3, seed=1)
    assert one.ids == read_frame(limit=3, seed=1).ids
    assert one.ids == sorted(one.ids)
    assert len({tuple(read_frame(limit=3, seed=s).ids) for s in range(20)}) > 3
    assert len(read_frame(limit=50)) == 5


WRITERS: dict[str, Callable[[pd.DataFrame, Path], object]] = {
    "d.csv": lambda df, p: df.to_csv(p, index=False),
    "d.tsv": lambda df, p: df.to_csv(p, index=False, sep="\t"),
    "d.CSV": lambda df, p: p.write_bytes(b"\xef\xbb\xbf" + df.to_csv(index=False).encode()),
    "d.csv.gz": lambda df, p: p.write_bytes(gzip.compress(df.to_csv(index=False).encode())),
    "d.csv.bz2": lambda df, p: p.write_bytes(bz2.compress(df.to_csv(index=False).encode())),
    "d.csv.xz": lambda df, p: p.write_bytes(lzma.compress(df.to_csv(index=False).encode())),
    "d.csv.zip": lambda df, p: zipfile.ZipFile(p, "w").writestr("d.csv", df.to_csv(index=False)),
    "d.jsonl": lambda df, p: p.write_text(
        "\n\n".join(json.dumps(r, ensure_ascii=False) for r in df.to_dict("records")), "utf-8"
    ),
    "d.parquet": lambda df, p: df.to_parquet(p),
}


@pytest.mark.parametrize("name", WRITERS)
def test_every_format_gives_the_same_population(name: str, tmp_path: Path) -> None:
    WRITERS[name](FRAME, tmp_path / name)
    options: dict = {
        "context": ["film", "mood"],
        "template": TEMPLATE,
        "response": "text",
        "id": "key",
        "label": "mood",
        "group": "film",
        "weight": "stars",
    }
    population = Population.from_file(tmp_path / name, **options)
    assert population.fingerprint == Population.from_dataframe(FRAME, **options).fingerprint
    # "NA" is an answer, "007" an id, and the line break inside a cell stays.
    assert population.responses[3:] == ["NA", "Dry\nas sand"]


def test_numbers_stay_as_written_beside_missing_cells(tmp_path: Path) -> None:
    (tmp_path / "d.csv").write_text("age,answer\n34,3.10\n,2\n51,1\n")
    population = Population.from_file(
        tmp_path / "d.csv",
        context=["age"],
        template="Aged {{ age }}{{ ', old' if age > 50 }}.",
        response="answer",
        drop_missing=True,
    )
    assert population.contexts == ["Aged 34.", "Aged 51, old."]
    assert population.responses == ["3.10", "1"]
    assert population.ids == ["1", "3"]


def test_text_keys_fold_case_and_blanks_only() -> None:
    population = Population(
        ids=["a", "b", "c", "d"],
        contexts=["Review  Alien", "review alien", "review alien", "review"],
        responses=["GREAT\nfilm", "great film", "great film!", "alien great film"],
    )
    keys = population.text_keys
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert text_key("a b", "c") != text_key("a", "b c")


def test_fingerprint_sees_everything() -> None:
    base = toy(4)
    changed = [
        base.take([1, 0, 2, 3]),
        base.take([0, 1, 2]),
        Population(base.ids, base.contexts, base.responses, base.labels, None),
        Population(base.ids, base.contexts, base.responses, base.groups, base.labels),
        Population(base.ids, base.responses, base.contexts, base.labels, base.groups),
        Population(
            base.ids, base.contexts, base.responses, base.labels, base.groups, np.arange(1.0, 5.0)
        ),
    ]
    assert len({p.fingerprint for p in [base, *changed]}) == 7
    assert base.take(range(4)).fingerprint == base.fingerprint


@settings(max_examples=60, deadline=None)
@given(st.integers(3, 60), st.integers(1, 40), st.integers(0, 5), st.sampled_from(["r", "s"]))
def test_split_is_a_partition(num_records: int, num_test: int, seed: int, kind: str) -> None:
    population = toy(num_records)
    by = {"r": "record", "s": "stratified"}[kind]
    if num_test >= num_records:
        with pytest.raises(DataError, match="too few"):
            population.split(num_test, by=by, seed=seed)  # type: ignore[arg-type]
        return
    train, test = population.split(num_test, by=by, seed=seed)  # type: ignore[arg-type]
    assert len(test) == num_test
    assert sorted(train.ids + test.ids) == sorted(population.ids)
    assert train.ids == sorted(train.ids, key=lambda i: int(i[1:]))
    if by == "stratified":
        assert population.labels is not None
        assert test.labels is not None
        whole, part = Counter(population.labels), Counter(test.labels)
        for label, count in whole.items():
            assert abs(part[label] - num_test * count / num_records) < 1 + 1e-9


def test_split_sizes_and_seeds() -> None:
    population = toy(40)
    train, test = population.split(0.25, train_size=20, seed=3)
    assert (len(train), len(test)) == (20, 10)
    assert not set(train.ids) & set(test.ids)
    assert population.split(10, seed=3)[1].ids == test.ids
    assert population.split(10, seed=4)[1].ids != test.ids
    train, test = population.split(9, by="stratified", train_size=15)
    assert Counter(train.labels) == {"a": 10, "b": 5}
    assert Counter(test.labels) == {"a": 6, "b": 3}


def test_split_by_group_keeps_groups_apart() -> None:
    population = toy(60, num_groups=9)  # six groups of 7, three of 6
    for seed in range(10):
        train, test = population.split(20, by="group", seed=seed)
        assert train.groups is not None
        assert test.groups is not None
        assert not set(train.groups) & set(test.groups)
        assert len(train) + len(test) == 60
        assert 13 <= len(test) <= 20
        train, test = population.split(20, by="group", seed=seed, train_size=25)
        assert (len(train), len(test)) == (25, 20)
        assert not set(train.groups or []) & set(test.groups or [])


def test_split_by_group_draws_held_out_records_from_many_groups() -> None:
    population = toy(600, num_groups=60)
    train, test = population.split(20, by="group", seed=1, train_size=40)
    # A third of the groups is held out: 20 of them, of which 20 records meet more than a few.
    assert len(set(test.groups or [])) > 8
    assert len(set(train.groups or [])) > 20
    # As many groups as leave enough to train on, where records are scarce.
    train, test = population.split(50, by="group", seed=1, train_size=550)
    assert (len(train), len(test)) == (550, 50)


@pytest.mark.parametrize("by", ["record", "stratified", "group"])
def test_a_long_response_is_never_on_both_sides_of_a_split(by: str) -> None:
    """Every review stands under two spellings of its film's name."""
    reviews = [f"review {i} is one that goes on for nine words" for i in range(30)]
    population = Population(
        [str(i) for i in range(60)],
        [f"film {i}" for i in range(60)],
        reviews * 2,
        labels=["a", "b"] * 30,
        groups=[f"film {i // 3}" for i in range(60)],
    )
    for seed in range(5):
        train, test = population.split(12, by=by, seed=seed, train_size=12)  # type: ignore[arg-type]
        assert not set(train.responses) & set(test.responses)
        assert (len(train), len(test)) == (12, 12)
        if by == "group":
            assert not set(train.groups or []) & set(test.groups or [])
        rest, test = population.split(12, by=by, seed=seed)  # type: ignore[arg-type]
        assert not set(rest.responses) & set(test.responses)
        assert len(rest) + len(test) < 60


def test_split_refusals() -> None:
    population = toy(10)
    bare = Population(population.ids, population.contexts, population.responses)
    with pytest.raises(DataError, match="needs labels"):
        bare.split(2, by="stratified")
    with pytest.raises(DataError, match="needs groups"):
        bare.split(2, by="group")
    with pytest.raises(DataError, match="10 records are too few for 10 test"):
        bare.split(10)
    with pytest.raises(DataError, match="too few for 5 test and at least 6"):
        bare.split(5, train_size=6)
    with pytest.raises(DataError, match="test_size is 0"):
        bare.split(0)
    with pytest.raises(DataError, match=r"test_size is 1\.5"):
        bare.split(1.5)
    with pytest.raises(DataError, match="by is 'film'"):
        bare.split(2, by="film")  # type: ignore[arg-type]
    with pytest.raises(DataError, match="smallest group has 3 records"):
        population.split(2, by="group")
    with pytest.raises(DataError, match="at least two groups"):
        toy(10, num_groups=1).split(2, by="group")
    with pytest.raises(DataError, match="left outside the 1 groups"):
        toy(10, num_groups=2).split(4, by="group", train_size=6)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(0, 12), min_size=1, max_size=8), st.data())
def test_apportion_is_within_one_of_the_quota(sizes: list[int], data: st.DataObject) -> None:
    if sum(sizes) == 0:
        sizes = [*sizes, 3]
    total = data.draw(st.integers(0, sum(sizes)))
    places = apportion(sizes, total, np.random.default_rng(0))
    assert places.sum() == total
    assert (places <= np.array(sizes)).all()
    assert (np.abs(places - total * np.array(sizes) / sum(sizes)) < 1 + 1e-9).all()


def write(tmp_path: Path, name: str, content: str | bytes) -> Path:
    data = content.encode("utf-8") if isinstance(content, str) else content
    (tmp_path / name).write_bytes(data)
    return tmp_path / name


BAD_FILES: dict[str, tuple[str, str | bytes, str]] = {
    "empty": ("d.csv", "", r"d\.csv is empty"),
    "blank": ("d.csv", "\n \n", r"d\.csv is empty"),
    "header only": ("d.csv", "q,a\n", "a header but no records"),
    "empty jsonl": ("d.jsonl", "\n", "is empty"),
    "empty parquet": ("d.parquet", b"", "is empty"),
    "missing column": ("d.csv", "q,b\n1,2\n", r"d\.csv: There is no column 'a'.*are: q, b\."),
    "empty response": ("d.csv", "q,a\nx,y\nx, \n", r"d\.csv: Row 2 has an empty response"),
    "missing response": ("d.csv", "q,a\nx,y\nx,\n", "Row 2 has an empty response"),
    "null response": ("d.jsonl", '{"q":"x","a":"y"}\n{"q":"x","a":null}', "Row 2 has an empty re"),
    "blank context": ("d.csv", "q,a\n,y\n", "Row 1 has an empty context"),
    "damaged UTF-8": (
        "d.csv",
        "q,a\nx,äöü\n".encode() + b"x,caf\xe9\n",
        "byte 0xe9 at offset 18, on line 3",
    ),
    "bom then latin-1": ("d.csv", b"\xef\xbb\xbfq,a\nx,\xe9\n", "0xe9 at offset 9, on line 2"),
    "too many fields": ("d.csv", "q,a\nx,y\nx,y,z\n", "is malformed"),
    "index by accident": ("d.csv", "q,a\nx,y,z\n", "more fields than its header"),
    "not json": ("d.jsonl", '{"q":"x","a":"y"}\n{"q":\n', r"d\.jsonl, line 2, is not JSON"),
    "json list": ("d.jsonl", '["x"]', "line 1, is not a JSON object"),
    "not gzip": ("d.csv.gz", "q,a\n", "could not be unpacked"),
    "not zip": ("d.csv.zip", "q,a\n", "could not be unpacked"),
    "not parquet": ("d.parquet", "q,a\n", "could not be read as Parquet"),
    "unknown kind": ("d.doc", "q,a\n", "of no known kind"),
    "no kind": ("d", "q,a\n", "of no known kind"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, content, message = BAD_FILES[case]
    path = write(tmp_path, name, content)
    with pytest.raises(DataError, match=message) as caught:
        Population.from_file(path, context="q", response="a")
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found"):
        Population.from_file(tmp_path / "none.csv", context="q", response="a")
    with pytest.raises(DataError, match="is a folder"):
        Population.from_file(tmp_path, context="q", response="a")
    with zipfile.ZipFile(tmp_path / "d.csv.zip", "w") as archive:
        archive.writestr("a.csv", "q,a\n")
        archive.writestr("b.csv", "q,a\n")
    with pytest.raises(DataError, match="holds 2 files"):
        Population.from_file(tmp_path / "d.csv.zip", context="q", response="a")


BAD_OPTIONS: dict[str, tuple[dict[str, object], str]] = {
    "no template": ({"context": ["film", "mood"]}, "2 context columns.*no template"),
    "no context": ({"context": []}, "No context column"),
    "unknown name": ({"template": "{{ film }} {{ stars }}"}, "row 1: 'stars' is undefined.*film"),
    "unknown key": (
        {"context": ["mood"], "template": "{{ {'fresh': 1}[mood] }}"},
        "fails at row 2",
    ),
    "malformed": ({"template": "{{ film "}, "template is malformed"),
    "unsafe": ({"template": "{{ film.__class__.__mro__ }}"}, "fails at row 1"),
    "blank result": ({"template": "{{ '' }}"}, "Row 1 has an empty context"),
    "bad query": ({"query": "stars >"}, "'stars >' could not be applied"),
    "query name": ({"query": "sters > 3"}, "could not be applied.*sters"),
    "query reach": ({"query": "stars > @seed"}, "could not be applied"),
    "query value": ({"query": "stars + 1"}, "query"),
    "query empty": ({"query": "stars > 9"}, "No row satisfies"),
    "limit": ({"limit": 0}, "limit is 0"),
    "no label": ({"label": "colour"}, "no column 'colour'"),
    "text weight": ({"weight": "film"}, "Row 1 has the weight 'alien'"),
}


@pytest.mark.parametrize("case", BAD_OPTIONS)
def test_bad_options_are_refused(case: str) -> None:
    options, message = BAD_OPTIONS[case]
    with pytest.raises(DataError, match=message):
        read_frame(**options)


def test_bad_cells_are_refused() -> None:
    df = FRAME.assign(key=["a", "b", "c", "b", "d"])
    with pytest.raises(DataError, match="Rows 2 and 4 have the same id 'b'"):
        read_frame(df, id="key")
    with pytest.raises(DataError, match="Row 3 has an empty id"):
        read_frame(FRAME.assign(key=["a", "b", " ", "b", "d"]), id="key")
    with pytest.raises(DataError, match="Row 4 has an empty label"):
        read_frame(FRAME.assign(mood=["a", "b", "c", None, "d"]), label="mood")
    for bad in (-1.0, np.inf, -np.inf):
        with pytest.raises(DataError, match=r"Row 2 has the weight .*positive number"):
            read_frame(FRAME.assign(w=[1.0, bad, 1.0, 1.0, 1.0]), weight="w")
    with pytest.raises(DataError, match="Row 2 has the weight"):
        read_frame(FRAME.assign(w=[1.0, np.nan, 1.0, 1.0, 1.0]), weight="w")
    with pytest.raises(DataError, match="no records"):
        read_frame(FRAME.iloc[:0])
    blanks = FRAME.assign(text=["", None, "  ", "kept", "x"], film=["a", "b", "c", "d", " "])
    assert read_frame(blanks, drop_missing=True).ids == ["4"]
    with pytest.raises(DataError, match="nothing is left"):
        read_frame(FRAME.assign(text=""), drop_missing=True)
    # The row named is the row of the file, whatever the query left out before it.
    with pytest.raises(DataError, match="Row 4 has an empty response"):
        read_frame(
            FRAME.assign(text=["", "b", "c", "", "d"]), query="stars > 2 and film != 'alien'"
        )


def test_constructor_checks_itself() -> None:
    with pytest.raises(DataError, match="no records"):
        Population([], [], [])
    with pytest.raises(DataError, match="2 ids but 1 responses"):
        Population(["a", "b"], ["x", "x"], ["y"])
    with pytest.raises(DataError, match="2 ids but 1 weights"):
        Population(["a", "b"], ["x", "x"], ["y", "y"], weights=np.ones(1))
    with pytest.raises(DataError, match="Row 2 has an empty context"):
        Population(["a", "b"], ["x", " "], ["y", "y"])
    with pytest.raises(DataError, match="same id"):
        Population(["a", "a"], ["x", "x"], ["y", "y"])
    with pytest.raises(DataError, match="the weight nan"):
        Population(["a"], ["x"], ["y"], weights=np.array([np.nan]))


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "whole", "train", "test"),
    [
        ("demo", "d33d7ada8830cc50", "d8986aca5b25ae82", "6c64b11fd8dd63b0"),
        ("rotten_tomatoes", "d33d7ada8830cc50", "5468ac9d7d1dd015", "4fe4d72779f13250"),
    ],
)
def test_the_shipped_configurations_read_what_they_always_read(name, whole, train, test) -> None:
    """Runs made before go on: ids, texts and splits are those of the first release."""
    config = load_config(name)
    section, split = config.population, config.split
    population = Population.from_file(
        section.path,
        seed=config.seed,
        **section.model_dump(exclude={"path", "dataset", "max_words"}),
    )
    sides = population.split(
        split.test_size, by=split.by, seed=config.seed, train_size=split.train_size
    )
    prints = [p.fingerprint[:16] for p in (population, *sides)]
    assert prints == [whole, train, test]
