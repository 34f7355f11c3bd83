"""Answers of individuals and tables by cell: what is kept, counted, said and refused."""

from __future__ import annotations

import logging

import numpy as np
import pandas as pd
import pyreadstat
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.survey import (
    Answers,
    Items,
    Question,
    answers_from_long,
    answers_from_wide,
    codebook_of,
    items_from_cells,
    questions_from_table,
    read_survey,
)

VOTE = Question("vote", "Did you vote?", ("Yes", "No"))
TRUST = Question("trust", "How much do you trust them?", ("A lot", "Some", "None"), ordered=True)
QUESTIONS = (VOTE, TRUST)
WIDE = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "age": ["65+", "18-29", "18-29", "65+"],
        "sex": ["f", "f", "f", "m"],
        "w": [1.0, 2.0, 4.0, 1.0],
        "str": ["n", "s", "s", "n"],
        "cluster": [1, 2, 2, 1],
        "vote": ["Yes", "no", "YES", None],
        "trust": ["Some", "", " none ", "A lot"],
    }
)
CELLS = pd.DataFrame({"age": ["18-29", "65+", "65+"], "sex": ["f", "f", "m"]})
COLUMNS = {"id": "id", "weight": "w"}


@pytest.fixture
def said(caplog):
    """What was said, as one text."""
    caplog.set_level(logging.INFO, logger="mop_jax")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def wide(df=WIDE, questions=QUESTIONS, covariates=("age", "sex"), **options) -> Answers:
    return answers_from_wide(df, questions, covariates, **options)


def melted(df=WIDE, questions=("vote", "trust")) -> pd.DataFrame:
    others = [name for name in df.columns if name not in questions]
    return df.melt(others, list(questions), "item", "answer")


def long(df, questions=QUESTIONS, covariates=("age", "sex"), **options) -> Answers:
    names = {"id": "id", "question_column": "item", "answer_column": "answer"}
    return answers_from_long(df, questions, covariates, **(names | options))


def assert_equal(one: Items, two: Items) -> None:
    assert one.questions == two.questions
    pd.testing.assert_frame_equal(one.cells, two.cells)
    for name in ("cell", "question", "people"):
        np.testing.assert_array_equal(getattr(one, name), getattr(two, name))
    np.testing.assert_allclose(one.counts, two.counts, rtol=1e-12)


def test_a_wide_table(said) -> None:
    answers = wide(**COLUMNS, strata="str", psu="cluster")
    pd.testing.assert_frame_equal(answers.cells, CELLS)
    assert answers.respondents == ["a", "b", "c", "d"]
    # Weights of mean one: 1, 2, 4, 1 over their mean 2.
    assert answers.weights.to_dict() == {"a": 0.5, "b": 1.0, "c": 2.0, "d": 0.5}
    assert answers.strata.to_dict() == {"a": "n", "b": "s", "c": "s", "d": "n"}
    assert answers.psu["b"] == "2"
    # A missing answer passes over the item, not the person.
    assert "2 of 8 answers are missing" in said()
    assert answers.frame.drop(columns="weight").to_numpy().tolist() == [
        ["a", 1, 0, 0], ["a", 1, 1, 1], ["b", 0, 0, 1], ["c", 0, 0, 0], ["c", 0, 1, 2],
        ["d", 2, 1, 0],
    ]  # fmt: skip
    items = answers.items()
    assert items.cell.tolist() == [0, 0, 1, 1, 2]
    assert items.question.tolist() == [0, 1, 0, 1, 1]
    assert items.counts.tolist() == [[2, 1, 0], [0, 0, 2], [0.5, 0, 0], [0, 0.5, 0], [0.5, 0, 0]]
    assert items.people.tolist() == [2, 1, 1, 1, 1]


def test_without_ids_and_weights_and_covariates() -> None:
    answers = wide(covariates=())
    assert answers.respondents == ["1", "2", "3", "4"]
    assert answers.covariates == []
    assert answers.items().counts.tolist() == [[2, 1, 0], [1, 1, 1]]


def test_a_long_table_says_the_same(said) -> None:
    expected = wide(**COLUMNS, strata="str", psu="cluster")
    table = melted().sample(frac=1, random_state=3)
    answers = long(table, weight="w", strata="str", psu="cluster")
    assert_equal(answers.items(), expected.items())
    assert answers.weights.sort_index().equals(expected.weights)
    assert answers.strata.sort_index().equals(expected.strata)
    other = table.assign(item=table["item"].replace("trust", "other"))
    assert long(other, [VOTE]).items().counts.sum() == 3
    assert (
        "the rows of 1 questions that the codebook does not name were passed over (other)" in said()
    )


def test_answers_are_taken_by_respondent() -> None:
    answers = wide(**COLUMNS, strata="str")
    left = answers.without(["a", "c"])
    assert left.respondents == ["b", "d"]
    assert left.strata.to_dict() == {"b": "s", "d": "n"}
    assert left.weights.to_dict() == {"b": 1.0, "d": 0.5}
    pd.testing.assert_frame_equal(left.cells, CELLS)
    assert answers.of(["a"]).respondents == ["a"]
    train, test = answers.split_respondents(0.5, seed=1)
    assert len(train.respondents) == len(test.respondents) == 2
    assert {*train.respondents, *test.respondents} == {"a", "b", "c", "d"}
    assert answers.split_respondents(0.5, seed=1)[1].respondents == test.respondents
    with pytest.raises(DataError, match="leaves none on one side"):
        answers.split_respondents(0.05, seed=1)


def test_who_is_left_out_is_counted(said) -> None:
    df = WIDE.assign(w=[1, 0, 2, 3], trust=["Some", "", None, None])
    answers = wide(df, **COLUMNS)
    assert answers.respondents == ["a", "c"]
    assert "1 of 4 respondents have the weight 0 and were left out" in said()
    assert "1 of 3 respondents answered no question and were left out" in said()
    assert answers.weights.mean() == 1
    assert long(melted(df), weight="w").respondents == ["a", "c"]


def test_missing_covariates(said) -> None:
    df = WIDE.assign(sex=["f", None, " ", "m"])
    with pytest.raises(DataError, match=r"Row 2 has no sex .*set covariate_missing to keep"):
        wide(df)
    kept = wide(df, covariate_missing="keep")
    assert kept.cells["sex"].tolist() == ["(missing)", "f", "m"]
    assert len(kept.respondents) == 4
    assert "2 of 4 respondents have no sex and are in the category '(missing)'" in said()
    assert wide(df, covariate_missing="drop").respondents == ["1", "4"]
    assert "2 of 4 respondents have no sex and were left out" in said()
    with pytest.raises(DataError, match="covariate_missing is 'no'; accepted are"):
        wide(df, covariate_missing="no")
    # Of those who do not count nothing is asked.
    assert wide(df.assign(w=[1, 0, 0, 1]), weight="w").respondents == ["1", "4"]
    with pytest.raises(DataError, match="Every respondent is left out"):
        wide(df.assign(sex=None), covariate_missing="drop")


REFUSED = {
    "no option": ({"vote": ["Yes", "Nay", "No", "No"]},
                  r"Row 2, column 'vote': 'Nay' is no option of question vote.*is 'No'"),
    "no weight": ({"w": [1, None, 1, 1]}, r"Row 2 has the weight '' \(column 'w'\)"),
    "negative weight": ({"w": [1, 1, -1, 1]}, r"Row 3 has the weight '-1' \(column 'w'\)"),
    "no weights": ({"w": 0}, "Every respondent is left out"),
    "same id": ({"id": ["a", "b", "a", "c"]}, "Rows 1 and 3 have the same id 'a'"),
    "no id": ({"id": ["a", "", "b", "c"]}, r"Row 2 has no id \(column 'id'\)"),
    "no stratum": ({"str": ["n", None, "s", "s"]}, r"Row 2 has no stratum \(column 'str'\)"),
    "no unit": ({"cluster": ["n", "s", None, "s"]}, "Row 3 has no primary sampling unit"),
    "no answers": ({"trust": None}, "Question trust has no answers"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refusals(case) -> None:
    changes, message = REFUSED[case]
    with pytest.raises(DataError, match=message) as refused:
        wide(WIDE.assign(**changes), **COLUMNS, strata="str", psu="cluster")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["id", "weight", "strata", "psu"])
def test_columns_that_are_not_there(name) -> None:
    with pytest.raises(DataError, match=r"no column 'ags'.*nearest is 'age'"):
        wide(**{name: "ags"})


def test_other_columns_that_are_not_there() -> None:
    with pytest.raises(DataError, match=r"no column 'ages'.*nearest is 'age'"):
        wide(covariates=["ages"])
    with pytest.raises(DataError, match="'age' is named twice"):
        wide(covariates=["age", "age"])
    with pytest.raises(DataError, match=r"Question vot: There is no column 'vot'.*is 'vote'"):
        wide(questions=[Question("vot", "x", ("Yes", "No"))])
    with pytest.raises(DataError, match=r"^my\.csv: Question vot"):
        wide(questions=[Question("vot", "x", ("Yes", "No"))], source="my.csv")
    with pytest.raises(DataError, match="Question vote has no text, and column"):
        wide(questions=[Question("vote", " ", ("Yes", "No"))])


LONG_REFUSED = {
    "covariate": ("age", 4, "30-44", "Rows 1 and 5 of respondent 'a' say '65\\+' and '30-44'"),
    "weight": ("w", 5, 9.0, "Rows 2 and 6 of respondent 'b' say '2' and '9' in column 'w'"),
    "stratum": ("str", 5, "n", "Rows 2 and 6 of respondent 'b' say 's' and 'n' in column 'str'"),
    "twice": (
        "item",
        4,
        "vote",
        "Rows 1 and 5 are both answers of respondent 'a' to",
    ),
    "question": ("item", 3, " ", "Row 4 has no question"),
    "answer": ("answer", 5, "Sme", "Row 6, column 'answer': 'Sme' is no option.*is 'Some'"),
    "id": ("id", 2, None, "Row 3 has no id"),
}


@pytest.mark.parametrize("case", LONG_REFUSED)
def test_long_refusals(case) -> None:
    column, row, value, message = LONG_REFUSED[case]
    df = melted()
    df.loc[row, column] = value
    with pytest.raises(DataError, match=message):
        long(df, weight="w", strata="str", psu="cluster")


def test_more_long_refusals() -> None:
    with pytest.raises(DataError, match="Question x has no answers"):
        long(melted(), [VOTE, Question("x", "x", ("a", "b"))])
    with pytest.raises(DataError, match="Question vote has no text; give it one"):
        long(melted(), [Question("vote", "", ("Yes", "No"))])
    with pytest.raises(DataError, match="no column 'question'"):
        long(melted(), question_column="question")
    with pytest.raises(DataError, match="no column 'text'"):
        long(melted(), answer_column="text")


def test_codes_and_missing_answers(said) -> None:
    df = pd.DataFrame({"V1": [1.0, 2.0, 9.0, np.nan], "V2": ["0", "1", "Refused", "-9"]})
    entries = [
        {"id": "vote", "column": "V1", "text": "x", "recode": {"1": "Yes", "2": "No", "9": None}},
        {"id": "trust", "column": "V2", "text": "y", "options": ["0", "1", "Refused"]},
    ]
    book = codebook_of(entries, missing=["Refused", "-9"])
    assert wide(df, book, ()).items().counts.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert "3 of 8 answers are missing" in said()
    table = df.assign(id=list("abcd")).melt(["id"], ["V1", "V2"], "item", "answer")
    # In a long table, a question may be called by its column.
    assert long(table, book, ()).items().counts.tolist() == [[1, 1, 0], [1, 1, 1]]


QUALTRICS = (
    "ResponseId,Q1,age\n"
    "Response ID,Did you vote?,Age group\n"
    '"{""ImportId"":""_recordId""}","{""ImportId"":""QID1""}","{""ImportId"":""QID2""}"\n'
    "R_1,Yes,18-29\nR_2,No,65+\n"
)
LIMESURVEY = '"id. Response ID","Q1. Did you vote?","age. Age"\n"1","Yes","18-29"\n"2","No","65+"\n'


@pytest.mark.parametrize(
    ("content", "id", "ids"),
    [(QUALTRICS, "ResponseId", ["R_1", "R_2"]), (LIMESURVEY, "id", ["1", "2"])],
)
def test_exports_as_they_come(tmp_path, said, content, id, ids) -> None:
    (tmp_path / "d.csv").write_text(content)
    book = codebook_of([{"id": "vote", "column": "Q1", "options": ["Yes", "No"]}])
    for table in (read_survey(tmp_path / "d.csv"), pd.read_csv(tmp_path / "d.csv", dtype=str)):
        answers = wide(table, book, ["age"], id=id)
        assert answers.questions[0].text == "Did you vote?"
        assert answers.respondents == ids
        assert answers.items().counts.tolist() == [[1, 0], [0, 1]]
    assert "the text is taken from the data: Did you vote?" in said()


@pytest.mark.parametrize("value_labels", [True, False])
def test_a_file_of_a_statistics_package(tmp_path, value_labels) -> None:
    df = pd.DataFrame({"age": [1.0, 2, 1], "vote": [1.0, 2, 9], "w": [1.0, 1, 1]})
    labels = {"vote": {1: "Yes", 2: "No", 9: "Refused"}, "age": {1: "18-29", 2: "65+"}}
    pyreadstat.write_sav(
        df,
        tmp_path / "d.sav",
        column_labels=["Age", "Did you vote?", ""],
        variable_value_labels=labels,
        missing_ranges={"vote": [9]},
    )
    table = read_survey(tmp_path / "d.sav", value_labels=value_labels)
    answers = wide(table, questions_from_table(table, ["vote"]), ["age"], weight="w")
    assert answers.questions == (VOTE,)
    assert answers.cells["age"].tolist() == (["18-29", "65+"] if value_labels else ["1", "2"])
    assert answers.items().counts.tolist() == [[1, 0], [0, 1]]


def test_answers_are_checked() -> None:
    answers = wide(**COLUMNS)

    def changed(**columns):
        return Answers(QUESTIONS, CELLS, answers.frame.assign(**columns))

    with pytest.raises(DataError, match="no column 'weight'"):
        Answers(QUESTIONS, CELLS, answers.frame.drop(columns="weight"))
    with pytest.raises(DataError, match="finite and positive"):
        changed(weight=0.0)
    with pytest.raises(DataError, match="cell outside 0 to 2"):
        changed(cell=3)
    with pytest.raises(DataError, match="question outside 0 to 1"):
        changed(question=-1)
    for option in (2, 3, -1):
        with pytest.raises(DataError, match="option that their question does not have"):
            changed(option=option)
    with pytest.raises(DataError, match="answers a question twice"):
        changed(question=0, option=0)
    with pytest.raises(DataError, match="several cells or weights"):
        changed(cell=[0, 1, 1, 1, 1, 1])


TABLE = pd.DataFrame(
    {
        "cell_id": ["f|65+"] * 2 + ["f|18-29"] * 2 + ["m|65+"],
        "question": "vote",
        "option": ["No", "Yes", "Yes", "No", "Yes"],
        "share": [0.25, 0.75, 0.4, 0.6, 1.0],
        "n": [8.0, 8, 10, 10, 3],
    }
)
SHARES = {"cell_id": "cell_id", "share": "share", "n": "n"}


def cells(df=TABLE, questions=(VOTE,), covariates=("sex", "age"), **options) -> Items:
    return items_from_cells(df, questions, covariates, **(options or SHARES))


def test_a_table_by_cell() -> None:
    items = cells()
    assert items.cells.to_numpy().tolist() == [["f", "18-29"], ["f", "65+"], ["m", "65+"]]
    np.testing.assert_allclose(items.counts, [[4, 6], [6, 2], [3, 0]])
    np.testing.assert_allclose(items.people, [10, 8, 3])
    apart = TABLE.assign(sex=TABLE["cell_id"].str[0], age=TABLE["cell_id"].str[2:])
    assert_equal(cells(apart, share="share", n="n"), items)
    counted = TABLE.assign(count=TABLE["share"] * TABLE["n"])
    assert_equal(cells(counted, cell_id="cell_id", count="count"), items)


def test_missing_answers_and_empty_items_of_a_table(said) -> None:
    book = codebook_of([{"id": "vote", "text": "x", "options": ["Yes", "No"], "missing": ["DK"]}])
    table = TABLE.assign(option=["DK", "Yes", "Yes", "No", "Yes"], n=[8, 8, 10, 10, 0])
    items = cells(table, book)
    np.testing.assert_allclose(items.counts, [[4, 6], [6, 0]])
    np.testing.assert_allclose(items.people, [10, 6])
    assert "missing answers of 2 people were left out" in said()
    assert "1 of 3 items have no people and were left out" in said()
    with pytest.raises(DataError, match="Nobody answered anything"):
        cells(table.assign(n=0), book)


CELLS_REFUSED = {
    "sum": ({"share": [0.25, 0.7, 0.4, 0.6, 1.0]}, "row 1 sum to 0.95 .*accepted is 1"),
    "percent": ({"share": [25, 75, 40, 60, 100]}, "sum to 100 .*accepted is 1"),
    "negative": ({"share": [-0.25, 1.25, 0.4, 0.6, 1.0]}, "Row 1 has the share '-0.25'"),
    "no share": ({"share": [0.25, 0.75, None, 0.6, 1.0]}, "Row 3 has the share ''"),
    "no people": ({"n": [8, None, 10, 10, 3]}, "Row 2 has the number of people ''"),
    "people": ({"n": [8, 8, 10, 11, 3]}, r"Row 3 says 10 people in column 'n', .* 11"),
    "option": ({"option": ["No", "Yess", "Yes", "No", "Yes"]}, "Row 2, .*nearest is 'Yes'"),
    "no option": ({"option": ["No", None, "Yes", "No", "Yes"]}, "Row 2 has no option"),
    "duplicate": ({"option": ["No", "no", "Yes", "No", "Yes"]}, "Rows 1 and 2 are of the same"),
    "cell": ({"cell_id": ["f"] * 5}, r"Row 1 has the cell 'f' .*not made of 2 texts"),
    "no question": ({"question": [""] + ["vote"] * 4}, "Row 1 has no question"),
}  # fmt: skip


@pytest.mark.parametrize("case", CELLS_REFUSED)
def test_refusals_of_tables_by_cell(case) -> None:
    changes, message = CELLS_REFUSED[case]
    with pytest.raises(DataError, match=message):
        cells(TABLE.assign(**changes))


def test_more_refusals_of_tables_by_cell() -> None:
    for columns in ({"share": "share"}, {"n": "n"}, {"share": "share", "n": "n", "count": "n"}):
        with pytest.raises(DataError, match="either share and n, or count"):
            cells(cell_id="cell_id", **columns)
    apart = TABLE.assign(sex=["f", None, "f", "f", "m"], age="65+")
    with pytest.raises(DataError, match="Row 2 has no sex"):
        cells(apart, share="share", n="n")
    with pytest.raises(DataError, match="Question trust has no answers"):
        cells(questions=QUESTIONS)
    with pytest.raises(DataError, match=r"^x\.csv: There is no column 'm'"):
        cells(share="share", n="m", cell_id="cell_id", source="x.csv")


PEOPLE = st.lists(
    st.tuples(
        st.sampled_from(["18-29", "65+"]),
        st.sampled_from(["f", "m", "x"]),
        st.floats(0.01, 100),
        st.sampled_from(["Yes", "No", None]),
        st.sampled_from(["A lot", "Some", "None", None]),
    ),
    min_size=1,
    max_size=30,
).filter(lambda people: any(p[3] for p in people) and any(p[4] for p in people))


@given(PEOPLE)
def test_counts_are_conserved_and_long_is_wide(people) -> None:
    """Total weight in is total counts out, by question and option, in either form."""
    df = pd.DataFrame(people, columns=["age", "sex", "w", "vote", "trust"], dtype=object)
    df.insert(0, "id", [f"r{at}" for at in range(len(df))])
    answers = wide(df, **COLUMNS)
    items = answers.items()
    weights = df["w"].astype(float) / df.loc[df[["vote", "trust"]].notna().any(axis=1), "w"].mean()
    for at, question in enumerate(QUESTIONS):
        for m, option in enumerate(question.options):
            expected = weights[df[question.id] == option].sum()
            found = items.counts[items.question == at, m].sum()
            assert found == pytest.approx(expected, rel=1e-9)
        assert items.people[items.question == at].sum() == df[question.id].notna().sum()
    assert_equal(long(melted(df), weight="w").items(), items)
    # Parts add up to the whole.
    some = answers.respondents[::2]
    parts = answers.of(some).items().counts.sum() + answers.without(some).items().counts.sum()
    assert parts == pytest.approx(items.counts.sum(), rel=1e-9)
