"""Who imports whom: dependencies point one way, and importing has no side effects."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mop_jax
import mop_jax.inference
import mop_jax.models

ROOT = Path(__file__).parents[1]
FOLDERS = {"mop_jax": ROOT / "mop_jax", "mop_jax.models": ROOT / "models",
           "mop_jax.inference": ROOT / "inference"}  # fmt: skip

# Lowest first. A module imports from its own layer and those below it. A new module needs a place.
LAYERS = (
    {"errors"},
    {"atomic", "resources", "progress", "interruption", "notes", "registry", "segmentation",
     "yaml_reader", "distributions.temperature"},
    {"population", "prompts", "encoder", "components.descriptions", "components.exemplars",
     "components.proposals", "components.candidates", "survey"},
    {"datasets", "lm"},
    {"likelihoods"},
    {"distributions"},
    {"models"},
    {"inference"},
    {"evaluation", "components", "plots", "choices"},
    {"config", "configs"},
    {"pipeline", "init_config"},
    {"benchmark"},
    {"cli"},
    {"__main__", ""},
)  # fmt: skip
# What the probabilistic program may know of: arrays, never texts or language models.
PROBABILISTIC = {"errors", "distributions", "models"}


def sources() -> dict[str, Path]:
    """Module name → file, of the package as it is installed."""
    found = {}
    for package, folder in FOLDERS.items():
        for path in folder.rglob("*.py"):
            parts = path.relative_to(folder).with_suffix("").parts
            # The links that type checkers need show both folders a second time.
            if package == "mop_jax" and parts[0] in ("models", "inference"):
                continue
            name = ".".join((package, *parts)).removesuffix(".__init__")
            found[name] = path
    return found


SOURCES = sources()


def imported_names(path: Path) -> set[str]:
    """Every absolute name that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def modules_imported(path: Path) -> set[str]:
    """Modules of the package that a file imports."""
    found = set()
    for name in imported_names(path):
        while name and name not in SOURCES:
            name = name.rpartition(".")[0]
        found |= {name} if name else set()
    return found


GRAPH = {name: modules_imported(path) for name, path in SOURCES.items()}


def part(module: str) -> str:
    """`mop_jax.lm.scoring` → `lm`."""
    return [*module.split("."), ""][1]


def layer(module: str) -> int:
    # A module with a place of its own, or its package's.
    own = module.removeprefix("mop_jax").removeprefix(".")
    places = [i for i, parts in enumerate(LAYERS) if own in parts]
    places = places or [i for i, parts in enumerate(LAYERS) if part(module) in parts]
    assert places, f"{module} has no place among LAYERS of this test"
    return places[0]


def test_the_graph_is_read_as_it_is():
    """Guards the tests below: a reader that finds no imports would let everything pass."""
    assert "mop_jax.lm.decoder" in GRAPH["mop_jax.lm.flax_lm"]
    assert "mop_jax.models.gates" in GRAPH["mop_jax.models.mixture"]
    assert "mop_jax.pipeline.summary" in GRAPH["mop_jax.cli.app"]  # inside a function
    assert len(SOURCES) > 40


@pytest.mark.parametrize("module", sorted(SOURCES))
def test_dependencies_point_down(module):
    above = [name for name in GRAPH[module] if layer(name) > layer(module)]
    assert not above, f"{module} imports {above}"


def test_there_are_no_cycles():
    tuple(TopologicalSorter(GRAPH).static_order())


@pytest.mark.parametrize("module", [m for m in SOURCES if part(m) in PROBABILISTIC])
def test_the_probabilistic_program_sees_arrays_only(module):
    assert {part(name) for name in GRAPH[module]} <= PROBABILISTIC


@pytest.mark.parametrize("module", [m for m in SOURCES if part(m) == "inference"])
def test_inference_takes_a_language_model_and_loads_none(module):
    concrete = {name for name in GRAPH[module] if part(name) == "lm"} - {"mop_jax.lm.base"}
    assert not concrete


def test_nothing_is_called_models_or_inference_at_the_top():
    files = [p for folder in ("mop_jax", "models", "inference", "tests", "benchmarks")
             for p in (ROOT / folder).rglob("*.py")]  # fmt: skip
    for path in files:
        tops = {name.partition(".")[0] for name in imported_names(path)}
        assert not tops & {"models", "inference"}, path


def test_no_file_needs_torch():
    for path in SOURCES.values():
        tops = {name.partition(".")[0] for name in imported_names(path)}
        assert not tops & {"torch", "tensorflow", "sentence_transformers"}, path


@pytest.mark.parametrize("module", [mop_jax, mop_jax.models, mop_jax.inference])
def test_public_names_are_there(module):
    assert len(set(module.__all__)) == len(module.__all__) > 5
    for name in module.__all__:
        assert getattr(module, name) is not None


def test_no_name_that_is_imported_when_used_is_that_of_a_module_beside_it():
    """Whoever imported the module first would find it in place of the function."""
    stubs = [stub for folder in FOLDERS.values() for stub in folder.rglob("__init__.pyi")]
    assert len(stubs) > 5
    for stub in stubs:
        for node in ast.parse(stub.read_text("utf-8")).body:
            for name in node.names if isinstance(node, ast.ImportFrom) and node.module else ():
                beside = [stub.with_name(name.name), stub.with_name(f"{name.name}.py")]
                assert not any(path.exists() for path in beside), (stub, name.name)


SIDE_EFFECTS = """
import sys, warnings
import jax

def settings():
    return {name: getattr(jax.config, name, None) for name in jax.config.values}

before, filters = settings(), list(warnings.filters)
import mop_jax
assert "numpyro" in sys.modules, "nothing was imported"
changed = {k: (before.get(k), v) for k, v in settings().items() if before.get(k) != v}
assert len(before) > 50, "the settings were not read"
assert not changed, changed
assert "torch" not in sys.modules
from jax._src import xla_bridge
assert not xla_bridge.backends_are_initialized(), "an array was made at import"
print("fine")
"""


def test_importing_changes_nothing():
    """No jax setting, no backend (so that users can still choose one), no torch.

    EAGER_IMPORT makes the names that are imported when they are used be imported at the start.
    """
    done = python(SIDE_EFFECTS, EAGER_IMPORT="1")
    assert done.stdout == "fine\n", done.stderr


def python(code: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """How a process ended that ran some code."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code, *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
        check=False,
    )


COMMAND = """
import sys
from mop_jax import cli

try:
    cli.main(sys.argv[1:])
except SystemExit as end:
    heavy = {"jax", "numpyro", "flax", "transformers", "arviz", "matplotlib", "sklearn"}
    print("status", end.code, sorted(heavy & set(sys.modules)), "pandas" in sys.modules)
"""


def test_help_needs_nothing_heavy():
    for arguments in (["--help"], ["run", "--help"], ["--version"], ["run", "none.yaml"]):
        done = python(COMMAND, *arguments)
        status = 2 if arguments[-1] == "none.yaml" else 0
        assert done.stdout.splitlines()[-1] == f"status {status} [] False", done.stderr


def test_bad_input_is_refused_before_anything_heavy_is_imported(tmp_path):
    (tmp_path / "a.csv").write_text("q,a\n" + "one?,yes\ntwo?,no\n" * 2)
    (tmp_path / "m.gguf").write_bytes(b"x")
    (tmp_path / "e").mkdir()
    rest = "language_model: {path: m.gguf}\nencoder: {path: e}\n"
    for population, words in (
        ("{path: b.csv, context: q, response: a}", "b.csv was not found"),
        ("{path: a.csv, context: q, response: b}", "no column 'b'"),
        ("{path: a.csv, context: q, response: a}", "8 personas were asked for"),
    ):
        (tmp_path / "c.yaml").write_text(f"population: {population}\n{rest}")
        done = python(COMMAND, "run", tmp_path / "c.yaml", "--out", tmp_path / "run")
        assert done.stdout.startswith("status 2 [] "), done.stderr
        assert words in done.stderr
        assert not (tmp_path / "run").exists()
