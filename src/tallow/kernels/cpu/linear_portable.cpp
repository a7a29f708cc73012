// For any processor, in the vectors of four floats that nearly all have; GCC and Clang lower them to what is there.
#include <cstring>

#include "linear.h"

namespace tallow::portable {
namespace {

constexpr int kLanes = 4;

using Lanes = float __attribute__((vector_size(16)));
using Codes = int32_t __attribute__((vector_size(16)));
using Scale = float;

inline Lanes zero() { return Lanes{}; }

inline Lanes load(const float *from) {
    Lanes lanes;
    std::memcpy(&lanes, from, sizeof lanes);
    return lanes;
}

inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return a * b + c; }

inline float sum(Lanes lanes) { return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]); }

// Shifts exponent and mantissa of a half to their places in a float; the product with 2^112 corrects the
// exponent's bias and makes subnormal halves right. Infinities and NaNs do not occur: quantize_groups refuses them.
inline Scale make_scale(uint16_t half) {
    const uint32_t bits = uint32_t(half & 0x7fff) << 13;
    float magnitude;
    std::memcpy(&magnitude, &bits, sizeof magnitude);
    magnitude *= 0x1p112f;
    return half & 0x8000 ? -magnitude : magnitude;
}

template <typename Code>
inline Codes load_codes(const uint8_t *from) {
    Code __attribute__((vector_size(4))) codes;
    std::memcpy(&codes, from, sizeof codes);
    return __builtin_convertvector(codes, Codes);
}

inline void unpack4(const uint8_t *codes, Scale scale, Lanes *weights) {
    for (int k = 0; k < 4; ++k) {
        const Codes bytes = load_codes<uint8_t>(codes + 4 * k);
        weights[k] = __builtin_convertvector((bytes & 15) - 8, Lanes) * scale;
        weights[4 + k] = __builtin_convertvector((bytes >> 4) - 8, Lanes) * scale;
    }
}

inline void unpack8(const uint8_t *codes, Scale scale, Lanes *weights) {
    for (int k = 0; k < 8; ++k)
        weights[k] = __builtin_convertvector(load_codes<int8_t>(codes + 4 * k), Lanes) * scale;
}

#include "linear_tile.h"

}  // namespace

void linear4(const Linear &p, int64_t begin, int64_t end) { linear<4>(p, begin, end); }
void linear8(const Linear &p, int64_t begin, int64_t end) { linear<8>(p, begin, end); }

}  // namespace tallow::portable
