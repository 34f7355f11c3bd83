"""Similarity of contexts, labels and groups in Ω: against loops, absent, unknown, identified."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from numpyro.contrib.funsor import enum
from numpyro.contrib.funsor import log_density as enumerated_log_density
from numpyro.infer.util import log_density

from mop_jax.errors import DataError
from mop_jax.inference import fit_svi, posterior_draws
from mop_jax.models import (
    GATES,
    explicit_mixture_of_personas,
    full_table_data,
    mixture_data,
    mixture_of_personas,
)
from tests.models.programs import draw_sites, mixture_at, singular_values

ON = {"similarity": True}
SITES = ("gate.context_similarity", "gate.same_label", "gate.same_group")


def sides(num_records=6, num_exemplars=5, seed=1):
    """Context embeddings of exemplars, labels and groups of both sides; some are not known."""
    rng = np.random.default_rng(seed)
    return {
        "exemplar_contexts": rng.normal(size=(num_exemplars, 8)),
        "labels": rng.integers(-1, 2, num_records),
        "exemplar_labels": np.arange(num_exemplars) % 3 - 1,
        "groups": rng.integers(0, 3, num_records),
        "exemplar_groups": np.arange(num_exemplars) % 4,
    }


@pytest.fixture
def data(make_data):
    return make_data(**sides())


def cosines(data, exemplar_contexts):
    """Centred cosines [N][J] and their standard deviation within records, pair by pair."""
    mean = np.mean(data.context_embeddings, axis=0, dtype=float)
    found, squares, number = np.zeros(data.leave_out.shape), 0.0, 0
    for i, x in enumerate(data.context_embeddings):
        for j, e in enumerate(exemplar_contexts):
            a, b = x - mean, e - mean
            found[i, j] = (a @ b) / np.sqrt((a @ a) * (b @ b))
        own = [found[i, j] for j in range(len(exemplar_contexts)) if not data.leave_out[i, j]]
        squares += sum((value - sum(own) / len(own)) ** 2 for value in own)
        number += len(own)
    return found, np.sqrt(squares / number)


@pytest.mark.parametrize("gate", list(GATES))
def test_omega_equals_loops_over_pairs(make_data, gate):
    """Every gate: its own logits, three terms more, and the softmax over what is not left out."""
    with jax.enable_x64(True):
        given = sides()
        data = make_data(dtype=np.float64, **given)
        draw = {k: np.asarray(v, float) for k, v in draw_sites(data, gate=gate, **ON).items()}
        found = np.asarray(mixture_at(draw, data, gate=gate, **ON).mixing_log_probs)
        plain = mixture_at(draw, data, gate=gate)
        record, between = plain.exemplar_record_logits, plain.exemplar_persona_logits
        log_pi = np.asarray(plain.mixing_distribution.persona_log_probs)
    cosine, spread = cosines(data, given["exemplar_contexts"])
    beta, of_label, of_group = (draw[name] for name in SITES)
    assert min(map(abs, (beta, of_label, of_group))) > 0.05
    for i in range(6):
        for k in range(3):
            weights = np.zeros(5)
            for j in range(5):
                if data.leave_out[i, j]:
                    continue
                logit = float(record[i, j]) + float(between[k, j]) + beta * cosine[i, j] / spread
                label, group = data.labels[i], data.groups[i]
                if label != -1 and label == given["exemplar_labels"][j]:
                    logit += of_label
                if group == given["exemplar_groups"][j]:
                    logit += of_group
                weights[j] = np.exp(logit)
            omega = np.exp(found[i, k] - log_pi[i, k])
            # The feature maps and their mean are kept in single precision.
            np.testing.assert_allclose(omega, weights / weights.sum(), rtol=2e-6, atol=1e-12)


def test_similarity_is_in_standard_deviations_within_records(make_data):
    data = make_data(num_records=40, leave_out=np.zeros((40, 9), bool), num_exemplars=9,
                     **sides(40, 9))  # fmt: skip
    feature = np.asarray(data.similarity.features(data.context_embeddings, None, None)[0])
    assert np.sqrt(feature.var(axis=1).mean()) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("gate", list(GATES))
def test_marginal_likelihood_equals_enumeration_of_the_explicit_program(make_data, gate):
    kwargs = {"gate": gate, **ON}
    with jax.enable_x64(True):
        data = make_data(dtype=np.float64, **sides())
        draw = {k: jnp.asarray(v, float) for k, v in draw_sites(data, **kwargs).items()}
        collapsed, _ = log_density(mixture_of_personas, (data,), kwargs, draw)
        model = enum(explicit_mixture_of_personas, first_available_dim=-2)
        explicit, _ = enumerated_log_density(model, (data,), kwargs, draw)
        nothing = {**draw, **dict.fromkeys(SITES, jnp.zeros(()))}
        other, _ = log_density(mixture_of_personas, (data,), kwargs, nothing)
    np.testing.assert_allclose(collapsed, explicit, rtol=1e-10)
    assert abs(float(other) - float(explicit)) > 0.1


def test_gradients_reach_the_coefficients_and_are_finite(make_data):
    with jax.enable_x64(True):
        data = make_data(dtype=np.float64, **sides())
        draw = {k: jnp.asarray(v, float) for k, v in draw_sites(data, **ON).items()}

        @jax.jit
        def density(draw):
            return log_density(mixture_of_personas, (data,), ON, draw)[0]

        gradient = jax.grad(density)(draw)
        assert all(np.isfinite(value).all() for value in gradient.values())
        for name in SITES:
            up, down = ({**draw, name: draw[name] + h} for h in (1e-5, -1e-5))
            slope = float(density(up) - density(down)) / 2e-5
            assert abs(slope) > 1e-3
            np.testing.assert_allclose(gradient[name], slope, rtol=1e-5)


def test_a_minibatch_has_the_logits_of_the_whole(make_data):
    data = make_data(num_records=12, leave_out=np.arange(5) == np.arange(12)[:, None] % 5,
                     **sides(12))  # fmt: skip
    draw = draw_sites(data, **ON)
    whole = np.asarray(mixture_at(draw, data, **ON).exemplar_record_logits)

    @jax.jit
    def some(index):
        return mixture_at(draw, data.take(index), **ON).exemplar_record_logits

    for index in ([3, 0, 11], [7, 7, 2]):
        np.testing.assert_allclose(some(jnp.asarray(index)), whole[index], rtol=1e-5)
    # Subsampled by the model itself: the estimate scales that of the records that were drawn.
    traced = handlers.trace(handlers.seed(mixture_of_personas, 5)).get_trace(
        data, subsample_size=4, **ON
    )
    index = np.asarray(traced["record"]["value"])
    own = {k: v["value"] for k, v in traced.items() if k in draw}
    full = np.asarray(mixture_at(own, data, **ON).log_prob(data.log_likelihood))
    found = traced["response"]["fn"].log_prob(data.log_likelihood[index])
    np.testing.assert_allclose(found, full[index], rtol=1e-5)


def test_what_is_not_known_of_a_context_is_as_if_the_term_were_not_there(data):
    draw = draw_sites(data, **ON)
    new = data.at_contexts(data.context_embeddings)
    found = np.asarray(mixture_at(draw, new, **ON).exemplar_record_logits)
    without = {**draw, "gate.same_label": 0.0, "gate.same_group": 0.0}
    told = data.at_contexts(data.context_embeddings, labels=data.labels, groups=data.groups)
    np.testing.assert_allclose(found, mixture_at(without, told, **ON).exemplar_record_logits)
    assert abs(found - np.asarray(mixture_at(draw, told, **ON).exemplar_record_logits)).max() > 0.1
    # A label that no exemplar has distinguishes none of them either.
    strange = data.at_contexts(data.context_embeddings, labels=np.full(6, 7))
    np.testing.assert_array_equal(mixture_at(draw, strange, **ON).exemplar_record_logits, found)


@pytest.mark.parametrize(
    ("changes", "gone"),
    [
        (dict.fromkeys(sides()), set(SITES)),
        ({"exemplar_contexts": None}, {"gate.context_similarity"}),
        # Six times the same question, but for rounding.
        (
            {
                "context_embeddings": np.ones((6, 8)) + 1e-8 * np.arange(48).reshape(6, 8),
                "exemplar_contexts": np.ones((5, 8)),
            },
            {"gate.context_similarity"},
        ),
        ({"labels": None}, {"gate.same_label"}),
        ({"labels": np.full(6, 2), "exemplar_labels": np.full(5, 2)}, {"gate.same_label"}),
        ({"labels": np.full(6, -1)}, {"gate.same_label"}),
        ({"labels": np.full(6, -1), "exemplar_labels": np.full(5, -1)}, {"gate.same_label"}),
        # A record's own group is left out.
        (
            {
                "groups": np.arange(6),
                "exemplar_groups": np.arange(5),
                "leave_out": np.arange(6)[:, None] == np.arange(5),
            },
            {"gate.same_group"},
        ),
    ],
)
def test_a_term_that_tells_no_exemplars_apart_is_absent(make_data, changes, gone):
    data = make_data(**{**sides(), **changes})
    assert set(SITES) - set(draw_sites(data, **ON)) == gone


@pytest.mark.parametrize(
    "kwargs", [{"exemplar_context": False}, {"exemplars": False}, {"uniform_gate": True}]
)
def test_ablations_of_omega_take_similarity_with_them(data, kwargs):
    assert set(SITES) <= set(draw_sites(data, **ON))
    assert not set(SITES) & set(draw_sites(data, **ON, **kwargs))
    assert not set(SITES) & set(draw_sites(data, similarity=False))


def test_the_data_identify_the_coefficients(make_data):
    """The Jacobian of log π and log Ω by all weights of the linear gate has full rank."""
    with jax.enable_x64(True):
        data = make_data(num_records=40, leave_out=np.zeros((40, 5), bool), dtype=np.float64,
                         **sides(40))  # fmt: skip
        kwargs = {"gate_width": 2, "temperature": False, **ON}
        assert set(SITES) <= set(draw_sites(data, **kwargs))
        singular = singular_values(data, **kwargs)
    assert (singular > 1e-6 * singular[0]).all()


def test_known_coefficients_are_recovered():
    """400 records whose exemplar was drawn from Ω at known β; each within 4 posterior sd.

    Were the posterior exactly Gaussian and calibrated, three coefficients would fail falsely once
    in 5,000 seeds (fixed). Zero lies more than 4 sd away from each.
    """
    num_records, num_personas, num_exemplars = 400, 2, 10
    true = dict(zip(SITES, (0.8, 1.2, -1.5), strict=True))
    rng = np.random.default_rng(3)
    embeddings = {
        "context_embeddings": rng.normal(size=(num_records, 8)),
        "persona_embeddings": rng.normal(size=(num_personas, 8)),
        "exemplar_embeddings": rng.normal(size=(num_exemplars, 8)),
        **sides(num_records, num_exemplars),
    }
    table = rng.normal(-20, 0.5, (num_records, num_personas, num_exemplars))
    kwargs = {"temperature": False, "gate_width": 1, "prior_scale": 0.3, **ON}
    data = full_table_data(log_likelihood=table, **embeddings)
    draw = {name: np.zeros_like(value) for name, value in draw_sites(data, **kwargs).items()}
    law = mixture_at({**draw, **true}, data, **kwargs).mixing_distribution
    persona, exemplar = np.asarray(law.sample(jax.random.key(0))).T
    # What the language model says of a response gives its component away.
    table[np.arange(num_records), persona, exemplar] += 12
    data = full_table_data(log_likelihood=table, **embeddings)
    fit = fit_svi(jax.random.key(1), data, model_kwargs=kwargs, progress=False)
    posterior = posterior_draws(fit, jax.random.key(2), 1000)
    for name, value in true.items():
        mean, sd = posterior.samples[name].mean(), posterior.samples[name].std()
        assert abs(mean - value) < 4 * sd, name
        assert abs(value) > 4 * sd, name


def biggest(jaxpr) -> int:
    """The most entries of any array in a program, those inside its calls included."""
    sizes = [0]
    for equation in jaxpr.eqns:
        sizes += [int(np.prod(v.aval.shape)) for v in equation.outvars]
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda p: hasattr(p, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            sizes += [biggest(inner)] if hasattr(inner, "eqns") else []
    return max(sizes)


def test_nothing_of_the_size_of_all_triples_is_built():
    """The gradient of log p has no array with an entry for each record, persona and exemplar."""
    num_records, num_personas, num_exemplars, num_candidates = 30, 21, 23, 2
    rng = np.random.default_rng(0)
    pairs = (num_records, num_candidates)
    data = mixture_data(
        context_embeddings=rng.normal(size=(num_records, 8)),
        persona_embeddings=rng.normal(size=(num_personas, 8)),
        exemplar_embeddings=rng.normal(size=(num_exemplars, 8)),
        persona_index=rng.integers(0, num_personas, pairs),
        exemplar_index=rng.integers(0, num_exemplars, pairs),
        log_weight=np.zeros(pairs),
        log_likelihood=rng.normal(-9, 1, pairs),
        **sides(num_records, num_exemplars),
    )
    draw = draw_sites(data, **ON)
    assert set(SITES) <= set(draw)

    def density(draw):
        return log_density(mixture_of_personas, (data,), ON, draw)[0]

    program = jax.make_jaxpr(jax.grad(density))(draw).jaxpr
    assert num_records * num_exemplars <= biggest(program)
    assert biggest(program) < num_records * num_personas * num_exemplars

    def all_components(draw):
        return mixture_at(draw, data, **ON).mixing_log_probs

    # The same measure sees such an array where there is one.
    triples = num_records * num_personas * num_exemplars
    assert biggest(jax.make_jaxpr(all_components)(draw).jaxpr) >= triples


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": np.zeros(5, int)}, r"labels has shape \(5,\); it must be \(6,\)"),
        ({"exemplar_groups": np.zeros(6, int)}, r"exemplar_groups has shape \(6,\)"),
        ({"groups": np.full(6, 0.5)}, "groups must hold integers from 0 on, or -1"),
        ({"labels": np.full(6, -2)}, "labels must hold integers from 0 on, or -1"),
        ({"exemplar_contexts": np.zeros((5, 7))}, r"exemplar_contexts has shape \(5, 7\)"),
        ({"exemplar_contexts": np.full((5, 8), np.nan)}, "exemplar_contexts is nan"),
    ],
)
def test_refusals_name_the_array(make_data, changes, message):
    with pytest.raises(DataError, match=message):
        make_data(**{**sides(), **changes})
