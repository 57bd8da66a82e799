// matmul_cpu.c: y = W x (+ bias). Threads share the weight rows; each reads its rows once for all rows of x.
//
// Weights are read from memory once per call, and decoding (one row of x) is bound by that. With several rows of x a chunk of
// weight rows stays in the L2 cache while DOT_ROWS rows of x at a time pass by in L1. Prompts: gemm_cpu.c.
//
// Precise products of quantised weights (Tensor.precise) take two terms: the rounded inputs, and what the rounding lost,
// rounded in turn. That is 16 bits at twice the arithmetic; the second pass over a chunk of weights finds it in the cache.
#include "cpu.h"

void rounding_loss(float *out, const float *x, const void *act8, int n_col) {
    const int8_t *q = act8_codes(act8);
    const float *d = act8_scales(act8, n_col);
    for (int i = 0; i < n_col; i++) out[i] = x[i] - d[i / 32 * 2 + i / 4 % 2] * (float)q[i];
}

typedef struct {
    const Cpu *c;
    float *y;
    const Tensor *w;
    const float *bias, *x; // bias NULL: none
    int n_rows, step;      // step: weight rows of a chunk
    bool twice;
    const char *rows, *second; // rows of x as the dot products want them, x_stride bytes apart; what rounding lost
    int64_t x_stride;
} Product;

static void round_row(const void *args, int r, int thread) {
    const Product *p = args;
    const Cpu *c = p->c;
    const int n_col = p->w->n_col;
    const float *x = p->x + (int64_t)r * n_col;
    char *first = c->act8 + r * p->x_stride;
    c->dot->quantize(first, x, n_col);
    if (!p->twice) return;
    float *lost = c->lost + (int64_t)thread * c->limits.n_col;
    rounding_loss(lost, x, first, n_col);
    c->dot->quantize(c->act8 + (p->n_rows + r) * p->x_stride, lost, n_col);
}

static void multiply_chunk(const void *args, int chunk, int thread) {
    const Product *p = args;
    const Tensor *w = p->w;
    Dot *dot = p->c->dot->of[w->type];
    const int o = chunk * p->step, n_row = w->n_row, n_w = min_int(p->step, n_row - o);
    (void)thread;
    for (int r = 0; r < p->n_rows; r += DOT_ROWS) {
        const void *xs[DOT_ROWS];
        const int n_x = min_int(DOT_ROWS, p->n_rows - r);
        row_pointers(xs, p->rows, p->x_stride, r, n_x);
        DotTile tile = {.y = p->y + (int64_t)r * n_row + o, .y_stride = n_row, .w = tensor_row(w, 0, o), .w_stride = type_row_bytes(w->type, w->n_col),
                        .n_w = n_w, .x = xs, .n_x = n_x, .n_col = w->n_col};
        dot(&tile);
        if (!p->twice) continue;
        float small[DOT_ROWS * CHUNK_ROWS];
        row_pointers(xs, p->second, p->x_stride, r, n_x);
        tile.y = small;
        tile.y_stride = CHUNK_ROWS;
        dot(&tile);
        for (int k = 0; k < n_x; k++)
            for (int i = 0; i < n_w; i++) p->y[(int64_t)(r + k) * n_row + o + i] += small[k * CHUNK_ROWS + i];
    }
    for (int r = 0; p->bias && r < p->n_rows; r++)
        for (int i = o; i < o + n_w; i++) p->y[(int64_t)r * n_row + i] += p->bias[i];
}

void matmul_cpu(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    if (gemm_cpu(b, y, w, bias, x, n_rows)) return;
    const Cpu *c = cpu_of(b);
    const int n_col = w->n_col, step = chunk_rows(w, c->n_thread);
    const bool rounded = type_wants_act8(w->type);
    const int64_t x_stride = rounded ? act8_bytes(n_col) : (int64_t)sizeof(float) * n_col, size = (int64_t)w->n_row * n_col * n_rows;
    const Product p = {.c = c, .y = y, .w = w, .bias = bias ? bias->host : NULL, .x = x, .n_rows = n_rows, .step = step, .twice = rounded && w->precise,
                       .rows = rounded ? c->act8 : (const char *)x, .second = c->act8 + n_rows * x_stride, .x_stride = x_stride};
    assert(c->dot->of[w->type] && (!rounded || (n_rows <= c->limits.n_rows && n_col <= c->limits.n_col)));
    if (rounded) share(b, size, round_row, &p, n_rows);
    share(b, size, multiply_chunk, &p, ceil_div(w->n_row, step));
}
