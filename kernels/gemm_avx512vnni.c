// gemm_avx512vnni.c: products for many rows of x, 16 weight rows per vector. Two vectors of weights beside six rows of x: 12 sums,
// 12 integer sums, the codes and one value of x fill the registers. Of a block of 32 columns each sum needs 8 byte dot products and 2 or,
// with minima, 3 multiplications: 10 or 11 instructions for the two multipliers, which bounds the share of the peak to 80 or 73 %
// (scales per 16: 8 of 12, 67 %). Loads, two a cycle, would bound a tile of one vector: here they are 2/3 of the products.
#include "gemm.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include <immintrin.h>

enum { LANES = 16, VECTORS = 2, MOST_X = 6, GROUP_X = 6, MOST_FLOAT_X = 12 };
typedef __m512 V;
typedef __m512i VI;
#define DPBUSD(acc, u, s) _mm512_dpbusd_epi32(acc, u, s)

static inline V v_zero(void) { return _mm512_setzero_ps(); }
static inline V v_set(float x) { return _mm512_set1_ps(x); }
static inline V v_load(const float *p) { return _mm512_loadu_ps(p); }
static inline void v_store(float *p, V v) { _mm512_storeu_ps(p, v); }
static inline V v_add(V a, V b) { return _mm512_add_ps(a, b); }
static inline V v_madd(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); } // a b + c
static inline V v_bits(VI a) { return _mm512_castsi512_ps(a); }
static inline VI vi_set(int x) { return _mm512_set1_epi32(x); }
static inline VI vi_load(const void *p) { return _mm512_loadu_si512(p); }

#include "gemm_x86.h"
const GemmTable *const GEMM_AVX512VNNI = &TABLE;
#else
const GemmTable *const GEMM_AVX512VNNI = NULL;
#endif
