"""What a run reports: its table, its sentence on the candidates, and figures of any text."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from rich.console import Console

from mop_jax import pipeline
from mop_jax.errors import FaultError
from mop_jax.evaluation.predictors import PREDICTORS
from mop_jax.pipeline.drawing import without_common_ends
from mop_jax.pipeline.run_folder import file_hash
from mop_jax.pipeline.summary import (
    check_sentence,
    read_metrics,
    results_table,
    similarity_sentence,
)
from tests.run_fixtures import LINE_SEPARATOR, contents, undo

pytest_plugins = ("tests.run_fixtures",)


def check(**changes) -> dict:
    error = {"mean": 0.3, "se": 0.05}
    base = {"candidates": 12, "compared_candidates": 24, "mop_minus_uniform": error,
            "mop_minus_uniform_compared": error, "moved": 0.012, "passed": True}  # fmt: skip
    return {**base, **changes}


def test_the_check_in_a_sentence():
    assert check_sentence(check()) == (
        "Doubling the candidates (12 → 24) moves mop − uniform by +0.012, less than its standard "
        "error 0.050."
    )
    halved = check_sentence(check(compared_candidates=6, moved=-0.2, passed=False))
    assert halved == (
        "Halving the candidates (12 → 6) moves mop − uniform by -0.200, NOT less than its "
        "standard error 0.050."
    )


def test_the_check_says_what_the_candidates_still_hide():
    assert check_sentence(check(compared_candidates=6, left=0.03)) == (
        "Halving the candidates (12 → 6) moves mop − uniform by +0.012; what they still hide is "
        "estimated at up to 0.030, less than its standard error 0.050."
    )
    poor = check_sentence(check(compared_candidates=6, left=0.03, moved=-0.1))
    assert poor == (
        "Halving the candidates (12 → 6) moves mop − uniform by -0.100; what they still hide is "
        "estimated at up to 0.030, less than its standard error 0.050. The half was proposed "
        "before anything was scored, so it hides more."
    )
    belied = check_sentence(check(compared_candidates=6, left=0.01, moved=-0.2, passed=False))
    assert belied.endswith(
        "estimated at up to 0.010, less than its standard error 0.050. The move is far more than "
        "such estimates foresee, so this one may be too low: NOT enough."
    )
    many = check_sentence(check(compared_candidates=6, left=0.07, passed=False))
    assert many.endswith("estimated at up to 0.070, NOT less than its standard error 0.050.")
    assert check_sentence(check(compared_candidates=6, left=0.0)) == (
        "Halving the candidates (12 → 6) moves mop − uniform by +0.012; all components are "
        "scored, so nothing is hidden."
    )
    assert check_sentence(check(left=0.012)) == check_sentence(check())


def write_metrics(
    folder, share_at_ends: float = 0.0, converged: bool = True, noise: float = 0.01
) -> dict:
    held_out = {}
    for n, name in enumerate(PREDICTORS):
        held_out[name] = {"mean": -40.125 + n, "se": 0.5}
        if name != "uniform_mixture":
            held_out[f"{name}_minus_uniform"] = {"mean": n - 2.0, "se": 0.25}
    metrics = {
        "num_held_out": 12,
        "held_out": held_out,
        "candidate_check": check(),
        "temperature": {"share_at_ends_of_grid": share_at_ends},
        "fit": {
            "mop": {
                "converged": converged,
                "reason": "Still improving.",
                "improvement": 0.05,
                "standard_error": noise,
                "tolerance": 0.02,
            }
        },
    }
    (folder / "metrics.json").write_text(json.dumps(metrics))
    return metrics


def test_the_table_holds_every_predictor_and_where_everything_is(tmp_path):
    write_metrics(tmp_path)
    out = io.StringIO()
    results_table(tmp_path, Console(file=out, width=110))
    lines = out.getvalue().splitlines()
    assert "12 records" in lines[0]
    for n, (name, entry) in enumerate(PREDICTORS.items()):
        (row,) = (line for line in lines if line.strip("│┃ ").startswith(f"{entry.title} "))
        assert f"{-40.125 + n:.2f} ± 0.50" in row
        assert (f"{n - 2.0:+.2f} ± 0.25" in row) == (name != "uniform_mixture")
    joined = " ".join(" ".join(lines).split())
    assert "hidden" not in joined
    assert check_sentence(check()) in joined
    assert "widen" not in joined
    assert "onverged" not in joined
    for name in ("metrics.json", "simulated.jsonl", "posterior.nc", "figures"):
        assert str(tmp_path / name) in joined


def test_the_table_shows_what_the_candidates_hide(tmp_path):
    metrics = write_metrics(tmp_path)
    metrics["candidate_slack"] = {
        "uniform_mixture": {"mean": 0.3, "se": 0.1},
        "mop": {"mean": 0.45, "se": 0.1},
        "mop_minus_uniform": {"mean": 0.15, "se": 0.07},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    out = io.StringIO()
    results_table(tmp_path, Console(file=out, width=140))
    (row,) = (line for line in out.getvalue().splitlines() if "mixture of personas " in line)
    assert "+0.15 ± 0.07" in row
    assert out.getvalue().count("±") == 2 * len(PREDICTORS) - 1 + 1


def test_coefficients_of_similarity_are_said_as_factors(tmp_path):
    metrics = write_metrics(tmp_path)
    assert similarity_sentence(metrics) == ""
    metrics["similarity"] = {
        "same_label": {"mean": float(np.log(1.5)), "interval_94": [0.0, float(np.log(2.25))]},
        "context_similarity": {"mean": 0.0, "interval_94": [-1.0, 1.0]},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    out = io.StringIO()
    results_table(tmp_path, Console(file=out, width=110))
    assert (
        "An exemplar whose context is a standard deviation nearer is 1.00 times likelier (0.37 to "
        "2.72), one of the same label is 1.50 times likelier (1.00 to 2.25)."
    ) in " ".join(out.getvalue().split())


def test_a_fit_that_has_not_converged_is_said(tmp_path):
    write_metrics(tmp_path, converged=False)
    out = io.StringIO()
    results_table(tmp_path, Console(file=out, width=110))
    joined = " ".join(out.getvalue().split())
    assert "Not converged: mixture of personas. Still improving." in joined
    write_metrics(tmp_path, converged=False, noise=0.03)
    out = io.StringIO()
    results_table(tmp_path, Console(file=out, width=110))
    assert "Not converged" not in out.getvalue()


def test_a_posterior_that_presses_against_the_grid_is_said(tmp_path):
    write_metrics(tmp_path, share_at_ends=0.25)
    out = io.StringIO()
    results_table(tmp_path, Console(file=out, width=110))
    joined = " ".join(out.getvalue().split())
    assert "25% of the posterior's temperatures lie at an end of the grid" in joined


@pytest.mark.parametrize("content", [None, "", "{"])
def test_metrics_that_cannot_be_read_are_a_fault(tmp_path, content):
    if content is not None:
        (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(FaultError, match=r"metrics\.json could not be read"):
        read_metrics(tmp_path)


def test_figures_of_whatever_a_model_writes(copy_of_run, materials):
    """Empty responses, and characters that `str.splitlines` takes for the end of a line."""
    path = copy_of_run / "simulated.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]
    rows[0]["text"], rows[1]["text"] = "", f"two{LINE_SEPARATOR}lines\x85or\x0bthree"
    rows[2]["text"] = "$\\frac{1}{ <b> \u202e 🎬 漢字"
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    before = contents(copy_of_run)
    undo(copy_of_run, "figures")
    manifest = json.loads((copy_of_run / "manifest.json").read_text("utf-8"))
    # The edited file is taken as the step's own, so that only the figures are drawn again.
    manifest["steps"]["simulate"]["outputs"]["simulated.jsonl"] = file_hash(path)
    (copy_of_run / "manifest.json").write_text(json.dumps(manifest))
    pipeline.run(copy_of_run)
    after = contents(copy_of_run)
    assert after["simulated.jsonl"] == before["simulated.jsonl"]
    changed = {name for name in after if after[name] != before[name]} - {"manifest.json"}
    drawn = {"figures/embedding_map.png", "figures/effective_size.png"}
    assert changed == {"likeness.json", *drawn}
    assert np.frombuffer(after["figures/embedding_map.png"][:8], np.uint8)[0] == 0x89


@pytest.mark.parametrize(
    ("texts", "shown"),
    [
        (["Review the film Alien now", "Review the film Heat now"], ["…Alien…", "…Heat…"]),
        (["What do you think?", "Why you?"], ["What do you think?", "Why you?"]),
        (["What do you say now", "What are you up to"], ["…do you say now", "…are you up to"]),
        (["the same", "the same"], ["the same", "the same"]),
        (["one", "one two"], ["one", "…two"]),
        (["alone"], ["alone"]),
    ],
)
def test_contexts_are_shown_without_the_ends_that_all_share(texts, shown):
    assert without_common_ends(texts) == shown
