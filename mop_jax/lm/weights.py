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
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from safetensors import SafetensorError, safe_open

from mop_jax.errors import FaultError
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.families import Tensors

_LAYER = re.compile(r"layers\.(\d+)\.(.+)")
_EMBEDDINGS = ("embed_tokens", "embed_positions", "lm_head")


def load_decoder(config: DecoderConfig, tensors: Tensors, dtype, where: str) -> tuple[Decoder, str]:
    """Builds a decoder from named tensors.

    Args:
        config: the architecture.
        tensors: names as Hugging Face writes them, without or with the leading `model.`.
        dtype: dtype of the loaded weights and of the computation.
        where: file or folder, for messages.

    Returns:
        The decoder, and a SHA-256 over the tensors' names and bytes.

    Raises:
        FaultError: for a missing, unused, misshapen or non-finite tensor, by its name.
    """
    abstract = nnx.eval_shape(lambda: Decoder(config, dtype=dtype, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(abstract)
    shapes = {".".join(map(str, path)): leaf for path, leaf in nnx.to_flat_state(state)}
    buffers: dict[str, np.ndarray] = {}
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
        value = read()
        digest.update(f"{name}{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).view(np.uint8).data)
        if target.endswith("kernel"):
            value = value.T
        expected = shapes[target].shape
        wanted = expected if layer is None else expected[1:]
        if value.shape != wanted:
            raise FaultError(
                f"{where}: tensor {name} has shape {tuple(value.shape)} where the configuration "
                f"makes it {tuple(wanted)} (as the decoder stores it)."
            )
        if not np.isfinite(value.astype(np.float32, copy=False)).all():
            raise FaultError(f"{where}: tensor {name} holds a NaN or an infinity.")
        buffer = buffers.setdefault(target, np.empty(expected, jnp.dtype(dtype)))
        buffer[... if layer is None else layer] = value.astype(buffer.dtype)
        seen.setdefault(target, set()).add(-1 if layer is None else layer)
    _check_complete(config, shapes, seen, where)
    leaves = {
        path: leaf.replace(jnp.asarray(buffers.pop(".".join(map(str, path)))))
        for path, leaf in nnx.to_flat_state(state)
    }
    return nnx.merge(graph, nnx.from_flat_state(leaves)), digest.hexdigest()


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

    Raises:
        FaultError: if there is no such file, a shard is missing, or a file is truncated.
    """
    for file in safetensors_files(folder):
        try:
            with safe_open(file, framework="numpy") as handle:
                for name in handle.keys():  # noqa: SIM118 (the handle is no dict)
                    yield name, partial(handle.get_tensor, name)
        except (SafetensorError, OSError) as error:
            raise FaultError(
                f"{file} is no readable safetensors file ({error}); fetch the checkpoint again."
            ) from error


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
