// Byte-pair encoding learned from counted words: which pairs of symbols become one, the most frequent first
// (Sennrich et al., arXiv 1508.07909, section 3.2), with what each merge changes kept up to date.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <queue>
#include <string>
#include <unordered_map>
#include <vector>

namespace nb = nanobind;

namespace tallow {
namespace {

using Key = uint64_t;  // of a pair: left symbol, right symbol

Key key_of(int32_t left, int32_t right) { return Key(uint32_t(left)) << 32 | uint32_t(right); }

struct Pair {
    int64_t count = 0;            // how often the two follow one another
    std::vector<int64_t> places;  // of left symbols, rising; some may be others by now
};

// Pairs by key, in open addressing: a look-up for each change of each merge.
class Pairs {
public:
    Pairs() : slots_(1 << 12, -1) {}

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
    const std::vector<Key> &keys() const { return keys_; }

private:
    size_t find(Key key) const {
        size_t slot = (key * 0x9E3779B97F4A7C15u) >> 20 & (slots_.size() - 1);
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

struct Candidate {
    int64_t count;
    Key key;

    // whether the other one goes first
    bool operator<(const Candidate &other) const {
        return count != other.count ? count < other.count : key > other.key;
    }
};

struct Place {
    int32_t symbol;       // negative: it was merged into the one before
    int64_t before, next;  // places in the word; −1: none
    int64_t count;        // of the word
};

// Left and right symbol, the symbol that they become, how often they followed one another.
using Merge = std::tuple<int32_t, int32_t, int32_t, int64_t>;

// `symbols` of all words lie one after another; word i ends before `ends[i]` and occurs `counts[i]` times.
std::vector<Merge> learn_merges(uintptr_t symbols, uintptr_t ends, uintptr_t counts, int64_t words,
                                const std::vector<nb::bytes> &spelling, int64_t vocab_size, int64_t min_count) {
    std::vector<std::string> names;
    for (const nb::bytes &name : spelling) names.emplace_back(name.c_str(), name.size());
    nb::gil_scoped_release release;
    const auto *symbol = reinterpret_cast<const int32_t *>(symbols);
    const auto *end = reinterpret_cast<const int64_t *>(ends);
    const auto *count = reinterpret_cast<const int64_t *>(counts);
    std::unordered_map<std::string, int32_t> known;
    for (size_t i = 0; i < names.size(); ++i) known.emplace(names[i], int32_t(i));
    std::vector<Place> places(words ? size_t(end[words - 1]) : 0);
    Pairs pairs;
    for (int64_t word = 0, at = 0; word < words; ++word)
        for (const int64_t begin = at; at < end[word]; ++at) {
            places[size_t(at)] = {symbol[at], at > begin ? at - 1 : -1, at + 1 < end[word] ? at + 1 : -1, count[word]};
            if (at == begin) continue;
            Pair &pair = pairs[key_of(symbol[at - 1], symbol[at])];
            pair.count += count[word];
            pair.places.push_back(at - 1);
        }
    std::priority_queue<Candidate> queue;
    for (const Key key : pairs.keys()) queue.push({pairs[key].count, key});
    std::vector<Merge> merges;
    std::vector<Key> risen;
    while (int64_t(known.size()) < vocab_size && !queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        if (const int64_t now = pairs[best.key].count; now != best.count) {
            if (now > 0) queue.push({now, best.key});
            continue;
        }
        if (best.count < min_count) break;
        const auto left = int32_t(best.key >> 32), right = int32_t(best.key);
        const std::string name = names[size_t(left)] + names[size_t(right)];
        const int32_t merged = known.emplace(name, int32_t(names.size())).first->second;
        if (size_t(merged) == names.size()) names.push_back(name);
        merges.emplace_back(left, right, merged, best.count);
        risen.clear();
        const auto change = [&](int64_t before, int64_t at, int64_t by) {
            Pair &pair = pairs[key_of(places[size_t(before)].symbol, places[size_t(at)].symbol)];
            pair.count += by;
            if (by < 0) return;
            pair.places.push_back(before);
            risen.push_back(key_of(places[size_t(before)].symbol, places[size_t(at)].symbol));
        };
        std::vector<int64_t> where = std::move(pairs[best.key].places);
        pairs[best.key].places.clear();
        // of three that are alike the first two become one, in whatever order they came to be
        if (left == right) std::sort(where.begin(), where.end());
        for (const int64_t at : where) {
            Place &place = places[size_t(at)];
            if (place.symbol != left || place.next < 0 || places[size_t(place.next)].symbol != right) continue;
            Place &other = places[size_t(place.next)];
            if (place.before >= 0) change(place.before, at, -place.count);
            if (other.next >= 0) change(place.next, other.next, -place.count);
            pairs[best.key].count -= place.count;
            place.symbol = merged;
            other.symbol = -1;
            place.next = other.next;
            if (place.next >= 0) places[size_t(place.next)].before = at;
            if (place.before >= 0) change(place.before, at, place.count);
            if (place.next >= 0) change(at, place.next, place.count);
        }
        for (const Key key : risen)
            if (pairs[key].count > 0) queue.push({pairs[key].count, key});
    }
    return merges;
}

}  // namespace

void bind_merges(nb::module_ &m) { m.def("learn_merges", &learn_merges); }

}  // namespace tallow
