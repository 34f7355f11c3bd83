"""The frozen sentence encoder h(·): a BERT or MPNet in Flax NNX, read from its folder.

The folder, in the layout of `sentence_transformers`, says everything: which network
(`config.json`), its weights (`model.safetensors`), its tokenizer (`tokenizer.json`), where texts
are cut (`sentence_bert_config.json`), how token vectors are pooled (`1_Pooling/config.json`),
whether the result is normalised (`modules.json`), and the prompt before every text
(`config_sentence_transformers.json`). A value that is not implemented is refused by name; none is
read and ignored.

A network is one module class like `mop_jax.encoder.bert.Bert`: attributes named as the checkpoint
names them, `from_config`, `unused` tensor names, and a call (ids, lengths) → hidden states. A
further family is one such page and one line in `_NETWORKS`.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tokenizers import Encoding, Tokenizer

from mop_jax import progress
from mop_jax.encoder.bert import Bert
from mop_jax.encoder.checkpoint import load_parameters, read_json
from mop_jax.encoder.mpnet import MPNet
from mop_jax.errors import DataError, FaultError
from mop_jax.resources import resolve_path

Network = Bert | MPNet
_NETWORKS: dict[str, type[Network]] = {"bert": Bert, "mpnet": MPNet}
_POOLINGS = ("mean", "cls", "max")
# Few shapes, so few compilations; the padding they cost is below a tenth for typical texts.
_LENGTHS = (16, 32, 48, 64, 96, 128, 192, 256, 384, 512)
# Beside a compilation the padding of a few texts costs nothing.
_FEW = 128
_LENGTHS_OF_FEW = (32, 64, 128, 256, 512)
_SMALL_BATCH = 8

Pooling = Literal["mean", "cls", "max"]


class SentenceEncoder:
    """Texts to embeddings [n, D], as `sentence_transformers` computes them.

    Attributes:
        embedding_dim: D.
        max_length: tokens, special ones included, after which a text is cut.
        fingerprint: SHA-256 over the weights, the tokenizer and the settings.
        num_traces: how often the network has been compiled so far.
    """

    def __init__(
        self,
        network: Network,
        tokenizer: Tokenizer,
        *,
        pooling: Pooling = "mean",
        normalise: bool = True,
        max_length: int = 512,
        lower_case: bool = False,
        prompt: str = "",
        pool_prompt: bool = True,
        fingerprint: str = "",
    ) -> None:
        self.embedding_dim = network.embedding_dim
        self.max_length = min(max_length, network.max_length)
        self.fingerprint = fingerprint
        self.num_traces = 0
        self._lower_case, self._prompt = lower_case, prompt
        # The file's own padding would pad every text to one length, whatever the batch.
        tokenizer.no_padding()
        tokenizer.enable_truncation(self.max_length)
        self._tokenizer = tokenizer
        # Tokens at the beginning that are not pooled; a special last one ends every text.
        start = 0
        if prompt and not pool_prompt:
            (alone,) = self._tokenise([""])
            start = len(alone.ids) - alone.special_tokens_mask[-1]
        graph, self._state = nnx.split(network)

        def embed(state: nnx.State, ids: jax.Array, lengths: jax.Array) -> jax.Array:
            self.num_traces += 1  # runs while tracing only
            hidden = nnx.merge(graph, state)(ids, lengths)
            pooled = _pool(hidden, lengths, pooling, start)
            return _normalise(pooled) if normalise else pooled

        self._embed: Callable[..., jax.Array] = jax.jit(embed)

    @classmethod
    def from_pretrained(cls, path_or_id: str | os.PathLike[str]) -> SentenceEncoder:
        """Loads an encoder from a local folder, `package:NAME/folder` or a hub id.

        Raises:
            DataError: if nothing is there, or the folder asks for something not implemented.
            FaultError: if the checkpoint is corrupt, or tensors are missing, misshapen or unused.
        """
        folder = resolve_path(os.fspath(path_or_id))
        if not folder.is_dir():
            raise DataError(
                f"{path_or_id} is a file; accepted is the folder of a sentence encoder."
            )
        parts = _read_modules(folder)
        network_folder = folder / parts.get("Transformer", "")
        config = read_json(network_folder / "config.json")
        kind = config.get("model_type")
        if kind not in _NETWORKS:
            raise DataError(
                f"{network_folder / 'config.json'} has model_type {kind!r}; accepted are: "
                f"{', '.join(_NETWORKS)}."
            )
        # What sentence_transformers does without modules.json.
        pooling: Pooling = "mean"
        pool_prompt = True
        if "Pooling" in parts:
            pooling, pool_prompt = _read_pooling(folder / parts["Pooling"] / "config.json")
        network, weights_hash = load_parameters(
            lambda: _NETWORKS[kind].from_config(config, str(network_folder / "config.json")),
            network_folder / "model.safetensors",
            unused=_NETWORKS[kind].unused,
        )
        tokenizer, tokenizer_text = _read_tokenizer(network_folder)
        max_length, lower_case = _read_limits(network_folder, network.max_length)
        prompt = _read_prompt(folder)
        settings = [
            kind,
            pooling,
            "Normalize" in parts,
            max_length,
            lower_case,
            sorted(config.items()),
        ]
        if prompt:
            settings += [prompt, pool_prompt]
        content = f"{weights_hash}\n{tokenizer_text}\n{settings!r}"
        return cls(
            network,
            tokenizer,
            pooling=pooling,
            normalise="Normalize" in parts,
            max_length=max_length,
            lower_case=lower_case,
            prompt=prompt,
            pool_prompt=pool_prompt,
            fingerprint=hashlib.sha256(content.encode("utf-8")).hexdigest(),
        )

    def encode(self, texts: Sequence[str], batch_size: int = 32) -> np.ndarray:
        """Embeds texts; those longer than `max_length` tokens are cut, as the encoder was trained.

        Args:
            texts: n strings.
            batch_size: texts per pass; memory grows with it, results do not depend on it.

        Returns:
            float32 [n, D].

        Raises:
            DataError: if something among `texts` is no string, or `batch_size` is not positive.
            FaultError: if an embedding is not finite.
        """
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise DataError("encode takes a list of strings.")
        if batch_size < 1:
            raise DataError(f"batch_size is {batch_size}; accepted is a positive integer.")
        ids = [encoding.ids for encoding in self._tokenise(texts)]
        # Longest first: if memory fails it fails at once, and the ETA is honest.
        order = sorted(range(len(ids)), key=lambda i: -len(ids[i]))
        embeddings = np.empty((len(ids), self.embedding_dim), dtype=np.float32)
        lengths = _LENGTHS_OF_FEW if len(ids) <= _FEW else _LENGTHS
        with progress.task("Embedding", total=len(ids)) as advance:
            for start in range(0, len(order), batch_size):
                rows = order[start : start + batch_size]
                embeddings[rows] = self._encode_batch(
                    [ids[row] for row in rows], batch_size, lengths
                )
                advance(len(rows))
        if not np.isfinite(embeddings).all():
            row = int(np.argmin(np.isfinite(embeddings).all(axis=1)))
            raise FaultError(
                f"The sentence encoder gave a value that is not finite for text {row}."
            )
        return embeddings

    def _tokenise(self, texts: Sequence[str]) -> list[Encoding]:
        cleaned = [(self._prompt + text).strip() for text in texts]
        if self._lower_case:
            cleaned = [text.lower() for text in cleaned]
        return self._tokenizer.encode_batch(cleaned)

    def _encode_batch(
        self, ids: list[list[int]], batch_size: int, widths: Sequence[int]
    ) -> np.ndarray:
        longest = len(ids[0])
        width = next((length for length in widths if length >= longest), longest)
        width = min(width, self.max_length)
        height = _SMALL_BATCH if len(ids) <= _SMALL_BATCH <= batch_size else batch_size
        padded = np.zeros((height, width), dtype=np.int32)
        lengths = np.zeros(height, dtype=np.int32)
        for row, row_ids in enumerate(ids):
            padded[row, : len(row_ids)] = row_ids
            lengths[row] = len(row_ids)
        return np.asarray(self._embed(self._state, padded, lengths))[: len(ids)]


def _pool(hidden: jax.Array, lengths: jax.Array, pooling: Pooling, start: int) -> jax.Array:
    """Hidden states [B, T, D] to [B, D]; those before `start` are left out, but for `cls`."""
    if pooling == "cls":
        return hidden[:, 0]
    places = jnp.arange(hidden.shape[1])[None, :]
    real = ((places >= start) & (places < lengths[:, None]))[:, :, None]
    if pooling == "max":
        return jnp.where(real, hidden, -jnp.inf).max(axis=1, where=real, initial=-1e9)
    # Rows that only fill up the batch have length 0.
    return jnp.where(real, hidden, 0.0).sum(axis=1) / jnp.maximum(lengths - start, 1)[:, None]


def _normalise(pooled: jax.Array) -> jax.Array:
    norm = jnp.sqrt(jnp.sum(jnp.square(pooled), axis=-1, keepdims=True))
    return pooled / jnp.maximum(norm, 1e-12)


def _read_modules(folder: Path) -> dict[str, str]:
    """The modules in `modules.json`, as {last part of the type: sub-folder}."""
    path = folder / "modules.json"
    if not path.exists():
        return {}
    parts: dict[str, str] = {}
    for module in read_json(path):
        name = str(module.get("type", "")).rpartition(".")[2]
        if name not in ("Transformer", "Pooling", "Normalize") or name in parts:
            raise DataError(
                f"{path} asks for {module.get('type')}; accepted are one Transformer, then Pooling "
                "and Normalize."
            )
        parts[name] = str(module.get("path", ""))
    if list(parts) not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise DataError(
            f"{path} lists {', '.join(parts) or 'nothing'}; accepted is Transformer, Pooling and, "
            "if wanted, Normalize."
        )
    return parts


def _read_pooling(path: Path) -> tuple[Pooling, bool]:
    """How token vectors are pooled, and whether those of the prompt are among them."""
    config = read_json(path)
    mode = config.get("pooling_mode")
    if mode is None:
        marked = {k: v for k, v in config.items() if k.startswith("pooling_mode_") and v}
        names = [
            k.removeprefix("pooling_mode_").removesuffix("_token").removesuffix("_tokens")
            for k in marked
        ]
        mode = "+".join(names)
    if mode not in _POOLINGS:
        raise DataError(f"{path} asks for pooling {mode!r}; accepted are: {', '.join(_POOLINGS)}.")
    return mode, bool(config.get("include_prompt", True))


def _read_prompt(folder: Path) -> str:
    """What sentence_transformers puts before every text, where it is told no other prompt."""
    path = folder / "config_sentence_transformers.json"
    config = read_json(path) if path.exists() else {}
    name, prompts = config.get("default_prompt_name"), config.get("prompts") or {}
    if name is None:
        return ""
    if not isinstance(prompts.get(name), str):
        raise DataError(
            f"{path} names {name!r} as its default prompt; its prompts are: "
            f"{', '.join(map(repr, prompts)) or 'none'}."
        )
    return prompts[name]


def _read_tokenizer(folder: Path) -> tuple[Tokenizer, str]:
    path = folder / "tokenizer.json"
    if not path.exists():
        raise DataError(f"{folder} holds no tokenizer.json, which a sentence encoder needs.")
    try:
        text = path.read_text(encoding="utf-8")
        return Tokenizer.from_str(text), text
    except Exception as error:  # the tokenizers library raises bare Exception
        raise FaultError(f"{path} is no tokenizer: {error}.") from error


def _read_limits(folder: Path, network_limit: int) -> tuple[int, bool]:
    """Where texts are cut, and whether they are lower-cased before the tokenizer sees them."""
    path = folder / "sentence_bert_config.json"
    config = read_json(path) if path.exists() else {}
    limit = config.get("max_seq_length")
    if limit is None:
        path = folder / "tokenizer_config.json"
        settings = read_json(path) if path.exists() else {}
        limit = settings.get("model_max_length", network_limit)
    if not limit >= 3:
        raise DataError(f"{path} cuts texts at {limit} tokens; accepted is 3 or more.")
    return int(min(limit, network_limit)), bool(config.get("do_lower_case", False))
