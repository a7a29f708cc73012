from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_without_a_compiler_the_build_installs_no_extension_and_says_so(tmp_path: Path) -> None:
    environment = {**os.environ, "CC": "/nonexistent/cc", "CXX": "/nonexistent/c++"}
    configured = subprocess.run(
        ["cmake", "-S", ROOT, "-B", tmp_path / "build"], env=environment, capture_output=True, text=True, check=False
    )
    assert configured.returncode == 0, configured.stderr
    assert "No working C++ compiler" in configured.stderr
    subprocess.run(["cmake", "--install", tmp_path / "build", "--prefix", tmp_path / "installed"], check=True)
    assert not list(tmp_path.glob("installed/**/_native*"))
