// Operations on single rows, in terms of an instruction set's vocabulary.

// Calls work(first, lanes) for vectors of 16 floats that cover `size`; the last may have fewer lanes that count.
template <typename Work>
inline void over_vectors(int64_t size, const Work &work) {
    int64_t i = 0;
    for (; i + kLanes <= size; i += kLanes) work(i, kLanes);
    if (i < size) work(i, int(size - i));
}

// Rows have room for whole vectors, whose lanes beyond `size` may hold anything.
void normalize(const Norm &norm, const float *in, int64_t size, float *out) {
    float mean = 0;
    if (norm.kind == Norm::layer) {
        F total = fzero();
        over_vectors(size, [&](int64_t i, int lanes) { total = fadd(total, fkeep(fload(in + i), lanes, fzero())); });
        mean = fsum(total) / float(size);
    }
    F squares = fzero();
    over_vectors(size, [&](int64_t i, int lanes) {
        const F x = fkeep(fsub(fload(in + i), fset(mean)), lanes, fzero());
        squares = fma(x, x, squares);
    });
    const F inverse = fdiv(fset(1.0f), fsqrt(fset(fsum(squares) / float(size) + norm.eps)));
    over_vectors(size, [&](int64_t i, int lanes) {
        F x = fmul(fmul(fsub(fload(in + i), fset(mean)), inverse), fload(norm.weight + i));
        if (norm.bias) x = fadd(x, fload(norm.bias + i));
        fstore(out + i, fkeep(x, lanes, fzero()));
    });
}

// What four vectors come to when `join` is applied to all lanes of each: that of vector i in lane i of every four.
template <typename Join>
inline I join_lanes(I (&vectors)[4], const Join &join) {
    transpose4(vectors);
    I all = join(join(vectors[0], vectors[1]), join(vectors[2], vectors[3]));
    all = join(all, rotate_fours<2>(all));
    return join(all, rotate_fours<1>(all));
}

// What four groups of values are divided by to come within ±127, and its inverse, from the sizes of their lanes.
inline void find_scales(I (&sizes)[4], float *scales, float *inverses) {
    const F greatest = float_of(join_lanes(sizes, [](I a, I b) { return imax(a, b); }));
    fstore(scales, fselect_less(greatest, fset(INFINITY), fdiv(greatest, fset(127)), fset(NAN)));
    fstore(inverses, fselect_less(fset(1e-30f), greatest, fdiv(fset(127), greatest), fzero()));
}

bool reads_offsets(int64_t) { return true; }

// With one scale for each kWidth groups. Four scales, and then four groups, at a time; where fewer are left, the last takes
// the place of those that are missing.
template <int kWidth>
inline void round_to_int8(const float *in, int64_t size, int32_t zero, int8_t *codes, float *scales, int32_t *offsets,
                          int32_t *byte_offsets) {
    constexpr int64_t values = kWidth * kActivationGroup;
    const int64_t all = size / values;
    alignas(64) float scale_of[kLanes], inverse_of[kLanes];
    alignas(64) int32_t sum_of[kLanes];
    for (int64_t first = 0; first < all; first += 4) {
        const int64_t count = least(4, all - first), groups = count * kWidth;
        I sizes[4];
        for (int i = 0; i < 4; ++i) {
            if (i >= count) {
                sizes[i] = sizes[i - 1];
                continue;
            }
            const float *from = in + (first + i) * values;
            sizes[i] = iset(0);  // as integers, so that a NaN is the greatest and is not lost
            for (int64_t at = 0; at < values; at += kLanes) sizes[i] = imax(sizes[i], bits_of(fabs(fload(from + at))));
        }
        find_scales(sizes, scale_of, inverse_of);
        std::memcpy(scales + first, scale_of, size_t(count) * sizeof(float));
        const auto round_group = [&](int64_t group) {
            const int64_t at = first * values + group * kActivationGroup;
            const F inverse = fset(inverse_of[group / kWidth]);
            return iadd(store_int8(codes + at, fmul(fload(in + at), inverse)),
                        store_int8(codes + at + kLanes, fmul(fload(in + at + kLanes), inverse)));
        };
        if (!offsets) {
            for (int64_t group = 0; group < groups; ++group) round_group(group);
            continue;
        }
        int32_t sums[4] = {};
        for (int64_t g = 0; g < groups; g += 4) {
            I totals[4];
            for (int i = 0; i < 4; ++i) totals[i] = round_group(least(g + i, groups - 1));
            istore(sum_of, join_lanes(totals, [](I a, I b) { return iadd(a, b); }));
            for (int64_t i = 0; i < least(4, groups - g); ++i) {
                offsets[first * kWidth + g + i] = -zero * sum_of[i];
                sums[(g + i) / kWidth] += sum_of[i];
            }
        }
        for (int64_t i = 0; byte_offsets && i < count; ++i) byte_offsets[first + i] = -128 * sums[i];
    }
}

// Chooses the code for this number of groups at compile time.
template <int kWidth, typename... Rest>
inline void round_groups(int64_t width, const Rest &...rest) {
    if (width == kWidth) return round_to_int8<kWidth>(rest...);
    if constexpr (kWidth > 1) round_groups<kWidth - 1>(width, rest...);
}

void round_row(const Weight &w, const float *in, const Activations &to, int64_t row) {
    const int64_t size = w.inputs;
    switch (w.number) {
        case Number::float32: {
            float *out = static_cast<float *>(const_cast<void *>(to.values)) + row * to.stride;
            over_vectors(size, [&](int64_t i, int lanes) { fstore(out + i, fkeep(fload(in + i), lanes, fzero())); });
            return;
        }
        case Number::bfloat16:
        case Number::compressed_bfloat16: {
            uint16_t *out = static_cast<uint16_t *>(const_cast<void *>(to.values)) + row * to.stride;
            over_vectors(size, [&](int64_t i, int lanes) {
                store_bfloat16(out + i, fkeep(fload(in + i), lanes, fzero()));
            });
            return;
        }
        default: {
            int8_t *codes = static_cast<int8_t *>(const_cast<void *>(to.values)) + row * to.stride;
            float *scales = const_cast<float *>(to.scales) + row * to.groups;
            int32_t *offsets = to.offsets ? const_cast<int32_t *>(to.offsets) + row * to.groups : nullptr;
            int32_t *bytes = w.number == Number::nested_int4 ? const_cast<int32_t *>(to.byte_offsets) + row * to.groups : nullptr;
            round_groups<kMostGroupsPerScale>(w.groups_per_scale, in, size, zero_of(w.number), codes, scales, offsets, bytes);
        }
    }
}

// Rotates the first 2 · half entries of a head, pairing entry i with entry i + half.
void rotate(float *head, const float *cosines, const float *sines, int64_t half) {
    int64_t i = 0;
    for (; i + kLanes <= half; i += kLanes) {
        const F first = fload(head + i), second = fload(head + half + i), c = fload(cosines + i), s = fload(sines + i);
        fstore(head + i, fsub(fmul(first, c), fmul(second, s)));
        fstore(head + half + i, fma(second, c, fmul(first, s)));
    }
    for (; i < half; ++i) {
        const float first = head[i], second = head[half + i];
        head[i] = first * cosines[i] - second * sines[i];
        head[half + i] = second * cosines[i] + first * sines[i];
    }
}

// One row of a block of a compressed table, `output` counted within the panel.
inline void expand_row(const uint8_t *block, int64_t inputs, int64_t output, uint16_t *out) {
    const UpperBytes &upper = *reinterpret_cast<const UpperBytes *>(block);
    const int64_t half = output / kLanes, lane = output % kLanes;
    for (int64_t i = 0; i < inputs; ++i) {
        const uint8_t *step = block + sizeof upper + i / 4 * kCompressedStep;
        const int64_t pair = i % 4 / 2, byte = lane / 4 * 16 + half * 8 + lane % 4 * 2 + i % 2;
        out[i] = uint16_t(step[64 + 64 * pair + byte] | upper.common[step[byte] >> 4 * pair & 15] << 8);
    }
    for (int i = 0; upper.places[i] != kNoPlace; ++i)
        if (upper.places[i] % (2 * kPanel) / 2 == output) {
            uint16_t &word = out[upper.places[i] / (2 * kPanel) * 2 + upper.places[i] % 2];
            word = uint16_t((word & 0xff) | upper.others[i] << 8);
        }
}

// One row of a packed table of token vectors.
void embed(const Weight &table, int64_t token, float scale, float *out) {
    const uint8_t *panel = table.packed + token / kPanel * table.panel_bytes();
    const int64_t half = token % kPanel / kLanes, lane = token % kLanes;
    if (table.number == Number::compressed_bfloat16) {
        uint16_t words[kCompressedInputs];
        for (int64_t begin = 0; begin < table.inputs; begin += kCompressedInputs) {
            const int64_t inputs = least(table.inputs - begin, kCompressedInputs);
            expand_row(panel, inputs, token % kPanel, words);
            panel += sizeof(UpperBytes) + inputs / 4 * kCompressedStep;
            for (int64_t i = 0; i < inputs; ++i) out[begin + i] = from_bfloat16(words[i]) * scale;
        }
        return;
    }
    for (int64_t i = 0; i < table.inputs; ++i) {
        float value = 0;
        if (table.number == Number::float32) {
            value = reinterpret_cast<const float *>(panel)[i * kPanel + half * kLanes + lane];
        } else if (table.number == Number::bfloat16) {
            value = from_bfloat16(reinterpret_cast<const uint16_t *>(panel)[(i / 2 * kPanel + half * kLanes + lane) * 2 + i % 2]);
        } else {
            const bool nested = table.number == Number::nested_int4;
            const int64_t g = i / table.group, j = i % table.group, step = j % 32 / 4, byte = 4 * lane + i % 4;
            const uint8_t *scales = nested ? panel : panel + g * table.group_bytes();
            const uint8_t *codes = nested ? panel + table.nested_codes_at(g) : scales + 64;
            if (table.number == Number::int8) {
                value = float(codes[j / 4 * 128 + half * 64 + byte]);
            } else {
                codes += (j / 32 * 4 + step % 4) * weight_bits(table.number) * 32;
                const uint8_t both = codes[half * 64 + byte];
                value = float(step < 4 ? both & 15 : both >> 4);
                if (table.number == Number::int6) value += float(codes[128 + byte] >> (step / 4 * 4 + half * 2) & 3) * 16;
            }
            value -= float(zero_of(table.number));
            const int64_t output = token % kPanel;
            if (nested)
                value *= reinterpret_cast<const float *>(panel)[output] * float(int8_t(panel[table.multiples_at(g) + output]));
            else
                value *= from_half(reinterpret_cast<const uint16_t *>(scales)[output]);
        }
        out[i] = value * scale;
    }
}

Summary summarize(float *logits, int64_t size, float softcap) {
    F best = fset(-INFINITY);
    over_vectors(size, [&](int64_t i, int lanes) {
        F x = fload(logits + i);
        if (softcap > 0) {
            x = fmul(fset(softcap), ftanh(fdiv(x, fset(softcap))));
            fstore(logits + i, x);
        }
        best = fmax(best, fkeep(x, lanes, fset(-INFINITY)));
    });
    const float greatest = fgreatest(best);
    F total = fzero();
    over_vectors(size, [&](int64_t i, int lanes) {
        total = fadd(total, fkeep(fexp(fsub(fload(logits + i), fset(greatest))), lanes, fzero()));
    });
    int64_t argmax = 0;
    while (argmax < size - 1 && logits[argmax] != greatest) ++argmax;
    return {int32_t(argmax), greatest, greatest + std::log(fsum(total))};
}
