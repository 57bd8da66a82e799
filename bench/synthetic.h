// synthetic.h: models of random weights with the shapes and weight types of published ones, written as GGUF, so that speed and memory
// can be measured without a download. They know no tokens and say nothing.
#ifndef SYNTHETIC_H
#define SYNTHETIC_H

#include "tensor.h"

typedef struct {
    const struct Shape *shape;
    int mix; // of types: 0 is Q4_K_M
} Synthetic;

// "8b" (Q4_K_M), "1b:Q8_0", "e2b:F16"
MUST_CHECK bool synthetic_parse(const char *text, Synthetic *s, Err *e);
Synthetic synthetic_at(int i); // all of them, Q4_K_M; shape NULL: there is no i-th

// Known without writing anything.
typedef struct {
    const char *name, *like, *mix;
    TensorType type;       // of most matrices
    uint64_t n_param, bytes;
    int n_tensor[TYPE_COUNT]; // of each type
    double decode_bytes;   // weights that one token reads
    double prefill_flop;   // operations with weights for each token of a long prompt, 2 for a multiplication and addition
    bool for_tests;        // no published model has this shape
} SyntheticCost;
SyntheticCost synthetic_cost(const Synthetic *s);

// PATH appears when it is complete. An error if the disk has no room for it. header_only: matrices are holes of zeros, which take no room.
MUST_CHECK bool synthetic_write(const Synthetic *s, const char *path, bool header_only, Err *e);

#endif
