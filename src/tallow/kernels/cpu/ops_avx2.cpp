#include <immintrin.h>

#include <cmath>
#include <cstring>

#include "ops.h"

namespace tallow {
namespace {
#include "simd_avx2.h"

#include "ops_all.h"
}  // namespace

extern const Ops avx2_ops = all_operations("avx2");
}  // namespace tallow
