// The key-value cache and attention over it, in terms of an instruction set's vocabulary.

constexpr int kLargestHead = 512;

// The greatest of sizes that are looked at as integers, so that a NaN is the greatest and is not lost.
inline float greatest_of(I sizes) {
    const int32_t bits = igreatest(sizes);
    float greatest;
    std::memcpy(&greatest, &bits, sizeof greatest);
    return greatest;
}

// To codes within ±127, and their sum; their scale, which is no number where an entry is not finite.
inline float round_head(const float *head, int64_t size, int8_t *codes, int32_t *sum = nullptr) {
    I sizes = iset(0), sums = iset(0);
    over_vectors(size, [&](int64_t i, int lanes) { sizes = imax(sizes, bits_of(fabs(fkeep(fload(head + i), lanes, fzero())))); });
    const float scale = greatest_of(sizes) / 127;
    const F inverse = fset(scale > 0 ? 1 / scale : 0);
    over_vectors(size, [&](int64_t i, int lanes) {
        sums = iadd(sums, store_int8(codes + i, fmul(fkeep(fload(head + i), lanes, fzero()), inverse)));
    });
    if (sum) *sum = isum(sums);
    return scale < INFINITY ? scale : NAN;
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
            int8_t keys8[kLargestHead], values8[kLargestHead];
            float *scales = reinterpret_cast<float *>(values + shape.value_bytes());
            scales[slot] = round_head(key, size, keys8);
            scales[kLanes + slot] = round_head(value, size, values8);
            for (int64_t i = 0; i < size; i += 4) {
                uint32_t four;
                std::memcpy(&four, keys8 + i, 4);
                four ^= 0x80808080u;  // + 128
                std::memcpy(unit + i * kLanes + 4 * slot, &four, 4);
            }
            uint8_t *to_values = values + slot / 4 * 4 * lanes;
            for (int64_t i = 0; i < size; i += kLanes)
                store_every_fourth(to_values + 4 * i, int(slot % 4), iadd(widen_int8(values8 + i), iset(128)));
        }
    }
}

// Queries in the form that the keys are multiplied with, and what they come to with a segment's keys and values.
struct QueryRows {
    static constexpr int64_t kRoom = kSegment + 2 * kLanes;  // more, so that rows fall on different lines

    alignas(64) float values[kMostQueries][kLargestHead + kLanes];
    float scales[kMostQueries];
    int32_t sums[kMostQueries];
    alignas(64) float scores[kMostQueries][kRoom];
    alignas(64) uint16_t weights16[kMostQueries][kRoom];
    float weight_scales[kMostQueries];
    int32_t weight_sums[kMostQueries];
    alignas(64) float outputs[kMostQueries][kLargestHead + kLanes], joined[kMostQueries][kLargestHead + kLanes];

    uint16_t *values16(int64_t r) { return reinterpret_cast<uint16_t *>(values[r]); }
    int8_t *values8(int64_t r) { return reinterpret_cast<int8_t *>(values[r]); }
    // Weights beside 8 bits: those of row r are 256 times what row r of the codes has, and what row `count` + r has.
    int8_t *codes(int64_t row) { return reinterpret_cast<int8_t *>(weights16) + row * kRoom; }
};
constexpr int kMostCode = 127 * 256;  // of weights beside 8 bits

// The blocks of a segment, and others that will be read so many blocks later. They are asked for while this one is computed,
// evenly: a core waits for only so much at a time.
struct Segment {
    const uint8_t *units[kSegmentBlocks], *ahead[kSegmentBlocks];
    int blocks, ahead_blocks;
    int64_t first;  // position of its first token

    static constexpr int kTurns = 2;  // of a block, with its scores and its values; besides, one of each row

    void begin_asking(const CacheShape &shape, int64_t rows) {
        unit_bytes_ = shape.unit_bytes();
        turn_bytes_ = round_up((unit_bytes_ + rows + kTurns - 1) / (rows + kTurns), 64);
        unit_ = 0, at_ = 0;
    }
    TALLOW_INLINE void ask() {
        if (unit_ == ahead_blocks) return;
        const uint8_t *unit = ahead[unit_];
        const int64_t end = least(at_ + turn_bytes_, unit_bytes_);
        for (int64_t line = at_; line < end; line += 64) prefetch_far(unit + line);
        at_ = end < unit_bytes_ ? end : 0;
        unit_ += end == unit_bytes_;
    }

   private:
    int64_t unit_bytes_, turn_bytes_, at_;
    int unit_;
};

inline F key_scales(const CacheShape &shape, const uint8_t *unit) {
    return fload(reinterpret_cast<const float *>(unit + shape.key_bytes() + shape.value_bytes()));
}
inline F value_scales(const CacheShape &shape, const uint8_t *unit) {
    return fload(reinterpret_cast<const float *>(unit + shape.key_bytes() + shape.value_bytes()) + kLanes);
}

// Scores of R queries with the 16 keys of each of P blocks; beside 8 bits as sums of products of codes.
template <Number N, int R, int P>
inline void score_blocks(QueryRows &q, const CacheShape &shape, Segment &segment, int block) {
    const uint8_t *const *units = segment.units + block;
    for (int p = 0; p < P; ++p) segment.ask();
    F sums[R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sums[r][p] = fzero();
    if constexpr (N == Number::float32) {
        for (int64_t i = 0; i < shape.head_size; ++i) {
            F b[P];
            for (int p = 0; p < P; ++p) b[p] = fload(reinterpret_cast<const float *>(units[p]) + i * kLanes);
            for (int r = 0; r < R; ++r)
                for (int p = 0; p < P; ++p) sums[r][p] = fma(fset(q.values[r][i]), b[p], sums[r][p]);
        }
    } else if constexpr (N == Number::bfloat16) {
        for (int64_t i = 0; i < shape.head_size; i += 2) {
            Pairs b[P];
            for (int p = 0; p < P; ++p) b[p] = load_pairs(reinterpret_cast<const uint16_t *>(units[p]) + i * kLanes);
            for (int r = 0; r < R; ++r) {
                const Pairs a = broadcast_pair(q.values16(r) + i);
                for (int p = 0; p < P; ++p) sums[r][p] = dot2(sums[r][p], b[p], a);
            }
        }
    } else {
        I dots[R][P];
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p) dots[r][p] = iset(0);
        for (int64_t i = 0; i < shape.head_size; i += 4) {
            I b[P];
            for (int p = 0; p < P; ++p) b[p] = iload(units[p] + i * kLanes);
            for (int r = 0; r < R; ++r) {
                const I a = broadcast4(q.values8(r) + i);
                for (int p = 0; p < P; ++p) dots[r][p] = dot4(dots[r][p], b[p], a);
            }
        }
        for (int r = 0; r < R; ++r)
            for (int p = 0; p < P; ++p) sums[r][p] = float_of(dots[r][p]);
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) fstore(q.scores[r] + (block + p) * kLanes, sums[r][p]);
}

// Weights of R rows beside 8 bits, which scales of the values are in already, as two digits: the sums of their products are
// whole. `sizes`: the weights' greatest.
template <int R>
inline void find_codes(QueryRows &q, int first, int count, int blocks, const I (&sizes)[R]) {
    F inverse[R];
    I total[R];
    for (int r = 0; r < R; ++r) {
        const float greatest = greatest_of(sizes[r]);
        q.weight_scales[first + r] = greatest / kMostCode;
        inverse[r] = fset(greatest > 0 ? kMostCode / greatest : 0);
        total[r] = iset(0);
    }
    for (int64_t i = 0; i < blocks * kLanes; i += kLanes)
        for (int r = 0; r < R; ++r) {
            const I code = to_nearest(fmul(fload(q.scores[first + r] + i), inverse[r]));
            total[r] = iadd(total[r], code);
            store_bytes(q.codes(first + r) + i, shift_right<8>(iadd(code, iset(128))));
            store_bytes(q.codes(count + first + r) + i, code);  // signed, as the upper digit has been rounded
        }
    for (int r = 0; r < R; ++r) q.weight_sums[first + r] = isum(total[r]);
}
// What products of values and digits stand for.
inline F output_of(const QueryRows &q, int r, I upper, I lower) {
    const I sum = isub(iadd(shift_left<8>(upper), lower), shift_left<7>(iset(q.weight_sums[r])));
    return fmul(to_float(sum), fset(q.weight_scales[r]));
}

// The values of a segment, weighted and summed, in P vectors of R outputs from vector `v` on.
template <Number N, int R, int P>
inline void sum_values(QueryRows &q, const CacheShape &shape, Segment &segment, int v) {
    constexpr int kDigits = N == Number::int8 ? 2 : 1;
    const int64_t lanes = shape.lanes();
    F sums[R][P];
    I digits[kDigits * R][P];
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) sums[r][p] = fzero();
    for (int r = 0; r < kDigits * R; ++r)
        for (int p = 0; p < P; ++p) digits[r][p] = iset(0);
    for (int block = 0; block < segment.blocks; ++block) {
        const uint8_t *values = segment.units[block] + shape.key_bytes();
        if (v == 0) segment.ask();
        if constexpr (N == Number::float32) {
            for (int token = 0; token < kLanes; ++token) {
                F b[P];
                for (int p = 0; p < P; ++p)
                    b[p] = fload(reinterpret_cast<const float *>(values) + token * lanes + (v + p) * kLanes);
                for (int r = 0; r < R; ++r) {
                    const F a = fset(q.scores[r][block * kLanes + token]);
                    for (int p = 0; p < P; ++p) sums[r][p] = fma(a, b[p], sums[r][p]);
                }
            }
        } else if constexpr (N == Number::bfloat16) {
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
            for (int four = 0; four < kLanes / 4; ++four) {
                I b[P];
                for (int p = 0; p < P; ++p) b[p] = iload(values + 4 * (four * lanes + (v + p) * kLanes));
                for (int r = 0; r < kDigits * R; ++r) {
                    const I a = broadcast4(q.codes(r) + block * kLanes + 4 * four);
                    for (int p = 0; p < P; ++p) digits[r][p] = dot4(digits[r][p], b[p], a);
                }
            }
        }
    }
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
            if constexpr (N == Number::int8) sums[r][p] = output_of(q, r, digits[r][p], digits[R + r][p]);
            fstore(q.outputs[r] + (v + p) * kLanes, sums[r][p]);
        }
}

// Softmax of the scores of R rows from row `first` on, relative to the greatest of each, which follows the outputs with the
// sum of the weights. In powers of two: a score that is one higher has twice the weight.
template <Number N, int R>
inline void weigh(QueryRows &q, int first, const CacheShape &shape, const Queries &queries, Segment &segment) {
    constexpr float kLog2OfE = 1.44269504f, kLeast = 1.2e-38f;
    const bool capped = queries.softcap > 0;
    float *scores[R];
    F scale[R], factor[R], best[R];  // a score is scaled, and capped, if it is capped at all; else only its weight's exponent
    int64_t last_seen[R], first_seen[R], all_from = 0, all_to = INT64_MAX;
    for (int r = 0; r < R; ++r) {
        const float of_row = N == Number::int8 ? queries.scale * q.scales[first + r] : queries.scale;
        const float of_exponent = (capped ? queries.softcap : of_row) * kLog2OfE;
        scale[r] = fset(of_row / queries.softcap);
        factor[r] = fset(of_exponent < kLeast ? kLeast : of_exponent);  // times −infinity it must not be NaN
        best[r] = fset(-1e30f);
        scores[r] = q.scores[first + r];
        last_seen[r] = queries.positions[first + r] - segment.first;
        first_seen[r] = queries.window > 0 ? last_seen[r] + 1 - queries.window : 0;
        all_from = most(all_from, first_seen[r]), all_to = least(all_to, last_seen[r]);
    }
    for (int block = 0; block < segment.blocks; ++block) {
        const int64_t place = block * kLanes;
        F scales = fzero();
        if constexpr (N == Number::int8) scales = key_scales(shape, segment.units[block]);
        const bool masked = all_from > place || all_to < place + kLanes - 1;
        for (int r = 0; r < R; ++r) {
            F s = fload(scores[r] + place);
            if constexpr (N == Number::int8)
                s = fmul(to_float(isub(bits_of(s), iset(128 * q.sums[first + r]))), scales);
            if (capped) s = ftanh(fmul(s, scale[r]));
            if (masked) {
                const int begin = int(limited(first_seen[r] - place, 0, kLanes));
                const int end = int(limited(last_seen[r] + 1 - place, 0, kLanes));
                s = fkeep(fset(-INFINITY), begin, fkeep(s, end, fset(-INFINITY)));
            }
            fstore(scores[r] + place, s);
            best[r] = fmax(best[r], s);
        }
    }
    F greatest[R], total[R];
    I sizes[R];
    for (int r = 0; r < R; ++r) {
        greatest[r] = fset(fgreatest(best[r]));
        total[r] = fzero(), sizes[r] = iset(0);
    }
    for (int block = 0; block < segment.blocks; ++block) {
        F scales = fzero();
        if constexpr (N == Number::int8) scales = value_scales(shape, segment.units[block]);
        for (int r = 0; r < R; ++r) {
            segment.ask();
            F p = fexp2(fmul(fsub(fload(scores[r] + block * kLanes), greatest[r]), factor[r]));
            total[r] = fadd(total[r], p);
            if constexpr (N == Number::bfloat16) {
                store_bfloat16(q.weights16[first + r] + block * kLanes, p);
                continue;
            }
            if constexpr (N == Number::int8) {
                p = fmul(p, scales);
                sizes[r] = imax(sizes[r], bits_of(p));
            }
            fstore(scores[r] + block * kLanes, p);
        }
    }
    for (int r = 0; r < R; ++r) {
        fstore(q.outputs[first + r] + shape.lanes(), fmul(greatest[r], factor[r]));
        q.outputs[first + r][shape.lanes()] = fsum(total[r]);
    }
    if constexpr (N == Number::int8) find_codes<R>(q, first, int(queries.count), segment.blocks, sizes);
}

// Some rows at a time: what is done once a row then overlaps. `before`: called before each such turn.
template <Number N, typename Before>
inline void weigh_all(QueryRows &q, const CacheShape &shape, const Queries &queries, Segment &segment, const Before &before) {
    int r = 0;
    for (; r + 4 <= queries.count; r += 4) before(), weigh<N, 4>(q, r, shape, queries, segment);
    before();
    if (queries.count - r == 3) return weigh<N, 3>(q, r, shape, queries, segment);
    for (; r < queries.count; ++r) weigh<N, 1>(q, r, shape, queries, segment);
}

template <Number N, int R>
inline void attend_segment(QueryRows &q, const CacheShape &shape, const Queries &queries, Segment &segment) {
    int block = 0;
    for (; block + 2 <= segment.blocks; block += 2) score_blocks<N, R, 2>(q, shape, segment, block);
    if (block < segment.blocks) score_blocks<N, R, 1>(q, shape, segment, block);
    weigh_all<N>(q, shape, queries, segment, [] {});
    constexpr int kVectors = N == Number::int8 && R > 5 ? 1 : 2;  // whose sums stay in the registers
    const int vectors = int(shape.lanes() / kLanes);
    int v = 0;
    for (; v + kVectors <= vectors; v += kVectors) sum_values<N, R, kVectors>(q, shape, segment, v);
    if (v < vectors) sum_values<N, R, 1>(q, shape, segment, v);
}

// Chooses the code for this number of queries at compile time.
template <Number N, int R>
inline void attend_rows(QueryRows &q, const CacheShape &shape, const Queries &queries, Segment &segment) {
    if (queries.count == R) return attend_segment<N, R>(q, shape, queries, segment);
    if constexpr (R > 1) attend_rows<N, R - 1>(q, shape, queries, segment);
}

// A result that later ones are joined to: outputs not divided yet by the sum of weights, then that sum, then the
// greatest score, of which the weights are relative.
inline void join(float *to, const float *from, int64_t lanes) {
    const float greatest = to[lanes + 1] > from[lanes + 1] ? to[lanes + 1] : from[lanes + 1];
    const F keep = fexp2(fset(to[lanes + 1] - greatest)), take = fexp2(fset(from[lanes + 1] - greatest));
    for (int64_t i = 0; i <= lanes; i += kLanes) fstore(to + i, fma(fload(from + i), take, fmul(fload(to + i), keep)));
    to[lanes + 1] = greatest;
}

inline void divide(const float *joined, int64_t head_size, float *out) {
    const float inverse = 1 / joined[round_up(head_size, kLanes)];
    for (int64_t i = 0; i < head_size; ++i) out[i] = joined[i] * inverse;
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
    constexpr int64_t kBytes = N == Number::float32 ? 4 : N == Number::bfloat16 ? 2 : 1, kLine = 64;
    for (int r = 0; r < queries.count; ++r) {
        const float *in = queries.rows + queries.places[r];
        if (shape.head_size * kBytes % kLine) std::memset(q.values8(r) + shape.head_size * kBytes / kLine * kLine, 0, kLine);
        if constexpr (N == Number::float32) {
            std::memcpy(q.values[r], in, shape.head_size * sizeof(float));
        } else if constexpr (N == Number::bfloat16) {
            over_vectors(shape.head_size, [&](int64_t i, int lanes) {
                store_bfloat16(q.values16(r) + i, fkeep(fload(in + i), lanes, fzero()));
            });
        } else {
            q.scales[r] = round_head(in, shape.head_size, q.values8(r), &q.sums[r]);
        }
    }
}

// `attend_segment` brings the queries' outputs, their sums of weights and greatest scores for a segment of the keys.
template <Number N, typename AttendSegment>
void attend_in(const CacheShape &shape, const Queries &queries, const AttendSegment &attend_segment) {
    static thread_local QueryRows q;
    const int64_t lanes = shape.lanes(), floats = partial_floats(shape.head_size);
    round_queries<N>(q, shape, queries);
    int64_t earliest = INT64_MAX, latest = 0;
    for (int r = 0; r < queries.count; ++r) {
        latest = most(latest, queries.positions[r]);
        earliest = least(earliest, queries.window > 0 ? most(0, queries.positions[r] + 1 - queries.window) : 0);
    }
    // blocks that no query sees may have been freed
    const int64_t first_block = earliest / kLanes, last_block = latest / kLanes;
    const auto unit_of = [&](int64_t block) { return queries.cache + queries.blocks[block] * queries.block_bytes; };
    const bool all = queries.segment < 0;
    const int64_t begin = all ? earliest / kSegment : queries.segment, end = all ? latest / kSegment : queries.segment;
    Segment segment;
    int followed = 0;
    for (int64_t s = begin; s <= end; ++s) {
        const int64_t from = most(s * kSegmentBlocks, first_block), to = least(last_block, (s + 1) * kSegmentBlocks - 1) + 1;
        segment.first = from * kLanes;
        segment.blocks = int(most(to - from, 0));  // none where a window begins behind the segment
        segment.ahead_blocks = 0;
        for (int64_t i = from; i < to; ++i) {
            segment.units[i - from] = unit_of(i);
            const int64_t later = i + kSegmentBlocks;
            if (all && later <= last_block)
                segment.ahead[segment.ahead_blocks++] = unit_of(later);
            else if (followed < queries.following_count)
                segment.ahead[segment.ahead_blocks++] = queries.following[followed++];
        }
        segment.begin_asking(shape, queries.count);
        attend_segment(q, shape, queries, segment);
        for (int r = 0; r < queries.count; ++r) {
            float *joined = all ? q.joined[r] : queries.partials + r * queries.partial_stride;
            if (all && s > begin)
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
