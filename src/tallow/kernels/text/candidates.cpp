// Where in texts something private may be: places that are cheap to find, for others to look at exactly.
// Each is defined by its pattern in candidates.py. Each byte is visited once, and looked at again by a search that went
// on from an earlier one at most once a kind: a search ends where that of its kind ended, or after so many bytes.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string_view>
#include <tuple>
#include <vector>

#include "number_forms.h"
#include "texts.h"
#include "utf8.h"

namespace nb = nanobind;

namespace tallow {
namespace {

enum Kind : int32_t { AT, PHONE, IPV4, IPV6, TOKEN, IBAN, ASSIGNMENT, PEM, CARD, ID };

constexpr uint8_t DIGIT = 1, LETTER = 2, HEX = 4, WORD = 8, ANCHOR = 16;
constexpr int64_t MIN_DIGITS = 7, MAX_BETWEEN = 3, MAX_ACCOUNT = 34, MIN_TOKEN = 15, BEFORE_TOKEN = 5, MIN_IPV6 = 6, MAX_IPV6 = 45, MAX_LABEL = 63;

constexpr std::array<uint8_t, 256> make_classes() {
    std::array<uint8_t, 256> classes{};
    for (int byte = 0; byte < 256; ++byte) {
        const int lower = byte | 0x20;
        const bool digit = byte >= '0' && byte <= '9', letter = byte < 0x80 && lower >= 'a' && lower <= 'z';
        if (digit) classes[byte] |= DIGIT | HEX | WORD | ANCHOR;
        if (letter) classes[byte] |= LETTER | WORD;
        if (letter && lower <= 'f') classes[byte] |= HEX;
        if (byte == '_' || byte == '-') classes[byte] |= WORD;
        // the digits of Arabic and Persian and wide ones begin with the last three, the wide colon with the last
        for (int anchor : {int('@'), int(':'), int('='), int('-'), 0xD9, 0xDB, 0xEF})
            if (byte == anchor) classes[byte] |= ANCHOR;
    }
    return classes;
}
constexpr std::array<uint8_t, 256> CLASSES = make_classes();

bool is(char byte, int classes) { return CLASSES[uint8_t(byte)] & classes; }

// What keys and addresses of wallets begin with, beside the forms in `may_be_secret`.
constexpr std::string_view CHAINS[] = {"bc1", "tb1", "ltc1", "BC1", "TB1", "LTC1"};
constexpr std::string_view KEYS[] = {"ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-", "xapp-", "AIza", "ya29.",
                                     "rk_live_", "rk_test_", "sk_live_", "sk_test_", "npm_", "hf_", "pypi-", "SG.", "eyJ"};

bool is_base58(char byte) { return is(byte, DIGIT | LETTER) && !std::strchr("0OIl", byte); }

// Whether a key or the address of a wallet may begin at a place; `run` is what letters and digits follow.
bool may_be_secret(std::string_view text, std::string_view run) {
    const char first = text[0];
    const bool key = std::strchr("gsxAyrnhpSe", first) && std::any_of(std::begin(KEYS), std::end(KEYS), [&](std::string_view key) { return text.starts_with(key); });
    if (key) return true;
    const auto upper = [](char byte) { return byte >= 'A' && byte <= 'Z'; };
    if (first == 'A' && run.size() == 20 && std::all_of(run.begin(), run.begin() + 4, upper)) return true;
    if (text.starts_with("xox") && text.size() > 4 && text[3] >= 'a' && text[3] <= 'z' && text[4] == '-') return true;
    if (std::strchr("123LMDTX", first) && run.size() >= 26 && run.size() <= 35 && std::all_of(run.begin(), run.end(), is_base58)) return true;
    if (first == '0') return run.size() == 42 && run[1] == 'x';
    if (run.size() < 11 || !std::strchr("btlBTL", first)) return false;
    return std::any_of(std::begin(CHAINS), std::end(CHAINS), [&](std::string_view chain) { return run.starts_with(chain); });
}

struct Finder {
    std::vector<std::string_view> words;    // what secrets are called, lower case
    std::array<bool, 256> last_of_word{};  // the bytes that they end in, as they may be written
    const char *begin = nullptr, *end = nullptr, *mark = nullptr;
    const char *number_end = nullptr, *ipv6_end = nullptr, *dashes_end = nullptr;
    const NumberForms *forms;  // of numbers; none: any
    NumberGroups groups;
    std::u32string window;
    int32_t text = 0, characters = 0;  // the number of the text, and characters before the mark
    std::vector<int32_t> found;

    // `lines`: the words, each ended by a line break.
    Finder(std::string_view lines, const NumberForms *forms) : forms(forms) {
        for (size_t from = 0, to; from < lines.size(); from = to + 1) {
            to = lines.find('\n', from);
            words.push_back(lines.substr(from, to - from));
            const uint8_t last = uint8_t(words.back().back());
            last_of_word[last] = last_of_word[is(char(last), LETTER) ? last ^ 0x20 : last] = true;
        }
    }

    // Characters from one place to a later one.
    static int32_t count(const char *from, const char *to) {
        return int32_t(std::count_if(from, to, [](char byte) { return !continues(byte); }));
    }

    int32_t character(const char *at) const { return at >= mark ? characters + count(mark, at) : characters - count(at, mark); }

    void add(Kind kind, const char *at, const char *from, const char *to) {
        characters += count(mark, at);  // the mark follows the scan, so that no byte is counted often
        mark = at;
        found.insert(found.end(), {text, kind, character(from), character(to)});
    }

    // Bytes of the digit at a place, 0 if there is none.
    int digit(const char *at) const {
        if (at == end) return 0;
        const uint8_t first = uint8_t(at[0]);
        if (first < 0x80) return is(at[0], DIGIT);
        const uint8_t second = end - at > 1 ? uint8_t(at[1]) : 0;
        if (first == 0xD9) return second >= 0xA0 && second <= 0xA9 ? 2 : 0;
        if (first == 0xDB) return second >= 0xB0 && second <= 0xB9 ? 2 : 0;
        if (first != 0xEF || second != 0xBC || end - at < 3) return 0;
        return uint8_t(at[2]) >= 0x90 && uint8_t(at[2]) <= 0x99 ? 3 : 0;
    }

    // Bytes of what may stand between digits of a number, 0 if it is something else.
    int between(const char *at) const {
        if (at == end) return 0;
        if (std::strchr(" ()./-", *at) && *at) return 1;
        if (end - at > 1 && std::memcmp(at, "\xC2\xA0", 2) == 0) return 2;
        return end - at > 2 && std::memcmp(at, "\xE2\x80\x91", 3) == 0 ? 3 : 0;
    }

    void number(const char *at) {
        if (at < number_end) return;
        groups.digits.clear();
        groups.groups.assign(1, {});
        const char *last = at;
        for (const char *next = at;;) {
            const int bytes = digit(next);
            if (!bytes) break;
            groups.digits.push_back(char('0' + (uint8_t(next[bytes - 1]) & 15)));
            last = next += bytes;
            if (digit(next)) continue;
            for (int64_t i = 0; i < MAX_BETWEEN && !digit(next); ++i) next += between(next);
            if (digit(next)) groups.groups.push_back(group(last, next));
        }
        number_end = std::max(last, at + 1);
        if (int64_t(groups.digits.size()) < MIN_DIGITS) return;
        const int uses = forms ? forms->uses(groups, {begin, size_t(end - begin)}, at, last, window) : ~0;
        if (uses & NumberForms::CARD) add(CARD, at, at, last);
        if (uses & NumberForms::ID) add(ID, at, at, last);
        if (uses & NumberForms::PHONE) add(PHONE, at, at, last);
    }

    // The group of digits behind some separators.
    NumberGroups::Group group(const char *from, const char *to) const {
        const std::string_view between(from, size_t(to - from));
        const bool spaced = between.find(' ') != between.npos || between.find("\xC2\xA0") != between.npos;
        const char single = between == " " || between == "\xC2\xA0" ? ' ' : between == "-" || between == "." ? between[0] : '\0';
        return {int32_t(groups.digits.size()), single, spaced, between.find('(') != between.npos};
    }

    // A word that ends here.
    void token(const char *from, const char *to) {
        for (const char *at = std::max(begin, from - BEFORE_TOKEN), *run = at; at < to; ++at) {
            if (!is(*at, DIGIT | LETTER) || (at > begin && is(at[-1], DIGIT | LETTER))) continue;
            for (run = at; run < end && is(*run, DIGIT | LETTER);) ++run;
            if (may_be_secret({at, size_t(to - at)}, {at, size_t(run - at)})) return add(TOKEN, to, from, to);
        }
    }

    void ipv4(const char *at) {
        if (at > begin && (is(at[-1], DIGIT) || at[-1] == '.')) return;
        const char *next = at;
        int first_parts[2] = {};
        for (int part = 0; part < 4; ++part) {
            if (part && (next == end || *next++ != '.')) return;
            const char *first = next;
            int value = 0;
            for (; next < end && is(*next, DIGIT) && next - first < 4; ++next) value = 10 * value + (*next - '0');
            if (next == first || value > 255 || (*first == '0' && next - first > 1)) return;
            if (part < 2) first_parts[part] = value;
        }
        if (end - next > 1 && next[0] == '.' && is(next[1], DIGIT)) return;
        if (!forms || forms->own_addresses || !is_nobodys(first_parts[0], first_parts[1])) add(IPV4, at, at, next);
    }

    // Whether the addresses with these first parts are nobody's on the internet.
    static bool is_nobodys(int first, int second) {
        return first == 0 || first == 10 || first == 127 || first >= 224 || (first == 169 && second == 254) ||
               (first == 192 && second == 168) || (first == 172 && second >= 16 && second < 32);
    }

    void iban(const char *at) {
        if (at - begin < 2 || !is(at[-1], LETTER) || !is(at[-2], LETTER)) return;
        if (at - begin > 2 && is(at[-3], LETTER | DIGIT)) return;
        if (end - at < 3 || !is(at[1], DIGIT)) return;
        const char *next = at + 2 + (at[2] == ' ' || at[2] == '-');
        if (next < end && is(*next, LETTER | DIGIT) && (!forms || is_account(at - 2))) add(IBAN, at, at - 2, at + 2);
    }

    // Whether a country has accounts as long as that at a place, and its check digits (ISO 7064, modulus 97) are right.
    bool is_account(const char *at) const {
        const auto upper = [](char byte) { return is(byte, LETTER) ? char(byte & ~0x20) : byte; };
        const int length = forms->account_length(upper(at[0]), upper(at[1]));
        if (!length) return false;
        std::array<char, MAX_ACCOUNT> characters;
        for (int i = 0; i < length; ++i, ++at) {
            if (i && at < end && (*at == ' ' || *at == '-')) ++at;
            else if (i && end - at > 1 && std::memcmp(at, "\xC2\xA0", 2) == 0) at += 2;
            if (at == end || !is(*at, LETTER | DIGIT)) return false;
            characters[size_t(i)] = upper(*at);
        }
        int rest = 0;
        for (int i = 0; i < length; ++i) {
            const char character = characters[size_t((i + 4) % length)];
            rest = is(character, DIGIT) ? (10 * rest + character - '0') % 97 : (100 * rest + character - 'A' + 10) % 97;
        }
        return rest == 1;
    }

    void ipv6(const char *at) {
        if (at < ipv6_end) return;
        const char *first = at, *last = at, *limit = std::max(begin, ipv6_end);
        while (first > limit && is(first[-1], HEX)) --first;
        int colons = 0;
        bool doubled = false;
        for (; last < end && (*last == ':' || is(*last, HEX)); ++last) {
            colons += *last == ':';
            doubled |= *last == ':' && last > at && last[-1] == ':';
        }
        ipv6_end = last;
        if (last - first < MIN_IPV6 || last - first > MAX_IPV6 || (!doubled && colons < 6)) return;
        const bool joined = (first > begin && (is(first[-1], LETTER | DIGIT) || first[-1] == '_')) ||
                            (last < end && (is(*last, LETTER | DIGIT) || *last == '_'));
        if (!joined) add(IPV6, at, first, last);
    }

    void mail(const char *at) {
        if (at == begin || uint8_t(at[-1]) <= ' ' || at[-1] == '@' || at[-1] == 0x7F) return;
        const char *next = at + 1;
        while (next < end && next - at <= MAX_LABEL && (is(*next, LETTER | DIGIT) || *next == '-' || uint8_t(*next) >= 0x80)) ++next;
        if (next == at + 1 || end - next < 2 || !std::strchr(".:/", *next) || !*next) return;
        if (is(next[1], LETTER | DIGIT) || uint8_t(next[1]) >= 0x80) add(AT, at, at, at + 1);
    }

    // What ends with a colon or an equals sign of `bytes` bytes: the name of a secret?
    void assignment(const char *at, int bytes) {
        const char *last = at;
        while (last > begin && at - last < 2 && last[-1] == ' ') --last;
        if (last > begin && (last[-1] == '"' || last[-1] == '\'')) --last;
        if (last == begin || !last_of_word[uint8_t(last[-1])]) return;
        const auto ends_with = [&](std::string_view word) {
            return size_t(last - begin) >= word.size() &&
                   std::equal(word.begin(), word.end(), last - word.size(), [](char letter, char byte) {
                       return (byte >= 'A' && byte <= 'Z' ? byte | 0x20 : byte) == letter;
                   });
        };
        if (std::any_of(words.begin(), words.end(), ends_with)) add(ASSIGNMENT, at, at, at + bytes);
    }

    void dashes(const char *at) {
        if (at < dashes_end) return;
        const char *next = at;
        while (next < end && *next == '-') ++next;
        dashes_end = next;
        if (next - at >= 5 && end - next >= 6 && std::memcmp(next, "BEGIN ", 6) == 0) add(PEM, at, next - 5, next + 6);
    }

    void scan(std::string_view bytes, int32_t number_of_text) {
        text = number_of_text, characters = 0;
        begin = mark = number_end = ipv6_end = dashes_end = bytes.data();
        end = begin + bytes.size();
        const char *word = begin;
        for (const char *at = begin; at <= end; ++at) {
            const uint8_t classes = at < end ? CLASSES[uint8_t(*at)] : 0;
            if (!(classes & WORD)) {
                if (at - word >= MIN_TOKEN) token(word, at);
                word = at + 1;
            }
            if (!(classes & ANCHOR)) continue;
            if (classes & DIGIT) {
                number(at), ipv4(at), iban(at);
            } else if (*at == '@') {
                mail(at);
            } else if (*at == '-') {
                dashes(at);
            } else if (*at == ':' || *at == '=') {
                assignment(at, 1);
                if (*at == ':') ipv6(at);
            } else if (digit(at)) {
                number(at);
            } else if (end - at > 2 && std::memcmp(at, "\xEF\xBC\x9A", 3) == 0) {
                assignment(at, 3);
            }
        }
    }
};

nb::bytes find_candidates(const TextPlaces &places, const nb::bytes &words, const NumberForms *forms) {
    Finder finder({words.c_str(), words.size()}, forms);
    {
        nb::gil_scoped_release release;
        const Texts texts(places);
        for (int64_t i = 0; i < texts.count; ++i) finder.scan(texts[i], int32_t(i));
    }
    return nb::bytes(reinterpret_cast<const char *>(finder.found.data()), finder.found.size() * sizeof(int32_t));
}

}  // namespace

void bind_candidates(nb::module_ &m) {
    nb::class_<NumberForms>(m, "NumberForms").def("__init__", [](NumberForms *self, const nb::bytes &lines, const std::vector<std::string> &plans,
                                                                      const std::vector<std::string> &usual) {
        new (self) NumberForms({lines.c_str(), lines.size()}, plans, usual);
    });
    m.def("find_candidates", &find_candidates, nb::arg(), nb::arg(), nb::arg().none());
}

}  // namespace tallow
