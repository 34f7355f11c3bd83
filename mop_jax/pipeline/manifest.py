"""`manifest.json`: reading it, older forms of it too, and comparing configurations."""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Collection, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from mop_jax.config import FILES, RunConfig
from mop_jax.errors import DataError, FaultError
from mop_jax.pipeline.steps import STEPS, SURVEY_STEPS, Step, steps_of, with_needs

_PACKAGES = (
    "mop-jax",
    "jax",
    "jaxlib",
    "flax",
    "numpyro",
    "optax",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "numpy",
    "arviz",
    "pandas",
    "scikit-learn",
)
FORMAT = "mop-jax run 2"
_FIRST_FORMAT = "mop-jax run 1"
# Artefacts by their name of today, and what they were called before.
RENAMED = {"posterior.safetensors": "gate.safetensors"}
# Fields that were not there when a run of the first format was made, where what was done then is
# not what today's default does.
_MEANT_BEFORE: dict[str, dict[str, Any]] = {"model": {"gate": "bilinear"}}
# Which parts of the configuration the steps of the first format read, besides those before them.
_FIRST_SECTIONS = {
    "personas": ("seed", "population", "split", "language_model", "encoder", "personas",
                 "exemplars"),
    "score": ("prompt", "candidates", "temperatures"),
    "fit": ("model", "inference"),
    "evaluate": ("evaluation",),
    "simulate": ("simulation",),
    "figures": ("name",),
}  # fmt: skip
_FIRST_NEEDS = {
    "personas": (),
    "score": ("personas",),
    "fit": ("score",),
    "evaluate": ("fit",),
    "simulate": ("fit",),
    "figures": ("evaluate", "simulate"),
}
# Fields of the language model's that say how it is run, not what comes of it.
_RESOURCES = ("mesh", "memory_gib")


# What a run was before there was a field for it, where that is not the field's default.
_MEANT_SINCE = {("survey", "preference"): False}


def read_manifest(path: Path, *, anew: bool = False) -> dict[str, Any] | None:
    """The manifest of a run folder, or None where there is none yet.

    Args:
        path: the folder.
        anew: take a folder that has lost its manifest for one that is yet to be filled.

    Raises:
        DataError: if the folder holds files but no manifest.
        FaultError: if the manifest is damaged.
    """
    file = path / "manifest.json"
    if not file.exists():
        _refuse_other_folders(path, anew)
        return None
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if {"configuration", "sources", "steps"} <= manifest.keys():
            if manifest["format"] == FORMAT:
                return _with_new_fields(manifest)
            if manifest["format"] == _FIRST_FORMAT:
                return _from_first_format(manifest)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        pass
    except ValidationError as error:
        raise FaultError(
            f"{file} holds a configuration of another version; give the configuration file, and "
            "another folder with --out."
        ) from error
    raise FaultError(
        f"{file} is damaged or of another version; choose another folder with --out, or delete "
        "the file and begin anew with --update, which keeps the scores in likelihoods/."
    )


def _refuse_other_folders(path: Path, anew: bool) -> None:
    found = path.iterdir() if path.exists() else ()
    others = {p.name for p in found if not p.name.startswith(".")}
    scores = others == {"likelihoods"}
    steps = (*STEPS, *SURVEY_STEPS)
    own = {name.partition("/")[0] for step in steps for name in step.outputs}
    own |= set(RENAMED.values())
    own |= {"likelihoods", "figures", "ablations"}
    if not others or scores:
        return
    if "likelihoods" not in others or others - own:
        raise DataError(
            f"{path} is not empty and no run folder (it has no manifest.json); choose another "
            "folder with --out."
        )
    if not anew:
        raise DataError(
            f"{path} has lost its manifest.json, without which nobody knows what its files were "
            "made from; --update begins anew there and keeps the scores in likelihoods/, which "
            "are known by their content, or choose another folder with --out."
        )


def _with_new_fields(manifest: dict[str, Any]) -> dict[str, Any]:
    """A manifest in which fields that came later have the defaults that did not exist then."""
    meant = dict(manifest["configuration"])
    for (section, field), value in _MEANT_SINCE.items():
        if isinstance(meant.get(section), dict):
            meant[section] = {field: value, **meant[section]}
    model = RunConfig.model_validate(meant)
    config = model.model_dump(mode="json")
    known = without_resources(config)
    own = {step.name for step in steps_of(model)}
    steps = {}
    for name, entry in manifest["steps"].items():
        inputs = entry.get("inputs", {})
        sections = {
            section: {**known[section], **content}
            if isinstance(content, dict) and isinstance(known.get(section), dict)
            else content
            for section, content in inputs.get("configuration", {}).items()
        }
        if name in own:
            parts = with_needs(name, steps=steps_of(model))
            sections |= _fields_since(parts, known, manifest["configuration"])
        steps[name] = (
            {**entry, "inputs": {**inputs, "configuration": sections}} if inputs else entry
        )
    return {**manifest, "configuration": config, "steps": steps}


def _fields_since(
    steps: Sequence[Step], known: dict[str, Any], stored: dict[str, Any]
) -> dict[str, Any]:
    """What steps read field by field (`survey.history`) and did not exist when they were done."""
    found = {}
    for entry in [part for step in steps for part in step.sections]:
        section, _, field = entry.partition(".")
        before = stored.get(section)
        if field and isinstance(before, dict) and field not in before and field in known[section]:
            found[entry] = known[section][field]
    return found


def _from_first_format(old: dict[str, Any]) -> dict[str, Any]:
    """A manifest of the first format in today's."""
    raw = old["configuration"]
    filled = dict(raw)
    for section, fields in _MEANT_BEFORE.items():
        known = getattr(RunConfig.model_fields[section].annotation, "model_fields", {})
        meant = {name: value for name, value in fields.items() if name in known}
        filled[section] = {**meant, **raw[section]}
    config = RunConfig.model_validate(filled)
    prints: dict[str, str] = {}
    steps: dict[str, Any] = {}
    sources = {
        name: {"digest": found if name == "population" else None, "fingerprint": found}
        for name, found in old["sources"].items()
    }
    for step in STEPS:
        entry = old["steps"].get(step.name)
        if step.name not in _FIRST_SECTIONS:
            continue
        sections = {name: raw[name] for name in _FIRST_SECTIONS[step.name] if name in raw}
        if "language_model" in sections:
            kept = sections["language_model"].items()
            sections["language_model"] = {k: v for k, v in kept if k not in _RESOURCES}
        needs = [prints[name] for name in _FIRST_NEEDS[step.name]]
        prints[step.name] = _first_fingerprint(step.name, sections, needs)
        if not entry or entry["state"] != "done" or entry["fingerprint"] != prints[step.name]:
            continue
        names = {former: name for name, former in RENAMED.items()}
        outputs = {names.get(name, name): digest for name, digest in entry["outputs"].items()}
        steps[step.name] = {**entry, "outputs": outputs, "inputs": {}}
    for step in STEPS:
        if step.name in steps:
            written = {name: entry["outputs"] for name, entry in steps.items()}
            steps[step.name]["inputs"] = step_inputs(
                step.name, config, {n: s["digest"] for n, s in sources.items()}, written, version=1
            )
    return {
        **old,
        "configuration": config.model_dump(mode="json"),
        "given": [],
        "sources": sources,
        "steps": steps,
    }


def _first_fingerprint(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def step_inputs(
    name: str,
    config: RunConfig,
    digests: dict[str, str | None],
    written: dict[str, dict[str, str]],
    *,
    version: int | None = None,
) -> dict[str, Any]:
    """All that a step is made from.

    Args:
        name: of the step.
        config: the configuration.
        digests: what the inputs hold, by name; those that nobody knows may be left out.
        written: digests of the artefacts of each finished step.
        version: of the step; today's by default.
    """
    *before, step = with_needs(name, steps=steps_of(config))
    dumped = without_resources(config.model_dump(mode="json"))
    sections: dict[str, Any] = {}
    for entry in [part for each in (*before, step) for part in each.sections]:
        section, _, field = entry.partition(".")
        if not field:
            sections[section] = dumped[section]
        elif entry not in sections and field in dumped[section]:
            sections[entry] = dumped[section][field]
    return {
        "version": step.version if version is None else version,
        "configuration": sections,
        "inputs": {entry: digests.get(entry) for entry in step.inputs},
        "artefacts": {n: d for each in before for n, d in written.get(each.name, {}).items()},
    }


def without_resources(configuration: dict[str, Any]) -> dict[str, Any]:
    """A configuration's dump without what does not decide on results.

    That is how a model is run, the run's name, and where files lie: they are known by content.
    """
    aside = {*FILES, *(("language_model", field) for field in _RESOURCES)}
    return {
        section: {k: v for k, v in content.items() if (section, k) not in aside}
        if isinstance(content, dict)
        else content
        for section, content in configuration.items()
        if section != "name"
    }


def given_fields(model: BaseModel, prefix: str = "") -> set[str]:
    """Dotted names of the fields that somebody set, rather than their defaults."""
    found: set[str] = set()
    for name in model.model_fields_set:
        value = getattr(model, name)
        if isinstance(value, BaseModel):
            found |= given_fields(value, f"{prefix}{name}.")
        else:
            found.add(prefix + name)
    return found


def with_given(config: RunConfig, given: Collection[str]) -> RunConfig:
    """A copy of a configuration in which these fields count as set by somebody."""
    copied = config.model_copy(deep=True)
    for name in type(config).model_fields:
        value = getattr(copied, name)
        if isinstance(value, BaseModel):
            own = {field.partition(".")[2] for field in given if field.startswith(f"{name}.")}
            _set_given(value, own)
    _set_given(copied, {field.partition(".")[0] for field in given})
    return copied


def _set_given(model: BaseModel, names: Collection[str]) -> None:
    model.__pydantic_fields_set__.clear()
    model.__pydantic_fields_set__.update(names)


def first_difference(
    old: Any, new: Any, among: Collection[str], where: str = ""
) -> tuple[str, Any, Any] | None:
    """The first field of `among` in which two configurations differ: (field, old, new)."""
    if isinstance(old, dict) and isinstance(new, dict) and where.count(".") == 0:
        for key in [*new, *(k for k in old if k not in new)]:
            inner = f"{where}.{key}" if where else key
            found = first_difference(old.get(key), new.get(key), among, inner)
            if found:
                return found
        return None
    return None if old == new or where not in among else (where, old, new)


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
