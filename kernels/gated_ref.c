// gated_ref.c: act(gate) * up (GLU variants, arXiv 2002.05202), and Gemma 3n's sparse gate
#include <math.h>
#include "ref.h"

double activate_ref(double x, Activation act) {
    if (act == ACT_SILU) return x / (1 + exp(-x));
    const double sqrt_2_over_pi = 0.7978845608028654; // GELU, tanh form: arXiv 1606.08415
    return 0.5 * x * (1 + tanh(sqrt_2_over_pi * x * (1 + 0.044715 * x * x)));
}

void gated_ref(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act) {
    (void)b;
    for (int64_t i = 0; i < n; i++) y[i] = (float)(activate_ref(gate[i], act) * up[i]);
}

void gated_matmul_ref(Backend *b, const GatedArgs *a) {
    const int n_ff = a->gate->n_row;
    matmul_ref(b, a->y, a->gate, a->gate_bias, a->x, a->n_rows);
    if (a->up) matmul_ref(b, a->scratch, a->up, a->up_bias, a->x, a->n_rows);
    else copy_rows_ref(b, a->scratch, n_ff, a->factor, a->factor_stride, a->n_rows, n_ff);
    gated_ref(b, a->y, a->y, a->scratch, (int64_t)a->n_rows * n_ff, a->act);
}

void sparsify_ref(Backend *b, float *x, float multiplier, int n_rows, int n_col) {
    (void)b;
    for (int r = 0; r < n_rows; r++, x += n_col) {
        double mean = 0, squares = 0;
        for (int i = 0; i < n_col; i++) mean += x[i];
        mean /= n_col;
        for (int i = 0; i < n_col; i++) squares += (x[i] - mean) * (x[i] - mean);
        const double cut = mean + multiplier * sqrt(squares / (n_col > 1 ? n_col - 1 : 1));
        for (int i = 0; i < n_col; i++) x[i] = x[i] > cut ? (float)(x[i] - cut) : 0;
    }
}
