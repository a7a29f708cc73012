// Attention over a cache in bfloat16 or 8 bits by the matrix unit: up to 16 queries are a tile, and so are the keys of a
// block, which lie in the order in which it reads them. Softmax is that of the other instruction sets.

// What a row of a tile takes of keys at a time, and of a block's values.
template <Number N>
struct TileShape {
    static constexpr int64_t kNumberBytes = N == Number::bfloat16 ? 2 : 1;
    static constexpr int64_t kKeyStep = kTileBytes / kNumberBytes, kBlockBytes = kLanes * kNumberBytes;
};

// Rows of weights: beside 8 bits each query has two, its digits. `at_once`: those that are a tile.
template <Number N>
struct WeightRows {
    int64_t all, at_once;
    explicit WeightRows(int64_t queries)
        : all(N == Number::int8 ? 2 * queries : queries), at_once(all <= kTileHeight ? all : queries) {}
};

// Tiles 0 to 3 are sums; 4 and 6 entries of queries and of keys; 5 and 7 weights and values of a block.
template <Number N>
inline MatrixUnit unit_for_attention(int64_t queries, const CacheShape &shape) {
    const int64_t rows = WeightRows<N>(queries).at_once, all = kTileBytes, block = TileShape<N>::kBlockBytes;
    // what follows the keys in a longer head is multiplied with zeros
    const int64_t keys = least(kTileHeight, shape.key_bytes() / kTileBytes);
    return MatrixUnit({{rows, all}, {rows, all}, {rows, all}, {rows, all}, {rows, keys * 4}, {rows, block},
                       {keys, all}, {block / 4, all}});
}

// The instructions want numbers of tiles as they stand.
#define ADD_PRODUCTS_OF_TILES(sum, left, right)      \
    do {                                             \
        if constexpr (N == Number::bfloat16) {       \
            _tile_dpbf16ps(sum, left, right);        \
        } else {                                     \
            _tile_dpbsud(sum, left, right);          \
        }                                            \
    } while (false)

// Scores of the queries with the keys of P blocks; beside 8 bits as sums of products of codes.
template <Number N, int P>
inline void score_in_tiles(QueryRows &q, const CacheShape &shape, Segment &segment, int block) {
    const uint8_t *const *units = segment.units + block;
    constexpr int64_t stride = sizeof q.values[0];
    for (int p = 0; p < P; ++p) segment.ask();
    _tile_zero(0);
    if constexpr (P > 1) _tile_zero(1);
    if constexpr (P > 2) _tile_zero(2);
    if constexpr (P > 3) _tile_zero(3);
    const int64_t steps = (shape.head_size + TileShape<N>::kKeyStep - 1) / TileShape<N>::kKeyStep;
    for (int64_t step = 0; step < steps; ++step) {
        const int64_t at = step * kTileBytes * kTileHeight;
        _tile_loadd(4, q.values8(0) + step * kTileBytes, stride);
        _tile_loadd(6, units[0] + at, kTileBytes);
        ADD_PRODUCTS_OF_TILES(0, 4, 6);
        if constexpr (P > 1) {
            _tile_loadd(6, units[1] + at, kTileBytes);
            ADD_PRODUCTS_OF_TILES(1, 4, 6);
        }
        if constexpr (P > 2) {
            _tile_loadd(6, units[2] + at, kTileBytes);
            ADD_PRODUCTS_OF_TILES(2, 4, 6);
        }
        if constexpr (P > 3) {
            _tile_loadd(6, units[3] + at, kTileBytes);
            ADD_PRODUCTS_OF_TILES(3, 4, 6);
        }
    }
    float *scores = q.scores[0] + block * kLanes;
    _tile_stored(0, scores, sizeof q.scores[0]);
    if constexpr (P > 1) _tile_stored(1, scores + kLanes, sizeof q.scores[0]);
    if constexpr (P > 2) _tile_stored(2, scores + 2 * kLanes, sizeof q.scores[0]);
    if constexpr (P > 3) _tile_stored(3, scores + 3 * kLanes, sizeof q.scores[0]);
}

// The values of a segment, weighted by a tile of rows and summed, in P vectors from vector `v` on.
template <Number N, int P>
inline void sum_values_in_tiles(const QueryRows &q, int64_t row, const CacheShape &shape, Segment &segment, int v,
                                void *to, int64_t to_stride) {
    const uint8_t *weights = reinterpret_cast<const uint8_t *>(q.weights16) + row * QueryRows::kRoom;
    constexpr int64_t weight_stride = QueryRows::kRoom * TileShape<N>::kNumberBytes;
    const int64_t stride = shape.lanes() * 4;
    _tile_zero(0);
    if constexpr (P > 1) {
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    }
    for (int block = 0; block < segment.blocks; ++block) {
        const uint8_t *values = segment.units[block] + shape.key_bytes() + v * kTileBytes;
        if (v == 0 && row == 0) segment.ask();
        _tile_loadd(5, weights + block * TileShape<N>::kBlockBytes, weight_stride);
        _tile_loadd(7, values, stride);
        ADD_PRODUCTS_OF_TILES(0, 5, 7);
        if constexpr (P > 1) {
            _tile_loadd(7, values + kTileBytes, stride);
            ADD_PRODUCTS_OF_TILES(1, 5, 7);
            _tile_loadd(7, values + 2 * kTileBytes, stride);
            ADD_PRODUCTS_OF_TILES(2, 5, 7);
            _tile_loadd(7, values + 3 * kTileBytes, stride);
            ADD_PRODUCTS_OF_TILES(3, 5, 7);
        }
    }
    uint8_t *out = static_cast<uint8_t *>(to);
    _tile_stored(0, out, to_stride);
    if constexpr (P > 1) {
        _tile_stored(1, out + kTileBytes, to_stride);
        _tile_stored(2, out + 2 * kTileBytes, to_stride);
        _tile_stored(3, out + 3 * kTileBytes, to_stride);
    }
}

template <Number N, int P>
inline void find_outputs_in_tiles(QueryRows &q, const CacheShape &shape, int64_t queries, Segment &segment, int v) {
    if constexpr (N == Number::bfloat16) {
        sum_values_in_tiles<N, P>(q, 0, shape, segment, v, q.outputs[0] + v * kLanes, sizeof q.outputs[0]);
    } else {
        alignas(64) int32_t sums[2 * kTileHeight][P + 1][kLanes];  // a line more, so that rows fall on different ones
        const WeightRows<N> rows(queries);
        for (int64_t row = 0; row < rows.all; row += rows.at_once)
            sum_values_in_tiles<N, P>(q, row, shape, segment, v, sums[row], sizeof sums[0]);
        written(&sums);
        for (int64_t r = 0; r < queries; ++r)
            for (int p = 0; p < P; ++p)
                fstore(q.outputs[r] + (v + p) * kLanes, output_of(q, int(r), iload(sums[r][p]), iload(sums[queries + r][p])));
    }
}

template <Number N>
inline void attend_segment_in_tiles(QueryRows &q, const CacheShape &shape, const Queries &queries, Segment &segment) {
    written(&q);
    int block = 0;
    for (; block + 4 <= segment.blocks; block += 4) score_in_tiles<N, 4>(q, shape, segment, block);
    for (; block < segment.blocks; ++block) score_in_tiles<N, 1>(q, shape, segment, block);
    written(&q);
    weigh_all<N>(q, shape, queries, segment, [] { stay_awake(); });
    written(&q);
    const int vectors = int(shape.lanes() / kLanes);
    int v = 0;
    for (; v + 4 <= vectors; v += 4) find_outputs_in_tiles<N, 4>(q, shape, queries.count, segment, v);
    for (; v < vectors; ++v) find_outputs_in_tiles<N, 1>(q, shape, queries.count, segment, v);
}

#undef ADD_PRODUCTS_OF_TILES

template <Number N>
void attend_by_tiles_in(const CacheShape &shape, const Queries &queries) {
    const MatrixUnit unit = unit_for_attention<N>(queries.count, shape);
    stay_awake();
    attend_in<N>(shape, queries, attend_segment_in_tiles<N>);
}

void attend_by_tiles(const CacheShape &shape, const Queries &queries) {
    switch (shape.number) {
        case Number::float32: return attend(shape, queries);
        case Number::bfloat16: return attend_by_tiles_in<Number::bfloat16>(shape, queries);
        default: return attend_by_tiles_in<Number::int8>(shape, queries);
    }
}
