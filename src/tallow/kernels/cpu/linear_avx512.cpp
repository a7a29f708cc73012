// For x86-64 processors with AVX-512 F (Skylake-X, Zen 4 and later).
#include <immintrin.h>

#include "linear.h"

namespace tallow::avx512 {
namespace {

constexpr int kLanes = 16;

using Lanes = __m512;
using Scale = __m512;

inline Lanes zero() { return _mm512_setzero_ps(); }
inline Lanes load(const float *from) { return _mm512_loadu_ps(from); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm512_fmadd_ps(a, b, c); }
inline float sum(Lanes lanes) { return _mm512_reduce_add_ps(lanes); }

inline Scale make_scale(uint16_t half) { return _mm512_cvtph_ps(_mm256_set1_epi16(short(half))); }

inline __m128i load16(const uint8_t *from) { return _mm_loadu_si128(reinterpret_cast<const __m128i *>(from)); }

// A permutation by 32-bit indices heeds only their lowest four bits: a table of the 16 possible weights turns
// codes into weights without masking, subtracting or converting.
inline void unpack4(const uint8_t *codes, Scale scale, Lanes *weights) {
    const __m512 values = _mm512_setr_ps(-8, -7, -6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5, 6, 7);
    const __m512 table = _mm512_mul_ps(values, scale);
    const __m512i bytes = _mm512_cvtepu8_epi32(load16(codes));
    weights[0] = _mm512_permutexvar_ps(bytes, table);
    weights[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(bytes, 4), table);
}

inline void unpack8(const uint8_t *codes, Scale scale, Lanes *weights) {
    for (int k = 0; k < 2; ++k)
        weights[k] = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(load16(codes + 16 * k))), scale);
}

#include "linear_tile.h"

}  // namespace

void linear4(const Linear &p, int64_t begin, int64_t end) { linear<4>(p, begin, end); }
void linear8(const Linear &p, int64_t begin, int64_t end) { linear<8>(p, begin, end); }

}  // namespace tallow::avx512
