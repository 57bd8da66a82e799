// gemm_x86.h: unpacking and products for many rows of x (gemm.h); included by gemm_avx2.c, gemm_avxvnni.c and gemm_avx512vnni.c,
// each compiled for its own level. Before including, a file defines
//   V, VI, LANES       vectors of LANES floats and of LANES int32, and the operations v_* and vi_* on them
//   VECTORS, MOST_X    vectors of W and rows of x whose sums are kept in registers
//   GROUP_X            how many of those rows share a load of the weights
//   MOST_FLOAT_X       rows of x beside two vectors of float weights
//   DPBUSD(acc, u, s)  acc + sums of four products u8 * i8 per lane, where the level has VNNI; else it defines what is below
// Everything here is static: no code of a higher level can be linked into a lower one.
//
// Without VNNI, products of bytes are summed in pairs to 16 bits (maddubs). Of codes up to 31 four of those pairs fit 16 bits together
// (4 * 2 * 31 * 127 < 2^15), up to 63 two: one widening to 32 bits for all of them. Codes of eight bits are made positive by their
// sign, which x gets instead, and are widened one by one.
#ifndef GEMM_X86_H
#define GEMM_X86_H

#include <string.h>
#include "dot.h"
#include "gemm_form.h"
#include "unpack.h"

static inline VI vi_set_four(const int8_t *p) { // the same four bytes in every lane
    int four;
    memcpy(&four, p, 4);
    return vi_set(four);
}

// -- rows of x ------------------------------------------------------------------------------------------------------------

static void pack(void *x, float *lost, const float *row, int n_col, TensorType type, bool fine) {
    const bool by_16 = FORM[type].by_16 || fine;
    const __m256 sign = _mm256_set1_ps(-0.0f), smallest = _mm256_set1_ps(ACT8_SMALLEST);
    const __m256i three = _mm256_set1_epi32(3);
    const __m128i magic = _mm_set1_epi32(GEMM_MAGIC_BITS), minus_offset = _mm_set1_epi32(-FORM[type].offset);
    GemmX *out = x;
    for (int at = 0; at < n_col; at += 32, out++) {
        __m256 v[4];
        for (int k = 0; k < 4; k++) v[k] = _mm256_loadu_ps(row + at + 8 * k);
        const __m256 top0 = _mm256_max_ps(_mm256_andnot_ps(sign, v[0]), _mm256_andnot_ps(sign, v[1]));
        const __m256 top1 = _mm256_max_ps(_mm256_andnot_ps(sign, v[2]), _mm256_andnot_ps(sign, v[3]));
        __m256 top = _mm256_max_ps(_mm256_permute2f128_ps(top0, top1, 0x20), _mm256_permute2f128_ps(top0, top1, 0x31)); // 128 bits for each half
        top = _mm256_max_ps(top, _mm256_permute_ps(top, 0x4e));
        top = _mm256_max_ps(top, _mm256_permute_ps(top, 0xb1));
        if (!by_16) top = _mm256_max_ps(top, _mm256_permute2f128_ps(top, top, 0x01));
        const __m256 exact = _mm256_mul_ps(top, _mm256_set1_ps(1 / 127.0f)); // d: without its two last bits, rounded up
        const __m256 d = _mm256_castsi256_ps(_mm256_andnot_si256(three, _mm256_add_epi32(_mm256_castps_si256(exact), three)));
        const __m256 inverse = _mm256_and_ps(_mm256_cmp_ps(top, smallest, _CMP_GT_OQ), _mm256_div_ps(_mm256_set1_ps(1), d));
        const __m256 inverse0 = _mm256_permute2f128_ps(inverse, inverse, 0x00), inverse1 = _mm256_permute2f128_ps(inverse, inverse, 0x11);
        __m256i c[4];
        for (int k = 0; k < 4; k++) c[k] = _mm256_cvtps_epi32(_mm256_mul_ps(v[k], k < 2 ? inverse0 : inverse1)); // nearest, ties to even
        // the packs work inside 128-bit halves: their dwords come out as 0 2 4 6 1 3 5 7 of the eight
        const __m256i packed = _mm256_packs_epi16(_mm256_packs_epi32(c[0], c[1]), _mm256_packs_epi32(c[2], c[3]));
        _mm256_storeu_si256((void *)out->q, _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7)));
        const __m256i eight0 = _mm256_add_epi32(c[0], c[1]), eight1 = _mm256_add_epi32(c[2], c[3]);
        __m256i part = _mm256_add_epi32(_mm256_permute2x128_si256(eight0, eight1, 0x20), _mm256_permute2x128_si256(eight0, eight1, 0x31));
        part = _mm256_add_epi32(part, _mm256_shuffle_epi32(part, 0x4e));
        part = _mm256_add_epi32(part, _mm256_shuffle_epi32(part, 0xb1));
        if (!by_16) part = _mm256_add_epi32(part, _mm256_permute2x128_si256(part, part, 0x01));
        const __m128i code_sum = _mm_unpacklo_epi32(_mm256_castsi256_si128(part), _mm256_extracti128_si256(part, 1));
        const __m128 scale = _mm_unpacklo_ps(_mm256_castps256_ps128(d), _mm256_extractf128_ps(d, 1)), sum = _mm_mul_ps(_mm_cvtepi32_ps(code_sum), scale);
        _mm_storel_pi((void *)out->d, scale);
        _mm_storel_pi((void *)out->undo, _mm_mul_ps(scale, _mm_set1_ps(-GEMM_MAGIC)));
        _mm_storel_epi64((void *)out->start, _mm_add_epi32(magic, _mm_mullo_epi32(code_sum, minus_offset)));
        _mm_storel_pi((void *)out->sum, sum);
        for (int i = 0; lost && i < 32; i++) lost[at + i] = row[at + i] - out->d[i / 16] * (float)out->q[i];
    }
}

// -- weights --------------------------------------------------------------------------------------------------------------

// Block k of 32 of four neighbouring rows into lanes lane .. lane + 3.
INLINE void spread_four(GemmW *to, int lane, const Unpacked u[4], int k, const Form form) {
    __m256i r[4];
    for (int i = 0; i < 4; i++) r[i] = _mm256_add_epi8(_mm256_loadu_si256((const void *)(u[i].q + 32 * k)), _mm256_set1_epi8((char)form.offset));
    const __m256i low01 = _mm256_unpacklo_epi32(r[0], r[1]), low23 = _mm256_unpacklo_epi32(r[2], r[3]);
    const __m256i high01 = _mm256_unpackhi_epi32(r[0], r[1]), high23 = _mm256_unpackhi_epi32(r[2], r[3]);
    const __m256i four[4] = {_mm256_unpacklo_epi64(low01, low23), _mm256_unpackhi_epi64(low01, low23),  // fours j and j + 4 of the rows
                             _mm256_unpacklo_epi64(high01, high23), _mm256_unpackhi_epi64(high01, high23)};
    for (int j = 0; j < 4; j++) {
        _mm_storeu_si128((void *)to->code[j][lane], _mm256_castsi256_si128(four[j]));
        _mm_storeu_si128((void *)to->code[j + 4][lane], _mm256_extracti128_si256(four[j], 1));
    }
    for (int h = 0; h < (form.by_16 ? 2 : 1); h++)
        for (int i = 0; i < 4; i++) {
            to->scale[h][lane + i] = u[i].scale[2 * k + h];
            if (form.affine) to->min[h][lane + i] = u[i].min[2 * k + h];
        }
}

// Block by block through LANES rows, so that the lines of the tile are filled while they are in the L1 cache. Rows that are missing in
// the last four repeat the last one.
INLINE void spread_blocks(GemmW *tile, const char *w, int64_t w_stride, const Form form, int n_w, int n_col, const int block, const int bytes,
                          void (*unpack_block)(Unpacked *, const void *)) {
    const int n_block = n_col / 32;
    Unpacked u[4];
    for (int o = 0; o < n_w; o += LANES, tile += n_block)
        for (int at = 0; at < n_col / block; at++)
            for (int lane = 0; lane < LANES && o + lane < n_w; lane += 4) {
                for (int i = 0; i < 4; i++) {
                    const char *from = w + min_int(o + lane + i, n_w - 1) * w_stride + (int64_t)at * bytes;
                    for (int k = 0; k < bytes; k += 64) _mm_prefetch(from + LANES * w_stride + k, _MM_HINT_T0); // the hardware cannot guess the next rows
                    unpack_block(&u[i], from);
                }
                for (int k = 0; k < block / 32; k++) spread_four(tile + at * (block / 32) + k, lane, u, k, form);
            }
}

INLINE __m256 eight_floats(const char *p, const TensorType type) {
    if (type == TYPE_F32) return _mm256_loadu_ps((const void *)p);
    if (type == TYPE_F16) return _mm256_cvtph_ps(_mm_loadu_si128((const void *)p));
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const void *)p)), 16));
}

// to[k * stride] = w[k]
INLINE void spread_row(float *to, const int stride, const char *w, int n_col, const TensorType type) {
    const int bytes = type == TYPE_F32 ? 4 : 2;
    for (int k = 0; k < n_col; k += 8, to += 8 * stride) {
        const int n = n_col - k < 8 ? n_col - k : 8;
        char raw[32] = {0};
        float v[8];
        memcpy(raw, w + (int64_t)k * bytes, (size_t)(n * bytes));
        _mm256_storeu_ps(v, eight_floats(n == 8 ? w + (int64_t)k * bytes : raw, type));
        for (int i = 0; i < n; i++) to[i * stride] = v[i];
    }
}

// Columns of v become its rows.
INLINE void transpose_eight(__m256 v[8]) {
    __m256 pair[8], four[8];
    for (int i = 0; i < 8; i += 2) {
        pair[i] = _mm256_unpacklo_ps(v[i], v[i + 1]);
        pair[i + 1] = _mm256_unpackhi_ps(v[i], v[i + 1]);
    }
    for (int i = 0; i < 8; i += 4)
        for (int k = 0; k < 2; k++) {
            four[i + 2 * k] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0x44);
            four[i + 2 * k + 1] = _mm256_shuffle_ps(pair[i + k], pair[i + k + 2], 0xee);
        }
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x20);
        v[i + 4] = _mm256_permute2f128_ps(four[i], four[i + 4], 0x31);
    }
}

// to[k * stride + i] = row[i][k], n_row <= 8. ahead: bytes to rows that are read soon
INLINE void spread_rows(float *to, const int stride, const char *const *row, int n_row, int n_col, int64_t ahead, const TensorType type) {
    const int bytes = type == TYPE_F32 ? 4 : 2;
    int k = 0;
    for (; n_row == 8 && k + 8 <= n_col; k += 8) {
        __m256 v[8];
        for (int i = 0; i < 8; i++) {
            const char *from = row[i] + (int64_t)k * bytes;
            if (k * bytes % 64 == 0) _mm_prefetch(from + ahead, _MM_HINT_T0); // the hardware cannot guess the next rows
            v[i] = eight_floats(from, type);
        }
        transpose_eight(v);
        for (int i = 0; i < 8; i++) _mm256_storeu_ps(to + (int64_t)(k + i) * stride, v[i]);
    }
    for (int i = 0; i < n_row; i++) spread_row(to + (int64_t)k * stride + i, stride, row[i] + (int64_t)k * bytes, n_col - k, type);
}

// [n_w / (2 LANES)][n_col][2 LANES] floats
INLINE void spread_floats(float *tile, const char *w, int64_t w_stride, int n_w, int n_col, const TensorType type) {
    for (int o = 0; o < n_w; o += 8) {
        const char *row[8];
        const int n = min_int(8, n_w - o);
        for (int i = 0; i < n; i++) row[i] = w + (o + i) * w_stride;
        spread_rows(tile + (int64_t)(o / (2 * LANES)) * n_col * 2 * LANES + o % (2 * LANES), 2 * LANES, row, n, n_col, 8 * w_stride, type);
    }
}

enum { MOST_HEAD = 512 }; // floats of a row of codes

static void codes_to_floats(float *to, const KeySpan *k, int j) {
    const int8_t *code = span_codes(k, j);
    const F16 *scale = span_scales(k, j);
    for (int i = 0; i < k->head_dim; i += 8) {
        const __m256 d = _mm256_cvtph_ps(_mm_set1_epi16((short)scale[i / 32]));
        _mm256_storeu_ps(to + i, _mm256_mul_ps(d, _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void *)(code + i))))));
    }
}

// Keys as if they were the rows of a float matrix, and values as if they were its columns.
static void unpack_code_keys(float *tile, const KeySpan *k) {
    float floats[8][MOST_HEAD];
    const char *row[8];
    for (int j = 0; j < k->n_key; j += 8) {
        const int n = min_int(8, k->n_key - j);
        for (int i = 0; i < n; i++) {
            codes_to_floats(floats[i], k, j + i);
            row[i] = (const char *)floats[i];
        }
        spread_rows(tile + (int64_t)(j / (2 * LANES)) * k->head_dim * 2 * LANES + j % (2 * LANES), 2 * LANES, row, n, k->head_dim, 0, TYPE_F32);
    }
}

static void unpack_keys(void *tile, const KeySpan *k) {
    if (k->scale) {
        unpack_code_keys(tile, k);
        return;
    }
    for (int j = 0; j < k->n_key; j += 8) {
        const char *row[8];
        const int n = min_int(8, k->n_key - j);
        for (int i = 0; i < n; i++) row[i] = (const char *)span_row(k, j + i);
        spread_rows((float *)tile + (int64_t)(j / (2 * LANES)) * k->head_dim * 2 * LANES + j % (2 * LANES), 2 * LANES, row, n, k->head_dim, 0, TYPE_F16);
    }
}

static void unpack_code_values(float *tile, const KeySpan *v) {
    float floats[MOST_HEAD];
    for (int j = 0; j < v->n_key; j++) {
        codes_to_floats(floats, v, j);
        for (int i = 0; i < v->head_dim; i += 2 * LANES) memcpy(tile + (int64_t)i * v->n_key + j * 2 * LANES, floats + i, sizeof(float) * 2 * LANES);
    }
}

static void unpack_values(void *tile, const KeySpan *v) {
    if (v->scale) {
        unpack_code_values(tile, v);
        return;
    }
    for (int j = 0; j < v->n_key; j++) {
        const F16 *row = span_row(v, j);
        for (int i = 0; i < v->head_dim; i += 2 * LANES) {
            float *to = (float *)tile + (int64_t)i * v->n_key + j * 2 * LANES;
            const int n = v->head_dim - i < 2 * LANES ? v->head_dim - i : 2 * LANES;
            for (int k = 0; k < n; k += 8)
                if (n - k >= 8) _mm256_storeu_ps(to + k, eight_floats((const char *)(row + i + k), TYPE_F16));
                else spread_row(to + k, 1, (const char *)(row + i + k), n - k, TYPE_F16);
        }
    }
}

static void unpack(void *tile, const char *w, int64_t w_stride, TensorType type, int n_w, int n_col) {
#define BLOCKS(TYPE, size, Block, unpack_block) \
    case TYPE: spread_blocks(tile, w, w_stride, FORM[TYPE], n_w, n_col, size, sizeof(Block), unpack_block); break
    switch (type) {
    case TYPE_F32: spread_floats(tile, w, w_stride, n_w, n_col, TYPE_F32); break;
    case TYPE_F16: spread_floats(tile, w, w_stride, n_w, n_col, TYPE_F16); break;
    case TYPE_BF16: spread_floats(tile, w, w_stride, n_w, n_col, TYPE_BF16); break;
    BLOCKS(TYPE_Q4_0, 32, BlockQ4_0, unpack_q4_0);
    BLOCKS(TYPE_Q4_1, 32, BlockQ4_1, unpack_q4_1);
    BLOCKS(TYPE_Q5_0, 32, BlockQ5_0, unpack_q5_0);
    BLOCKS(TYPE_Q5_1, 32, BlockQ5_1, unpack_q5_1);
    BLOCKS(TYPE_Q8_0, 32, BlockQ8_0, unpack_q8_0);
    BLOCKS(TYPE_IQ4_NL, 32, BlockIQ4_NL, unpack_iq4_nl);
    BLOCKS(TYPE_MXFP4, 32, BlockMXFP4, unpack_mxfp4);
    BLOCKS(TYPE_Q2_K, 256, BlockQ2_K, unpack_q2_k);
    BLOCKS(TYPE_Q3_K, 256, BlockQ3_K, unpack_q3_k);
    BLOCKS(TYPE_Q4_K, 256, BlockQ4_K, unpack_q4_k);
    BLOCKS(TYPE_Q5_K, 256, BlockQ5_K, unpack_q5_k);
    BLOCKS(TYPE_Q6_K, 256, BlockQ6_K, unpack_q6_k);
    BLOCKS(TYPE_IQ4_XS, 256, BlockIQ4_XS, unpack_iq4_xs);
    default: break;
    }
#undef BLOCKS
}

// Columns of GEMM_TILE_ROWS rows that fit a tile; a multiple of 256. Fixed, because sums are formed tile by tile.
static int tile_cols(TensorType type) {
    const int bytes = type_wants_act8(type) ? (int)sizeof(GemmW) * GEMM_TILE_ROWS / LANES / 32 : (int)sizeof(float) * GEMM_TILE_ROWS; // of a column
    return GEMM_TILE_BYTES / bytes / 256 * 256;
}

// -- products -------------------------------------------------------------------------------------------------------------

// n_four * 4 columns under scale `part`: lanes of sums of GROUP_X or fewer rows of x with VECTORS vectors of rows of W, tiles w_next apart
INLINE void integer_sums(VI sum[][VECTORS], const GemmW *w, const int64_t w_next, const GemmX *const *x, const int n, const int part, const int n_four,
                         const Width width) {
#pragma GCC unroll 16
    for (int r = 0; r < n; r++)
        for (int v = 0; v < VECTORS; v++) sum[r][v] = vi_set(x[r]->start[part]);
#ifdef DPBUSD
    (void)width;
#pragma GCC unroll 8
    for (int j = n_four * part; j < n_four * part + n_four; j++) {
        VI code[VECTORS];
        for (int v = 0; v < VECTORS; v++) code[v] = vi_load(w[v * w_next].code[j]);
#pragma GCC unroll 16
        for (int r = 0; r < n; r++) {
            const VI q = vi_set_four(x[r]->q + 4 * j);
            for (int v = 0; v < VECTORS; v++) sum[r][v] = DPBUSD(sum[r][v], code[v], q);
        }
    }
#else
    const VI one = _mm256_set1_epi16(1);
    const int most = width == BITS_5 ? 4 : width == BITS_6 ? 2 : 1; // fours whose pairs fit 16 bits together
    VI pairs[GROUP_X][VECTORS];
#pragma GCC unroll 8
    for (int j = 0; j < n_four; j++)
        for (int v = 0; v < VECTORS; v++) {
            const VI code = vi_load(w[v * w_next].code[n_four * part + j]), size = width == BITS_8 ? _mm256_abs_epi8(code) : code;
#pragma GCC unroll 16
            for (int r = 0; r < n; r++) {
                const VI q = vi_set_four(x[r]->q + 4 * (n_four * part + j));
                const VI two = _mm256_maddubs_epi16(size, width == BITS_8 ? _mm256_sign_epi8(q, code) : q);
                pairs[r][v] = j % most ? _mm256_add_epi16(pairs[r][v], two) : two;
                if ((j + 1) % most == 0 || j + 1 == n_four) sum[r][v] = _mm256_add_epi32(sum[r][v], _mm256_madd_epi16(pairs[r][v], one));
            }
        }
#endif
}

INLINE void add_part(V acc[][VECTORS], const GemmW *w, const int64_t w_next, const GemmX *const *x, const int n_x, const int part, const int n_four,
                     const int at, const bool affine, const Width width) { // at: scale of the weights
#pragma GCC unroll 16
    for (int first = 0; first < n_x; first += GROUP_X) {
        const int n = n_x - first < GROUP_X ? n_x - first : GROUP_X;
        VI sum[GROUP_X][VECTORS];
        integer_sums(sum, w, w_next, x + first, n, part, n_four, width);
#pragma GCC unroll 16
        for (int r = first; r < first + n; r++)
            for (int v = 0; v < VECTORS; v++) {
                const V scaled = v_madd(v_bits(sum[r - first][v]), v_set(x[r]->d[part]), v_set(x[r]->undo[part]));
                acc[r][v] = v_madd(scaled, v_load(w[v * w_next].scale[at]), acc[r][v]);
                if (affine) acc[r][v] = v_madd(v_load(w[v * w_next].min[at]), v_set(x[r]->sum[part]), acc[r][v]);
            }
    }
}

INLINE void product_rounded(float *y, int64_t y_stride, const GemmW *w, const GemmX *const *rows, const int n_x, const int n_block, const bool add,
                            const bool halves, const bool by_16, const bool affine, const Width width) { // scales per 16: of x, of the weights
    V acc[MOST_X][VECTORS];
    const GemmX *x[MOST_X];
#pragma GCC unroll 16
    for (int r = 0; r < n_x; r++) {
        x[r] = rows[r];
        for (int v = 0; v < VECTORS; v++) acc[r][v] = v_zero();
    }
    for (int b = 0; b < n_block; b++, w++) {
        add_part(acc, w, n_block, x, n_x, 0, halves ? 4 : 8, 0, affine, width);
        if (halves) add_part(acc, w, n_block, x, n_x, 1, 4, by_16, affine, width);
#pragma GCC unroll 16
        for (int r = 0; r < n_x; r++) x[r]++;
    }
#pragma GCC unroll 16
    for (int r = 0; r < n_x; r++)
        for (int v = 0; v < VECTORS; v++) {
            float *to = y + r * y_stride + v * LANES;
            v_store(to, add ? v_add(v_load(to), acc[r][v]) : acc[r][v]);
        }
}

INLINE void product_float(float *y, int64_t y_stride, const float *w, const float *const *x, const int n_x, int first, int n_col, const bool add) {
    V acc[MOST_FLOAT_X][2];
#pragma GCC unroll 16
    for (int r = 0; r < n_x; r++)
        for (int i = 0; i < 2; i++) acc[r][i] = v_zero();
    for (int k = first; k < first + n_col; k++, w += 2 * LANES) {
        const V w0 = v_load(w), w1 = v_load(w + LANES);
#pragma GCC unroll 16
        for (int r = 0; r < n_x; r++) {
            const V v = v_set(x[r][k]);
            acc[r][0] = v_madd(w0, v, acc[r][0]);
            acc[r][1] = v_madd(w1, v, acc[r][1]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < n_x; r++)
        for (int i = 0; i < 2; i++) {
            float *to = y + r * y_stride + i * LANES;
            v_store(to, add ? v_add(v_load(to), acc[r][i]) : acc[r][i]);
        }
}

enum { FLOAT_RUN = 128 }; // columns summed before they are added to what is summed: a long sum loses less

// Lanes of weight rows [o, o + width) and n_x rows of x, as many as a kernel takes.
INLINE void one_product(const GemmTile *t, float *y, int64_t y_stride, int o, const void *const *x, const int n_x, const bool rounded) {
    const Form form = FORM[t->type];
    if (!rounded) {
        for (int k = 0; k < t->n_col; k += FLOAT_RUN)
            product_float(y, y_stride, (const float *)t->tile + (int64_t)o * t->n_col + (int64_t)k * 2 * LANES, (const float *const *)x, n_x, t->first + k,
                          min_int(FLOAT_RUN, t->n_col - k), t->add || k > 0);
        return;
    }
    const int n_block = t->n_col / 32;
    const GemmW *w = (const GemmW *)t->tile + (int64_t)(o / LANES) * n_block;
    const GemmX *rows[MOST_X];
    for (int r = 0; r < n_x; r++) rows[r] = (const GemmX *)x[r] + t->first / 32;
#ifdef DPBUSD
    const Width width = BITS_8;
#else
    const Width width = form.width;
#endif
#define PRODUCT(halves, by_16, affine, width) product_rounded(y, y_stride, w, rows, n_x, n_block, t->add, halves, by_16, affine, width)
    if (form.by_16 && form.affine) PRODUCT(true, true, true, BITS_5);
    else if (form.by_16 && width == BITS_5) PRODUCT(true, true, false, BITS_5);
    else if (form.by_16) PRODUCT(true, true, false, BITS_6);
    else if (form.affine && t->fine) PRODUCT(true, false, true, BITS_5);
    else if (form.affine) PRODUCT(false, false, true, BITS_5);
    else if (width == BITS_5 && t->fine) PRODUCT(true, false, false, BITS_5);
    else if (width == BITS_5) PRODUCT(false, false, false, BITS_5);
    else if (t->fine) PRODUCT(true, false, false, BITS_8);
    else PRODUCT(false, false, false, BITS_8);
#undef PRODUCT
}

INLINE void all_products(const GemmTile *t, const bool rounded) {
    const int most = rounded ? MOST_X : MOST_FLOAT_X, half = (most + 1) / 2, width = rounded ? VECTORS * LANES : 2 * LANES;
    for (int r = 0, n; r < t->n_x; r += n) { // these few rows of x stay in the L1 cache for all of the tile
        const int left = t->n_x - r;
        n = left >= most ? most : left >= half ? half : left >= 2 ? 2 : 1;
        for (int o = 0; o < t->n_w; o += width) {
            float *y = t->y + r * t->y_stride + o, edge[MOST_FLOAT_X][2 * LANES];
            const int n_w = t->n_w - o < width ? t->n_w - o : width;
            const bool whole = n_w == width; // otherwise lanes without a row, whose tile holds anything, go to the edge
            for (int i = 0; !whole && i < n; i++) memcpy(edge[i], y + i * t->y_stride, sizeof(float) * (size_t)n_w);
            float *to = whole ? y : edge[0];
            const int64_t stride = whole ? t->y_stride : 2 * LANES;
            if (n == most) one_product(t, to, stride, o, t->x + r, most, rounded);
            else if (n == half) one_product(t, to, stride, o, t->x + r, half, rounded);
            else if (n == 2) one_product(t, to, stride, o, t->x + r, 2, rounded);
            else one_product(t, to, stride, o, t->x + r, 1, rounded);
            for (int i = 0; !whole && i < n; i++) memcpy(y + i * t->y_stride, edge[i], sizeof(float) * (size_t)n_w);
        }
    }
}

static void product(const GemmTile *t) {
    if (type_wants_act8(t->type)) all_products(t, true);
    else all_products(t, false);
}

static const GemmTable TABLE = {.pack = pack, .unpack = unpack, .product = product, .tile_cols = tile_cols,
                                .unpack_keys = unpack_keys, .unpack_values = unpack_values};

#endif
