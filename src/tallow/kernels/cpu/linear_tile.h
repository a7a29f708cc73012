// The loop that all instruction sets share. A file defines, in its anonymous namespace, its vocabulary and then
// includes this one:
//     Lanes                      kLanes floats (kLanes divides 16)
//     zero, load, multiply_add, sum
//     Scale, make_scale(half)    the scale of a group in the form that unpack wants
//     unpack4(codes, scale, w)   16 bytes to 32 weights: 16 low halves, then 16 high halves
//     unpack8(codes, scale, w)   32 bytes to 32 weights
// Everything here has internal linkage: a function that two instruction sets shared would run with the flags
// of whichever the linker kept.

constexpr int kSpan = 32;  // weights unpacked at a time

template <int Bits, int Outputs, int Rows>
inline void tile(const Linear &p, int64_t output) {
    const int64_t groups = p.inputs / p.group;
    const int64_t row_bytes = p.inputs * Bits / 8;
    const int64_t group_bytes = p.group * Bits / 8;
    const int64_t span_bytes = kSpan * Bits / 8;
    const int64_t high_offset = Bits == 4 ? p.group / 2 : 16;  // from a span's first 16 weights to its second 16
    const int64_t step = Bits == 4 ? 16 : 32;

    Lanes sums[Outputs][Rows];
    for (auto &row : sums)
        for (Lanes &lanes : row) lanes = zero();

    for (int64_t g = 0; g < groups; ++g) {
        Scale scale[Outputs];
        for (int o = 0; o < Outputs; ++o) scale[o] = make_scale(p.scales[(output + o) * groups + g]);
        const uint8_t *codes = p.codes + output * row_bytes + g * group_bytes;
        const float *x = p.x + g * p.group;
        for (int64_t done = 0; done < group_bytes; done += span_bytes, codes += span_bytes, x += step) {
            for (int o = 0; o < Outputs; ++o) {
                Lanes w[kSpan / kLanes];
                if constexpr (Bits == 4)
                    unpack4(codes + o * row_bytes, scale[o], w);
                else
                    unpack8(codes + o * row_bytes, scale[o], w);
                for (int k = 0; k < kSpan / kLanes; ++k) {
                    const int64_t at = k * kLanes < 16 ? k * kLanes : high_offset + k * kLanes - 16;
                    for (int r = 0; r < Rows; ++r)
                        sums[o][r] = multiply_add(w[k], load(x + r * p.inputs + at), sums[o][r]);
                }
            }
        }
    }
    for (int o = 0; o < Outputs; ++o)
        for (int r = 0; r < Rows; ++r) p.out[r * p.outputs + output + o] = sum(sums[o][r]);
}

// A tile of Outputs × Rows sums stays in registers; several sums hide the latency of the multiply-adds.
template <int Bits, int Rows>
inline void tiles(const Linear &p, int64_t begin, int64_t end) {
    constexpr int kOutputs = Rows == 1 ? 4 : Rows <= 4 ? 2 : 1;
    int64_t output = begin;
    for (; output + kOutputs <= end; output += kOutputs) tile<Bits, kOutputs, Rows>(p, output);
    for (; output < end; ++output) tile<Bits, 1, Rows>(p, output);
}

template <int Bits>
inline void linear(const Linear &p, int64_t begin, int64_t end) {
    switch (p.rows) {
        case 1: return tiles<Bits, 1>(p, begin, end);
        case 2: return tiles<Bits, 2>(p, begin, end);
        case 3: return tiles<Bits, 3>(p, begin, end);
        case 4: return tiles<Bits, 4>(p, begin, end);
        case 5: return tiles<Bits, 5>(p, begin, end);
        case 6: return tiles<Bits, 6>(p, begin, end);
        case 7: return tiles<Bits, 7>(p, begin, end);
        case 8: return tiles<Bits, 8>(p, begin, end);
    }
}
