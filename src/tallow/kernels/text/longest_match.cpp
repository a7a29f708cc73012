// Texts as the tokens of a vocabulary of byte strings, of which always the longest that fits is taken.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "encoded.h"
#include "hash.h"
#include "texts.h"

namespace nb = nanobind;

namespace tallow {
namespace {

// The beginnings of all tokens are the nodes of a trie, the empty one is number 0. Where a node goes with a byte is in
// a hash table, so that the trie takes some bytes a node and not some for each of 256 ways.
class Trie {
public:
    static constexpr uint32_t kNone = ~uint32_t(0);

    Trie(const Texts &tokens, const uint32_t *ids) : edges_(64, kFree), ids_(1, kNone) {
        for (int64_t i = 0; i < tokens.count; ++i) {
            uint32_t node = 0;
            for (const char byte : tokens[i]) node = add(node, uint8_t(byte));
            ids_[node] = ids[i];
        }
    }

    // The id of the longest token at the beginning of a text, and how long it is; kNone if there is none.
    std::pair<uint32_t, size_t> longest(const char *at, const char *end) const {
        std::pair<uint32_t, size_t> found(kNone, 0);
        uint32_t node = 0;
        for (const char *next = at; next != end;) {
            const Edge &edge = edges_[slot(node, uint8_t(*next++))];
            if (edge.key == kFree.key) break;
            node = edge.node;
            if (ids_[node] != kNone) found = {ids_[node], size_t(next - at)};
        }
        return found;
    }

private:
    struct Edge {
        uint64_t key;
        uint32_t node;
    };
    static constexpr Edge kFree{~uint64_t(0), 0};

    size_t slot(uint32_t node, uint8_t byte) const {
        const uint64_t key = uint64_t(node) << 8 | byte;
        size_t slot = slot_of(key, edges_.size());
        while (edges_[slot].key != key && edges_[slot].key != kFree.key) slot = (slot + 1) & (edges_.size() - 1);
        return slot;
    }

    uint32_t add(uint32_t node, uint8_t byte) {
        size_t place = slot(node, byte);
        if (edges_[place].key != kFree.key) return edges_[place].node;
        const auto made = uint32_t(ids_.size());
        edges_[place] = {uint64_t(node) << 8 | byte, made};
        ids_.push_back(kNone);
        if (2 * ids_.size() > edges_.size()) grow();
        return made;
    }

    void grow() {
        std::vector<Edge> old(2 * edges_.size(), kFree);
        old.swap(edges_);
        for (const Edge &edge : old)
            if (edge.key != kFree.key) edges_[slot(uint32_t(edge.key >> 8), uint8_t(edge.key))] = edge;
    }

    std::vector<Edge> edges_;
    std::vector<uint32_t> ids_;
};

class LongestMatch {
public:
    // Each byte must be a token. `stops`: what a text must not hold to be encoded here.
    LongestMatch(const TextPlaces &tokens, uintptr_t ids, std::vector<std::string> stops)
        : trie_(Texts(tokens), reinterpret_cast<const uint32_t *>(ids)), stops_(std::move(stops)) {}

    int64_t encode(const TextPlaces &places, int64_t end, uintptr_t tokens, uintptr_t lengths) const {
        nb::gil_scoped_release release;
        return encode_all(Texts(places), stops_, end, reinterpret_cast<uint32_t *>(tokens),
                          reinterpret_cast<int64_t *>(lengths), [&](std::string_view text, uint32_t *out) {
                              const char *const behind = text.data() + text.size();
                              for (const char *at = text.data(); at != behind;) {
                                  const auto [id, length] = trie_.longest(at, behind);
                                  *out++ = id;
                                  at += length;
                              }
                              return out;
                          });
    }

private:
    const Trie trie_;
    const std::vector<std::string> stops_;
};

}  // namespace

void bind_longest_match(nb::module_ &m) {
    nb::class_<LongestMatch>(m, "LongestMatch")
        .def(nb::init<const TextPlaces &, uintptr_t, std::vector<std::string>>())
        .def("encode", &LongestMatch::encode);
}

}  // namespace tallow
