// Weights brought into the layout in which the operations read them (see Weight in ops.h).
#pragma once

#include <cstdint>
#include <vector>

#include "memory.h"
#include "ops.h"
#include "pool.h"

namespace tallow {

// Rows of a weight as they are stored: float32, bfloat16 or float16 values, or codes and scales as QuantizedWeight has them.
struct Source {
    enum Kind : int { float32, bfloat16, float16, int8, int4 } kind;
    const uint8_t *values;
    const uint16_t *scales;  // int8, int4
    int64_t rows;
};

// Lives as long as the arena that holds it.
class PackedWeight {
   public:
    // `order` names for each row of the result a row of the sources, counted through all of them, or −1 for zeros.
    // Integers are made of floats as quantize_groups makes them; codes can only be packed as they are.
    PackedWeight(Number number, const std::vector<Source> &sources, const std::vector<int32_t> &order, int64_t inputs,
                 int64_t group, const float *bias, Pool &pool, Arena &arena);

    const Weight &view() const { return view_; }
    int64_t bytes() const { return bytes_; }

   private:
    Weight view_;
    int64_t bytes_;
};

}  // namespace tallow
