// The extension `tallow.kernels.cpu._native`. Tensors arrive as addresses: an integer costs a hundredth of what a
// tensor argument costs. Whoever calls has checked them.
#include <nanobind/nanobind.h>

#include <algorithm>
#include <atomic>

#include "blocks.h"
#include "pool.h"

namespace nb = nanobind;

namespace tallow {

void bind_decoder(nb::module_ &);
void bind_operations(nb::module_ &);
void bind_sampling(nb::module_ &);
void bind_training(nb::module_ &);

namespace {

template <typename T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

// Calls work(begin, end) on disjoint ranges that cover 0 … total, each from a multiple of `grain`.
template <typename Work>
void in_parallel(int64_t total, int64_t grain, int threads, const Work &work) {
    Pool pool(threads);
    const int64_t share = (total / pool.size() + grain) / grain * grain;
    pool.run([&](int thread) {
        const int64_t begin = std::min(total, thread * share);
        work(begin, std::min(total, begin + share));
    });
}

// Reads every word between two addresses once; the result only keeps the compiler from leaving the reading out.
uint64_t read_memory(uintptr_t address, int64_t words, int threads) {
    std::atomic<uint64_t> total = 0;
    const uint64_t *memory = at<uint64_t>(address);
    in_parallel(words, 4096, threads, [&](int64_t begin, int64_t end) {
        uint64_t sum = 0;
        for (int64_t i = begin; i < end; ++i) sum += memory[i];
        total += sum;
    });
    return total;
}

bool has_block_type(int type) { return block_format(type) != nullptr; }

void unpack_blocks_in_parallel(int type, uintptr_t blocks, int64_t bytes, uintptr_t out, int threads) {
    const BlockFormat *format = block_format(type);
    if (!format) throw nb::value_error("no such type of blocks");
    in_parallel(bytes / format->bytes, 256, threads, [&](int64_t begin, int64_t end) {
        unpack_blocks(*format, at<uint8_t>(blocks) + begin * format->bytes, end - begin,
                      at<float>(out) + begin * format->elements);
    });
}

}  // namespace
}  // namespace tallow

NB_MODULE(_native, m) {
    tallow::bind_decoder(m);
    tallow::bind_operations(m);
    tallow::bind_sampling(m);
    tallow::bind_training(m);
    m.def("has_block_type", &tallow::has_block_type);
    m.def("unpack_blocks", &tallow::unpack_blocks_in_parallel, nb::call_guard<nb::gil_scoped_release>());
    m.def("read_memory", &tallow::read_memory, nb::call_guard<nb::gil_scoped_release>());
}
