"""Files as people have them: exports, separators, encodings, quotes; and what is refused."""

from __future__ import annotations

import io
import json
import logging
import sys
from pathlib import Path

import openpyxl
import pandas as pd
import pyreadstat
import pytest

from mop_jax.errors import DataError
from mop_jax.population import Population, read_table

QUALTRICS = (
    "StartDate,q,a\n"
    'Start Date,"Well, what?","Please\nsay why"\n'
    '"{""ImportId"":""startDate"",""timeZone"":""Z""}","{""ImportId"":""QID1""}",'
    '"{""ImportId"":""QID2_TEXT""}"\n'
    '2020-01-01,x,y\n2020-01-02,x,"two\nlines"\n'
)
PEOPLE = ["y", "two\nlines"]


def read(tmp_path: Path, name: str, content: str | bytes | None = None, **options) -> Population:
    if content is not None:
        data = content.encode() if isinstance(content, str) else content
        (tmp_path / name).write_bytes(data)
    return Population.from_file(tmp_path / name, **{"context": "q", "response": "a", **options})


@pytest.fixture
def said(caplog):
    """What was said, as one text."""
    caplog.set_level(logging.INFO, logger="mop_jax")
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def as_tsv(text: str) -> str:
    return pd.read_csv(io.StringIO(text), dtype=str).to_csv(sep="\t", index=False)


def as_excel(text: str) -> bytes:
    written = io.BytesIO()
    pd.read_csv(io.StringIO(text)).to_excel(written, index=False)
    return written.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("d.csv", QUALTRICS),
        ("d.tsv", as_tsv(QUALTRICS).encode("utf-16")),
        ("d.xlsx", as_excel(QUALTRICS)),
        ("d.json", pd.read_csv(io.StringIO(QUALTRICS)).to_json(orient="records")),
    ],
)
def test_rows_of_a_qualtrics_export_are_no_people(tmp_path, said, name, content) -> None:
    population = read(tmp_path, name, content)
    assert population.responses == PEOPLE
    assert population.ids == ["1", "2"]
    assert "2 rows under the header were passed over" in said()
    assert "Qualtrics" in said()


def test_a_dataframe_of_an_export_is_no_other_thing(said) -> None:
    df = pd.read_csv(io.StringIO(QUALTRICS.replace("StartDate", "age").replace("2020-01-0", "4")))
    population = Population.from_dataframe(df, context="q", response="a", query="age > 41")
    assert population.responses == PEOPLE[1:]
    assert "Qualtrics" in said()


def test_the_second_header_of_surveymonkey_is_passed_over(tmp_path, said) -> None:
    content = (
        "Respondent ID,Collector ID,q,a,\n,,Response,Open-Ended Response,Other\n"
        "1,9,x,y,\n2,9,x,z,o\n"
    )
    assert read(tmp_path, "d.csv", content).responses == ["y", "z"]
    assert "SurveyMonkey" in said()


def test_skip_rows_decides(tmp_path) -> None:
    content = "q,a\nlabel,label\nx,y\nx,z\nsum,3\n"
    assert read(tmp_path, "d.csv", content, skip_rows=1).responses == ["y", "z", "3"]
    assert read(tmp_path, "d.csv", content, skip_rows=[1, 4]).responses == ["y", "z"]
    assert read(tmp_path, "d.csv", content, skip_rows=[1, 4]).ids == ["1", "2"]
    assert len(read(tmp_path, "d.csv", QUALTRICS, skip_rows=0)) == 4
    with pytest.raises(DataError, match=r"skip_rows names row 9.*are 1 to 4"):
        read(tmp_path, "d.csv", content, skip_rows=9)
    with pytest.raises(DataError, match="No record is left"):
        read(tmp_path, "d.csv", content, skip_rows=4)
    titled = "A survey\n\n" + content
    assert len(read(tmp_path, "d.csv", titled, header_row=2, skip_rows=1)) == 3


STRAY = '1\tfilm?\t"Best film ever\n2\tfilm?\tBad\n3\tfilm?\t"quoted" said he\n4\tfilm?\tok\n'
ANSWERS = ['"Best film ever', "Bad", '"quoted" said he', "ok"]


@pytest.mark.parametrize("name", ["d.tsv", "d.txt", "d.csv"])
def test_a_stray_quote_takes_no_other_lines(tmp_path, said, name) -> None:
    content = "id\tq\ta\n" + STRAY
    if name == "d.csv":
        content = content.replace("\t", ",")
    assert read(tmp_path, name, content).responses == ANSWERS
    assert "on line 2 a quote opens a cell" in said()
    assert read(tmp_path, name, content, quoting="none").responses == ANSWERS
    with pytest.raises(DataError, match="malformed on line 2: a quote opens"):
        read(tmp_path, name, content, quoting="standard")


def test_quotes_that_could_be_either_are_refused(tmp_path) -> None:
    content = 'q\ta\nx\t"Best\nx\tBad\nx\tit was 5"\nx\tok\n'
    with pytest.raises(DataError, match="opens on line 2 closes on line 4"):
        read(tmp_path, "d.tsv", content)
    assert len(read(tmp_path, "d.tsv", content, quoting="none")) == 4
    assert read(tmp_path, "d.tsv", content, quoting="standard").responses == [
        "Best\nx\tBad\nx\tit was 5",
        "ok",
    ]
    with pytest.raises(DataError, match="line 3: a quote opens a cell and is never closed"):
        read(tmp_path, "d.csv", 'q,a\nx,"a, b"\nx,"open\nx,z\n')


def test_a_stray_quote_among_quoted_cells_takes_no_other_lines(tmp_path, said) -> None:
    content = 'id,q,a\n1,film?,"Best ever\n2,film?,Bad\n3,film?,it was 5"\n4,film?,"a, b"\n'
    with pytest.raises(DataError, match="opens on line 2 closes on line 4"):
        read(tmp_path, "d.csv", content)
    with pytest.raises(DataError, match="opens on line 2 closes on line 4"):
        read(tmp_path, "d.csv", content.replace("film?", "one film").replace("id,", "q2,"))
    two = 'q,a\nfilm?,"Best ever\nfilm?,it was 5"\nbook?,"a, b"\nfilm?,ok\n'
    with pytest.raises(DataError, match="opens on line 2 closes on line 3"):
        read(tmp_path, "d.csv", two)
    # By accident two fields, as two lines of prose may have: said.
    prose = 'q,a\nfilm?,"Best ever\nI think, that is"\nbook?,"a, b"\n'
    assert read(tmp_path, "d.csv", prose).responses == ["Best ever\nI think, that is", "a, b"]
    assert "lines 2 to 3 are read as one record" in said()


def test_titles_above_the_header_are_found(tmp_path) -> None:
    for content in ("A survey\nq,a\nx,y\n", "A,,survey\n\nq,a\nx,y\n"):
        with pytest.raises(DataError, match=r"columns in row 2.*set header_row: 2"):
            read(tmp_path, "d.csv", content)
        assert read(tmp_path, "d.csv", header_row=2).responses == ["y"]
    book = openpyxl.Workbook()
    for row in (["A survey"], ["q", "a"], ["x", "y"]):
        book.active.append(row)
    book.save(tmp_path / "d.xlsx")
    with pytest.raises(DataError, match=r"columns in row 2.*set header_row: 2"):
        read(tmp_path, "d.xlsx")
    assert read(tmp_path, "d.xlsx", header_row=2).responses == ["y"]


def test_blanks_behind_separators(tmp_path) -> None:
    population = read(tmp_path, "d.csv", 'q, a\nx, "hello, world"\ny, z\n')
    assert population.responses == ["hello, world", "z"]


def test_rows_shorter_than_the_header(tmp_path, said) -> None:
    with pytest.raises(DataError, match=r"line 3 has 1 of 3 fields, none for the column 'a'"):
        read(tmp_path, "d.csv", "id,q,a\n1,x,hello\nworld\n2,x,y\n", drop_missing=True)
    population = read(tmp_path, "d.csv", "q,a,more\nx,y,1\nx,z\n,,\nx,u,\n")
    assert population.responses == ["y", "z", "u"]
    assert population.ids == ["1", "2", "4"]
    assert "fewer fields than in the header in 1 of 4 rows" in said()
    assert "1 of 4 rows hold no text" in said()
    # A separator at the end of every line is no column.
    assert read(tmp_path, "d.csv", "q,a\nx,y,\nx,z,\n").responses == ["y", "z"]


@pytest.mark.parametrize(
    ("name", "content", "answers"),
    [
        ("d.csv", "q;a\nWas?;Gut, aber teuer\n", ["Gut, aber teuer"]),
        ("d.csv", '"id";"Was, bitte?";"q";"a"\n"1";"x";"y";"z, u"\n', ["z, u"]),
        ("d.csv", "q\ta\nWas?\tGut, aber; teuer\n", ["Gut, aber; teuer"]),
        ("d.txt", "q|a\nWas?|Gut, aber; teuer\n", ["Gut, aber; teuer"]),
        ("d.dat", "q a\nx  good\nx   bad\n", ["good", "bad"]),
        ("d.tsv", "q,a\nx,good\n", ["good"]),
        ("d.csv", "sep=;\r\nq;a\r\nx;good\r\n", ["good"]),
    ],
)
def test_separators_are_guessed_and_said(tmp_path, said, name, content, answers) -> None:
    assert read(tmp_path, name, content).responses == answers
    assert "separator" in said()


@pytest.mark.parametrize("separator", [";", "semicolon"])
def test_the_separator_is_a_setting(tmp_path, said, separator) -> None:
    population = read(tmp_path, "d.csv", "q;a\nx;y, z\n", separator=separator)
    assert population.responses == ["y, z"]
    assert said() == ""
    with pytest.raises(DataError, match="';;' is not accepted"):
        read(tmp_path, "d.csv", separator=";;")
    with pytest.raises(DataError, match=r"separator has no meaning for a \.json"):
        read(tmp_path, "d.json", "[]", separator=";")


ENCODED = {
    "cp1252": "q;a\nWas?;Schön – teuer, „ja“\n",
    "latin-1": "q;a\nété;à côté\n",
    "mac_roman": "q;a\nx;café naïve “quoted”\n",
    "cp1250": "q;a\npytanie;świetna muzyka, źle zagrana, łódź\n",
    "cp932": "q;a\n質問;とても良い映画でした\n",
    "utf-16": "q;a\nWas?;Schön\n",
    "utf-16-le": "q;a\nWas?;Schön\n",
    "utf-16-be": "q;a\nWas?;Schön\n",
    "utf-32": "q;a\nWas?;Schön\n",
    "utf-8-sig": "q;a\nWas?;Schön\n",
}


@pytest.mark.parametrize("encoding", ENCODED)
def test_encodings(tmp_path, said, encoding) -> None:
    text = ENCODED[encoding]
    expected = text.split("\n")[1].split(";")
    for options in ({}, {"encoding": encoding}):
        population = read(tmp_path, "d.csv", text.encode(encoding), **options)
        assert [*population.contexts, *population.responses] == expected
    announced = encoding in ("utf-16", "utf-32", "utf-8-sig")
    assert ("is not UTF-8 and is read as" in said()) == (not announced)


def test_what_cannot_be_decoded_is_refused(tmp_path) -> None:
    cyrillic = "q,a\nвопрос,да\n".encode("koi8_r")
    with pytest.raises(DataError, match=r"not UTF-8: byte 0x.. at offset 4, on line 2; set encod"):
        read(tmp_path, "d.csv", cyrillic)
    assert read(tmp_path, "d.csv", encoding="koi8_r").responses == ["да"]
    with pytest.raises(DataError, match="not utf-16"):
        read(tmp_path, "d.csv", b"q,a\nx,y\n\n", encoding="utf-16-le")
    for unknown in ("utf-9", "rot13", "base64", ""):
        with pytest.raises(DataError, match="is not known"):
            read(tmp_path, "d.csv", cyrillic, encoding=unknown)
    with pytest.raises(DataError, match="a workbook or a zip archive despite its name"):
        read(tmp_path, "d.csv", as_excel("q,a\nx,y\n"))


def test_headers(tmp_path) -> None:
    assert len(read(tmp_path, "d.csv", '\ufeff q\u00a0,"a\n"\nx,y\n')) == 1
    question = '"What is\nyour  view?"'
    assert len(read(tmp_path, "d.csv", f"q,{question}\nx,y\n", response="What is your view?")) == 1
    with pytest.raises(DataError, match=r"no column 'Answer'.*nearest is 'answer'"):
        read(tmp_path, "d.csv", "q,answer\nx,y\n", response="Answer")
    assert read(tmp_path, "d.csv", ",q,a\n7,x,y\n", id="Unnamed: 0").ids == ["7"]


DUPLICATES = {
    "d.csv": "q,a,a,b,b\nx,y,z,1,2\n",
    "d.tsv": "q\ta\ta\tb\tb\nx\ty\tz\t1\t2\n",
    "d.jsonl": '{"q":"x","a":"y","a":"z","b":1,"b":2}\n',
    "d.json": '[{"q":"x","a":"y","a":"z","b":1,"b":2}]',
}


@pytest.mark.parametrize("name", DUPLICATES)
def test_a_named_column_is_there_once(tmp_path, name) -> None:
    with pytest.raises(DataError, match="The column 'a' is there 2 times"):
        read(tmp_path, name, DUPLICATES[name])
    with pytest.raises(DataError, match="The column 'b' is there 2 times"):
        read(tmp_path, name, response="q", query="b > 1")
    assert read(tmp_path, name, response="q").responses == ["x"]


def test_a_workbook_with_a_column_twice(tmp_path) -> None:
    book = openpyxl.Workbook()
    for row in (["q", "a", "a"], ["x", "y", "z"]):
        book.active.append(row)
    book.save(tmp_path / "d.xlsx")
    with pytest.raises(DataError, match="'a' is there 2 times"):
        read(tmp_path, "d.xlsx")


def test_json_values(tmp_path) -> None:
    lines = ["5", "null", "3", "3.0", "3.10", "1e18", "123456789012345678901", "true", '"007"']
    content = "".join(f'{{"q":"How many?","a":{value}}}\n' for value in lines)
    population = read(tmp_path, "d.jsonl", content, drop_missing=True)
    assert population.responses == [
        "5", "3", "3", "3.1", "1000000000000000000", "123456789012345678901", "true", "007",
    ]  # fmt: skip
    for nested in ('["b","c"]', '{"b":1}', "[]"):
        with pytest.raises(DataError, match=r"Row 2 holds a (list|record) in column 'a'"):
            read(tmp_path, "d.jsonl", f'{{"q":"x","a":"y"}}\n{{"q":"x","a":{nested}}}\n')


JSON_FILES = {
    "records": '[{"q":"x","a":"y"},{"a":"z","q":"x"}]',
    "one list": '{"n":2,"data":[{"q":"x","a":"y"},{"q":"x","a":"z"}]}',
    "lines": '{"q":"x","a":"y"}\n{"q":"x","a":"z"}\n',
    "columns": '{"q":{"0":"x","1":"x"},"a":{"0":"y","1":"z"}}',
    "by id": '{"r1":{"q":"x","a":"y"},"r2":{"q":"x","a":"z"}}',
}


@pytest.mark.parametrize("case", JSON_FILES)
def test_json_files(tmp_path, case) -> None:
    assert read(tmp_path, "d.json", JSON_FILES[case]).responses == ["y", "z"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"b":[{"q":"x","a":"y"}],"c":[{"q":1}]}', r"accepted is a list.*has 'b', 'c'"),
        ("[1, 2]", "record 1, is not an object"),
        ("[]", "holds no records"),
        ('[{"q":"x",\n"a":}]', "line 2, column 5, is not JSON"),
        ('"x"', "no list of records"),
        ("[" * 100_000, "JSON|nested"),
    ],
)
def test_json_that_is_no_records(tmp_path, content, message) -> None:
    with pytest.raises(DataError, match=message):
        read(tmp_path, "d.json", content)


def test_half_a_surrogate_pair_is_no_text(tmp_path) -> None:
    with pytest.raises(DataError, match="Row 1 has a response with half of a surrogate pair"):
        read(tmp_path, "d.json", '[{"q":"x","a":"\\ud83d"}]')


def test_parquet_with_a_column_twice_and_lists(tmp_path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = [pa.array(["x"]), pa.array([1]), pa.array([2]), pa.array([["l"]])]
    pq.write_table(pa.table(columns, names=["q", "a", "a", "tags"]), tmp_path / "d.parquet")
    with pytest.raises(DataError, match="'a' is there 2 times"):
        read(tmp_path, "d.parquet")
    with pytest.raises(DataError, match="Row 1 holds a list in column 'tags'"):
        read(tmp_path, "d.parquet", response="tags")


def test_workbooks(tmp_path, said) -> None:
    book = openpyxl.Workbook()
    book.active.title = "notes"
    book.active.append(["nothing", "here"])
    book.active.append(["or", "there"])
    sheet = book.create_sheet("people")
    sheet.append(["q", "a", "zip", "ok", "when"])
    sheet.append(["x", 36.0, 2139, True, pd.Timestamp("2020-01-31")])
    sheet.append([None, None, None, None, None])
    sheet.append(["x", 0.1 + 0.2, "00501", False, pd.Timestamp("2020-01-31 10:30")])
    sheet["C2"].number_format = "00000"
    book.save(tmp_path / "d.xlsx")
    options = {"label": "zip", "group": "when"}
    population = read(tmp_path, "d.xlsx", **options)
    assert population.responses == ["36", "0.3"]
    assert population.labels == ["02139", "00501"]
    assert population.groups == ["2020-01-31", "2020-01-31 10:30:00"]
    assert read(tmp_path, "d.xlsx", response="ok").responses == ["TRUE", "FALSE"]
    assert "the sheet 'people' is read" in said()
    for sheet_setting in ("people", 2):
        again = read(tmp_path, "d.xlsx", sheet=sheet_setting, **options)
        assert again.fingerprint == population.fingerprint
    with pytest.raises(DataError, match="no sheet 'peple'; the sheets are: notes, people"):
        read(tmp_path, "d.xlsx", sheet="peple")
    with pytest.raises(DataError, match="no column 'q'"):
        read(tmp_path, "d.xlsx", sheet="notes")
    book.copy_worksheet(sheet)
    book.save(tmp_path / "d.xlsx")
    with pytest.raises(DataError, match=r"several sheets \(people, people Copy\); set sheet"):
        read(tmp_path, "d.xlsx")
    with pytest.raises(DataError, match="could not be read as an Excel workbook"):
        read(tmp_path, "d.xlsx", "q,a\n")


@pytest.mark.parametrize("kind", ["sav", "zsav", "dta"])
def test_value_labels_are_the_answers(tmp_path, kind) -> None:
    df = pd.DataFrame({"Q": ["x"] * 4, "A": [1.0, 2.0, 3.0, None], "AGE": [36.0, 7.5, 80.0, 1.0]})
    path = tmp_path / f"d.{kind}"
    labels = {"A": {1: "Yes", 2: "No"}}
    if kind == "dta":
        pyreadstat.write_dta(df, path, variable_value_labels=labels)
    else:
        options = {"compress": True} if kind == "zsav" else {}
        pyreadstat.write_sav(df, path, variable_value_labels=labels, **options)
    named = {"context": "Q", "response": "A", "drop_missing": True}
    # A code without a label stays a number.
    assert read(tmp_path, path.name, **named).responses == ["Yes", "No", "3"]
    assert read(tmp_path, path.name, value_labels=False, **named).responses == ["1", "2", "3"]
    assert read(tmp_path, path.name, **named | {"response": "AGE"}).responses[:2] == ["36", "7.5"]
    assert read(tmp_path, path.name, query="A == 'No'", **named).ids == ["2"]
    assert read(tmp_path, path.name, query="A == 1 or AGE > 50", **named).ids == ["1", "3"]


def test_missing_codes_are_missing(tmp_path) -> None:
    df = pd.DataFrame({"q": ["x"] * 3, "a": [1.0, 2.0, 99.0]})
    pyreadstat.write_sav(
        df,
        tmp_path / "d.sav",
        variable_value_labels={"a": {1: "Yes", 2: "No", 99: "Refused"}},
        missing_ranges={"a": [99]},
    )
    assert read(tmp_path, "d.sav", drop_missing=True).responses == ["Yes", "No"]
    with pytest.raises(DataError, match="Row 3 has an empty response"):
        read(tmp_path, "d.sav")
    with pytest.raises(DataError, match=r"d\.sav could not be read"):
        read(tmp_path, "d.sav", b"no such thing")


@pytest.mark.parametrize(("name", "module"), [("d.xlsx", "openpyxl"), ("d.dta", "pyreadstat")])
def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch, name, module) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(DataError, match=rf"needs {module}: pip install 'mop-jax\[survey\]'"):
        read(tmp_path, name, b"x")


@pytest.mark.parametrize("name", ["d.xls", "d.ods", "d.csv.zst", "d.rds"])
def test_kinds_that_are_not_read_say_what_to_do(tmp_path, name) -> None:
    with pytest.raises(DataError, match=r"is not read, so (save|write|unpack)"):
        read(tmp_path, name, b"x")


def test_weights(tmp_path, said) -> None:
    population = read(tmp_path, "d.csv", "q,a,w\nx,y,0\nx,z,1.5\nx,,0\nx,u,2\n", weight="w")
    assert population.responses == ["z", "u"]
    assert population.weights.tolist() == [1.5, 2.0]
    assert population.ids == ["2", "4"]
    assert "2 of 4 rows have the weight 0 and were left out" in said()
    population = read(tmp_path, "d.csv", "q;a;w\nx;y;0,5\nx;z;2\n", weight="w")
    assert population.weights.tolist() == [0.5, 2.0]
    assert "decimal commas" in said()
    for bad in ("-1", "", "inf", "nan", "one", "1,500"):
        content = f"q;a;w\nx;y;1\nx;z;{bad}\n"
        with pytest.raises(DataError, match=rf"Row 2 has the weight '{bad}' .*positive number"):
            read(tmp_path, "d.csv", content, weight="w")
    with pytest.raises(DataError, match="Every row has the weight 0"):
        read(tmp_path, "d.csv", "q,a,w\nx,y,0\n", weight="w")


def test_rows_left_out_are_counted(tmp_path, said) -> None:
    read(tmp_path, "d.csv", "q,a\nx,y\nx,\n,z\n", drop_missing=True)
    assert "2 of 3 rows have a blank context or response and were left out" in said()


def test_an_ordinary_file_says_nothing(tmp_path, said) -> None:
    records = [{"q": "Warum, bitte?", "a": 'Er sagte "gut"'}, {"q": "x", "a": "zwei\nZeilen"}]
    pd.DataFrame(records).to_csv(tmp_path / "d.csv", index=False)
    (tmp_path / "d.json").write_text(json.dumps(records))
    assert read(tmp_path, "d.csv").fingerprint == read(tmp_path, "d.json").fingerprint
    assert said() == ""


def test_labels_of_columns_and_codes_are_kept(tmp_path) -> None:
    df = pd.DataFrame({"a": [1.0, 2.0, 99.0, 7.0], "b": ["x", "y", "x", "x"]})
    pyreadstat.write_sav(
        df,
        tmp_path / "d.sav",
        column_labels=["Did you vote?", "Where?"],
        variable_value_labels={"a": {99: "Refused", 2: "No", 1: "Yes", 98: "Don't know"}},
        missing_ranges={"a": [{"lo": 98, "hi": 99}]},
    )
    for value_labels in (True, False):
        table = read_table(tmp_path / "d.sav", value_labels=value_labels).take([3, 0])
        a, b = table.columns
        assert (a.label, b.label) == ("Did you vote?", "Where?")
        # Codes of missing answers are none of the answers.
        assert list(a.value_labels.items()) == [(1, "Yes"), (2, "No")]
        assert not b.value_labels
        assert table.texts("a") == ["7", "Yes" if value_labels else "1"]
    coded = pd.DataFrame({"a": [1, 2, "a"]})
    options = {"variable_value_labels": {"a": {2: "No", 1: "Yes", "a": "Refused"}}}
    pyreadstat.write_dta(coded, tmp_path / "d.dta", missing_user_values={"a": ["a"]}, **options)
    (column,) = read_table(tmp_path / "d.dta").columns
    assert dict(column.value_labels) == {1: "Yes", 2: "No"}
    assert column.texts([1, 2, 3]) == ["Yes", "No", None]
