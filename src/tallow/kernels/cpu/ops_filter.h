// What temperature and filters leave of a row of logits, in terms of an instruction set's vocabulary. The order of tokens
// is that of their logits, and among equals that of their ids; it is found digit by digit: no row is sorted as a whole.

constexpr int64_t kBlock = 4 * kLanes;

// Calls work(first, block) for the blocks of 64 logits of a row; the last is filled up with −∞.
template <typename Work>
inline void over_blocks(const float *logits, int64_t size, const Work &work) {
    int64_t i = 0;
    for (; i + kBlock <= size; i += kBlock) work(i, logits + i);
    if (i == size) return;
    float last[kBlock];
    for (int64_t j = 0; j < kBlock; ++j) last[j] = i + j < size ? logits[i + j] : -INFINITY;
    work(i, last);
}

// What logits become before the exponential function: 0 for the greatest.
struct Scale {
    float greatest, inverse;

    Scale(float greatest, const Draw &draw)
        : greatest(greatest), inverse(float(1 / (draw.temperature > 1e-30 ? draw.temperature : 1e-30))) {}
    F operator()(F logits) const { return fmul(fsub(logits, fset(greatest)), fset(inverse)); }
};

// The greatest logits of up to kPeakTokens / 16 tokens each, that a bound on the k-th greatest is taken from.
constexpr int64_t kPeakTokens = 1024;
inline int64_t num_peaks(int64_t size) { return round_up(size, kPeakTokens) / kPeakTokens * kLanes; }

// The greatest of all, NaN if there is one or if all are −∞ or one is ∞; `peaks` has room for num_peaks(size).
inline float find_peaks(const float *logits, int64_t size, float *peaks) {
    I sizes = iset(0);  // as integers, so that a NaN is the greatest
    F greatest = fset(-INFINITY), peak = greatest;
    over_blocks(logits, size, [&](int64_t first, const float *block) {
        if (first % kPeakTokens == 0) peak = fset(-INFINITY);
        for (int i = 0; i < kBlock; i += kLanes) {
            const F x = fload(block + i);
            sizes = imax(sizes, bits_of(fabs(x)));
            peak = fmax(peak, x);
        }
        greatest = fmax(greatest, peak);
        fstore(peaks + first / kPeakTokens * kLanes, peak);
    });
    const float found = fgreatest(greatest);
    return igreatest(sizes) > 0x7f800000 || std::isinf(found) ? NAN : found;
}

// Bits of a float in an order that is that of floats.
inline uint32_t order_of(float value) {
    uint32_t bits;
    value += 0.0f;  // −0 is 0
    std::memcpy(&bits, &value, sizeof bits);
    return bits ^ (uint32_t(int32_t(bits) >> 31) | 0x80000000);  // no branch, which signs would make unforeseeable
}

inline float float_at(uint32_t order) {
    const uint32_t bits = order >> 31 ? order & 0x7fffffff : ~order;
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

// A set of entries: those whose order is above this one, and the first `ties` of those that have it.
struct Cut {
    uint32_t order;
    int64_t ties;
};

// The fewest entries, by falling order, whose masses reach `target`; at least one, and all if they do not reach it.
// `border` has room for `count` places: those of the entries that the digits so far leave undecided.
template <typename Order, typename Mass>
inline Cut cut_at(int64_t count, double target, const Order &order, const Mass &mass, int32_t *border) {
    constexpr int kDigit = 11;
    uint64_t found = 0;
    double before = 0;  // mass of the entries above those that begin with `found`
    for (int64_t i = 0; i < count; ++i) border[i] = int32_t(i);
    for (int shift = 2 * kDigit; shift >= 0; shift -= kDigit) {  // 33 bits
        double masses[1 << kDigit] = {};
        for (int64_t i = 0; i < count; ++i)
            masses[order(border[i]) >> shift & ((1 << kDigit) - 1)] += mass(border[i]);
        int64_t digit = (1 << kDigit) - 1;
        for (; digit > 0 && (masses[digit] == 0 || before + masses[digit] < target); --digit) before += masses[digit];
        found |= uint64_t(digit) << shift;
        int64_t left = 0;
        for (int64_t i = 0; i < count; ++i) {  // without branches, which no processor could foresee
            const int32_t place = border[i];
            border[left] = place;
            left += uint64_t(order(place)) >> shift == found >> shift;
        }
        count = left;
    }
    Cut cut = {uint32_t(found), 0};
    for (; cut.ties < count && (cut.ties == 0 || before < target); ++cut.ties) before += mass(border[cut.ties]);
    return cut;
}

template <typename Keep>
inline void keep_if(Candidates &all, const Keep &keep) {
    int64_t count = 0;
    for (int64_t i = 0; i < all.count; ++i) {  // without branches, too
        const bool keeps = keep(i);
        all.ids[count] = all.ids[i];
        all.logits[count] = all.logits[i];
        all.weights[count] = all.weights[i];
        count += keeps;
    }
    all.count = count;
}

template <typename Order, typename Mass>
inline void keep_likeliest(Candidates &all, double target, const Order &order, const Mass &mass) {
    Cut cut = cut_at(all.count, target, order, mass, all.border);
    keep_if(all, [&](int64_t i) {
        const bool is_tie = order(i) == cut.order;
        cut.ties -= is_tie;
        return order(i) > cut.order || (is_tie && cut.ties >= 0);
    });
}

// The sum of all weights: in floats lane by lane within a block, in double over blocks.
inline double sum_of_weights(const float *logits, int64_t size, const Scale &scale) {
    double total = 0;
    over_blocks(logits, size, [&](int64_t, const float *block) {
        F sum = fzero();
        for (int i = 0; i < kBlock; i += kLanes) sum = fadd(sum, fexp(scale(fload(block + i))));
        total += fsum(sum);
    });
    return total;
}

// Tokens whose surprise is nearest to the mean one. A weight's logarithm is its surprise but for the sign and a constant.
inline void keep_typical(Candidates &all, double typical_p, const Scale &scale) {
    double total = 0, mean = 0;
    const auto logarithm = [&](int64_t i) { return double(all.logits[i] - scale.greatest) * scale.inverse; };
    for (int64_t i = 0; i < all.count; ++i) {
        total += all.weights[i];
        mean += all.weights[i] * logarithm(i);
    }
    mean /= total;
    keep_likeliest(
        all, typical_p * total, [&](int64_t i) { return order_of(-float(std::fabs(logarithm(i) - mean))); },
        [&](int64_t i) { return all.weights[i]; });
}

// `peaks` and `greatest` are what find_peaks has found.
inline void filter_found(const float *logits, int64_t size, const Draw &draw, float greatest, const float *peaks,
                         Candidates &all) {
    const Scale scale(greatest, draw);
    const bool has_top_k = draw.has_top_k(size);
    const auto one = [](int64_t) { return 1.0; };
    const auto weight = [&](int64_t i) { return double(all.weights[i]); };
    const auto by_logit = [&](int64_t i) { return order_of(all.logits[i]); };
    const auto by_peak = [&](int64_t i) { return order_of(peaks[i]); };

    // First a bound, that costs one look at each token, below which no candidate is.
    double total = 0, least_weight = has_top_k && draw.top_p < 1 ? 0 : draw.min_p;
    float bound = -INFINITY;
    if (has_top_k) {
        if (draw.top_k <= num_peaks(size))  // so many peaks are no less than the bound, and so are as many tokens
            bound = float_at(cut_at(num_peaks(size), double(draw.top_k), by_peak, one, all.border).order);
    } else if (draw.top_p < 1) {
        total = sum_of_weights(logits, size, scale);
        // all tokens of less weight than this would not make up what top-p leaves out
        least_weight = std::fmax(least_weight, (1 - draw.top_p) * total / double(size));
    }
    // a little less, for what rounding does to weights
    bound = std::fmax(bound, float(greatest + std::log(0.999 * least_weight) / scale.inverse));
    const F below = fset(std::nextafter(bound, -INFINITY));
    all.count = 0;
    over_blocks(logits, size, [&](int64_t first, const float *block) {
        for (int i = 0; i < kBlock; i += kLanes)
            for (uint32_t mask = mask_less(below, fload(block + i)); mask; mask &= mask - 1) {
                const int j = i + __builtin_ctz(mask);
                all.ids[all.count] = int32_t(first + j);
                all.logits[all.count++] = block[j];
            }
    });

    if (has_top_k) keep_likeliest(all, double(draw.top_k), by_logit, one);
    over_vectors(all.count, [&](int64_t i, int) { fstore(all.weights + i, fexp(scale(fload(all.logits + i)))); });
    if (draw.top_p < 1) {
        if (has_top_k)
            for (int64_t i = 0; i < all.count; ++i) total += all.weights[i];
        keep_likeliest(all, draw.top_p * total, by_logit, weight);
    }
    keep_if(all, [&](int64_t i) { return all.weights[i] > 0 && all.weights[i] >= draw.min_p; });
    if (draw.typical_p < 1) keep_typical(all, draw.typical_p, scale);
}

bool filter(const float *logits, int64_t size, const Draw &draw, Candidates &all) {
    const float greatest = find_peaks(logits, size, all.weights);
    if (std::isnan(greatest)) return false;
    filter_found(logits, size, draw, greatest, all.weights, all);
    return true;
}
