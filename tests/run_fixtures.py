"""A whole run in miniature: checkpoints, records and a configuration small enough for seconds.

The language model and the encoder are random but real in form: folders as Hugging Face and
sentence-transformers lay them out. Test modules name this one in `pytest_plugins`, so that the
finished run is made once for all of them. They also import from it, which is before pytest sees it:
PYTEST_DONT_REWRITE.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors.numpy import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from mop_jax import pipeline
from mop_jax.components.personas import summary_messages
from mop_jax.config import RunConfig
from mop_jax.population import Population
from mop_jax.prompts import DEFAULT_INSTRUCTION

REPOSITORY = Path(__file__).parents[1]
CACHE = REPOSITORY / ".cache"
SPECIAL = ("<|im_start|>", "<|im_end|>", "<|endoftext|>")
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
FILMS = ("Alien", "Vertigo", "Metropolis", "Ran", "Stalker", "Jaws", "Ikiru", "Persona", "Brazil",
         "Rififi")  # fmt: skip
PRAISE = ("warm", "tender", "funny", "clever")
BLAME = ("dull", "noisy", "clumsy", "cold")
PARTS = ("plot", "score", "cast", "ending", "camera")
# A token that `str.splitlines` takes for the end of a line, as a model may well write it.
LINE_SEPARATOR = "\u2028"
CONTEXT_WINDOW = 640


def records() -> pd.DataFrame:
    """Forty reviews: ten films, two friendly and two hostile ones each, all different."""
    rng = np.random.default_rng(7)
    rows = []
    for film in FILMS:
        for n, mood in enumerate(("fresh", "rotten", "fresh", "rotten")):
            first, second = rng.choice(PRAISE if mood == "fresh" else BLAME, 2, replace=False)
            part, other = rng.choice(PARTS, 2, replace=False)
            text = f"A {first} film with a {second} {part}"
            text += f" and hardly any {other}." if n > 1 else "."
            rows.append(
                {"id": f"r{len(rows):02d}", "film": film, "mood": mood, "review": text,
                 "weight": 1 + len(rows) % 3}
            )  # fmt: skip
    return pd.DataFrame(rows)


def make_tokenizer(texts: list[str]) -> Tokenizer:
    """Byte-level BPE in which every word of `texts` is one token behind a blank; any text encodes.

    Merges grow a word from its blank to the right, so they never compete with one another.
    """
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    vocabulary = dict.fromkeys(sorted(pre_tokenizers.ByteLevel.alphabet()))
    merges: dict[tuple[str, str], None] = {}
    for text in texts:
        for piece, _ in byte_level.pre_tokenize_str(text):
            for end in range(2, len(piece) + 1 if piece[0] == "Ġ" else 0):
                merges[piece[: end - 1], piece[end - 1]] = None
                vocabulary[piece[:end]] = None
    backend = Tokenizer(
        models.BPE(vocab={piece: i for i, piece in enumerate(vocabulary)}, merges=list(merges))
    )
    backend.pre_tokenizer = byte_level
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    backend.add_tokens([AddedToken(LINE_SEPARATOR, normalized=False)])
    return backend


def toy_tokenizer() -> Tokenizer:
    """The tokenizer of the toy run's texts and prompts."""
    frame = records()
    population = Population(list(frame["id"]), list(frame["film"]), list(frame["review"]))
    texts = [f" {message['content']}" for message in summary_messages(population)]
    texts += [f" {DEFAULT_INSTRUCTION}", " Write a fresh rotten review of the film", " You are"]
    return make_tokenizer(texts + [f" {film}" for film in FILMS])


def write_language_model(
    folder: Path,
    *,
    seed: int = 0,
    context_window: int = CONTEXT_WINDOW,
    chat_template: str | None = CHAT,
) -> Path:
    """A random Llama of two layers as a Hugging Face checkpoint folder.

    Without a chat template it is a base model.
    """
    backend = toy_tokenizer()
    vocab, width, wide, head_dim, heads, kv_heads = backend.get_vocab_size(), 24, 40, 6, 4, 2
    rng = np.random.default_rng(seed)

    def matrix(rows: int, columns: int) -> np.ndarray:
        return (rng.normal(size=(rows, columns)) * 1.2 / columns**0.5).astype(np.float32)

    embedding = rng.normal(size=(vocab, width)) * 0.4
    # Bytes are rarer than words, and ends of turns more frequent: texts of a few words come out.
    embedding[:256] *= 0.3
    embedding[backend.token_to_id("<|im_end|>")] *= 2.5
    tensors = {
        "model.embed_tokens.weight": embedding.astype(np.float32),
        "model.norm.weight": np.ones(width, np.float32),
    }
    for layer in range(2):
        prefix = f"model.layers.{layer}."
        tensors |= {
            f"{prefix}input_layernorm.weight": np.ones(width, np.float32),
            f"{prefix}post_attention_layernorm.weight": np.ones(width, np.float32),
            f"{prefix}self_attn.q_proj.weight": matrix(heads * head_dim, width),
            f"{prefix}self_attn.k_proj.weight": matrix(kv_heads * head_dim, width),
            f"{prefix}self_attn.v_proj.weight": matrix(kv_heads * head_dim, width),
            f"{prefix}self_attn.o_proj.weight": matrix(width, heads * head_dim),
            f"{prefix}mlp.gate_proj.weight": matrix(wide, width),
            f"{prefix}mlp.up_proj.weight": matrix(wide, width),
            f"{prefix}mlp.down_proj.weight": matrix(width, wide),
        }
    config = {
        "model_type": "llama",
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": wide,
        "num_hidden_layers": 2,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "max_position_embeddings": context_window,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1000.0,
        "tie_word_embeddings": True,
        "eos_token_id": backend.token_to_id("<|im_end|>"),
        "hidden_act": "silu",
    }
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        additional_special_tokens=list(SPECIAL),
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
    )
    folder.mkdir(parents=True)
    tokenizer.save_pretrained(str(folder))
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def write_encoder(folder: Path, *, seed: int = 1) -> Path:
    """A random BERT of one layer as a sentence-transformers folder."""
    backend = toy_tokenizer()
    width, wide = 16, 20
    rng = np.random.default_rng(seed)
    sizes = {"word": backend.get_vocab_size(), "position": 128, "token_type": 2}
    shapes: dict[str, tuple[int, ...]] = {
        f"embeddings.{name}_embeddings.weight": (rows, width) for name, rows in sizes.items()
    }
    layer = "encoder.layer.0."
    for name, rows, columns in (
        ("attention.self.query", width, width),
        ("attention.self.key", width, width),
        ("attention.self.value", width, width),
        ("attention.output.dense", width, width),
        ("intermediate.dense", wide, width),
        ("output.dense", width, wide),
    ):
        shapes |= {f"{layer}{name}.weight": (rows, columns), f"{layer}{name}.bias": (rows,)}
    tensors = {
        name: (rng.normal(size=shape) * 0.5).astype(np.float32) for name, shape in shapes.items()
    }
    norms = ("embeddings", f"{layer}attention.output", f"{layer}output")
    for name in norms:
        tensors[f"{name}.LayerNorm.weight"] = np.ones(width, np.float32)
        tensors[f"{name}.LayerNorm.bias"] = np.zeros(width, np.float32)
    config = {
        "model_type": "bert",
        "vocab_size": sizes["word"],
        "hidden_size": width,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": wide,
        "max_position_embeddings": sizes["position"],
        "type_vocab_size": sizes["token_type"],
        "layer_norm_eps": 1e-12,
        "hidden_act": "gelu",
    }
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for i, (kind, path) in enumerate(
            (("Transformer", ""), ("Pooling", "1_Pooling"), ("Normalize", "2_Normalize"))
        )
    ]
    (folder / "1_Pooling").mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    backend.save(str(folder / "tokenizer.json"))
    for name, content in (
        ("config.json", config),
        ("modules.json", modules),
        ("sentence_bert_config.json", {"max_seq_length": 128, "do_lower_case": False}),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": True}),
    ):
        (folder / name).write_text(json.dumps(content), encoding="utf-8")
    return folder


class Materials(NamedTuple):
    """What a miniature run is made from.

    Attributes:
        folder: holds everything below.
        language_model: checkpoint folder.
        encoder: checkpoint folder.
        records: CSV file.
    """

    folder: Path
    language_model: Path
    encoder: Path
    records: Path

    def settings(self, **changes: dict[str, Any]) -> dict[str, Any]:
        """A configuration as `config.yaml` holds it; `changes` are merged section by section."""
        values: dict[str, Any] = {
            "name": "miniature",
            "seed": 3,
            "population": {
                "path": str(self.records),
                "context": ["mood", "film"],
                "template": "Write a {{ mood }} review of the film {{ film }}.",
                "response": "review",
                "id": "id",
                "label": "mood",
                "group": "film",
                "weight": "weight",
            },
            "split": {"by": "group", "test_size": 12, "train_size": 24},
            "language_model": {"path": str(self.language_model)},
            "encoder": {"path": str(self.encoder)},
            "personas": {"num_personas": 2, "records_per_persona": 3, "max_new_tokens": 12},
            "exemplars": {"num_exemplars": 4},
            "candidates": {"num_candidates": 4},
            "inference": {"num_steps": 60, "num_draws": 8},
            "evaluation": {"num_candidates": 6},
            "simulation": {"num_samples": 20, "max_new_tokens": 8},
        }
        for section, content in copy.deepcopy(changes).items():
            if isinstance(content, dict):
                values[section] = {**values.get(section, {}), **content}
            else:
                values[section] = content
        return values

    def config(self, **changes: Any) -> RunConfig:
        """The same as a `RunConfig`."""
        return RunConfig.model_validate(self.settings(**changes))


def write_yaml(path: Path, settings: dict[str, Any]) -> Path:
    """Writes a configuration file."""
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return path


def read_json(path: Path) -> Any:
    """A JSON file."""
    return json.loads(path.read_text("utf-8"))


def read_lines(path: Path) -> list[dict[str, Any]]:
    """A JSON Lines file."""
    return [json.loads(line) for line in path.read_text("utf-8").split("\n") if line]


def contents(folder: Path, *, hidden: bool = False) -> dict[str, bytes]:
    """Every file's bytes by its relative path; `manifest.json` without timings, its keys sorted."""
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_file() and (hidden or not any(p.startswith(".") for p in Path(name).parts)):
            found[name] = path.read_bytes()
    if "manifest.json" in found:
        manifest = json.loads(found["manifest.json"])
        for step in manifest["steps"].values():
            step.pop("seconds", None)
        found["manifest.json"] = json.dumps(manifest, sort_keys=True).encode()
    return found


def unfinished_files(folder: Path) -> list[str]:
    """Temporary files and journals, which a finished run must not leave."""
    return [p.name for p in folder.rglob(".*") if p.name != ".lock"]


@pytest.fixture(scope="session")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Materials:
    """Checkpoints and records of the miniature run."""
    folder = tmp_path_factory.mktemp("materials")
    path = folder / "reviews.csv"
    records().to_csv(path, index=False)
    return Materials(
        folder, write_language_model(folder / "llama"), write_encoder(folder / "bert"), path
    )


@pytest.fixture(scope="session")
def finished_run(materials: Materials, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with everything done; tests that write take a copy (`copy_of_run`)."""
    return pipeline.run(materials.config(), tmp_path_factory.mktemp("runs") / "finished")


@pytest.fixture
def copy_of_run(finished_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run to be broken."""
    return Path(shutil.copytree(finished_run, tmp_path / "run", dirs_exist_ok=False))


def undo(folder: Path, *steps: str) -> None:
    """Makes a run folder forget steps, as if it had been stopped before them."""
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text("utf-8"))
    for step in steps:
        for name in manifest["steps"].pop(step)["outputs"]:
            (folder / name).unlink()
    path.write_text(json.dumps(manifest), encoding="utf-8")


class Ended(NamedTuple):
    """How a command ended.

    Attributes:
        status: exit status.
        out: standard output.
        err: standard error.
    """

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line with which `mop` refuses."""
        lines = [line for line in self.err.splitlines() if line.startswith("mop: ")]
        assert len(lines) == 1, self.err
        assert self.err.splitlines()[-1] == lines[0], self.err
        assert "Traceback" not in self.err
        return lines[0].removeprefix("mop: ")


@pytest.fixture
def mop(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable]:
    """A function that runs the command line in this process, and says how it ended."""
    from mop_jax import cli
    from mop_jax.cli import feedback

    monkeypatch.setenv("XDG_CACHE_HOME", str(CACHE))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "dumb")
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}

    def run(*arguments: object) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as end:
            cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ended(int(end.value.code or 0), captured.out, captured.err)

    with pytest.MonkeyPatch.context() as quiet:
        # Filters that the command line sets belong to its own process.
        quiet.setattr(feedback.warnings, "filterwarnings", lambda *args, **kwargs: None)
        yield run
    for name, value in before.items():
        jax.config.update(name, value)


def environment() -> dict[str, str]:
    """The environment of a subprocess: compiled programs are shared with this process."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(CACHE / "mop-jax" / "xla"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "XDG_CACHE_HOME": str(CACHE),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")]),
        "COLUMNS": "100",
    }


PYTHON = sys.executable
