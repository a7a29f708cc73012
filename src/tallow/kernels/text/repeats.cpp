// Windows of bytes that occur before, by suffix arrays; repeats.py says what these are.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/tuple.h>

#include <algorithm>
#include <cstring>
#include <numeric>
#include <vector>

#include "arrays.h"
#include "suffix_array.h"

namespace nb = nanobind;

namespace tallow {
namespace {

constexpr uint8_t BETWEEN = 0xFF;  // occurs in no UTF-8

class RepeatFinder {
public:
    std::vector<int64_t> ranges;  // piece, first window and the one behind the last, of each

    RepeatFinder(const uint8_t *bytes, const int64_t *offsets, const int32_t *documents, size_t window, bool within)
        : bytes_(bytes), offsets_(offsets), documents_(documents), window_(window), within_(within) {}

    // Of pieces from `begin` to `end`, which are in their order.
    void find(int64_t begin, int64_t end) {
        text_.clear();
        owners_.clear();
        for (int64_t piece = begin; piece < end; ++piece) {
            text_.insert(text_.end(), bytes_ + offsets_[piece], bytes_ + offsets_[piece + 1]);
            text_.push_back(BETWEEN);
            if (!within_) owners_.resize(text_.size(), documents_[piece]);
        }
        const int32_t length = int32_t(text_.size());
        const std::vector<int32_t> order = SuffixSorter<uint8_t>(text_.data(), length, 256).sort();
        find_joined(order);
        repeated_.assign(text_.size(), false);
        for (size_t first = 0, behind; first < order.size(); first = behind) {
            for (behind = first + 1; behind < order.size() && joined_[size_t(order[behind])]; ++behind) {}
            if (behind == first + 1) continue;
            const int32_t earliest = *std::min_element(order.begin() + ptrdiff_t(first), order.begin() + ptrdiff_t(behind));
            for (size_t i = first; i < behind; ++i) {
                const size_t at = size_t(order[i]);
                repeated_[at] = within_ ? order[i] != earliest : owners_[at] != owners_[size_t(earliest)];
            }
        }
        size_t at = 0;
        for (int64_t piece = begin; piece < end; ++piece) {
            const size_t size = size_t(offsets_[piece + 1] - offsets_[piece]);
            const size_t windows = size < window_ ? 0 : size - window_ + 1;
            for (size_t i = 0; i < windows; ++i) {
                if (!repeated_[at + i]) continue;
                const size_t from = i;
                while (i < windows && repeated_[at + i]) ++i;
                ranges.insert(ranges.end(), {piece, int64_t(from), int64_t(i)});
            }
            at += size + 1;
        }
    }

private:
    // Whether a suffix has a window in common with the one before it in the order (Kärkkäinen, Manzini and Puglisi 2009,
    // "Permuted longest-common-prefix array"): what is common with the suffix of the place before, but for its first byte,
    // is common here too, so no byte is looked at more than twice.
    void find_joined(const std::vector<int32_t> &order) {
        before_.assign(order.size(), -1);
        for (size_t i = 1; i < order.size(); ++i) before_[size_t(order[i])] = order[i - 1];
        joined_.assign(order.size(), false);
        size_t common = 0;
        for (size_t at = 0; at < order.size(); ++at) {
            if (before_[at] < 0) {
                common = 0;
                continue;
            }
            const size_t other = size_t(before_[at]), most = std::min(window_, order.size() - std::max(at, other));
            while (common < most && text_[at + common] == text_[other + common]) ++common;
            joined_[at] = common == window_;
            if (common > 0) --common;
        }
    }

    const uint8_t *const bytes_;
    const int64_t *const offsets_;
    const int32_t *const documents_;
    const size_t window_;
    const bool within_;
    std::vector<uint8_t> text_;
    std::vector<int32_t> owners_, before_;
    std::vector<bool> joined_, repeated_;
};

Array<int64_t> find_repeats(uintptr_t bytes, uintptr_t offsets, uintptr_t documents, uintptr_t groups, int64_t count, size_t window, bool within) {
    RepeatFinder finder(reinterpret_cast<const uint8_t *>(bytes), reinterpret_cast<const int64_t *>(offsets), reinterpret_cast<const int32_t *>(documents), window, within);
    {
        nb::gil_scoped_release release;
        const int64_t *const bounds = reinterpret_cast<const int64_t *>(groups);
        for (int64_t group = 0; group < count; ++group) finder.find(bounds[group], bounds[group + 1]);
    }
    return as_array(std::move(finder.ranges));
}

Array<int32_t> sort_suffixes(const nb::bytes &text) {
    std::vector<int32_t> order;
    {
        nb::gil_scoped_release release;
        order = SuffixSorter<uint8_t>(reinterpret_cast<const uint8_t *>(text.c_str()), int32_t(text.size()), 256).sort();
    }
    return as_array(std::move(order));
}

}  // namespace

void bind_repeats(nb::module_ &m) {
    m.def("find_repeats", &find_repeats);
    m.def("sort_suffixes", &sort_suffixes);
}

}  // namespace tallow
