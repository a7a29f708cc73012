// UTF-8 that is known to be valid, as that of Arrow's strings is.
#pragma once

#include <cstdint>

namespace tallow {

// Whether a byte goes on with a character rather than beginning one.
inline bool continues(char byte) { return (uint8_t(byte) & 0xC0) == 0x80; }

// The character at `at`, which is moved behind it.
inline char32_t next_character(const char *&at) {
    const uint8_t first = uint8_t(*at++);
    if (first < 0x80) return first;
    const int more = first >= 0xF0 ? 3 : first >= 0xE0 ? 2 : 1;
    char32_t character = first & (0x3F >> more);
    for (int i = 0; i < more; ++i) character = character << 6 | (uint8_t(*at++) & 0x3F);
    return character;
}

}  // namespace tallow
