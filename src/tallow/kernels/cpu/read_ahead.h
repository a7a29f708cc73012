// Layers of a mapped file that memory does not hold all at once: while one computes the next is read from the disk, and
// those that have computed are let go of. In the order in which they are used, the system's own rule (drop what was
// used longest ago) would drop each just before it is needed.
#pragma once

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <vector>

namespace tallow {

class ReadAhead {
   public:
    ReadAhead() = default;
    // `begins` has the places in the file (mapped at `at`) where the layers begin, and where the last ends; those from
    // `first` on do not stay in memory. There are at least three of these.
    ReadAhead(char *at, int file, std::vector<size_t> begins, size_t first)
        : at_(at), file_(file), begins_(std::move(begins)), layers_(begins_.size() - 1), first_(first) {}

    // A layer begins to compute; the one before it may still be in use.
    void begin(size_t layer) const {
        if (first_ >= layers_) return;
        want(layer + 1 < layers_ ? layer + 1 : first_);
        drop((layer + layers_ - 2) % layers_);
    }

   private:
    void want(size_t layer) const {
        if (layer < first_) return;
        // one call reads no more than a device takes at once
        for (size_t from = begins_[layer] / page_ * page_; from < begins_[layer + 1]; from += kReadBytes)
            madvise(at_ + from, least(kReadBytes, begins_[layer + 1] - from), MADV_WILLNEED);
    }
    void drop(size_t layer) const {
        if (layer < first_) return;
        const size_t from = (begins_[layer] + page_ - 1) / page_ * page_, to = begins_[layer + 1] / page_ * page_;
        if (from >= to) return;
        madvise(at_ + from, to - from, MADV_DONTNEED);
#ifdef POSIX_FADV_DONTNEED
        posix_fadvise(file_, off_t(from), off_t(to - from), POSIX_FADV_DONTNEED);
#endif
    }
    static size_t least(size_t a, size_t b) { return a < b ? a : b; }

    static constexpr size_t kReadBytes = size_t(1) << 20;

    char *at_ = nullptr;
    int file_ = -1;
    std::vector<size_t> begins_;
    size_t layers_ = 0, first_ = 0, page_ = size_t(sysconf(_SC_PAGESIZE));
};

}  // namespace tallow
