// Low-rank adapters (LoRA, arXiv 2106.09685) beside the weights of a decoder, which stay as they are.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <unordered_map>

#include "memory.h"
#include "ops.h"
#include "weights.h"

namespace tallow {

// What is added to a product with x: B (A x), any scale within B. Both float32; B has the rows of the product.
struct LowRank {
    std::shared_ptr<PackedWeight> a, b;
};

// The changes of one adapter, and the memory that holds them.
class Adapter {
   public:
    Adapter() = default;
    Adapter(const Adapter &) = delete;
    Adapter &operator=(const Adapter &) = delete;

    Arena &arena() { return arena_; }
    int64_t rank() const { return rank_; }  // the greatest
    void change(const PackedWeight &weight, LowRank update) {
        rank_ = std::max(rank_, update.a->view().outputs);
        updates_[&weight.view()] = std::move(update);
    }
    // What is added to the products with a weight; null: nothing.
    const LowRank *find(const Weight &weight) const {
        const auto found = updates_.find(&weight);
        return found == updates_.end() ? nullptr : &found->second;
    }

   private:
    Arena arena_;
    std::unordered_map<const Weight *, LowRank> updates_;
    int64_t rank_ = 0;
};

}  // namespace tallow
