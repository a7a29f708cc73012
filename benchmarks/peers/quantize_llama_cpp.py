"""A GGUF file in another format, by llama.cpp's own quantizer: quantize_llama_cpp.py SOURCE TARGET FORMAT."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any


def main() -> None:
    source, target, form = sys.argv[1:]
    llama: Any = importlib.import_module("llama_cpp")  # installed in its own virtual environment only
    params = llama.llama_model_quantize_default_params()
    params.ftype = getattr(llama, f"LLAMA_FTYPE_MOSTLY_{form.upper()}")
    status = llama.llama_model_quantize(source.encode(), f"{target}.partial".encode(), params)
    assert status == 0, f"llama_model_quantize returned {status}"
    os.replace(f"{target}.partial", target)


if __name__ == "__main__":
    main()
