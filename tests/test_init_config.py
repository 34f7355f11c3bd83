"""A configuration for somebody's file: it is valid, its sizes fit, and its columns are sensible."""

from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mop_jax.cli import main
from mop_jax.config import load_config
from mop_jax.errors import DataError
from mop_jax.init_config import sketch_file, suggest_config, write_config
from mop_jax.pipeline.inputs import Inputs
from mop_jax.population import Population


def split_of(path: Path) -> tuple[Population, Population]:
    """The records and the split that a run of the configuration would make."""
    config = load_config(path)
    inputs = Inputs(config)
    inputs.check_sizes(evaluated=True)
    candidates = config.candidates.num_candidates
    assert candidates <= config.personas.num_personas * config.exemplars.num_exemplars
    return inputs.records()


def closed_question(folder: Path) -> Path:
    answers = ["Yes"] * 66 + ["No"] * 34
    df = pd.DataFrame({"question": "Do you own a car?", "answer": answers})
    df.to_csv(folder / "car.csv", index=False)
    return folder / "car.csv"


def panel(folder: Path) -> Path:
    df = pd.DataFrame(
        {
            "StartDate": "2020-01-01",
            "Respondent ID": [f"{i // 3:03d}" for i in range(90)],
            "Age": [str(20 + i // 3) for i in range(90)],
            "What do you think of trains?": [
                f"Train {i} was {i * 7 % 13} late." for i in range(90)
            ],
            "weight": [0 if i == 3 else 1.5 for i in range(90)],
        }
    )
    df.to_csv(folder / "panel.csv", index=False, sep=";")
    return folder / "panel.csv"


def test_a_closed_question(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(closed_question(tmp_path).name)
    config = load_config(tmp_path / "car.yaml")
    assert (config.population.context, config.population.response) == ("question", "answer")
    train, test = split_of(tmp_path / "car.yaml")
    assert (len(train), len(test)) == (75, 25)


def test_a_panel(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_config(panel(tmp_path).name)
    config = load_config(tmp_path / "panel.yaml")
    section = config.population
    assert section.response == "What do you think of trains?"
    assert section.context == "Age"
    assert (section.group, section.weight, section.id) == ("Respondent ID", "weight", None)
    assert config.split.by == "group"
    train, test = split_of(tmp_path / "panel.yaml")
    assert not set(train.groups or []) & set(test.groups or [])
    assert "# Other columns: StartDate" in (tmp_path / "panel.yaml").read_text("utf-8")


def test_named_columns_stand(tmp_path) -> None:
    path = panel(tmp_path)
    sketch = sketch_file(path, response="Age", context=["weight", "StartDate"])
    assert (sketch.response, sketch.context) == ("Age", ["weight", "StartDate"])
    text = suggest_config(path, response="Age", context=["weight", "What do you think of trains?"])
    assert 'row[\\"What do you think of trains?\\"]' in text
    with pytest.raises(DataError, match=r"no column 'Agee'.*nearest is 'Age'"):
        suggest_config(path, response="Agee")


def test_columns_are_asked_for(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    panel(tmp_path)
    asked = []

    def ask(question: str, guess: str) -> str:
        asked.append((question, guess))
        return "Age" if "responses" in question else "weight, StartDate"

    write_config("panel.csv", Path("mine.yaml"), ask=ask)
    assert asked[0][1] == "What do you think of trains?"
    config = load_config("mine.yaml")
    assert config.population.response == "Age"
    assert config.population.context == ["weight", "StartDate"]


def test_what_is_there_is_not_overwritten(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    closed_question(tmp_path)
    (tmp_path / "car.yaml").write_text("mine")
    with pytest.raises(DataError, match=r"car\.yaml is there already"):
        write_config("car.csv")
    assert (tmp_path / "car.yaml").read_text() == "mine"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("q,a\n" + "x,y\n" * 7, "holds 7 records .*, 1 of them"),
        ("q,a\n" + "x,y\n" * 70, "1 of them distinct"),
        ("a\n" + "y\n" * 7, "1 columns with text"),
    ],
)
def test_files_that_are_too_small(tmp_path, content, message) -> None:
    (tmp_path / "d.csv").write_text(content)
    with pytest.raises(DataError, match=message):
        suggest_config(tmp_path / "d.csv")


def test_the_command(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    closed_question(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["init", "car.csv", "--response", "answer"])
    assert not ended.value.code
    assert re.search(
        r"car\.yaml is written; read it, then: mop run car\.yaml", capsys.readouterr().out
    )
    with pytest.raises(SystemExit) as ended:
        main(["init", "none.csv"])
    assert ended.value.code == 2
    assert capsys.readouterr().err.startswith("mop: none.csv was not found")


WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), max_size=12)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    header=st.lists(WORDS, min_size=2, max_size=5, unique=True),
    num_records=st.integers(1, 60),
    num_answers=st.integers(1, 60),
    data=st.data(),
)
def test_whatever_the_file_holds_the_sizes_fit(
    tmp_path, header, num_records, num_answers, data
) -> None:
    """A suggestion is a configuration whose split and sizes its records allow, or a refusal."""
    answers = data.draw(st.lists(WORDS, min_size=num_answers, max_size=num_answers))
    rows = [
        [answers[(i * (c + 1)) % num_answers] for c in range(len(header))]
        for i in range(num_records)
    ]
    path, target = tmp_path / "d.csv", tmp_path / "d.yaml"
    pd.DataFrame(rows, columns=header).to_csv(path, index=False)
    try:
        text = suggest_config(path)
    except DataError:
        return
    target.write_text(text, encoding="utf-8")
    train, test = split_of(target)
    assert len(test) >= 2
    assert len(train) >= 2
