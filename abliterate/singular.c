// singular.c: see singular.h
#include "singular.h"

#include <math.h>
#include <stdlib.h>

#include "means.h"
#include "stats.h"

enum { N_ITERATION = 6, STRIPE_COLS = 256, STRIPE_ROWS = 16 };

typedef struct {
    const Held *h;
    const Matrix *a, *b;
    const double *in;
    double *out;
    int k, n_stripe;
} Args;

static float *row_of(const Held *h, int slice, int row) { return h->d + ((int64_t)slice * h->n_row + row) * h->n_col; }

static void read_rows(const void *args, int item, int thread) {
    const Args *p = args;
    const Held *h = p->h;
    const int slice = item / p->n_stripe, first = item % p->n_stripe * STRIPE_ROWS, last = min_int(first + STRIPE_ROWS, h->n_row);
    float a[1024];
    (void)thread;
    for (int row = first; row < last; row++) {
        double square = 0;
        for (int col = 0; col < h->n_col; col += 1024) {
            const int n = min_int(1024, h->n_col - col), from_slice = h->transposed ? slice : slice * h->step, from_row = h->transposed ? row * h->step : row;
            float *d = row_of(h, slice, row) + col;
            matrix_read(p->b ? p->b : p->a, from_slice, from_row, col, n, d);
            if (p->b) matrix_read(p->a, from_slice, from_row, col, n, a);
            for (int i = 0; p->b && i < n; i++) d[i] -= a[i];
            for (int i = 0; i < n; i++) square += (double)d[i] * d[i];
        }
        p->out[(int64_t)slice * h->n_row + row] = square;
    }
}

// Item: a stripe of columns of a slice, all rows. in [k][n_row], out [k][n_slice][n_col].
static void by_columns(const void *args, int item, int thread) {
    const Args *p = args;
    const Held *h = p->h;
    const int slice = item / p->n_stripe, col = item % p->n_stripe * STRIPE_COLS, n = min_int(STRIPE_COLS, h->n_col - col), k = p->k;
    double sum[N_SINGULAR][STRIPE_COLS];
    (void)thread;
    for (int j = 0; j < k; j++) memset(sum[j], 0, sizeof sum[j]);
    for (int row = 0; row < h->n_row; row++) {
        const float *d = row_of(h, slice, row) + col;
        for (int j = 0; j < k; j++) {
            const double q = p->in[(int64_t)j * h->n_row + row];
            for (int i = 0; i < n; i++) sum[j][i] += q * d[i];
        }
    }
    for (int j = 0; j < k; j++) memcpy(p->out + ((int64_t)j * h->n_slice + slice) * h->n_col + col, sum[j], sizeof(double) * (size_t)n);
}

// In eight sums side by side, which a processor can add at once.
static double product(const double *c, const float *d, int n) {
    double part[8] = {0}, sum = 0;
    int i = 0;
    for (; i + 8 <= n; i += 8)
        for (int u = 0; u < 8; u++) part[u] += c[i + u] * d[i + u];
    for (; i < n; i++) sum += c[i] * d[i];
    for (int u = 0; u < 8; u++) sum += part[u];
    return sum;
}

// Item: some rows, all slices. in [k][n_slice][n_col], out [k][n_row].
static void by_rows(const void *args, int item, int thread) {
    const Args *p = args;
    const Held *h = p->h;
    const int first = item * STRIPE_ROWS, last = min_int(first + STRIPE_ROWS, h->n_row), k = p->k;
    (void)thread;
    for (int j = 0; j < k; j++)
        for (int row = first; row < last; row++) {
            double sum = 0;
            for (int s = 0; s < h->n_slice; s++) sum += product(p->in + ((int64_t)j * h->n_slice + s) * h->n_col, row_of(h, s, row), h->n_col);
            p->out[(int64_t)j * h->n_row + row] = sum;
        }
}

static void run(const Held *h, Pool *pool, const double *in, int k, double *out, bool columns) {
    Args p = {.h = h, .in = in, .out = out, .k = k, .n_stripe = (h->n_col + STRIPE_COLS - 1) / STRIPE_COLS};
    pool_run(pool, columns ? by_columns : by_rows, &p, columns ? p.n_stripe * h->n_slice : (h->n_row + STRIPE_ROWS - 1) / STRIPE_ROWS);
}

// Transposed matrices have one slice.
void held_right(const Held *h, Pool *pool, const double *q, int k, double *c) { run(h, pool, q, k, c, !h->transposed); }
void held_left(const Held *h, Pool *pool, const double *c, int k, double *y) { run(h, pool, c, k, y, h->transposed); }

static bool room(Held *h) {
    const size_t n = (size_t)h->n_slice * (size_t)h->n_row * (size_t)h->n_col, most = (size_t)max_int(h->n_row, h->n_col);
    if (n > h->cap) {
        free(h->d);
        h->d = malloc(sizeof *h->d * n);
        h->cap = h->d ? n : 0;
    }
    if (most > h->cap_side) {
        free(h->row2);
        h->row2 = malloc(sizeof *h->row2 * most);
        h->cap_side = h->row2 ? most : 0;
    }
    return h->d && h->row2;
}

bool held_set(Held *h, Pool *pool, const Matrix *a, const Matrix *b, bool transposed, Err *e) {
    enum { MOST = 1 << 28 }; // values
    const int64_t step = (matrix_n(a) + MOST - 1) / MOST;
    if (transposed && a->n_slice > 1) return err_set(e, "a matrix of %d slices has no side for the stream", a->n_slice);
    h->transposed = transposed;
    h->step = (int)(transposed ? step : step < a->n_slice ? step : a->n_slice);
    h->n_row = transposed ? (a->n_row + h->step - 1) / h->step : a->n_row;
    h->n_slice = transposed ? 1 : (a->n_slice + h->step - 1) / h->step;
    h->n_col = a->n_col;
    h->n = transposed ? h->n_col : h->n_row;
    h->n_other = transposed ? h->n_row : (int64_t)h->n_slice * h->n_col;
    const int64_t n_rows = (int64_t)h->n_slice * h->n_row;
    double *square = malloc(sizeof *square * (size_t)n_rows);
    const bool ok = room(h) && square;
    Args p = {.h = h, .a = a, .b = b, .out = square, .n_stripe = (h->n_row + STRIPE_ROWS - 1) / STRIPE_ROWS};
    if (ok) pool_run(pool, read_rows, &p, p.n_stripe * h->n_slice);
    h->norm2 = 0;
    for (int i = 0; ok && i < h->n; i++) h->row2[i] = 0;
    for (int64_t r = 0; ok && r < n_rows; r++) {
        h->norm2 += square[r];
        if (!transposed) h->row2[r % h->n_row] += square[r];
        else
            for (int i = 0; i < h->n_col; i++) h->row2[i] += (double)row_of(h, 0, (int)r)[i] * row_of(h, 0, (int)r)[i];
    }
    free(square);
    return ok || err_set(e, "no memory for the difference of %d x %d x %d values", h->n_slice, h->n_row, h->n_col);
}

void held_close(Held *h) {
    free(h->d);
    free(h->row2);
    *h = (Held){0};
}

// ---- the first singular vectors ----

// Rows of y [k][n], made orthonormal (twice is enough); what is nothing becomes a zero row.
static void orthonormalise(double *y, int n, int k) {
    for (int j = 0; j < k; j++) {
        double *v = y + (int64_t)j * n;
        const double before = dot_of(v, v, n);
        for (int pass = 0; pass < 2; pass++)
            for (int o = 0; o < j; o++) {
                const double *other = y + (int64_t)o * n, along = dot_of(v, other, n);
                for (int i = 0; i < n; i++) v[i] -= along * other[i];
            }
        const double after = dot_of(v, v, n), scale = after > 1e-24 * before && after > 0 ? 1 / sqrt(after) : 0;
        for (int i = 0; i < n; i++) v[i] *= scale;
    }
}

// Eigenvectors v (columns) of the symmetric m [k][k], which becomes diagonal (Jacobi).
static void jacobi(double m[N_SINGULAR][N_SINGULAR], double v[N_SINGULAR][N_SINGULAR], int k) {
    for (int i = 0; i < k; i++)
        for (int j = 0; j < k; j++) v[i][j] = i == j;
    for (int sweep = 0; sweep < 30; sweep++)
        for (int a = 0; a < k; a++)
            for (int b = a + 1; b < k; b++) {
                if (fabs(m[a][b]) < 1e-300) continue;
                const double angle = (m[b][b] - m[a][a]) / (2 * m[a][b]), t = (angle < 0 ? -1 : 1) / (fabs(angle) + sqrt(angle * angle + 1));
                const double c = 1 / sqrt(t * t + 1), s = t * c;
                for (int i = 0; i < k; i++) {
                    const double x = m[i][a], y = m[i][b];
                    m[i][a] = c * x - s * y;
                    m[i][b] = s * x + c * y;
                }
                for (int i = 0; i < k; i++) {
                    const double x = m[a][i], y = m[b][i], p = v[i][a], q = v[i][b];
                    m[a][i] = c * x - s * y;
                    m[b][i] = s * x + c * y;
                    v[i][a] = c * p - s * q;
                    v[i][b] = s * p + c * q;
                }
            }
}

bool singular_find(Singular *s, const Held *h, Pool *pool, uint64_t seed, Err *e) {
    const int n = h->n, k = min_int(N_SINGULAR, n);
    *s = (Singular){.k = k, .u = calloc((size_t)k * (size_t)n, sizeof *s->u)};
    double *q = malloc(sizeof *q * (size_t)k * (size_t)n), *c = malloc(sizeof *c * (size_t)k * (size_t)h->n_other), *y = malloc(sizeof *y * (size_t)k * (size_t)n);
    const bool ok = s->u && q && c && y;
    Rng rng = rng_seed(seed, 0x51);
    for (int i = 0; ok && i < k * n; i++) q[i] = rng_normal(&rng);
    for (int iteration = 0; ok && iteration < N_ITERATION; iteration++) {
        orthonormalise(q, n, k);
        held_right(h, pool, q, k, c);
        held_left(h, pool, c, k, y);
        if (iteration < N_ITERATION - 1) memcpy(q, y, sizeof *q * (size_t)k * (size_t)n);
    }
    double m[N_SINGULAR][N_SINGULAR] = {{0}}, v[N_SINGULAR][N_SINGULAR];
    for (int a = 0; ok && a < k; a++)
        for (int b = 0; b < k; b++) m[a][b] = (dot_of(q + (int64_t)a * n, y + (int64_t)b * n, n) + dot_of(q + (int64_t)b * n, y + (int64_t)a * n, n)) / 2;
    jacobi(m, v, k);
    bool taken[N_SINGULAR] = {false};
    for (int j = 0; ok && j < k; j++) {
        int best = -1;
        for (int a = 0; a < k; a++)
            if (!taken[a] && (best < 0 || m[a][a] > m[best][best])) best = a;
        taken[best] = true;
        s->share[j] = h->norm2 > 0 ? fmax(0, m[best][best]) / h->norm2 : 0;
        for (int i = 0; i < n; i++)
            for (int a = 0; a < k; a++) s->u[(int64_t)j * n + i] += q[(int64_t)a * n + i] * v[a][best];
    }
    free(q);
    free(c);
    free(y);
    return ok || err_set(e, "no memory for the singular vectors of %d rows", n);
}

void singular_free(Singular *s) {
    free(s->u);
    *s = (Singular){0};
}
