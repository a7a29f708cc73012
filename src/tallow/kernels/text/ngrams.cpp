// Words of texts as hashes, and what an n-gram model says of them: tallow/kernels/text/ngrams.py defines both.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <string_view>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "texts.h"
#include "utf8.h"

namespace nb = nanobind;

namespace tallow {
namespace {

constexpr uint64_t hash_start = 14695981039346656037u, hash_prime = 1099511628211u, golden = 0x9E3779B97F4A7C15u;
constexpr uint64_t begin_word = 1, end_word = 2;
constexpr size_t highest_order = 8;

enum class Kind { blank, alone, joined };
using Ranges = std::vector<std::tuple<uint32_t, uint32_t, int>>;

// What characters are; ASCII and the rest of the first two planes by a table.
class Kinds {
   public:
    explicit Kinds(const Ranges &ranges) : table(0x20000, uint8_t(Kind::joined)) {
        for (const auto &[first, last, kind] : ranges)
            for (uint32_t character = first; character <= last && character < table.size(); ++character) table[character] = uint8_t(kind);
    }
    Kind operator[](char32_t character) const { return character < table.size() ? Kind(table[character]) : Kind::alone; }

   private:
    std::vector<uint8_t> table;
};

uint64_t mixed(uint64_t hash) {
    hash = (hash ^ hash >> 32) * golden;
    return hash ^ hash >> 29;
}

uint64_t longer(uint64_t key, uint64_t word) {
    key = (key ^ word * golden) * hash_prime;
    return key ^ key >> 32;
}

// Calls `take` with the hash of each word, between those of beginning and end.
template <class Take>
void for_each_word(std::string_view text, int64_t most_bytes, const Kinds &kinds, Take take) {
    if (int64_t(text.size()) > most_bytes) {
        size_t size = size_t(most_bytes);
        while (size > 0 && continues(text[size])) --size;
        text = text.substr(0, size);
    }
    take(begin_word);
    uint64_t hash = hash_start;
    bool open = false;
    const auto close = [&] {
        if (open) take(mixed(hash));
        hash = hash_start, open = false;
    };
    for (const char *at = text.data(), *end = at + text.size(); at < end;) {
        const char *begin = at;
        const Kind kind = kinds[next_character(at)];
        if (kind != Kind::joined) close();
        if (kind == Kind::blank) continue;
        for (const char *byte = begin; byte < at; ++byte) {
            const uint8_t low = *byte >= 'A' && *byte <= 'Z' ? uint8_t(*byte + 32) : uint8_t(*byte);
            hash = (hash ^ low) * hash_prime;
        }
        open = true;
        if (kind == Kind::alone) close();
    }
    close();
    take(end_word);
}

Array<uint64_t> word_hashes(const TextPlaces &places, int64_t most_bytes, const Ranges &ranges, uintptr_t offsets) {
    std::vector<uint64_t> words;
    {
        nb::gil_scoped_release release;
        const Texts texts(places);
        const Kinds kinds(ranges);
        auto *offset = reinterpret_cast<int64_t *>(offsets);
        offset[0] = 0;
        for (int64_t i = 0; i < texts.count; ++i) {
            for_each_word(texts[i], most_bytes, kinds, [&](uint64_t word) { words.push_back(word); });
            offset[i + 1] = int64_t(words.size());
        }
    }
    return as_array(std::move(words));
}

// The n-grams of one length, by their keys; `index` tells where keys with the same first bits begin.
struct Table {
    const uint64_t *keys;
    const float *log_probabilities, *backoffs;
    const int64_t *index;
    int shift;

    int64_t find(uint64_t key) const {
        const uint64_t top = key >> shift;
        const uint64_t *end = keys + index[top + 1], *found = std::lower_bound(keys + index[top], end, key);
        return found < end && *found == key ? found - keys : -1;
    }
};
using TableAddresses = std::tuple<uintptr_t, uintptr_t, uintptr_t, uintptr_t, int>;

// The sum of words' log probabilities, and their number, of one text after another.
class Scorer {
   public:
    Scorer(const std::vector<TableAddresses> &addresses, double unknown) : unknown(unknown) {
        for (const auto &[keys, log_probabilities, backoffs, index, shift] : addresses)
            tables.push_back({reinterpret_cast<const uint64_t *>(keys), reinterpret_cast<const float *>(log_probabilities),
                              reinterpret_cast<const float *>(backoffs), reinterpret_cast<const int64_t *>(index), shift});
    }

    void start() { sum = 0, count = 0, seen = 0, matched = 0; }

    void take(uint64_t word) {
        const size_t order = tables.size();
        std::array<float, highest_order> found_backoffs{};
        size_t found = 0;
        double log_probability = unknown;
        uint64_t key = word;
        for (size_t n = 0; n < order && n <= seen; ++n) {
            if (n) key = longer(key, history[n - 1]);
            const int64_t place = tables[n].find(key);
            if (place < 0) break;
            log_probability = double(tables[n].log_probabilities[place]);
            found_backoffs[n] = tables[n].backoffs[place];
            found = n + 1;
        }
        if (seen > 0) {  // the beginning is not predicted
            // contexts of as many words as were found, and of more, could not be gone on with
            for (size_t n = std::max<size_t>(found, 1); n <= std::min(matched, order - 1); ++n) log_probability += double(backoffs[n - 1]);
            sum += log_probability;
            ++count;
        }
        std::copy_backward(history.begin(), history.end() - 1, history.end());
        history[0] = word;
        backoffs = found_backoffs;
        matched = found;
        seen = std::min(seen + 1, highest_order);
    }

    double sum = 0;
    int64_t count = 0;

   private:
    std::vector<Table> tables;
    double unknown;
    std::array<uint64_t, highest_order> history{};  // the last word first
    std::array<float, highest_order> backoffs{};    // of the n-grams found that end with the last word
    size_t seen = 0, matched = 0;
};

void score_ngrams(const TextPlaces &places, int64_t most_bytes, const Ranges &ranges, const std::vector<TableAddresses> &tables,
                  double unknown, uintptr_t sums, uintptr_t counts) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    const Kinds kinds(ranges);
    Scorer scorer(tables, unknown);
    for (int64_t i = 0; i < texts.count; ++i) {
        scorer.start();
        for_each_word(texts[i], most_bytes, kinds, [&](uint64_t word) { scorer.take(word); });
        reinterpret_cast<double *>(sums)[i] = scorer.sum;
        reinterpret_cast<int64_t *>(counts)[i] = scorer.count;
    }
}

}  // namespace

void bind_ngrams(nb::module_ &m) {
    m.def("word_hashes", &word_hashes);
    m.def("score_ngrams", &score_ngrams);
}

}  // namespace tallow
