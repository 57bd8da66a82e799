// verify.h: what an edit has done to the weights of a file (spec: abliteration.md, 5.6, item 2): for every tensor that differs how
// many of its values do, how far they moved, and how much of the direction is left in what it writes.
#ifndef VERIFY_H
#define VERIFY_H

#include "pair.h"

typedef struct {
    const TensorPair *t;
    MatrixSums sum;
    int n_vec;         // directions looked for: 0: it does not write to the stream, or none serves there
    double leak;       // |take' B| / |take' A| over all columns, experts and vectors; NaN: not asked
    double kappa;      // of A
} VerifyRow;

typedef struct {
    const Pair *p;
    VerifyRow *row;    // [n] tensors that differ
    int n;
    int n_unread;      // of them, of types we cannot read: only counted
    double worst;      // leak of a writer's matrix; NaN: none
    const char *worst_name;
    int n_untouched;   // writers' matrices that are equal in both files
} Verify;

// dirs: orthonormal where they are several (layer_basis). n_dir 0: no leak.
MUST_CHECK bool verify_measure(Verify *v, const Pair *p, const Direction *dirs, int n_dir, Err *e);
void verify_free(Verify *v);
void verify_text(const Verify *v, FILE *out);
void verify_json(const Verify *v, FILE *out); // members of an object, the first without a comma before it

#endif
