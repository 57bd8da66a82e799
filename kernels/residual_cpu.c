// residual_cpu.c: the small ops on the residual stream. They move a few floats: loops that compilers vectorise are enough.
#include <math.h>
#include "cpu.h"

// What these ops are about; each uses some of the fields.
typedef struct {
    const VecTable *vec;
    float *x;       // [n_rows][n_col], or n elements
    const float *y; // of the same shape, or [n_col]
    float amount;
    int64_t n;
    int n_col;
} Stream;

static int64_t piece_end(const Stream *a, int piece) { return a->n < (int64_t)(piece + 1) * PIECE ? a->n : (int64_t)(piece + 1) * PIECE; }

static void add_piece(const void *args, int piece, int thread) {
    const Stream *a = args;
    (void)thread;
    for (int64_t i = (int64_t)piece * PIECE, end = piece_end(a, piece); i < end; i++) a->x[i] += a->y[i];
}

void add_cpu(Backend *b, float *x, const float *y, int64_t n) { share(b, n, add_piece, &(Stream){.x = x, .y = y, .n = n}, n_piece(n)); }

static void scale_piece(const void *args, int piece, int thread) {
    const Stream *a = args;
    (void)thread;
    for (int64_t i = (int64_t)piece * PIECE, end = piece_end(a, piece); i < end; i++) a->x[i] *= a->amount;
}

void scale_cpu(Backend *b, float *x, float s, int64_t n) { share(b, n, scale_piece, &(Stream){.x = x, .amount = s, .n = n}, n_piece(n)); }

static void softcap_piece(const void *args, int piece, int thread) {
    const Stream *a = args;
    (void)thread;
    const int64_t i = (int64_t)piece * PIECE;
    a->vec->softcap(a->x + i, a->amount, piece_end(a, piece) - i);
}

void softcap_cpu(Backend *b, float *x, float cap, int64_t n) {
    share(b, n, softcap_piece, &(Stream){.vec = cpu_of(b)->vec, .x = x, .amount = cap, .n = n}, n_piece(n));
}

// The component is left near zero only if the dot product is exact: in double, as ref.
static void project_row(const void *args, int r, int thread) {
    const ProjectArgs *a = args;
    (void)thread;
    const int n_col = a->n_col;
    const float *dir = a->dir;
    float *row = a->x + (int64_t)r * n_col;
    double lane[4] = {0};
    int i = 0;
    for (; i + 4 <= n_col; i += 4)
        for (int k = 0; k < 4; k++) lane[k] += (double)dir[i + k] * row[i + k];
    for (int k = 0; i + k < n_col; k++) lane[k] += (double)dir[i + k] * row[i + k];
    const double above = (lane[0] + lane[1]) + (lane[2] + lane[3]) - a->keep;
    if (a->one_sided && above <= 0) return;
    const double along = a->amount * above;
    for (i = 0; i < n_col; i++) row[i] = (float)(row[i] - along * dir[i]);
}

void project_out_cpu(Backend *b, const ProjectArgs *a) { share(b, (int64_t)a->n_rows * a->n_col, project_row, a, a->n_rows); }

static void add_dir_row(const void *args, int r, int thread) {
    const Stream *a = args;
    (void)thread;
    for (int i = 0; i < a->n_col; i++) a->x[(int64_t)r * a->n_col + i] += a->amount * a->y[i];
}

void add_dir_cpu(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount) {
    share(b, (int64_t)n_rows * n_col, add_dir_row, &(Stream){.x = x, .y = dir, .amount = amount, .n_col = n_col}, n_rows);
}

void copy_rows_cpu(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col) {
    (void)b;
    for (int r = 0; r < n_rows; r++) memmove(dst + (int64_t)r * dst_stride, src + (int64_t)r * src_stride, sizeof(float) * (size_t)n_col);
}

static void mul_row(const void *args, int r, int thread) {
    const Stream *a = args;
    (void)thread;
    for (int i = 0; i < a->n_col; i++) a->x[(int64_t)r * a->n_col + i] *= a->y[i];
}

void mul_cols_cpu(Backend *b, float *x, const Tensor *w, int n_rows) {
    share(b, (int64_t)n_rows * w->n_col, mul_row, &(Stream){.x = x, .y = w->host, .n_col = w->n_col}, n_rows);
}

static void match_row(const void *args, int r, int thread) {
    const Stream *a = args;
    (void)thread;
    float *row = a->x + (int64_t)r * a->n_col;
    const float *other = a->y + (int64_t)r * a->n_col;
    const float have = a->vec->dot(row, row, a->n_col), want = a->vec->dot(other, other, a->n_col);
    const float s = have > 0 ? sqrtf(want / have) : 0;
    for (int i = 0; i < a->n_col; i++) row[i] *= s;
}

void match_length_cpu(Backend *b, float *u, const float *target, int n_rows, int n_col) {
    share(b, (int64_t)n_rows * n_col, match_row, &(Stream){.vec = cpu_of(b)->vec, .x = u, .y = target, .n_col = n_col}, n_rows);
}

typedef struct {
    float *y;
    const float *coef, *x;
    int n_out, n_in, n_rows, n_col;
} Mix;

static void mix_row(const void *args, int item, int thread) { // row r of stream j
    const Mix *a = args;
    (void)thread;
    const int j = item / a->n_rows, r = item % a->n_rows;
    const int64_t stream = (int64_t)a->n_rows * a->n_col;
    const float *c = a->coef + ((int64_t)r * a->n_out + j) * a->n_in;
    float *out = a->y + j * stream + (int64_t)r * a->n_col;
    for (int s = 0; s < a->n_in; s++) {
        const float *in = a->x + s * stream + (int64_t)r * a->n_col;
        for (int i = 0; i < a->n_col; i++) out[i] += c[s] * in[i];
    }
}

void mix_streams_cpu(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col) {
    share(b, (int64_t)n_rows * n_col * n_out, mix_row, &(Mix){y, coef, x, n_out, n_in, n_rows, n_col}, n_out * n_rows);
}
