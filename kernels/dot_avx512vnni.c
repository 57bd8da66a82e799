// dot_avx512vnni.c: dot products for CPUs with AVX-512 F, BW, VL, DQ and VNNI (Intel Cascade Lake 2019, AMD Zen 4 2022).
//
// Blocks of 32 weights: dot_x86.h as it is (two blocks in one 512-bit vector measured slower: the blocks are not aligned to each
// other and their scales come one by one). Blocks of 256: the same method with 64 weights, two groups of 32, per vector, which is
// 1.05 to 1.25 times as fast on one row of activations and 1.25 to 1.5 times on four. Codes are always unsigned here, as the byte
// dot product wants them; what they are too large by goes into the minimum, with the sums of x.
// The activation scales of 64 elements are s0 s1 s0 s1 s0 s1 s0 s1 s2 s3 s2 s3 s2 s3 s2 s3 over the sixteen lanes.
#include "dot.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define DPBUSD(acc, u, s) _mm256_dpbusd_epi32(acc, u, s)
#define DOT_OWN_256
#include "dot_x86.h"

INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }
INLINE __m512i both256(const void *p) { return _mm512_broadcast_i64x4(load256(p)); } // the same 32 bytes twice
INLINE __m512i halves_i16(short low, short high) { return _mm512_inserti64x4(_mm512_set1_epi16(low), _mm256_set1_epi16(high), 1); }
INLINE __m512i halves_i8(int low, int high) { return _mm512_inserti64x4(_mm512_set1_epi8((char)low), _mm256_set1_epi8((char)high), 1); }
INLINE __m512i only_bits(__m512i v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8((char)mask)); }
INLINE __m512 products(__m512i code, __m512i x) { return _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(_mm512_setzero_si512(), code, x)); }
INLINE float total(__m512 v) { return sum_lanes(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))); }

// 32 bytes with two groups of 16, as in all formats with tables -> 64 codes
INLINE __m512i nibbles_of_two(const uint8_t *qs) {
    const __m512i twice = _mm512_permutexvar_epi64(_mm512_setr_epi64(0, 1, 0, 1, 2, 3, 2, 3), _mm512_castsi256_si512(load256(qs)));
    return only_bits(_mm512_srlv_epi16(twice, _mm512_setr_epi64(0, 0, 0x4000400040004, 0x4000400040004, 0, 0, 0x4000400040004, 0x4000400040004)), 15);
}

typedef __m512i UnpackQuarter(const char *block, const int k); // codes 64 k .. 64 k + 63

INLINE __m512i quarter_q2_k(const char *p, const int k) {
    return only_bits(_mm512_srlv_epi16(both256(((const BlockQ2_K *)(const void *)p)->qs + k / 2 * 32), halves_i16((short)(k % 2 * 4), (short)(k % 2 * 4 + 2))), 3);
}
INLINE __m512i add_where(__m512i code, __m512i bytes, __m512i bit, int value) {
    return _mm512_mask_add_epi8(code, _mm512_test_epi8_mask(bytes, bit), code, _mm512_set1_epi8((char)value));
}
INLINE __m512i quarter_q3_k(const char *p, const int k) {
    const BlockQ3_K *b = (const void *)p;
    const __m512i low = only_bits(_mm512_srlv_epi16(both256(b->qs + k / 2 * 32), halves_i16((short)(k % 2 * 4), (short)(k % 2 * 4 + 2))), 3);
    return add_where(low, both256(b->hmask), halves_i8(1 << (2 * k), 2 << (2 * k)), 4);
}
INLINE __m512i quarter_q4_k(const char *p, const int k) {
    return only_bits(_mm512_srlv_epi16(both256(((const BlockQ4_K *)(const void *)p)->qs + k * 32), halves_i16(0, 4)), 15);
}
INLINE __m512i quarter_q5_k(const char *p, const int k) {
    const BlockQ5_K *b = (const void *)p;
    const __m512i low = only_bits(_mm512_srlv_epi16(both256(b->qs + k * 32), halves_i16(0, 4)), 15);
    return add_where(low, both256(b->qh), halves_i8(1 << (2 * k), 2 << (2 * k)), 16);
}
INLINE __m512i quarter_q6_k(const char *p, const int k) {
    const BlockQ6_K *b = (const void *)p;
    const __m512i low = load512(b->ql + k / 2 * 64), high = both256(b->qh + k / 2 * 32);
    const __m512i top = k % 2 ? _mm512_srlv_epi16(high, halves_i16(0, 2)) : _mm512_sllv_epi16(high, halves_i16(4, 2));
    return _mm512_or_si512(only_bits(k % 2 ? _mm512_srli_epi16(low, 4) : low, 15), only_bits(top, 48));
}
INLINE __m512i quarter_iq4_xs(const char *p, const int k) {
    const __m512i table = _mm512_broadcast_i32x4(_mm_xor_si128(load128(IQ4_VALUES), _mm_set1_epi8(-128)));
    return _mm512_shuffle_epi8(table, nibbles_of_two(((const BlockIQ4_XS *)(const void *)p)->qs + k * 32));
}

// SCALE_32_SIGNED stands for IQ4_XS: codes too large by 128.
INLINE void tile_quarters(const DotTile *t, const int n_x, const int bytes, const Scaling scaling, UnpackHead *head, UnpackQuarter *quarter) {
    const __m512i twice = _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const __m512i spread = _mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3);
    const __m512i spread16 = _mm512_setr_epi64(0, 0, 0x1000100010001, 0x1000100010001, 0x2000200020002, 0x2000200020002, 0x3000300030003, 0x3000300030003);
    for (int o = 0; o < t->n_w; o++) {
        const char *w = (const char *)t->w + o * t->w_stride;
        __m512 acc[DOT_ROWS][2];
        for (int r = 0; r < n_x; r++) acc[r][0] = acc[r][1] = _mm512_setzero_ps();
        for (int at = 0; at < t->n_col; at += 256, w += bytes) {
            for (int line = 0; line < bytes; line += 64) _mm_prefetch(w + PREFETCH + line, _MM_HINT_T1);
            const Head256 h = head(w);
            const __m512 scale2 = _mm512_permutexvar_ps(twice, _mm512_castps256_ps512(h.scale)); // one for each activation scale
            const __m512 min = scaling == SCALE_32_SIGNED ? _mm512_mul_ps(scale2, _mm512_set1_ps(128))
                                                          : _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(h.min16)), _mm512_set1_ps(h.min_scale));
            __m512 scale[DOT_ROWS]; // of the weights times those of the activations
            for (int r = 0; r < n_x; r++) {
                scale[r] = _mm512_mul_ps(scale2, _mm512_loadu_ps(act8_scales(t->x[r], t->n_col) + at / 16));
                acc[r][0] = _mm512_fnmadd_ps(min, _mm512_loadu_ps(act8_sums(t->x[r], t->n_col) + at / 16), acc[r][0]);
            }
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                const __m512i code = quarter(w, k);
                const __m512i s16 = _mm512_permutexvar_epi16(_mm512_add_epi16(spread16, _mm512_set1_epi16((short)(4 * k))), _mm512_castsi256_si512(h.scale16));
                for (int r = 0; r < n_x; r++) {
                    const __m512i x = load512(act8_codes(t->x[r]) + at + 64 * k);
                    const __m512 lanes = scaling == SCALE_16 ? _mm512_cvtepi32_ps(_mm512_madd_epi16(_mm512_maddubs_epi16(code, x), s16)) : products(code, x);
                    acc[r][k % 2] = _mm512_fmadd_ps(lanes, _mm512_permutexvar_ps(_mm512_add_epi32(spread, _mm512_set1_epi32(4 * k)), scale[r]), acc[r][k % 2]);
                }
            }
        }
        for (int r = 0; r < n_x; r++) t->y[r * t->y_stride + o] = total(_mm512_add_ps(acc[r][0], acc[r][1]));
    }
}

BY_ROWS(dot_q2_k, tile_quarters, sizeof(BlockQ2_K), SCALE_16, head_q2_k, quarter_q2_k)
BY_ROWS(dot_q3_k, tile_quarters, sizeof(BlockQ3_K), SCALE_16, head_q3_k, quarter_q3_k)
BY_ROWS(dot_q4_k, tile_quarters, sizeof(BlockQ4_K), SCALE_32, head_q4_k, quarter_q4_k)
BY_ROWS(dot_q5_k, tile_quarters, sizeof(BlockQ5_K), SCALE_32, head_q5_k, quarter_q5_k)
BY_ROWS(dot_q6_k, tile_quarters, sizeof(BlockQ6_K), SCALE_16, head_q6_k, quarter_q6_k)
BY_ROWS(dot_iq4_xs, tile_quarters, sizeof(BlockIQ4_XS), SCALE_32_SIGNED, head_iq4_xs, quarter_iq4_xs)

const DotTable *const DOT_AVX512VNNI = &TABLE;
#else
const DotTable *const DOT_AVX512VNNI = NULL;
#endif
