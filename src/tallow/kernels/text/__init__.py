"""Operations on texts, which are UTF-8 in Arrow arrays: a reference in Python defines each, and C++ does it faster."""

from __future__ import annotations

import importlib
from types import ModuleType

import pyarrow as pa

from tallow.console import say
from tallow.once import once


@once()
def native() -> ModuleType | None:
    """The C++ extension; None where it could not be built, which the first call says on standard error."""
    try:
        return importlib.import_module("tallow.kernels.text._text")
    except ImportError as error:
        say(f"tallow runs without its C++ kernels, so more slowly ({error}); install a C++ compiler, then tallow anew")
        return None


def places(texts: pa.StringArray) -> tuple[int, int, int]:
    """Addresses of the offsets and the bytes of some texts, and their number, as the extension takes them.

    They hold while the array is there. A text that is null is empty.
    """
    _, offsets, data = texts.buffers()
    assert texts.type == pa.string()
    assert offsets is not None or not len(texts)
    if offsets is None:
        return 0, 0, 0
    return offsets.address + 4 * texts.offset, data.address if data is not None else 0, len(texts)
