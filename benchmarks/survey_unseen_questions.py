"""How a survey's mixture answers each of its questions in turn without having seen it.

    mop run ces && python benchmarks/survey_unseen_questions.py runs/ces

Refits the finished run without one question after the other, with and without a temperature of
its own for what the language model prefers of a question's options (`survey.preference`), and
judges the answers of all cells to it. Options are not scored anew: exemplars that answer the
question are left out, so that a question has fewer components than the run's own
`hold_out_question`, which no exemplar answers. Personas are the run's own: where they were written
from answers (those of the shipped surveys were not), they may know of it. Prints, and writes JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import jax
import numpy as np

from mop_jax import pipeline
from mop_jax.choices import share_draws
from mop_jax.evaluation.surveys import by_question
from mop_jax.inference import posterior_draws
from mop_jax.pipeline.surveys.artefacts import SurveyRun
from mop_jax.pipeline.surveys.fitting import fit_data
from mop_jax.survey import Items

MEASURES = ("total_variation", "log_score")


def measured(shares: np.ndarray, items: Items) -> dict[str, float]:
    """Means over the cells of items of one question."""
    table = by_question(shares, items, MEASURES).set_index("question")
    row = table.loc[items.questions[items.question[0]].id]
    return {name: float(row[name]) for name in MEASURES}


def judge(run: SurveyRun, question: int, seed: int) -> dict[str, object]:
    """Measures of a fit that has not seen a question, and its temperatures."""
    asked = run.items.question == question
    # An exemplar that answers the question would tell of it.
    shown = run.exemplars["question"].to_numpy() != question
    training = run.data(~run.is_test & ~asked, shown)
    fit = fit_data(run, training, jax.random.key(seed), progress=False)
    posterior = posterior_draws(fit, jax.random.key(seed + 1), 400)
    maps = posterior.data
    data = run.data(asked, shown, feature_maps=maps.feature_maps, similarity=maps.similarity)
    assert data.choices is not None
    unknown = np.zeros_like(np.asarray(data.choices.question))
    unknown[:, -1] = 1
    data = data._replace(choices=data.choices._replace(question=unknown))
    shares = share_draws(posterior, data).probs
    items = run.items.take(np.flatnonzero(asked))
    samples = posterior.samples
    names = [name for name in samples if "log_" in name and "temperature" in name]
    return {
        **measured(shares, items),
        "loss": float(np.mean(fit.losses[-200:])),
        **{name: np.exp(samples[name].mean(0)).round(3).tolist() for name in names},
    }


def main() -> None:
    """Prints a line for each fit and writes them."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    parser.add_argument("--num-steps", type=int, default=1500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    config = pipeline.read_config(arguments.run)
    assert config.survey is not None
    if config.survey.history:
        parser.error("histories tell of answers to the question; give a run without history")
    inference = config.inference.model_copy(update={"num_steps": arguments.num_steps})
    rows = []
    for preference in (True, False):
        survey = config.survey.model_copy(update={"preference": preference})
        changed = config.model_copy(update={"survey": survey, "inference": inference})
        run = SurveyRun(arguments.run, changed)
        for number, question in enumerate(run.questions):
            own = run.items.question == number
            items = run.items.take(np.flatnonzero(own))
            flat = items.mask / items.mask.sum(1, keepdims=True)
            uniform = measured(flat, items)
            row = {
                "question": question.id,
                "preference": preference,
                **judge(run, number, arguments.seed),
                **{f"uniform_{name}": value for name, value in uniform.items()},
            }
            print(json.dumps(row), flush=True)
            rows.append(row)
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / f"survey_unseen_questions_{config.name}.json"
    path.write_text(json.dumps({"steps": arguments.num_steps, "rows": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
