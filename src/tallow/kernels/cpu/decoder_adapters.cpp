// The part of a step that adapters take: each sequence may have one of its own.
#include <algorithm>

#include "decoder.h"

namespace tallow {

void Decoder::add_adapter(int32_t handle, std::shared_ptr<Adapter> adapter) {
    adapters_[handle] = std::move(adapter);
}

void Decoder::remove_adapter(int32_t handle) {
    adapters_.erase(handle);
}

// Of the adapters in the step, in whole panels.
int64_t Decoder::greatest_rank() const {
    int64_t rank = 0;
    for (const Run &run : runs_)
        if (run.adapter) rank = std::max(rank, round_up(run.adapter->rank(), kPanel));
    return rank;
}

// Calls work(run, first, rows) for the runs in a part, `first` counted from its begin.
template <typename Work>
void Decoder::over_runs(const Part &part, const Work &work) const {
    for (const Run &run : runs_) {
        const int64_t begin = std::max(run.begin, part.begin), end = std::min(run.end, part.end);
        if (begin < end) work(run, begin - part.begin, end - begin);
    }
}

// Lets what the adapters of a part's rows contribute to the panels from `begin` to `end` be added to a product with `w`.
void Decoder::adapt(const Part &part, const Weight &w, const Inputs &in, int64_t begin, int64_t end, Destination &to) {
    const auto update_of = [&](const Run &run) { return run.adapter ? run.adapter->find(w) : nullptr; };
    bool any = false;
    over_runs(part, [&](const Run &run, int64_t, int64_t) { any |= update_of(run) != nullptr; });
    if (!any) return;
    const Inputs &room = inputs_[part.together ? 0 : part.thread];
    float *low = room.low.as<float>(), *extra = room.extra.as<float>();
    const auto rows_from = [](float *values, int64_t stride, int64_t first) {
        return Activations{values + first * stride, stride, nullptr, nullptr, 0};
    };
    int64_t share = 0;
    over_runs(part, [&](const Run &run, int64_t first, int64_t rows) {
        const LowRank *update = update_of(run);
        if (!update) return;
        const Weight &a = update->a->view();
        const Destination there{Destination::store, low + first * rank_stride_, rank_stride_, {}, nullptr, 0};
        for (int64_t panel = 0; panel < a.panels(); ++panel)
            if (!part.together || share++ % pool_.size() == part.thread)
                ops_.multiply(a, rows_from(in.exact.as<float>(), inputs_stride_, first), there, rows, panel, panel + 1);
    });
    if (part.together) pool_.barrier();
    over_runs(part, [&](const Run &run, int64_t first, int64_t rows) {
        float *place = extra + first * extra_stride_;
        if (const LowRank *update = update_of(run)) {
            const Destination there{Destination::store, place, extra_stride_, {}, nullptr, 0};
            ops_.multiply(update->b->view(), rows_from(low, rank_stride_, first), there, rows, begin, end);
            return;
        }
        // what leaves every number as it is, even a zero's sign
        for (int64_t row = 0; row < rows; ++row, place += extra_stride_)
            std::fill(place + begin * kPanel, place + end * kPanel, -0.0f);
    });
    to.extra = extra;
    to.extra_stride = extra_stride_;
}

}  // namespace tallow
