#include "compress.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <iterator>

#include "ops.h"

namespace tallow {
namespace {

constexpr int64_t kStep = 4 * kPanel;  // weights of four inputs
constexpr int kMostExceptions = 15;    // the last place says that no more follow
constexpr uint8_t kNoCode = 0xff;

// Fills in the commonest upper bytes, and for each its code.
void choose_common(const uint8_t *upper, int64_t count, uint8_t *common, uint8_t (&codes)[256]) {
    uint16_t counts[4][256] = {};  // of four, so that equal neighbours need not wait for each other
    for (int64_t i = 0; i < count; i += 4)
        for (int j = 0; j < 4; ++j) ++counts[j][upper[i + j]];
    uint32_t found[256];  // by how often, then which
    int size = 0;
    for (uint32_t byte = 0; byte < 256; ++byte)
        if (const uint32_t times = counts[0][byte] + counts[1][byte] + counts[2][byte] + counts[3][byte])
            found[size++] = times << 8 | byte;
    const int chosen = std::min(size, 16);
    std::partial_sort(found, found + chosen, found + size, std::greater<>());
    std::memset(codes, kNoCode, sizeof codes);
    for (int code = 0; code < chosen; ++code) codes[common[code] = uint8_t(found[code])] = uint8_t(code);
}

// Bytes of the weights of two inputs, in the order of join_bytes.
void split(const uint16_t *words, uint8_t *lower, uint8_t *upper) {
    uint8_t low[64], high[64];
    for (int i = 0; i < 64; ++i) low[i] = uint8_t(words[i]);
    for (int i = 0; i < 64; ++i) high[i] = uint8_t(words[i] >> 8);
    for (int from = 0; from < 64; from += 8) {
        const int at = from % 32 * 2 + from / 32 * 8;
        std::memcpy(lower + at, low + from, 8);
        std::memcpy(upper + at, high + from, 8);
    }
}

bool compress_block(const uint16_t *words, int64_t count, uint8_t *to) {
    UpperBytes header{};
    std::fill(std::begin(header.places), std::end(header.places), kNoPlace);
    uint8_t upper[kCompressedInputs * kPanel], codes[256];
    uint8_t *const steps = to + sizeof header;
    for (int64_t i = 0; i < count; i += kStep)
        for (int pair = 0; pair < 2; ++pair)
            split(words + i + 64 * pair, steps + i / kStep * kCompressedStep + 64 * (1 + pair), upper + i + 64 * pair);
    choose_common(upper, count, header.common, codes);
    uint8_t missing = 0;
    for (int64_t i = 0; i < count; i += kStep)
        for (int j = 0; j < 64; ++j) {
            const uint8_t first = codes[upper[i + j]], second = codes[upper[i + 64 + j]];
            missing |= first | second;
            steps[i / kStep * kCompressedStep + j] = uint8_t((first & 15) | second << 4);
        }
    int exceptions = 0;
    for (int64_t i = 0; missing == kNoCode && i < count; ++i) {
        if (codes[words[i] >> 8] != kNoCode) continue;
        if (exceptions == kMostExceptions) return false;
        header.places[exceptions] = uint16_t(i);
        header.others[exceptions++] = uint8_t(words[i] >> 8);
    }
    std::memcpy(to, &header, sizeof header);
    return true;
}

}  // namespace

bool compress_panel(const uint16_t *panel, int64_t inputs, uint8_t *to) {
    for (int64_t begin = 0; begin < inputs; begin += kCompressedInputs) {
        const int64_t some = std::min(inputs - begin, kCompressedInputs);
        if (!compress_block(panel + begin * kPanel, some * kPanel, to)) return false;
        to += sizeof(UpperBytes) + some / 4 * kCompressedStep;
    }
    return true;
}

}  // namespace tallow
