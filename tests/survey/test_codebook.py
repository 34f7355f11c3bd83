"""Codebooks: what they say, what files say in their place, and what is refused."""

from __future__ import annotations

import pandas as pd
import pyreadstat
import pytest

from mop_jax.errors import DataError
from mop_jax.population.table import table_of
from mop_jax.survey import (
    Codebook,
    Question,
    as_codebook,
    codebook_of,
    load_codebook,
    questions_from_table,
    read_survey,
    survey_table,
)

CODEBOOK = """
missing: [Refused, -9]
questions:
  - id: vote
    text: Did you
      vote?
    options: [Yes, No]
  - id: ideology
    column: V201
    text: Where are you?
    recode: {1: Liberal, 2: Moderate, 3: Conservative, 8: Refused, 9: ~}
    ordered: true
  - id: trust
    text: Do you trust them?
    options: [1, 2, Refused]
    missing: [Don't know]
"""


@pytest.fixture
def write(tmp_path):
    def write(content):
        (tmp_path / "book.yaml").write_text(content, "utf-8")
        return tmp_path / "book.yaml"

    return write


def test_a_codebook(write) -> None:
    book = load_codebook(write(CODEBOOK))
    assert book.questions == (
        Question("vote", "Did you vote?", ("Yes", "No")),
        Question("ideology", "Where are you?", ("Liberal", "Moderate", "Conservative"), True),
        Question("trust", "Do you trust them?", ("1", "2", "Refused")),
    )
    vote, ideology, trust = book.codings
    assert (vote.column, ideology.column) == ("vote", "V201")
    assert [vote.option(a) for a in ("Yes", " no ", "refused", "-9.0", "", None)] == [0, 1] + [
        None
    ] * 4
    assert [ideology.option(a) for a in ("1", "2.0", "conservative", "8", "9")] == [
        0,
        1,
        2,
        None,
        None,
    ]
    # Listed among the options, an answer is kept as one.
    assert [trust.option(a) for a in ("1.0", "Refused", "Don't know", "-9")] == [0, 2, None, None]
    with pytest.raises(DataError, match=r"Row 7: 'Liberl' is no option.*nearest is 'Liberal'"):
        ideology.option("Liberl", "Row 7")
    with pytest.raises(DataError, match="'4' is no option of question ideology"):
        ideology.option("4")


def test_codes_may_stand_for_options_that_are_numbers(write) -> None:
    """A reversed scale: the code decides, not the option that looks like it."""
    book = load_codebook(write("- {id: a, text: x, options: [1, 2], recode: {1: 2, 2: 1}}"))
    assert [book.codings[0].option(a) for a in ("1", "2")] == [1, 0]


REFUSED = {
    "- {id: a, text: x}": r"line 1: Question a has no options; list them",
    "- {id: a, text: x, options: []}": "has 0 option",
    "- {id: a, text: x, options: [Yes]}": "has 1 option",
    "- {id: a, text: x, options: [Yes, ' yes']}": "differ in case or blanks at most",
    "- {id: a, text: x, options: [Yes, '']}": "an option without a text",
    "\n- {id: a, text: x, options: [true, false]}": "line 2: .*true, which is no text; put it",
    "- {id: a, text: x, options: Yes}": "options is 'Yes'; accepted is a list",
    "- {id: a, text: x, optons: [Yes, No]}": "field 'optons'.*nearest is 'options'",
    "- {text: x, options: [Yes, No]}": "no id",
    "- vote": "'vote' is no question",
    "- {id: a, text: x, options: [Yes, No], ordered: 1}": "ordered is 1; accepted is true or false",
    "- {id: a, text: x, options: [Yes, No], recode: [1]}": r"recode is \[1\]; accepted are codes",
    "- {id: a, text: x, options: [Yes, No], recode: {1: Yse}}": "The code '1': 'Yse' is no option",
    "- {id: a, text: x, options: [Yes, No]}\n" * 2: "Question a is there twice",
    "questions: {a: x}": "holds no list of questions",
    "questions: []": "holds no questions",
    "question: []\nquestions: []": "'question' is no part.*nearest is 'questions'",
    "missing: Refused\nquestions: []": "missing is 'Refused'; accepted is a list",
    "- {id: a, id: b}": "'id' is given a second time",
    "- [": "is not valid YAML",
}


@pytest.mark.parametrize("content", REFUSED)
def test_refusals(write, content) -> None:
    with pytest.raises(DataError, match=REFUSED[content]) as refused:
        load_codebook(write(content))
    assert str(refused.value).count("\n") == 0


def test_files_that_are_no_codebooks(tmp_path) -> None:
    with pytest.raises(DataError, match=r"none\.yaml was not found"):
        load_codebook(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="is a folder"):
        load_codebook(tmp_path)
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="could not be read as UTF-8"):
        load_codebook(tmp_path / "b.yaml")


def test_a_column_that_the_table_lacks() -> None:
    table = table_of(pd.DataFrame({"voted": ["Yes"]}))
    book = as_codebook([Question("votd", "x", ("Yes", "No"))])
    with pytest.raises(DataError, match=r"Question votd: There is no column 'votd'.*is 'voted'"):
        book.completed(table)
    with pytest.raises(DataError, match="holds no questions"):
        Codebook(())


def save(tmp_path, kind="sav"):
    df = pd.DataFrame(
        {
            "vote": [1.0, 2.0, 99.0, 2.0],
            "scale": [1.0, 3.0, 5.0, 8.0],
            "age": [30.0, 40.0, 50.0, 60.0],
            "sex": ["m", "f", "m", "m"],
        }
    )
    labels = {
        "vote": {2: "No", 1: "Yes", 99: "Refused"},
        "scale": {5: "Agree", 1: "Disagree", 8: "Don't know"},
        "sex": {"f": "Female", "m": "Male"},
    }
    names = ["Did you vote?", "They are honest.", "Age", "Gender"]
    path = tmp_path / f"d.{kind}"
    pyreadstat.write_sav(
        df,
        path,
        column_labels=names,
        variable_value_labels=labels,
        missing_ranges={"vote": [{"lo": 98, "hi": 99}]},
    )
    return path


@pytest.mark.parametrize("value_labels", [True, False])
def test_a_file_that_is_its_own_codebook(tmp_path, value_labels) -> None:
    table = read_survey(save(tmp_path), value_labels=value_labels)
    book = questions_from_table(table, ["vote", "scale"], missing=["Don't know"], ordered=["scale"])
    assert book.questions == (
        Question("vote", "Did you vote?", ("Yes", "No")),
        Question("scale", "They are honest.", ("Disagree", "3", "Agree"), True),
    )
    answers = [
        [coding.option(text) for text in table.texts(coding.column)] for coding in book.codings
    ]
    assert answers == [[0, 1, None, 1], [0, 1, 2, None]]
    every = questions_from_table(table, ordered=True)
    # A scale with answers that have no label is none that can be told from a number.
    assert [q.id for q in every.questions] == ["vote", "sex"]
    assert all(q.ordered for q in every.questions)
    assert every.questions[1].options in (("Female", "Male"), ("Male", "Female"))


def test_a_codebook_takes_options_and_texts_from_the_file(tmp_path, write) -> None:
    table = read_survey(save(tmp_path))
    book = load_codebook(write("- {id: vote}\n- {id: honest, column: scale, ordered: true}"), table)
    assert book.completed(table).questions == (
        Question("vote", "Did you vote?", ("Yes", "No")),
        Question("honest", "They are honest.", ("Disagree", "3", "Agree", "Don't know"), True),
    )
    with pytest.raises(DataError, match="Question age has no options"):
        load_codebook(write("- {id: age}"), table)
    with pytest.raises(DataError, match=r"no column 'agee'.*nearest is 'age'"):
        load_codebook(write("- {id: agee}"), table)


def test_tables_without_labels() -> None:
    table = table_of(pd.DataFrame({"a": ["x"]}))
    with pytest.raises(DataError, match="Column 'a' has no value labels"):
        questions_from_table(table, ["a"])
    with pytest.raises(DataError, match="No column has value labels"):
        questions_from_table(table)
    with pytest.raises(DataError, match="no column 'b'"):
        questions_from_table(table, ["b"])
    book = codebook_of([{"id": "a", "options": ["x", "y"]}])
    with pytest.raises(DataError, match="Question a has no text, and column 'a' says none"):
        book.completed(table)


QUALTRICS = (
    "StartDate,Q1,Q2\n"
    'Start Date,"Did you\nvote? - Selected Choice",How often?\n'
    '"{""ImportId"":""startDate""}","{""ImportId"":""QID1""}","{""ImportId"":""QID2""}"\n'
    "2020-01-01,Yes,Often\n2020-01-02,No,\n"
)
LIMESURVEY = (
    '"id. Response ID","Q1. Did you vote?","Q2[SQ001]. How often? [At home]"\n'
    '"1","Yes","Often"\n"2","No",""\n'
)


SEMICOLONS = "\ufeff" + LIMESURVEY.replace('","', '";"')


@pytest.mark.parametrize(
    ("content", "columns", "texts", "words"),
    [
        (QUALTRICS, ("Q1", "Q2"), ("Did you vote?", "How often?"), "Qualtrics"),
        (LIMESURVEY, ("Q1", "Q2[SQ001]"), ("Did you vote?", "How often? [At home]"), "LimeSurvey"),
        (SEMICOLONS, ("Q1", "Q2[SQ001]"), ("Did you vote?", "How often? [At home]"), "LimeSurvey"),
    ],
)
def test_exports_bring_the_texts(tmp_path, caplog, content, columns, texts, words) -> None:
    (tmp_path / "d.csv").write_text(content, "utf-8")
    table = read_survey(tmp_path / "d.csv", needed=columns)
    assert words in caplog.text
    assert len(table) == 2
    assert table.texts(columns[0]) == ["Yes", "No"]
    entries = [
        {"id": "vote", "column": columns[0], "options": ["Yes", "No"]},
        {"id": "often", "column": columns[1], "options": ["Often", "Never"], "text": "Mine?"},
    ]
    book = codebook_of(entries).completed(table)
    # The codebook's own text goes before the table's.
    assert [q.text for q in book.questions] == [texts[0], "Mine?"]
    assert table.column(columns[1]).label == texts[1]
    caplog.clear()
    again = survey_table(table)
    assert [c.label for c in again.columns] == [c.label for c in table.columns]
    assert caplog.text == ""


def test_headers_that_are_no_codes_stay(tmp_path) -> None:
    df = pd.DataFrame({"Q1. Did you vote?": ["Yes"], "age": ["30"], "sex": ["m"]})
    assert survey_table(df).names == list(df.columns)
    (tmp_path / "d.csv").write_text("a,c\n1,2\n")
    table = read_survey(tmp_path / "d.csv", needed=["b"])
    with pytest.raises(DataError, match="no column 'b'"):
        table.column("b")
