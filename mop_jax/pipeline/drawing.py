"""The last step of a run: its figures, from its artefacts; of the models only the encoder runs."""

from __future__ import annotations

import json
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from mop_jax import atomic, plots
from mop_jax.evaluation.predictors import BASELINE, MAIN, PREDICTORS
from mop_jax.inference import Posterior, gate_at, load_posterior
from mop_jax.pipeline.summary import SIZES, check_sentence, read_likeness, read_metrics
from mop_jax.pipeline.workspace import Workspace
from mop_jax.plots.fonts import numbered
from mop_jax.plots.style import save_figure


def draw_figures(space: Workspace) -> None:
    """Draws figures/*.png from what the other steps wrote."""
    folder = space.path / "figures"
    posterior = load_posterior(space.path / "posterior.safetensors")
    metrics = read_metrics(space.path)
    fit = metrics["fit"][MAIN]
    save_figure(
        folder / "elbo.png",
        plots.elbo_trace(
            posterior.losses,
            converged=fit["converged"],
            reason=fit["reason"],
            windows=fit.get("windows"),  # runs of earlier versions have none
        ),
    )
    _gate_figures(space, posterior, folder)
    _embedding_map(space, folder)
    _effective_sizes(space, folder)
    _evidence_figures(metrics, folder)


def _gate_figures(space: Workspace, posterior: Posterior, folder: Path) -> None:
    train = space.sides["train"]
    gate = gate_at(posterior, train.context_embeddings)
    weights = train.records.weights / train.records.weights.sum()
    shares = np.einsum("n,snk->sk", weights, np.exp(np.asarray(gate.persona_log_probs)))
    # Numbered here, where they would look the same, so that both figures give the same numbers.
    names = numbered([text or "(no persona)" for text in space.components.speakers])
    save_figure(
        folder / "persona_weights.png",
        plots.persona_weights(
            shares,
            names,
            population_label=f"{len(train.records)} training records",
            temperatures=np.asarray(gate.temperature),
        ),
    )
    # A few personas, those that speak most, before a few held-out contexts spread over the side.
    test = space.sides["test"]
    shown = np.argsort(-shares.mean(axis=0))[:3]
    different = np.sort(np.unique(test.records.contexts, return_index=True)[1])
    rows = different[np.unique(np.linspace(0, len(different) - 1, 6).astype(int))]
    codes = space.components.codes(test.records.take(rows))
    gate = gate_at(posterior, test.context_embeddings[rows], **codes)
    omega = np.exp(np.asarray(gate.exemplar_log_probs())).mean(axis=0)
    save_figure(
        folder / "exemplar_gate.png",
        plots.omega_heatmap(
            omega[:, shown].transpose(1, 0, 2),
            [names[k] for k in shown],
            without_common_ends([test.records.contexts[i] for i in rows]),
            [pair[1] if pair else "no exemplar" for pair in space.components.shown_exemplars],
            note=""
            if len(shown) == len(names)
            else f"Shown: the {len(shown)} of {len(names)} personas that speak most.",
        ),
    )


def _embedding_map(space: Workspace, folder: Path) -> None:
    test = space.sides["test"]
    # Not splitlines(): a model may well write U+2028 and its like.
    lines = (space.path / "simulated.jsonl").read_text("utf-8").split("\n")
    simulated = [json.loads(line) for line in lines if line]
    frame = test.records.frame.iloc[[row["sample"] % len(test.records) for row in simulated]]
    # An empty response has no sentence to embed.
    responses = [row["text"] or "…" for row in simulated]
    labels = test.records.labels
    # Responses alone: with the requests, whatever is simulated would resemble the real.
    encode = space.encoder.encode
    save_figure(
        folder / "embedding_map.png",
        plots.embedding_map(
            encode(test.records.responses),
            encode(responses),
            real_labels=labels,
            simulated_labels=None if labels is None else frame["label"].tolist(),
            reference=encode(space.sides["train"].records.responses),
            reference_name="real training responses",
        ),
    )


def _effective_sizes(space: Workspace, folder: Path) -> None:
    found = read_likeness(space.path)
    shown = {
        title: (size["sizes"], size["errors"], size["spread"], size["simulated_error"],
                float(size["size"]))
        for name, title in SIZES.items()
        if (size := found["effective_size"].get(name)) is not None
    }  # fmt: skip
    figure = plots.effective_sizes(shown, num_simulated=found["num_simulated"])
    save_figure(folder / "effective_size.png", figure)


def _evidence_figures(metrics: dict[str, Any], folder: Path) -> None:
    held_out, check = metrics["held_out"], metrics["candidate_check"]
    slack = metrics.get("candidate_slack", {})

    def row(name: str, key: str) -> tuple[str, float, float]:
        return PREDICTORS[name].title, held_out[key]["mean"], held_out[key]["se"]

    # Others were registered since the run was evaluated.
    names = [name for name in PREDICTORS if name in held_out]
    differences = [row(name, f"{name}_minus_uniform") for name in names if name != BASELINE]
    save_figure(
        folder / "held_out.png",
        plots.held_out_comparison(
            [row(name, name) for name in names],
            differences,
            check_sentence(check),
            headline=PREDICTORS[MAIN].title,
            hidden={
                PREDICTORS[name].title: slack[f"{name}_minus_uniform"]["mean"]
                for name in names
                if f"{name}_minus_uniform" in slack
            },
        ),
    )
    points = sorted(
        [
            (check["candidates"], check["mop_minus_uniform"]),
            (check["compared_candidates"], check["mop_minus_uniform_compared"]),
        ],
        key=lambda point: point[0],
    )
    figure = plots.candidate_convergence(
        [count for count, _ in points],
        [value["mean"] for _, value in points],
        [value["se"] for _, value in points],
        reported=[count for count, _ in points].index(check["candidates"]),
        left=check.get("left"),
        passed=check["passed"],
    )
    save_figure(folder / "candidate_check.png", figure)
    atomic.write_json(folder / "candidate_check.json", {"sentence": check_sentence(check), **check})


def without_common_ends(texts: list[str]) -> list[str]:
    """Each text without the first and the last words that all of them share, "…" in their place."""
    if len(texts) < 2:
        return texts
    words = [text.split() for text in texts]
    first = _num_shared(words)
    last = _num_shared([each[first:][::-1] for each in words])
    middles = [" ".join(each[first : len(each) - last]) for each in words]
    marked = ["…" * (first > 0) + middle + "…" * (last > 0) for middle in middles]
    return [mark if middle else text for mark, middle, text in zip(marked, middles, texts)]


def _num_shared(sequences: list[list[str]]) -> int:
    """How many words, from the first, all sequences have in common."""
    columns = zip(*sequences)
    return sum(1 for _ in takewhile(lambda column: len(set(column)) == 1, columns))
