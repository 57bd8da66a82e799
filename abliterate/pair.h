// pair.h: two files of the same model side by side, A before and B after a change: which tensors and keys differ, and which of
// the tensors write to the residual stream. pair_open, reads, pair_close. B is only data: no weight of it is bound.
#ifndef PAIR_H
#define PAIR_H

#include "direction.h"
#include "matrix.h"
#include "writers.h"

typedef struct {
    const GgufTensor *a, *b; // a NULL: only in B
    bool same;               // type and bytes
    bool readable;           // both can be compared value by value: ma, mb
    Matrix ma, mb;
    int writer;              // of Pair.writers; -1: writes nothing
    bool bias;               // of that writer, not its matrix
} TensorPair;

typedef enum { KEY_ADDED, KEY_REMOVED, KEY_CHANGED } KeyChange;
typedef struct {
    const GgufKey *key; // as B has it, or A if B has not
    KeyChange change;
} KeyPair;

typedef struct {
    Model a;
    Gguf b;
    Writers writers;         // n 0: see why_none
    Err why_none;            // why no edit of the weights could be told apart
    TensorPair *tensor;      // [n_tensor] in B's order
    int n_tensor, n_same;
    KeyPair *key;            // [n_key] those that differ
    int n_key;
    Pool *pool;
} Pair;

// Refuses two files of which no change of weights can make one out of the other: another architecture, tensors of other shapes,
// or that B has not. threads 0: as many as the process may use.
MUST_CHECK bool pair_open(Pair *p, const char *a, const char *b, int threads, Err *e);
void pair_close(Pair *p); // accepts zeroed ones
static inline bool pair_differs(const Pair *p, int i) { return p->tensor[i].a && !p->tensor[i].same; }

// The figures of two files as a JSON file: their names, then the members of an object that `members` writes.
MUST_CHECK bool pair_json(const Pair *p, const char *path, void (*members)(const void *of, FILE *f), const void *of, Err *e);

// What finds r in what a writer writes: take = gain * r (writers.h), [n]; give, what would write it: r / gain. Either may be NULL.
void writer_vectors(const Writer *w, const double *r, double *take, double *give, int n);
// The vectors of several directions that serve inside a layer, orthonormal: rows [n_dir][n_embd] of double. Returns how many.
int layer_basis(const Direction *d, int n_dir, int layer, double *rows);

#endif
