// matrix.c: see matrix.h. Work is cut into stripes of columns (all rows): each sums its own columns of take' W, so no two threads
// share a sum. Transposed, into stripes of rows.
#include "matrix.h"

#include <math.h>
#include <stdlib.h>

enum { STRIPE_COLS = 1024, STRIPE_ROWS = 64 };

bool matrix_of(Matrix *m, const GgufTensor *t) {
    const TypeInfo *info = type_info(t->type);
    uint64_t slices;
    if (!info || !info->to_f32 || !size_mul(t->ne[2], t->ne[3], &slices)) return false;
    if (t->ne[0] > INT32_MAX || t->ne[1] > INT32_MAX || slices > INT32_MAX || t->ne[0] % (uint64_t)info->block) return false;
    *m = (Matrix){t->type, t->data, (int)t->ne[1], (int)t->ne[0], (int)slices};
    return true;
}

int64_t matrix_n(const Matrix *m) { return (int64_t)m->n_slice * m->n_row * m->n_col; }

int64_t matrix_slice_bytes(const Matrix *m) { return m->n_row * type_row_bytes((TensorType)m->type, m->n_col); }

static const char *at(const Matrix *m, int slice, int row, int col) {
    const TypeInfo *info = type_info(m->type);
    return m->data + slice * matrix_slice_bytes(m) + row * type_row_bytes((TensorType)m->type, m->n_col) + (int64_t)col / info->block * info->bytes;
}

void matrix_read(const Matrix *m, int slice, int row, int col, int n, float *x) { type_info(m->type)->to_f32(at(m, slice, row, col), x, n); }

void matrix_add(MatrixSums *s, const MatrixSums *o) {
    s->n += o->n;
    s->n_changed += o->n_changed;
    s->n_block += o->n_block;
    s->n_rescaled += o->n_rescaled;
    s->a2 += o->a2;
    s->b2 += o->b2;
    s->d2 += o->d2;
    s->along_a += o->along_a;
    s->along_b += o->along_b;
}

double matrix_kappa(double along, double take2, double norm2, int n_row) { return take2 > 0 && norm2 > 0 ? sqrt(n_row * along / (take2 * norm2)) : NAN; }

// Bytes of a block that hold its values' codes; all others hold scales. None: a type without scales.
static void code_bytes(int type, int *from, int *to) {
    static const struct {
        int type, from, to;
    } CODES[] = {
        {TYPE_Q4_0, offsetof(BlockQ4_0, qs), sizeof(BlockQ4_0)},      {TYPE_Q4_1, offsetof(BlockQ4_1, qs), sizeof(BlockQ4_1)},
        {TYPE_Q5_0, offsetof(BlockQ5_0, qh), sizeof(BlockQ5_0)},      {TYPE_Q5_1, offsetof(BlockQ5_1, qh), sizeof(BlockQ5_1)},
        {TYPE_Q8_0, offsetof(BlockQ8_0, qs), sizeof(BlockQ8_0)},      {TYPE_Q2_K, offsetof(BlockQ2_K, qs), offsetof(BlockQ2_K, d)},
        {TYPE_Q3_K, 0, offsetof(BlockQ3_K, scales)},                  {TYPE_Q4_K, offsetof(BlockQ4_K, qs), sizeof(BlockQ4_K)},
        {TYPE_Q5_K, offsetof(BlockQ5_K, qh), sizeof(BlockQ5_K)},      {TYPE_Q6_K, 0, offsetof(BlockQ6_K, scales)},
        {TYPE_IQ4_NL, offsetof(BlockIQ4_NL, qs), sizeof(BlockIQ4_NL)}, {TYPE_IQ4_XS, offsetof(BlockIQ4_XS, qs), sizeof(BlockIQ4_XS)},
        {TYPE_MXFP4, offsetof(BlockMXFP4, qs), sizeof(BlockMXFP4)},
    };
    *from = 0;
    *to = type_info(type)->bytes;
    for (size_t i = 0; i < sizeof CODES / sizeof *CODES; i++)
        if (CODES[i].type == type) *from = CODES[i].from, *to = CODES[i].to;
}

typedef struct {
    const Matrix *a, *b;
    const double *take;
    int n_vec, n_stripe;
    MatrixSums *of; // [n_slice][n_stripe]
    double *c;
} Args;

// n values of one row, and what is to be said of them alone.
static void compare(const Args *p, MatrixSums *s, int slice, int row, int col, int n, float *a, float *b) {
    matrix_read(p->a, slice, row, col, n, a);
    s->n += n;
    for (int i = 0; i < n; i++) s->a2 += (double)a[i] * a[i];
    if (!p->b) return;
    matrix_read(p->b, slice, row, col, n, b);
    for (int i = 0; i < n; i++) {
        const double d = (double)b[i] - a[i];
        s->n_changed += d != 0;
        s->b2 += (double)b[i] * b[i];
        s->d2 += d * d;
    }
    int from, to;
    if (p->a->type != p->b->type) return;
    code_bytes(p->a->type, &from, &to);
    const int size = type_info(p->a->type)->bytes;
    if (to - from == size) return;
    const char *x = at(p->a, slice, row, col), *y = at(p->b, slice, row, col);
    for (int k = 0; k < n / type_info(p->a->type)->block; k++, x += size, y += size) {
        s->n_block++;
        s->n_rescaled += memcmp(x, y, (size_t)from) || memcmp(x + to, y + to, (size_t)(size - to));
    }
}

static void columns(const void *args, int item, int thread) {
    const Args *p = args;
    const int slice = item / p->n_stripe, col = item % p->n_stripe * STRIPE_COLS, n = min_int(STRIPE_COLS, p->a->n_col - col);
    float a[STRIPE_COLS], b[STRIPE_COLS];
    double c[2][MOST_VECTORS][STRIPE_COLS];
    MatrixSums s = {0};
    (void)thread;
    for (int k = 0; k < p->n_vec; k++) memset(c[0][k], 0, sizeof c[0][k]), memset(c[1][k], 0, sizeof c[1][k]);
    for (int row = 0; row < p->a->n_row; row++) {
        compare(p, &s, slice, row, col, n, a, b);
        for (int k = 0; k < p->n_vec; k++) {
            const double t = p->take[(int64_t)k * p->a->n_row + row];
            for (int i = 0; i < n; i++) c[0][k][i] += t * a[i];
            for (int i = 0; p->b && i < n; i++) c[1][k][i] += t * b[i];
        }
    }
    for (int k = 0; k < p->n_vec; k++) {
        for (int i = 0; i < n; i++) s.along_a += c[0][k][i] * c[0][k][i], s.along_b += c[1][k][i] * c[1][k][i];
        if (p->c) memcpy(p->c + ((int64_t)slice * p->n_vec + k) * p->a->n_col + col, c[0][k], sizeof(double) * (size_t)n);
    }
    p->of[item] = s;
}

static void rows(const void *args, int item, int thread) {
    const Args *p = args;
    const int slice = item / p->n_stripe, first = item % p->n_stripe * STRIPE_ROWS, last = min_int(first + STRIPE_ROWS, p->a->n_row);
    float a[STRIPE_COLS], b[STRIPE_COLS];
    MatrixSums s = {0};
    (void)thread;
    for (int row = first; row < last; row++) {
        double c[2][MOST_VECTORS] = {{0}};
        for (int col = 0; col < p->a->n_col; col += STRIPE_COLS) {
            const int n = min_int(STRIPE_COLS, p->a->n_col - col);
            compare(p, &s, slice, row, col, n, a, b);
            for (int k = 0; k < p->n_vec; k++) {
                const double *t = p->take + (int64_t)k * p->a->n_col + col;
                for (int i = 0; i < n; i++) c[0][k] += t[i] * a[i];
                for (int i = 0; p->b && i < n; i++) c[1][k] += t[i] * b[i];
            }
        }
        for (int k = 0; k < p->n_vec; k++) s.along_a += c[0][k] * c[0][k], s.along_b += c[1][k] * c[1][k];
    }
    p->of[item] = s;
}

bool matrix_sums(Pool *pool, const Matrix *a, const Matrix *b, const double *take, int n_vec, bool transposed, MatrixSums *sum, MatrixSums *of_slice, double *c,
                 Err *e) {
    Args p = {a, b, take, n_vec, transposed ? (a->n_row + STRIPE_ROWS - 1) / STRIPE_ROWS : (a->n_col + STRIPE_COLS - 1) / STRIPE_COLS, NULL, c};
    *sum = (MatrixSums){0};
    const int64_t n_item = (int64_t)p.n_stripe * a->n_slice;
    p.of = n_item <= INT32_MAX ? malloc(sizeof *p.of * (size_t)n_item) : NULL;
    if (!p.of) return err_set(e, "no memory for the sums of %d x %d x %d values", a->n_slice, a->n_row, a->n_col);
    pool_run(pool, transposed ? rows : columns, &p, (int)n_item);
    for (int s = 0; s < a->n_slice; s++) {
        MatrixSums one = {0};
        for (int i = 0; i < p.n_stripe; i++) matrix_add(&one, &p.of[(int64_t)s * p.n_stripe + i]);
        if (of_slice) of_slice[s] = one;
        matrix_add(sum, &one);
    }
    free(p.of);
    return true;
}
