// Elementary functions of 16 floats, in terms of an instruction set's vocabulary.

// e^x for x of at most 88.7, to about one unit in the last place; 0 below −87.3, so that −infinity gives 0.
inline F fexp(F x) {
    // NaN stays NaN; what is below is 0 anyway, and not a subnormal number, which would hold some processors up
    const F limited = fmax(fset(-87.3f), x);
    const F whole = fround(fmul(limited, fset(1.44269504f)));
    F rest = fma(whole, fset(-0.693359375f), limited);  // ln 2 in two parts
    rest = fma(whole, fset(2.12194440e-4f), rest);
    F p = fset(8.290272206e-3f);  // minimax: within 9.2e-8 of e^rest, which is within ± ln 2 / 2
    p = fma(p, rest, fset(4.189816117e-2f));
    p = fma(p, rest, fset(0.1666763872f));
    p = fma(p, rest, fset(0.4999914765f));
    p = fma(p, rest, fset(0.9999997020f));
    p = fma(p, rest, fset(1.0f));
    return fselect_less(x, fset(-87.3f), fzero(), fscale(p, whole));
}

// 2^x for x of at most 0, to about one unit in the last place; 0 from −127 down.
inline F fexp2(F x) {
    const F limited = fmax(fset(-127.0f), x), magic = fset(12582912.0f);  // 1.5 · 2^23: the lowest bits of a sum are whole
    const F shifted = fmin(fadd(limited, magic), magic);  // not a NaN, which has other bits: it stays one below
    const F rest = fsub(limited, fsub(shifted, magic));
    F p = fset(1.535336196e-4f);  // minimax: within 2e-9 of 2^rest, which is within ± 1/2
    p = fma(p, rest, fset(1.339887502e-3f));
    p = fma(p, rest, fset(9.618436918e-3f));
    p = fma(p, rest, fset(5.550332367e-2f));
    p = fma(p, rest, fset(0.2402264774f));
    p = fma(p, rest, fset(0.6931471825f));
    p = fma(p, rest, fset(1.0f));
    return float_of(iadd(bits_of(p), shift_left<23>(bits_of(shifted))));
}

inline F ftanh(F x) {
    const F e = fexp(fmul(fset(2.0f), fmax(fset(-20.0f), fmin(fset(20.0f), x))));
    return fdiv(fsub(e, fset(1.0f)), fadd(e, fset(1.0f)));
}

// The error function to 1.5e-7 (Abramowitz and Stegun, 7.1.26).
inline F ferf(F x) {
    const F size = fabs(x);
    const F t = fdiv(fset(1.0f), fma(fset(0.3275911f), size, fset(1.0f)));
    F p = fset(1.061405429f);
    p = fma(p, t, fset(-1.453152027f));
    p = fma(p, t, fset(1.421413741f));
    p = fma(p, t, fset(-0.284496736f));
    p = fma(p, t, fset(0.254829592f));
    const F value = fsub(fset(1.0f), fmul(fmul(p, t), fexp(fsub(fzero(), fmul(x, x)))));
    return fselect_less(x, fzero(), fsub(fzero(), value), value);
}

inline F activated(F x, Activation activation) {
    switch (activation) {
        case Activation::silu: return fdiv(x, fadd(fset(1.0f), fexp(fmin(fset(88.0f), fsub(fzero(), x)))));
        case Activation::gelu: {
            const F half = fmul(fset(0.5f), x);
            return fma(half, ferf(fmul(x, fset(0.70710678f))), half);
        }
        case Activation::gelu_tanh: {
            const F inner = fmul(fset(0.79788456f), fma(fmul(fset(0.044715f), x), fmul(x, x), x));
            const F half = fmul(fset(0.5f), x);
            return fma(half, ftanh(inner), half);
        }
    }
    return x;
}
