// dot_x86.h: the dot products with 256-bit vectors; included by dot_avx2.c, dot_avxvnni.c and dot_avx512vnni.c, each compiled
// for its own level. Before including, a file defines
//   DPBUSD(acc, u, s)   acc + the sums of four products u8 * i8 per 32-bit lane, where the level has VNNI; else nothing
//   DOT_OWN             where the level has functions of its own for the rounded formats
//   DOT_BELOW           the table of a lower level whose functions for floats, for blocks of 256 and for rounding x serve here, too
// Everything here is static: no code of a higher level can be linked into a lower one.
//
// How a block of 32 weights meets a row of activations: codes (u8) times q (i8) give eight 32-bit lanes; these become float,
// are multiplied by the scales of the weights and of the activations and added to eight float lanes that are summed at the end
// of the row. Integer scales of weights (blocks of 256) are multiplied in before, while the lanes are integers.
#ifndef DOT_X86_H
#define DOT_X86_H

#include <immintrin.h>
#include <math.h>
#include "dot.h"

#define INLINE static inline __attribute__((always_inline))

INLINE __m256i load256(const void *p) { return _mm256_loadu_si256(p); }
INLINE __m128i load128(const void *p) { return _mm_loadu_si128(p); }
INLINE float half_to_float(F16 h) { return _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(h))); }

INLINE float sum_lanes(__m256 v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}

// The two activation scales of a block of 32, alternating.
INLINE __m256 both_scales(const float *d) {
    double pair;
    memcpy(&pair, d, sizeof pair);
    return _mm256_castpd_ps(_mm256_set1_pd(pair));
}

// Eight lanes, lane i = sum of w[4i..4i+3] x[4i..4i+3]; w unsigned. Pairs stay below 2^15 while w <= 128 and |x| <= 127.
INLINE __m256i dot_unsigned(__m256i w, __m256i x) {
#ifdef DPBUSD
    return DPBUSD(_mm256_setzero_si256(), w, x);
#else
    return _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), _mm256_set1_epi16(1));
#endif
}

// The same for signed w: |w| times x with w's sign. |-128| is 128 as an unsigned byte, so every code is right.
INLINE __m256i dot_signed(__m256i w, __m256i x) { return dot_unsigned(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }

// 16 bytes -> 32 codes: low halves first, as in all formats with blocks of 32.
INLINE __m256i nibbles(const uint8_t *qs) {
    const __m128i raw = load128(qs);
    return _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16(raw, 4), raw), _mm256_set1_epi8(15));
}

// 32 bits -> 32 bytes of 0 or 16.
INLINE __m256i fifth_bits(uint32_t bits) {
    const __m256i byte = _mm256_setr_epi8(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3, 3, 3);
    const __m256i bit = _mm256_set1_epi64x((long long)0x8040201008040201ULL);
    const __m256i spread = _mm256_and_si256(_mm256_shuffle_epi8(_mm256_set1_epi32((int)bits), byte), bit);
    return _mm256_and_si256(_mm256_cmpeq_epi8(spread, bit), _mm256_set1_epi8(16));
}

INLINE __m256i look_up(const int8_t table[16], __m256i codes) {
    return _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(load128(table)), codes);
}

// -- streams of weight rows ------------------------------------------------------------------------------------------------

// Four rows at a time, a quarter of the tile apart: memory is read faster in several long streams. Rows left over are taken alone:
// as four times the same one, so that every output has the same arithmetic.
typedef struct {
    const char *w;  // the first row; the others follow at
    int64_t stride; // bytes
    int o, apart;   // which row it is, and the distance in rows
} Streams;
INLINE int rows_for(const int n_x) { return n_x == 1 ? DOT_STREAMS : 1; } // with more of x there are no registers for it, and less need
INLINE int n_streams(const DotTile *t, const int n_row) { return t->n_w / n_row + t->n_w % n_row; }
INLINE Streams streams_at(const DotTile *t, const int n_row, int i) {
    const int n = t->n_w / n_row, o = i < n ? i : (n_row - 1) * n + i, apart = i < n ? n : 0;
    return (Streams){(const char *)t->w + o * t->w_stride, apart * t->w_stride, o, apart};
}

// -- blocks of 32: one scale d, perhaps one minimum m ---------------------------------------------------------------------

typedef struct {
    __m256i code;
    float d, m;
} Block32;
typedef Block32 Unpack32(const char *block);

INLINE Block32 unpack_q4_0(const char *p) {
    const BlockQ4_0 *b = (const void *)p;
    return (Block32){_mm256_sub_epi8(nibbles(b->qs), _mm256_set1_epi8(8)), half_to_float(b->d), 0};
}
INLINE Block32 unpack_q4_1(const char *p) {
    const BlockQ4_1 *b = (const void *)p;
    return (Block32){nibbles(b->qs), half_to_float(b->d), half_to_float(b->m)};
}
INLINE Block32 unpack_q5_0(const char *p) {
    const BlockQ5_0 *b = (const void *)p;
    return (Block32){_mm256_sub_epi8(_mm256_or_si256(nibbles(b->qs), fifth_bits(b->qh)), _mm256_set1_epi8(16)), half_to_float(b->d), 0};
}
INLINE Block32 unpack_q5_1(const char *p) {
    const BlockQ5_1 *b = (const void *)p;
    return (Block32){_mm256_or_si256(nibbles(b->qs), fifth_bits(b->qh)), half_to_float(b->d), half_to_float(b->m)};
}
INLINE Block32 unpack_q8_0(const char *p) {
    const BlockQ8_0 *b = (const void *)p;
    return (Block32){load256(b->qs), half_to_float(b->d), 0};
}
INLINE Block32 unpack_iq4_nl(const char *p) {
    const BlockIQ4_NL *b = (const void *)p;
    return (Block32){look_up(IQ4_VALUES, nibbles(b->qs)), half_to_float(b->d), 0};
}
INLINE Block32 unpack_mxfp4(const char *p) {
    const BlockMXFP4 *b = (const void *)p;
    const uint32_t bits = b->e < 2 ? 0x00200000u << b->e : (uint32_t)(b->e - 1) << 23; // mxfp4_scale
    return (Block32){look_up(MXFP4_VALUES, nibbles(b->qs)), _mm_cvtss_f32(_mm_castsi128_ps(_mm_cvtsi32_si128((int)bits))), 0};
}

INLINE void tile_32(const DotTile *t, const int n_x, const int bytes, const bool affine, Unpack32 *unpack) {
    const int n_block = t->n_col / 32, n_row = rows_for(n_x);
    for (int i = 0; i < n_streams(t, n_row); i++) {
        const Streams s = streams_at(t, n_row, i);
        const char *w = s.w;
        __m256 acc[DOT_STREAMS][DOT_ROWS][2];
        float min[DOT_STREAMS][DOT_ROWS];
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) {
                acc[m][r][0] = acc[m][r][1] = _mm256_setzero_ps();
                min[m][r] = 0;
            }
        for (int at = 0; at < n_block; at += 2)
            for (int odd = 0; odd < 2 && at + odd < n_block; odd++, w += bytes)
                for (int m = 0; m < n_row; m++) {
                    _mm_prefetch(w + m * s.stride + PREFETCH, _MM_HINT_T0);
                    const Block32 b = unpack(w + m * s.stride);
                    for (int r = 0; r < n_x; r++) {
                        const __m256i x = load256(act8_codes(t->x[r]) + (at + odd) * 32);
                        const __m256 d = both_scales(act8_scales(t->x[r], t->n_col) + (at + odd) * 2);
                        const __m256 lanes = _mm256_cvtepi32_ps(affine ? dot_unsigned(b.code, x) : dot_signed(b.code, x));
                        acc[m][r][odd] = _mm256_fmadd_ps(lanes, _mm256_mul_ps(_mm256_set1_ps(b.d), d), acc[m][r][odd]);
                        if (affine) {
                            const float *sum = act8_sums(t->x[r], t->n_col) + (at + odd) * 2;
                            min[m][r] = fmaf(b.m, sum[0] + sum[1], min[m][r]);
                        }
                    }
                }
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) t->y[r * t->y_stride + s.o + m * s.apart] = sum_lanes(_mm256_add_ps(acc[m][r][0], acc[m][r][1])) + min[m][r];
    }
}

// -- blocks of 256: eight groups of 32, scaled per 32 or per 16 elements --------------------------------------------------

typedef struct {
    __m256i scale16; // integer scales: 16 x i16, or the first 8 for groups of 32; times d
    __m256i min16;   // 16 x i16, or 8 for groups of 32; times min_scale, times the sums of x: subtracted
    float d, min_scale;
} Head256;
typedef Head256 UnpackHead(const char *block);
typedef __m256i UnpackGroup(const char *block, const int group); // 32 codes

typedef enum { SCALE_32, SCALE_32_SIGNED, SCALE_16 } Scaling; // per 32 with unsigned codes, with signed codes; per 16, unsigned

INLINE __m256 floats_of(__m128i v) { return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(v)); }
// Sums of 16 elements, two to a group -> sums of the eight groups
INLINE __m256 sums_of_groups(__m256 a, __m256 b) {
    const __m256 each = _mm256_hadd_ps(a, b); // groups 0 1 4 5 2 3 6 7
    return _mm256_castpd_ps(_mm256_permute4x64_pd(_mm256_castps_pd(each), 0xd8));
}
INLINE __m256i pairs_signed(__m256i w, __m256i x) { return _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w)); }

// The scales of weights are integers: they take the place of the ones that sums of two products are summed with.
INLINE void tile_256(const DotTile *t, const int n_x, const int bytes, const Scaling scaling, UnpackHead *head, UnpackGroup *group) {
    // byte indices that spread the i16 scales 2g and 2g + 1 of a 128-bit half over the lanes of group g
    const __m256i spread = _mm256_setr_epi8(0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3, 2, 3);
    const int n_row = rows_for(n_x);
    for (int i = 0; i < n_streams(t, n_row); i++) {
        const Streams s = streams_at(t, n_row, i);
        const char *w = s.w;
        __m256 acc[DOT_STREAMS][DOT_ROWS];
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) acc[m][r] = _mm256_setzero_ps();
        for (int at = 0; at < t->n_col; at += 256, w += bytes) {
            const int8_t *q[DOT_ROWS];
            const float *scale[DOT_ROWS];
            __m256 sums[DOT_ROWS][2]; // of 16 elements each, or in the first of 32
            for (int r = 0; r < n_x; r++) {
                const float *sum = act8_sums(t->x[r], t->n_col) + at / 16;
                q[r] = act8_codes(t->x[r]) + at;
                scale[r] = act8_scales(t->x[r], t->n_col) + at / 16;
                sums[r][0] = _mm256_loadu_ps(sum), sums[r][1] = _mm256_loadu_ps(sum + 8);
                if (scaling == SCALE_32) sums[r][0] = sums_of_groups(sums[r][0], sums[r][1]);
            }
#pragma GCC unroll 4
            for (int m = 0; m < n_row; m++) {
                const char *p = w + m * s.stride;
                const Head256 h = head(p);
                for (int line = 0; line < bytes; line += 64) _mm_prefetch(p + PREFETCH + line, _MM_HINT_T0);
                const __m128i first = _mm256_castsi256_si128(h.scale16);
                uint32_t twice[8]; // the scale of a group in both halves of a lane, to be loaded: shuffles would wait for their one port
                if (scaling != SCALE_16)
                    _mm256_storeu_si256((void *)twice, _mm256_set_m128i(_mm_unpackhi_epi16(first, first), _mm_unpacklo_epi16(first, first)));
                __asm__("" : "+m"(twice)); // or compilers take the vector apart again
                const __m256i low = _mm256_permute4x64_epi64(h.scale16, 0x44), high = _mm256_permute4x64_epi64(h.scale16, 0xee);
                __m256 block[DOT_ROWS]; // sums before they are multiplied by d
#pragma GCC unroll 8
                for (int g = 0; g < 8; g++) {
                    const __m256i code = group(p, g);
                    const __m256i s16 = scaling == SCALE_16 ? _mm256_shuffle_epi8(g < 4 ? low : high, _mm256_add_epi8(spread, _mm256_set1_epi8((char)(g % 4 * 4))))
                                                            : _mm256_set1_epi32((int)twice[g]);
                    for (int r = 0; r < n_x; r++) {
                        const __m256i x = load256(q[r] + 32 * g);
                        const __m256i pairs = scaling == SCALE_32_SIGNED ? pairs_signed(code, x) : _mm256_maddubs_epi16(code, x);
                        const __m256 lanes = _mm256_cvtepi32_ps(_mm256_madd_epi16(pairs, s16)), d = both_scales(scale[r] + 2 * g);
                        block[r] = g ? _mm256_fmadd_ps(lanes, d, block[r]) : _mm256_mul_ps(lanes, d);
                    }
                }
                for (int r = 0; r < n_x; r++) {
                    acc[m][r] = _mm256_fmadd_ps(block[r], _mm256_set1_ps(h.d), acc[m][r]);
                    if (scaling == SCALE_32_SIGNED) continue;
                    const __m256 min = floats_of(_mm256_castsi256_si128(h.min16));
                    __m256 mins = _mm256_mul_ps(min, sums[r][0]);
                    if (scaling == SCALE_16) mins = _mm256_fmadd_ps(floats_of(_mm256_extracti128_si256(h.min16, 1)), sums[r][1], mins);
                    acc[m][r] = _mm256_fnmadd_ps(mins, _mm256_set1_ps(h.min_scale), acc[m][r]);
                }
            }
        }
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) t->y[r * t->y_stride + s.o + m * s.apart] = sum_lanes(acc[m][r]);
    }
}

INLINE __m256i bits_at(__m256i bytes, int shift, int mask) { // (byte >> shift) & mask, for masks that cut off the neighbour's bits
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8((char)mask));
}

INLINE Head256 head_q2_k(const char *p) {
    const BlockQ2_K *b = (const void *)p;
    const __m128i packed = load128(b->scales);
    return (Head256){
        .d = half_to_float(b->d),
        .scale16 = _mm256_cvtepu8_epi16(_mm_and_si128(packed, _mm_set1_epi8(15))),
        .min16 = _mm256_cvtepu8_epi16(_mm_and_si128(_mm_srli_epi16(packed, 4), _mm_set1_epi8(15))),
        .min_scale = half_to_float(b->dmin),
    };
}
INLINE __m256i group_q2_k(const char *p, const int g) { return bits_at(load256(((const BlockQ2_K *)(const void *)p)->qs + g / 4 * 32), g % 4 * 2, 3); }

INLINE __m128i scales_q3_k(const uint8_t packed[12]) { // 16 x i8
    uint32_t a[3]; // scale j: four low bits in byte j % 8, low half for j < 8; two top bits in byte 8 + j % 4 at 2 (j / 4)
    memcpy(a, packed, 12);
    const __m128i low = _mm_setr_epi32((int)a[0], (int)a[1], (int)(a[0] >> 4), (int)(a[1] >> 4));
    const __m128i top = _mm_setr_epi32((int)(a[2] << 4), (int)(a[2] << 2), (int)a[2], (int)(a[2] >> 2));
    return _mm_sub_epi8(_mm_or_si128(_mm_and_si128(low, _mm_set1_epi8(15)), _mm_and_si128(top, _mm_set1_epi8(48))), _mm_set1_epi8(32));
}
INLINE Head256 head_q3_k(const char *p) {
    const BlockQ3_K *b = (const void *)p;
    const __m256i scale16 = _mm256_cvtepi8_epi16(scales_q3_k(b->scales));
    const float d = half_to_float(b->d);
    return (Head256){.d = d, .scale16 = scale16, .min16 = scale16, .min_scale = 4 * d};
}
INLINE __m256i group_q3_k(const char *p, const int g) {
    const BlockQ3_K *b = (const void *)p;
    const __m256i high = load256(b->hmask);
    const __m256i third = g < 2 ? _mm256_slli_epi16(high, 2 - g) : _mm256_srli_epi16(high, g < 2 ? 0 : g - 2);
    return _mm256_or_si256(bits_at(load256(b->qs + g / 4 * 32), g % 4 * 2, 3), _mm256_and_si256(third, _mm256_set1_epi8(4)));
}

// Scales and mins of Q4_K and Q5_K, four bytes at a time; see unpack_scales_k4. p: d, dmin, scales[12]
INLINE Head256 head_k4(const char *p) {
    const __m128i all = load128(p);
    const __m128i low = _mm_shuffle_epi32(all, _MM_SHUFFLE(3, 2, 3, 1)), low_bits = _mm_blend_epi32(low, _mm_srli_epi32(low, 4), 8);
    const __m128i top = _mm_srli_epi32(_mm_shuffle_epi32(all, _MM_SHUFFLE(2, 2, 1, 1)), 2);
    const __m128i bytes = _mm_or_si128(_mm_and_si128(low_bits, _mm_setr_epi32(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f)),
                                       _mm_and_si128(top, _mm_setr_epi32(0, 0x30303030, 0, 0x30303030)));
    const __m256i words = _mm256_cvtepu8_epi16(bytes);
    const __m128 d = _mm_cvtph_ps(all);
    return (Head256){.scale16 = words, .min16 = _mm256_castsi128_si256(_mm256_extracti128_si256(words, 1)), .d = _mm_cvtss_f32(d), .min_scale = _mm_cvtss_f32(_mm_movehdup_ps(d))};
}
INLINE __m256i group_q4_k(const char *p, const int g) { return bits_at(load256(((const BlockQ4_K *)(const void *)p)->qs + g / 2 * 32), g % 2 * 4, 15); }

INLINE __m256i group_q5_k(const char *p, const int g) {
    const BlockQ5_K *b = (const void *)p;
    const __m256i high = load256(b->qh);
    const __m256i fifth = g < 4 ? _mm256_slli_epi16(high, 4 - g) : _mm256_srli_epi16(high, g < 4 ? 0 : g - 4);
    return _mm256_or_si256(bits_at(load256(b->qs + g / 2 * 32), g % 2 * 4, 15), _mm256_and_si256(fifth, _mm256_set1_epi8(16)));
}

INLINE Head256 head_q6_k(const char *p) {
    const BlockQ6_K *b = (const void *)p;
    const __m256i scale16 = _mm256_cvtepi8_epi16(load128(b->scales));
    const float d = half_to_float(b->d);
    return (Head256){.d = d, .scale16 = scale16, .min16 = scale16, .min_scale = 32 * d};
}
INLINE __m256i group_q6_k(const char *p, const int g) {
    const BlockQ6_K *b = (const void *)p;
    const int half = g / 4, in_half = g % 4;
    const __m256i high = load256(b->qh + half * 32);
    const __m256i top = in_half < 2 ? _mm256_slli_epi16(high, 4 - 2 * in_half) : _mm256_srli_epi16(high, in_half < 2 ? 0 : 2 * in_half - 4);
    return _mm256_or_si256(bits_at(load256(b->ql + half * 64 + in_half % 2 * 32), in_half / 2 * 4, 15), _mm256_and_si256(top, _mm256_set1_epi8(48)));
}

INLINE Head256 head_iq4_xs(const char *p) {
    const BlockIQ4_XS *b = (const void *)p;
    uint32_t low;
    memcpy(&low, b->scales_l, 4);
    const __m256i low_bits = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32((int)low), _mm256_setr_epi32(0, 4, 8, 12, 16, 20, 24, 28)), _mm256_set1_epi32(15));
    const __m256i top = _mm256_and_si256(_mm256_srlv_epi32(_mm256_set1_epi32(b->scales_h), _mm256_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14)), _mm256_set1_epi32(3));
    const __m256i scales = _mm256_sub_epi32(_mm256_or_si256(low_bits, _mm256_slli_epi32(top, 4)), _mm256_set1_epi32(32));
    const __m128i words = _mm_packs_epi32(_mm256_castsi256_si128(scales), _mm256_extracti128_si256(scales, 1));
    return (Head256){.scale16 = _mm256_castsi128_si256(words), .d = half_to_float(b->d)};
}
INLINE __m256i group_iq4_xs(const char *p, const int g) { return look_up(IQ4_VALUES, nibbles(((const BlockIQ4_XS *)(const void *)p)->qs + g * 16)); }

// -- float weights --------------------------------------------------------------------------------------------------------

INLINE __m256 load_weights(const char *p, const TensorType type) { // eight of them
    if (type == TYPE_F32) return _mm256_loadu_ps((const void *)p);
    if (type == TYPE_F16) return _mm256_cvtph_ps(load128(p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(load128(p)), 16));
}

INLINE void tile_float(const DotTile *t, const int n_x, const TensorType type) {
    const int bytes = type == TYPE_F32 ? 4 : 2, line = 64 / bytes, n_row = rows_for(n_x); // line: weights in 64 bytes
    for (int i = 0; i < n_streams(t, n_row); i++) {
        const Streams s = streams_at(t, n_row, i);
        const char *w = s.w;
        __m256 acc[DOT_STREAMS][DOT_ROWS][2];
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) acc[m][r][0] = acc[m][r][1] = _mm256_setzero_ps();
        int at = 0;
        for (; at + line <= t->n_col; at += line, w += 64)
            for (int m = 0; m < n_row; m++) {
                _mm_prefetch(w + m * s.stride + PREFETCH, _MM_HINT_T0);
                for (int k = 0; k < line / 8; k++) {
                    const __m256 v = load_weights(w + m * s.stride + 8 * k * bytes, type);
                    for (int r = 0; r < n_x; r++) acc[m][r][k % 2] = _mm256_fmadd_ps(v, _mm256_loadu_ps((const float *)t->x[r] + at + 8 * k), acc[m][r][k % 2]);
                }
            }
        for (; at < t->n_col; at += 8, w += 8 * bytes) { // the last columns, filled up with zeros
            const int n = min_int(8, t->n_col - at);
            for (int m = 0; m < n_row; m++) {
                char rest[32] = {0};
                memcpy(rest, w + m * s.stride, (size_t)(n * bytes));
                for (int r = 0; r < n_x; r++) {
                    float x[8] = {0};
                    memcpy(x, (const float *)t->x[r] + at, sizeof(float) * (size_t)n);
                    acc[m][r][0] = _mm256_fmadd_ps(load_weights(rest, type), _mm256_loadu_ps(x), acc[m][r][0]);
                }
            }
        }
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) t->y[r * t->y_stride + s.o + m * s.apart] = sum_lanes(_mm256_add_ps(acc[m][r][0], acc[m][r][1]));
    }
}

// -- activations ----------------------------------------------------------------------------------------------------------

#ifdef DOT_BELOW
static void quantize(void *act8, const float *x, int n_col) { DOT_BELOW->quantize(act8, x, n_col); }
#else
static void quantize(void *act8, const float *x, int n_col) {
    int8_t *q = act8;
    float *d = (float *)((char *)act8 + n_col), *sum = d + n_col / 16;
    const __m256 sign = _mm256_set1_ps(-0.0f), c127 = _mm256_set1_ps(127), smallest = _mm256_set1_ps(ACT8_SMALLEST);
    for (int at = 0; at < n_col; at += 32) {
        __m256 v[4];
        for (int k = 0; k < 4; k++) v[k] = _mm256_loadu_ps(x + at + 8 * k);
        __m256 top = _mm256_max_ps(_mm256_max_ps(_mm256_andnot_ps(sign, v[0]), _mm256_andnot_ps(sign, v[1])),
                                   _mm256_max_ps(_mm256_andnot_ps(sign, v[2]), _mm256_andnot_ps(sign, v[3])));
        top = _mm256_max_ps(top, _mm256_permute_ps(top, 0x4e)); // the lower 128 bits belong to one scale, the upper to the other
        top = _mm256_max_ps(top, _mm256_permute_ps(top, 0xb1));
        const __m256 inverse = _mm256_and_ps(_mm256_cmp_ps(top, smallest, _CMP_GT_OQ), _mm256_div_ps(c127, top)), scale = _mm256_div_ps(top, c127);
        _mm_storel_pi((void *)(d + at / 16), _mm_unpacklo_ps(_mm256_castps256_ps128(scale), _mm256_extractf128_ps(scale, 1)));
        __m256i c[4];
        for (int k = 0; k < 4; k++) c[k] = _mm256_cvtps_epi32(_mm256_mul_ps(v[k], inverse)); // nearest, ties to even
        // the packs work inside 128-bit halves: their dwords come out as 0 2 4 6 1 3 5 7 of the eight
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[1]), _mm256_packs_epi32(c[2], c[3]));
        _mm256_storeu_si256((void *)(q + at), _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
        for (int g = 0; g < 2; g++) sum[at / 16 + g] = sum_lanes(_mm256_mul_ps(_mm256_cvtepi32_ps(_mm256_add_epi32(c[2 * g], c[2 * g + 1])), scale));
    }
}
#endif

// -- one function per type and per number of activation rows --------------------------------------------------------------

#define BY_ROWS(name, tile, ...)                 \
    static void name(const DotTile *t) {         \
        switch (t->n_x) {                        \
        case 1: tile(t, 1, __VA_ARGS__); break;  \
        case 2: tile(t, 2, __VA_ARGS__); break;  \
        case 3: tile(t, 3, __VA_ARGS__); break;  \
        default: tile(t, 4, __VA_ARGS__); break; \
        }                                        \
    }

#define BELOW(name, type) static void name(const DotTile *t) { DOT_BELOW->of[type](t); }

#ifdef DOT_BELOW
BELOW(dot_f32, TYPE_F32)
BELOW(dot_f16, TYPE_F16)
BELOW(dot_bf16, TYPE_BF16)
#else
BY_ROWS(dot_f32, tile_float, TYPE_F32)
BY_ROWS(dot_f16, tile_float, TYPE_F16)
BY_ROWS(dot_bf16, tile_float, TYPE_BF16)
#endif
#ifdef DOT_OWN
static Dot dot_q4_0, dot_q4_1, dot_q5_0, dot_q5_1, dot_q8_0, dot_iq4_nl, dot_mxfp4, dot_q2_k, dot_q3_k, dot_q4_k, dot_q5_k, dot_q6_k, dot_iq4_xs;
#else
BY_ROWS(dot_q4_0, tile_32, sizeof(BlockQ4_0), false, unpack_q4_0)
BY_ROWS(dot_q4_1, tile_32, sizeof(BlockQ4_1), true, unpack_q4_1)
BY_ROWS(dot_q5_0, tile_32, sizeof(BlockQ5_0), false, unpack_q5_0)
BY_ROWS(dot_q5_1, tile_32, sizeof(BlockQ5_1), true, unpack_q5_1)
BY_ROWS(dot_q8_0, tile_32, sizeof(BlockQ8_0), false, unpack_q8_0)
BY_ROWS(dot_iq4_nl, tile_32, sizeof(BlockIQ4_NL), false, unpack_iq4_nl)
BY_ROWS(dot_mxfp4, tile_32, sizeof(BlockMXFP4), false, unpack_mxfp4)
#ifdef DOT_BELOW
BELOW(dot_q2_k, TYPE_Q2_K)
BELOW(dot_q3_k, TYPE_Q3_K)
BELOW(dot_q4_k, TYPE_Q4_K)
BELOW(dot_q5_k, TYPE_Q5_K)
BELOW(dot_q6_k, TYPE_Q6_K)
BELOW(dot_iq4_xs, TYPE_IQ4_XS)
#else
BY_ROWS(dot_q2_k, tile_256, sizeof(BlockQ2_K), SCALE_16, head_q2_k, group_q2_k)
BY_ROWS(dot_q3_k, tile_256, sizeof(BlockQ3_K), SCALE_16, head_q3_k, group_q3_k)
BY_ROWS(dot_q4_k, tile_256, sizeof(BlockQ4_K), SCALE_32, head_k4, group_q4_k)
BY_ROWS(dot_q5_k, tile_256, sizeof(BlockQ5_K), SCALE_32, head_k4, group_q5_k)
BY_ROWS(dot_q6_k, tile_256, sizeof(BlockQ6_K), SCALE_16, head_q6_k, group_q6_k)
BY_ROWS(dot_iq4_xs, tile_256, sizeof(BlockIQ4_XS), SCALE_32_SIGNED, head_iq4_xs, group_iq4_xs)
#endif
#endif

static const DotTable TABLE = DOT_TABLE;

#endif
