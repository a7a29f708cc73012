// Vectors that become NumPy arrays without being copied.
#pragma once

#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>

#include <utility>
#include <vector>

namespace tallow {

template <class Value>
using Array = nanobind::ndarray<nanobind::numpy, Value, nanobind::ndim<1>>;

// To be called with the GIL held.
template <class Value>
Array<Value> as_array(std::vector<Value> &&values) {
    auto *const kept = new std::vector<Value>(std::move(values));
    const nanobind::capsule owner(kept, [](void *vector) noexcept { delete static_cast<std::vector<Value> *>(vector); });
    return {kept->data(), {kept->size()}, owner};
}

}  // namespace tallow
