// Suffix arrays in linear time, whatever the text is.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

namespace tallow {

// Induced sorting (Nong, Zhang and Chan 2009, "Linear suffix array construction by almost pure induced-sorting"). The end
// of the text is smaller than any symbol. A suffix is smaller than the next one ("rising") or larger; the rising ones
// behind larger ones ("valleys"), at most every second, are sorted first, by names of what lies between two of them; if
// names are not unique, by the suffix array of the names. So it calls itself at most 30 times, each time for half.
template <class Symbol>
class SuffixSorter {
public:
    SuffixSorter(const Symbol *text, int32_t length, int32_t symbols) : text_(text), length_(length), ends_(size_t(symbols)), rising_(size_t(length)) {}

    // Where the suffixes begin, in their order.
    std::vector<int32_t> sort() {
        std::vector<int32_t> order(static_cast<size_t>(length_));
        if (length_ == 0) return order;
        for (int32_t at = 0; at < length_; ++at) ++ends_[size_t(text_[at])];
        for (size_t symbol = 1; symbol < ends_.size(); ++symbol) ends_[symbol] += ends_[symbol - 1];
        for (int32_t at = length_ - 2; at >= 0; --at) rising_[size_t(at)] = text_[at] < text_[at + 1] || (text_[at] == text_[at + 1] && rising_[size_t(at) + 1]);
        std::vector<int32_t> valleys;
        for (int32_t at = 1; at < length_; ++at) {
            if (is_valley(at)) valleys.push_back(at);
        }
        if (!valleys.empty()) {
            induce(valleys, order);
            sort_valleys(valleys, order);
        }
        induce(valleys, order);
        return order;
    }

private:
    bool is_valley(int32_t at) const { return at > 0 && rising_[size_t(at)] && !rising_[size_t(at) - 1]; }

    // The order of all suffixes from that of the valleys; or, if these are in no order, by what lies up to the next valley.
    void induce(const std::vector<int32_t> &valleys, std::vector<int32_t> &order) {
        std::fill(order.begin(), order.end(), -1);
        places_ = ends_;
        for (size_t i = valleys.size(); i-- > 0;) order[size_t(--places_[size_t(text_[valleys[i]])])] = valleys[i];
        places_[0] = 0;
        std::copy(ends_.begin(), ends_.end() - 1, places_.begin() + 1);
        const auto put_first = [&](int32_t at) { order[size_t(places_[size_t(text_[at])]++)] = at; };
        put_first(length_ - 1);
        for (int32_t i = 0; i < length_; ++i) {
            const int32_t at = order[size_t(i)] - 1;
            if (at >= 0 && !rising_[size_t(at)]) put_first(at);
        }
        places_ = ends_;
        for (int32_t i = length_ - 1; i >= 0; --i) {
            const int32_t at = order[size_t(i)] - 1;
            if (at >= 0 && rising_[size_t(at)]) order[size_t(--places_[size_t(text_[at])])] = at;
        }
    }

    // Puts the valleys in their order, given that by what lies up to the next one.
    void sort_valleys(std::vector<int32_t> &valleys, const std::vector<int32_t> &order) {
        std::vector<int32_t> number(size_t(length_) / 2 + 1);  // of the valley at a place; two are never neighbours
        for (size_t i = 0; i < valleys.size(); ++i) number[size_t(valleys[i]) / 2] = int32_t(i);
        std::vector<int32_t> names(valleys.size());
        int32_t name = -1, before = -1;
        for (const int32_t at : order) {
            if (!is_valley(at)) continue;
            const int32_t here = number[size_t(at) / 2];
            if (before < 0 || !same_up_to_next(valleys, size_t(before), size_t(here))) ++name;
            names[size_t(here)] = name;
            before = here;
        }
        std::vector<int32_t> sorted(valleys.size());
        if (size_t(name) + 1 == valleys.size()) {
            for (size_t i = 0; i < names.size(); ++i) sorted[size_t(names[i])] = valleys[i];
        } else {
            const std::vector<int32_t> of_names = SuffixSorter<int32_t>(names.data(), int32_t(names.size()), name + 1).sort();
            for (size_t i = 0; i < sorted.size(); ++i) sorted[i] = valleys[size_t(of_names[i])];
        }
        valleys = std::move(sorted);
    }

    // Whether the same lies between these valleys and the next ones, these included; the end of the text is like nothing.
    bool same_up_to_next(const std::vector<int32_t> &valleys, size_t one, size_t other) const {
        if (one + 1 == valleys.size() || other + 1 == valleys.size()) return false;
        const int32_t length = valleys[one + 1] - valleys[one];
        return length == valleys[other + 1] - valleys[other] && std::equal(text_ + valleys[one], text_ + valleys[one + 1] + 1, text_ + valleys[other]);
    }

    const Symbol *const text_;
    const int32_t length_;
    std::vector<int32_t> ends_, places_;  // of the suffixes that begin with each symbol
    std::vector<bool> rising_;
};

}  // namespace tallow
