"""Checkpoints of a fit, so that one that is killed goes on where it was, to the same last bit.

Orbax writes them: a step's folder is made beside its place and moved there when it is complete, so
that a kill at any moment leaves the one before. Each fit has a folder of its own, named by a
fingerprint of all that decides what comes of it (see `fingerprint`), so a fit never goes on from
another one's state, and several may share a parent.
"""

from __future__ import annotations

import hashlib
import shutil
import time
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mop_jax import atomic

SECONDS_BETWEEN = 5.0
"""The least time between two checkpoints: what a kill costs."""
SHARE_OF_TIME = 0.01
"""The most of a fit's time that writing them may take; they become rarer where the disk is slow."""


class Progress(NamedTuple):
    """How far a fit has come.

    Attributes:
        state: the optimiser's state, parameters and random key included.
        losses: of the steps done so far, [steps].
    """

    state: Any
    losses: np.ndarray


class FitCheckpoints:
    """The checkpoints of one fit; the folder is made when the first is due."""

    def __init__(self, folder: str | Path, fingerprint: str):
        """`folder` may be shared by several fits; `fingerprint` says which one this is."""
        self._folder = (Path(folder) / fingerprint[:32]).absolute()
        self._manager: Any = None
        self._last = time.monotonic()
        self._pause = SECONDS_BETWEEN

    def restore(self, like: Any) -> Progress | None:
        """The last checkpoint, or None; `like` is a state of the same structure."""
        # Orbax is imported only where there is something to read or write: it takes its time.
        if not self._folder.is_dir():
            return None
        import orbax.checkpoint as ocp

        leaves, structure = jax.tree.flatten(like)
        try:
            step = self._opened().latest_step()
            if step is None:
                return None
            restored = self._opened().restore(step, args=ocp.args.StandardRestore())
            state = [_as_leaf(restored[f"{i:04d}"], leaf) for i, leaf in enumerate(leaves)]
        except (ValueError, KeyError, OSError) as error:
            warnings.warn(
                f"The checkpoint in {self._folder} is damaged ({type(error).__name__}); the fit "
                "begins again.",
                stacklevel=3,
            )
            self.close()
            self._manager = None
            remove(self._folder)
            return None
        return Progress(jax.tree.unflatten(structure, state), np.asarray(restored["losses"]))

    def save(self, progress: Progress) -> None:
        """Writes a checkpoint if one is due.

        Raises:
            FaultError: if the disk is full.
        """
        if time.monotonic() - self._last < self._pause:
            return
        import orbax.checkpoint as ocp

        start = time.monotonic()
        leaves = (np.asarray(_plain(leaf)) for leaf in jax.tree.leaves(progress.state))
        content = {f"{i:04d}": leaf for i, leaf in enumerate(leaves)}
        content["losses"] = np.asarray(progress.losses)
        with atomic.disk_errors(self._folder):
            self._opened().save(len(progress.losses), args=ocp.args.StandardSave(content))
        self._last = time.monotonic()
        self._pause = max(SECONDS_BETWEEN, (self._last - start) / SHARE_OF_TIME)

    def close(self) -> None:
        """Ends Orbax's threads; the checkpoints stay."""
        if self._manager is not None:
            self._manager.close()

    def _opened(self) -> Any:
        if self._manager is None:
            import orbax.checkpoint as ocp

            options = ocp.CheckpointManagerOptions(max_to_keep=1, enable_async_checkpointing=False)
            with atomic.disk_errors(self._folder):
                self._folder.mkdir(parents=True, exist_ok=True)
                self._manager = ocp.CheckpointManager(self._folder, options=options)
        return self._manager


def remove(folder: str | Path) -> None:
    """Removes all checkpoints in `folder`, when what came of the fits is safe elsewhere."""
    shutil.rmtree(folder, ignore_errors=True)


def fingerprint(step: Any, state: Any, data: Any, settings: tuple[float, ...]) -> str:
    """SHA-256 of all that decides what comes of a fit.

    Args:
        step: the lowered computation (`jax.jit(…).lower(…)`): model, guide, optimiser and their
            settings as the compiler sees them, so none can be forgotten.
        state: the optimiser's first state; it holds what the random key decided.
        data: what is fitted, beyond what `step` closes over.
        settings: numbers that decide how many steps are done.
    """
    digest = hashlib.sha256(step.as_text().encode())
    device = jax.devices()[0]
    digest.update(f"{jax.__version__} {device.platform} {device.device_kind} {settings}".encode())
    for leaf in jax.tree.leaves((state, data)):
        values = np.asarray(_plain(leaf))
        digest.update(f"{values.dtype} {values.shape}".encode() + values.tobytes())
    return digest.hexdigest()


def _plain(leaf: Any) -> Any:
    is_key = isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(leaf) if is_key else leaf


def _as_leaf(value: Any, like: Any) -> Any:
    plain = _plain(like)
    array = jax.numpy.asarray(np.asarray(value), plain.dtype)
    if plain is like:
        return array
    return jax.random.wrap_key_data(array, impl=jax.random.key_impl(like))
