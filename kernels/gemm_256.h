// gemm_256.h: the operations that gemm_x86.h wants, with vectors of 256 bits.
#include <immintrin.h>

enum { LANES = 8, MOST_FLOAT_X = 6 };
typedef __m256 V;
typedef __m256i VI;

static inline V v_zero(void) { return _mm256_setzero_ps(); }
static inline V v_set(float x) { return _mm256_set1_ps(x); }
static inline V v_load(const float *p) { return _mm256_loadu_ps(p); }
static inline void v_store(float *p, V v) { _mm256_storeu_ps(p, v); }
static inline V v_add(V a, V b) { return _mm256_add_ps(a, b); }
static inline V v_madd(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); } // a b + c
static inline V v_bits(VI a) { return _mm256_castsi256_ps(a); }
static inline VI vi_set(int x) { return _mm256_set1_epi32(x); }
static inline VI vi_load(const void *p) { return _mm256_loadu_si256(p); }
