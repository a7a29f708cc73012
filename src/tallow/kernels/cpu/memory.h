// Memory from the system, zeroed, in huge pages where it gives them: weights are streamed through once a token.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <new>
#include <utility>
#include <vector>

namespace tallow {

class Memory {
   public:
    Memory() = default;
    explicit Memory(size_t bytes) : bytes_(bytes) {
        if (bytes == 0) return;
        at_ = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (at_ == MAP_FAILED) throw std::bad_alloc();
#ifdef MADV_HUGEPAGE
        madvise(at_, bytes, MADV_HUGEPAGE);
#endif
    }
    Memory(Memory &&other) noexcept : at_(std::exchange(other.at_, nullptr)), bytes_(std::exchange(other.bytes_, 0)) {}
    Memory &operator=(Memory &&other) noexcept {
        std::swap(at_, other.at_);
        std::swap(bytes_, other.bytes_);
        return *this;
    }
    ~Memory() {
        if (at_) munmap(at_, bytes_);
    }

    template <typename T>
    T *as() const {
        return static_cast<T *>(at_);
    }
    size_t bytes() const { return bytes_; }

   private:
    void *at_ = nullptr;
    size_t bytes_ = 0;
};

// Hands out parts of large pieces of memory: parts of their own would be too small for huge pages.
class Arena {
   public:
    // From now on parts lie in this memory, one after the other; it belongs to someone else, is large enough, and may be
    // filled already with what is to be put there.
    void use(char *at, size_t bytes, bool filled) {
        next_ = at;
        left_ = bytes;
        filled_ = filled;
        grows_ = false;
    }
    bool filled() const { return filled_; }

    static size_t room(size_t bytes) { return (bytes + 63) / 64 * 64; }

    template <typename T>
    T *take(size_t count) {
        const size_t bytes = room(count * sizeof(T));
        if (bytes > left_) {
            if (!grows_) throw std::bad_alloc();
            pieces_.emplace_back((bytes + kPiece - 1) / kPiece * kPiece + kHugePage);
            const size_t begin = reinterpret_cast<size_t>(pieces_.back().as<char>());
            next_ = reinterpret_cast<char *>((begin + kHugePage - 1) / kHugePage * kHugePage);
            left_ = pieces_.back().bytes() - kHugePage;
        }
        T *part = reinterpret_cast<T *>(next_);
        next_ += bytes;
        left_ -= bytes;
        return part;
    }

   private:
    static constexpr size_t kHugePage = size_t(2) << 20, kPiece = size_t(32) << 20;

    std::vector<Memory> pieces_;
    char *next_ = nullptr;
    size_t left_ = 0;
    bool filled_ = false, grows_ = true;
};

}  // namespace tallow
