// place.c: see place.h
#include "place.h"
#include "kv.h"

#include <stdlib.h>

#include "console.h"

static const uint64_t RESERVE = 384u << 20; // of a device's free memory: the context's own growth, and others' windows
enum { PIECE = 16 << 20, BATCH = 512, BATCH_DEVICE = 2048 }; // bytes of a weight between two steps of a progress bar; tokens per pass

// ---- options ----

bool place_parse_bytes(const char *text, uint64_t *bytes, Err *e) {
    char *end;
    const double v = strtod(text, &end);
    const int shift = *end == 'G' ? 30 : *end == 'M' ? 20 : *end == 'K' ? 10 : 0;
    if (end == text || !shift || end[1] || !(v > 0 && v < 1 << 20)) return err_set(e, "option --vram is '%s', expected a size like 12G or 800M", text);
    *bytes = (uint64_t)(v * (double)(1 << shift));
    return true;
}

static Isa isa_of(const PlaceOptions *o) { return o->isa ? (Isa)isa_by_name(o->isa) : ISA_AUTO; }
static bool is_backend(const PlaceOptions *o, const char *name) { return o->backend && !strcmp(o->backend, name); }

bool place_check_cache(const PlaceOptions *o, Err *e) {
    for (int i = 0; i < 2; i++) {
        const char *name = i ? o->cache_v : o->cache_k;
        const TensorType type = place_cache_type(name);
        if (name && type != TYPE_F16 && type != TYPE_Q8_0) return err_set(e, "option %s is '%s', expected f16 or q8_0", i ? "-ctv" : "-ctk", name);
    }
    return true;
}

bool place_check(const PlaceOptions *o, Err *e) {
    uint64_t bytes;
    if ((int)isa_of(o) < 0) return err_set(e, "option --isa is '%s', expected auto, portable, avx2, avxvnni, avx512vnni or amx", o->isa);
    if (o->backend && !is_backend(o, "cpu") && !is_backend(o, "ref") && !is_backend(o, "cuda"))
        return err_set(e, "option --backend is '%s', expected cpu, ref or cuda", o->backend);
    if (!place_check_cache(o, e)) return false;
    if (o->vram && !place_parse_bytes(o->vram, &bytes, e)) return false;
    return !o->vram || o->gpu_layers > 0 || err_set(e, "option --vram needs -ngl");
}

// ---- units ----

// Units that -ngl asks for.
static int units_asked(int n_layer, int gpu_layers) { return gpu_layers <= 0 ? 0 : gpu_layers > n_layer ? 1 + 2 * n_layer : 1 + 2 * (gpu_layers - 1); }

int place_units(const Units *u, int gpu_layers, uint64_t budget) {
    const int most = units_asked((u->n - 1) / 2, gpu_layers);
    int n = 0;
    uint64_t used = 0;
    while (n < most && u->bytes[n] <= budget - used) used += u->bytes[n++];
    return u->whole && n > 0 && n % 2 == 0 ? n - 1 : n; // an FFN whose attention is not there
}

// Unit of layer l's half, from the output end.
static int unit_of(const Model *m, int layer, bool ffn) { return layer == m->c.n_layer ? 0 : 2 * (m->c.n_layer - layer) - ffn; }

static bool is_on_host(const Model *m, int layer, bool ffn) {
    return layer == m->c.n_layer ? m->head_on_host : ffn ? m->layers[layer].ffn_on_host : m->layers[layer].attn_on_host;
}

static bool is_on_device(const Backend *b, const Model *m, int layer, bool ffn) { return !b->on_host && !(b->host && is_on_host(m, layer, ffn)); }

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

// The n that place_set was called with, or one less that means the same.
static int n_on_device(const Model *m) {
    int n = m->head_on_host ? 0 : 1;
    for (int i = 0; i < 2 * m->c.n_layer; i++)
        if (!is_on_host(m, i / 2, i % 2)) n = max_int(n, 1 + unit_of(m, i / 2, i % 2));
    return n;
}

// ---- sizes ----

typedef struct {
    const Backend *b;
    const Model *m;
    uint64_t *bytes;
} Sizes;

static bool add_bytes(void *ctx, Tensor *t, int layer, bool ffn) {
    Sizes *s = ctx;
    s->bytes[unit_of(s->m, layer, ffn)] += alloc_bytes(s->b, (uint64_t)tensor_bytes(t));
    return true;
}

// Bytes of every unit on a device, [1 + 2 * n_layer], to be freed; NULL: no memory.
static uint64_t *unit_bytes(Model *m, const Backend *b, const SessionParams *p) {
    uint64_t *bytes = calloc((size_t)(1 + 2 * m->c.n_layer), sizeof *bytes);
    if (!bytes) return NULL;
    model_each(m, add_bytes, &(Sizes){b, m, bytes});
    for (int l = 0; l < m->c.n_layer; l++) bytes[unit_of(m, l, false)] += session_kv_bytes(m, b, p, l);
    return bytes;
}

// What is where: weights, KV cache and work buffers; [0] on the device, [1] in host memory.
typedef struct {
    const Backend *b;
    const Model *m;
    uint64_t weights[2], tables, kv[2], acts[2]; // tables, of the host's: read row by row
} Use;

static bool add_use(void *ctx, Tensor *t, int layer, bool ffn) {
    Use *u = ctx;
    u->weights[!is_on_device(u->b, u->m, layer, ffn)] += (uint64_t)tensor_bytes(t);
    return true;
}

static Use use_of(const Backend *b, Model *m, const SessionParams *p) {
    Use u = {.b = b, .m = m};
    const Backend *const place[2] = {b->on_host ? NULL : b, b->on_host ? b : b->host};
    uint64_t kv;
    model_each(m, add_use, &u);
    for (int i = 0; i < 2; i++)
        if (place[i]) session_bytes(m, place[i], p, &kv, &u.acts[i]);
    for (int l = 0; l < m->c.n_layer; l++) {
        const int where = !is_on_device(b, m, l, false);
        u.kv[where] += session_kv_bytes(m, place[where], p, l);
    }
    if (m->token_embd != m->output) u.weights[1] += (uint64_t)tensor_bytes(m->token_embd);
    if (m->per_layer_token_embd) u.tables = (uint64_t)tensor_bytes(m->per_layer_token_embd);
    u.weights[1] += u.tables;
    return u;
}

// ---- host memory ----

static uint64_t read_number(const char *path, const char *label, uint64_t unit) {
    char line[256];
    FILE *f = fopen(path, "r");
    uint64_t value = 0;
    while (f && fgets(line, sizeof line, f)) {
        unsigned long long v;
        if (!strncmp(line, label, strlen(label)) && sscanf(line + strlen(label), "%llu", &v) == 1) value = (uint64_t)v * unit;
    }
    if (f) fclose(f);
    return value;
}

// What this process can have: all of the machine's memory, or its control group's. 0: unknown.
static uint64_t memory_total(void) {
    const uint64_t machine = read_number("/proc/meminfo", "MemTotal:", 1024);
    const uint64_t group = read_number("/sys/fs/cgroup/memory.max", "", 1);
    return group && (!machine || group < machine) ? group : machine;
}

// Does what the host keeps fit into its memory? Tables that are mapped may stay on disk.
static bool check_host_memory(const Backend *b, Model *m, const SessionParams *p, Err *e) {
    const Use u = use_of(b, m, p);
    const uint64_t weights = u.weights[1] - (m->gguf.no_mmap ? 0 : u.tables), all = weights + u.kv[1] + u.acts[1], total = memory_total();
    if (!total || all <= total) return true;
    return err_set(e, "%s: needs %.1f GiB (weights %.1f, KV cache for %d tokens %.1f, work buffers %.1f), this machine has %.1f GiB", m->gguf.path,
                   (double)all / 0x1p30, (double)weights / 0x1p30, p->n_ctx, (double)u.kv[1] / 0x1p30, (double)u.acts[1] / 0x1p30, (double)total / 0x1p30);
}

// ---- weights ----

typedef struct {
    Backend *b;
    Model *m;
    Err *e;
    double done, total;
    Progress bar;
} Move;

typedef bool Visit(Move *k, const void *p, uint64_t n);

static bool fetch(Move *k, const void *p, uint64_t n) {
    for (uint64_t at = 0, piece; at < n; at += piece) {
        piece = n - at < PIECE ? n - at : PIECE;
        if (!gguf_fetch(&k->m->gguf, (const char *)p + at, piece, k->e)) return false;
        progress_step(&k->bar, k->done += (double)piece, k->total);
    }
    return true;
}

static bool forget(Move *k, const void *p, uint64_t n) {
    gguf_forget(&k->m->gguf, p, n);
    return true;
}

// The bytes of a weight; slices that follow each other at once.
static bool each_run(Move *k, const Tensor *t, Visit *visit) {
    const uint64_t slice = (uint64_t)(tensor_bytes(t) / t->n_slice);
    for (int s = 0, end; s < t->n_slice; s = end) {
        const char *p = tensor_row(t, s, 0);
        for (end = s + 1; end < t->n_slice && tensor_row(t, end, 0) == p + slice * (uint64_t)(end - s);) end++;
        if (!visit(k, p, slice * (uint64_t)(end - s))) return false;
    }
    return true;
}

static bool load_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    if (t->dev || !is_on_device(k->b, k->m, layer, ffn)) return true;
    return each_run(k, t, fetch) && k->b->load(k->b, t, k->e) && each_run(k, t, forget);
}

static bool fetch_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    return is_on_device(k->b, k->m, layer, ffn) || each_run(k, t, fetch);
}

static bool unload_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Backend *b = ctx;
    (void)layer, (void)ffn;
    if (t->dev) b->free(b, t->dev);
    t->dev = NULL;
    return true;
}

// Of layers that are no longer on the device.
static bool unload_host(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    return is_on_device(k->b, k->m, layer, ffn) || unload_one(k->b, t, layer, ffn);
}

bool place_load(Backend *b, Model *m, Err *e) {
    Move k = {.b = b, .m = m, .e = e, .total = (double)use_of(b, m, &(SessionParams){.n_ctx = 1, .n_batch = 1}).weights[0]};
    progress_start(&k.bar, "to the GPU");
    const bool ok = model_each(m, load_one, &k);
    progress_end(&k.bar);
    return ok;
}

// What the host computes with. The tables first: of what does not fit, they are what can wait for the disk.
static bool fetch_host(Backend *b, Model *m, Err *e) {
    Move k = {.b = b, .m = m, .e = e, .total = (double)use_of(b, m, &(SessionParams){.n_ctx = 1, .n_batch = 1}).weights[1]};
    progress_start(&k.bar, "loading");
    bool ok = !m->per_layer_token_embd || each_run(&k, m->per_layer_token_embd, fetch);
    if (ok && (!m->token_embd->dev || (b->host && m->layers[0].attn_on_host))) ok = each_run(&k, m->token_embd, fetch);
    ok = ok && model_each(m, fetch_one, &k);
    progress_end(&k.bar);
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

// ---- the choice ----

static bool open_cpu(Backend *b, const PlaceOptions *o, Err *e) { return backend_open_cpu(b, o->threads, isa_of(o), e); }

static bool open_host(Backend *b, const PlaceOptions *o, Err *e) {
    b->host = calloc(1, sizeof *b->host);
    return b->host ? open_cpu(b->host, o, e) : err_set(e, "no memory for a backend");
}

// How many units fit beside the buffers of a session; 0, with the reason: none.
static int plan(Backend *b, Model *m, const PlaceOptions *o, Err *why) {
    const SessionParams *p = &o->session;
    const uint64_t free_before = b->free_bytes;
    uint64_t kv, acts, vram = UINT64_MAX;
    if (!session_reserve(m, b, p, why) || (o->vram && !place_parse_bytes(o->vram, &vram, why))) return 0;
    session_bytes(m, b, p, &kv, &acts);
    const uint64_t scratch = free_before - b->free_bytes, buffers = scratch + acts; // scratch is measured, not computed
    const uint64_t room = scratch + (b->free_bytes > RESERVE ? b->free_bytes - RESERVE : 0), most = vram < room ? vram : room;
    uint64_t *bytes = unit_bytes(m, b, p);
    const Units u = {bytes, 1 + 2 * m->c.n_layer, m->c.n_stream > 0};
    const int n = bytes && buffers < most ? place_units(&u, o->gpu_layers, most - buffers) : 0;
    if (!bytes) err_set(why, "no memory for a plan");
    else if (!n) err_set(why, "nothing fits into %.1f MiB of its memory: work buffers take %.1f, the head %.1f", (double)most / 0x1p20,
                         (double)buffers / 0x1p20, (double)bytes[0] / 0x1p20);
    free(bytes);
    return n;
}

// As much as -ngl asks for and fits. False, with the reason: nothing is on the device.
static bool open_part(Backend *b, Model *m, PlaceOptions *o, Err *why) {
    if (!backend_open_cuda(b, 0, why)) {
        why->text[strcspn(why->text, ";")] = 0; // what to do is what is being done
        return false;
    }
    const uint64_t bytes_free = b->free_bytes;
    const bool choose_batch = o->session.n_batch <= 0;
    if (choose_batch) o->session.n_batch = BATCH_DEVICE;
    int n = plan(b, m, o, why);
    if (choose_batch && n < units_asked(m->c.n_layer, o->gpu_layers)) { // rather more layers than long batches
        Err none = {0};
        o->session.n_batch = BATCH;
        b->free_bytes = bytes_free;
        n = plan(b, m, o, &none);
        *why = none;
    }
    place_set(m, n);
    const bool ok = n > 0 && (n == 1 + 2 * m->c.n_layer || open_host(b, o, why));
    if (!ok) place_close(b, m);
    return ok;
}

static bool instead(Backend *b, const PlaceOptions *o, const char *why, Err *e) {
    if (!o->quiet) fprintf(stderr, "%s: -ngl %d: %s, everything runs on the CPU\n", o->program, o->gpu_layers, why);
    return open_cpu(b, o, e);
}

static bool choose(Backend *b, Model *m, PlaceOptions *o, Err *e) {
    Err why = {0};
    const bool choose_batch = o->session.n_batch <= 0;
    if (o->gpu_layers > 0 && !o->backend && open_part(b, m, o, &why)) return true;
    if (choose_batch) o->session.n_batch = is_backend(o, "cuda") ? BATCH_DEVICE : BATCH;
    if (is_backend(o, "ref")) return backend_open_ref(b, e);
    if (is_backend(o, "cuda")) return backend_open_cuda(b, 0, e);
    if (o->gpu_layers <= 0) return open_cpu(b, o, e);
    if (o->backend) return instead(b, o, "--backend cpu", e);
    return instead(b, o, why.text, e);
}

static void say(const PlaceOptions *o, const Backend *b, Model *m) {
    if (b->on_host || o->backend || o->quiet) return;
    const Use u = use_of(b, m, &o->session);
    int halves = 0;
    for (int i = 0; i < 2 * m->c.n_layer; i++) halves += is_on_device(b, m, i / 2, i % 2);
    fprintf(stderr, "%s: %g of %d layers%s on the GPU (%s): %.1f MiB, in host memory: %.1f MiB\n", o->program, halves / 2.0, m->c.n_layer,
            is_on_device(b, m, m->c.n_layer, false) ? " and the head" : "", b->detail, (double)(u.weights[0] + u.kv[0] + u.acts[0]) / 0x1p20,
            (double)(u.weights[1] + u.kv[1] + u.acts[1]) / 0x1p20);
}

bool place_look(Backend *b, Model *m, const PlaceOptions *options, Err *e) {
    PlaceOptions o = *options;
    if (!kv_check(m, &o.session, e) || !choose(b, m, &o, e)) return false;
    say(&o, b, m);
    return true;
}

// ---- open ----

// *device: what failed was the device.
static bool bring(Session *s, Backend *b, Model *m, const PlaceOptions *o, bool *device, Err *why) {
    *device = !b->on_host;
    if (!place_load(b, m, why)) return false;
    if (!session_open(s, m, b, &o->session, why)) {
        *device = s->full == b && !b->on_host;
        return false;
    }
    if (b->sync(b, why)) return true;
    session_close(s);
    return false;
}

// Memory came in pieces, or others took some: a layer less, and in the end none. A device that failed is left at once.
static bool shrink(Backend *b, Model *m, const PlaceOptions *o, const char *why, Err *e) {
    const int n = n_on_device(m), left = b->first_error.text[0] ? 0 : n > 2 ? n - 2 : n - 1;
    if (left == 0) {
        place_close(b, m);
        return instead(b, o, why, e);
    }
    if (!b->host && !open_host(b, o, e)) return false;
    place_set(m, left);
    model_each(m, unload_host, &(Move){.b = b, .m = m});
    return true;
}

bool place_open(Session *s, Backend *b, Model *m, const PlaceOptions *options, Err *e) {
    PlaceOptions chosen = *options, *o = &chosen;
    m->gguf.no_mmap = o->no_mmap;
    if (!choose(b, m, o, e)) return false;
    bool device;
    Err why = {0};
    for (;;) {
        if (!check_host_memory(b, m, &o->session, e)) return false;
        if (bring(s, b, m, o, &device, &why)) break;
        if (!device || o->backend) return err_set(e, "%s", why.text);
        if (!shrink(b, m, o, why.text, e)) return false;
    }
    say(o, b, m);
    return fetch_host(b, m, e);
}
