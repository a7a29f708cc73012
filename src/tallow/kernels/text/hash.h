// Hashes of 64 bits whose products wrap on purpose, and a table for what is counted by hash.
#pragma once

#include <cstdint>
#include <cstring>
#include <random>
#include <string_view>
#include <vector>

namespace tallow {

constexpr uint64_t HASH_FACTOR = 0x9E3779B97F4A7C15;

// A number drawn for the process: what depends on it alone is where things lie, so that no text can be made for which
// many lie together.
inline uint64_t salt() {
    static const uint64_t drawn = (uint64_t(std::random_device{}()) << 32 | std::random_device{}()) | 1;
    return drawn;
}

// Where a key belongs in a table of so many slots, a power of two: all bits of the key count.
inline size_t slot_of(uint64_t key, size_t slots) {
    const uint64_t hash = key * HASH_FACTOR;
    return size_t(hash ^ hash >> 32) & (slots - 1);
}

// A word's hash with one more character.
inline uint64_t absorb(uint64_t hash, uint64_t character) {
    hash = (hash ^ character) * HASH_FACTOR;
    return hash ^ hash >> 32;
}

// The hash of words in their order with one more.
inline uint64_t chain(uint64_t words, uint64_t word) { return (words ^ words >> 32) * HASH_FACTOR + word; }

inline uint64_t hash_bytes(std::string_view bytes, uint64_t seed = 0) {
    uint64_t hash = seed ^ bytes.size();
    size_t at = 0;
    for (; at + 8 <= bytes.size(); at += 8) {
        uint64_t chunk;
        std::memcpy(&chunk, bytes.data() + at, 8);
        hash = absorb(hash, chunk);
    }
    uint64_t rest = 0;
    std::memcpy(&rest, bytes.data() + at, bytes.size() - at);
    return absorb(absorb(hash, rest), 0);
}

// Counts by hash.
class HashCounts {
public:
    // Forget all and make room for so many hashes.
    void reset(size_t hashes) {
        size_t capacity = 16;
        shift_ = 60;
        for (; capacity < 2 * hashes; capacity *= 2) --shift_;
        keys_.assign(capacity, 0);
        counts_.assign(capacity, 0);
    }

    // Where this hash lies, which is not 0 there yet if it is new.
    size_t slot(uint64_t hash) {
        if (hash == 0) hash = 1; // 0 stands for nothing
        size_t at = hash * salt() >> shift_;
        while (keys_[at] != hash && keys_[at] != 0) at = (at + 1) & (keys_.size() - 1);
        keys_[at] = hash;
        return at;
    }

    uint32_t &operator[](size_t slot) { return counts_[slot]; }

    // Count a hash; whether it is new.
    bool add(uint64_t hash) { return counts_[slot(hash)]++ == 0; }

private:
    std::vector<uint64_t> keys_;
    std::vector<uint32_t> counts_;
    int shift_ = 60;
};

}  // namespace tallow
