"""Checkpoint tensors into the decoder, with nothing missing, nothing left over, nothing misshapen.

The decoder's attributes carry the checkpoint's names, so the map is a few leaf rules: a
projection's `weight` is its transposed `kernel`, a norm's is its `scale`, an embedding's its
`embedding`; the layer number becomes an index into the stacked parameters.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import Any, BinaryIO

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from safetensors import SafetensorError, safe_open

from mop_jax.errors import FaultError
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.families import Tensors
from mop_jax.lm.mesh import parameter_sharding, put_array

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_EMBEDDINGS = ("embed_tokens", "embed_positions", "lm_head")


def load_decoder(
    config: DecoderConfig, tensors: Tensors, dtype, where: str, mesh: Mesh | None = None
) -> tuple[Decoder, str]:
    """Builds a decoder from named tensors, which go to their devices one by one.

    The stacked parameters grow on the devices, a layer at a time, in buffers that are updated in
    place: the host never holds more than the tensor that is being read.

    Args:
        config: the architecture.
        tensors: names as Hugging Face writes them, without or with the leading `model.`.
        dtype: dtype of the loaded weights and of the computation.
        where: file or folder, for messages.
        mesh: devices that share the weights by the rules of `mop_jax.lm.mesh`; None for one.

    Returns:
        The decoder, and a SHA-256 over the tensors' names and bytes.

    Raises:
        FaultError: for a missing, unused, repeated, misshapen or non-finite tensor, by its name.
    """
    abstract = nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    flat = nnx.to_flat_state(state)
    shapes = {".".join(map(str, path)): leaf.shape for path, leaf in flat}
    parameters: dict[str, jax.Array] = {}
    seen: dict[str, set[int]] = {}
    digest = hashlib.sha256()
    for name, read in tensors:
        # Tied checkpoints may store the projection a second time; so may rotary constants.
        if name == "lm_head.weight" and config.tie_embeddings:
            continue
        if name.endswith("rotary_emb.inv_freq"):
            continue
        target, layer = target_name(name)
        if target not in shapes or (layer is not None and layer >= config.num_layers):
            raise FaultError(f"{where}: tensor {name} has no place in this architecture.")
        layers = seen.setdefault(target, set())
        if (-1 if layer is None else layer) in layers:
            raise FaultError(f"{where}: tensor {name} is there twice.")
        layers.add(-1 if layer is None else layer)
        value = np.ascontiguousarray(read())
        digest.update(f"{name}{value.dtype}{value.shape}".encode())
        digest.update(value.view(np.uint8).data)
        transposed = target.endswith("kernel")
        stored = value.shape[::-1] if transposed else value.shape
        wanted = shapes[target] if layer is None else shapes[target][1:]
        if stored != wanted:
            raise FaultError(
                f"{where}: tensor {name} has shape {stored} where the configuration makes it "
                f"{tuple(wanted)} (as the decoder stores it)."
            )
        writer = _Writer(parameter_sharding(mesh, target, shapes[target], config), transposed)
        if layer is None:
            parameters[target], finite = writer.whole(value, dtype)
        else:
            if target not in parameters:
                parameters[target] = writer.zeros(shapes[target], dtype)
            parameters[target], finite = writer.layer(parameters[target], value, layer)
        # Waiting for the answer also keeps the host from reading ahead of the devices.
        if not finite:
            raise FaultError(f"{where}: tensor {name} holds a NaN or an infinity.")
    _check_complete(config, shapes, seen, where)
    leaves = {path: leaf.replace(parameters.pop(".".join(map(str, path)))) for path, leaf in flat}
    return nnx.merge(graph, nnx.from_flat_state(leaves)), digest.hexdigest()


class _Writer:
    """Puts tensors into a parameter on its devices, in the parameter's dtype.

    Tensors cross to the devices as they are stored and are transposed and cast there; under a mesh
    each device is given its own part alone.
    """

    def __init__(self, sharding: NamedSharding | None, transposed: bool):
        """Takes the sharding of the whole parameter, and whether the file has it transposed."""
        self._sharding, self._transposed = sharding, transposed

    def zeros(self, shape: tuple[int, ...], dtype) -> jax.Array:
        """The parameter before its first layer is written."""
        return _programs(self._sharding, self._transposed)[0](shape, jnp.dtype(dtype))

    def layer(self, stacked: jax.Array, value: np.ndarray, layer: int) -> tuple[jax.Array, bool]:
        """The parameter with one layer written (`stacked` is used up), and whether it is finite."""
        program = _programs(self._sharding, self._transposed)[1]
        stacked, finite = program(stacked, self._put(value, 1), np.int32(layer))
        return stacked, bool(finite)

    def whole(self, value: np.ndarray, dtype) -> tuple[jax.Array, bool]:
        """A parameter that is no stack, and whether it is finite."""
        program = _programs(self._sharding, self._transposed)[2]
        parameter, finite = program(self._put(value, 0), jnp.dtype(dtype))
        return parameter, bool(finite)

    def _put(self, value: np.ndarray, num_stacked: int) -> np.ndarray | jax.Array:
        if self._sharding is None:
            return value
        whole = self._sharding.spec
        spec = [*whole, *[None] * (value.ndim + num_stacked - len(whole))][num_stacked:]
        spec = spec[::-1] if self._transposed else spec
        return put_array(value, NamedSharding(self._sharding.mesh, PartitionSpec(*spec)))


@cache
def _programs(sharding: NamedSharding | None, transposed: bool):
    """Compiled steps of `_Writer`, whose results lie as the parameter does."""
    everywhere = None if sharding is None else NamedSharding(sharding.mesh, PartitionSpec())

    def cast(value, dtype):
        return (value.T if transposed else value).astype(dtype), jnp.isfinite(value).all()

    def write(stacked, value, layer):
        new, finite = cast(value, stacked.dtype)
        return jax.lax.dynamic_update_index_in_dim(stacked, new, layer, 0), finite

    return (
        jax.jit(jnp.zeros, static_argnums=(0, 1), out_shardings=sharding),
        # Donated, so that the layer is written in place.
        jax.jit(write, donate_argnums=0, out_shardings=(sharding, everywhere)),
        jax.jit(cast, static_argnums=1, out_shardings=(sharding, everywhere)),
    )


def target_name(name: str) -> tuple[str, int | None]:
    """The decoder's parameter and layer index for a checkpoint tensor name."""
    short = name.removeprefix("model.")
    match = _LAYER.fullmatch(short)
    layer = int(match.group(1)) if match else None
    path = "layers." + match.group(2) if match else short
    parent, _, leaf = path.rpartition(".")
    if leaf == "weight":
        if parent in _EMBEDDINGS:
            leaf = "embedding"
        else:
            leaf = "scale" if parent.endswith("norm") else "kernel"
    return f"{parent}.{leaf}", layer


def checkpoint_name(target: str, layer: int | None) -> str:
    """The checkpoint's tensor name of a decoder parameter; the inverse of `target_name`."""
    parent, _, leaf = target.rpartition(".")
    name = f"{parent}.{'bias' if leaf == 'bias' else 'weight'}"
    if layer is not None:
        name = name.replace("layers.", f"layers.{layer}.", 1)
    return name if name.startswith("lm_head") else f"model.{name}"


def _check_complete(
    config: DecoderConfig, shapes: Iterable[str], seen: dict[str, set[int]], where: str
) -> None:
    for target in shapes:
        layers = range(config.num_layers) if target.startswith("layers.") else [-1]
        for layer in layers:
            if layer not in seen.get(target, ()):
                name = checkpoint_name(target, None if layer < 0 else layer)
                raise FaultError(f"{where}: tensor {name} is missing.")


def safetensors_tensors(folder: Path) -> Iterator[tuple[str, Callable[[], np.ndarray]]]:
    """The tensors of `model.safetensors`, or of the shards that its index lists, one at a time.

    Files are read, not mapped: mapped pages count as memory of the process, and a file that is cut
    while it is mapped ends the process without a word.

    Raises:
        FaultError: if there is no such file, a shard is missing, or a file is truncated.
    """
    for file in safetensors_files(folder):
        try:
            # The library checks that the header is sound and covers the whole file.
            with safe_open(file, framework="numpy") as handle:
                names = list(handle.keys())
            entries, start = _read_header(file)
            with open(file, "rb", buffering=0) as data:
                for name in names:
                    yield name, partial(_read_tensor, file, data, start, name, entries[name])
        except (SafetensorError, OSError) as error:
            raise FaultError(
                f"{file} is no readable safetensors file ({error}{_first_cut(file)}); fetch the "
                "checkpoint again."
            ) from error


_STORED_DTYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def _read_header(file: Path) -> tuple[dict[str, dict[str, Any]], int]:
    """Dtype, shape and offsets of each tensor, and where in the file the offsets start."""
    with open(file, "rb") as handle:
        size = int.from_bytes(handle.read(8), "little")
        entries = json.loads(handle.read(size))
    entries.pop("__metadata__", None)
    return entries, 8 + size


def _read_tensor(
    file: Path, data: BinaryIO, start: int, name: str, entry: dict[str, Any]
) -> np.ndarray:
    if entry["dtype"] not in _STORED_DTYPES:
        raise FaultError(
            f"{file}: tensor {name} is of type {entry['dtype']}, which is not supported; "
            f"supported: {', '.join(_STORED_DTYPES)}."
        )
    value = np.empty(entry["shape"], jnp.dtype(_STORED_DTYPES[entry["dtype"]]))
    data.seek(start + entry["data_offsets"][0])
    held = value.reshape(-1).view(np.uint8).data
    while held:
        count = data.readinto(held)  # type: ignore[attr-defined]
        if not count:
            raise FaultError(f"{file} ends before tensor {name} does; fetch the checkpoint again.")
        held = held[count:]
    return value


def _first_cut(file: Path) -> str:
    """Names the first tensor that a truncated file does not hold in full, if that can be told."""
    try:
        entries, start = _read_header(file)
        ends = {name: start + entry["data_offsets"][1] for name, entry in entries.items()}
        cut = [name for name, end in ends.items() if end > file.stat().st_size]
    except (OSError, ValueError, TypeError, KeyError, AttributeError, MemoryError, OverflowError):
        return ""
    return f"; it ends before tensor {min(cut, key=lambda n: ends[n])} does" if cut else ""


def safetensors_files(folder: Path) -> list[Path]:
    """The weight files of a checkpoint folder, in order."""
    index = folder / "model.safetensors.index.json"
    single = folder / "model.safetensors"
    if single.exists():
        return [single]
    if not index.exists():
        raise FaultError(
            f"{folder} holds neither model.safetensors nor model.safetensors.index.json."
        )
    try:
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    except (json.JSONDecodeError, KeyError) as error:
        raise FaultError(f"{index} is no readable shard index.") from error
    for name in names:
        if not (folder / name).exists():
            raise FaultError(f"{folder / name} is missing: the index lists it as a shard.")
    return [folder / name for name in names]


def num_parameters(decoder: Decoder) -> int:
    """How many numbers the decoder holds."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(decoder, nnx.Param)))
