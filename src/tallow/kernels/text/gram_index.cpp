// The n-grams of some passages, and where texts have them; gram_index.py says what these are.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

#include "arrays.h"
#include "classes.h"
#include "hash.h"
#include "texts.h"
#include "words.h"

namespace nb = nanobind;

namespace tallow {
namespace {

// Letters without case and accents; numbers stay what they are, marked so that `scan_words` leaves out no 0.
struct Spelling {
    const Classes &kinds;
    char32_t operator()(char32_t character) const {
        constexpr uint8_t letter_or_number = Classes::WORD | Classes::LETTER;
        return (kinds[character] & letter_or_number) == Classes::WORD ? character | 0x80000000 : kinds.fold(character);
    }
};

// The words of a text that are no symbols, and hashes of any that follow one another.
struct Scanned {
    std::vector<std::string_view> words;
    std::vector<uint64_t> prefixes;  // polynomials in HASH_FACTOR, modulo 2^64; one more than there are words

    void scan(std::string_view text, const Classes &kinds) {
        words.clear();
        prefixes.assign(1, 0);
        scan_words(text, kinds, Spelling{kinds}, [&](const Word &word) {
            if (!word.plain) return;
            words.push_back(word.bytes);
            prefixes.push_back(prefixes.back() * HASH_FACTOR + word.hash);
        });
    }
};

class GramIndex {
   public:
    GramIndex(const TextPlaces &places, const ClassPlaces &classes, size_t gram_words, size_t shortest_words, size_t shortest_bytes)
        : kinds_(classes), longest_(gram_words), shortest_(shortest_words), powers_(gram_words + 1, 1) {
        nb::gil_scoped_release release;
        for (size_t i = 1; i < powers_.size(); ++i) powers_[i] = powers_[i - 1] * HASH_FACTOR;
        slots_.assign(16, 0);
        const Texts passages(places);
        Scanned scanned;
        offsets_.push_back(0);
        for (int64_t i = 0; i < passages.count; ++i) {
            scanned.scan(passages[i], kinds_);
            add(scanned, shortest_bytes);
            offsets_.push_back(int64_t(members_.size()));
        }
        index_beginnings();
    }

    // Where each passage's n-grams begin, these, and how many words each has.
    std::tuple<Array<int64_t>, Array<int32_t>, Array<int32_t>> grams() const {
        std::vector<int32_t> lengths;
        for (const Gram &gram : grams_) lengths.push_back(int32_t(gram.length));
        return {as_array(std::vector(offsets_)), as_array(std::vector(members_)), as_array(std::move(lengths))};
    }

    using Integers = Array<int32_t>;

    // The row, the n-gram, the number of its first word, and its first byte and the one behind its last, of each place;
    // the numbers of words of texts are written.
    std::tuple<Integers, Integers, Integers, Integers, Integers> search(const TextPlaces &places, uintptr_t active, uintptr_t sizes) const {
        std::vector<int32_t> rows, grams, firsts, begins, ends;
        {
            nb::gil_scoped_release release;
            const Texts texts(places);
            const uint8_t *const counts = reinterpret_cast<const uint8_t *>(active);
            Scanned scanned;
            for (int64_t row = 0; row < texts.count; ++row) {
                const std::string_view text = texts[row];
                scanned.scan(text, kinds_);
                const size_t count = scanned.words.size();
                reinterpret_cast<int64_t *>(sizes)[row] = int64_t(count);
                for (size_t at = 0; at + shortest_ <= count; ++at) {
                    const uint64_t lengths = lengths_from(hash(scanned, at, shortest_));
                    if (lengths == 0) continue;
                    for (size_t length = shortest_; length <= std::min(longest_, count - at); ++length) {
                        if (!(lengths >> length & 1)) continue;
                        const int32_t gram = find(scanned, at, length);
                        if (gram < 0 || !counts[gram]) continue;
                        rows.push_back(int32_t(row));
                        grams.push_back(gram);
                        firsts.push_back(int32_t(at));
                        begins.push_back(int32_t(scanned.words[at].data() - text.data()));
                        const std::string_view last = scanned.words[at + length - 1];
                        ends.push_back(int32_t(last.data() + last.size() - text.data()));
                    }
                }
            }
        }
        return {as_array(std::move(rows)), as_array(std::move(grams)), as_array(std::move(firsts)), as_array(std::move(begins)),
                as_array(std::move(ends))};
    }

   private:
    struct Gram {
        uint64_t hash;
        uint32_t first;  // of its words among all
        uint32_t length;
    };

    struct Beginning {
        uint64_t hash;
        uint64_t lengths;  // bits; none where nothing lies
    };

    uint64_t hash(const Scanned &scanned, size_t at, size_t length) const {
        return scanned.prefixes[at + length] - scanned.prefixes[at] * powers_[length];
    }

    static size_t place(uint64_t hash, size_t slots) { return size_t((hash ^ hash >> 29) * HASH_FACTOR >> 20) & (slots - 1); }

    void add(const Scanned &scanned, size_t shortest_bytes) {
        const size_t count = scanned.words.size();
        if (count < shortest_) return;
        if (count < longest_) {
            size_t bytes = 0;
            for (const std::string_view word : scanned.words) bytes += word.size();
            if (bytes < shortest_bytes) return;
        }
        const uint32_t first = uint32_t(ends_.size());
        for (const std::string_view word : scanned.words) {
            spell(word, [&](char32_t letter) {
                letters_.push_back(letter);
                return true;
            });
            ends_.push_back(uint32_t(letters_.size()));
        }
        const size_t length = std::min(count, longest_), begin = members_.size();
        for (size_t at = 0; at + length <= count; ++at) {
            int32_t gram = find(scanned, at, length);
            if (gram < 0) {
                gram = int32_t(grams_.size());
                grams_.push_back({hash(scanned, at, length), uint32_t(first + at), uint32_t(length)});
                if (2 * grams_.size() > slots_.size()) slots_.assign(2 * slots_.size(), 0), lay_anew();
                else lay(gram);
            }
            members_.push_back(gram);
        }
        std::sort(members_.begin() + int64_t(begin), members_.end());
        members_.erase(std::unique(members_.begin() + int64_t(begin), members_.end()), members_.end());
    }

    void lay(int32_t gram) {
        size_t slot = place(grams_[size_t(gram)].hash, slots_.size());
        while (slots_[slot]) slot = (slot + 1) & (slots_.size() - 1);
        slots_[slot] = gram + 1;
    }

    void lay_anew() {
        for (size_t gram = 0; gram < grams_.size(); ++gram) lay(int32_t(gram));
    }

    int32_t find(const Scanned &scanned, size_t at, size_t length) const {
        const uint64_t sought = hash(scanned, at, length);
        for (size_t slot = place(sought, slots_.size()); slots_[slot]; slot = (slot + 1) & (slots_.size() - 1)) {
            const Gram &gram = grams_[size_t(slots_[slot] - 1)];
            if (gram.hash == sought && gram.length == length && same(gram, scanned, at)) return slots_[slot] - 1;
        }
        return -1;
    }

    // Calls `take` with each character that counts, until it says no; whether it never did.
    template <class Take>
    bool spell(std::string_view word, Take take) const {
        const Spelling spelling{kinds_};
        for (const char *at = word.data(), *end = at + word.size(); at < end;) {
            const char32_t letter = spelling(next_character(at));
            if (letter != 0 && !take(letter)) return false;
        }
        return true;
    }

    bool same(const Gram &gram, const Scanned &scanned, size_t at) const {
        for (size_t i = 0; i < gram.length; ++i) {
            const size_t word = gram.first + i;
            size_t letter = word ? ends_[word - 1] : 0;
            const size_t end = ends_[word];
            const bool alike = spell(scanned.words[at + i], [&](char32_t found) { return letter < end && letters_[letter++] == found; });
            if (!alike || letter != end) return false;
        }
        return true;
    }

    // By the first words of n-grams, which all have, the lengths that there are; and bits that tell most others at once.
    void index_beginnings() {
        size_t size = 16;
        while (size < 2 * grams_.size()) size *= 2;
        beginnings_.assign(size, {0, 0});
        bits_.assign(size / 4, 0);  // eight for each slot
        for (const Gram &gram : grams_) {
            uint64_t beginning = 0;
            for (size_t i = 0; i < shortest_; ++i) beginning = beginning * HASH_FACTOR + word_hash(gram.first + i);
            size_t slot = place(beginning, size);
            while (beginnings_[slot].lengths && beginnings_[slot].hash != beginning) slot = (slot + 1) & (size - 1);
            beginnings_[slot].hash = beginning;
            beginnings_[slot].lengths |= uint64_t(1) << gram.length;
            const size_t bit = place(beginning, 32 * bits_.size());
            bits_[bit / 32] |= 1u << bit % 32;
        }
    }

    uint64_t word_hash(size_t word) const {
        uint64_t hash = 0;
        for (size_t letter = word ? ends_[word - 1] : 0; letter < ends_[word]; ++letter) hash = absorb(hash, letters_[letter]);
        return hash;
    }

    uint64_t lengths_from(uint64_t beginning) const {
        const size_t bit = place(beginning, 32 * bits_.size());
        if (!(bits_[bit / 32] >> bit % 32 & 1)) return 0;
        size_t slot = place(beginning, beginnings_.size());
        while (beginnings_[slot].lengths && beginnings_[slot].hash != beginning) slot = (slot + 1) & (beginnings_.size() - 1);
        return beginnings_[slot].lengths;
    }

    const Classes kinds_;
    const size_t longest_, shortest_;
    std::vector<uint64_t> powers_;
    std::vector<char32_t> letters_;  // of all words of passages
    std::vector<uint32_t> ends_;     // of words among them
    std::vector<Gram> grams_;
    std::vector<int32_t> slots_;     // numbers of n-grams by their hash, plus one
    std::vector<Beginning> beginnings_;
    std::vector<uint32_t> bits_;
    std::vector<int64_t> offsets_;
    std::vector<int32_t> members_;
};

}  // namespace

void bind_gram_index(nb::module_ &m) {
    nb::class_<GramIndex>(m, "GramIndex")
        .def(nb::init<const TextPlaces &, const ClassPlaces &, size_t, size_t, size_t>())
        .def("grams", &GramIndex::grams)
        .def("search", &GramIndex::search);
}

}  // namespace tallow
