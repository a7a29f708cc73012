// The draw itself, in terms of an instruction set's vocabulary: an exponential race (see kernels/sampling.py).

// Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011): four words from each of 16
// counters (index, place, 0, 0).
inline void philox(uint64_t seed, uint32_t index, I places, I (&words)[4]) {
    I c0 = iset(int32_t(index)), c1 = places, c2 = iset(0), c3 = iset(0);
    uint32_t key0 = uint32_t(seed), key1 = uint32_t(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        I high0, low0, high2, low2;
        multiply_wide(c0, 0xd2511f53, high0, low0);
        multiply_wide(c2, 0xcd9e8d57, high2, low2);
        c0 = ixor(ixor(high2, c1), iset(int32_t(key0)));
        c1 = low2;
        c2 = ixor(ixor(high0, c3), iset(int32_t(key1)));
        c3 = low0;
        key0 += 0x9e3779b9, key1 += 0xbb67ae85;
    }
    words[0] = c0, words[1] = c1, words[2] = c2, words[3] = c3;
}

// −log(1 − v) to about one unit in the last place, for v = (n + ½) / 2³¹ in (0, 1). It keeps the digits of a small v.
inline F exponential(I n, F v) {
    const F u = fma(to_float(ixor(n, iset(0x7fffffff))), fset(0x1p-31f), fset(0x1p-32f));  // 1 − v
    // u = 2^k · (1 + f), 1 + f from √½ to √2
    const I root = iset(0x3f3504f3), bias = iset(127 << 23);
    const I exponent = shift_right<23>(iadd(isub(bits_of(u), root), bias));  // k + 127
    const F k = fsub(to_float(exponent), fset(127.0f));
    const F part = fsub(float_of(isub(bits_of(u), isub(shift_left<23>(exponent), bias))), fset(1.0f));
    const F f = fselect_less(v, fset(0.29f), fsub(fzero(), v), part);
    F p = fset(-0.0765080f);  // log(1 + f) = f − f²/2 + f³ p(f), by least squares of the relative error: to 6e-9
    p = fma(p, f, fset(0.127755806f));
    p = fma(p, f, fset(-0.131608888f));
    p = fma(p, f, fset(0.141999498f));
    p = fma(p, f, fset(-0.166231051f));
    p = fma(p, f, fset(0.200012937f));
    p = fma(p, f, fset(-0.250008285f));
    p = fma(p, f, fset(0.333333313f));
    const F square = fmul(f, f);
    const F log1p = fadd(f, fma(fmul(square, f), p, fmul(fset(-0.5f), square)));
    return fsub(fzero(), fma(k, fset(0.69314718f), log1p));
}

// Who comes first so far. As −log(1 − v) ≥ v, few need the logarithm to know that they do not.
struct Race {
    float best = INFINITY;
    int32_t winner = -1;
    F limit = fset(INFINITY);  // a little more than the best
    float floor = -INFINITY;   // the logarithm of the weight below which not even the least variate wins

    void run(I words, F weights, const int32_t *ids) {
        const I n = shift_right<1>(words);
        const F v = fma(to_float(n), fset(0x1p-31f), fset(0x1p-32f));
        if (!mask_less(v, fmul(weights, limit))) return;
        float times[kLanes];
        fstore(times, fdiv(exponential(n, v), weights));
        for (int lane = 0; lane < kLanes; ++lane)
            if (times[lane] < best) best = times[lane], winner = ids[lane];
        limit = fset(1.0001f * best);
        floor = std::log(0x1p-32f / (1.0001f * best));
    }
};

inline int32_t race_of_all(const float *logits, int64_t size, const Draw &draw, const Scale &scale) {
    // Counters so that the words, transposed, are those of 64 tokens in their order.
    static constexpr int32_t kOrder[kLanes] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    Race race;
    over_blocks(logits, size, [&](int64_t first, const float *block) {
        F x[4];
        for (int i = 0; i < 4; ++i) x[i] = scale(fload(block + i * kLanes));
        if (!mask_less(fset(race.floor), fmax(fmax(x[0], x[1]), fmax(x[2], x[3])))) return;
        I words[4];
        philox(draw.seed, draw.index, iadd(iload(kOrder), iset(int32_t(first / 4))), words);
        transpose4(words);
        for (int i = 0; i < 4; ++i) {
            int32_t ids[kLanes];
            for (int lane = 0; lane < kLanes; ++lane) ids[lane] = int32_t(first) + i * kLanes + lane;
            race.run(words[i], fexp(x[i]), ids);
        }
    });
    return race.winner;
}

inline int32_t race_among(const Candidates &all, const Draw &draw) {
    Race race;
    over_vectors(all.count, [&](int64_t i, int lanes) {
        I words[4];
        philox(draw.seed, draw.index, shift_right<2>(iload(all.ids + i)), words);
        uint32_t four[4][kLanes], own[kLanes];
        for (int j = 0; j < 4; ++j) istore(four[j], words[j]);
        for (int lane = 0; lane < kLanes; ++lane) own[lane] = four[all.ids[i + lane] & 3][lane];
        race.run(iload(own), fkeep(fload(all.weights + i), lanes, fzero()), all.ids + i);
    });
    return race.winner;
}

int32_t choose(const float *logits, int64_t size, const Draw &draw, Candidates &all) {
    const float greatest = find_peaks(logits, size, all.weights);
    if (std::isnan(greatest)) return -1;
    if (draw.temperature == 0) {
        int64_t first = 0;
        while (logits[first] != greatest) ++first;
        return int32_t(first);
    }
    if (!draw.has_filter(size)) return race_of_all(logits, size, draw, Scale(greatest, draw));
    filter_found(logits, size, draw, greatest, all.weights, all);
    return race_among(all, draw);
}
