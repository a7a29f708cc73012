// Hashes of 64 bits whose products wrap on purpose, and a table for what is counted by hash.
#pragma once

#include <algorithm>
#include <bit>
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

// Counts by hash. Memory follows from how many different hashes there are, not from how many could be.
class HashCounts {
public:
    // Forget all; of so many hashes some may be the same.
    void reset(size_t hashes) {
        entries_.clear();
        size_t capacity = 16;
        while (capacity < 2 * std::min(hashes, MANY)) capacity *= 2;
        make_places(capacity);
    }

    // The number of this hash, whose count is 0 if it is new; numbers rise from 0.
    uint32_t slot(uint64_t hash) {
        size_t at = place_of(hash);
        for (; places_[at] != 0; at = (at + 1) & (places_.size() - 1))
            if (entries_[places_[at] - 1].hash == hash) return places_[at] - 1;
        entries_.push_back({hash, 0});
        places_[at] = uint32_t(entries_.size());
        if (2 * entries_.size() > places_.size()) make_places(2 * places_.size());
        return uint32_t(entries_.size() - 1);
    }

    uint32_t &operator[](size_t slot) { return entries_[slot].count; }

    uint64_t hash(size_t slot) const { return entries_[slot].hash; }

    size_t size() const { return entries_.size(); }

    // Count a hash; whether it is new.
    bool add(uint64_t hash) { return (*this)[slot(hash)]++ == 0; }

private:
    static constexpr size_t MANY = 4096;  // of more it is worth to see how many are the same

    struct Entry {
        uint64_t hash;
        uint32_t count;
    };

    size_t place_of(uint64_t hash) const { return size_t(hash * salt() >> shift_); }

    void make_places(size_t capacity) {
        shift_ = 64 - (std::bit_width(capacity) - 1);
        places_.assign(capacity, 0);
        for (size_t number = 0; number < entries_.size(); ++number) {
            size_t at = place_of(entries_[number].hash);
            while (places_[at] != 0) at = (at + 1) & (capacity - 1);
            places_[at] = uint32_t(number + 1);
        }
    }

    std::vector<Entry> entries_;
    std::vector<uint32_t> places_;  // numbers of entries, from 1; 0 where there is none
    int shift_ = 60;
};

}  // namespace tallow
