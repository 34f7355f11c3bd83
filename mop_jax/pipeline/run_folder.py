"""The run folder: a manifest, and steps that are either finished or not.

A finished step is recorded in `manifest.json` with the hashes of what it wrote and with all that it
was made from: the parts of the configuration that it reads, the contents of its inputs and of the
artefacts of the steps before it, and its own version. It is done again if any of these is another
now, or if what it wrote is gone or changed; the reader is told which.

Nothing is written before there is work to do, and what is refused leaves the folder as it was.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mop_jax import atomic
from mop_jax.config import RunConfig
from mop_jax.errors import DataError, FaultError, MopError
from mop_jax.pipeline import lock
from mop_jax.pipeline.inputs import INPUTS, Stamp
from mop_jax.pipeline.manifest import (
    FORMAT,
    RENAMED,
    first_difference,
    given_fields,
    read_manifest,
    versions,
    without_resources,
)

_LOG = logging.getLogger(__name__)
_TEMPLATE = "prompt template"
# What a person may well have edited: it is neither used in silence nor written over.
_EDITED = {
    "personas.json": "to use personas of your own, name a file of them as personas.path; to have "
    "the run's own again, delete this one",
}


class InputChanged(Exception):
    """An input is another one than that of finished steps, which are now forgotten."""


class RunFolder:
    """A folder with the artefacts of one configuration.

    Attributes:
        path: the folder.
        config: its configuration.
    """

    def __init__(self, path: str | os.PathLike[str], config: RunConfig, *, update: bool = False):
        """Opens a run folder, or one that is yet to be; writes nothing.

        Args:
            path: the folder.
            config: the configuration to run.
            update: adopt `config`, and inputs that have changed, even if the folder was made with
                others; steps that the difference concerns are done again, scores are kept.

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
        self._finished = False

    def _read(self) -> dict[str, Any]:
        """The manifest as it should be with this configuration; writes nothing."""
        wanted = self.config.model_dump(mode="json")
        manifest = read_manifest(self.path, anew=self._update)
        if manifest is None:
            manifest = {
                "format": FORMAT,
                "name": self.config.name,
                "configuration": wanted,
                "given": [],
                "versions": {},
                "sources": {},
                "steps": {},
            }
        # What never finished protects nothing.
        steps = {n: e for n, e in manifest["steps"].items() if e.get("state") == "done"}
        stored, given = manifest["configuration"], given_fields(self.config)
        if steps and not self._update:
            # A default that has changed since is no other configuration; steps say what it changes.
            known = {*given, *manifest["given"]}
            different = first_difference(
                without_resources(stored), without_resources(wanted), known
            )
            if different:
                field, old, new = different
                raise DataError(
                    f"{self.path} was made with another configuration: {field} is {old!r} there "
                    f"and {new!r} here; choose another folder with --out, or adopt the new "
                    "configuration with --update (scores are kept)."
                )
        governs = {name: entry.governs for name, entry in INPUTS.items()}
        governs[_TEMPLATE] = ("language_model", "prompt")
        sources = {
            name: source
            for name, source in manifest["sources"].items()
            if name in governs
            and all(
                without_resources(stored).get(section) == without_resources(wanted).get(section)
                for section in governs[name]
            )
        }
        return {
            **manifest,
            "format": FORMAT,
            "name": self.config.name,
            "configuration": wanted,
            "given": sorted(given),
            "versions": versions(),
            "sources": sources if steps else {},
            "steps": steps,
        }

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keeps a second process from working in the same folder.

        Raises:
            DataError: if another process works in it.
            FaultError: if the folder cannot be written to.
        """
        made = _make_folder(self.path)
        if not os.access(self.path, os.W_OK):
            raise FaultError(
                f"The run folder {self.path} cannot be written to; choose another with --out."
            )
        try:
            with lock.exclusive(self.path):
                # Read again: another process may have been at work until now.
                sources = self._manifest["sources"]
                self._manifest = self._read()
                self._manifest["sources"] |= sources
                manifest = self.path / "manifest.json"
                before = manifest.read_bytes() if manifest.exists() else None
                self._finished = False
                for name, former in RENAMED.items():
                    if (self.path / former).exists() and not (self.path / name).exists():
                        os.replace(self.path / former, self.path / name)
                there = _names(self.path)
                try:
                    yield
                except MopError:
                    if not self._finished and _names(self.path) == there:
                        _restore(manifest, before)
                    raise
        finally:
            if made is not None and not _names(self.path):
                _remove(self.path, made)

    def input(self, name: str, stamp: Stamp | None) -> None:
        """Notes what an input is now, or refuses one that has changed since.

        Raises:
            DataError: if it is not what the run began with, and `update` is False.
        """
        if stamp is None:
            return
        known = self._manifest["sources"].get(name, {})
        digest = known.get("digest")
        if digest not in (None, stamp["digest"]) and not self._update:
            raise self._another(name)
        if digest not in (None, stamp["digest"]) and name == "language model":
            self._manifest["sources"].pop(_TEMPLATE, None)
        # Older runs knew models by what was loaded, which is compared when it is.
        loaded = {k: v for k, v in known.items() if k == "fingerprint" and digest is None}
        self._manifest["sources"][name] = {**loaded, **stamp}

    def loaded(self, name: str, fingerprint: str, stamp: Callable[[], Stamp | None]) -> None:
        """Checks a model as it was loaded against what older runs knew of it.

        Args:
            name: of the input.
            fingerprint: of the loaded model.
            stamp: says what its files are, where that was not known before it was fetched.

        Raises:
            DataError: if it is not what the run began with, and `update` is False.
            InputChanged: if it is not, and `update` is True: steps must be looked at again.
        """
        known = self._manifest["sources"].setdefault(name, {})
        if known.get("digest") is None:
            known.update(stamp() or {})
        old = known.pop("fingerprint", None)
        if old is None or old == fingerprint:
            return
        if not self._update:
            known["fingerprint"] = old
            raise self._another(name)
        raise self._forgotten(name)

    def rendered(self, fingerprint: str) -> None:
        """Notes how prompts are made, chat template and all, or refuses that it has changed.

        Raises:
            DataError: if it has changed since finished steps, and `update` is False.
            InputChanged: if it has changed, and `update` is True.
        """
        known = self._manifest["sources"].setdefault(_TEMPLATE, {})
        old = known.get("fingerprint")
        if old not in (None, fingerprint) and not self._update:
            raise DataError(
                f"Prompts are not made any more as when {self.path} was made: this version of "
                "mop-jax or of transformers renders the chat template otherwise; take that with "
                "--update, which scores anew, or choose another folder with --out."
            )
        known["fingerprint"] = fingerprint
        if old not in (None, fingerprint):
            raise self._forgotten("language model")

    def _forgotten(self, name: str) -> InputChanged:
        """Forgets the steps that read an input."""
        for step, entry in list(self._manifest["steps"].items()):
            if name in entry.get("inputs", {}).get("inputs", {}):
                del self._manifest["steps"][step]
        return InputChanged()

    def _another(self, name: str) -> DataError:
        entry = INPUTS[name]
        now = entry.path(self.config)
        what = "none is named now" if now is None else f"{now} holds something else now"
        return DataError(
            f"The {entry.title} has changed since {self.path} was made ({what}); take it with "
            "--update, which does anew only what it concerns and keeps scores, or choose another "
            "folder with --out."
        )

    def source(self, name: str) -> Stamp | None:
        """What is known of an input."""
        return self._manifest["sources"].get(name)

    def fingerprint_of(self, step: str) -> str:
        """A hash of all that a step was made from when it was begun last."""
        return self._manifest["steps"][step]["fingerprint"]

    @property
    def written(self) -> dict[str, dict[str, str]]:
        """Digests of what each finished step wrote, by the step's name."""
        return {n: e.get("outputs", {}) for n, e in self._manifest["steps"].items()}

    def reasons(
        self,
        step: str,
        inputs: Mapping[str, Any],
        outputs: Sequence[str],
        changes: Sequence[str] = (),
    ) -> list[str] | None:
        """Why a step must be done: an empty list if it never was, None if it needs not.

        Args:
            step: its name.
            inputs: all that it is made from, as JSON; None stands for what nobody knows.
            outputs: files that it writes, relative to the folder.
            changes: what it does otherwise than before, a clause for each version from the second.

        Raises:
            DataError: if something that it wrote was edited, which would be lost.
        """
        entry = self._manifest["steps"].get(step)
        if not entry or entry["state"] != "done":
            return []
        since = changes[entry["inputs"].get("version", 1) - 1 :]
        found = [*since, *_changes(entry["inputs"], inputs)]
        lacking = [name for name in outputs if name not in entry["outputs"]]
        found += [f"{name} was never written" for name in lacking]
        for name, digest in entry["outputs"].items():
            path = self._where(name)
            if not path.exists():
                found.append(f"{name} is gone")
            elif file_hash(path) != digest:
                if name in _EDITED:
                    raise DataError(f"{path} was changed by hand: {_EDITED[name]}.")
                found.append(f"{name} is not as it was written")
        return found or None

    def _where(self, name: str) -> Path:
        """Where an artefact is; older runs called some otherwise."""
        path = self.path / name
        former = self.path / RENAMED.get(name, name)
        return path if path.exists() or not former.exists() else former

    def perform(
        self, step: str, inputs: Mapping[str, Any], outputs: Sequence[str], work: Callable[[], Any]
    ) -> None:
        """Does a step.

        Args:
            step: its name.
            inputs: all that it is made from; see `reasons`.
            outputs: files that it writes, relative to the folder.
            work: does it.

        Raises:
            FaultError: if it ends without having written them.
        """
        mark = fingerprint(step, inputs)
        self._set(step, {"state": "running", "fingerprint": mark})
        start = time.monotonic()
        work()
        for name in outputs:
            if not (self.path / name).exists():
                raise FaultError(f"Step {step} ended without writing {self.path / name}.")
        self._set(
            step,
            {
                "state": "done",
                "fingerprint": mark,
                "inputs": dict(inputs),
                "outputs": {name: file_hash(self.path / name) for name in outputs},
                "seconds": round(time.monotonic() - start, 2),
            },
        )
        self._finished = True

    def take_over(self, step: str, inputs: Mapping[str, Any], other: RunFolder) -> bool:
        """Copies what another folder's step wrote, if that was made from the very same inputs.

        Args:
            step: its name.
            inputs: all that it would be made from here; see `reasons`.
            other: the folder that may have done it.

        Returns:
            Whether the step is now done.
        """
        entry = other.manifest["steps"].get(step)
        if not entry or entry["state"] != "done" or entry["inputs"] != inputs:
            return False
        # What nobody knows is equal to nothing.
        if None in inputs["inputs"].values():
            return False
        # Prompts may have come to be rendered otherwise since.
        sources, template = self._manifest["sources"], other.manifest["sources"].get(_TEMPLATE, {})
        if sources.get(_TEMPLATE, template) != template:
            return False
        for name, digest in entry["outputs"].items():
            if not (other.path / name).exists() or file_hash(other.path / name) != digest:
                return False
        for name in entry["outputs"]:
            atomic.write_bytes(self.path / name, (other.path / name).read_bytes())
        if template:
            sources[_TEMPLATE] = dict(template)
        self._set(step, {**entry, "fingerprint": fingerprint(step, inputs)})
        self._finished = True
        return True

    def keep(self) -> None:
        """Writes the manifest if it says anything that the one on the disk does not."""
        file = self.path / "manifest.json"
        old = json.loads(file.read_text("utf-8")) if file.exists() else {}
        aside = {"versions", "format", "given", "name"}
        if {k: v for k, v in old.items() if k not in aside} != {
            k: v for k, v in self._manifest.items() if k not in aside
        }:
            self._write()

    def _set(self, step: str, entry: dict[str, Any]) -> None:
        self._manifest["steps"][step] = entry
        self._write()

    def _write(self) -> None:
        atomic.write_json(self.path / "manifest.json", self._manifest)

    @property
    def manifest(self) -> dict[str, Any]:
        """The manifest as it stands."""
        return self._manifest


def _changes(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """What differs between what a step was made from and what it would be made from now."""
    if where == "version":
        return
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(k for k in old if k not in new)]:
            yield from _changes(old.get(key), new.get(key), f"{where}.{key}" if where else key)
        return
    # None is what nobody knows, as of older runs; configurations keep theirs.
    if old == new or (where.startswith("inputs.") and None in (old, new)):
        return
    kind, _, name = where.partition(".")
    if kind == "configuration":
        yield f"{name} is {new!r} where it was {old!r}"
    else:
        yield f"{name} has changed" if kind == "artefacts" else f"the {name} has changed"


def fingerprint(*parts: Any) -> str:
    """SHA-256 of JSON-able parts."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def file_hash(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _make_folder(path: Path) -> Path | None:
    """Makes a folder; returns the uppermost one that was not there before."""
    missing = [p for p in (path, *path.parents) if not p.exists()]
    with atomic.disk_errors(path):
        path.mkdir(parents=True, exist_ok=True)
    return missing[-1] if missing else None


def _names(path: Path) -> set[str]:
    """What is in a folder besides the manifest and the lock."""
    own = {"manifest.json", lock.NAME, lock.FALLBACK}
    return {p.relative_to(path).as_posix() for p in path.rglob("*")} - own


def _restore(manifest: Path, content: bytes | None) -> None:
    if content is None:
        manifest.unlink(missing_ok=True)
    elif manifest.read_bytes() != content:
        atomic.write_bytes(manifest, content)


def _remove(path: Path, made: Path) -> None:
    """Removes a folder with nothing in it, and those above it that were made for it."""
    if (path / "manifest.json").exists():
        return
    (path / lock.NAME).unlink(missing_ok=True)
    for folder in (path, *path.parents):
        try:
            folder.rmdir()
        except OSError:
            return
        if folder == made:
            return
