"""Configurations as YAML files: of one's own, or those that come with the package."""

from __future__ import annotations

import logging
from importlib import resources
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from mop_jax.config.run_config import RunConfig
from mop_jax.config.survey import SurveyConfig
from mop_jax.config.validation import explain, place_of
from mop_jax.errors import DataError
from mop_jax.resources import is_local, resolve_path
from mop_jax.yaml_reader import YamlText

_LOG = logging.getLogger(__name__)


def shipped_configs() -> list[str]:
    """Names of the configurations that come with the package."""
    folder = resources.files("mop_jax.configs")
    return sorted(f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith("yaml"))


# Where a configuration names files; what counts is their contents, wherever they lie.
FILES = (
    ("population", "path"),
    ("personas", "path"),
    ("language_model", "path"),
    ("encoder", "path"),
    ("survey", "path"),
)


def load_config(source: str | Path) -> RunConfig:
    """Reads a configuration file, or a shipped configuration by name (`demo`, `rotten_tomatoes`).

    Paths in a file are counted from its folder, and a run without a name is called as its file is.

    Raises:
        DataError: if there is no such file, it is no YAML, or a field is missing, unknown or
            wrong; names the field and its line.
    """
    text = str(source)
    if text in shipped_configs():
        content = (resources.files("mop_jax.configs") / f"{text}.yaml").read_text("utf-8")
        config = parse_config(content, f"{text}.yaml")
        # What a shipped configuration says is as much a default as the fields' own.
        config.__pydantic_fields_set__.clear()
        return config
    path = Path(text)
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(
            f"{text} was not found; give a YAML file or a shipped configuration "
            f"({', '.join(shipped_configs())})."
        ) from error
    except IsADirectoryError as error:
        raise DataError(
            f"{text} is a folder without manifest.json, so no run folder; give a YAML file or a "
            f"shipped configuration ({', '.join(shipped_configs())})."
        ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{text} could not be read as UTF-8 text: {error}.") from error
    return _counted_from(path, parse_config(content, text))


def parse_config(content: str, where: str) -> RunConfig:
    """Turns YAML text into a configuration; see `load_config` for errors."""
    text = YamlText(content, where)
    if not isinstance(text.values, dict):
        raise DataError(f"{where} must hold named sections such as population and language_model.")
    try:
        return RunConfig.model_validate(text.values)
    except ValidationError as error:
        first = error.errors()[0]
        place = place_of(first, RunConfig)
        field = ".".join(map(str, place)) or "the file"
        more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
        line = text.line_of(place)
        at = "" if line is None else f", line {line}"
        reason = explain(first, RunConfig)
        raise DataError(f"{where}: {field}: {reason}{at}{more}.") from error


def _counted_from(file: Path, config: RunConfig) -> RunConfig:
    """The configuration with its paths counted from its file's folder, as absolute ones."""
    changes: dict[str, object] = {}
    for section, field in FILES:
        given = getattr(getattr(config, section), field, None)
        # A model that lies nowhere here is a hub id; records and personas are always files.
        found = None if given is None else _local_file(file, section, given)
        if found is not None:
            changes[section] = getattr(config, section).model_copy(update={field: found})
    if config.survey is not None and isinstance(config.survey.questions, str):
        changes["survey"] = _with_codebook(file, changes.get("survey", config.survey))
    if "name" not in config.model_fields_set and file.stem:
        changes["name"] = file.stem
    given_fields = set(config.model_fields_set)
    changed = config.model_copy(update=changes)
    # A name that nobody gave stays one that may be passed over.
    changed.__pydantic_fields_set__.clear()
    changed.__pydantic_fields_set__.update(given_fields)
    return changed


def _with_codebook(file: Path, survey: Any) -> SurveyConfig:
    """The section with its codebook's questions in it: what they say decides."""
    given = survey.questions
    path = _local_file(file, "survey", given) or given
    try:
        content = resolve_path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{given} could not be read as UTF-8 text: {error}.") from error
    values = YamlText(content, given).values
    book = values if isinstance(values, dict) else {"questions": values}
    fields = survey.model_dump(exclude_unset=True) | {
        "questions": book.get("questions"),
        "missing": [*survey.missing, *(book.get("missing") or [])],
    }
    try:
        return SurveyConfig.model_validate(fields)
    except ValidationError as error:
        first = error.errors()[0]
        raise DataError(f"{given}: {explain(first, SurveyConfig)}.") from error


def _local_file(file: Path, section: str, given: str) -> str | None:
    path = Path(given).expanduser()
    if not is_local(given) or path.is_absolute():
        return str(path) if given.startswith("~") else None
    beside = file.parent / path
    if beside.exists():
        return str(beside.resolve())
    if path.exists():
        _LOG.warning(
            "%s: %s.path %s was not found beside the file, from which paths are counted; taken is "
            "%s, where you stand.",
            file,
            section,
            given,
            path.resolve(),
        )
        return str(path.resolve())
    return str(beside.absolute()) if section in ("population", "personas", "survey") else None
