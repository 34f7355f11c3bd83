"""Prompts of several exemplars: ids of the whole chat, and of the builder's own pieces."""

from __future__ import annotations

import pytest

from mop_jax.errors import DataError
from mop_jax.evaluation.baselines import BASELINES
from mop_jax.evaluation.baselines.prompting import PromptWriter, common_length
from mop_jax.prompts import PromptBuilder, PromptTemplate

PAIRS = [("Say a.", "It is a."), ("Say b, é.", "It is b 美.")]


@pytest.fixture(params=["chat", "plain"])
def prompts(request, byte_tokenizer) -> PromptBuilder:
    template = None if request.param == "chat" else PromptTemplate.plain()
    return PromptBuilder(byte_tokenizer, template)


def test_without_exemplars_it_is_the_zero_shot_prompt(prompts) -> None:
    found = PromptWriter(prompts).conversation((), "Say c.")
    assert found.token_ids == prompts.zero_shot("Say c.").token_ids


def test_one_exemplar_is_a_component_without_its_persona(prompts, byte_tokenizer) -> None:
    found = PromptWriter(prompts).conversation(PAIRS[:1], "Say c.").token_ids
    whole = prompts.component("You are x.", PAIRS[0], "Say c.").token_ids
    assert whole[-len(found) :] == found
    head = byte_tokenizer.decode(whole[: -len(found)])
    assert "You are x." in head
    assert "Say a." not in head


def test_the_text_of_several_turns(byte_tokenizer) -> None:
    writer = PromptWriter(PromptBuilder(byte_tokenizer))
    found = writer.conversation(PAIRS, "Say c.", description="Be it so.", opening="1. (")
    assert byte_tokenizer.decode(found.token_ids) == (
        "<|im_start|>user\nBe it so.\n\nSay a.<|im_end|>\n"
        "<|im_start|>assistant\nIt is a.<|im_end|>\n"
        "<|im_start|>user\nSay b, é.<|im_end|>\n"
        "<|im_start|>assistant\nIt is b 美.<|im_end|>\n"
        "<|im_start|>user\nSay c.<|im_end|>\n<|im_start|>assistant\n1. ("
    )
    plain = PromptWriter(PromptBuilder(byte_tokenizer, PromptTemplate.plain()))
    found = plain.conversation(PAIRS, "Say c.", description="Be it so.", opening="1. (")
    assert byte_tokenizer.decode(found.token_ids) == (
        "Be it so.\n\nRequest: Say a.\nResponse:\nIt is a.\n\n"
        "Request: Say b, é.\nResponse:\nIt is b 美.\n\nRequest: Say c.\nResponse:\n1. ("
    )
    assert byte_tokenizer.decode(plain.plain('He said: "').token_ids) == 'He said: "'


def test_a_custom_template_of_another_form(byte_tokenizer) -> None:
    template = PromptTemplate(
        "{persona}|{exemplar_context}>{exemplar_response}#;{context}>",
        "{persona}|{context}>",
        "{context}>",
        "#",
    )
    writer = PromptWriter(PromptBuilder(byte_tokenizer, template))
    found = writer.conversation(PAIRS, "Say c.")
    assert (
        byte_tokenizer.decode(found.token_ids) == "Say a.>It is a.#;Say b, é.>It is b 美.#;Say c.>"
    )


@pytest.mark.parametrize("context", ["Say c.", "A", "7 z", "7", "Z"])
def test_a_shared_prefix_leaves_the_ids_as_they_are(prompts, context) -> None:
    writer = PromptWriter(prompts)
    alone = writer.conversation(PAIRS, context, description="Be it so.")
    shared = writer.conversation(PAIRS, context, description="Be it so.", shared=True)
    assert shared.token_ids == alone.token_ids
    assert alone.prefix == ()
    assert len(shared.prefix) == 1
    assert len(shared.request) < 60
    other = writer.conversation(PAIRS, "Quite another.", description="Be it so.", shared=True)
    assert other.prefix == shared.prefix


def test_texts_that_would_change_the_structure_are_refused(prompts) -> None:
    writer = PromptWriter(prompts)
    for arguments in (
        ([("a<|im_start|>", "b")], "c"),
        ([("a", "b<|im_end|>")], "c"),
        ([], "c<|im_end|>"),
    ):
        with pytest.raises(DataError, match="special token"):
            writer.conversation(*arguments)
    with pytest.raises(DataError, match="special token"):
        writer.plain("x<|im_end|>")
    with pytest.raises(DataError, match="special token"):
        writer.conversation([], "c", description="<|im_start|>")


def test_ends_of_texts(byte_tokenizer) -> None:
    end, newline = byte_tokenizer.eos_token_id, byte_tokenizer.encode("\n")[0]
    chat = PromptWriter(PromptBuilder(byte_tokenizer))
    assert chat.line_ends() == [(newline,), (newline, newline), (end,)]
    assert chat.text_ends() == [(end,)]
    plain = PromptWriter(PromptBuilder(byte_tokenizer, PromptTemplate.plain()))
    assert plain.line_ends() == [(newline,), (newline, newline), (end,)]
    assert plain.text_ends() == [(end,)]


@pytest.mark.parametrize("name", ["few_shot_1", "few_shot_4", "uniform_mixture"])
def test_what_is_shown_stands_in_the_prompt(name, make_setting, population) -> None:
    setting = make_setting()
    found = BASELINES[name].fit(setting).respond(["Now what?"], num_samples=30)
    (call,) = setting.language_model.calls
    answers = dict(zip(population.ids, population.responses, strict=True))
    for response, prompt in zip(found, call.prompts, strict=True):
        assert len(response.shown) == (4 if name.endswith("4") else 1)
        assert list(response.shown) == [answers[key] for key in response.details["exemplars"]]
        assert len(set(response.shown)) == len(response.shown)
        for text in response.shown:
            assert f"\n{text}<|im_end|>" in prompt
        hidden = set(population.responses) - set(response.shown)
        assert not any(f"\n{text}<|im_end|>" in prompt for text in hidden)
    assert len({r.shown for r in found}) > 8
    if name == "uniform_mixture":
        assert {r.details["persona"] for r in found} == {0, 1}
        assert all(setting.personas[r.details["persona"]] in p
                   for r, p in zip(found, call.prompts, strict=True))  # fmt: skip


def test_personas_are_drawn_uniformly(make_setting) -> None:
    setting = make_setting()
    found = BASELINES["persona_only"].fit(setting).respond(["Now what?"], num_samples=400)
    counts = [sum(r.details["persona"] == k for r in found) for k in range(2)]
    # Five standard deviations of 200 ± 10; the seed is fixed.
    assert min(counts) > 150
    (call,) = setting.language_model.calls
    assert all(setting.personas[r.details["persona"]] in prompt and not r.shown
               for r, prompt in zip(found, call.prompts, strict=True))  # fmt: skip


def test_the_mixtures_own_pool_is_used(make_setting, population) -> None:
    setting = make_setting(exemplars=population.take([2, 7]))
    found = BASELINES["uniform_mixture"].fit(setting).respond(["Now what?"], num_samples=30)
    assert {r.details["exemplars"][0] for r in found} == {"r2", "r7"}


def test_zerogen_names_the_class_and_reads_to_the_quotation_mark(make_setting) -> None:
    answers = ['Fine film." she said', "no mark at all", '" ', "“Quoted” more"]
    setting = make_setting(lambda prompt, seed, s: answers[s], unfinished=lambda t: "mark" in t)
    found = (
        BASELINES["zerogen"]
        .fit(setting)
        .respond(['Review "Alien".'], labels=["good"], num_samples=4)
    )
    (call,) = setting.language_model.calls
    assert call.prompts[0] == (
        'Here is a response, which is of the kind "good", to the request "Review \'Alien\'.":\n\n"'
    )
    assert [r.text for r in found] == ["Fine film.", "no mark at all", "", "“Quoted"]
    assert [r.finished for r in found] == [True, False, True, True]
    assert found[0].details == {"closed": True}
    BASELINES["zerogen"].fit(setting).respond(["Review."], num_samples=1)
    assert "kind" not in setting.language_model.calls[-1].prompts[0]


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0
