// matmul_cpu.c: y = W x (+ bias). Threads share the weight rows; each reads its rows once for all rows of x.
//
// Weights are read from memory once per call, and decoding (one row of x) is bound by that. With many rows of x a chunk of
// weight rows stays in the L2 cache while DOT_ROWS rows of x at a time pass by in L1.
#include "cpu.h"

void matmul_cpu(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    const Cpu *c = cpu_of(b);
    const int n_col = w->n_col, n_row = w->n_row, step = chunk_rows(w, c->n_thread), n_chunk = ceil_div(n_row, step);
    const bool rounded = type_wants_act8(w->type);
    const int64_t x_stride = rounded ? act8_bytes(n_col) : (int64_t)sizeof(float) * n_col, w_stride = type_row_bytes(w->type, n_col);
    const void *rows = rounded ? (const void *)c->act8 : x;
    Dot *dot = c->dot->of[w->type];
    const float *add = bias ? bias->host : NULL;
    assert(dot && (!rounded || (n_rows <= c->limits.n_rows && n_col <= c->limits.n_col)));

#pragma omp parallel num_threads(c->n_thread) if ((int64_t)n_row * n_col * n_rows > SMALL_WORK)
    {
        if (rounded) {
#pragma omp for schedule(static)
            for (int r = 0; r < n_rows; r++) c->dot->quantize(c->act8 + r * x_stride, x + (int64_t)r * n_col, n_col);
        }
#pragma omp for schedule(dynamic)
        for (int chunk = 0; chunk < n_chunk; chunk++) {
            const int o = chunk * step, n_w = min_int(step, n_row - o);
            for (int r = 0; r < n_rows; r += DOT_ROWS) {
                const void *xs[DOT_ROWS];
                const int n_x = min_int(DOT_ROWS, n_rows - r);
                row_pointers(xs, rows, x_stride, r, n_x);
                dot(&(DotTile){.y = y + (int64_t)r * n_row + o, .y_stride = n_row, .w = tensor_row(w, 0, o), .w_stride = w_stride, .n_w = n_w,
                               .x = xs, .n_x = n_x, .n_col = n_col});
            }
            for (int r = 0; add && r < n_rows; r++)
                for (int i = o; i < o + n_w; i++) y[(int64_t)r * n_row + i] += add[i];
        }
    }
}
