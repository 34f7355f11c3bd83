"""What a posterior says of a population, against loops over draws and dense tables."""

import jax
import numpy as np
import pandas as pd
import pytest
from scipy.interpolate import CubicSpline

from mop_jax.errors import DataError
from mop_jax.inference import (
    fit_svi,
    gate_summary,
    make_posterior,
    persona_responsibilities,
    persona_shares,
    posterior_draws,
    responsibility_table,
    unexplained_records,
)
from mop_jax.inference.criticism import summaries, unexplained
from mop_jax.inference.posterior import mixture_at
from mop_jax.models import mixture_data, mixture_of_choices, mixture_of_personas
from tests.models.programs import draw_sites
from tests.models.surveys import survey_data

N, K, J, DRAWS = 7, 3, 5, 9
WEIGHTS = np.array([1.0, 3.0, 0.5, 1.0, 2.0, 1.0, 4.0])
GROUPS = ["b", "a", None, "b", "a", "c", "a"]


@pytest.fixture(scope="module")
def data(make_data):
    """Seven records of unequal weight, five of which are exemplars too."""
    return make_data(num_records=N, weights=WEIGHTS)


def prior_posterior(data, model, **kwargs):
    """Draws of the prior, one by one."""
    each = [draw_sites(data, model, seed, **kwargs) for seed in range(DRAWS)]
    samples = {name: np.stack([draw[name] for draw in each]) for name in each[0]}
    return make_posterior(samples, data, model, kwargs)


@pytest.fixture(scope="module")
def posterior(data):
    return prior_posterior(data, mixture_of_personas)


@pytest.fixture(scope="module")
def dense(posterior, data):
    """π Ω of every draw, record and component, and p(k, j | x, y), float64 [S, N, K, J] each."""
    gates, given = [], []
    table = data.log_likelihood.reshape(N, K, J, -1).astype(np.float64)
    at = CubicSpline(np.log(data.temperature_grid), table, axis=-1, bc_type="not-a-knot")
    for s in range(DRAWS):
        draw = {name: values[s] for name, values in posterior.samples.items()}
        mixture = mixture_at(posterior.model, draw, data, posterior.model_kwargs)
        gates.append(np.exp(np.asarray(mixture.mixing_log_probs, np.float64)))
        tau = np.asarray(mixture.temperature, np.float64)
        log_likelihood = np.stack([at(np.log(tau[k]))[:, k] for k in range(K)], axis=1)
        joint = gates[-1] * np.exp(log_likelihood - log_likelihood.max())
        given.append(joint / joint.sum((1, 2), keepdims=True))
    return np.stack(gates), np.stack(given)


def check_interval(found, draws, level=0.9, atol=1e-5):
    """Columns mean, low and high against those of `draws` [S, …]."""
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2], axis=0)
    expected = {"mean": draws.mean(0), "low": low, "high": high}
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], np.ravel(values), atol=atol, err_msg=name)


def test_shares_are_the_weighted_means_of_the_gate_and_of_the_responsibilities(
    posterior, data, dense
):
    found = persona_shares(posterior, data, names=["warm", "dry", "blunt"])
    assert list(found) == ["source", "persona", "name", "mean", "low", "high"]
    assert found["source"].tolist() == ["gate"] * K + ["responsibilities"] * K
    assert found["name"].tolist() == ["warm", "dry", "blunt"] * 2
    for source, table in zip(("gate", "responsibilities"), dense, strict=True):
        expected = np.zeros((DRAWS, K))
        for i in range(N):
            expected += WEIGHTS[i] / WEIGHTS.sum() * table[:, i].sum(-1)
        check_interval(found[found["source"] == source], expected)
    # Guards the lines above: neither weights nor responses could be forgotten.
    assert np.abs(dense[0].sum(-1).mean(1) - expected).max() > 0.05


def test_shares_by_group_are_those_of_its_records_alone(posterior, data, dense):
    found = persona_shares(posterior, data, by=GROUPS, level=0.5)
    assert list(found) == ["group", "source", "persona", "mean", "low", "high"]
    assert found["group"].unique().tolist() == ["a", "b", "c"]
    assert len(found) == 3 * 2 * K
    for group in ("a", "b", "c"):
        rows = [i for i in range(N) if GROUPS[i] == group]
        for source, table in zip(("gate", "responsibilities"), dense, strict=True):
            expected = np.average(table[:, rows].sum(-1), axis=1, weights=WEIGHTS[rows])
            chosen = (found["group"] == group) & (found["source"] == source)
            check_interval(found[chosen], expected, level=0.5)


def test_responsibilities_of_every_record_in_any_blocks(posterior, data, dense, monkeypatch):
    found = responsibility_table(posterior, data, names=list("xyz"))
    assert found["record"].tolist() == np.repeat(np.arange(N), K).tolist()
    assert found["persona"].tolist() == [0, 1, 2] * N
    assert found["name"].tolist() == list("xyz") * N
    by_persona = dense[1].sum(-1)
    check_interval(found, by_persona)
    most = found[found["most_responsible"]]
    assert most["record"].tolist() == list(range(N))
    np.testing.assert_array_equal(most["persona"], by_persona.mean(0).argmax(1))
    np.testing.assert_allclose(
        found["mean"].to_numpy().reshape(N, K), persona_responsibilities(posterior, data), atol=1e-6
    )
    monkeypatch.setattr(summaries, "_RESPONSIBILITIES", DRAWS * N * K // 2 + 1)
    in_two = responsibility_table(posterior, data)
    pd.testing.assert_frame_equal(in_two, found.drop(columns="name"), atol=1e-6)


def entropy(probs):
    """Nats, over all of `probs`."""
    probs = probs[probs > 0]
    return float(-(probs * np.log(probs)).sum())


def test_the_gates_entropies_are_those_of_the_dense_table(posterior, data, dense):
    found = gate_summary(posterior, data, level=0.8)
    expected = []
    for table in dense[0]:
        at_contexts, of_exemplars = 0.0, 0.0
        persona, exemplar = np.zeros(K), np.zeros(J)
        for i in range(N):
            w = WEIGHTS[i] / WEIGHTS.sum()
            pi = table[i].sum(-1)
            at_contexts += w * entropy(pi)
            persona += w * pi
            exemplar += w * table[i].sum(0)
            of_exemplars += sum(w * pi[k] * entropy(table[i, k] / pi[k]) for k in range(K))
        whole, information = entropy(persona), entropy(persona) - at_contexts
        row = [at_contexts, np.exp(at_contexts), whole, np.exp(whole)]
        row += [information, information / whole, of_exemplars, np.exp(of_exemplars)]
        expected.append([*row, entropy(exemplar), np.exp(entropy(exemplar))])
    assert found.index.tolist() == [
        "persona_entropy",
        "effective_personas",
        "population_persona_entropy",
        "effective_population_personas",
        "persona_context_information",
        "persona_between_contexts",
        "exemplar_entropy",
        "effective_exemplars",
        "population_exemplar_entropy",
        "effective_population_exemplars",
    ]
    check_interval(found, np.asarray(expected), level=0.8, atol=1e-4)
    assert (found["low"] < found["high"]).all()


def test_a_uniform_gate_is_in_doubt_about_everything_allowed(make_data):
    data = make_data(num_records=4, leave_out=np.arange(J) == 0 * np.ones((4, 1)))
    kwargs = {"uniform_gate": True, "temperature": False}
    found = gate_summary(make_posterior({}, data, model_kwargs=kwargs), data)
    expected = [np.log(K), K, np.log(K), K, 0, 0, np.log(J - 1), J - 1, np.log(J - 1), J - 1]
    for column in ("mean", "low", "high"):
        np.testing.assert_allclose(found[column], expected, atol=1e-5)


@pytest.mark.parametrize(("scale", "atol"), [(1, 1e-5), (10, 1e-4), (300, np.log(J))])
def test_entropies_of_exemplars_stay_what_they_can_be_however_wide_the_logits(scale, atol):
    rng = np.random.default_rng(scale)
    a, b = (rng.normal(0, scale, shape).astype(np.float32) for shape in ((N, J), (K, J)))
    a[:3, 0] = -np.inf
    b[-1, :-1] = -1e9  # as of a persona that is shown no exemplar
    joint = rng.dirichlet(np.ones(N * K)).reshape(N, K).astype(np.float32)
    found, shares = summaries._exemplar_entropies(a, b, joint)
    logits = a[:, None].astype(np.float64) + b
    omega = np.exp(logits - logits.max(-1, keepdims=True))
    omega /= omega.sum(-1, keepdims=True)
    expected = [[entropy(omega[i, k]) for k in range(K)] for i in range(N)]
    np.testing.assert_allclose(found, expected, atol=atol)
    assert ((found >= 0) & (found <= np.float32(np.log(J)))).all()
    np.testing.assert_allclose(shares.sum(), 1, atol=1e-5)
    if scale < 300:
        np.testing.assert_allclose(shares, np.einsum("nk,nkj->j", joint, omega), atol=1e-5)


@pytest.fixture(scope="module")
def planted(make_data):
    """Two halves of a population, told apart by their contexts; a persona speaks for each."""
    rng = np.random.default_rng(3)
    number, half = 60, np.repeat([0, 1], 30)
    contexts = rng.normal(0, 0.2, (number, 8)) + np.where(half == 0, 1.0, -1.0)[:, None]
    table = np.full((number, K, 2), -30.0)
    table[np.arange(number), half] += 6.0  # the third persona is nobody's
    data = make_data(
        num_records=number,
        num_exemplars=2,
        context_embeddings=contexts,
        log_likelihood=table + rng.normal(0, 0.1, table.shape),
        temperature_grid=[1.0],
        leave_out=None,
    )
    # What is planted is all that is learned: a few sites compile fast.
    kwargs = {"prior_scale": 3.0, "temperature": False, "exemplars": False}
    settings = {"guide": "AutoNormal", "num_steps": 200, "progress": False}
    fit = fit_svi(jax.random.key(0), data, model_kwargs=kwargs, **settings)
    return posterior_draws(fit, jax.random.key(1), 50), data, half


def test_a_planted_population_is_recovered(planted):
    posterior, data, half = planted
    shares = persona_shares(posterior, data, by=half).set_index(["group", "source", "persona"])
    for group in (0, 1):
        for source in ("gate", "responsibilities"):
            own = shares.loc[(group, source, group)]
            assert own["low"] > 0.85
            assert (shares.loc[(group, source)].drop(index=group)["high"] < 0.12).all()
    whole = persona_shares(posterior, data).set_index(["source", "persona"])
    for persona, share in enumerate([0.5, 0.5, 0.0]):
        row = whole.loc[("gate", persona)]
        assert row["low"] - 0.02 <= share <= row["high"] + 0.02
    table = responsibility_table(posterior, data)
    most = table[table["most_responsible"]]
    np.testing.assert_array_equal(most["persona"], half)
    assert most["low"].min() > 0.9
    summary = gate_summary(posterior, data)["mean"]
    assert summary["effective_personas"] < 1.5
    assert 1.9 < summary["effective_population_personas"] < 2.4
    assert summary["persona_between_contexts"] > 0.7


def sizes(jaxpr):
    """Sizes of all arrays that a program makes, those of its parts included."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for value in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from sizes(inner)


def test_no_array_is_of_records_personas_and_exemplars(monkeypatch):
    records, personas, exemplars, candidates = 11, 7, 13, 3
    rng = np.random.default_rng(0)
    pairs = (records, candidates)
    data = mixture_data(
        context_embeddings=rng.normal(size=(records, 4)),
        persona_embeddings=rng.normal(size=(personas, 4)),
        exemplar_embeddings=rng.normal(size=(exemplars, 4)),
        persona_index=rng.integers(personas, size=pairs),
        exemplar_index=rng.integers(exemplars, size=pairs),
        log_weight=np.zeros(pairs),
        log_likelihood=rng.normal(-20, 2, (*pairs, 4)),
        temperature_grid=[0.7, 0.9, 1.2, 1.6],
    )
    kwargs = {"uniform_gate": True, "temperature": False}
    posterior = make_posterior({}, data, model_kwargs=kwargs)

    class Seen(Exception):
        """What a summary does under a draw was looked at; it need not be run."""

    def largest(summary):
        with pytest.raises(Seen) as seen:
            summary(posterior, data)
        return seen.value.args[0]

    def watched(posterior, data, function, **options):
        def one(data):
            mixture = mixture_at(posterior.model, {}, data, posterior.model_kwargs)
            return function(mixture, data)

        raise Seen(max(sizes(jax.make_jaxpr(one)(data).jaxpr)))

    for module in (summaries, unexplained):
        monkeypatch.setattr(module, "map_draws", watched)
    assert largest(gate_summary) >= records * exemplars  # Guards the rest: the gate was read.
    for summary in (persona_shares, responsibility_table, gate_summary, unexplained_records):
        assert largest(summary) < records * personas * exemplars


def test_closed_answers_have_shares_and_a_gate_too():
    data = survey_data(1, weights=1 + np.arange(12) % 2)
    posterior = prior_posterior(data, mixture_of_choices)
    shares = persona_shares(posterior, data)
    expected = np.average(persona_responsibilities(posterior, data), axis=0, weights=data.weights)
    spoke = shares[shares["source"] == "responsibilities"]
    np.testing.assert_allclose(spoke["mean"], expected, atol=1e-5)
    np.testing.assert_allclose(shares.groupby("source")["mean"].sum(), 1, atol=1e-5)
    assert np.isfinite(gate_summary(posterior, data)).all(axis=None)


def test_arguments_that_do_not_fit_are_refused(posterior, data):
    for call, message in [
        (lambda: persona_shares(posterior, data, by=["a"]), "by has 1 entries; data has 7 records"),
        (lambda: persona_shares(posterior, data, by=[None] * N), "by is missing everywhere"),
        (lambda: persona_shares(posterior, data, names=["a"]), "names holds 1 names; there are 3"),
        (lambda: responsibility_table(posterior, data, names="abc"), "names holds one text"),
        (lambda: gate_summary(posterior, data, level=1.0), "level is 1.0; it must be between"),
        (lambda: persona_shares(posterior, data, level=90), "level is 90"),
        (lambda: responsibility_table(posterior, data, level=0), "level is 0"),
    ]:
        with pytest.raises(DataError, match=message):
            call()
