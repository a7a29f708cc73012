// Thompson's construction, and its sets of states as states (Aho, Lam, Sethi, Ullman, Compilers, 3.7).
#include "digit_automaton.h"

#include <algorithm>
#include <array>
#include <map>
#include <stdexcept>
#include <utility>

namespace tallow {
namespace {

constexpr uint16_t ANY = 0x3FF;
constexpr size_t MAX_STATES = 0x10000;
constexpr int MAX_REPEATS = 64, MAX_DEPTH = 64;

// What leads from a state: with one of some digits, or, if there are none, by itself.
struct Edge {
    uint16_t digits;
    int to;
};

class Builder {
   public:
    std::vector<std::vector<Edge>> states{{}};
    int last;

    explicit Builder(std::string_view pattern) : pattern_(pattern) {
        last = alternatives(0);
        if (at_ < pattern_.size()) unknown();
    }

   private:
    std::string_view pattern_;
    size_t at_ = 0;
    int depth_ = 0;

    [[noreturn]] static void unknown() { throw std::invalid_argument("not a pattern of digits"); }

    char peek() const { return at_ < pattern_.size() ? pattern_[at_] : '\0'; }
    bool eat(std::string_view text) {
        const bool found = pattern_.substr(at_).starts_with(text);
        at_ += found ? text.size() : 0;
        return found;
    }
    int digit() {
        if (peek() < '0' || peek() > '9') unknown();
        return pattern_[at_++] - '0';
    }
    int number() {
        int value = digit();
        while (peek() >= '0' && peek() <= '9' && value <= MAX_REPEATS) value = 10 * value + digit();
        return value;
    }

    int add() {
        if (states.size() > 8 * MAX_STATES) unknown();
        states.emplace_back();
        return int(states.size()) - 1;
    }
    void join(int from, int to, uint16_t digits = 0) { states[size_t(from)].push_back({digits, to}); }

    // Each of these reads a part of the pattern and returns the state behind it.
    int alternatives(int from) {
        const int end = add();
        do join(sequence(from), end);
        while (eat("|"));
        return end;
    }

    int sequence(int from) {
        while (at_ < pattern_.size() && peek() != '|' && peek() != ')') {
            const size_t begin = at_;
            const int first = add();
            join(from, first);
            int to = atom(first);
            int least = 1, most = 1;
            const bool endless = eat("*");
            if (endless || eat("?")) {
                least = 0;
            } else if (eat("{")) {
                least = most = number();
                if (eat(",")) most = number();
                if (!eat("}") || most < 1 || least > most || most > MAX_REPEATS) unknown();
            }
            const size_t behind = at_;
            if (endless) join(to, first);
            std::vector<int> enough;
            if (least == 0) enough.push_back(first);
            for (int times = 2; times <= most; ++times) {
                if (times > least) enough.push_back(to);
                at_ = begin;
                to = atom(to);
            }
            for (const int state : enough) join(state, to);
            at_ = behind;
            from = to;
        }
        return from;
    }

    int atom(int from) {
        if (eat("(")) {
            eat("?:");
            if (++depth_ > MAX_DEPTH) unknown();
            const int end = alternatives(from);
            --depth_;
            if (!eat(")")) unknown();
            return end;
        }
        const uint16_t digits = eat("\\d") ? ANY : eat("[") ? rest_of_class() : uint16_t(1 << digit());
        const int end = add();
        join(from, end, digits);
        return end;
    }

    uint16_t rest_of_class() {
        uint16_t digits = 0;
        while (!eat("]")) {
            const int low = digit(), high = eat("-") ? digit() : low;
            for (int each = low; each <= high; ++each) digits |= uint16_t(1 << each);
        }
        return digits;
    }
};

// All that is reached from some states by itself, in order; only those that digits lead on from, and the last.
std::vector<int> closure(const Builder &built, std::vector<int> open, std::vector<bool> &seen) {
    std::vector<int> found, visited;
    while (!open.empty()) {
        const int state = open.back();
        open.pop_back();
        if (seen[size_t(state)]) continue;
        seen[size_t(state)] = true;
        visited.push_back(state);
        bool counts = state == built.last;
        for (const Edge &edge : built.states[size_t(state)]) {
            if (edge.digits) counts = true;
            else open.push_back(edge.to);
        }
        if (counts) found.push_back(state);
    }
    for (const int state : visited) seen[size_t(state)] = false;
    std::sort(found.begin(), found.end());
    return found;
}

std::vector<uint16_t> determined(const Builder &built) {
    std::vector<bool> seen(built.states.size());
    std::map<std::vector<int>, uint16_t> numbers{{{}, 0}};
    std::vector<uint16_t> table(AUTOMATON_ROW);
    std::vector<std::vector<int>> sets{{}};
    const auto number_of = [&](std::vector<int> set) {
        const auto [place, is_new] = numbers.try_emplace(std::move(set), uint16_t(sets.size()));
        if (is_new) {
            if (sets.size() == MAX_STATES) throw std::invalid_argument("too many states");
            sets.push_back(place->first);
            table.resize(table.size() + AUTOMATON_ROW);
            table.back() = std::binary_search(place->first.begin(), place->first.end(), built.last);
        }
        return place->second;
    };
    number_of(closure(built, {0}, seen));
    for (size_t state = 1; state < sets.size(); ++state) {
        std::array<std::vector<int>, 10> next;
        for (const int each : sets[state])
            for (const Edge &edge : built.states[size_t(each)])
                for (size_t digit = 0; digit < 10; ++digit)
                    if (edge.digits >> digit & 1) next[digit].push_back(edge.to);
        for (size_t digit = 0; digit < 10; ++digit)
            if (!next[digit].empty()) table[state * AUTOMATON_ROW + digit] = number_of(closure(built, std::move(next[digit]), seen));
    }
    return table;
}

}  // namespace

std::vector<uint16_t> digit_automaton(std::string_view pattern) {
    try {
        return determined(Builder(pattern));
    } catch (const std::invalid_argument &) {
        return determined(Builder("\\d*"));
    }
}

}  // namespace tallow
