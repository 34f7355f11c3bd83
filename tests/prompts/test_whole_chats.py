"""Prompt and response have the ids of the whole chat, for tokenizers and templates of every kind.

The oracle is the tokenizer's own `apply_chat_template` on the whole conversation, the scored answer
included, tokenised at once.
"""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from mop_jax.errors import DataError
from mop_jax.prompts import DEFAULT_INSTRUCTION, PromptBuilder, special_tokens
from tests.prompts.chat_tokenizers import BUILDERS, FAMILIES, make_tokenizer

# Families whose templates know no system role, or put it into the last turn of the user's.
OPENED = {"mistral_v0_1", "mistral_v0_3", "mistral_nemo", "gemma2"}
# What the templates are told; both have defaults of their own in the package.
TOLD = {"enable_thinking": False, "date_string": "26 Jul 2024"}
REFUSED = {"deepseek_r1_distill"}

fragments = st.sampled_from(
    [" ", "  ", "\n", "\n\n", "\t", "\u0301", "é", "美しい", "🎬", "▁", "'s", ".", "[/", "|>", "ab",
     "The", " film", "12", "</s>", "<think>"]
)  # fmt: skip
texts = st.lists(
    fragments | st.text(st.characters(exclude_categories=["Cs"]), max_size=3), max_size=6
).map("".join)


def conversation(family, persona, exemplar, context, answer):
    described = f"{persona} {DEFAULT_INSTRUCTION}"
    turns = [("user", exemplar[0]), ("assistant", exemplar[1])] if exemplar else []
    turns += [("user", context), ("assistant", answer)]
    if persona is not None and family in OPENED:
        turns[0] = ("user", f"{described}\n\n{turns[0][1]}")
    elif persona is not None:
        turns.insert(0, ("system", described))
    return [{"role": role, "content": content} for role, content in turns]


def whole_chat(tokenizer, family, *said):
    return tokenizer.apply_chat_template(
        conversation(family, *said), tokenize=True, return_dict=False, **TOLD
    )


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def builders(request):
    """Every family's builder on one kind of tokenizer."""
    return {
        family: PromptBuilder(make_tokenizer(request.param, family))
        for family in sorted(set(FAMILIES) - REFUSED)
    }


def may_be_refused(tokenizer, said) -> bool:
    """Texts with special tokens; answers whose first blanks go together with the prompt's end."""
    if any(token in text for token in special_tokens(tokenizer) for text in said):
        return True
    *_, answer = said
    # A template that strips a message leaves nothing of a blank one.
    return answer[:1].isspace() or answer[:1] == "▁" or not all(text.strip() for text in said)


@example("You are x.", "Say\n\nit.", "So be it.", "And now?", " A fine film. ")
@example(" p\n", "\nq ", "\n\na\n", "  c\n", "r \n")
@example("p", "q", "  a", "c", "'s")
@example("e\u0301", "\u0301", "美", "\u0301x", "\u0301 é")
@settings(max_examples=40)
@given(texts, texts, texts, texts, texts)
def test_ids_are_those_of_the_whole_chat(builders, persona, request, shown, context, answer):
    for family, builder in builders.items():
        tokenizer = builder.tokenizer
        forms = (
            (persona, (request, shown), context, answer),
            (persona, None, context, answer),
            (None, None, context, answer),
        )
        said = (persona, request, shown, context, answer)
        try:
            response = builder.response(answer)
            prompts = (
                builder.component(persona, (request, shown), context),
                builder.persona_only(persona, context),
                builder.zero_shot(context),
            )
        except DataError:
            assert may_be_refused(tokenizer, said), (family, said)
            continue
        assert response[-1] == builder.end_id
        for prompt, form in zip(prompts, forms, strict=True):
            ids = [*prompt.token_ids, *response]
            assert ids == whole_chat(tokenizer, family, *form)[: len(ids)], (family, form)


def test_prefixes_are_shared(builders):
    for family, builder in builders.items():
        one = builder.component("You are kind.", ("Say it.", "So be it."), "And now?")
        other = builder.component("You are kind.", ("Else.", "No."), "Then?")
        assert len(one.prefix) == 2, family
        assert one.prefix[0] == other.prefix[0], family
        assert one.prefix[1] != other.prefix[1], family
        assert builder.component("You are kind.", ("Say it.", "So be it."), "Then?").prefix == (
            one.prefix
        )
        assert builder.persona_only("You are kind.", "Then?").prefix[0] == one.prefix[0], family
        assert one.request != other.request == builder.component("x", ("q", "a"), "Then?").request


@pytest.mark.parametrize("kind", ["qwen", "sentencepiece first"])
def test_a_prompt_that_opens_a_thought_is_refused(kind):
    with pytest.raises(DataError, match=r"begins a response with '<think>'.*inside a thought"):
        PromptBuilder(make_tokenizer(kind, "deepseek_r1_distill"))
