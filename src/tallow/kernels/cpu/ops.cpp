#include "ops.h"

#include <vector>

#ifdef TALLOW_AMX
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace tallow {

extern const Ops amx_ops, avx512_bf16_ops, avx512_ops, avx2_ops, portable_ops;

#ifdef TALLOW_AMX
namespace {

// Its registers are large: Linux wants to be asked before a process uses them, and may refuse.
bool may_use_matrix_unit() {
    constexpr int kRequestPermission = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    return __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") && __builtin_cpu_supports("amx-bf16") &&
           syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}

}  // namespace
#endif

const Ops *const *instruction_sets() {
    static const std::vector<const Ops *> sets = [] {
        std::vector<const Ops *> found;
#ifdef TALLOW_X86_64
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vnni");
        const bool bfloat16 = avx512 && __builtin_cpu_supports("avx512bf16");
#ifdef TALLOW_AMX
        if (bfloat16 && may_use_matrix_unit()) found.push_back(&amx_ops);
#endif
        if (bfloat16) found.push_back(&avx512_bf16_ops);
        if (avx512) found.push_back(&avx512_ops);
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))  // and so F16C, too
            found.push_back(&avx2_ops);
#endif
        found.push_back(&portable_ops);
        found.push_back(nullptr);
        return found;
    }();
    return sets.data();
}

}  // namespace tallow
