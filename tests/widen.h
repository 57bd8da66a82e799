// widen.h: a model's weights as float32, for tests that compare backends: what is left of a difference is the order of additions, and rounded keys.
#ifndef WIDEN_H
#define WIDEN_H

#include <stdlib.h>

#include "model.h"

typedef struct {
    void *memory[4096];
    int n;
} Kept;

static inline bool widen(void *ctx, Tensor *t, int layer, bool ffn) {
    Kept *k = ctx;
    (void)layer, (void)ffn;
    if (t->type == TYPE_F32) return true;
    const size_t n = (size_t)t->n_row * (size_t)t->n_col;
    float *x = malloc(sizeof *x * n * (size_t)t->n_slice);
    if (!x || k->n == 4096) abort();
    k->memory[k->n++] = x;
    for (int s = 0; s < t->n_slice; s++) {
        for (int r = 0; r < t->n_row; r++) type_info(t->type)->to_f32(tensor_row(t, s, r), x + (size_t)s * n + (size_t)r * (size_t)t->n_col, t->n_col);
        if (t->slices) t->slices[s] = x + (size_t)s * n;
    }
    t->host = x;
    t->type = TYPE_F32;
    return true;
}

static inline void widen_model(Kept *k, Model *m) {
    if (m->per_layer_token_embd) widen(k, (Tensor *)m->per_layer_token_embd, 0, false);
    widen(k, (Tensor *)m->token_embd, 0, false);
    (void)!model_each(m, widen, k);
}

static inline void widen_free(Kept *k) {
    while (k->n) free(k->memory[--k->n]);
}

#endif
