"""Log-probabilities of target tokens at a whole grid of temperatures, in one pass over V."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from mop_jax.lm.attention import softcap

# Rows of the vocabulary handled at a time: small enough that logits stay in a core's cache.
VOCABULARY_BLOCK = {"cpu": 2_048}
VOCABULARY_BLOCK_ACCELERATOR = 32_768
# Positions handled at a time.
POSITION_BLOCK = {"cpu": 256}
POSITION_BLOCK_ACCELERATOR = 4_096


# Rows of a block that are added up before they leave the processor's registers.
_FOLD = 16


def vocabulary_block(vocab_size: int, target: int) -> int:
    """The divisor of the vocabulary size nearest to `target`, or all of it where none is near."""
    divisors = [d for d in range(target // 4, target * 4 + 1) if vocab_size % d == 0]
    return min(divisors, key=lambda d: abs(d - target), default=vocab_size)


@partial(jax.jit, static_argnames=("multiples", "block", "positions", "cap", "parts"))
def grid_log_probs(
    embedding: Array,
    hidden: Array,
    targets: Array,
    step: Array,
    count: Array | int | None = None,
    *,
    multiples: tuple[int, ...],
    block: int,
    positions: int | None = None,
    cap: float | None = None,
    parts: int = 1,
) -> Array:
    """Log-probabilities of target tokens at every temperature of a grid, float32 [n, G].

    With u_v = exp(step · (l_v − max l)), the normaliser at 1/τ = m · step is Σ_v u_v^m: one
    exponential per logit serves the whole grid. The maximum is updated block by block. A NaN or +∞
    among a position's logits makes its log-probabilities NaN.

    Args:
        embedding: [V, D] output projection.
        hidden: [n, D] normalised hidden states that predict the targets.
        targets: int32 [n].
        step: spacing of the inverse temperatures.
        count: how many of the positions, from the first, are wanted; the others' values mean
            nothing. All by default.
        multiples: m of each grid point.
        block: rows of the vocabulary at a time; divides V.
        positions: positions at a time; divides n. All by default.
        cap: of the logits; see `softcap`.
        parts: devices that share the rows of the embedding; divides `block` and V. Each block then
            takes an equal part of every device's rows.
    """
    total, width = hidden.shape
    positions = total if positions is None else positions
    powers = jnp.asarray(multiples, jnp.float32)[:, None]
    columns = hidden.reshape(-1, positions, width).transpose(0, 2, 1)
    num_blocks = len(columns) if count is None else -(-count // positions)

    def add_block(carry, rows):
        def add_positions(i, carry):
            top, sums = carry
            logits = jnp.matmul(rows, columns[i], preferred_element_type=jnp.float32)
            logits = softcap(logits, cap)
            new_top = jnp.maximum(top[i], logits.max(axis=0))
            # Without the barrier XLA recomputes the exponential in each of the G sums.
            u = jax.lax.optimization_barrier(jnp.exp((logits - new_top) * step))
            added = power_sums(u, multiples, parts)
            shrunk = sums[i] * jnp.exp((top[i] - new_top) * step * powers)
            return top.at[i].set(new_top), sums.at[i].set(shrunk + added)

        if len(columns) == 1:
            return add_positions(0, carry), None
        return jax.lax.fori_loop(0, num_blocks, add_positions, carry), None

    start = (
        jnp.full((len(columns), positions), -1e30),
        jnp.zeros((len(columns), len(multiples), positions)),
    )
    blocks = embedding.reshape(parts, -1, block // parts, width).swapaxes(0, 1)
    blocks = blocks.reshape(-1, block, width)
    (top, sums), _ = jax.lax.scan(add_block, start, blocks)
    chosen = jnp.einsum("nd,nd->n", hidden, embedding[targets], preferred_element_type=jnp.float32)
    chosen = softcap(chosen, cap)
    normalisers = jnp.log(sums).transpose(1, 0, 2).reshape(len(multiples), total)
    return (powers * step * (chosen - top.reshape(-1)) - normalisers).T


def power_sums(u: Array, multiples: tuple[int, ...], parts: int = 1) -> Array:
    """Σ_v u_v^m for each m, float32 [G, n], of u [block, n] whose rows `parts` devices share.

    In two steps, each one pass: powers and the sums over 16 rows, then the sums over what is left.
    In one step XLA writes every power to memory (measured on a CPU: projection and grid together
    reach 0.78 rather than 0.52 of the peak).
    """
    shared = u.reshape(parts, -1, u.shape[-1])
    whole = shared.shape[1] // _FOLD * _FOLD
    rows = shared[:, :whole].reshape(parts, -1, _FOLD, u.shape[-1])
    rest = shared[:, whole:]
    folded = jnp.stack(
        [sum(jax.lax.integer_pow(rows[:, :, i], m) for i in range(_FOLD)) for m in multiples]
    )
    # The barrier keeps the two steps apart.
    added = jax.lax.optimization_barrier(folded).sum(axis=(1, 2))
    if whole == shared.shape[1]:
        return added
    return added + jnp.stack([jax.lax.integer_pow(rest, m).sum(axis=(0, 1)) for m in multiples])
