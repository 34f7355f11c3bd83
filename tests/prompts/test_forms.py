"""Forms of prompts by name, and one of somebody's own."""

from __future__ import annotations

import pytest

from mop_jax.config import parse_config
from mop_jax.errors import DataError
from mop_jax.prompts import PROMPT_FORMS, PromptBuilder, PromptTemplate, make_template
from tests.prompts.chat_tokenizers import make_tokenizer

REST = (
    "population: {path: a.csv, context: q, response: a}\n"
    "language_model: {path: m}\nencoder: {path: e}\n"
)


def settings_of(prompt: str):
    return parse_config(f"prompt: {prompt}\n{REST}", "my.yaml").prompt


def test_auto_is_chat_where_there_is_a_chat_template():
    tokenizer = make_tokenizer("qwen", "qwen2")
    settings = settings_of("{}")
    chat = make_template("auto", tokenizer, settings)
    assert chat == make_template("chat", tokenizer, settings)
    tokenizer.chat_template = None
    assert make_template("auto", tokenizer, settings) == PromptTemplate.plain()


def test_plain_and_custom_forms_read_their_texts():
    assert make_template("plain", None, settings_of("{form: plain, end: ';'}")).end == ";"
    custom = (
        "{form: custom, end: '#', zero_shot: '{context}:', persona_only: '{persona} {context}:', "
        "component: '{persona} {exemplar_context} {exemplar_response}# {context}:'}"
    )
    template = make_template("custom", None, settings_of(custom))
    assert (template.zero_shot, template.end) == ("{context}:", "#")


def test_a_form_of_ones_own_is_accepted_and_used(monkeypatch):
    with pytest.raises(DataError, match=r"no prompt form 'letter'; accepted are auto, chat"):
        settings_of("{form: letter}")
    letter = PromptTemplate(
        "{persona}\nDear {exemplar_context},\n{exemplar_response};\nDear {context},\n",
        "{persona}\nDear {context},\n",
        "Dear {context},\n",
        ";",
    )
    monkeypatch.setitem(PROMPT_FORMS, "letter", lambda tokenizer, settings: letter)
    settings = settings_of("{form: letter}")
    tokenizer = make_tokenizer("qwen", "qwen2")
    builder = PromptBuilder(tokenizer, make_template(settings.form, tokenizer, settings))
    prompt = builder.zero_shot("Ann")
    whole = tokenizer.encode("Dear Ann,\nHello;", add_special_tokens=False)
    assert [*prompt.token_ids, *builder.response("Hello")] == whole
