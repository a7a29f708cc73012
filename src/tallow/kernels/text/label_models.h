// Models that give a text a label: the mean of what its words and their n-grams mean, and a linear layer (fastText).
#pragma once

#include <cstdint>
#include <string_view>
#include <vector>

namespace tallow {

// FNV-1a of 32 bits, of bytes that are signed, as fastText hashes.
constexpr uint32_t hash_start = 2166136261u;
inline uint32_t hash_on(uint32_t hash, char byte) { return (hash ^ uint32_t(int32_t(int8_t(byte)))) * 16777619u; }

// Remainders by a divisor that is known once, without dividing (Lemire et al., arXiv 1902.01961).
struct Remainder {
    uint64_t inverse;
    uint32_t divisor;

    explicit Remainder(uint32_t by) : inverse(by ? UINT64_MAX / by + 1 : 0), divisor(by) {}
    uint32_t operator()(uint32_t value) const {
        return uint32_t((static_cast<unsigned __int128>(inverse * value) * divisor) >> 64);
    }
};

// Where the rows of buckets are when only some were kept; a filter of bits answers most questions from near memory.
class KeptRows {
   public:
    KeptRows(const int32_t *buckets, const int32_t *rows, int64_t count);
    // Whether a bucket may have been kept.
    bool may_have(uint32_t bucket) const { return filter[(bucket & filter_mask) >> 6] >> (bucket & 63) & 1; }
    void prefetch(uint32_t bucket) const { __builtin_prefetch(&slots[first(bucket)]); }
    // -1 where the bucket was not kept.
    int32_t find(uint32_t bucket) const {
        for (uint32_t at = first(bucket);; at = (at + 1) & mask) {
            if (slots[at].row < 0) return -1;
            if (slots[at].bucket == bucket) return slots[at].row;
        }
    }

   private:
    struct Slot {
        uint32_t bucket;
        int32_t row;
    };
    uint32_t first(uint32_t bucket) const { return bucket * 2654435769u >> shift; }
    static constexpr uint32_t filter_mask = (1u << 21) - 1;
    std::vector<uint64_t> filter;
    std::vector<Slot> slots;
    uint32_t mask = 0;
    int shift = 0;
};

// The words that a model knows, by their hash.
class WordTable {
   public:
    WordTable(const char *bytes, const int64_t *offsets, int64_t count);
    // -1 where it is not known.
    int32_t find(std::string_view word, uint32_t hash) const;

   private:
    std::string_view word(int32_t id) const { return {bytes + offsets[id], size_t(offsets[id + 1] - offsets[id])}; }
    const char *bytes;
    const int64_t *offsets;
    std::vector<int32_t> slots;
    std::vector<uint32_t> hashes;
    uint32_t mask;
};

}  // namespace tallow
