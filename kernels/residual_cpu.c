// residual_cpu.c: the small ops on the residual stream. They move a few floats: loops that compilers vectorise are enough.
#include <math.h>
#include "cpu.h"

void add_cpu(Backend *b, float *x, const float *y, int64_t n) {
    (void)b; // unused without OpenMP
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if (n > SMALL_WORK)
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

void scale_cpu(Backend *b, float *x, float s, int64_t n) {
    (void)b; // unused without OpenMP
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if (n > SMALL_WORK)
    for (int64_t i = 0; i < n; i++) x[i] *= s;
}

void softcap_cpu(Backend *b, float *x, float cap, int64_t n) {
    const Cpu *c = cpu_of(b);
    const int64_t piece = 4096;
#pragma omp parallel for num_threads(c->n_thread) if (n > SMALL_WORK)
    for (int64_t i = 0; i < n; i += piece) c->vec->softcap(x + i, cap, n - i < piece ? n - i : piece);
}

// The component is left near zero only if the dot product is exact: in double, as ref.
void project_out_cpu(Backend *b, const ProjectArgs *a) {
    (void)b; // unused without OpenMP
    const int n_rows = a->n_rows, n_col = a->n_col;
    const float *dir = a->dir;
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if ((int64_t)n_rows * n_col > SMALL_WORK)
    for (int r = 0; r < n_rows; r++) {
        float *row = a->x + (int64_t)r * n_col;
        double lane[4] = {0};
        int i = 0;
        for (; i + 4 <= n_col; i += 4)
            for (int k = 0; k < 4; k++) lane[k] += (double)dir[i + k] * row[i + k];
        for (int k = 0; i + k < n_col; k++) lane[k] += (double)dir[i + k] * row[i + k];
        const double above = (lane[0] + lane[1]) + (lane[2] + lane[3]) - a->keep;
        if (a->one_sided && above <= 0) continue;
        const double along = a->amount * above;
        for (i = 0; i < n_col; i++) row[i] = (float)(row[i] - along * dir[i]);
    }
}

void add_dir_cpu(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount) {
    (void)b; // unused without OpenMP
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if ((int64_t)n_rows * n_col > SMALL_WORK)
    for (int r = 0; r < n_rows; r++)
        for (int i = 0; i < n_col; i++) x[(int64_t)r * n_col + i] += amount * dir[i];
}

void copy_rows_cpu(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col) {
    (void)b;
    for (int r = 0; r < n_rows; r++) memmove(dst + (int64_t)r * dst_stride, src + (int64_t)r * src_stride, sizeof(float) * (size_t)n_col);
}

void mul_cols_cpu(Backend *b, float *x, const Tensor *w, int n_rows) {
    (void)b; // unused without OpenMP
    const float *gain = w->host;
    const int n_col = w->n_col;
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if ((int64_t)n_rows * n_col > SMALL_WORK)
    for (int r = 0; r < n_rows; r++)
        for (int i = 0; i < n_col; i++) x[(int64_t)r * n_col + i] *= gain[i];
}

void mix_streams_cpu(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col) {
    (void)b; // unused without OpenMP
    const int64_t stream = (int64_t)n_rows * n_col;
#pragma omp parallel for collapse(2) num_threads(cpu_of(b)->n_thread) if (stream * n_out > SMALL_WORK)
    for (int j = 0; j < n_out; j++)
        for (int r = 0; r < n_rows; r++) {
            const float *c = coef + ((int64_t)r * n_out + j) * n_in;
            float *out = y + j * stream + (int64_t)r * n_col;
            for (int s = 0; s < n_in; s++) {
                const float *in = x + s * stream + (int64_t)r * n_col;
                for (int i = 0; i < n_col; i++) out[i] += c[s] * in[i];
            }
        }
}

void match_length_cpu(Backend *b, float *u, const float *target, int n_rows, int n_col) {
    const Cpu *c = cpu_of(b);
#pragma omp parallel for num_threads(c->n_thread) if ((int64_t)n_rows * n_col > SMALL_WORK)
    for (int r = 0; r < n_rows; r++) {
        float *row = u + (int64_t)r * n_col;
        const float *other = target + (int64_t)r * n_col;
        const float have = c->vec->dot(row, row, n_col), want = c->vec->dot(other, other, n_col);
        const float s = have > 0 ? sqrtf(want / have) : 0;
        for (int i = 0; i < n_col; i++) row[i] *= s;
    }
}
