// work.c: see work.h. After the last layer that writes keys only the wanted rows go on (forward.c, drop_rows): nothing else is counted.
#include "work.h"

#include <math.h>
#include <stdlib.h>

enum { PIECE_BYTES = 256 << 10 };

static bool add_weight(void *ctx, Tensor *t, int layer, bool ffn) {
    Weights *w = ctx;
    const Model *m = w->m;
    Weight x = {.t = t, .n_expert = 1, .n_used = 1, .head = layer == m->c.n_layer};
    if (!x.head) {
        const Layer *l = &m->layers[layer];
        const bool is_kv = t == l->attn_k || t == l->attn_v, is_expert = t == l->ffn_gate_exps || t == l->ffn_up_exps || t == l->ffn_down_exps;
        if (is_kv && l->d.kv_source != layer) return true; // in the file, not used
        if (is_expert) x.n_expert = l->d.n_expert, x.n_used = l->d.n_expert_used;
        x.late = layer > w->last || (layer == w->last && (ffn || t == l->attn_output));
    }
    if (w->weight) w->weight[w->n] = x;
    w->n++;
    return true;
}

static void add_pieces(Weights *w) {
    w->n_piece = 0;
    for (const Weight *x = w->weight; x < w->weight + w->n; x++) {
        const int slices = x->t->n_slice / x->n_expert * x->n_used;
        const int64_t bytes = tensor_bytes(x->t) / x->t->n_slice;
        for (int s = 0; s < slices; s++)
            for (int64_t at = 0; at < bytes; at += PIECE_BYTES, w->n_piece++)
                if (w->piece)
                    w->piece[w->n_piece] = (Piece){(const uint8_t *)tensor_row(x->t, s, 0) + at, bytes - at < PIECE_BYTES ? bytes - at : PIECE_BYTES};
    }
}

bool weights_open(Weights *w, Model *m, Err *e) {
    *w = (Weights){.m = m, .last = m->c.n_layer - 1};
    while (m->layers[w->last].d.kv_source != w->last) w->last--;
    model_each(m, add_weight, w);
    w->weight = malloc(sizeof *w->weight * (size_t)w->n);
    w->n = 0;
    if (w->weight) model_each(m, add_weight, w), add_pieces(w);
    w->piece = w->weight ? malloc(sizeof *w->piece * (size_t)w->n_piece) : NULL;
    if (!w->piece) return err_set(e, "no memory for a list of the weights");
    add_pieces(w);
    double of_kind[2] = {0};
    for (const Weight *x = w->weight; x < w->weight + w->n; x++) of_kind[peak_kind(x->t->type)] += (double)tensor_bytes(x->t);
    for (int i = 0; i < w->n_piece; i++) w->bytes += (double)w->piece[i].n;
    w->kind = of_kind[PEAK_F32] > of_kind[PEAK_INT8] ? PEAK_F32 : PEAK_INT8;
    return true;
}

void weights_close(Weights *w) {
    free(w->weight);
    free(w->piece);
    *w = (Weights){0};
}

// n rows in one pass, of which `late` go on after the last writer of keys and `wanted` reach the head.
static Work work_of_pass(const Weights *w, const Session *s, int pos, int n, int late, int wanted) {
    Work k = {0};
    for (const Weight *x = w->weight; x < w->weight + w->n; x++) {
        const int rows = x->head ? wanted : x->late ? late : n;
        if (!rows) continue;
        // Of E experts, n rows that choose u of them at random meet E (1 - (1 - u/E)^n).
        const double used = (double)x->n_used / x->n_expert, met = used < 1 ? 1 - pow(1 - used, rows) : 1;
        k.bytes += met * (double)tensor_bytes(x->t);
        if (x->t->n_row > 1) k.flop += 2 * used * rows * (double)x->t->n_slice * x->t->n_row * x->t->n_col;
    }
    for (int l = 0; l < w->m->c.n_layer; l++) {
        const LayerDesc *d = &w->m->layers[l].d;
        const int rows = l >= w->last ? late : n, seen = d->window ? min_int(pos + n, d->window + rows - 1) : pos + n;
        if (rows) k.bytes += (double)session_kv_row_bytes(w->m, s->place[0], &s->p, l) * seen;
    }
    return k;
}

Work work_of(const Weights *w, const Session *s, int pos, int n) {
    Work all = {0};
    bool every = s->p.every_row;
    for (int i = 0; i < s->n_tap; i++) every |= !s->taps[i].wanted_only;
    for (int done = 0, step; done < n; done += step) {
        step = min_int(s->p.n_batch, n - done);
        const int wanted = done + step == n, late = every ? step : wanted;
        const Work k = work_of_pass(w, s, pos + done, step, late, wanted);
        all.bytes += k.bytes;
        all.flop += k.flop;
    }
    return all;
}
