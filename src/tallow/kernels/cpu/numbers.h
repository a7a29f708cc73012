// Small helpers on single numbers. Included where every instruction set, and the packing of weights, has a copy of its
// own: a function that they shared would run with the flags of whichever the linker kept.
#pragma once

inline float from_bfloat16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

inline uint16_t to_bfloat16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return uint16_t(bits >> 16 | 64);  // NaN stays NaN
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Shifts exponent and mantissa of a half to their places in a float; the product with 2^112 corrects the exponent's bias
// and makes subnormal halves right.
inline float from_half(uint16_t half) {
    const uint32_t special = (half & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    const uint32_t bits = uint32_t(half & 0x7fff) << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude *= 0x1p112f;
    uint32_t scaled;
    std::memcpy(&scaled, &magnitude, sizeof scaled);
    scaled |= special | uint32_t(half & 0x8000) << 16;
    std::memcpy(&magnitude, &scaled, sizeof magnitude);
    return magnitude;
}

inline uint16_t to_half(float value) {  // to nearest, ties to even; too large becomes infinite
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477ff000) return sign | 0x7c00;
    if (bits < 0x38800000) {  // subnormal: adding 0.5 moves the bits that count to the end of the mantissa
        float magnitude;
        std::memcpy(&magnitude, &bits, sizeof magnitude);
        magnitude += 0.5f;
        std::memcpy(&bits, &magnitude, sizeof bits);
        return sign | uint16_t(bits - 0x3f000000);
    }
    bits += 0xfff + (bits >> 13 & 1);
    return sign | uint16_t((bits - 0x38000000) >> 13);
}

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t limited(int64_t value, int64_t low, int64_t high) { return least(most(value, low), high); }
