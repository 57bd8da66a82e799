// dot_avx512vnni.c: dot products for CPUs with AVX-512 F, BW, VL, DQ and VNNI (Intel Cascade Lake 2019, AMD Zen 4 2022).
//
// Weights come in blocks of 256 (eight of the small ones make one), four vectors of 64 codes each, for ROWS rows of weights at a
// time (two beside several rows of x): what is made of x is made once for all of them, and memory is read in as many streams.
// Codes are unsigned, as the byte dot product wants them. A format's constant offset is undone exactly, in integers: the sums start
// at minus offset times the codes of x. Which elements share a vector follows from how the format packs them (Order), so that
// unpacking is a mask and x is rearranged instead. Masks may leave codes at a higher place in their bytes: the scales know.
//
// 32-bit lane i of a vector holds a sum of four products under the activation scale i % 2. Its float is multiplied by the weight
// scale and that scale, and added to sixteen float lanes that are summed at the end of the row. For Q4_K that makes 33 vector
// instructions per 144 bytes of weights; processors begin two a cycle.
#include "dot.h"

#if defined(__AVX512VNNI__) && defined(__AVX512VL__) && defined(__AVX512BW__) && defined(__AVX512DQ__)
#define DOT_OWN
#define DOT_BELOW DOT_AVX2
#include "dot_x86.h"

INLINE __m512i load512(const void *p) { return _mm512_loadu_si512(p); }
INLINE __m512i both256(const void *p) { return _mm512_broadcast_i64x4(load256(p)); } // the same 32 bytes twice
INLINE __m512i two256(const void *low, const void *high) { return _mm512_inserti64x4(_mm512_castsi256_si512(load256(low)), load256(high), 1); }
INLINE __m512i four128(const char *p, const int64_t stride) { // 16 bytes from each of four places
    const __m512i low = _mm512_castsi256_si512(_mm256_inserti128_si256(_mm256_castsi128_si256(load128(p)), load128(p + stride), 1));
    return _mm512_inserti32x4(_mm512_inserti32x4(low, load128(p + 2 * stride), 2), load128(p + 3 * stride), 3);
}
INLINE __m512i halves_i16(short low, short high) { return _mm512_inserti64x4(_mm512_set1_epi16(low), _mm256_set1_epi16(high), 1); }
INLINE __m512i halves_i8(int low, int high) { return _mm512_inserti64x4(_mm512_set1_epi8((char)low), _mm256_set1_epi8((char)high), 1); }
INLINE __m512i only_bits(__m512i v, int mask) { return _mm512_and_si512(v, _mm512_set1_epi8((char)mask)); }
INLINE __m512i or_bits(__m512i a, __m512i b, int mask) { return _mm512_ternarylogic_epi64(a, b, _mm512_set1_epi8((char)mask), 0xf8); } // a | (b & mask)
INLINE __m512i high_nibbles(__m512i v) { return only_bits(_mm512_srli_epi16(v, 4), 15); }
INLINE __m512i add_where(__mmask64 where, __m512i code, int value) { return _mm512_mask_add_epi8(code, where, code, _mm512_set1_epi8((char)value)); }
INLINE __m512i every128(int a, int b, int c, int d) { return _mm512_setr_epi32(a, b, c, d, a, b, c, d, a, b, c, d, a, b, c, d); }
INLINE float total(__m512 v) { return sum_lanes(_mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps(v, 1))); }

enum { ROWS = DOT_STREAMS };
INLINE int rows_512(const int n_x) { return n_x == 1 ? ROWS : 2; } // with more of x two are within a tenth as fast, and compile in half the time

// Groups of 32 elements in vector k: two, or halves of four.
typedef enum {
    NEXT,  // 2k, 2k + 1
    APART, // 0 2, 1 3, 4 6, 5 7
    FAR,   // k, k + 4
    FOUR   // the first halves of groups 0 to 3, the second ones; those of groups 4 to 7
} Order;

INLINE __m512i codes_of_x(const int8_t *q, const int k, const Order order) {
    switch (order) {
    case NEXT: return load512(q + 64 * k);
    case APART: return two256(q + k / 2 * 128 + k % 2 * 32, q + k / 2 * 128 + k % 2 * 32 + 64);
    case FAR: return two256(q + 32 * k, q + 32 * k + 128);
    default: return four128((const char *)q + k / 2 * 128 + k % 2 * 16, 32);
    }
}

// For the lanes of vector k, which of the 16 activation scales: 2 group + lane % 2
INLINE __m512i scale_of_lane(const int k, const Order order) {
    switch (order) {
    case NEXT: return _mm512_add_epi32(_mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 2, 3, 2, 3, 2, 3, 2, 3), _mm512_set1_epi32(4 * k));
    case APART: return _mm512_add_epi32(_mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 4, 5, 4, 5, 4, 5, 4, 5), _mm512_set1_epi32(k / 2 * 8 + k % 2 * 2));
    case FAR: return _mm512_add_epi32(_mm512_setr_epi32(0, 1, 0, 1, 0, 1, 0, 1, 8, 9, 8, 9, 8, 9, 8, 9), _mm512_set1_epi32(2 * k));
    default: return _mm512_add_epi32(_mm512_setr_epi32(0, 1, 0, 1, 2, 3, 2, 3, 4, 5, 4, 5, 6, 7, 6, 7), _mm512_set1_epi32(k / 2 * 8));
    }
}
// ... and which of 16 weight scales, for formats with one for 16 elements: 2 group + lane / 4 % 2
INLINE __m512i scale16_of_lane(const int k, const Order order) {
    return order == FAR ? _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 8, 8, 8, 8, 9, 9, 9, 9), _mm512_set1_epi32(2 * k))
                        : _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3), _mm512_set1_epi32(4 * k));
}

// What a block of 256 has besides its codes.
typedef enum {
    SCALES,        // scale: of the groups, in lanes 0 to 7
    SCALES_MINS,   // scale: of the groups, then their minima
    SCALE_AND_MIN, // scale: one and the minimum of each group in turn
    SCALES_16,     // scale: of 16 elements each
    SCALES_MINS_16 // scale, min: of 16 elements each
} Heads;
typedef struct {
    __m512 scale, min;
} Head;
typedef void ReadHeads(Head head[ROWS], const int n_row, const char *w, const int64_t stride); // of blocks that are stride bytes apart
typedef __m512i ReadCodes(const char *block, const int k); // vector k

// Sums of 32 elements where the minima are, signed as they are added
INLINE __m512 sums_of_x(const float *sum, const Heads heads) {
    const __m512 s = _mm512_loadu_ps(sum), both = _mm512_add_ps(s, _mm512_permute_ps(s, 0xb1));
    if (heads == SCALE_AND_MIN) return _mm512_maskz_mov_ps(0xaaaa, both);
    if (heads == SCALES_MINS_16) return _mm512_sub_ps(_mm512_setzero_ps(), s);
    return _mm512_maskz_sub_ps(0xff00, _mm512_setzero_ps(), _mm512_permutexvar_ps(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 6, 8, 10, 12, 14), both));
}

// The last groups of rows of small blocks, filled up with zeros to 256 elements
typedef struct {
    char w[ROWS][8 * sizeof(BlockQ8_0)];
    int8_t q[DOT_ROWS][256];
    float d[DOT_ROWS][16], sum[DOT_ROWS][16];
} Rest;

static __attribute__((noinline)) void fill_rest(Rest *rest, int n_row, const char *w, int64_t stride, int bytes, const DotTile *t, int at) {
    const size_t n = (size_t)(t->n_col - at);
    memset(rest, 0, sizeof *rest);
    for (int m = 0; m < n_row; m++) memcpy(rest->w[m], w + m * stride, n * (size_t)bytes / 256);
    for (int r = 0; r < t->n_x; r++) {
        memcpy(rest->q[r], act8_codes(t->x[r]) + at, n);
        memcpy(rest->d[r], act8_scales(t->x[r], t->n_col) + at / 16, n / 4);
        memcpy(rest->sum[r], act8_sums(t->x[r], t->n_col) + at / 16, n / 4);
    }
}

// bytes: of 256 elements. offset: what codes are too large by. grow: vector k's are 2^(grow k) times too large (APART: k % 2).
INLINE void tile_512(const DotTile *t, const int n_x, const int bytes, const bool small, const Order order, const Heads heads, const int offset, const int grow,
                     ReadHeads *read_heads, ReadCodes *read_codes) {
    const __m512i twice = heads == SCALE_AND_MIN ? _mm512_setr_epi32(0, 0, 2, 2, 4, 4, 6, 6, 8, 8, 10, 10, 12, 12, 14, 14)
                                                 : _mm512_setr_epi32(0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6, 6, 7, 7);
    const int n_row = rows_512(n_x);
    const bool by_16 = heads == SCALES_16 || heads == SCALES_MINS_16, has_min = heads == SCALES_MINS || heads == SCALE_AND_MIN || heads == SCALES_MINS_16;
    for (int i = 0; i < n_streams(t, n_row); i++) {
        Streams s = streams_at(t, n_row, i);
        const char *w = s.w;
        __m512 acc[ROWS][DOT_ROWS];
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) acc[m][r] = _mm512_setzero_ps();
        Rest rest;
        for (int at = 0; at < t->n_col; at += 256, w += bytes) {
            const int8_t *q[DOT_ROWS];
            const float *d[DOT_ROWS], *sum[DOT_ROWS];
            for (int r = 0; r < n_x; r++) q[r] = act8_codes(t->x[r]) + at, d[r] = act8_scales(t->x[r], t->n_col) + at / 16, sum[r] = d[r] + t->n_col / 16;
            if (small && at + 256 > t->n_col) {
                fill_rest(&rest, n_row, w, s.stride, bytes, t, at);
                w = rest.w[0];
                s.stride = sizeof rest.w[0];
                for (int r = 0; r < n_x; r++) q[r] = rest.q[r], d[r] = rest.d[r], sum[r] = rest.sum[r];
            }
            Head head[ROWS];
            read_heads(head, n_row, w, s.stride);
            for (int m = 0; m < n_row; m++)
                for (int line = 0; line < bytes; line += 64) _mm_prefetch(w + m * s.stride + PREFETCH + line, _MM_HINT_T0);
            __m512 scale[DOT_ROWS][ROWS], scale_x[DOT_ROWS];
            for (int r = 0; r < n_x; r++) {
                scale_x[r] = _mm512_loadu_ps(d[r]);
                if (!by_16 && grow) scale_x[r] = _mm512_mul_ps(scale_x[r], _mm512_mask_blend_ps(0xcccc, _mm512_set1_ps(1), _mm512_set1_ps(1.0f / (float)(1 << grow))));
                const __m512 sums = has_min ? sums_of_x(sum[r], heads) : _mm512_setzero_ps();
                for (int m = 0; m < n_row; m++) {
                    if (!by_16) scale[r][m] = _mm512_mul_ps(_mm512_permutexvar_ps(twice, head[m].scale), scale_x[r]);
                    if (has_min) acc[m][r] = _mm512_fmadd_ps(heads == SCALES_MINS_16 ? head[m].min : head[m].scale, sums, acc[m][r]);
                }
            }
#pragma GCC unroll 4
            for (int k = 0; k < 4; k++) {
                const int up = order == APART ? grow * (k % 2) : grow * k;
                __m512i code[ROWS];
                for (int m = 0; m < n_row; m++) code[m] = read_codes(w + m * s.stride, k);
                for (int r = 0; r < n_x; r++) {
                    const __m512i x = codes_of_x(q[r], k, order);
                    const __m512i start = offset ? _mm512_sub_epi32(_mm512_setzero_si512(), _mm512_dpbusd_epi32(_mm512_setzero_si512(), _mm512_set1_epi8((char)offset), x))
                                                 : _mm512_setzero_si512();
                    const __m512 of_x = by_16 ? _mm512_mul_ps(_mm512_permutexvar_ps(scale_of_lane(k, order), scale_x[r]), _mm512_set1_ps(1.0f / (float)(1 << up)))
                                              : _mm512_setzero_ps();
                    for (int m = 0; m < n_row; m++) {
                        const __m512 lanes = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(start, code[m], x));
                        acc[m][r] = by_16 ? _mm512_fmadd_ps(_mm512_mul_ps(lanes, of_x), _mm512_permutexvar_ps(scale16_of_lane(k, order), head[m].scale), acc[m][r])
                                          : _mm512_fmadd_ps(lanes, _mm512_permutexvar_ps(scale_of_lane(k, order), scale[r][m]), acc[m][r]);
                    }
                }
            }
        }
        for (int m = 0; m < n_row; m++)
            for (int r = 0; r < n_x; r++) t->y[r * t->y_stride + s.o + m * s.apart] = total(acc[m][r]);
    }
}

// -- blocks of 32, eight at a time ------------------------------------------------------------------------------------------

INLINE __m512 half_scales(const char *p, const int bytes) { // at the start of each block
    F16 h[8];
    for (int i = 0; i < 8; i++) memcpy(&h[i], p + i * bytes, sizeof *h);
    return _mm512_castps256_ps512(_mm256_cvtph_ps(_mm_setr_epi16((short)h[0], (short)h[1], (short)h[2], (short)h[3], (short)h[4], (short)h[5], (short)h[6], (short)h[7])));
}
INLINE __m512 half_pairs(const char *p, const int bytes) {
    int h[8];
    for (int i = 0; i < 8; i++) memcpy(&h[i], p + i * bytes, sizeof *h);
    return _mm512_cvtph_ps(_mm256_setr_epi32(h[0], h[1], h[2], h[3], h[4], h[5], h[6], h[7]));
}
// Vector k from the nibbles of four blocks, which are `first` bytes into each
INLINE __m512i nibbles_of_four(const char *p, const int bytes, const int first, const int k) {
    const __m512i v = four128(p + k / 2 * 4 * bytes + first, bytes);
    return k % 2 ? high_nibbles(v) : only_bits(v, 15);
}
INLINE __mmask64 fifth_of_four(const char *p, const int bytes, const int first, const int k) {
    uint64_t all = 0;
    for (int i = 0; i < 4; i++) {
        uint16_t bits;
        memcpy(&bits, p + (k / 2 * 4 + i) * bytes + first + k % 2 * 2, sizeof bits);
        all |= (uint64_t)bits << 16 * i;
    }
    return all;
}
INLINE __m512i table_512(const int8_t table[16], __m512i codes, const int offset) {
    return _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_add_epi8(load128(table), _mm_set1_epi8((char)offset))), codes);
}

#define SMALL(name, Block, heads_read)                                                         \
    INLINE Head head_##name(const char *p) { return (Head){.scale = heads_read(p, sizeof(Block))}; } \
    INLINE __m512i codes_##name(const char *p, const int k)
SMALL(q4_0, BlockQ4_0, half_scales) { return nibbles_of_four(p, sizeof(BlockQ4_0), 2, k); }
SMALL(q4_1, BlockQ4_1, half_pairs) { return nibbles_of_four(p, sizeof(BlockQ4_1), 4, k); }
SMALL(q5_0, BlockQ5_0, half_scales) {
    return add_where(fifth_of_four(p, sizeof(BlockQ5_0), 2, k), nibbles_of_four(p, sizeof(BlockQ5_0), 6, k), 16);
}
SMALL(q5_1, BlockQ5_1, half_pairs) {
    return add_where(fifth_of_four(p, sizeof(BlockQ5_1), 4, k), nibbles_of_four(p, sizeof(BlockQ5_1), 8, k), 16);
}
SMALL(q8_0, BlockQ8_0, half_scales) {
    const char *qs = p + 2 * k * (int)sizeof(BlockQ8_0) + 2;
    return _mm512_xor_si512(two256(qs, qs + sizeof(BlockQ8_0)), _mm512_set1_epi8(-128));
}
SMALL(iq4_nl, BlockIQ4_NL, half_scales) { return table_512(IQ4_VALUES, nibbles_of_four(p, sizeof(BlockIQ4_NL), 2, k), 128); }

INLINE __m512 mxfp4_scales(const char *p, const int bytes) { // see mxfp4_scale: 2^(e - 128)
    const __m256i e = _mm256_setr_epi32((uint8_t)p[0], (uint8_t)p[bytes], (uint8_t)p[2 * bytes], (uint8_t)p[3 * bytes], (uint8_t)p[4 * bytes],
                                        (uint8_t)p[5 * bytes], (uint8_t)p[6 * bytes], (uint8_t)p[7 * bytes]);
    const __m256i bits = _mm256_slli_epi32(_mm256_sub_epi32(e, _mm256_set1_epi32(1)), 23), tiny = _mm256_sllv_epi32(_mm256_set1_epi32(0x00200000), e);
    return _mm512_castps256_ps512(_mm256_castsi256_ps(_mm256_mask_mov_epi32(bits, _mm256_cmplt_epi32_mask(e, _mm256_set1_epi32(2)), tiny)));
}
SMALL(mxfp4, BlockMXFP4, mxfp4_scales) { return table_512(MXFP4_VALUES, nibbles_of_four(p, sizeof(BlockMXFP4), 1, k), 16); }

// -- blocks of 256 ----------------------------------------------------------------------------------------------------------

INLINE __m512 bytes_to_floats(__m128i v) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(v)); }

INLINE Head wide_head_q2_k(const char *p) {
    const BlockQ2_K *b = (const void *)p;
    const __m128i packed = load128(b->scales), low = _mm_set1_epi8(15);
    return (Head){.scale = _mm512_mul_ps(bytes_to_floats(_mm_and_si128(packed, low)), _mm512_set1_ps(half_to_float(b->d))),
                  .min = _mm512_mul_ps(bytes_to_floats(_mm_and_si128(_mm_srli_epi16(packed, 4), low)), _mm512_set1_ps(half_to_float(b->dmin)))};
}
INLINE __m512i codes_q2_k(const char *p, const int k) { return only_bits(load512(((const BlockQ2_K *)(const void *)p)->qs), 3 << 2 * k); }

INLINE Head wide_head_q3_k(const char *p) {
    const BlockQ3_K *b = (const void *)p;
    return (Head){.scale = _mm512_mul_ps(bytes_to_floats(scales_q3_k(b->scales)), _mm512_set1_ps(half_to_float(b->d)))};
}
INLINE __m512i codes_q3_k(const char *p, const int k) {
    const BlockQ3_K *b = (const void *)p;
    const __mmask64 third = _mm512_test_epi8_mask(both256(b->hmask), halves_i8(1 << k, 16 << k));
    return add_where(third, only_bits(_mm512_srli_epi16(load512(b->qs), 2 * k), 3), 4);
}

// Scales and minima of Q4_K and Q5_K, of four rows at once and four bytes at a time (see unpack_scales_k4). w: d, dmin, scales[12]
INLINE void heads_k4(Head head[ROWS], const int n_row, const char *w, const int64_t stride) {
    const __m512i all = n_row == 4 ? four128(w, stride) : _mm512_broadcast_i64x4(_mm256_set_m128i(load128(w + stride), load128(w)));
    const __m512i low = _mm512_srlv_epi32(_mm512_shuffle_epi32(all, (_MM_PERM_ENUM)_MM_SHUFFLE(3, 2, 3, 1)), every128(0, 0, 0, 4));
    const __m512i top = _mm512_srli_epi32(_mm512_shuffle_epi32(all, (_MM_PERM_ENUM)_MM_SHUFFLE(2, 2, 1, 1)), 2);
    const __m512i only_low = _mm512_and_si512(low, every128(0x3f3f3f3f, 0x0f0f0f0f, 0x3f3f3f3f, 0x0f0f0f0f));
    __m128i bytes[ROWS];
    _mm512_storeu_si512(bytes, _mm512_ternarylogic_epi32(only_low, top, every128(0, 0x30303030, 0, 0x30303030), 0xf8));
    const __m512i firsts = _mm512_permutexvar_epi32(_mm512_setr_epi32(0, 4, 8, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0), all);
    const __m512 d = _mm512_castps256_ps512(_mm256_cvtph_ps(_mm512_castsi512_si128(firsts))); // d, dmin of each row
    for (int m = 0; m < n_row; m++) {
        const __m512i which = _mm512_add_epi32(_mm512_setr_epi32(0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1), _mm512_set1_epi32(2 * m));
        head[m].scale = _mm512_mul_ps(bytes_to_floats(bytes[m]), _mm512_permutexvar_ps(which, d));
    }
}
INLINE __m512i codes_q4_k(const char *p, const int k) { return only_bits(load512(((const BlockQ4_K *)(const void *)p)->qs + k / 2 * 64), k % 2 ? 0xf0 : 15); }
INLINE __m512i codes_q5_k(const char *p, const int k) {
    const BlockQ5_K *b = (const void *)p;
    const int first = k / 2 * 4 + k % 2; // its groups: this one, and the second next
    const __m512i v = load512(b->qs + k / 2 * 64);
    return add_where(_mm512_test_epi8_mask(both256(b->qh), halves_i8(1 << first, 4 << first)), k % 2 ? high_nibbles(v) : only_bits(v, 15), 16);
}

INLINE Head wide_head_q6_k(const char *p) {
    const BlockQ6_K *b = (const void *)p;
    return (Head){.scale = _mm512_mul_ps(bytes_to_floats(load128(b->scales)), _mm512_set1_ps(half_to_float(b->d)))};
}
INLINE __m512i codes_q6_k(const char *p, const int k) {
    const BlockQ6_K *b = (const void *)p;
    const __m512i low = load512(b->ql + k / 2 * 64), high = both256(b->qh + k / 2 * 32);
    const __m512i top = k % 2 ? _mm512_srlv_epi16(high, halves_i16(0, 2)) : _mm512_sllv_epi16(high, halves_i16(4, 2));
    return or_bits(k % 2 ? high_nibbles(low) : only_bits(low, 15), top, 48);
}

INLINE Head wide_head_iq4_xs(const char *p) {
    const Head256 h = head_iq4_xs(p);
    return (Head){.scale = _mm512_castps256_ps512(_mm256_mul_ps(floats_of(_mm256_castsi256_si128(h.scale16)), _mm256_set1_ps(h.d)))};
}
INLINE __m512i codes_iq4_xs(const char *p, const int k) {
    return table_512(IQ4_VALUES, nibbles_of_four((const char *)((const BlockIQ4_XS *)(const void *)p)->qs, 16, 0, k), 128);
}

// A format whose heads are read one by one
#define FORMAT(name, head, ...)                                                             \
    INLINE void heads_##name(Head heads[ROWS], const int n_row, const char *w, const int64_t stride) { \
        for (int m = 0; m < n_row; m++) heads[m] = head(w + m * stride);                     \
    }                                                                                       \
    BY_ROWS(dot_##name, tile_512, __VA_ARGS__, heads_##name, codes_##name)

FORMAT(q4_0, head_q4_0, 8 * sizeof(BlockQ4_0), true, FOUR, SCALES, 8, 0)
FORMAT(q4_1, head_q4_1, 8 * sizeof(BlockQ4_1), true, FOUR, SCALE_AND_MIN, 0, 0)
FORMAT(q5_0, head_q5_0, 8 * sizeof(BlockQ5_0), true, FOUR, SCALES, 16, 0)
FORMAT(q5_1, head_q5_1, 8 * sizeof(BlockQ5_1), true, FOUR, SCALE_AND_MIN, 0, 0)
FORMAT(q8_0, head_q8_0, 8 * sizeof(BlockQ8_0), true, NEXT, SCALES, 128, 0)
FORMAT(iq4_nl, head_iq4_nl, 8 * sizeof(BlockIQ4_NL), true, FOUR, SCALES, 128, 0)
FORMAT(mxfp4, head_mxfp4, 8 * sizeof(BlockMXFP4), true, FOUR, SCALES, 16, 0)
FORMAT(q2_k, wide_head_q2_k, sizeof(BlockQ2_K), false, FAR, SCALES_MINS_16, 0, 2)
FORMAT(q3_k, wide_head_q3_k, sizeof(BlockQ3_K), false, FAR, SCALES_16, 4, 0)
BY_ROWS(dot_q4_k, tile_512, sizeof(BlockQ4_K), false, APART, SCALES_MINS, 0, 4, heads_k4, codes_q4_k)
BY_ROWS(dot_q5_k, tile_512, sizeof(BlockQ5_K), false, APART, SCALES_MINS, 0, 0, heads_k4, codes_q5_k)
FORMAT(q6_k, wide_head_q6_k, sizeof(BlockQ6_K), false, NEXT, SCALES_16, 32, 0)
FORMAT(iq4_xs, wide_head_iq4_xs, sizeof(BlockIQ4_XS), false, FOUR, SCALES, 128, 0)

const DotTable *const DOT_AVX512VNNI = &TABLE;
#else
const DotTable *const DOT_AVX512VNNI = NULL;
#endif
