// A linear layer with quantized weights, as each instruction set computes it.
#pragma once

#include <cstdint>

namespace tallow {

// out[r][o] = Σ_i x[r][i] · weight[o][i]; how codes and scales make a weight: see QuantizedWeight in quantized.py.
struct Linear {
    const float *x;          // rows × inputs
    const uint8_t *codes;    // outputs × inputs · bits / 8
    const uint16_t *scales;  // outputs × inputs / group, IEEE half precision
    float *out;              // rows × outputs
    int64_t rows, outputs, inputs, group;
};

// Computes the outputs from begin to end for all rows (1 to 8 of them).
using Kernel = void (*)(const Linear &, int64_t begin, int64_t end);

namespace portable {
void linear4(const Linear &, int64_t begin, int64_t end);
void linear8(const Linear &, int64_t begin, int64_t end);
}  // namespace portable
namespace avx2 {
void linear4(const Linear &, int64_t begin, int64_t end);
void linear8(const Linear &, int64_t begin, int64_t end);
}  // namespace avx2
namespace avx512 {
void linear4(const Linear &, int64_t begin, int64_t end);
void linear8(const Linear &, int64_t begin, int64_t end);
}  // namespace avx512

}  // namespace tallow
