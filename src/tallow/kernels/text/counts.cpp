// What the quality rules count in a text; counts.py says what each count is.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <string>
#include <utility>
#include <vector>

#include "classes.h"
#include "hash.h"
#include "lines.h"
#include "texts.h"
#include "utf8.h"
#include "words.h"

namespace nb = nanobind;

namespace tallow {
namespace {

// In the order of `COUNTS`.
struct Counts {
    int64_t characters = 0, words = 0, plain_words = 0, plain_characters = 0, letter_words = 0, lone_symbols = 0, stop_words = 0;
    int64_t hashes = 0, ellipses = 0;
    int64_t lines = 0, bullet_lines = 0, ellipsis_lines = 0;
    int64_t filled_lines = 0, terminal_lines = 0, short_lines = 0, newlines = 0;
    int64_t duplicate_lines = 0, duplicate_line_characters = 0;
    int64_t paragraphs = 0, duplicate_paragraphs = 0, duplicate_paragraph_characters = 0;
    std::array<int64_t, 3> top_grams{};
    std::array<int64_t, 6> duplicate_grams{};
};

constexpr int TOP = 2, DUPLICATE = 5, LONGEST = 10;
constexpr int64_t SHORT_LINE = 30;

int64_t count_copies(std::string_view text, std::string_view piece) {
    int64_t copies = 0;
    for (size_t at = text.find(piece); at != text.npos; at = text.find(piece, at + piece.size())) ++copies;
    return copies;
}

class StopWords {
public:
    explicit StopWords(const std::vector<std::string> &words) : words_(words), found_(words.size()) {
        for (const std::string &word : words) {
            if (!word.empty()) begins_[uint8_t(word[0])] = true;
            longest_ = std::max(longest_, word.size());
        }
    }

    void see(std::string_view word) {
        if (word.size() > longest_ || !begins_[uint8_t(word[0])]) return;
        const auto at = std::find(words_.begin(), words_.end(), word);
        if (at != words_.end()) found_[size_t(at - words_.begin())] = true;
    }

    // How many different ones were seen since the last call.
    int64_t take() {
        const int64_t seen = std::count(found_.begin(), found_.end(), true);
        std::fill(found_.begin(), found_.end(), false);
        return seen;
    }

private:
    const std::vector<std::string> &words_;
    std::vector<bool> found_;
    std::array<bool, 256> begins_{};
    size_t longest_ = 0;
};

class Counter {
public:
    Counter(const Classes &kinds, const std::vector<std::string> &stop_words) : kinds_(kinds), stop_words_(stop_words) {}

    Counts count(std::string_view text) {
        Counts counts;
        count_lines(text, counts);
        count_words(text, counts);
        count_grams(counts);
        return counts;
    }

private:
    struct Gram {
        uint32_t at;
        uint32_t slot;  // in `repeated_`
    };

    void count_lines(std::string_view text, Counts &counts) {
        counts.newlines = std::count(text.begin(), text.end(), '\n');
        counts.hashes = std::count(text.begin(), text.end(), '#');
        counts.ellipses = count_copies(text, "...") + count_copies(text, "…");
        lines_.reset(size_t(counts.newlines) + 1);
        paragraphs_.reset(size_t(counts.newlines) + 1);
        uint64_t paragraph = 0;
        int64_t paragraph_characters = 0;
        const auto end_paragraph = [&] {
            if (paragraph_characters == 0) return;
            ++counts.paragraphs;
            if (!paragraphs_.add(paragraph)) {
                ++counts.duplicate_paragraphs;
                counts.duplicate_paragraph_characters += paragraph_characters;
            }
            paragraph = 0;
            paragraph_characters = 0;
        };
        counts.characters = counts.newlines;
        for_each_line(text, [&](std::string_view line) {
            ++counts.lines;
            const int64_t characters = count_characters(line);
            counts.characters += characters;
            const std::string_view filled = strip(line, kinds_);
            if (filled.empty()) return end_paragraph();
            ++counts.filled_lines;
            counts.bullet_lines += filled[0] == '-' || filled.starts_with("•");
            counts.ellipsis_lines += filled.ends_with("...") || filled.ends_with("…");
            counts.terminal_lines += (kinds_[last_character(filled)] & Classes::TERMINAL) != 0;
            counts.short_lines += characters <= SHORT_LINE;
            const uint64_t hash = hash_bytes(line);
            if (!lines_.add(hash)) {
                ++counts.duplicate_lines;
                counts.duplicate_line_characters += characters;
            }
            paragraph = chain(paragraph, hash);
            paragraph_characters += characters + (paragraph_characters != 0);
        });
        end_paragraph();
    }

    void count_words(std::string_view text, Counts &counts) {
        words_.clear();
        spaced_.clear();
        characters_.assign(1, 0);
        words_.reserve(text.size());  // memory is taken where it is written, so that this costs none
        spaced_.reserve(text.size());
        characters_.reserve(text.size() + 1);
        bool symbols = false;  // since the last white space, and nothing else
        scan_words(text, kinds_, Exactly{}, [&](const Word &word) {
            if (word.spaced || words_.empty()) {
                counts.lone_symbols += symbols;
                symbols = true;
            }
            symbols &= !word.plain;
            words_.push_back(word.hash);
            spaced_.push_back(word.spaced);
            characters_.push_back(characters_.back() + word.characters);
            counts.letter_words += word.letter;
            if (word.plain) {
                ++counts.plain_words;
                counts.plain_characters += word.characters;
                stop_words_.see(word.bytes);
            }
        });
        counts.lone_symbols += symbols;
        counts.words = int64_t(words_.size());
        counts.stop_words = stop_words_.take();
    }

    // An n-gram that is there twice is made of two (n−1)-grams that are, so few are left to count as n grows.
    void count_grams(Counts &counts) {
        const size_t words = words_.size();
        grams_.clear();
        grams_.reserve(words);
        repeated_.reset(words);
        for (size_t i = 0; i + 1 < words; ++i) {
            const uint32_t slot = repeated_.slot(chain(words_[i], words_[i + 1]));
            ++repeated_[slot];
            grams_.push_back({uint32_t(i), slot});
        }
        for (size_t n = TOP; n <= LONGEST && n <= words; ++n) {
            if (n < TOP + counts.top_grams.size()) counts.top_grams[n - TOP] = most_common(n);
            if (n >= DUPLICATE) counts.duplicate_grams[n - DUPLICATE] = duplicates(n);
            longer_.reset(grams_.size());
            size_t kept = 0;
            for (size_t k = 0; k + 1 < grams_.size(); ++k) {
                const Gram gram = grams_[k], next = grams_[k + 1];
                if (next.at != gram.at + 1 || repeated_[gram.slot] < 2 || repeated_[next.slot] < 2) continue;
                const uint32_t slot = longer_.slot(chain(repeated_.hash(gram.slot), words_[gram.at + n]));
                ++longer_[slot];
                grams_[kept++] = {gram.at, slot};
            }
            grams_.resize(kept);
            std::swap(repeated_, longer_);
        }
    }

    // Characters of all copies of the most common n-gram, the first of those that are equally common.
    int64_t most_common(size_t n) {
        uint32_t copies = 1, at = 0;
        for (const Gram &gram : grams_) {
            if (repeated_[gram.slot] > copies) {
                copies = repeated_[gram.slot];
                at = gram.at;
            }
        }
        int64_t characters = characters_[at + n] - characters_[at];
        for (size_t i = 1; i < n; ++i) characters += spaced_[at + i];
        return int64_t(copies) * characters;
    }

    // Characters of the n-grams that were there before, each word counted once.
    int64_t duplicates(size_t n) {
        int64_t characters = 0;
        size_t next = 0;
        seen_.assign(repeated_.size(), false);
        for (const Gram &gram : grams_) {
            if (gram.at < next) continue;
            if (!seen_[gram.slot]) {
                seen_[gram.slot] = true;
                continue;
            }
            characters += characters_[gram.at + n] - characters_[gram.at];
            next = gram.at + n;
        }
        return characters;
    }

    const Classes &kinds_;
    StopWords stop_words_;
    HashCounts lines_, paragraphs_, repeated_, longer_;
    std::vector<uint64_t> words_;
    std::vector<uint8_t> spaced_;       // whether white space goes before each word
    std::vector<uint32_t> characters_;  // before each word
    std::vector<Gram> grams_;
    std::vector<bool> seen_;
};

void count_texts(const TextPlaces &places, const ClassPlaces &classes, const std::vector<std::string> &stop_words,
                 uintptr_t counts) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    const Classes kinds(classes);
    Counter counter(kinds, stop_words);
    for (int64_t i = 0; i < texts.count; ++i) reinterpret_cast<Counts *>(counts)[i] = counter.count(texts[i]);
}

}  // namespace

void bind_counts(nb::module_ &m) { m.def("count_texts", &count_texts); }

}  // namespace tallow
