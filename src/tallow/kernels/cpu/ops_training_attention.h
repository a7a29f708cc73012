// Causal attention of training in bfloat16, forward and backward, in blocks of queries and keys that stay in the processor's
// caches: FlashAttention-2 (Dao, arXiv 2307.08691, algorithms 1 and 2). Heads that read the same keys and values come together.
//
// All products are of the form C = A · B, where A has rows of bfloat16 and B pairs of rows, word by word: [row / 2][column][2].

constexpr int64_t kSquare = 64;     // queries, and keys, of a block
constexpr int64_t kTileRows = 8;    // of a product, whose sums stay in registers
constexpr int64_t kTileColumns = 2 * kLanes;
constexpr float kLowest = -3.4e38f;  // no score is lower, or its row would have no weights at all

#ifdef __AMX_TILE__
// C (+)= A · B for `rows` by `columns` results (multiples of 32) and `inputs` (of 32) summed products.
inline void add_product(const uint16_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride, int64_t rows,
                        int64_t columns, int64_t inputs, bool add, float *c, int64_t c_stride) {
    const int64_t from = c_stride * int64_t(sizeof(float));
    for (int64_t row = 0; row < rows; row += kBlockRows)
        for (int64_t column = 0; column < columns; column += kTileColumns) {
            float *upper = c + row * c_stride + column, *lower = upper + kTileHeight * c_stride;
            written(upper);
            if (add) {
                _tile_loadd(0, upper, from);
                _tile_loadd(1, upper + kLanes, from);
                _tile_loadd(2, lower, from);
                _tile_loadd(3, lower + kLanes, from);
            } else {
                clear_sums<true>();
            }
            for (int64_t input = 0; input < inputs; input += kStepInputs)
                add_step<Number::bfloat16, true>(a + row * a_stride + input, a_stride * 2, b + input / 2 * b_stride + column,
                                                 b_stride * 4);
            _tile_stored(0, upper, from);
            _tile_stored(1, upper + kLanes, from);
            _tile_stored(2, lower, from);
            _tile_stored(3, lower + kLanes, from);
        }
}

// What products need while they are made.
struct ReadyForProducts {
    MatrixUnit unit = unit_for_products(kBlockRows, kTileBytes);
};
#else
// C (+)= A · B for `rows` (a multiple of 8) by `columns` (of 32) results and `inputs` (even) summed products.
inline void add_product(const uint16_t *a, int64_t a_stride, const uint32_t *b, int64_t b_stride, int64_t rows,
                        int64_t columns, int64_t inputs, bool add, float *c, int64_t c_stride) {
    for (int64_t column = 0; column < columns; column += kTileColumns)
        for (int64_t row = 0; row < rows; row += kTileRows) {
            F sums[kTileRows][2];
            for (int r = 0; r < kTileRows; ++r)
                for (int half = 0; half < 2; ++half)
                    sums[r][half] = add ? fload(c + (row + r) * c_stride + column + half * kLanes) : fzero();
            const uint16_t *from = a + row * a_stride;
            for (int64_t pair = 0; pair < inputs / 2; ++pair) {
                const uint16_t *words = reinterpret_cast<const uint16_t *>(b + pair * b_stride + column);
                const Pairs first = load_pairs(words), second = load_pairs(words + kTileColumns);
                for (int r = 0; r < kTileRows; ++r) {
                    const Pairs x = broadcast_pair(from + r * a_stride + 2 * pair);
                    sums[r][0] = dot2(sums[r][0], x, first), sums[r][1] = dot2(sums[r][1], x, second);
                }
            }
            for (int r = 0; r < kTileRows; ++r)
                for (int half = 0; half < 2; ++half)
                    fstore(c + (row + r) * c_stride + column + half * kLanes, sums[r][half]);
        }
}

struct ReadyForProducts {};
#endif

// out[column][row] = in[row][column], words of 32 bits; rows a multiple of 4.
inline void transpose_words(const uint32_t *in, int64_t in_stride, int64_t rows, int64_t columns, uint32_t *out,
                            int64_t out_stride) {
    alignas(64) uint32_t room[kLanes];
    for (int64_t row = 0; row < rows; row += 4) {
        int64_t column = 0;
        for (; column + kLanes <= columns; column += kLanes) {
            I words[4];
            for (int i = 0; i < 4; ++i) words[i] = iload(in + (row + i) * in_stride + column);
            transpose4(words);
            for (int i = 0; i < 4; ++i) {
                istore(room, words[i]);
                for (int four = 0; four < 4; ++four)
                    std::memcpy(out + (column + 4 * four + i) * out_stride + row, room + 4 * four, 16);
            }
        }
        for (; column < columns; ++column)
            for (int i = 0; i < 4; ++i) out[column * out_stride + row + i] = in[(row + i) * in_stride + column];
    }
}

// out[row / 2][column] = in[row][column] below in[row + 1][column]
inline void pair_rows(const uint16_t *in, int64_t in_stride, int64_t rows, int64_t columns, uint32_t *out, int64_t out_stride) {
    for (int64_t row = 0; row < rows; row += 2)
        for (int64_t i = 0; i < columns; ++i)
            out[row / 2 * out_stride + i] = uint32_t(in[row * in_stride + i]) | uint32_t(in[(row + 1) * in_stride + i]) << 16;
}

// Rows with zeros behind them, to `rows` by `width`.
inline void copy_padded(const uint16_t *in, int64_t in_stride, int64_t count, int64_t size, int64_t rows, int64_t width, uint16_t *out) {
    std::memset(out, 0, size_t(rows * width) * sizeof(uint16_t));
    for (int64_t row = 0; row < count; ++row) std::memcpy(out + row * width, in + row * in_stride, size_t(size) * sizeof(uint16_t));
}

// Memory that is taken piece by piece from what the caller has given.
struct Room {
    uint8_t *next;

    template <typename T>
    T *take(int64_t count) {
        T *taken = reinterpret_cast<T *>(next);
        next += round_up(count * int64_t(sizeof(T)), 64);
        return taken;
    }
};

// What all blocks of queries need: keys and values, padded, and in pairs.
struct KeysAndValues {
    int64_t tokens, width;         // whole blocks; whole tiles
    uint16_t *keys, *values;       // [tokens][width]
    uint32_t *keys_by_entry;       // [width / 2][tokens]: B of queries · keys
    uint32_t *values_by_token;     // [tokens / 2][width]: B of probabilities · values
    uint32_t *values_by_entry, *keys_by_token;  // the same for the backward pass

    KeysAndValues(const CausalHead &head, bool backward, Room &room)
        : tokens(round_up(head.tokens, kSquare)), width(round_up(head.size, kTileColumns)) {
        const int64_t words = tokens * width / 2;
        keys = room.take<uint16_t>(tokens * width), values = room.take<uint16_t>(tokens * width);
        copy_padded(head.keys, head.key_stride, head.tokens, head.size, tokens, width, keys);
        copy_padded(head.values, head.value_stride, head.tokens, head.size, tokens, width, values);
        keys_by_entry = room.take<uint32_t>(words);
        transpose_words(reinterpret_cast<uint32_t *>(keys), width / 2, tokens, width / 2, keys_by_entry, tokens);
        if (backward) {
            values_by_entry = room.take<uint32_t>(words), keys_by_token = room.take<uint32_t>(words);
            transpose_words(reinterpret_cast<uint32_t *>(values), width / 2, tokens, width / 2, values_by_entry, tokens);
            pair_rows(keys, width, tokens, width, keys_by_token, width);
        } else {
            values_by_token = room.take<uint32_t>(words);
            pair_rows(values, width, tokens, width, values_by_token, width);
        }
    }
};

// Keys of a block that a query sees: from `begin` to `end`, counted within the block.
struct Visible {
    int64_t begin, end;

    Visible(const CausalHead &head, int64_t query, int64_t block)
        : begin(0), end(0) {
        if (query >= head.tokens) return;
        begin = limited(head.first[query] - block * kSquare, 0, kSquare);
        end = limited(query + 1 - block * kSquare, 0, kSquare);
    }
    F scores(const float *row, int64_t at, float scale) const {
        F x = fmul(fload(row + at), fset(scale));
        if (end < at + kLanes) x = fkeep(x, int(limited(end - at, 0, kLanes)), fset(-INFINITY));
        if (begin > at) x = fkeep(fset(-INFINITY), int(limited(begin - at, 0, kLanes)), x);
        return x;
    }
};

inline int64_t first_block(const CausalHead &head, int64_t query) { return head.first[query] / kSquare; }

void forward_of_head(const CausalHead &head, const KeysAndValues &seen, Room room) {
    uint16_t *queries = room.take<uint16_t>(kSquare * seen.width), *weights = room.take<uint16_t>(kSquare * kSquare);
    float *scores = room.take<float>(kSquare * kSquare), *out = room.take<float>(kSquare * seen.width);
    for (int64_t begin = 0; begin < head.tokens; begin += kSquare) {
        const int64_t count = least(kSquare, head.tokens - begin);
        copy_padded(head.queries + begin * head.query_stride, head.query_stride, count, head.size, kSquare, seen.width, queries);
        std::memset(out, 0, size_t(kSquare * seen.width) * sizeof(float));
        float greatest[kSquare], total[kSquare] = {};
        std::fill_n(greatest, kSquare, kLowest);
        for (int64_t block = first_block(head, begin); block * kSquare <= begin; ++block) {
            add_product(queries, seen.width, seen.keys_by_entry + block * kSquare, seen.tokens, kSquare, kSquare, seen.width, false,
                        scores, kSquare);
            for (int64_t row = 0; row < kSquare; ++row) {
                const Visible visible(head, begin + row, block);
                F values[kSquare / kLanes], best = fset(greatest[row]), sum = fzero();
                for (int i = 0; i < kSquare / kLanes; ++i) {
                    values[i] = visible.scores(scores + row * kSquare, i * kLanes, head.scale);
                    best = fmax(values[i], best);
                }
                const float now = fgreatest(best), factor = std::exp(greatest[row] - now);
                for (int i = 0; i < kSquare / kLanes; ++i) {
                    values[i] = fexp(fsub(values[i], fset(now)));
                    sum = fadd(sum, values[i]);
                    store_bfloat16(weights + row * kSquare + i * kLanes, values[i]);
                }
                total[row] = total[row] * factor + fsum(sum);
                greatest[row] = now;
                if (factor != 1)
                    for (int64_t i = 0; i < seen.width; i += kLanes)
                        fstore(out + row * seen.width + i, fmul(fload(out + row * seen.width + i), fset(factor)));
            }
            add_product(weights, kSquare, seen.values_by_token + block * kSquare / 2 * seen.width, seen.width, kSquare, seen.width,
                        kSquare, true, out, seen.width);
        }
        for (int64_t row = 0; row < count; ++row) {
            over_vectors(head.size, [&](int64_t i, int lanes) {
                const F value = fdiv(fload(out + row * seen.width + i), fset(total[row]));
                store_lanes(head.out + (begin + row) * head.out_stride + i, value, lanes);
            });
            head.log_sums[begin + row] = greatest[row] + std::log(total[row]);
        }
    }
}

void attention_forward(const CausalHead *heads, int64_t count, void *scratch) {
    [[maybe_unused]] const ReadyForProducts ready;
    Room room{static_cast<uint8_t *>(scratch)};
    const KeysAndValues seen(heads[0], false, room);
    for (int64_t i = 0; i < count; ++i) forward_of_head(heads[i], seen, room);
}

// by_keys and by_values, [entry][token], are added to.
void backward_of_head(const CausalHead &head, const KeysAndValues &seen, float *by_keys, float *by_values, Room room) {
    const int64_t width = seen.width, tokens = seen.tokens;
    uint16_t *queries = room.take<uint16_t>(kSquare * width), *outer = room.take<uint16_t>(kSquare * width);
    uint32_t *pairs = room.take<uint32_t>(kSquare / 2 * width);
    // queries and gradients by entry: A of what the keys and values get
    uint32_t *queries_by_entry = room.take<uint32_t>(width * kSquare / 2), *outer_by_entry = room.take<uint32_t>(width * kSquare / 2);
    uint32_t *weights = room.take<uint32_t>(kSquare / 2 * kSquare), *slopes = room.take<uint32_t>(kSquare / 2 * kSquare);
    uint16_t *slope_rows = room.take<uint16_t>(kSquare * kSquare);
    float *scores = room.take<float>(kSquare * kSquare), *by_weight = room.take<float>(kSquare * kSquare);
    float *by_queries = room.take<float>(kSquare * width);
    for (int64_t begin = 0; begin < head.tokens; begin += kSquare) {
        const int64_t count = least(kSquare, head.tokens - begin);
        copy_padded(head.queries + begin * head.query_stride, head.query_stride, count, head.size, kSquare, width, queries);
        copy_padded(head.by_out + begin * head.by_out_stride, head.by_out_stride, count, head.size, kSquare, width, outer);
        pair_rows(queries, width, kSquare, width, pairs, width);
        transpose_words(pairs, width, kSquare / 2, width, queries_by_entry, kSquare / 2);
        pair_rows(outer, width, kSquare, width, pairs, width);
        transpose_words(pairs, width, kSquare / 2, width, outer_by_entry, kSquare / 2);
        float mean[kSquare] = {}, log_sum[kSquare] = {};
        for (int64_t row = 0; row < count; ++row) {
            F products = fzero();
            over_vectors(head.size, [&](int64_t i, int lanes) {
                products = fma(load_lanes(outer + row * width + i, lanes),
                               load_lanes(head.out + (begin + row) * head.out_stride + i, lanes), products);
            });
            mean[row] = fsum(products), log_sum[row] = head.log_sums[begin + row];
        }
        std::memset(by_queries, 0, size_t(kSquare * width) * sizeof(float));
        for (int64_t block = first_block(head, begin); block * kSquare <= begin; ++block) {
            add_product(queries, width, seen.keys_by_entry + block * kSquare, tokens, kSquare, kSquare, width, false, scores, kSquare);
            add_product(outer, width, seen.values_by_entry + block * kSquare, tokens, kSquare, kSquare, width, false, by_weight, kSquare);
            for (int64_t row = 0; row < kSquare; row += 2)
                for (int64_t i = 0; i < kSquare; i += kLanes) {
                    I weight_bits[2], slope_bits[2];
                    for (int64_t odd = 0; odd < 2; ++odd) {
                        const int64_t at = row + odd;
                        const Visible visible(head, begin + at, block);
                        const F weight = fexp(fsub(visible.scores(scores + at * kSquare, i, head.scale), fset(log_sum[at])));
                        const F slope = fmul(fmul(weight, fset(head.scale)), fsub(fload(by_weight + at * kSquare + i), fset(mean[at])));
                        store_bfloat16(slope_rows + at * kSquare + i, slope);
                        weight_bits[odd] = bfloat16_bits(weight), slope_bits[odd] = bfloat16_bits(slope);
                    }
                    istore(weights + row / 2 * kSquare + i, ior(weight_bits[0], shift_left<16>(weight_bits[1])));
                    istore(slopes + row / 2 * kSquare + i, ior(slope_bits[0], shift_left<16>(slope_bits[1])));
                }
            add_product(reinterpret_cast<uint16_t *>(outer_by_entry), kSquare, weights, kSquare, width, kSquare, kSquare, true,
                        by_values + block * kSquare, tokens);
            add_product(reinterpret_cast<uint16_t *>(queries_by_entry), kSquare, slopes, kSquare, width, kSquare, kSquare, true,
                        by_keys + block * kSquare, tokens);
            add_product(slope_rows, kSquare, seen.keys_by_token + block * kSquare / 2 * width, width, kSquare, width, kSquare, true,
                        by_queries, width);
        }
        for (int64_t row = 0; row < count; ++row)
            over_vectors(head.size, [&](int64_t i, int lanes) {
                store_lanes(head.by_queries + (begin + row) * head.by_query_stride + i, fload(by_queries + row * width + i), lanes);
            });
    }
}

void attention_backward(const CausalHead *heads, int64_t count, void *scratch) {
    [[maybe_unused]] const ReadyForProducts ready;
    const CausalHead &head = heads[0];
    Room room{static_cast<uint8_t *>(scratch)};
    const KeysAndValues seen(head, true, room);
    const int64_t width = seen.width, tokens = seen.tokens;
    float *by_keys = room.take<float>(width * tokens), *by_values = room.take<float>(width * tokens);
    std::memset(by_keys, 0, size_t(width * tokens) * sizeof(float));
    std::memset(by_values, 0, size_t(width * tokens) * sizeof(float));
    for (int64_t i = 0; i < count; ++i) backward_of_head(heads[i], seen, by_keys, by_values, room);
    for (const auto [from, to] : {std::pair{by_keys, head.by_keys}, std::pair{by_values, head.by_values}}) {
        float *rows = reinterpret_cast<float *>(seen.keys_by_entry);  // which are not needed any more: [tokens][width / 2]
        for (int64_t half = 0; half < width; half += width / 2) {
            transpose_words(reinterpret_cast<uint32_t *>(from + half * tokens), tokens, width / 2, tokens,
                            reinterpret_cast<uint32_t *>(rows), width / 2);
            for (int64_t token = 0; token < head.tokens; ++token)
                std::memcpy(to + token * head.size + half, rows + token * (width / 2),
                            size_t(limited(head.size - half, 0, width / 2)) * sizeof(float));
        }
    }
}
