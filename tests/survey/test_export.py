"""Tables of shares: what they hold, what is read back, and what is refused."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.survey import (
    Items,
    Question,
    items_from_cells,
    read_survey,
    to_cells_table,
    to_tidy_table,
    write_cells_table,
    write_tidy_table,
)

QUESTIONS = (
    Question("vote", "Did you vote?", ("Yes", "No, I did not")),
    Question("trust", "Do you trust them?", ("A lot", "Some", 'None "at all"'), ordered=True),
)
ITEMS = Items(
    questions=QUESTIONS,
    cells=pd.DataFrame({"age": ["18-29", "65+"], "sex": ["f", "m"]}),
    cell=np.array([0, 0, 1]),
    question=np.array([0, 1, 1]),
    counts=np.array([[1.0, 3, 0], [2, 0, 6], [1, 1, 1]]),
    people=np.array([4.0, 8, 3]),
)
BACK = {"cell_id": "cell_id", "share": "share", "n": "n"}


def test_the_five_columns() -> None:
    table = to_cells_table(ITEMS)
    assert list(table.columns) == ["cell_id", "question", "option", "share", "n"]
    assert table.iloc[:3].to_numpy().tolist() == [
        ["18-29|f", "vote", "Yes", 0.25, 4.0],
        ["18-29|f", "vote", "No, I did not", 0.75, 4.0],
        ["18-29|f", "trust", "A lot", 0.25, 8.0],
    ]
    assert len(table) == 8
    shares = np.array([[0.5, 0.5, 0], [0.2, 0.3, 0.5], [1, 0, 0]])
    assert to_cells_table(ITEMS, shares)["share"].tolist() == [0.5, 0.5, 0.2, 0.3, 0.5, 1, 0, 0]


def test_popfidelity_reads_them(tmp_path) -> None:
    popfidelity_io = pytest.importorskip("popfidelity.io")
    write_cells_table(tmp_path / "cells.csv", ITEMS)
    found = popfidelity_io.read_cells(tmp_path / "cells.csv")
    np.testing.assert_array_equal(found["trust"].shares, ITEMS.shares[1:])
    assert found["trust"].options == QUESTIONS[1].options
    assert found["trust"].labels == ("18-29|f", "65+|m")
    np.testing.assert_array_equal(found["trust"].counts, [8, 3])


def test_the_tidy_table(tmp_path) -> None:
    low, high = ITEMS.shares - 0.1, ITEMS.shares + 0.1
    write_tidy_table(tmp_path / "tidy.csv", ITEMS, ITEMS.shares, low, high)
    table = pd.read_csv(tmp_path / "tidy.csv")
    columns = ["age", "sex", "question", "option", "share", "low", "high", "n"]
    assert list(table.columns) == columns
    assert table.iloc[4, :4].tolist() == ["18-29", "f", "trust", 'None "at all"']
    assert table.iloc[4, 4:].tolist() == pytest.approx([0.75, 0.65, 0.85, 8])
    assert to_tidy_table(ITEMS)["low"].isna().all()
    assert not list(tmp_path.glob(".*"))


def test_refusals(tmp_path, caplog) -> None:
    def with_cells(cells):
        return Items(QUESTIONS, pd.DataFrame(cells), *(getattr(ITEMS, name) for name in
                     ("cell", "question", "counts", "people")))  # fmt: skip

    piped = with_cells({"age": ["18|29", "65+"]})
    with pytest.raises(DataError, match=r"covariate age has the value '18\|29', which holds '\|'"):
        write_cells_table(tmp_path / "c.csv", piped)
    assert not list(tmp_path.iterdir())
    assert len(to_tidy_table(piped)) == 8
    with pytest.raises(DataError, match="'share' has the name of another column"):
        to_tidy_table(with_cells({"share": ["a", "b"]}))
    for name in ("shares", "low", "high"):
        with pytest.raises(DataError, match=rf"{name} has shape \(2, 2\); it must be \(3, 3\)"):
            to_tidy_table(ITEMS, **{name: np.ones((2, 2))})
    bad = ITEMS.shares.copy()
    bad[1, 2] = np.nan
    with pytest.raises(DataError, match=r"Item 1 \(question trust\) has a share that is no finite"):
        to_cells_table(ITEMS, bad)


def test_items_that_nobody_answered_are_left_out(caplog) -> None:
    counts = ITEMS.counts.copy()
    counts[1] = 0
    items = Items(QUESTIONS, ITEMS.cells, ITEMS.cell, ITEMS.question, counts, counts.sum(1))
    assert len(to_cells_table(items)) == 5
    assert "1 of 3 items that nobody answered are left out" in caplog.text


TEXT = st.text("abc é–&,\"'ß;", min_size=1, max_size=6).map(lambda t: f"x{t}y")


@given(
    cells=st.lists(st.tuples(TEXT, TEXT), min_size=1, max_size=4, unique=True),
    seed=st.integers(0, 1000),
)
def test_what_is_exported_is_read_back(tmp_path_factory, cells, seed) -> None:
    cells = sorted(cells)
    rng = np.random.default_rng(seed)
    cell, question = map(np.ravel, np.indices((len(cells), 2)))
    counts = rng.gamma(0.5, 10, (len(cell), 3)) * (rng.random((len(cell), 3)) < 0.8)
    counts[:, 0] += 0.1
    counts[question == 0, 2] = 0
    frame = pd.DataFrame(cells, columns=["one", "two"])
    items = Items(QUESTIONS, frame, cell, question, counts, counts.sum(1))
    path = tmp_path_factory.mktemp("export") / "cells.csv"
    write_cells_table(path, items)
    again = items_from_cells(read_survey(path), QUESTIONS, ["one", "two"], **BACK)
    pd.testing.assert_frame_equal(again.cells, items.cells)
    np.testing.assert_array_equal(again.cell, items.cell)
    np.testing.assert_array_equal(again.question, items.question)
    np.testing.assert_allclose(again.counts, items.counts, rtol=1e-12)
    np.testing.assert_allclose(again.people, items.people, rtol=1e-12)
    path.unlink()
    write_tidy_table(path, items)
    again = items_from_cells(read_survey(path), QUESTIONS, ["one", "two"], share="share", n="n")
    np.testing.assert_allclose(again.counts, items.counts, rtol=1e-12)


def test_a_table_without_covariates() -> None:
    items = Items(
        QUESTIONS[:1], pd.DataFrame(index=range(1)), *map(np.array, ([0], [0], [[1.0, 1]], [2.0]))
    )
    assert to_cells_table(items)["cell_id"].tolist() == ["all", "all"]
