// How numbers that may be private are written: what number_forms.py calls NumberForms, which defines it.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace tallow {

// Digits of a number, and its groups: what is between separators.
struct NumberGroups {
    struct Group {
        int32_t first;  // of its digits, among those of the number
        char separator;  // a single space, hyphen or dot before it; 0: something else
        bool spaced, bracketed;  // among others a space, a bracket
        bool joined() const { return separator == '.' || separator == '-'; }
    };
    std::vector<char> digits;
    std::vector<Group> groups;

    std::string_view from(size_t group, size_t end) const {
        const size_t first = size_t(groups[group].first), last = end < groups.size() ? size_t(groups[end].first) : digits.size();
        return {digits.data() + first, last - first};
    }
};

class NumberForms {
   public:
    enum Use : uint8_t { PHONE = 1, CARD = 2, ID = 4 };

    // Lines that begin with a letter for what they tell, and patterns of the digits of each plan, and of shapes.
    NumberForms(std::string_view lines, const std::vector<std::string> &plans, const std::vector<std::string> &usual);

    // What a number from `at` to `last` of a text may be: uses; `window` is for its own use.
    int uses(const NumberGroups &number, std::string_view text, const char *at, const char *last, std::u32string &window) const;

    // Characters of an account of a country, 0 if it has none; its letters in upper case.
    int account_length(char first, char second) const { return accounts[size_t(first - 'A') * 26 + size_t(second - 'A')]; }

    bool own_addresses = false;

   private:
    enum Check : uint8_t { NONE, MOD_97, MOD_11 };
    enum Form : uint8_t { OF_CARD = 1, OF_ID = 2, LETTERED = 4, BESIDE_WORD = 8 };
    struct Forms {
        uint8_t uses = 0;
        Check check = NONE;
    };
    struct Word {
        std::u32string letters;
        bool begins, ends;  // only where no letter or digit of ASCII is beside it
        Use use;
    };
    struct Near;

    void read(char what, std::string_view line);
    void read_word(std::string_view word, Use use);
    bool is_phone(const NumberGroups &number, bool plus, Near &near) const;
    bool is_piece(const NumberGroups &number, size_t from, size_t to, bool plus, Near &near) const;
    bool is_abroad(std::string_view digits) const;
    bool is_card(std::string_view digits) const;
    int near(std::string_view text, const char *at, const char *last, std::u32string &window) const;
    int words_in(const std::u32string &window, size_t surely_bounded, bool bounded) const;

    std::unordered_map<uint64_t, std::vector<std::pair<uint32_t, uint32_t>>> shapes;  // plans, and which usual pattern
    std::vector<std::vector<uint16_t>> automata, usual;                               // of plans, and of shapes
    std::array<int16_t, 1110> abroad{};           // least digits by codes of one, two and three digits
    std::unordered_map<uint64_t, Forms> forms;
    size_t longest = 0;  // digits of a form
    std::unordered_map<uint32_t, uint32_t> issuers;  // a bit a length, by first digits behind a 1
    std::array<uint8_t, 26 * 26> accounts{};
    bool unplanned = false;
    std::vector<Word> words;
    std::vector<std::vector<uint16_t>> by_first;  // words, by the last byte of their first letter
    std::array<bool, 256> may_begin_word{};       // bytes
};

}  // namespace tallow
