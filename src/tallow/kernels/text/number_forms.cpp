// What numbers may be, by how they are written, their check digits, and what is beside them.
#include "number_forms.h"

#include <algorithm>
#include <cstring>

#include "digit_automaton.h"
#include "utf8.h"

namespace tallow {
namespace {

constexpr size_t MIN_DIGITS = 7, MAX_DIGITS = 17, MAX_SIZE = 31;
constexpr size_t MAX_GROUPS = 12, SIZE_BITS = 5, MAX_FORM_GROUPS = 9, FORM_BITS = 7;
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

uint64_t number_of(std::string_view digits) {
    uint64_t value = 0;
    for (const char digit : digits) value = 10 * value + uint64_t(digit - '0');
    return value;
}

// A group of a form, with what is before it.
uint64_t form_key(uint64_t before, char separator, size_t size) {
    const uint64_t kind = separator == ' ' ? 1 : separator == '-' ? 2 : separator == '.' ? 3 : 0;
    return before << FORM_BITS | kind << SIZE_BITS | size;
}

uint64_t read_form(std::string_view form) {
    uint64_t key = 0;
    char separator = 0;
    size_t size = 0;
    for (const char letter : form) {
        if (letter >= '0' && letter <= '9') {
            size = 10 * size + size_t(letter - '0');
        } else {
            key = form_key(key, separator, size);
            separator = letter, size = 0;
        }
    }
    return form_key(key, separator, size);
}

// Luhn's check digit is right.
bool is_luhn(std::string_view digits) {
    int sum = 0;
    for (size_t i = 0; i < digits.size(); ++i) {
        const int digit = digits[digits.size() - 1 - i] - '0';
        sum += i % 2 ? 2 * digit - (digit > 4 ? 9 : 0) : digit;
    }
    return sum % 10 == 0;
}

// The last two digits are what the others lack to a multiple of 97.
bool is_mod_97(std::string_view digits) {
    return (number_of(digits.substr(0, digits.size() - 2)) + number_of(digits.substr(digits.size() - 2))) % 97 == 0;
}

// The last digit is the one of ISO 7064 for modulus 11 and radix 2.
bool is_mod_11(std::string_view digits) {
    int sum = 0;
    for (const char digit : digits.substr(0, digits.size() - 1)) sum = 2 * (sum + digit - '0') % 11;
    return (sum + digits.back() - '0') % 11 == 1;
}

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

// Where a code of a country is in a table of them all.
size_t code_place(std::string_view code) {
    return (code.size() == 1 ? 0 : code.size() == 2 ? 10 : 110) + size_t(number_of(code));
}

}  // namespace

// Uses of the words beside a number, which are looked for once, when they are asked for.
struct NumberForms::Near {
    const NumberForms &forms;
    std::string_view text;
    const char *at, *last;
    std::u32string &window;
    int found = -1;

    bool operator()(Use use) {
        if (found < 0) found = forms.near(text, at, last, window);
        return found & use;
    }
};

NumberForms::NumberForms(std::string_view lines, const std::vector<std::string> &plans, const std::vector<std::string> &usual)
    : by_first(256) {
    std::fill(may_begin_word.begin() + 0x80, may_begin_word.end(), true);
    for (const std::string &pattern : plans) automata.push_back(digit_automaton(pattern));
    for (const std::string &pattern : usual) this->usual.push_back(digit_automaton(pattern));
    for (size_t from = 0, to; from < lines.size(); from = to + 1) {
        to = lines.find('\n', from);
        read(lines[from], lines.substr(from + 1, to - from - 1));
    }
}

void NumberForms::read(char what, std::string_view line) {
    const size_t colon = std::min(line.find(':'), line.size());
    const std::string_view key = line.substr(0, colon), value = line.substr(std::min(colon + 1, line.size()));
    if (what == 's') {  // sizes, separated by spaces : plan : usual pattern
        const size_t second = value.find(':');
        uint64_t shape = 0;
        for (size_t from = 0, to; from < key.size(); from = to + 1) {
            to = std::min(key.find(' ', from), key.size());
            shape = shape << SIZE_BITS | number_of(key.substr(from, to - from));
        }
        shapes[shape].emplace_back(uint32_t(number_of(value.substr(0, second))), uint32_t(number_of(value.substr(second + 1))));
    } else if (what == 'a') {  // a country's code : least digits
        abroad[code_place(key)] = int16_t(number_of(value));
    } else if (what == 'i') {  // an issuer's first digits : a length of its cards
        issuers[uint32_t(number_of("1" + std::string(key)))] |= uint32_t(1) << number_of(value);
    } else if (what == 'b') {  // a country : characters of an account
        accounts[size_t(key[0] - 'A') * 26 + size_t(key[1] - 'A')] = uint8_t(number_of(value));
    } else if (what == 'p' || what == 'n') {
        read_word(line, what == 'p' ? PHONE : ID);
    } else if (what == 'u') {
        unplanned = true;
    } else if (what == 'o') {
        own_addresses = true;
    } else {  // a form : its check
        Forms &found = forms[read_form(key)];
        found.uses |= what == 'c' ? OF_CARD : what == 'f' ? OF_ID : what == 'l' ? LETTERED : BESIDE_WORD;
        if (what == 'f') found.check = value == "mod 97" ? MOD_97 : value == "mod 11" ? MOD_11 : NONE;
        size_t digits = 0;
        for (uint64_t rest = read_form(key); rest; rest >>= FORM_BITS) digits += rest & MAX_SIZE;
        longest = std::max(longest, digits);
    }
}

void NumberForms::read_word(std::string_view word, Use use) {
    const bool begins = word.starts_with('<'), ends = word.ends_with('>');
    word = word.substr(begins, word.size() - begins - ends);
    Word found{{}, begins, ends, use};
    for (const char *at = word.data(), *end = at + word.size(); at < end;) found.letters.push_back(next_character(at));
    const char32_t first = found.letters[0];
    by_first[first & 255].push_back(uint16_t(words.size()));
    if (first < 0x80) may_begin_word[first] = may_begin_word[first & ~0x20u] = true;
    words.push_back(std::move(found));
}

int NumberForms::uses(const NumberGroups &number, std::string_view text, const char *at, const char *last,
                      std::u32string &window) const {
    Near near{*this, text, at, last, window};
    const size_t count = number.groups.size();
    int found = 0;
    for (size_t from = 0; from < count; ++from) {
        if (number.groups[from].joined()) continue;
        uint64_t key = 0;
        for (size_t group = from; group < std::min(count, from + MAX_FORM_GROUPS); ++group) {
            if (group > from && !number.groups[group].separator) break;
            const size_t size = number.from(group, group + 1).size();
            const std::string_view digits = number.from(from, group + 1);
            if (digits.size() > longest) break;
            key = form_key(key, group > from ? number.groups[group].separator : '\0', size);
            if (digits.size() < MIN_DIGITS || (group + 1 < count && number.groups[group + 1].joined())) continue;
            const auto place = forms.find(key);
            if (place == forms.end()) continue;
            const uint8_t uses = place->second.uses;
            const Check check = place->second.check;
            if ((uses & OF_CARD) && is_card(digits)) found |= CARD;
            const bool is_checked = check == MOD_97 ? is_mod_97(digits) : check == MOD_11 ? is_mod_11(digits) : true;
            if (((uses & OF_ID) && is_checked) || ((uses & LETTERED) && has_letter(text, at, last)) ||
                ((uses & BESIDE_WORD) && near(ID)))
                found |= ID;
        }
    }
    return is_phone(number, has_plus(text, at), near) ? found | PHONE : found;
}

// Whether the number is a phone's, or a piece of those that it falls into.
bool NumberForms::is_phone(const NumberGroups &number, bool plus, Near &near) const {
    const auto has_piece = [&](auto begins) {
        for (size_t from = 0, to; from < number.groups.size(); from = to) {
            to = from + 1;
            while (to < number.groups.size() && !begins(number.groups[to])) ++to;
            const bool is_whole = from == 0 && to == number.groups.size();
            if (!is_whole && is_piece(number, from, to, plus && from == 0, near)) return true;
        }
        return false;
    };
    return is_piece(number, 0, number.groups.size(), plus, near) ||
           has_piece([](const NumberGroups::Group &group) { return group.spaced; }) ||
           has_piece([](const NumberGroups::Group &group) { return group.bracketed; });
}

bool NumberForms::is_piece(const NumberGroups &number, size_t from, size_t to, bool plus, Near &near) const {
    const std::string_view digits = number.from(from, to);
    if (digits.size() < MIN_DIGITS || digits.size() > MAX_DIGITS) return false;
    const bool zeros = digits.starts_with("00") && number.from(from, from + 1).size() > 1;
    if (plus ? is_abroad(digits) : zeros && is_abroad(digits.substr(2))) return true;
    uint64_t key = 0;
    for (size_t group = from; group < std::min(to, from + MAX_GROUPS); ++group)
        key = key << SIZE_BITS | number.from(group, group + 1).size();
    const auto found = to - from > MAX_GROUPS ? shapes.end() : shapes.find(key);
    const auto is_usual = [&](const auto &shape) { return accepts(usual[shape.second], digits) && accepts(automata[shape.first], digits); };
    if (found != shapes.end() && std::any_of(found->second.begin(), found->second.end(), is_usual)) return true;
    if (!near(PHONE)) return false;
    return unplanned || std::any_of(automata.begin(), automata.end(), [&](const auto &plan) { return accepts(plan, digits); });
}

// Whether digits begin with a country's code, and are enough.
bool NumberForms::is_abroad(std::string_view digits) const {
    for (size_t length = 1; length <= 3; ++length) {
        const int least = abroad[code_place(digits.substr(0, length))];
        if (least && digits.size() >= size_t(least)) return true;
    }
    return false;
}

bool NumberForms::is_card(std::string_view digits) const {
    uint32_t first = 1;
    for (size_t size = 0; size < 4; ++size) {
        first = 10 * first + uint32_t(digits[size] - '0');
        const auto issuer = issuers.find(first);
        if (issuer != issuers.end() && (issuer->second >> digits.size() & 1)) return is_luhn(digits);
    }
    return false;
}

// Uses of the words beside a number.
int NumberForms::near(std::string_view text, const char *at, const char *last, std::u32string &window) const {
    const char *const end = text.data() + text.size();
    const char *from = at;
    int64_t before = 0;
    for (; before < BEFORE && from > text.data() && from[-1] != '\n'; ++before)
        do --from;
        while (continues(*from));
    const char *const ahead = last + std::min<int64_t>(AFTER, end - last);
    const auto may_begin = [&](char byte) { return may_begin_word[uint8_t(byte)]; };
    if (std::none_of(from, at, may_begin) && std::none_of(last, ahead, may_begin)) return 0;
    const int64_t length = std::count_if(at, last, [](char byte) { return !continues(byte); });
    window.clear();
    while (from < at) window.push_back(fold(next_character(from)));
    const int found = words_in(window, size_t(std::max<int64_t>(0, before + length - WORD_BEFORE)), true);
    window.clear();
    while (last < end && *last != '\n' && window.size() < size_t(AFTER)) window.push_back(fold(next_character(last)));
    return found | words_in(window, 0, false);
}

// Uses of the words that are in the window, or may be. What others see of a text may begin anywhere before
// `surely_bounded`, so there a word may begin in the midst of letters.
int NumberForms::words_in(const std::u32string &window, size_t surely_bounded, bool bounded) const {
    int found = 0;
    for (size_t i = 0; i < window.size(); ++i) {
        if (window[i] == STRANGE) return PHONE | ID;
        for (const uint16_t number : by_first[window[i] & 255]) {
            const Word &word = words[number];
            const size_t next = i + word.letters.size();
            if (window.compare(i, word.letters.size(), word.letters) != 0) continue;
            if (bounded && word.begins && i > surely_bounded && is_word(window[i - 1])) continue;
            if (bounded && word.ends && next < window.size() && is_word(window[next])) continue;
            found |= word.use;
        }
    }
    return found;
}

}  // namespace tallow
