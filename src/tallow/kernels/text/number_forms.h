// How numbers that may be private are written: what candidates.py calls NumberForms.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace tallow {

// Digits of a number, and its groups: what is between separators.
struct NumberGroups {
    struct Group {
        int32_t first;  // of its digits, among those of the number
        bool dotted, hyphened;   // a single dot or hyphen is between the one before and it
        bool spaced, bracketed;  // among others a space, a bracket
        bool joined() const { return dotted || hyphened; }
    };
    std::vector<char> digits;
    std::vector<Group> groups;

    int64_t size(size_t group) const {
        return (group + 1 < groups.size() ? groups[group + 1].first : int64_t(digits.size())) - groups[group].first;
    }
};

class NumberForms {
   public:
    // Lines of each: sizes of groups, or = and a number of digits, and behind a colon the first digits; words.
    NumberForms(std::string_view pieces, std::string_view anywhere, std::string_view lettered, std::string_view words);

    // Whether a number from `at` to `last` of a text may be private.
    bool may_be(const NumberGroups &number, std::string_view text, const char *at, const char *last);

   private:
    using Shapes = std::unordered_map<uint64_t, std::vector<std::string>>;
    struct Word {
        std::u32string letters;
        bool begins, ends;  // only where no letter or digit of ASCII is beside it
    };

    static Shapes read_shapes(std::string_view lines);
    bool has_piece(const NumberGroups &number, bool (*begins)(const NumberGroups::Group &)) const;
    bool is_piece(const NumberGroups &number, size_t from, size_t to) const;
    bool has_any(const NumberGroups &number, const Shapes &shapes, bool dots) const;
    bool is_near(std::string_view text, const char *at, const char *last);
    bool has_word(size_t surely_bounded, bool bounded) const;

    Shapes pieces, anywhere, lettered;
    std::vector<Word> words;
    std::vector<std::vector<uint16_t>> by_first;  // words, by the last byte of their first letter
    std::u32string window;
};

}  // namespace tallow
