// kv.c: see kv.h
#include "kv.h"

static bool has_ring(const LayerDesc *d, const SessionParams *p) { return d->window > 0 && d->window < p->n_ctx; }

// Somebody reads layer l's keys after another ring has used the chunk's cells.
static bool is_read_late(const Model *m, const SessionParams *p, int l) {
    bool used = false;
    for (int i = l + 1; i < m->c.n_layer; i++) {
        const LayerDesc *d = &m->layers[i].d;
        if (d->kv_source == l && used) return true;
        used |= d->kv_source == i && has_ring(d, p);
    }
    return false;
}

int kv_cells(const Model *m, const SessionParams *p, int layer) {
    const LayerDesc *d = &m->layers[layer].d;
    if (!has_ring(d, p) || (is_read_late(m, p, layer) && d->window - 1 > p->n_ctx - p->n_batch)) return p->n_ctx;
    return is_read_late(m, p, layer) ? d->window - 1 + p->n_batch : d->window;
}

int64_t kv_row_bytes(const Model *m, const Backend *b, const SessionParams *p, int layer, bool values) {
    const LayerDesc *d = &m->layers[layer].d;
    const TensorType asked = values ? p->type_v : p->type_k;
    return type_row_bytes(asked ? asked : b->kv_type, (int64_t)d->n_head_kv * d->head_dim);
}

enum { ALIGN = 16 }; // cells, so that every span's begin at a multiple of 16 bytes

// Where the cells of a span of the batch begin, whose first row is `row` and that has `before` others before it.
static int64_t first_cell(int window, int before, int row) { return (before * ((int64_t)window + ALIGN - 1) + row + ALIGN - 1) / ALIGN * ALIGN; }

int64_t kv_chunk_bytes(const Model *m, const Backend *b, const SessionParams *p, bool values) {
    int64_t most = 0;
    for (int l = 0; l < m->c.n_layer && p->n_batch > 1; l++) {
        const LayerDesc *d = &m->layers[l].d;
        if (d->kv_source != l || !has_ring(d, p)) continue;
        const int64_t bytes = first_cell(d->window, p->n_seq, p->n_batch) * kv_row_bytes(m, b, p, l, values);
        if (bytes > most) most = bytes;
    }
    return most;
}

bool kv_check(const Model *m, const SessionParams *p, Err *e) {
    for (int l = 0; l < m->c.n_layer; l++)
        if ((p->type_k == TYPE_Q8_0 || p->type_v == TYPE_Q8_0) && m->layers[l].d.head_dim % 32)
            return err_set(e, "a q8_0 KV cache needs heads of a multiple of 32, but layer %d has heads of %d: leave out -ctk and -ctv", l, m->layers[l].d.head_dim);
    return true;
}

static const KvLayer *ring(const Session *s, int l, int seq) { return &s->kv[(int64_t)seq * s->m->c.n_layer + s->m->layers[l].d.kv_source]; }

// The span's rows overwrite nothing that one of them still sees.
static bool fits_ring(const KvLayer *kv, int window, const Span *g) { return g->pos + g->n <= kv->n_cell || g->n <= kv->n_cell - window + 1; }

// The cells of a span in the work buffer: the window before it, and its own.
static KvLayer chunk(const Session *s, int l, const Span *g) {
    KvLayer kv = *ring(s, l, g->seq);
    const int window = s->m->layers[l].d.window;
    const int64_t first = first_cell(window, (int)(g - s->fed), g->row);
    kv.n_cell = window - 1 + g->n;
    kv.k = s->a->chunk_k + first * kv_row_bytes(s->m, s->b, &s->p, l, false);
    kv.v = s->a->chunk_v + first * kv_row_bytes(s->m, s->b, &s->p, l, true);
    return kv;
}

void kv_write(Session *s, int l, const Span *g, const float *k, const float *v) {
    const KvLayer *kv = ring(s, l, g->seq);
    const int window = s->m->layers[l].d.window, width = kv->n_head_kv * kv->head_dim, before = min_int(g->pos, window - 1), late = min_int(g->n, window);
    Backend *b = s->b;
    if (fits_ring(kv, window, g)) {
        b->kv_write(b, kv, k, v, g->n, g->pos);
        return;
    }
    const KvLayer seen = chunk(s, l, s->fed + (g - s->span));
    const int64_t skip = (int64_t)(g->n - late) * width;
    b->kv_write(b, &seen, k, v, g->n, g->pos);
    if (before) b->kv_copy(b, &seen, kv, before, g->pos - before);
    b->kv_write(b, kv, k + skip, v + skip, late, g->pos + g->n - late);
}

KvLayer kv_read(const Session *s, int l, int seq) {
    const KvLayer *kv = ring(s, l, seq);
    const Span *g = s->fed; // rows of it may have been dropped from s->span
    while (g->seq != seq) g++;
    return fits_ring(kv, s->m->layers[l].d.window, g) ? *kv : chunk(s, l, g);
}
