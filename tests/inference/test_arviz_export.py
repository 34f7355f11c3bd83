"""The ArviZ export: groups, named dimensions, provenance, and its NetCDF file."""

import arviz
import numpy as np

from mop_jax.inference import log_likelihood_draws, to_inference_data, write_netcdf


def test_groups_dims_and_file(rt_posterior, rt_data, tmp_path):
    names = ["critic", "fan", "cynic", "parent"]
    exported = to_inference_data(
        rt_posterior,
        rt_data,
        persona_names=names,
        record_ids=[f"r{i}" for i in range(40)],
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
    np.testing.assert_array_equal(loaded.log_likelihood["response"][0], expected)
    np.testing.assert_allclose(
        loaded.sample_stats["weighted_log_likelihood"][0],
        (expected * rt_data.weights).sum(1),
        rtol=1e-6,
    )
    assert loaded.constant_data["leave_out"].dims == ("record", "exemplar")
    assert loaded.observed_data["response_log_likelihood"].shape == (40, 48, 1)
    assert len(loaded.optimization["loss"]) == 60
    assert loaded.posterior.attrs["inference_library"] == "numpyro"
    assert {"inference_library_version", "mop_jax_version", "run"} <= set(loaded.posterior.attrs)


def test_the_same_posterior_makes_the_same_file(rt_posterior, rt_data, tmp_path):
    for name in ("a.nc", "b.nc"):
        write_netcdf(tmp_path / name, to_inference_data(rt_posterior, rt_data))
    assert (tmp_path / "a.nc").read_bytes() == (tmp_path / "b.nc").read_bytes()


def test_draws_divide_into_chains(rt_posterior, rt_data):
    ten = rt_posterior._replace(samples={k: v[:10] for k, v in rt_posterior.samples.items()})
    exported = to_inference_data(ten, rt_data, num_chains=2)
    assert dict(exported.posterior.sizes)["chain"] == 2
    np.testing.assert_array_equal(
        exported.posterior["log_temperature"][1, 0], ten.samples["log_temperature"][5]
    )
