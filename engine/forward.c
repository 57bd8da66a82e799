// forward.c: the forward pass. One for every architecture, backend, weight type, prefill and decode.
// A step happens if its tensor exists or its number is non-zero; loader/arch.c says what an architecture is.
// Notation of the comments: n rows (tokens), E = n_embd, H = n_head, D = head_dim; the residual stream is a.x [n][E].
// The rows are spans of one or more sequences (s->span). Only positions and keys know of sequences: rope, KV and attention
// go span by span, everything else over all rows.
#include <math.h>
#include "forward.h"
#include "kv.h"
#include "stream.h"

static void stand(Session *s, bool on_host) {
    s->b = s->place[on_host];
    s->a = &s->acts[on_host];
    s->b->batch = s->dropped ? s->batch_wanted : s->batch;
}

// n rows, width elements of 4 bytes each, from one place to the other. One of the two is the host.
static void carry(Backend *to, void *dst, Backend *from, const void *src, int64_t width, int n) {
    const size_t bytes = 4 * (size_t)(width * n);
    if (from->on_host) to->upload(to, dst, src, bytes);
    else from->download(from, dst, src, bytes);
}

// ---- per-layer inputs (Gemma 3n, Gemma 4 E): P values for every layer ----
// Two parts, one after the other: of the layers before the last that writes keys, for all rows; of that and the others, for the rows that
// go on from there. Each is [rows][layers * P].

static int last_writer(const Session *s) { return model_last_writer(s->m); }

// Where the inputs of layer l, row 0, begin in a.per_layer; of n_layer: where they end. row_width: floats to the next row
static int64_t per_layer_at(const Session *s, int l) {
    const int P = s->m->c.n_embd_per_layer, early = last_writer(s);
    return P * (l < early ? l : (int64_t)s->n_row * early + (l < s->m->c.n_layer ? l - early : (int64_t)s->n_late * (l - early)));
}

// What follows is computed on the host, or on the device, of a model that is on both: the stream goes there.
static void go(Session *s, bool on_host, int n) {
    const Config *c = &s->m->c;
    Backend *from = s->b;
    const Acts *old = s->a;
    if (!s->place[1] || from == s->place[on_host]) return;
    stand(s, on_host);
    carry(s->b, s->a->x, from, old->x, c->n_embd, n);
    if (c->n_stream) carry(s->b, s->a->streams, from, old->streams, (int64_t)c->n_stream * c->n_embd, n);
    if (c->n_embd_per_layer && !s->per_layer_there[on_host]) carry(s->b, s->a->per_layer, from, old->per_layer, per_layer_at(s, c->n_layer), 1);
    s->per_layer_there[on_host] = true;
}

void stream_tap(Session *s, TapPoint point, int layer, float *rows, int n) {
    const TapSite site = {.point = point, .layer = layer, .n_rows = n, .n_col = s->m->c.n_embd, .span = s->span, .n_span = s->n_span, .backend = s->b, .rows = rows};
    for (int i = 0; i < s->n_tap; i++) s->taps[i].call(s->taps[i].ctx, &site);
}

// What the routed experts came to, before any norm, and what with: a tap may ask one by one.
static void experts_tap(Session *s, int layer, const MoeArgs *a) {
    const TapSite site = {.point = TAP_EXPERTS, .layer = layer, .n_rows = a->n_rows, .n_col = s->m->c.n_embd, .span = s->span, .n_span = s->n_span, .backend = s->b, .rows = a->y, .moe = a};
    for (int i = 0; i < s->n_tap; i++) s->taps[i].call(s->taps[i].ctx, &site);
}

// out -> tap -> x
static void add_to_stream(Session *s, TapPoint point, int l, int n) {
    stream_tap(s, point, l, s->a->out, n);
    s->b->add(s->b, s->a->x, s->a->out, (int64_t)n * s->m->c.n_embd);
}

// I_l = (norm(W x / sqrt(E)) + sqrt(P) * table[id]) / sqrt(2) for every layer l at once
static void per_layer_inputs(Session *s, const int *ids) {
    const Model *m = s->m;
    Backend *b = s->b;
    Acts *a = s->a;
    const int E = m->c.n_embd, P = m->c.n_embd_per_layer, n = s->n_row, early = P * last_writer(s), all = P * m->c.n_layer, late = all - early;
    const int64_t count = per_layer_at(s, m->c.n_layer);
    float *late_in = a->per_layer + (int64_t)n * early, *late_ctx = a->per_layer_ctx + (int64_t)n * early;
    const bool every = s->n_late == n;

    for (int r = 0; r < n; r++) a->table_ids[r] = ids[r] < m->per_layer_token_embd->n_row ? ids[r] : 0; // the table may be shorter
    b->embed(b, a->per_layer_ctx, m->per_layer_token_embd, a->table_ids, n, sqrtf((float)P));
    if (early) b->copy_rows(b, a->per_layer, early, a->per_layer_ctx, all, n, early);
    if (every) b->copy_rows(b, late_in, late, a->per_layer_ctx + early, all, n, late);
    for (int i = 0; i < s->n_late && !every; i++) {
        const int64_t r = s->logit_row[i].row;
        b->copy_rows(b, late_in + (int64_t)i * late, late, a->per_layer_ctx + r * all + early, all, 1, late);
        b->copy_rows(b, a->normed + (int64_t)i * E, E, a->x + r * E, E, 1, E);
    }
    if (early) b->matmul(b, a->per_layer_ctx, m->per_layer_proj[0], NULL, a->x, n);
    if (s->wanted_only) b->batch = s->batch_wanted;
    if (s->n_late) b->matmul(b, late_ctx, m->per_layer_proj[1], NULL, every ? a->x : a->normed, s->n_late);
    b->batch = s->batch;
    b->scale(b, a->per_layer_ctx, 1 / sqrtf((float)E), count);
    b->norm(b, a->per_layer_ctx, m->per_layer_proj_norm, a->per_layer_ctx, (int)(count / P), P, m->c.norm_eps);
    b->add(b, a->per_layer, a->per_layer_ctx, count);
    b->scale(b, a->per_layer, sqrtf(0.5f), count);
}

// x [n][n_head][D], every row by the angle of its position
static void rotate(Session *s, float *x, const LayerDesc *d, int n_head) {
    for (const Span *g = s->span; g < s->span + s->n_span; g++)
        s->b->rope(s->b, x + (int64_t)g->row * n_head * d->head_dim, &d->rope, g->n, n_head, d->head_dim, g->pos);
}

// Queries, and keys and values into the cache.
static void project(Session *s, int l, int n) {
    const Layer *w = &s->m->layers[l];
    const LayerDesc *d = &w->d;
    const float eps = s->m->c.norm_eps;
    const int64_t kv_width = (int64_t)d->n_head_kv * d->head_dim;
    const bool own = d->kv_source == l; // otherwise an earlier layer has written what we read
    Backend *b = s->b;
    Acts *a = s->a;

    b->norm(b, a->normed, w->attn_norm, a->x, n, s->m->c.n_embd, eps);
    if (w->laurel_l) laurel_branch(s, w, n);

    // Each step for all three before the next step: a backend may do a step in one go.
    const Matmul qkv[] = {{a->q, w->attn_q, w->attn_q_bias}, {a->k, w->attn_k, w->attn_k_bias}, {a->v, w->attn_v, w->attn_v_bias}};
    b->matmuls(b, qkv, !own ? 1 : !w->attn_v ? 2 : 3, a->normed, n);                                          // [n][H][D]
    if (own && !w->attn_v) b->copy_rows(b, a->v, (int)kv_width, a->k, (int)kv_width, n, (int)kv_width);      // V = the raw K projection
    if (w->attn_q_norm) b->norm(b, a->q, w->attn_q_norm, a->q, n * d->n_head, d->head_dim, eps);
    if (own && w->attn_k_norm) b->norm(b, a->k, w->attn_k_norm, a->k, n * d->n_head_kv, d->head_dim, eps);
    if (own && d->v_norm) b->norm(b, a->v, NULL, a->v, n * d->n_head_kv, d->head_dim, eps);
    rotate(s, a->q, d, d->n_head);
    if (own) {
        rotate(s, a->k, d, d->n_head_kv);
        for (const Span *g = s->span; g < s->span + s->n_span; g++) kv_write(s, l, g, a->k + g->row * kv_width, a->v + g->row * kv_width);
    }
}

static void attention(Session *s, int l, int n) {
    const Layer *w = &s->m->layers[l];
    const LayerDesc *d = &w->d;
    const int64_t q_width = (int64_t)d->n_head * d->head_dim;
    Backend *b = s->b;
    Acts *a = s->a;

    for (const Span *g = s->span; g < s->span + s->n_span; g++) {
        const KvLayer kv = kv_read(s, l, g->seq);
        b->attention(b, &(AttentionArgs){.y = a->attn + g->row * q_width, .q = a->q + g->row * q_width, .kv = &kv, .n_rows = g->n,
                                         .pos = g->pos, .n_head = d->n_head, .window = d->window, .scale = d->attn_scale, .softcap = d->attn_softcap});
    }
    b->matmul(b, a->out, w->attn_output, w->attn_output_bias, a->attn, n);
    if (w->post_attention_norm) b->norm(b, a->out, w->post_attention_norm, a->out, n, s->m->c.n_embd, s->m->c.norm_eps);
    add_to_stream(s, TAP_ATTN_OUT, l, n);
    if (w->laurel_l) laurel_merge(s, n);
    stream_tap(s, TAP_RESID_MID, l, a->x, n);
}

// ---- FFN ----
// Experts may be on both sides. What the host has is lent to it as soon as the router has chosen, and collected when the device has done its own
// and the dense branch.

static int n_experts_of(const Session *s, const Layer *w, bool on_host) {
    return !s->place[1] ? on_host ? 0 : w->d.n_expert : on_host ? w->d.n_expert - w->n_expert_device : w->n_expert_device;
}

// Those of one side, of rows x.
static MoeArgs share_of(const Layer *w, bool on_host, float *y, const float *x, const Acts *chosen, int n) {
    const ExpertShare *e = &w->share[on_host];
    return (MoeArgs){.y = y, .gate = e->gate, .up = e->up, .down = e->down, .slot = e->slot, .x = x, .expert = chosen->expert, .weight = chosen->expert_weight,
                     .n_rows = n, .n_used = w->d.n_expert_used, .act = w->d.act};
}

// The chosen experts of every row, those of this side -> y. They may read the stream through a norm of their own, and so may the router.
// Returns what this side has computed, y without the other's part.
static MoeArgs experts(Session *s, const Layer *w, float *y, int n) {
    const LayerDesc *d = &w->d;
    const int E = s->m->c.n_embd;
    const float eps = s->m->c.norm_eps;
    const bool on_host = s->b != s->place[0];
    Backend *b = s->b;
    Acts *a = s->a;
    const float *in = a->normed;
    if (!w->ffn_gate_inp_scale || !w->pre_ffw_norm_2) b->norm(b, a->normed, w->ffn_norm, a->x, n, E, eps);
    if (w->ffn_gate_inp_scale) {
        b->norm(b, a->expert_in, w->ffn_gate_inp_scale, a->x, n, E, eps);
        b->scale(b, a->expert_in, 1 / sqrtf((float)E), (int64_t)n * E);
        in = a->expert_in;
    }
    b->matmul(b, a->router, w->ffn_gate_inp, NULL, in, n);
    b->moe_route(b, a->expert, a->expert_weight, a->router, w->ffn_down_exps_scale, n, d->n_expert, d->n_expert_used);
    if (s->on_route) s->on_route(s->on_route_ctx, b, (int)(w - s->m->layers), a->expert, n, d->n_expert_used);

    in = a->normed;
    if (w->pre_ffw_norm_2) {
        b->norm(b, a->expert_in, w->pre_ffw_norm_2, a->x, n, E, eps);
        in = a->expert_in;
    }
    const MoeArgs here = share_of(w, on_host, y, in, a, n), there = share_of(w, !on_host, NULL, in, a, n);
    if (!stream_choose(s, w, in, n) && n_experts_of(s, w, !on_host) && b->moe_lend) b->moe_lend(b, &there);
    if (n_experts_of(s, w, on_host)) b->moe_ffn(b, &here);
    return here;
}

// own->y (+)= what the experts of the other side come to. Where they have not been lent to it, it computes them now.
static void collect_experts(Session *s, const Layer *w, const MoeArgs *own) {
    const int n = own->n_rows, E = s->m->c.n_embd, used = own->n_used;
    const bool on_host = s->b != s->place[0], add = n_experts_of(s, w, on_host);
    Backend *b = s->b, *other = s->place[!on_host];
    Acts *a = s->a, *there = &s->acts[!on_host];
    float *y = own->y;
    if (!n_experts_of(s, w, !on_host)) return;
    if (s->n_streamed) {
        stream_experts(s, w, y, own->x, n, add);
        return;
    }
    if (b->moe_lend) {
        b->moe_collect(b, y, n, E, add);
        return;
    }
    carry(other, there->expert_in, b, own->x, E, n);
    carry(other, there->expert, b, a->expert, used, n);
    carry(other, there->expert_weight, b, a->expert_weight, used, n);
    const MoeArgs m = share_of(w, !on_host, there->moe_out, there->expert_in, there, n);
    other->batch = b->batch;
    other->moe_ffn(other, &m);
    carry(b, add ? a->expert_in : y, other, there->moe_out, E, n);
    if (add) b->add(b, y, a->expert_in, (int64_t)n * E);
}

static void dense(Session *s, const Layer *w, int n) {
    const LayerDesc *d = &w->d;
    Backend *b = s->b;
    Acts *a = s->a;
    b->norm(b, a->normed, w->ffn_norm, a->x, n, s->m->c.n_embd, s->m->c.norm_eps);
    if (d->sparsity > 0) {                                                                   // between product and activation: step by step
        const Matmul both[] = {{a->gate, w->ffn_gate, w->ffn_gate_bias}, {a->up, w->ffn_up, w->ffn_up_bias}};
        b->matmuls(b, both, 2, a->normed, n);
        b->sparsify(b, a->gate, d->sparsity, n, d->n_ff);
        b->gated(b, a->gate, a->gate, a->up, (int64_t)n * d->n_ff, d->act);
    } else
        b->gated_matmul(b, &(GatedArgs){.y = a->gate, .gate = w->ffn_gate, .up = w->ffn_up, .gate_bias = w->ffn_gate_bias, .up_bias = w->ffn_up_bias,
                                        .x = a->normed, .scratch = a->up, .n_rows = n, .act = d->act}); // [n][n_ff]
    b->matmul(b, a->out, w->ffn_down, w->ffn_down_bias, a->gate, n);
}

static void ffn(Session *s, int l, int n) {
    const Layer *w = &s->m->layers[l];
    const int E = s->m->c.n_embd;
    const float eps = s->m->c.norm_eps;
    Backend *b = s->b;
    Acts *a = s->a;
    float *y = w->ffn_gate ? a->moe_out : a->out; // of the experts
    MoeArgs own;

    if (w->ffn_gate_inp) own = experts(s, w, y, n);
    if (w->ffn_gate) dense(s, w, n);
    if (w->ffn_gate_inp) {
        collect_experts(s, w, &own);
        experts_tap(s, l, &own);
        if (w->post_ffw_norm_2) b->norm(b, y, w->post_ffw_norm_2, y, n, E, eps);
        if (w->post_ffw_norm_1) b->norm(b, a->out, w->post_ffw_norm_1, a->out, n, E, eps);
        if (w->ffn_gate) b->add(b, a->out, a->moe_out, (int64_t)n * E);                      // beside a dense branch
        stream_tap(s, TAP_MLP_SUM, l, a->out, n);
    }
    if (w->post_ffw_norm) b->norm(b, a->out, w->post_ffw_norm, a->out, n, E, eps);
    add_to_stream(s, TAP_MLP_OUT, l, n);
}

// proj(act(gate x) * I_l), normed, onto the stream
static void per_layer_input(Session *s, int l, const float *x, int n) {
    const Layer *w = &s->m->layers[l];
    const int P = s->m->c.n_embd_per_layer, early = last_writer(s), width = P * (l < early ? early : s->m->c.n_layer - early);
    Backend *b = s->b;
    Acts *a = s->a;
    b->gated_matmul(b, &(GatedArgs){.y = a->ple, .gate = w->inp_gate, .factor = a->per_layer + per_layer_at(s, l), .factor_stride = width, .x = x,
                                    .scratch = a->ple_in, .n_rows = n, .act = w->d.act});                     // [n][P]
    b->matmul(b, a->out, w->proj, NULL, a->ple, n);
    b->norm(b, a->out, w->post_norm, a->out, n, s->m->c.n_embd, s->m->c.norm_eps);
    if (!w->altup_router) add_to_stream(s, TAP_PLE_OUT, l, n);
    else {
        stream_tap(s, TAP_PLE_OUT, l, a->out, n);
        altup_add_per_layer(s, n);
    }
}

// ---- rows that nobody wants ----

static bool every_row_goes_on(const Session *s) {
    bool every = s->p.every_row;
    for (int i = 0; i < s->n_tap; i++) every |= !s->taps[i].wanted_only;
    return every;
}

// In place: of x [n_part][n][width] the wanted rows, close together: [n_part][n_logit][width]. Rows only move down, each copy
// no further than the gap is wide, so that what is read and what is written never overlap.
static void close_up(Session *s, float *x, int width, int n_part, int n) {
    int to = 0;
    for (int part = 0; part < n_part; part++)
        for (const Span *g = s->span; g < s->span + s->n_span; g++) {
            const int from = part * n + s->logit_row[g->row].row, gap = from - to;
            for (int i = 0, k; gap && i < g->n; i += k) {
                k = min_int(gap, g->n - i);
                s->b->copy_rows(s->b, x + (int64_t)(to + i) * width, width, x + (int64_t)(from + i) * width, width, k, width);
            }
            to += g->n;
        }
}

// After layer l, the last writer, has written: only a row's own logits still depend on it. Returns how many rows go on.
static int drop_rows(Session *s, int l, int n) {
    const Config *c = &s->m->c;
    const LayerDesc *d = &s->m->layers[l].d;
    if (!s->wanted_only) return n;
    s->dropped = true;
    s->b->batch = s->batch_wanted; // few are better multiplied row by row
    if (s->n_late == n) return n;
    s->n_span = 0; // a span for the wanted rows of each sequence: they follow one another
    for (int i = 0; i < s->n_logit; i++) {
        const LogitRow *r = &s->logit_row[i];
        if (i == 0 || r->seq != r[-1].seq) s->span[s->n_span++] = (Span){.seq = r->seq, .row = i, .pos = r->pos};
        s->span[s->n_span - 1].n++;
    }
    close_up(s, s->a->x, c->n_embd, 1, n);
    close_up(s, s->a->q, d->n_head * d->head_dim, 1, n);
    if (c->n_stream) {
        close_up(s, s->a->predicted, c->n_embd, c->n_stream, n);
        close_up(s, s->a->laurel, c->n_embd, 1, n);
    }
    for (int i = 0; i < s->n_logit; i++) s->logit_row[i].row = i;
    return s->n_late;
}

// Logits of the wanted rows, or only the likeliest, to the host.
static void head(Session *s) {
    const Model *m = s->m;
    const int E = m->c.n_embd, V = m->c.n_vocab;
    Backend *b = s->b;
    Acts *a = s->a;
    s->n_top = s->on_logits ? 0 : s->want_top;
    b->batch = 1; // row by row: whose logits are wanted is no matter of the batch
    for (int first = 0; first < s->n_logit; first += s->n_logit_rows) {
        const LogitRow *row = s->logit_row + first;
        const int n = min_int(s->n_logit_rows, s->n_logit - first);
        const bool together = row[n - 1].row - row[0].row == n - 1;
        for (int i = 0; i < n && !together; i++) b->copy_rows(b, a->normed + (int64_t)i * E, E, a->x + (int64_t)row[i].row * E, E, 1, E);
        b->norm(b, a->normed, m->output_norm, together ? a->x + (int64_t)row[0].row * E : a->normed, n, E, m->c.norm_eps);
        b->matmul(b, a->logits, m->output, NULL, a->normed, n);
        if (m->c.final_softcap > 0) b->softcap(b, a->logits, m->c.final_softcap, (int64_t)n * V);
        if (s->n_top)
            b->top(b, &(TopArgs){.y = a->top, .logits = a->logits, .bias = s->has_bias ? a->bias : NULL, .n_rows = n, .n_vocab = V, .k = s->n_top});
        for (int i = 0; i < n; i++) {
            if (s->n_top) {
                b->download(b, s->top + row[i].seq * MAX_TOP, a->top + i * s->n_top, sizeof *a->top * (size_t)s->n_top);
                continue;
            }
            float *host = s->logits + (int64_t)row[i].seq * V;
            b->download(b, host, a->logits + (int64_t)i * V, sizeof(float) * (size_t)V);
            if (s->on_logits) s->on_logits(s->on_logits_ctx, host, row[i].seq, row[i].pos);
        }
    }
}

void forward(Session *s, const int *ids, int n) {
    const Model *m = s->m;
    const Config *c = &m->c;
    const bool begin_on_host = s->place[1] && m->layers[0].attn_on_host;
    const int last = last_writer(s);

    s->n_row = n;
    s->wanted_only = !every_row_goes_on(s);
    s->n_late = s->wanted_only ? s->n_logit : n;
    s->dropped = false;
    memcpy(s->span, s->fed, sizeof *s->fed * (size_t)s->n_fed);
    s->n_span = s->n_fed;
    stand(s, begin_on_host);
    s->per_layer_there[begin_on_host] = true;
    s->per_layer_there[!begin_on_host] = false;
    s->b->embed(s->b, s->a->x, m->token_embd, ids, n, c->embed_scale);
    if (c->n_embd_per_layer) per_layer_inputs(s, ids);
    if (c->n_stream) altup_expand(s, n);

    for (int l = 0; l < c->n_layer; l++) {
        const Layer *w = &m->layers[l];
        go(s, w->attn_on_host && !stream_attention(s, l, n), n);
        if (w->altup_router) altup_predict(s, l, n);
        stream_tap(s, TAP_RESID_PRE, l, s->a->x, n);
        project(s, l, n);
        if (l == last && !(n = drop_rows(s, l, n))) return;
        attention(s, l, n);
        go(s, w->ffn_on_host && !stream_ffn(s, l, n), n);
        ffn(s, l, n);
        if (w->altup_router) altup_correct(s, w, n);
        else if (w->inp_gate) stream_tap(s, TAP_RESID_LATE, l, s->a->x, n);
        if (w->inp_gate) per_layer_input(s, l, w->altup_correct_scale ? s->a->normed : s->a->x, n);
        if (w->output_scale != 0) s->b->scale(s->b, s->a->x, w->output_scale, (int64_t)n * c->n_embd);
    }

    go(s, m->head_on_host, n);
    if (c->n_stream) altup_merge(s, n);
    stream_tap(s, TAP_RESID_PRE, c->n_layer, s->a->x, n);
    head(s);
}
