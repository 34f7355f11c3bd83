"""What a workspace makes of a configuration's prompts, and what their fingerprint guards."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mop_jax.config import RunConfig
from mop_jax.pipeline.manifest import step_inputs
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.workspace import Workspace
from mop_jax.prompts import PromptTemplate
from tests.prompts.chat_tokenizers import make_tokenizer


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


def test_personas_depend_on_how_chat_templates_are_rendered_alone():
    """Of the prompts' settings the date and the template's arguments: both reach the synthesis."""

    def made_from(**prompt):
        return step_inputs("personas", config(**prompt), {}, {})

    assert made_from() == made_from(instruction="Other.") == made_from(date="2024-07-26")
    others = [made_from(date="2025-03-01"), made_from(template_arguments={"x": 1})]
    assert made_from() not in others
    assert others[0] != others[1]
