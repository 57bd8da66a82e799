// gated_cpu.c: act(gate) * up, and Gemma 3n's sparse gate
#include <math.h>
#include "cpu.h"

void gated_cpu(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act) {
    const Cpu *c = cpu_of(b);
    const int64_t piece = 4096;
#pragma omp parallel for num_threads(c->n_thread) if (n > SMALL_WORK)
    for (int64_t i = 0; i < n; i += piece) c->vec->gated(y + i, gate + i, up + i, n - i < piece ? n - i : piece, act);
}

void sparsify_cpu(Backend *b, float *x, float multiplier, int n_rows, int n_col) {
    (void)b; // unused without OpenMP
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if ((int64_t)n_rows * n_col > SMALL_WORK)
    for (int r = 0; r < n_rows; r++) {
        float *row = x + (int64_t)r * n_col;
        double sum = 0, squares = 0; // the cut is a small difference of large sums: in double, as ref
        for (int i = 0; i < n_col; i++) sum += row[i];
        const double mean = sum / n_col;
        for (int i = 0; i < n_col; i++) squares += (row[i] - mean) * (row[i] - mean);
        const float cut = (float)(mean + multiplier * sqrt(squares / (n_col > 1 ? n_col - 1 : 1)));
        for (int i = 0; i < n_col; i++) row[i] = row[i] > cut ? row[i] - cut : 0;
    }
}
