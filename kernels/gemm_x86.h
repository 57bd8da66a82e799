// gemm_x86.h: unpacking and products for many rows of x (gemm.h); included by gemm_avx2.c, gemm_avxvnni.c and gemm_avx512vnni.c,
// each compiled for its own level. Before including, a file defines
//   V, VI, LANES       vectors of LANES floats and of LANES int32, and the operations v_* and vi_* on them
//   MOST_X, GROUP_X    rows of x whose sums are kept in registers; how many of them share a load of the weights
//   DPBUSD(acc, u, s)  acc + sums of four products u8 * i8 per lane, where the level has VNNI; else it defines what is below
// Everything here is static: no code of a higher level can be linked into a lower one.
//
// Without VNNI, products of bytes are summed in pairs to 16 bits (maddubs). With codes up to 31 four of those pairs fit 16 bits
// (4 * 2 * 31 * 127 < 2^15), with codes up to 63 two: one widening to 32 bits for all of them. Codes of eight bits are made
// positive by their sign, which x gets instead, and are widened one by one.
#ifndef GEMM_X86_H
#define GEMM_X86_H

#include <string.h>
#include "dot.h"
#include "gemm.h"
#include "unpack.h"

#define INLINE static inline __attribute__((always_inline))

// 32 columns of LANES rows
typedef struct {
    uint8_t code[8][LANES][4];              // [k / 4][row][k % 4]
    float scale[2][LANES], min[2][LANES];   // per 16 columns
} GemmW;

#ifdef DPBUSD
enum { WIDE_OFFSET = 128 };
#else
enum { WIDE_OFFSET = 0 }; // codes stay signed
#endif

static inline VI vi_set_four(const int8_t *p) { // the same four bytes in every lane
    int four;
    memcpy(&four, p, 4);
    return vi_set(four);
}

typedef enum { NARROW, WIDE } Width; // of codes: at most 6 bits, or 8

// What is added to a format's codes so that none is negative; whether scales are per 16; whether there are minima.
typedef struct {
    uint8_t offset;
    bool by_16, affine;
    Width width;
} Form;

static const Form FORM[TYPE_COUNT] = {
    [TYPE_Q4_0] = {.offset = 8}, [TYPE_Q4_1] = {.affine = true}, [TYPE_Q5_0] = {.offset = 16}, [TYPE_Q5_1] = {.affine = true},
    [TYPE_Q8_0] = {.offset = WIDE_OFFSET, .width = WIDE}, [TYPE_IQ4_NL] = {.offset = WIDE_OFFSET, .width = WIDE}, [TYPE_MXFP4] = {.offset = 12},
    [TYPE_Q2_K] = {.by_16 = true, .affine = true}, [TYPE_Q3_K] = {.offset = 4, .by_16 = true}, [TYPE_Q4_K] = {.affine = true},
    [TYPE_Q5_K] = {.affine = true}, [TYPE_Q6_K] = {.offset = 32, .by_16 = true}, [TYPE_IQ4_XS] = {.offset = WIDE_OFFSET, .width = WIDE},
};

// -- rows of x ------------------------------------------------------------------------------------------------------------

static void pack(void *x, const void *act8, int n_col, TensorType type) {
    const Form form = FORM[type];
    const float *d = act8_scales(act8, n_col), *sum = act8_sums(act8, n_col);
    GemmX *out = x;
    for (int at = 0; at < n_col; at += 32, out++, d += 2, sum += 2) {
        const __m256i q = _mm256_loadu_si256((const void *)(act8_codes(act8) + at));
        const __m256i fours = _mm256_madd_epi16(_mm256_maddubs_epi16(_mm256_set1_epi8(1), q), _mm256_set1_epi16(1));
        const __m256i pairs = _mm256_add_epi32(fours, _mm256_shuffle_epi32(fours, 0x4e)); // lanes 0, 1: first half, by scale; 4, 5: second
        const __m128i halves = _mm_unpacklo_epi64(_mm256_castsi256_si128(pairs), _mm256_extracti128_si256(pairs, 1));
        const __m128i sums = form.by_16 ? halves : _mm_add_epi32(halves, _mm_shuffle_epi32(halves, 0x4e));
        _mm256_storeu_si256((void *)out->q, q);
        memcpy(out->d, d, sizeof out->d);
        _mm_storeu_si128((void *)out->start, _mm_mullo_epi32(sums, _mm_set1_epi32(-form.offset)));
        out->sum[0] = form.by_16 ? sum[0] : sum[0] + sum[1];
        out->sum[1] = sum[1];
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

// Rows that are missing in the last four repeat the last one.
INLINE void spread_blocks(GemmW *tile, const char *w, int64_t w_stride, const Form form, int n_w, int n_col, const int block, const int bytes,
                          void (*unpack_block)(Unpacked *, const void *)) {
    const int n_block = n_col / 32;
    Unpacked u[4];
    for (int o = 0; o < n_w; o += 4) {
        GemmW *to = tile + (int64_t)(o / LANES) * n_block;
        for (int at = 0; at < n_col / block; at++) {
            for (int i = 0; i < 4; i++) {
                const char *from = w + (o + i < n_w ? o + i : n_w - 1) * w_stride + (int64_t)at * bytes;
                for (int k = 0; k < bytes; k += 64) _mm_prefetch(from + 4 * w_stride + k, _MM_HINT_T0); // the hardware cannot guess the next rows
                unpack_block(&u[i], from);
            }
            for (int k = 0; k < block / 32; k++, to++) spread_four(to, o % LANES, u, k, form);
        }
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

// [n_w / (2 LANES)][n_col][2 LANES] floats
INLINE void spread_floats(float *tile, const char *w, int64_t w_stride, int n_w, int n_col, const TensorType type) {
    for (int o = 0; o < n_w; o++)
        spread_row(tile + (int64_t)(o / (2 * LANES)) * n_col * 2 * LANES + o % (2 * LANES), 2 * LANES, w + o * w_stride, n_col, type);
}

// Keys as if they were the rows of a float16 matrix, and values as if they were its columns.
static void unpack_keys(void *tile, const KeySpan *k) {
    for (int j = 0; j < k->n_key; j++)
        spread_row((float *)tile + (int64_t)(j / (2 * LANES)) * k->head_dim * 2 * LANES + j % (2 * LANES), 2 * LANES, (const char *)span_row(k, j), k->head_dim, TYPE_F16);
}

static void unpack_values(void *tile, const KeySpan *v) {
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

// Formats with minima have unsigned codes, from which nothing is to be undone.
// n_four * 4 columns: lanes of I0 (even fours) and I1 (odd fours) for GROUP_X or fewer rows of x
INLINE void integer_sums(VI sum[][2], const GemmW *w, const GemmX *const *x, const int n, const int half, const int n_four, const bool affine,
                         const Width width) {
    for (int scale = 0; scale < 2; scale++) {
#ifdef DPBUSD
        (void)width;
#pragma GCC unroll 16
        for (int r = 0; r < n; r++) sum[r][scale] = affine ? vi_set(0) : vi_set(x[r]->start[2 * half + scale]);
#pragma GCC unroll 4
        for (int j = 4 * half + scale; j < 4 * half + n_four; j += 2) {
            const VI code = vi_load(w->code[j]);
#pragma GCC unroll 16
            for (int r = 0; r < n; r++) sum[r][scale] = DPBUSD(sum[r][scale], code, vi_set_four(x[r]->q + 4 * j));
        }
#else
        const VI one = _mm256_set1_epi16(1);
#pragma GCC unroll 4
        for (int j = 4 * half + scale; j < 4 * half + n_four; j += 2) {
            const VI code = vi_load(w->code[j]), size = _mm256_abs_epi8(code);
            const bool first = j == 4 * half + scale;
#pragma GCC unroll 16
            for (int r = 0; r < n; r++) {
                const VI q = vi_set_four(x[r]->q + 4 * j);
                if (width == WIDE) {
                    const VI fours = _mm256_madd_epi16(_mm256_maddubs_epi16(size, _mm256_sign_epi8(q, code)), one);
                    sum[r][scale] = first ? fours : _mm256_add_epi32(sum[r][scale], fours);
                } else {
                    const VI pairs = _mm256_maddubs_epi16(code, q);
                    sum[r][scale] = first ? pairs : _mm256_add_epi16(sum[r][scale], pairs);
                }
            }
        }
        if (width == NARROW) {
#pragma GCC unroll 16
            for (int r = 0; r < n; r++) {
                sum[r][scale] = _mm256_madd_epi16(sum[r][scale], one);
                if (!affine) sum[r][scale] = _mm256_add_epi32(sum[r][scale], vi_set(x[r]->start[2 * half + scale]));
            }
        }
#endif
    }
}

INLINE void product_rounded(float *y, int64_t y_stride, const GemmW *w, const GemmX *const *rows, const int n_x, const int n_block, const bool add,
                            const bool by_16, const bool affine, const Width width) {
    V acc[MOST_X];
    const GemmX *x[MOST_X];
#pragma GCC unroll 16
    for (int r = 0; r < n_x; r++) {
        x[r] = rows[r];
        acc[r] = v_zero();
    }
    for (int b = 0; b < n_block; b++, w++) {
        for (int half = 0; half < (by_16 ? 2 : 1); half++) {
#pragma GCC unroll 16
            for (int first = 0; first < n_x; first += GROUP_X) {
                const int n = n_x - first < GROUP_X ? n_x - first : GROUP_X;
                VI sum[GROUP_X][2];
                integer_sums(sum, w, x + first, n, half, by_16 ? 4 : 8, affine, width);
#pragma GCC unroll 16
                for (int r = first; r < first + n; r++) {
                    V both = v_mul(v_float(sum[r - first][0]), v_set(x[r]->d[0]));
                    both = v_madd(v_float(sum[r - first][1]), v_set(x[r]->d[1]), both);
                    acc[r] = v_madd(both, v_load(w->scale[half]), acc[r]);
                    if (affine) acc[r] = v_madd(v_load(w->min[half]), v_set(x[r]->sum[half]), acc[r]);
                }
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < n_x; r++) x[r]++;
    }
#pragma GCC unroll 16
    for (int r = 0; r < n_x; r++) v_store(y + r * y_stride, add ? v_add(v_load(y + r * y_stride), acc[r]) : acc[r]);
}

INLINE void product_float(float *y, int64_t y_stride, const float *w, const float *const *x, const int n_x, int first, int n_col, const bool add) {
    V acc[MOST_X][2];
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
INLINE void one_product(const GemmTile *t, float *y, int64_t y_stride, int o, const void *const *x, const int n_x) {
    const Form form = FORM[t->type];
    if (!type_wants_act8(t->type)) {
        for (int k = 0; k < t->n_col; k += FLOAT_RUN)
            product_float(y, y_stride, (const float *)t->tile + (int64_t)o * t->n_col + (int64_t)k * 2 * LANES, (const float *const *)x, n_x, t->first + k,
                          min_int(FLOAT_RUN, t->n_col - k), t->add || k > 0);
        return;
    }
    const int n_block = t->n_col / 32;
    const GemmW *w = (const GemmW *)t->tile + (int64_t)(o / LANES) * n_block;
    const GemmX *rows[MOST_X];
    for (int r = 0; r < n_x; r++) rows[r] = (const GemmX *)x[r] + t->first / 32;
    if (form.by_16 && form.affine) product_rounded(y, y_stride, w, rows, n_x, n_block, t->add, true, true, NARROW);
    else if (form.by_16) product_rounded(y, y_stride, w, rows, n_x, n_block, t->add, true, false, NARROW);
    else if (form.affine) product_rounded(y, y_stride, w, rows, n_x, n_block, t->add, false, true, NARROW);
#ifndef DPBUSD
    else if (form.width == WIDE) product_rounded(y, y_stride, w, rows, n_x, n_block, t->add, false, false, WIDE);
#endif
    else product_rounded(y, y_stride, w, rows, n_x, n_block, t->add, false, false, NARROW);
}

static void product(const GemmTile *t) {
    const int width = type_wants_act8(t->type) ? LANES : 2 * LANES;
    for (int r = 0, n; r < t->n_x; r += n) { // these few rows of x stay in the L1 cache for all of the tile
        const int left = t->n_x - r;
        n = left >= MOST_X ? MOST_X : left >= MOST_X / 2 ? MOST_X / 2 : left >= 2 ? 2 : 1;
        for (int o = 0; o < t->n_w; o += width) {
            float *y = t->y + r * t->y_stride + o, edge[MOST_X][2 * LANES];
            const int n_w = t->n_w - o < width ? t->n_w - o : width;
            const bool whole = n_w == width; // otherwise lanes without a row, whose tile holds anything, go to the edge
            for (int i = 0; !whole && i < n; i++) memcpy(edge[i], y + i * t->y_stride, sizeof(float) * (size_t)n_w);
            float *to = whole ? y : edge[0];
            const int64_t stride = whole ? t->y_stride : 2 * LANES;
            switch (n) {
            case MOST_X: one_product(t, to, stride, o, t->x + r, MOST_X); break;
            case MOST_X / 2: one_product(t, to, stride, o, t->x + r, MOST_X / 2); break;
            case 2: one_product(t, to, stride, o, t->x + r, 2); break;
            default: one_product(t, to, stride, o, t->x + r, 1); break;
            }
            for (int i = 0; !whole && i < n; i++) memcpy(y + i * t->y_stride, edge[i], sizeof(float) * (size_t)n_w);
        }
    }
}

static const GemmTable TABLE = {.pack = pack, .unpack = unpack, .product = product, .tile_cols = tile_cols,
                                .unpack_keys = unpack_keys, .unpack_values = unpack_values};

#endif
