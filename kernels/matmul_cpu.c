// matmul_cpu.c: y = W x (+ bias). Threads share the weight rows; each reads its rows once for all rows of x.
//
// Weights are read from memory once per call, and decoding (one row of x) is bound by that. With several rows of x a chunk of
// weight rows stays in the L2 cache while DOT_ROWS rows of x at a time pass by in L1. Matrices that read the same rows are one
// loop of the pool: x is rounded once, and threads wait for each other once. Prompts: gemm_cpu.c.
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
    Inputs in;
    bool precise;
} Rounding;

static void round_row(const void *args, int r, int thread) {
    const Rounding *p = args;
    const Cpu *c = p->c;
    const int n_col = p->in.n_col;
    const float *x = p->in.x + (int64_t)r * n_col;
    char *act8 = c->act8 + r * act8_bytes(n_col);
    c->dot->quantize(act8, x, n_col);
    if (!p->precise) return;
    float *lost = c->lost + (int64_t)thread * c->limits.n_col;
    rounding_loss(lost, x, act8, n_col);
    c->dot->quantize(act8 + p->in.n_rows * act8_bytes(n_col), lost, n_col);
}

Inputs make_inputs(Backend *b, const float *x, int n_rows, int n_col, bool rounded, bool precise) {
    const Cpu *c = cpu_of(b);
    const Rounding p = {c, {.x = x, .act8 = c->act8, .lost = c->act8 + n_rows * act8_bytes(n_col), .n_rows = n_rows, .n_col = n_col}, precise};
    assert(!rounded || (n_rows <= c->limits.n_rows && n_col <= c->limits.n_col));
    if (rounded) share(b, (int64_t)n_rows * n_col, round_row, &p, n_rows);
    return p.in;
}

void multiply_part(const Cpu *c, float *y, int64_t y_stride, const Tensor *w, const Tensor *bias, Part p, const Rows *x) {
    const bool rounded = type_wants_act8(w->type);
    DotTile tile = {.y = y, .y_stride = y_stride, .w = tensor_row(w, p.slice, p.o), .w_stride = type_row_bytes(w->type, w->n_col), .n_w = p.n,
                    .x = rounded ? x->act8 : x->x, .n_x = x->n, .n_col = w->n_col};
    assert(c->dot->of[w->type] && p.n <= CHUNK_ROWS);
    c->dot->of[w->type](&tile);
    if (rounded && w->precise) {
        float small[DOT_ROWS * CHUNK_ROWS];
        tile.y = small, tile.y_stride = CHUNK_ROWS, tile.x = x->lost;
        c->dot->of[w->type](&tile);
        for (int r = 0; r < x->n; r++)
            for (int i = 0; i < p.n; i++) y[r * y_stride + i] += small[r * CHUNK_ROWS + i];
    }
    const float *add = bias ? (const float *)bias->host + p.o : NULL;
    for (int r = 0; add && r < x->n; r++)
        for (int i = 0; i < p.n; i++) y[r * y_stride + i] += add[i];
}

typedef struct {
    const Cpu *c;
    const Matmul *m;
    Inputs in;
} Products;

static int n_chunk(const Cpu *c, const Tensor *w) { return ceil_div(w->n_row, chunk_rows(w, c->n_thread)); }

static void multiply_chunk(const void *args, int chunk, int thread) { // chunks of the first matrix, then of the next
    const Products *p = args;
    const Matmul *m = p->m;
    (void)thread;
    for (; chunk >= n_chunk(p->c, m->w); m++) chunk -= n_chunk(p->c, m->w);
    const int step = chunk_rows(m->w, p->c->n_thread), o = chunk * step, n_row = m->w->n_row;
    for (int r = 0; r < p->in.n_rows; r += DOT_ROWS) {
        const Rows x = next_rows(&p->in, r);
        multiply_part(p->c, m->y + (int64_t)r * n_row + o, n_row, m->w, m->bias, (Part){0, o, min_int(step, n_row - o)}, &x);
    }
}

void matmuls_cpu(Backend *b, const Matmul *m, int n, const float *x, int n_rows) {
    const Cpu *c = cpu_of(b);
    if (gemm_wanted(b, n_rows)) {
        for (int k = 0; k < n; k++) gemm_cpu(b, m[k].y, m[k].w, m[k].bias, x, n_rows);
        return;
    }
    bool rounded = false, precise = false;
    int n_item = 0;
    int64_t size = 0;
    for (int k = 0; k < n; k++) {
        const bool wants = type_wants_act8(m[k].w->type);
        rounded |= wants;
        precise |= wants && m[k].w->precise;
        n_item += n_chunk(c, m[k].w);
        size += (int64_t)m[k].w->n_row * m[k].w->n_col * n_rows;
    }
    if (n) share(b, size, multiply_chunk, &(Products){c, m, make_inputs(b, x, n_rows, m->w->n_col, rounded, precise)}, n_item);
}

void matmul_cpu(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    matmuls_cpu(b, &(Matmul){y, w, bias}, 1, x, n_rows);
}
