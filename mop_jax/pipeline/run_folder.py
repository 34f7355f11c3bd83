"""The run folder: a manifest, and steps that are either finished or not.

A step's fingerprint covers the parts of the configuration that it reads and the fingerprints of the
steps before it. A finished step is recorded in `manifest.json` with the hashes of what it wrote; it
is done again only if its outputs are gone or changed, or an updated configuration concerns it.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from mop_jax import atomic
from mop_jax.config import RunConfig
from mop_jax.errors import DataError, FaultError

_PACKAGES = (
    "mop-jax",
    "jax",
    "jaxlib",
    "flax",
    "numpyro",
    "optax",
    "transformers",
    "tokenizers",
    "safetensors",
    "gguf",
    "numpy",
    "arviz",
    "pandas",
    "scikit-learn",
)
FORMAT = "mop-jax run 1"
# What decides on each input; a configuration that changes it may bring another input.
_SOURCES = {
    "population": ("population", "seed"),
    "language model": ("language_model",),
    "sentence encoder": ("encoder",),
    "prompt template": ("language_model", "prompt"),
}


class RunFolder:
    """A folder with the artefacts of one configuration.

    Attributes:
        path: the folder.
        config: its configuration.
    """

    def __init__(self, path: str | os.PathLike[str], config: RunConfig, *, update: bool = False):
        """Opens a run folder, or begins one.

        Args:
            path: the folder.
            config: the configuration to run.
            update: adopt `config` even if the folder was made with another one; steps that the
                difference concerns are done again, scores are kept.

        Raises:
            DataError: if steps were finished with another configuration and `update` is False, or
                the folder is no run folder.
            FaultError: if its manifest is damaged.
        """
        self.path = Path(path)
        self.config = config
        self._update = update
        if self.path.exists() and not self.path.is_dir():
            raise DataError(f"{self.path} is a file; give a folder for the run.")
        self._manifest = self._read()
        with atomic.disk_errors(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        # Beside a process at work nothing is written; `locked` refuses.
        with self._lock() as free:
            if free:
                self._write()

    def _read(self) -> dict[str, Any]:
        """The manifest as it should be with this configuration; writes nothing."""
        wanted = self.config.model_dump(mode="json")
        manifest = read_manifest(self.path)
        if manifest is None:
            manifest = {
                "format": FORMAT,
                "name": self.config.name,
                "configuration": wanted,
                "versions": {},
                "sources": {},
                "steps": {},
            }
        stored = manifest["configuration"]
        different = _first_difference(stored, wanted)
        # Where no step was finished, as when a name was misspelt, there is nothing to protect.
        if different and manifest["steps"] and not self._update:
            field, old, new = different
            raise DataError(
                f"{self.path} was made with another configuration: {field} is {old!r} there "
                f"and {new!r} here; choose another folder with --out, or adopt the new "
                "configuration with --update (scores are kept)."
            )
        for name, sections in _SOURCES.items():
            if any(stored.get(section) != wanted[section] for section in sections):
                manifest["sources"].pop(name, None)
        return {**manifest, "configuration": wanted, "versions": _versions()}

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from working in the same folder.

        Raises:
            DataError: if another process works in it.
        """
        with self._lock() as free:
            if not free:
                raise DataError(
                    f"Another process is working in {self.path}; wait for it or stop it."
                )
            # Read again: another process may have been at work until now.
            self._manifest = self._read()
            self._write()
            yield

    @contextmanager
    def _lock(self) -> Iterator[bool]:
        with atomic.disk_errors(self.path / ".lock"):
            handle = open(self.path / ".lock", "w")  # noqa: SIM115 (closed below)
        with handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                free = True
            except OSError:
                free = False
            yield free

    def source(self, name: str, fingerprint: str) -> None:
        """Records the fingerprint of an input, or refuses one that has changed since.

        Raises:
            DataError: if the input is not what the run began with.
        """
        known = self._manifest["sources"].get(name)
        if known is not None and known != fingerprint:
            raise DataError(
                f"The {name} has changed since {self.path} was made; choose another folder with "
                "--out."
            )
        self._manifest["sources"][name] = fingerprint
        self._write()

    def fingerprint_of(self, step: str) -> str:
        """The fingerprint with which a step was begun last."""
        return self._manifest["steps"][step]["fingerprint"]

    def is_done(self, step: str, fingerprint: str) -> bool:
        """Whether a step is finished, its outputs present and unchanged."""
        entry = self._manifest["steps"].get(step)
        if not entry or entry["state"] != "done" or entry["fingerprint"] != fingerprint:
            return False
        return all(
            (self.path / name).exists() and file_hash(self.path / name) == digest
            for name, digest in entry["outputs"].items()
        )

    def perform(
        self, step: str, fingerprint: str, outputs: Sequence[str], work: Callable[[], Any]
    ) -> bool:
        """Does a step unless it is done already.

        Args:
            step: its name.
            fingerprint: of all that it depends on.
            outputs: files that it writes, relative to the folder.
            work: does it.

        Returns:
            Whether there was anything to do.
        """
        if self.is_done(step, fingerprint):
            return False
        entry = self._manifest["steps"].get(step, {})
        spent = entry.get("seconds", 0.0) if entry.get("fingerprint") == fingerprint else 0.0
        self._set(step, {"state": "running", "fingerprint": fingerprint, "seconds": spent})
        start = time.monotonic()
        work()
        for name in outputs:
            if not (self.path / name).exists():
                raise FaultError(f"Step {step} ended without writing {self.path / name}.")
        self._set(
            step,
            {
                "state": "done",
                "fingerprint": fingerprint,
                "outputs": {name: file_hash(self.path / name) for name in outputs},
                "seconds": round(spent + time.monotonic() - start, 2),
            },
        )
        return True

    def _set(self, step: str, entry: dict[str, Any]) -> None:
        self._manifest["steps"][step] = entry
        self._write()

    def _write(self) -> None:
        atomic.write_json(self.path / "manifest.json", self._manifest)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands."""
        return self._manifest


def read_manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a run folder, or None where there is none yet.

    Raises:
        DataError: if the folder holds files but no manifest.
        FaultError: if the manifest is damaged.
    """
    file = path / "manifest.json"
    if not file.exists():
        others = [p for p in path.iterdir() if not p.name.startswith(".")] if path.exists() else []
        if others and not (len(others) == 1 and others[0].name == "likelihoods"):
            raise DataError(
                f"{path} is not empty and no run folder (it has no manifest.json); choose another "
                "folder with --out."
            )
        return None
    try:
        manifest = json.loads(file.read_text("utf-8"))
        if (
            manifest["format"] == FORMAT
            and {"configuration", "sources", "steps"} <= manifest.keys()
        ):
            return manifest
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError):
        pass
    raise FaultError(f"{file} is damaged or of another version; choose another folder with --out.")


def fingerprint(*parts: Any) -> str:
    """SHA-256 of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _first_difference(old: Any, new: Any, where: str = "") -> tuple[str, Any, Any] | None:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(k for k in old if k not in new)]:
            inner = f"{where}.{key}" if where else key
            found = _first_difference(old.get(key), new.get(key), inner)
            if found:
                return found
        return None
    return None if old == new else (where, old, new)
