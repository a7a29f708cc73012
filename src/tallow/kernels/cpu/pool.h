// Threads that stay: the steps of a decoder are too short to make threads for.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <thread>
#include <vector>

namespace tallow {

// A place where all of several threads wait for each other. They spin, as the wait is mostly shorter than a sleep; a
// thread that has spun for long gives its core away, for then there are fewer cores than threads.
class Barrier {
   public:
    explicit Barrier(int count) : count_(count) {}
    void wait();
    // 0, 1, 2, … to whoever asks, and from 0 again once all have met: so they share work as they come to it.
    int64_t next() { return taken_.fetch_add(1, std::memory_order_relaxed); }

   private:
    const int count_;
    alignas(64) std::atomic<int64_t> taken_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

// Runs one function on several threads at once, the caller's among them.
class Pool {
   public:
    explicit Pool(int threads);
    ~Pool();
    Pool(const Pool &) = delete;
    Pool &operator=(const Pool &) = delete;

    int size() const { return size_; }
    void run(const std::function<void(int thread)> &work);
    void barrier() { barrier_.wait(); }
    int64_t next() { return barrier_.next(); }

   private:
    void serve(int thread);

    const int size_;
    Barrier barrier_;
    const std::function<void(int)> *work_ = nullptr;
    alignas(64) std::atomic<unsigned> round_{0};
    std::vector<std::thread> threads_;
};

}  // namespace tallow
