"""Frames, and raking: what margins determine, what they leave as it was, and what is refused."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mop_jax.errors import DataError
from mop_jax.survey import (
    Frame,
    Question,
    answers_from_wide,
    frame_of,
    load_frame,
    load_margins,
    rake,
)

COUNTS = pd.DataFrame(
    {"age": ["18-29", "18-29", "65+", "65+"], "sex": ["f", "m", "f", "m"], "count": [1, 2, 3, 4]}
)
CELLS = COUNTS[["age", "sex"]]
MARGINS = pd.DataFrame(
    {
        "variable": ["age", "age", "sex", "sex"],
        "level": ["18-29", "65+", "f", "m"],
        "share": [0.2, 0.8, 0.5, 0.5],
    }
)


@pytest.mark.parametrize("suffix", ["csv", "xlsx", "jsonl"])
def test_a_frame_is_read(tmp_path, suffix) -> None:
    path = tmp_path / f"frame.{suffix}"
    if suffix == "csv":
        COUNTS.to_csv(path, index=False)
    elif suffix == "xlsx":
        COUNTS.to_excel(path, index=False)
    else:
        COUNTS.to_json(path, orient="records", lines=True)
    frame = load_frame(path, ["sex", "age"], levels={"sex": ["f", "m"]})
    assert frame.covariates == ["sex", "age"]
    np.testing.assert_allclose(frame.shares, [0.1, 0.2, 0.3, 0.4])
    assert len(frame) == 4
    np.testing.assert_allclose(frame.margin("age"), [0.3, 0.7])
    # In the order of the cells that are asked for, whatever that of their columns.
    np.testing.assert_allclose(frame.shares_of(CELLS.iloc[::-1]), [0.4, 0.3, 0.2, 0.1])


def test_the_column_of_sizes() -> None:
    for name in ("Share", "n", "WEIGHT", "count"):
        sizes = COUNTS["count"] / (10 if name == "Share" else 1)
        df = CELLS.assign(**{name: sizes, "region": "x"})
        np.testing.assert_allclose(load_frame(df, ["age", "sex"]).shares, [0.1, 0.2, 0.3, 0.4])
    df = COUNTS.assign(n=[4, 3, 2, 1])
    frame = load_frame(df, ["age", "sex"], size="n")
    np.testing.assert_allclose(frame.shares, [0.4, 0.3, 0.2, 0.1])
    with pytest.raises(DataError, match="There are 2 columns named count, share, n or weight"):
        load_frame(df, ["age", "sex"])
    with pytest.raises(DataError, match="There are 0 columns named"):
        load_frame(CELLS, ["age", "sex"])
    with pytest.raises(DataError, match=r"no column 'nn'.*nearest is 'n'"):
        load_frame(df, ["age", "sex"], size="nn")
    assert load_frame(pd.DataFrame({"n": [7]}), []).shares.tolist() == [1.0]


REFUSED = {
    "covariate": (COUNTS.rename(columns={"sex": "sexx"}), r"no column 'sex'.*nearest is 'sexx'"),
    "missing": (COUNTS.assign(sex=["f", None, "f", "m"]), "Row 2 has no sex"),
    "level": (COUNTS.assign(sex=["f", "m", "f", "mm"]), r"Row 4 has sex 'mm', .*nearest is 'm'"),
    "twice": (COUNTS.assign(sex="f"), r"Rows 1 and 2 are of the same cell \(18-29, f\); sum"),
    "negative": (COUNTS.assign(count=[1, -2, 3, 4]), "Row 2 has the count '-2'.*zero or more"),
    "no count": (COUNTS.assign(count=[1, None, 3, 4]), "Row 2 has the count ''"),
    "nobody": (COUNTS.assign(count=0), "Nobody is in the frame"),
    "shares": (COUNTS.rename(columns={"count": "share"}), "shares that sum to 10; accepted is 1"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(tmp_path, case) -> None:
    df, message = REFUSED[case]
    levels = {"sex": ["f", "m"]}
    with pytest.raises(DataError, match=message):
        load_frame(df, ["age", "sex"], levels=levels)
    df.to_csv(tmp_path / "f.csv", index=False)
    with pytest.raises(DataError, match=message) as refused:
        load_frame(tmp_path / "f.csv", ["age", "sex"], levels=levels)
    assert str(refused.value).startswith(str(tmp_path / "f.csv"))


def test_frames_are_checked() -> None:
    with pytest.raises(DataError, match=r"shape \(3,\); it must be \(4,\)"):
        Frame(CELLS, np.ones(3))
    for bad in (-1.0, np.nan):
        with pytest.raises(DataError, match="finite, and zero or more"):
            Frame(CELLS, np.array([1, 1, 1, bad]))
    with pytest.raises(DataError, match="The cell 18-29, f is in the frame twice"):
        Frame(CELLS.assign(sex="f"), np.ones(4))


def test_cells_must_be_those_of_the_frame() -> None:
    frame = Frame(CELLS, np.ones(4))
    more = pd.concat([CELLS, pd.DataFrame({"age": ["30"], "sex": ["f"]})])
    with pytest.raises(DataError, match="The frame lacks the cell 30, f"):
        frame.shares_of(more)
    with pytest.raises(DataError, match="The frame has the cell 65\\+, m, which the survey"):
        frame.shares_of(CELLS.iloc[:3])
    empty = Frame(CELLS, np.array([1.0, 1, 1, 0]))
    assert empty.shares_of(CELLS.iloc[:3]).sum() == pytest.approx(1)
    with pytest.raises(DataError, match=r"no covariate 'gender'; accepted are age, sex"):
        frame.shares_of(CELLS.rename(columns={"sex": "gender"}))
    with pytest.raises(DataError, match=r"has the covariate 'sex', which is none of age"):
        frame.shares_of(CELLS[["age"]])


def test_the_frame_of_a_survey() -> None:
    df = CELLS.loc[[0, 0, 1, 3]].assign(q=["a", "b", "a", None], r="a", w=[1, 2, 3, 2])
    questions = [Question(name, name, ("a", "b")) for name in "qr"]
    answers = answers_from_wide(df, questions, ["age", "sex"], weight="w")
    for data in (answers, answers.items()):
        frame = frame_of(data)
        # The cell whose only member left a question out is as large as if they had not.
        np.testing.assert_allclose(frame.shares, [3 / 8, 3 / 8, 2 / 8])
        assert frame.cells.to_numpy().tolist() == CELLS.loc[[0, 1, 3]].to_numpy().tolist()
    some = frame_of(answers.without(["3"]))
    np.testing.assert_allclose(some.shares, [3 / 5, 2 / 5])


@given(
    start=arrays(np.float64, (2, 3), elements=st.floats(0.05, 20)),
    a=arrays(np.float64, 2, elements=st.floats(0.05, 5)),
    b=arrays(np.float64, 3, elements=st.floats(0.05, 5)),
)
def test_raking_matches_margins_and_keeps_odds_ratios(start, a, b) -> None:
    grid = [(x, y) for x in "pq" for y in "uvw"]
    cells = pd.DataFrame(grid, columns=["one", "two"])
    a, b = a / a.sum(), b / b.sum()
    margins = pd.DataFrame(
        {
            "variable": ["one"] * 2 + ["two"] * 3,
            "level": list("pq") + list("uvw"),
            "share": [*a, *b],
        }
    )
    # The order of rows means nothing.
    frame = rake(cells, margins.sample(frac=1, random_state=0), start.ravel())
    found = frame.shares.reshape(2, 3)
    np.testing.assert_allclose(found.sum(1), a, atol=1e-8)
    np.testing.assert_allclose(found.sum(0), b, atol=1e-8)

    def odds_ratios(t):
        return np.log(t[0, 1:] / t[0, :1]) - np.log(t[1, 1:] / t[1, :1])

    np.testing.assert_allclose(odds_ratios(found), odds_ratios(start), atol=1e-8)


def test_raking_from_a_uniform_start_is_independence(tmp_path) -> None:
    MARGINS.to_csv(tmp_path / "m.csv", index=False)
    for margins in (MARGINS, tmp_path / "m.csv"):
        np.testing.assert_allclose(rake(CELLS, margins).shares, [0.1, 0.1, 0.4, 0.4])
    counts = MARGINS.rename(columns={"share": "count"}).assign(count=[20, 80, 50, 50])
    np.testing.assert_allclose(rake(CELLS, counts).shares, [0.1, 0.1, 0.4, 0.4])
    # A covariate without a margin is as it was at the start.
    only = rake(CELLS, MARGINS.iloc[:2], np.array([1.0, 2, 3, 4]))
    np.testing.assert_allclose(only.shares, [0.2 / 3, 0.4 / 3, 0.8 * 3 / 7, 0.8 * 4 / 7])
    zero = rake(CELLS, MARGINS.assign(share=[0, 1, 0.5, 0.5]))
    np.testing.assert_allclose(zero.shares, [0, 0, 0.5, 0.5])


MARGINS_REFUSED = {
    "sum": (MARGINS.assign(share=[0.2, 0.8, 0.5, 0.6]), "margin of sex has shares that sum to 1.1"),
    "total": (
        MARGINS.rename(columns={"share": "n"}).assign(n=[20, 80, 50, 60]),
        "margin of sex sums to 110, that of age to 100",
    ),
    "level": (MARGINS.assign(level=["18-29", "65", "f", "m"]), r"Row 2 has age '65'.*is '65\+'"),
    "lacking": (MARGINS.iloc[[0, 1, 2]].assign(share=[0.2, 0.8, 1.0]), "of sex lacks 'm'"),
    "variable": (
        MARGINS.assign(variable=["age", "age", "sexx", "sexx"]),
        r"Row 3 has the variable 'sexx'; the nearest is 'sex'",
    ),
    "twice": (MARGINS.assign(level=["18-29", "18-29", "f", "m"]), "Row 2 has age '18-29' a second"),
    "negative": (MARGINS.assign(share=[-0.2, 1.2, 0.5, 0.5]), "Row 1 has the share '-0.2'"),
    "blank": (MARGINS.assign(level=["18-29", None, "f", "m"]), "Row 2 has no level"),
    "column": (MARGINS.rename(columns={"level": "levle"}), r"no column 'level'.*is 'levle'"),
    "size": (MARGINS.drop(columns="share"), "There are 0 columns named"),
}


@pytest.mark.parametrize("case", MARGINS_REFUSED)
def test_margins_that_are_refused(case) -> None:
    margins, message = MARGINS_REFUSED[case]
    with pytest.raises(DataError, match=message):
        rake(CELLS, margins)
    with pytest.raises(DataError, match=message):
        load_margins(margins, CELLS)


def test_empty_cells_that_margins_need() -> None:
    with pytest.raises(DataError, match="No cell with people has sex 'f', of which"):
        rake(CELLS, MARGINS, np.array([0.0, 1, 0, 1]))
    # Women are old and men young here: the margins cannot differ, and they do.
    with pytest.raises(
        DataError, match=r"No frame of these cells has the margins: .* off its share"
    ):
        rake(CELLS, MARGINS, np.array([0.0, 1, 1, 0]))


def test_an_ordinary_frame_says_nothing(caplog) -> None:
    caplog.set_level(logging.INFO, logger="mop_jax")
    load_frame(COUNTS, ["age", "sex"])
    assert caplog.text == ""
