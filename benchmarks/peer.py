"""The peers as processes: what they are given, how they are asked, which batch size suits them.

A peer lives in an environment of its own (torch is none of the package's dependencies), stays alive
over the whole benchmark, and computes only while it is asked.
"""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors.numpy import save_file
from workloads import Workload

from mop_jax.lm.config import DecoderConfig, RopeScaling
from mop_jax.lm.gguf import GGUFFile
from mop_jax.lm.tokenizer import gguf_tokenizer
from mop_jax.resources import resolve_path

SCRIPTS = Path(__file__).parent / "peers"


class Sample(NamedTuple):
    """One timed batch of a peer.

    Attributes:
        seconds: what it took.
        log_probs: float64 [n], nats per response.
    """

    seconds: float
    log_probs: np.ndarray


class Process:
    """A peer that answers a line of JSON with a line of JSON."""

    def __init__(self, name: str, script: str, command: list[str], log: Path):
        """Starts it and waits until its model is loaded.

        Args:
            name: in the results.
            script: of the folder `peers`.
            command: the interpreter, and arguments of the script.
            log: file of what its libraries print.
        """
        self.name, self._log = name, log
        quiet = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
        with log.open("w") as handle:
            self._process = subprocess.Popen(
                [command[0], str(SCRIPTS / script), *command[1:]],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=handle,
                text=True,
                # The package's own path means nothing to the peer's interpreter.
                env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | quiet,
            )
        self.versions: dict[str, str] = self._answer()["versions"]

    def ask(self, command: dict[str, Any]) -> dict[str, Any]:
        """The answer to a command."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(command) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            tail = "\n".join(self._log.read_text().splitlines()[-8:])
            raise SystemExit(f"The {self.name} peer ended early; its last words:\n{tail}")
        return json.loads(line)


class Peer(Process):
    """A peer that scores: its script is `peers/NAME_scoring.py`."""

    def __init__(self, name: str, command: list[str], log: Path):
        """Starts it; see `Process`."""
        super().__init__(name, f"{name}_scoring.py", command, log)

    def peak(self) -> float:
        """FLOP/s of its matrix product."""
        return self.ask({"do": "peak"})["peak"]

    def score(self, work: Workload, indices: np.ndarray, batch_size: int) -> Sample:
        """Scores pairs once, timed."""
        given = self.ask(
            {
                "do": "score",
                "workload": work.name,
                "pairs": work.pairs[indices].tolist(),
                "batch_size": batch_size,
            }
        )
        return Sample(given["seconds"], np.asarray(given["log_probs"]))


def best_batch_size(
    peer: Peer, work: Workload, costs: np.ndarray, sizes: list[int], num_pairs: int
) -> dict[int, float]:
    """Pairs per second by batch size, on pairs of middling and nearly equal cost.

    All sizes are tried on the way up and again on the way down, and the better run counts: a moment
    in which the machine was slow must not decide.
    """
    order = np.argsort(costs, kind="stable")

    def middle(count: int) -> np.ndarray:
        return order[(len(order) - count) // 2 :][:count]

    peer.score(work, middle(min(num_pairs, 8)), sizes[0])  # warms up
    rates: dict[int, float] = {}
    for size in sizes + sizes[::-1]:
        count = min(max(num_pairs, size), len(order))
        rate = count / peer.score(work, middle(count), size).seconds
        rates[size] = max(rate, rates.get(size, 0.0))
    found = ", ".join(f"{size}: {rate:.2f}" for size, rate in rates.items())
    print(f"  {peer.name}, pairs/s by batch size: {found}", flush=True)
    return rates


def representative_pairs(costs: np.ndarray, num_pairs: int, batch_size: int, seed: int = 0):
    """Indices of a random sample of whole batches, as a run over all sorted pairs would form them.

    Pairs sorted by cost are cut into strata of equal size and a run of `batch_size` neighbours is
    drawn from the middle half of each, so that a sample has no more padding than the whole has.
    """
    order = np.argsort(costs, kind="stable")
    batches = max(1, round(num_pairs / batch_size))
    places = np.random.default_rng(seed).uniform(0.25, 0.75, batches)
    starts = (np.arange(batches) + places) / batches * (len(order) - batch_size)
    return np.unique(np.concatenate([order[int(s) : int(s) + batch_size] for s in starts]))


def write_work(path: Path, workloads: list[Workload]) -> None:
    """The workloads' token ids as JSON."""
    content = {
        work.name: {
            "prefixes": [[i for segment in prefix for i in segment] for prefix in work.prefixes],
            "segments": work.prefixes,
            "requests": [c.request for c in work.continuations],
            "responses": [c.response for c in work.continuations],
        }
        for work in workloads
    }
    path.write_text(json.dumps(content))


def checkpoint_folder(spec: str, folder: Path) -> Path:
    """A Hugging Face folder with the same float32 weights: the model itself, or a GGUF written out.

    Raises:
        SystemExit: for a GGUF file of another family than Llama's.
    """
    path = resolve_path(spec)
    if path.is_dir():
        return path
    file = GGUFFile(path)
    if file.get("general.architecture") != "llama":
        raise SystemExit(f"{path.name}: only GGUF files of the Llama family can be written out.")
    folder.mkdir(parents=True, exist_ok=True)
    llama_config(file.config()).save_pretrained(folder)
    gguf_tokenizer(file).save_pretrained(folder)
    tensors = {
        name if name.startswith("lm_head") else f"model.{name}": np.ascontiguousarray(read())
        for name, read in file.tensors()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def llama_config(config: DecoderConfig) -> Any:
    """The configuration as `transformers` knows it."""
    from transformers import LlamaConfig

    if config.rope_scaling != RopeScaling():
        raise SystemExit("A GGUF file with rope scaling cannot be written out.")
    return LlamaConfig(
        architectures=["LlamaForCausalLM"],
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        intermediate_size=config.intermediate_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.max_position,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        tie_word_embeddings=config.tie_embeddings,
        attention_bias=config.attention_bias,
        eos_token_id=list(config.eos_token_ids),
        dtype="float32",
    )
