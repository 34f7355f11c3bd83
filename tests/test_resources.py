"""Where models and data are looked up, and what is said where nothing is found."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest

from mop_jax.errors import DataError, FaultError
from mop_jax.resources import resolve_path


def test_local_files_and_folders(tmp_path, monkeypatch):
    file = tmp_path / "data" / "a.csv"
    file.parent.mkdir()
    file.write_text("x")
    assert resolve_path(file) == file.resolve()
    assert resolve_path(str(file.parent)) == file.parent.resolve()
    monkeypatch.chdir(tmp_path)
    assert resolve_path("data/a.csv") == file.resolve()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert resolve_path("~/data/a.csv") == file.resolve()


def test_files_inside_packages_are_found_without_importing_them(tmp_path, monkeypatch):
    package = tmp_path / "carrier_of_data"
    (package / "inner").mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('must not be imported')")
    (package / "inner" / "f.bin").write_bytes(b"x")
    monkeypatch.syspath_prepend(str(tmp_path))
    assert resolve_path("package:carrier_of_data/inner/f.bin") == package / "inner" / "f.bin"
    with pytest.raises(DataError, match=r"carrier_of_data holds no 'g\.bin'"):
        resolve_path("package:carrier_of_data/g.bin")


@pytest.mark.parametrize("name", ["no_such_package_here", "no.such.package", "json.decoder", ""])
def test_a_missing_package_is_named(name):
    with pytest.raises(DataError, match="which is not installed; install it with: pip install"):
        resolve_path(f"package:{name}/f.bin")


@pytest.mark.parametrize(
    "text",
    ["missing.csv", "data/a.csv.bz2", "my/run.yaml", "/no/such", "a/b/c", "my/model.gguf", "..."],
)
def test_what_is_nowhere_is_named(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError) as caught:
        resolve_path(text)
    assert str(caught.value).startswith(f"{text} was not found; give an existing file or folder")


@pytest.fixture
def hub(monkeypatch):
    """A stand-in for huggingface_hub; calls are recorded, errors can be set."""
    module = types.ModuleType("huggingface_hub")
    module.calls, module.error = [], None

    def snapshot_download(repo_id, **options):
        module.calls.append((repo_id, options))
        if module.error:
            raise module.error
        return "/cache/" + repo_id

    module.snapshot_download = snapshot_download
    monkeypatch.setitem(sys.modules, "huggingface_hub", module)
    return module


def test_hub_ids_are_fetched_without_pickles(hub, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert resolve_path("owner/model-1.5b") == Path("/cache/owner/model-1.5b")
    ((repo_id, options),) = hub.calls
    assert repo_id == "owner/model-1.5b"
    assert not any(pattern.endswith((".bin", ".pt", "*")) for pattern in options["allow_patterns"])
    hub.error = OSError("no network\nlong traceback")
    with pytest.raises(FaultError, match="owner/model is no local path") as e:
        resolve_path("owner/model")
    assert "no network" in str(e.value)
    assert "\n" not in str(e.value)


def test_what_was_never_fetched_is_not_fetched_where_that_is_not_wanted(hub):
    hub.error = OSError("not in the cache")
    with pytest.raises(LookupError):
        resolve_path("owner/name", fetch=False)
    ((_, options),) = hub.calls
    assert options["local_files_only"] is True


def test_a_local_folder_comes_before_the_hub(hub, tmp_path, monkeypatch):
    (tmp_path / "owner" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_path("owner/model") == (tmp_path / "owner" / "model").resolve()
    assert not hub.calls


def test_without_the_hub_client_it_is_asked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(DataError, match=r"pip install 'mop-jax\[hub\]'"):
        resolve_path("owner/model")
