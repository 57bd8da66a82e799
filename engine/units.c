// units.c: see units.h. What a row passes is counted as in bench/work.c: after the last layer that writes keys only wanted rows go on.
#include "units.h"
#include "kv.h"

#include <stdlib.h>

const char *const UNIT_NAMES[N_UNIT_KIND] = {"embedding", "per-layer table", "attention", "FFN", "experts", "head"};

int units_index(const PlanUnits *u, const Model *m, const Tensor *t, int layer, bool ffn) {
    const Layer *l = layer < m->c.n_layer ? &m->layers[layer] : NULL;
    const bool is_expert = l && (t == l->ffn_gate_exps || t == l->ffn_up_exps || t == l->ffn_down_exps);
    const UnitKind kind = !l ? UNIT_HEAD : !ffn ? UNIT_ATTENTION : is_expert ? UNIT_EXPERTS : UNIT_FFN;
    for (int i = 0; i < u->n; i++)
        if (u->unit[i].kind == kind && u->unit[i].layer == layer) return i;
    return -1;
}

uint64_t units_bytes(const Unit *u, int n_part) {
    const Backend device = {0};
    if (n_part == 0) return 0;
    if (n_part == u->n_part) return u->bytes + u->kv_bytes;
    uint64_t bytes = alloc_bytes(&device, sizeof(int) * (uint64_t)u->n_part); // which are there
    for (int i = 0; i < 3; i++) bytes += alloc_bytes(&device, (uint64_t)n_part * u->slice[i]);
    return bytes;
}

// Launches of a decoded token, counted by tests/test_clock.c. Matrices of one type that read the same are one; a V that is K's projection is a copy.
static int attention_launches(const Model *m, int l) {
    const Layer *w = &m->layers[l];
    int n = 5 + (w->altup_router ? 14 : 0);
    const Tensor *q = w->attn_q, *k = w->attn_k, *v = w->attn_v;
    if (w->d.kv_source == l) n += (k->type != q->type) + (!v || (v->type != k->type && v->type != q->type));
    if (l == 0) n += 1 + (m->c.n_embd_per_layer ? 6 : 0) + (m->c.n_stream ? 7 : 0); // the embedding, per-layer inputs, streams
    return n;
}

static int ffn_launches(const Layer *w) {
    const int n = (w->ffn_gate ? 4 : 0) + (w->ffn_gate_inp ? w->ffn_gate ? 4 : 3 : 0) + (w->d.sparsity > 0 ? 4 : 0);
    return n + (w->altup_router ? 11 : w->inp_gate ? 3 : 0);
}

enum { TOP_SLICE = 4096 }; // logits that one launch chooses from
static int head_launches(const Config *c) { return 3 + (c->n_vocab > TOP_SLICE) + (c->final_softcap > 0) + (c->n_stream ? 8 : 0); }

typedef struct {
    PlanUnits *u;
    const Model *m;
    Backend device; // only what session_kv_bytes and alloc_bytes look at
    int last;       // the layer that writes keys last
} Count;

static bool count(void *ctx, Tensor *t, int layer, bool ffn) {
    Count *c = ctx;
    Unit *u = &c->u->unit[units_index(c->u, c->m, t, layer, ffn)];
    const Layer *l = layer < c->m->c.n_layer ? &c->m->layers[layer] : NULL;
    const double used = (double)u->n_used / u->n_part, bytes = (double)tensor_bytes(t), flop = t->n_row > 1 ? 2 * used * t->n_slice * t->n_row * t->n_col : 0;
    u->bytes += alloc_bytes(&c->device, (uint64_t)tensor_bytes(t));
    if (u->kind == UNIT_EXPERTS) u->slice[t == l->ffn_gate_exps ? 0 : t == l->ffn_up_exps ? 1 : 2] = (uint64_t)(tensor_bytes(t) / t->n_slice);
    if (l && (t == l->attn_k || t == l->attn_v) && l->d.kv_source != layer) return true; // in the file, not used
    u->read[t->type] += used * bytes;
    if (l && t == l->ffn_gate_inp) u->router += bytes;
    const bool late = u->late || !l || (layer == c->last && t == l->attn_output) || t == c->m->per_layer_proj[1];
    *(late ? &u->late_flop : &u->flop) += flop;
    return true;
}

static Unit *add(PlanUnits *u, UnitKind kind, int layer) {
    u->unit[u->n] = (Unit){.kind = kind, .layer = layer, .n_part = 1, .n_used = 1, .source = layer};
    return &u->unit[u->n++];
}

static void add_table(PlanUnits *u, UnitKind kind, const Tensor *t) {
    if (!t) return;
    Unit *x = add(u, kind, 0);
    x->bytes = (uint64_t)tensor_bytes(t);
    x->read[t->type] = (double)type_row_bytes(t->type, t->n_col);
}

bool units_open(PlanUnits *u, Model *m, const SessionParams *p, int elem, Err *e) {
    const Config *cfg = &m->c;
    Count c = {.u = u, .m = m, .device = {.kv_type = elem == sizeof(F16) ? TYPE_F16 : TYPE_F32}, .last = cfg->n_layer - 1};
    while (m->layers[c.last].d.kv_source != c.last) c.last--;
    if (!kv_check(m, p, e)) return false;
    *u = (PlanUnits){.n_layer = cfg->n_layer, .n_embd = cfg->n_embd, .chunk = p->n_batch, .whole = cfg->n_stream > 0, .tied = m->token_embd == m->output};
    u->unit = calloc((size_t)(3 + 3 * cfg->n_layer), sizeof *u->unit);
    if (!u->unit) return err_set(e, "no memory for a list of units");
    if (!u->tied) add_table(u, UNIT_EMBED, m->token_embd);
    add_table(u, UNIT_TABLE, m->per_layer_token_embd);
    for (int l = 0; l < cfg->n_layer; l++) {
        const Layer *w = &m->layers[l];
        const LayerDesc *d = &w->d;
        Unit *x = add(u, UNIT_ATTENTION, l);
        x->kv_bytes = session_kv_bytes(m, &c.device, p, l);
        x->kv_row = (double)session_kv_row_bytes(m, &c.device, p, l);
        x->kv_new = d->kv_source == l ? 2.0 * d->n_head_kv * d->head_dim : 0;
        x->window = d->window;
        x->see_flop = l >= c.last ? 0 : 4.0 * d->n_head * d->head_dim;
        x->source = d->kv_source;
        x->late = l > c.last;
        x->n_launch = attention_launches(m, l);
        x = add(u, UNIT_FFN, l);
        x->late = l >= c.last;
        x->n_launch = ffn_launches(w);
        if (!d->n_expert) continue;
        x = add(u, UNIT_EXPERTS, l);
        x->n_part = d->n_expert;
        x->n_used = d->n_expert_used;
        x->away = w->expert_away;
        x->late = l >= c.last;
        x->n_launch = 4;
    }
    add(u, UNIT_HEAD, cfg->n_layer)->n_launch = head_launches(cfg);
    model_each(m, count, &c);
    uint64_t kv;
    session_bytes(m, &c.device, p, &kv, &u->acts);
    return true;
}

void units_close(PlanUnits *u) {
    free(u->unit);
    *u = (PlanUnits){0};
}
