"""What a configuration may say, and how a mistake in it is named."""

from __future__ import annotations

import datetime

import pytest
import yaml

from mop_jax.config import RunConfig, load_config, parse_config, shipped_configs
from mop_jax.errors import DataError

SMALL = {
    "population": {"path": "a.csv", "context": "x", "response": "y"},
    "language_model": {"path": "m.gguf"},
    "encoder": {"path": "e"},
}


def parse(changes):
    return parse_config(yaml.safe_dump({**SMALL, **changes}), "my.yaml")


def test_the_smallest_configuration_and_its_defaults():
    config = parse({})
    assert config.population.context == "x"
    assert config.candidates.method == "importance"
    assert config.language_model.dtype == config.language_model.mesh == "auto"
    assert config.inference.guide == "AutoWhitenedNormal"
    assert 1.0 in [1 / (m * config.temperatures.step) for m in config.temperatures.multiples]
    again = RunConfig.model_validate(config.model_dump(mode="json"))
    assert again == config


def test_how_chat_templates_are_rendered():
    """Defaults are not written down: a run from before these fields has the same configuration."""
    assert not {"date", "template_arguments"} & set(parse({}).model_dump(mode="json")["prompt"])
    told = {"date": "2025-03-01", "template_arguments": {"enable_thinking": True, "n": 2}}
    config = parse({"prompt": told})
    assert config.model_dump(mode="json")["prompt"].items() >= told.items()
    assert RunConfig.model_validate(config.model_dump(mode="json")) == config
    settings = {"date": datetime.date(2025, 3, 1), "arguments": told["template_arguments"]}
    assert config.prompt.chat_settings == settings
    with pytest.raises(DataError, match=r"prompt\.date"):
        parse({"prompt": {"date": "today"}})


def test_shipped_configurations_are_valid():
    assert {"demo", "rotten_tomatoes"} <= set(shipped_configs())
    for name in shipped_configs():
        config = load_config(name)
        assert config.name == name
        assert load_config(name) == config


def test_a_file_is_read(tmp_path):
    file = tmp_path / "c.yaml"
    file.write_text(yaml.safe_dump({**SMALL, "name": "naïve", "seed": 7}), "utf-8")
    assert load_config(file).seed == 7
    assert load_config(str(file)).name == "naïve"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"populaton": {}}, "populaton"),
        ({"personas": {"number": 3}}, "personas.number"),
        ({"population": {"path": "a.csv", "context": "x"}}, "population.response"),
        ({"encoder": {}}, "encoder.path"),
        ({"seed": -1}, "seed"),
        ({"seed": "many"}, "seed"),
        ({"language_model": {"path": "m", "dtype": "float16"}}, "language_model.dtype"),
        ({"language_model": {"path": "m", "mesh": "4 by 2"}}, "language_model.mesh"),
        ({"split": {"by": "film"}}, "split.by"),
        ({"candidates": {"method": "best"}}, "candidates.method"),
        ({"candidates": {"uniform_share": 0}}, "candidates.uniform_share"),
        ({"exemplars": {"num_exemplars": 1}}, "exemplars.num_exemplars"),
        ({"simulation": {"top_p": 1.5}}, "simulation.top_p"),
        ({"prompt": {"form": "custom", "end": "\n"}}, "prompt"),
        ({"prompt": {"form": "chat", "end": "\n"}}, "prompt"),
        ({"inference": {"guide": "AutoGuess"}}, "inference.guide"),
        ({"model": {"gate_width": 0}}, "model.gate_width"),
    ],
)
def test_a_wrong_or_unknown_field_is_named(changes, field):
    with pytest.raises(DataError, match=rf"^my\.yaml: {field}: "):
        parse(changes)


def test_several_mistakes_are_counted():
    with pytest.raises(DataError, match=r"\(and 1 more\)\.$"):
        parse({"seed": -1, "nmae": "x"})


@pytest.mark.parametrize("content", ["", "- a\n- b\n", "text"])
def test_what_has_no_sections_is_refused(content):
    with pytest.raises(DataError, match=r"my\.yaml must hold named sections"):
        parse_config(content, "my.yaml")


def test_what_is_no_yaml_is_refused():
    with pytest.raises(DataError, match=r"my\.yaml is not valid YAML") as caught:
        parse_config("a: [1,\nb: }", "my.yaml")
    assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match=r"not valid YAML|must hold named sections"):
        parse_config("!!python/object/apply:os.getcwd []", "my.yaml")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(DataError, match=r"no_such\.yaml was not found; .*demo, rotten_tomatoes"):
        load_config("no_such.yaml")
    with pytest.raises(DataError, match=r"is a folder without manifest\.json"):
        load_config(tmp_path)
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: naïve".encode("latin-1"))
    with pytest.raises(DataError, match="could not be read as UTF-8"):
        load_config(file)


def test_settings_of_files_leave_older_configurations_as_they_were():
    """A run folder holds the configuration that it was made with; new settings must not differ."""
    plain = parse({}).population.model_dump()
    added = {
        "separator": "tab",
        "encoding": "latin-1",
        "quoting": "none",
        "skip_rows": [1, 2],
        "header_row": 2,
        "sheet": "people",
        "value_labels": False,
    }
    assert not set(plain) & set(added)
    section = parse(
        {"population": {"path": "d", "context": "q", "response": "a"} | added}
    ).population
    assert section.separator == "\t"
    assert section.encoding == "iso8859-1"
    assert set(section.model_dump()) == set(plain) | set(added)
    assert type(section).model_validate(section.model_dump()) == section


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"separator": "ab"}, r"population.separator: The separator 'ab' is not accepted; .*\)\.$"),
        (
            {"encoding": "utf-9"},
            r"population.encoding: The encoding 'utf-9' is not known; .*[^.]\.$",
        ),
        ({"quoting": "maybe"}, "population.quoting"),
        ({"skip_rows": -1}, "population.skip_rows"),
        ({"header_row": 0}, "population.header_row"),
    ],
)
def test_bad_settings_of_files(setting, message):
    with pytest.raises(DataError, match=message):
        parse({"population": {"path": "d", "context": "q", "response": "a"} | setting})
