// The merges of a byte-pair vocabulary, and how they are applied to one piece of text.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <queue>
#include <vector>

#include "hash.h"

namespace tallow {

// What a pair of symbols becomes, and when: smaller ranks go first.
struct Merged {
    int32_t rank, symbol;
};

class MergeTable {
public:
    static constexpr int32_t kNone = std::numeric_limits<int32_t>::max();

    // Merges by rank. Of the same pair given twice the later one counts.
    MergeTable(const int32_t *left, const int32_t *right, const int32_t *merged, int64_t count) {
        size_t slots = 16;
        while (slots < size_t(count) * 2) slots *= 2;
        slots_.assign(slots, {kFree, {kNone, 0}});
        for (int64_t rank = 0; rank < count; ++rank)
            slots_[find(key_of(left[rank], right[rank]))] = {key_of(left[rank], right[rank]),
                                                             {int32_t(rank), merged[rank]}};
    }

    Merged operator()(int32_t left, int32_t right) const { return slots_[find(key_of(left, right))].merged; }

    // Merge the pair of the smallest rank, the leftmost of several, until there is none. Few symbols are searched anew
    // each time; many are linked, and their pairs wait in a heap, so that the time is n log n at worst.
    void apply(std::vector<int32_t> &symbols, std::vector<Merged> &pairs) const {
        if (symbols.size() > kFew) return apply_to_many(symbols);
        if (symbols.size() < 2) return;
        pairs.clear();
        for (size_t i = 0; i + 1 < symbols.size(); ++i) pairs.push_back((*this)(symbols[i], symbols[i + 1]));
        while (!pairs.empty()) {
            size_t best = 0;
            for (size_t i = 1; i < pairs.size(); ++i)
                if (pairs[i].rank < pairs[best].rank) best = i;
            if (pairs[best].rank == kNone) break;
            symbols[best] = pairs[best].symbol;
            symbols.erase(symbols.begin() + ptrdiff_t(best) + 1);
            pairs.erase(pairs.begin() + ptrdiff_t(best));
            if (best > 0) pairs[best - 1] = (*this)(symbols[best - 1], symbols[best]);
            if (best < pairs.size()) pairs[best] = (*this)(symbols[best], symbols[best + 1]);
        }
    }

private:
    static constexpr size_t kFew = 64;
    static constexpr uint64_t kFree = ~uint64_t(0);

    struct Slot {
        uint64_t key;
        Merged merged;
    };

    static uint64_t key_of(int32_t left, int32_t right) { return uint64_t(uint32_t(left)) << 32 | uint32_t(right); }

    size_t find(uint64_t key) const {
        size_t slot = slot_of(key, slots_.size());
        while (slots_[slot].key != key && slots_[slot].key != kFree) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }

    void apply_to_many(std::vector<int32_t> &symbols) const {
        struct Node {
            int64_t before, next;
            Merged pair;  // of this symbol and the next
        };
        struct Candidate {
            int32_t rank;
            int64_t at;
            bool operator<(const Candidate &other) const {  // the top of the heap is the first to be merged
                return rank != other.rank ? rank > other.rank : at > other.at;
            }
        };
        const auto count = int64_t(symbols.size());
        std::vector<Node> nodes(symbols.size());
        std::vector<Candidate> waiting;
        const auto join = [&](int64_t at) {
            Node &node = nodes[size_t(at)];
            node.pair = node.next < count ? (*this)(symbols[size_t(at)], symbols[size_t(node.next)]) : Merged{kNone, 0};
        };
        for (int64_t i = 0; i < count; ++i) {
            nodes[size_t(i)] = {i - 1, i + 1, {kNone, 0}};
            join(i);
            if (nodes[size_t(i)].pair.rank != kNone) waiting.push_back({nodes[size_t(i)].pair.rank, i});
        }
        std::priority_queue<Candidate> queue(std::less<Candidate>(), std::move(waiting));
        while (!queue.empty()) {
            const Candidate best = queue.top();
            queue.pop();
            Node &node = nodes[size_t(best.at)];
            if (node.pair.rank != best.rank) continue;  // one of the two has become part of something else
            symbols[size_t(best.at)] = node.pair.symbol;
            Node &gone = nodes[size_t(node.next)];
            gone.pair.rank = kNone;
            node.next = gone.next;
            if (node.next < count) nodes[size_t(node.next)].before = best.at;
            for (const int64_t at : {node.before, best.at})
                if (at >= 0) {
                    join(at);
                    if (nodes[size_t(at)].pair.rank != kNone) queue.push({nodes[size_t(at)].pair.rank, at});
                }
        }
        size_t kept = 0;
        for (int64_t at = 0; at < count; at = nodes[size_t(at)].next) symbols[kept++] = symbols[size_t(at)];
        symbols.resize(kept);
    }

    std::vector<Slot> slots_;
};

}  // namespace tallow
