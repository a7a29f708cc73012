// Words as chains of symbols, two of which become one again and again, and how often each two follow one another:
// what byte-pair encoding and WordPiece learn from.
#pragma once

#include <algorithm>
#include <cstdint>
#include <string>
#include <tuple>
#include <unordered_map>
#include <utility>
#include <vector>

#include "hash.h"

namespace tallow {

using Key = uint64_t;  // of a pair: left symbol, right symbol

// Left and right symbol, the symbol that they become, how often they followed one another.
using Merge = std::tuple<int32_t, int32_t, int32_t, int64_t>;

inline Key key_of(int32_t left, int32_t right) { return Key(uint32_t(left)) << 32 | uint32_t(right); }
inline int32_t left_of(Key key) { return int32_t(key >> 32); }
inline int32_t right_of(Key key) { return int32_t(uint32_t(key)); }

struct Pair {
    int64_t count = 0;            // how often the two follow one another
    std::vector<int64_t> places;  // of left symbols, rising; some may be others by now
};

// Pairs by key, in open addressing: a look-up for each change of each merge.
class Pairs {
public:
    Pairs() : slots_(1 << 12, -1) {}

    // There may be more of them after this, and then others lie elsewhere.
    Pair &operator[](Key key) {
        size_t slot = find(key);
        if (slots_[slot] < 0) {
            if (2 * keys_.size() >= slots_.size()) {
                grow();
                slot = find(key);
            }
            slots_[slot] = int32_t(keys_.size());
            keys_.push_back(key);
            pairs_.emplace_back();
        }
        return pairs_[size_t(slots_[slot])];
    }
    // All that have ever been there, in the order in which they came.
    const std::vector<Key> &keys() const { return keys_; }
    int64_t count(size_t number) const { return pairs_[number].count; }

private:
    size_t find(Key key) const {
        size_t slot = slot_of(key, slots_.size());
        while (slots_[slot] >= 0 && keys_[size_t(slots_[slot])] != key) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }
    void grow() {
        slots_.assign(2 * slots_.size(), -1);
        for (size_t i = 0; i < keys_.size(); ++i) slots_[find(keys_[i])] = int32_t(i);
    }

    std::vector<int32_t> slots_;
    std::vector<Key> keys_;
    std::vector<Pair> pairs_;
};

class Chains {
public:
    Pairs pairs;
    std::vector<int64_t> counts;  // of each symbol

    // `symbols` of all words lie one after another; word i ends before `ends[i]` and occurs `counts[i]` times. `names`
    // are the texts of the symbols.
    Chains(uintptr_t symbols, uintptr_t ends, uintptr_t counts, int64_t words, std::vector<std::string> names)
        : counts(names.size()), names_(std::move(names)) {
        const auto *symbol = reinterpret_cast<const int32_t *>(symbols);
        const auto *end = reinterpret_cast<const int64_t *>(ends);
        const auto *count = reinterpret_cast<const int64_t *>(counts);
        for (size_t i = 0; i < names_.size(); ++i) known_.emplace(names_[i], int32_t(i));
        places_.resize(words ? size_t(end[words - 1]) : 0);
        for (int64_t word = 0, at = 0; word < words; ++word)
            for (const int64_t begin = at; at < end[word]; ++at) {
                const bool first = at == begin, last = at + 1 == end[word];
                places_[size_t(at)] = {symbol[at], first ? -1 : at - 1, last ? -1 : at + 1, count[word]};
                this->counts[size_t(symbol[at])] += count[word];
                if (first) continue;
                Pair &pair = pairs[key_of(symbol[at - 1], symbol[at])];
                pair.count += count[word];
                pair.places.push_back(at - 1);
            }
    }

    // How many different texts are there.
    int64_t vocab_size() const { return int64_t(known_.size()); }

    // Make the two one symbol wherever they follow one another; the symbol, which is one that was there before if it
    // has the same text. `rose` is called with each pair that is there more often than before, maybe more than once.
    template <class Rose>
    int32_t merge(Key key, const Rose &rose) {
        const int32_t left = left_of(key), right = right_of(key);
        const std::string name = names_[size_t(left)] + names_[size_t(right)];
        const int32_t merged = known_.emplace(name, int32_t(names_.size())).first->second;
        if (size_t(merged) == names_.size()) names_.push_back(name), counts.push_back(0);
        const auto change = [&](int64_t before, int64_t at, int64_t by) {
            const Key changed = key_of(places_[size_t(before)].symbol, places_[size_t(at)].symbol);
            Pair &pair = pairs[changed];
            pair.count += by;
            if (by < 0) return;
            pair.places.push_back(before);
            rose(changed);
        };
        std::vector<int64_t> where = std::move(pairs[key].places);
        pairs[key].places.clear();
        // of three that are alike the first two become one, in whatever order they came to be
        if (left == right) std::sort(where.begin(), where.end());
        for (const int64_t at : where) {
            Place &place = places_[size_t(at)];
            if (place.symbol != left || place.next < 0 || places_[size_t(place.next)].symbol != right) continue;
            Place &other = places_[size_t(place.next)];
            if (place.before >= 0) change(place.before, at, -place.count);
            if (other.next >= 0) change(place.next, other.next, -place.count);
            pairs[key].count -= place.count;
            counts[size_t(left)] -= place.count, counts[size_t(right)] -= place.count;
            counts[size_t(merged)] += place.count;
            place.symbol = merged;
            other.symbol = -1;
            place.next = other.next;
            if (place.next >= 0) places_[size_t(place.next)].before = at;
            if (place.before >= 0) change(place.before, at, place.count);
            if (place.next >= 0) change(at, place.next, place.count);
        }
        return merged;
    }

private:
    struct Place {
        int32_t symbol;       // negative: it was merged into the one before
        int64_t before, next;  // places in the word; −1: none
        int64_t count;        // of the word
    };

    std::vector<std::string> names_;
    std::unordered_map<std::string, int32_t> known_;
    std::vector<Place> places_;
};

}  // namespace tallow
