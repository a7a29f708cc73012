// The vocabulary of the operations for any processor: vectors of GCC and Clang of four lanes, which they map to the
// registers that all have (SSE2, NEON, …), four for 16 lanes. What each word means is said in simd_avx512.h.
#include "numbers.h"

using Floats = float __attribute__((vector_size(16)));
using Ints = int32_t __attribute__((vector_size(16)));
using Words = uint32_t __attribute__((vector_size(16)));  // also for sums and shifts that may lose bits
using Shorts = int16_t __attribute__((vector_size(16)));
using Bytes = int8_t __attribute__((vector_size(4)));

struct F {
    Floats part[4];
};
struct I {
    Words part[4];
};

constexpr int kTallestFloat = 4, kTallestInteger = 3, kTallestNested = 3, kTallestBytes = 0;

template <typename To, typename From>
inline To bits_as(From value) {
    static_assert(sizeof(To) == sizeof(From));
    To result;
    std::memcpy(&result, &value, sizeof result);
    return result;
}
template <typename T>
inline T load(const void *from) {
    T value;
    std::memcpy(&value, from, sizeof value);
    return value;
}
// work(i) for each of the four parts, together
template <typename Result = F, typename Work>
inline Result parts(const Work &work) {
    return {work(0), work(1), work(2), work(3)};
}
inline Floats choose(Ints mask, Floats yes, Floats no) {
    return bits_as<Floats>((bits_as<Ints>(yes) & mask) | (bits_as<Ints>(no) & ~mask));
}

inline void prefetch(const void *at) {
    asm volatile("" ::"r"(at));  // compilers leave out loops that do nothing else
    __builtin_prefetch(at);
}
inline void prefetch_far(const void *at) {
    asm volatile("" ::"r"(at));
    __builtin_prefetch(at, 0, 2);
}

inline F fset(float value) {
    return parts([&](int) { return Floats{value, value, value, value}; });
}
inline F fzero() { return fset(0); }
inline F fload(const float *from) {
    return parts([&](int i) { return load<Floats>(from + 4 * i); });
}
inline void fstore(float *to, F value) { std::memcpy(to, &value, sizeof value); }
inline F fadd(F a, F b) {
    return parts([&](int i) { return a.part[i] + b.part[i]; });
}
inline F fsub(F a, F b) {
    return parts([&](int i) { return a.part[i] - b.part[i]; });
}
inline F fmul(F a, F b) {
    return parts([&](int i) { return a.part[i] * b.part[i]; });
}
inline F fdiv(F a, F b) {
    return parts([&](int i) { return a.part[i] / b.part[i]; });
}
inline F fma(F a, F b, F c) {
#ifdef __FP_FAST_FMAF
    return parts([&](int i) {
        Floats sum;
        for (int lane = 0; lane < 4; ++lane) sum[lane] = __builtin_fmaf(a.part[i][lane], b.part[i][lane], c.part[i][lane]);
        return sum;
    });
#else
    return fadd(fmul(a, b), c);
#endif
}
inline F fmax(F a, F b) {
    return parts([&](int i) { return choose(a.part[i] > b.part[i], a.part[i], b.part[i]); });
}
inline F fmin(F a, F b) {
    return parts([&](int i) { return choose(a.part[i] < b.part[i], a.part[i], b.part[i]); });
}
inline F fabs(F a) {
    return parts([&](int i) { return bits_as<Floats>(bits_as<Words>(a.part[i]) & 0x7fffffff); });
}
inline F fsqrt(F a) {
    return parts([&](int i) {
        const Floats x = a.part[i];
        return Floats{std::sqrt(x[0]), std::sqrt(x[1]), std::sqrt(x[2]), std::sqrt(x[3])};
    });
}
// Values within ±2^22: the sum with this number has no bits for fractions, and its last bits are the integer.
constexpr float kRounder = 0x1.8p23f;
inline F fround(F a) { return fsub(fadd(a, fset(kRounder)), fset(kRounder)); }
inline I to_nearest(F a) {
    return parts<I>([&](int i) { return bits_as<Words>(a.part[i] + kRounder) - 0x4b400000; });
}
inline F fscale(F a, F exponent) {
    const I whole = to_nearest(exponent);
    return parts([&](int i) { return a.part[i] * bits_as<Floats>((whole.part[i] + 127) << 23); });
}
inline F fselect_less(F a, F b, F yes, F no) {
    return parts([&](int i) { return choose(a.part[i] < b.part[i], yes.part[i], no.part[i]); });
}
inline uint32_t mask_less(F a, F b) {
    uint32_t mask = 0;
    for (int lane = 0; lane < kLanes; ++lane) mask |= uint32_t(a.part[lane / 4][lane % 4] < b.part[lane / 4][lane % 4]) << lane;
    return mask;
}
inline float fsum(F a) {
    const Floats four = (a.part[0] + a.part[2]) + (a.part[1] + a.part[3]);
    return (four[0] + four[2]) + (four[1] + four[3]);
}
inline float fgreatest(F a) {
    float greatest = a.part[0][0];
    for (const Floats &part : a.part)
        for (int lane = 0; lane < 4; ++lane) greatest = greatest > part[lane] ? greatest : part[lane];
    return greatest;
}
inline F fkeep(F a, int count, F rest) {
    return parts([&](int i) { return choose(Ints{0, 1, 2, 3} < count - 4 * i, a.part[i], rest.part[i]); });
}

inline I bits_of(F a) { return bits_as<I>(a); }
inline F float_of(I bits) { return bits_as<F>(bits); }
inline I iadd(I a, I b) {
    return parts<I>([&](int i) { return a.part[i] + b.part[i]; });
}
inline I isub(I a, I b) {
    return parts<I>([&](int i) { return a.part[i] - b.part[i]; });
}
inline I iand(I a, I b) {
    return parts<I>([&](int i) { return a.part[i] & b.part[i]; });
}
inline I ior(I a, I b) {
    return parts<I>([&](int i) { return a.part[i] | b.part[i]; });
}
inline I ixor(I a, I b) {
    return parts<I>([&](int i) { return a.part[i] ^ b.part[i]; });
}
template <int kBits>
inline I shift_left(I a) {
    return parts<I>([&](int i) { return a.part[i] << kBits; });
}
template <int kBits>
inline I shift_right(I a) {
    return parts<I>([&](int i) { return a.part[i] >> kBits; });
}
inline void multiply_wide(I a, uint32_t b, I &high, I &low) {
    for (int lane = 0; lane < kLanes; ++lane) {
        const uint64_t product = uint64_t(a.part[lane / 4][lane % 4]) * b;
        high.part[lane / 4][lane % 4] = uint32_t(product >> 32);
        low.part[lane / 4][lane % 4] = uint32_t(product);
    }
}
inline void transpose4(I (&a)[4]) {
    for (int i = 0; i < 4; ++i) {
        const Words first = a[0].part[i], second = a[1].part[i], third = a[2].part[i], fourth = a[3].part[i];
        for (int j = 0; j < 4; ++j) a[j].part[i] = Words{first[j], second[j], third[j], fourth[j]};
    }
}
template <int kFours>
inline I rotate_fours(I a) {
    return parts<I>([&](int i) { return a.part[(i + kFours) % 4]; });
}
inline I imax(I a, I b) {
    return parts<I>([&](int i) {
        const Words more = bits_as<Words>(bits_as<Ints>(a.part[i]) > bits_as<Ints>(b.part[i]));
        return (a.part[i] & more) | (b.part[i] & ~more);
    });
}
inline int32_t isum(I a) {
    uint32_t sum = 0;
    for (const Words &part : a.part)
        for (int lane = 0; lane < 4; ++lane) sum += uint32_t(part[lane]);
    return int32_t(sum);
}
inline int32_t igreatest(I a) {
    int32_t greatest = INT32_MIN;
    for (const Words &part : a.part)
        for (int lane = 0; lane < 4; ++lane) greatest = int32_t(part[lane]) > greatest ? int32_t(part[lane]) : greatest;
    return greatest;
}
inline I iload(const void *from) { return load<I>(from); }
inline void istore(void *to, I value) { std::memcpy(to, &value, sizeof value); }
struct AllBytes {
    uint8_t byte[4 * kLanes];
};
inline I load_table(const uint8_t *from) {
    const Words table = load<Words>(from);
    return {table, table, table, table};
}
inline I look_up(I table, I places) {
    const AllBytes from = bits_as<AllBytes>(table);
    AllBytes found = bits_as<AllBytes>(places);
    for (uint8_t &byte : found.byte) byte = from.byte[byte];
    return bits_as<I>(found);
}
inline I iset(int32_t value) {
    const uint32_t word = uint32_t(value);
    return parts<I>([&](int) { return Words{word, word, word, word}; });
}
inline F to_float(I a) {
    return parts([&](int i) { return __builtin_convertvector(bits_as<Ints>(a.part[i]), Floats); });
}
inline F load_half(const uint16_t *from) {
    float values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = from_half(from[lane]);
    return fload(values);
}
inline F load_bfloat16(const uint16_t *from) {
    float values[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) values[lane] = from_bfloat16(from[lane]);
    return fload(values);
}
inline I widen_int8(const int8_t *from) {
    return parts<I>([&](int i) { return bits_as<Words>(__builtin_convertvector(load<Bytes>(from + 4 * i), Ints)); });
}

inline void store_bytes(int8_t *to, I a) {
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = int8_t(a.part[lane / 4][lane % 4]);
}
inline void store_every_fourth(uint8_t *to, int place, I a) {
    int8_t bytes[kLanes];
    store_bytes(bytes, a);
    for (int lane = 0; lane < kLanes; ++lane) to[4 * lane + place] = uint8_t(bytes[lane]);
}
inline I store_int8(int8_t *to, F a) {
    const I whole = to_nearest(a);
    store_bytes(to, whole);
    return whole;
}

// Bytes of even and of odd places are widened and multiplied apart: each product fits 16 bits.
inline Shorts even_products(Words unsigned_bytes, Words signed_bytes) {
    return bits_as<Shorts>(unsigned_bytes & 0x00ff00ff) * (bits_as<Shorts>(signed_bytes << 8) >> 8);
}
inline Shorts odd_products(Words unsigned_bytes, Words signed_bytes) {
    return bits_as<Shorts>(unsigned_bytes >> 8 & 0x00ff00ff) * (bits_as<Shorts>(signed_bytes) >> 8);
}
inline Words sum_of_pairs(Shorts values) {
    const Ints pairs = bits_as<Ints>(values);
    return bits_as<Words>((pairs << 16 >> 16) + (pairs >> 16));
}
inline I dot4(I sum, I unsigned_bytes, I signed_bytes) {
    return parts<I>([&](int i) {
        return sum.part[i] + sum_of_pairs(even_products(unsigned_bytes.part[i], signed_bytes.part[i])) +
               sum_of_pairs(odd_products(unsigned_bytes.part[i], signed_bytes.part[i]));
    });
}
inline I dot4_small(I sum, I unsigned_bytes, I signed_bytes) {
    return parts<I>([&](int i) {
        return sum.part[i] + sum_of_pairs(even_products(unsigned_bytes.part[i], signed_bytes.part[i]) +
                                          odd_products(unsigned_bytes.part[i], signed_bytes.part[i]));
    });
}
inline I multiply_words(I a, I b) {
    return parts<I>([&](int i) { return bits_as<Words>(bits_as<Shorts>(a.part[i]) * bits_as<Shorts>(b.part[i])); });
}
inline I add_bytes(I a, I b) {
    return parts<I>([&](int i) {
        const Words low = (a.part[i] & 0x7f7f7f7f) + (b.part[i] & 0x7f7f7f7f);
        return low ^ ((a.part[i] ^ b.part[i]) & 0x80808080);
    });
}
inline I add_products(I sum, I a, I b) {
    return parts<I>([&](int i) {  // modulo 2^32, so b's upper halves need not be heeded but for its sign
        return sum.part[i] + a.part[i] * bits_as<Words>(bits_as<Ints>(b.part[i] << 16) >> 16);
    });
}
inline I broadcast4(const int8_t *from) { return iset(load<int32_t>(from)); }

struct Pairs {
    I bits;
};
inline Pairs load_pairs(const uint16_t *from) { return {iload(from)}; }
inline void join_bytes(I lower, I upper, Pairs &first, Pairs &second) {
    const auto low = bits_as<AllBytes>(lower), high = bits_as<AllBytes>(upper);
    uint16_t words[2][2 * kLanes];
    for (int i = 0; i < 4 * kLanes; ++i) words[i / 8 % 2][i / 16 * 8 + i % 8] = uint16_t(low.byte[i] | high.byte[i] << 8);
    first = load_pairs(words[0]);
    second = load_pairs(words[1]);
}
inline void store_pairs(uint16_t *to, Pairs a) { istore(to, a.bits); }
inline Pairs broadcast_pair(const uint16_t *from) { return {iset(load<int32_t>(from))}; }
inline F first_of(Pairs a) {
    return parts([&](int i) { return bits_as<Floats>(a.bits.part[i] << 16); });
}
inline F second_of(Pairs a) {
    return parts([&](int i) { return bits_as<Floats>(a.bits.part[i] & 0xffff0000); });
}
inline F dot2(F sum, Pairs a, Pairs b) {
    return fma(second_of(a), second_of(b), fma(first_of(a), first_of(b), sum));
}
inline I bfloat16_bits(F a) {
    uint32_t bits[kLanes];
    for (int lane = 0; lane < kLanes; ++lane) bits[lane] = to_bfloat16(a.part[lane / 4][lane % 4]);
    return iload(bits);
}
inline void store_bfloat16(uint16_t *to, F a) {
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = to_bfloat16(a.part[lane / 4][lane % 4]);
}
