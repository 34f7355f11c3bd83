"""The ArviZ export: groups, named dimensions, provenance, and its NetCDF file."""

import datetime
import json
import warnings

import arviz
import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError, FaultError
from mop_jax.inference import (
    SimulatedResponse,
    gate_at,
    log_likelihood_draws,
    make_posterior,
    prior_draws,
    to_inference_data,
    write_netcdf,
)


def test_groups_dims_and_file(rt_posterior, rt_data, tmp_path):
    names = ["critic", "fan", "cynic", "parent"]
    exported = to_inference_data(
        rt_posterior,
        rt_data,
        persona_names=names,
        record_ids=[f"r{i}" for i in range(40)],
        responses=[f"review {i}" for i in range(40)],
        attributes={"run": "test"},
    )
    path = tmp_path / "posterior.nc"
    write_netcdf(path, exported)
    loaded = arviz.from_netcdf(path)
    groups = ["posterior", "log_likelihood", "sample_stats", "observed_data", "constant_data"]
    assert loaded.groups() == [*groups, "optimization"]
    assert loaded.posterior["log_temperature"].dims == ("chain", "draw", "persona")
    assert loaded.posterior["persona"].values.tolist() == names
    weight = loaded.posterior["gate.exemplar_context_weight"]
    assert weight.dims == ("chain", "draw", "exemplar_feature", "context_feature")
    np.testing.assert_array_equal(weight[0], rt_posterior.samples["gate.exemplar_context_weight"])
    assert loaded.log_likelihood["response"].dims == ("chain", "draw", "record")
    expected = np.asarray(log_likelihood_draws(rt_posterior, rt_data))
    # Other programs add in another order.
    np.testing.assert_allclose(loaded.log_likelihood["response"][0], expected, rtol=1e-6)
    np.testing.assert_allclose(
        loaded.sample_stats["weighted_log_likelihood"][0],
        (expected * rt_data.weights).sum(1),
        rtol=1e-6,
    )
    assert loaded.constant_data["leave_out"].dims == ("record", "exemplar")
    assert loaded.constant_data["response_log_likelihood"].shape == (40, 48, 1)
    assert loaded.constant_data["response_text"][3] == "review 3"
    assert len(loaded.optimization["loss"]) == 60
    assert loaded.posterior.attrs["inference_library"] == "numpyro"
    assert {"inference_library_version", "mop_jax_version", "run"} <= set(loaded.posterior.attrs)


def test_temperatures_and_shares_are_there_beside_the_sites(small):
    data = small[0]._replace(weights=1 + np.arange(6) % 2)
    posterior = prior_draws(jax.random.key(1), data, num_draws=5)
    group = to_inference_data(posterior, data).posterior
    assert set(group.data_vars) == {*posterior.samples, "temperature", "persona_share"}
    gate = gate_at(posterior, data.context_embeddings)
    shares = np.average(np.exp(gate.persona_log_probs), axis=1, weights=data.weights)
    for name, expected in {"temperature": gate.temperature, "persona_share": shares}.items():
        assert group[name].dims == ("chain", "draw", "persona")
        np.testing.assert_allclose(group[name][0], expected, rtol=1e-5)
        assert group[name].attrs["description"]
    # A linear gate's weights mean something one by one.
    assert not [name for name in group.data_vars if "identified" in group[name].attrs]


def test_a_prior_stands_beside_the_posterior(rt_posterior, rt_data, tmp_path):
    names = ["critic", "fan", "cynic", "parent"]
    prior = prior_draws(jax.random.key(0), rt_data, num_draws=7)
    exported = to_inference_data(rt_posterior, rt_data, prior=prior, persona_names=names)
    write_netcdf(tmp_path / "prior.nc", exported)
    loaded = arviz.from_netcdf(tmp_path / "prior.nc")
    assert dict(loaded.prior.sizes)["draw"] == 7
    assert set(loaded.prior.data_vars) == set(loaded.posterior.data_vars)
    for name in loaded.posterior.data_vars:
        assert loaded.prior[name].dims == loaded.posterior[name].dims
        assert loaded.prior[name].shape[2:] == loaded.posterior[name].shape[2:]
    for name, draws in prior.samples.items():
        np.testing.assert_array_equal(loaded.prior[name][0], draws)
    assert loaded.prior["persona"].values.tolist() == names
    np.testing.assert_allclose(loaded.prior["persona_share"].sum("persona"), 1, rtol=1e-5)
    assert loaded.prior.attrs["sampler"] == "prior"
    assert loaded.posterior.attrs["sampler"] == rt_posterior.sampler
    arviz.plot_dist_comparison(loaded, var_names=["persona_share"])
    plt.close("all")


def test_kernels_that_can_be_rotated_say_so(small):
    data, _ = small
    prior = prior_draws(jax.random.key(0), data, model_kwargs={"gate": "bilinear"}, num_draws=2)
    exported = to_inference_data(prior, data, prior=prior)
    for group in (exported.posterior, exported.prior):
        marked = {name for name in group.data_vars if "identified" in group[name].attrs}
        kernels = {f"gate.{kind}_kernel" for kind in ("context", "persona", "exemplar")}
        assert marked == kernels
        assert "persona_share" in group["gate.persona_kernel"].attrs["identified"]


def test_what_the_arguments_decide_is_no_draw(rt_data, small):
    # The table was scored at τ = 1 alone, to which every temperature is confined.
    exported = to_inference_data(independent_draws(rt_data, 8), rt_data)
    assert set(exported.posterior.data_vars) == {"log_temperature", "mean_log_temperature"}
    for name, expected in {"persona_share": 0.25, "temperature": 1.0}.items():
        assert exported.constant_data[name].dims == ("persona",)
        np.testing.assert_allclose(exported.constant_data[name], expected, rtol=1e-6)
    # All draws of a point estimate are alike, and they are draws nevertheless.
    data = small[0]
    point = prior_draws(jax.random.key(1), data, num_draws=1)
    point = point.replace(samples={k: np.repeat(v, 8, 0) for k, v in point.samples.items()})
    exported = to_inference_data(point, data)
    assert {"temperature", "persona_share"} <= set(exported.posterior.data_vars)
    assert not {"temperature", "persona_share"} & set(exported.constant_data.data_vars)


def test_a_prior_of_other_personas_is_refused(rt_posterior, rt_data, small):
    with pytest.raises(DataError, match="prior is of 3 personas, and data of 4"):
        to_inference_data(rt_posterior, rt_data, prior=small[1])


def test_the_file_says_in_what_loo_is_approximate(rt_posterior, rt_data, tmp_path):
    equal = rt_data._replace(weights=np.ones_like(rt_data.weights))
    sampled = equal._replace(log_weight=np.asarray(rt_data.log_weight) + 1)
    chains = rt_posterior.replace(num_chains=1)

    def said(posterior, data):
        write_netcdf(tmp_path / "loo.nc", to_inference_data(posterior, data))
        return arviz.from_netcdf(tmp_path / "loo.nc").log_likelihood.attrs.get("loo", "")

    assert said(chains, equal) == ""
    for posterior, data, why in [
        (rt_posterior, equal, f"{rt_posterior.sampler}, not from the posterior"),
        (chains, sampled, "components are sampled"),
        (chains, rt_data, "unequal weights"),
    ]:
        text = said(posterior, data)
        assert text.startswith("loo is approximate: ")
        assert why in text
        assert ";" not in text
    assert said(rt_posterior, rt_data._replace(log_weight=sampled.log_weight)).count(";") == 2


def test_the_same_posterior_makes_the_same_file(rt_posterior, rt_data, tmp_path):
    for name in ("a.nc", "b.nc"):
        write_netcdf(tmp_path / name, to_inference_data(rt_posterior, rt_data))
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_draws_divide_into_chains(rt_posterior, rt_data):
    ten = rt_posterior.replace(samples={k: v[:10] for k, v in rt_posterior.samples.items()})
    exported = to_inference_data(ten, rt_data, num_chains=2)
    assert dict(exported.posterior.sizes)["chain"] == 2
    np.testing.assert_array_equal(
        exported.posterior["log_temperature"][1, 0], ten.samples["log_temperature"][5]
    )


def responses_to(contexts, *, num_records=40):
    """A simulated response for each of `contexts`, of as many words as its number plus one."""
    return [
        SimulatedResponse(
            s, 0, n, "context", s % 11, s % 4, s % 12, 1.0, "word " * (s + 1), True, -1.0, -2.0
        )
        for s, n in enumerate(contexts)
    ]


def test_a_predictive_check_is_drawn_as_it_comes(rt_posterior, rt_data, tmp_path):
    observed = [f"{'word ' * (1 + i % 5)}é" for i in range(40)]
    exported = to_inference_data(
        rt_posterior,
        rt_data,
        responses=observed,
        # Some records have two responses, most one, and the last none.
        simulated=responses_to([*range(39), *range(7)]),
    )
    path = tmp_path / "posterior.nc"
    write_netcdf(path, exported)
    loaded = arviz.from_netcdf(path)
    drawn = loaded.posterior_predictive
    assert drawn["response_words"].dims == ("chain", "draw", "record")
    assert drawn["response_words"].shape == (1, 2, 40)
    np.testing.assert_array_equal(drawn["response_words"][0, 0, :39], np.arange(1, 40))
    np.testing.assert_array_equal(drawn["response_words"][0, 1, :7], np.arange(40, 47))
    assert np.isnan(drawn["response_words"][0, 1, 7:]).all()
    assert np.isnan(drawn["response_words"][0, :, 39]).all()
    assert drawn["response_text"].values[0, 0, 2] == "word word word "
    assert drawn["chosen_persona"].values[0, 0, 5] == 1
    np.testing.assert_array_equal(
        loaded.observed_data["response_words"], [len(text.split()) for text in observed]
    )
    np.testing.assert_array_equal(
        loaded.observed_data["response_characters"], [len(text) for text in observed]
    )
    for kind in ("kde", "cumulative"):
        axes = np.ravel(arviz.plot_ppc(loaded, kind=kind))
        assert len(axes) == 2
        # Each of the two draws, the observed responses and the mean.
        assert all(len(axis.get_lines()) >= 4 for axis in axes)
        plt.close("all")
    with pytest.raises(DataError, match="one answers context 40"):
        to_inference_data(rt_posterior, rt_data, simulated=responses_to([40]))
    with pytest.raises(DataError, match="responses holds 3 texts; data has 40 records"):
        to_inference_data(rt_posterior, rt_data, responses=["a", "b", "c"])


def independent_draws(data, num_draws):
    rng = np.random.default_rng(0)
    samples = {
        "log_temperature": rng.normal(0, 0.1, (num_draws, 4)),
        "mean_log_temperature": rng.normal(0, 0.1, num_draws),
    }
    return make_posterior(samples, data, model_kwargs={"uniform_gate": True}, sampler="AutoNormal")


@pytest.mark.parametrize(("num_draws", "num_chains"), [(200, 4), (10, 2), (11, 1), (6, 1)])
def test_independent_draws_divide_by_themselves(rt_data, num_draws, num_chains):
    exported = to_inference_data(independent_draws(rt_data, num_draws), rt_data)
    assert exported.posterior.sizes["chain"] == num_chains
    assert "independent" in exported.posterior.attrs["draws"]
    assert exported.posterior.attrs["sampler"] == "AutoNormal"
    if num_chains > 1:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            summary = arviz.summary(exported)
        if num_draws == 200:
            # Independent normal draws: beyond 1.1 less than once in a million seeds (fixed).
            assert (summary["r_hat"] < 1.1).all()
            assert (summary["ess_bulk"] > 100).all()


def test_chains_are_those_of_the_sampler_and_equally_long(rt_data):
    posterior = independent_draws(rt_data, 12).replace(num_chains=3)
    assert to_inference_data(posterior, rt_data).posterior.sizes["chain"] == 3
    with pytest.raises(DataError, match="num_chains is 5, which does not divide the 12 draws"):
        to_inference_data(posterior, rt_data, num_chains=5)
    with pytest.raises(DataError, match="num_chains is 0"):
        to_inference_data(posterior, rt_data, num_chains=0)


def test_a_model_without_sites_is_exported(rt_data, tmp_path):
    kwargs = {"uniform_gate": True, "temperature": False}
    exported = to_inference_data(make_posterior({}, rt_data, model_kwargs=kwargs), rt_data)
    write_netcdf(tmp_path / "uniform.nc", exported)
    assert arviz.from_netcdf(tmp_path / "uniform.nc").log_likelihood["response"].shape == (1, 1, 40)


@pytest.fixture(scope="module")
def small(make_data):
    """Data of six records, and a posterior of the uniform mixture."""
    data = make_data()
    return data, make_posterior({}, data, model_kwargs={"uniform_gate": True, "temperature": False})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"record_ids": ["a"]}, "record_ids holds 1 names; the dimension has 6 entries"),
        ({"persona_names": "abc"}, "persona_names holds one text"),
        ({"exemplar_ids": list("abcd")}, "exemplar_ids holds 4 names; the dimension has 5"),
    ],
)
def test_names_of_the_wrong_number_are_refused(small, names, message):
    data, posterior = small
    with pytest.raises(DataError, match=message):
        to_inference_data(posterior, data, **names)


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary(max_size=3)
    | st.just(np.arange(3))
    | st.just(np.float32(1.5))
    | st.just(datetime.date(2024, 2, 29))
    | st.just(object),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text() | st.integers(), inner, max_size=3)
        | st.tuples(inner)
        | st.sets(st.integers(), max_size=3)
    ),
    max_leaves=6,
)


@settings(max_examples=40)
@given(value=anything, ids=st.lists(anything, min_size=6, max_size=6))
def test_attributes_and_ids_of_any_kind_are_written(small, tmp_path_factory, value, ids):
    data, posterior = small
    path = tmp_path_factory.mktemp("nc") / "any.nc"
    exported = to_inference_data(posterior, data, record_ids=ids, attributes={"value": value})
    write_netcdf(path, exported)
    loaded = arviz.from_netcdf(path).log_likelihood
    found = loaded.attrs["value"]
    if isinstance(value, str) and "\0" not in value:
        assert found == value.encode("utf-8", "replace").decode()
    elif isinstance(value, float) or (type(value) is int and abs(value) < 2**63):
        np.testing.assert_array_equal(found, value)
    else:
        json.loads(found)
    assert loaded.sizes["record"] == 6
    if all(isinstance(name, str) and "\0" not in name for name in ids):
        assert loaded["record"].values.tolist() == ids


def test_a_file_that_cannot_be_written_is_one_sentence(small, tmp_path):
    exported = to_inference_data(small[1], small[0])
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.nc", tmp_path, tmp_path / f"{'a' * 300}.nc"):
        with pytest.raises(FaultError, match="could not be written"):
            write_netcdf(path, exported)


def test_a_site_named_like_a_quantity_keeps_its_draws(small):
    data, posterior = small
    named = posterior.replace(samples={"temperature": np.full((1, 2), 5.0)})
    with pytest.warns(UserWarning, match="Site 'temperature' has the name of another variable"):
        exported = to_inference_data(named, data)
    np.testing.assert_array_equal(exported.posterior["site_temperature"], np.full((1, 1, 2), 5.0))
    np.testing.assert_array_equal(exported.posterior["temperature"], np.ones((1, 1, 3)))


def test_a_site_named_like_a_dimension_keeps_its_draws(small):
    data, posterior = small
    named = posterior.replace(samples={"record": np.ones((1, 6))})
    with pytest.warns(UserWarning, match="Site 'record' has the name of a dimension"):
        exported = to_inference_data(named, data)
    assert exported.posterior["site_record"].shape == (1, 1, 6)
