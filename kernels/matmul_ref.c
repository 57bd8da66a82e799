// matmul_ref.c: y = W x (+ bias). The weight row is dequantised to float32, the sum is double: exact but for the last rounding.
#include "ref.h"

static double dot(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)a[i] * b[i];
    return sum;
}

void matvec_ref(float *y, const Tensor *w, int slice, const float *x, float *row) {
    for (int o = 0; o < w->n_row; o++) {
        type_info(w->type)->to_f32(tensor_row(w, slice, o), row, w->n_col);
        y[o] = (float)dot(row, x, w->n_col);
    }
}

void matmul_ref(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    float *row = ((RefScratch *)b->priv)->row;
    const float *add = bias ? bias->host : NULL;
    for (int o = 0; o < w->n_row; o++) { // each weight row is unpacked once for all rows of x
        type_info(w->type)->to_f32(tensor_row(w, 0, o), row, w->n_col);
        for (int r = 0; r < n_rows; r++)
            y[(int64_t)r * w->n_row + o] = (float)(dot(row, x + (int64_t)r * w->n_col, w->n_col) + (add ? add[o] : 0.0f));
    }
}

void matmuls_ref(Backend *b, const Matmul *m, int n, const float *x, int n_rows) {
    for (int k = 0; k < n; k++) matmul_ref(b, m[k].y, m[k].w, m[k].bias, x, n_rows);
}
