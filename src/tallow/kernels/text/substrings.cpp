// Which strings of symbols occur most often in counted words, by their suffixes in order: those that have a beginning in
// common lie together, and how long the common beginnings of neighbours are tells all that there is to count.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "arrays.h"

namespace nb = nanobind;

namespace tallow {
namespace {

constexpr int kSymbolsAKey = 3;  // of 21 bits each: all of Unicode, and one for the end of a word

struct Suffix {
    uint64_t key;  // the symbols by which it is being put in order
    int64_t at;
};

struct Substring {
    int64_t at, length, count;
};

class Substrings {
public:
    Substrings(const int32_t *symbols, const int64_t *ends, const int64_t *counts, int64_t words, int64_t longest)
        : symbols_(symbols), ends_(ends), counts_(counts) {
        suffixes_.reserve(words ? size_t(ends[words - 1]) : 0);
        word_.reserve(suffixes_.capacity()), room_.reserve(suffixes_.capacity());
        for (int64_t word = 0, at = 0; word < words; ++word)
            for (; at < ends[word]; ++at) {
                suffixes_.push_back({0, at});
                word_.push_back(int32_t(word));
                room_.push_back(int32_t(std::min(longest, ends[word] - at)));
            }
        sort(suffixes_.begin(), suffixes_.end(), 0);
    }

    // At most `most` of those of two symbols and more that occur `min_count` times, the best first.
    std::vector<Substring> best(int64_t min_count, size_t most) const {
        struct Node {
            int64_t length, count;
        };
        std::vector<Substring> found;
        std::vector<Node> open;  // common beginnings of the last suffix and some before it, rising; the last is itself
        const auto close = [&](int64_t length, int64_t at) {  // those that are longer than that
            int64_t count = 0;
            for (; !open.empty() && open.back().length > length; open.pop_back()) {
                count = open.back().count += count;
                if (open.back().length > 1 && count >= min_count) found.push_back({at, open.back().length, count});
            }
            if (!count || !length) return;
            if (!open.empty() && open.back().length == length)
                open.back().count += count;
            else
                open.push_back({length, count});
        };
        for (size_t i = 0; i < suffixes_.size(); ++i) {
            const int64_t at = suffixes_[i].at, length = room_[size_t(at)];
            if (i) close(common(suffixes_[i - 1].at, at), suffixes_[i - 1].at);
            const int64_t count = counts_[word_[size_t(at)]];
            if (!open.empty() && open.back().length == length)
                open.back().count += count;
            else
                open.push_back({length, count});
            if (found.size() >= 2 * most + 1024) keep(found, most);
        }
        if (!suffixes_.empty()) close(0, suffixes_.back().at);
        keep(found, most);
        std::sort(found.begin(), found.end(), [this](const Substring &a, const Substring &b) { return goes_before(a, b); });
        return found;
    }

private:
    // Put suffixes in order that are the same up to `depth`.
    void sort(std::vector<Suffix>::iterator begin, std::vector<Suffix>::iterator end, int depth) {
        for (auto suffix = begin; suffix != end; ++suffix) {
            suffix->key = 0;
            for (int i = depth; i < depth + kSymbolsAKey; ++i)
                suffix->key = suffix->key << 21 | uint64_t(i < room_[size_t(suffix->at)] ? symbols_[suffix->at + i] + 1 : 0);
        }
        std::sort(begin, end, [](const Suffix &a, const Suffix &b) { return a.key < b.key; });
        for (auto first = begin, last = first; first != end; first = last) {
            while (last != end && last->key == first->key) ++last;
            // behind an end of the word there is nothing more
            if (last - first > 1 && first->key & 0x1FFFFF) sort(first, last, depth + kSymbolsAKey);
        }
    }

    int64_t common(int64_t a, int64_t b) const {
        const int64_t most = std::min(room_[size_t(a)], room_[size_t(b)]);
        int64_t length = 0;
        while (length < most && symbols_[a + length] == symbols_[b + length]) ++length;
        return length;
    }

    // By symbols that they cover in all occurrences, then by themselves.
    bool goes_before(const Substring &a, const Substring &b) const {
        const auto covered = [](const Substring &some) {
            return static_cast<unsigned __int128>(some.count) * uint64_t(some.length);
        };
        if (covered(a) != covered(b)) return covered(a) > covered(b);
        return std::lexicographical_compare(symbols_ + a.at, symbols_ + a.at + a.length, symbols_ + b.at,
                                            symbols_ + b.at + b.length);
    }
    void keep(std::vector<Substring> &found, size_t most) const {
        if (found.size() <= most) return;
        const auto better = [this](const Substring &a, const Substring &b) { return goes_before(a, b); };
        std::nth_element(found.begin(), found.begin() + ptrdiff_t(most), found.end(), better);
        found.resize(most);
    }

    const int32_t *symbols_;
    const int64_t *ends_, *counts_;
    std::vector<Suffix> suffixes_;
    std::vector<int32_t> word_, room_;  // of each place: its word, how many symbols are looked at from there on
};

// `symbols` of all words lie one after another; word i ends before `ends[i]` and occurs `counts[i]` times. Of each
// substring a place where it is, its length and how often it occurs, one after another.
Array<int64_t> best_substrings(uintptr_t symbols, uintptr_t ends, uintptr_t counts, int64_t words,
                               int64_t longest, int64_t min_count, int64_t most) {
    std::vector<int64_t> found;
    {
        nb::gil_scoped_release release;
        const Substrings substrings(reinterpret_cast<const int32_t *>(symbols), reinterpret_cast<const int64_t *>(ends),
                                    reinterpret_cast<const int64_t *>(counts), words, longest);
        for (const Substring &some : substrings.best(min_count, size_t(most)))
            found.insert(found.end(), {some.at, some.length, some.count});
    }
    return as_array(std::move(found));
}

}  // namespace

void bind_substrings(nb::module_ &m) { m.def("best_substrings", &best_substrings); }

}  // namespace tallow
