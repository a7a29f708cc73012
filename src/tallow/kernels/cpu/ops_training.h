// Operations of training on rows of float32 or bfloat16, forward and backward, in terms of an instruction set's vocabulary.
// They compute in float32. Rows end where they end: nothing behind them is read or written.

inline F load_of(const float *from) { return fload(from); }
inline F load_of(const uint16_t *from) { return load_bfloat16(from); }
inline void store_of(float *to, F value) { fstore(to, value); }
inline void store_of(uint16_t *to, F value) { store_bfloat16(to, value); }

template <typename T>
inline F load_lanes(const T *from, int lanes) {
    if (lanes == kLanes) return load_of(from);
    T room[kLanes] = {};
    std::memcpy(room, from, size_t(lanes) * sizeof(T));
    return load_of(room);
}

template <typename T>
inline void store_lanes(T *to, F value, int lanes) {
    if (lanes == kLanes) return store_of(to, value);
    T room[kLanes];
    store_of(room, value);
    std::memcpy(to, room, size_t(lanes) * sizeof(T));
}

// Calls work with pointers to what they are pointers to.
template <typename Work>
inline auto typed(Number number, const Work &work) {
    return number == Number::bfloat16 ? work(uint16_t{}) : work(float{});
}

// −log softmax(logits)[target], and by the logits its gradient, if there is a place for it.
float cross_entropy(Number number, const void *logits, int64_t size, int64_t target, void *gradient) {
    return typed(number, [&]<typename T>(T) {
        const T *in = static_cast<const T *>(logits);
        T *out = static_cast<T *>(gradient);
        F best = fset(-INFINITY);
        over_vectors(size, [&](int64_t i, int lanes) {
            best = fmax(best, fkeep(load_lanes(in + i, lanes), lanes, fset(-INFINITY)));
        });
        const float greatest = fgreatest(best);
        F sums[2] = {fzero(), fzero()};
        over_vectors(size, [&](int64_t i, int lanes) {
            const F value = fexp(fsub(load_lanes(in + i, lanes), fset(greatest)));
            F &sum = sums[i / kLanes % 2];
            sum = fadd(sum, fkeep(value, lanes, fzero()));
        });
        const float total = fsum(fadd(sums[0], sums[1]));
        alignas(64) float at_target[kLanes];
        fstore(at_target, load_lanes(in + target, 1));
        const float loss = greatest + std::log(total) - at_target[0];
        if (!out) return loss;
        const F inverse = fset(1 / total);
        over_vectors(size, [&](int64_t i, int lanes) {
            store_lanes(out + i, fmul(fexp(fsub(load_lanes(in + i, lanes), fset(greatest))), inverse), lanes);
        });
        store_lanes(out + target, fset(std::exp(at_target[0] - greatest) / total - 1), 1);
        return loss;
    });
}

// out = x / rms(x) · weight, in this number; gives 1 / rms(x).
float rms_forward(const float *x, const float *weight, int64_t size, float eps, Number number, void *out) {
    F squares = fzero();
    over_vectors(size, [&](int64_t i, int lanes) {
        const F value = load_lanes(x + i, lanes);
        squares = fma(value, value, squares);
    });
    const float inverse = 1 / std::sqrt(fsum(squares) / float(size) + eps);
    typed(number, [&]<typename T>(T) {
        over_vectors(size, [&](int64_t i, int lanes) {
            const F normalized = fmul(load_lanes(x + i, lanes), fset(inverse));
            store_lanes(static_cast<T *>(out) + i, fmul(normalized, load_lanes(weight + i, lanes)), lanes);
        });
    });
    return inverse;
}

// Of the gradient by the output those by x (stored) and by the weight (added).
void rms_backward(const float *x, const float *weight, float inverse, Number number, const void *gradient, int64_t size,
                  float *by_x, float *by_weight) {
    typed(number, [&]<typename T>(T) {
        const T *by_out = static_cast<const T *>(gradient);
        F products = fzero();
        over_vectors(size, [&](int64_t i, int lanes) {
            const F normalized = fmul(load_lanes(x + i, lanes), fset(inverse)), outer = load_lanes(by_out + i, lanes);
            products = fma(fmul(outer, load_lanes(weight + i, lanes)), normalized, products);
            store_lanes(by_weight + i, fma(outer, normalized, load_lanes(by_weight + i, lanes)), lanes);
        });
        const F mean = fset(fsum(products) / float(size));
        over_vectors(size, [&](int64_t i, int lanes) {
            const F normalized = fmul(load_lanes(x + i, lanes), fset(inverse));
            const F inner = fmul(load_lanes(by_out + i, lanes), load_lanes(weight + i, lanes));
            store_lanes(by_x + i, fmul(fset(inverse), fsub(inner, fmul(mean, normalized))), lanes);
        });
    });
}

// The derivative of `activated`.
inline F slope(F x, Activation activation) {
    const F one = fset(1.0f), half = fset(0.5f);
    switch (activation) {
        case Activation::silu: {
            const F s = fdiv(one, fadd(one, fexp(fmin(fset(88.0f), fsub(fzero(), x)))));
            return fmul(s, fma(x, fsub(one, s), one));
        }
        case Activation::gelu: {
            const F density = fmul(fset(0.39894228f), fexp(fmul(fset(-0.5f), fmul(x, x))));
            return fma(x, density, fma(half, ferf(fmul(x, fset(0.70710678f))), half));
        }
        case Activation::gelu_tanh: {
            const F square = fmul(x, x);
            const F t = ftanh(fmul(fset(0.79788456f), fma(fmul(fset(0.044715f), x), square, x)));
            const F inner = fmul(fset(0.79788456f), fma(fset(3 * 0.044715f), square, one));
            const F tail = fmul(fmul(half, x), fmul(fsub(one, fmul(t, t)), inner));
            return fma(half, t, fadd(half, tail));
        }
    }
    return one;
}

// out = act(gate) · up
void gate_forward(Number number, Activation activation, const void *gate, const void *up, int64_t size, void *out) {
    typed(number, [&]<typename T>(T) {
        over_vectors(size, [&](int64_t i, int lanes) {
            const F a = activated(load_lanes(static_cast<const T *>(gate) + i, lanes), activation);
            store_lanes(static_cast<T *>(out) + i, fmul(a, load_lanes(static_cast<const T *>(up) + i, lanes)), lanes);
        });
    });
}

void gate_backward(Number number, Activation activation, const void *gate, const void *up, const void *gradient,
                   int64_t size, void *by_gate, void *by_up) {
    typed(number, [&]<typename T>(T) {
        over_vectors(size, [&](int64_t i, int lanes) {
            const F x = load_lanes(static_cast<const T *>(gate) + i, lanes);
            const F u = load_lanes(static_cast<const T *>(up) + i, lanes);
            const F outer = load_lanes(static_cast<const T *>(gradient) + i, lanes);
            store_lanes(static_cast<T *>(by_gate) + i, fmul(fmul(outer, u), slope(x, activation)), lanes);
            store_lanes(static_cast<T *>(by_up) + i, fmul(outer, activated(x, activation)), lanes);
        });
    });
}

// Rotates the first 2 · half entries of a head, entry i with entry i + half, by angles or (sign −1) back; copies the rest.
void rotate_head(Number number, const void *from, const float *cosines, const float *sines, float sign, int64_t half,
                 int64_t size, void *to) {
    typed(number, [&]<typename T>(T) {
        const T *in = static_cast<const T *>(from);
        T *out = static_cast<T *>(to);
        over_vectors(half, [&](int64_t i, int lanes) {
            const F first = load_lanes(in + i, lanes), second = load_lanes(in + half + i, lanes);
            const F c = load_lanes(cosines + i, lanes), s = fmul(fset(sign), load_lanes(sines + i, lanes));
            store_lanes(out + i, fsub(fmul(first, c), fmul(second, s)), lanes);
            store_lanes(out + half + i, fma(second, c, fmul(first, s)), lanes);
        });
        std::memcpy(out + 2 * half, in + 2 * half, size_t(size - 2 * half) * sizeof(T));
    });
}
