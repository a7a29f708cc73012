// Where texts are cut before pairs of bytes are merged: the rules of GPT-2 and of GPT-4's cl100k, which others use too,
// written out. In their regular expressions \p{L} are letters, \p{N} numbers, \s white space.
#pragma once

#include <cstdint>
#include <string_view>

#include "utf8.h"

namespace tallow {

enum Property : uint8_t { kLetter = 1, kNumber = 2, kWhite = 4 };

// A character and where the next one begins; behind the end it has no property and no code.
struct Reader {
    const char *at, *next, *end;
    char32_t code = 0;
    uint8_t property = 0;

    Reader(const char *at, const char *end, const uint8_t *properties) : at(at), next(at), end(end) {
        if (at == end) return;
        code = next_character(next);
        property = properties[code];
    }
    bool there() const { return at != end; }
    bool is(uint8_t some) const { return property & some; }
    bool other() const { return there() && !property; }
    bool line_end() const { return code == '\r' || code == '\n'; }
};

class Splitter {
public:
    // `digits`: the longest run of numbers in a piece; 0: GPT-2's rules, in which there is no such limit.
    Splitter(const uint8_t *properties, int digits) : properties_(properties), digits_(digits) {}

    // Where the piece that begins at `at` ends.
    const char *end_of_piece(const char *at, const char *end) const {
        const Reader first(at, end, properties_);
        if (first.code == '\'')
            if (const int length = contraction(at, end)) return at + length;
        return digits_ ? cl100k(first) : gpt2(first);
    }

private:
    Reader read(const char *at, const char *end) const { return Reader(at, end, properties_); }

    // The end of characters with a property, from `at` on, at most `most` of them.
    const char *run(const char *at, const char *end, uint8_t property, int64_t most = INT64_MAX) const {
        for (; most > 0; --most) {
            const Reader here = read(at, end);
            if (!here.is(property)) break;
            at = here.next;
        }
        return at;
    }
    const char *run_of_others(const char *at, const char *end) const {
        for (Reader here = read(at, end); here.other(); here = read(at, end)) at = here.next;
        return at;
    }

    // Length of 's, 't, 'm, 'd, 're, 've, 'll; in cl100k capitals, too.
    int contraction(const char *at, const char *end) const {
        const auto letter = [&](int i) {
            if (end - at <= i) return '\0';
            const char c = at[i];
            return digits_ && c >= 'A' && c <= 'Z' ? char(c + 32) : c;
        };
        const char one = letter(1), two = letter(2);
        if (one == 's' || one == 't' || one == 'm' || one == 'd') return 2;
        if ((one == 'r' && two == 'e') || (one == 'v' && two == 'e') || (one == 'l' && two == 'l')) return 3;
        return 0;
    }

    const char *cl100k(const Reader &first) const {
        const char *const end = first.end;
        if (first.is(kLetter)) return run(first.next, end, kLetter);
        if (!first.is(kNumber) && !first.line_end())
            if (const Reader second = read(first.next, end); second.is(kLetter)) return run(second.next, end, kLetter);
        if (first.is(kNumber)) return run(first.at, end, kNumber, digits_);
        const char *const others = first.code == ' ' ? first.next : first.at;
        if (const char *behind = run_of_others(others, end); behind != others) {
            while (behind != end && (*behind == '\r' || *behind == '\n')) ++behind;
            return behind;
        }
        return white(first, true);
    }

    const char *gpt2(const Reader &first) const {
        const Reader second = first.code == ' ' ? read(first.next, first.end) : first;
        if (second.is(kLetter)) return run(second.next, first.end, kLetter);
        if (second.is(kNumber)) return run(second.next, first.end, kNumber);
        if (second.other()) return run_of_others(second.next, first.end);
        return white(first, false);
    }

    // White space: up to its last line end, if wanted and there is one; else the last one goes with what follows.
    const char *white(const Reader &first, bool lines) const {
        const char *last = first.at, *behind_line = nullptr, *at = first.at;
        for (Reader here = first; here.is(kWhite); here = read(at, first.end)) {
            last = here.at, at = here.next;
            if (here.line_end()) behind_line = at;
        }
        if (lines && behind_line) return behind_line;
        return at == first.end || last == first.at ? at : last;
    }

    const uint8_t *properties_;
    int digits_;
};

}  // namespace tallow
