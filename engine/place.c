// place.c: see place.h
#include "place.h"

#include <stdlib.h>

#include "console.h"

static const uint64_t RESERVE = 384u << 20; // of a device's free memory: the context's own growth, scratch, and others' windows

int place_units(const Units *u, int gpu_layers, uint64_t budget) {
    const int n_layer = (u->n - 1) / 2, most = gpu_layers <= 0 ? 0 : gpu_layers > n_layer ? u->n : 1 + 2 * (gpu_layers - 1);
    int n = 0;
    uint64_t used = 0;
    while (n < most && u->bytes[n] <= budget - used) used += u->bytes[n++];
    return u->whole && n > 0 && n % 2 == 0 ? n - 1 : n; // an FFN whose attention is not there
}

bool place_parse_bytes(const char *text, uint64_t *bytes, Err *e) {
    char *end;
    const double v = strtod(text, &end);
    const int shift = *end == 'G' ? 30 : *end == 'M' ? 20 : *end == 'K' ? 10 : 0;
    if (end == text || !shift || end[1] || !(v > 0 && v < 1 << 20)) return err_set(e, "option --vram is '%s', expected a size like 12G or 800M", text);
    *bytes = (uint64_t)(v * (double)(1 << shift));
    return true;
}

// Unit of layer l's half, from the output end.
static int unit_of(const Model *m, int layer, bool ffn) { return layer == m->c.n_layer ? 0 : 2 * (m->c.n_layer - layer) - ffn; }

static bool is_on_host(const Model *m, int layer, bool ffn) {
    return layer == m->c.n_layer ? m->head_on_host : ffn ? m->layers[layer].ffn_on_host : m->layers[layer].attn_on_host;
}

// A layer that reads another's keys is where that one is.
void place_set(Model *m, int n_device) {
    m->head_on_host = n_device < 1;
    for (int l = 0; l < m->c.n_layer; l++) {
        m->layers[l].ffn_on_host = unit_of(m, l, true) >= n_device;
        m->layers[l].attn_on_host = unit_of(m, l, false) >= n_device;
        const int source = m->layers[l].d.kv_source;
        if (source < l) m->layers[l].attn_on_host = m->layers[source].attn_on_host;
        if (m->c.n_stream) m->layers[l].ffn_on_host = m->layers[l].attn_on_host;
    }
}

// ---- sizes ----

typedef struct {
    const Model *m;
    uint64_t *bytes;
} Sizes;

static bool add_bytes(void *ctx, Tensor *t, int layer, bool ffn) {
    Sizes *s = ctx;
    s->bytes[unit_of(s->m, layer, ffn)] += (uint64_t)tensor_bytes(t);
    return true;
}

// Bytes of every unit, [1 + 2 * n_layer], to be freed; NULL: no memory.
static uint64_t *unit_bytes(Model *m, const Backend *b, const SessionParams *p) {
    uint64_t *bytes = calloc((size_t)(1 + 2 * m->c.n_layer), sizeof *bytes);
    if (!bytes) return NULL;
    model_each(m, add_bytes, &(Sizes){m, bytes});
    for (int l = 0; l < m->c.n_layer; l++) bytes[unit_of(m, l, false)] += session_kv_bytes(m, b, p, l);
    return bytes;
}

// ---- weights ----

typedef struct {
    Backend *b;
    const Model *m;
    Err *e;
    bool split; // only what is on the device
    double done;
    Progress *bar;
} Move;

static bool load_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    k->done += (double)tensor_bytes(t);
    progress_step(k->bar, k->done, (double)k->m->weight_bytes);
    return t->dev || (k->split && is_on_host(k->m, layer, ffn)) || k->b->load(k->b, t, k->e);
}

static bool unload_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Backend *b = ctx;
    (void)layer, (void)ffn;
    if (t->dev) b->free(b, t->dev);
    t->dev = NULL;
    return true;
}

bool place_load(Backend *b, Model *m, bool split, Err *e) {
    if (!b->load) return true;
    Progress bar;
    progress_start(&bar, "to the GPU");
    const bool ok = model_each(m, load_one, &(Move){.b = b, .m = m, .e = e, .split = split, .bar = &bar});
    progress_end(&bar);
    return ok;
}

void place_unload(Backend *b, Model *m) {
    if (m->layers && b->load) model_each(m, unload_one, b);
}

void place_close(Backend *b, Model *m) {
    place_unload(b, m);
    backend_close(b->host);
    free(b->host);
    b->host = NULL;
    backend_close(b);
}

// ---- open ----

static bool open_cpu(Backend *b, const PlaceOptions *o, Err *e) { return backend_open_cpu(b, o->threads, (Isa)isa_by_name(o->isa), e); }

static bool open_all(Backend *b, Model *m, const PlaceOptions *o, Err *e) {
    if (!backend_open_cuda(b, 0, e)) return false;
    if (o->look_only || place_load(b, m, false, e)) return true;
    place_close(b, m);
    return false;
}

static void say(const PlaceOptions *o, const Backend *b, const Model *m, const uint64_t *bytes) {
    uint64_t device = 0, host = 0;
    int halves = 0;
    for (int i = 0; i < m->c.n_layer * 2; i++) {
        const bool there = is_on_host(m, i / 2, i % 2);
        halves += !there;
        *(there ? &host : &device) += bytes[unit_of(m, i / 2, i % 2)];
    }
    *(m->head_on_host ? &host : &device) += bytes[0];
    fprintf(stderr, "%s: %g of %d layers%s on the GPU (%s): %.1f MiB, the rest on the CPU: %.1f MiB\n", o->program, halves / 2.0, m->c.n_layer,
            m->head_on_host ? "" : " and the head", b->detail, (double)device / 0x1p20, (double)host / 0x1p20);
}

// As much as -ngl asks for and fits. False, with the reason: nothing is on the device.
static bool open_part(Backend *b, Model *m, const PlaceOptions *o, Err *why) {
    if (backend_cuda_devices() == 0) return err_set(why, "no CUDA device is used");
    if (!backend_open_cuda(b, 0, why)) return false;
    SessionParams p = o->session;
    if (p.n_ctx <= 0) p.n_ctx = min_int(8192, m->c.n_ctx_train);
    uint64_t kv, acts;
    session_bytes(m, b, &p, &kv, &acts);
    const uint64_t room = b->free_bytes > RESERVE ? b->free_bytes - RESERVE : 0, most = o->vram && o->vram < room ? o->vram : room;
    uint64_t *bytes = unit_bytes(m, b, &p);
    const Units u = {bytes, 1 + 2 * m->c.n_layer, m->c.n_stream > 0};
    int n = bytes && acts < most ? place_units(&u, o->gpu_layers, most - acts) : 0;
    bool ok = n > 0 || err_set(why, "nothing fits into %.1f MiB of its memory (work buffers %.1f MiB)", (double)most / 0x1p20, (double)acts / 0x1p20);
    if (ok) place_set(m, n);
    if (ok && !o->look_only)
        while (!(ok = place_load(b, m, n < u.n, why)) && n > 2) { // memory in pieces, or others took some: a layer less
            place_unload(b, m);
            place_set(m, n -= 2);
        }
    if (ok && n < u.n) ok = ((b->host = calloc(1, sizeof *b->host)) || err_set(why, "no memory")) && open_cpu(b->host, o, why);
    if (ok && !o->quiet) say(o, b, m, bytes);
    free(bytes);
    if (!ok) place_close(b, m);
    return ok;
}

bool place_open(Backend *b, Model *m, const PlaceOptions *o, Err *e) {
    if (o->backend && !strcmp(o->backend, "ref")) return backend_open_ref(b, e);
    if (o->backend && !strcmp(o->backend, "cuda")) return open_all(b, m, o, e);
    if (o->gpu_layers > 0) {
        Err why = {0};
        if (!o->backend && open_part(b, m, o, &why)) return true;
        if (!o->quiet)
            fprintf(stderr, "%s: -ngl %d: %s, everything runs on the CPU\n", o->program, o->gpu_layers, o->backend ? "--backend cpu" : why.text);
    }
    return open_cpu(b, o, e);
}
