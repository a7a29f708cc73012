// Attention over a cache in bfloat16 by the matrix unit: up to 16 queries are a tile, and so are the keys of a block, which
// lie in the order in which it reads them. Softmax is that of the other instruction sets.

// Tiles 0 and 1 are sums; 2 and 3 entries of queries and of keys, 32 at a time, and 4 and 5 those that are left over;
// 6 and 7 weights and values of a block.
inline MatrixUnit unit_for_attention(int64_t queries, int64_t head_size) {
    const int64_t all = kTileBytes, rest = round_up(head_size, 2) * 2 % all, block = kLanes * 2;
    return MatrixUnit({{queries, all}, {queries, all}, {queries, all}, {all / 4, all}, {rest > 0 ? queries : 0, rest},
                       {rest / 4, all}, {queries, block}, {block / 4, all}});
}

constexpr int64_t kOutputStride = sizeof(QueryRows::outputs[0]);

// Scores of the queries with the keys of one block.
inline void score_in_tiles(QueryRows &q, const CacheShape &shape, const Chunk &chunk, int block) {
    const uint8_t *keys = chunk.units[block], *next = chunk.next[block];
    const uint16_t *values = q.values16(0);
    constexpr int64_t stride = sizeof q.values[0];
    const int64_t whole = shape.head_size / kStepInputs * kStepInputs;
    for (int64_t line = 0; line < shape.key_bytes(); line += 64) prefetch_far(next + line);
    _tile_zero(0);
    for (int64_t i = 0; i < whole; i += kStepInputs, keys += kTileBytes * kTileHeight) {
        _tile_loadd(2, values + i, stride);
        _tile_loadd(3, keys, kTileBytes);
        _tile_dpbf16ps(0, 2, 3);
    }
    if (whole < shape.head_size) {
        _tile_loadd(4, values + whole, stride);
        _tile_loadd(5, keys, kTileBytes);
        _tile_dpbf16ps(0, 4, 5);
    }
    _tile_stored(0, q.scores[0] + block * kLanes, sizeof q.scores[0]);
}

// Adds the values of a chunk, weighted, to 16 entries of the outputs.
inline void add_values_in_tiles(QueryRows &q, const CacheShape &shape, const Chunk &chunk, int v) {
    float *outputs = q.outputs[0] + v * kLanes;
    const int64_t stride = shape.lanes() * 4;  // of pairs of tokens
    _tile_loadd(1, outputs, kOutputStride);
    for (int block = 0; block < chunk.blocks; ++block) {
        _tile_loadd(6, q.weights16[0] + block * kLanes, sizeof q.weights16[0]);
        _tile_loadd(7, chunk.units[block] + shape.key_bytes() + v * kTileBytes, stride);
        _tile_dpbf16ps(1, 6, 7);
    }
    _tile_stored(1, outputs, kOutputStride);
}

inline void attend_chunk_in_tiles(QueryRows &q, const CacheShape &shape, const Queries &queries, const Chunk &chunk) {
    written(&q);
    for (int block = 0; block < chunk.blocks; ++block) score_in_tiles(q, shape, chunk, block);
    for (int block = 0; block < chunk.blocks; ++block)
        for (int64_t line = 0; line < shape.value_bytes(); line += 64)
            prefetch_far(chunk.next[block] + shape.key_bytes() + line);
    update_all<Number::bfloat16, kChunkBlocks>(q, shape, queries, chunk);
    written(&q);
    for (int v = 0; v < shape.lanes() / kLanes; ++v) add_values_in_tiles(q, shape, chunk, v);
}

void attend_by_tiles(const CacheShape &shape, const Queries &queries) {
    if (shape.number != Number::bfloat16) return attend(shape, queries);
    const MatrixUnit unit = unit_for_attention(queries.count, shape.head_size);
    attend_in<Number::bfloat16>(shape, queries, attend_chunk_in_tiles);
}
