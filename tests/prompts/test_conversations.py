"""Prompts of several exemplars: ids of the whole chat, and of the builder's own pieces."""

from __future__ import annotations

import pytest

from mop_jax.errors import DataError
from mop_jax.prompts import PromptBuilder, PromptTemplate
from mop_jax.prompts.chat import opened
from mop_jax.prompts.conversations import ConversationBuilder, common_length
from mop_jax.prompts.tokens import begin_ids, first_special
from tests.prompts.chat_tokenizers import FAMILIES, make_tokenizer

PAIRS = [("Say a.", "It is a."), ("Say b, é.", "It is b 美.")]


@pytest.fixture(params=["chat", "plain"])
def prompts(request, byte_tokenizer) -> PromptBuilder:
    template = None if request.param == "chat" else PromptTemplate.plain()
    return PromptBuilder(byte_tokenizer, template)


def test_without_exemplars_it_is_the_zero_shot_prompt(prompts) -> None:
    found = ConversationBuilder(prompts).conversation((), "Say c.")
    assert found.token_ids == prompts.zero_shot("Say c.").token_ids


def test_one_exemplar_is_a_component_without_its_persona(prompts, byte_tokenizer) -> None:
    found = ConversationBuilder(prompts).conversation(PAIRS[:1], "Say c.").token_ids
    whole = prompts.component("You are x.", PAIRS[0], "Say c.").token_ids
    assert whole[-len(found) :] == found
    head = byte_tokenizer.decode(whole[: -len(found)])
    assert "You are x." in head
    assert "Say a." not in head


def test_the_text_of_several_turns(byte_tokenizer) -> None:
    writer = ConversationBuilder(PromptBuilder(byte_tokenizer))
    found = writer.conversation(PAIRS, "Say c.", description="Be it so.", opening="1. (")
    assert byte_tokenizer.decode(found.token_ids) == (
        "<|im_start|>user\nBe it so.\n\nSay a.<|im_end|>\n"
        "<|im_start|>assistant\nIt is a.<|im_end|>\n"
        "<|im_start|>user\nSay b, é.<|im_end|>\n"
        "<|im_start|>assistant\nIt is b 美.<|im_end|>\n"
        "<|im_start|>user\nSay c.<|im_end|>\n<|im_start|>assistant\n1. ("
    )
    plain = ConversationBuilder(PromptBuilder(byte_tokenizer, PromptTemplate.plain()))
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
    writer = ConversationBuilder(PromptBuilder(byte_tokenizer, template))
    found = writer.conversation(PAIRS, "Say c.")
    assert (
        byte_tokenizer.decode(found.token_ids) == "Say a.>It is a.#;Say b, é.>It is b 美.#;Say c.>"
    )


@pytest.mark.parametrize("context", ["Say c.", "A", "7 z", "7", "Z"])
def test_a_shared_prefix_leaves_the_ids_as_they_are(prompts, context) -> None:
    writer = ConversationBuilder(prompts)
    alone = writer.conversation(PAIRS, context, description="Be it so.")
    shared = writer.conversation(PAIRS, context, description="Be it so.", shared=True)
    assert shared.token_ids == alone.token_ids
    assert alone.prefix == ()
    assert len(shared.prefix) == 1
    assert len(shared.request) < 60
    other = writer.conversation(PAIRS, "Quite another.", description="Be it so.", shared=True)
    assert other.prefix == shared.prefix


def test_texts_that_would_change_the_structure_are_refused(prompts) -> None:
    writer = ConversationBuilder(prompts)
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
    chat = ConversationBuilder(PromptBuilder(byte_tokenizer))
    assert chat.line_ends() == [(newline,), (newline, newline), (end,)]
    assert chat.text_ends() == [(end,)]
    plain = ConversationBuilder(PromptBuilder(byte_tokenizer, PromptTemplate.plain()))
    assert plain.line_ends() == [(newline,), (newline, newline), (end,)]
    assert plain.text_ends() == [(end,)]


def test_common_length() -> None:
    assert common_length([1, 2, 3], [1, 2, 4]) == 2
    assert common_length([1, 2], [1, 2, 4]) == 2
    assert common_length([], [1]) == 0


def test_a_component_of_one_exemplar_is_that_of_the_builder(prompts) -> None:
    writer = ConversationBuilder(prompts)
    one = writer.component("You are x.", PAIRS[:1], "Say c.")
    assert one.token_ids == prompts.component("You are x.", PAIRS[0], "Say c.").token_ids
    none = writer.component("You are x.", [], "Say c.")
    assert none.token_ids == prompts.persona_only("You are x.", "Say c.").token_ids


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deepseek_r1_distill"}))
def test_a_component_of_several_exemplars_has_the_ids_of_the_whole_chat(family) -> None:
    tokenizer = make_tokenizer("llama3", family)
    prompts = PromptBuilder(tokenizer)
    writer = ConversationBuilder(prompts)
    source = prompts.template.source
    one = writer.component("You are x.", PAIRS[:1], "Say c.").token_ids
    assert one == prompts.component("You are x.", PAIRS[0], "Say c.").token_ids
    found = writer.component("You are x.", PAIRS, "Say c.").token_ids
    described = f"You are x. {prompts.instruction}"
    turns = [
        {"role": role, "content": text}
        for pair in (*PAIRS, ("Say c.", "It is c."))
        for role, text in zip(("user", "assistant"), pair)
    ]
    system = {"role": "system", "content": described}
    turns = [system, *turns] if source._system_turn else opened(described, turns)
    text = source.render(turns)
    whole = [*begin_ids(tokenizer, text), *tokenizer.encode(text, add_special_tokens=False)]
    response = list(prompts.response("It is c."))
    if first_special(tokenizer, text[text.rfind("It is c.") :]) is None:
        response.pop()  # the template writes no end of a turn
    assert whole[: len(found) + len(response)] == [*found, *response]


def test_the_text_of_a_component_of_two_exemplars(byte_tokenizer) -> None:
    writer = ConversationBuilder(PromptBuilder(byte_tokenizer, instruction="Do it."))
    found = writer.component("You are x.", PAIRS, "Say c.")
    assert byte_tokenizer.decode(found.token_ids) == (
        "<|im_start|>system\nYou are x. Do it.<|im_end|>\n"
        "<|im_start|>user\nSay a.<|im_end|>\n"
        "<|im_start|>assistant\nIt is a.<|im_end|>\n"
        "<|im_start|>user\nSay b, é.<|im_end|>\n"
        "<|im_start|>assistant\nIt is b 美.<|im_end|>\n"
        "<|im_start|>user\nSay c.<|im_end|>\n<|im_start|>assistant\n"
    )
    template = PromptTemplate.plain()
    plain = ConversationBuilder(PromptBuilder(byte_tokenizer, template, instruction="Do it."))
    found = plain.component("You are x.", PAIRS, "Say c.")
    assert byte_tokenizer.decode(found.token_ids) == (
        "You are x.\nDo it.\n\nRequest: Say a.\nResponse:\nIt is a.\n\n"
        "Request: Say b, é.\nResponse:\nIt is b 美.\n\nRequest: Say c.\nResponse:\n"
    )
    with pytest.raises(DataError, match="special token"):
        writer.component("You are<|im_end|>", PAIRS, "Say c.")
