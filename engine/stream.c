// stream.c: see stream.h
#include "stream.h"
#include "kv.h"

#include <math.h>

// Bytes at a time, of experts for each row of a batch (see stream_ring_bytes); less is not worth it.
enum { EXPERTS_PER_ROW = 32 << 10, LEAST_PIECE = 4 << 20 };

static bool may_stream(const Session *s, int n) {
    return s->place[1] && s->place[0]->ring_bytes && s->machine.gpu.name && n >= FEWEST_STREAMED && !s->m->c.n_stream && !s->p.alike;
}

static uint64_t max_bytes(uint64_t a, uint64_t b) { return a > b ? a : b; }
static uint64_t min_bytes(uint64_t a, uint64_t b) { return a < b ? a : b; }

// ---- the rule ----

// Weights that go the same way.
typedef struct {
    double bytes, read; // read: seconds that the host's memory takes for them
    double flop;        // for a row
} Load;

static void add_load(Load *k, const Machine *m, const Tensor *t) {
    const double bytes = (double)tensor_bytes(t) / t->n_slice;
    k->bytes += bytes;
    k->read += machine_type_seconds(&m->host, t->type, bytes);
    if (t->n_row > 1) k->flop += 2.0 * t->n_row * t->n_col;
}

static double host_seconds(const Machine *m, const Load *k, double rows) { return fmax(k->read, k->flop * rows / m->host.rate); }
static double device_seconds(const Machine *m, const Load *k, double rows) { return fmax(k->bytes / machine_stream_bandwidth(m), k->flop * rows / m->gpu.rate); }

// So many floats down or up.
static double down(const Session *s, double n) { return s->machine.gpu.handoff + 4 * n / s->machine.gpu.down; }
static double up(const Session *s, double n) { return s->machine.gpu.handoff + 4 * n / s->machine.gpu.up_pageable; }
// The stream's rows, or as many, down and up.
static double there_and_back(const Session *s, int n) { return down(s, (double)s->m->c.n_embd * n) + up(s, (double)s->m->c.n_embd * n); }

static Load expert_load(const Session *s, const Layer *w) {
    Load k = {0};
    const Tensor *const t[] = {w->ffn_gate_exps, w->ffn_up_exps, w->ffn_down_exps};
    for (int i = 0; i < 3; i++) add_load(&k, &s->machine, t[i]);
    return k;
}

static bool is_on_host(const Layer *w, int expert) { return w->n_expert_device < w->d.n_expert && (!w->share[1].slot || w->share[1].slot[expert] >= 0); }

// ---- FFN ----

enum { MAX_WEIGHTS = 24 };

// What ops of a layer's FFN read, but its experts.
static int weights_of_ffn(const Layer *w, const Tensor *t[MAX_WEIGHTS]) {
    const Tensor *const all[] = {w->ffn_norm, w->ffn_gate, w->ffn_up, w->ffn_down, w->ffn_gate_bias, w->ffn_up_bias, w->ffn_down_bias, w->post_ffw_norm,
                                 w->ffn_gate_inp, w->ffn_gate_inp_scale, w->ffn_down_exps_scale, w->pre_ffw_norm_2, w->post_ffw_norm_1, w->post_ffw_norm_2,
                                 w->inp_gate, w->proj, w->post_norm};
    int n = 0;
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        if (all[i]) t[n++] = all[i];
    return n;
}

// A matrix may come in pieces of 32 rows and more, beside which the device has room for what they come to.
static bool fits(const Backend *b, const Tensor *t, int n) {
    const uint64_t row = (uint64_t)type_row_bytes(t->type, t->n_col);
    return (t->n_row > 1 ? 32 * (row + sizeof(float) * (uint64_t)n) : row) + (64 << 10) <= min_bytes(b->ring_bytes / 2, BORROW_PIECE); // padding
}

// Adds up n_weight weights; false: one of them cannot be borrowed for n rows.
static bool load_of(const Session *s, const Tensor *const *t, int n_weight, int n, Load *k) {
    for (int i = 0; i < n_weight; i++) {
        if (!fits(s->place[0], t[i], n) || !cuda_supports(t[i]->type)) return false;
        add_load(k, &s->machine, t[i]);
    }
    return true;
}

// Seconds on the device, and on the host: the side where the rows are not has them on their way, too.
static bool is_quicker(const Session *s, int n, double here, double there) {
    *(s->b == s->place[0] ? &there : &here) += there_and_back(s, n);
    return here < there;
}

bool stream_ffn(const Session *s, int l, int n) {
    const Layer *w = &s->m->layers[l];
    const Machine *m = &s->machine;
    const Tensor *t[MAX_WEIGHTS];
    Load k = {0};
    if (!may_stream(s, n) || !w->ffn_on_host || !load_of(s, t, weights_of_ffn(w, t), n, &k)) return false;
    double here = device_seconds(m, &k, n), there = host_seconds(m, &k, n);
    if (w->d.n_expert) { // as if all were chosen equally often
        const Load x = expert_load(s, w);
        const double rows = (double)n * w->d.n_expert_used / w->d.n_expert, on_host = w->d.n_expert - w->n_expert_device;
        here += on_host * fmin(device_seconds(m, &x, rows), host_seconds(m, &x, rows));
        there += on_host * host_seconds(m, &x, rows);
    }
    return is_quicker(s, n, here, there);
}

// ---- attention ----

// What its ops read, but keys and values.
static int weights_of_attention(const Layer *w, bool own_keys, const Tensor *t[MAX_WEIGHTS]) {
    const Tensor *const all[] = {w->attn_norm, w->attn_q, w->attn_q_bias, w->attn_q_norm, w->attn_output, w->attn_output_bias, w->post_attention_norm,
                                 w->attn_k, w->attn_k_bias, w->attn_k_norm, w->attn_v, w->attn_v_bias};
    const size_t n_all = sizeof all / sizeof *all, n_keys = 5;
    int n = 0;
    for (size_t i = 0; i < (own_keys ? n_all : n_all - n_keys); i++)
        if (all[i]) t[n++] = all[i];
    return n;
}

double stream_sights(int pos, int n, int window) {
    const double first = pos + 1, last = pos + n, w = window;
    if (!window || last <= w) return (first + last) / 2 * n;
    return first >= w ? w * n : (first + w) / 2 * (w - first + 1) + w * (last - w);
}

bool stream_attention(const Session *s, int l, int n) {
    const Layer *w = &s->m->layers[l];
    const LayerDesc *d = &w->d;
    const Machine *m = &s->machine;
    const Tensor *t[MAX_WEIGHTS];
    const bool own = d->kv_source == l;
    Load k = {0};
    if (!may_stream(s, n) || !w->attn_on_host || !load_of(s, t, weights_of_attention(w, own, t), n, &k)) return false;
    double here = device_seconds(m, &k, n), there = host_seconds(m, &k, n);
    for (const Span *g = s->span; g < s->span + s->n_span; g++) {
        const uint64_t keys = kv_borrow_bytes(s, l, g);
        const double flop = 4.0 * d->n_head * d->head_dim * stream_sights(g->pos, g->n, d->window), one = (double)g->n * d->n_head_kv * d->head_dim;
        if (!keys || keys > s->place[0]->ring_bytes) return false;
        here += (own ? 2 * down(s, one) : 0) + (double)keys / machine_stream_bandwidth(m) + flop / m->gpu.rate;
        there += fmax(machine_type_seconds(&m->host, TYPE_F16, (double)keys), flop / m->host.rate);
    }
    return is_quicker(s, n, here, there);
}

// ---- experts ----

// Rows, ids and weights to the host, which will need them.
static void bring_rows(Session *s, const float *in, int n, int used) {
    Backend *b = s->b;
    Acts *there = &s->acts[1];
    b->download(b, there->expert_in, in, sizeof *in * (size_t)n * (size_t)s->m->c.n_embd);
    b->download(b, there->expert_weight, s->a->expert_weight, sizeof *in * (size_t)(n * used));
}

bool stream_choose(Session *s, const Layer *w, const float *in, int n) {
    const int n_expert = w->d.n_expert, used = w->d.n_expert_used;
    const Machine *m = &s->machine;
    Backend *b = s->b;
    int *id = s->acts[1].expert, rows[MAX_EXPERT] = {0};
    s->n_streamed = s->n_rest = 0;
    if (b != s->place[0] || !may_stream(s, n) || w->n_expert_device == n_expert) return false;
    const Load x = expert_load(s, w);
    const double often = fmin(n, 4.0 * n * used / n_expert); // hardly any expert has more rows: not worth a wait for the router
    if (device_seconds(m, &x, often) >= host_seconds(m, &x, often)) return false;

    b->download(b, id, s->a->expert, sizeof *id * (size_t)(n * used));
    for (int i = 0; i < n * used; i++)
        if (id[i] >= 0 && id[i] < n_expert) rows[id[i]]++;
    double rest_here = 0, rest_there = 0;
    for (int e = 0; e < n_expert; e++) {
        s->acts[1].slot[e] = -1;
        if (!rows[e] || !is_on_host(w, e)) continue;
        const double here = device_seconds(m, &x, rows[e]), there = host_seconds(m, &x, rows[e]);
        if (here < there) s->streamed[s->n_streamed++] = e;
        else {
            s->acts[1].slot[e] = e;
            s->n_rest++;
            rest_here += here;
            rest_there += there;
        }
    }
    if (!s->n_streamed) return false;
    if (rest_here < rest_there + there_and_back(s, n)) // few, and the rows would have to go there for them
        for (int e = 0; e < n_expert && s->n_rest; e++) {
            if (s->acts[1].slot[e] < 0) continue;
            s->acts[1].slot[e] = -1;
            s->streamed[s->n_streamed++] = e;
            s->n_rest--;
        }
    if (s->n_rest) bring_rows(s, in, n, used);
    return true;
}

static MoeArgs expert_args(const Layer *w, const Acts *a, int n) {
    return (MoeArgs){.slot = a->slot, .expert = a->expert, .weight = a->expert_weight, .n_rows = n, .n_used = w->d.n_expert_used, .act = w->d.act};
}

void stream_experts(Session *s, const Layer *w, float *y, const float *in, int n, bool add) {
    const Tensor *const file[] = {w->ffn_gate_exps, w->ffn_up_exps, w->ffn_down_exps};
    const int n_expert = w->d.n_expert, E = s->m->c.n_embd;
    Backend *b = s->b, *host = s->place[1];
    Acts *a = s->a, *there = &s->acts[1];
    float *part = in == a->normed ? a->expert_in : a->normed; // read by nobody any more
    for (int done = 0, k; done < s->n_streamed; done += k) {
        int slot[MAX_EXPERT];
        k = b->borrow(b, s->borrowed, file, 3, s->streamed + done, s->n_streamed - done);
        if (!k) { // no room for one of this size
            if (!s->n_rest) bring_rows(s, in, n, w->d.n_expert_used);
            for (; done < s->n_streamed; done++, s->n_rest++) there->slot[s->streamed[done]] = s->streamed[done];
            break;
        }
        for (int e = 0; e < n_expert; e++) slot[e] = -1;
        for (int i = 0; i < k; i++) slot[s->streamed[done + i]] = i;
        b->upload(b, a->slot, slot, sizeof *slot * (size_t)n_expert); // behind what reads the last piece's
        MoeArgs piece = expert_args(w, a, n);
        piece.y = add ? part : y, piece.x = in;
        piece.gate = &s->borrowed[0], piece.up = &s->borrowed[1], piece.down = &s->borrowed[2];
        b->moe_ffn(b, &piece);
        if (add) b->add(b, y, part, (int64_t)n * E);
        add = true;
    }
    if (!s->n_rest) return;
    MoeArgs rest = expert_args(w, there, n);
    rest.y = there->moe_out, rest.x = there->expert_in;
    rest.gate = file[0], rest.up = file[1], rest.down = file[2];
    host->batch = b->batch;
    host->moe_ffn(host, &rest);
    b->upload(b, add ? part : y, rest.y, sizeof *y * (size_t)n * (size_t)E);
    if (add) b->add(b, y, part, (int64_t)n * E);
}

// ---- memory ----

// Room for two pieces of the largest weight. Of experts that is one whose way takes longer than the device for what does not depend on how many
// experts are in it: steps over all slots of the batch, about 50 KB of its memory's traffic a row for Gemma 4. And two hold much of what comes while
// the device is still busy with its own experts and the dense FFN: with half of that the 26B's prompts take 9 to 11 % longer (tests/test_clock.c, a link
// of 22 GB/s). keys: of one layer at a time, which may take all of it.
uint64_t stream_ring_bytes(const Model *m, const Backend *b, const SessionParams *p, bool keys, uint64_t most) {
    const uint64_t padding = 256 << 10, piece = (uint64_t)p->n_batch * EXPERTS_PER_ROW;
    uint64_t largest = 0, least = 0;
    for (int l = 0; l < m->c.n_layer && !m->c.n_stream; l++) {
        const Layer *w = &m->layers[l];
        const Tensor *t[MAX_WEIGHTS];
        for (int i = weights_of_ffn(w, t); i > 0; i--) largest = max_bytes(largest, min_bytes((uint64_t)tensor_bytes(t[i - 1]), BORROW_PIECE));
        for (int i = weights_of_attention(w, w->d.kv_source == l, t); i > 0; i--)
            largest = max_bytes(largest, min_bytes((uint64_t)tensor_bytes(t[i - 1]), BORROW_PIECE));
        if (!w->d.n_expert) continue;
        const uint64_t all = (uint64_t)(tensor_bytes(w->ffn_gate_exps) + tensor_bytes(w->ffn_up_exps) + tensor_bytes(w->ffn_down_exps));
        const uint64_t one = all / (uint64_t)w->d.n_expert;
        largest = max_bytes(largest, min_bytes(all, max_bytes(one, piece)));
        least = max_bytes(least, one);
    }
    const uint64_t pieces = 2 * largest + padding, wanted = keys && largest ? max_bytes(pieces, kv_borrow_most(m, b, p)) : pieces;
    const uint64_t needed = 2 * max_bytes(least, min_bytes(largest, LEAST_PIECE)) + padding;
    return wanted <= most ? wanted : needed <= most ? most : 0;
}
