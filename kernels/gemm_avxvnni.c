// gemm_avxvnni.c: products for many rows of x, 8 weight rows per vector, with the byte dot product of AVX-VNNI.
#include "gemm.h"

#if defined(__AVXVNNI__) && defined(__FMA__) && defined(__F16C__)
#include "gemm_256.h"
#define DPBUSD(acc, u, s) _mm256_dpbusd_avx_epi32(acc, u, s)
#include "gemm_x86.h"
const GemmTable *const GEMM_AVXVNNI = &TABLE;
#else
const GemmTable *const GEMM_AVXVNNI = NULL;
#endif
