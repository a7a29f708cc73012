// Products by the matrix unit of x86-64 processors (AMX: Sapphire Rapids and later), which multiplies a tile of 16 rows of
// activations with one of 16 outputs. Panels lie in the order in which it reads them.
//
// Sums of bfloat16 have an order of their own here, so a weight of bfloat16 is multiplied this way whatever the number of
// rows; sums of integers are exact, so few rows may go the other way.

constexpr int64_t kTileHeight = 16, kTileBytes = 64;  // of a tile: its rows, and the most bytes of each
constexpr int64_t kBlockRows = 2 * kTileHeight;       // that are computed together: two tiles by two
constexpr int64_t kStepBytes = 2 * kTileBytes;      // of a panel: one row of either tile of weights

// GCC does not know what the instructions for tiles read: what has been written before must be in the memory by then.
TALLOW_INLINE void written(const void *at) { asm volatile("" ::"r"(at) : "memory"); }

// The matrix unit with tiles of such shapes, up to eight; given back at the end. Tiles without rows are not there.
struct MatrixUnit {
    struct Shape {
        int64_t rows, bytes;
    };
    template <int kTiles>
    explicit MatrixUnit(const Shape (&shapes)[kTiles]) {
        struct alignas(64) {
            uint8_t palette = 1, start = 0, reserved[14] = {};
            uint16_t bytes[16] = {};
            uint8_t rows[16] = {};
        } tiles;
        for (int tile = 0; tile < kTiles; ++tile) {
            tiles.rows[tile] = uint8_t(shapes[tile].rows);
            tiles.bytes[tile] = uint16_t(shapes[tile].rows > 0 ? shapes[tile].bytes : 0);
        }
        written(&tiles);
        _tile_loadconfig(&tiles);
    }
    ~MatrixUnit() { _tile_release(); }
    MatrixUnit(const MatrixUnit &) = delete;
};

// The unit sleeps when it has had nothing to do for 0.6 µs, and takes 0.3 µs to wake. What lasts longer between products does
// one now and then, of whatever tiles 4 and 6 hold; it spoils tile 0.
TALLOW_INLINE void stay_awake() { _tile_dpbssd(0, 4, 6); }

// Asks for a line that will be written, and takes it from other cores that have read it.
TALLOW_INLINE void prefetch_to_write(const void *at) { asm volatile("prefetchw %0" ::"m"(*static_cast<const char *>(at))); }

// For products: tiles 0 to 3 are sums, of the upper rows and then of the lower ones; 4 and 5 activations, of which a step
// takes so many bytes; 6 and 7 weights.
inline MatrixUnit unit_for_products(int64_t rows, int64_t bytes) {
    const int64_t upper = least(rows, kTileHeight), lower = rows - upper, all = kTileBytes;
    return MatrixUnit({{upper, all}, {upper, all}, {lower, all}, {lower, all}, {upper, bytes}, {lower, bytes},
                       {bytes / 4, all}, {bytes / 4, all}});
}

// Sums of a block's rows and a panel.
template <typename T>
struct alignas(64) Sums {
    T of[kBlockRows][2][kLanes];

    template <bool kTwo>
    inline void take() {
        _tile_stored(0, of[0][0], kStepBytes);
        _tile_stored(1, of[0][1], kStepBytes);
        if constexpr (kTwo) {
            _tile_stored(2, of[kTileHeight][0], kStepBytes);
            _tile_stored(3, of[kTileHeight][1], kStepBytes);
        }
    }
    template <bool kTwo>
    inline void go_on() const {
        _tile_loadd(0, of[0][0], kStepBytes);
        _tile_loadd(1, of[0][1], kStepBytes);
        if constexpr (kTwo) {
            _tile_loadd(2, of[kTileHeight][0], kStepBytes);
            _tile_loadd(3, of[kTileHeight][1], kStepBytes);
        }
    }
};

template <bool kTwo>
inline void clear_sums() {
    _tile_zero(0);
    _tile_zero(1);
    if constexpr (kTwo) {
        _tile_zero(2);
        _tile_zero(3);
    }
}

// Adds the products of one step: kTwo tiles of rows, `stride` bytes apart, with two tiles of weights that lie side by side.
template <Number N, bool kTwo>
inline void add_step(const void *rows, int64_t stride, const void *weights, int64_t weight_stride = kStepBytes) {
    const uint8_t *a = static_cast<const uint8_t *>(rows), *b = static_cast<const uint8_t *>(weights);
    written(b);
    constexpr bool passing = N == Number::bfloat16;  // takes too much of the first cache to push the weights out of it
    if constexpr (passing) {
        _tile_stream_loadd(4, a, stride);
    } else {
        _tile_loadd(4, a, stride);
    }
    _tile_loadd(6, b, weight_stride);
    _tile_loadd(7, b + kTileBytes, weight_stride);
    if constexpr (kTwo && passing) {
        _tile_stream_loadd(5, a + kTileHeight * stride, stride);
    } else if constexpr (kTwo) {
        _tile_loadd(5, a + kTileHeight * stride, stride);
    }
    if constexpr (N == Number::bfloat16) {
        _tile_dpbf16ps(0, 4, 6);
        _tile_dpbf16ps(1, 4, 7);
        if constexpr (kTwo) {
            _tile_dpbf16ps(2, 5, 6);
            _tile_dpbf16ps(3, 5, 7);
        }
    } else {
        _tile_dpbssd(0, 4, 6);
        _tile_dpbssd(1, 4, 7);
        if constexpr (kTwo) {
            _tile_dpbssd(2, 5, 6);
            _tile_dpbssd(3, 5, 7);
        }
    }
}

// What a block asks for while it is computed: its share of the next panel, a little at each step.
struct Ahead {
    const uint8_t *at;
    int64_t step_bytes;

    inline void ask() {
        for (int64_t line = 0; line < step_bytes; line += 64) prefetch_far(at + line);
        at += step_bytes;
    }
};

// The lines that a block's results go to, which are asked for while it is computed, a few at each step. It pays where all
// threads share all rows, as others have read these lines since; with more rows it costs more than it gains.
class ResultsAhead {
   public:
    ResultsAhead(const Destination &to, int64_t row, int64_t rows, int64_t panel, int64_t steps)
        : bytes_(to.mode == Destination::gate ? kTileBytes : kStepBytes),
          stride_(to.stride * int64_t(sizeof(float))),
          at_(reinterpret_cast<const uint8_t *>(to.out) + row * stride_ + panel * bytes_),
          end_(at_ + rows * stride_),
          rows_((rows + steps - 1) / steps) {}

    inline void ask() {
        for (int64_t r = 0; r < rows_ && at_ < end_; ++r, at_ += stride_)
            for (int64_t line = 0; line < bytes_; line += 64) prefetch_to_write(at_ + line);
    }

   private:
    const int64_t bytes_, stride_;
    const uint8_t *at_, *const end_;
    const int64_t rows_;  // of a step
};

constexpr int64_t kStepInputs = kTileBytes / 2;  // bfloat16

// A compressed panel that is brought to bfloat16 step by step.
struct Expansion {
    const uint8_t *weights;
    uint16_t *to;
    int64_t inputs;  // that are left
    int64_t done = 0;
    const UpperBytes *upper = nullptr;
    I table = iset(0);
    int exceptions = 0;

    inline void next() {
        if (inputs == 0) return;
        if (done % kCompressedInputs == 0) {
            upper = reinterpret_cast<const UpperBytes *>(weights);
            table = load_table(upper->common);
            exceptions = 0;
            prefetch(weights + kFarAhead);
            weights += sizeof *upper;
        }
        const int64_t count = least(inputs, kStepInputs);
        for (int64_t i = 0; i < count; i += 4, weights += kCompressedStep, to += kStepWeights) {
            prefetch(weights + kFarAhead), prefetch(weights + kFarAhead + 64), prefetch(weights + kFarAhead + 128);
            const int64_t step = (done + i) % kCompressedInputs / 4;
            Pairs pairs[4];
            expand(table, weights, pairs);
            if (upper->places[exceptions] < (step + 1) * kStepWeights) [[unlikely]]
                exceptions = correct(*upper, exceptions, step, pairs);
            for (int p = 0; p < 4; ++p) store_pairs(to + 2 * kLanes * p, pairs[p]);
        }
        done += count, inputs -= count;
    }

   private:
    static constexpr int64_t kFarAhead = 4096;
};

// The inputs that are left over behind whole steps, with zeros behind them.
template <bool kTwo>
inline void add_rest(const uint16_t *values, int64_t stride, int64_t inputs, const uint8_t *weights, int64_t rows) {
    alignas(64) uint16_t padded[kBlockRows][kStepInputs] = {};
    alignas(64) uint8_t padded_weights[kStepInputs / 2 * kStepBytes] = {};
    for (int64_t r = 0; r < rows; ++r) std::memcpy(padded[r], values + r * stride, inputs * sizeof(uint16_t));
    std::memcpy(padded_weights, weights, (inputs + 1) / 2 * kStepBytes);
    add_step<Number::bfloat16, kTwo>(padded, sizeof padded[0], padded_weights);
}

// Adds the products of some inputs. `expansion`: by which `weights` come to be what they are meanwhile; or null.
template <bool kTwo>
inline void add_bfloat16_block(Sums<float> &sums, const Weight &w, const uint8_t *weights, const Activations &x, int64_t row,
                               int64_t rows, int64_t begin, int64_t end, Ahead &ahead, ResultsAhead *results,
                               Expansion *expansion) {
    const uint16_t *values = static_cast<const uint16_t *>(x.values) + row * x.stride;
    const int64_t whole = end / kStepInputs * kStepInputs;
    if (begin == 0)
        clear_sums<kTwo>();
    else
        sums.template go_on<kTwo>();
    if (expansion && begin == 0) expansion->next();
    for (int64_t k = begin; k < whole; k += kStepInputs) {
        // one step ahead: what has just been written cannot be read as a tile at once
        if (expansion) expansion->next();
        ahead.ask();
        if (results) results->ask();
        add_step<Number::bfloat16, kTwo>(values + k, x.stride * 2, weights + k * kPanel * 2);
    }
    if (whole < end) add_rest<kTwo>(values + whole, x.stride, end - whole, weights + whole * kPanel * 2, rows);
    sums.template take<kTwo>();
}

// A panel of codes as signed bytes without scales; nested ones are multiplied.
template <Number N>
inline void bring_codes_to_bytes(const Weight &w, const uint8_t *weights, uint8_t *bytes) {
    if constexpr (N == Number::nested_int4) return bring_to_bytes<0>(w, weights, bytes, [] { stay_awake(); });
    constexpr int64_t steps = N == Number::int8 ? 8 : 4, step_bytes = weight_bits(N) * 128 / steps;
    const I zeros = iset(int32_t(0x01010101u * uint8_t(-zero_of(N))));
    for (int64_t input = 0; input < w.inputs; input += kActivationGroup, bytes += 8 * kStepBytes) {
        if (input / kActivationGroup % 8 == 7) stay_awake();
        if (input % w.group == 0) weights += kPanel * sizeof(uint16_t);
        for (int step = 0; step < steps; ++step, weights += step_bytes) {
            const auto put = [&](int at, I first, I second) {
                istore(bytes + at * kStepBytes, add_bytes(first, zeros));
                istore(bytes + at * kStepBytes + kTileBytes, add_bytes(second, zeros));
            };
            const I first = iload(weights), second = iload(weights + kTileBytes);
            if constexpr (N == Number::int8) {
                put(step, first, second);
            } else {
                const I upper = N == Number::int6 ? iload(weights + 2 * kTileBytes) : first;
                put(step, lower_half<N, 0>(first, upper), lower_half<N, 1>(second, upper));
                put(step + 4, upper_half<N, 2>(first, upper), upper_half<N, 3>(second, upper));
            }
        }
    }
}

// So many scales' sums of a block leave the tiles before they are multiplied.
constexpr int kScalesAtOnce = 4;

// Sums of `count` scales, from `scale` on, times these, are added to `totals`, and each row of results is passed on.
template <Number N, int C = kScalesAtOnce, typename Each>
inline void scale_sums(int64_t count, const Weight &w, const uint8_t *weights, int64_t scale, const Sums<int32_t> *sums,
                       const float *x_scales, const Sums<float> &totals, int64_t first_row, int64_t rows, const Each &each) {
    if constexpr (C > 1)
        if (count < C) return scale_sums<N, C - 1>(count, w, weights, scale, sums, x_scales, totals, first_row, rows, each);
    constexpr bool nested = N == Number::nested_int4;  // outputs have one scale, which is multiplied at the end
    F output_scales[C][2];
    unrolled<C>([&](auto c) {
        const int64_t group = (scale + c) * w.groups_per_scale * kActivationGroup / w.group;
        const uint16_t *of_group = reinterpret_cast<const uint16_t *>(weights + group * w.group_bytes());
        for (int half = 0; half < 2 && !nested; ++half) output_scales[c][half] = load_half(of_group + half * kLanes);
    });
    for (int64_t r = first_row; r < rows; ++r) {
        F both[2];
        for (int half = 0; half < 2; ++half) {
            both[half] = scale > 0 ? fload(totals.of[r][half]) : fzero();
            unrolled<C>([&](auto c) {
                F factor = fset(x_scales[(scale + c) * kBlockRows + r]);
                if constexpr (!nested) factor = fmul(output_scales[c][half], factor);
                both[half] = fma(to_float(iload(sums[c].of[r][half])), factor, both[half]);
            });
        }
        each(r, both[0], both[1]);
    }
}

template <Number N, bool kTwo>
void integers_in_tiles(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    // as many inputs as equal steps can have until the next scale: 64 or 48, or 32
    const int64_t scale_inputs = w.groups_per_scale * kActivationGroup, scales = w.inputs / scale_inputs;
    const int64_t step_bytes = scale_inputs % kTileBytes == 0 ? kTileBytes : scale_inputs == 96 ? 48 : kActivationGroup;
    const int64_t steps = scale_inputs / step_bytes;
    const int64_t height = least(rows, kBlockRows), blocks = (rows + height - 1) / height, panel_bytes = w.panel_bytes();
    const int64_t ahead_bytes = round_up(panel_bytes / (blocks * scales * steps), 64);
    const MatrixUnit unit = unit_for_products(height, step_bytes);
    // a panel of bytes takes half of its room; behind it lie the scales of the activations, block by block
    uint8_t *const room = reinterpret_cast<uint8_t *>(to.panel);
    float *const x_scales = reinterpret_cast<float *>(room + w.inputs * kPanel);
    for (int64_t block = 0; block < blocks; ++block)
        for (int64_t r = 0; r < height; ++r)
            for (int64_t scale = 0; scale < scales; ++scale)
                x_scales[(block * scales + scale) * kBlockRows + r] =
                    x.scales[(least(block * height, rows - height) + r) * x.groups + scale];
    Sums<int32_t> sums[kScalesAtOnce];
    Sums<float> totals;
    for (; panel < end; ++panel) {
        const uint8_t *weights = w.packed + panel * panel_bytes;
        const float *output_scales = reinterpret_cast<const float *>(weights);  // nested_int4
        bring_codes_to_bytes<N>(w, weights, room);
        Ahead ahead{weights + panel_bytes, ahead_bytes};
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t done = block * height, row = least(done, rows - height);  // the last also has rows that are done
            const int8_t *values = static_cast<const int8_t *>(x.values) + row * x.stride;
            const uint8_t *bytes = room;
            const float *of_block = x_scales + block * scales * kBlockRows;
            ResultsAhead results(to, row, height, panel, ((scales - 1) % kScalesAtOnce + 1) * steps);
            const auto keep = [&](int64_t r, F first, F second) {
                fstore(totals.of[r][0], first), fstore(totals.of[r][1], second);
            };
            const auto finish = [&](int64_t r, F first, F second) {
                if constexpr (N == Number::nested_int4)
                    first = fmul(first, fload(output_scales)), second = fmul(second, fload(output_scales + kLanes));
                finish_row(w, to, row + r, panel, first, second);
            };
            for (int64_t scale = 0, count; scale < scales; scale += count) {
                count = least(scales - scale, kScalesAtOnce);
                const bool last = scale + count == scales;
                for (int64_t c = 0; c < count; ++c) {
                    clear_sums<kTwo>();
                    for (int64_t step = 0; step < steps; ++step, values += step_bytes, bytes += step_bytes * kPanel) {
                        ahead.ask();
                        if (last && blocks == 1) results.ask();
                        add_step<N, kTwo>(values, x.stride, bytes);
                    }
                    sums[c].template take<kTwo>();
                }
                last ? scale_sums<N>(count, w, weights, scale, sums, of_block, totals, done - row, height, finish)
                     : scale_sums<N>(count, w, weights, scale, sums, of_block, totals, 0, height, keep);
            }
        }
    }
}

// Of so many rows at a time, for whose scales there is room.
constexpr int64_t kMostRows = 256;
// At most so many inputs of a panel at a time, which stay in the first cache while all rows pass.
constexpr int64_t kMostInputs = 640;

template <Number N, bool kTwo>
void bfloat16_in_tiles(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    const int64_t height = least(rows, kBlockRows), blocks = (rows + height - 1) / height, panel_bytes = w.panel_bytes();
    const int64_t turns = blocks > 1 ? (w.inputs + kMostInputs - 1) / kMostInputs : 1;
    const int64_t inputs = round_up((w.inputs + turns - 1) / turns, kStepInputs);
    const int64_t ahead_bytes = round_up(panel_bytes / blocks * kStepInputs / w.inputs, 64);
    const MatrixUnit unit = unit_for_products(height, kTileBytes);
    Sums<float> sums[kMostRows / kBlockRows];
    for (; panel < end; ++panel) {
        const uint8_t *weights = w.packed + panel * panel_bytes;
        constexpr bool compressed = N == Number::compressed_bfloat16;
        Expansion expansion{weights, to.panel, w.inputs};
        Ahead ahead{weights + panel_bytes, ahead_bytes};
        for (int64_t begin = 0; begin < w.inputs; begin += inputs) {
            const int64_t last = least(begin + inputs, w.inputs);
            for (int64_t block = 0; block < blocks; ++block) {
                const int64_t done = block * height, row = least(done, rows - height);  // the last also has rows that are done
                Sums<float> &some = sums[turns > 1 ? block : 0];
                ResultsAhead results(to, row, height, panel, (last - begin + kStepInputs - 1) / kStepInputs);
                add_bfloat16_block<kTwo>(some, w, compressed ? reinterpret_cast<const uint8_t *>(to.panel) : weights, x, row,
                                         height, begin, last, ahead, blocks == 1 ? &results : nullptr,
                                         compressed && block == 0 ? &expansion : nullptr);
                if (last < w.inputs) continue;
                for (int64_t r = done - row; r < height; ++r)
                    finish_row(w, to, row + r, panel, fload(some.of[r][0]), fload(some.of[r][1]));
            }
        }
    }
}

template <Number N, bool kTwo>
inline void product_in_tiles(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel,
                             int64_t end) {
    if constexpr (is_integer(N))
        integers_in_tiles<N, kTwo>(w, x, to, rows, panel, end);
    else
        bfloat16_in_tiles<N, kTwo>(w, x, to, rows, panel, end);
}

template <Number N>
inline void choose_height(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    rows > kTileHeight ? product_in_tiles<N, true>(w, x, to, rows, panel, end)
                       : product_in_tiles<N, false>(w, x, to, rows, panel, end);
}

// Integers of fewer rows are not worth a panel of bytes.
constexpr int64_t kFewestForTiles = 8;

inline void multiply_some_in_tiles(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel,
                                   int64_t end) {
    if (w.integers() && rows < kFewestForTiles) return multiply(w, x, to, rows, panel, end);
    switch (w.number) {
        case Number::float32: return multiply(w, x, to, rows, panel, end);
        case Number::bfloat16: return choose_height<Number::bfloat16>(w, x, to, rows, panel, end);
        case Number::compressed_bfloat16: return choose_height<Number::compressed_bfloat16>(w, x, to, rows, panel, end);
        case Number::int8: return choose_height<Number::int8>(w, x, to, rows, panel, end);
        case Number::int4: return choose_height<Number::int4>(w, x, to, rows, panel, end);
        case Number::int6: return choose_height<Number::int6>(w, x, to, rows, panel, end);
        case Number::nested_int4: return choose_height<Number::nested_int4>(w, x, to, rows, panel, end);
    }
}

// Of the last rows there may be too few.
bool tiles_read_offsets(int64_t rows) { return rows % kMostRows > 0 && rows % kMostRows < kFewestForTiles; }

void multiply_in_tiles(const Weight &w, const Activations &x, const Destination &to, int64_t rows, int64_t panel, int64_t end) {
    const int64_t value_bytes = w.number == Number::float32 ? 4 : w.integers() ? 1 : 2;
    for (int64_t row = 0; row < rows; row += kMostRows) {
        Activations some = x;
        some.values = static_cast<const uint8_t *>(x.values) + row * x.stride * value_bytes;
        some.scales += row * x.groups, some.offsets += row * x.groups, some.byte_offsets += row * x.groups;
        Destination there = to;
        there.out += row * to.stride;
        if (to.extra) there.extra += row * to.extra_stride;
        multiply_some_in_tiles(w, some, there, least(rows - row, kMostRows), panel, end);
    }
}
