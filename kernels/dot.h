// dot.h: dot products of weight rows with activation rows, one table of functions per instruction set level.
//
// F32, F16 and BF16 weights are multiplied with the float32 activations as they are. All other types are multiplied with
// activations rounded to 8 bits, in one format for all of them ("act8"), in blocks of 32 codes. A block has two scales: one
// for the elements whose index has bit 2 clear (0-3, 8-11, 16-19, 24-27), one for the others. So 32 products summed in fours
// to eight lanes are scaled by one 64-bit broadcast, and 16 codes per scale have 3/4 of the rounding noise of 32.
// For every 16 neighbours there is the sum of what the codes stand for. A weight w = s * code + m then needs no arithmetic
// per element for m:  sum w x = s * sum code x + m * sum x
#ifndef DOT_H
#define DOT_H

#include "quant.h"

enum {
    DOT_ROWS = 4,    // activation rows that share one unpacking of the weights
    DOT_STREAMS = 4, // weight rows read at the same time
    PREFETCH = 2048  // bytes ahead in each of them, into L1: long enough for memory, and little is left over at the end of a chunk
};

// One act8 row of n_col elements (a multiple of 32), in one piece of memory aligned to 64 bytes:
//   int8_t q[n_col]; float d[n_col / 32][2]; float sum[n_col / 16]
// x[i] ~ d[i / 32][i / 4 % 2] * q[i] with d = max |x| / 127 over its 16 elements
static inline const int8_t *act8_codes(const void *row) { return row; }
static inline const float *act8_scales(const void *row, int n_col) { return (const float *)((const char *)row + n_col); }
static inline const float *act8_sums(const void *row, int n_col) { return act8_scales(row, n_col) + n_col / 16; }
static inline int64_t act8_bytes(int n_col) { return ((int64_t)n_col + n_col / 2 + 63) / 64 * 64; } // a row, padded to whole lines
#define ACT8_SMALLEST 0x1p-100f // groups below this become zeros: 127 / max must not overflow
static inline bool type_wants_act8(TensorType type) { return type_info((int)type)->block > 1; }

// y[r * y_stride + o] = w[o] . x[r] for n_w rows of weights and n_x <= DOT_ROWS rows of activations.
// The value of an output does not depend on n_w and n_x: the sums are formed in one fixed order.
typedef struct {
    float *y;
    int64_t y_stride;
    const void *w;       // first weight row; the rows are w_stride bytes apart
    int64_t w_stride;
    int n_w;
    const void *const *x; // [n_x] pointers: act8 rows, or float rows for F32, F16 and BF16
    int n_x;
    int n_col;
} DotTile;

typedef void Dot(const DotTile *tile);

typedef struct {
    void (*quantize)(void *act8, const float *x, int n_col);
    Dot *of[TYPE_COUNT]; // NULL: not a type we compute with
} DotTable;

// The table of one level, whose functions have these names.
#define DOT_TABLE {                                                                                                                  \
    .quantize = quantize,                                                                                                            \
    .of = {                                                                                                                          \
        [TYPE_F32] = dot_f32, [TYPE_F16] = dot_f16, [TYPE_BF16] = dot_bf16,                                                          \
        [TYPE_Q4_0] = dot_q4_0, [TYPE_Q4_1] = dot_q4_1, [TYPE_Q5_0] = dot_q5_0, [TYPE_Q5_1] = dot_q5_1, [TYPE_Q8_0] = dot_q8_0,      \
        [TYPE_IQ4_NL] = dot_iq4_nl, [TYPE_MXFP4] = dot_mxfp4,                                                                        \
        [TYPE_Q2_K] = dot_q2_k, [TYPE_Q3_K] = dot_q3_k, [TYPE_Q4_K] = dot_q4_k, [TYPE_Q5_K] = dot_q5_k, [TYPE_Q6_K] = dot_q6_k,      \
        [TYPE_IQ4_XS] = dot_iq4_xs,                                                                                                  \
    },                                                                                                                               \
}

// NULL where the compiler does not target x86-64 or lacks the instructions.
extern const DotTable *const DOT_PORTABLE, *const DOT_AVX2, *const DOT_AVXVNNI, *const DOT_AVX512VNNI;

#endif
