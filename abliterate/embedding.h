// embedding.h: the input side: what the rows of the token embedding hold of the directions, and the same rows without it. Here the
// direction lies along a row, in one matrix it is read from; what the head reads is not touched (it needs a copy where it is tied).
//
//   E_t' = E_t - s sum_k r_k (r_k . E_t)         r_k orthonormal; E_t: row of token t
#ifndef EMBEDDING_H
#define EMBEDDING_H

#include "edit.h"

typedef struct {
    const Tensor *t;
    int n_vec;
    const double *basis; // [n_vec][n_embd]
    double strength;
    double usual;        // root mean square of what rows hold: the repair's aim is a share of it (edit.h)
} Embedding;

// Rows first .. first + n - 1; out: their new bytes, in the same type; NULL: only figures (before, norm). Here a "column" of the
// figures is a row. Deterministic, whatever the threads.
MUST_CHECK bool embedding_rows(Pool *pool, int n_thread, const Embedding *x, int64_t first, int n, void *out, EditFigures *f, Err *e);

#endif
