// Texts as the tokens of a byte-level BPE vocabulary.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <array>
#include <cstring>
#include <iterator>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "encoded.h"
#include "hash.h"
#include "merge_table.h"
#include "pieces.h"
#include "split_classes.h"
#include "texts.h"

namespace nb = nanobind;

namespace tallow {
namespace {

// What each character there can be is to the rules for splitting.
const uint8_t *split_properties() {
    static const std::vector<uint8_t> table = [] {
        constexpr uint8_t kProperties[] = {0, kLetter | kCapital, kLetter | kSmall, kLetter, kMark, kNumber, kWhite};
        std::vector<uint8_t> properties(0x110000);
        for (size_t i = 0; i < std::size(kClassStarts); ++i) {
            const size_t first = kClassStarts[i] >> 3;
            const size_t end = i + 1 < std::size(kClassStarts) ? kClassStarts[i + 1] >> 3 : properties.size();
            std::memset(properties.data() + first, kProperties[kClassStarts[i] & 7], end - first);
        }
        return properties;
    }();
    return table.data();
}

// The tokens of pieces that have come before: one slot a hash, which the next piece with that hash takes over.
class PieceCache {
public:
    static constexpr size_t kBytes = 30, kTokens = 8;

    struct alignas(64) Slot {
        uint8_t bytes, tokens;
        char text[kBytes];
        uint32_t ids[kTokens];
    };

    PieceCache() : slots_(kSlots) {}

    // Where a piece of 1 to kBytes bytes is, or belongs.
    Slot &operator[](std::string_view piece) { return slots_[hash_bytes(piece) >> (64 - kLogSlots)]; }

    static bool holds(const Slot &slot, std::string_view piece) {
        return slot.bytes == piece.size() && std::memcmp(slot.text, piece.data(), piece.size()) == 0;
    }

private:
    static constexpr int kLogSlots = 16;
    static constexpr size_t kSlots = size_t(1) << kLogSlots;
    std::vector<Slot> slots_;
};

class BpeEncoder {
public:
    // `alphabet`: 256 symbols, one a byte. `left`, `right`, `merged`: addresses of merges by rank. `ids`: of the
    // token of each symbol. `whole`: texts of the tokens that stand for a piece as they are, before any merge, with
    // their `symbols`. `stops`: what a text must not hold to be encoded here.
    BpeEncoder(const std::tuple<int, bool, bool> &rule, uintptr_t alphabet, uintptr_t left, uintptr_t right,
               uintptr_t merged, int64_t merges, uintptr_t ids, int64_t symbols, const TextPlaces &whole,
               uintptr_t whole_symbols, std::vector<std::string> stops)
        : splitter_(split_properties(), {std::get<0>(rule), std::get<1>(rule), std::get<2>(rule)}),
          merges_(at<int32_t>(left), at<int32_t>(right), at<int32_t>(merged), merges),
          ids_(at<uint32_t>(ids), at<uint32_t>(ids) + symbols),
          stops_(std::move(stops)) {
        std::memcpy(alphabet_.data(), at<int32_t>(alphabet), sizeof alphabet_);
        const Texts texts(whole);
        for (int64_t i = 0; i < texts.count; ++i) whole_.emplace(texts[i], at<int32_t>(whole_symbols)[i]);
    }
    BpeEncoder(const BpeEncoder &) = delete;

    int64_t encode(const TextPlaces &places, int64_t end, uintptr_t tokens, uintptr_t lengths) {
        nb::gil_scoped_release release;
        Worker worker = take();
        const int64_t count =
            encode_all(Texts(places), stops_, end, at<uint32_t>(tokens), at<int64_t>(lengths),
                       [&](std::string_view text, uint32_t *out) { return encode_text(text, out, worker); });
        give_back(std::move(worker));
        return count;
    }

private:
    // What one thread works with. It is kept for the next one.
    struct Worker {
        std::unique_ptr<PieceCache> cache;
        std::vector<int32_t> symbols;
        std::vector<Merged> pairs;
    };

    template <typename Value>
    static Value *at(uintptr_t address) {
        return reinterpret_cast<Value *>(address);
    }

    uint32_t *encode_text(std::string_view text, uint32_t *out, Worker &worker) const {
        const char *const end = text.data() + text.size();
        for (const char *from = text.data(); from != end;) {
            const char *const next = splitter_.end_of_piece(from, end);
            out = encode_piece({from, size_t(next - from)}, out, worker);
            from = next;
        }
        return out;
    }

    uint32_t *encode_piece(std::string_view piece, uint32_t *out, Worker &worker) const {
        if (piece.size() > PieceCache::kBytes) return merge(piece, out, worker);
        PieceCache::Slot &slot = (*worker.cache)[piece];
        if (PieceCache::holds(slot, piece)) {
            for (size_t i = 0; i < slot.tokens; ++i) out[i] = slot.ids[i];
            return out + slot.tokens;
        }
        uint32_t *const behind = merge(piece, out, worker);
        if (behind - out <= ptrdiff_t(PieceCache::kTokens)) {
            slot.bytes = uint8_t(piece.size()), slot.tokens = uint8_t(behind - out);
            std::memcpy(slot.text, piece.data(), piece.size());
            std::memcpy(slot.ids, out, sizeof(uint32_t) * slot.tokens);
        }
        return behind;
    }

    uint32_t *merge(std::string_view piece, uint32_t *out, Worker &worker) const {
        if (!whole_.empty())
            if (const auto found = whole_.find(std::string(piece)); found != whole_.end()) {
                *out = ids_[size_t(found->second)];
                return out + 1;
            }
        worker.symbols.clear();
        for (const char byte : piece) worker.symbols.push_back(alphabet_[uint8_t(byte)]);
        merges_.apply(worker.symbols, worker.pairs);
        for (const int32_t symbol : worker.symbols) *out++ = ids_[size_t(symbol)];
        return out;
    }

    Worker take() {
        const std::lock_guard lock(mutex_);
        if (idle_.empty()) return {std::make_unique<PieceCache>(), {}, {}};
        Worker worker = std::move(idle_.back());
        idle_.pop_back();
        return worker;
    }

    void give_back(Worker worker) {
        const std::lock_guard lock(mutex_);
        idle_.push_back(std::move(worker));
    }

    const Splitter splitter_;
    const MergeTable merges_;
    const std::vector<uint32_t> ids_;
    const std::vector<std::string> stops_;
    std::array<int32_t, 256> alphabet_;
    std::unordered_map<std::string, int32_t> whole_;
    std::mutex mutex_;
    std::vector<Worker> idle_;
};

}  // namespace

void bind_bpe(nb::module_ &m) {
    nb::class_<BpeEncoder>(m, "BpeEncoder")
        .def(nb::init<const std::tuple<int, bool, bool> &, uintptr_t, uintptr_t, uintptr_t, uintptr_t, int64_t,
                      uintptr_t, int64_t, const TextPlaces &, uintptr_t, std::vector<std::string>>())
        .def("encode", &BpeEncoder::encode);
}

}  // namespace tallow
