// norm_cpu.c: RMSNorm, y = x / sqrt(mean(x^2) + eps) * w. Two passes over a row that stays in L1; threads share the rows.
#include <math.h>
#include "cpu.h"

void norm_cpu(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps) {
    const Cpu *c = cpu_of(b);
    const float *gain = w ? w->host : NULL;
#pragma omp parallel for num_threads(c->n_thread) if ((int64_t)n_rows * n_col > SMALL_WORK)
    for (int r = 0; r < n_rows; r++) {
        const float *in = x + (int64_t)r * n_col;
        float *out = y + (int64_t)r * n_col;
        const float s = 1 / sqrtf(c->vec->dot(in, in, n_col) / (float)n_col + eps);
        if (gain)
            for (int i = 0; i < n_col; i++) out[i] = in[i] * s * gain[i];
        else
            for (int i = 0; i < n_col; i++) out[i] = in[i] * s;
    }
}
