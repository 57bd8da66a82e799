// matmul_cpu.c: y = W x (+ bias). Threads share the weight rows; each reads its rows once for all rows of x.
//
// Weights are read from memory once per call, and decoding (one row of x) is bound by that. With many rows of x a chunk of
// weight rows stays in the L2 cache while DOT_ROWS rows of x at a time pass by in L1.
//
// Precise products of quantised weights (Tensor.precise) take two terms: the rounded inputs, and what the rounding lost,
// rounded in turn. That is 16 bits at twice the arithmetic; the second pass over a chunk of weights finds it in the cache.
#include "cpu.h"

// out[i] = x[i] - what its code stands for
static void rounding_loss(float *out, const float *x, const void *act8, int n_col) {
    const int8_t *q = act8_codes(act8);
    const float *d = act8_scales(act8, n_col);
    for (int i = 0; i < n_col; i++) out[i] = x[i] - d[i / 32 * 2 + i / 4 % 2] * (float)q[i];
}

void matmul_cpu(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    const Cpu *c = cpu_of(b);
    const int n_col = w->n_col, n_row = w->n_row, step = chunk_rows(w, c->n_thread), n_chunk = ceil_div(n_row, step);
    const bool rounded = type_wants_act8(w->type), twice = rounded && w->precise;
    const int64_t x_stride = rounded ? act8_bytes(n_col) : (int64_t)sizeof(float) * n_col, w_stride = type_row_bytes(w->type, n_col);
    const void *rows = rounded ? (const void *)c->act8 : x;
    char *second = c->act8 + n_rows * x_stride;
    Dot *dot = c->dot->of[w->type];
    const float *add = bias ? bias->host : NULL;
    assert(dot && (!rounded || (n_rows <= c->limits.n_rows && n_col <= c->limits.n_col)));

#pragma omp parallel num_threads(c->n_thread) if ((int64_t)n_row * n_col * n_rows > SMALL_WORK)
    {
        if (rounded) {
#pragma omp for schedule(static)
            for (int r = 0; r < n_rows; r++) {
                c->dot->quantize(c->act8 + r * x_stride, x + (int64_t)r * n_col, n_col);
                if (!twice) continue;
                float *lost = c->lost + (int64_t)omp_get_thread_num() * c->limits.n_col;
                rounding_loss(lost, x + (int64_t)r * n_col, c->act8 + r * x_stride, n_col);
                c->dot->quantize(second + r * x_stride, lost, n_col);
            }
        }
#pragma omp for schedule(dynamic)
        for (int chunk = 0; chunk < n_chunk; chunk++) {
            const int o = chunk * step, n_w = min_int(step, n_row - o);
            for (int r = 0; r < n_rows; r += DOT_ROWS) {
                const void *xs[DOT_ROWS];
                const int n_x = min_int(DOT_ROWS, n_rows - r);
                row_pointers(xs, rows, x_stride, r, n_x);
                DotTile tile = {.y = y + (int64_t)r * n_row + o, .y_stride = n_row, .w = tensor_row(w, 0, o), .w_stride = w_stride, .n_w = n_w,
                                .x = xs, .n_x = n_x, .n_col = n_col};
                dot(&tile);
                if (!twice) continue;
                float small[DOT_ROWS * CHUNK_ROWS];
                row_pointers(xs, second, x_stride, r, n_x);
                tile.y = small;
                tile.y_stride = CHUNK_ROWS;
                dot(&tile);
                for (int k = 0; k < n_x; k++)
                    for (int i = 0; i < n_w; i++) y[(int64_t)(r + k) * n_row + o + i] += small[k * CHUNK_ROWS + i];
            }
            for (int r = 0; add && r < n_rows; r++)
                for (int i = o; i < o + n_w; i++) y[(int64_t)r * n_row + i] += add[i];
        }
    }
}
