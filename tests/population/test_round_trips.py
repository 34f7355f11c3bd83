"""What was written is what is read, and as many records as were written, in every format."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import openpyxl
import pandas as pd
import pyreadstat
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.population import Population

# What files stumble over: quotes, separators, line ends, leading zeros, words that look like
# nothing, and ordinary text in many scripts. A NUL is in no text file.
AWKWARD = st.sampled_from(
    ['"', '""', '"open', 'close"', 'a "b" c', "x,y", "x;y", "x\ty", "x|y", "two\nlines", "\r",
     "a\rb", "two\r\nlines", "007", "02139",
     "3.10", "1e5", "NA", "null", "None", "nan", "True", "-", "#",
     "'", "\\", "\\n", "{}", "=1+1", "\u2028", "\u00a0x", "\ufeff", "e\u0301", "日本語", "🙂"]
)  # fmt: skip
ANY = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1)
TEXTS = (
    st.lists(AWKWARD | ANY, min_size=1, max_size=4)
    .map("".join)
    .filter(lambda text: bool(text.strip()))
)
ROWS = st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=5)
# The same folder for all examples of a test: each overwrites the file.
EXAMPLES = settings(
    max_examples=120,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


def read(path: Path, **options: object) -> list[tuple[str, str]]:
    population = Population.from_file(path, context="q", response="a", **options)  # type: ignore[arg-type]
    return list(zip(population.contexts, population.responses, strict=True))


def read_or_refused(path: Path) -> tuple[list[tuple[str, str]], str]:
    try:
        return read(path), ""
    except DataError as error:
        return [], str(error)


def stripped(rows: list[tuple[str, str]]) -> list[tuple[str, str]]:
    return [(q.strip(), a.strip()) for q, a in rows]


@EXAMPLES
@given(
    rows=ROWS,
    separator=st.sampled_from([",", ";", "\t", "|"]),
    style=st.sampled_from([csv.QUOTE_ALL, csv.QUOTE_MINIMAL]),
    ending=st.sampled_from(["\n", "\r\n"]),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    suffix=st.sampled_from([".csv", ".tsv", ".txt", ".dat"]),
)
def test_quoted_text(tmp_path, rows, separator, style, ending, encoding, suffix) -> None:
    written = io.StringIO(newline="")
    writer = csv.writer(written, delimiter=separator, quoting=style, lineterminator=ending)
    # A lone carriage return ends a line for some readers, so a careful writer quotes it.
    writer.writerows([("q", "a"), *rows])
    path = tmp_path / f"d{suffix}"
    path.write_bytes(written.getvalue().encode(encoding))
    assert read(path, quoting="standard", separator=separator) == stripped(rows)
    assert read(path, quoting="standard") == stripped(rows)
    found, refused = read_or_refused(path)
    assert refused or found == stripped(rows)
    if refused:
        # Only where every line is a whole record, too, although a cell spans some.
        assert "every line by itself is a whole record" in refused
        assert any("\n" in text for row in rows for text in row)


@EXAMPLES
@given(rows=ROWS, separator=st.sampled_from([",", "\t"]))
def test_unquoted_text(tmp_path, rows, separator) -> None:
    """Nothing is quoted and nothing escaped: the lines are the records."""

    def clean_text(text: str) -> str:
        # What would be an empty cell between quotes is "x" here.
        kept = "".join(c for c in text if c not in f"\n\r{separator}").strip()
        return kept if kept.strip('"').strip() else "x"

    clean = [(clean_text(q), clean_text(a)) for q, a in rows]
    path = tmp_path / {",": "d.csv", "\t": "d.tsv"}[separator]
    lines = [separator.join(row) for row in [("q", "a"), *clean]]
    path.write_bytes(("\n".join(lines) + "\n").encode())
    assert read(path, quoting="none") == clean
    found, refused = read_or_refused(path)
    assert refused or len(found) == len(clean)
    if refused:
        assert "quot" in refused
        assert "line" in refused


@EXAMPLES
@given(rows=ROWS)
def test_json_and_parquet(tmp_path, rows) -> None:
    records = [{"q": q, "a": a} for q, a in rows]
    (tmp_path / "d.json").write_text(json.dumps(records), encoding="utf-8")
    lines = "\n".join(json.dumps(record, ensure_ascii=False) for record in records)
    (tmp_path / "d.jsonl").write_bytes(lines.encode())
    pd.DataFrame(records).to_parquet(tmp_path / "d.parquet")
    pd.DataFrame(records).to_json(tmp_path / "columns.json")
    for name in ("d.json", "d.jsonl", "d.parquet", "columns.json"):
        assert read(tmp_path / name) == stripped(rows)


@settings(parent=EXAMPLES, max_examples=40)
@given(rows=ROWS)
def test_workbooks_and_files_of_statistics_packages(tmp_path, rows) -> None:
    # These formats hold no control characters, and XML has one line end.
    clean = [
        tuple("".join(c for c in t if c.isprintable() or c == "\n").strip() or "x" for t in row)
        for row in rows
    ]
    df = pd.DataFrame(clean, columns=["q", "a"])
    book = openpyxl.Workbook()
    for row in [("q", "a"), *clean]:
        book.active.append(row)
        for cell in book.active[book.active.max_row]:
            cell.data_type = "s"  # "=1+1" is text here, no formula
    book.save(tmp_path / "d.xlsx")
    pyreadstat.write_sav(df, tmp_path / "d.sav")
    pyreadstat.write_dta(df, tmp_path / "d.dta")
    for name in ("d.xlsx", "d.sav", "d.dta"):
        assert read(tmp_path / name) == stripped(clean), name


@pytest.mark.parametrize("cell", ["007", "3.10", "1e5", "0x1F", "1_000", "TRUE", "  x", "+1", "-0"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".txt"])
def test_every_named_column_is_text_as_written(cell: str, suffix: str, tmp_path: Path) -> None:
    separator = {".csv": ",", ".tsv": "\t", ".txt": ";"}[suffix]
    path = tmp_path / f"d{suffix}"
    header = ["q", "q2", "a", "i", "l", "g"]
    path.write_text("\n".join(separator.join(r) for r in [header, [cell] * 6]), encoding="utf-8")
    population = Population.from_file(
        path, context=["q", "q2"], template="[{{ q }}|{{ q2 }}]", response="a", id="i", label="l",
        group="g",
    )  # fmt: skip
    assert population.contexts == [f"[{cell}|{cell}]"]
    columns = (population.responses, population.ids, population.labels, population.groups)
    assert columns == ([cell.strip()],) * 4
