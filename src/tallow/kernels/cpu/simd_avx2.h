// The vocabulary of the operations for x86-64 processors with AVX2, FMA and F16C: two registers for 16 lanes. What each
// word means is said in simd_avx512.h.

struct F {
    __m256 low, high;
};
struct I {
    __m256i low, high;
};

// Measured: taller tiles spare more loads of weights than they cost stores of sums that 16 registers cannot hold.
constexpr int kTallestFloat = 4, kTallestInteger = 3, kTallestNested = 3;
constexpr int kTallestBytes = 0;  // none: products of whole bytes take twice as long

// As they stand: compilers leave out loops that do nothing else.
inline void prefetch(const void *at) { asm volatile("prefetcht0 %0" ::"m"(*static_cast<const char *>(at))); }
// Into the second cache: for more than the first has room for.
inline void prefetch_far(const void *at) { asm volatile("prefetcht1 %0" ::"m"(*static_cast<const char *>(at))); }

inline F fset(float value) { return {_mm256_set1_ps(value), _mm256_set1_ps(value)}; }
inline F fzero() { return fset(0); }
inline F fload(const float *from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void fstore(float *to, F value) {
    _mm256_storeu_ps(to, value.low);
    _mm256_storeu_ps(to + 8, value.high);
}
inline F fadd(F a, F b) { return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)}; }
inline F fsub(F a, F b) { return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)}; }
inline F fmul(F a, F b) { return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)}; }
inline F fdiv(F a, F b) { return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)}; }
inline F fma(F a, F b, F c) { return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)}; }
inline F fmax(F a, F b) { return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)}; }
inline F fmin(F a, F b) { return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)}; }
inline F fabs(F a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.low), _mm256_andnot_ps(sign, a.high)};
}
inline F fsqrt(F a) { return {_mm256_sqrt_ps(a.low), _mm256_sqrt_ps(a.high)}; }
inline F fround(F a) {
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(a.low, nearest), _mm256_round_ps(a.high, nearest)};
}
inline __m256 pow2_of_8(__m256 exponent) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(exponent), _mm256_set1_epi32(127)), 23));
}
inline F fscale(F a, F exponent) { return fmul(a, {pow2_of_8(exponent.low), pow2_of_8(exponent.high)}); }
inline F fselect_less(F a, F b, F yes, F no) {
    return {_mm256_blendv_ps(no.low, yes.low, _mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ)),
            _mm256_blendv_ps(no.high, yes.high, _mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))};
}
inline uint32_t mask_less(F a, F b) {
    return uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.low, b.low, _CMP_LT_OQ))) |
           uint32_t(_mm256_movemask_ps(_mm256_cmp_ps(a.high, b.high, _CMP_LT_OQ))) << 8;
}
inline float fsum(F a) {
    const __m256 eight = _mm256_add_ps(a.low, a.high);
    const __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}
inline float fgreatest(F a) {
    const __m256 eight = _mm256_max_ps(a.low, a.high);
    const __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
    const __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}
inline F fkeep(F a, int count, F rest) {
    const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    const __m256i low = _mm256_cmpgt_epi32(_mm256_set1_epi32(count), lanes);
    const __m256i high = _mm256_cmpgt_epi32(_mm256_set1_epi32(count - 8), lanes);
    return {_mm256_blendv_ps(rest.low, a.low, _mm256_castsi256_ps(low)),
            _mm256_blendv_ps(rest.high, a.high, _mm256_castsi256_ps(high))};
}

inline I bits_of(F a) { return {_mm256_castps_si256(a.low), _mm256_castps_si256(a.high)}; }
inline F float_of(I bits) { return {_mm256_castsi256_ps(bits.low), _mm256_castsi256_ps(bits.high)}; }
inline I iand(I a, I b) { return {_mm256_and_si256(a.low, b.low), _mm256_and_si256(a.high, b.high)}; }
inline I ior(I a, I b) { return {_mm256_or_si256(a.low, b.low), _mm256_or_si256(a.high, b.high)}; }
inline I iadd(I a, I b) { return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)}; }
inline I isub(I a, I b) { return {_mm256_sub_epi32(a.low, b.low), _mm256_sub_epi32(a.high, b.high)}; }
inline I ixor(I a, I b) { return {_mm256_xor_si256(a.low, b.low), _mm256_xor_si256(a.high, b.high)}; }
template <int kBits>
inline I shift_left(I a) {
    return {_mm256_slli_epi32(a.low, kBits), _mm256_slli_epi32(a.high, kBits)};
}
template <int kBits>
inline I shift_right(I a) {
    return {_mm256_srli_epi32(a.low, kBits), _mm256_srli_epi32(a.high, kBits)};
}
inline void multiply_wide_8(__m256i a, uint32_t b, __m256i &high, __m256i &low) {
    const __m256i factor = _mm256_set1_epi32(int(b));
    const __m256i even = _mm256_mul_epu32(a, factor), odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), factor);
    high = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
    low = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xaa);
}
inline void multiply_wide(I a, uint32_t b, I &high, I &low) {
    multiply_wide_8(a.low, b, high.low, low.low);
    multiply_wide_8(a.high, b, high.high, low.high);
}
inline void transpose4_of_8(__m256i &a, __m256i &b, __m256i &c, __m256i &d) {
    const __m256i first = _mm256_unpacklo_epi32(a, b), second = _mm256_unpackhi_epi32(a, b);
    const __m256i third = _mm256_unpacklo_epi32(c, d), fourth = _mm256_unpackhi_epi32(c, d);
    a = _mm256_unpacklo_epi64(first, third), b = _mm256_unpackhi_epi64(first, third);
    c = _mm256_unpacklo_epi64(second, fourth), d = _mm256_unpackhi_epi64(second, fourth);
}
inline void transpose4(I (&a)[4]) {
    transpose4_of_8(a[0].low, a[1].low, a[2].low, a[3].low);
    transpose4_of_8(a[0].high, a[1].high, a[2].high, a[3].high);
}
template <int kFours>
inline I rotate_fours(I a) {
    if constexpr (kFours >= 2) a = {a.high, a.low};
    if constexpr (kFours % 2 == 0) return a;
    return {_mm256_permute2x128_si256(a.low, a.high, 0x21), _mm256_permute2x128_si256(a.high, a.low, 0x21)};
}
inline I imax(I a, I b) { return {_mm256_max_epi32(a.low, b.low), _mm256_max_epi32(a.high, b.high)}; }
inline int32_t isum(I a) {
    const __m256i eight = _mm256_add_epi32(a.low, a.high);
    const __m128i four = _mm_add_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_add_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_add_epi32(two, _mm_shuffle_epi32(two, 1)));
}
inline int32_t igreatest(I a) {
    const __m256i eight = _mm256_max_epi32(a.low, a.high);
    const __m128i four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256(eight, 1));
    const __m128i two = _mm_max_epi32(four, _mm_unpackhi_epi64(four, four));
    return _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32(two, 1)));
}
inline I iload(const void *from) {
    const __m256i *halves = static_cast<const __m256i *>(from);
    return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline void istore(void *to, I value) {
    __m256i *halves = static_cast<__m256i *>(to);
    _mm256_storeu_si256(halves, value.low);
    _mm256_storeu_si256(halves + 1, value.high);
}
inline I load_table(const uint8_t *from) {
    const __m256i twice = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
    return {twice, twice};
}
inline I look_up(I table, I places) {
    return {_mm256_shuffle_epi8(table.low, places.low), _mm256_shuffle_epi8(table.high, places.high)};
}
inline I iset(int32_t value) { return {_mm256_set1_epi32(value), _mm256_set1_epi32(value)}; }
inline F to_float(I a) { return {_mm256_cvtepi32_ps(a.low), _mm256_cvtepi32_ps(a.high)}; }
inline F load_half(const uint16_t *from) {
    const __m128i *halves = reinterpret_cast<const __m128i *>(from);
    return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline F load_bfloat16(const uint16_t *from) {
    const __m128i *words = reinterpret_cast<const __m128i *>(from);
    const __m256i low = _mm256_cvtepu16_epi32(_mm_loadu_si128(words)), high = _mm256_cvtepu16_epi32(_mm_loadu_si128(words + 1));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))};
}
inline I widen_int8(const int8_t *from) {
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
    return {_mm256_cvtepi8_epi32(bytes), _mm256_cvtepi8_epi32(_mm_unpackhi_epi64(bytes, bytes))};
}

inline I to_nearest(F a) { return {_mm256_cvtps_epi32(a.low), _mm256_cvtps_epi32(a.high)}; }
inline void store_bytes(int8_t *to, I a) {
    const I bytes = iand(a, iset(255));
    const __m256i words = _mm256_permute4x64_epi64(_mm256_packus_epi32(bytes.low, bytes.high), 0b11011000);
    _mm_storeu_si128(reinterpret_cast<__m128i *>(to),
                     _mm_packus_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
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

// The instruction for bytes would cut sums of two products off at 16 bits, so bytes of odd and of even places are
// widened and multiplied apart.
inline __m256i dot4_of_8(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i even = _mm256_madd_epi16(_mm256_and_si256(unsigned_bytes, _mm256_set1_epi16(255)),
                                           _mm256_srai_epi16(_mm256_slli_epi16(signed_bytes, 8), 8));
    const __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(unsigned_bytes, 8), _mm256_srai_epi16(signed_bytes, 8));
    return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline I dot4(I sum, I unsigned_bytes, I signed_bytes) {
    return {dot4_of_8(sum.low, unsigned_bytes.low, signed_bytes.low),
            dot4_of_8(sum.high, unsigned_bytes.high, signed_bytes.high)};
}
inline __m256i dot4_small_of_8(__m256i sum, __m256i unsigned_bytes, __m256i signed_bytes) {
    const __m256i pairs = _mm256_maddubs_epi16(unsigned_bytes, signed_bytes);
    return _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
}
inline I dot4_small(I sum, I unsigned_bytes, I signed_bytes) {
    return {dot4_small_of_8(sum.low, unsigned_bytes.low, signed_bytes.low),
            dot4_small_of_8(sum.high, unsigned_bytes.high, signed_bytes.high)};
}
inline I broadcast4(const int8_t *from) {
    int32_t bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return iset(bytes);
}

inline I multiply_words(I a, I b) { return {_mm256_mullo_epi16(a.low, b.low), _mm256_mullo_epi16(a.high, b.high)}; }
inline I add_bytes(I a, I b) { return {_mm256_add_epi8(a.low, b.low), _mm256_add_epi8(a.high, b.high)}; }
inline I add_products(I sum, I a, I b) {
    return iadd(sum, {_mm256_madd_epi16(a.low, b.low), _mm256_madd_epi16(a.high, b.high)});
}
struct Pairs {
    I bits;
};
inline Pairs load_pairs(const uint16_t *from) { return {iload(from)}; }
inline void join_bytes(I lower, I upper, Pairs &first, Pairs &second) {
    first.bits = {_mm256_unpacklo_epi8(lower.low, upper.low), _mm256_unpacklo_epi8(lower.high, upper.high)};
    second.bits = {_mm256_unpackhi_epi8(lower.low, upper.low), _mm256_unpackhi_epi8(lower.high, upper.high)};
}
inline void store_pairs(uint16_t *to, Pairs a) { istore(to, a.bits); }
inline Pairs broadcast_pair(const uint16_t *from) {
    int32_t pair;
    std::memcpy(&pair, from, sizeof pair);
    return {iset(pair)};
}
inline F first_of(Pairs a) {
    return float_of({_mm256_slli_epi32(a.bits.low, 16), _mm256_slli_epi32(a.bits.high, 16)});
}
inline F second_of(Pairs a) { return float_of(iand(a.bits, iset(int(0xffff0000)))); }
inline F dot2(F sum, Pairs a, Pairs b) {
    return fma(second_of(a), second_of(b), fma(first_of(a), first_of(b), sum));
}

inline __m256i bfloat16_of_8(__m256 a) {  // to nearest, ties to even; in 32-bit lanes
    const __m256i bits = _mm256_castps_si256(a);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));  // NaN stays NaN
    const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a, a, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(rounded, quiet, nan), 16);
}
inline I bfloat16_bits(F a) { return {bfloat16_of_8(a.low), bfloat16_of_8(a.high)}; }
inline void store_bfloat16(uint16_t *to, F a) {
    const __m256i words = _mm256_packus_epi32(bfloat16_of_8(a.low), bfloat16_of_8(a.high));
    _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), _mm256_permute4x64_epi64(words, 0b11011000));
}
