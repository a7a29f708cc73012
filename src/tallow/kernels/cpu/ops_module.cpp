// Each operation alone, of each instruction set that this processor has: what tests compare with its definition.
// Arrays arrive as addresses, which the caller keeps alive and large enough (see Ops).
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>

#include <algorithm>

#include "ops.h"
#include "weights.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tallow {
namespace {

template <typename T = float>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

std::vector<const Ops *> operations() {
    std::vector<const Ops *> found;
    for (const Ops *const *set = instruction_sets(); *set; ++set) found.push_back(*set);
    return found;
}

void multiply(const Ops &ops, const PackedWeight &weight, const Activations &x, const Destination &to, int64_t rows,
              int64_t panel, int64_t end) {
    ops.multiply(weight.view(), x, to, rows, panel, end);
}

std::tuple<int32_t, float, float> summarize(const Ops &ops, uintptr_t logits, int64_t size, float softcap) {
    const Summary summary = ops.summarize(at(logits), size, softcap);
    return {summary.argmax, summary.greatest, summary.log_sum_exp};
}

// The arguments are those of Queries.
void attend(const Ops &ops, const CacheShape &shape, uintptr_t cache, const std::vector<int32_t> &blocks, uintptr_t rows,
            const std::vector<int64_t> &places, const std::vector<int64_t> &positions, float scale, float softcap,
            int64_t window, int64_t segment, uintptr_t partials, int64_t partial_stride) {
    if (places.size() > kMostQueries || places.size() != positions.size()) throw nb::value_error("not so many queries");
    const uint8_t *following[] = {at<uint8_t>(cache)};
    ops.attend(shape, {at<uint8_t>(cache), shape.unit_bytes(), blocks.data(), at(rows), places.data(), positions.data(),
                       int64_t(places.size()), scale, softcap, window, segment, following, 1, at(partials),
                       partial_stride});
}

}  // namespace

void bind_operations(nb::module_ &m) {
    m.attr("SEGMENT") = kSegment;
    m.def("partial_floats", &partial_floats, "head_size"_a);
    nb::class_<Activations>(m, "Activations")
        .def(nb::new_([](uintptr_t values, int64_t stride, uintptr_t scales, uintptr_t offsets, int64_t groups,
                         uintptr_t byte_offsets) {
                 return Activations{at<void>(values), stride, at(scales), at<int32_t>(offsets), groups,
                                    at<int32_t>(byte_offsets)};
             }),
             "values"_a, "stride"_a, "scales"_a, "offsets"_a, "groups"_a, "byte_offsets"_a);
    nb::class_<Destination>(m, "Destination")
        .def(nb::new_([](int mode, uintptr_t out, int64_t stride, int activation, uintptr_t extra, int64_t extra_stride,
                         uintptr_t panel) {
                 return Destination{Destination::Mode(mode), at(out),     stride,      Activation(activation),
                                    at(extra),               extra_stride, at<uint16_t>(panel)};
             }),
             "mode"_a, "out"_a, "stride"_a, "activation"_a, "extra"_a, "extra_stride"_a, "panel"_a);
    nb::class_<CacheShape>(m, "CacheShape")
        .def(nb::new_([](int number, int64_t kv_heads, int64_t head_size) {
                 return CacheShape{Number(number), kv_heads, head_size};
             }),
             "number"_a, "kv_heads"_a, "head_size"_a)
        .def_prop_ro("unit_bytes", &CacheShape::unit_bytes);
    nb::class_<Ops>(m, "Operations")
        .def_prop_ro("name", [](const Ops &ops) { return ops.name; })
        .def("multiply", &multiply)
        .def("normalize", [](const Ops &ops, const Norm &norm, uintptr_t in, int64_t size,
                             uintptr_t out) { ops.normalize(norm, at(in), size, at(out)); })
        .def("reads_offsets", [](const Ops &ops, int64_t rows) { return ops.reads_offsets(rows); })
        .def("round_row", [](const Ops &ops, const PackedWeight &weight, uintptr_t in, const Activations &to,
                             int64_t row) { ops.round_row(weight.view(), at(in), to, row); })
        .def("rotate", [](const Ops &ops, uintptr_t head, uintptr_t cosines, uintptr_t sines,
                          int64_t half) { ops.rotate(at(head), at(cosines), at(sines), half); })
        .def("store_token", [](const Ops &ops, const CacheShape &shape, uintptr_t unit, int64_t slot, uintptr_t key,
                               uintptr_t value) { ops.store_token(shape, at<uint8_t>(unit), slot, at(key), at(value)); })
        .def("attend", &attend)
        .def("join_segments", [](const Ops &ops, uintptr_t partials, int64_t segments, int64_t head_size,
                                 uintptr_t out) { ops.join_segments(at(partials), segments, head_size, at(out)); })
        .def("embed", [](const Ops &ops, const PackedWeight &table, int64_t token, float scale,
                         uintptr_t out) { ops.embed(table.view(), token, scale, at(out)); })
        .def("summarize", &summarize);
    m.def("operations", &operations, nb::rv_policy::reference);
}

}  // namespace tallow
