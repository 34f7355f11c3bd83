"""Devices: a mesh of two axes, which parameter lies where on it, and several hosts.

`data` splits independent work (rows of a batch, or lanes of batches) and `model` splits weights, as
Megatron does: the projections that read the residual stream by their outputs, the two that write to
it by their inputs, the vocabulary by its rows. One table, `RULES`, says so by names of parameters;
everything else follows from it through GSPMD, and the decoder knows nothing of devices.

A dimension that the `model` axis does not divide stays whole on every device, and so do heads: key
and value projections with fewer heads than the axis has devices, and query and output projections
whose heads it does not divide, are replicated rather than cut through a head. That costs memory
and time, never exactness.

Where there is one device there is no mesh: every function here takes None for it and then does
nothing.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mop_jax.errors import DataError
from mop_jax.lm.config import DecoderConfig
from mop_jax.lm.decoder import Decoder, KVCache

DATA, MODEL = "data", "model"
# Weights may take this share of a device before the automatic mesh splits them further; the rest
# is for pooled prefixes and activations.
WEIGHTS_SHARE = 0.6

# Parameter name → the dimension that `model` splits, counted from the end (stacked layers have one
# more in front), and the field of the configuration that counts the heads along it, if any.
# A new parameter needs a line here; one without is refused.
RULES: tuple[tuple[str, Any, Any], ...] = (
    (r"layers\.self_attn\.q_proj\.(kernel|bias)", -1, "num_heads"),
    (r"layers\.self_attn\.[kv]_proj\.(kernel|bias)", -1, "num_kv_heads"),
    (r"layers\.self_attn\.o_proj\.kernel", -2, "num_heads"),
    (r"layers\.mlp\.(gate|up)_proj\.(kernel|bias)", -1, None),
    (r"layers\.mlp\.down_proj\.kernel", -2, None),
    (r"(embed_tokens|lm_head)\.embedding", -2, None),
    # In full on every device: norms, biases behind a sum over devices, learned positions.
    (r"(.*norm|layers\.(self_attn\.o|mlp\.down)_proj)\.(scale|bias)", None, None),
    (r"embed_positions\.embedding", None, None),
)

Tree = TypeVar("Tree")


def parameter_spec(
    name: str, shape: tuple[int, ...], config: DecoderConfig, model: int
) -> PartitionSpec:
    """How a parameter is split over a `model` axis of that many devices.

    Args:
        name: dotted path in the decoder, such as `layers.mlp.up_proj.kernel`.
        shape: of the whole parameter, layers stacked in front.
        config: the architecture, for its numbers of heads.
        model: devices along `model`.

    Raises:
        ValueError: for a name that no rule covers.

    Example:
        >>> from mop_jax.lm.config import DecoderConfig
        >>> config = DecoderConfig(101, 24, 36, 3, 4, 2, 6, 211, 1e-5, 700.0)
        >>> tuple(parameter_spec("layers.mlp.up_proj.kernel", (3, 24, 36), config, 4))
        (None, None, 'model')
        >>> tuple(parameter_spec("layers.self_attn.k_proj.kernel", (3, 24, 12), config, 4))
        ()
    """
    rules = [rule for pattern, *rule in RULES if re.fullmatch(pattern, name)]
    if not rules:
        raise ValueError(f"No rule says how parameter {name} is split over devices.")
    dimension, heads = rules[0]
    if dimension is None or model == 1:
        return PartitionSpec()
    units = shape[dimension] if heads is None else getattr(config, heads)
    if units % model:
        return PartitionSpec()
    spec: list[str | None] = [None] * len(shape)
    spec[dimension] = MODEL
    return PartitionSpec(*spec)


def parameter_sharding(
    mesh: Mesh | None, name: str, shape: tuple[int, ...], config: DecoderConfig
) -> NamedSharding | None:
    """Where a parameter lies; None without a mesh."""
    if mesh is None:
        return None
    return NamedSharding(mesh, parameter_spec(name, shape, config, mesh.shape[MODEL]))


def cache_sharding(
    mesh: Mesh | None, config: DecoderConfig, *, rows_over_data: bool
) -> KVCache | None:
    """Where the parts of a cache lie, as a cache of shardings: heads over `model`, if it divides.

    Args:
        mesh: the mesh.
        config: the architecture.
        rows_over_data: rows split over `data` (a batch's own cache), or in full along it (a pool
            of prefixes that every lane reads).
    """
    if mesh is None:
        return None
    rows = DATA if rows_over_data else None
    heads = MODEL if config.num_kv_heads % mesh.shape[MODEL] == 0 else None
    tokens: Any = NamedSharding(mesh, PartitionSpec(None, rows, heads, None, None))
    lengths: Any = NamedSharding(mesh, PartitionSpec(rows))
    return KVCache(tokens, tokens, lengths)


def shard_decoder(decoder: Decoder, mesh: Mesh | None) -> Decoder:
    """The decoder with its parameters on the mesh by `RULES`; those already there are not moved."""
    if mesh is None:
        return decoder
    graph, state = nnx.split(decoder)
    placed = {}
    for path, leaf in nnx.to_flat_state(state):
        name, value = ".".join(map(str, path)), leaf[...]
        sharding = parameter_sharding(mesh, name, value.shape, decoder.config)
        placed[path] = leaf.replace(jax.device_put(value, sharding))
    return nnx.merge(graph, nnx.from_flat_state(placed))


def num_lanes(mesh: Mesh | None) -> int:
    """Devices along `data`: how many pieces of independent work run side by side."""
    return 1 if mesh is None else mesh.shape[DATA]


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Where an array lies whose leading axis is split over `data`."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def shard_rows(mesh: Mesh | None, tree: Tree) -> Tree:
    """Arrays with their leading axis split over `data`, which must divide it.

    On several hosts every process gives the whole array, and keeps its own part.
    """
    return _put(mesh, tree, PartitionSpec(DATA))


def replicate(mesh: Mesh | None, tree: Tree) -> Tree:
    """Arrays in full on every device."""
    return _put(mesh, tree, PartitionSpec())


def _put(mesh: Mesh | None, tree: Tree, spec: PartitionSpec) -> Tree:
    if mesh is None:
        return tree
    sharding = NamedSharding(mesh, spec)

    def put(leaf):
        if isinstance(leaf, jax.Array):
            return jax.device_put(leaf, sharding)
        return put_array(np.asarray(leaf), sharding)

    return jax.tree.map(put, tree)


def put_array(value: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """A host array on its devices; each gets its own part and no more."""
    return jax.make_array_from_callback(value.shape, sharding, lambda index: value[index])


def constrain(tree: Tree, shardings: Any) -> Tree:
    """Arrays of a compiled program that are to lie so; a tree of shardings, or None for anyhow."""
    return tree if shardings is None else jax.lax.with_sharding_constraint(tree, shardings)


def made_on(shardings: Any, function: Callable[..., Tree], *args: Any) -> Tree:
    """`function(*args)` (hashable arguments), its arrays made where they are to lie.

    Nothing is made in full on one device that is then to be spread over several.
    """
    if shardings is None:
        return function(*args)
    return jax.jit(function, static_argnums=range(len(args)), out_shardings=shardings)(*args)


def in_lanes(mesh: Mesh | None, function: Callable[..., Tree], in_axes: Any = 0) -> Callable:
    """A function of one lane's arrays as a function of all lanes' in a compiled program.

    On a mesh arguments and results have one more axis in front, the lane, split over `data`: each
    lane is computed by its own devices. Without a mesh it is the function itself.

    Args:
        mesh: the mesh.
        function: of arrays; what it closes over is common to all lanes.
        in_axes: those of `jax.vmap`; None for an argument that is common to all lanes.
    """
    if mesh is None:
        return function
    lanes = row_sharding(mesh)
    mapped = jax.vmap(function, in_axes=in_axes, spmd_axis_name=DATA)
    return lambda *args: jax.tree.map(lambda leaf: constrain(leaf, lanes), mapped(*args))


def is_split(mesh: Mesh | None) -> bool:
    """Whether several devices share the weights."""
    return mesh is not None and mesh.shape[MODEL] > 1


def num_parts(mesh: Mesh | None, vocab_size: int) -> int:
    """How many devices share the rows of the vocabulary projection; see `RULES`."""
    return 1 if mesh is None or vocab_size % mesh.shape[MODEL] else mesh.shape[MODEL]


def to_host(tree: Tree) -> Tree:
    """Arrays as NumPy arrays, in full on every process wherever they lie.

    A result that is spread over several hosts can be read by no single one of them: all processes
    must call this together.
    """

    def fetch(array):
        sharding = array.sharding
        if not (array.is_fully_addressable or array.is_fully_replicated):
            whole = NamedSharding(sharding.mesh, PartitionSpec())
            array = jax.jit(lambda x: x, out_shardings=whole)(array)
        return np.asarray(array)

    return jax.tree.map(fetch, tree)


def make_mesh(option: str | Mesh | None, config: DecoderConfig, dtype: jnp.dtype) -> Mesh | None:
    """The mesh that an option asks for; None for a single device.

    Args:
        option: `DxM` (D devices along `data` times M along `model`, such as `4x2`), `auto` or None
            (see `automatic_split`), or a mesh with these two axes.
        config: the architecture.
        dtype: of the weights.

    Raises:
        DataError: for an option that is none of these, or that the devices at hand do not fill.
    """
    if isinstance(option, Mesh):
        if option.axis_names != (DATA, MODEL):
            raise DataError(
                f"A mesh needs the axes ('data', 'model'); this one has {option.axis_names}."
            )
        return option
    count = jax.device_count()
    if option is None or option == "auto":
        data, model = _automatic(config, dtype, count)
    else:
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", option)
        if match is None:
            raise DataError(f"mesh {option!r} is not supported; give auto, or DxM such as 4x2.")
        data, model = int(match[1]), int(match[2])
        # Every process must take part, with all its devices.
        if data * model > count or (jax.process_count() > 1 and data * model != count):
            raise DataError(
                f"A mesh of {option} needs {data * model} devices; there are {count}"
                + (f" in {jax.process_count()} processes." if jax.process_count() > 1 else ".")
            )
    if data * model == 1:
        return None
    devices = jax.devices()[: data * model]
    return jax.make_mesh((data, model), (DATA, MODEL), (AxisType.Auto,) * 2, devices=devices)


def _automatic(config: DecoderConfig, dtype: jnp.dtype, count: int) -> tuple[int, int]:
    memory = (jax.local_devices()[0].memory_stats() or {}).get("bytes_limit")
    # Forced CPU devices share one memory: nothing is gained by splitting weights.
    return (count, 1) if memory is None else automatic_split(config, dtype, count, memory)


def automatic_split(
    config: DecoderConfig, dtype: jnp.dtype, num_devices: int, device_bytes: float
) -> tuple[int, int]:
    """Sizes (data, model) of the mesh where the user sets none.

    All devices go to `data`, unless the weights take more than `WEIGHTS_SHARE` of a device: then
    `model` is the smallest divisor of the number of devices that brings them below it.

    Raises:
        DataError: if the weights do not fit even when they are split over all devices.
    """
    shapes = parameter_shapes(config)
    sizes = [model for model in range(1, num_devices + 1) if num_devices % model == 0]
    held = {model: _device_bytes(shapes, config, dtype, model) for model in sizes}
    for model in sizes:
        if held[model] <= WEIGHTS_SHARE * device_bytes:
            return num_devices // model, model
    model = min(sizes, key=lambda size: held[size])
    if held[model] > device_bytes:
        raise DataError(
            f"The weights take {held[model] / 2**30:.1f} GiB a device in {jnp.dtype(dtype).name} "
            f"on {num_devices} devices, which have {device_bytes / 2**30:.1f} GiB each; use more "
            "devices or a smaller model."
        )
    return num_devices // model, model


def parameter_shapes(config: DecoderConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters by dotted name; nothing is allocated."""
    decoder = nnx.eval_shape(lambda: Decoder(config, rngs=nnx.Rngs(0)))
    leaves = nnx.to_flat_state(nnx.state(decoder, nnx.Param))
    return {".".join(map(str, path)): leaf.shape for path, leaf in leaves}


def parameter_bytes(config: DecoderConfig, dtype: jnp.dtype, model: int = 1) -> int:
    """Bytes of weights on one device, where `model` devices share them by `RULES`."""
    return _device_bytes(parameter_shapes(config), config, dtype, model)


def _device_bytes(
    shapes: Mapping[str, tuple[int, ...]], config: DecoderConfig, dtype: jnp.dtype, model: int
) -> int:
    total = 0
    for name, shape in shapes.items():
        split = MODEL in parameter_spec(name, shape, config, model)
        total += math.prod(shape) // (model if split else 1)
    return total * jnp.dtype(dtype).itemsize


def initialize_distributed() -> None:
    """Joins this process to the others of a run on several hosts; call it before anything of JAX.

    Reads JAX_COORDINATOR_ADDRESS (host:port of process 0), JAX_NUM_PROCESSES and JAX_PROCESS_ID.
    Without them JAX looks for Slurm, Open MPI, Kubernetes or a TPU pod by itself. On CPU the
    processes speak through Gloo.

    Raises:
        DataError: if only some of the three variables are set, or are no numbers.
    """
    names = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
    values = [os.environ.get(name) for name in names]
    if values[1] is None and values[2] is None:
        jax.distributed.initialize()
        return
    missing = [name for name, value in zip(names, values, strict=True) if not value]
    if missing:
        raise DataError(f"A run on several hosts needs {', '.join(names)}; {missing[0]} is unset.")
    if not all(str(value).isdigit() for value in values[1:]):
        raise DataError(f"{names[1]} and {names[2]} must be whole numbers; got {values[1:]}.")
    jax.distributed.initialize(str(values[0]), int(str(values[1])), int(str(values[2])))


def is_writer() -> bool:
    """Whether this process writes what all computed: the first one, which is also the only one
    where a run has one host.
    """
    return jax.process_index() == 0
