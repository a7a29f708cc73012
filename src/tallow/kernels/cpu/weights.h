// Weights brought into the layout in which the operations read them (see Weight in ops.h).
#pragma once

#include <cstdint>
#include <stdexcept>
#include <vector>

#include "blocks.h"
#include "memory.h"
#include "ops.h"
#include "pool.h"

namespace tallow {

// Rows of a weight as they are stored: float32, bfloat16 or float16 values, codes and scales as QuantizedWeight has them,
// or blocks.
struct Source {
    enum Kind : int { float32, bfloat16, float16, int8, int4, int6, blocks } kind;
    const uint8_t *values;
    const uint16_t *scales;     // of codes
    const BlockFormat *format;  // blocks
    int64_t rows;

    bool codes() const { return bits() > 0; }
    int64_t bits() const { return kind == int8 ? 8 : kind == int6 ? 6 : kind == int4 ? 4 : 0; }
};

// A weight that does not fit the form that takes fewer bytes: more of its upper bytes are rare than a compressed block has
// room for, or its codes have scales that are no multiples of a row's. It is to be packed as bfloat16, or as int4.
struct Incompressible : std::runtime_error {
    Incompressible() : std::runtime_error("a weight cannot be compressed") {}
};

// Lives as long as the arena that holds it.
class PackedWeight {
   public:
    // `order` names for each row of the result a row of the sources, counted through all of them, or −1 for zeros.
    // Integers are made of floats as quantize_groups makes them; codes can only be packed as they are. Where the arena
    // is filled already, the sources are not looked at, and of the bias only whether there is one. May throw Incompressible.
    PackedWeight(Number number, const std::vector<Source> &sources, const std::vector<int32_t> &order, int64_t inputs,
                 int64_t group, int64_t groups_per_scale, const float *bias, Pool &pool, Arena &arena);

    // Bytes that a weight takes of an arena.
    static int64_t room(Number number, int64_t outputs, int64_t inputs, int64_t group, bool bias);

    const Weight &view() const { return view_; }
    int64_t bytes() const { return bytes_; }

   private:
    void fill(uint8_t *packed, const std::vector<Source> &sources, const std::vector<int32_t> &order, int64_t group,
              Pool &pool) const;

    Weight view_;
    int64_t bytes_;
};

}  // namespace tallow
