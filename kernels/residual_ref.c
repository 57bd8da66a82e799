// residual_ref.c: the small ops on the residual stream: add, scale, soft cap, projection, copies, and Gemma 3n's streams
#include <math.h>
#include "ref.h"

void add_ref(Backend *b, float *x, const float *y, int64_t n) {
    (void)b;
    for (int64_t i = 0; i < n; i++) x[i] += y[i];
}

void scale_ref(Backend *b, float *x, float s, int64_t n) {
    (void)b;
    for (int64_t i = 0; i < n; i++) x[i] *= s;
}

void softcap_ref(Backend *b, float *x, float cap, int64_t n) {
    (void)b;
    for (int64_t i = 0; i < n; i++) x[i] = (float)(cap * tanh((double)x[i] / cap));
}

void project_out_ref(Backend *b, const ProjectArgs *a) {
    (void)b;
    float *x = a->x;
    for (int r = 0; r < a->n_rows; r++, x += a->n_col) {
        double along = -(double)a->keep;
        for (int i = 0; i < a->n_col; i++) along += (double)a->dir[i] * x[i];
        if (a->one_sided && along <= 0) continue;
        for (int i = 0; i < a->n_col; i++) x[i] = (float)(x[i] - a->amount * along * a->dir[i]);
    }
}

void add_dir_ref(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount) {
    (void)b;
    for (int r = 0; r < n_rows; r++, x += n_col)
        for (int i = 0; i < n_col; i++) x[i] += amount * dir[i];
}

void copy_rows_ref(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col) {
    (void)b;
    for (int r = 0; r < n_rows; r++) memmove(dst + (int64_t)r * dst_stride, src + (int64_t)r * src_stride, sizeof(float) * (size_t)n_col);
}

void mul_cols_ref(Backend *b, float *x, const Tensor *w, int n_rows) {
    (void)b;
    const float *gain = w->host;
    for (int r = 0; r < n_rows; r++, x += w->n_col)
        for (int i = 0; i < w->n_col; i++) x[i] *= gain[i];
}

void mix_streams_ref(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col) {
    (void)b;
    const int64_t stream = (int64_t)n_rows * n_col;
    for (int j = 0; j < n_out; j++)
        for (int r = 0; r < n_rows; r++) {
            const float *c = coef + ((int64_t)r * n_out + j) * n_in;
            float *out = y + j * stream + (int64_t)r * n_col;
            for (int i = 0; i < n_col; i++) {
                double sum = out[i];
                for (int s = 0; s < n_in; s++) sum += (double)c[s] * x[s * stream + (int64_t)r * n_col + i];
                out[i] = (float)sum;
            }
        }
}

void match_length_ref(Backend *b, float *u, const float *target, int n_rows, int n_col) {
    (void)b;
    for (int r = 0; r < n_rows; r++, u += n_col, target += n_col) {
        double have = 0, want = 0;
        for (int i = 0; i < n_col; i++) {
            have += (double)u[i] * u[i];
            want += (double)target[i] * target[i];
        }
        const double s = have > 0 ? sqrt(want / have) : 0;
        for (int i = 0; i < n_col; i++) u[i] = (float)(u[i] * s);
    }
}
