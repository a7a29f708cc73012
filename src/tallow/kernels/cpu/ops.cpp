#include "ops.h"

#include <vector>

namespace tallow {

extern const Ops avx512_bf16_ops, avx512_ops, avx2_ops, portable_ops;

const Ops *const *instruction_sets() {
    static const std::vector<const Ops *> sets = [] {
        std::vector<const Ops *> found;
#ifdef TALLOW_X86_64
        const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                            __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                            __builtin_cpu_supports("avx512vnni");
        if (avx512 && __builtin_cpu_supports("avx512bf16")) found.push_back(&avx512_bf16_ops);
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
