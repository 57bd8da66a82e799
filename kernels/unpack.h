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
static inline void scaled(float to[16], const int8_t v[16], float d) { // to[i] = d * v[i]
    for (int i = 0; i < 16; i += 8)
        _mm256_storeu_ps(to + i, _mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(v + i)))), _mm256_set1_ps(d)));
}
// q[i] = code i: the lower halves of the bytes, then the upper ones
static inline __m256i nibbles_of(const uint8_t qs[16]) {
    const __m128i x = _mm_loadu_si128((const void *)qs);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(x, 4), x), _mm256_set1_epi8(15));
}
static inline void nibbles(int8_t q[32], const uint8_t qs[16], int less) { // q[i] = code - less
    _mm256_storeu_si256((void *)q, _mm256_sub_epi8(nibbles_of(qs), _mm256_set1_epi8((char)less)));
}
static inline void nibbles_with_bits(int8_t q[32], const uint8_t qs[16], uint32_t bits, int less) { // q[i] = code + 16 bit i - less
    const __m256i at = _mm256_setr_epi64x(0, 0x0101010101010101, 0x0202020202020202, 0x0303030303030303), each = _mm256_set1_epi64x((int64_t)0x8040201008040201);
    const __m256i clear = _mm256_cmpeq_epi8(_mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), at), each), _mm256_setzero_si256());
    const __m256i code = _mm256_or_si256(nibbles_of(qs), _mm256_andnot_si256(clear, _mm256_set1_epi8(16)));
    _mm256_storeu_si256((void *)q, _mm256_sub_epi8(code, _mm256_set1_epi8((char)less)));
}
static inline void nibbles_in(int8_t q[32], const uint8_t qs[16], const int8_t table[16]) { // q[i] = table[code]
    _mm256_storeu_si256((void *)q, _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(_mm_loadu_si128((const void *)table)), nibbles_of(qs)));
}
#else
static inline void scaled(float to[16], const int8_t v[16], float d) {
    for (int i = 0; i < 16; i++) to[i] = d * (float)v[i];
}
static inline void nibbles(int8_t q[32], const uint8_t qs[16], int less) {
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)((qs[j] & 15) - less);
        q[j + 16] = (int8_t)((qs[j] >> 4) - less);
    }
}
static inline void nibbles_with_bits(int8_t q[32], const uint8_t qs[16], uint32_t bits, int less) {
    for (int j = 0; j < 16; j++) {
        q[j] = (int8_t)((qs[j] & 15) + (int)(bits >> j & 1) * 16 - less);
        q[j + 16] = (int8_t)((qs[j] >> 4) + (int)(bits >> (j + 16) & 1) * 16 - less);
    }
}
static inline void nibbles_in(int8_t q[32], const uint8_t qs[16], const int8_t table[16]) {
    for (int j = 0; j < 16; j++) {
        q[j] = table[qs[j] & 15];
        q[j + 16] = table[qs[j] >> 4];
    }
}
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
    nibbles(u->q, b->qs, 8);
    u->scale[0] = u->scale[1] = half_of(b->d);
}

static inline void unpack_q4_1(Unpacked *u, const void *block) {
    const BlockQ4_1 *b = block;
    nibbles(u->q, b->qs, 0);
    u->scale[0] = u->scale[1] = half_of(b->d);
    u->min[0] = u->min[1] = half_of(b->m);
}

static inline void unpack_q5_0(Unpacked *u, const void *block) {
    const BlockQ5_0 *b = block;
    nibbles_with_bits(u->q, b->qs, b->qh, 16);
    u->scale[0] = u->scale[1] = half_of(b->d);
}

static inline void unpack_q5_1(Unpacked *u, const void *block) {
    const BlockQ5_1 *b = block;
    nibbles_with_bits(u->q, b->qs, b->qh, 0);
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
    nibbles_in(u->q, b->qs, IQ4_VALUES);
    u->scale[0] = u->scale[1] = half_of(b->d);
}

static inline void unpack_mxfp4(Unpacked *u, const void *block) {
    const BlockMXFP4 *b = block;
    nibbles_in(u->q, b->qs, MXFP4_VALUES);
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
    uint32_t packed[3], four[4]; // scales g .. g + 3: four bits of each, and two above them
    int8_t scale[16];
    memcpy(packed, b->scales, sizeof packed);
    for (int k = 0; k < 4; k++) four[k] = (packed[k % 2] >> (k / 2 * 4) & 0x0f0f0f0f) | (packed[2] >> (2 * k) & 0x03030303) << 4;
    memcpy(scale, four, sizeof scale);
    for (int g = 0; g < 16; g++) scale[g] = (int8_t)(scale[g] - 32);
    scaled(u->scale, scale, d);
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
    scaled(u->scale, b->scales, d);
}

static inline void unpack_iq4_xs(Unpacked *u, const void *block) {
    const BlockIQ4_XS *b = block;
    const float d = half_of(b->d);
    const int high = b->scales_h;
    for (int g = 0; g < 8; g++) {
        nibbles_in(u->q + 32 * g, b->qs + 16 * g, IQ4_VALUES);
        u->scale[2 * g] = u->scale[2 * g + 1] = d * (float)((b->scales_l[g / 2] >> (g % 2 * 4) & 15) + (high >> (g * 2) & 3) * 16 - 32);
    }
}

#endif
