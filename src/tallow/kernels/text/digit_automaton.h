// Patterns of digits as automata that read each digit once.
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace tallow {

// A row a state: the next one by digit, and whether it accepts. The first is the one that never does, the second the
// one to begin with.
constexpr size_t AUTOMATON_ROW = 11;

// The automaton of a pattern of digits, \d, [classes], (groups), |, ?, * and {repetitions}; of one with anything else,
// or with too many states, one that accepts all digits.
std::vector<uint16_t> digit_automaton(std::string_view pattern);

inline bool accepts(const std::vector<uint16_t> &automaton, std::string_view digits) {
    size_t state = 1;
    for (const char digit : digits)
        if ((state = automaton[state * AUTOMATON_ROW + size_t(digit - '0')]) == 0) return false;
    return automaton[state * AUTOMATON_ROW + 10] != 0;
}

}  // namespace tallow
