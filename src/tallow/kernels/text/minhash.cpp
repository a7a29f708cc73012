// Shingles of texts, and the least of each permutation's values over them; minhash.py says what these are.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <vector>

#include "arrays.h"
#include "classes.h"
#include "hash.h"
#include "texts.h"
#include "words.h"

namespace nb = nanobind;

#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(__clang__)
#define EACH_INSTRUCTION_SET __attribute__((target_clones("avx512f", "default")))
#else
#define EACH_INSTRUCTION_SET
#endif

namespace tallow {
namespace {

constexpr uint64_t PRIME = (uint64_t(1) << 61) - 1;

uint64_t reduce(uint64_t value) {
    value = (value & PRIME) + (value >> 61);
    return value >= PRIME ? value - PRIME : value;
}

// h → (a·h + b) mod PRIME. Halves of `a` lie apart, so that products of 32 by 32 bits suffice, many at once.
struct Permutations {
    std::vector<uint32_t> a_low, a_high;
    std::vector<uint64_t> b;

    Permutations(const uint64_t *factors, const uint64_t *summands, size_t count) : a_low(count), a_high(count), b(summands, summands + count) {
        for (size_t k = 0; k < count; ++k) {
            a_low[k] = uint32_t(factors[k]);
            a_high[k] = uint32_t(factors[k] >> 32);
        }
    }
};

// All sums stay below 2^64: 2^64 is 8 and 2^61 is 1 modulo the prime, and no part exceeds 61 bits.
EACH_INSTRUCTION_SET
void take_least(const uint64_t *shingles, size_t shingle_count, const uint32_t *a_low, const uint32_t *a_high, const uint64_t *b,
                uint64_t *least, size_t count) {
    for (size_t i = 0; i < shingle_count; ++i) {
        const uint64_t low = uint32_t(shingles[i]), high = shingles[i] >> 32;
        for (size_t k = 0; k < count; ++k) {
            const uint64_t lowest = low * a_low[k];
            const uint64_t middle = low * a_high[k] + high * a_low[k];
            const uint64_t highest = high * a_high[k];
            uint64_t sum = (highest << 3) + ((middle & 0x1FFFFFFF) << 32) + (middle >> 29) + (lowest & PRIME) + (lowest >> 61) + b[k];
            sum = (sum & PRIME) + (sum >> 61);
            sum = std::min(sum, sum - PRIME);  // the difference wraps to something great where the sum is less
            least[k] = std::min(least[k], sum);
        }
    }
}

// The different shingles of one text after another.
class Shingler {
public:
    Shingler(const Classes &kinds, size_t words) : kinds_(kinds), length_(words) {}

    const std::vector<uint64_t> &shingles(std::string_view text) {
        words_.clear();
        shingles_.clear();
        const auto fold = [&](char32_t character) { return kinds_.fold(character); };
        scan_words(text, kinds_, fold, [&](const Word &word) {
            if (word.plain) words_.push_back(word.hash);
        });
        if (words_.size() < length_) return shingles_;
        const size_t count = words_.size() - length_ + 1;
        seen_.reset(count);
        for (size_t i = 0; i < count; ++i) {
            uint64_t hash = words_[i];
            for (size_t j = 1; j < length_; ++j) hash = chain(hash, words_[i + j]);
            hash = reduce(hash);
            if (seen_.add(hash)) shingles_.push_back(hash);
        }
        return shingles_;
    }

private:
    const Classes &kinds_;
    size_t length_;
    HashCounts seen_;
    std::vector<uint64_t> words_, shingles_;
};

void sign(const TextPlaces &places, const ClassPlaces &classes, size_t words, uintptr_t factors, uintptr_t summands, size_t count,
          uintptr_t signatures, uintptr_t counts, uintptr_t keys) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    const Classes kinds(classes);
    const Permutations permutations(reinterpret_cast<const uint64_t *>(factors), reinterpret_cast<const uint64_t *>(summands), count);
    Shingler shingler(kinds, words);
    for (int64_t i = 0; i < texts.count; ++i) {
        const std::vector<uint64_t> &shingles = shingler.shingles(texts[i]);
        uint64_t *const least = reinterpret_cast<uint64_t *>(signatures) + size_t(i) * count;
        std::fill_n(least, count, PRIME);
        take_least(shingles.data(), shingles.size(), permutations.a_low.data(), permutations.a_high.data(), permutations.b.data(), least, count);
        uint64_t key = 0;
        for (const uint64_t shingle : shingles) key += absorb(shingle, 1);
        reinterpret_cast<int64_t *>(counts)[i] = int64_t(shingles.size());
        reinterpret_cast<uint64_t *>(keys)[i] = key;
    }
}

// Sorted shingles of all texts one after another; `offsets` has room for one more than there are texts.
Array<uint64_t> shingle_sets(const TextPlaces &places, const ClassPlaces &classes, size_t words, uintptr_t offsets) {
    std::vector<uint64_t> all;
    {
        nb::gil_scoped_release release;
        const Texts texts(places);
        const Classes kinds(classes);
        Shingler shingler(kinds, words);
        int64_t *const begins = reinterpret_cast<int64_t *>(offsets);
        for (int64_t i = 0; i < texts.count; ++i) {
            begins[i] = int64_t(all.size());
            const std::vector<uint64_t> &shingles = shingler.shingles(texts[i]);
            all.insert(all.end(), shingles.begin(), shingles.end());
            std::sort(all.begin() + begins[i], all.end());
        }
        begins[texts.count] = int64_t(all.size());
    }
    return as_array(std::move(all));
}

// Of pairs of sorted sets: what both have as a part of what either has.
void jaccard(uintptr_t offsets, uintptr_t values, uintptr_t firsts, uintptr_t seconds, size_t pairs, uintptr_t similarities) {
    nb::gil_scoped_release release;
    const int64_t *const begins = reinterpret_cast<const int64_t *>(offsets);
    const uint64_t *const shingles = reinterpret_cast<const uint64_t *>(values);
    for (size_t pair = 0; pair < pairs; ++pair) {
        const int64_t first = reinterpret_cast<const int64_t *>(firsts)[pair], second = reinterpret_cast<const int64_t *>(seconds)[pair];
        const uint64_t *one = shingles + begins[first], *const one_end = shingles + begins[first + 1];
        const uint64_t *other = shingles + begins[second], *const other_end = shingles + begins[second + 1];
        const int64_t sizes = (one_end - one) + (other_end - other);
        int64_t both = 0;
        while (one < one_end && other < other_end) {
            const uint64_t left = *one, right = *other;
            both += left == right;
            one += left <= right;
            other += right <= left;
        }
        reinterpret_cast<double *>(similarities)[pair] = sizes == 0 ? 0.0 : double(both) / double(sizes - both);
    }
}

// The smallest number that pairs connect with each number below `count`.
void connect(uintptr_t firsts, uintptr_t seconds, size_t pairs, uintptr_t roots, int64_t count) {
    nb::gil_scoped_release release;
    int64_t *const root = reinterpret_cast<int64_t *>(roots);
    for (int64_t i = 0; i < count; ++i) root[i] = i;
    const auto find = [&](int64_t at) {
        while (root[at] != at) at = root[at] = root[root[at]];
        return at;
    };
    for (size_t pair = 0; pair < pairs; ++pair) {
        const int64_t first = find(reinterpret_cast<const int64_t *>(firsts)[pair]), second = find(reinterpret_cast<const int64_t *>(seconds)[pair]);
        root[std::max(first, second)] = std::min(first, second);
    }
    for (int64_t i = 0; i < count; ++i) root[i] = root[root[i]];
}

}  // namespace

void bind_minhash(nb::module_ &m) {
    m.def("sign", &sign);
    m.def("shingle_sets", &shingle_sets);
    m.def("jaccard", &jaccard);
    m.def("connect", &connect);
}

}  // namespace tallow
