// work.h: what a forward pass must at least read and compute, from a model's shapes. Speeds times these are the bandwidth and the rate of
// operations that are held against the ceilings of peaks.h.
#ifndef WORK_H
#define WORK_H

#include "peaks.h"
#include "session.h"

// A weight that rows are multiplied with.
typedef struct {
    const Tensor *t;
    int n_expert, n_used; // 1, 1: no stack of experts
    bool late;            // only rows whose logits are wanted get here
    bool head;            // and to this in no other case
} Weight;

typedef struct {
    const Model *m;
    Weight *weight;
    int n, last;          // last: the layer that writes keys last
    Piece *piece;         // what decoding one token reads, of experts the first ones
    int n_piece;
    double bytes;         // of it
    PeakKind kind;        // of most of it
} Weights;
MUST_CHECK bool weights_open(Weights *w, Model *m, Err *e);
void weights_close(Weights *w);

typedef struct {
    double bytes; // weights, each once in a pass; keys and values that are seen, each once
    double flop;  // two for each weight that a row is multiplied with. Attention's are not counted
} Work;
// n tokens of a sequence, at most n_batch in a pass, of which the last one's logits are wanted, from position pos on.
Work work_of(const Weights *w, const Session *s, int pos, int n);

#endif
