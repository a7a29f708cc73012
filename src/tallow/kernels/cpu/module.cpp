// The extension `tallow.kernels.cpu._native`. Tensors arrive as addresses: an integer costs a hundredth of what a
// tensor argument costs, and a decoding step makes hundreds of calls. cpu/__init__.py checks them first.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "blocks.h"
#include "linear.h"

namespace nb = nanobind;

namespace tallow {

void bind_decoder(nb::module_ &);
void bind_operations(nb::module_ &);
void bind_sampling(nb::module_ &);

namespace {

struct InstructionSet {
    std::string name;
    Kernel linear4, linear8;
};

// Those that this processor has, best first.
const std::vector<InstructionSet> &instruction_sets() {
    static const std::vector<InstructionSet> sets = [] {
        std::vector<InstructionSet> found;
#ifdef TALLOW_X86_64
        if (__builtin_cpu_supports("avx512f")) found.push_back({"avx512", avx512::linear4, avx512::linear8});
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))  // and so F16C, too
            found.push_back({"avx2", avx2::linear4, avx2::linear8});
#endif
        found.push_back({"portable", portable::linear4, portable::linear8});
        return found;
    }();
    return sets;
}

std::vector<std::string> instruction_set_names() {
    std::vector<std::string> names;
    for (const InstructionSet &set : instruction_sets()) names.push_back(set.name);
    return names;
}

template <typename T>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

float from_bfloat16(uint16_t bits) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, sizeof value);
    return value;
}

uint16_t to_bfloat16(float value) {  // to nearest, ties to even
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    if (value != value) return uint16_t(bits >> 16 | 64);  // NaN stays NaN
    return uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

// Calls work(begin, end) on disjoint ranges that cover 0 … total, each from a multiple of `grain`.
template <typename Work>
void in_parallel(int64_t total, int64_t grain, int threads, const Work &work) {
#ifdef _OPENMP
    if (threads > 1) {
#pragma omp parallel num_threads(threads)
        {
            const int64_t count = omp_get_num_threads(), index = omp_get_thread_num();
            const int64_t share = (total / count + grain) / grain * grain;
            const int64_t begin = std::min(total, index * share);
            work(begin, std::min(total, begin + share));
        }
        return;
    }
#endif
    work(int64_t(0), total);
}

// Below this many weights a thread, waking it costs more than it saves.
constexpr int64_t kWeightsPerThread = 1 << 16;

// `instruction_set` is an index into instruction_set_names(). x, bias (address 0: none) and out are float32 or, all of them, bfloat16.
void quantized_linear(int instruction_set, int bits, bool bfloat16, uintptr_t x, uintptr_t codes, uintptr_t scales,
                      uintptr_t bias, uintptr_t out, int64_t rows, int64_t outputs, int64_t inputs, int64_t group,
                      int threads) {
    const InstructionSet &set = instruction_sets().at(instruction_set);
    const Kernel kernel = bits == 4 ? set.linear4 : set.linear8;
    Linear problem{at<float>(x), at<uint8_t>(codes), at<uint16_t>(scales), at<float>(out), rows, outputs, inputs, group};
    std::vector<float> wide_x, wide_out;
    if (bfloat16) {
        wide_x.resize(rows * inputs);
        wide_out.resize(rows * outputs);
        std::transform(at<uint16_t>(x), at<uint16_t>(x) + rows * inputs, wide_x.begin(), from_bfloat16);
        problem.x = wide_x.data();
        problem.out = wide_out.data();
    }
    const int64_t useful = outputs * inputs / kWeightsPerThread;
    in_parallel(outputs, 4, int(std::clamp<int64_t>(useful, 1, threads)), [&](int64_t begin, int64_t end) {
        kernel(problem, begin, end);
        if (!bias && !bfloat16) return;
        for (int64_t r = 0; r < rows; ++r)
            for (int64_t o = begin; o < end; ++o) {
                float &value = problem.out[r * outputs + o];
                if (bias) value += bfloat16 ? from_bfloat16(at<uint16_t>(bias)[o]) : at<float>(bias)[o];
                if (bfloat16) at<uint16_t>(out)[r * outputs + o] = to_bfloat16(value);
            }
    });
}

// Reads every word between two addresses once; the result only keeps the compiler from leaving the reading out.
uint64_t read_memory(uintptr_t address, int64_t words, int threads) {
    uint64_t total = 0;
    const uint64_t *memory = at<uint64_t>(address);
    in_parallel(words, 4096, threads, [&](int64_t begin, int64_t end) {
        uint64_t sum = 0;
        for (int64_t i = begin; i < end; ++i) sum += memory[i];
#pragma omp atomic
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
    m.def("instruction_sets", &tallow::instruction_set_names);
    m.def("quantized_linear", &tallow::quantized_linear, nb::call_guard<nb::gil_scoped_release>());
    m.def("has_block_type", &tallow::has_block_type);
    m.def("unpack_blocks", &tallow::unpack_blocks_in_parallel, nb::call_guard<nb::gil_scoped_release>());
    m.def("read_memory", &tallow::read_memory, nb::call_guard<nb::gil_scoped_release>());
}
