"""Reading a table of records from CSV, TSV, JSON Lines or Parquet, with refusals that say where.

Text files are decoded here rather than by pandas, so that a byte that is not UTF-8 can be named
with its line; cells keep "NA", "null" and the like as text, for people do answer so.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from mop_jax.errors import DataError
from mop_jax.resources import resolve_path

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
_JSON_LINES = (".jsonl", ".ndjson")
_PARQUET = (".parquet", ".pq")
_COMPRESSED = (".gz", ".bz2", ".xz", ".zip")


def read_table(path: str | os.PathLike[str], *, as_text: Sequence[str] = ()) -> pd.DataFrame:
    """Reads a table by the file's suffix.

    Args:
        path: a file, or `package:NAME/rest`.
        as_text: columns whose cells are kept as text even if all of them look like numbers.

    Returns:
        One row per record; missing cells are NA and whole numbers stay whole beside them.

    Raises:
        DataError: if the file is missing, empty, of an unknown kind, not UTF-8 or malformed.
    """
    name = os.fspath(path)
    file = resolve_path(name)
    if file.is_dir():
        raise DataError(f"{name} is a folder; accepted is one data file.")
    suffixes = [suffix.lower() for suffix in file.suffixes]
    packed = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSED else None
    kind = suffixes[-1] if suffixes else ""
    if kind not in (*_SEPARATORS, *_JSON_LINES, *_PARQUET) or (packed and kind in _PARQUET):
        raise DataError(
            f"{name} is of no known kind; accepted are .csv, .tsv and .jsonl "
            "(also with .gz, .bz2, .xz or .zip) and .parquet."
        )
    if kind in _PARQUET:
        return _read_parquet(name, file)
    text = _decode(name, _unpack(name, file, packed))
    if not text.strip():
        raise DataError(f"{name} is empty; at least one record is needed.")
    df = _read_json_lines(name, text, as_text) if kind in _JSON_LINES else None
    if df is None:
        df = _read_separated(name, text, _SEPARATORS[kind], as_text)
    if df.empty:
        raise DataError(f"{name} holds a header but no records; at least one is needed.")
    return df


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
                members = [m for m in archive.namelist() if not m.endswith("/")]
                if len(members) != 1:
                    raise DataError(f"{name} holds {len(members)} files; accepted is exactly one.")
                return archive.read(members[0])
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError, zipfile.BadZipFile) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{name} could not be unpacked as {packed}: {error}.") from error
    return data


def _decode(name: str, data: bytes) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # With a byte order mark, the reported position counts from behind it.
        start = error.start + (3 if data.startswith(b"\xef\xbb\xbf") else 0)
        line = data.count(b"\n", 0, start) + 1
        raise DataError(
            f"{name} is not UTF-8: byte 0x{data[start]:02x} at offset {start}, on line {line}; "
            "accepted is UTF-8, so convert the file first (iconv -t UTF-8)."
        ) from error


def _read_separated(name: str, text: str, separator: str, as_text: Sequence[str]) -> pd.DataFrame:
    try:
        df = pd.read_csv(
            io.StringIO(text),
            sep=separator,
            dtype=dict.fromkeys(as_text, "string"),
            keep_default_na=False,
            na_values=[""],
            dtype_backend="numpy_nullable",
        )
    except (ValueError, pd.errors.ParserError) as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(f"{name} is malformed: {reason}.") from error
    if not isinstance(df.index, pd.RangeIndex):
        raise DataError(f"{name} is malformed: its rows have more fields than its header.")
    return df


def _read_json_lines(name: str, text: str, as_text: Sequence[str]) -> pd.DataFrame:
    records = []
    # Not splitlines(): U+2028 and its like are ordinary characters inside a JSON string.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise DataError(f"{name}, line {number}, is not JSON: {error.msg}.") from error
        if not isinstance(record, dict):
            raise DataError(f"{name}, line {number}, is not a JSON object; accepted is one a line.")
        records.append(record)
    df = pd.DataFrame(records)
    for column in as_text:
        if column in df.columns:
            df[column] = df[column].map(str, na_action="ignore").astype("string")
    return df.convert_dtypes()


def _read_parquet(name: str, file: Path) -> pd.DataFrame:
    if file.stat().st_size == 0:
        raise DataError(f"{name} is empty; at least one record is needed.")
    try:
        df = pd.read_parquet(file, dtype_backend="numpy_nullable")
    except Exception as error:  # pyarrow has its own family of errors
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise DataError(f"{name} could not be read as Parquet: {reason}.") from error
    if df.empty:
        raise DataError(f"{name} holds no records; at least one is needed.")
    return df
