"""What a gate may compare of records and exemplars, and that proposals ask the same gate."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpyro.infer import Predictive

from mop_jax.components import Components, Persona
from mop_jax.components.candidates import full_candidates
from mop_jax.components.codes import codes_of, labels_known_before, labels_of_contexts
from mop_jax.inference import gate_at, make_posterior
from mop_jax.lm.base import TemperatureGrid
from mop_jax.models import mixture_of_personas
from mop_jax.population import Population

GRID = TemperatureGrid(0.25, (5, 4, 3))
FILMS = ["Ran", "Jaws", "Ikiru", "Alien"]


@pytest.fixture(scope="module")
def reviews() -> Population:
    """Sixteen reviews: four films, asked to praise or to blame; the request says which."""
    moods = ["good", "bad"] * 8
    films = [FILMS[i // 4] for i in range(16)]
    contexts = [f"A {mood} review of {film}" for mood, film in zip(moods, films, strict=True)]
    responses = [f"Text number {i} of them all" for i in range(16)]
    return Population([f"r{i}" for i in range(16)], contexts, responses, moods, films)


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    """Embeddings of contexts; of texts they are others."""
    return np.random.default_rng(0).normal(size=(16, 6)).astype(np.float32)


@pytest.fixture(scope="module")
def components(reviews, vectors) -> Components:
    """Two personas; the exemplars are six of the reviews."""
    rng, chosen = np.random.default_rng(1), [0, 3, 4, 7, 8, 13]
    personas = [Persona("young"), Persona("old")]
    return Components(
        personas,
        reviews.take(chosen),
        rng.normal(size=(2, 6)).astype(np.float32),
        rng.normal(size=(6, 6)).astype(np.float32),
        "record",
        vectors[chosen],
    )


def data_of(components, records, contexts, *, held_out=False):
    candidates = full_candidates(2, 6, components.leave_out(records, held_out=held_out))
    table = np.random.default_rng(2).normal(-9, 1, (len(records), 12, 3))
    return components.data(records, contexts, candidates, table, GRID, held_out=held_out)


def test_codes_are_those_of_the_exemplars(components, reviews):
    codes = components.codes(reviews)
    labels, groups = components.exemplars.labels, components.exemplars.groups
    own = components.codes(components.exemplars)
    for values, others, key in (
        (reviews.labels, labels, "labels"),
        (reviews.groups, groups, "groups"),
    ):
        for i, value in enumerate(values):
            for j, other in enumerate(others):
                assert (codes[key][i] == own[key][j]) == (value == other)
    assert codes_of(["good", "never seen"], ["bad", "good"]).tolist() == [1, -1]
    assert codes_of(None, ["bad"]) is None
    assert codes_of(["bad"], None) is None


def test_data_know_contexts_labels_and_groups(components, reviews, vectors):
    data = data_of(components, reviews, vectors)
    assert data.similarity.terms == ("context_similarity", "same_label", "same_group")
    by_film = Components(**{**vars(components), "leave_out_by": "group"})
    assert data_of(by_film, reviews, vectors).similarity.terms == data.similarity.terms[:2]
    bare = Components(**{**vars(components), "exemplar_context_embeddings": None})
    assert data_of(bare, reviews, vectors).similarity.terms == data.similarity.terms[1:]


def test_labels_that_say_what_was_answered_are_kept_from_the_gate(components, reviews, vectors):
    """One context with two labels gives them away: no term, though both sides have labels."""
    assert labels_of_contexts(reviews) == reviews.labels
    asked = [context.replace("good ", "").replace("bad ", "") for context in reviews.contexts]
    answered = Population(reviews.ids, asked, reviews.responses, reviews.labels, reviews.groups)
    assert labels_of_contexts(answered) is None
    data = data_of(components, answered, vectors)
    assert data.labels is None
    assert "same_label" not in data.similarity.terms
    # Whether held-out labels are looked at is the fitted gate's decision.
    assert data_of(components, answered, vectors, held_out=True).labels is not None


def test_labels_are_known_only_where_repeated_contexts_show_it(reviews):
    assert labels_known_before(reviews) == reviews.labels
    apart = [f"{context}, {i}" for i, context in enumerate(reviews.contexts)]
    alone = Population(reviews.ids, apart, reviews.responses, reviews.labels)
    assert labels_of_contexts(alone) == alone.labels
    assert labels_known_before(alone) is None
    # Six repeated contexts agree by chance once in 64 times: not enough.
    few = [*reviews.contexts[:8], *(f"Film {i // 2}, {i % 2}" for i in range(8))]
    agreeing = Population(reviews.ids, few, reviews.responses, reviews.labels)
    assert labels_of_contexts(agreeing) == agreeing.labels
    assert labels_known_before(agreeing) is None


def test_labels_that_have_nothing_to_do_with_contexts_are_hardly_ever_taken():
    """At a share of 0.9 four contexts of two records agree by chance in 45 of 100 populations."""
    rng, taken, agreed = np.random.default_rng(0), 0, 0
    for _ in range(300):
        labels = rng.choice(["yes", "no"], 8, p=[0.9, 0.1]).tolist()
        records = Population(
            [str(i) for i in range(8)],
            [f"c{i // 2}" for i in range(8)],
            [f"t{i}" for i in range(8)],
            labels,
        )
        agreed += labels_of_contexts(records) is not None
        taken += labels_known_before(records) is not None
    assert agreed > 90
    # Three expected at most; more than 12 has a probability below 1e-4.
    assert taken <= 12


def test_proposals_are_those_of_the_gate_with_labels_and_groups(components, reviews, vectors):
    """Q of every candidate, from its log-weight, against a mean over draws by hand."""
    data = data_of(components, reviews, vectors)
    kwargs = {"similarity": True, "similarity_prior_scale": 2.0}
    samples = Predictive(mixture_of_personas, num_samples=4)(jax.random.key(0), data, **kwargs)
    samples.pop("response", None)
    posterior = make_posterior(samples, data, model_kwargs=kwargs)
    proposed = components.propose(
        reviews, vectors, vectors, 5, posterior=posterior, uniform_share=0.25, seed=1
    )
    mask = components.leave_out(reviews)
    for known, agrees in ((components.codes(reviews), True), ({}, False)):
        gate = gate_at(posterior, vectors, leave_out=mask, **known)
        each = [np.exp(gate.mixing_distribution(s).mixing_log_probs) for s in range(4)]
        mean = np.mean(np.asarray(each, float), axis=0)
        allowed = ~mask
        uniform = allowed[:, None] / (2 * allowed.sum(1))[:, None, None]
        q = 0.25 * uniform + 0.75 * mean
        rows = np.arange(16)[:, None]
        expected = -np.log(5 * q[rows, proposed.persona_index, proposed.exemplar_index])
        close = np.allclose(proposed.log_weight, expected, atol=1e-4)
        assert close == agrees
