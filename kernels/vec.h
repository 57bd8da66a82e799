// vec.h: float32 and float16 helpers of the cpu backend, one table per instruction set level.
// Every result depends only on the elements and their number, never on how many rows or threads work beside it.
#ifndef VEC_H
#define VEC_H

#include "backend.h"

enum {
    VEC_ROWS = 4 // query rows that share one conversion of keys and values
};

// n_key rows of a ring of cells: row j is that of cell (first + j) % n_cell.
typedef struct {
    const void *rows;  // [n_cell][head_dim] halves; or, with scales, codes of Q8_0, a byte each:
    const F16 *scale;  // [n_cell][head_dim / 32]; NULL: halves
    int n_cell, head_dim;
    int first, n_key; // first < n_cell, n_key <= n_cell
} KeySpan;

static inline int64_t span_cell(const KeySpan *s, int j) { return s->first + j < s->n_cell ? s->first + j : s->first + j - s->n_cell; }
static inline const F16 *span_row(const KeySpan *s, int j) { return (const F16 *)s->rows + span_cell(s, j) * s->head_dim; }
static inline const int8_t *span_codes(const KeySpan *s, int j) { return (const int8_t *)s->rows + span_cell(s, j) * s->head_dim; }
static inline const F16 *span_scales(const KeySpan *s, int j) { return s->scale + span_cell(s, j) * (s->head_dim / 32); }

typedef struct {
    float (*dot)(const float *a, const float *b, int n);
    void (*to_f16)(F16 *y, const float *x, int n);
    void (*to_q8_0)(int8_t *code, F16 *scale, const float *x, int n); // quantize_q8_0, n a multiple of 32
    // score[r * stride + j] = q[r] . key j, for n_q <= VEC_ROWS queries of head_dim floats, head_dim floats apart each in q[r]
    void (*keys)(float *score, int64_t stride, const float *const *q, int n_q, const KeySpan *k);
    // y[r][i] += sum over j of p[r * stride + j] * value j [i]; the sum over j is formed first
    void (*values)(float *const *y, const float *p, int64_t stride, int n_q, const KeySpan *v);
    // x[i] = exp(x[i] - highest); returns their sum
    float (*exp_sum)(float *x, float highest, int n);
    float (*largest)(const float *x, int n); // n >= 1
    void (*softcap)(float *x, float cap, int64_t n);
    void (*gated)(float *y, const float *gate, const float *up, int64_t n, Activation act);
} VecTable;

// NULL where the compiler does not target x86-64 or lacks the instructions.
extern const VecTable *const VEC_PORTABLE, *const VEC_AVX2, *const VEC_AVX512;

// The elementary functions of all levels, with about 1e-7 relative error (S. L. Moshier, Cephes, expf.c and tanhf.c):
//   exp x = 2^n exp r, r = x - n ln 2 in [-0.35, 0.35], exp r = 1 + r + r^2 P(r);
//   tanh x = x + x^3 T(x^2) for |x| < 0.625, else sign(x) (1 - 2 / (exp 2|x| + 1)).
// Arguments of exp are cut to [-87, 88], so that neither 0 nor infinity appears.
#define EXP_LOW -87.0f
#define EXP_HIGH 88.0f
#define LOG2_E 1.44269504088896341f
#define LN2_HIGH 0.693359375f
#define LN2_LOW -2.12194440e-4f
#define EXP_P0 1.9875691500e-4f
#define EXP_P1 1.3981999507e-3f
#define EXP_P2 8.3334519073e-3f
#define EXP_P3 4.1665795894e-2f
#define EXP_P4 1.6666665459e-1f
#define EXP_P5 5.0000001201e-1f
#define TANH_SMALL 0.625f
#define TANH_T0 -5.70498872745e-3f
#define TANH_T1 2.06390887954e-2f
#define TANH_T2 -5.37397155531e-2f
#define TANH_T3 1.33314422036e-1f
#define TANH_T4 -3.33332819422e-1f
// GELU, tanh form: x/2 (1 + tanh u) = x / (1 + exp(-2u)), u = sqrt(2/pi) (x + 0.044715 x^3)
#define GELU_TWICE_ROOT 1.5957691216057308f
#define GELU_CUBIC 0.044715f

#endif
