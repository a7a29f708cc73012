// What Python sees of the decoder. Tensors arrive as addresses; kernels/cpu/decoder.py keeps them alive and checks them.
#include <nanobind/nanobind.h>
#include <nanobind/ndarray.h>
#include <nanobind/stl/shared_ptr.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "decoder.h"
#include "draws.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace tallow {
namespace {

using Integers = nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

template <typename T>
const T *at(uintptr_t address) {
    return reinterpret_cast<const T *>(address);
}

const Ops &named(const std::string &name) {
    for (const Ops *const *set = instruction_sets(); *set; ++set)
        if (name == (*set)->name) return **set;
    throw nb::value_error("no such instruction set");
}

std::vector<std::string> names() {
    std::vector<std::string> found;
    for (const Ops *const *set = instruction_sets(); *set; ++set) found.push_back((*set)->name);
    return found;
}

Norm make_norm(const std::string &kind, uintptr_t weight, uintptr_t bias, float eps) {
    return {kind == "rms" ? Norm::rms : kind == "layer" ? Norm::layer : Norm::none, at<float>(weight), at<float>(bias), eps};
}

// kind, or that of GGUF's blocks counted from kBlocks on; values, scales, rows
using SourceTuple = std::tuple<int, uintptr_t, uintptr_t, int64_t>;
constexpr int kBlocks = 16;

Source make_source(const SourceTuple &tuple) {
    const auto &[kind, values, scales, rows] = tuple;
    if (kind < kBlocks) return {Source::Kind(kind), at<uint8_t>(values), at<uint16_t>(scales), nullptr, rows};
    const BlockFormat *format = block_format(kind - kBlocks);
    if (!format) throw nb::value_error("no such type of blocks");
    return {Source::blocks, at<uint8_t>(values), nullptr, format, rows};
}

std::shared_ptr<PackedWeight> pack(Pool &pool, Arena &arena, int number, const std::vector<SourceTuple> &tuples,
                                   Integers order, int64_t inputs, int64_t group, int64_t groups_per_scale,
                                   uintptr_t bias) {
    std::vector<Source> sources;
    for (const SourceTuple &tuple : tuples) sources.push_back(make_source(tuple));
    const std::vector<int32_t> rows(order.data(), order.data() + order.size());
    nb::gil_scoped_release release;
    return std::make_shared<PackedWeight>(Number(number), sources, rows, inputs, group, groups_per_scale, at<float>(bias), pool,
                                          arena);
}

// Packs weights one after the other, into memory of somebody else's if there is an address.
struct Packer {
    Packer(uintptr_t address, size_t bytes, int threads) : pool(threads) {
        if (address) arena.use(reinterpret_cast<char *>(address), bytes, false);
    }
    Pool pool;
    Arena arena;
};

using Tables = std::vector<nb::ndarray<const int32_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>>;
// tokens, position of the first, how many get logits, tables of blocks, handle of an adapter
using SpanTuple = std::tuple<std::vector<int32_t>, int64_t, int64_t, Tables, int32_t>;
// of each row of logits: the likeliest token, the greatest logit, the logarithm of the sum of all exponentials
using Summaries = std::tuple<std::vector<int32_t>, std::vector<float>, std::vector<float>>;

// In the place of the likeliest tokens and their logits put those that are drawn.
void draw(Decoder &decoder, const std::vector<Draw> &draws, uint32_t pass, const std::vector<Scratch> &scratch,
          const float *logits, int64_t logits_stride, std::vector<Summary> &summaries) {
    decoder.pool().run([&](int thread) {
        Candidates candidates = scratch[thread].candidates();
        for (size_t row = thread; row < draws.size(); row += scratch.size()) {
            Draw own = draws[row];
            own.index += pass;
            if (own.temperature == 0) continue;
            const float *row_logits = logits + row * logits_stride;
            const int32_t token = decoder.ops().choose(row_logits, decoder.vocab_size(), own, candidates);
            if (token < 0) continue;  // not finite, as the summary says
            summaries[row].argmax = token;
            summaries[row].greatest = row_logits[token];
        }
    });
}

// With a draw for each span, all of which want one row: at most so many passes, each over the tokens that were drawn in
// the one before, until each span has one of its stop ids.
std::vector<Summaries> step(Decoder &decoder, const std::vector<SpanTuple> &tuples, uintptr_t logits, int64_t logits_stride,
                            const std::vector<DrawTuple> &draw_tuples, const std::vector<std::vector<int32_t>> &stop_ids,
                            uint32_t passes) {
    std::vector<Span> spans;
    std::vector<std::vector<int32_t>> joined;
    int64_t rows = 0;
    for (const auto &[tokens, start, wanted, tables, adapter] : tuples) {
        const int32_t *blocks = tables.front().data();
        if (tables.size() > 1) {
            joined.emplace_back();
            for (const auto &table : tables)
                joined.back().insert(joined.back().end(), table.data(), table.data() + table.size());
            blocks = joined.back().data();
        }
        spans.push_back({tokens.data(), start, int64_t(tokens.size()), wanted, blocks, int64_t(tables.front().size()),
                         decoder.adapter(adapter)});
        rows += wanted;
    }
    const bool drawn = !draw_tuples.empty();
    if (drawn ? draw_tuples.size() != spans.size() || rows != int64_t(spans.size()) : passes != 1)
        throw nb::value_error("not a draw for each span");
    if (stop_ids.size() != draw_tuples.size()) throw nb::value_error("not stop ids for each draw");
    std::vector<Draw> draws;
    for (const DrawTuple &tuple : draw_tuples) draws.push_back(draw_of(tuple));
    std::vector<Scratch> scratch;
    for (int thread = 0; drawn && thread < decoder.pool().size(); ++thread) scratch.emplace_back(decoder.vocab_size());
    std::vector<std::vector<Summary>> summaries;
    std::vector<bool> stopped(draws.size());
    {
        nb::gil_scoped_release release;
        float *to = reinterpret_cast<float *>(logits);
        for (uint32_t pass = 0; pass < passes; ++pass) {
            for (size_t i = 0; pass > 0 && i < spans.size(); ++i)
                spans[i].start += spans[i].count, spans[i].count = 1, spans[i].tokens = &summaries[pass - 1][i].argmax;
            summaries.emplace_back(rows);
            decoder.step(spans, to, logits_stride, summaries[pass].data());
            if (!drawn) break;
            draw(decoder, draws, pass, scratch, to, logits_stride, summaries[pass]);
            for (size_t i = 0; i < spans.size(); ++i)
                if (std::ranges::count(stop_ids[i], summaries[pass][i].argmax)) stopped[i] = true;
            if (!std::ranges::count(stopped, false)) break;
        }
    }
    std::vector<Summaries> results(summaries.size());
    for (size_t pass = 0; pass < results.size(); ++pass)
        for (const Summary &each : summaries[pass]) {
            std::get<0>(results[pass]).push_back(each.argmax);
            std::get<1>(results[pass]).push_back(each.greatest);
            std::get<2>(results[pass]).push_back(each.log_sum_exp);
        }
    return results;
}

}  // namespace

void bind_decoder(nb::module_ &m) {
    m.def("operation_sets", &names);
    m.def("packed_bytes", [](int number, int64_t outputs, int64_t inputs, int64_t group, bool bias) {
        return PackedWeight::room(Number(number), outputs, inputs, group, bias);
    });
    nb::exception<Incompressible>(m, "Incompressible");
    nb::class_<Norm>(m, "Norm").def(nb::new_(&make_norm), "kind"_a, "weight"_a, "bias"_a, "eps"_a);
    nb::class_<PackedWeight>(m, "PackedWeight").def_prop_ro("bytes", &PackedWeight::bytes);
    nb::class_<Packer>(m, "Packer")
        .def(nb::init<uintptr_t, size_t, int>(), "address"_a, "bytes"_a, "threads"_a)
        .def("pack", [](Packer &packer, int number, const std::vector<SourceTuple> &sources, Integers order, int64_t inputs,
                        int64_t group, int64_t groups_per_scale, uintptr_t bias) {
            return pack(packer.pool, packer.arena, number, sources, order, inputs, group, groups_per_scale, bias);
        });
    nb::class_<Adapter>(m, "Adapter")
        .def(nb::init<>())
        .def("change", [](Adapter &adapter, const PackedWeight &weight, std::shared_ptr<PackedWeight> a,
                          std::shared_ptr<PackedWeight> b) { adapter.change(weight, {std::move(a), std::move(b)}); });
    nb::class_<DecoderLayer>(m, "DecoderLayer")
        .def(nb::init<>())
        .def_rw("attention_norm", &DecoderLayer::attention_norm)
        .def_rw("attention_post_norm", &DecoderLayer::attention_post_norm)
        .def_rw("feed_forward_norm", &DecoderLayer::feed_forward_norm)
        .def_rw("feed_forward_post_norm", &DecoderLayer::feed_forward_post_norm)
        .def_rw("query_norm", &DecoderLayer::query_norm)
        .def_rw("key_norm", &DecoderLayer::key_norm)
        .def_rw("qkv", &DecoderLayer::qkv)
        .def_rw("out", &DecoderLayer::out)
        .def_rw("up", &DecoderLayer::up)
        .def_rw("down", &DecoderLayer::down)
        .def_prop_rw("cosines", [](DecoderLayer &l) { return uintptr_t(l.cosines); },
                     [](DecoderLayer &l, uintptr_t address) { l.cosines = at<float>(address); })
        .def_prop_rw("sines", [](DecoderLayer &l) { return uintptr_t(l.sines); },
                     [](DecoderLayer &l, uintptr_t address) { l.sines = at<float>(address); })
        .def_rw("scale", &DecoderLayer::scale)
        .def_rw("softcap", &DecoderLayer::softcap)
        .def_rw("window", &DecoderLayer::window)
        .def_rw("table", &DecoderLayer::table)
        .def_rw("place", &DecoderLayer::place);
    nb::class_<Architecture>(m, "Architecture")
        .def(nb::init<>())
        .def_rw("hidden_size", &Architecture::hidden_size)
        .def_rw("num_heads", &Architecture::num_heads)
        .def_rw("num_kv_heads", &Architecture::num_kv_heads)
        .def_rw("head_size", &Architecture::head_size)
        .def_rw("intermediate_size", &Architecture::intermediate_size)
        .def_rw("vocab_size", &Architecture::vocab_size)
        .def_rw("rotated_size", &Architecture::rotated_size)
        .def_rw("gated", &Architecture::gated)
        .def_rw("parallel_residual", &Architecture::parallel_residual)
        .def_rw("norm_all_heads", &Architecture::norm_all_heads)
        .def_prop_rw("activation", [](Architecture &a) { return int(a.activation); },
                     [](Architecture &a, int value) { a.activation = Activation(value); })
        .def_prop_rw("cache", [](Architecture &a) { return int(a.cache); },
                     [](Architecture &a, int value) { a.cache = Number(value); })
        .def_rw("block_layers", &Architecture::block_layers)
        .def_rw("embedding_scale", &Architecture::embedding_scale)
        .def_rw("logit_softcap", &Architecture::logit_softcap);
    nb::class_<Decoder>(m, "Decoder")
        .def(
            "__init__",
            [](Decoder *place, const Architecture &shape, const std::string &set, int threads) {
                new (place) Decoder(shape, named(set), threads);
            },
            "architecture"_a, "instruction_set"_a, "threads"_a)
        .def("use_weights", [](Decoder &decoder, uintptr_t address, size_t bytes) {
            decoder.arena().use(reinterpret_cast<char *>(address), bytes, true);
        })
        // The next of those weights.
        .def("take_weight", [](Decoder &decoder, int number, Integers order, int64_t inputs, int64_t group,
                               int64_t groups_per_scale, bool bias) {
            return pack(decoder.pool(), decoder.arena(), number, {}, order, inputs, group, groups_per_scale, bias);
        })
        .def("pack_adapter", [](Decoder &decoder, Adapter &adapter, uintptr_t values, int64_t rows, Integers order, int64_t inputs) {
            const SourceTuple source{Source::float32, values, 0, rows};
            return pack(decoder.pool(), adapter.arena(), int(Number::float32), {source}, order, inputs, 32, 1, 0);
        })
        .def("read_ahead", [](Decoder &decoder, uintptr_t address, int file, std::vector<size_t> begins, size_t first) {
            decoder.read_ahead({reinterpret_cast<char *>(address), file, std::move(begins), first});
        })
        .def("add_layer", &Decoder::add_layer)
        .def("set_ends", [](Decoder &decoder, std::shared_ptr<PackedWeight> embedding, std::shared_ptr<PackedWeight> head,
                            Norm norm, uintptr_t positions) {
            decoder.set_ends(std::move(embedding), std::move(head), norm, at<float>(positions));
        })
        .def("allocate_cache", &Decoder::allocate_cache)
        .def("copy_block", &Decoder::copy_block)
        .def("add_adapter", &Decoder::add_adapter)
        .def("remove_adapter", &Decoder::remove_adapter)
        .def_prop_ro("block_bytes", &Decoder::block_bytes)
        .def("hidden", [](Decoder &decoder, int64_t wanted, uintptr_t out) {
            decoder.hidden(wanted, reinterpret_cast<float *>(out));
        })
        .def("step", &step, "spans"_a, "logits"_a, "logits_stride"_a, "draws"_a, "stop_ids"_a, "passes"_a);
}

}  // namespace tallow
