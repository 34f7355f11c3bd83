"""Components of closed questions: what is shown to whom does not depend on the answer."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from scipy.special import logsumexp
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mop_jax.components import Components, Persona
from mop_jax.errors import DataError
from mop_jax.inference import (
    fit_svi,
    posterior_draws,
    posterior_predictive_log_prob,
    uniform_log_prob,
)
from mop_jax.likelihoods.scoring import score_candidates
from mop_jax.likelihoods.store import LikelihoodStore
from mop_jax.lm.base import TemperatureGrid
from mop_jax.population import Population
from mop_jax.prompts import PromptBuilder

ANSWERS = ("yes", "no", "maybe", "car", "bike")
WORDS = (
    *("<unk>", "<s>", "<turn>", "<end>", "system", "user", "assistant", "own", "young", "old"),
    *ANSWERS,
)
GRID = TemperatureGrid(0.25, (5, 4, 3))
TURNS = (
    "{% for message in messages %}<turn> {{ message['role'] }} {{ message['content'] }} <end> "
    "{% endfor %}{% if add_generation_prompt %}<turn> assistant {% endif %}"
)


@pytest.fixture(scope="module")
def language_model(make_tiny_lm):
    """A random model of fifteen words: five answers hold a good part of its probability."""
    backend = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<turn>"],
        chat_template=TURNS,
    )
    return make_tiny_lm(seed=23, tokenizer=tokenizer, vocab_size=len(WORDS))


@pytest.fixture(scope="module")
def people() -> Population:
    """Twenty people and one question; four of five say yes."""
    answers = ["yes", "yes", "no", "yes", "yes"] * 4
    return Population([f"p{i}" for i in range(20)], ["own car"] * 20, answers)


@pytest.fixture(scope="module")
def components(people) -> Components:
    """Two personas, the exemplars yes and no."""
    rng = np.random.default_rng(0)
    personas = [Persona("young"), Persona("old")]
    return Components(
        personas, people.take([1, 2]), rng.normal(size=(2, 6)), rng.normal(size=(2, 6))
    )


def scored(components, records, language_model, folder, *, held_out):
    """Full candidates of records that all have the same context."""
    rng = np.random.default_rng(1)
    context = np.tile(rng.normal(size=(1, 6)), (len(records), 1))
    candidates = components.propose(
        records, context, rng.normal(size=(len(records), 6)), 4, held_out=held_out
    )
    assert candidates.method == "full"
    prompts = PromptBuilder(language_model.tokenizer, instruction="own")
    with LikelihoodStore(folder, "tiny", GRID) as store:
        found = score_candidates(
            records,
            candidates,
            components.persona_texts,
            components.exemplar_texts,
            prompts,
            store,
            language_model,
        )
    data = components.data(
        records, context, candidates, found.log_likelihood, GRID, held_out=held_out
    )
    return data, found


@pytest.fixture(scope="module")
def posterior(components, people, language_model, tmp_path_factory):
    """A short fit: any gate will do."""
    data, _ = scored(
        components, people, language_model, tmp_path_factory.mktemp("train"), held_out=False
    )
    fit = fit_svi(jax.random.key(0), data, num_steps=5, progress=False)
    return posterior_draws(fit, jax.random.key(1), 3)


def test_probabilities_of_all_answers_sum_to_no_more_than_one(
    components, language_model, posterior, tmp_path
):
    """Exactly the components' own sums under the gate: one mask stands behind all answers."""
    asked = Population(list("abcde"), ["own car"] * 5, list(ANSWERS))
    data, found = scored(components, asked, language_model, tmp_path, held_out=True)
    assert not data.leave_out.any()
    assert len(found.triples) == 5 * 4
    sums = np.exp(found.scores[:, GRID.unit_index]).reshape(5, 4).sum(axis=0)
    assert (sums <= 1).all()
    assert sums.max() > 0.1
    total = np.exp(uniform_log_prob(data)).sum()
    assert total == pytest.approx(sums.mean(), rel=1e-4)
    assert np.exp(posterior_predictive_log_prob(posterior, data)).sum() <= 1
    # With a mask that looks at the answer, yes is shown to those who say no and the other way
    # round: no distribution any more, and not what was asserted above.
    probs = np.exp(found.scores[:, GRID.unit_index]).reshape(5, 2, 2)
    masked = probs[0, :, 1].mean() + probs[1, :, 0].mean() + probs[2:].mean(axis=(1, 2)).sum()
    assert abs(masked / total - 1) > 0.005


def test_a_short_answer_is_left_out_for_its_own_record_only(components, people):
    mask = components.leave_out(people)
    assert np.argwhere(mask).tolist() == [[1, 0], [2, 1]]
    assert not components.leave_out(people, held_out=True).any()


def test_group_masks_are_known_before_the_answer(components, people):
    groups = [f"g{i % 4}" for i in range(20)]
    grouped = dataclasses.replace(people, groups=groups)
    by_group = dataclasses.replace(components, exemplars=grouped.take([1, 2]), leave_out_by="group")
    swapped = dataclasses.replace(grouped, responses=people.responses[::-1])
    masks = [by_group.leave_out(records, held_out=True) for records in (grouped, swapped)]
    np.testing.assert_array_equal(*masks)
    np.testing.assert_array_equal(masks[0][:, 0], np.asarray(groups) == "g1")


def test_held_out_records_that_are_exemplars_are_refused(components):
    long = "a very long answer that nobody else would ever give"
    pool = Population(["p1", "p2"], ["own car"] * 2, [long, "no"])
    shown = dataclasses.replace(components, exemplars=pool)
    asked = Population(["x", "y"], ["own bike", "own car"], [long, "no"])
    vectors = np.ones((2, 6))
    with pytest.raises(DataError, match="Held-out record x has the same long response"):
        shown.propose(asked, vectors, vectors, 4, held_out=True)
    assert shown.propose(asked, vectors, vectors, 4).method == "full"


def test_rounds_leave_out_too_and_use_the_gate(components, people, posterior):
    """An extended set of training records never holds a record's own exemplar."""
    rng = np.random.default_rng(2)
    texts, contexts = rng.normal(size=(20, 6)), rng.normal(size=(20, 6))
    first = components.propose(people, contexts, texts, 1, seed=3)
    scores = rng.normal(size=(20, 1))
    drawn = {}
    for name, gate in (("gate", posterior), ("uniform", None)):
        extended = components.extend(
            people, contexts, texts, first, scores, 2, seed=4, posterior=gate
        )
        drawn[name] = extended
        for i, j in ((1, 0), (2, 1)):
            assert (extended.exemplar_index[i] != j).all()
        assert (extended.log_weight > -np.inf).sum(axis=1).tolist() == [2] * 20
        assert (logsumexp(extended.log_weight, axis=1) >= 0).all()
    # The same draws, other inclusion probabilities.
    assert not np.array_equal(drawn["gate"].log_weight, drawn["uniform"].log_weight)
