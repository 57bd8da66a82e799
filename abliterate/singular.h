// singular.h: the difference of two matrices, held in memory, and its first singular directions on the side of the residual stream.
// Subspace iteration on D D' (Halko, Martinsson, Tropp 2011, algorithm 4.4) with Rayleigh-Ritz; seeded, the same with any number
// of threads.
#ifndef SINGULAR_H
#define SINGULAR_H

#include "matrix.h"

enum { N_SINGULAR = 4 };

// D = B - A, or A itself, as floats. Set again as often as wanted (its memory only grows); zeroed at first.
typedef struct {
    float *d;        // as in the file: [n_slice][n_row][n_col] of what is held
    int n_row, n_col, n_slice;
    bool transposed; // the stream is on the side of the columns
    int n;           // on the side of the stream
    int64_t n_other; // on the other: columns of all slices, or rows
    int step;        // every so many slices (transposed: rows) are held, so that no more than 1 GiB is
    double norm2;    // |D|^2
    double *row2;    // [n] of each coordinate of the stream
    size_t cap, cap_side;
} Held;
MUST_CHECK bool held_set(Held *h, Pool *pool, const Matrix *a, const Matrix *b, bool transposed, Err *e); // b NULL: A itself
void held_close(Held *h); // accepts zeroed ones
// c [k][n_other] = D' q, q [k][n]; y [k][n] = D c.
void held_right(const Held *h, Pool *pool, const double *q, int k, double *c);
void held_left(const Held *h, Pool *pool, const double *c, int k, double *y);

typedef struct {
    int k;
    double *u;                   // [k][n] unit left singular vectors, strongest first
    double share[N_SINGULAR];    // of |D|^2
} Singular;
MUST_CHECK bool singular_find(Singular *s, const Held *h, Pool *pool, uint64_t seed, Err *e);
void singular_free(Singular *s);

#endif
