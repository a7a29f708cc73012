#include "blocks.h"

#include <cstring>

namespace tallow {
namespace {
#include "numbers.h"

inline float half_at(const uint8_t *bytes) {
    uint16_t half;
    std::memcpy(&half, bytes, sizeof half);
    return from_half(half);
}

// Blocks of 32: the elements' low bits are 16 bytes, the first 16 elements in the low halves; fifth bits are a word.

TALLOW_CLONES void unpack_q4_0(const uint8_t *__restrict block, float *__restrict out) {
    const float scale = half_at(block);
    for (int i = 0; i < 16; ++i) {
        const uint8_t both = block[2 + i];
        out[i] = scale * float((both & 15) - 8);
        out[i + 16] = scale * float((both >> 4) - 8);
    }
}

TALLOW_CLONES void unpack_q4_1(const uint8_t *__restrict block, float *__restrict out) {
    const float scale = half_at(block), least = half_at(block + 2);
    for (int i = 0; i < 16; ++i) {
        const uint8_t both = block[4 + i];
        out[i] = scale * float(both & 15) + least;
        out[i + 16] = scale * float(both >> 4) + least;
    }
}

inline void unpack_5_bits(const uint8_t *fifth_bits, const uint8_t *low_bits, int *codes) {
    uint32_t fifth;
    std::memcpy(&fifth, fifth_bits, sizeof fifth);
    for (int i = 0; i < 16; ++i) {
        codes[i] = (low_bits[i] & 15) | int(fifth >> i & 1) << 4;
        codes[i + 16] = low_bits[i] >> 4 | int(fifth >> (i + 16) & 1) << 4;
    }
}

TALLOW_CLONES void unpack_q5_0(const uint8_t *__restrict block, float *__restrict out) {
    const float scale = half_at(block);
    int codes[32];
    unpack_5_bits(block + 2, block + 6, codes);
    for (int i = 0; i < 32; ++i) out[i] = scale * float(codes[i] - 16);
}

TALLOW_CLONES void unpack_q5_1(const uint8_t *__restrict block, float *__restrict out) {
    const float scale = half_at(block), least = half_at(block + 2);
    int codes[32];
    unpack_5_bits(block + 4, block + 8, codes);
    for (int i = 0; i < 32; ++i) out[i] = scale * float(codes[i]) + least;
}

TALLOW_CLONES void unpack_q8_0(const uint8_t *__restrict block, float *__restrict out) {
    const float scale = half_at(block);
    for (int i = 0; i < 32; ++i) out[i] = scale * float(int8_t(block[2 + i]));
}

// Blocks of 256 in groups that share a 6-bit (Q6_K: 8-bit) scale of scales.

// Scale and offset of each of the eight groups of Q4_K and Q5_K: of the later four, the low bits lie in the last
// four bytes and the high bits above the first four groups' own.
inline void unpack_group_scales(const uint8_t *packed, float scale, float least, float *scales, float *offsets) {
    for (int g = 0; g < 4; ++g) {
        scales[g] = scale * float(packed[g] & 63);
        offsets[g] = least * float(packed[g + 4] & 63);
        scales[g + 4] = scale * float((packed[g + 8] & 15) | (packed[g] >> 2 & 48));
        offsets[g + 4] = least * float(packed[g + 8] >> 4 | (packed[g + 4] >> 2 & 48));
    }
}

TALLOW_CLONES void unpack_q4_k(const uint8_t *__restrict block, float *__restrict out) {
    float scales[8], offsets[8];
    unpack_group_scales(block + 4, half_at(block), half_at(block + 2), scales, offsets);
    const uint8_t *codes = block + 16;
    for (int g = 0; g < 8; g += 2, codes += 32, out += 64)
        for (int i = 0; i < 32; ++i) {
            out[i] = scales[g] * float(codes[i] & 15) - offsets[g];
            out[i + 32] = scales[g + 1] * float(codes[i] >> 4) - offsets[g + 1];
        }
}

TALLOW_CLONES void unpack_q5_k(const uint8_t *__restrict block, float *__restrict out) {
    float scales[8], offsets[8];
    unpack_group_scales(block + 4, half_at(block), half_at(block + 2), scales, offsets);
    const uint8_t *fifth = block + 16, *codes = block + 48;
    for (int g = 0; g < 8; g += 2, codes += 32, out += 64)
        for (int i = 0; i < 32; ++i) {
            out[i] = scales[g] * float((codes[i] & 15) | (fifth[i] >> g & 1) << 4) - offsets[g];
            out[i + 32] = scales[g + 1] * float(codes[i] >> 4 | (fifth[i] >> (g + 1) & 1) << 4) - offsets[g + 1];
        }
}

TALLOW_CLONES void unpack_q6_k(const uint8_t *__restrict block, float *__restrict out) {
    const uint8_t *low = block, *high = block + 128, *scales = block + 192;
    const float scale = half_at(block + 208);
    for (int part = 0; part < 2; ++part, low += 64, high += 32, scales += 8, out += 128)
        for (int quarter = 0; quarter < 4; ++quarter)
            for (int i = 0; i < 32; ++i) {
                const int low_bits = low[quarter % 2 * 32 + i] >> (quarter / 2 * 4) & 15;
                const int code = (low_bits | (high[i] >> (2 * quarter) & 3) << 4) - 32;
                out[quarter * 32 + i] = scale * float(int8_t(scales[quarter * 2 + i / 16])) * float(code);
            }
}

}  // namespace

const BlockFormat *block_format(int type) {
    static constexpr BlockFormat q4_0{32, 18, unpack_q4_0}, q4_1{32, 20, unpack_q4_1}, q5_0{32, 22, unpack_q5_0},
        q5_1{32, 24, unpack_q5_1}, q8_0{32, 34, unpack_q8_0}, q4_k{256, 144, unpack_q4_k}, q5_k{256, 176, unpack_q5_k},
        q6_k{256, 210, unpack_q6_k};
    switch (type) {
        case kQ4_0: return &q4_0;
        case 3: return &q4_1;
        case 6: return &q5_0;
        case 7: return &q5_1;
        case 8: return &q8_0;
        case 12: return &q4_k;
        case 13: return &q5_k;
        case 14: return &q6_k;
    }
    return nullptr;
}

}  // namespace tallow
