// For x86-64 processors with AVX2, FMA and F16C (Haswell, Zen and later).
#include <immintrin.h>

#include "linear.h"

namespace tallow::avx2 {
namespace {

constexpr int kLanes = 8;

using Lanes = __m256;
using Scale = __m256;

inline Lanes zero() { return _mm256_setzero_ps(); }
inline Lanes load(const float *from) { return _mm256_loadu_ps(from); }
inline Lanes multiply_add(Lanes a, Lanes b, Lanes c) { return _mm256_fmadd_ps(a, b, c); }

inline float sum(Lanes lanes) {
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(lanes), _mm256_extractf128_ps(lanes, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline Scale make_scale(uint16_t half) { return _mm256_cvtph_ps(_mm_set1_epi16(short(half))); }

inline Lanes scaled(__m256i codes, Scale scale) { return _mm256_mul_ps(_mm256_cvtepi32_ps(codes), scale); }

inline __m128i load8(const uint8_t *from) { return _mm_loadl_epi64(reinterpret_cast<const __m128i *>(from)); }

inline void unpack4(const uint8_t *codes, Scale scale, Lanes *weights) {
    const __m256i mask = _mm256_set1_epi32(15), eight = _mm256_set1_epi32(8);
    for (int k = 0; k < 2; ++k) {
        const __m256i bytes = _mm256_cvtepu8_epi32(load8(codes + 8 * k));
        weights[k] = scaled(_mm256_sub_epi32(_mm256_and_si256(bytes, mask), eight), scale);
        weights[2 + k] = scaled(_mm256_sub_epi32(_mm256_srli_epi32(bytes, 4), eight), scale);
    }
}

inline void unpack8(const uint8_t *codes, Scale scale, Lanes *weights) {
    for (int k = 0; k < 4; ++k) weights[k] = scaled(_mm256_cvtepi8_epi32(load8(codes + 8 * k)), scale);
}

#include "linear_tile.h"

}  // namespace

void linear4(const Linear &p, int64_t begin, int64_t end) { linear<4>(p, begin, end); }
void linear8(const Linear &p, int64_t begin, int64_t end) { linear<8>(p, begin, end); }

}  // namespace tallow::avx2
