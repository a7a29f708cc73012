// All ways to put counted words together from pieces, each of which has a probability: how often each piece is expected
// in them (forward-backward algorithm), and what would be lost without it (Kudo, arXiv 1804.10959, section 3.2).
#include <nanobind/nanobind.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "hash.h"

namespace nb = nanobind;

namespace tallow {
namespace {

constexpr int kLongest = 16;     // symbols of a piece
constexpr int kLengthBits = 5;   // of an edge, in which piece and length are
constexpr double kSmall = 0x1p-256;

// Pieces by their symbols.
class Trie {
public:
    Trie() : slots_(1 << 12), pieces_(1, -1) {}

    void add(const int32_t *symbols, int64_t length, int32_t piece) {
        int64_t node = 0;
        for (int64_t i = 0; i < length; ++i) {
            const uint64_t key = key_of(node, symbols[i]);
            size_t slot = find(key);
            if (!slots_[slot].key) {
                if (2 * pieces_.size() >= slots_.size()) {
                    grow();
                    slot = find(key);
                }
                slots_[slot] = {key, int32_t(pieces_.size())};
                pieces_.push_back(-1);
            }
            node = slots_[slot].node;
        }
        pieces_[size_t(node)] = piece;
    }
    // The node behind `node`; negative if there is none.
    int64_t next(int64_t node, int32_t symbol) const {
        const Slot &slot = slots_[find(key_of(node, symbol))];
        return slot.key ? slot.node : -1;
    }
    int32_t piece(int64_t node) const { return pieces_[size_t(node)]; }

private:
    struct Slot {
        uint64_t key = 0;
        int32_t node = 0;
    };

    // Never 0.
    static uint64_t key_of(int64_t node, int32_t symbol) { return uint64_t(node) << 32 | uint64_t(symbol + 1); }
    size_t find(uint64_t key) const {
        size_t slot = slot_of(key, slots_.size());
        while (slots_[slot].key && slots_[slot].key != key) slot = (slot + 1) & (slots_.size() - 1);
        return slot;
    }
    void grow() {
        std::vector<Slot> old(2 * slots_.size());
        old.swap(slots_);
        for (const Slot &slot : old)
            if (slot.key) slots_[find(slot.key)] = slot;
    }

    std::vector<Slot> slots_;
    std::vector<int32_t> pieces_;  // of each node; −1: none ends there
};

class Lattices {
public:
    // The words are those of `symbols` that end at `ends`, and occur so often; the caller keeps them. Piece i is
    // `lengths[i]` symbols from `places[i]` on. Each symbol is a piece.
    Lattices(uintptr_t symbols, uintptr_t ends, uintptr_t counts, int64_t words, uintptr_t places, uintptr_t lengths,
             int64_t pieces)
        : ends_(reinterpret_cast<const int64_t *>(ends)),
          counts_(reinterpret_cast<const int64_t *>(counts)),
          words_(words) {
        nb::gil_scoped_release release;
        const auto *symbol = reinterpret_cast<const int32_t *>(symbols);
        const auto *place = reinterpret_cast<const int64_t *>(places), *length = reinterpret_cast<const int64_t *>(lengths);
        Trie trie;
        for (int64_t i = 0; i < pieces; ++i) {
            trie.add(symbol + place[i], length[i], int32_t(i));
            pieces_.push_back({place[i], int32_t(length[i])});
        }
        begins_.push_back(0);
        for (int64_t word = 0, at = 0; word < words; ++word) {
            longest_word_ = std::max(longest_word_, size_t(ends_[word] - at));
            for (; at < ends_[word]; ++at) {
                const int64_t most = std::min<int64_t>(kLongest, ends_[word] - at);
                int64_t node = 0;
                for (int64_t i = 0; i < most && (node = trie.next(node, symbol[at + i])) >= 0; ++i)
                    if (const int32_t piece = trie.piece(node); piece >= 0)
                        edges_.push_back(uint32_t(piece) << kLengthBits | uint32_t(i + 1));
                begins_.push_back(edges_.size());
            }
        }
    }
    Lattices(const Lattices &) = delete;

    // The natural logarithm of the probability of all words; to `expected` how often each piece is in them.
    double expect(uintptr_t probabilities, uintptr_t expected) const {
        nb::gil_scoped_release release;
        const auto *probability = reinterpret_cast<const double *>(probabilities);
        auto *often = reinterpret_cast<double *>(expected);
        std::fill(often, often + pieces_.size(), 0.0);
        // Of each place in a word: the probability of what is before it, which is multiplied by 2^256 once more
        // whenever it gets too small; how often that was; the part of all ways that leads through it, divided by the
        // first.
        std::vector<double> before(longest_word_ + 1 + kLongest), behind(longest_word_ + 1);
        std::vector<int64_t> scales(longest_word_ + 1);
        double sum = 0;
        for (int64_t word = 0, begin = 0; word < words_; begin = ends_[word++]) {
            const auto length = size_t(ends_[word] - begin);
            std::fill(before.begin(), before.begin() + ptrdiff_t(length + 1), 0.0);
            before[0] = 1;
            int64_t scale = 0;
            for (size_t i = 0; i <= length; ++i) {
                if (before[i] < kSmall) {
                    for (size_t j = i; j < i + kLongest; ++j) before[j] /= kSmall;
                    ++scale;
                }
                scales[i] = scale;
                if (i == length) break;
                for (const uint32_t *edge = first(begin + int64_t(i)); edge != last(begin + int64_t(i)); ++edge)
                    before[i + length_of(*edge)] += before[i] * probability[piece_of(*edge)];
            }
            const auto count = double(counts_[word]);
            sum += count * (std::log(before[length]) + double(scale) * std::log(kSmall));
            behind[length] = 1 / before[length];
            for (size_t i = length; i-- > 0;) {
                double through = 0;
                for (const uint32_t *edge = first(begin + int64_t(i)); edge != last(begin + int64_t(i)); ++edge) {
                    const size_t end = i + length_of(*edge);
                    double rate = before[i];
                    for (int64_t k = scales[i]; k < scales[end]; ++k) rate /= kSmall;
                    rate *= probability[piece_of(*edge)] * behind[end];
                    often[piece_of(*edge)] += count * rate;
                    through += rate;
                }
                behind[i] = through / before[i];
            }
        }
        return sum;
    }

    // To `losses` what the words' logarithm of probability loses without a piece, if the best other way to put it
    // together takes its place wherever it is, so that its parts are there more often. Infinite for single symbols.
    void losses(uintptr_t probabilities, uintptr_t expected, uintptr_t losses) const {
        nb::gil_scoped_release release;
        const auto *probability = reinterpret_cast<const double *>(probabilities);
        const auto *often = reinterpret_cast<const double *>(expected);
        auto *loss = reinterpret_cast<double *>(losses);
        double total = 0;
        for (size_t i = 0; i < pieces_.size(); ++i) total += often[i];
        for (size_t i = 0; i < pieces_.size(); ++i) {
            const Piece &piece = pieces_[i];
            if (piece.length == 1 || often[i] <= 0) {
                loss[i] = piece.length == 1 ? HUGE_VAL : 0;
                continue;
            }
            double best[kLongest + 1] = {1};
            uint32_t by[kLongest + 1];
            for (int32_t at = 0; at < piece.length; ++at)
                for (const uint32_t *edge = first(piece.place + at); edge != last(piece.place + at); ++edge) {
                    const auto end = at + int32_t(length_of(*edge));
                    if (end > piece.length || piece_of(*edge) == i) continue;
                    if (const double here = best[at] * probability[piece_of(*edge)]; here > best[end])
                        best[end] = here, by[end] = *edge;
                }
            int64_t parts = 0;
            double instead = 0;
            for (int32_t at = piece.length; at > 0; at -= int32_t(length_of(by[at]))) {
                instead += std::log(often[piece_of(by[at])] + often[i]);
                ++parts;
            }
            instead -= double(parts) * std::log(total + often[i] * double(parts - 1));
            loss[i] = often[i] * (std::log(often[i]) - std::log(total) - instead);
        }
    }

    // Drop all pieces but those for which `kept` is not 0; these are numbered anew in their order.
    void keep(uintptr_t kept) {
        nb::gil_scoped_release release;
        const auto *is_kept = reinterpret_cast<const uint8_t *>(kept);
        std::vector<uint32_t> numbers(pieces_.size());
        uint32_t pieces = 0;
        for (size_t i = 0; i < pieces_.size(); ++i) {
            numbers[i] = pieces;
            if (is_kept[i]) pieces_[pieces++] = pieces_[i];
        }
        pieces_.resize(pieces);
        size_t edges = 0;
        for (size_t place = 0, edge = 0; place + 1 < begins_.size(); ++place) {
            for (; edge < begins_[place + 1]; ++edge)
                if (const uint32_t piece = piece_of(edges_[edge]); is_kept[piece])
                    edges_[edges++] = numbers[piece] << kLengthBits | length_of(edges_[edge]);
            begins_[place + 1] = edges;
        }
        edges_.resize(edges);
    }

private:
    struct Piece {
        int64_t place;
        int32_t length;
    };

    static uint32_t piece_of(uint32_t edge) { return edge >> kLengthBits; }
    static uint32_t length_of(uint32_t edge) { return edge & ((1u << kLengthBits) - 1); }
    const uint32_t *first(int64_t place) const { return edges_.data() + begins_[size_t(place)]; }
    const uint32_t *last(int64_t place) const { return edges_.data() + begins_[size_t(place) + 1]; }

    const int64_t *ends_, *counts_;
    int64_t words_;
    size_t longest_word_ = 0;
    std::vector<Piece> pieces_;
    std::vector<uint32_t> edges_;  // pieces that begin at a place, and their lengths; those of all places
    std::vector<size_t> begins_;   // of each place, and the end
};

}  // namespace

void bind_lattices(nb::module_ &m) {
    nb::class_<Lattices>(m, "Lattices")
        .def(nb::init<uintptr_t, uintptr_t, uintptr_t, int64_t, uintptr_t, uintptr_t, int64_t>())
        .def("expect", &Lattices::expect)
        .def("losses", &Lattices::losses)
        .def("keep", &Lattices::keep);
}

}  // namespace tallow
