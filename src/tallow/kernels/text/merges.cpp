// Byte-pair encoding learned from counted words: which pairs of symbols become one, the most frequent first
// (Sennrich et al., arXiv 1508.07909, section 3.2), with what each merge changes kept up to date.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <queue>
#include <string>
#include <vector>

#include "chains.h"

namespace nb = nanobind;

namespace tallow {
namespace {

struct Candidate {
    int64_t count;
    Key key;

    // whether the other one goes first
    bool operator<(const Candidate &other) const {
        return count != other.count ? count < other.count : key > other.key;
    }
};

// The words and names are those of `Chains`.
std::vector<Merge> learn_merges(uintptr_t symbols, uintptr_t ends, uintptr_t counts, int64_t words,
                                const std::vector<nb::bytes> &spelling, int64_t vocab_size, int64_t min_count) {
    std::vector<std::string> names;
    for (const nb::bytes &name : spelling) names.emplace_back(name.c_str(), name.size());
    nb::gil_scoped_release release;
    Chains chains(symbols, ends, counts, words, std::move(names));
    Pairs &pairs = chains.pairs;
    std::priority_queue<Candidate> queue;
    for (const Key key : pairs.keys()) queue.push({pairs[key].count, key});
    std::vector<Merge> merges;
    std::vector<Key> risen;
    while (chains.vocab_size() < vocab_size && !queue.empty()) {
        const Candidate best = queue.top();
        queue.pop();
        if (const int64_t now = pairs[best.key].count; now != best.count) {
            if (now > 0) queue.push({now, best.key});
            continue;
        }
        if (best.count < min_count) break;
        risen.clear();
        const int32_t merged = chains.merge(best.key, [&](Key key) { risen.push_back(key); });
        merges.emplace_back(left_of(best.key), right_of(best.key), merged, best.count);
        std::sort(risen.begin(), risen.end());  // a pair rises once for each place
        risen.erase(std::unique(risen.begin(), risen.end()), risen.end());
        for (const Key key : risen)
            if (pairs[key].count > 0) queue.push({pairs[key].count, key});
    }
    return merges;
}

}  // namespace

void bind_merges(nb::module_ &m) { m.def("learn_merges", &learn_merges); }

}  // namespace tallow
