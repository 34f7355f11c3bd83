"""The collapsed mixture against plain loops, at its limits, and as a NumPyro distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.stats import chi2

from mop_jax.distributions import (
    MixingDistribution,
    PersonaMixture,
    RenormalisedPersonaMixture,
    log_matmul_exp,
)
from mop_jax.distributions.temperature import interpolate

N, K, J, G = 5, 3, 7, 4
GRID = np.array([0.7, 0.9, 1.1, 1.5])


def make_arguments(seed=0, num_records=N):
    """Arguments of a full-table mixture, with exemplars left out, and its table."""
    rng = np.random.default_rng(seed)
    leave_out = rng.random((num_records, J)) < 0.3
    leave_out[:, 0] = False
    record_part = np.where(leave_out, -np.inf, rng.normal(size=(num_records, J)))
    persona, exemplar = np.divmod(np.arange(K * J), J)
    pairs = (num_records, K * J)
    exemplar = np.broadcast_to(exemplar, pairs)
    arguments = {
        "persona_logits": rng.normal(size=(num_records, K)),
        "exemplar_record_logits": record_part,
        "exemplar_persona_logits": rng.normal(size=(K, J)),
        "log_temperature": rng.normal(0, 0.2, K),
        "persona_index": np.broadcast_to(persona, pairs),
        "exemplar_index": exemplar,
        "log_weight": np.where(np.take_along_axis(leave_out, exemplar, 1), -np.inf, 0.0),
        "temperature_grid": GRID,
    }
    return arguments, rng.normal(-20, 3, (*pairs, G))


def test_log_prob_and_responsibilities_equal_a_loop():
    arguments, table = make_arguments()
    expected, shares = np.zeros(N), np.zeros((N, K * J))
    for i in range(N):
        pi = np.exp(arguments["persona_logits"][i])
        pi /= pi.sum()
        for k in range(K):
            omega = np.exp(
                arguments["exemplar_record_logits"][i] + arguments["exemplar_persona_logits"][k]
            )
            omega /= omega.sum()
            for j in range(J):
                with jax.enable_x64(True):
                    temperature = np.exp(arguments["log_temperature"][k])
                    log_likelihood = float(interpolate(table[i, k * J + j], temperature, GRID))
                shares[i, k * J + j] = pi[k] * omega[j] * np.exp(log_likelihood)
        expected[i] = np.log(shares[i].sum())
    with jax.enable_x64(True):
        mixture = PersonaMixture(**arguments)
        np.testing.assert_allclose(mixture.log_prob(table), expected, rtol=1e-12)
        np.testing.assert_allclose(
            mixture.responsibilities(table), shares / shares.sum(1, keepdims=True), atol=1e-12
        )
        np.testing.assert_allclose(np.exp(mixture.mixing_log_probs).sum((1, 2)), 1, rtol=1e-12)
    in_float32 = PersonaMixture(**{k: jnp.asarray(v) for k, v in arguments.items()})
    np.testing.assert_allclose(in_float32.log_prob(jnp.asarray(table)), expected, rtol=1e-5)


def test_order_of_components_personas_and_exemplars_is_irrelevant():
    arguments, table = make_arguments(1)
    rng = np.random.default_rng(2)
    order, personas, exemplars = rng.permutation(K * J), rng.permutation(K), rng.permutation(J)
    shuffled = {
        **arguments,
        "persona_logits": arguments["persona_logits"][:, personas],
        "exemplar_record_logits": arguments["exemplar_record_logits"][:, exemplars],
        "exemplar_persona_logits": arguments["exemplar_persona_logits"][personas][:, exemplars],
        "log_temperature": arguments["log_temperature"][personas],
        "persona_index": np.argsort(personas)[arguments["persona_index"]][:, order],
        "exemplar_index": np.argsort(exemplars)[arguments["exemplar_index"]][:, order],
        "log_weight": arguments["log_weight"][:, order],
    }
    with jax.enable_x64(True):
        expected = PersonaMixture(**arguments).log_prob(table)
        found = PersonaMixture(**shuffled).log_prob(table[:, order])
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_temperatures_may_differ_by_record():
    arguments, table = make_arguments(3)
    per_record = {
        **arguments,
        "log_temperature": np.broadcast_to(arguments["log_temperature"], (N, K)),
    }
    np.testing.assert_allclose(
        PersonaMixture(**per_record).log_prob(table),
        PersonaMixture(**arguments).log_prob(table),
        rtol=1e-6,
    )


def test_numpyro_shapes_pytree_jit_vmap_and_broadcast():
    arguments, table = make_arguments(4)
    mixture = PersonaMixture(**arguments)
    assert mixture.batch_shape == (N,)
    assert mixture.event_shape == (K * J, G)
    expected = mixture.log_prob(table)
    leaves, structure = jax.tree.flatten(mixture)
    again = jax.tree.unflatten(structure, leaves)
    assert again.batch_shape == (N,)
    # float32 sums may be ordered otherwise inside jit
    np.testing.assert_allclose(jax.jit(lambda d, t: d.log_prob(t))(again, table), expected, 1e-6)
    np.testing.assert_allclose(mixture.log_prob(np.stack([table] * 3)), [expected] * 3, 1e-6)
    assert mixture.expand((2, N)).log_prob(table).shape == (2, N)

    def shifted(log_temperature):
        return PersonaMixture(**{**arguments, "log_temperature": log_temperature}).log_prob(table)

    draws = np.random.default_rng(0).normal(0, 0.2, (6, K))
    np.testing.assert_allclose(jax.vmap(shifted)(draws)[4], shifted(draws[4]), rtol=1e-6)


def test_bad_arguments_are_refused():
    arguments, _ = make_arguments()
    for name, bad in (("persona_logits", np.nan), ("log_weight", np.inf), ("persona_index", -1)):
        values = np.array(arguments[name])
        values[0, 0] = bad
        with pytest.raises(ValueError, match=name):
            PersonaMixture(**{**arguments, name: values}, validate_args=True)
    with pytest.raises(ValueError, match="exemplar_persona_logits has shape"):
        PersonaMixture(**{**arguments, "exemplar_persona_logits": np.zeros((K + 1, J))})
    with pytest.raises(NotImplementedError, match="mixing_distribution"):
        PersonaMixture(**arguments).sample(jax.random.key(0))


@pytest.mark.parametrize("favoured", [0.0, 60.0, 300.0])
def test_normaliser_is_exact_when_the_favourite_exemplar_is_left_out(favoured):
    rng = np.random.default_rng(0)
    left, right = rng.normal(size=(N, J)), rng.normal(size=(K, J))
    right[:, 2] += favoured  # every persona's favourite …
    left[1:, 2] = -np.inf  # … which only record 0 may use
    oracle = logsumexp(jnp.asarray(left)[:, None] + jnp.asarray(right), axis=-1)
    np.testing.assert_allclose(log_matmul_exp(left, right), oracle, rtol=2e-6, atol=2e-6)


def test_values_and_gradients_stay_finite_under_every_mask():
    arguments, table = make_arguments()
    record_part = np.array(arguments["exemplar_record_logits"])
    record_part[0] = -np.inf  # a record that may use nothing
    log_weight = np.array(arguments["log_weight"])
    log_weight[0] = -np.inf
    log_weight[1, 3:] = -np.inf  # padding
    table = np.array(table)
    table[1, 3:] = 0.0
    fixed = {**arguments, "log_weight": log_weight}
    names = ("persona_logits", "exemplar_persona_logits", "log_temperature")

    for law in (PersonaMixture, RenormalisedPersonaMixture):

        def total(free, offset, law=law):
            record_logits = jnp.where(record_part > -np.inf, record_part + offset, -jnp.inf)
            mixture = law(**{**fixed, **free, "exemplar_record_logits": record_logits})
            return jnp.where(jnp.arange(N) > 0, mixture.log_prob(table), 0.0).sum()

        gradient = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))
        free = {name: jnp.asarray(fixed[name], jnp.float32) for name in names}
        value, gradients = gradient(free, jnp.zeros((N, J)))
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
        # Personas that disagree by 200 nats on the exemplars: beyond float32, held finite.
        free["exemplar_persona_logits"] = 200.0 * jnp.eye(K, J)
        value, gradients = gradient(free, jnp.zeros((N, J)))
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in jax.tree.leaves(gradients))
        assert law(**{**fixed, "exemplar_record_logits": record_part}).log_prob(table)[0] == -np.inf


def test_mixing_distribution_samples_what_it_scores():
    """Chi-square of 20,000 pairs; fails falsely once in 10,000 seeds (this one is fixed)."""
    arguments, _ = make_arguments(5)
    gate = PersonaMixture(**arguments).mixing_distribution
    draws = np.asarray(gate.sample(jax.random.key(0), (20_000,)))
    assert draws.shape == (20_000, N, 2)
    pairs = np.stack(np.divmod(np.arange(K * J), J), -1)
    probs = np.exp(gate.log_prob(pairs[:, None].repeat(N, 1)))  # [K·J, N]
    np.testing.assert_allclose(probs.sum(0), 1.0, rtol=1e-5)
    for i in range(N):
        counts = np.bincount(draws[:, i, 0] * J + draws[:, i, 1], minlength=K * J)
        possible = probs[:, i] > 0
        assert counts[~possible].sum() == 0
        expected = 20_000 * probs[possible, i]
        statistic = ((counts[possible] - expected) ** 2 / expected).sum()
        assert statistic < chi2.ppf(1 - 1e-4 / N, possible.sum() - 1)


def test_renormalised_gate_lives_on_the_scored_components():
    arguments, table = make_arguments(6)
    everything = RenormalisedPersonaMixture(**arguments)
    np.testing.assert_allclose(
        everything.log_prob(table), PersonaMixture(**arguments).log_prob(table), rtol=1e-5
    )
    some = np.array([1, 0, 9, 0, 20])  # pair 0 twice would count twice; the second is padding
    log_weight = arguments["log_weight"][:, some]
    log_weight[:, 3] = -np.inf
    subset = {
        **arguments,
        "persona_index": arguments["persona_index"][:, some],
        "exemplar_index": arguments["exemplar_index"][:, some],
        "log_weight": log_weight,
    }
    scored = RenormalisedPersonaMixture(**subset)
    np.testing.assert_allclose(np.exp(scored.candidate_log_probs).sum(-1), 1.0, rtol=1e-5)
    full = PersonaMixture(**subset)
    share = np.exp(full.candidate_log_probs).sum(-1)
    np.testing.assert_allclose(
        scored.log_prob(table[:, some]), full.log_prob(table[:, some]) - np.log(share), rtol=1e-5
    )


def test_nothing_of_size_records_by_personas_by_exemplars_is_built():
    n, k, j, c = 29, 31, 37, 5  # primes, so that a product is recognised
    rng = np.random.default_rng(0)

    def loss(persona_logits, record_part, persona_part):
        mixture = PersonaMixture(
            persona_logits,
            record_part,
            persona_part,
            jnp.zeros(k),
            rng.integers(0, k, (n, c)),
            rng.integers(0, j, (n, c)),
            np.zeros((n, c)),
            GRID,
        )
        return mixture.log_prob(np.zeros((n, c, G))).sum()

    arguments = (np.zeros((n, k)), np.zeros((n, j)), np.zeros((k, j)))
    jaxpr = jax.make_jaxpr(jax.value_and_grad(loss, argnums=(0, 1, 2)))(*arguments)
    sizes = [np.prod(v.aval.shape) for v in _all_variables(jaxpr.jaxpr)]
    assert max(sizes) < n * k * j / 5
    # The detector sees such an array when there is one.
    naive = jax.make_jaxpr(lambda *a: MixingDistribution(*a).mixing_log_probs)(*arguments)
    assert max(np.prod(v.aval.shape) for v in _all_variables(naive.jaxpr)) == n * k * j


def _all_variables(jaxpr):
    for equation in jaxpr.eqns:
        yield from (v for v in equation.outvars if hasattr(v.aval, "shape"))
        for parameter in jax.tree.leaves(
            equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")
        ):
            if hasattr(parameter, "jaxpr"):
                yield from _all_variables(parameter.jaxpr)
            elif hasattr(parameter, "eqns"):
                yield from _all_variables(parameter)


def test_temperatures_are_confined_to_the_grid():
    """Beyond it nothing was scored: the likelihood and what is simulated take the grid's end."""
    grid = np.array([0.8, 1.0, 1.3], np.float32)
    mixture = PersonaMixture(
        np.zeros((1, 2)), np.zeros((1, 1)), np.zeros((2, 1)), np.log([0.5, 4.0]),
        np.array([[0, 1]]), np.zeros((1, 2), int), np.zeros((1, 2)), grid,
    )  # fmt: skip
    np.testing.assert_allclose(mixture.temperature, [0.8, 1.3], rtol=1e-6)
    table = np.array([[[-9.0, -7.0, -8.0], [-5.0, -4.0, -3.0]]])
    found = mixture.tempered_log_likelihood(table)
    np.testing.assert_allclose(found, [[-9.0, -3.0]], rtol=1e-6)


def test_the_gate_lives_on_the_components_that_it_prefers():
    """Against a loop: the M largest of log π + log Ω share all the probability."""
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(5, 3)), rng.normal(size=(5, 4)), rng.normal(size=(3, 4)))
    persona, exemplar = np.divmod(np.arange(12), 4)
    persona, exemplar = (np.broadcast_to(v, (5, 12)) for v in (persona, exemplar))
    table = rng.normal(-3, 1, (5, 12, 1))
    weight = np.where(rng.random((5, 12)) < 0.2, -np.inf, 0.0)
    arrays = (*logits, np.zeros(3), persona, exemplar, weight, np.ones(1))
    arrays = tuple(
        np.asarray(v, np.float32) if np.asarray(v).dtype.kind == "f" else v for v in arrays
    )
    mixture = RenormalisedPersonaMixture(*arrays, num_kept=3)
    found = np.asarray(mixture.log_prob(np.asarray(table, np.float32)))
    gate = np.asarray(mixture.mixing_log_probs).reshape(5, 12) + weight
    for i in range(5):
        kept = np.argsort(-gate[i])[:3]
        expected = logsumexp(gate[i, kept] + table[i, kept, 0]) - logsumexp(gate[i, kept])
        np.testing.assert_allclose(found[i], expected, rtol=1e-5)
    whole = RenormalisedPersonaMixture(*arrays, num_kept=12)
    np.testing.assert_allclose(
        whole.log_prob(np.asarray(table, np.float32)),
        RenormalisedPersonaMixture(*arrays).log_prob(np.asarray(table, np.float32)),
    )
    # It survives being flattened, as NumPyro does with it.
    leaves, tree = jax.tree.flatten(mixture)
    assert jax.tree.unflatten(tree, leaves).num_kept == 3


def test_of_components_that_the_gate_likes_alike_no_more_are_kept():
    arrays = (np.zeros((2, 3)), np.zeros((2, 4)), np.zeros((3, 4)), np.zeros(3))
    persona, exemplar = (np.broadcast_to(v, (2, 12)) for v in np.divmod(np.arange(12), 4))
    arrays = (*arrays, persona, exemplar, np.zeros((2, 12)), np.ones(1))
    mixture = RenormalisedPersonaMixture(*arrays, num_kept=4)
    kept = np.exp(np.asarray(mixture.candidate_log_probs))
    np.testing.assert_allclose(np.sort(kept, axis=1)[:, -4:], 0.25, rtol=1e-6)
    np.testing.assert_allclose(kept.sum(1), 1, rtol=1e-6)
