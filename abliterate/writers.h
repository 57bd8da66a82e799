// writers.h: who writes to the residual stream: the last matrix of every branch that is added to it, and what lies between the
// two. Removing a direction from the weights is removing it from these (spec: abliteration.md, 5.1 and 5.2).
//
//   what is added  y = gain * (W a + bias) / rms     gain: of the post-norms, multiplied elementwise; none: y = W a + bias
//
// Where two branches have post-norms of their own and one in common (Gemma 4 with experts), gain is the product of both.
#ifndef WRITERS_H
#define WRITERS_H

#include "direction.h"

typedef enum { PART_ATTN, PART_FFN, PART_EXPERTS, PART_PER_LAYER, N_PART } Part;
const char *part_name(Part part); // "attention", "FFN", "experts", "per-layer input"
int part_shape(Part part);        // whose strength is its own: SHAPE_ATTN, ... (direction.h)

typedef struct {
    int layer;
    Part part;
    TapPoint site;       // where its sum shows
    const Tensor *w;     // [n_slice][n_embd][n_col]
    const Tensor *bias;  // [n_embd]; NULL: none
    const float *gain;   // [n_embd]; NULL: no post-norm
    const Tensor *norm;  // the last post-norm, shared by the branches of a site; NULL: none
} Writer;

typedef struct {
    Writer *of; // [n] in the order of the forward pass
    int n;
    float *gains;
} Writers;

// Refuses a model whose writes no edit of the weights can change alone (Gemma 3n: several mixed streams).
MUST_CHECK bool writers_open(Writers *w, const Model *m, Err *e);
void writers_close(Writers *w); // accepts zeroed ones

#endif
