// The key-value cache and attention over it, in terms of an instruction set's vocabulary.

constexpr int kLargestHead = 512;

inline float greatest_size(const float *values, int64_t size) {
    float greatest = 0;
    for (int64_t i = 0; i < size; ++i) {
        const float value = std::fabs(values[i]);
        if (value > greatest || value != value) greatest = value;  // a NaN is not lost
    }
    return greatest;
}

void store_token(const CacheShape &shape, uint8_t *unit, int64_t slot, const float *key, const float *value) {
    const int64_t size = shape.head_size, lanes = shape.lanes();
    uint8_t *values = unit + shape.key_bytes();
    switch (shape.number) {
        case Number::float32:
            for (int64_t i = 0; i < size; ++i) reinterpret_cast<float *>(unit)[i * kLanes + slot] = key[i];
            std::memcpy(reinterpret_cast<float *>(values) + slot * lanes, value, size * sizeof(float));
            return;
        case Number::bfloat16: {
            uint16_t keys16[kLargestHead], values16[kLargestHead];
            over_vectors(size, [&](int64_t i, int) {
                store_bfloat16(keys16 + i, fload(key + i));
                store_bfloat16(values16 + i, fload(value + i));
            });
            uint16_t *to_keys = reinterpret_cast<uint16_t *>(unit) + 2 * slot;
            uint16_t *to_values = reinterpret_cast<uint16_t *>(values) + slot / 2 * 2 * lanes + slot % 2;
            for (int64_t i = 0; i < size; ++i) {
                to_keys[i / 2 * 2 * kLanes + i % 2] = keys16[i];
                to_values[2 * i] = values16[i];
            }
            return;
        }
        default: {
            float *scales = reinterpret_cast<float *>(values + shape.value_bytes());
            const float key_scale = scales[slot] = greatest_size(key, size) / 127;
            const float value_scale = scales[kLanes + slot] = greatest_size(value, size) / 127;
            const float to_key = key_scale > 0 ? 1 / key_scale : 0, to_value = value_scale > 0 ? 1 / value_scale : 0;
            int8_t *to_values = reinterpret_cast<int8_t *>(values) + slot * lanes;
            for (int64_t i = 0; i < size; ++i) {
                unit[i / 4 * 64 + 4 * slot + i % 4] = uint8_t(128 + int(std::nearbyint(key[i] * to_key)));
                to_values[i] = int8_t(std::nearbyint(value[i] * to_value));
            }
        }
    }
}

// Queries in the form that the keys are multiplied with, and the state of their softmax.
struct QueryRows {
    alignas(64) float values[kMostQueries][kLargestHead];
    float scales[kMostQueries];
    int32_t sums[kMostQueries];
    alignas(64) float scores[kMostQueries][kChunk];
    alignas(64) uint16_t weights16[kMostQueries][kChunk];
    alignas(64) float outputs[kMostQueries][kLargestHead + kLanes], joined[kMostQueries][kLargestHead + kLanes];
    alignas(64) float totals[kMostQueries][kLanes];  // lane by lane
    float greatest[kMostQueries];

    uint16_t *values16(int r) { return reinterpret_cast<uint16_t *>(values[r]); }
    int8_t *values8(int r) { return reinterpret_cast<int8_t *>(values[r]); }
};

// The blocks of a chunk, and those of the next, which are asked for while this one is computed.
struct Chunk {
    const uint8_t *units[kChunkBlocks], *next[kChunkBlocks];
    int blocks;
    int64_t first;  // position of its first token
};

// Scores of R queries with the 16 keys of each of P blocks.
template <Number N, int R, int P>
inline void score_blocks(QueryRows &q, const CacheShape &shape, const Chunk &chunk, int block) {
    const uint8_t *const *units = chunk.units;
    const auto ask_ahead = [&](int64_t offset) {
        for (int p = 0; p < P; ++p) prefetch_far(chunk.next[block + p] + offset);
    };
    F sums[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sums[r][p] = fzero();
    if constexpr (N == Number::float32) {
        for (int64_t i = 0; i < shape.head_size; ++i) {
            ask_ahead(i * 64);
            F b[P];
            for (int p = 0; p < P; ++p) b[p] = fload(reinterpret_cast<const float *>(units[block + p]) + i * kLanes);
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) sums[r][p] = fma(fset(q.values[r][i]), b[p], sums[r][p]);
        }
    } else if constexpr (N == Number::bfloat16) {
        for (int64_t i = 0; i < shape.head_size; i += 2) {
            ask_ahead(i * 32);
            Pairs b[P];
            for (int p = 0; p < P; ++p)
                b[p] = load_pairs(reinterpret_cast<const uint16_t *>(units[block + p]) + i * kLanes);
            for (int r = 0; r < R; ++r) {
                const Pairs a = broadcast_pair(q.values16(r) + i);
                for (int p = 0; p < P; ++p) sums[r][p] = dot2(sums[r][p], b[p], a);
            }
        }
    } else {
        I dots[R][P];
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p) dots[r][p] = iset(-128 * q.sums[r]);
        for (int64_t i = 0; i < shape.head_size; i += 4) {
            ask_ahead(i * 16);
            I b[P];
            for (int p = 0; p < P; ++p) b[p] = iload(units[block + p] + i * kLanes);
            for (int r = 0; r < R; ++r) {
                const I a = broadcast4(q.values8(r) + i);
                for (int p = 0; p < P; ++p) dots[r][p] = dot4(dots[r][p], b[p], a);
            }
        }
        const int64_t to_scales = shape.key_bytes() + shape.value_bytes();
        for (int p = 0; p < P; ++p) {
            const F scale = fload(reinterpret_cast<const float *>(units[block + p] + to_scales));
            for (int r = 0; r < R; ++r)
                sums[r][p] = fmul(to_float(dots[r][p]), fmul(scale, fset(q.scales[r])));
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) fstore(q.scores[r] + (block + p) * kLanes, sums[r][p]);
}

// Adds the values of a chunk, weighted, to P vectors of R outputs from vector `v` on.
template <Number N, int R, int P>
inline void add_values(QueryRows &q, const CacheShape &shape, const Chunk &chunk, int v) {
    F sums[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sums[r][p] = fload(q.outputs[r] + (v + p) * kLanes);
    const int64_t lanes = shape.lanes();
    for (int block = 0; block < chunk.blocks; ++block) {
        const uint8_t *values = chunk.units[block] + shape.key_bytes();
        const int64_t bytes = shape.unit_bytes() - shape.key_bytes();
        if (v == 0)
            for (int64_t line = 0; line < bytes; line += 64) prefetch_far(chunk.next[block] + shape.key_bytes() + line);
        if constexpr (N == Number::bfloat16) {
            const uint16_t *from = reinterpret_cast<const uint16_t *>(values) + 2 * v * kLanes;
            for (int pair = 0; pair < kLanes / 2; ++pair) {
                Pairs b[P];
                for (int p = 0; p < P; ++p) b[p] = load_pairs(from + pair * 2 * lanes + 2 * p * kLanes);
                for (int r = 0; r < R; ++r) {
                    const Pairs a = broadcast_pair(q.weights16[r] + block * kLanes + 2 * pair);
                    for (int p = 0; p < P; ++p) sums[r][p] = dot2(sums[r][p], b[p], a);
                }
            }
        } else {
            for (int token = 0; token < kLanes; ++token) {
                F b[P];
                for (int p = 0; p < P; ++p) {
                    if constexpr (N == Number::float32)
                        b[p] = fload(reinterpret_cast<const float *>(values) + token * lanes + (v + p) * kLanes);
                    else
                        b[p] = load_int8(reinterpret_cast<const int8_t *>(values) + token * lanes + (v + p) * kLanes);
                }
                for (int r = 0; r < R; ++r) {
                    const F a = fset(q.scores[r][block * kLanes + token]);
                    for (int p = 0; p < P; ++p) sums[r][p] = fma(a, b[p], sums[r][p]);
                }
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) fstore(q.outputs[r] + (v + p) * kLanes, sums[r][p]);
}

// Softmax over the chunks so far (online: arXiv 1805.02867). A chunk of which a row sees nothing changes nothing in it.
template <Number N, int B>
inline void update_softmax(QueryRows &q, int r, const CacheShape &shape, const Queries &queries, const Chunk &chunk) {
    float *scores = q.scores[r];
    const int64_t last_seen = queries.positions[r] - chunk.first;
    const int64_t first_seen = queries.window > 0 ? queries.positions[r] + 1 - queries.window - chunk.first : 0;
    const bool sees_all = first_seen <= 0 && last_seen + 1 >= B * kLanes;
    F s[B], best = fset(-INFINITY);
    for (int block = 0; block < B; ++block) {
        s[block] = fmul(fload(scores + block * kLanes), fset(queries.scale));
        if (queries.softcap > 0) s[block] = fmul(fset(queries.softcap), ftanh(fdiv(s[block], fset(queries.softcap))));
        if (!sees_all) {
            const int end = int(limited(last_seen + 1 - block * kLanes, 0, kLanes));
            const int begin = int(limited(first_seen - block * kLanes, 0, kLanes));
            s[block] = fkeep(fset(-INFINITY), begin, fkeep(s[block], end, fset(-INFINITY)));
        }
        best = fmax(best, s[block]);
    }
    F total = fload(q.totals[r]);
    if (mask_less(fset(q.greatest[r]), best)) {
        const float greatest = fgreatest(best);
        const F factor = fexp(fset(q.greatest[r] - greatest));
        for (int64_t v = 0; v < shape.lanes(); v += kLanes)
            fstore(q.outputs[r] + v, fmul(fload(q.outputs[r] + v), factor));
        total = fmul(total, factor);
        q.greatest[r] = greatest;
    }
    const F greatest = fset(q.greatest[r]);
    for (int block = 0; block < B; ++block) {
        F p = fexp(fsub(s[block], greatest));
        total = fadd(total, p);
        if constexpr (N == Number::bfloat16) {
            store_bfloat16(q.weights16[r] + block * kLanes, p);
        } else {
            if constexpr (N == Number::int8) {
                const uint8_t *scales = chunk.units[block] + shape.key_bytes() + shape.value_bytes();
                p = fmul(p, fload(reinterpret_cast<const float *>(scales) + kLanes));
            }
            fstore(scores + block * kLanes, p);
        }
    }
    fstore(q.totals[r], total);
}

// Chooses the code for this number of blocks at compile time.
template <Number N, int B>
inline void update_all(QueryRows &q, const CacheShape &shape, const Queries &queries, const Chunk &chunk) {
    if constexpr (B > 1)
        if (chunk.blocks < B) return update_all<N, B - 1>(q, shape, queries, chunk);
    for (int r = 0; r < queries.count; ++r) update_softmax<N, B>(q, r, shape, queries, chunk);
}

template <Number N, int R>
inline void attend_chunk(QueryRows &q, const CacheShape &shape, const Queries &queries, const Chunk &chunk) {
    int block = 0;
    for (; block + 2 <= chunk.blocks; block += 2) score_blocks<N, R, 2>(q, shape, chunk, block);
    if (block < chunk.blocks) score_blocks<N, R, 1>(q, shape, chunk, block);
    update_all<N, kChunkBlocks>(q, shape, queries, chunk);
    const int vectors = int(shape.lanes() / kLanes);
    int v = 0;
    for (; v + 2 <= vectors; v += 2) add_values<N, R, 2>(q, shape, chunk, v);
    if (v < vectors) add_values<N, R, 1>(q, shape, chunk, v);
}

// Chooses the code for this number of queries at compile time.
template <Number N, int R>
inline void attend_rows(QueryRows &q, const CacheShape &shape, const Queries &queries, const Chunk &chunk) {
    if (queries.count == R) return attend_chunk<N, R>(q, shape, queries, chunk);
    if constexpr (R > 1) attend_rows<N, R - 1>(q, shape, queries, chunk);
}

// A result that later ones are joined to: outputs not divided yet by the sum of weights, then that sum, then the
// greatest score, of which the weights are relative.
inline void join(float *to, const float *from, int64_t lanes) {
    const float greatest = to[lanes + 1] > from[lanes + 1] ? to[lanes + 1] : from[lanes + 1];
    const F keep = fexp(fset(to[lanes + 1] - greatest)), take = fexp(fset(from[lanes + 1] - greatest));
    for (int64_t i = 0; i <= lanes; i += kLanes) fstore(to + i, fma(fload(from + i), take, fmul(fload(to + i), keep)));
    to[lanes + 1] = greatest;
}

inline void divide(const float *joined, int64_t head_size, float *out) {
    const float total = joined[round_up(head_size, kLanes)];
    for (int64_t i = 0; i < head_size; ++i) out[i] = joined[i] / total;
}

void join_segments(const float *partials, int64_t segments, int64_t head_size, float *out) {
    alignas(64) float joined[kLargestHead + kLanes];
    const int64_t floats = partial_floats(head_size);
    std::memcpy(joined, partials, floats * sizeof(float));
    for (int64_t i = 1; i < segments; ++i) join(joined, partials + i * floats, floats - kLanes);
    divide(joined, head_size, out);
}

template <Number N>
inline void round_queries(QueryRows &q, const CacheShape &shape, const Queries &queries) {
    for (int r = 0; r < queries.count; ++r) {
        const float *in = queries.rows + queries.places[r];
        if constexpr (N == Number::float32) {
            std::memcpy(q.values[r], in, shape.head_size * sizeof(float));
        } else if constexpr (N == Number::bfloat16) {
            over_vectors(shape.head_size, [&](int64_t i, int lanes) {
                store_bfloat16(q.values16(r) + i, fkeep(fload(in + i), lanes, fzero()));
            });
        } else {
            const float scale = greatest_size(in, shape.head_size) / 127;
            q.scales[r] = scale;
            q.sums[r] = 0;
            for (int64_t i = 0; i < round_up(shape.head_size, 4); ++i) {
                const int code = i < shape.head_size && scale > 0 ? int(std::nearbyint(in[i] / scale)) : 0;
                q.values8(r)[i] = int8_t(code);
                q.sums[r] += code;
            }
        }
    }
}

// `attend_chunk` takes the queries through the keys and values of a chunk.
template <Number N, typename AttendChunk>
void attend_in(const CacheShape &shape, const Queries &queries, const AttendChunk &attend_chunk) {
    static thread_local QueryRows q;
    const int64_t lanes = shape.lanes(), floats = partial_floats(shape.head_size);
    round_queries<N>(q, shape, queries);
    int64_t earliest = INT64_MAX, latest = 0;
    for (int r = 0; r < queries.count; ++r) {
        latest = most(latest, queries.positions[r]);
        earliest = least(earliest, queries.window > 0 ? most(0, queries.positions[r] + 1 - queries.window) : 0);
    }
    // blocks that no query of a window sees any more may have been freed: any other will do in their place
    const auto unit_of = [&](int64_t block) {
        return queries.cache + queries.blocks[limited(block, earliest / kLanes, latest / kLanes)] * queries.block_bytes;
    };
    const bool all = queries.segment < 0;
    const int64_t begin = all ? earliest / kSegment : queries.segment, end = all ? latest / kSegment : queries.segment;
    for (int64_t segment = begin; segment <= end; ++segment) {
        for (int r = 0; r < queries.count; ++r) {
            std::memset(q.outputs[r], 0, lanes * sizeof(float));
            q.greatest[r] = -1e30f;
            fstore(q.totals[r], fzero());
        }
        const int64_t last = least(latest, (segment + 1) * kSegment - 1);
        for (int64_t first = most(segment * kSegment, earliest / kChunk * kChunk); first <= last; first += kChunk) {
            Chunk chunk;
            chunk.first = first;
            chunk.blocks = int(least(kChunkBlocks, (last - first) / kLanes + 1));
            for (int block = 0; block < kChunkBlocks; ++block) {
                chunk.units[block] = unit_of(first / kLanes + block);
                const bool is_last = first + kChunk > last && segment == end;
                chunk.next[block] = is_last ? queries.following[block] : unit_of(first / kLanes + block + kChunkBlocks);
            }
            attend_chunk(q, shape, queries, chunk);
        }
        for (int r = 0; r < queries.count; ++r) {
            float *joined = all ? q.joined[r] : queries.partials + r * queries.partial_stride;
            q.outputs[r][lanes] = fsum(fload(q.totals[r]));
            q.outputs[r][lanes + 1] = q.greatest[r];
            if (all && segment > begin)
                join(joined, q.outputs[r], lanes);
            else
                std::memcpy(joined, q.outputs[r], floats * sizeof(float));
        }
    }
    if (!all) return;
    for (int r = 0; r < queries.count; ++r) divide(q.joined[r], shape.head_size, queries.rows + queries.places[r]);
}

template <Number N>
void attend_to(const CacheShape &shape, Queries queries) {
    const int64_t count = queries.count;
    for (int64_t done = 0; done < count; done += kQueriesInRegisters) {
        queries.count = least(count - done, kQueriesInRegisters);
        attend_in<N>(shape, queries, attend_rows<N, kQueriesInRegisters>);
        queries.places += kQueriesInRegisters, queries.positions += kQueriesInRegisters;
        queries.partials += kQueriesInRegisters * queries.partial_stride;
    }
}

void attend(const CacheShape &shape, const Queries &queries) {
    switch (shape.number) {
        case Number::float32: return attend_to<Number::float32>(shape, queries);
        case Number::bfloat16: return attend_to<Number::bfloat16>(shape, queries);
        default: return attend_to<Number::int8>(shape, queries);
    }
}
