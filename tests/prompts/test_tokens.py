"""Texts within texts: no stray blanks, in ids or decoded; the plain form on every kind."""

from __future__ import annotations

from functools import cache
from unicodedata import normalize

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken

from mop_jax.errors import DataError
from mop_jax.lm.tokenizer import continuation_decoder
from mop_jax.prompts import PromptBuilder, PromptTemplate
from mop_jax.prompts.tokens import TextContinuation, parting_tokens, special_tokens
from tests.prompts.chat_tokenizers import BUILDERS, make_tokenizer

SENTENCEPIECE = [kind for kind in BUILDERS if "piece" in kind or kind == "gemma"]
lines = st.text(
    st.sampled_from(list("ab The.,12é美🎬'")) | st.characters(categories=["L", "N", "P"]),
    max_size=12,
).map(str.strip)


# These know no end of a line: it is unknown to them, like any other.
UNIGRAM = {"unigram first", "unigram always"}


@pytest.fixture(scope="module", params=sorted(set(BUILDERS) - UNIGRAM))
def plain(request):
    return PromptBuilder(make_tokenizer(request.param, adds_bos=True), PromptTemplate.plain())


@example("You are x.", "Say it.", "Fine.", "And now?", "A film.")
@settings(max_examples=60)
@given(lines, lines, lines, lines, lines)
def test_the_plain_form(plain, persona, request, shown, context, answer):
    """Its ids hold its text and no blank besides; an end of the line is what ends a response."""
    tokenizer = plain.tokenizer
    told = (persona, request, shown, context, answer)
    if not all(told) or any(t in text for text in told for t in special_tokens(tokenizer)):
        return
    prompt, response = plain.component(persona, (request, shown), context), plain.response(answer)
    assert prompt.token_ids[0] == tokenizer.bos_token_id
    text = plain.template.fill("component", {
        "persona": persona, "instruction": plain.instruction, "exemplar_context": request,
        "exemplar_response": shown, "context": context,
    }) + answer + "\n"  # fmt: skip
    assert response[-len(plain.end_ids) :] == plain.end_ids
    ids = [*prompt.token_ids, *response][1:]
    whole = tokenizer.encode(text, add_special_tokens=False)
    if tokenizer.unk_token_id not in ids:
        # One blank at the beginning of the text is the tokenizer's own.
        decoded = tokenizer.decode(ids).removeprefix(" ")
        assert normalize("NFC", decoded) == normalize("NFC", text)
        assert len(ids) - len(whole) in range(4)  # ends of lines are not joined across segments
    assert len(prompt.prefix) == 2
    # The exemplar shows a response as it is scored.
    scored, segment = plain.response(shown), prompt.prefix[1]
    assert any(segment[i : i + len(scored)] == scored for i in range(len(segment)))


@pytest.mark.parametrize("kind", SENTENCEPIECE)
def test_plain_prompts_of_sentencepiece_are_those_of_the_whole_text(kind):
    """No piece goes on behind an end of the line there, which is one id within a text."""
    builder = PromptBuilder(make_tokenizer(kind), PromptTemplate.plain())
    assert len(builder.end_ids) == 1
    prompt = builder.component("You are x.", ("Say it.", "Fine."), "And now?")
    text = (
        f"You are x.\n{builder.instruction}\n\nRequest: Say it.\nResponse:\nFine.\n\n"
        "Request: And now?\nResponse:\nA film.\n"
    )
    found = [*prompt.token_ids, *builder.response("A film.")]
    if kind == "gemma":  # whose runs of newlines are tokens
        assert builder.tokenizer.decode(found) == text
    else:
        assert found == builder.tokenizer.encode(text)


@pytest.mark.parametrize("kind", sorted(BUILDERS))
@pytest.mark.parametrize("end", ["\n\n", "the film", " ]", "\n###\n"])
def test_ends_of_any_length(kind, end):
    if kind in UNIGRAM and "\n" in end:
        with pytest.raises(DataError, match="has no ids of its own"):
            PromptBuilder(make_tokenizer(kind), PromptTemplate.plain(end))
        return
    builder = PromptBuilder(make_tokenizer(kind), PromptTemplate.plain(end))
    ids = builder.response("A film.")
    assert ids[-len(builder.end_ids) :] == builder.end_ids
    if builder.tokenizer.unk_token_id not in ids:
        decode = continuation_decoder(builder.tokenizer)
        assert decode(list(ids)) == f"A film.{end}"


pieces = st.lists(st.sampled_from(["-", "\t", "--", "\n", "a", " "]), max_size=6).map("".join)


@example("-", "-\t")
@given(pieces, pieces)
@pytest.mark.parametrize("end", ["\n", "-\t-", "\n\n", "--"])
@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece normaliser", "gemma"])
def test_no_response_is_the_beginning_of_another(kind, end, one, other):
    """So that the probabilities of all responses sum to at most one."""
    builder = builder_of(kind, end)
    try:
        found = builder.response(one), builder.response(other)
    except DataError as error:
        assert "ends a response" in str(error)  # noqa: PT017
        return
    assert (found[1][: len(found[0])] == found[0]) == (one == other)


@cache
def builder_of(kind, end):
    return PromptBuilder(make_tokenizer(kind), PromptTemplate.plain(end))


@pytest.mark.parametrize("kind", ["sentencepiece normaliser", "sentencepiece first", "gpt2"])
def test_texts_are_scored_as_they_continue_their_prompts(make_tiny_lm, kind):
    tokenizer = make_tokenizer(kind)
    lm = make_tiny_lm(tokenizer=tokenizer)
    whole = tokenizer.encode("The film is fine")
    prompt = tokenizer.encode("The film")
    assert whole[: len(prompt)] == prompt
    by_ids = lm.log_likelihood([prompt], [whole[len(prompt) :]])
    np.testing.assert_array_equal(lm.log_likelihood(["The film"], [" is fine"]), by_ids)
    np.testing.assert_array_equal(lm.log_likelihood([prompt], [" is fine"]), by_ids)


@pytest.mark.parametrize("kind", sorted(BUILDERS))
@pytest.mark.parametrize("text", ["a film", " a film", "  two", "The", "é", " 12", ".", "\n a"])
def test_what_is_decoded_is_what_was_tokenised(kind, text):
    """Within a text: a blank that a response begins with is its own."""
    tokenizer = make_tokenizer(kind)
    ids = TextContinuation(tokenizer).inside(text)
    if tokenizer.unk_token_id not in ids:
        assert continuation_decoder(tokenizer)(list(ids)) == text
    else:
        assert kind in UNIGRAM


def test_nothing_is_cleaned_up_and_broken_characters_are_shown():
    tokenizer = make_tokenizer("gpt2", clean_up_tokenization_spaces=True)
    decode = continuation_decoder(tokenizer)
    text = "I do n't , he said ."
    assert decode(tokenizer.encode(text)) == text
    for kind in ("gpt2", "sentencepiece first"):
        tokenizer = make_tokenizer(kind)
        ids = list(TextContinuation(tokenizer).inside("龘"))
        assert len(ids) > 1
        assert "\ufffd" in continuation_decoder(tokenizer)(ids[:-1])
    special = tokenizer.eos_token_id
    assert continuation_decoder(tokenizer)([special, *ids]) == "</s>龘"


def test_special_tokens_that_a_normaliser_makes_are_refused():
    from tokenizers import normalizers

    tokenizer = make_tokenizer("gpt2", flags={"normalized": True})
    tokenizer.backend_tokenizer.normalizer = normalizers.NFKC()
    builder = PromptBuilder(tokenizer, PromptTemplate.plain())
    assert tokenizer.eos_token_id in tokenizer.encode("a\uff1c/s\uff1eb")
    with pytest.raises(DataError, match=r"holds '</s>', a special token"):
        builder.response("a\uff1c/s\uff1eb")


def test_tokens_that_swallow_blanks_part_nothing():
    tokenizer = make_tokenizer("gpt2", "qwen2")
    assert set(parting_tokens(tokenizer)) == set(special_tokens(tokenizer))
    end = AddedToken("<|im_end|>", lstrip=True, rstrip=True, normalized=False, special=True)
    tokenizer.backend_tokenizer.add_special_tokens([end])
    swallowing = tokenizer.added_tokens_decoder[tokenizer.convert_tokens_to_ids("<|im_end|>")]
    if swallowing.lstrip:
        assert "<|im_end|>" not in parting_tokens(tokenizer)


@pytest.mark.parametrize("flags", [{"lstrip": True}, {"rstrip": True}, {"normalized": True}])
@pytest.mark.parametrize("kind", ["gpt2", "sentencepiece normaliser", "sentencepiece first"])
def test_turn_tokens_with_flags_are_exact_or_refused(kind, flags):
    """Flags of added tokens: the whole chat is the oracle, refusal by name the only other way."""
    tokenizer = make_tokenizer(kind, "qwen2", flags=flags)
    try:
        builder = PromptBuilder(tokenizer)
    except DataError as error:
        refusals = ("otherwise as a whole than in parts", "has no ids of its own")
        assert any(words in str(error) for words in refusals)  # noqa: PT017
        return
    for shown, answer in (("a ", "Fine. "), ("a", "Fine."), ("a\n", "x\n")):
        said = [("system", f"p {builder.instruction}"), ("user", "q "), ("assistant", shown)]
        said += [("user", "c "), ("assistant", answer)]
        whole = tokenizer.apply_chat_template(
            [{"role": role, "content": content} for role, content in said],
            tokenize=True, return_dict=False,
        )  # fmt: skip
        ids = [*builder.component("p", ("q ", shown), "c ").token_ids, *builder.response(answer)]
        assert ids == whole[: len(ids)]
