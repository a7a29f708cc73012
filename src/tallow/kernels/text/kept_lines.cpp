// Texts without the lines that C4's rules drop; kept_lines.py says which.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <string>
#include <vector>

#include "classes.h"
#include "lines.h"
#include "texts.h"
#include "utf8.h"

namespace nb = nanobind;

namespace tallow {
namespace {

// In the order of `LINE_COUNTS`.
struct LineCounts {
    int64_t lines = 0, long_word = 0, no_end = 0, few_words = 0, javascript = 0, policy = 0;
    int64_t lorem_ipsum = 0, bracket = 0, citations = 0, sentences = 0;
};

// (phrase in small ASCII letters, its kind)
using Phrases = std::vector<std::tuple<std::string, int>>;
enum PhraseKind { LOREM_IPSUM = 1, JAVASCRIPT = 2, POLICY = 4 };

constexpr std::array<std::string_view, 2> CITATIONS = {"[edit]", "[citation needed]"};

char small(char byte) { return byte >= 'A' && byte <= 'Z' ? char(byte + 32) : byte; }

// Looks for phrases by the rarest letter of each.
class PhraseFinder {
public:
    explicit PhraseFinder(const Phrases &phrases) {
        const std::string_view common = "zxqjkgbvpywfmcuidrhsnliaote ";  // rarest first
        for (const auto &[phrase, kind] : phrases) {
            if (phrase.empty()) continue;
            const auto rarity = [&](char byte) { return common.find(byte) == common.npos ? 0 : common.find(byte); };
            const auto anchor = std::min_element(phrase.begin(), phrase.end(),
                                                 [&](char one, char other) { return rarity(one) < rarity(other); });
            phrases_.push_back({phrase, size_t(anchor - phrase.begin()), kind});
            anchors_[uint8_t(*anchor)] = true;
        }
    }

    int kinds_in(std::string_view line) const {
        int found = 0;
        for (size_t at = 0; at < line.size(); ++at) {
            const char letter = small(line[at]);
            if (!anchors_[uint8_t(letter)]) continue;
            for (const Phrase &phrase : phrases_) {
                if (phrase.text[phrase.anchor] == letter && at >= phrase.anchor && is_at(line, at - phrase.anchor, phrase.text))
                    found |= phrase.kind;
            }
        }
        return found;
    }

private:
    struct Phrase {
        std::string text;
        size_t anchor;
        int kind;
    };

    static bool is_at(std::string_view line, size_t at, const std::string &phrase) {
        if (line.size() - at < phrase.size()) return false;
        return std::equal(phrase.begin(), phrase.end(), line.begin() + ptrdiff_t(at),
                          [](char wanted, char byte) { return wanted == small(byte); });
    }

    std::vector<Phrase> phrases_;
    std::array<bool, 256> anchors_{};
};

// The length of the citation that begins here, 0 if none does.
size_t citation(std::string_view text) {
    for (const std::string_view mark : CITATIONS) {
        if (text.starts_with(mark)) return mark.size();
    }
    size_t at = 1;
    while (at < text.size() && text[at] >= '0' && text[at] <= '9') ++at;
    return at < text.size() && text[at] == ']' ? at + 1 : 0;
}

// Appends a line without its citations to `kept`; how many there were.
int64_t remove_citations(std::string_view line, std::string &kept) {
    int64_t removed = 0;
    while (true) {
        const size_t bracket = line.find('[');
        kept.append(line.substr(0, bracket));
        if (bracket == line.npos) return removed;
        line.remove_prefix(bracket);
        size_t length = citation(line);
        if (length == 0) {
            length = 1;
            while (length < line.size() && line[length] >= '0' && line[length] <= '9') ++length;
            kept.append(line.substr(0, length));
        } else {
            ++removed;
        }
        line.remove_prefix(length);
    }
}

// How many words and the most characters of one, where white space and letters of scripts without spaces part them.
std::pair<int64_t, int64_t> pieces(std::string_view line, const Classes &kinds) {
    int64_t words = 0, longest = 0, length = 0;
    const char *at = line.data();
    while (at < line.data() + line.size()) {
        const uint8_t kind = kinds[next_character(at)];
        if (kind & (Classes::SPACE | Classes::ALONE)) {
            words += (kind & Classes::ALONE) != 0;
            length = 0;
        } else {
            words += length == 0;
            longest = std::max(longest, ++length);
        }
    }
    return {words, longest};
}

int64_t count_sentences(std::string_view line, const Classes &kinds) {
    constexpr char32_t wide = 0x3000;  // ends of sentences from here on need no space behind them
    int64_t sentences = 0;
    bool open = false;
    const char *at = line.data();
    const char *const end = at + line.size();
    while (at < end) {
        char32_t character = next_character(at);
        if (!(kinds[character] & Classes::TERMINAL)) {
            open |= (kinds[character] & Classes::WORD) != 0;
            continue;
        }
        bool ends = character >= wide;
        const char *behind = at;
        while (behind < end) {
            character = next_character(behind);
            if (!(kinds[character] & (Classes::TERMINAL | Classes::CLOSER))) break;
            if (kinds[character] & Classes::TERMINAL) ends |= character >= wide;
            at = behind;
        }
        bool spaced = false;
        for (behind = at; behind < end;) {
            const char *const begin = behind;
            character = next_character(behind);
            if (!(kinds[character] & Classes::SPACE)) {
                ends |= spaced && !(kinds[character] & Classes::LOWER);
                behind = begin;
                break;
            }
            spaced = true;
        }
        if (open && (ends || behind == end)) {
            ++sentences;
            open = false;
        }
        at = behind;
    }
    return sentences + open;
}

struct Rules {
    int64_t min_words, max_word_length;
    bool sentence_end, citations;
    const std::string &quotes;  // what may end a line beside the end of a sentence
};

class LineKeeper {
public:
    LineKeeper(const Rules &rules, const PhraseFinder &phrases, const Classes &kinds)
        : rules_(rules), phrases_(phrases), kinds_(kinds) {}

    // Writes what is kept of a text to `out` and returns behind it.
    char *keep(std::string_view text, char *out, LineCounts &counts) {
        bool first = true;
        for_each_line(text, [&](std::string_view whole) {
            std::string_view line = strip(whole, kinds_);
            if (line.empty()) return;
            ++counts.lines;
            if (rules_.citations && line.find('[') != line.npos) {
                without_.clear();
                counts.citations += remove_citations(line, without_);
                line = strip(without_, kinds_);
            }
            if (!stays(line, counts)) return;
            counts.sentences += count_sentences(line, kinds_);
            if (!first) *out++ = '\n';
            first = false;
            out = std::copy(line.begin(), line.end(), out);
        });
        return out;
    }

private:
    bool stays(std::string_view line, LineCounts &counts) const {
        const auto [words, longest] = pieces(line, kinds_);
        if (longest > rules_.max_word_length) return ++counts.long_word, false;
        if (rules_.sentence_end && !has_end(line)) return ++counts.no_end, false;
        if (words < rules_.min_words || words == 0) return ++counts.few_words, false;
        const int found = phrases_.kinds_in(line);
        counts.lorem_ipsum += (found & LOREM_IPSUM) != 0;
        if (found & JAVASCRIPT) return ++counts.javascript, false;
        counts.bracket += line.find('{') != line.npos;
        if (found & POLICY) return ++counts.policy, false;
        return true;
    }

    bool has_end(std::string_view line) const {
        if (line.empty() || line.ends_with("...")) return false;
        const char *const last = last_place(line);
        const std::string_view bytes(last, size_t(line.data() + line.size() - last));
        return kinds_[last_character(line)] & Classes::TERMINAL || rules_.quotes.find(bytes) != std::string::npos;
    }

    Rules rules_;
    const PhraseFinder &phrases_;
    const Classes &kinds_;
    std::string without_;
};

// `out` has room for all bytes of the texts, `offsets` for one more than there are texts.
void keep_lines(const TextPlaces &places, const ClassPlaces &classes, int64_t min_words, int64_t max_word_length, bool sentence_end,
                bool citations, const std::string &quotes, const Phrases &phrases, uintptr_t out, uintptr_t offsets, uintptr_t counts) {
    nb::gil_scoped_release release;
    const Texts texts(places);
    const Classes kinds(classes);
    const PhraseFinder finder(phrases);
    LineKeeper keeper({min_words, max_word_length, sentence_end, citations, quotes}, finder, kinds);
    char *const begin = reinterpret_cast<char *>(out);
    char *at = begin;
    for (int64_t i = 0; i < texts.count; ++i) {
        reinterpret_cast<int32_t *>(offsets)[i] = int32_t(at - begin);
        LineCounts counted;
        at = keeper.keep(texts[i], at, counted);
        reinterpret_cast<LineCounts *>(counts)[i] = counted;
    }
    reinterpret_cast<int32_t *>(offsets)[texts.count] = int32_t(at - begin);
}

}  // namespace

void bind_kept_lines(nb::module_ &m) { m.def("keep_lines", &keep_lines); }

}  // namespace tallow
