"""LoRA: adapters change nothing at first, only they learn, and merging them changes nothing."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mop_jax.errors import DataError, FaultError
from mop_jax.evaluation.baselines import BASELINES, Setting, lora_training
from mop_jax.evaluation.baselines.lora import LoRA, split_for_stopping
from mop_jax.evaluation.baselines.lora_layers import adapted, merged, split_adapters
from mop_jax.evaluation.baselines.lora_training import Example, Settings, train
from mop_jax.inference import checkpoints as checkpoints_module
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.population import Population
from mop_jax.prompts import PromptBuilder

SMALL = {"vocab_size": 120, "max_position": 128}


@pytest.fixture(scope="module")
def lm(make_tiny_lm) -> FlaxLM:
    return make_tiny_lm(**SMALL)


@pytest.fixture(scope="module")
def chat_lm(make_tiny_lm, word_tokenizer) -> FlaxLM:
    return make_tiny_lm(tokenizer=word_tokenizer)


def examples(number: int, seed: int = 0) -> list[Example]:
    """Responses that repeat the prompt's first id, of unequal lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(number):
        prompt = tuple(rng.integers(5, 120, rng.integers(1, 30)).tolist())
        found.append(Example(prompt, (prompt[0],) * int(rng.integers(1, 8)) + (3,)))
    return found


def random_adapters(model, seed=0):
    """The same decoder with adapters that do something."""
    graph, adapters, frozen = split_adapters(model)
    rng = np.random.default_rng(seed)
    drawn = jax.tree.map(lambda leaf: jnp.asarray(0.2 * rng.normal(size=leaf.shape)), adapters)
    return nnx.merge(graph, drawn, frozen)


def logits_of(decoder) -> np.ndarray:
    ids = np.random.default_rng(1).integers(5, 120, (3, 11))
    return np.asarray(FlaxLM(decoder).logits(ids, np.asarray([11, 7, 3])))


def test_new_adapters_leave_the_logits_as_they_are(lm) -> None:
    before = logits_of(lm.decoder)
    model = adapted(lm.decoder, 4, 8.0, jax.random.key(0))
    np.testing.assert_allclose(logits_of(model), before, atol=1e-5)
    assert abs(logits_of(random_adapters(model)) - before).max() > 0.1
    # The model that they were made for is untouched.
    np.testing.assert_array_equal(logits_of(lm.decoder), before)
    _, adapters, frozen = split_adapters(model)
    rank = 4
    sizes = [leaf.shape for leaf in jax.tree.leaves(adapters)]
    assert len(sizes) == 2 * 7
    assert all(rank in shape and shape[0] == lm.config.num_layers for shape in sizes)
    assert len(jax.tree.leaves(frozen)) == len(jax.tree.leaves(nnx.state(lm.decoder)))


@pytest.mark.parametrize("changes", [{}, {"attention_bias": True, "gated_mlp": False}])
def test_merged_weights_give_the_logits_of_the_adapters(make_tiny_lm, changes) -> None:
    decoder = make_tiny_lm(**SMALL, **changes).decoder
    model = random_adapters(adapted(decoder, 3, 6.0, jax.random.key(1)))
    found = logits_of(merged(decoder, model))
    np.testing.assert_allclose(found, logits_of(model), atol=2e-4)
    assert abs(found - logits_of(decoder)).max() > 0.1


def test_a_responses_log_probability_is_the_language_models(lm) -> None:
    some = examples(9)
    expected = lm.log_likelihood([e.prompt for e in some], [e.response for e in some])
    model = adapted(lm.decoder, 2, 4.0, jax.random.key(0))
    shapes = lora_training._shapes(some, 128)
    order = np.arange(9)
    found = []
    for batch in lora_training._batches(some, order, shapes):
        scores = np.asarray(lora_training.response_log_probs(model, batch))
        real = np.asarray(batch.mask).any(axis=1)
        np.testing.assert_array_equal(scores[~real], 0.0)
        found += scores[real].tolist()
    by_length = sorted(range(9), key=lambda i: (lora_training._row_length(some[i]), i))
    np.testing.assert_allclose(found, expected[by_length], atol=1e-3)


def test_only_adapters_have_gradients_and_rematerialising_changes_none(lm) -> None:
    """The gradient of A and B is that of the merged weights by the chain rule."""
    some = examples(6)
    (batch,) = lora_training._batches(some, np.arange(6), {64: lora_training._Shape(6, 64, 9),
                                      32: lora_training._Shape(6, 32, 9)})[:1]  # fmt: skip
    model = random_adapters(adapted(lm.decoder, 3, 6.0, jax.random.key(2)))
    graph, adapters, frozen = split_adapters(model)

    def loss(adapters):
        return lora_training.response_log_probs(nnx.merge(graph, adapters, frozen), batch).sum()

    found = jax.grad(loss)(adapters)
    assert jax.tree.structure(found) == jax.tree.structure(adapters)
    whole_graph, whole = nnx.split(merged(lm.decoder, model))

    def merged_loss(whole):
        return lora_training.response_log_probs(nnx.merge(whole_graph, whole), batch).sum()

    kernel = jax.grad(merged_loss)(whole)["layers"]["self_attn"]["q_proj"]["kernel"][...]
    path = ("layers", "layer", "self_attn", "q_proj")
    own, grad = (dict(nnx.to_flat_state(state)) for state in (adapters, found))
    a, b = own[(*path, "lora_a")][...], own[(*path, "lora_b")][...]
    np.testing.assert_allclose(
        grad[(*path, "lora_a")][...], 2.0 * kernel @ b.swapaxes(1, 2), rtol=2e-2, atol=2e-3
    )
    np.testing.assert_allclose(
        grad[(*path, "lora_b")][...], 2.0 * a.swapaxes(1, 2) @ kernel, rtol=2e-2, atol=2e-3
    )


SETTINGS = Settings(3e-2, 6, 6, 256, 0)


def test_the_loss_decreases_and_the_best_epoch_is_kept(lm) -> None:
    before = [np.asarray(leaf) for leaf in jax.tree.leaves(nnx.state(lm.decoder))]
    model = adapted(lm.decoder, 4, 8.0, jax.random.key(0))
    some, held_out = examples(60), examples(12, seed=1)
    trained = train(model, some, held_out, SETTINGS)
    assert len(trained.held_out) == 7
    assert min(trained.held_out) < 0.8 * trained.held_out[0]
    assert trained.losses[-5:].mean() < trained.losses[:5].mean()
    after = jax.tree.leaves(nnx.state(lm.decoder))
    assert all((a == np.asarray(b)).all() for a, b in zip(before, after, strict=True))
    graph, _, frozen = split_adapters(model)
    tuned = FlaxLM(merged(lm.decoder, nnx.merge(graph, trained.adapters, frozen)))
    scores = tuned.log_likelihood([e.prompt for e in held_out], [e.response for e in held_out])
    np.testing.assert_allclose(-scores.mean(), min(trained.held_out), rtol=1e-3)


def test_training_stops_early(lm) -> None:
    """Responses at random can only be learnt by heart."""
    rng = np.random.default_rng(0)

    def noise(number):
        ids = rng.integers(5, 120, (number, 10)).tolist()
        return [Example(tuple(row[:4]), tuple(row[4:])) for row in ids]

    model = adapted(lm.decoder, 8, 16.0, jax.random.key(0))
    trained = train(model, noise(24), noise(24), SETTINGS._replace(
        num_epochs=30, patience=2, learning_rate=3e-2))  # fmt: skip
    assert len(trained.held_out) < 31
    best = int(np.argmin(trained.held_out))
    assert len(trained.held_out) - 1 - best == 2


class Killed(Exception):
    """Stands for a kill."""


def test_a_killed_training_goes_on_to_the_same_adapters(lm, tmp_path, monkeypatch) -> None:
    some, held_out = examples(30), examples(6, seed=1)
    model = adapted(lm.decoder, 2, 4.0, jax.random.key(0))
    whole = train(model, some, held_out, SETTINGS)
    steps = len(whole.losses)
    for kill_at in (2, steps // 2, steps - 1):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints_module, "SECONDS_BETWEEN", 0.0)
            opened = lora_training.open_checkpoints(tmp_path / str(kill_at), "x" * 64)
        save = opened.save

        def dying(progress, save=save, kill_at=kill_at):
            if len(progress.losses) == kill_at:
                save(progress)
                raise Killed

        monkeypatch.setattr(opened, "save", dying)
        with pytest.raises(Killed):
            train(model, some, held_out, SETTINGS, checkpoints=opened)
        opened.close()
        again = lora_training.open_checkpoints(tmp_path / str(kill_at), "x" * 64)
        resumed = train(model, some, held_out, SETTINGS, checkpoints=again)
        again.close()
        np.testing.assert_array_equal(resumed.losses, whole.losses)
        assert resumed.held_out == whole.held_out
        for a, b in zip(*(jax.tree.leaves(t.adapters) for t in (resumed, whole)), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.fixture
def setting(chat_lm, tmp_path) -> Setting:
    rng = np.random.default_rng(0)
    population = Population(
        ids=[str(i) for i in range(40)],
        contexts=[f"w{60 + i} w7" for i in range(40)],
        responses=[f"w80 w81 w{82 + rng.integers(3)}" for _ in range(40)],
        groups=[f"g{i % 10}" for i in range(40)],
    )
    return Setting(
        train=population,
        language_model=chat_lm,
        prompts=PromptBuilder(chat_lm.tokenizer),
        encode=lambda texts: np.zeros((len(texts), 2)),
        seed=9,
        max_new_tokens=6,
        cache=tmp_path / "cache",
    )


QUICK = LoRA(rank=4, learning_rate=3e-2, num_epochs=5, patience=5, tokens_per_batch=192)


def test_a_tuned_model_writes_what_it_was_shown(setting, chat_lm, monkeypatch) -> None:
    before = chat_lm.fingerprint
    responder = QUICK.fit(setting)
    report = responder.report
    assert report["records"] + report["held_out_records"] == 40
    assert report["held_out_nats"][report["best_epoch"]] < 0.7 * report["held_out_nats"][0]
    found = responder.respond(["w61 w7", "w75 w7"], num_samples=12)
    plain = BASELINES["zero_shot"].fit(setting).respond(["w61 w7", "w75 w7"], num_samples=12)

    def share(responses) -> float:
        words = [word for r in responses for word in r.text.split()]
        return float(np.mean([word in {f"w{n}" for n in range(80, 85)} for word in words]))

    # Of 6,060 words; without training one of them comes in 1,200.
    assert share(found) > share(plain) + 0.05
    assert all(r.shown == () for r in found)
    assert responder.respond(["w61 w7", "w75 w7"], num_samples=12, skip={1, 2}) == [
        r for r in found if r.sample not in {1, 2}
    ]
    # The language model of the setting is as it was, and the adapters are found again.
    assert chat_lm.fingerprint == before
    assert setting.language_model is chat_lm
    (file,) = setting.cache.glob("lora-*.safetensors")
    monkeypatch.setattr(lora_training, "train", lambda *_, **__: pytest.fail("trained again"))
    again = QUICK.fit(setting)
    assert again.report == report
    assert again.respond(["w61 w7", "w75 w7"], num_samples=12) == found
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(DataError, match="is damaged; delete it"):
        QUICK.fit(setting)


def test_refusals(setting, make_setting, make_tiny_lm, word_tokenizer) -> None:
    with pytest.raises(DataError, match=r"'lora' trains weights, .* accepted is a FlaxLM"):
        LoRA().fit(make_setting())
    for changes in ({"rank": 0}, {"learning_rate": 0.0}, {"num_epochs": 0}):
        with pytest.raises(DataError, match="LoRA needs a positive rank"):
            LoRA(**changes)
    narrow = make_tiny_lm(tokenizer=word_tokenizer, max_position=9)
    with pytest.raises(DataError, match=r"Record \d+ takes 1\d tokens .* window holds 9"):
        QUICK.fit(Setting(**{**vars(setting), "language_model": narrow}))
    with pytest.raises(FaultError, match="not finite in step"):
        LoRA(learning_rate=1e30, num_epochs=3, patience=3).fit(setting)


def test_whole_groups_say_when_to_stop(setting) -> None:
    learnt, held_out = split_for_stopping(setting.train, 0)
    assert (len(learnt), len(held_out)) == (36, 4)
    assert not set(learnt.groups) & set(held_out.groups)
    single = setting.train.take(range(20))
    lone = Population(single.ids, single.contexts, single.responses)
    assert [len(part) for part in split_for_stopping(lone, 0)] == [18, 2]
    large = Population(single.ids, single.contexts, single.responses, groups=["a"] * 8 + ["b"] * 12)
    assert [len(part) for part in split_for_stopping(large, 0)] == [12, 8]
