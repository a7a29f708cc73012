#include <cmath>
#include <cstring>

#include "ops.h"

namespace tallow {
namespace {
#include "simd_portable.h"

#include "ops_all.h"
}  // namespace

extern const Ops portable_ops = all_operations("portable");
}  // namespace tallow
