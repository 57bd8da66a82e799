// halves.h: the last halves of layers on the backend, the others on its host, as a plan would place them; for tests that need two places.
#ifndef HALVES_H
#define HALVES_H

#include "model.h"

// n: of the head, then FFN and attention of each layer from the last; 0 to 1 + 2 n_layer. A layer that reads another's keys is where that one
// is, and Gemma 3n's are not halved.
static inline void place_halves(Model *m, int n) {
    m->head_on_host = n < 1;
    for (int l = 0; l < m->c.n_layer; l++) {
        Layer *w = &m->layers[l];
        const int from_end = 2 * (m->c.n_layer - l);
        w->attn_on_host = from_end >= n;
        if (w->d.kv_source < l) w->attn_on_host = m->layers[w->d.kv_source].attn_on_host;
        w->ffn_on_host = m->c.n_stream ? w->attn_on_host : from_end - 1 >= n;
        w->n_expert_device = w->ffn_on_host ? 0 : w->d.n_expert;
    }
}

#endif
