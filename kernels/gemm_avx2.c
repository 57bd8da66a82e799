// gemm_avx2.c: products for many rows of x, 8 weight rows per vector, with the 16-bit sums of AVX2. Six rows of x, three at a time
// beside a vector of codes: 6 sums, 3 integer sums, 3 of 16 bits, the codes, one value of x and a constant fill the 16 registers.
#include "gemm.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "gemm_256.h"
enum { VECTORS = 1, MOST_X = 6, GROUP_X = 3 };
#include "gemm_x86.h"
const GemmTable *const GEMM_AVX2 = &TABLE;
#else
const GemmTable *const GEMM_AVX2 = NULL;
#endif
