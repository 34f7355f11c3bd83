"""Posteriors of closed answers: predictions, gates of groups, files, and the ArviZ export."""

import warnings

import arviz
import jax
import numpy as np
import pytest

from mop_jax.errors import DataError
from mop_jax.inference import (
    gate_at,
    load_posterior,
    log_likelihood_draws,
    make_posterior,
    persona_responsibilities,
    responsibilities,
    save_posterior,
    to_inference_data,
    write_netcdf,
)
from mop_jax.inference.posterior import mixture_at
from mop_jax.models import mixture_of_choices
from tests.models.programs import draw_sites
from tests.models.surveys import J, K, M, survey_data

N, DRAWS = 12, 16
WEIGHTS = 1 + np.arange(N) % 2


@pytest.fixture(scope="module")
def data():
    """Twelve items of unequal weight."""
    return survey_data(1, weights=WEIGHTS)


@pytest.fixture(scope="module")
def posterior(data):
    """Sixteen draws from the prior."""
    each = [draw_sites(data, mixture_of_choices, seed) for seed in range(DRAWS)]
    samples = {name: np.stack([draw[name] for draw in each]) for name in each[0]}
    return make_posterior(samples, data, mixture_of_choices, {"dispersion": True}, num_chains=2)


def one(posterior, s):
    """A draw of the sites."""
    return {name: values[s] for name, values in posterior.samples.items()}


def test_predictions_are_those_of_each_draw(posterior, data):
    log_likelihood = np.asarray(log_likelihood_draws(posterior, data))
    candidates = []
    for s in range(DRAWS):
        answers = mixture_at(posterior.model, one(posterior, s), data, posterior.model_kwargs)
        expected = answers.log_prob(data.choices.counts)
        np.testing.assert_allclose(log_likelihood[s], expected, rtol=1e-4, atol=1e-4)
        candidates.append(answers.responsibilities(data.choices.counts))
    found = responsibilities(posterior, data)
    np.testing.assert_allclose(found, np.mean(candidates, 0), atol=1e-5)
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-5)
    by_persona = persona_responsibilities(posterior, data)
    np.testing.assert_allclose(by_persona, found.reshape(N, K, J).sum(2), atol=1e-5)


def test_the_gate_at_known_groups_is_that_of_the_items(posterior, data):
    levels = {name: design.argmax(1) for name, design in data.choices.groups.items()}
    known = gate_at(posterior, data.context_embeddings, member_of=levels)
    unseen = gate_at(posterior, data.context_embeddings)
    for s in range(3):
        answers = mixture_at(posterior.model, one(posterior, s), data, posterior.model_kwargs)
        expected = answers.mixing_distribution.persona_log_probs
        np.testing.assert_allclose(known.persona_log_probs[s], expected, atol=1e-5)
    assert np.abs(np.asarray(known.persona_log_probs - unseen.persona_log_probs)).max() > 0.1
    # Groups nobody was of: the last row of the effects, and −1 is the same as nothing said.
    minus = {name: np.full(N, -1) for name in levels}
    again = gate_at(posterior, data.context_embeddings, member_of=minus)
    np.testing.assert_array_equal(again.persona_log_probs, unseen.persona_log_probs)


def test_groups_that_there_are_not_are_refused(posterior, data, make_data):
    for member_of, message in [
        ({"region": np.zeros(N, int)}, "'region'; there are age, education"),
        ({"age": np.full(N, 3)}, "holds 3, and there are 3 levels"),
        ({"age": np.zeros(2, int)}, r"shape \(2,\); it must be \(12,\)"),
    ]:
        with pytest.raises(DataError, match=message):
            gate_at(posterior, data.context_embeddings, member_of=member_of)
    with pytest.raises(DataError, match="these data have none"):
        make_data().at_contexts(np.zeros((1, 8)), member_of={"age": np.zeros(1, int)})


def test_a_file_gives_the_posterior_back_bit_for_bit(posterior, data, tmp_path):
    path, again = tmp_path / "choices.safetensors", tmp_path / "again.safetensors"
    save_posterior(path, posterior)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_posterior(path)
    assert loaded.model is mixture_of_choices
    assert loaded.model_kwargs == posterior.model_kwargs
    assert jax.tree.structure(loaded.data) == jax.tree.structure(posterior.data)
    trees = [(p.samples, p.data) for p in (loaded, posterior)]
    for a, b in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    save_posterior(again, loaded)
    assert again.read_bytes() == path.read_bytes()
    np.testing.assert_array_equal(
        log_likelihood_draws(loaded, data), log_likelihood_draws(posterior, data)
    )
    save_posterior(path, posterior.replace(samples={"x": np.zeros(2)}))
    with pytest.raises(DataError, match=r"has a site '[\w.]+' of shape .* no such draws"):
        load_posterior(path)


def test_arviz_gets_counts_options_and_names(posterior, data, tmp_path):
    names = {"option": list("abcd"), "question": ["vote", "trust"], "age_level": ["y", "m", "o"]}
    write_netcdf(tmp_path / "choices.nc", to_inference_data(posterior, data, names=names))
    found = arviz.from_netcdf(tmp_path / "choices.nc")
    assert found.observed_data["counts"].dims == ("record", "option")
    np.testing.assert_array_equal(found.observed_data["counts"], data.choices.counts)
    drawn = found.posterior_predictive["counts"]
    assert drawn.dims == ("chain", "draw", "record", "option")
    assert drawn.shape == (2, DRAWS // 2, N, M)
    np.testing.assert_array_equal(drawn.sum("option"), 60)
    assert drawn["option"].values.tolist() == list("abcd")
    constant = found.constant_data
    assert "response_log_likelihood" not in constant
    assert constant["option_log_likelihood"].dims == ("record", "candidate", "option")
    assert constant["option_offset"].dims == ("record", "option")
    np.testing.assert_array_equal(constant["question_index"], np.repeat([0, 1], 6))
    np.testing.assert_array_equal(constant["level_index.age"], data.choices.groups["age"].argmax(1))
    dims = {
        "option_bias": ("question", "option"),
        "group_effect.age": ("age_level", "persona"),
        "group_effect.education": ("education_level", "persona"),
        "log_concentration": ("question",),
        "log_temperature": ("persona",),
        "option_bias_scale": (),
    }
    for name, expected in dims.items():
        assert found.posterior[name].dims == ("chain", "draw", *expected)
    assert found.posterior["question"].values.tolist() == ["vote", "trust", "unseen"]
    assert found.posterior["age_level"].values.tolist() == ["y", "m", "o", "unseen"]
    assert found.posterior["education_level"].values.tolist() == ["0", "1", "unseen"]
    with warnings.catch_warnings():  # draws of the prior are far from any posterior
        warnings.simplefilter("ignore")
        assert np.isfinite(arviz.loo(found, var_name="response").elpd_loo)
    said = found.log_likelihood.attrs["loo"]
    assert said.startswith("loo leaves out an item")
    assert "unequal weights" in said


def test_items_of_no_known_question_or_level_say_so(posterior, data):
    unknown = data._replace(
        choices=data.choices._replace(
            question=np.eye(3, dtype=np.float32)[[2] * N],
            groups={
                k: np.eye(v.shape[1], dtype=np.float32)[[-1] * N]
                for k, v in data.choices.groups.items()
            },
        )
    )
    constant = to_inference_data(posterior, unknown).constant_data
    assert (constant["question_index"] == -1).all()
    assert (constant["level_index.age"] == -1).all()


def test_drawn_counts_follow_the_key_and_differ_by_draw(posterior, data):
    def drawn(seed):
        key = jax.random.key(seed)
        exported = to_inference_data(posterior, data, predictive_key=key)
        return exported.posterior_predictive["counts"].values

    first = drawn(0)
    np.testing.assert_array_equal(first, drawn(0))
    assert (first != drawn(1)).any()
    same = posterior.replace(samples={k: v[[0] * DRAWS] for k, v in posterior.samples.items()})
    counts = to_inference_data(same, data).posterior_predictive["counts"].values
    assert counts.std((0, 1)).max() > 1  # every draw has randomness of its own


def test_without_sites_there_are_counts_too(data):
    off = ("temperature", "group_effects", "option_bias", "dispersion")
    kwargs = {"uniform_gate": True, **dict.fromkeys(off, False)}
    exported = to_inference_data(make_posterior({}, data, mixture_of_choices, kwargs), data)
    assert exported.posterior_predictive["counts"].shape == (1, 1, N, M)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"option": ["a"]}, r"names\['option'\] holds 1 names; the dimension has 4"),
        ({"age_level": list("abcde")}, "holds 5 names; the dimension has 4"),
        ({"persona": ["a"]}, "'persona', which is no dimension; there are option, question"),
    ],
)
def test_names_that_do_not_fit_are_refused(posterior, data, names, message):
    with pytest.raises(DataError, match=message):
        to_inference_data(posterior, data, names=names)


def test_other_models_have_no_such_names(make_data):
    data = make_data()
    posterior = make_posterior({}, data, model_kwargs={"uniform_gate": True, "temperature": False})
    with pytest.raises(DataError, match="only closed answers"):
        to_inference_data(posterior, data, names={"option": ["a"]})
