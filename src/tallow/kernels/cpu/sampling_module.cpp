// What Python sees of sampling. Rows of logits arrive as addresses; kernels/cpu/sampling.py checks them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <atomic>
#include <thread>

#include "draws.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tallow {
namespace {

// Below this many logits a thread, starting it costs more than it saves.
constexpr int64_t kLogitsPerThread = 1 << 17;

std::vector<int32_t> choose_tokens(const Ops &ops, const std::vector<uintptr_t> &rows, int64_t size,
                                   const std::vector<DrawTuple> &draws, int threads) {
    if (rows.size() != draws.size()) throw nb::value_error("not a draw for each row");
    std::vector<int32_t> chosen(rows.size());
    nb::gil_scoped_release release;
    std::atomic<size_t> next{0};
    const auto work = [&] {
        Scratch scratch(size);
        Candidates candidates = scratch.candidates();
        for (size_t row; (row = next++) < rows.size();)
            chosen[row] = ops.choose(reinterpret_cast<const float *>(rows[row]), size, draw_of(draws[row]), candidates);
    };
    std::vector<std::jthread> others;
    const int64_t useful = std::min<int64_t>(threads, int64_t(rows.size()) * size / kLogitsPerThread);
    for (int64_t thread = 1; thread < useful; ++thread) others.emplace_back(work);
    work();
    others.clear();
    return chosen;
}

std::optional<std::vector<int32_t>> candidates(const Ops &ops, uintptr_t row, int64_t size, const DrawTuple &draw) {
    Scratch scratch(size);
    Candidates found = scratch.candidates();
    if (!ops.filter(reinterpret_cast<const float *>(row), size, draw_of(draw), found)) return std::nullopt;
    return std::vector<int32_t>(found.ids, found.ids + found.count);
}

}  // namespace

void bind_sampling(nb::module_ &m) {
    m.def("choose_tokens", &choose_tokens, "operations"_a, "rows"_a, "size"_a, "draws"_a, "threads"_a);
    m.def("candidates", &candidates, "operations"_a, "row"_a, "size"_a, "draw"_a);
}

}  // namespace tallow
