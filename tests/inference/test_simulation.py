"""Ancestral sampling: components follow π · Ω, texts follow the language model, seeds decide all.

The chi-square tests fail by chance at a rate of 1e-4 for the whole file; seeds are fixed.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from numpyro.infer import Predictive
from scipy.stats import chisquare

from mop_jax.distributions import RenormalisedPersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference import gate_at, make_posterior, simulate, simulation
from mop_jax.inference.simulation import draw_components
from mop_jax.lm.base import Truncation
from mop_jax.models import mixture_of_personas, with_bare_components
from mop_jax.prompts import ConversationBuilder, PromptBuilder
from tests.models.programs import draw_sites, mixture_at

NUM_CHI_SQUARE = 6
LEVEL = 1e-4 / NUM_CHI_SQUARE
PERSONAS = ["w1 w2 w3", "w4", "w5 w6"]
EXEMPLARS = [(f"w{10 + j} w7", f"w{20 + j} w8 w9") for j in range(5)]
CONTEXTS = ["w30 w31", "w32", "w33 w34 w35"]


@pytest.fixture(scope="module")
def data(make_data):
    return make_data(num_records=3)


@pytest.fixture(scope="module")
def posterior(data):
    """Seven draws from a wide prior: every draw has another, far from uniform, gate."""
    kwargs = {"gate_width": 3, "prior_scale": 1.5, "temperature_spread": 0.3}
    prior = Predictive(mixture_of_personas, num_samples=7)
    samples = prior(jax.random.key(0), data, **kwargs)
    samples.pop("response", None)
    return make_posterior(samples, data, model_kwargs=kwargs)


@pytest.fixture(scope="module")
def gate(posterior, data):
    return gate_at(posterior, data.context_embeddings, leave_out=data.leave_out)


@pytest.fixture(scope="module")
def joint(gate):
    """p(draw, persona, exemplar | context) in float64, [N, S, K, J]."""
    each = [np.exp(np.asarray(gate.mixing_distribution(s).mixing_log_probs)) for s in range(7)]
    table = np.stack(each, axis=1).astype(np.float64)
    return table / table.sum((1, 2, 3), keepdims=True)


def draw(posterior, data, context_index, **rest):
    return draw_components(
        posterior, data.context_embeddings, context_index, leave_out=data.leave_out, **rest
    )


def assert_follow(counts, probs):
    """Chi-square with the cells of fewer than eight expected draws merged into one."""
    counts, expected = counts.ravel(), probs.ravel() * counts.sum()
    assert (counts[expected == 0] == 0).all()
    rare = expected < 8
    if expected[rare].sum() > 0:
        expected = np.append(expected[~rare], expected[rare].sum())
        counts = np.append(counts[~rare], counts[rare].sum())
    else:
        expected, counts = expected[~rare], counts[~rare]
    assert len(expected) > 5
    assert chisquare(counts, expected * counts.sum() / expected.sum()).pvalue > LEVEL


def test_the_gates_of_the_fixture_are_worth_sampling(joint):
    uniform = 1 / (3 * 4)
    assert (abs(joint.sum(1) - uniform).sum((1, 2)) / 2 > 0.1).all()
    assert abs(joint[0] * 7 - joint[0].sum(0)).sum((1, 2)).min() > 0.2  # draws differ


@pytest.mark.parametrize("context", [0, 2])
def test_components_follow_the_posterior_mean_of_the_gate(posterior, data, joint, context):
    paths = draw(posterior, data, np.full(12_000, context), seed=11 + context)
    counts = np.zeros((7, 3, 5))
    np.add.at(counts, (paths.draw, paths.persona, paths.exemplar), 1)
    assert_follow(counts.sum(0), joint[context].sum(0))
    # A draw's components follow that draw: persona and exemplar come from one and the same gate.
    assert_follow(counts, joint[context])


def test_left_out_exemplars_are_never_drawn(posterior, data):
    leave_out = np.ones((3, 5), bool)
    leave_out[np.arange(3), [2, 0, 4]] = False
    context = np.arange(3_000) % 3
    paths = draw_components(
        posterior, data.context_embeddings, context, seed=0, leave_out=leave_out
    )
    np.testing.assert_array_equal(paths.exemplar, np.asarray([2, 0, 4])[context])
    free = draw_components(posterior, data.context_embeddings, context, seed=0)
    assert set(free.exemplar.tolist()) == set(range(5))


def test_a_path_reports_its_temperature_and_probability(posterior, data, gate):
    context = np.arange(60) % 3
    paths = draw(posterior, data, context, seed=4)
    temperature = np.asarray(gate.temperature)
    assert np.ptp(temperature) > 0.1
    np.testing.assert_allclose(paths.temperature, temperature[paths.draw, paths.persona])
    for i in range(60):
        mixing = gate.mixing_distribution(int(paths.draw[i])).mixing_log_probs
        expected = mixing[context[i], paths.persona[i], paths.exemplar[i]]
        np.testing.assert_allclose(paths.log_prob[i], expected, atol=1e-5)
    np.testing.assert_array_equal(paths.context, context)
    np.testing.assert_array_equal(paths.sample, np.arange(60))


@pytest.mark.parametrize("contexts_at_a_time", [1, 2])
def test_contexts_in_portions_give_the_same_paths(posterior, data, monkeypatch, contexts_at_a_time):
    context = np.arange(60) % 3
    whole = draw(posterior, data, context, seed=4)
    monkeypatch.setattr(simulation, "_GATE_BYTES", contexts_at_a_time * 4 * 7 * 5)
    asked = []
    gate = simulation.gate_at
    monkeypatch.setattr(
        simulation, "gate_at", lambda p, x, **rest: asked.append(len(x)) or gate(p, x, **rest)
    )
    parts = draw(posterior, data, context, seed=4)
    assert asked == [contexts_at_a_time] * (3 // contexts_at_a_time + 3 % contexts_at_a_time)
    for field in ("sample", "context", "draw", "persona", "exemplar"):
        np.testing.assert_array_equal(getattr(parts, field), getattr(whole, field))
    np.testing.assert_allclose(parts.log_prob, whole.log_prob, atol=1e-5)


def test_a_sample_depends_on_seed_and_number_only(posterior, data):
    many = draw(posterior, data, np.arange(200) % 3, seed=4)
    few = draw(posterior, data, np.arange(7) % 3, seed=4)
    order = np.asarray([150, 3, 77])
    some = draw(posterior, data, order % 3, seed=4, sample_ids=order)
    for field in many._fields:
        np.testing.assert_array_equal(getattr(few, field), getattr(many, field)[:7])
        np.testing.assert_array_equal(getattr(some, field), getattr(many, field)[order])
    other = draw(posterior, data, np.arange(200) % 3, seed=5)
    assert (other.draw != many.draw).mean() > 0.5


@pytest.fixture(scope="module")
def prompts(tiny_chat_lm):
    return PromptBuilder(tiny_chat_lm.tokenizer)


@pytest.fixture(scope="module")
def run(posterior, data, tiny_chat_lm, prompts):
    """Simulates with the tiny language model; arguments can be changed."""

    def simulated(num_samples=20, **changes):
        arguments = {
            "personas": PERSONAS,
            "exemplars": EXEMPLARS,
            "contexts": CONTEXTS,
            "context_embeddings": data.context_embeddings,
            "leave_out": data.leave_out,
            "num_samples": num_samples,
            "seed": 9,
            "max_new_tokens": 6,
        }
        return simulate(posterior, tiny_chat_lm, prompts, **{**arguments, **changes})

    return simulated


def test_responses_report_how_they_came_about(run, posterior, data, tiny_chat_lm, prompts):
    responses = run()
    paths = draw(posterior, data, np.arange(20) % 3, seed=9)
    assert [r.sample for r in responses] == list(range(20))
    assert len({r.text for r in responses}) > 15
    for i, r in enumerate(responses):
        assert (r.seed, r.context_index, r.context) == (9, i % 3, CONTEXTS[i % 3])
        path = (paths.draw[i], paths.persona[i], paths.exemplar[i], paths.temperature[i])
        assert (r.draw, r.persona, r.exemplar, r.temperature) == path
        assert r.component_log_prob == paths.log_prob[i]
        assert not data.leave_out[r.context_index, r.exemplar]
    # Scored again from the texts, after the components' own prompts.
    whole = [
        prompts.component(PERSONAS[r.persona], EXEMPLARS[r.exemplar], r.context).token_ids
        for r in responses
    ]
    drawn = [
        [*tiny_chat_lm.tokenizer.encode(r.text), *([prompts.end_id] if r.finished else [])]
        for r in responses
    ]
    for temperature in {r.temperature for r in responses}:
        scored = tiny_chat_lm.log_likelihood(whole, drawn, temperature=temperature)
        for i, r in enumerate(responses):
            assert r.finished or len(drawn[i]) == 6
            if r.temperature == temperature:
                np.testing.assert_allclose(r.response_log_prob, scored[i], atol=1e-3)


def assert_equal(found, expected):
    """Equal but for rounding: another number of rows or slots adds up in another order."""
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a._replace(response_log_prob=0.0) == b._replace(response_log_prob=0.0)
        np.testing.assert_allclose(a.response_log_prob, b.response_log_prob, atol=1e-4)


def test_more_samples_leave_the_first_as_they_are(run):
    twenty = run()
    assert run() == twenty
    assert_equal(run(num_samples=7), twenty[:7])
    assert run(seed=10) != twenty


def test_an_interrupted_simulation_goes_on_with_the_same_bits(run):
    twenty = run()
    seen = []
    rest = run(skip={0, 1, 2, 5, 19}, on_responses=seen.extend)
    assert rest == [r for r in twenty if r.sample not in {0, 1, 2, 5, 19}]
    assert sorted(seen, key=lambda r: r.sample) == rest
    assert run(skip=range(20)) == []


def test_truncation_reaches_the_language_model(run):
    """Near top_p = 0 the likeliest token is drawn at any temperature and seed."""
    greedy = run(truncation=Truncation(top_p=1e-6))
    again = run(truncation=Truncation(top_p=1e-6), seed=1)
    texts = {(r.context, r.persona, r.exemplar): r.text for r in greedy}
    shared = [r for r in again if (r.context, r.persona, r.exemplar) in texts]
    assert len(shared) > 3
    assert all(r.text == texts[r.context, r.persona, r.exemplar] for r in shared)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"personas": PERSONAS[:2]}, "There are 2 personas; the posterior and contexts need 3"),
        ({"exemplars": EXEMPLARS[:4]}, "There are 4 exemplars; .* need 5"),
        ({"contexts": CONTEXTS[:2]}, "There are 3 context embeddings; .* need 2"),
        ({"num_samples": 0}, "num_samples is 0; at least 1"),
        ({"max_new_tokens": 205}, "window holds 211"),
    ],
)
def test_what_does_not_fit_is_refused(run, changes, message):
    with pytest.raises(DataError, match=message):
        run(**changes)


def test_several_components_are_independent_draws_of_one_gate(posterior, data, joint):
    """The second one's exemplar, beside the posterior draw, follows Σ_k π Ω as the first one's."""
    context = np.full(12_000, 1)
    one = draw(posterior, data, context, seed=5)
    assert one.further.shape == (12_000, 0)
    three = draw(posterior, data, context, seed=5, num_components=3)
    for field in ("draw", "persona", "exemplar", "temperature", "log_prob"):
        np.testing.assert_array_equal(getattr(three, field), getattr(one, field))
    assert three.further.shape == (12_000, 2)
    two = draw(posterior, data, context, seed=5, num_components=2)
    np.testing.assert_array_equal(two.further[:, 0], three.further[:, 0])
    exemplar = joint[1].sum(1)  # p(draw, exemplar)
    counts = np.zeros((7, 5))
    np.add.at(counts, (three.draw, three.further[:, 1]), 1)
    assert_follow(counts, exemplar)
    # Given the posterior draw, independent of the first.
    pairs = np.zeros((5, 5))
    np.add.at(pairs, (three.exemplar, three.further[:, 0]), 1)
    assert_follow(pairs, np.einsum("sj,sl,s->jl", exemplar, exemplar, 1 / exemplar.sum(1)))


def test_prompts_of_several_components(posterior, data, tiny_chat_lm):
    asked = []

    class Listening:
        def sample_pairs(self, prefixes, requests, pairs, **rest):
            asked.extend([*prefixes[p], requests[r]] for p, r in pairs)
            return tiny_chat_lm.sample_pairs(prefixes, requests, pairs, **rest)

    prompts = PromptBuilder(tiny_chat_lm.tokenizer)
    given = {
        "personas": PERSONAS,
        "exemplars": EXEMPLARS,
        "contexts": CONTEXTS,
        "context_embeddings": data.context_embeddings,
        "num_samples": 12,
        "max_new_tokens": 2,
    }
    drawn = simulate(posterior, Listening(), prompts, num_components=3, **given)
    writer = ConversationBuilder(prompts)
    assert any(response.further_exemplars for response in drawn)
    for response, segments in zip(drawn, asked, strict=True):
        exemplars = [response.exemplar, *response.further_exemplars]
        assert len(set(exemplars)) == len(exemplars) <= 3
        expected = writer.component(
            PERSONAS[response.persona], [EXEMPLARS[j] for j in exemplars], response.context
        )
        assert [i for segment in segments for i in segment] == expected.token_ids
    with pytest.raises(DataError, match="num_components is 0"):
        simulate(posterior, tiny_chat_lm, prompts, num_components=0, **given)


def test_components_are_drawn_at_their_own_temperatures_and_may_be_bare(make_data):
    """Temperatures of exemplars and contexts, and places that stand for none, reach the path."""
    rng = np.random.default_rng(3)
    plain = make_data(member_of={"age": np.array([0, 1, 1, 0, 0, 1])})
    data = with_bare_components(plain, rng.normal(-20, 1, (6, 3, 4)), rng.normal(-20, 1, (6, 4)))
    kwargs = {"temperature": "contextual", "temperature_spread": 0.05}
    draws = [draw_sites(data, seed=seed, **kwargs) for seed in range(3)]
    stacked = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    posterior = make_posterior(stacked, data, model_kwargs=kwargs)
    contexts = np.asarray(data.context_embeddings)
    ages = {"age": np.array([0, 1, 1, 0, 0, 1])}
    number = 400
    paths = draw_components(
        posterior, contexts, np.arange(number) % 6, seed=0, member_of=ages,
        leave_out=np.asarray(plain.leave_out),
    )  # fmt: skip
    gate = gate_at(posterior, contexts, member_of=ages, leave_out=np.asarray(plain.leave_out))
    log_probs = [np.asarray(gate.mixing_distribution(s).mixing_log_probs) for s in range(3)]
    for m in range(number):
        s, i, k, j = (int(v[m]) for v in (paths.draw, paths.context, paths.persona, paths.exemplar))
        np.testing.assert_allclose(paths.log_prob[m], log_probs[s][i, k, j], rtol=1e-4)
        one = data._replace(
            persona_index=np.full((6, 1), k),
            exemplar_index=np.full((6, 1), j),
            log_weight=np.zeros((6, 1), np.float32),
            log_likelihood=np.zeros((6, 1, 4), np.float32),
        )
        if m < 30:
            expected = mixture_at(draws[s], one, **kwargs).candidate_temperature[i, 0]
            np.testing.assert_allclose(paths.temperature[m], expected, rtol=1e-5)
    assert (paths.exemplar[paths.persona == 3] == 5).all()
    assert (paths.exemplar[paths.persona < 3] == 5).any()
    assert len(np.unique(paths.temperature.round(6))) > 9  # more than draws × personas


def test_a_gate_of_the_paper_draws_among_the_components_that_it_prefers(make_data):
    data = make_data()
    kwargs = {"distribution": RenormalisedPersonaMixture, "num_kept": 2}
    draws = [draw_sites(data, seed=seed, **kwargs) for seed in range(2)]
    stacked = {name: np.stack([draw[name] for draw in draws]) for name in draws[0]}
    posterior = make_posterior(stacked, data, model_kwargs=kwargs)
    contexts = np.asarray(data.context_embeddings)
    paths = draw_components(posterior, contexts, np.arange(300) % 6, seed=0)
    gate = gate_at(posterior, contexts)
    found = set()
    for m in range(300):
        s, i = int(paths.draw[m]), int(paths.context[m])
        log_probs = np.asarray(gate.mixing_distribution(s).mixing_log_probs)[i].ravel()
        kept = np.argsort(-log_probs)[:2]
        chosen = int(paths.persona[m]) * 5 + int(paths.exemplar[m])
        assert chosen in kept
        expected = log_probs[chosen] - np.logaddexp(*log_probs[kept])
        np.testing.assert_allclose(paths.log_prob[m], expected, rtol=1e-4, atol=1e-5)
        found.add((s, i, chosen))
    assert len(found) > 16  # of 24: both of them are drawn
