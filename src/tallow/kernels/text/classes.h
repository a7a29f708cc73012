// What kind of character each is, and which letters are taken for the same: tables that Python makes (classes.py).
#pragma once

#include <cstdint>
#include <tuple>

namespace tallow {

// Addresses of the two tables (`class_places` in Python).
using ClassPlaces = std::tuple<uintptr_t, uintptr_t>;

struct Classes {
    enum : uint8_t { SPACE = 1, WORD = 2, LETTER = 4, ALONE = 8, MARK = 16, LOWER = 32, TERMINAL = 64, CLOSER = 128 };
    static constexpr char32_t FOLDED = 0x30000;

    const uint8_t *kinds;
    const uint32_t *folds;

    explicit Classes(const ClassPlaces &places)
        : kinds(reinterpret_cast<const uint8_t *>(std::get<0>(places))),
          folds(reinterpret_cast<const uint32_t *>(std::get<1>(places))) {}

    uint8_t operator[](char32_t character) const { return kinds[character]; }

    // 0 for what is passed over.
    char32_t fold(char32_t character) const {
        if (character < FOLDED) return folds[character];
        return kinds[character] & WORD ? character : 0;
    }
};

}  // namespace tallow
