"""Gates: logits against loops, what the data can tell of their weights, and the registry."""

import jax
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers

from mop_jax.errors import DataError
from mop_jax.models import GATES, Gate, GateLogits, mixture_of_personas
from tests.models.programs import singular_values

PARTS = {"width": 2, "prior_scale": 1.0, "exemplar_context": True, "exemplars": True}


def gate_and_sites(gate, data, seed=0, **parts):
    """The logits of a gate under a draw from its prior, and that draw."""
    with handlers.trace() as trace, handlers.seed(rng_seed=seed):
        logits = gate(data, **{**PARTS, **parts})(data)
    return logits, {k: np.asarray(v["value"], float) for k, v in trace.items() if "gate." in k}


def test_linear_logits_equal_a_loop_over_components(make_data):
    with jax.enable_x64(True):
        data = make_data(dtype=np.float64)
        logits, site = gate_and_sites(GATES["linear"], data)
        logits = GateLogits(*map(np.asarray, logits))
        maps = data.feature_maps
        x, g, e = (
            np.asarray(feature_map(embeddings))[:, :2]
            for feature_map, embeddings in zip(
                (maps.context, maps.persona, maps.exemplar), data[:3], strict=True
            )
        )
    a, u = site["gate.persona_weight"], site["gate.persona_context_weight"]
    b, m = site["gate.exemplar_weight"], site["gate.exemplar_context_weight"]
    c = site["gate.exemplar_persona_weight"]
    for i in range(data.num_records):
        for k in range(data.num_personas):
            np.testing.assert_allclose(logits.persona[i, k], g[k] @ (a + u @ x[i]), atol=1e-6)
            for j in range(data.num_exemplars):
                found = logits.exemplar_record[i, j] + logits.exemplar_persona[k, j]
                if data.leave_out[i, j]:
                    assert found == -np.inf
                else:
                    expected = e[j] @ (b + m @ x[i] + c @ g[k])
                    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize(("gate", "lost"), [("linear", 0), ("bilinear", 1)])
def test_the_data_identify_the_linear_gates_weights_and_not_the_bilinear_ones(
    make_data, gate, lost
):
    """The Jacobian of log π and log Ω by the weights has full rank, but for rotations of R²."""
    with jax.enable_x64(True):
        data = make_data(num_records=40, leave_out=np.zeros((40, 5), bool), dtype=np.float64)
        singular = singular_values(data, gate=gate, gate_width=2, temperature=False)
    assert (singular <= 1e-6 * singular[0]).sum() == lost


def test_weights_do_not_grow_with_the_pools(make_data):
    """K and J enter by at most `width` features each."""
    for num_personas, num_exemplars in ((7, 9), (20, 30)):
        data = make_data(num_records=30, num_personas=num_personas, num_exemplars=num_exemplars,
                         leave_out=np.zeros((30, num_exemplars), bool))  # fmt: skip
        _, sites = gate_and_sites(GATES["linear"], data)
        assert sum(site.size for site in sites.values()) == 2 + 2 + 3 * 4


def only_personas(data, *, width, prior_scale, exemplar_context, exemplars):
    """A gate as a user might write one."""
    del width, exemplar_context, exemplars
    size = (data.num_personas,)
    bias = numpyro.sample("gate.bias", dist.Normal(0.0, prior_scale).expand(size).to_event(1))

    def logits(batch):
        zeros = np.zeros((data.num_personas, data.num_exemplars), np.float32)
        record = np.where(batch.leave_out, -np.inf, np.float32(0))
        return GateLogits(bias + np.zeros((batch.num_records, 1), np.float32), record, zeros)

    return logits


@pytest.mark.parametrize(
    ("gate", "sites"),
    [
        ("bilinear", {f"gate.{name}_kernel" for name in ("context", "persona", "exemplar")}),
        (Gate, {f"gate.{name}_kernel" for name in ("context", "persona", "exemplar")}),
        (only_personas, {"gate.bias"}),
    ],
    ids=["name", "module", "function"],
)
def test_a_gate_is_a_name_a_module_or_a_function(make_data, gate, sites):
    data = make_data()
    trace = handlers.trace(handlers.seed(mixture_of_personas, 0)).get_trace(data, gate=gate)
    found = {k for k, v in trace.items() if k.startswith("gate.") and v["type"] == "sample"}
    assert found == sites
    assert np.isfinite(trace["response"]["fn"].log_prob(data.log_likelihood)).all()


def test_a_registered_gate_goes_by_its_name(make_data, monkeypatch):
    monkeypatch.setitem(GATES, "personas_only", only_personas)
    seeded = handlers.seed(mixture_of_personas, 0)
    assert "gate.bias" in handlers.trace(seeded).get_trace(make_data(), gate="personas_only")


def test_an_unknown_gate_is_refused(make_data):
    with pytest.raises(DataError, match="Unknown gate 'magic'; accepted: linear, bilinear"):
        handlers.seed(mixture_of_personas, 0)(make_data(), gate="magic")
