// Drawing tokens, as Python says how.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <tuple>

#include "ops.h"

namespace tallow {

// Memory for the candidates of one row: of what is not written, the system gives nothing.
class Scratch {
   public:
    explicit Scratch(int64_t size) : room_(size + kLanes), memory_(new std::byte[4 * room_ * sizeof(float)]) {}
    Candidates candidates() const { return {part<int32_t>(0), part<float>(1), part<float>(2), part<int32_t>(3), 0}; }

   private:
    template <typename T>
    T *part(int64_t index) const {
        return reinterpret_cast<T *>(memory_.get() + index * room_ * sizeof(T));
    }

    int64_t room_;
    std::unique_ptr<std::byte[]> memory_;
};

// temperature, top_k, top_p, min_p, typical_p, seed, token_index
using DrawTuple = std::tuple<double, int64_t, double, double, double, uint64_t, uint32_t>;

inline Draw draw_of(const DrawTuple &tuple) {
    return std::apply([](auto... values) { return Draw{values...}; }, tuple);
}

}  // namespace tallow
