"""The table of log-likelihoods ℓ: sparse, content-addressed, appended as scores arrive.

A score is filed under a hash of exactly what was scored (prompt ids, response ids) in a journal of
one language model (weights, tokenizer, dtype) and one temperature grid: nothing stale can be
read, and what is stored need never be scored again, whatever else of the configuration changes.

The journal holds fixed-size entries, each with a checksum; a process killed while writing leaves at
most one broken entry at the end, which is cut off when the journal is opened again. `compact` puts
the entries into the order of their keys, so that a finished journal does not depend on its
history.

Beside the journal `.jobs/` says of unfinished jobs what they found when they began: scores depend
in their last bits on what was run beside them, and a job that was killed goes on with the same
batches.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mop_jax import atomic
from mop_jax.errors import FaultError
from mop_jax.lm.base import TemperatureGrid
from mop_jax.prompts import Prompt

_KEY_BYTES = 16
_FORMAT = "mop-jax likelihoods 1"


def pair_key(prompt: Prompt, response: Sequence[int]) -> bytes:
    """The address of a (prompt, response) pair: 16 bytes of BLAKE2b over its token ids."""
    digest = hashlib.blake2b(digest_size=_KEY_BYTES)
    digest.update(np.asarray(prompt.token_ids, "<i4").tobytes())
    # Lengths keep the boundary between prompt and response in the address.
    digest.update(len(response).to_bytes(4, "little"))
    digest.update(np.asarray(response, "<i4").tobytes())
    return digest.digest()


class LikelihoodStore:
    """Log-likelihoods on a temperature grid, float64 [G] per pair, in a folder.

    Example:
        >>> import tempfile
        >>> from mop_jax.lm.base import TemperatureGrid
        >>> folder = tempfile.mkdtemp()
        >>> with LikelihoodStore(folder, "model-1", TemperatureGrid.single(1.0)) as store:
        ...     store.append([b"0123456789abcdef"], np.array([[-12.5]]))
        >>> with LikelihoodStore(folder, "model-1", TemperatureGrid.single(1.0)) as store:
        ...     store.get([b"0123456789abcdef"])
        array([[-12.5]])
    """

    def __init__(self, folder: str | os.PathLike[str], model_key: str, grid: TemperatureGrid):
        """Opens the journal of a model and grid, or begins one.

        Args:
            folder: holds one subfolder for each model and grid.
            model_key: the language model's fingerprint.
            grid: the temperatures.

        Raises:
            FaultError: if the journal belongs to something else or is damaged before its end.
        """
        self.grid = grid
        header = {
            "format": _FORMAT,
            "language_model": model_key,
            "step": grid.step,
            "multiples": list(grid.multiples),
        }
        address = hashlib.sha256(repr(sorted(header.items())).encode()).hexdigest()[:16]
        self.path = Path(folder) / address / "scores.bin"
        self._entry = np.dtype(
            [("key", f"V{_KEY_BYTES}"), ("scores", "<f8", (len(grid.multiples),)), ("crc", "<u4")]
        )
        self._rows: dict[bytes, int] = {}
        self._scores: list[np.ndarray] = []
        with atomic.disk_errors(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            about = self.path.with_name("about.json")
            if not about.exists():
                atomic.write_json(about, header)
            self._load()
            self._handle = open(self.path, "ab")  # noqa: SIM115 (closed by close)

    def __enter__(self) -> LikelihoodStore:
        """The store itself."""
        return self

    def __exit__(self, *details: Any) -> None:
        """Closes the journal."""
        self.close()

    def __len__(self) -> int:
        """How many pairs are stored."""
        return len(self._rows)

    def __contains__(self, key: bytes) -> bool:
        """Whether a pair is stored."""
        return key in self._rows

    def begin(self, keys: Sequence[bytes]) -> np.ndarray:
        """Begins a job, or finds it begun.

        Args:
            keys: n different keys; their order counts.

        Returns:
            bool [n], which pairs are the job's: those that were not stored when it began first.
        """
        missing = np.asarray([key not in self._rows for key in keys], bool)
        if not missing.any():
            return missing
        record = self._job(keys)
        try:
            bits = np.frombuffer(record.read_bytes(), np.uint8)
        except FileNotFoundError:
            bits = np.zeros(0, np.uint8)
        if len(bits) == -(-len(keys) // 8):
            # What got lost since then must be scored, too.
            return missing | np.unpackbits(bits, count=len(keys)).astype(bool)
        # Another process may write or end the same job this very moment: it needs no second record.
        with suppress(FileNotFoundError, FileExistsError):
            atomic.write_bytes(record, np.packbits(missing).tobytes())
        return missing

    def end(self, keys: Sequence[bytes]) -> None:
        """Ends a job: its pairs are stored, and count as found from now on."""
        record = self._job(keys)
        with atomic.disk_errors(record):
            # Not before the scores are safe: a power cut must not leave neither.
            self._sync()
            record.unlink(missing_ok=True)
        # Not empty while another job is unfinished, and not there if nothing was missing.
        with suppress(OSError):
            record.parent.rmdir()

    def _job(self, keys: Sequence[bytes]) -> Path:
        name = hashlib.blake2b(b"".join(keys), digest_size=_KEY_BYTES).hexdigest()
        return self.path.parent / ".jobs" / f"{name}.bin"

    def append(self, keys: Sequence[bytes], scores: np.ndarray) -> None:
        """Stores scores, nats; pairs that are stored already keep their first scores.

        Args:
            keys: m keys of `pair_key`.
            scores: float64 [m, G].

        Raises:
            FaultError: if a score is not finite, or the disk is full.
        """
        if not np.isfinite(scores).all():
            raise FaultError("A log-likelihood that is not finite must not enter the store.")
        new = [i for i, key in enumerate(keys) if key not in self._rows]
        entries = np.zeros(len(new), self._entry)
        for slot, i in enumerate(new):
            entries[slot]["key"] = np.void(keys[i])
            entries[slot]["scores"] = scores[i]
            self._rows[keys[i]] = len(self._scores)
            self._scores.append(np.array(scores[i], np.float64))
        entries["crc"] = [self._checksum(entry) for entry in entries]
        with atomic.disk_errors(self.path):
            self._handle.write(entries.tobytes())
            self._handle.flush()

    def get(self, keys: Sequence[bytes]) -> np.ndarray:
        """Scores float64 [m, G] of stored pairs.

        Raises:
            KeyError: if a pair is not stored.
        """
        if not keys:
            return np.zeros((0, len(self.grid.multiples)))
        return np.stack([self._scores[self._rows[key]] for key in keys])

    def compact(self) -> None:
        """Rewrites the journal in the order of its keys, atomically."""
        order = sorted(self._rows)
        entries = np.zeros(len(order), self._entry)
        for slot, key in enumerate(order):
            entries[slot]["key"] = np.void(key)
            entries[slot]["scores"] = self._scores[self._rows[key]]
        entries["crc"] = [self._checksum(entry) for entry in entries]
        self._handle.close()
        atomic.write_bytes(self.path, entries.tobytes())
        self._handle = open(self.path, "ab")  # noqa: SIM115 (closed by close)

    def close(self) -> None:
        """Flushes to the disk and closes the journal."""
        if not self._handle.closed:
            with atomic.disk_errors(self.path):
                self._sync()
            self._handle.close()

    def _sync(self) -> None:
        self._handle.flush()
        os.fsync(self._handle.fileno())

    def _load(self) -> None:
        if not self.path.exists():
            return
        data = self.path.read_bytes()
        whole = len(data) // self._entry.itemsize
        entries = np.frombuffer(data, self._entry, count=whole)
        good = 0
        for entry in entries:
            if self._checksum(entry) != int(entry["crc"]):
                break
            key = bytes(entry["key"])
            self._rows.setdefault(key, len(self._scores))
            self._scores.append(np.array(entry["scores"]))
            good += 1
        if good < whole - 1:
            raise FaultError(
                f"{self.path}: entry {good} of {whole} is damaged; delete the file to score its "
                "pairs again."
            )
        if good * self._entry.itemsize < len(data):
            with open(self.path, "rb+") as handle:
                handle.truncate(good * self._entry.itemsize)

    @staticmethod
    def _checksum(entry: np.void) -> int:
        return zlib.crc32(bytes(entry["key"]) + np.asarray(entry["scores"], "<f8").tobytes())
