"""Components without exemplar or persona: the density by a loop, weights, masks and refusals."""

import jax
import numpy as np
import pytest
from scipy.special import log_softmax, logsumexp

from mop_jax.distributions import RenormalisedPersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference import gate_at, make_posterior, uniform_log_prob
from mop_jax.models import mixture_data, with_bare_components
from tests.models.programs import draw_sites, mixture_at


def bare_tables(data, seed=5):
    """Log-likelihoods of personas alone, and of zero-shot."""
    rng = np.random.default_rng(seed)
    grid = len(data.temperature_grid)
    shape = (data.num_records, data.num_personas, grid)
    return rng.normal(-20, 2, shape), rng.normal(-20, 2, (data.num_records, grid))


@pytest.mark.parametrize("zero_shot", [True, False])
@pytest.mark.parametrize("uniform", [True, False])
def test_the_density_is_the_sum_over_three_kinds_of_components(make_data, zero_shot, uniform):
    """Every probability from its definition: persona, then exemplar or none."""
    with jax.enable_x64(True):
        plain = make_data(dtype=np.float64)
        alone, nothing = bare_tables(plain)
        data = with_bare_components(plain, alone, nothing if zero_shot else None)
        kwargs = {"temperature": False, "uniform_gate": uniform}
        draw = draw_sites(data, **kwargs)
        mixture = mixture_at(draw, data, **kwargs)
        found = np.asarray(mixture.log_prob(data.log_likelihood))
        logits = [
            np.asarray(values, float)
            for values in (
                mixture.persona_logits,
                mixture.exemplar_record_logits,
                mixture.exemplar_persona_logits,
            )
        ]
        unit = np.asarray(mixture.tempered_log_likelihood(data.log_likelihood))
    num_personas, num_exemplars = plain.num_personas, plain.num_exemplars
    # What the prior says: log-odds beside the number of exemplars and personas.
    if not uniform:
        np.testing.assert_allclose(
            logits[1][:, -1], np.log(num_exemplars) + draw["gate.no_exemplar"], rtol=1e-6
        )
        if zero_shot:
            np.testing.assert_allclose(
                logits[0][:, -1], np.log(num_personas) + draw["gate.no_persona"], rtol=1e-6
            )
    full = num_personas * num_exemplars
    for i in range(data.num_records):
        log_pi = log_softmax(logits[0][i])
        terms = []
        for k in range(num_personas):
            log_omega = log_softmax(logits[1][i] + logits[2][k])
            for j in range(num_exemplars):
                if not plain.leave_out[i, j]:
                    terms.append(log_pi[k] + log_omega[j] + unit[i, k * num_exemplars + j])
            terms.append(log_pi[k] + log_omega[num_exemplars] + unit[i, full + k])
        if uniform:  # the baseline has none of them
            assert log_omega[num_exemplars] < -1e8
        if zero_shot:  # which shows no exemplar
            terms.append(log_pi[num_personas] + unit[i, full + num_personas])
        np.testing.assert_allclose(found[i], logsumexp(terms), rtol=1e-7)


def test_sampled_candidates_with_bare_ones_estimate_without_bias(make_data):
    """The mean of p̂ over 3,000 sets of 4 candidates; 5 standard errors, once in a million."""
    data = make_data(num_records=1)
    alone, nothing = bare_tables(data)
    full = with_bare_components(data, alone, nothing)
    draw = draw_sites(full)
    exact = float(mixture_at(draw, full).log_prob(full.log_likelihood)[0])
    rng = np.random.default_rng(0)
    many, count = 3_000, 4
    allowed = np.flatnonzero(~data.leave_out[0][data.exemplar_index[0]])
    picked = rng.choice(allowed, size=(many, count))

    def rows(values):
        return np.repeat(np.asarray(values), many, axis=0)

    sampled = mixture_data(
        context_embeddings=rows(data.context_embeddings),
        persona_embeddings=data.persona_embeddings,
        exemplar_embeddings=data.exemplar_embeddings,
        leave_out=rows(data.leave_out),
        persona_index=data.persona_index[0][picked],
        exemplar_index=data.exemplar_index[0][picked],
        log_weight=np.full((many, count), np.log(len(allowed) / count)),
        log_likelihood=data.log_likelihood[0][picked],
        temperature_grid=data.temperature_grid,
        feature_maps=data.feature_maps,
    )
    sampled = with_bare_components(sampled, rows(alone), rows(nothing))
    ratio = np.exp(np.asarray(mixture_at(draw, sampled).log_prob(sampled.log_likelihood)) - exact)
    assert abs(ratio.mean() - 1) < 5 * ratio.std() / np.sqrt(many)
    assert ratio.std() > 0.05  # there is something to be wrong about


def test_the_gate_is_read_at_new_contexts_and_masks_are_those_of_real_exemplars(make_data):
    data = with_bare_components(make_data(), *bare_tables(make_data()))
    draws = {name: np.asarray(v)[None] for name, v in draw_sites(data).items()}
    posterior = make_posterior(draws, data)
    mask = np.zeros((2, 5), bool)
    mask[0, :4] = True
    gate = gate_at(posterior, np.ones((2, 8)), leave_out=mask)
    log_probs = np.asarray(gate.mixing_distribution(0).mixing_log_probs)
    assert log_probs.shape == (2, 4, 6)
    np.testing.assert_allclose(np.exp(log_probs).sum((1, 2)), 1, rtol=1e-5)
    assert (np.exp(log_probs[:, 3, :5]) < 1e-30).all()  # no exemplar without a persona
    assert (np.exp(log_probs[0, :, :4]) == 0).all()
    assert np.exp(log_probs[:, :3, 5]).min() > 1e-4


def test_bad_tables_are_refused(make_data):
    data = make_data()
    alone, nothing = bare_tables(data)
    with pytest.raises(DataError, match="persona_only has shape"):
        with_bare_components(data, alone[:, :2], nothing)
    with pytest.raises(DataError, match="zero_shot is nan"):
        with_bare_components(data, alone, np.where(nothing == nothing[2, 1], np.nan, nothing))
    with pytest.raises(DataError, match="already"):
        with_bare_components(with_bare_components(data, alone), alone)


def test_the_uniform_mixture_is_the_same_with_and_without(make_data):
    data = make_data()
    bare = with_bare_components(data, *bare_tables(data))
    np.testing.assert_allclose(uniform_log_prob(bare), uniform_log_prob(data), rtol=1e-6)


def test_a_renormalised_gate_has_no_bare_components(make_data):
    data = with_bare_components(make_data(), *bare_tables(make_data()))
    with pytest.raises(DataError, match="nearly all would be bare"):
        draw_sites(data, distribution=RenormalisedPersonaMixture)
