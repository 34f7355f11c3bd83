"""Files of posteriors: which model they belong to, and parameters of any shape."""

import json
import warnings

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from mop_jax.distributions import PersonaMixture, RenormalisedPersonaMixture
from mop_jax.errors import DataError
from mop_jax.inference import (
    load_posterior,
    log_likelihood_draws,
    make_posterior,
    save_posterior,
)
from mop_jax.inference.svi import latent_sites
from mop_jax.models import (
    GATES,
    mixture_of_personas,
    uniform_gate_logits,
    with_bare_components,
)

UNIFORM = {"uniform_gate": True}


@pytest.fixture(scope="module")
def posterior(make_data):
    """Four draws of temperatures."""
    rng = np.random.default_rng(0)
    samples = {
        "log_temperature": rng.normal(0, 0.1, (4, 3)).astype(np.float32),
        "mean_log_temperature": rng.normal(0, 0.1, 4).astype(np.float32),
    }
    return make_posterior(samples, make_data(), model_kwargs=UNIFORM, sampler="AutoNormal")


def mine():
    """A copy of the shipped model under its name, with temperatures turned over."""

    def mixture_of_personas(data, **kwargs):
        mixture = shipped(data, **kwargs)
        mixture.log_temperature = -mixture.log_temperature
        return mixture

    shipped = globals()["mixture_of_personas"]
    return mixture_of_personas


def test_a_copy_under_a_shipped_name_is_refused_without_its_code(posterior, make_data, tmp_path):
    path, data = tmp_path / "mine.safetensors", make_data()
    own = mine()
    save_posterior(path, posterior.replace(model=own))
    with pytest.raises(DataError, match=r"'.*mixture_of_personas' of .*pass the function as model"):
        load_posterior(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_posterior(path, model=own)
    found, expected = (log_likelihood_draws(p, data) for p in (loaded, posterior))
    assert abs(np.asarray(found) - np.asarray(expected)).max() > 1e-2  # it is another model
    # With another function of the same sites the draws may be used, but never in silence.
    with pytest.warns(UserWarning, match="differs from it"):
        assert load_posterior(path, model=mixture_of_personas).model is mixture_of_personas


def test_a_model_with_other_sites_is_refused(posterior, tmp_path):
    path = tmp_path / "gate.safetensors"
    save_posterior(path, posterior)
    assert load_posterior(path).model is mixture_of_personas
    with pytest.raises(DataError, match=r"has a site 'gate\.\w+' of shape .* no such draws"):
        load_posterior(path, model_kwargs={"uniform_gate": False})

    def wider(data, **kwargs):
        return mixture_of_personas(
            data._replace(persona_embeddings=np.zeros((4, 8), "f")), **kwargs
        )

    with (
        pytest.warns(UserWarning, match="differs from it"),
        pytest.raises(DataError, match=r"'log_temperature' of shape \(4,\).*draws of shape \(3,\)"),
    ):
        load_posterior(path, model=wider)


def test_a_distribution_of_ones_own_is_known_by_its_code(posterior, tmp_path):
    path = tmp_path / "own.safetensors"

    class PersonaMixture(RenormalisedPersonaMixture):
        """Under the name of a shipped one."""

    kwargs = {**UNIFORM, "distribution": PersonaMixture}
    save_posterior(path, posterior.replace(model_kwargs=kwargs))
    with pytest.raises(DataError, match=r"distribution=.*PersonaMixture, which mop_jax does not"):
        load_posterior(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_posterior(path, model_kwargs={"distribution": PersonaMixture})
    assert loaded.model_kwargs == kwargs
    with pytest.warns(UserWarning, match="the code of what is given differs"):
        load_posterior(path, model_kwargs={"distribution": RenormalisedPersonaMixture})


def as_first_format(path, **changes):
    """Rewrites a file as mop_jax wrote it before models had an identity."""
    first = {
        "format": "mop-jax posterior 1",
        "model": "mixture_of_personas",
        "model_kwargs": {**UNIFORM, "distribution": {"distribution": "PersonaMixture"}},
        "metadata": {},
        **changes,
    }
    save_file(load_file(path), path, metadata={"mop_jax": json.dumps(first)})


def test_files_of_the_first_format_open(posterior, tmp_path):
    path = tmp_path / "old.safetensors"
    save_posterior(path, posterior.replace(params={"auto_loc": np.arange(4.0)}))
    as_first_format(path)
    loaded = load_posterior(path)
    assert loaded.model is mixture_of_personas
    assert loaded.model_kwargs == {**UNIFORM, "distribution": PersonaMixture}
    np.testing.assert_array_equal(loaded.params["auto_loc"], np.arange(4.0))
    for name, values in posterior.samples.items():
        np.testing.assert_array_equal(loaded.samples[name], values)
    as_first_format(path, model="theirs")
    with pytest.raises(DataError, match=r"'theirs', which mop_jax\.models does not have"):
        load_posterior(path)


trees = st.recursive(
    st.none() | st.integers(0, 3).map(lambda n: np.arange(n, dtype=np.float32)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(max_examples=60)
@given(params=st.dictionaries(st.text(max_size=4), trees, max_size=4))
def test_parameters_come_back_as_the_same_tree(posterior, tmp_path_factory, params):
    path = tmp_path_factory.mktemp("params") / "gate.safetensors"
    save_posterior(path, posterior.replace(params=params))
    loaded = load_posterior(path)
    assert jax.tree.structure(loaded.params) == jax.tree.structure(params)
    for a, b in zip(*(jax.tree.leaves(p) for p in (loaded.params, params)), strict=True):
        np.testing.assert_array_equal(a, b, strict=True)
    assert loaded.samples.keys() == posterior.samples.keys()


def test_what_is_printed_is_a_line(posterior):
    assert len(posterior) == posterior.num_draws == 4
    expected = (
        "<Posterior of mixture_of_personas: 4 draws by AutoNormal of log_temperature, "
        "mean_log_temperature; 3 personas, 5 exemplars>"
    )
    assert repr(posterior) == expected


def own_gate(shift):
    """A gate without sites, which leans towards the first persona."""

    def gate(data, *, width, prior_scale, exemplar_context, exemplars):
        def logits(batch):
            uniform = uniform_gate_logits(batch)
            return uniform._replace(persona=uniform.persona.at[:, 0].add(shift))

        return logits

    return gate


def test_a_gate_by_name_is_known_by_its_code(posterior, tmp_path, monkeypatch):
    path = tmp_path / "gate.safetensors"
    monkeypatch.setitem(GATES, "mine", own_gate(1.0))
    save_posterior(path, posterior.replace(model_kwargs={"gate": "mine"}))
    monkeypatch.setitem(GATES, "mine", own_gate(1.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_posterior(path).model_kwargs == {"gate": "mine"}
    monkeypatch.setitem(GATES, "mine", own_gate(2.0))
    with pytest.warns(UserWarning, match="the code of the gate that is used differs"):
        load_posterior(path)
    monkeypatch.delitem(GATES, "mine")
    with pytest.raises(DataError, match=r"gate='mine', which .* does not have"):
        load_posterior(path)
    given = load_posterior(path, model_kwargs={"gate": own_gate(1.0)})
    assert callable(given.model_kwargs["gate"])


def test_groupings_and_bare_components_are_in_the_file(make_data, tmp_path):
    rng = np.random.default_rng(0)
    plain = make_data(member_of={"age:sex": np.array([0, 1, 1, 2, 0, -1])})
    data = with_bare_components(plain, rng.normal(-20, 1, (6, 3, 4)), rng.normal(-20, 1, (6, 4)))
    sites = latent_sites(mixture_of_personas, data, {"temperature": "contextual"})
    samples = {name: rng.normal(size=(5, *shape)) ** 2 for name, shape in sites.items()}
    posterior = make_posterior(samples, data, model_kwargs={"temperature": "contextual"})
    save_posterior(tmp_path / "posterior.safetensors", posterior)
    loaded = load_posterior(tmp_path / "posterior.safetensors")
    assert jax.tree.structure(loaded.data) == jax.tree.structure(posterior.data)
    jax.tree.map(np.testing.assert_array_equal, loaded.data, posterior.data)
    np.testing.assert_array_equal(*(log_likelihood_draws(one, data) for one in (loaded, posterior)))
