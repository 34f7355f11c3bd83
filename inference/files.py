"""The posterior's file: one safetensors file, no pickles, no code.

Arrays are tensors. What is no array (which model, its arguments, the shape of nested parameters) is
JSON in the file's header.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from mop_jax import atomic, models
from mop_jax.distributions import PersonaMixture
from mop_jax.errors import DataError, FaultError
from mop_jax.inference.posterior import Posterior, model_name
from mop_jax.inference.provenance import Identity, code_hash, identity_of, shipped
from mop_jax.inference.svi import latent_sites
from mop_jax.models import (
    BareComponents,
    Choices,
    FeatureMap,
    FeatureMaps,
    MixtureData,
    SimilarityMap,
)

_FORMAT = "mop-jax posterior 2"
# Without the model's identity, the draws' origin and nested parameters; such files still open.
_FIRST_FORMAT = "mop-jax posterior 1"
_HEADER_KEY = "mop_jax"


def save_posterior(path: Any, posterior: Posterior) -> None:
    """Writes `posterior` to one safetensors file, atomically; no pickles.

    Raises:
        DataError: if an argument of the model cannot be written.
    """
    tensors = {name: np.array(value, order="C") for name, value in _tensors(posterior)}
    header = {
        "format": _FORMAT,
        "model": identity_of(posterior.model)._asdict(),
        "model_kwargs": _encode_kwargs(posterior.model_kwargs),
        "params": _outline(posterior.params, "params", tensors),
        "sampler": posterior.sampler,
        "num_chains": posterior.num_chains,
    }
    # One key: safetensors writes several in an order that changes from run to run.
    text = json.dumps(header, sort_keys=True)
    ordered = dict(sorted(tensors.items()))
    atomic.write_bytes(path, save(ordered, metadata={_HEADER_KEY: text}))


def load_posterior(
    path: Any,
    *,
    model: Callable[..., PersonaMixture] | None = None,
    model_kwargs: Mapping[str, Any] | None = None,
) -> Posterior:
    """Reads what `save_posterior` wrote, bit for bit.

    Args:
        path: the file.
        model: the model function; needed for a model of one's own, since files never hold code.
            A warning says so if its code is not what it was when the posterior was saved.
        model_kwargs: arguments of the model that replace the file's; needed where one of them is a
            class or function of one's own.

    Raises:
        FaultError: if the file is missing, damaged, or of another kind.
        DataError: if it needs a model, or an argument, that mop_jax does not ship and that is not
            given; or if the model's sites are not those of the draws.
    """
    with _open(path) as file:
        header = _header(path, file)
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118

    def group(prefix: str) -> dict[str, np.ndarray]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    arrays: dict[str, Any] = group("data/")
    maps = group("feature_map/")
    feature_maps = FeatureMaps(
        *(FeatureMap(maps[f"{kind}/mean"], maps[f"{kind}/basis"]) for kind in FeatureMaps._fields)
    )
    compared = group("similarity/")
    similarity = None
    if compared:  # files of earlier versions have none
        similarity = SimilarityMap(*(compared.get(name) for name in SimilarityMap._fields))
    answered = group("choices/")
    choices = Choices(**answered, groups=group("choice_group/")) if answered else None
    bare = group("bare/")
    parts: dict[str, Any] = {
        "groupings": group("grouping/") or None,
        "bare": BareComponents(**bare) if bare else None,
    }
    outline, samples = header.get("params"), group("samples/")
    saved_kwargs, found = header["model_kwargs"], _model(path, header["model"], model)
    if found is models.mixture_of_personas and "gate.context_kernel" in samples:
        # Files from before there was a choice of gates do not name the paper's.
        saved_kwargs = {"gate": "bilinear", **saved_kwargs}
    posterior = Posterior(
        samples,
        found,
        _decode_kwargs(path, saved_kwargs, model_kwargs or {}),
        MixtureData(
            **arrays, **parts, feature_maps=feature_maps, similarity=similarity, choices=choices
        ),
        group("params/") if outline is None else _filled(outline, tensors),
        tensors["losses"],
        header.get("sampler", ""),
        header.get("num_chains"),
    )
    check_sites(posterior, path)
    return posterior


def _model(
    path: Any, saved: str | Mapping[str, Any], given: Callable[..., Any] | None
) -> Callable[..., Any]:
    if isinstance(saved, str):  # the first format knew models by their names
        found = given or getattr(models, saved, None)
        if found is None:
            raise DataError(
                f"{path} was fitted with a model named {saved!r}, which mop_jax.models does not "
                "have; pass the function as model=…"
            )
        return found
    before = Identity(**saved)
    found = given or (shipped(before.name) if before.shipped else None)
    if found is None:
        where = "mop_jax.models of another version" if before.shipped else before.module
        raise DataError(
            f"{path} was fitted with the model {before.name!r} of {where}, whose code a file does "
            "not hold; pass the function as model=…"
        )
    now = identity_of(found)
    if now.code != before.code:
        warnings.warn(
            f"{path} was fitted with the model {before.name!r} of {before.module}; the code of "
            f"{now.name!r} of {now.module}, which is used with its draws, differs from it.",
            stacklevel=3,
        )
    return found


def check_sites(posterior: Posterior, path: Any) -> None:
    """Refuses draws whose sites are not the model's.

    Raises:
        DataError: naming a site.
    """
    sites = latent_sites(posterior.model, posterior.data, posterior.model_kwargs)
    found = {name: np.shape(values)[1:] for name, values in posterior.samples.items()}
    for name, shape in sites.items():
        if found.get(name) != shape:
            has = "no such draws" if name not in found else f"draws of shape {found[name]}"
            raise DataError(
                f"{path} was fitted with another model: {model_name(posterior.model)!r} has a site "
                f"{name!r} of shape {shape}, and the file {has}; pass the model that was fitted as "
                "model=…, with its arguments as model_kwargs=…"
            )


@contextmanager
def _open(path: Any) -> Iterator[Any]:
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (OSError, SafetensorError) as error:
        raise FaultError(f"{path} is not a readable safetensors file ({error}).") from error


def _header(path: Any, file: Any) -> dict[str, Any]:
    header = json.loads((file.metadata() or {}).get(_HEADER_KEY, "{}"))
    if header.get("format") not in (_FORMAT, _FIRST_FORMAT):
        raise FaultError(f"{path} is not a saved posterior (its header does not say {_FORMAT!r}).")
    return header


def _tensors(posterior: Posterior) -> Iterator[tuple[str, np.ndarray]]:
    for name, value in posterior.samples.items():
        yield f"samples/{name}", value
    for name, value in posterior.data._asdict().items():
        if isinstance(value, np.ndarray):
            yield f"data/{name}", value
    for kind, feature_map in posterior.data.feature_maps._asdict().items():
        yield f"feature_map/{kind}/mean", feature_map.mean
        yield f"feature_map/{kind}/basis", feature_map.basis
    for kind in ("similarity", "bare"):
        part = getattr(posterior.data, kind)
        for name, value in part._asdict().items() if part is not None else ():
            if value is not None:
                yield f"{kind}/{name}", value
    for name, value in (posterior.data.groupings or {}).items():
        yield f"grouping/{name}", value
    if posterior.data.choices is not None:
        for name, value in posterior.data.choices._asdict().items():
            if name != "groups" and value is not None:
                yield f"choices/{name}", value
        for name, value in posterior.data.choices.groups.items():
            yield f"choice_group/{name}", value
    yield "losses", posterior.losses


def _outline(tree: Any, path: str, tensors: dict[str, np.ndarray]) -> Any:
    """JSON of how dicts, lists and tuples are nested; leaves go to `tensors` under their paths."""
    if tree is None:
        return None
    if isinstance(tree, dict):
        return {"dict": {k: _outline(v, f"{path}/{k}", tensors) for k, v in tree.items()}}
    if isinstance(tree, list | tuple):
        kind = "list" if isinstance(tree, list) else "tuple"
        return {kind: [_outline(v, f"{path}/{i}", tensors) for i, v in enumerate(tree)]}
    tensors[path] = np.array(tree, order="C")
    return path


def _filled(outline: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    """The tree that `_outline` describes."""
    if outline is None or isinstance(outline, str):
        return None if outline is None else tensors[outline]
    ((kind, inner),) = outline.items()
    if kind == "dict":
        return {name: _filled(value, tensors) for name, value in inner.items()}
    return {"list": list, "tuple": tuple}[kind](_filled(value, tensors) for value in inner)


def _encode_kwargs(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    # Classes and functions, such as the mixture's distribution, are kept by their identity, and so
    # are gates that go by a name: the registry may hold another one by then.
    plain = {
        name: {"code": identity_of(value)._asdict()} if callable(value) else value
        for name, value in kwargs.items()
    }
    gate = kwargs.get("gate")
    if isinstance(gate, str) and gate in models.GATES:
        plain["gate"] = {"gate": gate, "code": code_hash(models.GATES[gate])}
    try:
        return json.loads(json.dumps(plain))
    except TypeError as error:
        raise DataError(
            f"A model argument cannot be written as JSON ({error}); numbers, strings, booleans, "
            "classes and functions can."
        ) from error


def _decode_kwargs(
    path: Any, kwargs: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    found = dict(kwargs)
    for name, value in kwargs.items():
        if not isinstance(value, dict):
            continue
        if set(value) == {"gate", "code"}:
            found[name] = value["gate"]
            _check_gate(path, value["gate"], given.get("gate", value["gate"]), value["code"])
            continue
        if set(value) == {"distribution"}:  # the first format
            saved = value["distribution"]
            thing = shipped(saved)
        elif set(value) == {"code"}:
            identity = Identity(**value["code"])
            saved = f"{identity.module}.{identity.name}"
            thing = shipped(identity.name) if identity.shipped else None
            if name in given and identity_of(given[name]).code != identity.code:
                warnings.warn(
                    f"{path} was fitted with {name}={saved}; the code of what is given differs.",
                    stacklevel=3,
                )
        else:
            continue
        if thing is None and name not in given:
            raise DataError(
                f"{path} was fitted with {name}={saved}, which mop_jax does not ship; pass it as "
                f"model_kwargs={{{name!r}: …}}."
            )
        found[name] = thing
    return {**found, **given}


def _check_gate(path: Any, saved: str, gate: Any, code: str) -> None:
    """Refuses a gate that is not registered, and warns of one with other code."""
    found = models.GATES.get(gate) if isinstance(gate, str) else gate
    if found is None:
        raise DataError(
            f"{path} was fitted with gate={gate!r}, which mop_jax.models.GATES does not have; put "
            "it there first, or pass it as model_kwargs={'gate': …}."
        )
    if code_hash(found) != code:
        warnings.warn(
            f"{path} was fitted with gate={saved!r}; the code of the gate that is used differs.",
            stacklevel=4,
        )
