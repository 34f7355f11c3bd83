"""YAML read so that nothing in it is dropped or taken for something else.

PyYAML follows YAML 1.1, where the second of two equal keys silently wins, `no` is a boolean, `010`
is eight, `12:30` is 750 and `1e-3` is text. Here equal keys are refused with their lines, and plain
words are what YAML 1.2 takes them for: only `true` and `false` are booleans, only decimal digits
without leading zeros are integers, and `1e-3` is a number. Keys are names, save below `recode`,
where they are a file's codes, as written: `1: Very liberal`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import yaml

from mop_jax.errors import DataError

_TEXT = "tag:yaml.org,2002:str"
_CODED = "recode"


class _Loader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2 and without repeated keys."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 (PyYAML's own convention)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Builds a mapping; keys must be text and differ."""
        seen: dict[str, int] = {}
        for key, value in node.value:
            if key.value == _CODED and isinstance(value, yaml.MappingNode):
                for code, _ in value.value:
                    if isinstance(code, yaml.ScalarNode):
                        code.tag = _TEXT
            line = key.start_mark.line + 1
            if key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.tag != _TEXT:
                shown = key.value if isinstance(key, yaml.ScalarNode) else "a list or mapping"
                raise _Refusal(line, f"{shown!r} is no name; put it in quotes, or name a field")
            if key.value in seen:
                raise _Refusal(
                    line,
                    f"{key.value!r} is given a second time (first on line {seen[key.value]}); "
                    "keep one of them",
                )
            seen[key.value] = line
        return super().construct_mapping(node, deep)


class _Refusal(Exception):
    """What is wrong on a line."""

    def __init__(self, line: int, reason: str):
        super().__init__(reason)
        self.line, self.reason = line, reason


_SCALARS = {
    "bool": (r"(?:true|True|TRUE|false|False|FALSE)$", "tTfF"),
    "null": (r"(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
    "int": (r"[-+]?(?:0|[1-9][0-9]*)$", "-+0123456789"),
    "float": (
        r"(?:[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))$",
        "-+.0123456789",
    ),
    "merge": (r"(?:<<)$", "<"),
}
for _kind, (_pattern, _first) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(_pattern), list(_first))
# PyYAML's own reads what its patterns match; ours match more: `1e-3` has no point.


def _float(loader: yaml.SafeLoader, node: Any) -> float:
    return float(re.sub(r"\.(inf|nan)", r"\1", loader.construct_scalar(node).lower()))


_Loader.add_constructor("tag:yaml.org,2002:float", _float)


class YamlText:
    """A YAML document and where its parts stand.

    Attributes:
        values: what it holds.
    """

    def __init__(self, content: str, where: str):
        """Reads a document.

        Args:
            content: its text.
            where: the name of its file.

        Raises:
            DataError: if it is no YAML or holds a key twice; names the line.
        """
        loader = _Loader(content)
        try:
            self._node = loader.get_single_node()
            self.values: Any = None if self._node is None else loader.construct_document(self._node)
        except _Refusal as error:
            raise DataError(f"{where}, line {error.line}: {error.reason}.") from error
        except yaml.YAMLError as error:
            raise DataError(f"{where} is not valid YAML: {_reason(error, content)}.") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where} is not valid YAML: {error}.") from error
        finally:
            loader.dispose()

    def line_of(self, place: Sequence[int | str]) -> int | None:
        """The line, from 1, on which a field stands, or the innermost part of it that is there."""
        node, line = self._node, None
        for part in place:
            if isinstance(node, yaml.MappingNode):
                found = [(k, v) for k, v in node.value if k.value == part]
                if not found:
                    break
                line, node = found[0][0].start_mark.line + 1, found[0][1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(part, int):
                node = node.value[part]
                line = node.start_mark.line + 1
            else:
                break
        return line


def _reason(error: yaml.YAMLError, content: str) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split()).rstrip(".")
    line = content.split("\n")[mark.line] if mark.line < content.count("\n") + 1 else ""
    if (
        "\t" in line[: len(line) - len(line.lstrip())]
        or line[mark.column : mark.column + 1] == "\t"
    ):
        return f"line {mark.line + 1} has a tab; indent with blanks"
    problem = getattr(error, "problem", None) or str(error)
    return f"line {mark.line + 1}, column {mark.column + 1}: {' '.join(problem.split())}"
