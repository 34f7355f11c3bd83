"""From a safetensors file to the parameters of an NNX module whose attributes carry its names.

Then the weight map is three leaf rules: a linear `kernel` is the transposed `weight`, a norm's
`scale` and an embedding's `embedding` are the `weight`. A tensor that is missing, misshapen or left
over is an error: each of them means that something else than the checkpoint's network is computed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from mop_jax.errors import DataError, FaultError

Network = TypeVar("Network", bound=nnx.Module)


def read_json(path: Path) -> Any:
    """Reads a JSON file of a checkpoint.

    Raises:
        DataError: if it is not there.
        FaultError: if it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path.parent} holds no {path.name}, which the checkpoint needs."
        ) from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FaultError(f"{path} is not JSON: {error}.") from error


def load_parameters(
    build: Callable[[], Network], path: Path, *, unused: Sequence[str] = ()
) -> tuple[Network, str]:
    """Fills a module with the tensors of a safetensors file, in float32.

    Args:
        build: makes the module; only its shapes are used.
        path: the file.
        unused: names of tensors that may be in the file and are not needed.

    Returns:
        The module and the SHA-256 of the file.

    Raises:
        DataError: if the file is not there.
        FaultError: if it is corrupt, or a tensor is missing, misshapen, not finite or left over.
    """
    if not path.is_file():
        raise DataError(f"{path.parent} holds no {path.name}; accepted are safetensors weights.")
    graph, state = nnx.split(nnx.eval_shape(build))
    wanted = {_tensor_name(keys): (keys, leaf) for keys, leaf in nnx.to_flat_state(state)}
    try:
        with safe_open(path, framework="numpy") as file:
            names = set(file.keys())
            missing = sorted(wanted.keys() - names)
            if missing:
                raise FaultError(f"{path} lacks the tensor {_some(missing)}.")
            extra = sorted(names - wanted.keys() - set(unused))
            if extra:
                raise FaultError(f"{path} holds a tensor that has no place here: {_some(extra)}.")
            flat = [
                (keys, leaf.replace(_fit(path, name, file.get_tensor(name), keys, leaf.shape)))
                for name, (keys, leaf) in wanted.items()
            ]
    except SafetensorError as error:
        raise FaultError(f"{path} is corrupt: {error}.") from error
    with open(path, "rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    return nnx.merge(graph, nnx.from_flat_state(flat)), digest


def _tensor_name(keys: tuple[Any, ...]) -> str:
    *module, leaf = map(str, keys)
    return ".".join([*module, "bias" if leaf == "bias" else "weight"])


def _fit(
    path: Path, name: str, tensor: np.ndarray, keys: tuple[Any, ...], shape: tuple[int, ...]
) -> jax.Array:
    value = tensor.T if keys[-1] == "kernel" else tensor
    if value.shape != shape:
        expected = list(shape[::-1] if keys[-1] == "kernel" else shape)
        raise FaultError(
            f"{path}: the tensor {name} has shape {list(tensor.shape)}; the configuration asks "
            f"for {expected}."
        )
    value = np.ascontiguousarray(value, dtype=np.float32)
    if not np.isfinite(value).all():
        raise FaultError(f"{path}: the tensor {name} holds values that are not finite.")
    return jnp.asarray(value)


def _some(names: Sequence[str]) -> str:
    more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
    return f"{names[0]}{more}"
