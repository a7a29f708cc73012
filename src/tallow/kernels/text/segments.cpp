// Segments of texts by the least hash in each window; segments.py says what these are.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <bit>
#include <vector>

#include "arrays.h"
#include "hash.h"
#include "texts.h"

namespace nb = nanobind;

namespace tallow {
namespace {

class SegmentFinder {
public:
    std::vector<int32_t> places;  // row, begin, windows, and whether the least hash occurs again, of each
    std::vector<uint64_t> keys;

    SegmentFinder(size_t window, size_t gram) : window_(window), gram_(gram), grams_(window - gram + 1), power_(1), ring_(std::bit_ceil(grams_)), mask_(ring_.size() - 1) {
        for (size_t i = 1; i < gram; ++i) power_ *= HASH_FACTOR;
    }

    void find(int64_t row, std::string_view text) {
        if (text.size() < window_) return;
        const auto byte = [&](size_t at) { return uint64_t(uint8_t(text[at])); };
        uint64_t sum = 0, key = 0;
        for (size_t at = 0; at < gram_; ++at) sum = sum * HASH_FACTOR + byte(at);
        size_t front = 0, back = 0;  // of hashes that no smaller one follows: places in the ring, modulo its size
        size_t begin = 0, times = 0;
        bool is_open = false;
        for (size_t at = 0; at + gram_ <= text.size(); ++at) {
            if (at > 0) sum = (sum - byte(at - 1) * power_) * HASH_FACTOR + byte(at + gram_ - 1);
            const uint64_t hash = absorb(0, sum);
            if (front < back && ring_[front & mask_].at + grams_ <= at) ++front;
            while (front < back && ring_[(back - 1) & mask_].hash > hash) --back;
            ring_[back++ & mask_] = {hash, at};
            if (at + 1 < grams_) continue;
            const uint64_t least = ring_[front & mask_].hash;
            if (is_open && least == key) {
                times += hash == key;
                continue;
            }
            const size_t here = at + 1 - grams_;
            if (is_open) take(row, begin, here, key, times);
            begin = here;
            key = least;
            times = 0;
            for (size_t i = front; i < back && ring_[i & mask_].hash == key; ++i) ++times;
            is_open = true;
        }
        take(row, begin, text.size() - window_ + 1, key, times);
    }

private:
    struct Gram {
        uint64_t hash;
        size_t at;
    };

    void take(int64_t row, size_t begin, size_t end, uint64_t key, size_t times) {
        places.insert(places.end(), {int32_t(row), int32_t(begin), int32_t(end - begin), int32_t(times > 1)});
        keys.push_back(absorb(key, 1));  // the least ones are small, what is handed out is even
    }

    const size_t window_, gram_, grams_;
    uint64_t power_;
    std::vector<Gram> ring_;
    const size_t mask_;
};

std::tuple<Array<int32_t>, Array<uint64_t>> find_segments(const TextPlaces &places, size_t window, size_t gram) {
    SegmentFinder finder(window, gram);
    {
        nb::gil_scoped_release release;
        const Texts texts(places);
        for (int64_t i = 0; i < texts.count; ++i) finder.find(i, texts[i]);
    }
    return {as_array(std::move(finder.places)), as_array(std::move(finder.keys))};
}

}  // namespace

void bind_segments(nb::module_ &m) { m.def("find_segments", &find_segments); }

}  // namespace tallow
