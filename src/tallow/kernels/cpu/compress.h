// Lossless compression of bfloat16 weights (see UpperBytes in ops.h).
#pragma once

#include <cstdint>

namespace tallow {

// A panel of so many inputs (a multiple of four) in the layout of bfloat16 into that of compressed_bfloat16; false if more
// upper bytes of a block are none of its commonest than there is room for.
bool compress_panel(const uint16_t *panel, int64_t inputs, uint8_t *to);

}  // namespace tallow
