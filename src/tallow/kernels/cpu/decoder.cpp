#include "decoder.h"

#include <algorithm>
#include <cstring>
#include <functional>
#include <stdexcept>

namespace tallow {
namespace {

// So few rows are rounded by each thread for itself: that is quicker than to wait for each other.
constexpr int64_t kRoundedByAll = 2;
constexpr size_t kApart = 64;  // so many rows are divided among the threads
// Vectors may be read beyond the end of the last row.
constexpr int64_t kSlack = 64;

}  // namespace

Decoder::Decoder(const Architecture &shape, const Ops &ops, int threads)
    : shape_(shape),
      ops_(ops),
      pool_(threads),
      cache_shape_{shape.cache, shape.num_kv_heads, shape.head_size},
      hidden_stride_(round_up(shape.hidden_size, kPanel)),
      qkv_stride_(round_up((shape.num_heads + 2 * shape.num_kv_heads) * shape.head_size, kPanel)),
      inner_stride_(round_up(shape.intermediate_size, kPanel)),
      inputs_stride_(round_up(std::max({shape.hidden_size, shape.intermediate_size, shape.num_heads * shape.head_size}), 64)),
      extra_stride_(std::max({qkv_stride_, hidden_stride_, 2 * inner_stride_})),
      inputs_(pool_.size()) {}

void Decoder::set_ends(std::shared_ptr<PackedWeight> embedding, std::shared_ptr<PackedWeight> head, Norm norm,
                       const float *positions) {
    embedding_ = std::move(embedding);
    head_ = std::move(head);
    norm_ = norm;
    positions_ = positions;
}

void Decoder::allocate_cache(int64_t blocks, size_t ready_bytes) {
    cache_pages_.end();
    cache_ = Memory(block_bytes() * blocks);
    cache_pages_.begin(cache_.as<char>(), cache_.bytes(), ready_bytes);
}

void Decoder::copy_block(int64_t from, int64_t to) {
    uint8_t *cache = cache_.as<uint8_t>();
    std::memcpy(cache + to * block_bytes(), cache + from * block_bytes(), block_bytes());
}

void Decoder::step(const std::vector<Span> &spans, float *logits, int64_t logits_stride, Summary *summaries) {
    lay_out(spans);
    if (rows_.empty()) return;
    logits_ = logits;
    logits_stride_ = logits_stride;
    summaries_ = summaries;
    const bool apart = rows_.size() >= kApart && pool_.size() <= int64_t(rows_.size()) / 16;
    cache_pages_.busy();
    pool_.run([&](int thread) { apart ? work_apart(thread) : work_together(thread); });
    cache_pages_.busy();
}

void Decoder::hidden(int64_t wanted, float *out) {
    const float *row = x_.as<float>() + wanted_.at(wanted) * hidden_stride_;
    if (norm_.kind != Norm::none) row = normalized(0, norm_, row, shape_.hidden_size);
    std::memcpy(out, row, shape_.hidden_size * sizeof(float));
}

void Decoder::lay_out(const std::vector<Span> &spans) {
    rows_.clear();
    runs_.clear();
    tasks_.clear();
    wanted_.clear();
    size_t tables = 0;
    for (const DecoderLayer &layer : layers_) tables = std::max(tables, size_t(layer.table) + 1);
    fresh_blocks_.assign(tables, {});
    const int64_t sharing = shape_.num_heads / shape_.num_kv_heads;
    const int64_t height = sharing <= ops_.queries ? ops_.queries / sharing * sharing : ops_.queries;
    single_tokens_ = sharing <= ops_.queries;
    std::vector<const Span *> ordered;
    for (const Span &span : spans) ordered.push_back(&span);
    const auto has_adapter = [](const Span *span) { return span->adapter != nullptr; };
    const bool adapted = std::any_of(ordered.begin(), ordered.end(), has_adapter);
    if (adapted)  // all rows of an adapter side by side, so that its weights are read once
        std::stable_sort(ordered.begin(), ordered.end(),
                         [](const Span *a, const Span *b) { return std::less<>()(a->adapter, b->adapter); });
    std::vector<int64_t> ends(spans.size());
    for (const Span *span : ordered) {
        const int64_t row = int64_t(rows_.size());
        single_tokens_ &= span->count == 1;
        for (int64_t i = 0; i < span->count; ++i) {
            const int64_t position = span->start + i;
            rows_.push_back({span->tokens[i], position, span->tables, span->table_size});
            for (size_t table = 0; table < tables && position % kLanes == 0; ++table)
                fresh_blocks_[table].push_back(span->tables[table * span->table_size + position / kLanes]);
        }
        ends[span - spans.data()] = int64_t(rows_.size());
        if (adapted && (runs_.empty() || runs_.back().adapter != span->adapter)) runs_.push_back({span->adapter, row, row});
        if (adapted) runs_.back().end = int64_t(rows_.size());
        // part by part, so that each thread attends to rows that it has made
        const int64_t queries = span->count * sharing, of_part = round_up(ops_.part_rows * sharing, height);
        for (int64_t begin = 0; begin < queries; begin += of_part)
            for (int64_t head = 0; head < shape_.num_kv_heads; ++head)
                for (int64_t first = begin; first < std::min(begin + of_part, queries); first += height)
                    tasks_.push_back({row, head, first, std::min(height, queries - first)});
    }
    for (const std::vector<int64_t> &blocks : fresh_blocks_)
        for (int64_t block : blocks) cache_pages_.used(size_t(block + 1) * block_bytes());
    for (size_t i = 0; i < spans.size(); ++i)
        for (int64_t row = ends[i] - spans[i].wanted; row < ends[i]; ++row) wanted_.push_back(row);
    wanted_sorted_ = wanted_;
    std::sort(wanted_sorted_.begin(), wanted_sorted_.end());  // adapters put rows into another order than spans have
    cut_in_pieces();
    make_room(int64_t(rows_.size()));
}

// A few long sequences that grow by a token: threads share their keys, segment by segment.
void Decoder::cut_in_pieces() {
    int64_t floats = 0, longest = 0;
    for (const Task &task : tasks_) longest = std::max(longest, rows_[task.row].position / kSegment);
    cut_ = single_tokens_ && longest > 0 && pool_.size() > 1 && tasks_.size() < size_t(4 * pool_.size());
    pieces_.clear();
    for (size_t task = 0; task < tasks_.size(); ++task) {
        if (!cut_) {
            pieces_.push_back({int64_t(task), -1, 0, 0});
            continue;
        }
        const int64_t segments = rows_[tasks_[task].row].position / kSegment + 1;
        for (int64_t segment = 0; segment < segments; ++segment)
            pieces_.push_back({int64_t(task), segment, segments, floats});
        floats += segments * tasks_[task].count * partial_floats(shape_.head_size);
    }
    const bool many = single_tokens_ && !cut_ && rows_.size() >= size_t(4 * pool_.size());
    share_ = many ? shape_.num_kv_heads : 1;
    if (partials_.bytes() < floats * sizeof(float)) partials_ = Memory(2 * floats * sizeof(float));
}

void Decoder::make_room(int64_t rows) {
    const int64_t rank = greatest_rank();
    if (rows <= capacity_ && rank <= rank_stride_) return;
    capacity_ = rows = std::max(rows, capacity_);
    rank_stride_ = std::max(rank, rank_stride_);
    x_ = Memory((rows * hidden_stride_ + kSlack) * sizeof(float));
    branch_ = Memory((rows * hidden_stride_ + kSlack) * sizeof(float));
    qkv_ = Memory((rows * qkv_stride_ + kSlack) * sizeof(float));
    inner_ = Memory((rows * inner_stride_ + kSlack) * sizeof(float));
    for (size_t thread = 0; thread < inputs_.size(); ++thread) {
        Inputs &in = inputs_[thread];
        const int64_t room = thread == 0 ? std::max(rows, ops_.part_rows) : ops_.part_rows;
        in.values = Memory((room * inputs_stride_ + kSlack) * sizeof(float));
        in.scales = Memory(room * inputs_stride_ / kActivationGroup * sizeof(float));
        in.panel = Memory(inputs_stride_ * kPanel * sizeof(uint16_t));
        in.row = Memory((inputs_stride_ + kSlack) * sizeof(float));
        const int64_t groups = inputs_stride_ / kActivationGroup;
        in.offsets = Memory(2 * room * groups * sizeof(int32_t));
        in.view = {in.values.as<void>(), inputs_stride_, in.scales.as<float>(), in.offsets.as<int32_t>(), groups,
                   in.offsets.as<int32_t>() + room * groups};
        if (rank_stride_ == 0) continue;
        in.exact = Memory((room * inputs_stride_ + kSlack) * sizeof(float));
        in.low = Memory(room * rank_stride_ * sizeof(float));
        in.extra = Memory(room * extra_stride_ * sizeof(float));
    }
}

template <typename Work>
void Decoder::over_parts(int thread, const Work &work) {
    const int64_t rows = int64_t(rows_.size()), threads = pool_.size();
    const int64_t parts = round_up((rows + ops_.part_rows - 1) / ops_.part_rows, threads);
    for (int64_t part; (part = pool_.next(thread, parts)) < parts;)
        work(Part{thread, false, rows * part / parts, rows * (part + 1) / parts});
}

void Decoder::work_together(int thread) {
    const Part all{thread, true, 0, int64_t(rows_.size())};
    const int64_t kv_heads = shape_.num_kv_heads;
    embed(all);
    for (const DecoderLayer &layer : layers_) {
        if (thread == 0) read_ahead_.begin(&layer - layers_.data());
        clear_fresh_blocks(thread, layer);
        project(all, layer);
        for (int64_t i = first_share(thread); i < all.end * kv_heads; i = next_share(i))
            store_heads(thread, layer, i / kv_heads, i % kv_heads);
        // where each thread attends to what it has stored itself, it need not wait for the others
        if (!single_tokens_ || cut_) pool_.barrier();
        attend_all(all, layer);
        pool_.barrier();
        if (cut_) join_pieces(thread);
        if (cut_) pool_.barrier();
        finish_layer(all, layer);
    }
    score(thread);
}

void Decoder::work_apart(int thread) {
    clear_fresh_blocks(thread, layers_.front());
    over_parts(thread, [&](const Part &part) { embed(part); });
    pool_.barrier();
    const DecoderLayer *before = nullptr;
    for (const DecoderLayer &layer : layers_) {
        if (thread == 0) read_ahead_.begin(&layer - layers_.data());
        over_parts(thread, [&](const Part &part) {
            if (before) finish_layer(part, *before);
            project(part, layer);
            for (int64_t row = part.begin; row < part.end; ++row)
                for (int64_t head = 0; head < shape_.num_kv_heads; ++head) store_heads(thread, layer, row, head);
        });
        pool_.barrier();
        if (&layer != &layers_.back()) clear_fresh_blocks(thread, *(&layer + 1));
        attend_all({thread, false, 0, 0}, layer, &layer == &layers_.back());
        pool_.barrier();
        before = &layer;
    }
    // of what the last layer makes only the wanted rows are looked at
    if (wanted_.empty()) return;
    if (before && runs_.empty() && wanted_.size() < kApart) {
        if (thread == 0) keep_wanted_rows();
        pool_.barrier();
        finish_layer({thread, true, 0, int64_t(wanted_.size())}, *before);
    } else if (before) {
        over_parts(thread, [&](const Part &part) {
            if (is_wanted(part.begin, part.end)) finish_layer(part, *before);
        });
        pool_.barrier();
    }
    score(thread);
}

// Brings the rows that get logits to the front, with what attention has made of them.
void Decoder::keep_wanted_rows() {
    const int64_t outputs = shape_.num_heads * shape_.head_size;
    for (int64_t &row : wanted_) {
        const int64_t to = &row - wanted_.data();  // at most `row`: without adapters spans have their order
        if (to == row) continue;
        float *x = x_.as<float>(), *attended = qkv_.as<float>();
        std::memcpy(x + to * hidden_stride_, x + row * hidden_stride_, shape_.hidden_size * sizeof(float));
        std::memcpy(attended + to * qkv_stride_, attended + row * qkv_stride_, outputs * sizeof(float));
        row = to;
    }
}

void Decoder::embed(const Part &part) {
    const int64_t step = part.together ? pool_.size() : 1;
    for (int64_t row = part.begin + (part.together ? part.thread : 0); row < part.end; row += step) {
        float *to = x_.as<float>() + row * hidden_stride_;
        ops_.embed(embedding_->view(), rows_[row].token, shape_.embedding_scale, to);
        if (positions_)
            for (int64_t i = 0; i < shape_.hidden_size; ++i)
                to[i] += positions_[rows_[row].position * shape_.hidden_size + i];
    }
    if (part.together) pool_.barrier();
}

// Queries, keys and values of the rows.
void Decoder::project(const Part &part, const DecoderLayer &layer) {
    const Weight &w = layer.qkv->view();
    const Inputs &in =
        inputs(part, layer.attention_norm, x_.as<float>(), hidden_stride_, w);
    multiply(part, w, in, {Destination::store, qkv_.as<float>(), qkv_stride_, {}, nullptr, 0});
    if (!shape_.norm_all_heads) return;
    const int64_t step = part.together ? pool_.size() : 1;
    for (int64_t row = part.begin + (part.together ? part.thread : 0); row < part.end; row += step)
        normalize_heads_together(part.thread, layer, row);
    if (part.together) pool_.barrier();
}

// What comes after attention, whose outputs lie where the queries were.
void Decoder::finish_layer(const Part &part, const DecoderLayer &layer) {
    const Weight &out = layer.out->view(), &up = layer.up->view(), &down = layer.down->view();
    float *x = x_.as<float>(), *inner = inner_.as<float>();
    const Inputs *in = &inputs(part, {}, qkv_.as<float>(), qkv_stride_, out);
    if (shape_.parallel_residual)
        multiply(part, out, *in, {Destination::store, branch_.as<float>(), hidden_stride_, {}, nullptr, 0});
    else
        residual_product(part, out, *in, layer.attention_post_norm);
    in = &inputs(part, layer.feed_forward_norm, x, hidden_stride_, up);
    const auto mode = shape_.gated ? Destination::gate : Destination::activate;
    multiply(part, up, *in, {mode, inner, inner_stride_, shape_.activation, nullptr, 0});
    in = &inputs(part, {}, inner, inner_stride_, down);
    if (shape_.parallel_residual) add_branch(part, {});
    residual_product(part, down, *in, layer.feed_forward_post_norm);
}

// Logits of the wanted rows.
void Decoder::score(int thread) {
    const int64_t wanted = int64_t(wanted_.size());
    if (wanted == 0) return;
    const Part all{thread, true, 0, wanted};
    const Weight &w = head_->view();
    const Inputs &in =
        inputs(all, norm_, x_.as<float>(), hidden_stride_, w, wanted_.data());
    multiply(all, w, in, {Destination::store, logits_, logits_stride_, {}, nullptr, 0});
    for (int64_t i = thread; i < wanted; i += pool_.size())
        summaries_[i] = ops_.summarize(logits_ + i * logits_stride_, shape_.vocab_size, shape_.logit_softcap);
}

// Rows (those of `which` if it is not null) as a weight is multiplied with, normalized if there is a norm.
const Decoder::Inputs &Decoder::inputs(const Part &part, const Norm &norm, const float *from, int64_t stride,
                                       const Weight &w, const int64_t *which) {
    const bool shared = part.together && part.end - part.begin > kRoundedByAll;
    const Inputs &to = inputs_[shared ? 0 : part.thread];
    Activations rounded = to.view;
    if (!ops_.reads_offsets(part.end - part.begin)) rounded.offsets = nullptr;
    for (int64_t i = part.begin + (shared ? part.thread : 0); i < part.end; i += shared ? pool_.size() : 1) {
        const float *row = from + (which ? which[i] : i) * stride;
        if (norm.kind != Norm::none) row = normalized(part.thread, norm, row, w.inputs);
        ops_.round_row(w, row, rounded, i - part.begin);
        if (!runs_.empty() && !which)
            std::memcpy(to.exact.as<float>() + (i - part.begin) * inputs_stride_, row, w.inputs * sizeof(float));
    }
    if (shared) pool_.barrier();
    return to;
}

void Decoder::multiply(const Part &part, const Weight &w, const Inputs &in, Destination to) {
    const int64_t shares = part.together ? pool_.size() : 1, share = part.together ? part.thread : 0;
    const int64_t begin = w.panels() * share / shares, end = w.panels() * (share + 1) / shares;
    to.out += part.begin * to.stride;
    to.panel = inputs_[part.thread].panel.as<uint16_t>();
    if (!runs_.empty()) adapt(part, w, in, begin, end, to);
    if (begin < end) ops_.multiply(w, in.view, to, part.end - part.begin, begin, end);
    if (part.together) pool_.barrier();
}

// Adds a product to the residual stream, normalized before if there is a norm for it.
void Decoder::residual_product(const Part &part, const Weight &w, const Inputs &in, const Norm &post) {
    const bool direct = post.kind == Norm::none;
    float *to = direct ? x_.as<float>() : branch_.as<float>();
    multiply(part, w, in, {direct ? Destination::add : Destination::store, to, hidden_stride_, {}, nullptr, 0});
    if (!direct) add_branch(part, post);
}

void Decoder::add_branch(const Part &part, const Norm &norm) {
    const int64_t step = part.together ? pool_.size() : 1;
    for (int64_t row = part.begin + (part.together ? part.thread : 0); row < part.end; row += step) {
        const float *branch = branch_.as<float>() + row * hidden_stride_;
        if (norm.kind != Norm::none) branch = normalized(part.thread, norm, branch, shape_.hidden_size);
        float *x = x_.as<float>() + row * hidden_stride_;
        for (int64_t i = 0; i < shape_.hidden_size; ++i) x[i] += branch[i];
    }
    if (part.together) pool_.barrier();
}

// In this thread's own room, until the next call.
float *Decoder::normalized(int thread, const Norm &norm, const float *row, int64_t size) {
    float *out = inputs_[thread].row.as<float>();
    ops_.normalize(norm, row, size, out);
    return out;
}

// What an earlier owner left in a block will be multiplied with zeros: it must at least be finite.
void Decoder::clear_fresh_blocks(int thread, const DecoderLayer &layer) {
    const std::vector<int64_t> &fresh = fresh_blocks_[layer.table];
    for (size_t i = thread; i < fresh.size(); i += pool_.size())
        std::memset(cache(layer) + fresh[i] * block_bytes(), 0, layer_bytes());
}

// Norms that see the queries (and the keys) of all heads as one row.
void Decoder::normalize_heads_together(int thread, const DecoderLayer &layer, int64_t row) {
    float *q = qkv_.as<float>() + row * qkv_stride_, *k = q + shape_.num_heads * shape_.head_size;
    const int64_t q_size = k - q, k_size = shape_.num_kv_heads * shape_.head_size;
    std::memcpy(q, normalized(thread, layer.query_norm, q, q_size), q_size * sizeof(float));
    std::memcpy(k, normalized(thread, layer.key_norm, k, k_size), k_size * sizeof(float));
}

// Norms and positions of a token's key and of the queries that share it; key and value go to the cache.
void Decoder::store_heads(int thread, const DecoderLayer &layer, int64_t row, int64_t kv_head) {
    const int64_t size = shape_.head_size, sharing = shape_.num_heads / shape_.num_kv_heads;
    const int64_t half = shape_.rotated_size / 2, position = rows_[row].position;
    float *queries = qkv_.as<float>() + row * qkv_stride_;
    float *key = queries + (shape_.num_heads + kv_head) * size, *value = key + shape_.num_kv_heads * size;
    const auto ready = [&](float *head, const Norm &norm) {
        if (!shape_.norm_all_heads && norm.kind != Norm::none)
            std::memcpy(head, normalized(thread, norm, head, size), size * sizeof(float));
        if (half > 0) ops_.rotate(head, layer.cosines + position * half, layer.sines + position * half, half);
    };
    for (int64_t i = 0; i < sharing; ++i) ready(queries + (kv_head * sharing + i) * size, layer.query_norm);
    ready(key, layer.key_norm);
    const int64_t block = rows_[row].blocks(layer)[position / kLanes];
    uint8_t *unit = cache(layer) + block * block_bytes() + kv_head * cache_shape_.unit_bytes();
    ops_.store_token(cache_shape_, unit, position % kLanes, key, value);
}

void Decoder::attend_all(const Part &part, const DecoderLayer &layer, bool only_wanted) {
    const int64_t pieces = int64_t(pieces_.size());
    const int64_t sharing = shape_.num_heads / shape_.num_kv_heads;
    const auto first = [&] { return part.together ? first_share(part.thread) : pool_.next(part.thread, pieces); };
    const auto next = [&](int64_t i) { return part.together ? next_share(i) : pool_.next(part.thread, pieces); };
    for (int64_t i = first(); i < pieces; i = next(i)) {
        const Task &task = tasks_[pieces_[i].task];
        const int64_t end = task.first + task.count;
        if (only_wanted && !is_wanted(task.row + task.first / sharing, task.row + (end + sharing - 1) / sharing)) continue;
        attend(layer, pieces_[i], pieces_[std::min(part.together ? next_share(i) : i + 1, pieces - 1)]);
    }
}

// Whether any of these rows gets logits.
bool Decoder::is_wanted(int64_t begin, int64_t end) const {
    const auto first = std::lower_bound(wanted_sorted_.begin(), wanted_sorted_.end(), begin);
    return first != wanted_sorted_.end() && *first < end;
}

void Decoder::join_pieces(int thread) {
    const int64_t sharing = shape_.num_heads / shape_.num_kv_heads, floats = partial_floats(shape_.head_size);
    for (size_t i = thread; i < pieces_.size(); i += pool_.size()) {
        const Piece &piece = pieces_[i];
        if (piece.segment > 0) continue;
        const Task &task = tasks_[piece.task];
        float *out = qkv_.as<float>() + task.row * qkv_stride_ + task.kv_head * sharing * shape_.head_size;
        for (int64_t q = 0; q < task.count; ++q)
            ops_.join_segments(partials_.as<float>() + piece.partials + q * piece.segments * floats, piece.segments,
                               shape_.head_size, out + q * shape_.head_size);
    }
}

// The keys and values that a piece begins with; how many.
int Decoder::first_units(const DecoderLayer &layer, const Piece &piece, const uint8_t **units) {
    const Task &task = tasks_[piece.task];
    const Row &row = rows_[task.row];
    const int64_t seen = layer.window > 0 ? std::max<int64_t>(0, row.position + 1 - layer.window) : 0;
    const int64_t begin = std::max(seen, piece.segment * kSegment), segment_end = (begin / kSegment + 1) * kSegment;
    const int64_t first = begin / kLanes, end = std::min(row.position, segment_end - 1) / kLanes + 1;
    const uint8_t *of_head = cache(layer) + task.kv_head * cache_shape_.unit_bytes();
    for (int64_t i = first; i < end; ++i) units[i - first] = of_head + row.blocks(layer)[i] * block_bytes();
    return int(std::max<int64_t>(0, end - first));
}

// While a piece is computed, what the thread will read a segment later is asked for: at last the begin of its next piece,
// unless that reads the same.
void Decoder::attend(const DecoderLayer &layer, const Piece &piece, const Piece &next) {
    const Task &task = tasks_[piece.task];
    const int64_t sharing = shape_.num_heads / shape_.num_kv_heads, floats = partial_floats(shape_.head_size);
    int64_t places[kMostQueries], positions[kMostQueries];
    for (int64_t i = 0; i < task.count; ++i) {
        const int64_t row = task.row + (task.first + i) / sharing, head = task.kv_head * sharing + (task.first + i) % sharing;
        places[i] = row * qkv_stride_ + head * shape_.head_size;
        positions[i] = rows_[row].position;
    }
    const uint8_t *following[kSegmentBlocks];
    const Task &next_task = tasks_[next.task];
    const bool others = next_task.row != task.row || next_task.kv_head != task.kv_head || next.segment != piece.segment;
    const int following_count = others ? first_units(layer, next, following) : 0;
    const uint8_t *units = cache(layer) + task.kv_head * cache_shape_.unit_bytes();
    float *partials = partials_.as<float>() + piece.partials + piece.segment * floats;
    ops_.attend(cache_shape_, {units, block_bytes(), rows_[task.row].blocks(layer), qkv_.as<float>(), places, positions,
                               task.count, layer.scale, layer.softcap, layer.window, piece.segment, following,
                               following_count, cut_ ? partials : nullptr, piece.segments * floats});
}

}  // namespace tallow
