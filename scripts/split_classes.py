"""Write src/tallow/kernels/text/split_classes.h: what `\\p{…}` and `\\s` mean to the library `tokenizers`.

    .venv/bin/python scripts/split_classes.py

To be run again when that library comes with another version of Unicode (tests/kernels/text/test_bpe.py tells).
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Regex, pre_tokenizers

CLASSES = (r"[\p{Lu}\p{Lt}]", r"\p{Ll}", r"[\p{Lm}\p{Lo}]", r"\p{M}", r"\p{N}", r"\s")
"""In the order of the numbers that the table gives them, from 1."""
OUT = Path(__file__).parents[1] / "src" / "tallow" / "kernels" / "text" / "split_classes.h"
PER_LINE = 11


def main() -> None:
    classes = classify()
    starts = [code for code in range(0x110000) if code == 0 or classes[code] != classes[code - 1]]
    numbers = [f"0x{code << 3 | classes[code]:06X}" for code in starts]
    rows = [", ".join(numbers[row : row + PER_LINE]) for row in range(0, len(numbers), PER_LINE)]
    OUT.write_text(
        "// Where runs of characters of one class begin: the character's code times 8, plus the class. Written by\n"
        "// scripts/split_classes.py. 1: capitals, 2: small letters, 3: other letters, 4: marks, 5: numbers, 6: white\n"
        "// space, 0: all others.\n"
        "#pragma once\n\n#include <cstdint>\n\nnamespace tallow {\n\n"
        "inline constexpr uint32_t kClassStarts[] = {\n    " + ",\n    ".join(rows) + "};\n\n}  // namespace tallow\n"
    )


def classify() -> bytearray:
    """The class of each character there can be."""
    classes = bytearray(0x110000)
    for first in range(0, 0x110000, 0x4000):
        text = "".join(chr(code) for code in range(first, first + 0x4000) if not 0xD800 <= code < 0xE000)
        for number, pattern in enumerate(CLASSES, 1):
            outside = pre_tokenizers.Split(Regex(f"{pattern}+"), behavior="removed")
            left = {ord(character) for piece, _ in outside.pre_tokenize_str(text) for character in piece}
            for character in text:
                if ord(character) not in left:
                    classes[ord(character)] = number
    return classes


if __name__ == "__main__":
    main()
