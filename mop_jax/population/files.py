"""Reading a table of records from a file, by its suffix, with refusals that say where."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.cells import cell_text
from mop_jax.population.encodings import decode
from mop_jax.population.json_files import read_json, read_json_lines
from mop_jax.population.quoting import Quoting
from mop_jax.population.survey_files import EXCEL, STATISTICS, read_excel, read_statistics
from mop_jax.population.table import Column, Table
from mop_jax.population.text_tables import read_text_table
from mop_jax.resources import resolve_path

# None: no separator is promised by the suffix.
_SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t", ".txt": None, ".dat": None}
_JSON = (".json",)
_JSON_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
_TEXT = (*_SEPARATORS, *_JSON, *_JSON_LINES)
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip")
_ACCEPTED = (
    "accepted are .csv, .tsv, .txt, .dat, .json and .jsonl (also with .gz, .bz2, .xz or .zip), "
    ".parquet, .xlsx, .dta, .sav, .zsav and .por"
)
_REFUSED = {
    ".xls": "save it as .xlsx or .csv",
    ".xlsb": "save it as .xlsx or .csv",
    ".ods": "save it as .xlsx or .csv",
    ".numbers": "export it as .xlsx or .csv",
    ".rds": "write it as .csv or .parquet",
    ".rdata": "write it as .csv or .parquet",
    ".feather": "write it as .parquet",
    ".zst": "unpack it first",
    ".7z": "unpack it first",
}


def read_table(
    path: str | os.PathLike[str],
    *,
    needed: Sequence[str] = (),
    separator: str | None = None,
    encoding: str | None = None,
    quoting: Quoting = "auto",
    header_row: int = 1,
    sheet: str | int | None = None,
    value_labels: bool = True,
) -> Table:
    """Reads a table by the file's suffix.

    What is guessed or passed over is said to the logger "mop_jax".

    Args:
        path: a file, or `package:NAME/rest`.
        needed: columns that the run names; a separator and a sheet are chosen by them.
        separator: between the fields of a text file: a character or its name.
        encoding: of a text file, or of the texts of a statistics package.
        quoting: see `read_text_table`.
        header_row: the row that holds the headers; those above are passed over.
        sheet: of a workbook, by name or number from 1.
        value_labels: whether codes of Stata and SPSS become their labels.

    Raises:
        DataError: if the file is missing, empty, of an unknown kind or malformed, or a setting does
            not belong to its kind.
    """
    name = os.fspath(path)
    file = resolve_path(name)
    if file.is_dir():
        raise DataError(f"{name} is a folder; accepted is one data file.")
    kind, packed = _kind(name, file)
    _check_settings(name, kind, separator, encoding, quoting, header_row, sheet)
    if kind in _TEXT:
        table = _read_text(
            name, file, kind, packed, needed, separator, encoding, quoting, header_row
        )
    elif file.stat().st_size == 0:
        raise DataError(f"{name} is empty; at least one record is needed.")
    elif kind in EXCEL:
        table = read_excel(name, file, sheet=sheet, needed=needed, header_row=header_row)
    elif kind in STATISTICS:
        table = read_statistics(name, file, kind, encoding=encoding, value_labels=value_labels)
    else:
        table = _read_parquet(name, file)
    return table


def _kind(name: str, file: Path) -> tuple[str, str | None]:
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSED else None
    kind = suffixes[-1] if suffixes else ""
    if kind in _REFUSED:
        raise DataError(f"{name}: {kind} is not read, so {_REFUSED[kind]}; {_ACCEPTED}.")
    if kind not in (*_TEXT, *EXCEL, *STATISTICS, *_PARQUET) or (packed and kind not in _TEXT):
        raise DataError(f"{name} is of no known kind; {_ACCEPTED}.")
    return kind, packed


def _check_settings(
    name: str,
    kind: str,
    separator: str | None,
    encoding: str | None,
    quoting: Quoting,
    header_row: int,
    sheet: str | int | None,
) -> None:
    """Refuses a setting that the file's kind has no use for, rather than passing it over."""
    if quoting not in ("auto", "standard", "none"):
        raise DataError(f"quoting is {quoting!r}; accepted are auto, standard and none.")
    if header_row < 1:
        raise DataError(f"header_row is {header_row}; accepted is a row number from 1.")
    separated = kind in _SEPARATORS
    wrong = [
        setting
        for setting, given, fits in (
            ("separator", separator is not None, separated),
            ("quoting", quoting != "auto", separated),
            ("header_row", header_row != 1, separated or kind in EXCEL),
            ("encoding", encoding is not None, kind in _TEXT or kind in STATISTICS),
            ("sheet", sheet is not None, kind in EXCEL),
        )
        if given and not fits
    ]
    if wrong:
        raise DataError(f"{name}: {wrong[0]} has no meaning for a {kind} file; leave it out.")


def _read_text(
    name: str,
    file: Path,
    kind: str,
    packed: str | None,
    needed: Sequence[str],
    separator: str | None,
    encoding: str | None,
    quoting: Quoting,
    header_row: int,
) -> Table:
    text = decode(name, _unpack(name, file, packed), encoding)
    if not text.strip():
        raise DataError(f"{name} is empty; at least one record is needed.")
    if kind in _JSON:
        return read_json(name, text, needed)
    if kind in _JSON_LINES:
        return read_json_lines(name, text)
    return read_text_table(
        name,
        text,
        separator=separator,
        usual=_SEPARATORS[kind],
        needed=needed,
        quoting=quoting,
        header_row=header_row,
    )


def _unpack(name: str, file: Path, packed: str | None) -> bytes:
    data = file.read_bytes()
    try:
        if packed == ".gz":
            return gzip.decompress(data)
        if packed == ".bz2":
            return bz2.decompress(data)
        if packed == ".xz":
            return lzma.decompress(data)
        if packed == ".zip":
            with zipfile.ZipFile(io.BytesIO(data)) as archive:
                # A Mac packs its own notes beside the file.
                members = [
                    m
                    for m in archive.namelist()
                    if not m.endswith("/") and not m.startswith("__MACOSX/")
                ]
                if len(members) != 1:
                    raise DataError(f"{name} holds {len(members)} files; accepted is exactly one.")
                return archive.read(members[0])
    except (
        OSError,
        EOFError,
        ValueError,
        RuntimeError,  # a zip that asks for a password
        zlib.error,
        lzma.LZMAError,
        zipfile.BadZipFile,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} could not be unpacked as {packed}: {error}.") from error
    return data


def _read_parquet(name: str, file: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    # Whole numbers stay whole beside missing ones.
    nullable = {pa.bool_(): pd.BooleanDtype(), pa.float32(): pd.Float32Dtype()}
    nullable |= {pa.float64(): pd.Float64Dtype(), pa.string(): pd.StringDtype()}
    for bits in (8, 16, 32, 64):
        nullable[getattr(pa, f"int{bits}")()] = getattr(pd, f"Int{bits}Dtype")()
        nullable[getattr(pa, f"uint{bits}")()] = getattr(pd, f"UInt{bits}Dtype")()
    try:
        found = pq.ParquetFile(file).read()
        columns = [
            # Each by itself, for two may have one name.
            Column(key, pa.table({"c": cells}).to_pandas(types_mapper=nullable.get)["c"], cell_text)
            for key, cells in zip(found.column_names, found.columns, strict=True)
        ]
    except Exception as error:  # pyarrow has its own family of errors
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(f"{name} could not be read as Parquet: {reason}.") from error
    if found.num_rows == 0:
        raise DataError(f"{name} holds no records; at least one is needed.")
    return Table(columns, list(range(1, found.num_rows + 1)))
