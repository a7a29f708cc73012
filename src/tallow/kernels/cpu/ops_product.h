// Products of activations and packed weights, in terms of an instruction set's vocabulary.

// With so few rows the memory is what one waits for; what follows is asked for a little ahead.
constexpr int kFew = 2;
// From so many rows on it pays to bring a nested panel to bytes first.
constexpr int64_t kFewestForBytes = 20;

// With more of them each tile asks for a slice of the next panel while it computes this one: all at once would hold it up.
struct NextPanel {
    const uint8_t *slice;
    int64_t tiles;
    int64_t group_bytes = 0;  // of the slice, for each group of activations (nested_int4)
};

// work(0) … work(N − 1), with indices that are known when it is compiled: arrays that see no others stay in registers.
template <int N, typename Work>
TALLOW_INLINE void unrolled(const Work &work) {
    [&]<int... i>(std::integer_sequence<int, i...>) {
        (work(std::integral_constant<int, i>{}), ...);
    }(std::make_integer_sequence<int, N>{});
}

constexpr int64_t kStepWeights = 4 * kPanel;  // of four inputs of a compressed panel

// Brings the compressed weights of four inputs into the order of bfloat16.
inline void expand(I table, const uint8_t *step, Pairs (&pairs)[4]) {
    const I codes = iload(step), low = iset(0x0f0f0f0f);
    join_bytes(iload(step + 64), look_up(table, iand(codes, low)), pairs[0], pairs[1]);
    join_bytes(iload(step + 128), look_up(table, iand(shift_right<4>(codes), low)), pairs[2], pairs[3]);
}

// Puts in the upper bytes that have no codes, from this exception on; returns the first exception of a later step.
inline int correct(const UpperBytes &upper, int exception, int64_t step, Pairs (&pairs)[4]) {
    alignas(64) uint8_t bytes[2 * kStepWeights];
    const int64_t begin = step * kStepWeights;
    for (int i = 0; i < 4; ++i) store_pairs(reinterpret_cast<uint16_t *>(bytes) + 2 * kLanes * i, pairs[i]);
    for (; upper.places[exception] < begin + kStepWeights; ++exception)
        bytes[2 * (upper.places[exception] - begin) + 1] = upper.others[exception];
    for (int i = 0; i < 4; ++i) pairs[i] = load_pairs(reinterpret_cast<uint16_t *>(bytes) + 2 * kLanes * i);
    return exception;
}

// The codes whose lower four bits are in a half of these bytes; of six bits the other two are at place kAt of `upper`.
template <Number N, int kAt>
inline I lower_half(I bytes, I upper) {
    const I nibbles = iand(bytes, iset(0x0f0f0f0f));
    if constexpr (N != Number::int6)
        return nibbles;
    else if constexpr (kAt < 2)
        return ior(nibbles, iand(shift_left<4 - 2 * kAt>(upper), iset(0x30303030)));
    else
        return ior(nibbles, iand(shift_right<2 * kAt - 4>(upper), iset(0x30303030)));
}
template <Number N, int kAt>
inline I upper_half(I bytes, I upper) {
    return lower_half<N, kAt>(shift_right<4>(bytes), upper);
}

// The sums of R rows and one panel over all inputs. They stay in registers until they are complete: an array that is
// read with changing indices later on would be written at each step.
template <Number N, int R>
struct Tile {
    alignas(64) float sums[R][2][kLanes];

    inline void compute(const Weight &w, const uint8_t *weights, const Activations &x, int64_t row, const NextPanel &next,
                        uint16_t *expanded) {
        F totals[R][2];
        unrolled<R>([&](auto r) { totals[r][0] = totals[r][1] = fzero(); });
        if constexpr (N == Number::float32)
            add_float32(totals, w, weights, x, row, next);
        else if constexpr (N == Number::bfloat16)
            add_bfloat16(totals, w, weights, x, row, next);
        else if constexpr (N == Number::compressed_bfloat16)
            add_compressed(totals, w, weights, x, row, next, expanded);
        else if constexpr (N == Number::nested_int4 && R > kTallestNested)
            add_bytes_of(totals, w, weights, x, row, next, reinterpret_cast<const uint8_t *>(expanded));
        else if constexpr (N == Number::nested_int4)
            expanded ? add_bytes_of(totals, w, weights, x, row, next, reinterpret_cast<const uint8_t *>(expanded))
                     : add_nested(totals, w, weights, x, row, next);
        else
            add_integer(totals, w, weights, x, row, next);
        unrolled<R>([&](auto r) { fstore(sums[r][0], totals[r][0]), fstore(sums[r][1], totals[r][1]); });
    }

   private:
    static constexpr int64_t kAhead = N == Number::compressed_bfloat16 ? 4096 : 16384;  // bytes; measured

    // Called for every `bytes` of the panel in turn; lines may be asked for twice.
    static inline void ask_ahead(NextPanel &next, const uint8_t *from, int64_t bytes) {
        if constexpr (R <= kFew) {
            for (int64_t line = 0; line < bytes; line += 64) prefetch(from + kAhead + line);
        } else {
            const int64_t own = bytes / next.tiles;
            for (int64_t line = 0; line < own; line += 64) prefetch_far(next.slice + line);
            next.slice += own;
        }
    }
    // The same for so many lines, without a loop within that of the products (nor a lambda: GCC would think that it does
    // nothing, and leave it out).
    template <int kLines>
    static inline void ask_lines_ahead(NextPanel &next, int64_t own, const uint8_t *from) {
        const uint8_t *line = R <= kFew ? from + kAhead : next.slice;
        for (int at = 0; at < 64 * kLines; at += 64) R <= kFew ? prefetch(line + at) : prefetch_far(line + at);
        next.slice += own;
    }

    static inline void add_float32(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                   int64_t row, NextPanel next) {
        const float *values = static_cast<const float *>(x.values) + row * x.stride;
        const int64_t own = 128 / next.tiles;
        for (int64_t k = 0; k < w.inputs; ++k, weights += 128) {
            ask_lines_ahead<2>(next, own, weights);
            const float *from = reinterpret_cast<const float *>(weights);
            const F first = fload(from), second = fload(from + kLanes);
            unrolled<R>([&](auto r) {
                const F a = fset(values[r * x.stride + k]);
                totals[r][0] = fma(a, first, totals[r][0]);
                totals[r][1] = fma(a, second, totals[r][1]);
            });
        }
    }

    static inline void add_bfloat16(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                    int64_t row, NextPanel next) {
        const uint16_t *values = static_cast<const uint16_t *>(x.values) + row * x.stride;
        const int64_t own = 128 / next.tiles;
        for (int64_t k = 0; k < w.inputs; k += 2, weights += 128) {
            ask_lines_ahead<2>(next, own, weights);
            const uint16_t *from = reinterpret_cast<const uint16_t *>(weights);
            const Pairs first = load_pairs(from), second = load_pairs(from + 2 * kLanes);
            unrolled<R>([&](auto r) {
                const Pairs a = broadcast_pair(values + r * x.stride + k);
                totals[r][0] = dot2(totals[r][0], first, a);
                totals[r][1] = dot2(totals[r][1], second, a);
            });
        }
    }

    // As add_bfloat16, to the bit. The panel is also written to `expanded`, unless that is null.
    static inline void add_compressed(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                      int64_t row, NextPanel next, uint16_t *expanded) {
        const uint16_t *values = static_cast<const uint16_t *>(x.values) + row * x.stride;
        const int64_t own = kCompressedStep / next.tiles;
        for (int64_t begin = 0; begin < w.inputs; begin += kCompressedInputs) {
            const UpperBytes &upper = *reinterpret_cast<const UpperBytes *>(weights);
            const I table = load_table(upper.common);
            const int64_t steps = least(w.inputs - begin, kCompressedInputs) / 4;
            int exceptions = 0;
            if constexpr (R <= kFew) prefetch(weights + kAhead);
            weights += sizeof(UpperBytes);
            for (int64_t step = 0; step < steps; ++step, weights += kCompressedStep, values += 4) {
                ask_lines_ahead<3>(next, own, weights);
                Pairs pairs[4];
                expand(table, weights, pairs);
                if (upper.places[exceptions] < (step + 1) * kStepWeights) [[unlikely]]
                    exceptions = correct(upper, exceptions, step, pairs);
                if (expanded) {
                    unrolled<4>([&](auto i) { store_pairs(expanded + 2 * kLanes * i, pairs[i]); });
                    expanded += kStepWeights;
                }
                unrolled<R>([&](auto r) {
                    const Pairs a = broadcast_pair(values + r * x.stride), b = broadcast_pair(values + r * x.stride + 2);
                    totals[r][0] = dot2(dot2(totals[r][0], pairs[0], a), pairs[2], b);
                    totals[r][1] = dot2(dot2(totals[r][1], pairs[1], a), pairs[3], b);
                });
            }
        }
    }

    // weight = scale · (code − zero): the sum of codes times activations starts at the offset, −zero times the activations' sum.
    static inline void add_integer(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                   int64_t row, NextPanel next) {
        constexpr int steps = N == Number::int8 ? 8 : 4;
        constexpr int64_t bytes = weight_bits(N) * 128, step_bytes = bytes / steps;  // of 32 inputs
        const int8_t *values = static_cast<const int8_t *>(x.values) + row * x.stride;
        const float *x_scales = x.scales + row * x.groups;
        const int32_t *offsets = x.offsets + row * x.groups;
        const int64_t groups_per_scale = w.group / kActivationGroup;
        for (int64_t g = 0; g < w.inputs / kActivationGroup;) {
            const F scale[2] = {load_half(reinterpret_cast<const uint16_t *>(weights)),
                                load_half(reinterpret_cast<const uint16_t *>(weights) + kLanes)};
            ask_ahead(next, weights, 64);
            weights += 64;
            for (int64_t end = g + groups_per_scale; g < end; ++g, weights += bytes, values += kActivationGroup) {
                if constexpr (R > kFew) ask_ahead(next, weights, bytes);
                I dots[R][2];
                unrolled<R>([&](auto r) { dots[r][0] = dots[r][1] = iset(offsets[r * x.groups + g]); });
                for (int step = 0; step < steps; ++step) {
                    // loads stay in the order of the memory: one that the compiler moves ahead costs up to a tenth
                    if constexpr (R <= kFew) std::atomic_signal_fence(std::memory_order_seq_cst);
                    const uint8_t *at = weights + step * step_bytes;
                    if constexpr (R <= kFew) ask_ahead(next, at, step_bytes);  // a whole group at once would wait for room
                    const I first = iload(at), second = iload(at + 64);
                    if constexpr (N == Number::int8) {
                        add_dots(dots, first, second, values + 4 * step, x.stride);
                    } else {
                        const I upper = N == Number::int6 ? iload(at + 128) : first;
                        add_dots(dots, lower_half<N, 0>(first, upper), lower_half<N, 1>(second, upper), values + 4 * step, x.stride);
                        add_dots(dots, upper_half<N, 2>(first, upper), upper_half<N, 3>(second, upper), values + 4 * step + 16,
                                 x.stride);
                    }
                }
                unrolled<R>([&](auto r) {
                    const F x_scale = fset(x_scales[r * x.groups + g]);
                    totals[r][0] = fma(to_float(dots[r][0]), fmul(scale[0], x_scale), totals[r][0]);
                    totals[r][1] = fma(to_float(dots[r][1]), fmul(scale[1], x_scale), totals[r][1]);
                });
            }
        }
    }

    // The same with sums of integers over the groups that share a scale of the activations: each group's sum is multiplied
    // by a whole number first.
    static inline void add_nested(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                  int64_t row, NextPanel next) {
        const int8_t *values = static_cast<const int8_t *>(x.values) + row * x.stride, *multiples = nullptr;
        const float *x_scales = x.scales + row * x.groups, *scales = reinterpret_cast<const float *>(weights);
        const int32_t *offsets = x.offsets + row * x.groups;
        const int64_t own = next.group_bytes;
        const I low = iset(0x0f0f0f0f), words = iset(0xffff);
        if constexpr (R <= kFew) ask_ahead(next, weights, 128);
        weights += kPanel * sizeof(float);
        for (int64_t g = 0; g < w.inputs / kActivationGroup;) {
            I sums[R][2];
            unrolled<R>([&](auto r) { sums[r][0] = sums[r][1] = iset(0); });
            for (int64_t end = g + w.groups_per_scale; g < end; ++g, values += kActivationGroup, ++offsets) {
                if (g % 2 == 0) {
                    if constexpr (R <= kFew) ask_ahead(next, weights, 64);
                    multiples = reinterpret_cast<const int8_t *>(weights);
                    weights += 64;
                }
                I dots[R][2];
                unrolled<R>([&](auto r) { dots[r][0] = dots[r][1] = iset(offsets[r * x.groups]); });
                if constexpr (R > kFew) {
                    for (int64_t line = 0; line < own; line += 64) prefetch_far(next.slice + line);
                    next.slice += own;
                }
                for (int step = 0; step < 4; ++step) {
                    const uint8_t *at = weights + 128 * step;
                    if constexpr (R <= kFew) {  // as in add_integer
                        std::atomic_signal_fence(std::memory_order_seq_cst);
                        ask_ahead(next, at, 128);
                    }
                    const I first = iload(at), second = iload(at + 64);
                    add_dots(dots, iand(first, low), iand(second, low), values + 4 * step, x.stride);
                    add_dots(dots, iand(shift_right<4>(first), low), iand(shift_right<4>(second), low), values + 4 * step + 16,
                             x.stride);
                }
                weights += kActivationGroup / 2 * kPanel;
                const I first = iand(widen_int8(multiples), words), second = iand(widen_int8(multiples + kLanes), words);
                multiples += kPanel;
                unrolled<R>([&](auto r) {
                    sums[r][0] = add_products(sums[r][0], dots[r][0], first);
                    sums[r][1] = add_products(sums[r][1], dots[r][1], second);
                });
            }
            scale_sums(totals, sums, x_scales++, x.groups);
        }
        scale_totals(totals, scales);
    }

    // The same for a panel that has been brought to bytes, which have been multiplied.
    static inline void add_bytes_of(F (&totals)[R][2], const Weight &w, const uint8_t *weights, const Activations &x,
                                    int64_t row, NextPanel next, const uint8_t *bytes) {
        const int8_t *values = static_cast<const int8_t *>(x.values) + row * x.stride;
        const float *x_scales = x.scales + row * x.groups;
        const int32_t *offsets = x.byte_offsets + row * x.groups;
        const uint8_t *const end = bytes + w.inputs * kPanel;
        while (bytes < end) {
            I sums[R][2];
            unrolled<R>([&](auto r) { sums[r][0] = sums[r][1] = iset(offsets[r * x.groups]); });
            ++offsets;
            for (int64_t group = 0; group < w.groups_per_scale; ++group, values += kActivationGroup) {
                for (int64_t line = 0; line < next.group_bytes; line += 64) prefetch_far(next.slice + line);
                next.slice += next.group_bytes;
                for (int step = 0; step < 8; ++step, bytes += 128) {
                    const I first = iload(bytes), second = iload(bytes + 64);
                    unrolled<R>([&](auto r) {
                        const I a = broadcast4(values + 4 * step + r * x.stride);
                        sums[r][0] = dot4(sums[r][0], first, a);
                        sums[r][1] = dot4(sums[r][1], second, a);
                    });
                }
            }
            scale_sums(totals, sums, x_scales++, x.groups);
        }
        scale_totals(totals, reinterpret_cast<const float *>(weights));
    }

    static inline void scale_sums(F (&totals)[R][2], I (&sums)[R][2], const float *x_scales, int64_t stride) {
        unrolled<R>([&](auto r) {
            const F x_scale = fset(x_scales[r * stride]);
            totals[r][0] = fma(to_float(sums[r][0]), x_scale, totals[r][0]);
            totals[r][1] = fma(to_float(sums[r][1]), x_scale, totals[r][1]);
        });
    }

    static inline void scale_totals(F (&totals)[R][2], const float *scales) {
        const F first = fload(scales), second = fload(scales + kLanes);
        unrolled<R>([&](auto r) { totals[r][0] = fmul(totals[r][0], first), totals[r][1] = fmul(totals[r][1], second); });
    }

    static inline I dot(I sum, I codes, I activations) {
        return N == Number::int8 ? dot4(sum, codes, activations) : dot4_small(sum, codes, activations);
    }

    static inline void add_dots(I (&dots)[R][2], I first, I second, const int8_t *values, int64_t stride) {
        unrolled<R>([&](auto r) {
            const I a = broadcast4(values + r * stride);
            dots[r][0] = dot(dots[r][0], first, a);
            dots[r][1] = dot(dots[r][1], second, a);
        });
    }
};

// What becomes of the sums of a row and a panel.
inline void finish_row(const Weight &w, const Destination &to, int64_t row, int64_t panel, F first, F second) {
    F both[2] = {first, second};
    for (int i = 0; i < 2; ++i) {
        const int64_t at = panel * kPanel + i * kLanes;
        if (w.bias) both[i] = fadd(both[i], fload(w.bias + at));
        if (to.extra) both[i] = fadd(both[i], fload(to.extra + row * to.extra_stride + at));
    }
    float *out = to.out + row * to.stride;
    if (to.mode == Destination::gate) {
        fstore(out + panel * kLanes, fmul(activated(both[0], to.activation), both[1]));
        return;
    }
    for (int i = 0; i < 2; ++i) {
        float *place = out + panel * kPanel + i * kLanes;
        if (to.mode == Destination::add) both[i] = fadd(both[i], fload(place));
        if (to.mode == Destination::activate) both[i] = activated(both[i], to.activation);
        fstore(place, both[i]);
    }
}

template <Number N, int R>
inline void product_tile(const Weight &w, const uint8_t *weights, const Activations &x, const Destination &to, int64_t row,
                         int64_t panel, const NextPanel &next, uint16_t *expanded) {
    Tile<N, R> tile;
    tile.compute(w, weights, x, row, next, expanded);
    for (int r = 0; r < R; ++r) finish_row(w, to, row + r, panel, fload(tile.sums[r][0]), fload(tile.sums[r][1]));
}

// Chooses the tile of this height at compile time.
template <Number N, int R>
inline void product_rows(int64_t height, const Weight &w, const uint8_t *weights, const Activations &x,
                         const Destination &to, int64_t row, int64_t panel, const NextPanel &next, uint16_t *expanded) {
    if (height == R) return product_tile<N, R>(w, weights, x, to, row, panel, next, expanded);
    if constexpr (R > 1) product_rows<N, R - 1>(height, w, weights, x, to, row, panel, next, expanded);
}

// A panel of codes times what their groups' scales are multiples of, plus kZero: as int8, without scales. `sometimes`: called
// with every eighth group.
template <int32_t kZero, typename Sometimes>
inline void bring_to_bytes(const Weight &w, const uint8_t *weights, uint8_t *bytes, const Sometimes &sometimes) {
    const I low = iset(0x0f0f0f0f);
    for (int64_t g = 0; g < w.inputs / kActivationGroup; ++g, bytes += 8 * 128) {
        if (g % 8 == 7) sometimes();
        const int8_t *multiples = reinterpret_cast<const int8_t *>(weights + w.multiples_at(g));
        const uint8_t *codes = weights + w.nested_codes_at(g);
        // Codes times the magnitude fit a byte, so that two of them are multiplied as one word; to negate a product is to
        // flip its bits and add one.
        I magnitudes[2], signs[2], zeros[2];
        for (int half = 0; half < 2; ++half) {
            const I multiple = widen_int8(multiples + half * kLanes);
            signs[half] = isub(iset(0), shift_right<31>(multiple));  // −1 or 0
            const I magnitude = iadd(ixor(multiple, signs[half]), shift_right<31>(multiple));
            magnitudes[half] = ior(magnitude, shift_left<16>(magnitude));
            const I zero =
                iand(iadd(isub(iset(kZero), shift_left<3>(multiple)), shift_right<31>(multiple)), iset(0xff));
            zeros[half] = multiply_words(ior(zero, shift_left<16>(zero)), iset(0x01010101));
        }
        for (int step = 0; step < 4; ++step, codes += 128)
            for (int half = 0; half < 2; ++half) {
                const I both = iload(codes + 64 * half);
                const I parts[2] = {iand(both, low), iand(shift_right<4>(both), low)};
                for (int upper = 0; upper < 2; ++upper) {
                    const I product = ixor(multiply_words(parts[upper], magnitudes[half]), signs[half]);
                    istore(bytes + (step + 4 * upper) * 128 + 64 * half, add_bytes(product, zeros[half]));
                }
            }
    }
}

template <Number N>
constexpr int kTallest = N == Number::nested_int4 ? (kTallestBytes > kTallestNested ? kTallestBytes : kTallestNested)
                         : is_integer(N)          ? kTallestInteger
                                                  : kTallestFloat;

template <Number N>
void product(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    constexpr bool nested = N == Number::nested_int4;
    const bool in_bytes = nested && kTallestBytes > 0 && rows >= kFewestForBytes;
    const int64_t tallest = nested && !in_bytes ? kTallestNested : kTallest<N>;
    const int64_t tiles = (rows + tallest - 1) / tallest;
    const int64_t least_rows = rows / tiles, taller = rows % tiles;  // so many tiles have a row more
    const int64_t panel_bytes = w.panel_bytes(), slice_bytes = panel_bytes / tiles;
    const int64_t group_bytes = nested ? round_up(slice_bytes / (w.inputs / kActivationGroup), 64) : 0;
    uint16_t *expanded = (nested ? in_bytes : tiles > 1) ? to.panel : nullptr;
    for (; panel < end; ++panel) {
        const uint8_t *weights = w.packed + panel * panel_bytes;
        if (in_bytes) bring_to_bytes<128>(w, weights, reinterpret_cast<uint8_t *>(expanded), [] {});
        for (int64_t t = 0, row = 0; t < tiles; ++t) {
            const int64_t height = least_rows + (t < taller);
            const NextPanel next{weights + panel_bytes + t * slice_bytes, tiles, group_bytes};
            if (N != Number::compressed_bfloat16 || t == 0) {
                product_rows<N, kTallest<N>>(height, w, weights, x, to, row, panel, next, expanded);
            } else if constexpr (N == Number::compressed_bfloat16) {  // the first tile has expanded the panel
                const uint8_t *plain = reinterpret_cast<const uint8_t *>(expanded);
                product_rows<Number::bfloat16, kTallest<N>>(height, w, plain, x, to, row, panel, next, nullptr);
            }
            row += height;
        }
    }
}

void multiply(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    switch (w.number) {
        case Number::float32: return product<Number::float32>(w, x, to, rows, panel, end);
        case Number::bfloat16: return product<Number::bfloat16>(w, x, to, rows, panel, end);
        case Number::compressed_bfloat16: return product<Number::compressed_bfloat16>(w, x, to, rows, panel, end);
        case Number::int8: return product<Number::int8>(w, x, to, rows, panel, end);
        case Number::int4: return product<Number::int4>(w, x, to, rows, panel, end);
        case Number::int6: return product<Number::int6>(w, x, to, rows, panel, end);
        case Number::nested_int4: return product<Number::nested_int4>(w, x, to, rows, panel, end);
    }
}
