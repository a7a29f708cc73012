#include "pool.h"

#include <chrono>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace tallow {
namespace {

inline void pause() {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

constexpr int kSpins = 4096;
// Longer than what lies between two steps of a decoder, shorter than what anyone would notice on the bill.
constexpr auto kAwake = std::chrono::microseconds(1000);

}  // namespace

void Barrier::wait() {
    const unsigned round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) == count_ - 1) {
        arrived_.store(0, std::memory_order_relaxed);
        for (Share &share : shares_) share.taken.store(0, std::memory_order_relaxed);
        round_.store(round + 1, std::memory_order_release);
        return;
    }
    for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins)
        if (spins < kSpins)
            pause();
        else
            std::this_thread::yield();
}

int64_t Barrier::next(int thread, int64_t items) {
    for (int i = 0; i < count_; ++i) {
        const int64_t share = (thread + i) % count_, begin = items * share / count_, end = items * (share + 1) / count_;
        const int64_t item = begin + shares_[share].taken.fetch_add(1, std::memory_order_relaxed);
        if (item < end) return item;
    }
    return items;
}

Pool::Pool(int threads) : size_(threads < 1 ? 1 : threads), barrier_(size_) {
    for (int thread = 1; thread < size_; ++thread) threads_.emplace_back([this, thread] { serve(thread); });
}

Pool::~Pool() {
    work_ = nullptr;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    for (std::thread &thread : threads_) thread.join();
}

void Pool::run(const std::function<void(int)> &work) {
    work_ = &work;
    round_.fetch_add(1, std::memory_order_release);
    round_.notify_all();
    work(0);
    barrier_.wait();
}

void Pool::serve(int thread) {
    for (unsigned round = 0;; ++round) {
        const auto until = std::chrono::steady_clock::now() + kAwake;
        for (int spins = 0; round_.load(std::memory_order_acquire) == round; ++spins) {
            pause();
            if (spins % 64 == 63 && std::chrono::steady_clock::now() > until) round_.wait(round);
        }
        if (!work_) return;
        (*work_)(thread);
        barrier_.wait();
    }
}

}  // namespace tallow
