// Lets memory have its pages before they are used. Where one is used for the first time the system has to find and clear
// it, and the host of a virtual machine, too (0.4 GB/s have been seen): a tenth of the time of long prompts. So a thread
// asks for pages while nothing else has happened for a while; a process that answers once and ends takes no more memory.
#pragma once

#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <mutex>
#include <thread>

namespace tallow {

class PagesAhead {
   public:
    PagesAhead() = default;
    PagesAhead(const PagesAhead &) = delete;
    PagesAhead &operator=(const PagesAhead &) = delete;
    ~PagesAhead() { end(); }

    // Of this memory, instead of another's, so many bytes ahead of what is used.
    void begin(char *at, size_t bytes, size_t ahead) {
        end();
        used_ = 0;
#ifdef MADV_POPULATE_WRITE
        if (bytes > 0 && ahead > 0) thread_ = std::thread([this, at, bytes, ahead] { ask(at, bytes, ahead); });
#endif
    }
    // So many bytes of the memory are used now, at least.
    void used(size_t bytes) {
        if (bytes > used_.load(std::memory_order_relaxed)) used_.store(bytes, std::memory_order_relaxed);
    }
    void end() {
        {
            const std::lock_guard lock(mutex_);
            ended_ = true;
        }
        woken_.notify_all();
        if (thread_.joinable()) thread_.join();
        ended_ = false;
    }
    // Something else is done: to be called when it begins and when it ends.
    void busy() { changes_.fetch_add(1, std::memory_order_relaxed); }

   private:
#ifdef MADV_POPULATE_WRITE
    void ask(char *at, size_t bytes, size_t ahead) {
        char *const begin = at, *const end = at + bytes;
        std::unique_lock lock(mutex_);
        for (unsigned before = changes_; !woken_.wait_for(lock, kCalm, [this] { return ended_; }); before = changes_)
            for (; changes_ == before && before % 2 == 0 && !ended_ && size_t(at - begin) < used_ + ahead; at += kPiece) {
                lock.unlock();
                const size_t left = size_t(end - at);
                const bool done = madvise(at, left < kPiece ? left : kPiece, MADV_POPULATE_WRITE) != 0 || left <= kPiece;
                lock.lock();
                if (done) return;  // or the system cannot, or will not
            }
    }
#endif

    static constexpr auto kCalm = std::chrono::milliseconds(200);
    static constexpr size_t kPiece = size_t(2) << 20;

    std::thread thread_;
    std::mutex mutex_;
    std::condition_variable woken_;
    bool ended_ = false;
    std::atomic<unsigned> changes_ = 0;  // odd: something is done
    std::atomic<size_t> used_ = 0;
};

}  // namespace tallow
