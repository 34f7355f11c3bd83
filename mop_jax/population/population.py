"""The population: records (context, response) with optional labels, groups and weights.

`Population` holds validated records and nothing else. `Population.from_dataframe` makes them from
named columns; `files` reads the files, `records` makes records of them, `splits` draws the splits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.files import read_table
from mop_jax.population.keys import text_key, twin_keys
from mop_jax.population.quoting import Quoting
from mop_jax.population.records import (
    NamedColumns,
    pass_over,
    read_records,
    refuse_blank,
    refuse_duplicates,
)
from mop_jax.population.splits import SplitBy, split_rows
from mop_jax.population.table import table_of


@dataclass(frozen=True, eq=False)
class Population:
    """N records.

    Attributes:
        ids: N distinct non-blank strings.
        contexts: what each person was asked; x_i in the paper.
        responses: what they answered; y_i.
        labels: optional; splits and exemplar pools can be stratified by them.
        groups: optional; records of one group (a film, a respondent) can be kept together.
        weights: float64 [N], positive; 1 by default.
        twins: optional; keys that records have in common if they are one record written twice,
            None for those that have no twin. By default those of `response_keys`, which parts of a
            population (`take`, `sample`, `split`) keep from the whole.

    Raises:
        DataError: on blank texts, duplicate ids, non-positive weights or unequal lengths.
    """

    ids: list[str]
    contexts: list[str]
    responses: list[str]
    labels: list[str] | None = None
    groups: list[str] | None = None
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))
    twins: list[str | None] | None = None

    def __post_init__(self) -> None:
        num_records = len(self.ids)
        if num_records == 0:
            raise DataError("The population holds no records; at least one is needed.")
        weights = np.asarray(self.weights, dtype=np.float64)
        object.__setattr__(self, "weights", weights if weights.size else np.ones(num_records))
        for name in ("contexts", "responses", "labels", "groups", "weights", "twins"):
            values = getattr(self, name)
            if values is not None and len(values) != num_records:
                raise DataError(
                    f"The population has {num_records} ids but {len(values)} {name}; "
                    "there must be one per record."
                )
        rows = range(1, num_records + 1)
        for what in ("ids", "contexts", "responses"):
            refuse_blank(getattr(self, what), what.removesuffix("s"), rows)
        refuse_duplicates(self.ids, rows)
        _refuse_weights(self.weights, rows)

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        optional = [name for name in ("labels", "groups") if getattr(self, name) is not None]
        if not np.all(self.weights == 1):
            optional.append("weights")
        having = f" with {' and '.join(optional)}" if optional else ""
        return f"Population({len(self)} records{having})"

    @classmethod
    def from_dataframe(
        cls,
        df: pd.DataFrame,
        *,
        context: str | Sequence[str],
        response: str,
        template: str | None = None,
        id: str | None = None,
        label: str | None = None,
        group: str | None = None,
        weight: str | None = None,
        query: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        drop_missing: bool = False,
        skip_rows: int | Sequence[int] | None = None,
    ) -> Population:
        """Reads records from named columns; leading and trailing blanks of texts are dropped.

        Every named column is read as text: as written where it holds text, as a person would write
        them for numbers and dates (36.0 is "36"). What is left out is said to the logger "mop_jax".

        Args:
            df: one row per record.
            context: the column, or columns, that the context is made of.
            response: the column of the response.
            template: Jinja2 template of the context over the context columns, such as
                "Write a review of the film {{ film | replace('_', ' ') | title }}."; needed if
                there are several, and a name that is no context column is refused. A column
                whose name is no single word is `row["its name"]`, or its name with "_" for blanks.
            id: the column of the record ids; the row number (from 1) by default.
            label: the column of the labels.
            group: the column of the groups.
            weight: the column of the weights, positive numbers; 0 leaves the record out.
            query: a pandas query; rows that fail it are not read.
            limit: keep a random subset of this many records, in their order, if there are more.
            seed: of that subset.
            drop_missing: leave out rows whose context columns or response are missing or blank,
                instead of refusing them.
            skip_rows: rows after the header that hold no answers: how many, or their numbers; by
                default those of Qualtrics and SurveyMonkey exports are recognised.

        Raises:
            DataError: on anything that is missing, blank, duplicate or malformed; the sentence
                names the row (from 1, the header not counted) and the column.

        Example:
            >>> import pandas as pd
            >>> df = pd.DataFrame({"film": ["alien"], "review": [" Cold and slow. "]})
            >>> population = Population.from_dataframe(
            ...     df, context="film", template="Review {{ film | title }}.", response="review"
            ... )
            >>> population.contexts, population.responses
            (['Review Alien.'], ['Cold and slow.'])
        """
        columns = NamedColumns(context, response, template, id, label, group, weight)
        table = pass_over(table_of(df), skip_rows, "The DataFrame")
        read = read_records(table, columns, query, drop_missing, "The DataFrame")
        return cls(**read) if limit is None else cls(**read).sample(limit, seed=seed)

    @classmethod
    def from_file(
        cls,
        path: str | os.PathLike[str],
        *,
        context: str | Sequence[str],
        response: str,
        template: str | None = None,
        id: str | None = None,
        label: str | None = None,
        group: str | None = None,
        weight: str | None = None,
        query: str | None = None,
        limit: int | None = None,
        seed: int = 0,
        drop_missing: bool = False,
        separator: str | None = None,
        encoding: str | None = None,
        quoting: Quoting = "auto",
        skip_rows: int | Sequence[int] | None = None,
        header_row: int = 1,
        sheet: str | int | None = None,
        value_labels: bool = True,
    ) -> Population:
        """Reads a file by its suffix; every named column is text, exactly as written.

        CSV, TSV, .txt and .dat, JSON, JSON Lines (all also as .gz, .bz2, .xz or .zip), Parquet and,
        with the extra `survey`, Excel, Stata and SPSS, whose coded answers become their labels.
        Empty cells are missing; "NA", "null" and the like are text as they stand. What is guessed,
        passed over or left out is said to the logger "mop_jax".

        Args:
            path: a file, or `package:NAME/rest` for one inside an installed package.
            context: see `from_dataframe`, as for all down to `drop_missing`.
            response: column.
            template: of the context.
            id: column.
            label: column.
            group: column.
            weight: column.
            query: pandas query; columns are numbers in it where all their cells are numbers and
                the query does not compare them with text.
            limit: number of records.
            seed: of the subset.
            drop_missing: leave rows with blanks out.
            separator: of a text file: a character, or comma, semicolon, tab, pipe or blank; by
                default the one under which the named columns are there.
            encoding: such as utf-8, utf-16 or cp1252; by default the byte order mark, UTF-8, or a
                guess.
            quoting: "standard": fields between double quotes may hold separators and line breaks;
                "none": a quote is a character as any other; "auto": standard where the file keeps
                to it.
            skip_rows: rows after the header that hold no answers: how many, or their numbers.
            header_row: which row holds the column names; those above are passed over.
            sheet: of a workbook: its name, or number from 1.
            value_labels: whether codes of Stata and SPSS become their labels.

        Raises:
            DataError: as `from_dataframe`, and if the file is not there, empty or malformed; every
                sentence begins with the file's name.
        """
        columns = NamedColumns(context, response, template, id, label, group, weight)
        name = os.fspath(path)
        table = read_table(
            path,
            needed=columns.all,
            separator=separator,
            encoding=encoding,
            quoting=quoting,
            header_row=header_row,
            sheet=sheet,
            value_labels=value_labels,
        )
        try:
            read = read_records(
                pass_over(table, skip_rows, name), columns, query, drop_missing, name
            )
            population = cls(**read)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        return population if limit is None else population.sample(limit, seed=seed)

    @property
    def frame(self) -> pd.DataFrame:
        """The records as a DataFrame: id, context, response, [label, group,] weight [, twin]."""
        columns: dict[str, Any] = {
            "id": self.ids,
            "context": self.contexts,
            "response": self.responses,
        }
        if self.labels is not None:
            columns["label"] = self.labels
        if self.groups is not None:
            columns["group"] = self.groups
        columns["weight"] = self.weights
        if self.twins is not None:
            columns["twin"] = pd.Series(self.twins, dtype=object)
        return pd.DataFrame(columns)

    @cached_property
    def text_keys(self) -> list[str]:
        """N hashes of (context, response), equal for texts that differ in case or blanks only.

        Records with equal keys count as the same record when one must not see itself.
        """
        return [text_key(x, y) for x, y in zip(self.contexts, self.responses, strict=True)]

    @cached_property
    def response_keys(self) -> list[str | None]:
        """N hashes of long, rare responses (see `twin_keys`); equal ones are one record twice too.

        What is rare is judged once, on the population that was read.
        """
        return twin_keys(self.responses) if self.twins is None else self.twins

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over what was read of the population, in its order."""
        content = [self.ids, self.contexts, self.responses, self.labels, self.groups]
        weights = [float(weight).hex() for weight in self.weights]
        return hashlib.sha256(json.dumps([*content, weights]).encode("utf-8")).hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> Population:
        """The records at these positions, in this order."""
        rows = np.asarray(indices, dtype=np.intp)

        def pick(values: list[Any]) -> list[Any]:
            return [values[row] for row in rows]

        return Population(
            ids=pick(self.ids),
            contexts=pick(self.contexts),
            responses=pick(self.responses),
            labels=None if self.labels is None else pick(self.labels),
            groups=None if self.groups is None else pick(self.groups),
            weights=self.weights[rows],
            twins=pick(self.response_keys),
        )

    def sample(self, limit: int, *, seed: int = 0) -> Population:
        """A random subset of `limit` records in their order; all of them if there are no more."""
        if limit < 1:
            raise DataError(f"limit is {limit}; accepted is a positive integer.")
        if limit >= len(self):
            return self
        rng = np.random.default_rng(seed)
        return self.take(np.sort(rng.choice(len(self), size=limit, replace=False)))

    def split(
        self,
        test_size: int | float,
        *,
        by: SplitBy = "record",
        seed: int = 0,
        train_size: int | float | None = None,
    ) -> tuple[Population, Population]:
        """Splits into (train, test), each in the population's order.

        A training record whose long response is held out too, under another context say, is
        exchanged for another one that is left over, or dropped where none is.

        Args:
            test_size: number of records, or a fraction below 1.
            by: "record" at random; "stratified", with the labels' shares kept in both parts;
                "group", where no group is on both sides: whole groups in random order are held out,
                as many as fit into `test_size`. If `train_size` is given too, groups are shared
                out in the proportion of the two sizes and each part is a random draw from the
                records of its groups.
            seed: of the split.
            train_size: number of records, or a fraction, to keep of the rest; all by default.

        Raises:
            DataError: if there are too few records, or no labels or groups to split by.
        """
        train, test = split_rows(
            len(self),
            test_size,
            by=by,
            labels=self.labels,
            groups=self.groups,
            seed=seed,
            train_size=train_size,
            twins=self.response_keys,
        )
        return self.take(train), self.take(test)


def _refuse_weights(weights: np.ndarray, rows: Sequence[int]) -> None:
    bad = ~(np.isfinite(weights) & (weights > 0))
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(
            f"Row {rows[at]} has the weight {weights[at]:g}; accepted is a positive number."
        )
