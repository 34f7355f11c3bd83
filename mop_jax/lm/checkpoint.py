"""What a checkpoint is made of, from a folder, a hub id or a GGUF file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from mop_jax.errors import DataError
from mop_jax.lm.decoder import Decoder
from mop_jax.lm.families import Tensors, read_config
from mop_jax.lm.gguf import GGUFFile
from mop_jax.lm.mesh import make_mesh
from mop_jax.lm.tokenizer import gguf_tokenizer, load_tokenizer
from mop_jax.lm.weights import load_decoder, safetensors_tensors
from mop_jax.resources import resolve_path

DTYPES = ("auto", "float32", "bfloat16")


class Checkpoint(NamedTuple):
    """A decoder on its devices, with what came beside its weights.

    Attributes:
        decoder: the NNX module.
        tokenizer: the Hugging Face tokenizer, or None.
        weights_hash: of all weights as they lie on disk.
        mesh: its devices, or None for one.
    """

    decoder: Decoder
    tokenizer: Any | None
    weights_hash: str
    mesh: Mesh | None


def load_checkpoint(path_or_id: str | Path, dtype: str, mesh: str | Mesh | None) -> Checkpoint:
    """Loads weights and tokenizer; see `FlaxLM.from_pretrained`."""
    if dtype not in DTYPES:
        raise DataError(f"dtype {dtype!r} is not supported; supported: {', '.join(DTYPES)}.")
    if dtype == "auto":
        dtype = "float32" if jax.default_backend() == "cpu" else "bfloat16"
    stored = jnp.dtype(dtype)
    path = resolve_path(path_or_id)
    if path.is_dir():
        config, family = read_config(path)
        tensors: Tensors = safetensors_tensors(path)
        if family.translate is not None:
            tensors = family.translate(tensors)
        devices = make_mesh(mesh, config, stored)
        decoder, digest = load_decoder(config, tensors, stored, str(path), devices)
        return Checkpoint(decoder, load_tokenizer(path), digest, devices)
    if path.suffix != ".gguf":
        raise DataError(
            f"{path} is no checkpoint; give a folder with config.json and *.safetensors, or a "
            ".gguf file."
        )
    file = GGUFFile(path)
    config = file.config()
    devices = make_mesh(mesh, config, stored)
    decoder, digest = load_decoder(config, file.tensors(), stored, str(path), devices)
    return Checkpoint(decoder, gguf_tokenizer(file), digest, devices)
