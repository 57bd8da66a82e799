// gemm_512.h: the operations that gemm_x86.h wants, with vectors of 512 bits.
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
