// Which numbers may be private, by how they are written and what is beside them (`NumberForms.may_be`, which defines it).
#include "number_forms.h"

#include <algorithm>
#include <cstring>

#include "utf8.h"

namespace tallow {
namespace {

constexpr int64_t MIN_DIGITS = 7, MAX_DIGITS = 17, MAX_SIZE = 31;
constexpr size_t MAX_GROUPS = 12, SIZE_BITS = 5;
constexpr uint64_t BY_DIGITS = uint64_t(1) << 63;
constexpr int64_t BEFORE = 52, AFTER = 12, WORD_BEFORE = 40;
constexpr char32_t STRANGE = 0x10FFFF;

// Lower case. STRANGE: another letter in lower case that is none of ASCII, Latin-1 and basic Cyrillic itself.
char32_t fold(char32_t c) {
    if (c < 0x80) return c >= 'A' && c <= 'Z' ? c + 0x20 : c;
    if (c >= 0xC0 && c <= 0xDE && c != 0xD7) return c + 0x20;
    if (c >= 0x410 && c <= 0x42F) return c + 0x20;
    if (c >= 0x400 && c <= 0x40F) return c + 0x50;
    const bool strange = c == 0x130 || c == 0x131 || c == 0x17F || c == 0x212A || (c >= 0x1C80 && c <= 0x1C8F);
    return strange ? STRANGE : c;
}

bool is_word(char32_t c) { return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_'; }

template <class Use>
void each_line(std::string_view lines, Use use) {
    for (size_t from = 0, to; from < lines.size(); from = to + 1) {
        to = lines.find('\n', from);
        use(lines.substr(from, to - from));
    }
}

uint64_t size_of(char letter) { return uint64_t(letter <= '9' ? letter - '0' : letter - 'a' + 10); }

bool is_upper(char byte) { return byte >= 'A' && byte <= 'Z'; }

// Whether a letter is beside a number, as in some ids.
bool has_letter(std::string_view text, const char *at, const char *last) {
    const char *const begin = text.data(), *const end = begin + text.size();
    if (last < end && (*last == ' ' || *last == '-')) ++last;
    if (last < end && (is_upper(*last) || *last == 'x') && (last + 1 == end || !is_word(fold(char32_t(uint8_t(last[1])))))) return true;
    if (at > begin && at[-1] == ' ') --at;
    else if (at - begin > 1 && std::memcmp(at - 2, "\xC2\xA0", 2) == 0) at -= 2;
    return at > begin && (at[-1] == 'A' || at[-1] == 'B');
}

// Whether a plus is before a number, and perhaps a bracket between them.
bool has_plus(std::string_view text, const char *at) {
    const std::string_view before = text.substr(0, size_t(at - text.data()));
    const auto ends = [&](std::string_view end) { return before.ends_with(end); };
    return ends("+") || ends("+(") || ends("\xEF\xBC\x8B") || ends("\xEF\xBC\x8B(");
}

}  // namespace

NumberForms::NumberForms(std::string_view pieces, std::string_view anywhere, std::string_view lettered, std::string_view words)
    : pieces(read_shapes(pieces)), anywhere(read_shapes(anywhere)), lettered(read_shapes(lettered)), by_first(256) {
    each_line(words, [&](std::string_view word) {
        const bool begins = word.starts_with('<'), ends = word.ends_with('>');
        word = word.substr(begins, word.size() - begins - ends);
        Word found{{}, begins, ends};
        for (const char *at = word.data(), *end = at + word.size(); at < end;) found.letters.push_back(next_character(at));
        by_first[found.letters[0] & 255].push_back(uint16_t(this->words.size()));
        this->words.push_back(std::move(found));
    });
}

NumberForms::Shapes NumberForms::read_shapes(std::string_view lines) {
    Shapes shapes;
    each_line(lines, [&](std::string_view line) {
        const size_t colon = line.find(':');
        uint64_t key = 0;
        for (char letter : line.substr(line[0] == '=', colon - (line[0] == '='))) key = key << SIZE_BITS | size_of(letter);
        shapes[line[0] == '=' ? key | BY_DIGITS : key].emplace_back(line.substr(colon + 1));
    });
    return shapes;
}

bool NumberForms::may_be(const NumberGroups &number, std::string_view text, const char *at, const char *last) {
    return has_plus(text, at) || has_piece(number, [](const NumberGroups::Group &) { return false; }) ||
           has_piece(number, [](const NumberGroups::Group &group) { return group.spaced; }) ||
           has_piece(number, [](const NumberGroups::Group &group) { return group.bracketed; }) || has_any(number, anywhere, false) ||
           (has_letter(text, at, last) && has_any(number, lettered, true)) || is_near(text, at, last);
}

// Of the pieces that a number falls into.
bool NumberForms::has_piece(const NumberGroups &number, bool (*begins)(const NumberGroups::Group &)) const {
    for (size_t from = 0, to; from < number.groups.size(); from = to) {
        to = from + 1;
        while (to < number.groups.size() && !begins(number.groups[to])) ++to;
        if (is_piece(number, from, to)) return true;
    }
    return false;
}

bool NumberForms::is_piece(const NumberGroups &number, size_t from, size_t to) const {
    const int64_t end = to < number.groups.size() ? number.groups[to].first : int64_t(number.digits.size());
    const std::string_view digits(number.digits.data() + number.groups[from].first, size_t(end - number.groups[from].first));
    if (int64_t(digits.size()) < MIN_DIGITS || int64_t(digits.size()) > MAX_DIGITS) return false;
    const auto begins = [&](uint64_t key) {
        const auto found = pieces.find(key);
        return found != pieces.end() && std::any_of(found->second.begin(), found->second.end(),
                                                    [&](const std::string &first) { return digits.starts_with(first); });
    };
    if (digits.starts_with("00") && begins(BY_DIGITS | digits.size())) return true;
    if (to - from > MAX_GROUPS) return false;
    uint64_t key = 0;
    for (size_t group = from; group < to; ++group) key = key << SIZE_BITS | uint64_t(number.size(group));
    return begins(key);
}

bool NumberForms::has_any(const NumberGroups &number, const Shapes &shapes, bool dots) const {
    const size_t count = number.groups.size();
    for (size_t from = 0; from < count; ++from) {
        if (number.groups[from].joined()) continue;
        uint64_t key = 0;
        for (size_t group = from; group < std::min(count, from + MAX_GROUPS) && number.size(group) <= MAX_SIZE; ++group) {
            if (group > from && number.groups[group].dotted && !dots) break;
            key = key << SIZE_BITS | uint64_t(number.size(group));
            if ((group + 1 == count || !number.groups[group + 1].joined()) && shapes.contains(key)) return true;
        }
    }
    return false;
}

bool NumberForms::is_near(std::string_view text, const char *at, const char *last) {
    const char *const end = text.data() + text.size();
    const char *from = at;
    int64_t before = 0;
    for (; before < BEFORE && from > text.data() && from[-1] != '\n'; ++before)
        do --from;
        while (continues(*from));
    const int64_t length = std::count_if(at, last, [](char byte) { return !continues(byte); });
    window.clear();
    while (from < at) window.push_back(fold(next_character(from)));
    if (has_word(size_t(std::max<int64_t>(0, before + length - WORD_BEFORE)), true)) return true;
    window.clear();
    while (last < end && *last != '\n' && window.size() < size_t(AFTER)) window.push_back(fold(next_character(last)));
    return has_word(0, false);
}

// Whether one of the words is in the window, or what may be one. What others see of a text may begin anywhere before
// `surely_bounded`, so there a word may begin in the midst of letters.
bool NumberForms::has_word(size_t surely_bounded, bool bounded) const {
    for (size_t i = 0; i < window.size(); ++i) {
        if (window[i] == STRANGE) return true;
        for (const uint16_t number : by_first[window[i] & 255]) {
            const Word &word = words[number];
            const size_t next = i + word.letters.size();
            if (window.compare(i, word.letters.size(), word.letters) != 0) continue;
            if (bounded && word.begins && i > surely_bounded && is_word(window[i - 1])) continue;
            if (bounded && word.ends && next < window.size() && is_word(window[next])) continue;
            return true;
        }
    }
    return false;
}

}  // namespace tallow
