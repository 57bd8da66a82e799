// resident.c: see resident.h
#include "resident.h"

#include <stdlib.h>

// ---- what a token has chosen ----

static void on_lent(void *ctx, const MoeArgs *a) {
    Session *s = ctx;
    Resident *r = s->resident;
    uint16_t id[MAX_EXPERT];
    int i = 0, n = 0;
    while (i < r->n_layer && s->m->layers[r->layer[i]].share[1].gate != a->gate) i++;
    if (!r->listens || a->n_rows != 1 || i == r->n_layer) return;
    for (int u = 0; u < a->n_used; u++)
        if (a->expert[u] >= 0 && a->expert[u] < r->keeper.n_expert) id[n++] = (uint16_t)a->expert[u]; // of NaN the router makes none
    r->n_here += keeper_saw(&r->keeper, i, id, n);
    r->n_choice += n;
}

// ---- places ----

// Between tokens. first, last: the model's layers whose maps have changed.
typedef struct {
    int first, last;
} Changed;

static void set(Session *s, Changed *c, int i, int expert, int slot) { // slot: on the device; -1: it is the host's
    Resident *r = s->resident;
    const int l = r->layer[i];
    r->slot[l * r->n_expert + expert] = slot;
    s->m->layers[l].share[1].slot[expert] = slot < 0 ? expert : -1;
    c->first = min_int(c->first, l);
    c->last = max_int(c->last, l);
}

static void send_maps(Session *s, const Changed *c) {
    const Resident *r = s->resident;
    const int at = c->first * r->n_expert, n = (c->last + 1 - c->first) * r->n_expert;
    if (c->last >= c->first) s->place[0]->upload(s->place[0], s->m->slots[0] + at, r->slot + at, sizeof(int) * (size_t)n);
}

// What was on its way is there.
static void arrive(Session *s, Changed *c) {
    Resident *r = s->resident;
    if (!r->keeper.n_swap) return;
    s->place[0]->settle(s->place[0]);
    for (int i = 0; i < r->keeper.n_swap; i++) set(s, c, r->keeper.swap[i].layer, r->keeper.swap[i].in, r->free_slot[i]);
    r->n_brought += r->keeper.n_swap;
    keeper_arrive(&r->keeper);
}

// An expert becomes the host's. When its weights went to the device their pages were given back; if they are on disk only, better now than in a token.
static void expect(Session *s, int i, int expert) {
    Resident *r = s->resident;
    const Layer *w = &s->m->layers[r->layer[i]];
    const Tensor *const t[3] = {w->ffn_gate_exps, w->ffn_up_exps, w->ffn_down_exps};
    bool *done = &r->in_memory[i * r->keeper.n_expert + expert];
    for (int k = 0; k < 3 && !*done; k++) gguf_expect(&s->m->gguf, tensor_row(t[k], expert, 0), (uint64_t)(tensor_bytes(t[k]) / t[k]->n_slice));
    *done = true;
}

void resident_before(Session *s, bool decodes) {
    Changed c = {MAX_LAYER, -1};
    if (!s->resident) return;
    s->resident->listens = decodes;
    if (decodes) return;
    arrive(s, &c);
    send_maps(s, &c);
}

void resident_after(Session *s) {
    Resident *r = s->resident;
    Backend *b = s->place[0];
    Changed c = {MAX_LAYER, -1};
    if (!r || !r->listens) return;
    r->listens = false;
    arrive(s, &c);
    const int n = keeper_step(&r->keeper);
    const Swap *swap = r->keeper.swap;
    for (int i = 0; i < n; i++) {
        r->free_slot[i] = r->slot[r->layer[swap[i].layer] * r->n_expert + swap[i].out];
        set(s, &c, swap[i].layer, swap[i].out, -1);
        expect(s, swap[i].layer, swap[i].out);
    }
    send_maps(s, &c);
    for (int i = 0; i < n; i++) {
        const Layer *w = &s->m->layers[r->layer[swap[i].layer]];
        const Tensor *const from[3] = {w->ffn_gate_exps, w->ffn_up_exps, w->ffn_down_exps};
        for (int k = 0; k < 3; k++) b->bring(b, &w->part[k], r->free_slot[i], from[k], swap[i].in);
    }
}

// ---- open and close ----

// Of the layers that are followed; all have as many experts, or none is.
static void find_layers(const Session *s, Resident *r) {
    for (int l = 0; l < s->m->c.n_layer; l++) {
        const Layer *w = &s->m->layers[l];
        if (!w->share[1].slot || w->ffn_on_host) continue;
        const LayerDesc *first = &s->m->layers[r->n_layer ? r->layer[0] : l].d;
        if (w->d.n_expert == first->n_expert && w->d.n_expert_used == first->n_expert_used) r->layer[r->n_layer++] = l;
    }
}

bool resident_open(Session *s, int most, Err *e) {
    Backend *b = s->place[0];
    if (!s->place[1] || !s->m->slots[0] || !b->bring || !b->ring_bytes || s->p.n_seq > 1 || s->p.alike || most < 1) return true;
    Resident *r = calloc(1, sizeof *r);
    if (!r) return err_set(e, "no memory to follow the use of experts");
    find_layers(s, r);
    if (!r->n_layer) {
        free(r);
        return true;
    }
    s->resident = r;
    const LayerDesc *d = &s->m->layers[r->layer[0]].d;
    r->n_expert = model_most_experts(s->m);
    most = min_int(most, r->n_layer * d->n_expert_used);
    const size_t n = (size_t)s->m->c.n_layer * (size_t)r->n_expert;
    r->slot = malloc(sizeof *r->slot * n);
    r->free_slot = malloc(sizeof *r->free_slot * (size_t)most);
    r->in_memory = calloc((size_t)r->n_layer * (size_t)d->n_expert, sizeof *r->in_memory);
    const bool ok = (r->slot && r->free_slot && r->in_memory) || err_set(e, "no memory for maps of experts");
    if (!ok || !keeper_open(&r->keeper, r->n_layer, d->n_expert, d->n_expert_used, most, e)) {
        resident_close(s);
        return false;
    }
    b->download(b, r->slot, s->m->slots[0], sizeof *r->slot * n);
    for (int i = 0; i < r->n_layer; i++)
        for (int x = 0; x < d->n_expert; x++) {
            const bool away = r->slot[r->layer[i] * r->n_expert + x] < 0;
            keeper_known(&r->keeper, i, x)->place = away ? EXPERT_AWAY : EXPERT_HERE;
            r->in_memory[i * d->n_expert + x] = away;
        }
    b->on_lent = on_lent;
    b->on_lent_ctx = s;
    return true;
}

void resident_close(Session *s) {
    Resident *r = s->resident;
    if (!r) return;
    resident_before(s, false);
    s->place[0]->on_lent = NULL;
    keeper_close(&r->keeper);
    free(r->slot);
    free(r->free_slot);
    free(r->in_memory);
    free(r);
    s->resident = NULL;
}
