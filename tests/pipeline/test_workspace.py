"""What a workspace makes of a configuration's prompts, and what their fingerprint guards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mop_jax.config import RunConfig
from mop_jax.errors import DataError
from mop_jax.pipeline.run_folder import RunFolder, fingerprint
from mop_jax.pipeline.steps import with_needs
from mop_jax.pipeline.workspace import Workspace
from mop_jax.prompts import PromptTemplate
from tests.prompts.chat_tokenizers import TEMPLATES, make_tokenizer


def config(**prompt) -> RunConfig:
    return RunConfig.model_validate(
        {
            "population": {"path": "a.csv", "context": "x", "response": "y"},
            "language_model": {"path": "m.gguf"},
            "encoder": {"path": "e"},
            "prompt": prompt,
        }
    )


def workspace(folder, tokenizer, *, update=False, **prompt) -> Workspace:
    space = Workspace(RunFolder(folder, config(**prompt), update=update))
    space.__dict__["language_model"] = SimpleNamespace(tokenizer=tokenizer)
    return space


@pytest.fixture
def tokenizer():
    return make_tokenizer("llama3", "llama3_2")


def test_a_configuration_reaches_the_prompts(tmp_path, tokenizer):
    built = workspace(tmp_path / "a", tokenizer).prompts
    assert built.template == PromptTemplate.chat(tokenizer)
    told = workspace(tmp_path / "b", tokenizer, date="2025-03-01").prompts
    assert "Today Date: 01 Mar 2025" in told.template.component
    argued = workspace(tmp_path / "c", tokenizer, template_arguments={"date_string": "May"}).prompts
    assert "Today Date: May" in argued.template.zero_shot
    plain = workspace(tmp_path / "d", tokenizer, form="plain", end="\n\n").prompts
    assert plain.template == PromptTemplate.plain("\n\n")
    texts = {
        "component": "{persona} {exemplar_context} {exemplar_response} {context}",
        "persona_only": "{persona} {context}",
        "zero_shot": "{context}",
        "end": "###",
    }
    custom = workspace(tmp_path / "e", tokenizer, form="custom", **texts).prompts
    assert custom.template == PromptTemplate(**texts)
    assert len(custom.end_ids) > 1


def test_prompts_that_have_changed_are_refused_until_the_run_is_told(tmp_path, tokenizer):
    """Another rendering of the same configuration: a checkpoint with another chat template."""
    first = workspace(tmp_path / "run", tokenizer).prompts
    assert workspace(tmp_path / "run", tokenizer).prompts.fingerprint == first.fingerprint
    source = (TEMPLATES / "llama3_2.jinja").read_text("utf-8").replace("December 2023", "May 2024")
    changed = make_tokenizer("llama3", "llama3_2", chat_template=source)
    with pytest.raises(DataError, match="prompt template has changed since"):
        _ = workspace(tmp_path / "run", changed).prompts
    told = workspace(tmp_path / "run", tokenizer, date="2025-03-01", update=True).prompts
    assert told.fingerprint != first.fingerprint


def test_personas_depend_on_how_chat_templates_are_rendered_alone(tmp_path):
    (step,) = with_needs("personas")

    def print_of(**prompt):
        read = dict.fromkeys(step.sections, True) | step.parts
        sections = config(**prompt).model_dump(mode="json", include=read)
        return fingerprint({name: value for name, value in sections.items() if value != {}})

    assert print_of() == print_of(instruction="Other.") == print_of(date="2024-07-26")
    others = [print_of(date="2025-03-01"), print_of(template_arguments={"x": 1})]
    assert len({print_of(), *others}) == 3
