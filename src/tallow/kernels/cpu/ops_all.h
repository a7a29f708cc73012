// All operations in terms of the vocabulary that the including file has put before, for one instruction set.
#include "numbers.h"
#include "ops_math.h"
#include "ops_product.h"
#include "ops_rows.h"
#include "ops_attention.h"
#ifdef __AMX_TILE__
#include "ops_tiles.h"
#include "ops_tile_attention.h"
#endif
#include "ops_filter.h"
#include "ops_race.h"
#include "ops_training.h"
#include "ops_training_attention.h"

constexpr Ops all_operations(const char *name) {
    return {name,  kQueriesInRegisters, 64, multiply,  normalize, reads_offsets, round_row, rotate, store_token, attend, join_segments,
            embed, summarize, filter,    choose,
            cross_entropy, rms_forward, rms_backward, gate_forward, gate_backward, rotate_head,
            attention_forward, attention_backward};
}

#ifdef __AMX_TILE__
constexpr Ops all_operations_in_tiles(const char *name) {
    Ops ops = all_operations(name);
    ops.queries = kMostQueries, ops.part_rows = 256;  // products are bound by the weights' way to the core
    ops.multiply = multiply_in_tiles, ops.reads_offsets = tiles_read_offsets, ops.attend = attend_by_tiles;
    return ops;
}
#endif
