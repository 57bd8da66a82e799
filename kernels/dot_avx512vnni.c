// dot_avx512vnni.c: dot products for CPUs with AVX-512 F, BW, VL, DQ and VNNI (Intel Cascade Lake 2019, AMD Zen 4 2022).
#include "dot.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define DPBUSD(acc, u, s) _mm256_dpbusd_epi32(acc, u, s)
#include "dot_x86.h"
const DotTable *const DOT_AVX512VNNI = &TABLE;
#else
const DotTable *const DOT_AVX512VNNI = NULL;
#endif
