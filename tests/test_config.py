"""What a configuration may say, and how a mistake in it is named."""

from __future__ import annotations

import datetime

import pytest
import yaml

from mop_jax.config import RunConfig, load_config, parse_config, shipped_configs
from mop_jax.errors import DataError
from mop_jax.prompts import DEFAULT_DATE
from mop_jax.yaml_reader import YamlText

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
    """A fixed day, so that prompts do not change from one to the next."""
    assert parse({}).prompt.date == DEFAULT_DATE
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
        ({"personas": {"texts": []}}, "personas.texts"),
        ({"personas": {"texts": ["a", "a"]}}, "personas"),
        ({"personas": {"texts": ["a"], "path": "p.txt"}}, "personas"),
        ({"personas": {"texts": ["a"], "described_from": "random_records"}}, "personas"),
        ({"inference": {"maximum_likelihood": True}}, "inference"),
        ({"inference": {"initial_temperature": 0.6}}, "the file"),
        ({"simulation": {"num_components": 0}}, "simulation.num_components"),
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


def test_a_fit_starts_at_a_temperature_that_is_scored():
    start = {"inference": {"initial_temperature": 0.6}}
    with pytest.raises(
        DataError, match=r"is 0\.6, and temperatures are scored from 0\.615 to 1\.6"
    ):
        parse(start)
    multiples = {"temperatures": {"multiples": [14, 8, 5]}}
    assert parse({**start, **multiples}).inference.initial_temperature == 0.6


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
    with pytest.raises(
        DataError, match=r"no_such\.yaml was not found; .*demo, paper, reuters_r8, rotten"
    ):
        load_config("no_such.yaml")
    with pytest.raises(DataError, match=r"is a folder without manifest\.json"):
        load_config(tmp_path)
    file = tmp_path / "latin.yaml"
    file.write_bytes("name: naïve".encode("latin-1"))
    with pytest.raises(DataError, match="could not be read as UTF-8"):
        load_config(file)


def whole(text: str) -> str:
    """A configuration's text with these lines before the sections that it needs."""
    return text + yaml.safe_dump(SMALL, sort_keys=False)


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("seed: 1\nseed: 2\n", 2, "seed"),
        ("split: {by: record}\nname: x\nsplit: {by: group}\n", 3, "split"),
        ("split:\n  by: record\n  test_size: 5\n  by: group\n", 4, "by"),
        ("split: {by: record, by: group}\n", 1, "by"),
        ('"seed": 1\nseed: 1\n', 2, "seed"),
        ("seed: 1\nprompt:\n  ? end\n  : a\n  end: b\n", 5, "end"),
    ],
)
def test_nothing_is_given_twice(text, line, key):
    with pytest.raises(DataError, match=rf"^my\.yaml, line {line}: '{key}' is given a second time"):
        parse_config(whole(text), "my.yaml")


def test_a_required_section_given_twice_is_refused():
    text = yaml.safe_dump(SMALL, sort_keys=False)
    with pytest.raises(DataError, match=r"line 9: 'population'.*first on line 1"):
        parse_config(f"{text}population: {{path: b.csv}}\n", "my.yaml")


def test_anchors_and_merges_are_fine():
    text = "split: &s {by: record, test_size: 0.5}\n"
    assert parse_config(whole(text), "my.yaml").split.test_size == 0.5
    text = "name: &n film\nprompt: {instruction: *n}\n"
    assert parse_config(whole(text), "my.yaml").prompt.instruction == "film"
    text = "split: &s {by: record, test_size: 3}\n"
    again = yaml.safe_dump({k: v for k, v in SMALL.items() if k != "encoder"}, sort_keys=False)
    merged = f"{text}{again}encoder:\n  <<: {{path: a}}\n  path: b\n"
    assert parse_config(merged, "my.yaml").encoder.path == "b"


@pytest.mark.parametrize("word", ["yes", "no", "on", "off", "y", "N", "2024-01-01", "12:30", "007"])
def test_words_that_yaml_takes_for_something_else_are_column_names(word):
    population = f"population: {{path: a.csv, context: {word}, response: {word}}}\n"
    rest = "language_model: {path: m}\nencoder: {path: e}\n"
    config = parse_config(population + rest, "my.yaml")
    assert (config.population.context, config.population.response) == (word, word)


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("1E2", 100.0), ("2.5e+1", 25.0), (".5", 0.5), ("0.02", 0.02), ("3", 3.0)],
)
def test_numbers_are_read_as_people_write_them(text, value):
    config = parse_config(whole(f"inference: {{learning_rate: {text}}}\n"), "my.yaml")
    assert config.inference.learning_rate == value


@pytest.mark.parametrize(("text", "value"), [("010", 10), ("64", 64), ("1e2", 100)])
def test_whole_numbers_are_decimal(text, value):
    config = parse_config(whole(f"simulation: {{num_samples: {text}}}\n"), "my.yaml")
    assert config.simulation.num_samples == value


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("yes", True)])
def test_booleans(text, value):
    config = parse_config(whole(f"model: {{temperature: {text}}}\n"), "my.yaml")
    assert config.model.temperature is value


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("seed: -1\n", "seed: accepted is at least 0, not -1, line 1."),
        ("seed: many\n", "seed: accepted is a whole number (an integer), not 'many', line 1."),
        ("seed: 1.5\n", "seed: accepted is a whole number (an integer), not 1.5, line 1."),
        ("name: 3\n", "name: accepted is text (in quotes, where it could be taken for a number), "
         "not 3, line 1."),
        ("split:\n  by: film\n", "split.by: accepted is 'record', 'stratified' or 'group', not "
         "'film', line 2."),
        ("split: 3\n", "split: accepted is named fields, not 3, line 1."),
        ("model: {temperature: maybe}\n",
         "model.temperature: there is no temperature 'maybe'; accepted are true, false, fixed, "
         "persona, pooled, contextual, line 1."),
        ("inference: {learning_rate: .inf}\n",
         "inference.learning_rate: accepted is a finite number, not inf, line 1."),
        ("simulation: {top_p: 2}\n", "simulation.top_p: accepted is at most 1, not 2, line 1."),
        ("temperatures: {multiples: [8, x]}\n",
         "temperatures.multiples.1: accepted is a whole number (an integer), not 'x', line 1."),
        ("split:\n  test_sise: 3\n",
         "split.test_sise: this is no field; the nearest is test_size, line 2."),
    ],
)  # fmt: skip
def test_what_is_wrong_is_said_in_words_with_the_line(text, sentence):
    with pytest.raises(DataError) as caught:
        parse_config(whole(text), "my.yaml")
    assert str(caught.value) == f"my.yaml: {sentence}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("split:\n\tby: record\n", ["line 2 has a tab", "blanks"]),
        ("seed: 1\n name: x\n", ["line 2"]),
        ("name: 'x\n", ["line"]),
        ("1: x\n", ["line 1", "'1' is no name"]),
        ("[a, b]: x\n", ["line 1", "no name"]),
        ("seed: 1\n---\nseed: 2\n", ["line 2"]),
        ("[" * 5000, ["not valid YAML"]),
    ],
)
def test_mistakes_of_yaml_are_said_with_their_line(text, words):
    with pytest.raises(DataError) as caught:
        parse_config(text, "my.yaml")
    assert all(word in str(caught.value) for word in words)
    assert "\n" not in str(caught.value)


# Where files are


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project's folder with a configuration in `study/`, and somebody who stands elsewhere."""
    study, here = tmp_path / "study", tmp_path / "here"
    for folder in (study, here):
        folder.mkdir()
    monkeypatch.chdir(here)
    settings = {**SMALL, "personas": {"path": "p.txt"}}
    (study / "first.yaml").write_text(yaml.safe_dump(settings), "utf-8")
    return tmp_path


def test_paths_are_counted_from_the_file(project):
    study = project / "study"
    for name in ("a.csv", "p.txt", "m.gguf"):
        (study / name).write_text("x")
    (study / "e").mkdir()
    (project / "here" / "a.csv").write_text("another")
    config = load_config(study / "first.yaml")
    assert config.population.path == str(study / "a.csv")
    assert config.personas.path == str(study / "p.txt")
    assert config.language_model.path == str(study / "m.gguf")
    assert config.encoder.path == str(study / "e")


def test_a_file_where_one_stands_is_taken_with_a_word(project, caplog):
    (project / "here" / "a.csv").write_text("x")
    config = load_config(project / "study" / "first.yaml")
    assert config.population.path == str(project / "here" / "a.csv")
    (record,) = caplog.records
    assert "population.path a.csv was not found beside the file" in record.getMessage()


def test_files_that_are_nowhere_are_named_where_they_should_be(project):
    config = load_config(project / "study" / "first.yaml")
    assert config.population.path == str(project / "study" / "a.csv")
    # What lies nowhere may be a hub id.
    assert config.encoder.path == "e"


def test_a_run_without_a_name_is_called_as_its_file(project):
    config = load_config(project / "study" / "first.yaml")
    assert config.name == "first"
    assert "name" not in config.model_fields_set
    (project / "study" / "b.yaml").write_text(yaml.safe_dump({**SMALL, "name": "mine"}), "utf-8")
    assert load_config(project / "study" / "b.yaml").name == "mine"


def test_what_a_shipped_configuration_says_counts_as_defaults():
    assert load_config("demo").model_fields_set == set()


def test_settings_of_files():
    added = {
        "separator": "tab",
        "encoding": "latin-1",
        "quoting": "none",
        "skip_rows": [1, 2],
        "header_row": 2,
        "sheet": "people",
        "value_labels": False,
    }
    section = parse(
        {"population": {"path": "d", "context": "q", "response": "a"} | added}
    ).population
    assert section.separator == "\t"
    assert section.encoding == "iso8859-1"
    assert type(section).model_validate(section.model_dump()) == section


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"separator": "ab"},
            r"population.separator: The separator 'ab' is not accepted; .*\), line \d+\.$",
        ),
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


def test_codes_are_keys_below_recode_only():
    text = YamlText("q:\n  recode: {1: Very liberal, -9: No, true: Yes}\n", "c.yaml")
    assert text.values == {"q": {"recode": {"1": "Very liberal", "-9": "No", "true": "Yes"}}}
    with pytest.raises(DataError, match=r"line 2: '1' is given a second time"):
        YamlText("recode: {1: a,\n  '1': b}\n", "c.yaml")
    with pytest.raises(DataError, match="'1' is no name"):
        YamlText("recode: x\nother: {1: a}\n", "c.yaml")
