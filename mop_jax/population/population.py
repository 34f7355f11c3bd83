"""The population: records (context, response) with optional labels, groups and weights.

`Population` holds validated records and nothing else. `Population.from_dataframe` makes them from
named columns; `files` reads the files, `splits` draws the splits.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.files import read_table
from mop_jax.population.splits import SplitBy, split_rows


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

    Raises:
        DataError: on blank texts, duplicate ids, non-positive weights or unequal lengths.
    """

    ids: list[str]
    contexts: list[str]
    responses: list[str]
    labels: list[str] | None = None
    groups: list[str] | None = None
    weights: np.ndarray = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        num_records = len(self.ids)
        if num_records == 0:
            raise DataError("The population holds no records; at least one is needed.")
        weights = np.asarray(self.weights, dtype=np.float64)
        object.__setattr__(self, "weights", weights if weights.size else np.ones(num_records))
        for name in ("contexts", "responses", "labels", "groups", "weights"):
            values = getattr(self, name)
            if values is not None and len(values) != num_records:
                raise DataError(
                    f"The population has {num_records} ids but {len(values)} {name}; "
                    "there must be one per record."
                )
        rows = range(1, num_records + 1)
        for what in ("ids", "contexts", "responses"):
            _refuse_blank(getattr(self, what), what.removesuffix("s"), rows)
        _refuse_duplicates(self.ids, rows)
        _refuse_weights(self.weights, rows)

    def __len__(self) -> int:
        return len(self.ids)

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
    ) -> Population:
        """Reads records from named columns; leading and trailing blanks of texts are dropped.

        Args:
            df: one row per record.
            context: the column, or columns, that the context is made of.
            response: the column of the response.
            template: Jinja2 template of the context over the context columns, such as
                "Write a review of the film {{ film | replace('_', ' ') | title }}."; needed if
                there are several, and a name that is no context column is refused.
            id: the column of the record ids; the row number (from 1) by default.
            label: the column of the labels.
            group: the column of the groups.
            weight: the column of the weights, positive numbers.
            query: a pandas query; rows that fail it are not read.
            limit: keep a random subset of this many records, in their order, if there are more.
            seed: of that subset.
            drop_missing: leave out rows whose context columns or response are missing or blank,
                instead of refusing them.

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
        contexts = [context] if isinstance(context, str) else list(context)
        if not contexts:
            raise DataError("No context column is named; at least one is needed.")
        if len(contexts) > 1 and template is None:
            raise DataError(
                f"{len(contexts)} context columns are named ({', '.join(contexts)}) but no "
                "template says how they make one context; give one, such as "
                f'"{{{{ {contexts[0]} }}}}".'
            )
        named = [*contexts, response, *(c for c in (id, label, group, weight) if c is not None)]
        _require_columns(df, named)
        if df.empty:
            raise DataError("The data hold no records; at least one row is needed.")
        df = df.set_axis(np.arange(1, len(df) + 1), axis=0)
        if query is not None:
            df = _apply_query(df, query)
        missing = _missing(df[[*contexts, response]])
        if drop_missing:
            df = df[~missing.any(axis=1)]
            if df.empty:
                raise DataError("Every row has a blank context or response; nothing is left.")
        elif missing.to_numpy().any():
            at, which = (int(found[0]) for found in np.nonzero(missing.to_numpy()))
            row, column = df.index[at], missing.columns[which]
            kind = "response" if column == response else "context"
            raise DataError(
                f"Row {row} has an empty {kind} (column {column!r}); accepted is non-blank text, "
                "or set drop_missing to leave such rows out."
            )
        rows = df.index.tolist()
        texts = _render(df[contexts], template)
        _refuse_blank(texts, "context", rows)
        ids = [str(row) for row in rows] if id is None else _strings(df, id, "id")
        _refuse_duplicates(ids, rows)
        weights = np.ones(len(df)) if weight is None else _numbers(df, weight)
        _refuse_weights(weights, rows)
        population = cls(
            ids=ids,
            contexts=texts,
            responses=[str(value).strip() for value in df[response]],
            labels=None if label is None else _strings(df, label, "label"),
            groups=None if group is None else _strings(df, group, "group"),
            weights=weights,
        )
        return population if limit is None else population.sample(limit, seed=seed)

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
    ) -> Population:
        """Reads CSV, TSV (also .gz, .bz2, .xz, .zip), JSON Lines or Parquet by the file's suffix.

        Texts are UTF-8. Empty cells are missing; "NA", "null" and the like are text as they stand.

        Args:
            path: a file, or `package:NAME/rest` for one inside an installed package.
            context: see `from_dataframe`, as for all others.
            response: column.
            template: of the context.
            id: column.
            label: column.
            group: column.
            weight: column.
            query: pandas query.
            limit: number of records.
            seed: of the subset.
            drop_missing: leave rows with blanks out.

        Raises:
            DataError: as `from_dataframe`, and if the file is not there, empty, not UTF-8 or
                malformed; every sentence begins with the file's name.
        """
        contexts = [context] if isinstance(context, str) else list(context)
        # Numbers must not be read into these: "007" is an id and "3.10" an answer.
        as_text = [response, *([id] if id else []), *(contexts if template is None else [])]
        df = read_table(path, as_text=as_text)
        try:
            return cls.from_dataframe(
                df,
                context=contexts,
                response=response,
                template=template,
                id=id,
                label=label,
                group=group,
                weight=weight,
                query=query,
                limit=limit,
                seed=seed,
                drop_missing=drop_missing,
            )
        except DataError as error:
            raise DataError(f"{os.fspath(path)}: {error}") from error

    @property
    def frame(self) -> pd.DataFrame:
        """The records as a DataFrame with columns id, context, response, [label, group,] weight."""
        columns: dict[str, Any] = {
            "id": self.ids,
            "context": self.contexts,
            "response": self.responses,
        }
        if self.labels is not None:
            columns["label"] = self.labels
        if self.groups is not None:
            columns["group"] = self.groups
        return pd.DataFrame({**columns, "weight": self.weights})

    @cached_property
    def text_keys(self) -> list[str]:
        """N hashes of (context, response), equal for texts that differ in case or blanks only.

        Records with equal keys count as the same record when one must not see itself.
        """
        return [text_key(x, y) for x, y in zip(self.contexts, self.responses, strict=True)]

    @cached_property
    def response_keys(self) -> list[str | None]:
        """N hashes of long responses (see `response_key`); equal ones are one record twice too."""
        return [response_key(y) for y in self.responses]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over everything that the population holds, in its order."""
        content = [self.ids, self.contexts, self.responses, self.labels, self.groups]
        weights = [float(weight).hex() for weight in self.weights]
        return hashlib.sha256(json.dumps([*content, weights]).encode("utf-8")).hexdigest()

    def take(self, indices: Sequence[int] | np.ndarray) -> Population:
        """The records at these positions, in this order."""
        rows = np.asarray(indices, dtype=np.intp)

        def pick(values: list[str]) -> list[str]:
            return [values[row] for row in rows]

        return Population(
            ids=pick(self.ids),
            contexts=pick(self.contexts),
            responses=pick(self.responses),
            labels=None if self.labels is None else pick(self.labels),
            groups=None if self.groups is None else pick(self.groups),
            weights=self.weights[rows],
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


# A response of fewer words than this may well be two people's; a longer one is one record twice.
MIN_WORDS_OF_A_TWIN = 8


def response_key(response: str) -> str | None:
    """A hash of a normalised response that is too long to be anybody else's; None for a short one.

    The same review may stand under two spellings of a film's name: whatever its context, it must
    not serve itself as an exemplar, nor be held out from itself.
    """
    if len(response.split()) < MIN_WORDS_OF_A_TWIN:
        return None
    return text_key("", response)


def text_key(context: str, response: str) -> str:
    """A hash of the normalised texts: case folded, runs of blanks collapsed."""
    parts = (" ".join(text.casefold().split()) for text in (context, response))
    return hashlib.sha256("\x00".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]


def _require_columns(df: pd.DataFrame, named: Sequence[str]) -> None:
    for column in named:
        if column not in df.columns:
            there = ", ".join(map(str, df.columns)) or "none"
            raise DataError(f"There is no column {column!r}; the columns are: {there}.")


def _apply_query(df: pd.DataFrame, query: str) -> pd.DataFrame:
    try:
        # Without dictionaries "@name" would reach into this function's own variables.
        kept = df.query(query, local_dict={}, global_dict={}, engine="python")
    except Exception as error:  # pandas raises whatever the expression raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"The query {query!r} could not be applied: {reason}.") from error
    if not isinstance(kept, pd.DataFrame):
        raise DataError(f"The query {query!r} does not select rows; give a condition on columns.")
    if kept.empty:
        raise DataError(f"No row satisfies the query {query!r}.")
    return kept


def _missing(columns: pd.DataFrame) -> pd.DataFrame:
    return columns.apply(lambda c: c.isna() | (c.astype(str).str.strip() == ""))


def _render(columns: pd.DataFrame, template: str | None) -> list[str]:
    if template is None:
        return [str(value).strip() for value in columns.iloc[:, 0]]
    environment = jinja2.sandbox.SandboxedEnvironment(undefined=jinja2.StrictUndefined)
    names = [str(name) for name in columns.columns]
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError as error:
        raise DataError(f"The context template is malformed: {error}.") from error
    texts = []
    for row, values in zip(columns.index, columns.itertuples(index=False, name=None), strict=True):
        try:
            texts.append(compiled.render(dict(zip(names, values, strict=True))).strip())
        except Exception as error:  # the template's own expressions may raise anything
            raise DataError(
                f"The context template fails at row {row}: {error}; "
                f"the context columns are: {', '.join(names)}."
            ) from error
    return texts


def _strings(df: pd.DataFrame, column: str, kind: str) -> list[str]:
    missing = _missing(df[[column]])[column]
    if missing.any():
        raise DataError(
            f"Row {missing.idxmax()} has an empty {kind} (column {column!r}); "
            "every record needs one."
        )
    return [str(value).strip() for value in df[column]]


def _numbers(df: pd.DataFrame, column: str) -> np.ndarray:
    numbers = pd.to_numeric(df[column], errors="coerce").astype("Float64")
    if numbers.isna().any():
        at = int(np.argmax(numbers.isna().to_numpy()))
        raise DataError(
            f"Row {df.index[at]} has the weight {df[column].iloc[at]!r}; "
            "accepted is a positive number."
        )
    return numbers.to_numpy(dtype=np.float64)


def _refuse_blank(values: Sequence[str], kind: str, rows: Sequence[int]) -> None:
    for row, value in zip(rows, values, strict=True):
        if not isinstance(value, str) or not value.strip():
            raise DataError(f"Row {row} has an empty {kind}; accepted is non-blank text.")


def _refuse_duplicates(ids: Sequence[str], rows: Sequence[int]) -> None:
    seen: dict[str, int] = {}
    for row, value in zip(rows, ids, strict=True):
        if value in seen:
            raise DataError(
                f"Rows {seen[value]} and {row} have the same id {value!r}; ids must be distinct."
            )
        seen[value] = row


def _refuse_weights(weights: np.ndarray, rows: Sequence[int]) -> None:
    bad = ~(np.isfinite(weights) & (weights > 0))
    if bad.any():
        at = int(np.argmax(bad))
        raise DataError(
            f"Row {rows[at]} has the weight {weights[at]:g}; accepted is a positive number."
        )
