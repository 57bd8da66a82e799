// gemm_avx512vnni.c: products for many rows of x, 16 weight rows per vector. Two vectors of weights beside six rows of x: 12 sums,
// 12 integer sums, the codes and one value of x fill the registers. Of a block of 32 columns each sum needs 8 byte dot products and 2 or,
// with minima, 3 multiplications: 10 or 11 instructions for the two multipliers, which bounds the share of the peak to 80 or 73 %
// (scales per 16: 8 of 12, 67 %). Loads, two a cycle, would bound a tile of one vector: here they are 2/3 of the products.
#include "gemm.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#include "gemm_512.h"
#include "gemm_x86.h"
const GemmTable *const GEMM_AVX512VNNI = &TABLE;
#else
const GemmTable *const GEMM_AVX512VNNI = NULL;
#endif
