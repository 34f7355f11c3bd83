"""Temperature models: their sites, and log-probabilities against a loop over candidates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro import handlers
from scipy.interpolate import CubicSpline
from scipy.special import logsumexp

from mop_jax.distributions import PersonaMixture
from mop_jax.errors import DataError
from mop_jax.models import LogTemperatures, mixture_of_personas
from tests.models.programs import draw_sites, mixture_at

KINDS = ["pooled", "contextual"]


def log_temperatures(draw, data, kind):
    """Log τ of every record, persona and exemplar by the definition, [N, K, J]."""
    persona = draw["temperature_scale.persona"] * draw["temperature_effect.persona"]
    ends = np.log(data.temperature_grid[[0, -1]])
    persona = np.clip(draw["mean_log_temperature"] + persona, *ends)
    exemplar = draw["temperature_scale.exemplar"] * draw["temperature_effect.exemplar"]
    found = persona[None, :, None] + exemplar[None, None]
    if kind == "contextual":
        weight = draw["temperature_scale.context"] * draw["temperature_effect.context"]
        features = np.asarray(data.feature_maps.context(data.context_embeddings))[:, : len(weight)]
        found = found + (features @ weight)[:, None, None]
    return np.broadcast_to(found, (data.num_records, data.num_personas, data.num_exemplars))


@pytest.mark.parametrize("kind", KINDS)
def test_log_prob_equals_a_loop(make_data, kind):
    """The spline by SciPy, the sum over components by hand."""
    with jax.enable_x64(True):
        data = make_data(dtype=np.float64)
        kwargs = {"temperature": kind, "temperature_spread": 0.2}
        draw = {k: np.asarray(v, float) for k, v in draw_sites(data, **kwargs).items()}
        mixture = mixture_at(draw, data, **kwargs)
        found = np.asarray(mixture.log_prob(data.log_likelihood))
        mixing = np.asarray(mixture.mixing_log_probs)
        table = data.log_likelihood.reshape(*mixing.shape, -1)
    grid = data.temperature_grid
    log_tau = np.clip(log_temperatures(draw, data, kind), *np.log(grid[[0, -1]]))
    for i in range(data.num_records):
        terms = []
        for k in range(data.num_personas):
            for j in range(data.num_exemplars):
                if not data.leave_out[i, j]:
                    spline = CubicSpline(np.log(grid), table[i, k, j], bc_type="not-a-knot")
                    terms.append(mixing[i, k, j] + spline(log_tau[i, k, j]))
        np.testing.assert_allclose(found[i], logsumexp(terms), rtol=1e-7)
    # Exemplars do have temperatures of their own: the test can fail.
    alone = mixture_at(
        {**draw, "temperature_effect.exemplar": np.zeros(data.num_exemplars)}, data, **kwargs
    )
    assert np.abs(np.asarray(alone.log_prob(data.log_likelihood)) - found).min() > 1e-4


def test_what_exemplars_and_records_add_is_confined_to_the_grid(make_data):
    data = make_data()
    logits = (jnp.zeros((6, 3)), jnp.zeros((6, 5)), jnp.zeros((3, 5)))
    index = (data.persona_index, data.exemplar_index, data.log_weight, data.temperature_grid)

    def mixture(persona, exemplar, record):
        return PersonaMixture(
            *logits,
            jnp.full(3, persona),
            *index,
            exemplar_log_temperature=jnp.full(5, exemplar),
            record_log_temperature=jnp.full(6, record),
        )

    ends = data.temperature_grid[[0, -1]]
    np.testing.assert_allclose(mixture(0.1, 9.0, 0.0).candidate_temperature, ends[1], rtol=1e-6)
    np.testing.assert_allclose(mixture(0.1, 0.0, -9.0).candidate_temperature, ends[0], rtol=1e-6)
    # A persona beyond the grid counts as its end, with other parts as without.
    np.testing.assert_allclose(
        mixture(9.0, -0.1, 0.0).candidate_temperature, ends[1] * np.exp(-0.1), rtol=1e-6
    )
    np.testing.assert_allclose(
        mixture(0.1, 0.0, 0.0).log_prob(data.log_likelihood),
        PersonaMixture(*logits, jnp.full(3, 0.1), *index).log_prob(data.log_likelihood),
        rtol=1e-6,
    )


def test_true_and_false_are_the_persona_and_the_fixed_temperature(make_data):
    data = make_data()
    for given, name in ((True, "persona"), (False, "fixed")):
        sites = [draw_sites(data, temperature=value).keys() for value in (given, name)]
        assert sites[0] == sites[1]
    assert "log_temperature" not in draw_sites(data, temperature=False)


def test_a_temperature_model_of_ones_own_is_a_function(make_data):
    data = make_data()

    def warm(data, *, width, prior_scale, spread):
        del width, prior_scale, spread
        return lambda batch: LogTemperatures(jnp.full(data.num_personas, 0.2))

    mixture = handlers.seed(mixture_of_personas, 0)(data, temperature=warm)
    np.testing.assert_allclose(mixture.temperature, np.exp(0.2), rtol=1e-6)
    with pytest.raises(DataError, match="Unknown temperature 'hot'; accepted: true, false, fixed"):
        handlers.seed(mixture_of_personas, 0)(data, temperature="hot")
