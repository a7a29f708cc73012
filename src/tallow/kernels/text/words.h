// The words of a text; words.py says what a word is.
#pragma once

#include <cstdint>
#include <string_view>

#include "classes.h"
#include "hash.h"
#include "utf8.h"

namespace tallow {

struct Word {
    std::string_view bytes;
    uint64_t hash = 0;    // of its characters, folded
    uint32_t characters = 0;
    bool spaced = false;  // white space goes before it
    bool plain = false;   // it has letters or digits, so is no symbol
    bool letter = false;
};

// What hashes words as they stand: no character is passed over, and none is the digit 0.
struct Exactly {
    char32_t operator()(char32_t character) const { return character | 0x80000000; }
};

// Calls `take` with each word. `fold` says as what a character is hashed, 0 if not at all; runs of the digit 0 are one.
template <class Fold, class Take>
void scan_words(std::string_view text, const Classes &kinds, Fold fold, Take take) {
    constexpr uint8_t goes_on = Classes::WORD | Classes::MARK;
    const char *at = text.data();
    const char *const end = at + text.size();
    bool spaced = false;
    while (at < end) {
        const char *const begin = at;
        const char32_t first = next_character(at);
        uint8_t kind = kinds[first];
        if (kind & Classes::SPACE) {
            spaced = true;
            continue;
        }
        Word word;
        word.spaced = spaced;
        spaced = false;
        char32_t folded_before = 0;
        const auto absorbed = [&](char32_t character, uint8_t its_kind) {
            ++word.characters;
            word.plain |= (its_kind & Classes::WORD) != 0;
            word.letter |= (its_kind & Classes::LETTER) != 0;
            const char32_t folded = fold(character);
            if (folded != 0 && !(folded == '0' && folded_before == '0')) word.hash = absorb(word.hash, folded);
            if (folded != 0) folded_before = folded;
        };
        absorbed(first, kind);
        if (kind & Classes::ALONE || !(kind & goes_on)) {
            while (at < end) {
                const char *next = at;
                const char32_t character = next_character(next);
                const bool same = character == first && !(kind & Classes::ALONE);
                if (!same && !(kinds[character] & Classes::MARK)) break;
                absorbed(character, kinds[character]);
                at = next;
            }
        } else {
            while (at < end) {
                const char *next = at;
                const char32_t character = next_character(next);
                const uint8_t its_kind = kinds[character];
                if (!(its_kind & goes_on) || its_kind & Classes::ALONE) {
                    const bool apostrophe = character == '\'' || character == 0x2019;
                    const bool point = (character == '.' || character == ',') && (kind & (Classes::WORD | Classes::LETTER)) == Classes::WORD;
                    if (!(apostrophe || point) || next == end) break;
                    const char *behind = next;
                    const uint8_t kind_behind = kinds[next_character(behind)];
                    if (!(kind_behind & Classes::WORD) || kind_behind & (point ? Classes::LETTER : Classes::ALONE)) break;
                }
                absorbed(character, its_kind);
                kind = its_kind;
                at = next;
            }
        }
        word.bytes = {begin, size_t(at - begin)};
        take(word);
    }
}

}  // namespace tallow
