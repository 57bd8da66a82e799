// gated_cpu.c: act(gate) * up, alone and with the products that make them, and Gemma 3n's sparse gate
//
// Decoding, a work item is the same rows of both matrices: their outputs are still in L1 when they are combined, and threads wait
// for each other once. Prompts: gemm_cpu.c, one product after the other.
#include <math.h>
#include "cpu.h"

typedef struct {
    const VecTable *vec;
    float *y;
    const float *gate, *up;
    int64_t n;
    Activation act;
} Gated;

static void gated_piece(const void *args, int piece, int thread) {
    const Gated *a = args;
    (void)thread;
    const int64_t i = (int64_t)piece * PIECE;
    a->vec->gated(a->y + i, a->gate + i, a->up + i, a->n - i < PIECE ? a->n - i : PIECE, a->act);
}

void gated_cpu(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act) {
    share(b, n, gated_piece, &(Gated){cpu_of(b)->vec, y, gate, up, n, act}, n_piece(n));
}

void gate_part(const Cpu *c, float *y, int64_t y_stride, const GatedArgs *a, Part p, const Rows *x) {
    float up[DOT_ROWS * CHUNK_ROWS];
    multiply_part(c, y, y_stride, a->gate, a->gate_bias, p, x);
    multiply_part(c, up, CHUNK_ROWS, a->up, a->up_bias, p, x);
    for (int r = 0; r < x->n; r++) c->vec->gated(y + r * y_stride, y + r * y_stride, up + r * CHUNK_ROWS, p.n, a->act);
}

typedef struct {
    const Cpu *c;
    const GatedArgs *a;
    Inputs in;
    int step;
} GatedProduct;

static void gate_chunk(const void *args, int chunk, int thread) {
    const GatedProduct *p = args;
    const Cpu *c = p->c;
    const GatedArgs *a = p->a;
    const int n_ff = a->gate->n_row, o = chunk * p->step;
    const Part part = {0, o, min_int(p->step, n_ff - o)};
    (void)thread;
    for (int r = 0; r < a->n_rows; r += DOT_ROWS) {
        const Rows x = next_rows(&p->in, r);
        float *y = a->y + (int64_t)r * n_ff + o;
        if (a->up) gate_part(c, y, n_ff, a, part, &x);
        else multiply_part(c, y, n_ff, a->gate, a->gate_bias, part, &x);
        for (int k = 0; !a->up && k < x.n; k++)
            c->vec->gated(y + (int64_t)k * n_ff, y + (int64_t)k * n_ff, a->factor + (int64_t)(r + k) * a->factor_stride + o, part.n, a->act);
    }
}

void gated_matmul_cpu(Backend *b, const GatedArgs *a) {
    const Cpu *c = cpu_of(b);
    const int n_ff = a->gate->n_row, n_col = a->gate->n_col;
    if (gemm_wanted(b, a->n_rows)) {
        matmul_cpu(b, a->y, a->gate, a->gate_bias, a->x, a->n_rows);
        if (a->up) matmul_cpu(b, a->scratch, a->up, a->up_bias, a->x, a->n_rows);
        else copy_rows_cpu(b, a->scratch, n_ff, a->factor, a->factor_stride, a->n_rows, n_ff);
        gated_cpu(b, a->y, a->y, a->scratch, (int64_t)a->n_rows * n_ff, a->act);
        return;
    }
    const bool rounded = type_wants_act8(a->gate->type), up_rounded = a->up && type_wants_act8(a->up->type);
    const GatedProduct p = {c, a, make_inputs(b, a->x, a->n_rows, n_col, rounded || up_rounded, (rounded && a->gate->precise) || (up_rounded && a->up->precise)),
                            chunk_rows(a->gate, c->n_thread)};
    share(b, (int64_t)a->n_rows * n_ff * n_col * (a->up ? 2 : 1), gate_chunk, &p, ceil_div(n_ff, p.step));
}

typedef struct {
    float *x;
    float multiplier;
    int n_col;
} Sparsify;

static void sparsify_row(const void *args, int r, int thread) {
    const Sparsify *a = args;
    (void)thread;
    const int n_col = a->n_col;
    float *row = a->x + (int64_t)r * n_col;
    double sum = 0, squares = 0; // the cut is a small difference of large sums: in double, as ref
    for (int i = 0; i < n_col; i++) sum += row[i];
    const double mean = sum / n_col;
    for (int i = 0; i < n_col; i++) squares += (row[i] - mean) * (row[i] - mean);
    const float cut = (float)(mean + a->multiplier * sqrt(squares / (n_col > 1 ? n_col - 1 : 1)));
    for (int i = 0; i < n_col; i++) row[i] = row[i] > cut ? row[i] - cut : 0;
}

void sparsify_cpu(Backend *b, float *x, float multiplier, int n_rows, int n_col) {
    share(b, (int64_t)n_rows * n_col, sparsify_row, &(Sparsify){x, multiplier, n_col}, n_rows);
}
