"""Small checkpoints on disk, and the golden ones that torch computed."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from mop_jax.lm.base import Continuation
from mop_jax.lm.flax_lm import FlaxLM

GOLDEN = Path(__file__).parents[1] / "golden"


class Golden:
    """A small Llama checkpoint with padded ids and the logits that torch gave for them."""

    def __init__(self, name: str):
        """Reads `decoder_{name}.npz` (see make_decoder_golden.py)."""
        with np.load(GOLDEN / f"decoder_{name}.npz") as file:
            arrays = {key: file[key] for key in file.files}
        self.config: dict[str, Any] = json.loads(str(arrays["config"]))
        self.token_ids, self.lengths = arrays["token_ids"], arrays["lengths"]
        self.logits, self.greedy = arrays["logits"], arrays["greedy"].tolist()
        self.weights = {
            key.removeprefix("weights/"): value.astype(np.float32)
            for key, value in arrays.items()
            if key.startswith("weights/")
        }

    @property
    def real(self) -> np.ndarray:
        """Which positions are no padding, bool [B, T]."""
        return np.arange(self.token_ids.shape[1]) < self.lengths[:, None]


@pytest.fixture(scope="session")
def golden() -> Callable[[str], Golden]:
    """Reads a golden checkpoint by name; every call gives a copy that may be changed."""
    return Golden


def save_checkpoint(
    folder: Path, config: dict, weights: dict[str, np.ndarray], num_shards: int = 1
) -> Path:
    """Writes config.json and weights, in one file or in shards with an index."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if num_shards == 1:
        save_file(weights, folder / "model.safetensors")
        return folder
    weight_map = {}
    for shard in range(num_shards):
        name = f"model-{shard + 1:05d}-of-{num_shards:05d}.safetensors"
        part = {key: weights[key] for key in sorted(weights)[shard::num_shards]}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture
def write_checkpoint(tmp_path) -> Callable[..., Path]:
    """`save_checkpoint` into a folder of the test's own."""
    return partial(save_checkpoint, tmp_path / "checkpoint")


@pytest.fixture(scope="session")
def golden_lm(tmp_path_factory) -> Callable[[str], FlaxLM]:
    """Loads a golden checkpoint from a folder, once; it has no tokenizer."""

    @cache
    def load(name: str) -> FlaxLM:
        case = Golden(name)
        folder = save_checkpoint(tmp_path_factory.mktemp(name) / "c", case.config, case.weights)
        return FlaxLM.from_pretrained(folder)

    return load


@pytest.fixture(scope="session")
def random_work() -> Callable[..., tuple]:
    """Makes prefixes, continuations and pairs at random."""

    def work(seed, num_pairs=40, num_trees=5, longest=(30, 12)):
        """Prefixes of zero to three segments that share beginnings, continuations, and pairs."""
        rng = np.random.default_rng(seed)

        def ids(length):
            return tuple(rng.integers(4, 6060, length).tolist())

        prefixes = [()]
        for _ in range(num_trees):
            trunk = (ids(rng.integers(1, longest[0] // 3 + 1)),)
            prefixes.append(trunk)
            for _ in range(rng.integers(1, 4)):
                branch = (*trunk, ids(rng.integers(1, longest[0] // 3 + 1)))
                prefixes += [branch, (*branch, ids(rng.integers(1, longest[0] // 3 + 1)))]
        tails = [
            Continuation(ids(rng.integers(1, 4)), ids(rng.integers(1, longest[1])))
            for _ in range(num_pairs // 2 + 1)
        ]
        pairs = np.stack(
            [rng.integers(len(prefixes), size=num_pairs), rng.integers(len(tails), size=num_pairs)],
            1,
        )
        return prefixes, tails, pairs

    return work
