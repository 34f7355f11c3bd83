"""What is wrong with a configuration, in words of its own: the field and what it accepts."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any, get_args

from pydantic import BaseModel

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "string": "text (in quotes, where it could be taken for a number)",
    "list": "a list",
    "tuple": "a list",
    "dict": "named fields",
    "model": "named fields",
    "model_attributes": "named fields",
    "dataclass": "named fields",
}
_BOUNDS = {
    "greater_than": ("gt", "more than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}


def explain(detail: Any, model: type[BaseModel]) -> str:
    """One of pydantic's complaints as a clause that says what is accepted.

    Args:
        detail: an entry of `ValidationError.errors()`.
        model: the model that was to be made.
    """
    kind, context, given = detail["type"], detail.get("ctx", {}), detail.get("input")
    if kind == "extra_forbidden":
        return _unknown_field(detail["loc"], model)
    if kind == "missing":
        return "this field is required"
    if kind in _BOUNDS:
        bound, words = _BOUNDS[kind]
        return f"accepted is {words} {context[bound]:g}, not {_shown(given)}"
    if kind == "finite_number":
        return f"accepted is a finite number, not {_shown(given)}"
    if kind in ("literal_error", "enum"):
        return f"accepted is {context['expected']}, not {_shown(given)}"
    if kind == "string_pattern_mismatch":
        return f"{_shown(given)} does not have the form {context['pattern']}"
    if kind in ("value_error", "assertion_error"):
        return str(context.get("error", detail["msg"])).rstrip(".")
    if kind == "int_from_float":
        return f"accepted is a whole number (an integer), not {_shown(given)}"
    stem = kind.removesuffix("_type").removesuffix("_parsing")
    if stem in _KINDS:
        accepted = _KINDS[stem] + (" (an integer)" if stem == "int" else "")
        return f"accepted is {accepted}, not {_shown(given)}"
    return str(detail["msg"])


def place_of(detail: Any, model: type[BaseModel]) -> list[int | str]:
    """The path of the field that a complaint is about, without pydantic's branches of unions."""
    place: list[int | str] = []
    current: Any = model
    for part in detail["loc"]:
        fields = getattr(current, "model_fields", None)
        if fields is None and isinstance(part, str):
            break
        place.append(part)
        current = _model_in(fields[part].annotation) if fields and part in fields else None
    return place


def _model_in(annotation: Any) -> Any:
    """The model that an annotation such as `X | None` is about, if any."""
    for candidate in (annotation, *get_args(annotation)):
        if isinstance(candidate, type) and issubclass(candidate, BaseModel):
            return candidate
    return None


def _shown(value: Any) -> str:
    text = {None: "null", True: "true", False: "false"}[value] if _is_word(value) else repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _is_word(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _unknown_field(place: tuple[int | str, ...], model: Any) -> str:
    """What is accepted where the field at `place` was given."""
    for part in place[:-1]:
        known = getattr(model, "model_fields", {}).get(part)
        model = _model_in(known.annotation) if known else None
    accepted = list(getattr(model, "model_fields", {}))
    near = get_close_matches(str(place[-1]), accepted, 1)
    if near:
        return f"this is no field; the nearest is {near[0]}"
    return "this is no field" + (f"; accepted are {', '.join(accepted)}" if accepted else "")
