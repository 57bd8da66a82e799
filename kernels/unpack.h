// unpack.h: one block of each rounded format as signed bytes with a scale and a minimum per 16 elements, in plain C. Included by
// files of different instruction set levels: compilers turn the loops over 16 and 32 into the vector code of each. Where they do
// not, there are intrinsics.
#ifndef UNPACK_H
#define UNPACK_H

#include "quant.h"
#if defined(__F16C__) && defined(__AVX2__)
#include <immintrin.h>
static inline float half_of(F16 h) { return _cvtsh_ss(h); }
// to[2 i] = to[2 i + 1] = d * v[i]
static inline void twice_scaled(float to[16], const uint8_t v[8], float d) {
    const __m256 x = _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)v))), _mm256_set1_ps(d));
    const __m256 low = _mm256_unpacklo_ps(x, x), high = _mm256_unpackhi_ps(x, x); // 0 0 1 1 4 4 5 5, 2 2 3 3 6 6 7 7
    _mm256_storeu_ps(to, _mm256_permute2f128_ps(low, high, 0x20));
    _mm256_storeu_ps(to + 8, _mm256_permute2f128_ps(low, high, 0x31));
}
#else
static inline float half_of(F16 h) { return f16_to_f32(h); }
static inline void twice_scaled(float to[16], const uint8_t v[8], float d) {
    for (int i = 0; i < 16; i++) to[i] = d * (float)v[i / 2];
}
#endif

// w[i] = scale[i / 16] * q[i] + min[i / 16]
typedef struct {
    int8_t q[256];
    float scale[16], min[16];
} Unpacked;

static inline void unpack_q4_0(Unpacked *u, const void *block) {
    const BlockQ4_0 *b = block;
    for (int j = 0; j < 16; j++) {
        u->q[j] = (int8_t)((b->qs[j] & 15) - 8);
        u->q[j + 16] = (int8_t)((b->qs[j] >> 4) - 8);
    }
    u->scale[0] = u->scale[1] = half_of(b->d);
}

static inline void unpack_q4_1(Unpacked *u, const void *block) {
    const BlockQ4_1 *b = block;
    for (int j = 0; j < 16; j++) {
        u->q[j] = b->qs[j] & 15;
        u->q[j + 16] = (int8_t)(b->qs[j] >> 4);
    }
    u->scale[0] = u->scale[1] = half_of(b->d);
    u->min[0] = u->min[1] = half_of(b->m);
}

static inline void unpack_q5_0(Unpacked *u, const void *block) {
    const BlockQ5_0 *b = block;
    const uint32_t qh = b->qh;
    for (int j = 0; j < 16; j++) {
        u->q[j] = (int8_t)((b->qs[j] & 15) + (int)(qh >> j & 1) * 16 - 16);
        u->q[j + 16] = (int8_t)((b->qs[j] >> 4) + (int)(qh >> (j + 16) & 1) * 16 - 16);
    }
    u->scale[0] = u->scale[1] = half_of(b->d);
}

static inline void unpack_q5_1(Unpacked *u, const void *block) {
    const BlockQ5_1 *b = block;
    const uint32_t qh = b->qh;
    for (int j = 0; j < 16; j++) {
        u->q[j] = (int8_t)((b->qs[j] & 15) + (int)(qh >> j & 1) * 16);
        u->q[j + 16] = (int8_t)((b->qs[j] >> 4) + (int)(qh >> (j + 16) & 1) * 16);
    }
    u->scale[0] = u->scale[1] = half_of(b->d);
    u->min[0] = u->min[1] = half_of(b->m);
}

static inline void unpack_q8_0(Unpacked *u, const void *block) {
    const BlockQ8_0 *b = block;
    memcpy(u->q, b->qs, 32);
    u->scale[0] = u->scale[1] = half_of(b->d);
}

static inline void unpack_iq4_nl(Unpacked *u, const void *block) {
    const BlockIQ4_NL *b = block;
    for (int j = 0; j < 16; j++) {
        u->q[j] = IQ4_VALUES[b->qs[j] & 15];
        u->q[j + 16] = IQ4_VALUES[b->qs[j] >> 4];
    }
    u->scale[0] = u->scale[1] = half_of(b->d);
}

static inline void unpack_mxfp4(Unpacked *u, const void *block) {
    const BlockMXFP4 *b = block;
    for (int j = 0; j < 16; j++) {
        u->q[j] = MXFP4_VALUES[b->qs[j] & 15];
        u->q[j + 16] = MXFP4_VALUES[b->qs[j] >> 4];
    }
    u->scale[0] = u->scale[1] = mxfp4_scale(b->e);
}

static inline void unpack_q2_k(Unpacked *u, const void *block) {
    const BlockQ2_K *b = block;
    const float d = half_of(b->d), dmin = half_of(b->dmin);
    for (int g = 0; g < 8; g++)
        for (int l = 0; l < 32; l++) u->q[g * 32 + l] = b->qs[g / 4 * 32 + l] >> (g % 4 * 2) & 3;
    for (int g = 0; g < 16; g++) {
        u->scale[g] = d * (float)(b->scales[g] & 15);
        u->min[g] = -dmin * (float)(b->scales[g] >> 4);
    }
}

static inline void unpack_q3_k(Unpacked *u, const void *block) {
    const BlockQ3_K *b = block;
    const float d = half_of(b->d);
    for (int g = 0; g < 8; g++)
        for (int l = 0; l < 32; l++) u->q[g * 32 + l] = (int8_t)((b->qs[g / 4 * 32 + l] >> (g % 4 * 2) & 3) + (b->hmask[l] >> g & 1) * 4 - 4);
    for (int g = 0; g < 16; g++) {
        const int low = g < 8 ? b->scales[g] & 15 : b->scales[g - 8] >> 4;
        const int top = b->scales[8 + g % 4] >> (g / 4 * 2) & 3;
        u->scale[g] = d * (float)(low + top * 16 - 32);
    }
}

static inline void scales_k4(Unpacked *u, const uint8_t packed[12], float d, float dmin) { // as unpack_scales_k4, four at a time
    uint32_t a[3];
    memcpy(a, packed, sizeof a);
    const uint32_t scales[2] = {a[0] & 0x3f3f3f3f, (a[2] & 0x0f0f0f0f) | (a[0] >> 2 & 0x30303030)};
    const uint32_t mins[2] = {a[1] & 0x3f3f3f3f, (a[2] >> 4 & 0x0f0f0f0f) | (a[1] >> 2 & 0x30303030)};
    twice_scaled(u->scale, (const uint8_t *)scales, d);
    twice_scaled(u->min, (const uint8_t *)mins, -dmin);
}

static inline void unpack_q4_k(Unpacked *u, const void *block) {
    const BlockQ4_K *b = block;
    for (int g = 0; g < 8; g++)
        for (int l = 0; l < 32; l++) u->q[g * 32 + l] = b->qs[g / 2 * 32 + l] >> (g % 2 * 4) & 15;
    scales_k4(u, b->scales, half_of(b->d), half_of(b->dmin));
}

static inline void unpack_q5_k(Unpacked *u, const void *block) {
    const BlockQ5_K *b = block;
    for (int g = 0; g < 8; g++)
        for (int l = 0; l < 32; l++) u->q[g * 32 + l] = (int8_t)((b->qs[g / 2 * 32 + l] >> (g % 2 * 4) & 15) + (b->qh[l] >> g & 1) * 16);
    scales_k4(u, b->scales, half_of(b->d), half_of(b->dmin));
}

static inline void unpack_q6_k(Unpacked *u, const void *block) {
    const BlockQ6_K *b = block;
    const float d = half_of(b->d);
    for (int h = 0; h < 2; h++)
        for (int g = 0; g < 4; g++)
            for (int l = 0; l < 32; l++)
                u->q[h * 128 + g * 32 + l] = (int8_t)((b->ql[h * 64 + g % 2 * 32 + l] >> (g / 2 * 4) & 15) + (b->qh[h * 32 + l] >> (2 * g) & 3) * 16 - 32);
    for (int g = 0; g < 16; g++) u->scale[g] = d * (float)b->scales[g];
}

static inline void unpack_iq4_xs(Unpacked *u, const void *block) {
    const BlockIQ4_XS *b = block;
    const float d = half_of(b->d);
    const int high = b->scales_h;
    for (int g = 0; g < 8; g++) {
        for (int j = 0; j < 16; j++) {
            u->q[g * 32 + j] = IQ4_VALUES[b->qs[g * 16 + j] & 15];
            u->q[g * 32 + j + 16] = IQ4_VALUES[b->qs[g * 16 + j] >> 4];
        }
        u->scale[2 * g] = u->scale[2 * g + 1] = d * (float)((b->scales_l[g / 2] >> (g % 2 * 4) & 15) + (high >> (g * 2) & 3) * 16 - 32);
    }
}

#endif
