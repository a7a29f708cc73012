// Pieces of texts, and how often each occurs.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <string>
#include <string_view>
#include <vector>

#include "arrays.h"
#include "hash.h"
#include "pieces.h"
#include "texts.h"

namespace nb = nanobind;

namespace tallow {
namespace {

class WordCounter {
public:
    // `properties`: address of a byte for each character there can be, which the caller keeps.
    WordCounter(uintptr_t properties, int digits)
        : splitter_(reinterpret_cast<const uint8_t *>(properties), {digits}), slots_(1 << 14, -1) {}
    WordCounter(const WordCounter &) = delete;

    void add(const TextPlaces &places) {
        nb::gil_scoped_release release;
        const Texts texts(places);
        for (int64_t i = 0; i < texts.count; ++i) {
            const std::string_view text = texts[i];
            const char *const end = text.data() + text.size();
            for (const char *at = text.data(); at != end;) {
                const char *const next = splitter_.end_of_piece(at, end);
                count({at, size_t(next - at)});
                at = next;
            }
        }
    }

    // The bytes of all words one after another, by the order of their bytes; where each ends; how often each occurs.
    std::tuple<nb::bytes, Array<int64_t>, Array<int64_t>> counts() const {
        std::vector<size_t> order(words_.size());
        std::iota(order.begin(), order.end(), size_t(0));
        std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return words_[a].text < words_[b].text; });
        std::string bytes;
        std::vector<int64_t> ends, counts;
        for (const size_t i : order) {
            bytes += words_[i].text;
            ends.push_back(int64_t(bytes.size())), counts.push_back(words_[i].count);
        }
        return {nb::bytes(bytes.data(), bytes.size()), as_array(std::move(ends)), as_array(std::move(counts))};
    }

private:
    struct Word {
        std::string_view text;
        uint64_t hash;
        int64_t count;
    };

    size_t find(std::string_view text, uint64_t hash) const {
        size_t slot = hash & (slots_.size() - 1);
        for (; slots_[slot] >= 0; slot = (slot + 1) & (slots_.size() - 1)) {
            const Word &word = words_[size_t(slots_[slot])];
            if (word.hash == hash && word.text == text) break;
        }
        return slot;
    }

    void count(std::string_view text) {
        const uint64_t hash = hash_bytes(text, salt());
        size_t slot = find(text, hash);
        if (slots_[slot] < 0) {
            if (2 * words_.size() >= slots_.size()) {
                grow();
                slot = find(text, hash);
            }
            slots_[slot] = int64_t(words_.size());
            words_.push_back({keep(text), hash, 0});
        }
        ++words_[size_t(slots_[slot])].count;
    }

    void grow() {
        slots_.assign(2 * slots_.size(), -1);
        for (size_t i = 0; i < words_.size(); ++i) slots_[find(words_[i].text, words_[i].hash)] = int64_t(i);
    }

    // The text in memory of our own.
    std::string_view keep(std::string_view text) {
        if (room_ < text.size()) {
            room_ = std::max(text.size(), size_t(1) << 20);
            blocks_.emplace_back(std::make_unique<char[]>(room_));
            free_ = blocks_.back().get();
        }
        std::memcpy(free_, text.data(), text.size());
        const std::string_view kept(free_, text.size());
        free_ += text.size(), room_ -= text.size();
        return kept;
    }

    Splitter splitter_;
    std::vector<int64_t> slots_;
    std::vector<Word> words_;
    std::vector<std::unique_ptr<char[]>> blocks_;
    char *free_ = nullptr;
    size_t room_ = 0;
};

}  // namespace

void bind_word_counter(nb::module_ &m) {
    nb::class_<WordCounter>(m, "WordCounter")
        .def(nb::init<uintptr_t, int>())
        .def("add", &WordCounter::add)
        .def("counts", &WordCounter::counts);
}

}  // namespace tallow
