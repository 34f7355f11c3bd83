"""Meshes: every split of eight devices, and two processes, against one device."""

from __future__ import annotations

import math
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, PartitionSpec

import mop_jax
from mop_jax.config import RunConfig
from mop_jax.errors import DataError
from mop_jax.lm import mesh as meshes
from mop_jax.lm.config import DecoderConfig, RopeScaling
from mop_jax.lm.families import parse_config, read_config
from mop_jax.lm.flax_lm import FlaxLM
from mop_jax.lm.memory import kv_bytes_per_token
from mop_jax.lm.mesh import (
    RULES,
    automatic_split,
    cache_sharding,
    initialize_distributed,
    is_writer,
    make_mesh,
    num_lanes,
    parameter_bytes,
    parameter_shapes,
    parameter_spec,
    replicate,
    shard_decoder,
    shard_rows,
    to_host,
)
from mop_jax.pipeline.run_folder import RunFolder
from mop_jax.pipeline.workspace import Workspace
from tests.lm.mesh_driver import EVERYTHING

DRIVER = Path(__file__).with_name("mesh_driver.py")
FAMILIES = [
    "gqa_tied", "biased_untied", "mistral", "qwen2", "qwen3", "gemma2", "gemma3", "gpt2"
]  # fmt: skip
SPLITS = ["8x1", "4x2", "2x4", "1x8"]
NAMES = ["llama", "gemma3", "golden_gqa_tied", "golden_gemma3"]
LLAMA_3_8B = DecoderConfig(
    vocab_size=128_256,
    hidden_size=4_096,
    intermediate_size=14_336,
    num_layers=32,
    num_heads=32,
    num_kv_heads=8,
    head_dim=128,
    max_position=8_192,
    norm_eps=1e-5,
    rope_theta=500_000.0,
    rope_scaling=RopeScaling(),
)


def environment(num_devices: int, **extra: str) -> dict[str, str]:
    """Of a process with that many CPU devices, which imports this package."""
    flags = " ".join(
        [
            f"--xla_force_host_platform_device_count={num_devices}",
            # Most of the time is the compiler's: it need not do its best.
            "--xla_backend_optimization_level=0",
            # Devices that share two busy cores wait for one another for longer than forty seconds,
            # after which XLA would end the process.
            "--xla_cpu_collective_call_warn_stuck_timeout_seconds=300",
            "--xla_cpu_collective_call_terminate_timeout_seconds=600",
            "--xla_cpu_collective_timeout_seconds=600",
        ]
    )
    package = str(Path(mop_jax.__file__).parents[1])
    # One device may be in several collectives of a program at once, and each holds a thread until
    # its partners arrive: with XLA's usual pool (a thread a device) they can all be held, for ever.
    threads = {"PJRT_NPROC": "64"}
    return {**os.environ, "XLA_FLAGS": flags, "PYTHONPATH": package, **threads, **extra}


def read(path: Path) -> dict[str, np.ndarray]:
    with np.load(path) as file:
        return {name: file[name] for name in file.files}


@pytest.fixture(scope="module")
def llama_folder(even_checkpoint):
    """Eight query heads, four key heads, an output projection of its own."""
    return even_checkpoint("gqa_tied", tie_word_embeddings=False, num_key_value_heads=4)


@pytest.fixture(scope="module")
def folders(llama_folder, even_checkpoint, golden_folder):
    """Checkpoints that the driver runs, by name."""
    return {
        "llama": llama_folder,
        "gemma3": even_checkpoint("gemma3", num_key_value_heads=2),
        "golden_gqa_tied": golden_folder("gqa_tied"),
        "golden_gemma3": golden_folder("gemma3"),
    }


@pytest.fixture(scope="module")
def runs(folders, tmp_path_factory):
    """What the driver found on eight devices in every split, and on one of them (1x1)."""
    out = tmp_path_factory.mktemp("mesh") / "runs.npz"
    checkpoints = [f"{name}={folder}" for name, folder in folders.items()]
    command = [sys.executable, str(DRIVER), str(out), ",".join(["1x1", *SPLITS]), *checkpoints]
    subprocess.run(command, env=environment(8), check=True, timeout=900)
    found = read(out)
    assert found["device_count"] == 8
    return found


def assert_same(found, expected, everything):
    """Logits of one run against another's, and scores and samples if they are to be there."""
    assert set(found) <= set(expected)
    assert ({"scores", "drawn", "drawn_log_probs"} <= set(found)) == everything
    np.testing.assert_array_equal(found["tokens"], expected["tokens"])
    assert expected["logits"].std() > 1
    np.testing.assert_allclose(found["logits"], expected["logits"], atol=1e-4)
    if everything:
        assert np.ptp(expected["scores"]) > 30
        np.testing.assert_allclose(found["scores"], expected["scores"], atol=2e-4)
        assert len(np.unique(expected["drawn"])) > 20
        np.testing.assert_array_equal(found["drawn"], expected["drawn"])
        np.testing.assert_allclose(found["drawn_log_probs"], expected["drawn_log_probs"], atol=1e-4)
    assert found["fingerprint"] == expected["fingerprint"]


def part(run, name, split):
    """Results of one checkpoint on one mesh, without what lies where."""
    start = f"{name}/{split}/"
    named = {key.removeprefix(start): v for key, v in run.items() if key.startswith(start)}
    return {k: v for k, v in named.items() if "/" not in k and k != "collectives"}


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_every_split_equals_one_device(runs, name, split):
    everything = split in EVERYTHING.get(name, ())
    assert everything or name != "llama"
    assert_same(part(runs, name, split), part(runs, name, "1x1"), everything)


@pytest.mark.parametrize("split", ["8x1", "4x2"])
def test_what_is_skipped_changes_no_bits_of_the_rest(runs, split):
    scores = runs[f"llama/{split}/scores"]
    skip = runs[f"llama/{split}/more/skip"]
    again = runs[f"llama/{split}/more/scores_skipped"]
    reported = np.isfinite(again).all(axis=1)
    assert reported[~skip].all()
    assert not reported.all()
    np.testing.assert_array_equal(again[reported], scores[reported])


@pytest.mark.parametrize("split", ["8x1", "4x2"])
def test_full_devices_halve_their_calls(runs, split):
    tried = runs[f"llama/{split}/more/tried"]
    assert tried.min() <= 24 < tried.max()
    found, expected = (runs[f"llama/{split}/{what}"] for what in ("more/scores_full", "scores"))
    np.testing.assert_allclose(found, expected, atol=2e-4)


@pytest.mark.parametrize("split", ["8x1", "4x2"])
def test_a_fault_names_its_pair_whatever_its_lane(runs, split):
    faulty = runs[f"llama/{split}/more/faulty"]
    assert 0 < len(faulty) < 20
    assert runs[f"llama/{split}/more/named"] in faulty


def test_lanes_exchange_nothing(runs):
    """Scoring on eight devices along `data`; and sums alone where two share the weights."""
    assert runs["llama/8x1/more/scoring_collectives"].tolist() == [0, 0]
    sums, others = runs["llama/4x2/more/scoring_collectives"]
    assert sums > 0
    assert others == 0


@pytest.mark.parametrize("name", ["gqa_tied", "gemma3"])
def test_one_of_eight_devices_equals_one_alone(runs, golden_lm, name):
    """The reference of the other tests is the model that is held to torch's logits."""
    found = part(runs, f"golden_{name}", "1x1")
    expected = np.asarray(golden_lm(name).logits(found["tokens"], found["lengths"]))
    real = np.arange(13) < found["lengths"][:, None]
    np.testing.assert_allclose(found["logits"][real], expected[real], atol=1e-4)


HELD = {
    # Heads 8, key heads 4, width 6, hidden 32, feed-forward 48, vocabulary 256, 3 layers.
    "embed_tokens.embedding": lambda m: (256 // m, 32),
    "lm_head.embedding": lambda m: (256 // m, 32),
    "norm.scale": lambda m: (32,),
    "layers.input_layernorm.scale": lambda m: (3, 32),
    "layers.self_attn.q_proj.kernel": lambda m: (3, 32, 48 // m),
    "layers.self_attn.k_proj.kernel": lambda m: (3, 32, 24 // m if m <= 4 else 24),
    "layers.self_attn.v_proj.kernel": lambda m: (3, 32, 24 // m if m <= 4 else 24),
    "layers.self_attn.o_proj.kernel": lambda m: (3, 48 // m, 32),
    "layers.mlp.gate_proj.kernel": lambda m: (3, 32, 48 // m),
    "layers.mlp.up_proj.kernel": lambda m: (3, 32, 48 // m),
    "layers.mlp.down_proj.kernel": lambda m: (3, 48 // m, 32),
}


@pytest.mark.parametrize("split", SPLITS)
def test_each_device_holds_the_part_it_should(runs, split):
    model = int(split.split("x")[1])
    for name, shape in HELD.items():
        held = runs[f"llama/{split}/held/{name}"]
        assert held[:, 0].tolist() == list(range(8)), name
        assert {tuple(row[1:]) for row in held.tolist()} == {shape(model)}, name


@pytest.mark.parametrize(("split", "sums"), [("8x1", 0), ("4x2", 3), ("2x4", 3)])
def test_only_sums_cross_devices(runs, split, sums):
    """After the embedding, and in the layer that is compiled once after o and after down."""
    assert runs[f"llama/{split}/collectives"].tolist() == [sums, 0]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_those_that_devices_hold(runs, folders, name, split):
    start = f"{name}/{split}/"
    shapes = {
        key.removeprefix(f"{start}shape/"): tuple(value)
        for key, value in runs.items()
        if key.startswith(f"{start}shape/")
    }
    config = read_config(folders[name])[0]
    assert parameter_shapes(config) == shapes
    held = [value[0, 1:] for key, value in runs.items() if key.startswith(f"{start}held/")]
    expected = 4 * sum(math.prod(shape.tolist()) for shape in held)
    assert parameter_bytes(config, jnp.float32, int(split.split("x")[1])) == expected


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_two_processes_equal_one(runs, llama_folder, tmp_path):
    """Two devices each; in 2x2 lanes and slots cross the processes, in 1x4 the weights do."""
    splits = ["2x2", "1x4"]
    address = f"127.0.0.1:{free_port()}"
    outs = [tmp_path / f"{i}.npz" for i in range(2)]
    processes = []
    for i, out in enumerate(outs):
        extra = {
            "JAX_COORDINATOR_ADDRESS": address,
            "JAX_NUM_PROCESSES": "2",
            "JAX_PROCESS_ID": str(i),
        }
        command = [sys.executable, str(DRIVER), str(out), ",".join(splits), f"llama={llama_folder}"]
        processes.append(subprocess.Popen(command, env=environment(2, **extra)))
    try:
        assert [process.wait(timeout=600) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    for i, out in enumerate(outs):
        found = read(out)
        assert found["device_count"] == 4
        assert bool(found["is_writer"]) == (i == 0)
        for split in splits:
            everything = split in EVERYTHING["llama"]
            assert_same(part(found, "llama", split), part(runs, "llama", "1x1"), everything)
            assert len(found[f"llama/{split}/held/norm.scale"]) == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_one_rule_covers_each_parameter(golden, name):
    for parameter in parameter_shapes(parse_config(golden(name).config)):
        matching = [rule for rule in RULES if re.fullmatch(rule[0], parameter)]
        assert len(matching) == 1, parameter


def test_a_parameter_without_a_rule_is_refused():
    with pytest.raises(ValueError, match=r"layers\.mlp\.new_proj\.kernel"):
        parameter_spec("layers.mlp.new_proj.kernel", (2, 4, 4), LLAMA_3_8B, 2)


def test_what_the_axis_does_not_divide_stays_whole():
    def spec(name, shape, model, **changes):
        config = DecoderConfig(**{**LLAMA_3_8B.__dict__, **changes})
        return parameter_spec(f"layers.{name}", shape, config, model)

    whole = PartitionSpec()
    by_output, by_input = PartitionSpec(None, None, "model"), PartitionSpec(None, "model", None)
    q, k, o = (f"self_attn.{x}_proj.kernel" for x in "qko")
    assert spec(q, (32, 4096, 4096), 8) == spec(k, (32, 4096, 1024), 8) == by_output
    assert spec(o, (32, 4096, 4096), 8) == by_input
    # Eight key heads on sixteen devices; 1,024 columns would divide, but through the heads.
    assert spec(k, (32, 4096, 1024), 16) == whole
    assert spec(q, (32, 4096, 4096), 16) == by_output
    # SmolLM2-135M: nine heads of 64 columns.
    nine = {"num_heads": 9, "num_kv_heads": 3}
    assert spec(q, (30, 576, 576), 2, **nine) == spec(o, (30, 576, 576), 2, **nine) == whole
    assert spec(q, (30, 576, 576), 3, **nine) == by_output
    assert spec("mlp.down_proj.kernel", (2, 37, 24), 2) == whole
    assert spec("mlp.down_proj.kernel", (2, 38, 24), 2) == by_input
    assert spec("mlp.up_proj.bias", (2, 38), 2) == PartitionSpec(None, "model")
    assert spec("mlp.up_proj.kernel", (2, 24, 38), 1) == whole


def one_device(*names: str) -> Mesh:
    return jax.make_mesh((1, 1), names, (AxisType.Auto,) * 2, devices=jax.devices()[:1])


def test_placing_on_a_mesh_of_one_device(tiny_lm):
    mesh = one_device("data", "model")
    assert num_lanes(mesh) == num_lanes(None) == 1
    value = np.arange(6.0).reshape(2, 3)
    for place, spec in ((shard_rows, PartitionSpec("data")), (replicate, PartitionSpec())):
        (placed,) = place(mesh, [value])
        assert placed.sharding.spec == spec
        np.testing.assert_array_equal(to_host(placed), value)
        np.testing.assert_array_equal(place(mesh, jnp.asarray(value)), value)
        assert place(None, value) is value
    config = tiny_lm.config
    assert cache_sharding(None, config, rows_over_data=True) is None
    pool = cache_sharding(mesh, config, rows_over_data=False)
    assert pool.keys.spec == PartitionSpec(None, None, "model", None, None)
    batch = cache_sharding(mesh, config, rows_over_data=True)
    assert batch.values.spec == PartitionSpec(None, "data", "model", None, None)
    assert batch.lengths.spec == PartitionSpec("data")
    moved = shard_decoder(tiny_lm.decoder, mesh)
    kernel = moved.layers.mlp.up_proj.kernel[...]
    assert kernel.sharding.mesh == mesh
    np.testing.assert_array_equal(kernel, tiny_lm.decoder.layers.mlp.up_proj.kernel[...])


def test_options_for_a_mesh(monkeypatch):
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    for option in ("auto", None, "1x1"):
        assert make_mesh(option, LLAMA_3_8B, jnp.float32) is None
    for option in ("two", "2", "0x1", "2x", "1x-1", "4 x 2"):
        with pytest.raises(DataError, match=rf"mesh '{option}' is not supported; give auto, or"):
            make_mesh(option, LLAMA_3_8B, jnp.float32)
    with pytest.raises(DataError, match=r"A mesh of 4x2 needs 8 devices; there are 1\."):
        make_mesh("4x2", LLAMA_3_8B, jnp.float32)
    mesh = one_device("data", "model")
    assert make_mesh(mesh, LLAMA_3_8B, jnp.float32) is mesh
    with pytest.raises(DataError, match=r"axes \('data', 'model'\); this one has \('x', 'y'\)"):
        make_mesh(one_device("x", "y"), LLAMA_3_8B, jnp.float32)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(jax, "device_count", lambda: 16)
    with pytest.raises(DataError, match="needs 8 devices; there are 16 in 2 processes"):
        make_mesh("8x1", LLAMA_3_8B, jnp.float32)


def test_weights_are_split_as_far_as_they_must():
    gib = 2**30
    assert automatic_split(LLAMA_3_8B, jnp.bfloat16, 1, 79 * gib) == (1, 1)
    assert automatic_split(LLAMA_3_8B, jnp.bfloat16, 8, 79 * gib) == (8, 1)
    assert automatic_split(LLAMA_3_8B, jnp.bfloat16, 8, 15.75 * gib) == (4, 2)
    assert automatic_split(LLAMA_3_8B, jnp.float32, 8, 15.75 * gib) == (2, 4)
    # 15.0 GiB of weights on one device of 18: more than the share, but they fit.
    assert automatic_split(LLAMA_3_8B, jnp.bfloat16, 1, 18 * gib) == (1, 1)
    with pytest.raises(DataError, match=r"take 7\.5 GiB a device in bfloat16 on 2 devices"):
        automatic_split(LLAMA_3_8B, jnp.bfloat16, 2, 7 * gib)


def test_the_devices_own_memory_decides(monkeypatch):
    class Device:
        def memory_stats(self):
            return {"bytes_limit": 15.75 * 2**30}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    assert meshes._automatic(LLAMA_3_8B, jnp.bfloat16, 8) == (4, 2)
    monkeypatch.setattr(Device, "memory_stats", lambda self: None)
    assert meshes._automatic(LLAMA_3_8B, jnp.bfloat16, 8) == (8, 1)


def test_bytes_of_llama_3_8b():
    """By hand: what the documentation's arithmetic starts from."""
    layer = 2 * 4096**2 + 2 * 4096 * 1024 + 3 * 4096 * 14336 + 2 * 4096
    count = 2 * 128_256 * 4096 + 32 * layer + 4096
    assert count == 8_030_261_248
    assert parameter_bytes(LLAMA_3_8B, jnp.bfloat16) == 2 * count
    assert kv_bytes_per_token(LLAMA_3_8B, jnp.bfloat16) == 2 * 32 * 8 * 128 * 2 == 131_072
    assert kv_bytes_per_token(LLAMA_3_8B, jnp.bfloat16, 8) == 131_072 // 8
    assert kv_bytes_per_token(LLAMA_3_8B, jnp.bfloat16, 16) == 131_072


def test_the_documentations_table():
    """Every figure of docs/devices.md, computed anew."""
    text = (Path(__file__).parents[2] / "docs" / "devices.md").read_text(encoding="utf-8")
    table = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 7 and "=" not in line and "---" not in line:
            table[cells[0]] = cells[2:]
    config, dtype = LLAMA_3_8B, jnp.bfloat16
    rows, new, cached = 256, 64, 400
    heads, width = config.num_heads, config.intermediate_size

    def figures(model: int) -> dict[str, float]:
        token = kv_bytes_per_token(config, dtype, model)
        return {
            "weights": parameter_bytes(config, dtype, model),
            "keys and values of a token": token,
            "256 prefixes of 400 tokens": 256 * 400 * token,
            "attention scores, one layer": rows * heads * new * (cached + new) * 4 / model,
            "what is added to them": rows * new * 4 * (cached + new) * 4,
            "gathered prefixes, one layer": rows * cached * token / config.num_layers,
            "feed-forward, one layer": 3 * rows * new * width * 2 / model,
            "residual stream": rows * new * config.hidden_size * 2,
            "logits of a block": 2 * 4_096 * 32_768 * 4 / model,
            "its powers": 9 * 4_096 * 32_768 / 16 * 4 / model,
        }

    assert table.keys() == figures(1).keys()
    for name, (exact, *by_model) in table.items():
        assert exact == f"{figures(1)[name]:,.0f}"
        for model, cell in zip((1, 2, 4, 8), by_model, strict=True):
            value = figures(model)[name]
            small = name == "keys and values of a token"
            assert cell == (f"{value / 1e6:.3f} MB" if small else f"{value / 1e9:.2f} GB"), name


def test_the_configuration_chooses_dtype_and_mesh(monkeypatch, tmp_path):
    section = {"path": "m", "dtype": "bfloat16", "mesh": "4x2"}
    config = RunConfig.model_validate(
        {
            "population": {"path": "a.csv", "context": "x", "response": "y"},
            "language_model": section,
            "encoder": {"path": "e"},
        }
    )
    asked = []
    monkeypatch.setattr(FlaxLM, "from_pretrained", lambda *args, **_: asked.append(args) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Workspace(RunFolder(tmp_path / "run", config)).language_model  # noqa: B018
    assert asked == [("m", "bfloat16", "4x2")]


@pytest.mark.parametrize(
    ("variables", "named"),
    [
        ({"JAX_NUM_PROCESSES": "2"}, "JAX_COORDINATOR_ADDRESS is unset"),
        ({"JAX_PROCESS_ID": "0", "JAX_COORDINATOR_ADDRESS": "h:1"}, "JAX_NUM_PROCESSES is unset"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "h:1",
                "JAX_NUM_PROCESSES": "two",
                "JAX_PROCESS_ID": "0",
            },
            "must be whole numbers",
        ),
    ],
)
def test_half_an_environment_is_refused(monkeypatch, variables, named):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError, match=named):
        initialize_distributed()
    assert is_writer()
