// gated_cpu.c: act(gate) * up, and Gemma 3n's sparse gate
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
