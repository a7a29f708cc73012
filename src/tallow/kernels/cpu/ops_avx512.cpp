#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "ops.h"

namespace tallow {
namespace {
#include "simd_avx512.h"

#include "ops_all.h"
}  // namespace

#ifdef __AMX_TILE__
extern const Ops amx_ops = all_operations_in_tiles("amx");
#elif defined(__AVX512BF16__)
extern const Ops avx512_bf16_ops = all_operations("avx512_bf16");
#else
extern const Ops avx512_ops = all_operations("avx512");
#endif
}  // namespace tallow
