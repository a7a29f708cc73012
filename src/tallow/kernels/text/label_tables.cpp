// The tables of models that give a text a label.
#include <algorithm>
#include <bit>
#include <stdexcept>

#include "label_models.h"

namespace tallow {
namespace {

// Made on purpose, tables could be such that each search takes as long as there are entries.
constexpr int64_t longest_search = 4096;
constexpr int64_t most_entries = int64_t(1) << 29;  // so that places have 32 bits

size_t entries(int64_t count) {
    if (count > most_entries) throw std::runtime_error("it has too many entries");
    return size_t(count);
}

struct Search {
    uint32_t at;
    uint32_t mask;
    int64_t steps = 0;

    void go_on() {
        if (++steps > longest_search) throw std::runtime_error("too many entries have the same hash");
        at = (at + 1) & mask;
    }
};

}  // namespace

KeptRows::KeptRows(const int32_t *buckets, const int32_t *rows, int64_t count) {
    if (count < 0) return;
    const uint32_t size = std::bit_ceil(uint32_t(entries(std::max<int64_t>(1, count))) * 2);
    mask = size - 1;
    shift = 32 - std::bit_width(mask);
    slots.assign(size, {0, -1});
    filter.assign((filter_mask >> 6) + 1, 0);
    for (int64_t i = 0; i < count; ++i) {
        const uint32_t bucket = uint32_t(buckets[i]);
        filter[(bucket & filter_mask) >> 6] |= uint64_t(1) << (bucket & 63);
        Search search{first(bucket), mask};
        while (slots[search.at].row >= 0) search.go_on();
        slots[search.at] = {bucket, rows[i]};
    }
}

WordTable::WordTable(const char *bytes, const int64_t *offsets, int64_t count)
    : bytes(bytes), offsets(offsets), hashes(entries(count)) {
    const uint32_t size = std::bit_ceil(uint32_t(count) * 2 + 1);
    mask = size - 1;
    slots.assign(size, -1);
    for (int32_t id = 0; id < count; ++id) {
        uint32_t hash = hash_start;
        for (char byte : word(id)) hash = hash_on(hash, byte);
        hashes[size_t(id)] = hash;
        Search search{hash & mask, mask};
        while (slots[search.at] >= 0) search.go_on();
        slots[search.at] = id;
    }
}

int32_t WordTable::find(std::string_view sought, uint32_t hash) const {
    for (uint32_t at = hash & mask; slots[at] >= 0; at = (at + 1) & mask) {
        const int32_t id = slots[at];
        if (hashes[size_t(id)] == hash && word(id) == sought) return id;
    }
    return -1;
}

}  // namespace tallow
