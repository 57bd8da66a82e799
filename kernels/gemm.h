// gemm.h: products of many rows of x with a weight matrix, one table of functions per instruction set level.
//
// Reading a prompt, every weight meets dozens of rows of x. So weights are unpacked once, into a tile that stays in the L2
// cache, whatever their format is; one kernel then multiplies tiles with a few rows of x at a time. In a tile `lanes`
// neighbouring rows of W lie side by side, one in each lane of a vector, so that no sum runs across lanes:
//
//   rounded weights:  y[lane] = sum over 16 or 32 columns of  scale[lane] * d * I[lane] + min[lane] * sum x
//                     I = integer sum of code * code of x, d = the scale of x
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

// 32 columns of a row of x, one cache line: x[i] ~ d[i / 16] * q[i], d = max |x| / 127 of as many neighbours as a scale of the weights
// is for, 16 or 32: so both scales meet the same integer sum. Two scales (fine) for weights scaled per 32 leave 3/4 of the rounding noise and
// cost a sixth of the speed: only where a router follows, which may turn a small difference into another expert.
//
// Integer sums become floats at no cost: they begin at the bits of 1.5 * 2^23, which counts in ones, so that such a sum I is at
// once the float 1.5 * 2^23 + I, and one multiplication with addition makes d I of it, exactly, since d has 22 bits only:
//   d * (1.5 * 2^23 + I) + undo,  undo = -1.5 * 2^23 * d
typedef struct {
    int8_t q[32];
    float d[2], undo[2]; // [1] of what follows: of the second 16, or of all as [0]
    int32_t start[2]; // where the sums begin: those bits, minus what was added to the codes of W to make them unsigned times the sum of q
    float sum[2];     // of what the codes stand for
} GemmX;
#define GEMM_MAGIC 0x1.8p23f
enum { GEMM_MAGIC_BITS = 0x4b400000 };

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
    bool fine;            // of rounded x: scales per 16 even if those of the weights are per 32
} GemmTile;

typedef struct {
    void (*pack)(void *x, float *lost, const float *row, int n_col, TensorType type, bool fine); // GemmX [n_col / 32]; lost: what rounding takes away, or NULL
    void (*unpack)(void *tile, const char *w, int64_t w_stride, TensorType type, int n_w, int n_col);  // w: at the first column
    void (*product)(const GemmTile *t);
    int (*tile_cols)(TensorType type); // columns of GEMM_TILE_ROWS rows that fit a tile, a multiple of 256
    // A tile of keys, as rows of W (n_w = n_key, n_col = head_dim), or of values, as its columns (n_w = head_dim, n_col = n_key).
    void (*unpack_keys)(void *tile, const KeySpan *k);
    void (*unpack_values)(void *tile, const KeySpan *v);
} GemmTable;

// NULL where the compiler does not target x86-64 or lacks the instructions.
extern const GemmTable *const GEMM_AVX2, *const GEMM_AVXVNNI, *const GEMM_AVX512VNNI, *const GEMM_AMX;

#endif
