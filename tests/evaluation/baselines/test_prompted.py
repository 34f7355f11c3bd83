"""Baselines that only differ in their prompts: what stands in them, and what comes back."""

from __future__ import annotations

import pytest

from mop_jax.evaluation.baselines import BASELINES


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
