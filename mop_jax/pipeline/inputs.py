"""What a run reads from outside its folder: checked before anything is computed, known by content.

Only pandas is needed here, so that what is wrong with a file is said within a second.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mop_jax.config import RunConfig
from mop_jax.errors import DataError
from mop_jax.resources import resolve_path

if TYPE_CHECKING:
    from mop_jax.population.population import Population

_LOG = logging.getLogger(__name__)
# Of a checkpoint's folder, what a model is made from.
_CHECKPOINT = {".json", ".safetensors", ".model", ".txt", ".jinja", ".gguf"}
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$", re.IGNORECASE)
# Larger files are read again only if their size or their time has changed.
_SMALL = 16 * 2**20

Stamp = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """Something that a run reads.

    Attributes:
        name: in the manifest.
        title: in sentences.
        section: of the configuration that says where it is.
        governs: sections that decide on it; with other ones it may well be another input.
    """

    name: str
    title: str
    section: str
    governs: tuple[str, ...]

    def path(self, config: RunConfig) -> str | None:
        """Where the configuration says that it is; None for a data set by name too."""
        return getattr(config, self.section).path


INPUTS = {
    entry.name: entry
    for entry in (
        Input("population", "population", "population", ("population", "seed")),
        Input("personas file", "personas file", "personas", ("personas",)),
        Input("language model", "language model", "language_model", ("language_model",)),
        Input("sentence encoder", "sentence encoder", "encoder", ("encoder",)),
    )
}


class Inputs:
    """The inputs of a configuration.

    Attributes:
        config: the configuration.
    """

    def __init__(self, config: RunConfig):
        """Nothing is read yet."""
        self.config = config
        self._population: tuple[Population, Population] | None = None

    def records(self) -> tuple[Population, Population]:
        """Training and held-out records.

        Raises:
            DataError: if the file or the split is at fault.
        """
        if self._population is None:
            self._population = self._read()
        return self._population

    def stamp(self, name: str, known: Stamp | None, *, needed: bool) -> Stamp | None:
        """What an input is now: `{"digest": …, "files": …}`; None if that cannot be known.

        Args:
            name: of the input.
            known: what it was when the run read it.
            needed: whether anything is to be made from it; what is no longer there is refused
                then, and passed over with a word otherwise.

        Raises:
            DataError: if it is needed and not there, or is no proper input.
        """
        entry = INPUTS[name]
        spec = entry.path(self.config)
        if name == "population" and spec is None:
            return self._stamp_of_dataset(needed)
        if spec is None:
            return {"digest": "none", "files": {}}
        try:
            files = self._files(name, spec)
        except DataError:
            if needed:
                raise
            _LOG.warning("The %s %s is not there any more; nothing needs it.", entry.title, spec)
            return None
        if files is None:
            return None
        stats = {name: path.stat() for name, path in files.items()}
        seen = {name: [stat.st_size, stat.st_mtime_ns] for name, stat in stats.items()}
        large = sum(size for size, _ in seen.values()) > _SMALL
        if large and not needed and known is not None and known.get("files") == seen:
            return known
        digest: Callable[[], str] = partial(_digest, files)
        # Records are known by their texts, whatever file they came from; a survey by its file.
        if name == "population" and self.config.survey is None:
            digest = self._population_digest
        return {"digest": digest(), "files": seen}

    def check_sizes(self, *, evaluated: bool) -> None:
        """Refuses numbers of personas, exemplars and candidates that the records do not allow.

        Args:
            evaluated: whether held-out records are to be evaluated, which takes two.

        Raises:
            DataError: names the field and what is accepted.
        """
        config = self.config
        train, test = self.records()
        distinct, wanted = len(set(train.text_keys)), config.exemplars.num_exemplars
        num_personas = config.personas.num_personas
        if config.personas.path is not None:
            from mop_jax.components.personas import read_personas

            num_personas = len(read_personas(resolve_path(config.personas.path)))
        clusters = num_personas
        if config.personas.texts is not None:
            clusters, num_personas = num_personas, len(config.personas.texts)
        asked = {"exemplars.num_exemplars": wanted, "personas.num_personas": clusters}
        over = {field: number for field, number in asked.items() if number > distinct}
        if over:
            what = " and ".join(f"{n} {field.rpartition('num_')[2]}" for field, n in over.items())
            accepted = f"set {' and '.join(over)} to at most {distinct}"
            raise DataError(
                f"{what} were asked for, but only {distinct} distinct records are for training "
                f"({len(test)} more are held out); "
                f"{accepted if distinct > 1 else 'more records are needed'}."
            )
        if wanted:
            self._check_own_exemplars(train)
        if evaluated:
            self._check_held_out(test)
        components = num_personas * (wanted or 1)
        section = config.candidates
        if section.method == "renormalised" and section.num_candidates > components:
            raise DataError(
                f"{section.num_candidates} candidates were asked for, but there are only "
                f"{num_personas} x {wanted or 1} components; set candidates.num_candidates "
                f"to at most {components}."
            )

    def _check_own_exemplars(self, train: Population) -> None:
        """Every record needs an exemplar that is not itself, nor of its own group."""
        by_group = self.config.split.by == "group"
        leave_out = self.config.exemplars.leave_out or ("group" if by_group else "record")
        if leave_out == "group" and train.groups is None:
            raise DataError(
                "exemplars.leave_out is group, which needs groups; name the column as "
                "population.group."
            )
        if leave_out == "group" and len(set(train.groups or [])) < 2:
            raise DataError(
                "All records for training are of one group, and none may see an exemplar of its "
                "own; more groups are needed, or exemplars.leave_out: record."
            )
        texts = zip(train.response_keys, train.text_keys, strict=True)
        if len({response or text for response, text in texts}) < 2:
            raise DataError(
                "All records for training have the same response to the same context, or one long "
                "response to several, so they count as one record, and none may see itself as an "
                "exemplar; other records are needed."
            )

    def _check_held_out(self, test: Population) -> None:
        units, count = ("records", len(test))
        if test.groups is not None:
            units, count = "groups", len(set(test.groups))
        if count < 2:
            raise DataError(
                f"A standard error needs at least 2 held-out {units}; there is {count}, so set "
                "split.test_size to more."
            )

    def _read(self) -> tuple[Population, Population]:
        section, split, seed = self.config.population, self.config.split, self.config.seed
        if section.dataset is not None:
            from mop_jax.datasets import load_dataset

            sides = load_dataset(
                section.dataset,
                train_size=split.train_size,
                test_size=split.test_size,
                seed=seed,
                max_words=section.max_words,
            )
            parts = [side.fingerprint for side in sides]
            self._digest_of_population = hashlib.sha256("".join(parts).encode()).hexdigest()
            return sides
        from mop_jax.population.population import Population

        # The configuration's own checks see to it.
        assert section.path is not None
        assert split.test_size is not None
        columns = section.model_dump(exclude={"path", "dataset", "max_words"})
        population = Population.from_file(section.path, seed=seed, **columns)
        self._digest_of_population = population.fingerprint
        return population.split(
            split.test_size, by=split.by, seed=seed, train_size=split.train_size
        )

    def _stamp_of_dataset(self, needed: bool) -> Stamp | None:
        """By its records: where its files lie is its own affair."""
        try:
            return {"digest": self._population_digest(), "files": {}}
        except DataError:
            if needed:
                raise
            _LOG.warning("The data set is not at hand any more; nothing needs it.")
            return None

    def _population_digest(self) -> str:
        self.records()
        return self._digest_of_population

    def _files(self, name: str, spec: str) -> dict[str, Path] | None:
        """Its files by name; None if they are not on this machine."""
        path = _local(spec)
        if path is None:
            return None
        if path.is_dir():
            if name in ("population", "personas file"):
                raise DataError(f"{spec} is a folder; accepted is one file.")
            names = sorted(p.relative_to(path) for p in path.rglob("*") if p.suffix in _CHECKPOINT)
            shown = [p for p in names if not any(part.startswith(".") for part in p.parts)]
            return {p.as_posix(): path / p for p in shown if (path / p).is_file()}
        if _PART.search(path.name):
            stem = _PART.sub("", path.name)
            parts = sorted(p for p in path.parent.glob("*.gguf") if _PART.sub("", p.name) == stem)
            return {part.name: part for part in parts}
        # One file is known by its content alone: its name may change.
        return {"": path}


def _local(spec: str) -> Path | None:
    """Where an input is on this machine; None for a hub id that was never fetched."""
    try:
        return resolve_path(spec, fetch=False)
    except LookupError:
        return None


def _digest(files: Mapping[str, Path]) -> str:
    """SHA-256 over the names and contents of files."""
    whole = hashlib.sha256()
    for name, path in files.items():
        whole.update(name.encode("utf-8", "surrogateescape") + b"\x00")
        with open(path, "rb") as handle:
            whole.update(hashlib.file_digest(handle, "sha256").digest())
    return whole.hexdigest()
