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
    explicit Barrier(int count) : count_(count), shares_(count) {}
    void wait();
    // Items 0 to `items` − 1, one at a time: to each thread its own share in turn, which is the same for equally many items,
    // as what it has worked on lies in its core's cache; then what others have left. `items` once there are no more, until
    // all have met.
    int64_t next(int thread, int64_t items);

   private:
    const int count_;
    struct alignas(64) Share {
        std::atomic<int64_t> taken{0};
    };
    std::vector<Share> shares_;
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
    int64_t next(int thread, int64_t items) { return barrier_.next(thread, items); }

   private:
    void serve(int thread);

    const int size_;
    Barrier barrier_;
    const std::function<void(int)> *work_ = nullptr;
    alignas(64) std::atomic<unsigned> round_{0};
    std::vector<std::thread> threads_;
};

}  // namespace tallow
