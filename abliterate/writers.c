// writers.c: see writers.h
#include "writers.h"

#include <stdlib.h>

const char *part_name(Part part) {
    static const char *const NAMES[N_PART] = {"attention", "FFN", "experts", "per-layer input"};
    return NAMES[part];
}

int part_shape(Part part) { return part == PART_ATTN ? SHAPE_ATTN : part == PART_PER_LAYER ? SHAPE_PER_LAYER : SHAPE_FFN; }

// The gains of the norms that are there, multiplied; NULL: none is.
static const float *product(float *out, const Tensor *first, const Tensor *second, int n) {
    if (!first && !second) return NULL;
    for (int i = 0; i < n; i++) out[i] = (first ? ((const float *)first->host)[i] : 1) * (second ? ((const float *)second->host)[i] : 1);
    return out;
}

bool writers_open(Writers *w, const Model *m, Err *e) {
    const int n_embd = m->c.n_embd;
    *w = (Writers){0};
    if (m->c.n_stream)
        return err_set(e, "%s: %s mixes %d residual streams, and what one layer writes reaches all of them: its weights cannot be edited; use the direction at run time",
                       m->gguf.path, m->c.arch, m->c.n_stream);
    const size_t most = (size_t)m->c.n_layer * N_PART;
    w->of = calloc(most, sizeof *w->of);
    w->gains = malloc(sizeof *w->gains * most * (size_t)n_embd);
    if (!w->of || !w->gains) {
        writers_close(w);
        return err_set(e, "%s: no memory for the gains of %d layers", m->gguf.path, m->c.n_layer);
    }
    for (int l = 0; l < m->c.n_layer; l++) {
        const Layer *y = &m->layers[l];
        const struct {
            Part part;
            TapPoint site;
            const Tensor *w, *bias, *own_norm, *norm;
        } rows[] = {
            {PART_ATTN, TAP_ATTN_OUT, y->attn_output, y->attn_output_bias, NULL, y->post_attention_norm},
            {PART_FFN, TAP_MLP_OUT, y->ffn_down, y->ffn_down_bias, y->post_ffw_norm_1, y->post_ffw_norm},
            {PART_EXPERTS, TAP_MLP_OUT, y->ffn_down_exps, NULL, y->post_ffw_norm_2, y->post_ffw_norm},
            {PART_PER_LAYER, TAP_PLE_OUT, y->proj, NULL, NULL, y->post_norm},
        };
        for (int i = 0; i < (int)(sizeof rows / sizeof *rows); i++) {
            if (!rows[i].w) continue;
            float *gain = w->gains + (size_t)w->n * (size_t)n_embd;
            w->of[w->n++] = (Writer){.layer = l, .part = rows[i].part, .site = rows[i].site, .w = rows[i].w, .bias = rows[i].bias,
                                     .gain = product(gain, rows[i].own_norm, rows[i].norm, n_embd), .norm = rows[i].norm};
        }
    }
    return true;
}

void writers_close(Writers *w) {
    free(w->of);
    free(w->gains);
    *w = (Writers){0};
}
