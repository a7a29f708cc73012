// The operations of a decoder on the CPU: what each instruction set implements (ops_*.cpp) and decoder.cpp strings together.
//
// Every result is a function of its own row alone, computed in one order of summation that depends neither on how many
// rows there are nor on how work falls to threads: a request's numbers are the same to the bit alone and in a batch.
#pragma once

#include <cstdint>
#include <atomic>
#include <utility>

namespace tallow {

constexpr int kLanes = 16;             // of a vector of floats; also the tokens of a block of the key-value cache
constexpr int kPanel = 32;             // outputs of a weight that are computed together
constexpr int kActivationGroup = 32;  // inputs that share a scale when activations are rounded to 8 bits

// always inline: no instruction set may call another's copy
#define TALLOW_INLINE [[gnu::always_inline]] inline

TALLOW_INLINE constexpr int64_t round_up(int64_t value, int64_t multiple) { return (value + multiple - 1) / multiple * multiple; }

enum class Number : int { float32, bfloat16, int8, int4, int6, compressed_bfloat16, nested_int4 };

TALLOW_INLINE constexpr bool is_integer(Number number) {
    return number == Number::int8 || number == Number::int4 || number == Number::int6 || number == Number::nested_int4;
}
TALLOW_INLINE constexpr int64_t weight_bits(Number number) { return number == Number::int8 ? 8 : number == Number::int6 ? 6 : 4; }
// The code of zero: codes are stored without signs.
TALLOW_INLINE constexpr int32_t zero_of(Number number) { return 1 << (weight_bits(number) - 1); }

// Of nested_int4 so many groups of activations that lie side by side may have one scale.
constexpr int64_t kMostGroupsPerScale = 24;

// A weight's sign and most of its exponent: few of the 256 occur, as those of a layer's weights are of similar magnitude.
struct UpperBytes {
    uint8_t common[16];  // what codes stand for
    // Weights that have others, by rising places among the 4,096 of the block as bfloat16 would lie; then kNoPlace.
    uint16_t places[16];
    uint8_t others[16];
};
constexpr uint16_t kNoPlace = 0xffff;
constexpr int64_t kCompressedInputs = 128;  // of a block
constexpr int64_t kCompressedStep = 192;    // bytes of four inputs besides

// The weight of a linear layer in panels of 32 outputs. A panel is read from its begin to its end; for each step of
// inputs it holds the weights of its first 16 outputs, lane by lane, and then those of the others ([2]):
//   float32   [input][2][16]
//   bfloat16  [input / 2][2][16][2]
//   compressed_bfloat16  as many bits, in three quarters of the bytes: for each 128 inputs (of the last there may be fewer,
//             a multiple of four) their UpperBytes, then [input / 4] times [64] codes and [2][64] lower bytes, the first 64
//             of inputs 0 and 1, the others of inputs 2 and 3: [4][2][4][2], four of the first 16 outputs and four of the
//             others by turns. Codes have the same order: those of inputs 0 and 1 in the low halves of the bytes.
//   int8      for each group [2][16] scales, then [group / 4][2][16][4] bytes code + 128
//   int4      for each group [2][16] scales, then [group / 32][4][2][16][4]: a byte of the j-th of the four holds code + 8
//             of step j in its low half and of step j + 4 in its high half (a step: 4 inputs)
//   int6      as int4, the lower four bits of code + 32; behind each of the four follow [16][4] bytes with the upper two
//             bits: those of step j of the first 16 outputs and then of the others, the same of step j + 4
//   nested_int4  [2][16] scales of the outputs (float), then for each two groups [2][2][16] signed bytes, −15 … 15, by which
//             an output's scale is multiplied, and the codes as int4 has them (of the last there may be one). Products of
//             several groups are summed as integers: "Integer Scale" (Li et al., arXiv 2405.14597).
// Other scales are half precision. Outputs are padded with zeros to whole panels, inputs (of bfloat16) to whole pairs.
struct Weight {
    Number number;
    int64_t outputs, inputs;
    int64_t group;  // inputs that share a scale (integers only); a multiple of 32, and 32 of nested_int4
    const uint8_t *packed;
    const float *bias;  // [panel][32], or null
    int64_t groups_per_scale = 1;  // of the activations: they divide the inputs

    TALLOW_INLINE bool integers() const { return is_integer(number); }
    TALLOW_INLINE int64_t panels() const { return (outputs + kPanel - 1) / kPanel; }
    TALLOW_INLINE int64_t panel_bytes() const {
        switch (number) {
            case Number::float32: return inputs * 128;
            case Number::bfloat16: return (inputs + 1) / 2 * 128;
            case Number::compressed_bfloat16:
                return (inputs + kCompressedInputs - 1) / kCompressedInputs * int64_t(sizeof(UpperBytes)) +
                       inputs / 4 * kCompressedStep;
            case Number::nested_int4:
                return int64_t(kPanel * sizeof(float)) + (inputs / kActivationGroup + 1) / 2 * 64 + inputs / 2 * kPanel;
            default: return inputs / group * group_bytes();
        }
    }
    // Where in a nested panel the bytes of a group begin that multiply scales, and its codes.
    TALLOW_INLINE int64_t multiples_at(int64_t g) const {
        return int64_t(kPanel * sizeof(float)) + g / 2 * (64 + 2 * code_bytes()) + g % 2 * kPanel;
    }
    TALLOW_INLINE int64_t nested_codes_at(int64_t g) const { return multiples_at(g / 2 * 2) + 64 + g % 2 * code_bytes(); }
    // Of the codes of a group, and of its scales besides.
    TALLOW_INLINE int64_t code_bytes() const { return group * weight_bits(number) * kPanel / 8; }
    TALLOW_INLINE int64_t group_bytes() const { return 64 + code_bytes(); }
};

// Rows of activations in the form that a weight is multiplied with: float32, bfloat16 (padded to pairs), or int8 in groups
// of 32 with a scale and an offset.
struct Activations {
    const void *values;
    int64_t stride;  // values of a row
    const float *scales;
    const int32_t *offsets;  // what to add to the sums of products, as the codes of a weight do not begin at zero; or null
    int64_t groups;  // of a row
    const int32_t *byte_offsets;  // nested_int4: the same for each scale, where codes have been brought to bytes around 128
};

enum class Activation : int { silu, gelu, gelu_tanh };

struct Norm {
    enum Kind : int { none, rms, layer } kind = none;
    const float *weight = nullptr, *bias = nullptr;  // bias may be null
    float eps = 0;
};

// The cache: [block][layer][kv head] units, a unit being the keys and then the values of 16 tokens, so that memory is
// taken as blocks are.
//   float32   keys [d][16], values [16][d16]              (d16: head size in whole vectors of 16)
//   bfloat16  keys [d / 2][16][2], values [8][d16][2]
//   int8      keys [d / 4][16][4], values [4][d16][4], as bytes code + 128; then 16 scales of the keys, 16 of the values
// Head sizes are padded with zeros.
struct CacheShape {
    Number number;  // float32, bfloat16 or int8
    int64_t kv_heads, head_size;

    TALLOW_INLINE int64_t lanes() const { return round_up(head_size, kLanes); }
    TALLOW_INLINE int64_t key_bytes() const {
        switch (number) {
            case Number::float32: return head_size * 64;
            case Number::bfloat16: return round_up(head_size, 2) * 32;
            default: return round_up(head_size, 4) * 16;
        }
    }
    TALLOW_INLINE int64_t value_bytes() const {
        return lanes() * kLanes * (number == Number::float32 ? 4 : number == Number::bfloat16 ? 2 : 1);
    }
    TALLOW_INLINE int64_t unit_bytes() const {
        return key_bytes() + value_bytes() + (number == Number::int8 ? 2 * kLanes * int64_t(sizeof(float)) : 0);
    }
};

// Attention of some queries of one sequence that share a kv head.
struct Queries {
    const uint8_t *cache;   // the unit of the layer and kv head in block 0
    int64_t block_bytes;    // from there to block 1
    const int32_t *blocks;  // of the sequence
    float *rows;            // head_size floats each: queries in, outputs out
    const int64_t *places;  // where each row begins in `rows`
    const int64_t *positions;
    int64_t count;          // at most kMostQueries
    float scale, softcap;   // softcap 0: none
    int64_t window;         // 0: none
    int64_t segment;        // compute this segment of the keys only; −1: all of them
    const uint8_t *const *following;  // units that will be read next, up to kSegmentBlocks: asked for towards the end
    int following_count;
    float *partials;        // where the results of a segment go, partial_floats(head size) for each query
    int64_t partial_stride;
};
constexpr int kMostQueries = 16;
constexpr int64_t kQueriesInRegisters = 10;  // those that vectors can take at once
// The softmax is taken over so many keys by itself, then over these results: so threads can share a long sequence, and
// the result is the same if one does all of it.
constexpr int64_t kSegment = 256;
constexpr int kSegmentBlocks = kSegment / kLanes;
TALLOW_INLINE constexpr int64_t partial_floats(int64_t head_size) { return round_up(head_size, kLanes) + kLanes; }

// What sampling wants to know first of a row of logits.
struct Summary {
    int32_t argmax;
    float greatest, log_sum_exp;
};

// How a token is drawn from a row of logits; kernels/sampling.py says what each of these means.
struct Draw {
    double temperature;
    int64_t top_k;
    double top_p, min_p, typical_p;
    uint64_t seed;
    uint32_t index;

    TALLOW_INLINE bool has_top_k(int64_t size) const { return top_k > 0 && top_k < size; }
    TALLOW_INLINE bool has_filter(int64_t size) const {
        return has_top_k(size) || top_p < 1 || min_p > 0 || typical_p < 1;
    }
};

// Tokens that may be drawn, by rising ids. The arrays are the caller's, with room for the vocabulary and a vector more.
struct Candidates {
    int32_t *ids;
    float *logits, *weights;
    int32_t *border;  // for the filters' own use
    int64_t count;
};

// What becomes of products. `out` has whole panels in each row.
struct Destination {
    // gate: out = act(first 16 outputs of a panel) · its other 16
    enum Mode : int { store, add, activate, gate } mode;
    float *out;
    int64_t stride;
    Activation activation;
    const float *extra;  // added to the products before anything else (what adapters contribute), or null
    int64_t extra_stride;
    uint16_t *panel = nullptr;  // room for a panel in bfloat16, where the weight is compressed or nested
};

// One head of one sequence in training. Tokens lie `…stride` values apart.
struct CausalHead {
    int64_t tokens, size;  // size: of the head, even
    float scale;
    const int32_t *first;  // for each query the first key that it sees, never falling; it sees all from there to itself
    const uint16_t *queries, *keys, *values;
    int64_t query_stride, key_stride, value_stride;
    uint16_t *out;
    int64_t out_stride;
    float *log_sums;  // [token]: of the exponentials of scores
    // the backward pass only
    const uint16_t *by_out;
    int64_t by_out_stride;
    uint16_t *by_queries;
    int64_t by_query_stride;
    float *by_keys, *by_values;  // [token][entry]
};
// Bytes that either pass needs besides.
TALLOW_INLINE constexpr int64_t attention_scratch(int64_t tokens, int64_t size) {
    return (round_up(tokens, 64) * 20 + 64 * 40) * round_up(size, 32) + 64 * 64 * 20 + 64 * 32;
}

struct Ops {
    const char *name;
    int64_t queries;    // of which attention takes so many at a time, at best
    int64_t part_rows;  // that a thread takes through a layer at a time, while their values stay in a core's own cache
    // Products of `rows` rows with the panels from `panel` to `end`.
    void (*multiply)(const Weight &, const Activations &, const Destination &, int64_t rows, int64_t panel, int64_t end);
    void (*normalize)(const Norm &, const float *in, int64_t size, float *out);
    // Whether products of integers with so many rows read offsets; else nobody needs to know them.
    bool (*reads_offsets)(int64_t rows);
    // Round a row to what this weight is multiplied with; the arrays of `to` are written, where there are offsets.
    void (*round_row)(const Weight &, const float *in, const Activations &to, int64_t row);
    void (*rotate)(float *head, const float *cosines, const float *sines, int64_t half);
    void (*store_token)(const CacheShape &, uint8_t *unit, int64_t slot, const float *key, const float *value);
    void (*attend)(const CacheShape &, const Queries &);
    // Joins the results of segments, one after the other in `partials`, into the output of one query.
    void (*join_segments)(const float *partials, int64_t segments, int64_t head_size, float *out);
    void (*embed)(const Weight &, int64_t token, float scale, float *out);
    Summary (*summarize)(float *logits, int64_t size, float softcap);  // caps them, too
    // What temperature and filters leave; false if the logits are no distribution: one is NaN or ∞, or all are −∞.
    bool (*filter)(const float *logits, int64_t size, const Draw &, Candidates &);
    // The token drawn, −1 if the logits are no distribution; what is written to the candidates is of no use.
    int32_t (*choose)(const float *logits, int64_t size, const Draw &, Candidates &);
    // Of training (ops_training.h).
    float (*cross_entropy)(Number, const void *logits, int64_t size, int64_t target, void *gradient);
    float (*rms_forward)(const float *x, const float *weight, int64_t size, float eps, Number, void *out);
    void (*rms_backward)(const float *x, const float *weight, float inverse, Number, const void *gradient, int64_t size,
                         float *by_x, float *by_weight);
    void (*gate_forward)(Number, Activation, const void *gate, const void *up, int64_t size, void *out);
    void (*gate_backward)(Number, Activation, const void *gate, const void *up, const void *gradient, int64_t size,
                          void *by_gate, void *by_up);
    void (*rotate_head)(Number, const void *from, const float *cosines, const float *sines, float sign, int64_t half,
                        int64_t size, void *to);
    // Of heads with the same keys and values, whose gradient is that of all of them and goes where the first one says.
    void (*attention_forward)(const CausalHead *heads, int64_t count, void *scratch);
    void (*attention_backward)(const CausalHead *heads, int64_t count, void *scratch);
};

// Those that this processor has, best first.
const Ops *const *instruction_sets();

}  // namespace tallow
