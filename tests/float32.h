// float32.h: a model's weights as float32, so that both sides of a split model multiply the same numbers.
#ifndef FLOAT32_H
#define FLOAT32_H

#include <stdlib.h>
#include "model.h"

typedef struct {
    void *memory[4096];
    int n;
} Memory;

static inline void *keep(Memory *k, size_t bytes) {
    void *p = malloc(bytes);
    if (!p || k->n == 4096) abort();
    return k->memory[k->n++] = p;
}

// The same weights as float32: what is left of a difference is the order of additions. Experts of odd layers are apart, as where each has a tensor.
static inline bool widen(void *ctx, Tensor *t, int layer, bool ffn) {
    Memory *k = ctx;
    (void)ffn;
    if (t->type == TYPE_F32) return true;
    const size_t n = (size_t)t->n_row * (size_t)t->n_col;
    float *first = keep(k, sizeof(float) * n * (size_t)t->n_slice);
    for (int s = 0; s < t->n_slice; s++) {
        float *x = s && layer % 2 ? keep(k, sizeof(float) * n) : first + (size_t)s * n;
        for (int r = 0; r < t->n_row; r++) type_info(t->type)->to_f32(tensor_row(t, s, r), x + (size_t)r * (size_t)t->n_col, t->n_col);
        if (t->slices) t->slices[s] = x;
    }
    t->host = first;
    t->type = TYPE_F32;
    return true;
}

static inline void widen_model(Model *m, Memory *k) {
    if (m->per_layer_token_embd) widen(k, (Tensor *)m->per_layer_token_embd, 0, false);
    widen(k, (Tensor *)m->token_embd, 0, false);
    (void)!model_each(m, widen, k);
}

static inline void widen_free(Memory *k) {
    while (k->n) free(k->memory[--k->n]);
}

#endif
