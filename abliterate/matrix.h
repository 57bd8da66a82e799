// matrix.h: sums over the values of one or two weight matrices as they lie in files, without a second copy of them: how far they
// are apart, and what a vector on the side of the residual stream finds in them. All sums in double, in an order that does not
// depend on the threads.
#ifndef MATRIX_H
#define MATRIX_H

#include "gguf.h"
#include "pool.h"

enum { MOST_VECTORS = 8 };

// Slices [n_slice] of [n_row][n_col], back to back. A vector is one row.
typedef struct {
    int type;
    const char *data;
    int n_row, n_col, n_slice;
} Matrix;
// False: of a type that is known by name only, or too large.
bool matrix_of(Matrix *m, const GgufTensor *t);
int64_t matrix_n(const Matrix *m); // values
int64_t matrix_slice_bytes(const Matrix *m);
// n values from column `col` (a multiple of 256, or 0) of a row.
void matrix_read(const Matrix *m, int slice, int row, int col, int n, float *x);

typedef struct {
    int64_t n, n_changed;        // values; those that differ
    int64_t n_block, n_rescaled; // blocks; those whose scales differ (types without scales, or two types: 0)
    double a2, b2, d2;           // |A|^2, |B|^2, |B - A|^2
    double along_a, along_b;     // sum over vectors and columns (transposed: rows) of (take' A)^2, of (take' B)^2
} MatrixSums;

// b NULL: A alone. take [n_vec][n_row], or transposed [n_vec][n_col]; n_vec 0: none. of_slice [n_slice] may be NULL; c (may be
// NULL) receives take' A: [n_slice][n_vec][n_col]; not transposed.
MUST_CHECK bool matrix_sums(Pool *pool, const Matrix *a, const Matrix *b, const double *take, int n_vec, bool transposed, MatrixSums *sum,
                            MatrixSums *of_slice, double *c, Err *e);
void matrix_add(MatrixSums *sum, const MatrixSums *one);

// Write strength of a matrix of n values to one unit vector: sqrt(n_row) |take' W| / (|take| |W|). 1: as strong as a random vector.
// (spec: abliteration.md, 5.3); several: their root mean square. take2: the sum of the squared lengths of the vectors.
double matrix_kappa(double along, double take2, double norm2, int n_row);

#endif
