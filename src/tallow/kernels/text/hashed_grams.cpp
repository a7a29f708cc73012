// Counts of hashed n-grams of words and characters: what tallow/kernels/text/hashed_grams.py defines, faster.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "texts.h"
#include "utf8.h"

namespace nb = nanobind;

namespace tallow {
namespace {

constexpr uint64_t fnv_start = 14695981039346656037u, fnv_prime = 1099511628211u, golden = 0x9E3779B97F4A7C15u;
constexpr uint64_t word_salt = 1, character_salt = 2;

bool is_blank(char byte) { return uint8_t(byte) <= ' ' || byte == 0x7F; }
bool is_word(char byte) { return (byte >= 'a' && byte <= 'z') || (byte >= '0' && byte <= '9') || uint8_t(byte) >= 0x80; }

struct Settings {
    int64_t most_bytes, word_grams, shortest, longest, bits;
};
using SettingsTuple = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>;

// Features of one text after another; what is counted is forgotten by `clear`.
class Counter {
   public:
    explicit Counter(const SettingsTuple &from)
        : settings{std::get<0>(from), std::get<1>(from), std::get<2>(from), std::get<3>(from), std::get<4>(from)},
          counts(size_t(1) << settings.bits) {}

    void count(std::string_view text) {
        fold(text);
        if (settings.word_grams > 0) count_words();
        if (settings.longest > 0) count_characters();
        norm = 0;
        for (uint32_t feature : features) norm += value(feature) * value(feature);
        norm = norm > 0 ? std::sqrt(norm) : 1;
    }

    void clear() {
        for (uint32_t feature : features) counts[feature] = 0;
        features.clear();
    }

    uint32_t times(uint32_t feature) const { return counts[feature]; }

    double value(uint32_t feature) const { return counts[feature] == 1 ? 1 : 1 + std::log(double(counts[feature])); }

    std::vector<uint32_t> features;  // in the order in which they occur first
    double norm = 1;

   private:
    void add(uint64_t hash) {
        const uint32_t feature = uint32_t(hash * golden >> (64 - settings.bits));
        if (counts[feature]++ == 0) features.push_back(feature);
    }

    // Lower-case letters of ASCII, one space for white space, none at the ends.
    void fold(std::string_view text) {
        if (int64_t(text.size()) > settings.most_bytes) {
            size_t size = size_t(settings.most_bytes);
            while (size > 0 && continues(text[size])) --size;
            text = text.substr(0, size);
        }
        folded.clear();
        for (char byte : text) {
            if (is_blank(byte)) {
                if (!folded.empty() && folded.back() != ' ') folded.push_back(' ');
            } else {
                folded.push_back(byte >= 'A' && byte <= 'Z' ? char(byte + 32) : byte);
            }
        }
        if (!folded.empty() && folded.back() == ' ') folded.pop_back();
    }

    void count_words() {
        words.clear();
        for (size_t at = 0; at < folded.size();) {
            if (folded[at] == ' ') {
                ++at;
                continue;
            }
            uint64_t hash = fnv_start;
            const bool word = is_word(folded[at]);
            do hash = (hash ^ uint8_t(folded[at++])) * fnv_prime;
            while (word && at < folded.size() && is_word(folded[at]));
            words.push_back(hash);
        }
        for (size_t i = 0; i < words.size(); ++i) {
            uint64_t hash = word_salt;
            for (size_t j = i; j < words.size() && j < i + size_t(settings.word_grams); ++j) {
                hash = (hash ^ words[j]) * fnv_prime;
                hash ^= hash >> 32;
                add(hash);
            }
        }
    }

    void count_characters() {
        for (size_t begin = 0; begin < folded.size(); ++begin) {
            if (continues(folded[begin])) continue;
            uint64_t hash = fnv_start ^ character_salt;
            size_t end = begin;
            for (int64_t n = 1; end < folded.size() && n <= settings.longest; ++n) {
                do hash = (hash ^ uint8_t(folded[end++])) * fnv_prime;
                while (end < folded.size() && continues(folded[end]));
                if (n >= settings.shortest) add(hash ^ hash >> 32);
            }
        }
    }

    Settings settings;
    std::vector<uint32_t> counts;
    std::string folded;
    std::vector<uint64_t> words;
};

// The numbers and values of features; the offsets of texts in them are written.
std::tuple<Array<uint32_t>, Array<float>> hashed_grams(const TextPlaces &places, const SettingsTuple &settings, uintptr_t offsets) {
    std::vector<uint32_t> features;
    std::vector<float> values;
    {
        nb::gil_scoped_release release;
        const Texts texts(places);
        Counter counter(settings);
        auto *offset = reinterpret_cast<int64_t *>(offsets);
        offset[0] = 0;
        for (int64_t i = 0; i < texts.count; ++i) {
            counter.count(texts[i]);
            for (uint32_t feature : counter.features) {
                features.push_back(feature);
                values.push_back(float(counter.value(feature) / counter.norm));
            }
            counter.clear();
            offset[i + 1] = int64_t(features.size());
        }
    }
    return {as_array(std::move(features)), as_array(std::move(values))};
}

void sum_grams(const TextPlaces &places, const SettingsTuple &settings, uintptr_t weights, uintptr_t sums) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    Counter counter(settings);
    const auto *weight = reinterpret_cast<const float *>(weights);
    for (int64_t i = 0; i < texts.count; ++i) {
        counter.count(texts[i]);
        double sum = 0;
        for (uint32_t feature : counter.features) sum += counter.value(feature) * double(weight[feature]);
        reinterpret_cast<double *>(sums)[i] = sum / counter.norm;
        counter.clear();
    }
}

// Adds how often each feature is in the texts.
void count_grams(const TextPlaces &places, const SettingsTuple &settings, uintptr_t totals) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    Counter counter(settings);
    auto *total = reinterpret_cast<int64_t *>(totals);
    for (int64_t i = 0; i < texts.count; ++i) {
        counter.count(texts[i]);
        for (uint32_t feature : counter.features) total[feature] += counter.times(feature);
        counter.clear();
    }
}

// Of each text the sum of the weights of its features, each as often as it is there, and how many these are.
void weigh_grams(const TextPlaces &places, const SettingsTuple &settings, uintptr_t weights, uintptr_t sums, uintptr_t sizes) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    Counter counter(settings);
    const auto *weight = reinterpret_cast<const double *>(weights);
    for (int64_t i = 0; i < texts.count; ++i) {
        counter.count(texts[i]);
        double sum = 0;
        int64_t size = 0;
        for (uint32_t feature : counter.features) {
            sum += counter.times(feature) * weight[feature];
            size += counter.times(feature);
        }
        reinterpret_cast<double *>(sums)[i] = sum;
        reinterpret_cast<int64_t *>(sizes)[i] = size;
        counter.clear();
    }
}

}  // namespace

void bind_hashed_grams(nb::module_ &m) {
    m.def("hashed_grams", &hashed_grams);
    m.def("sum_grams", &sum_grams);
    m.def("count_grams", &count_grams);
    m.def("weigh_grams", &weigh_grams);
}

}  // namespace tallow
