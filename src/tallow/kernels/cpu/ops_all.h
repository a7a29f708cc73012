// All operations in terms of the vocabulary that the including file has put before, for one instruction set.
#include "numbers.h"
#include "ops_math.h"
#include "ops_product.h"
#include "ops_rows.h"
#include "ops_attention.h"
#include "ops_filter.h"
#include "ops_race.h"
#include "ops_training.h"
#include "ops_training_attention.h"

constexpr Ops all_operations(const char *name) {
    return {name,  multiply,  normalize, round_row, rotate, store_token, attend, join_segments,
            embed, summarize, filter,    choose,
            cross_entropy, rms_forward, rms_backward, gate_forward, gate_backward, rotate_head,
            attention_forward, attention_backward};
}
