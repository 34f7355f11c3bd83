"""The two little languages of a configuration: pandas queries and Jinja2 templates over columns."""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Sequence
from typing import Any

import jinja2
import jinja2.sandbox
import numpy as np
import pandas as pd

from mop_jax.errors import DataError
from mop_jax.population.table import Table, find_column, tidy

_BACKTICKED = re.compile(r"`([^`]+)`")


def rows_of_query(table: Table, query: str) -> np.ndarray:
    """Positions of the rows that satisfy a pandas query.

    A column is compared as text where the query compares it with text (`zip == '02139'`), else as
    numbers where all its cells are numbers.

    Raises:
        DataError: if the query cannot be applied, names a column twice there, or no row satisfies
            it.
    """
    names = _names_in(query, table.names)
    as_text = _compared_with_text(query, table.names)
    frame = {}
    for name in names:
        column = table.columns[find_column(table.names, name)]
        values = column.values
        if name in as_text and pd.api.types.is_numeric_dtype(values):
            values = pd.Series(column.texts(table.rows), dtype="string")
        frame[name] = values
    df = pd.DataFrame(frame).set_axis(table.rows)
    try:
        # Without dictionaries "@name" would reach into this function's own variables.
        kept = df.query(query, local_dict={}, global_dict={}, engine="python")
    except Exception as error:  # pandas raises whatever the expression raises
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        texts = [n for n in names if frame[n].dtype == "string" and n not in as_text]
        hint = f" (the columns are: {', '.join(table.names)})" if "not defined" in reason else ""
        if texts and isinstance(error, TypeError):
            hint = f" (not all cells of {' and '.join(map(repr, texts))} are numbers)"
        raise DataError(f"The query {query!r} could not be applied: {reason}{hint}.") from error
    if not isinstance(kept, pd.DataFrame) or len(kept.columns) != len(df.columns):
        raise DataError(f"The query {query!r} does not select rows; give a condition on columns.")
    if kept.empty:
        raise DataError(f"No row satisfies the query {query!r}.")
    return np.searchsorted(table.rows, kept.index.to_numpy())


def _names_in(query: str, names: Sequence[str]) -> list[str]:
    quoted = set(_BACKTICKED.findall(query))
    plain = set(re.findall(r"[^\W\d]\w*", _BACKTICKED.sub(" ", query)))
    found = [name for name in dict.fromkeys(names) if name in quoted | plain]
    # A query without any column, such as "index < 3", still has rows.
    return found or list(dict.fromkeys(names))[:1]


def _compared_with_text(query: str, names: Sequence[str]) -> set[str]:
    """Columns that the query compares with text, or takes `.str` of."""
    stands: dict[str, str] = {}

    def placeholder(match: re.Match[str]) -> str:
        key = f"_column_{len(stands)}_"
        stands[key] = match.group(1)
        return key

    try:
        tree = ast.parse(_BACKTICKED.sub(placeholder, query).strip(), mode="eval")
    except SyntaxError:
        return set()
    found: set[str] = set()

    def columns(node: ast.AST) -> set[str]:
        return {stands.get(n.id, n.id) for n in ast.walk(node) if isinstance(n, ast.Name)}

    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            if any(_is_text(side) for side in sides):
                found |= set().union(*(columns(side) for side in sides if not _is_text(side)))
        elif isinstance(node, ast.Attribute) and node.attr == "str":
            found |= columns(node.value)
    return found & set(names)


def _is_text(node: ast.AST) -> bool:
    if isinstance(node, ast.List | ast.Tuple | ast.Set):
        return bool(node.elts) and all(map(_is_text, node.elts))
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


class Cell(str):
    """A cell in a template: text as written that is also a number, where its column holds numbers.

    `{{ zip }}` is 02139, and `{{ age + 1 }}` and `{% if age > 50 %}` work as well.
    """

    value: Any

    def __new__(cls, text: str, value: Any) -> Cell:
        """The text, with the value that it stands for."""
        cell = super().__new__(cls, text)
        cell.value = value
        return cell

    def __hash__(self) -> int:
        return str.__hash__(self)

    def __bool__(self) -> bool:
        return bool(self.value)

    def __int__(self) -> int:
        return int(self.value)

    def __float__(self) -> float:
        return float(self.value)

    def __index__(self) -> int:
        return operator.index(self.value)

    def __round__(self, digits: int = 0) -> Any:
        return round(self.value, digits)


def _compare(name: str) -> Callable[[Cell, Any], Any]:
    as_text, as_number = getattr(str, name), getattr(operator, name.strip("_"))

    def method(self: Cell, other: Any) -> Any:
        if isinstance(other, Cell) and name not in ("__eq__", "__ne__"):
            other = other.value
        if isinstance(other, int | float):
            return as_number(self.value, other)
        return as_text(self, other)

    return method


def _calculate(name: str, reflected: bool) -> Callable[[Cell, Any], Any]:
    function = getattr(operator, name)

    def method(self: Cell, other: Any) -> Any:
        other = other.value if isinstance(other, Cell) else other
        if isinstance(other, int | float):
            return function(other, self.value) if reflected else function(self.value, other)
        as_text = getattr(str, f"__{'r' if reflected else ''}{name}__", None)
        return NotImplemented if as_text is None else as_text(self, other)

    return method


def _signed(name: str) -> Callable[[Cell], Any]:
    function = getattr(operator, name)
    return lambda self: function(self.value)


for _name in ("__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"):
    setattr(Cell, _name, _compare(_name))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow"):
    setattr(Cell, f"__{_name}__", _calculate(_name, reflected=False))
    setattr(Cell, f"__r{_name}__", _calculate(_name, reflected=True))
for _name in ("neg", "pos", "abs"):
    setattr(Cell, f"__{_name}__", _signed(_name))


class _Environment(jinja2.sandbox.SandboxedEnvironment):
    """Looks a cell up as the number that it is, too: `{{ {1: 'good', 2: 'bad'}[stars] }}`."""

    def getitem(self, obj: Any, argument: Any) -> Any:
        if isinstance(argument, Cell):
            by_text = isinstance(obj, dict) and str(argument) in obj
            argument = str(argument) if by_text else argument.value
        return super().getitem(obj, argument)


def render_contexts(table: Table, columns: Sequence[str], template: str | None) -> list[str]:
    """The context of each row: the only column's text, or the template over all of them.

    Columns are variables by their name; by their name with "_" for what no name may hold; and as
    `row["any name"]`.

    Raises:
        DataError: if the template is malformed or fails at a row.
    """
    texts = [table.texts(name) for name in columns]
    if template is None:
        return ["" if text is None else text.strip() for text in texts[0]]
    environment = _Environment(undefined=jinja2.StrictUndefined)
    odd = [name for name in columns if not name.isidentifier()]
    hint = "".join(
        f'; a name that is no single word is written {{{{ row["{name}"] }}}} or '
        f"{{{{ {_identifier(name)} }}}}"
        for name in odd[:1]
    )
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError as error:
        raise DataError(f"The context template is malformed: {error}{hint}.") from error
    cells = [
        _cells(text, table.column(name).values) for name, text in zip(columns, texts, strict=True)
    ]
    contexts = []
    for row, values in zip(table.rows, zip(*cells, strict=True), strict=True):
        try:
            contexts.append(compiled.render(_variables(columns, values)).strip())
        except Exception as error:  # the template's own expressions may raise anything
            raise DataError(
                f"The context template fails at row {row}: {error}; "
                f"the context columns are: {', '.join(columns)}{hint}."
            ) from error
    return contexts


def _variables(names: Sequence[str], values: Sequence[Any]) -> dict[str, Any]:
    given = dict(zip(names, values, strict=True))
    plain = [_identifier(name) for name in names]
    spoken = {p: v for p, v in zip(plain, values, strict=True) if plain.count(p) == 1}
    return {"row": given, **spoken, **given}


def _identifier(name: str) -> str:
    word = re.sub(r"\W+", "_", tidy(name)).strip("_")
    return word if word.isidentifier() else f"_{word}"


def _cells(texts: Sequence[str | None], values: pd.Series) -> list[Any]:
    if pd.api.types.is_numeric_dtype(values) or pd.api.types.is_bool_dtype(values):
        pairs = zip(texts, values.tolist(), strict=True)
        return [t if t is None or pd.isna(v) else Cell(t, v) for t, v in pairs]
    return list(texts)
