"""Queries and templates: numbers where numbers are meant, text where text is."""

from __future__ import annotations

import pandas as pd
import pytest

from mop_jax.errors import DataError
from mop_jax.population import Population

CSV = (
    "zip,age,member,Q1 text,2nd,answer\n"
    "02139,34,True,good,a,yes\n"
    "10001,7,False,bad,b,no\n"
    "02140,050,True,fine,c,yes\n"
)


def read(tmp_path, **options) -> Population:
    (tmp_path / "d.csv").write_text(CSV, encoding="utf-8")
    return Population.from_file(
        tmp_path / "d.csv", **{"context": "zip", "response": "answer", **options}
    )


@pytest.mark.parametrize(
    ("query", "ids"),
    [
        ("zip == '02139'", "1"),
        ("zip in ['02139', '02140']", "13"),
        ("'02139' == zip", "1"),
        ("zip.str.startswith('02')", "13"),
        ("zip == 2139", "1"),
        ("age > 30", "13"),
        ("age >= 34 and zip != '02139'", "3"),
        ("member", "13"),
        ("not member and answer == 'no'", "2"),
        ("`Q1 text` == 'bad'", "2"),
        ("index > 1", "23"),
        ("age == '050'", "3"),
    ],
)
def test_queries(tmp_path, query, ids) -> None:
    assert read(tmp_path, query=query).ids == list(ids)


def test_queries_that_fail_say_why(tmp_path) -> None:
    with pytest.raises(DataError, match=r"not all cells of 'Q1 text' are numbers"):
        read(tmp_path, query="`Q1 text` > 3")
    with pytest.raises(DataError, match=r"'years'.*the columns are: zip, age"):
        read(tmp_path, query="years > 3")


def test_queries_on_dates_compare_dates() -> None:
    df = pd.DataFrame({"d": pd.to_datetime(["2020-01-31", "2021-01-31"]), "q": "x", "a": "y"})
    found = Population.from_dataframe(df, context="q", response="a", query="d > '1/1/2021'")
    assert found.ids == ["2"]


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ zip }}", "02139|10001|02140"),
        ("{{ age }}", "34|7|050"),
        ("{{ age + 1 }}", "35|8|51"),
        ("{{ age * 2 }} {{ 100 - age }}", "68 66|14 93|100 50"),
        ("{{ age | int + 1 }}", "35|8|51"),
        ("{{ 'old' if age > 30 else 'young' }}", "old|young|old"),
        ("{{ {34: 'x', 7: 'y', 50: 'z'}[age] }}", "x|y|z"),
        ("{{ {'34': 'x', '7': 'y', '050': 'z'}[age] }}", "x|y|z"),
        ("{{ 'a' if age == 50 else 'b' }}", "b|b|a"),
        ("{{ 'a' if age == '050' else 'b' }}", "b|b|a"),
        ("{{ 'a' if age in [34, 7] else 'b' }}", "a|a|b"),
        ("{{ 'in' if member else 'out' }}", "in|out|in"),
        ("{{ member }}", "True|False|True"),
        ("{{ zip[:2] }} {{ zip | length }}", "02 5|10 5|02 5"),
        ("{{ zip ~ '-' ~ age }}", "02139-34|10001-7|02140-050"),
        ('{{ row["Q1 text"] }}', "good|bad|fine"),
        ("{{ Q1_text }}", "good|bad|fine"),
        ("{{ _2nd }}{{ row['2nd'] }}", "aa|bb|cc"),
        ("{{ row.zip }}", "02139|10001|02140"),
        ("{{ (age / 2) | round | int }}", "17|4|25"),
        ("{{ age | round }} {{ age | abs }}", "34 34|7 7|50 50"),
    ],
)
def test_templates(tmp_path, template, expected) -> None:
    columns = ["zip", "age", "member", "Q1 text", "2nd"]
    assert read(tmp_path, context=columns, template=template).contexts == expected.split("|")


def test_templates_say_how_odd_names_are_written(tmp_path) -> None:
    for template in ("{{ Q1 text }}", "{{ Q1 }}"):
        with pytest.raises(DataError, match=r'row\["Q1 text"\].*Q1_text'):
            read(tmp_path, context="Q1 text", template=template)


def test_numbers_of_dataframes_are_written_as_people_do() -> None:
    df = pd.DataFrame({"age": [36.0, None, 7.5], "a": [3.0, 4.0, 5.0]})
    population = Population.from_dataframe(
        df,
        context="age",
        response="a",
        template="{{ age }} years old{{ ', grown' if age > 17 }}",
        drop_missing=True,
    )
    assert population.contexts == ["36 years old, grown", "7.5 years old"]
    assert population.responses == ["3", "5"]


@pytest.mark.parametrize("named", ["response", "group", "weight", "id", "label", "context"])
def test_a_dataframe_with_a_column_twice(named) -> None:
    df = pd.DataFrame([["x", "y", 1, 2]], columns=["q", "a", "w", "w"])
    options = {"context": "q", "response": "a", named: "w"}
    with pytest.raises(DataError, match="The column 'w' is there 2 times"):
        Population.from_dataframe(df, **options)
    assert Population.from_dataframe(df, context="q", response="a").responses == ["y"]


def test_dataframes_of_other_shapes() -> None:
    df = pd.DataFrame([["x", 36.0]])
    assert Population.from_dataframe(df, context="0", response="1").responses == ["36"]
    levels = pd.MultiIndex.from_tuples([("q", "1"), ("a", "2")])
    with pytest.raises(DataError, match="2 levels; accepted is one"):
        Population.from_dataframe(
            pd.DataFrame([["x", "y"]], columns=levels), context="q", response="a"
        )


def test_a_population_is_shown_in_one_line(tmp_path) -> None:
    assert repr(read(tmp_path, label="zip")) == "Population(3 records with labels)"
