// dot_avx2.c: dot products for CPUs with AVX2, FMA and F16C (Intel Haswell 2013, AMD Zen 2017). Without VNNI, products of bytes
// are summed in pairs to 16 and then to 32 bits.
#include "dot.h"

#if defined(__AVX2__) && defined(__FMA__) && defined(__F16C__)
#include "dot_x86.h"
const DotTable *const DOT_AVX2 = &TABLE;
#else
const DotTable *const DOT_AVX2 = NULL;
#endif
