// Blocks of weights as GGUF files store them: small integers that share scales.
#pragma once

#include <cstdint>

// Loops that read weights, once for processors with AVX2 and once for all others; the loader chooses.
#if defined(TALLOW_X86_64) && defined(__GLIBC__) && defined(__GNUC__)
#define TALLOW_CLONES [[gnu::target_clones("avx2", "default")]]
#else
#define TALLOW_CLONES
#endif

namespace tallow {

struct BlockFormat {
    int64_t elements, bytes;  // of a block
    void (*unpack)(const uint8_t *block, float *out);
};

constexpr int kQ4_0 = 2;

// By GGUF's number of the type; null for a type that is not known here.
const BlockFormat *block_format(int type);

inline void unpack_blocks(const BlockFormat &format, const uint8_t *blocks, int64_t count, float *out) {
    for (int64_t i = 0; i < count; ++i) format.unpack(blocks + i * format.bytes, out + i * format.elements);
}

}  // namespace tallow
