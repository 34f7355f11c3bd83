"""What is done with components that were not scored: four estimators beside the exact sum.

    python benchmarks/estimators.py [--counts 2 4 8 16 32 48] [--draws 10]

The table of tests/data/rt_table.npz has all 160 × 48 pairs at τ = 1, so that the truth is known.
C candidates of each record are drawn: uniformly, half by similarity of texts (as runs do; mild
among twelve exemplars), or nearly all by a sharper similarity. They count

- `importance`: by one over their probability, an unbiased estimate of p(y | x) (the default);
- `renormalised`: as the only components there are, the gate's softmax over them alone;
- `zero-filled`: as they are, under the whole gate's softmax; what was not scored counts as zero.
  No setting of the package makes this bound: here it is `PersonaMixture` with log-weights of zero.
  Of uniform candidates it is the importance estimate up to a constant, so that is left out.

First log p̂ at a fixed gate, that of the full fit: its bias and standard deviation over draws of
candidates. Then gates fitted to each estimate (posterior modes): to four folds by film, for what
they predict of the fifth, evaluated with *all* components; and to all records, for whether they
imitate how candidates were chosen. Imitation is the slope, within records, of log E[Ω] on the
log-probability that an exemplar is proposed, less the same slope of gates from as many uniform
candidates: 0 for a gate that does not care, 1 for one that takes the proposal for a preference.
Standard errors draw films as a whole, and candidates too. Prints, and writes
benchmarks/results/estimators.json and docs/figures/estimators.png; about ten minutes on two quiet
cores.
"""

from __future__ import annotations

import argparse
import json
import platform
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from candidates import read_table
from evidence_figures import estimators_figure
from gates import NUM_FOLDS, ROOT, real_table
from numpyro import handlers
from numpyro.infer import SVI
from scipy.special import logsumexp

from mop_jax import progress
from mop_jax.components import (
    CandidateSet,
    defensive_proposal,
    full_candidates,
    importance_candidates,
    renormalised_candidates,
)
from mop_jax.components.proposals import FactorisedProposal
from mop_jax.distributions import PersonaMixture, RenormalisedPersonaMixture
from mop_jax.inference import default_optimizer, fit_svi, gate_at, posterior_draws
from mop_jax.inference.guides import make_guide, make_loss, prepare_guide
from mop_jax.models import MixtureData, mixture_of_personas
from mop_jax.plots import save_figure

ESTIMATORS = ("importance", "renormalised", "zero-filled")
SIMILARITY = {
    "similarity": {"uniform_share": 0.5, "temperature": 0.2},  # the defaults
    "sharp similarity": {"uniform_share": 0.2, "temperature": 0.05},
}
ROWS = [
    ("uniform", "importance"),
    ("uniform", "renormalised"),
    *((proposal, estimator) for proposal in SIMILARITY for estimator in ESTIMATORS),
]
NUM_STEPS, FOLD_DRAWS, GUIDE_COUNT = 600, 4, 8
# Records of a fold get next to no weight, so that all fits have one shape.
LEFT_OUT = 1e-6


class Reviews(NamedTuple):
    """The complete table, and how candidates are proposed.

    Attributes:
        data: all components of all records, float32.
        fold: of each record, [N].
        film: code of each record's, [N].
        table: nats, [N, K, J].
        proposals: by name.
    """

    data: MixtureData
    fold: np.ndarray
    film: np.ndarray
    table: np.ndarray
    proposals: dict[str, FactorisedProposal]

    @property
    def uniform(self) -> np.ndarray:
        """Log p(y | x) of the uniform mixture, nats [N]."""
        return logsumexp(self.table, axis=(1, 2)) - np.log(self.table[0].size)


def read_reviews() -> Reviews:
    """Similarity is that of request and review, as in a run."""
    data, fold = real_table()
    source = read_table()
    film = np.unique(source.records.groups or [], return_inverse=True)[1]
    texts, exemplars = source.texts, source.components.exemplar_embeddings
    proposals = {
        name: defensive_proposal(texts, exemplars, data.num_personas, **how)
        for name, how in {"uniform": {"uniform_share": 1.0}, **SIMILARITY}.items()
    }
    table = np.asarray(source.log_likelihood, np.float64)
    return Reviews(data, fold, film, table, proposals)


class Row(NamedTuple):
    """What is compared.

    Attributes:
        proposal: how candidates are drawn.
        estimator: what they count for.
        count: C.
    """

    proposal: str
    estimator: str
    count: int

    def candidates(self, reviews: Reviews, seed: int) -> CandidateSet:
        """A draw; the same pairs whatever the estimator."""
        draw = importance_candidates if self.estimator == "importance" else renormalised_candidates
        return draw(reviews.proposals[self.proposal], self.count, seed)


def by_film(reviews: Reviews, values: np.ndarray) -> tuple[float, float]:
    """Mean over records [N] and its standard error, films drawn as a whole."""
    return float(values.mean()), film_error(reviews, values - values.mean()) / len(values)


def film_error(reviews: Reviews, terms: np.ndarray) -> float:
    """Standard error of a sum of terms [N] of mean zero, films drawn as a whole."""
    sums = np.bincount(reviews.film, terms)
    return float(np.sqrt((sums**2).sum() * len(sums) / (len(sums) - 1)))


def at_fixed_gate(reviews: Reviews, gate: np.ndarray, row: Row, draws: int) -> dict[str, float]:
    """Bias and standard deviation over draws of log p̂, averaged over records, by NumPy alone.

    Args:
        reviews: the table.
        gate: log π + log Ω, [N, K, J].
        row: the estimate.
        draws: of candidates.
    """
    exact = logsumexp(gate + reviews.table, axis=(1, 2))
    rows = np.arange(len(gate))[:, None]
    found = np.empty((draws, len(gate)))
    for seed in range(draws):
        chosen = row.candidates(reviews, seed)
        pairs = (rows, chosen.persona_index, chosen.exemplar_index)
        prior = gate[pairs] + chosen.log_weight
        found[seed] = logsumexp(prior + reviews.table[pairs], axis=1)
        if row.estimator == "renormalised":
            found[seed] -= logsumexp(prior, axis=1)
    bias, error = by_film(reviews, found.mean(0) - exact)
    return {"bias": bias, "bias_se": error, "sd": float(found.std(0, ddof=1).mean())}


def changed(reviews: Reviews, chosen: CandidateSet) -> dict[str, np.ndarray]:
    """The arrays of `MixtureData` that candidates decide, padded to one of two shapes."""
    few, all_of_them = 16, reviews.table[0].size
    wide = chosen.padded(few if chosen.num_candidates <= few else all_of_them)
    rows = np.arange(len(reviews.fold))[:, None]
    scores = reviews.table[rows, wide.persona_index, wide.exemplar_index]
    return {
        "persona_index": wide.persona_index,
        "exemplar_index": wide.exemplar_index,
        "log_weight": wide.log_weight.astype(np.float32),
        "log_likelihood": scores[..., None].astype(np.float32),
    }


def model_kwargs(estimator: str) -> dict[str, Any]:
    """The shipped model without temperature (the table has τ = 1 alone)."""
    renormalised = estimator == "renormalised"
    distribution = RenormalisedPersonaMixture if renormalised else PersonaMixture
    return {"temperature": False, "distribution": distribution}


class Fitter:
    """Posterior modes of the default gate: `fit_svi`'s with AutoDelta, many in one program."""

    def __init__(self, reviews: Reviews, estimator: str) -> None:
        data, kwargs = reviews.data, model_kwargs(estimator)
        guide = make_guide("AutoDelta", mixture_of_personas)
        prepare_guide(guide, jax.random.key(0), data, kwargs)
        optimizer = default_optimizer(NUM_STEPS, 0.02)
        svi = SVI(mixture_of_personas, guide, optimizer, make_loss(guide, 1), **kwargs)

        def fit(arrays: dict[str, jax.Array]) -> jax.Array:
            batch = data._replace(**arrays)
            state = svi.init(jax.random.key(1), batch)
            state = jax.lax.fori_loop(0, NUM_STEPS, lambda _, s: svi.update(s, batch)[0], state)
            params = svi.get_params(state)
            sites = {name.removesuffix("_auto_loc"): value for name, value in params.items()}
            hidden = handlers.block(handlers.substitute(mixture_of_personas, sites))
            return hidden(data, temperature=False).mixing_log_probs

        self._fit = jax.jit(jax.vmap(fit))
        self._reviews = reviews

    def __call__(self, sets: list[CandidateSet]) -> tuple[np.ndarray, np.ndarray]:
        """Log π + log Ω [sets, N, K, J] of fits to all records, and of those that see no test film.

        The latter to the first `FOLD_DRAWS` sets, each record by the gate that has not seen it.
        """
        fold, shape = self._reviews.fold, self._reviews.table.shape
        jobs = [(chosen, None) for chosen in sets]
        jobs += [(chosen, number) for chosen in sets[:FOLD_DRAWS] for number in range(NUM_FOLDS)]
        arrays = [
            changed(self._reviews, chosen)
            | {"weights": np.where(fold == number, LEFT_OUT, 1.0).astype(np.float32)}
            for chosen, number in jobs
        ]
        stacked = {name: np.stack([each[name] for each in arrays]) for name in arrays[0]}
        found = np.asarray(self._fit(stacked), np.float64)
        folds = found[len(sets) :].reshape(-1, NUM_FOLDS, *shape)
        return found[: len(sets)], folds[:, fold, np.arange(len(fold))]


def gain(reviews: Reviews, gates: np.ndarray) -> np.ndarray:
    """Log p over that of the uniform mixture, all components counted, nats [..., N]."""
    return logsumexp(gates + reviews.table, axis=(-1, -2)) - reviews.uniform


def centred(log_probs: np.ndarray) -> np.ndarray:
    """Less the mean over exemplars."""
    return log_probs - log_probs.mean(-1, keepdims=True)


def imitation(
    reviews: Reviews, gate: np.ndarray, full: np.ndarray, control: np.ndarray, proposal: str
) -> dict[str, float]:
    """How much gates follow the proposal of their candidates, and what the full fit says of it.

    Args:
        reviews: the table.
        gate: log π + log Ω by draw of candidates, [draws, N, K, J].
        full: that of the full fit, [N, K, J].
        control: of the same estimator from as many uniform candidates, [draws, N, K, J].
        proposal: its name; uniform candidates are held against similarity, of which they know
            nothing.
    """
    q = reviews.proposals["similarity" if proposal == "uniform" else proposal].exemplar_probs
    x = centred(np.log(q))
    power = (x**2).sum()
    # Log E Ω, [..., N, J].
    fitted, other, exact = (logsumexp(each, axis=-2) for each in (gate, control, full[None]))

    def slopes(log_probs: np.ndarray) -> np.ndarray:
        return (x * centred(log_probs)).sum((1, 2)) / power

    own, theirs = slopes(fitted), slopes(other)
    found = {
        "slope": float(own.mean()),
        "slope_sd_over_draws": float(own.std(ddof=1)),
        "slope_of_full": float(slopes(exact)[0]),
        "imitation": float(own.mean() - theirs.mean()),
    }
    # The sandwich estimate, films as clusters; and what other candidates would have given.
    rest = centred(fitted.mean(0) - other.mean(0)) - found["imitation"] * x
    of_films = film_error(reviews, (x * rest).sum(-1)) / power
    of_draws = (own.var(ddof=1) + theirs.var(ddof=1)) / len(own)
    found |= {
        "imitation_se": float(np.sqrt(of_films**2 + of_draws)),
        "imitation_se_of_films": of_films,
    }
    for name, log_probs in (("", fitted), ("_of_full", exact)):
        level = np.broadcast_to(x, log_probs.shape).ravel(), centred(log_probs).ravel()
        found[f"correlation{name}"] = float(np.corrcoef(*level)[0, 1])
        found[f"kl_from_proposal{name}"] = float((q * (np.log(q) - log_probs)).sum(-1).mean())
    return found


def with_default_guide(reviews: Reviews, row: Row) -> np.ndarray:
    """Log of the posterior mean of π Ω under the default guide, two draws, [2, N, K, J]."""
    gates = []
    for seed in range(2):
        arrays = changed(reviews, row.candidates(reviews, seed))
        fit = fit_svi(
            jax.random.key(0),
            reviews.data._replace(**arrays),
            model_kwargs=model_kwargs(row.estimator),
            progress=False,
        )
        gate = gate_at(posterior_draws(fit, jax.random.key(1)), reviews.data.context_embeddings)
        joint = np.asarray(gate.persona_log_probs)[..., None] + gate.exemplar_log_probs()
        gates.append(logsumexp(np.asarray(joint, np.float64), axis=0) - np.log(len(joint)))
    return np.stack(gates)


def measure(
    reviews: Reviews, counts: list[int], draws: int, estimates: int
) -> Iterator[dict[str, Any]]:
    """The report, after every row."""
    fitters = {name: Fitter(reviews, name) for name in ("importance", "renormalised")}
    fitters["zero-filled"] = fitters["importance"]
    num_records, *shape = reviews.table.shape
    everything = full_candidates(*shape, np.zeros((num_records, shape[1]), bool))
    (full,), full_folds = fitters["importance"]([everything])
    full_gain = gain(reviews, full_folds[0])
    report: dict[str, Any] = {
        "unit": "nats per record",
        "draws": {"gates": draws, "of them held out": FOLD_DRAWS, "estimates": estimates},
        "films": int(reviews.film.max()) + 1,
        "versions": {"jax": jax.__version__, "python": platform.python_version()},
        "full": dict(zip(("gain", "gain_se"), by_film(reviews, full_gain), strict=True)),
        "rows": [],
    }
    rows = [Row(*names, count) for count in counts for names in ROWS]
    controls: dict[tuple[str, str], np.ndarray] = {}
    with progress.task("Fitting gates", total=len(rows)) as advance:
        for row in rows:
            gates, unseen = fitters[row.estimator](
                [row.candidates(reviews, seed) for seed in range(draws)]
            )
            gains = gain(reviews, unseen)
            found: dict[str, Any] = {
                **row._asdict(),
                **at_fixed_gate(reviews, full, row, estimates),
                **dict(zip(("gain", "gain_se"), by_film(reviews, gains.mean(0)), strict=True)),
                "gain_sd_over_draws": float(gains.mean(1).std(ddof=1)),
            }
            found["below_full"], found["below_full_se"] = by_film(
                reviews, full_gain - gains.mean(0)
            )
            by_guide = {"mode": gates}
            if row.count == GUIDE_COUNT:
                by_guide["default guide"] = with_default_guide(reviews, row)
            for guide, each in by_guide.items():
                key = (guide, "renormalised" if row.estimator == "renormalised" else "importance")
                if row.proposal == "uniform":  # the first rows of every C
                    controls[key] = each
                found[guide] = imitation(reviews, each, full, controls[key], row.proposal)
            report["rows"].append(found)
            advance(1)
            yield report


def main() -> None:
    """Measures, prints, and writes JSON and figure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counts", type=int, nargs="+", default=[2, 4, 8, 16, 32, 48], help="C")
    parser.add_argument("--draws", type=int, default=10, help="of candidates, for fits")
    parser.add_argument("--estimates", type=int, default=100, help="draws at the fixed gate")
    arguments = parser.parse_args()
    out = ROOT / "benchmarks" / "results" / "estimators.json"
    with progress.on_by_default():
        for report in measure(
            read_reviews(), arguments.counts, arguments.draws, arguments.estimates
        ):
            out.write_text(json.dumps(report, indent=1) + "\n", "utf-8")
            row = report["rows"][-1]
            print(
                "C = {count}, {proposal}, {estimator}: bias {bias:+.3f}, sd {sd:.3f}, "
                "gain {gain:+.3f} ± {gain_se:.3f}, slope {slope:+.2f}, "
                "imitation {imitation:+.2f} ± {imitation_se:.2f}".format(**row, **row["mode"]),
                flush=True,
            )
    figures = ROOT / "docs" / "figures"
    figures.mkdir(parents=True, exist_ok=True)
    save_figure(figures / "estimators.png", estimators_figure(report, list(SIMILARITY)))


if __name__ == "__main__":
    main()
