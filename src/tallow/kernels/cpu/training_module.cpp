// What Python sees of the operations of training. Tensors arrive as addresses; kernels/cpu/training.py has checked them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <tuple>
#include <vector>

#include "ops.h"
#include "torch_threads.h"

namespace nb = nanobind;

namespace tallow {
namespace {

// Below this many values, sharing them costs more than it saves.
constexpr int64_t kSharedValues = 1 << 14;

template <typename T = float>
T *at(uintptr_t address) {
    return reinterpret_cast<T *>(address);
}

Number number_of(bool bfloat16) { return bfloat16 ? Number::bfloat16 : Number::float32; }
int64_t bytes_of(bool bfloat16) { return bfloat16 ? 2 : 4; }

template <typename Work>
void over_rows(int64_t rows, int64_t size, int threads, const Work &work) {
    nb::gil_scoped_release release;
    share_rows(rows, rows * size < kSharedValues ? 1 : threads, work);
}

// Rows whose target is negative have no loss.
void cross_entropy(const Ops &ops, bool bfloat16, uintptr_t logits, uintptr_t targets, int64_t rows, int64_t size,
                   uintptr_t losses, uintptr_t gradient, int threads) {
    const int64_t stride = size * bytes_of(bfloat16);
    over_rows(rows, size, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t target = at<int64_t>(targets)[row];
            uint8_t *by_logits = gradient ? at<uint8_t>(gradient) + row * stride : nullptr;
            at(losses)[row] = 0;
            if (target >= 0)
                at(losses)[row] = ops.cross_entropy(number_of(bfloat16), at<uint8_t>(logits) + row * stride, size, target, by_logits);
            else if (by_logits)
                std::fill_n(by_logits, stride, uint8_t(0));
        }
    });
}

// What comes out is bfloat16, or float32 as all else is.
void rms_forward(const Ops &ops, bool bfloat16, uintptr_t x, uintptr_t weight, int64_t rows, int64_t size, float eps,
                 uintptr_t out, uintptr_t inverses, int threads) {
    const int64_t stride = size * bytes_of(bfloat16);
    over_rows(rows, size, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row)
            at(inverses)[row] = ops.rms_forward(at(x) + row * size, at(weight), size, eps, number_of(bfloat16),
                                                at<uint8_t>(out) + row * stride);
    });
}

// The gradient by what came out is bfloat16, or float32 as all else is.
void rms_backward(const Ops &ops, bool bfloat16, uintptr_t x, uintptr_t weight, uintptr_t inverses, uintptr_t gradient,
                  int64_t rows, int64_t size, uintptr_t by_x, uintptr_t by_weight, int threads) {
    const int64_t stride = size * bytes_of(bfloat16);
    std::vector<std::vector<float>> sums(size_t(std::max(1, threads)));
    over_rows(rows, size, threads, [&](int64_t begin, int64_t end, int thread) {
        std::vector<float> &sum = sums[size_t(thread)];
        sum.assign(size_t(size), 0.0f);
        for (int64_t row = begin; row < end; ++row)
            ops.rms_backward(at(x) + row * size, at(weight), at(inverses)[row], number_of(bfloat16),
                             at<uint8_t>(gradient) + row * stride, size, at(by_x) + row * size, sum.data());
    });
    std::fill_n(at(by_weight), size, 0.0f);
    for (const std::vector<float> &sum : sums)
        for (size_t i = 0; i < sum.size(); ++i) at(by_weight)[i] += sum[i];
}

constexpr int64_t kGateRow = 4096;

void gate_forward(const Ops &ops, bool bfloat16, int activation, uintptr_t gate, uintptr_t up, int64_t size,
                  uintptr_t out, int threads) {
    over_rows((size + kGateRow - 1) / kGateRow, kGateRow, threads, [&](int64_t begin, int64_t end, int) {
        const int64_t first = begin * kGateRow, from = first * bytes_of(bfloat16);
        ops.gate_forward(number_of(bfloat16), Activation(activation), at<uint8_t>(gate + from), at<uint8_t>(up + from),
                         std::min(size, end * kGateRow) - first, at<uint8_t>(out + from));
    });
}

void gate_backward(const Ops &ops, bool bfloat16, int activation, uintptr_t gate, uintptr_t up, uintptr_t gradient,
                   int64_t size, uintptr_t by_gate, uintptr_t by_up, int threads) {
    over_rows((size + kGateRow - 1) / kGateRow, kGateRow, threads, [&](int64_t begin, int64_t end, int) {
        const int64_t first = begin * kGateRow, from = first * bytes_of(bfloat16);
        ops.gate_backward(number_of(bfloat16), Activation(activation), at<uint8_t>(gate + from), at<uint8_t>(up + from),
                          at<uint8_t>(gradient + from), std::min(size, end * kGateRow) - first,
                          at<uint8_t>(by_gate + from), at<uint8_t>(by_up + from));
    });
}

// Batch, token, head: how many, and how far apart in values.
using Three = std::tuple<int64_t, int64_t, int64_t>;

// Angles of a row are [token][half], those of the next one `angle_stride` values behind.
void rotate_heads(const Ops &ops, bool bfloat16, uintptr_t in, const Three &in_strides, uintptr_t out,
                  const Three &out_strides, const Three &counts, int64_t size, uintptr_t cosines, uintptr_t sines,
                  int64_t angle_stride, int64_t half, float sign, int threads) {
    const auto [batch, tokens, heads] = counts;
    const auto offset = [&](const Three &strides, int64_t b, int64_t t, int64_t h) {
        return uintptr_t((b * std::get<0>(strides) + t * std::get<1>(strides) + h * std::get<2>(strides)) * bytes_of(bfloat16));
    };
    over_rows(batch * tokens, heads * size, threads, [&](int64_t begin, int64_t end, int) {
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / tokens, t = row % tokens, angles = b * angle_stride + t * half;
            for (int64_t h = 0; h < heads; ++h)
                ops.rotate_head(number_of(bfloat16), at<uint8_t>(in + offset(in_strides, b, t, h)), at(cosines) + angles,
                                at(sines) + angles, sign, half, size, at<uint8_t>(out + offset(out_strides, b, t, h)));
        }
    });
}

// The address of a tensor with batches, heads and tokens, and how far apart these are in values; entries lie side by side.
struct Places {
    uintptr_t address;
    int64_t batch, head, token;

    template <typename T = uint16_t>
    T *of(int64_t b, int64_t h) const {
        return at<T>(address) + b * batch + h * head;
    }
};
using PlacesTuple = std::tuple<uintptr_t, int64_t, int64_t, int64_t>;

Places places(const PlacesTuple &tuple) { return std::make_from_tuple<Places>(tuple); }

// Some heads with the same keys and values at a time (`together`, which divides their number), forward if there is no
// gradient. What keys and values get is left for each such group, in float32.
void attend_heads(const Ops &ops, const std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t> &shape, int64_t together,
                  float scale, uintptr_t first, const std::vector<PlacesTuple> &given, uintptr_t log_sums,
                  const std::vector<PlacesTuple> &gradients, uintptr_t by_keys, uintptr_t by_values, uintptr_t scratch,
                  int threads) {
    const auto [batch, heads, kv_heads, tokens, size] = shape;
    const Places queries = places(given[0]), keys = places(given[1]), values = places(given[2]), out = places(given[3]);
    const bool backward = !gradients.empty();
    const Places by_out = backward ? places(gradients[0]) : Places{}, by_queries = backward ? places(gradients[1]) : Places{};
    const int64_t groups = heads / together;
    over_rows(batch * groups, tokens * size * together, threads, [&](int64_t begin, int64_t end, int thread) {
        std::vector<CausalHead> group;
        for (int64_t row = begin; row < end; ++row) {
            const int64_t b = row / groups, first_head = row % groups * together, kv = first_head / (heads / kv_heads);
            group.clear();
            for (int64_t h = first_head; h < first_head + together; ++h)
                group.push_back({tokens, size, scale, at<int32_t>(first) + b * tokens, queries.of(b, h), keys.of(b, kv),
                                 values.of(b, kv), queries.token, keys.token, values.token, out.of(b, h), out.token,
                                 at(log_sums) + (b * heads + h) * tokens, by_out.of(b, h), by_out.token,
                                 by_queries.of(b, h), by_queries.token, at(by_keys) + row * tokens * size,
                                 at(by_values) + row * tokens * size});
            (backward ? ops.attention_backward : ops.attention_forward)(
                group.data(), together, at<uint8_t>(scratch) + thread * attention_scratch(tokens, size));
        }
    });
}

}  // namespace

void bind_training(nb::module_ &m) {
    m.def("cross_entropy", &cross_entropy);
    m.def("rms_forward", &rms_forward);
    m.def("rms_backward", &rms_backward);
    m.def("gate_forward", &gate_forward);
    m.def("gate_backward", &gate_backward);
    m.def("rotate_heads", &rotate_heads);
    m.def("attention_scratch", &attention_scratch);
    m.def("attend_heads", &attend_heads);
}

}  // namespace tallow
