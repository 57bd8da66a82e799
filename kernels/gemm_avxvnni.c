// gemm_avxvnni.c: products for many rows of x, 8 weight rows per vector, with the byte dot product of AVX-VNNI. Two vectors of
// weights beside three rows of x: 6 sums, 6 integer sums, 2 vectors of codes and one value of x.
#include "gemm.h"

#if defined(__AVXVNNI__) && defined(__FMA__) && defined(__F16C__)
#include "gemm_256.h"
enum { VECTORS = 2, MOST_X = 3, GROUP_X = 3 };
#define DPBUSD(acc, u, s) _mm256_dpbusd_avx_epi32(acc, u, s)
#include "gemm_x86.h"
const GemmTable *const GEMM_AVXVNNI = &TABLE;
#else
const GemmTable *const GEMM_AVXVNNI = NULL;
#endif
