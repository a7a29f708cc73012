// Where texts are cut before pairs of bytes are merged: the rules of GPT-2, of GPT-4's cl100k, which others use too, and
// of GPT-4o's o200k, written out. In their regular expressions \p{L} are letters, \p{N} numbers, \s white space, \p{M}
// marks.
#pragma once

#include <cstdint>
#include <string_view>

#include "utf8.h"

namespace tallow {

// A capital (or titlecase letter) is a letter, too, and so is a small one; a letter that is neither may stand for both.
enum Property : uint8_t { kLetter = 1, kNumber = 2, kWhite = 4, kMark = 8, kCapital = 16, kSmall = 32 };

struct SplitRule {
    int digits;           // the longest run of numbers in a piece; 0: GPT-2's rule, in which there is no such limit
    bool cased = false;   // o200k's rule
    bool folded = false;  // contractions by Unicode's case folding, in which the long s is an s
};

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
    bool other() const { return there() && !(property & (kLetter | kNumber | kWhite)); }
    bool upper() const { return property & (kLetter | kMark) && !(property & kSmall); }    // in the first half of a word
    bool lower() const { return property & (kLetter | kMark) && !(property & kCapital); }  // in its second half
    bool line_end() const { return code == '\r' || code == '\n'; }
};

class Splitter {
public:
    Splitter(const uint8_t *properties, SplitRule rule) : properties_(properties), rule_(rule) {}

    // Where the piece that begins at `at` ends.
    const char *end_of_piece(const char *at, const char *end) const {
        const Reader first(at, end, properties_);
        if (rule_.cased) return o200k(first);
        if (first.code == '\'')
            if (const int length = contraction(at, end)) return at + length;
        return rule_.digits ? cl100k(first) : gpt2(first);
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

    // Length of 's, 't, 'm, 'd, 're, 've, 'll at an apostrophe; in cl100k and o200k capitals, too.
    int contraction(const char *at, const char *end) const {
        const auto letter = [&](int i) {
            if (end - at <= i) return '\0';
            const char c = at[i];
            return rule_.digits && c >= 'A' && c <= 'Z' ? char(c + 32) : c;
        };
        const char one = letter(1), two = letter(2);
        if (rule_.folded && one == '\xC5' && two == '\xBF') return 3;
        if (one == 's' || one == 't' || one == 'm' || one == 'd') return 2;
        if ((one == 'r' && two == 'e') || (one == 'v' && two == 'e') || (one == 'l' && two == 'l')) return 3;
        return 0;
    }

    const char *cl100k(const Reader &first) const {
        const char *const end = first.end;
        if (first.is(kLetter)) return run(first.next, end, kLetter);
        if (!first.is(kNumber) && !first.line_end())
            if (const Reader second = read(first.next, end); second.is(kLetter)) return run(second.next, end, kLetter);
        return no_word(first);
    }

    const char *o200k(const Reader &first) const {
        const char *const end = first.end;
        const bool before = first.there() && !first.is(kLetter | kNumber) && !first.line_end();
        const char *found = before ? cased(first.next, end, true) : nullptr;
        if (!found) found = cased(first.at, end, true);
        if (!found && before) found = cased(first.next, end, false);
        if (!found) found = cased(first.at, end, false);
        if (!found) return no_word(first);
        return found != end && *found == '\'' ? found + contraction(found, end) : found;
    }

    // The end of a word: its first half, then its second. Where none but the first half follows, as much of it is given
    // back as the second needs to have a character of both (`split`), or there is no second (else).
    const char *cased(const char *at, const char *end, bool split) const {
        const char *both = nullptr, *const start = at;
        Reader here = read(at, end);
        for (; here.upper(); here = read(at, end)) {
            at = here.next;
            if (here.lower()) both = at;
        }
        if (!split) return at == start ? nullptr : at;
        if (!here.lower()) return both;
        for (; here.lower(); here = read(at, end)) at = here.next;
        return at;
    }

    // What comes after the words in cl100k and o200k: numbers; others; white space.
    const char *no_word(const Reader &first) const {
        const char *const end = first.end;
        if (first.is(kNumber)) return run(first.at, end, kNumber, rule_.digits);
        const char *const others = first.code == ' ' ? first.next : first.at;
        if (const char *behind = run_of_others(others, end); behind != others) {
            while (behind != end && (*behind == '\r' || *behind == '\n' || (rule_.cased && *behind == '/'))) ++behind;
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
    SplitRule rule_;
};

}  // namespace tallow
