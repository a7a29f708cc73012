// A causal decoder as one call a step: tokens of several sequences in, logits out, keys and values kept in a paged cache.
#pragma once

#include <cstdint>
#include <memory>
#include <unordered_map>
#include <vector>

#include "adapter.h"
#include "memory.h"
#include "ops.h"
#include "pages_ahead.h"
#include "pool.h"
#include "read_ahead.h"
#include "weights.h"

namespace tallow {

// The architectural choices that all layers share; the names are those of DecoderConfig.
struct Architecture {
    int64_t hidden_size, num_heads, num_kv_heads, head_size, intermediate_size, vocab_size;
    int64_t rotated_size = 0;  // entries of a head that are rotated; 0: no rotary positions
    bool gated = true, parallel_residual = false, norm_all_heads = false;  // queries (keys) of all heads as one row
    Activation activation = Activation::silu;
    float embedding_scale = 1, logit_softcap = 0;  // 0: none
    Number cache = Number::bfloat16;
    int64_t block_layers = 1;  // layers of a block of the cache
};

struct DecoderLayer {
    Norm attention_norm, attention_post_norm, feed_forward_norm, feed_forward_post_norm, query_norm, key_norm;
    std::shared_ptr<PackedWeight> qkv, out, up, down;   // up: gate and up by turns of a panel if gated
    const float *cosines = nullptr, *sines = nullptr;  // [position][rotated_size / 2]
    float scale = 1, softcap = 0;
    int64_t window = 0;
    int64_t table = 0, place = 0;  // which of a sequence's tables has its blocks, and where in them it is
};

// The tokens of one sequence that a step computes.
struct Span {
    const int32_t *tokens;
    int64_t start, count;   // position of the first, and how many
    int64_t wanted;         // the last so many get logits
    // For each table the cache blocks of each 16 positions of the sequence; one table lies behind the other.
    const int32_t *tables;
    int64_t table_size;
    const Adapter *adapter;  // null: none
};

class Decoder {
   public:
    Decoder(const Architecture &, const Ops &, int threads);

    const Ops &ops() const { return ops_; }
    Pool &pool() { return pool_; }
    Arena &arena() { return arena_; }
    int64_t vocab_size() const { return shape_.vocab_size; }
    void set_ends(std::shared_ptr<PackedWeight> embedding, std::shared_ptr<PackedWeight> head, Norm norm,
                  const float *positions);
    void add_layer(const DecoderLayer &layer) { layers_.push_back(layer); }
    void read_ahead(ReadAhead layers) { read_ahead_ = std::move(layers); }
    // The first `ready_bytes` of it get their pages ahead of use.
    void allocate_cache(int64_t blocks, size_t ready_bytes);
    int64_t block_bytes() const { return layer_bytes() * shape_.block_layers; }
    void copy_block(int64_t from, int64_t to);
    // Between steps: let spans use an adapter of the weights of this decoder, or forget it.
    void add_adapter(int32_t handle, std::shared_ptr<Adapter> adapter);
    void remove_adapter(int32_t handle);
    const Adapter *adapter(int32_t handle) const { return handle == 0 ? nullptr : adapters_.at(handle).get(); }

    // Logits (rows of `logits_stride` floats) and their summaries for the wanted tokens of all spans, in order.
    void step(const std::vector<Span> &spans, float *logits, int64_t logits_stride, Summary *summaries);
    // After a step: the final hidden state, after the last norm, of one of its wanted tokens.
    void hidden(int64_t wanted, float *out);

   private:
    struct Row {  // a token of the step
        int32_t token;
        int64_t position;
        const int32_t *tables;
        int64_t table_size;

        const int32_t *blocks(const DecoderLayer &layer) const { return tables + layer.table * table_size; }
    };
    struct Task {  // queries of neighbouring rows that share a kv head
        int64_t row, kv_head, first, count;  // `count` of the (token, head) pairs from the `first` on, counted from `row`
    };
    struct Piece {  // a task, or a segment of its keys
        int64_t task, segment, segments;  // segment −1: all of them
        int64_t partials;                 // where the results of the task's segments begin
    };
    struct Run {  // rows that have the same adapter, or none
        const Adapter *adapter;
        int64_t begin, end;
    };
    struct Inputs {
        Memory values, scales, offsets, row;
        Memory panel;  // of a compressed weight, expanded
        Activations view;
        Memory exact, low, extra;  // for adapters: x as it is, A x, B (A x)
    };
    // Rows that a thread works on. A step of few rows is done together: every thread has all rows and computes a share
    // of the outputs, and they wait for each other after each product. Of many rows each thread has some for itself.
    struct Part {
        int thread;
        bool together;
        int64_t begin, end;
    };

    void lay_out(const std::vector<Span> &);
    void make_room(int64_t rows);
    int64_t greatest_rank() const;
    void work_together(int thread);
    void work_apart(int thread);
    template <typename Work>
    void over_parts(int thread, const Work &work);
    void keep_wanted_rows();
    void embed(const Part &);
    void project(const Part &, const DecoderLayer &);
    void finish_layer(const Part &, const DecoderLayer &);
    void score(int thread);

    const Inputs &inputs(const Part &, const Norm &, const float *from, int64_t stride, const Weight &,
                         const int64_t *which = nullptr);
    void multiply(const Part &, const Weight &, const Inputs &, Destination);
    void adapt(const Part &, const Weight &, const Inputs &, int64_t begin, int64_t end, Destination &);
    template <typename Work>
    void over_runs(const Part &, const Work &) const;
    void residual_product(const Part &, const Weight &, const Inputs &, const Norm &post);
    void add_branch(const Part &, const Norm &);
    float *normalized(int thread, const Norm &, const float *row, int64_t size);
    void clear_fresh_blocks(int thread, const DecoderLayer &);
    void normalize_heads_together(int thread, const DecoderLayer &, int64_t row);
    void store_heads(int thread, const DecoderLayer &, int64_t row, int64_t kv_head);
    void attend_all(const Part &, const DecoderLayer &, bool only_wanted = false);
    bool is_wanted(int64_t begin, int64_t end) const;
    void attend(const DecoderLayer &, const Piece &, const Piece &next);
    int first_units(const DecoderLayer &, const Piece &, const uint8_t **units);
    void join_pieces(int thread);
    void cut_in_pieces();
    uint8_t *cache(const DecoderLayer &layer) { return cache_.as<uint8_t>() + layer.place * layer_bytes(); }
    int64_t layer_bytes() const { return cache_shape_.unit_bytes() * shape_.num_kv_heads; }  // within a block

    const Architecture shape_;
    const Ops &ops_;
    Pool pool_;
    Arena arena_;
    CacheShape cache_shape_;
    std::vector<DecoderLayer> layers_;
    ReadAhead read_ahead_;
    std::shared_ptr<PackedWeight> embedding_, head_;
    Norm norm_;
    const float *positions_ = nullptr;
    Memory cache_;
    PagesAhead cache_pages_;
    std::unordered_map<int32_t, std::shared_ptr<Adapter>> adapters_;

    // of the present step
    std::vector<Row> rows_;
    std::vector<Run> runs_;  // of all rows, or none if no row has an adapter
    std::vector<Task> tasks_;
    std::vector<Piece> pieces_;
    // Threads take so many pieces by turns: of many sequences all heads, whose keys and values lie side by side.
    int64_t share_ = 1;
    int64_t first_share(int64_t thread) const { return thread * share_; }
    int64_t next_share(int64_t i) const { return (i + 1) % share_ > 0 ? i + 1 : i + 1 + (pool_.size() - 1) * share_; }
    bool cut_ = false;  // whether the pieces are segments, as tasks are too few for the threads
    Memory partials_;
    std::vector<int64_t> wanted_, wanted_sorted_;  // rows that get logits, in the order of the spans and of the rows
    std::vector<std::vector<int64_t>> fresh_blocks_;  // of each table: those whose first token comes
    bool single_tokens_ = false;  // no sequence has more than one token in the step
    float *logits_ = nullptr;
    int64_t logits_stride_ = 0;
    Summary *summaries_ = nullptr;

    // room for the rows of a step
    int64_t capacity_ = 0, hidden_stride_, qkv_stride_, inner_stride_, inputs_stride_;
    Memory x_, branch_, qkv_, inner_;
    int64_t extra_stride_, rank_stride_ = 0;  // 0: no step has had an adapter
    std::vector<Inputs> inputs_;
};

}  // namespace tallow
