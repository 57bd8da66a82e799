// diff.h: what somebody else did to the weights of a file: the first singular directions of every difference D = B - A, and
// whether one direction r of the residual stream explains them. Removing r from what a matrix writes leaves D = -s give c' in it,
// c = A' take; which vectors give and take are depends on how the post-norm's gain g was treated (spec: abliteration.md, 5.2):
//   plain     give = take = r            W' = W - r r'W: as if there were no norm
//   oblique   give = r / g, take = g r   exact
//   gained    give = take = g r / |g r|  nothing is left along r, but y moves along g g r
// so that r is give, g give, or give / g. All three are tried; one r must come out of all layers. Without post-norms they are one.
//
// Rounding to few bits buries D in noise. What is common survives in the sum over all tensors of D D' / |D|^2, whose diagonal
// (there the noise adds up) is replaced by that of its own first eigenvector (HeteroPCA: Zhang, Cai, Wu 2022).
#ifndef DIFF_H
#define DIFF_H

#include "pair.h"
#include "singular.h"

typedef enum { HOW_PLAIN, HOW_OBLIQUE, HOW_GAINED, N_HOW } How;
const char *how_name(How how);

typedef struct {
    const TensorPair *t;
    bool writes;              // a writer's matrix, or the embedding: counts for r
    bool transposed;          // the stream is on the side of the columns
    bool on_stream;           // one of the sides is the stream's
    double norm2, a2;         // |D|^2, of what was held; |A|^2
    Singular s;               // u and energies
    double cos[N_HOW];        // |cos| of r with what the first singular direction says r is; NaN: not on the stream
    double right[N_HOW];      // cos of -D' give with c; NaN: not looked at
    double strength[N_HOW];   // s
    double explained[N_HOW];  // share of |D|^2 along give
} DiffRow;

typedef struct {
    const Pair *p;
    DiffRow *row;             // [n] matrices that differ
    int n, n_writes, n_how;   // n_how 1: no post-norms
    double *r[N_HOW];         // [n_embd] unit vectors
    double cos[N_HOW], right[N_HOW]; // means over the rows that write
    double square[N_HOW];     // mean of cos^2
    double by_chance;         // of cos^2, were the first singular directions random
    How how;                  // the one that fits best
    bool common;              // and it is no chance
} Diff;

MUST_CHECK bool diff_measure(Diff *d, const Pair *p, uint64_t seed, Err *e);
void diff_free(Diff *d);
// The direction found, as one for all layers, made from A's weights; in mode write at the parts that differ. Its sign cannot be known.
MUST_CHECK bool diff_direction(const Diff *d, Direction *out, Err *e);
MUST_CHECK bool diff_save(const Diff *d, const char *path, Err *e);
void diff_text(const Diff *d, FILE *out);
void diff_json(const Diff *d, FILE *f); // members of an object, the first without a comma before it

#endif
