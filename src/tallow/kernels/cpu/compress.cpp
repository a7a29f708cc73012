#include "compress.h"

#include <algorithm>
#include <cstring>

#include "ops.h"

namespace tallow {
namespace {

constexpr int64_t kStep = 4 * kPanel;  // weights of four inputs
constexpr int kMostExceptions = 15;    // the last place says that no more follow
constexpr uint8_t kNoCode = 0xff;

// Fills in the commonest upper bytes, and for each its code.
void choose_common(const uint16_t *words, int64_t count, uint8_t *common, uint8_t (&codes)[256]) {
    uint16_t counts[4][256] = {};  // of four, so that equal neighbours need not wait for each other
    for (int64_t i = 0; i < count; ++i) ++counts[i % 4][words[i] >> 8];
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

// 64 weights of two inputs, as they are brought into the order of join_bytes.
void split(const uint16_t *words, const uint8_t (&codes_of)[256], uint8_t *lower, uint8_t *codes) {
    for (int four = 0; four < 4; ++four)
        for (int half = 0; half < 2; ++half)
            for (int i = 0; i < 8; ++i) {
                const uint16_t word = words[half * 32 + four * 8 + i];
                *lower++ = uint8_t(word);
                *codes++ = codes_of[word >> 8];
            }
}

bool compress_block(const uint16_t *words, int64_t count, uint8_t *to) {
    UpperBytes upper{};
    std::fill(std::begin(upper.places), std::end(upper.places), kNoPlace);
    uint8_t codes_of[256];
    choose_common(words, count, upper.common, codes_of);
    uint8_t *step = to + sizeof upper;
    uint8_t missing = 0;
    for (int64_t i = 0; i < count; i += kStep, step += 192) {
        uint8_t codes[2][64];
        for (int pair = 0; pair < 2; ++pair) split(words + i + 64 * pair, codes_of, step + 64 * (1 + pair), codes[pair]);
        for (int j = 0; j < 64; ++j) {
            missing |= codes[0][j] | codes[1][j];
            step[j] = uint8_t((codes[0][j] & 15) | codes[1][j] << 4);
        }
    }
    int exceptions = 0;
    for (int64_t i = 0; (missing & 0x80) && i < count; ++i) {
        if (codes_of[words[i] >> 8] != kNoCode) continue;
        if (exceptions == kMostExceptions) return false;
        upper.places[exceptions] = uint16_t(i);
        upper.others[exceptions++] = uint8_t(words[i] >> 8);
    }
    std::memcpy(to, &upper, sizeof upper);
    return true;
}

}  // namespace

bool compress_panel(const uint16_t *panel, int64_t inputs, uint8_t *to) {
    for (int64_t begin = 0; begin < inputs; begin += kCompressedInputs) {
        const int64_t some = std::min(inputs - begin, kCompressedInputs);
        if (!compress_block(panel + begin * kPanel, some * kPanel, to)) return false;
        to += sizeof(UpperBytes) + some * 48;
    }
    return true;
}

}  // namespace tallow
