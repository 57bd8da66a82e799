// session.c: the KV caches and the work buffers of a session, and feeding tokens through the forward pass in batches.
#include <stdlib.h>
#include "cuda_scratch.h"
#include "forward.h"
#include "kv.h"
#include "resident.h"

enum { LOGIT_ROWS = 16 }; // rows of the head at a time when several logits are wanted

static int logit_rows(const SessionParams *p) { return p->all_logits || p->n_seq > 1 ? min_int(p->n_batch, LOGIT_ROWS) : 1; }

// When a work buffer holds something that is still read. Those that never do at once share memory (lay_out).
enum {
    IN_INPUTS = 1,   // per-layer inputs are made
    IN_PROJECT = 2,  // a layer begins: queries, keys and values
    IN_ATTEND = 4,   // keys are in the cache: scores
    IN_OUTPUT = 8,   // product with attention's output, until it is in the stream
    IN_FFN = 16,     // the rest of a layer
    IN_HEAD = 32,
    ALWAYS = 64      // from layer to layer, or batch to batch: memory of its own
};

typedef struct {
    size_t offset;  // of the pointer in Acts
    int live;
    uint64_t bytes;
    uint64_t at;    // in the memory that is shared, unless ALWAYS
} Buffer;

typedef struct {
    Buffer buffer[40];
    int n;
    uint64_t shared; // bytes
    Limits limits;
} Layout;

static bool is_taken(const Buffer *x, const Buffer *y) { return x->live & y->live && x->at < y->at + y->bytes && y->at < x->at + x->bytes; }

// After what is there and live at the same time, as near to the start as it fits.
static void put(Layout *layout, size_t offset, int live, int64_t width, size_t element, int rows) {
    Buffer *x = &layout->buffer[layout->n];
    *x = (Buffer){.offset = offset, .live = live, .bytes = ((uint64_t)width * element * (uint64_t)rows + 255) / 256 * 256};
    for (int i = 0; i < layout->n && live != ALWAYS;) {
        const Buffer *y = &layout->buffer[i++];
        if (is_taken(x, y)) x->at = y->at + y->bytes, i = 0;
    }
    if (live != ALWAYS && x->at + x->bytes > layout->shared) layout->shared = x->at + x->bytes;
    layout->n++;
}

#define PUT(field, live, w, r) put(layout, offsetof(Acts, field), (live), (w), sizeof *((Acts *)0)->field, (r))

// Every buffer the model needs, from maxima over all layers, never layer 0.
static void lay_out(const Model *m, const Backend *b, const SessionParams *p, Layout *layout) {
    const Config *c = &m->c;
    int q = 0, kv = 0, ff = 0, expert = 0, used = 0, ffx = 0, rank = 0, head_dim = 0, n_head = 0;
    for (int l = 0; l < c->n_layer; l++) {
        const LayerDesc *d = &m->layers[l].d;
        q = max_int(q, d->n_head * d->head_dim);
        kv = max_int(kv, d->n_head_kv * d->head_dim);
        ff = max_int(ff, d->n_ff);
        expert = max_int(expert, d->n_expert);
        used = max_int(used, d->n_expert_used);
        ffx = max_int(ffx, d->n_ff_expert);
        head_dim = max_int(head_dim, d->head_dim);
        n_head = max_int(n_head, d->n_head);
        if (m->layers[l].laurel_l) rank = max_int(rank, m->layers[l].laurel_l->n_row);
    }
    const int n = p->n_batch, E = c->n_embd, P = c->n_embd_per_layer, S = c->n_stream;
    memset(layout, 0, sizeof *layout);
    PUT(x, ALWAYS, E, n); PUT(q, IN_PROJECT | IN_ATTEND, q, n); PUT(out, IN_OUTPUT | IN_FFN, E, n);
    PUT(normed, IN_INPUTS | IN_PROJECT | IN_FFN | IN_HEAD, E, n);
    PUT(k, IN_PROJECT, kv, n); PUT(v, IN_PROJECT, kv, n); PUT(attn, IN_ATTEND | IN_OUTPUT, q, n);
    if (kv_chunk_bytes(m, b, p, false)) { PUT(chunk_k, ALWAYS, kv_chunk_bytes(m, b, p, false), 1); PUT(chunk_v, ALWAYS, kv_chunk_bytes(m, b, p, true), 1); }
    if (ff) { PUT(gate, IN_FFN, ff, n); PUT(up, IN_FFN, ff, n); }
    if (expert) {
        PUT(router, IN_FFN, expert, n); PUT(expert_in, IN_FFN, E, n); PUT(moe_out, IN_FFN, E, n); PUT(expert_weight, IN_FFN, used, n);
        PUT(expert, IN_FFN, used, n); PUT(slot, IN_FFN, expert, 1);
    }
    if (P) {
        PUT(per_layer, ALWAYS, (int64_t)P * c->n_layer, n); PUT(per_layer_ctx, IN_INPUTS, (int64_t)P * c->n_layer, n);
        PUT(ple, IN_FFN, P, n); PUT(ple_in, IN_FFN, P, n);
    }
    if (S) {
        PUT(streams, ALWAYS, (int64_t)S * E, n); PUT(predicted, ALWAYS, (int64_t)S * E, n); PUT(laurel, IN_PROJECT | IN_ATTEND | IN_OUTPUT, E, n);
        PUT(laurel_low, IN_PROJECT, rank, n); PUT(innovation, IN_FFN | IN_HEAD, E, n); PUT(coef, ALWAYS, S * S, n); PUT(modality, ALWAYS, S, n);
    }
    PUT(logits, IN_HEAD, c->n_vocab, logit_rows(p)); PUT(top, ALWAYS, MAX_TOP, logit_rows(p)); PUT(bias, ALWAYS, c->n_vocab, 1);
    const int widest = max_int(max_int(max_int(E, q), max_int(ff, ffx)), max_int(max_int(P, S), rank));
    layout->limits = (Limits){.n_rows = n, .n_col = widest, .n_ctx = p->n_ctx, .n_head = n_head, .head_dim = head_dim, .n_embd = E,
                              .n_ff_expert = ffx, .n_expert = expert, .n_expert_used = used, .n_vocab = c->n_vocab, .ring_bytes = p->ring_bytes};
}

// As they are meant: a batch is no larger than all contexts together.
static SessionParams sensible(const SessionParams *given) {
    SessionParams p = *given;
    p.n_seq = max_int(p.n_seq, 1);
    p.n_batch = min_int(p.n_batch, p.n_ctx < INT32_MAX / p.n_seq ? p.n_ctx * p.n_seq : INT32_MAX);
    return p;
}

uint64_t session_kv_bytes(const Model *m, const Backend *b, const SessionParams *params, int layer) {
    const LayerDesc *d = &m->layers[layer].d;
    const SessionParams p = sensible(params);
    if (d->kv_source != layer) return 0;
    const uint64_t n_cell = (uint64_t)kv_cells(m, &p, layer);
    return (alloc_bytes(b, n_cell * (uint64_t)kv_row_bytes(m, b, &p, layer, false)) + alloc_bytes(b, n_cell * (uint64_t)kv_row_bytes(m, b, &p, layer, true))) * (uint64_t)p.n_seq;
}

int64_t session_kv_row_bytes(const Model *m, const Backend *b, const SessionParams *p, int layer) {
    return kv_row_bytes(m, b, p, layer, false) + kv_row_bytes(m, b, p, layer, true);
}

void session_bytes(const Model *m, const Backend *b, const SessionParams *params, uint64_t *kv, uint64_t *acts) {
    Layout layout;
    const SessionParams p = sensible(params);
    lay_out(m, b, &p, &layout);
    *kv = *acts = 0;
    for (int l = 0; l < m->c.n_layer; l++) *kv += session_kv_bytes(m, b, &p, l);
    *acts = alloc_bytes(b, layout.shared);
    for (int i = 0; i < layout.n; i++)
        if (layout.buffer[i].live == ALWAYS) *acts += alloc_bytes(b, layout.buffer[i].bytes);
}

uint64_t session_scratch_bytes(const Model *m, const SessionParams *params) {
    Layout layout;
    const SessionParams p = sensible(params);
    lay_out(m, &(Backend){.kv_type = TYPE_F16}, &p, &layout);
    return cuda_scratch_bytes(&layout.limits);
}

bool session_reserve(const Model *m, Backend *b, const SessionParams *params, Err *e) {
    Layout layout;
    const SessionParams p = sensible(params);
    lay_out(m, b, &p, &layout);
    return b->reserve(b, &layout.limits, e);
}

static bool alloc_acts(Acts *a, const Model *m, Backend *b, const SessionParams *p) {
    Layout layout;
    lay_out(m, b, p, &layout);
    if (!(a->shared = b->alloc(b, (size_t)layout.shared))) return false;
    for (int i = 0; i < layout.n; i++) {
        const Buffer *buf = &layout.buffer[i];
        void *memory = buf->live == ALWAYS ? b->alloc(b, (size_t)buf->bytes) : a->shared + buf->at;
        memcpy((char *)a + buf->offset, &memory, sizeof memory);
        if (!memory) return false;
    }
    return true;
}

static void free_acts(Acts *a, Backend *b, const Layout *layout) {
    for (int i = 0; i < layout->n; i++) {
        void *p;
        memcpy(&p, (char *)a + layout->buffer[i].offset, sizeof p);
        if (p && layout->buffer[i].live == ALWAYS) b->free(b, p);
    }
    if (a->shared) b->free(b, a->shared);
}

bool session_open(Session *s, const Model *m, Backend *b, const SessionParams *params, Err *e) {
    *s = (Session){.m = m, .b = b, .place = {b, b->host}, .p = sensible(params)};
    const int n_seq = s->p.n_seq, n_layer = m->c.n_layer;
    if (s->p.n_ctx < 1 || s->p.n_batch < 1) return err_set(e, "session: context %d and batch %d, expected at least 1", params->n_ctx, params->n_batch);
    if (!kv_check(m, &s->p, e)) return false;
    s->n_logit_rows = logit_rows(&s->p);
    uint64_t kv_bytes, act_bytes;
    session_bytes(m, b, &s->p, &kv_bytes, &act_bytes);

    s->seq = calloc((size_t)n_seq, sizeof *s->seq);
    s->fed = calloc((size_t)n_seq, sizeof *s->fed);
    s->span = calloc((size_t)n_seq, sizeof *s->span);
    s->logit_row = calloc((size_t)s->p.n_batch, sizeof *s->logit_row);
    s->kv = calloc((size_t)n_seq * (size_t)n_layer, sizeof *s->kv);
    s->logits = calloc((size_t)n_seq * (size_t)m->c.n_vocab, sizeof(float));
    s->top = calloc((size_t)n_seq * MAX_TOP, sizeof *s->top);
    s->ids = calloc((size_t)s->p.n_batch, sizeof(int));
    s->acts[0].table_ids = s->acts[1].table_ids = calloc((size_t)s->p.n_batch, sizeof(int));
    bool ok = s->seq && s->fed && s->span && s->logit_row && s->ids && s->kv && s->logits && s->top && s->acts[0].table_ids;
    Backend *asked = NULL; // for memory, last
    for (int i = 0; i < n_seq * n_layer && ok; i++) {
        const LayerDesc *d = &m->layers[i % n_layer].d;
        if (d->kv_source != i % n_layer) continue;
        KvLayer *kv = &s->kv[i];
        *kv = (KvLayer){.n_cell = kv_cells(m, &s->p, i % n_layer), .n_head_kv = d->n_head_kv, .head_dim = d->head_dim, .type_k = s->p.type_k, .type_v = s->p.type_v};
        asked = s->place[kv_home(s, i % n_layer)];
        ok = (kv->k = asked->alloc(asked, (size_t)(kv->n_cell * kv_row_bytes(m, asked, &s->p, i % n_layer, false)))) &&
             (kv->v = asked->alloc(asked, (size_t)(kv->n_cell * kv_row_bytes(m, asked, &s->p, i % n_layer, true))));
    }
    for (int i = 0; i < 2 && ok && s->place[i]; i++) ok = alloc_acts(&s->acts[i], m, asked = s->place[i], &s->p);
    s->a = &s->acts[0];
    if (!ok) {
        err_set(e, "no memory for the session: %d sequence%s of %d tokens need %.1f MiB of KV cache and %.1f MiB of work buffers; try a smaller -c",
                n_seq, n_seq > 1 ? "s" : "", s->p.n_ctx, (double)kv_bytes / 1048576, (double)act_bytes / 1048576);
    }
    for (int i = 0; i < 2 && ok && s->place[i]; i++) ok = session_reserve(m, asked = s->place[i], &s->p, e);
    if (ok) return true;
    session_close(s);
    s->full = asked;
    return false;
}

void session_close(Session *s) {
    if (!s || !s->b) return;
    Layout layout;
    resident_close(s);
    lay_out(s->m, s->b, &s->p, &layout); // the same buffers on every backend, if not of the same size
    for (int i = 0; i < 2; i++)
        if (s->place[i]) free_acts(&s->acts[i], s->place[i], &layout);
    for (int i = 0; s->kv && i < s->p.n_seq * s->m->c.n_layer; i++) {
        Backend *place = s->place[kv_home(s, i % s->m->c.n_layer)];
        if (s->kv[i].k) place->free(place, s->kv[i].k);
        if (s->kv[i].v) place->free(place, s->kv[i].v);
    }
    free(s->seq);
    free(s->fed);
    free(s->span);
    free(s->logit_row);
    free(s->ids);
    free(s->kv);
    free(s->logits);
    free(s->top);
    free(s->acts[0].table_ids);
    memset(s, 0, sizeof *s);
}

static bool check_feeds(const Session *s, const Feed *feed, int n_feed, Err *e) {
    for (int f = 0; f < n_feed; f++) {
        const Feed *d = &feed[f];
        if (d->n < 1) return err_set(e, "nothing to evaluate: the prompt is empty");
        if (d->seq < 0 || d->seq >= s->p.n_seq) return err_set(e, "sequence %d, expected 0 to %d", d->seq, s->p.n_seq - 1);
        for (int g = 0; g < f; g++)
            if (feed[g].seq == d->seq) return err_set(e, "sequence %d is fed twice", d->seq);
        const int pos = s->seq[d->seq].pos;
        if (d->n > s->p.n_ctx - pos)
            return err_set(e, "the prompt has %d tokens, but the context has room for %d (%d of %d used); use a larger -c", d->n, s->p.n_ctx - pos, pos,
                           s->p.n_ctx);
        for (int i = 0; i < d->n; i++)
            if (d->ids[i] < 0 || d->ids[i] >= s->m->c.n_vocab) return err_set(e, "token %d has id %d, expected 0 to %d", i, d->ids[i], s->m->c.n_vocab - 1);
    }
    return true;
}

// What the rings of windowed layers have overwritten.
static void advance(Session *s, const Span *g) {
    Sequence *q = &s->seq[g->seq];
    q->pos += g->n;
    for (int l = 0; l < s->m->c.n_layer; l++) {
        const KvLayer *kv = &s->kv[g->seq * s->m->c.n_layer + l];
        const int window = s->m->layers[l].d.window;
        if (kv->k && window && q->pos > kv->n_cell) q->safe_pos = max_int(q->safe_pos, q->pos - kv->n_cell + window - 1);
    }
}

// False: an op failed; what has been computed in this batch is worth nothing.
static bool sync_places(Session *s, Err *e) {
    Err why;
    for (int i = 0; i < 2; i++)
        if (s->place[i] && !s->place[i]->sync(s->place[i], &why)) return err_set(e, s->place[i]->on_host ? "%.400s" : "the GPU failed: %.400s", why.text);
    return true;
}

bool session_eval_batch(Session *s, const Feed *feed, int n_feed, Err *e) {
    if (!check_feeds(s, feed, n_feed, e)) return false;
    int64_t total = 0, done = 0;
    int most = 1;
    for (int f = 0; f < n_feed; f++) {
        total += feed[f].n;
        most = max_int(most, min_int(feed[f].n_logits, feed[f].n)); // not their sum: prompts of one kind do as each alone
    }
    s->batch = total < INT32_MAX ? (int)total : INT32_MAX;
    s->batch_wanted = s->p.alike ? s->batch : most;
    resident_before(s, total == 1);
    for (int f = 0, at = 0; f < n_feed;) { // token `at` of feed f is next
        int n = 0;
        s->n_fed = s->n_logit = 0;
        for (; f < n_feed && n < s->p.n_batch; n += s->fed[s->n_fed++].n) {
            const Feed *d = &feed[f];
            const int k = min_int(s->p.n_batch - n, d->n - at), pos = s->seq[d->seq].pos;
            s->fed[s->n_fed] = (Span){.seq = d->seq, .row = n, .n = k, .pos = pos};
            memcpy(s->ids + n, d->ids + at, sizeof(int) * (size_t)k);
            for (int i = max_int(0, d->n - d->n_logits - at); i < k; i++) s->logit_row[s->n_logit++] = (LogitRow){.row = n + i, .seq = d->seq, .pos = pos + i};
            at += k;
            if (at == d->n) f++, at = 0;
        }
        forward(s, s->ids, n);
        if (!sync_places(s, e)) return false;
        for (int i = 0; i < s->n_fed; i++) advance(s, &s->fed[i]);
        resident_after(s);
        done += n;
        if (s->on_progress && s->on_progress(s->on_progress_ctx, (int)done, (int)total)) break;
    }
    return true;
}

bool session_eval(Session *s, const int *ids, int n, Err *e) {
    return session_eval_batch(s, &(Feed){.seq = 0, .ids = ids, .n = n, .n_logits = s->on_logits ? n : 1}, 1, e);
}

int session_rewind(Session *s, int seq, int pos) {
    Sequence *q = &s->seq[seq];
    if (pos >= q->pos) return q->pos;
    if (pos < q->safe_pos || pos < 0) pos = 0;
    if (pos == 0) q->safe_pos = 0;
    q->pos = pos;
    return pos;
}

void session_want_top(Session *s, int k, const float *bias) {
    const bool on_host = s->place[1] && s->m->head_on_host;
    s->want_top = min_int(min_int(k, MAX_TOP), s->m->c.n_vocab);
    s->has_bias = bias;
    if (bias) s->place[on_host]->upload(s->place[on_host], s->acts[on_host].bias, bias, sizeof *bias * (size_t)s->m->c.n_vocab);
}

bool session_add_tap(Session *s, Tap tap, Err *e) {
    if (s->n_tap == MAX_TAPS) return err_set(e, "no room for another tap: there are %d", MAX_TAPS);
    s->taps[s->n_tap++] = tap;
    return true;
}
