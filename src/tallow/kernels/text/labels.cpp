// The two most probable labels of texts: what tallow/kernels/text/labels.py defines, faster.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <string_view>
#include <tuple>
#include <vector>

#include "label_models.h"
#include "texts.h"
#include "utf8.h"

namespace nb = nanobind;

namespace tallow {
namespace {

constexpr std::string_view label_prefix = "__label__", end_of_line = "</s>";
constexpr int64_t shortest_piece = 300, widest_cut = 32;

bool separates(char byte) {
    return byte == ' ' || (byte >= '\t' && byte <= '\r') || byte == '\0';
}

// The first place from `at` on where a word begins or ends, or else where a character does.
int64_t cut(std::string_view text, int64_t at) {
    const int64_t size = int64_t(text.size());
    if (at <= 0 || at >= size) return std::clamp<int64_t>(at, 0, size);
    while (at < size && continues(text[size_t(at)])) ++at;
    for (int64_t i = at; i < std::min(at + widest_cut, size); ++i)
        if (separates(text[size_t(i)])) return i;
    return at;
}

std::vector<std::string_view> look_at(std::string_view text, int64_t most, int64_t pieces) {
    const int64_t size = int64_t(text.size()), looked_at = std::min(size, most);
    const int64_t count = std::max<int64_t>(1, std::min(pieces, looked_at / shortest_piece)), length = looked_at / count;
    std::vector<std::string_view> found;
    for (int64_t i = 0; i < count; ++i) {
        const int64_t start = count == 1 ? 0 : i * (size - length) / (count - 1);
        const int64_t begin = cut(text, start), end = std::max(begin, cut(text, start + length));
        found.push_back(text.substr(size_t(begin), size_t(end - begin)));
    }
    return found;
}

// log(x + 1e-5) in fastText's mixture of precisions.
float log_of(float x) { return float(std::log(double(x) + 1e-5)); }

class LabelModel {
   public:
    // Addresses, each beside a number of elements: words' bytes and offsets, buckets kept and their rows, rows of
    // inputs (of unaligned floats), rows of outputs, children of the tree's inner nodes (or none), bits of letters.
    LabelModel(std::tuple<uintptr_t, uintptr_t, int64_t, int64_t> words, std::tuple<uintptr_t, uintptr_t, int64_t> kept,
               uintptr_t inputs, std::tuple<uintptr_t, int64_t, int64_t> outputs, uintptr_t tree,
               std::tuple<int64_t, int64_t, int64_t, int64_t> grams, uintptr_t letters)
        : table(reinterpret_cast<const char *>(std::get<0>(words)), reinterpret_cast<const int64_t *>(std::get<1>(words)),
                std::get<2>(words) + std::get<3>(words)),
          word_count(std::get<2>(words)),
          kept(reinterpret_cast<const int32_t *>(std::get<0>(kept)), reinterpret_cast<const int32_t *>(std::get<1>(kept)),
               std::get<2>(kept)),
          prunes(std::get<2>(kept) >= 0),
          inputs(reinterpret_cast<const char *>(inputs)),
          outputs(reinterpret_cast<const float *>(std::get<0>(outputs))),
          labels(std::get<1>(outputs)),
          width(std::get<2>(outputs)),
          tree(reinterpret_cast<const int32_t *>(tree)),
          shortest(std::get<0>(grams)),
          longest(std::get<1>(grams)),
          word_grams(std::get<2>(grams)),
          buckets(uint32_t(std::get<3>(grams))),
          remainder(buckets),
          letters(reinterpret_cast<const uint8_t *>(letters)) {}

    void predict(const TextPlaces &places, std::tuple<int64_t, int64_t, int64_t, double> limits, uintptr_t found, uintptr_t probabilities) const {
        nb::gil_scoped_release release;
        const auto [most, pieces, fewest_letters, smallest] = limits;
        const Texts texts(places);
        auto *best = reinterpret_cast<int32_t *>(found);
        auto *probability = reinterpret_cast<float *>(probabilities);
        Work work(*this, float(std::log(smallest)));
        std::vector<double> sums(static_cast<size_t>(labels));
        for (int64_t i = 0; i < texts.count; ++i, best += 2, probability += 2) {
            best[0] = best[1] = -1;
            probability[0] = probability[1] = 0;
            const auto looked_at = look_at(texts[i], most, pieces);
            if (!has_letters(looked_at, fewest_letters)) continue;
            std::fill(sums.begin(), sums.end(), 0.0);
            for (const std::string_view piece : looked_at) add_piece(piece, work, sums);
            for (int32_t label = 0; label < labels; ++label) {
                const float mean = float(sums[size_t(label)] / double(looked_at.size()));
                if (mean > probability[0]) {
                    best[1] = best[0], probability[1] = probability[0];
                    best[0] = label, probability[0] = mean;
                } else if (mean > probability[1]) {
                    best[1] = label, probability[1] = mean;
                }
            }
        }
    }

   private:
    struct Work {
        std::vector<float> hidden, scores;
        std::vector<int32_t> word_hashes;
        int64_t features = 0;
        float least;

        Work(const LabelModel &model, float least)
            : hidden(size_t(model.width)), scores(size_t(2 * model.labels)), least(least) {}
    };

    static uint32_t hash_of(std::string_view word) {
        uint32_t hash = hash_start;
        for (char byte : word) hash = hash_on(hash, byte);
        return hash;
    }

    bool has_letters(const std::vector<std::string_view> &pieces, int64_t fewest) const {
        if (fewest <= 0) return true;
        for (const std::string_view piece : pieces)
            for (const char *at = piece.data(), *end = at + piece.size(); at < end;) {
                const char32_t character = next_character(at);
                if ((letters[character >> 3] >> (character & 7) & 1) && --fewest == 0) return true;
            }
        return false;
    }

    void add_row(int64_t row, Work &work) const {
        const char *values = inputs + row * width * int64_t(sizeof(float));
        for (int64_t i = 0; i < width; ++i) {
            float value;
            std::memcpy(&value, values + i * int64_t(sizeof(float)), sizeof value);
            work.hidden[size_t(i)] += value;
        }
        ++work.features;
    }

    void add_bucket(uint32_t bucket, Work &work) const {
        if (prunes) {
            if (kept.none()) return;
            const int32_t row = kept.find(bucket);
            if (row >= 0) add_row(word_count + row, work);
        } else {
            add_row(word_count + bucket, work);
        }
    }

    // The n-grams of `<word>`.
    void add_grams(std::string_view word, Work &work) const {
        const size_t size = word.size() + 2;
        const auto at = [&](size_t i) { return i == 0 ? '<' : i == size - 1 ? '>' : word[i - 1]; };
        for (size_t begin = 0; begin < size; ++begin) {
            if (continues(at(begin))) continue;
            uint32_t hash = hash_start;
            size_t end = begin;
            for (int64_t n = 1; end < size && n <= longest; ++n) {
                hash = hash_on(hash, at(end++));
                while (end < size && continues(at(end))) hash = hash_on(hash, at(end++));
                if (n >= shortest && !(n == 1 && (begin == 0 || end == size))) add_bucket(remainder(hash), work);
            }
        }
    }

    void add_word(std::string_view word, bool ends, Work &work) const {
        const uint32_t hash = hash_of(word);
        const int32_t id = table.find(word, hash);
        if (id >= word_count || (id < 0 && word.starts_with(label_prefix))) return;
        if (id >= 0) add_row(id, work);
        if (!ends) add_grams(word, work);
        work.word_hashes.push_back(int32_t(hash));
    }

    void add_word_grams(Work &work) const {
        const auto &hashes = work.word_hashes;
        for (size_t i = 0; i < hashes.size(); ++i) {
            uint64_t hash = uint64_t(int64_t(hashes[i]));
            for (size_t j = i + 1; j < hashes.size() && j < i + size_t(word_grams); ++j) {
                hash = hash * 116049371u + uint64_t(int64_t(hashes[j]));
                add_bucket(uint32_t(hash % buckets), work);
            }
        }
    }

    float product(int64_t row, const Work &work) const {
        float sum = 0;
        for (int64_t i = 0; i < width; ++i) sum += outputs[row * width + i] * work.hidden[size_t(i)];
        return sum;
    }

    void add_piece(std::string_view piece, Work &work, std::vector<double> &sums) const {
        std::fill(work.hidden.begin(), work.hidden.end(), 0.f);
        work.word_hashes.clear();
        work.features = 0;
        for (size_t at = 0; at < piece.size();) {
            size_t end = at;
            while (end < piece.size() && !separates(piece[end])) ++end;
            if (const std::string_view word = piece.substr(at, end - at); !word.empty()) add_word(word, word == end_of_line, work);
            at = end + 1;
        }
        add_word(end_of_line, true, work);
        if (word_grams > 1) add_word_grams(work);
        if (!work.features) return;
        const float share = float(1.0 / double(work.features));
        for (float &value : work.hidden) value *= share;
        if (tree) walk(work, sums);
        else weigh(work, sums);
    }

    // Logarithms of probabilities from the root down; children come before their parents, and leaves are the labels.
    void walk(Work &work, std::vector<double> &sums) const {
        auto &scores = work.scores;
        std::fill(scores.begin(), scores.end(), -INFINITY);
        scores[size_t(2 * labels - 2)] = 0;
        for (int64_t node = 2 * labels - 2; node >= 0; --node) {
            const float score = scores[size_t(node)];
            if (!(score >= work.least)) continue;
            if (node < labels) {
                sums[size_t(node)] += std::min(1.0, double(std::exp(score)));
                continue;
            }
            const int64_t inner = node - labels;
            const float right = float(1.0 / (1.0 + double(std::exp(-product(inner, work)))));
            scores[size_t(tree[2 * inner])] = score + log_of(float(1.0 - double(right)));
            scores[size_t(tree[2 * inner + 1])] = score + log_of(right);
        }
    }

    void weigh(Work &work, std::vector<double> &sums) const {
        float largest = -INFINITY, total = 0;
        for (int64_t label = 0; label < labels; ++label) {
            work.scores[size_t(label)] = product(label, work);
            largest = std::max(largest, work.scores[size_t(label)]);
        }
        for (int64_t label = 0; label < labels; ++label) {
            work.scores[size_t(label)] = std::exp(work.scores[size_t(label)] - largest);
            total += work.scores[size_t(label)];
        }
        for (int64_t label = 0; label < labels; ++label) {
            const float score = log_of(work.scores[size_t(label)] / total);
            if (score >= work.least) sums[size_t(label)] += std::min(1.0, double(std::exp(score)));
        }
    }

    WordTable table;
    int64_t word_count;
    KeptRows kept;
    bool prunes;
    const char *inputs;
    const float *outputs;
    int64_t labels, width;
    const int32_t *tree;
    int64_t shortest, longest, word_grams;
    uint32_t buckets;
    Remainder remainder;
    const uint8_t *letters;
};

}  // namespace

void bind_labels(nb::module_ &m) {
    nb::class_<LabelModel>(m, "LabelModel")
        .def(nb::init<std::tuple<uintptr_t, uintptr_t, int64_t, int64_t>, std::tuple<uintptr_t, uintptr_t, int64_t>,
                      uintptr_t, std::tuple<uintptr_t, int64_t, int64_t>, uintptr_t,
                      std::tuple<int64_t, int64_t, int64_t, int64_t>, uintptr_t>())
        .def("predict", &LabelModel::predict);
}

}  // namespace tallow
