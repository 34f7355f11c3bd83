"""Which code a saved posterior belongs to: functions and classes known by more than their names.

Files never hold code. What they hold instead is an `Identity`: a name, whether it is one that
mop_jax ships, and a hash of what the code says. A copy of a shipped model under its old name is
thus another model, and an edited model is not what it was.
"""

from __future__ import annotations

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np

import mop_jax.distributions
import mop_jax.models

_SHIPPED = (mop_jax.models, mop_jax.distributions)


class Identity(NamedTuple):
    """What is known of a function or class without having it.

    Attributes:
        name: its name.
        module: where it was defined; for a reader, nothing is looked up there.
        shipped: whether it is the one of this name in `mop_jax.models` or `mop_jax.distributions`.
        code: hash of what its code says (`code_hash`).
    """

    name: str
    module: str
    shipped: bool
    code: str


def identity_of(thing: Callable[..., Any]) -> Identity:
    """The identity of a function, a class, or a partial application of one."""
    inner = thing
    while isinstance(inner, partial):
        inner = inner.func
    inner = inner if hasattr(inner, "__qualname__") else type(inner)
    name = inner.__qualname__
    return Identity(name, inner.__module__, shipped(name) is thing, code_hash(thing))


def shipped(name: str) -> Any:
    """What mop_jax ships under this name, or None."""
    found = (getattr(module, name, None) for module in _SHIPPED)
    return next((thing for thing in found if thing is not None), None)


def code_hash(thing: Any) -> str:
    """SHA-256 of what the code of a function or class says.

    That is its syntax tree without docstrings, annotations and layout, the values that it closes
    over, and the same of every function, class and plain constant of its own package that it names.
    """
    digest = hashlib.sha256()
    waiting, seen = [thing], set()
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, str | bytes | int | float | complex | None):
            digest.update(f"{type(part).__name__} {part!r};".encode())
        elif hasattr(part, "__array__"):
            values = np.asarray(part)
            digest.update(f"{values.dtype} {values.shape};".encode() + values.tobytes())
        elif isinstance(part, partial):
            waiting = [part.func, *part.args, *sorted(part.keywords), *waiting]
            waiting += [value for _, value in sorted(part.keywords.items())]
        elif id(part) not in seen:
            seen.add(id(part))
            code = part if hasattr(part, "__qualname__") else type(part)
            code = inspect.unwrap(code)
            digest.update(_text(code))
            waiting += _named(code)
    return digest.hexdigest()


def _text(code: Any) -> bytes:
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(code)))
    except (OSError, TypeError, SyntaxError):  # typed at a prompt, or a part of a line
        compiled = getattr(code, "__code__", None)
        if compiled is None:
            return f"{code.__module__}.{code.__qualname__};".encode()
        constants = [c for c in compiled.co_consts if not inspect.iscode(c)]
        version = sys.version_info[:2]
        return f"{version} {compiled.co_code!r} {compiled.co_names} {constants};".encode()
    return ast.dump(_Meaning().visit(tree)).encode()


def _named(code: Any) -> list[Any]:
    """Values, functions and classes of its own package that a function or class names."""
    functions = [code] if inspect.isfunction(code) else []
    if inspect.isclass(code):
        methods = [f for _, f in sorted(vars(code).items()) if inspect.isfunction(f)]
        # What wraps a method, as a checker of types does, is not what it says.
        functions = [inspect.unwrap(method) for method in methods]
    named: dict[str, Any] = {}
    closed: dict[str, Any] = {}
    for function in functions:
        variables = inspect.getclosurevars(function)
        named |= variables.globals
        closed |= variables.nonlocals
    own = [value for _, value in sorted(named.items()) if _is_value(value) or _of(code, value)]
    # What a function closes over is part of it, wherever it comes from.
    return own + [value for _, value in sorted(closed.items()) if _is_value(value) or _code(value)]


def _is_value(thing: Any) -> bool:
    plain = str | bytes | int | float | complex | None | partial
    return isinstance(thing, plain) or hasattr(thing, "__array__")


def _code(thing: Any) -> bool:
    return inspect.isfunction(thing) or inspect.isclass(thing)


def _of(code: Any, thing: Any) -> bool:
    return _code(thing) and _package(thing) == _package(code)


def _package(code: Any) -> str:
    module = sys.modules.get(str(code.__module__))
    return getattr(module, "__package__", None) or str(code.__module__)


class _Meaning(ast.NodeTransformer):
    """Leaves of a syntax tree what can change a result."""

    def _simplified(self, node: Any) -> Any:
        self.generic_visit(node)
        node.returns = None
        first = node.body[0]
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            node.body = node.body[1:]
        return node

    visit_FunctionDef = visit_ClassDef = _simplified

    def visit_arg(self, node: ast.arg) -> ast.arg:
        """Drops the annotation."""
        node.annotation = None
        return node
