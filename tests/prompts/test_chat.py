"""What chat templates do with dates, thoughts, system texts, blanks and names."""

from __future__ import annotations

import datetime

import pytest

from mop_jax.components.personas import summary_messages, synthesise_personas
from mop_jax.errors import DataError
from mop_jax.lm.tokenizer import load_tokenizer
from mop_jax.population import Population
from mop_jax.prompts import (
    DEFAULT_DATE,
    ChatTemplate,
    PromptBuilder,
    PromptTemplate,
    answer_prompt,
    end_of_turn,
)
from mop_jax.prompts.dates import in_words
from tests.prompts.chat_tokenizers import FAMILIES, make_tokenizer

TURNS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def chatml(template: str):
    return make_tokenizer("llama3", "qwen2", chat_template=template)


@pytest.fixture
def another_day(monkeypatch):
    """A process whose clock and locale are others."""

    class Later(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2031, 12, 24, 8, 30)

    import transformers.utils.chat_template_utils as module

    monkeypatch.setattr(module, "datetime", Later)


def test_prompts_do_not_depend_on_the_day(another_day):
    tokenizer = make_tokenizer("llama3", "llama3_2")
    raw = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert "24 Dec 2031" in raw  # the fixture does what it says
    builder = PromptBuilder(tokenizer)
    assert "Today Date: 26 Jul 2024" in builder.template.component
    other = PromptTemplate.chat(tokenizer, date=datetime.date(2025, 3, 1))
    assert "Today Date: 01 Mar 2025" in other.component
    assert PromptBuilder(tokenizer, other).fingerprint != builder.fingerprint
    by_argument = PromptTemplate.chat(tokenizer, arguments={"date_string": "1 May 1999"})
    assert "Today Date: 1 May 1999" in by_argument.zero_shot


def test_templates_that_know_no_argument_for_the_day(another_day):
    dated = "It is {{ strftime_now('%A, %-d %B %Y, %F %H:%M') }}.\n" + TURNS
    raw = chatml(dated).apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
    assert raw.startswith("It is Wednesday, 24 December 2031")
    found = PromptTemplate.chat(chatml(dated))
    assert found.zero_shot.startswith("It is Friday, 26 July 2024, 2024-07-26 00:00.\n<|im_start|>")
    # What goes before the template changes nothing else, blanks at its beginning included.
    for start in ("\n", "  \n", "  {% if true %}\n{% endif %}", "x"):
        told = PromptTemplate.chat(chatml(f"{start}{TURNS}{{# strftime_now #}}"))
        assert told == PromptTemplate.chat(chatml(f"{start}{TURNS}"))


def test_dates_in_words_are_english_and_those_of_strftime():
    for day in (datetime.date(2024, 7, 26), datetime.date(2025, 3, 1), datetime.date(1999, 12, 31)):
        at_midnight = datetime.datetime(day.year, day.month, day.day)
        for form in ("%d %b %Y", "%A %-d %B %y", "%F %T", "%D %p", "%e/%m %j", "%H:%M:%S %I", "%a"):
            assert in_words(day, form) == at_midnight.strftime(form)


@pytest.mark.parametrize("family", ["qwen3", "qwen3_thinking"])
def test_a_thought_is_closed_before_the_response(family):
    tokenizer = make_tokenizer("qwen", family)
    for arguments in (None, {"enable_thinking": True}):
        template = PromptTemplate.chat(tokenizer, arguments=arguments)
        assert template.component.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert template.component.count("<think>") == 1  # none in what was said before
    builder = PromptBuilder(tokenizer)
    thought = set(tokenizer.encode("<think></think>", add_special_tokens=False))
    assert not thought & set(builder.response("Fine."))
    for text in ("<think>x</think>y", "</think>y"):
        with pytest.raises(DataError, match=r"holds '</?think>', a special token"):
            builder.response(text)


def test_arguments_reach_the_template():
    mood = TURNS.replace("{% if add_gen", "{{ mood|default('') }}{% if add_gen")
    with pytest.raises(DataError, match=r"begins a response with 'x"):
        PromptTemplate.chat(chatml(mood), arguments={"mood": "x"})
    headed = "{{ mood|default('none') }}\n" + TURNS
    assert PromptTemplate.chat(chatml(headed), arguments={"mood": "x"}).zero_shot[0] == "x"


def test_named_templates():
    named = {"default": TURNS, "tool_use": "tools: " + TURNS}
    assert not PromptTemplate.chat(chatml(named)).zero_shot.startswith("tools")
    chosen = PromptTemplate.chat(chatml(named), arguments={"chat_template": "tool_use"})
    assert chosen.zero_shot.startswith("tools: ")
    with pytest.raises(DataError, match=r"cannot write a persona.*no default"):
        PromptBuilder(chatml({"rag": TURNS, "tool_use": TURNS}))


def test_templates_that_fail_are_refused_with_their_reason():
    with pytest.raises(DataError, match=r"cannot write a persona.*out of order"):
        PromptTemplate.chat(chatml("{{ raise_exception('out of order') }}"))


def test_a_template_that_ends_answers_with_text_is_refused():
    with pytest.raises(DataError, match=r"ends an answer with '\[done\]'"):
        PromptTemplate.chat(chatml(TURNS.replace("<|im_end|>", "[done]<|im_end|>")))


def test_a_template_without_ends_of_turns_gets_the_end_of_sequence():
    bare = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    bare += "{% if add_generation_prompt %}assistant: {% endif %}"
    builder = PromptBuilder(make_tokenizer("gpt2", "zephyr", chat_template=bare))
    assert builder.template.end == "</s>"
    prompt = builder.component("You are x.", ("q", "a"), "c")
    assert builder.tokenizer.decode(prompt.token_ids).endswith("assistant: a\nuser: c\nassistant:")
    assert builder.tokenizer.decode(builder.response("Fine.")) == " Fine.</s>"
    # What follows an answer there may be joined to its last blanks.
    lined = bare.replace("{{ m.content }}\n", "{{ m.content }}\n\n")
    builder = PromptBuilder(make_tokenizer("gemma", "zephyr", chat_template=lined))
    assert builder.response("Fine.")
    with pytest.raises(DataError, match="has other tokens in a whole chat"):
        builder.response("Fine.\n")


def test_what_a_template_rewrites_is_refused():
    shouting = TURNS.replace("{{ m.content }}", "{{ m.content | replace('!!', '!') }}")
    builder = PromptBuilder(chatml(shouting))
    builder.component("Hey!", ("a", "b"), "c")
    for build in (
        lambda: builder.component("Hey!!", ("a", "b"), "c"),
        lambda: builder.component("p", ("a", "b!!"), "c"),
        lambda: builder.zero_shot("c!!"),
        lambda: builder.response("d!!"),
    ):
        with pytest.raises(DataError, match=r"rewrites the text '.*!!'"):
            build()


def test_strips_are_those_of_the_template():
    """Llama 2 and Gemma strip answers; exemplars and responses are treated alike."""
    for family in ("llama2", "gemma2", "llama3"):
        builder = PromptBuilder(make_tokenizer("sentencepiece normaliser", family))
        assert builder.response(" Fine.\n") == builder.response("Fine.")
        one = builder.component("p", ("q", " Fine.\n"), "c")
        assert one == builder.component("p", ("q", "Fine."), "c")
    builder = PromptBuilder(make_tokenizer("llama3", "qwen2"))
    assert builder.response(" Fine.") != builder.response("Fine.")


def test_the_beginning_of_sequence_comes_once():
    """Whether the template writes it, the tokenizer adds it, or both."""
    for family in sorted(set(FAMILIES) - {"deepseek_r1_distill"}):
        tokenizer = make_tokenizer("sentencepiece normaliser", family, adds_bos=True)
        builder = PromptBuilder(tokenizer)
        if tokenizer.bos_token is None or family == "smollm2":
            continue
        for prompt in (builder.component("p", ("q", "a"), "c"), builder.zero_shot("c")):
            ids = prompt.token_ids
            assert ids[0] == tokenizer.bos_token_id, family
            assert tokenizer.bos_token_id != ids[1], family


def test_the_end_of_turn_is_found_by_its_role():
    for family, told in FAMILIES.items():
        ends = {"llama3": "<|eot_id|>", "gemma2": "<end_of_turn>", "gemma3": "<end_of_turn>"}
        tokenizer = make_tokenizer("gpt2", family)
        expected = ends.get(family, told["eos"])
        assert end_of_turn(tokenizer) == tokenizer.convert_tokens_to_ids(expected)
    assert end_of_turn(make_tokenizer("gpt2")) is None
    assert end_of_turn(None) is None


@pytest.mark.parametrize("family", sorted(set(FAMILIES) - {"deepseek_r1_distill"}))
def test_any_conversation_up_to_its_answer(family):
    """What personas are synthesised with: the system text first, whatever the template knows."""
    tokenizer = make_tokenizer("gpt2", family)
    records = Population(["1"], ["Say it."], ["So be it."])
    messages = summary_messages(records)
    text = answer_prompt(tokenizer, messages)
    places = [text.find(message["content"]) for message in messages]
    assert places == sorted(places)
    assert min(places) >= 0
    assert "2024" in text or "Today" not in text
    assert "<think>" not in text or text.endswith("<think>\n\n</think>\n\n")


def test_personas_are_not_written_inside_a_thought():
    tokenizer = make_tokenizer("gpt2", "deepseek_r1_distill")
    with pytest.raises(DataError, match="inside a thought"):
        answer_prompt(tokenizer, [{"role": "user", "content": "x"}])


def test_synthesis_and_prompts_are_told_the_same_day():
    tokenizer = make_tokenizer("gpt2", "llama3_2")
    asked: list[str] = []

    class Writer:
        def generate(self, prompts, **settings):
            asked.extend(prompts)
            return type("Texts", (), {"texts": [" kind and calm."] * len(prompts)})

    Writer.tokenizer = tokenizer
    records = Population(["1", "2"], ["q", "q"], ["a", "b"])
    settings = {"date": datetime.date(2025, 3, 1), "arguments": {}}
    made, _ = synthesise_personas(
        records, [[0.0], [1.0]], Writer(), 1, seed=0, chat_settings=settings
    )
    assert made[0].text == "You are kind and calm."
    assert "Today Date: 01 Mar 2025" in asked[0]
    synthesise_personas(records, [[0.0], [1.0]], Writer(), 1, seed=0)
    assert f"Today Date: {DEFAULT_DATE:%d %b %Y}" in asked[1]


def test_templates_in_files_of_their_own(tmp_path):
    """As tokenizers are saved today: chat_template.jinja, and named ones in a folder."""
    named = {"default": TURNS, "tool_use": "tools: " + TURNS}
    for template in (TURNS, named):
        chatml(template).save_pretrained(tmp_path)
        assert (tmp_path / "chat_template.jinja").exists()
        found = load_tokenizer(tmp_path)
        assert PromptBuilder(found).template == PromptTemplate.chat(chatml(TURNS))
    chosen = PromptTemplate.chat(found, arguments={"chat_template": "tool_use"})
    assert chosen.zero_shot.startswith("tools: ")


def test_no_template_no_chat():
    with pytest.raises(DataError, match="no chat template"):
        ChatTemplate(make_tokenizer("gpt2"))
