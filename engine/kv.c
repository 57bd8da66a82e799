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
    const Acts *a = &s->acts[kv_home(s, l)];
    const Backend *b = s->place[kv_home(s, l)];
    const int window = s->m->layers[l].d.window;
    const int64_t first = first_cell(window, (int)(g - s->fed), g->row);
    kv.n_cell = window - 1 + g->n;
    kv.k = a->chunk_k + first * kv_row_bytes(s->m, b, &s->p, l, false);
    kv.v = a->chunk_v + first * kv_row_bytes(s->m, b, &s->p, l, true);
    return kv;
}

void kv_write(Session *s, int l, const Span *g, const float *k, const float *v) {
    const KvLayer *kv = ring(s, l, g->seq);
    const int window = s->m->layers[l].d.window, width = kv->n_head_kv * kv->head_dim, before = min_int(g->pos, window - 1), late = min_int(g->n, window);
    Backend *b = s->place[kv_home(s, l)];
    if (b != s->b) {
        const Acts *there = &s->acts[1];
        const size_t bytes = sizeof *k * (size_t)g->n * (size_t)width;
        s->b->download(s->b, there->k, k, bytes);
        s->b->download(s->b, there->v, v, bytes);
        k = there->k, v = there->v;
    }
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

// ---- keys of the host for the device ----

enum { MAX_STRIPS = 128, STEP = 16 }; // KV heads; cells: of so many, a head's codes and scales, and all heads' codes, fill what borrow pads to

// Of a cache that is full to position n - 1 at most: cells that hold something; n_cell: any may.
static int cells_used(int n_cell, int n) { return n > n_cell - STEP ? n_cell : (n + STEP - 1) / STEP * STEP; }

static bool can_borrow(const LayerDesc *d, int n_cell, int n) { return d->n_head_kv <= MAX_STRIPS || cells_used(n_cell, n) == n_cell; }

// Halves [n_head][n_cell][width] from `at`, of each head n cells, as a tensor; all cells: as one slice.
static Tensor strips(const char *at, int n_head, int n_cell, int n, int width, const void **slices) {
    const bool whole = n == n_cell;
    Tensor t = {.name = "keys and values", .type = TYPE_F16, .n_row = whole ? n_head * n : n, .n_col = width, .n_slice = whole ? 1 : n_head, .host = at};
    for (int h = 0; h < t.n_slice; h++) slices[h] = at + sizeof(F16) * (size_t)h * (size_t)n_cell * (size_t)width;
    t.slices = slices;
    return t;
}

// A cache of the host, full to position n - 1 at most, in the device's memory. Heads are apart in it where cells are left out; codes and scales too.
static KvLayer borrow(Session *s, const KvLayer *kv, int n) {
    const void *slices[4][MAX_STRIPS];
    Tensor t[4], view[4];
    const Tensor *list[4];
    const int cells = cells_used(kv->n_cell, n), n_head = kv->n_head_kv, D = kv->head_dim;
    int n_t = 0, of_v = 0;
    for (int values = 0; values < 2; values++) {
        void *at = values ? kv->v : kv->k;
        const bool q8 = (values ? kv->type_v : kv->type_k) == TYPE_Q8_0;
        of_v = n_t;
        if (cells == kv->n_cell) {
            const int width = q8 ? D / 2 + D / 32 : D;
            t[n_t] = strips(at, n_head, cells, cells, width, slices[n_t]);
            n_t++;
            continue;
        }
        t[n_t] = strips(at, n_head, kv->n_cell, cells, q8 ? D / 2 : D, slices[n_t]);
        n_t++;
        if (q8) t[n_t] = strips(kv_scales(kv, at), n_head, kv->n_cell, cells, D / 32, slices[n_t]), n_t++;
    }
    for (int i = 0; i < n_t; i++) list[i] = &t[i];
    KvLayer here = *kv;
    here.n_cell = cells;
    if (s->b->borrow(s->b, view, list, n_t, NULL, t[0].n_slice)) here.k = view[0].dev, here.v = view[of_v].dev;
    else backend_fail(s->b, "%s: keys and values of %d positions do not fit where weights are copied to", s->b->name, n);
    return here;
}

static uint64_t borrow_bytes(const Model *m, const Backend *b, const SessionParams *p, int l, int n_cell, int n) {
    const uint64_t padding = 4 * 256, cells = (uint64_t)cells_used(n_cell, n);
    return cells * (uint64_t)(kv_row_bytes(m, b, p, l, false) + kv_row_bytes(m, b, p, l, true)) + padding;
}

uint64_t kv_borrow_bytes(const Session *s, int l, const Span *g) {
    const KvLayer *kv = ring(s, l, g->seq);
    const LayerDesc *d = &s->m->layers[l].d;
    const int n_cell = fits_ring(kv, d->window, g) ? kv->n_cell : d->window - 1 + g->n;
    return can_borrow(d, n_cell, g->pos + g->n) ? borrow_bytes(s->m, s->place[kv_home(s, l)], &s->p, l, n_cell, g->pos + g->n) : 0;
}

uint64_t kv_borrow_most(const Model *m, const Backend *b, const SessionParams *p) {
    uint64_t most = 0;
    for (int l = 0; l < m->c.n_layer; l++) {
        const LayerDesc *d = &m->layers[l].d;
        const int n_cell = has_ring(d, p) && d->window - 1 <= p->n_ctx - p->n_batch ? d->window - 1 + p->n_batch : p->n_ctx;
        const uint64_t bytes = borrow_bytes(m, b, p, l, n_cell, n_cell);
        if (bytes > most) most = bytes;
    }
    return most;
}

KvLayer kv_read(Session *s, int l, int seq) {
    const KvLayer *kv = ring(s, l, seq);
    const Span *g = s->fed; // rows of it may have been dropped from s->span
    while (g->seq != seq) g++;
    const KvLayer seen = fits_ring(kv, s->m->layers[l].d.window, g) ? *kv : chunk(s, l, g);
    return s->b == s->place[kv_home(s, l)] ? seen : borrow(s, &seen, g->pos + g->n);
}
