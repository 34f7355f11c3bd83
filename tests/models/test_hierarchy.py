"""Learnt scales, sparse personas and effects of groups: definitions, and what they do to a fit."""

import jax
import numpy as np
import pytest
from numpyro import handlers

from mop_jax.errors import DataError
from mop_jax.inference import fit_svi, gate_at, make_posterior, posterior_draws
from mop_jax.models import GATES, full_table_data, mixture_of_personas
from tests.models.programs import draw_sites, mixture_at

BLOCKS = ("persona", "persona_context", "exemplar", "exemplar_persona", "exemplar_context")


def test_the_hierarchical_gate_is_the_linear_one_with_scaled_weights(make_data):
    data = make_data()
    parts = {"width": 2, "prior_scale": 0.7}
    sites = draw_sites(data, gate="hierarchical", gate_width=2)
    assert {f"gate.{block}_scale" for block in BLOCKS} < sites.keys()
    scaled = {
        f"gate.{block}_weight": sites[f"gate.{block}_scale"] * sites[f"gate.{block}_weight"]
        for block in BLOCKS
    }
    found = handlers.substitute(GATES["hierarchical"], sites)(data, **parts)(data)
    expected = handlers.substitute(GATES["linear"], scaled)(data, **parts)(data)
    for left, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(left, right, rtol=1e-6)


def planted(num_records=300, seed=0, gain=4.0):
    """Records whose contexts say which persona speaks, and nothing of which exemplar is apt."""
    rng = np.random.default_rng(seed)
    context = rng.normal(size=(num_records, 6))
    personas = np.eye(3, 6)
    speaker = (2 * context[:, :3] + rng.gumbel(size=(num_records, 3))).argmax(1)
    table = rng.normal(-30, 0.1, (num_records, 3, 4))
    table[np.arange(num_records), speaker] += gain
    table[np.arange(num_records), :, rng.integers(4, size=num_records)] += gain
    return full_table_data(
        log_likelihood=table,
        context_embeddings=context,
        persona_embeddings=personas,
        exemplar_embeddings=rng.normal(size=(4, 6)),
    )


def test_a_block_that_carries_nothing_shrinks_away_and_the_one_that_does_grows():
    """Posterior medians of the scales, whose prior median is 1.

    NUTS has 1.7 for the block that carries all, and 0.1 to 0.35 for the others; 800 steps of the
    guide are on their way there.
    """
    fit = fit_svi(
        jax.random.key(0),
        planted(),
        model_kwargs={"gate": "hierarchical", "temperature": False, "gate_width": 4},
        num_steps=800,
        num_particles=2,
        progress=False,
    )
    draws = posterior_draws(fit, jax.random.key(1), 400).samples
    scale = {block: float(np.median(draws[f"gate.{block}_scale"])) for block in BLOCKS}
    others = [scale[block] for block in BLOCKS if block != "persona_context"]
    assert max(others) < 0.75 < 1.15 < scale["persona_context"]


@pytest.mark.parametrize(
    "kwargs",
    [{"gate": "hierarchical"}, {"temperature": "pooled"}, {"sparse_personas": True}],
    ids=str,
)
def test_a_point_estimate_of_a_learnt_scale_is_refused(make_data, kwargs):
    for guide in ("AutoDelta", "AutoLaplaceApproximation"):
        with pytest.raises(DataError, match=f"it runs away; {guide} needs scales that are given"):
            fit_svi(jax.random.key(0), make_data(), model_kwargs=kwargs, guide=guide)
    grouped = make_data(member_of={"age": np.arange(6) % 2})
    with pytest.raises(DataError, match=r"The scale group_scale\.age of a prior is learnt"):
        fit_svi(jax.random.key(0), grouped, guide="AutoDelta")


def test_sparse_personas_add_weights_to_any_gate(make_data):
    data = make_data()
    draw = draw_sites(data, sparse_personas=True)
    without = {k: v for k, v in draw.items() if "persona_weights" not in k}
    found = mixture_at(draw, data, sparse_personas=True).persona_logits
    added = draw["gate.persona_weights_scale"] * draw["gate.persona_weights"]
    np.testing.assert_allclose(
        found, mixture_at(without, data).persona_logits + added, rtol=1e-5, atol=1e-6
    )


def test_of_many_personas_the_few_that_speak_are_found():
    """Two of twenty speak; the posterior's effective number is near two, without the prior ten."""
    rng = np.random.default_rng(1)
    number, personas = 200, 20
    table = rng.normal(-30, 0.1, (number, personas, 2))
    table[np.arange(number), rng.integers(2, size=number)] += 5
    data = full_table_data(
        log_likelihood=table,
        context_embeddings=rng.normal(size=(number, 6)),
        persona_embeddings=rng.normal(size=(personas, 6)),
        exemplar_embeddings=rng.normal(size=(2, 6)),
    )

    def effective(posterior):
        share = np.exp(np.asarray(gate_at(posterior, data.context_embeddings).persona_log_probs))
        share = share.mean(1)
        return np.median(np.exp(-(share * np.log(share)).sum(1)))

    kwargs = {"sparse_personas": True, "temperature": False, "gate_width": 2}
    fit = fit_svi(
        jax.random.key(0), data, model_kwargs=kwargs, num_steps=800, num_particles=2, progress=False
    )
    assert 1.8 < effective(posterior_draws(fit, jax.random.key(1), 200)) < 3.5
    keys = range(50)
    prior = [draw_sites(data, seed=seed, **kwargs) for seed in keys]
    stacked = {name: np.stack([draw[name] for draw in prior]) for name in prior[0]}
    assert effective(make_posterior(stacked, data, model_kwargs=kwargs)) > 5


def test_groups_shift_the_personas_of_their_records(make_data):
    codes = np.array([0, 1, 1, 2, 0, -1])
    data = make_data(member_of={"age": codes}, num_levels={"age": 3})
    draw = draw_sites(data)
    assert draw["group_effect.age"].shape == (4, 3)
    effect = draw["group_scale.age"] * draw["group_effect.age"]
    found = mixture_at(draw, data).persona_logits
    plain = {k: v for k, v in draw.items() if not k.startswith("group")}
    without = mixture_at(plain, make_data()).persona_logits
    # A record whose group is not known has no effect of it, and teaches none.
    expected = np.where((codes >= 0)[:, None], effect[codes], 0.0)
    np.testing.assert_allclose(found - without, expected, rtol=1e-4, atol=1e-5)
    assert "group_effect.age" not in draw_sites(data, group_effects=False)
    # Part of the records, and new contexts of known and of unknown groups.
    np.testing.assert_allclose(
        mixture_at(draw, data.take(np.array([3, 1]))).persona_logits,
        np.asarray(found)[[3, 1]],
        rtol=1e-6,
    )
    posterior = make_posterior({k: np.asarray(v)[None] for k, v in draw.items()}, data)
    contexts = np.asarray(data.context_embeddings)
    known = gate_at(posterior, contexts, member_of={"age": codes}).persona_log_probs[0]
    new = jax.nn.log_softmax(without + effect[codes])  # −1 of a new context: a new group
    np.testing.assert_allclose(known, new, rtol=1e-5, atol=1e-6)
    unknown = gate_at(posterior, contexts).persona_log_probs[0]
    np.testing.assert_allclose(
        unknown, jax.nn.log_softmax(without + effect[-1]), rtol=1e-5, atol=1e-6
    )
    with pytest.raises(DataError, match="names the grouping 'sex'; there are age"):
        gate_at(posterior, contexts, member_of={"sex": codes})
    with pytest.raises(DataError, match="holds 7, and there are 3 levels"):
        gate_at(posterior, contexts, member_of={"age": np.full(6, 7)})


def test_minibatches_see_the_groups_of_their_own_records(make_data):
    """A batch of all records in another order has the same density."""
    data = make_data(member_of={"age": np.array([0, 1, 1, 2, 0, 1])})
    draw = draw_sites(data)
    order = np.array([5, 3, 1, 0, 2, 4])
    whole = mixture_at(draw, data).log_prob(data.log_likelihood)
    part = data.take(jax.numpy.asarray(order))
    np.testing.assert_allclose(
        mixture_at(draw, part).log_prob(part.log_likelihood), whole[order], rtol=1e-5
    )
    trace = handlers.trace(
        handlers.seed(handlers.substitute(mixture_of_personas, draw), 0)
    ).get_trace(data, subsample_size=4)
    assert trace["response"]["fn"].persona_logits.shape == (4, 3)


def test_the_default_guide_finds_the_posterior_of_learnt_scales_on_a_real_table(rt_table):
    """The joint mode of scales and weights lies at e^5: the guide must not start from there."""
    names = ("log_likelihood", *(f"{k}_embeddings" for k in ("context", "persona", "exemplar")))
    data = full_table_data(**{name: rt_table[name] for name in names})
    kwargs = {"gate": "hierarchical", "temperature": False}
    fit = fit_svi(jax.random.key(0), data, model_kwargs=kwargs, num_steps=300, progress=False)
    draws = posterior_draws(fit, jax.random.key(1), 200).samples
    scales = {block: np.median(draws[f"gate.{block}_scale"]) for block in BLOCKS}
    assert all(0.1 < scale < 5 for scale in scales.values())
    # Within the first steps it is near where it ends: nothing ran away.
    assert fit.losses[:20].mean() - fit.losses[-20:].mean() < 0.5 * data.num_records
