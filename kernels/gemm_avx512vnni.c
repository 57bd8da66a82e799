// gemm_avx512vnni.c: products for many rows of x, 16 weight rows per vector. The eight vectors of codes of a block stay in
// registers while MOST_X rows of x pass by: per row 8 byte dot products, 2 conversions, 3 or 4 multiplications.
#include "gemm.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include <immintrin.h>

enum { LANES = 16, MOST_X = 12, GROUP_X = 1 };
typedef __m512 V;
typedef __m512i VI;
#define DPBUSD(acc, u, s) _mm512_dpbusd_epi32(acc, u, s)

static inline V v_zero(void) { return _mm512_setzero_ps(); }
static inline V v_set(float x) { return _mm512_set1_ps(x); }
static inline V v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, V v) { _mm512_storeu_ps(p, v); }
static inline V v_add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V v_mul(V a, V b) { return _mm512_mul_ps(a, b); }
static inline V v_madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); } // a b + c
static inline V v_float(VI a) { return _mm512_cvtepi32_ps(a); }
static inline VI vi_set(int x) { return _mm512_set1_epi32(x); }
static inline VI vi_load(const void *p) { return _mm512_loadu_si512(p); }

#include "gemm_x86.h"
const GemmTable *const GEMM_AVX512VNNI = &TABLE;
#else
const GemmTable *const GEMM_AVX512VNNI = NULL;
#endif
