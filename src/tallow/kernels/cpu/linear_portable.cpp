// For any processor; written so that a compiler can use whatever vectors it may assume.
#include <cstring>

#include "linear.h"

namespace tallow::portable {
namespace {

constexpr int kLanes = 8;

struct Lanes {
    float value[kLanes];
};

using Scale = float;

inline Lanes zero() { return {}; }

inline Lanes load(const float *from) {
    Lanes lanes;
    std::memcpy(lanes.value, from, sizeof lanes.value);
    return lanes;
}

inline Lanes multiply_add(const Lanes &a, const Lanes &b, const Lanes &c) {
    Lanes lanes;
    for (int i = 0; i < kLanes; ++i) lanes.value[i] = a.value[i] * b.value[i] + c.value[i];
    return lanes;
}

inline float sum(const Lanes &lanes) {
    float total = 0;
    for (float value : lanes.value) total += value;
    return total;
}

// Shifts exponent and mantissa of a half to their places in a float; the product with 2^112 corrects the
// exponent's bias and makes subnormal halves right. Infinities and NaNs do not occur: quantize_groups refuses them.
inline Scale make_scale(uint16_t half) {
    const uint32_t bits = uint32_t(half & 0x7fff) << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude *= 0x1p112f;
    return half & 0x8000 ? -magnitude : magnitude;
}

inline void unpack4(const uint8_t *codes, Scale scale, Lanes *weights) {
    for (int k = 0; k < 16 / kLanes; ++k)
        for (int i = 0; i < kLanes; ++i) {
            const int code = codes[k * kLanes + i];
            weights[k].value[i] = float((code & 15) - 8) * scale;
            weights[16 / kLanes + k].value[i] = float((code >> 4) - 8) * scale;
        }
}

inline void unpack8(const uint8_t *codes, Scale scale, Lanes *weights) {
    for (int k = 0; k < 32 / kLanes; ++k)
        for (int i = 0; i < kLanes; ++i) weights[k].value[i] = float(int8_t(codes[k * kLanes + i])) * scale;
}

#include "linear_tile.h"

}  // namespace

void linear4(const Linear &p, int64_t begin, int64_t end) { linear<4>(p, begin, end); }
void linear8(const Linear &p, int64_t begin, int64_t end) { linear<8>(p, begin, end); }

}  // namespace tallow::portable
