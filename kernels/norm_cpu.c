// norm_cpu.c: RMSNorm, y = x / sqrt(mean(x^2) + eps) * w. Two passes over a row that stays in L1; threads share the rows.
#include <math.h>
#include "cpu.h"

typedef struct {
    const Cpu *c;
    float *y;
    const float *gain, *x; // gain NULL: none
    int n_col;
    float eps;
} Norm;

static void norm_row(const void *args, int r, int thread) {
    const Norm *a = args;
    (void)thread;
    const float *in = a->x + (int64_t)r * a->n_col;
    float *out = a->y + (int64_t)r * a->n_col;
    const float s = 1 / sqrtf(a->c->vec->dot(in, in, a->n_col) / (float)a->n_col + a->eps);
    if (a->gain)
        for (int i = 0; i < a->n_col; i++) out[i] = in[i] * s * a->gain[i];
    else
        for (int i = 0; i < a->n_col; i++) out[i] = in[i] * s;
}

void norm_cpu(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps) {
    share(b, (int64_t)n_rows * n_col, norm_row, &(Norm){cpu_of(b), y, w ? w->host : NULL, x, n_col, eps}, n_rows);
}
