// Products of activations and packed weights, in terms of an instruction set's vocabulary.

// With so few rows the memory is what one waits for; what follows is asked for a little ahead.
constexpr int kPrefetching = 2;
constexpr int64_t kAhead = 4096;

// The sums of R rows and one panel over all inputs. They stay in registers until they are complete: an array that is
// read with changing indices later on would be written at each step.
template <Number N, int R>
struct Tile {
    alignas(64) float sums[R][2][kLanes];

    inline void compute(const Weight &w, int64_t panel, const Activations &x, int64_t row) {
        F totals[R][2];
        for (int r = 0; r < R; ++r) totals[r][0] = totals[r][1] = fzero();
        const uint8_t *weights = w.packed + panel * w.panel_bytes();
        if constexpr (N == Number::float32)
            add_float32(totals, w, weights, x, row);
        else if constexpr (N == Number::bfloat16)
            add_bfloat16(totals, w, weights, x, row);
        else
            add_integer(totals, w, weights, x, row);
        for (int r = 0; r < R; ++r)
            for (int i = 0; i < 2; ++i) fstore(sums[r][i], totals[r][i]);
    }

   private:
    static inline void ask_ahead(const uint8_t *from, int64_t bytes) {
        if constexpr (R <= kPrefetching)
            for (int64_t line = 0; line < bytes; line += 64) prefetch(from + kAhead + line);
    }

    static inline void add_float32(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                   int64_t row) {
        const float *values = static_cast<const float *>(x.values) + row * x.stride;
        for (int64_t k = 0; k < w.inputs; ++k, weights += 128) {
            ask_ahead(weights, 128);
            const float *from = reinterpret_cast<const float *>(weights);
            const F first = fload(from), second = fload(from + kLanes);
            for (int r = 0; r < R; ++r) {
                const F a = fset(values[r * x.stride + k]);
                totals[r][0] = fma(a, first, totals[r][0]);
                totals[r][1] = fma(a, second, totals[r][1]);
            }
        }
    }

    static inline void add_bfloat16(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                    int64_t row) {
        const uint16_t *values = static_cast<const uint16_t *>(x.values) + row * x.stride;
        for (int64_t k = 0; k < w.inputs; k += 2, weights += 128) {
            ask_ahead(weights, 128);
            const uint16_t *from = reinterpret_cast<const uint16_t *>(weights);
            const Pairs first = load_pairs(from), second = load_pairs(from + 2 * kLanes);
            for (int r = 0; r < R; ++r) {
                const Pairs a = broadcast_pair(values + r * x.stride + k);
                totals[r][0] = dot2(totals[r][0], first, a);
                totals[r][1] = dot2(totals[r][1], second, a);
            }
        }
    }

    // weight = scale · (code − zero): the sum of codes times activations starts at −zero times the activations' sum.
    static inline void add_integer(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                   int64_t row) {
        constexpr int zero_bits = N == Number::int8 ? 7 : 3;
        constexpr int64_t bytes = N == Number::int8 ? 1024 : 512;  // of 32 inputs
        const int8_t *values = static_cast<const int8_t *>(x.values) + row * x.stride;
        const float *x_scales = x.scales + row * x.groups;
        const int32_t *x_sums = x.sums + row * x.groups;
        const int64_t groups_per_scale = w.group / kActivationGroup;
        for (int64_t g = 0; g < w.inputs / kActivationGroup;) {
            const F scale[2] = {load_half(reinterpret_cast<const uint16_t *>(weights)),
                                load_half(reinterpret_cast<const uint16_t *>(weights) + kLanes)};
            ask_ahead(weights, 64);
            weights += 64;
            for (int64_t end = g + groups_per_scale; g < end; ++g, weights += bytes, values += kActivationGroup) {
                ask_ahead(weights, bytes);
                I dots[R][2];
                for (int r = 0; r < R; ++r) dots[r][0] = dots[r][1] = iset(-(x_sums[r * x.groups + g] << zero_bits));
                for (int step = 0; step < (N == Number::int8 ? 8 : 4); ++step) {
                    const I first = iload(weights + step * 128), second = iload(weights + step * 128 + 64);
                    if constexpr (N == Number::int8) {
                        add_dots(dots, first, second, values + 4 * step, x.stride);
                    } else {
                        add_dots(dots, low_nibbles(first), low_nibbles(second), values + 4 * step, x.stride);
                        add_dots(dots, high_nibbles(first), high_nibbles(second), values + 4 * step + 16, x.stride);
                    }
                }
                for (int r = 0; r < R; ++r) {
                    const F x_scale = fset(x_scales[r * x.groups + g]);
                    for (int i = 0; i < 2; ++i)
                        totals[r][i] = fma(to_float(dots[r][i]), fmul(scale[i], x_scale), totals[r][i]);
                }
            }
        }
    }

    static inline void add_dots(I (&dots)[R][2], I first, I second, const int8_t *values, int64_t stride) {
        for (int r = 0; r < R; ++r) {
            const I a = broadcast4(values + r * stride);
            constexpr auto dot = N == Number::int4 ? dot4_nibbles : dot4;
            dots[r][0] = dot(dots[r][0], first, a);
            dots[r][1] = dot(dots[r][1], second, a);
        }
    }
};

template <Number N, int R>
inline void product_tile(const Weight &w, const Activations &x, const Destination &to, int64_t row, int64_t panel) {
    Tile<N, R> tile;
    tile.compute(w, panel, x, row);
    for (int r = 0; r < R; ++r) {
        F both[2];
        for (int i = 0; i < 2; ++i) {
            const int64_t at = panel * kPanel + i * kLanes;
            both[i] = fload(tile.sums[r][i]);
            if (w.bias) both[i] = fadd(both[i], fload(w.bias + at));
            if (to.extra) both[i] = fadd(both[i], fload(to.extra + (row + r) * to.extra_stride + at));
        }
        float *out = to.out + (row + r) * to.stride;
        if (to.mode == Destination::gate) {
            fstore(out + panel * kLanes, fmul(activated(both[0], to.activation), both[1]));
            continue;
        }
        for (int i = 0; i < 2; ++i) {
            float *place = out + panel * kPanel + i * kLanes;
            if (to.mode == Destination::add) both[i] = fadd(both[i], fload(place));
            if (to.mode == Destination::activate) both[i] = activated(both[i], to.activation);
            fstore(place, both[i]);
        }
    }
}

// Chooses the tile of this height at compile time.
template <Number N, int R>
inline void product_rows(int64_t height, const Weight &w, const Activations &x, const Destination &to, int64_t row,
                         int64_t panel) {
    if (height == R) return product_tile<N, R>(w, x, to, row, panel);
    if constexpr (R > 1) product_rows<N, R - 1>(height, w, x, to, row, panel);
}

template <Number N>
void product(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    constexpr int tallest = N == Number::int8 || N == Number::int4 ? kTallestInteger : kTallestFloat;
    const int64_t tiles = (rows + tallest - 1) / tallest;
    const int64_t least_rows = rows / tiles, taller = rows % tiles;  // so many tiles have a row more
    for (; panel < end; ++panel)
        for (int64_t t = 0, row = 0; t < tiles; ++t) {
            const int64_t height = least_rows + (t < taller);
            product_rows<N, tallest>(height, w, x, to, row, panel);
            row += height;
        }
}

void multiply(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    switch (w.number) {
        case Number::float32: return product<Number::float32>(w, x, to, rows, panel, end);
        case Number::bfloat16: return product<Number::bfloat16>(w, x, to, rows, panel, end);
        case Number::int8: return product<Number::int8>(w, x, to, rows, panel, end);
        case Number::int4: return product<Number::int4>(w, x, to, rows, panel, end);
    }
}
