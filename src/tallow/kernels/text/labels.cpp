// The two most probable labels of texts: what tallow/kernels/text/labels.py defines, faster.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <string>
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
constexpr size_t batch = 4096;  // n-grams, and rows, that are gone through together
constexpr double pruning_margin = 0.99;  // far more than what rounding makes of a product of probabilities

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

void look_at(std::string_view text, int64_t most, int64_t pieces, std::vector<std::string_view> &found) {
    const int64_t size = int64_t(text.size()), looked_at = std::min(size, most);
    const int64_t count = std::max<int64_t>(1, std::min(pieces, looked_at / shortest_piece)), length = looked_at / count;
    found.clear();
    for (int64_t i = 0; i < count; ++i) {
        const int64_t start = count == 1 ? 0 : i * (size - length) / (count - 1);
        const int64_t begin = cut(text, start), end = std::max(begin, cut(text, start + length));
        found.push_back(text.substr(size_t(begin), size_t(end - begin)));
    }
}

// A set of small numbers.
class NumberSet {
   public:
    explicit NumberSet(size_t size) : words((size + 63) / 64) {}

    bool has(size_t number) const { return words[number >> 6] >> (number & 63) & 1; }
    void add(size_t number) { words[number >> 6] |= uint64_t(1) << (number & 63); }

    // Takes them out in rising order.
    template <class Use>
    void drain(Use use) {
        for (size_t word = 0; word < words.size(); ++word)
            while (words[word]) {
                use(word * 64 + size_t(std::countr_zero(words[word])));
                words[word] &= words[word] - 1;
            }
    }

   private:
    std::vector<uint64_t> words;
};

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
          labels(std::get<1>(outputs)),
          width(std::get<2>(outputs)),
          outputs(columns(reinterpret_cast<const float *>(std::get<0>(outputs)), labels, width)),
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
        Work work(*this, smallest);
        for (int64_t i = 0; i < texts.count; ++i, best += 2, probability += 2) {
            best[0] = best[1] = -1;
            probability[0] = probability[1] = 0;
            look_at(texts[i], most, pieces, work.pieces);
            if (!has_letters(work.pieces, fewest_letters)) continue;
            for (const std::string_view piece : work.pieces) add_piece(piece, work);
            work.probable.drain([&](size_t label) {
                const float mean = float(work.sums[label] / double(work.pieces.size()));
                if (mean > probability[0]) {
                    best[1] = best[0], probability[1] = probability[0];
                    best[0] = int32_t(label), probability[0] = mean;
                } else if (mean > probability[1]) {
                    best[1] = int32_t(label), probability[1] = mean;
                }
            });
        }
    }

   private:
    // A node of the tree that may be worth a visit.
    struct Visit {
        int64_t node;
        float score;   // of its parent
        float part;    // of the parent's probability
        double share;  // of all, nearly
    };

    struct Work {
        std::vector<std::string_view> pieces;
        std::string word;
        std::vector<uint32_t> buckets;  // that may have rows, the first `bucket_count`, not looked up yet
        size_t bucket_count = 0;
        std::vector<int64_t> rows;  // not added yet
        int64_t features = 0;
        std::vector<int32_t> word_hashes;
        std::vector<float> hidden, products;
        std::vector<Visit> visits;
        NumberSet probable;  // labels that have a sum
        std::vector<double> sums;
        double smallest;
        float least;

        Work(const LabelModel &model, double smallest)
            : buckets(batch),
              hidden(size_t(model.width)),
              products(size_t(model.labels)),
              probable(size_t(model.labels)),
              sums(size_t(model.labels)),
              smallest(smallest),
              least(float(std::log(smallest))) {}

        void add(size_t label, double probability) {
            sums[label] = (probable.has(label) ? sums[label] : 0.0) + probability;
            probable.add(label);
        }
    };

    // A matrix by columns, so that the products of many rows go on side by side, each in its order.
    static std::vector<float> columns(const float *rows, int64_t count, int64_t width) {
        std::vector<float> turned(size_t(count * width + 16));  // what is computed beyond the last one is not used
        for (int64_t row = 0; row < count; ++row)
            for (int64_t i = 0; i < width; ++i) turned[size_t(i * count + row)] = rows[row * width + i];
        return turned;
    }

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

    void add_bucket(uint32_t bucket, Work &work) const {
        if (work.bucket_count == batch) look_up(work);
        work.buckets[work.bucket_count] = bucket;
        work.bucket_count += !prunes || kept.may_have(bucket);  // without a branch, for it cannot be foreseen
    }

    void add_row(int64_t row, Work &work) const {
        if (work.rows.size() == batch) sum_up(work);
        __builtin_prefetch(inputs + row * width * int64_t(sizeof(float)));
        work.rows.push_back(row);
    }

    void look_up(Work &work) const {
        constexpr size_t ahead = 8;
        for (size_t i = 0; i < work.bucket_count; ++i) {
            if (prunes && i + ahead < work.bucket_count) kept.prefetch(work.buckets[i + ahead]);
            const int64_t row = prunes ? kept.find(work.buckets[i]) : work.buckets[i];
            if (row >= 0) add_row(word_count + row, work);
        }
        work.bucket_count = 0;
    }

    void sum_up(Work &work) const {
        float *const hidden = work.hidden.data();
        for (const int64_t row : work.rows) {
            const char *values = inputs + row * width * int64_t(sizeof(float));
            for (int64_t i = 0; i < width; ++i) {
                float value;
                std::memcpy(&value, values + i * int64_t(sizeof(float)), sizeof value);
                hidden[i] += value;
            }
        }
        work.features += int64_t(work.rows.size());
        work.rows.clear();
    }

    // The n-grams of `<word>`.
    void add_grams(std::string_view word, Work &work) const {
        work.word.assign(1, '<').append(word).push_back('>');
        const char *const first = work.word.data(), *const last = first + work.word.size();
        for (const char *begin = first; begin < last; ++begin) {
            if (continues(*begin)) continue;
            uint32_t hash = hash_start;
            const char *end = begin;
            for (int64_t n = 1; end < last && n <= longest; ++n) {
                do hash = hash_on(hash, *end++);
                while (end < last && continues(*end));
                if (n >= shortest && !(n == 1 && (begin == first || end == last))) add_bucket(remainder(hash), work);
            }
        }
    }

    void add_word(std::string_view word, bool ends, Work &work) const {
        const uint32_t hash = hash_of(word);
        const int32_t id = table.find(word, hash);
        if (id >= word_count || (id < 0 && word.starts_with(label_prefix))) return;
        if (id >= 0) {
            look_up(work);  // what goes before it
            add_row(id, work);
        }
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

    void multiply(Work &work) const {
        constexpr int64_t together = 16;
        for (int64_t row = 0; row < labels; row += together) {
            float sums[together] = {};
            const float *column = outputs.data() + row;
            for (int64_t i = 0; i < width; ++i, column += labels)
                for (int64_t j = 0; j < together; ++j) sums[j] += column[j] * work.hidden[size_t(i)];
            std::copy_n(sums, std::min(together, labels - row), work.products.data() + row);
        }
    }

    void add_piece(std::string_view piece, Work &work) const {
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
        look_up(work);
        sum_up(work);
        if (!work.features) return;
        const float share = float(1.0 / double(work.features));
        for (float &value : work.hidden) value *= share;
        multiply(work);
        if (tree) walk(work);
        else weigh(work);
    }

    // Logarithms of probabilities from the root down, the greater child first. What is surely too small is left out: less
    // than the smallest that counts or, where there is one piece, than the second best label.
    void walk(Work &work) const {
        double too_small = work.smallest * pruning_margin, best = 0;
        work.visits.assign(1, {2 * labels - 2, 0, 1, 1});
        while (!work.visits.empty()) {
            const Visit visit = work.visits.back();
            work.visits.pop_back();
            if (visit.share < too_small) continue;
            const float score = visit.node == 2 * labels - 2 ? 0 : visit.score + log_of(visit.part);
            if (!(score >= work.least)) continue;
            if (visit.node < labels) {
                work.add(size_t(visit.node), std::min(1.0, double(std::exp(score))));
                if (work.pieces.size() > 1) continue;
                too_small = std::max(too_small, std::min(best, visit.share) * pruning_margin);
                best = std::max(best, visit.share);
                continue;
            }
            const int64_t inner = visit.node - labels;
            const float right = float(1.0 / (1.0 + double(std::exp(-work.products[size_t(inner)]))));
            const float left = float(1.0 - double(right));
            const auto push = [&](int64_t side, float part) {
                work.visits.push_back({tree[2 * inner + side], score, part, visit.share * (double(part) + 1e-5)});
            };
            if (left < right) push(0, left), push(1, right);
            else push(1, right), push(0, left);
        }
    }

    void weigh(Work &work) const {
        float largest = -INFINITY, total = 0;
        for (const float product : work.products) largest = std::max(largest, product);
        for (float &product : work.products) {
            product = std::exp(product - largest);
            total += product;
        }
        for (int64_t label = 0; label < labels; ++label) {
            const float score = log_of(work.products[size_t(label)] / total);
            if (score >= work.least) work.add(size_t(label), std::min(1.0, double(std::exp(score))));
        }
    }

    WordTable table;
    int64_t word_count;
    KeptRows kept;
    bool prunes;
    const char *inputs;
    int64_t labels, width;
    std::vector<float> outputs;  // by columns
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
