// vec_avx2.c: the float helpers with 8 floats per vector (AVX2, FMA, F16C).
#include "vec.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include <immintrin.h>

enum { WIDTH = 8, KEYS_FOUR = 2 }; // so many queries meet four keys at a time: registers for their sums

typedef __m256 V;

static inline V v_set(float x) { return _mm256_set1_ps(x); }
static inline V v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, V v) { _mm256_storeu_ps(p, v); }
static inline V v_add(V a, V b) { return _mm256_add_ps(a, b); }
static inline V v_sub(V a, V b) { return _mm256_sub_ps(a, b); }
static inline V v_mul(V a, V b) { return _mm256_mul_ps(a, b); }
static inline V v_div(V a, V b) { return _mm256_div_ps(a, b); }
static inline V v_min(V a, V b) { return _mm256_min_ps(a, b); }
static inline V v_max(V a, V b) { return _mm256_max_ps(a, b); }
static inline V v_madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }   // a b + c
static inline V v_nmadd(V a, V b, V c) { return _mm256_fnmadd_ps(a, b, c); } // c - a b
static inline V v_round(V a) { return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC); }
static inline V v_power_of_two(V n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)); }
static inline V v_abs(V a) { return _mm256_andnot_ps(v_set(-0.0f), a); }
static inline V v_with_sign(V a, V sign) { return _mm256_or_ps(a, _mm256_and_ps(v_set(-0.0f), sign)); } // a >= 0
static inline V v_if_less(V a, V b, V yes, V no) { return _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_LT_OQ)); }
static inline V v_load_half(const F16 *p) { return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p)); }
static inline V v_load_codes(const int8_t *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)p))); }
static inline V v_set_half(const F16 *p) { return _mm256_cvtph_ps(_mm_set1_epi16((short)*p)); }
static inline void v_store_codes(int8_t *p, V v) { // to nearest
    const __m256i c = _mm256_cvtps_epi32(v);
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(c), _mm256_extracti128_si256(c, 1));
    _mm_storel_epi64((void *)p, _mm_packs_epi16(words, words));
}
static inline void v_store_half(F16 *p, V v) { _mm_storeu_si128((void *)p, _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT)); }

static inline float v_sum(V v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline __m128 v_sum_each(V a, V b, V c, V d) { // {sum of a, of b, of c, of d}
    const V quarter = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(quarter), _mm256_extractf128_ps(quarter, 1));
}

static inline __m256i first_n(int n) { return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)); }
static inline V v_load_n(const float *p, int n) { return _mm256_maskload_ps(p, first_n(n)); }
static inline void v_store_n(float *p, V v, int n) { _mm256_maskstore_ps(p, first_n(n), v); }

#include "vec_x86.h"
const VecTable *const VEC_AVX2 = &TABLE;
#else
const VecTable *const VEC_AVX2 = NULL;
#endif
