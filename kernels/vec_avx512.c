// vec_avx512.c: the float helpers with 16 floats per vector (AVX-512 F, BW, VL, DQ).
#include "vec.h"

#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512VL__) && defined(__AVX512DQ__)
#include <immintrin.h>

enum { WIDTH = 16, KEYS_FOUR = 4 }; // so many queries meet four keys at a time: registers for their sums

typedef __m512 V;

static inline V v_set(float x) { return _mm512_set1_ps(x); }
static inline V v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, V v) { _mm512_storeu_ps(p, v); }
static inline V v_add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V v_sub(V a, V b) { return _mm512_sub_ps(a, b); }
static inline V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V v_div(V a, V b) { return _mm512_div_ps(a, b); }
static inline V v_min(V a, V b) { return _mm512_min_ps(a, b); }
static inline V v_max(V a, V b) { return _mm512_max_ps(a, b); }
static inline V v_madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }   // a b + c
static inline V v_nmadd(V a, V b, V c) { return _mm512_fnmadd_ps(a, b, c); } // c - a b
static inline V v_round(V a) { return _mm512_roundscale_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_power_of_two(V n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23)); }
static inline V v_abs(V a) { return _mm512_andnot_ps(v_set(-0.0f), a); }
static inline V v_with_sign(V a, V sign) { return _mm512_or_ps(a, _mm512_and_ps(v_set(-0.0f), sign)); } // a >= 0
static inline V v_if_less(V a, V b, V yes, V no) { return _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_LT_OQ), no, yes); }
static inline V v_load_half(const F16 *p) { return _mm512_cvtph_ps(_mm256_loadu_si256((const void *)p)); }
static inline V v_load_codes(const int8_t *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void *)p))); }
static inline V v_set_half(const F16 *p) { return _mm512_cvtph_ps(_mm256_set1_epi16((short)*p)); }
static inline void v_store_codes(int8_t *p, V v) { _mm_storeu_si128((void *)p, _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(v))); } // to nearest
static inline void v_store_half(F16 *p, V v) { _mm256_storeu_si256((void *)p, _mm512_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }
static inline float v_sum(V v) { return _mm512_reduce_add_ps(v); }
static inline __m128 v_sum_each(V a, V b, V c, V d) { // {sum of a, of b, of c, of d}
    const V ab = v_add(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)), cd = v_add(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
    const V quarter = v_add(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(quarter), _mm512_extractf32x8_ps(quarter, 1));
    return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

static inline __mmask16 first_n(int n) { return (__mmask16)(n >= 16 ? 0xffff : (1 << n) - 1); }
static inline V v_load_n(const float *p, int n) { return _mm512_maskz_loadu_ps(first_n(n), p); }
static inline void v_store_n(float *p, V v, int n) { _mm512_mask_storeu_ps(p, first_n(n), v); }

#include "vec_x86.h"
const VecTable *const VEC_AVX512 = &TABLE;
#else
const VecTable *const VEC_AVX512 = NULL;
#endif
