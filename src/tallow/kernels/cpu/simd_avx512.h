// The vocabulary of the operations for x86-64 processors with AVX-512 F, BW, VL, DQ and VNNI (Ice Lake, Zen 4 and later).
// With BF16 (Cooper Lake, Sapphire Rapids, Zen 4) products of bfloat16 pairs are one instruction, else two.



using F = __m512;   // 16 floats
using I = __m512i;  // 16 int32, or 64 bytes

// Heights of the tiles that stay in the 32 registers: two panels of sums, and of integer sums besides.
constexpr int kTallestFloat = 10, kTallestInteger = 5;
// Nested weights: taller tiles multiply bytes to which the panel is brought before.
constexpr int kTallestNested = 4, kTallestBytes = 6;

// As they stand: compilers leave out loops that do nothing else.
inline void prefetch(const void *at) { asm volatile("prefetcht0 %0" ::"m"(*static_cast<const char *>(at))); }
// Into the second cache: for more than the first has room for.
inline void prefetch_far(const void *at) { asm volatile("prefetcht1 %0" ::"m"(*static_cast<const char *>(at))); }

inline F fzero() { return _mm512_setzero_ps(); }
inline F fset(float value) { return _mm512_set1_ps(value); }
inline F fload(const float *from) { return _mm512_loadu_ps(from); }
inline void fstore(float *to, F value) { _mm512_storeu_ps(to, value); }
inline F fadd(F a, F b) { return _mm512_add_ps(a, b); }
inline F fsub(F a, F b) { return _mm512_sub_ps(a, b); }
inline F fmul(F a, F b) { return _mm512_mul_ps(a, b); }
inline F fdiv(F a, F b) { return _mm512_div_ps(a, b); }
inline F fma(F a, F b, F c) { return _mm512_fmadd_ps(a, b, c); }
// The second operand if one is not a number.
inline F fmax(F a, F b) { return _mm512_max_ps(a, b); }
inline F fmin(F a, F b) { return _mm512_min_ps(a, b); }
inline F fabs(F a) { return _mm512_abs_ps(a); }
inline F fsqrt(F a) { return _mm512_sqrt_ps(a); }
inline F fround(F a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
// a · 2^exponent, for whole exponents from −126 to 127; 128 may give infinity
inline F fscale(F a, F exponent) { return _mm512_scalef_ps(a, exponent); }
// a < b ? yes : no, lane by lane
inline F fselect_less(F a, F b, F yes, F no) {
    return _mm512_mask_mov_ps(no, _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), yes);
}
inline uint32_t mask_less(F a, F b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }  // a bit a lane: a < b
inline float fsum(F a) { return _mm512_reduce_add_ps(a); }
inline float fgreatest(F a) { return _mm512_reduce_max_ps(a); }
// the first `count` lanes, the others `rest`
inline F fkeep(F a, int count, F rest) { return _mm512_mask_mov_ps(rest, __mmask16((1u << count) - 1), a); }

inline I bits_of(F a) { return _mm512_castps_si512(a); }
inline F float_of(I bits) { return _mm512_castsi512_ps(bits); }
inline I iadd(I a, I b) { return _mm512_add_epi32(a, b); }
inline I isub(I a, I b) { return _mm512_sub_epi32(a, b); }
inline I iand(I a, I b) { return _mm512_and_si512(a, b); }
inline I ior(I a, I b) { return _mm512_or_si512(a, b); }
inline I ixor(I a, I b) { return _mm512_xor_si512(a, b); }
template <int kBits>
inline I shift_left(I a) {
    return _mm512_slli_epi32(a, kBits);
}
template <int kBits>
inline I shift_right(I a) {  // zeros come in
    return _mm512_srli_epi32(a, kBits);
}
// High and low halves of the products of unsigned integers.
inline void multiply_wide(I a, uint32_t b, I &high, I &low) {
    const __m512i factor = _mm512_set1_epi32(int(b));
    const __m512 even = _mm512_castsi512_ps(_mm512_mul_epu32(a, factor));
    const __m512 odd = _mm512_castsi512_ps(_mm512_mul_epu32(_mm512_srli_epi64(a, 32), factor));
    high = _mm512_castps_si512(_mm512_mask_movehdup_ps(odd, 0x5555, even));
    low = _mm512_castps_si512(_mm512_mask_moveldup_ps(even, 0xaaaa, odd));
}
// Lane j of four in vector i changes places with lane i in vector j.
inline void transpose4(I (&a)[4]) {
    const __m512i first = _mm512_unpacklo_epi32(a[0], a[1]), second = _mm512_unpackhi_epi32(a[0], a[1]);
    const __m512i third = _mm512_unpacklo_epi32(a[2], a[3]), fourth = _mm512_unpackhi_epi32(a[2], a[3]);
    a[0] = _mm512_unpacklo_epi64(first, third), a[1] = _mm512_unpackhi_epi64(first, third);
    a[2] = _mm512_unpacklo_epi64(second, fourth), a[3] = _mm512_unpackhi_epi64(second, fourth);
}
// The fours of lanes change places: each takes that of the four kFours behind it, round and round.
template <int kFours>
inline I rotate_fours(I a) {
    return _mm512_shuffle_i32x4(a, a, kFours == 1 ? 0b00111001 : kFours == 2 ? 0b01001110 : 0b10010011);
}
inline I imax(I a, I b) { return _mm512_max_epi32(a, b); }
inline int32_t isum(I a) { return _mm512_reduce_add_epi32(a); }
inline int32_t igreatest(I a) { return _mm512_reduce_max_epi32(a); }
inline I iload(const void *from) { return _mm512_loadu_si512(from); }
inline void istore(void *to, I value) { _mm512_storeu_si512(to, value); }
// The same 16 bytes in each four lanes.
inline I load_table(const uint8_t *from) {
    return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}
// Bytes of a table at places 0 … 15, a byte each.
inline I look_up(I table, I places) { return _mm512_shuffle_epi8(table, places); }
inline I iset(int32_t value) { return _mm512_set1_epi32(value); }
inline F to_float(I a) { return _mm512_cvtepi32_ps(a); }
inline F load_half(const uint16_t *from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
}
inline F load_bfloat16(const uint16_t *from) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(from)));
    return _mm512_castsi512_ps(_mm512_slli_epi32(wide, 16));
}
inline I widen_int8(const int8_t *from) {
    return _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(from)));
}

inline I to_nearest(F a) { return _mm512_cvtps_epi32(a); }
// The lowest bytes of the lanes.
inline void store_bytes(int8_t *to, I a) { _mm_storeu_si128(reinterpret_cast<__m128i *>(to), _mm512_cvtepi32_epi8(a)); }
// The same to every fourth byte, from that of number `place` on; what lies between stays.
inline void store_every_fourth(uint8_t *to, int place, I a) {
    _mm512_mask_storeu_epi8(to, 0x1111111111111111ull << place, _mm512_sll_epi32(a, _mm_cvtsi32_si128(8 * place)));
}
// To the nearest integers, which are stored as int8, too. The values are within ±127.
inline I store_int8(int8_t *to, F a) {
    const I whole = to_nearest(a);
    store_bytes(to, whole);
    return whole;
}

// Four neighbouring bytes of each lane times four bytes: `unsigned_bytes` 0 … 255, `signed_bytes` −128 … 127.
inline I dot4(I sum, I unsigned_bytes, I signed_bytes) { return _mm512_dpbusd_epi32(sum, unsigned_bytes, signed_bytes); }
// The same for unsigned bytes up to 63, which other instruction sets can do in fewer steps.
inline I dot4_small(I sum, I unsigned_bytes, I signed_bytes) { return dot4(sum, unsigned_bytes, signed_bytes); }
inline I broadcast4(const int8_t *from) { return _mm512_set1_epi32(*reinterpret_cast<const int32_t *>(from)); }

// sum + a · b, lane by lane, for factors of 16 bits: b's upper halves are zero.
inline I add_products(I sum, I a, I b) { return _mm512_dpwssd_epi32(sum, a, b); }
// The lower halves of products of 16-bit lanes, and sums of bytes.
inline I multiply_words(I a, I b) { return _mm512_mullo_epi16(a, b); }
inline I add_bytes(I a, I b) { return _mm512_add_epi8(a, b); }

// Two neighbouring bfloat16 of each lane times two.
struct Pairs {
    __m512i bits;
};
inline Pairs load_pairs(const uint16_t *from) { return {_mm512_loadu_si512(from)}; }
inline Pairs broadcast_pair(const uint16_t *from) {
    return {_mm512_set1_epi32(*reinterpret_cast<const int32_t *>(from))};
}
// Words of lower and upper bytes: of the first eight in each four lanes, and of the others.
inline void join_bytes(I lower, I upper, Pairs &first, Pairs &second) {
    first.bits = _mm512_unpacklo_epi8(lower, upper);
    second.bits = _mm512_unpackhi_epi8(lower, upper);
}
inline void store_pairs(uint16_t *to, Pairs a) { istore(to, a.bits); }
#ifdef __AVX512BF16__
inline F dot2(F sum, Pairs a, Pairs b) {
    return _mm512_dpbf16_ps(sum, reinterpret_cast<__m512bh>(a.bits), reinterpret_cast<__m512bh>(b.bits));
}
inline __m256i to_bfloat16(F a) { return reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(a)); }
#else
inline F dot2(F sum, Pairs a, Pairs b) {
    const __m512i high = _mm512_set1_epi32(int(0xffff0000));
    sum = _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_slli_epi32(a.bits, 16)),
                          _mm512_castsi512_ps(_mm512_slli_epi32(b.bits, 16)), sum);
    return _mm512_fmadd_ps(_mm512_castsi512_ps(_mm512_and_si512(a.bits, high)),
                           _mm512_castsi512_ps(_mm512_and_si512(b.bits, high)), sum);
}
inline __m256i to_bfloat16(F a) {  // to nearest, ties to even
    const __m512i bits = _mm512_castps_si512(a);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __m512i quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x00400000));  // NaN stays NaN
    const __mmask16 nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
    const __m512i kept = _mm512_mask_mov_epi32(rounded, nan, quiet);
    return _mm512_cvtepi32_epi16(_mm512_srli_epi32(kept, 16));
}
#endif
inline void store_bfloat16(uint16_t *to, F a) { _mm256_storeu_si256(reinterpret_cast<__m256i *>(to), to_bfloat16(a)); }
inline I bfloat16_bits(F a) { return _mm512_cvtepu16_epi32(to_bfloat16(a)); }  // in the lower halves of lanes
