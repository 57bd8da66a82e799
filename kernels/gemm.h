// gemm.h: products of many rows of x with a weight matrix, one table of functions per instruction set level.
//
// Reading a prompt, every weight meets dozens of rows of x. So weights are unpacked once, into a tile that stays in the L2
// cache, whatever their format is; one kernel then multiplies tiles with a few rows of x at a time. In a tile `lanes`
// neighbouring rows of W lie side by side, one in each lane of a vector, so that no sum runs across lanes:
//
//   rounded weights:  y[lane] = sum over blocks of 32 of  scale[lane] * (d0 * I0[lane] + d1 * I1[lane]) + min[lane] * sum x
//                     I0, I1 = integer sums of code * act8 code under the first and the second activation scale (dot.h)
//   float weights:    y[lane] = sum over k of w[k][lane] * x[k]
//
// An output's sum has one order, whatever rows are beside it. It is another order than that of dot.h: which of the two is used
// is decided per batch of tokens (gemm_cpu.c), so that rows dropped or added within a batch change nothing for the others.
#ifndef GEMM_H
#define GEMM_H

#include "vec.h"

enum {
    GEMM_FROM = 5,                // tokens of a batch: one more than a pass of dot.h takes
    GEMM_TILE_ROWS = 64,          // most weight rows unpacked at a time,
    GEMM_TILE_BYTES = 192 * 1024  // into this much memory per thread: fits an L2 cache of 256 KiB
};

// A block of 32 of an act8 row, one cache line. start[i] undoes what was added to the weights to make them unsigned: minus that
// times the sum of the codes under scale i; two for the block, or for formats scaled per 16 two for each half. sum likewise.
typedef struct {
    int8_t q[32];
    float d[2];
    int32_t start[4];
    float sum[2];
} GemmX;

// Rows of x lie an odd number of lines apart: a power of two would map them all to the same lines of the L1 cache.
static inline int64_t gemm_x_bytes(int n_col) { return ((int64_t)n_col / 32 | 1) * (int64_t)sizeof(GemmX); }

// y[r * y_stride + o] = (add ? y[..] : 0) + sum over columns [first, first + n_col) of w[o] . x[r], o < n_w
typedef struct {
    float *y;
    int64_t y_stride;
    const void *tile;     // made by unpack
    TensorType type;      // of the weights
    int n_w;              // rows of the tile, at most GEMM_TILE_ROWS
    const void *const *x; // [n_x] GemmX rows, or float rows for F32, F16 and BF16
    int n_x;
    int first, n_col;     // multiples of 32 for rounded weights
    bool add;
} GemmTile;

typedef struct {
    void (*pack)(void *x, const void *act8, int n_col, TensorType type);                               // GemmX [n_col / 32]
    void (*unpack)(void *tile, const char *w, int64_t w_stride, TensorType type, int n_w, int n_col);  // w: at the first column
    void (*product)(const GemmTile *t);
    int (*tile_cols)(TensorType type); // columns of GEMM_TILE_ROWS rows that fit a tile, a multiple of 256
    // A tile of float16 keys, as rows of W (n_w = n_key, n_col = head_dim), or of values, as its columns (n_w = head_dim, n_col = n_key).
    void (*unpack_keys)(void *tile, const KeySpan *k);
    void (*unpack_values)(void *tile, const KeySpan *v);
} GemmTable;

// NULL where the compiler does not target x86-64 or lacks the instructions.
extern const GemmTable *const GEMM_AVX2, *const GEMM_AVXVNNI, *const GEMM_AVX512VNNI;

#endif
