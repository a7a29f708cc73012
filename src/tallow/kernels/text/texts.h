// Texts as an Arrow array of strings has them.
#pragma once

#include <cstdint>
#include <string_view>
#include <tuple>

namespace tallow {

// Addresses of offsets and bytes, and the number of texts (`places` in Python).
using TextPlaces = std::tuple<uintptr_t, uintptr_t, int64_t>;

struct Texts {
    const int32_t *offsets;
    const char *bytes;
    int64_t count;

    explicit Texts(const TextPlaces &places)
        : offsets(reinterpret_cast<const int32_t *>(std::get<0>(places))),
          bytes(reinterpret_cast<const char *>(std::get<1>(places))),
          count(std::get<2>(places)) {}

    std::string_view operator[](int64_t i) const { return {bytes + offsets[i], size_t(offsets[i + 1] - offsets[i])}; }
};

}  // namespace tallow
