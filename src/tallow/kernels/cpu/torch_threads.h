// Work shared by the threads that PyTorch computes with. Threads of our own would have to wait for theirs, which spin for
// a while after each operation.
#pragma once

#include <dlfcn.h>

#include <algorithm>
#include <cstdint>

namespace tallow {

// Calls work(begin, end, thread) on disjoint ranges that cover 0 … total, for thread 0 … at most `threads` − 1, the same
// ranges for the same number of threads.
template <typename Work>
void share_rows(int64_t total, int threads, const Work &work) {
    using Region = void (*)(void *);
    // what compilers make of OpenMP's pragmas, from whichever library of them PyTorch has loaded
    static const auto fork = reinterpret_cast<void (*)(Region, void *, unsigned, unsigned)>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
    static const auto number = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_thread_num"));
    static const auto count = reinterpret_cast<int (*)()>(dlsym(RTLD_DEFAULT, "omp_get_num_threads"));
    if (threads < 2 || total < 2 || !fork || !number || !count) return work(int64_t(0), total, 0);
    struct Share {
        int64_t total;
        const Work &work;
    } all{total, work};
    fork(
        [](void *data) {
            const Share &share = *static_cast<const Share *>(data);
            const int64_t each = (share.total + count() - 1) / count(), begin = std::min(share.total, number() * each);
            share.work(begin, std::min(share.total, begin + each), number());
        },
        &all, unsigned(threads), 0);
}

}  // namespace tallow
