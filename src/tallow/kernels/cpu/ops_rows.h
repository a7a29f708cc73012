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

inline void round_to_int8(const float *in, int64_t size, int8_t *codes, float *scales, int32_t *sums) {
    for (int64_t g = 0; g < size / kActivationGroup; ++g, in += kActivationGroup, codes += kActivationGroup) {
        const F first = fload(in), second = fload(in + kLanes);
        // as integers, so that a NaN is the greatest and is not lost
        const int32_t bits = igreatest(imax(bits_of(fabs(first)), bits_of(fabs(second))));
        float greatest;
        std::memcpy(&greatest, &bits, sizeof greatest);
        const bool finite = bits < 0x7f800000;
        scales[g] = finite ? greatest / 127 : NAN;
        const F inverse = fset(finite && greatest > 1e-30f ? 127 / greatest : 0.0f);
        sums[g] = store_int8(codes, fmul(first, inverse)) + store_int8(codes + kLanes, fmul(second, inverse));
    }
}

void round_row(Number number, const float *in, int64_t size, const Activations &to, int64_t row) {
    switch (number) {
        case Number::float32: {
            float *out = static_cast<float *>(const_cast<void *>(to.values)) + row * to.stride;
            over_vectors(size, [&](int64_t i, int lanes) { fstore(out + i, fkeep(fload(in + i), lanes, fzero())); });
            return;
        }
        case Number::bfloat16: {
            uint16_t *out = static_cast<uint16_t *>(const_cast<void *>(to.values)) + row * to.stride;
            over_vectors(size, [&](int64_t i, int lanes) {
                store_bfloat16(out + i, fkeep(fload(in + i), lanes, fzero()));
            });
            return;
        }
        default:
            round_to_int8(in, size, static_cast<int8_t *>(const_cast<void *>(to.values)) + row * to.stride,
                          const_cast<float *>(to.scales) + row * to.groups,
                          const_cast<int32_t *>(to.sums) + row * to.groups);
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

// One row of a packed table of token vectors.
void embed(const Weight &table, int64_t token, float scale, float *out) {
    const uint8_t *panel = table.packed + token / kPanel * table.panel_bytes();
    const int64_t half = token % kPanel / kLanes, lane = token % kLanes;
    const int64_t group_bytes = 64 + table.group * (table.number == Number::int8 ? 32 : 16);
    for (int64_t i = 0; i < table.inputs; ++i) {
        float value = 0;
        if (table.number == Number::float32) {
            value = reinterpret_cast<const float *>(panel)[i * kPanel + half * kLanes + lane];
        } else if (table.number == Number::bfloat16) {
            value = from_bfloat16(reinterpret_cast<const uint16_t *>(panel)[(i / 2 * kPanel + half * kLanes + lane) * 2 + i % 2]);
        } else {
            const uint8_t *group = panel + i / table.group * group_bytes, *codes = group + 64 + half * 64 + 4 * lane + i % 4;
            const int64_t j = i % table.group, step = j % 32 / 4;
            if (table.number == Number::int8) {
                value = float(codes[j / 4 * 128]) - 128;
            } else {
                const uint8_t both = codes[j / 32 * 512 + step % 4 * 128];
                value = float(step < 4 ? both & 15 : both >> 4) - 8;
            }
            value *= from_half(reinterpret_cast<const uint16_t *>(group)[half * kLanes + lane]);
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
