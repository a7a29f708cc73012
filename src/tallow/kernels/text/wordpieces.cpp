// WordPiece learned from counted words: which pairs of symbols become one, that first whose two parts are together most
// often for how often they are there at all (Schuster and Nakajima 2012).
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <string>
#include <vector>

#include "chains.h"

namespace nb = nanobind;

namespace tallow {
namespace {

using Product = std::array<uint64_t, 3>;  // lowest part last

Product product(int64_t a, int64_t b, int64_t c) {
    const auto two = static_cast<unsigned __int128>(a) * uint64_t(b);
    const auto low = static_cast<unsigned __int128>(uint64_t(two)) * uint64_t(c);
    const auto high = (two >> 64) * uint64_t(c) + (low >> 64);
    return {uint64_t(high >> 64), uint64_t(high), uint64_t(low)};
}

struct Candidate {
    int64_t count, left, right;  // of the pair, of its parts
    double score;                // count / (left · right), rounded
    size_t number;
    Key key;

    Candidate(const Chains &chains, size_t number)
        : count(chains.pairs.count(number)), number(number), key(chains.pairs.keys()[number]) {
        left = chains.counts[size_t(left_of(key))], right = chains.counts[size_t(right_of(key))];
        score = double(count) / double(left) / double(right);
    }

    // whether the other one goes first
    bool operator<(const Candidate &other) const {
        // rounding changes a score by less than that
        if (std::abs(score - other.score) > 1e-14 * score) return score < other.score;
        const Product mine = product(count, other.left, other.right), theirs = product(other.count, left, right);
        if (mine != theirs) return mine < theirs;
        return count != other.count ? count < other.count : key > other.key;
    }
};

// All pairs that may yet become one, the best at the front of a heap. Whenever a count changes, those that it belongs to
// are added again, since a score may rise; what is out of date is passed over.
class Queue {
public:
    Queue(const Chains &chains, int64_t min_count) : chains_(chains), min_count_(min_count) {}

    // Add the pairs that a symbol is in, and those that have come since the last call.
    void add(int32_t symbol) {
        const std::vector<Key> &keys = chains_.pairs.keys();
        pairs_of_.resize(chains_.counts.size());
        for (; seen_ < keys.size(); ++seen_) {
            pairs_of_[size_t(left_of(keys[seen_]))].push_back(seen_);
            if (left_of(keys[seen_]) != right_of(keys[seen_])) pairs_of_[size_t(right_of(keys[seen_]))].push_back(seen_);
        }
        for (const size_t number : pairs_of_[size_t(symbol)]) push(number);
        if (heap_.size() > 2 * keys.size() + 1024) renew();
    }

    void renew() {
        heap_.clear();
        for (size_t number = 0; number < chains_.pairs.keys().size(); ++number)
            if (chains_.pairs.count(number) >= min_count_) heap_.emplace_back(chains_, number);
        std::make_heap(heap_.begin(), heap_.end());
    }

    // The best; the number of pairs if there is none.
    size_t pop() {
        while (!heap_.empty()) {
            const Candidate best = heap_.front();
            std::pop_heap(heap_.begin(), heap_.end());
            heap_.pop_back();
            const Candidate now(chains_, best.number);
            if (best.count == now.count && best.left == now.left && best.right == now.right) return best.number;
        }
        return chains_.pairs.keys().size();
    }

private:
    void push(size_t number) {
        if (chains_.pairs.count(number) < min_count_) return;
        heap_.emplace_back(chains_, number);
        std::push_heap(heap_.begin(), heap_.end());
    }

    const Chains &chains_;
    int64_t min_count_;
    std::vector<Candidate> heap_;
    std::vector<std::vector<size_t>> pairs_of_;
    size_t seen_ = 0;
};

// The words and names are those of `Chains`.
std::vector<Merge> learn_wordpieces(uintptr_t symbols, uintptr_t ends, uintptr_t counts, int64_t words,
                                    const std::vector<nb::bytes> &spelling, int64_t vocab_size, int64_t min_count) {
    std::vector<std::string> names;
    for (const nb::bytes &name : spelling) names.emplace_back(name.c_str(), name.size());
    nb::gil_scoped_release release;
    Chains chains(symbols, ends, counts, words, std::move(names));
    Queue queue(chains, min_count);
    queue.renew();
    std::vector<Merge> merges;
    while (chains.vocab_size() < vocab_size) {
        const size_t best = queue.pop();
        if (best == chains.pairs.keys().size()) break;
        const Key key = chains.pairs.keys()[best];
        const int64_t count = chains.pairs.count(best);
        const int32_t left = left_of(key), right = right_of(key), merged = chains.merge(key, [](Key) {});
        merges.emplace_back(left, right, merged, count);
        for (const int32_t symbol : {left, right, merged}) queue.add(symbol);
    }
    return merges;
}

}  // namespace

void bind_wordpieces(nb::module_ &m) { m.def("learn_wordpieces", &learn_wordpieces); }

}  // namespace tallow
