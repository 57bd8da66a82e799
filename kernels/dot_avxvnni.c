// dot_avxvnni.c: as dot_avx2.c, with the 256-bit byte dot product of AVX-VNNI (Intel Alder Lake 2021, AMD Zen 5 2024).
// It is used for blocks of 32; those of 256 are multiplied in dot_avx2.c, where sums of pairs take integer scales on the way.
#include "dot.h"

#if defined(__AVXVNNI__) && defined(__FMA__) && defined(__F16C__)
#define DOT_BELOW DOT_AVX2
#define DPBUSD(acc, u, s) _mm256_dpbusd_avx_epi32(acc, u, s)
#include "dot_x86.h"
const DotTable *const DOT_AVXVNNI = &TABLE;
#else
const DotTable *const DOT_AVXVNNI = NULL;
#endif
