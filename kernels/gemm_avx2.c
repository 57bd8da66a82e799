// gemm_avx2.c: products for many rows of x, 8 weight rows per vector, with the 16-bit sums of AVX2.
#include "gemm.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "gemm_256.h"
#include "gemm_x86.h"
const GemmTable *const GEMM_AVX2 = &TABLE;
#else
const GemmTable *const GEMM_AVX2 = NULL;
#endif
