// place.c: see place.h
#include "place.h"
#include "kv.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>

#include "choice.h"
#include "console.h"
#include "pin.h"
#include "residency.h"
#include "resident.h"

enum { PIECE = 16 << 20 }; // bytes of a weight between two steps of a progress bar

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

static bool check_cache(const PlaceOptions *o, Err *e) {
    for (int i = 0; i < 2; i++) {
        const char *name = i ? o->cache_v : o->cache_k;
        const TensorType type = place_cache_type(name);
        if (name && type != TYPE_F16 && type != TYPE_Q8_0) return err_set(e, "option %s is '%s', expected f16 or q8_0", i ? "-ctv" : "-ctk", name);
    }
    return true;
}

enum { MOST_LAYERS = 1 << 20 };

static bool parse_layers(const char *text, int *n) {
    char *end;
    *n = LAYERS_AUTO;
    if (!text || !strcmp(text, "auto")) return true;
    const bool all = !strcmp(text, "all");
    const long v = all ? MOST_LAYERS : strtol(text, &end, 10);
    *n = (int)v;
    return all || (isdigit((unsigned char)text[0]) && !*end && v <= MOST_LAYERS);
}

int place_gpu_layers(const PlaceOptions *o) {
    int n;
    return parse_layers(o->gpu_layers, &n) ? n : LAYERS_AUTO;
}

static bool check_size(const char *option, const char *text, Err *e) {
    uint64_t bytes;
    Err none;
    return !text || place_parse_bytes(text, &bytes, &none) || err_set(e, "option %s is '%s', expected a size like 12G or 800M", option, text);
}

static bool is_off(const char *residency) { return residency && !strcmp(residency, "off"); }

bool place_check(const PlaceOptions *o, Err *e) {
    int n;
    if ((int)isa_of(o) < 0) return err_set(e, "option --isa is '%s', expected auto, portable, avx2, avxvnni, avx512vnni or amx", o->isa);
    if (o->backend && !is_backend(o, "cpu") && !is_backend(o, "ref") && !is_backend(o, "cuda"))
        return err_set(e, "option --backend is '%s', expected cpu, ref or cuda", o->backend);
    if (!parse_layers(o->gpu_layers, &n)) return err_set(e, "option -ngl is '%s', expected auto, all or a whole number from 0 to %d", o->gpu_layers, MOST_LAYERS);
    if (o->residency && strcmp(o->residency, "auto") && !is_off(o->residency)) return err_set(e, "option --residency is '%s', expected auto or off", o->residency);
    return check_cache(o, e) && check_size("--vram", o->vram, e) && check_size("--reserve", o->reserve, e);
}

// ---- where a weight is ----

void place_set(Model *m, const PlanUnits *u, const int *part) {
    for (int i = 0; i < u->n; i++) {
        const Unit *x = &u->unit[i];
        if (x->kind == UNIT_HEAD) m->head_on_host = !part[i];
        if (x->kind == UNIT_ATTENTION) m->layers[x->layer].attn_on_host = !part[i];
        if (x->kind == UNIT_FFN) m->layers[x->layer].ffn_on_host = !part[i];
        if (x->kind == UNIT_EXPERTS) m->layers[x->layer].n_expert_device = part[i];
    }
}

bool place_experts(Model *m, const PlaceOptions *o, Err *e) {
    Trace t;
    if (!o->experts) return true;
    if (!trace_load_of(&t, o->experts, m, e)) return false;
    bool ok = true;
    for (int i = 0; i < t.n_layer && ok; i++) {
        Layer *l = &m->layers[t.layer[i]];
        uint16_t *order = model_alloc(m, sizeof *order * (size_t)t.n_expert);
        double *away = model_alloc(m, sizeof *away * (size_t)((t.n_expert + 1) * (t.n_used + 1)));
        l->part_slices = model_alloc(m, sizeof *l->part_slices * (size_t)(3 * t.n_expert));
        ok = (order && away && l->part_slices) || err_set(e, "no memory for an order of experts");
        if (!ok) break;
        residency_order(&t, i, order);
        residency_hottest(&t, i, away);
        l->expert_order = order;
        l->expert_away = away;
    }
    trace_close(&t);
    return ok;
}

// Which of a layer's experts are on the device.
static void experts_here(const Layer *l, bool *here) {
    for (int i = 0; i < l->d.n_expert; i++) here[l->expert_order ? l->expert_order[i] : i] = i < l->n_expert_device;
}

// The slot of Layer.part for a stack of experts; NULL: t is none.
static Tensor *part_of(Model *m, const Tensor *t, int layer) {
    Layer *l = layer < m->c.n_layer ? &m->layers[layer] : NULL;
    if (!l) return NULL;
    return t == l->ffn_gate_exps ? &l->part[0] : t == l->ffn_up_exps ? &l->part[1] : t == l->ffn_down_exps ? &l->part[2] : NULL;
}

static bool is_on_host(const Model *m, int layer, bool ffn) {
    return layer == m->c.n_layer ? m->head_on_host : ffn ? m->layers[layer].ffn_on_host : m->layers[layer].attn_on_host;
}

// How many slices of a weight are on the device: some, of experts; else all or none.
static int slices_on_device(const Backend *b, Model *m, const Tensor *t, int layer, bool ffn) {
    if (b->on_host) return 0;
    if (!b->host) return t->n_slice;
    return part_of(m, t, layer) ? m->layers[layer].n_expert_device : is_on_host(m, layer, ffn) ? 0 : t->n_slice;
}

// ---- sizes ----

// What is where: weights, KV cache and work buffers; [0] on the device, [1] in host memory.
typedef struct {
    const Backend *b;
    Model *m;
    uint64_t weights[2], tables, kv[2], acts[2]; // tables, of the host's: read row by row
} Use;

static bool add_use(void *ctx, Tensor *t, int layer, bool ffn) {
    Use *u = ctx;
    const uint64_t slice = (uint64_t)(tensor_bytes(t) / t->n_slice);
    const int device = slices_on_device(u->b, u->m, t, layer, ffn);
    u->weights[0] += slice * (uint64_t)device;
    u->weights[1] += slice * (uint64_t)(t->n_slice - device);
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
        const int where = b->on_host || (b->host && m->layers[l].attn_on_host);
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

typedef struct Move Move;
typedef bool Visit(Move *k, const void *p, uint64_t n);

struct Move {
    Backend *b;
    Model *m;
    Err *e;
    double done, total;
    Progress bar;
    Visit *visit; // what each_on_host does
    PageRuns pages;  // that note has found
};

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

static bool note(Move *k, const void *p, uint64_t n) {
    if (gguf_holds(&k->m->gguf, p)) pages_add(&k->pages, p, n);
    return true;
}

// The bytes of slices first .. last - 1 of a weight; those that follow each other at once.
static bool each_run(Move *k, const Tensor *t, int first, int last, Visit *visit) {
    const uint64_t slice = (uint64_t)(tensor_bytes(t) / t->n_slice);
    for (int s = first, end; s < last; s = end) {
        const char *p = tensor_row(t, s, 0);
        for (end = s + 1; end < last && tensor_row(t, end, 0) == p + slice * (uint64_t)(end - s);) end++;
        if (!visit(k, p, slice * (uint64_t)(end - s))) return false;
    }
    return true;
}

// All slices of a stack, those that go to the device before the others, both as they are in the file. No more than n of them are `to`'s.
static void gather(Tensor *to, const Tensor *t, const Layer *l, int n) {
    *to = *t;
    to->n_slice = n;
    if (!l->expert_order) return;
    bool here[MAX_EXPERT];
    int at = 0;
    experts_here(l, here);
    to->slices = l->part_slices + (to - l->part) * t->n_slice;
    for (int side = 0; side < 2; side++)
        for (int i = 0; i < t->n_slice; i++)
            if (here[i] == !side) to->slices[at++] = t->slices[i];
    to->host = to->slices[0];
}

static bool load_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    const int n = slices_on_device(k->b, k->m, t, layer, ffn);
    Tensor *to = n == t->n_slice ? t : part_of(k->m, t, layer);
    if (!n || to->dev) return true;
    if (to != t) gather(to, t, &k->m->layers[layer], n);
    return each_run(k, to, 0, n, fetch) && k->b->load(k->b, to, k->e) && each_run(k, to, 0, n, forget);
}

// Of a weight, what the host keeps.
static bool each_on_host(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    const int n = slices_on_device(k->b, k->m, t, layer, ffn);
    Tensor all = n && n < t->n_slice ? *part_of(k->m, t, layer) : *t;
    all.n_slice = t->n_slice;
    return each_run(k, &all, n, t->n_slice, k->visit);
}

static void unload(Backend *b, Tensor *t) {
    if (t->dev) b->free(b, t->dev);
    t->dev = NULL;
}

static bool unload_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    Tensor *part = part_of(k->m, t, layer);
    (void)ffn;
    unload(k->b, t);
    if (part) unload(k->b, part);
    return true;
}

// What is not, or not as a whole or that part, on the device any more.
static bool unload_old(void *ctx, Tensor *t, int layer, bool ffn) {
    Move *k = ctx;
    const int n = slices_on_device(k->b, k->m, t, layer, ffn);
    Tensor *part = part_of(k->m, t, layer);
    if (n < t->n_slice) unload(k->b, t);
    if (part && n != part->n_slice) unload(k->b, part);
    return true;
}

// ---- experts on both sides ----

static bool is_divided(const Backend *b, const Layer *l) { return b->host && l->n_expert_device > 0 && l->n_expert_device < l->d.n_expert; }

static void unite(Backend *b, Model *m) {
    Backend *const place[2] = {b, b->host};
    for (int side = 0; side < 2; side++) {
        if (m->slots[side]) place[side]->free(place[side], m->slots[side]);
        m->slots[side] = NULL;
        for (Layer *l = m->layers; l < m->layers + m->c.n_layer; l++)
            l->share[side] = (ExpertShare){.gate = l->ffn_gate_exps, .up = l->ffn_up_exps, .down = l->ffn_down_exps};
    }
}

// What each side has of the layers' experts: the device slices of its own; the host the others, where they are in the file.
static bool divide(Backend *b, Model *m, Err *e) {
    Backend *const place[2] = {b, b->host};
    const int most = model_most_experts(m), n_layer = m->c.n_layer;
    bool any = false, is_here[MAX_EXPERT];
    unite(b, m);
    for (int l = 0; l < n_layer; l++) any |= is_divided(b, &m->layers[l]);
    for (int side = 0; side < 2 && any; side++)
        if (!(m->slots[side] = place[side]->alloc(place[side], sizeof(int) * (size_t)most * (size_t)n_layer)))
            return err_set(e, "no memory for maps of %d layers' experts", n_layer);
    for (int i = 0; i < n_layer; i++) {
        Layer *l = &m->layers[i];
        if (!is_divided(b, l)) continue;
        l->share[0] = (ExpertShare){.gate = &l->part[0], .up = &l->part[1], .down = &l->part[2]};
        experts_here(l, is_here);
        for (int side = 0; side < 2; side++) {
            int slot[MAX_EXPERT], n = 0;
            for (int x = 0; x < l->d.n_expert; x++) slot[x] = is_here[x] == (side == 1) ? -1 : side ? x : n++;
            l->share[side].slot = m->slots[side] + i * most;
            place[side]->upload(place[side], l->share[side].slot, slot, sizeof *slot * (size_t)l->d.n_expert);
        }
    }
    return true;
}

bool place_load(Backend *b, Model *m, Err *e) {
    Move k = {.b = b, .m = m, .e = e, .total = (double)use_of(b, m, &(SessionParams){.n_ctx = 1, .n_batch = 1}).weights[0]};
    progress_start(&k.bar, "to the GPU");
    const bool ok = model_each(m, load_one, &k) && divide(b, m, e);
    progress_end(&k.bar);
    return ok;
}

// What the host computes with. The tables first: of what does not fit, they are what can wait for the disk.
static bool fetch_host(Backend *b, Model *m, Err *e) {
    Move k = {.b = b, .m = m, .e = e, .total = (double)use_of(b, m, &(SessionParams){.n_ctx = 1, .n_batch = 1}).weights[1], .visit = fetch};
    progress_start(&k.bar, "loading");
    bool ok = !m->per_layer_token_embd || each_run(&k, m->per_layer_token_embd, 0, 1, fetch);
    if (ok && (!m->token_embd->dev || (b->host && m->layers[0].attn_on_host))) ok = each_run(&k, m->token_embd, 0, 1, fetch);
    ok = ok && model_each(m, each_on_host, &k);
    progress_end(&k.bar);
    return ok;
}

static bool layer_on_host(void *ctx, Tensor *t, int layer, bool ffn) {
    const Move *k = ctx;
    return layer == k->m->c.n_layer || each_on_host(ctx, t, layer, ffn); // no prompt is worth the head
}

// What prompts may borrow of the host's weights, where it is: at most half of the memory, which others want, too. Where it cannot be, copies go
// through buffers.
void place_pin(Session *s, Backend *b, Model *m) {
    Move k = {.b = b, .m = m, .visit = note};
    Err why;
    s->pinned[0] = 0;
    if (!b->host || !b->pin || !b->ring_bytes) return;
    (void)!model_each(m, layer_on_host, &k);
    progress_start(&k.bar, "pinning");
    pages_pin(&k.pages, b, memory_total() / 2, &k.bar, &why);
    progress_end(&k.bar);
    const double all = (double)pages_bytes(&k.pages);
    if (all > 0) snprintf(s->pinned, sizeof s->pinned, "%.1f of %.1f MiB are pinned%s%.80s", (double)b->pinned_bytes / 0x1p20, all / 0x1p20, why.text[0] ? ": " : "", why.text);
    if ((double)b->pinned_bytes < 0.9 * all) s->machine.gpu.up_mapped = 0; // most go through buffers
    pages_close(&k.pages);
}

void place_unload(Backend *b, Model *m) {
    if (!m->layers || !b->load) return;
    if (b->unpin) b->unpin(b);
    model_each(m, unload_one, &(Move){.b = b, .m = m});
    unite(b, m);
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

// Why the best plan has nothing on the device.
static void explain(const Choice *c, Err *why) {
    const Plan *p = &c->plan;
    const double work = (double)c->units.acts + p->q.reserve;
    double best = 0;
    for (int f = 0; f < N_FAMILY; f++)
        if (p->best[f].device > 0) best = fmax(best, p->best[f].decode);
    if (best > 0) err_set(why, "without the GPU %.1f tokens/s are predicted, with it %.1f", choice_best(c)->decode, best);
    else err_set(why, "nothing fits into %.1f MiB of the GPU's memory: work buffers take %.1f, the head %.1f", p->q.vram / 0x1p20, work / 0x1p20,
                 (double)c->units.unit[c->units.n - 1].bytes / 0x1p20);
}

// What is planned for, open. False, with the reason: nothing of the model is on it.
static bool open_part(Backend *b, Model *m, PlaceOptions *o, Choice *c, Err *why, Err *bad) {
    if (!backend_open_cuda(b, 0, why)) {
        why->text[strcspn(why->text, ";")] = 0; // what to do is what is being done
        return false;
    }
    Err note;
    const MachineQuery q = {.device = b, .threads = o->threads, .isa = isa_of(o), .at_once = true};
    if (o->machine) c->machine = *o->machine;
    bool ok = o->machine || machine_describe(&c->machine, m, &q, &note, why);
    ok = ok && choice_make(c, b, m, o, why, bad);
    if (ok && !(ok = choice_best(c)->device > 0)) explain(c, why);
    if (ok) {
        o->session = c->session;
        place_set(m, &c->units, choice_best(c)->place.part);
        ok = plan_is_whole(&c->plan, choice_best(c)) || open_host(b, o, why);
    }
    if (!ok) place_close(b, m);
    return ok;
}

static bool instead(Backend *b, const PlaceOptions *o, const char *why, Err *e) {
    if (!o->quiet) fprintf(stderr, "%s: %s, everything runs on the CPU\n", o->program, why);
    return open_cpu(b, o, e);
}

// A device that nobody has asked for need not be there.
static bool choose(Backend *b, Model *m, PlaceOptions *o, Choice *c, Err *e) {
    Err why = {0}, bad = {0};
    const int layers = place_gpu_layers(o);
    const bool asked = layers > 0 || o->vram || o->override.n, try = layers && !o->backend && (asked || backend_cuda_devices() > 0);
    const bool choose_batch = o->session.n_batch <= 0;
    if (try && open_part(b, m, o, c, &why, &bad)) return true;
    if (bad.text[0]) return err_set(e, "%s", bad.text);
    if (choose_batch) o->session.n_batch = is_backend(o, "cuda") ? BATCH_DEVICE : BATCH_HOST;
    if (is_backend(o, "ref")) return backend_open_ref(b, e);
    if (is_backend(o, "cuda")) return backend_open_cuda(b, 0, e);
    if (o->backend && layers && asked) err_set(&why, "--backend cpu");
    return why.text[0] ? instead(b, o, why.text, e) : open_cpu(b, o, e);
}

// c->plan is what is on the device; why it is less than was planned, or "".
static void say(const PlaceOptions *o, const Backend *b, const Choice *c, const char *why) {
    char text[160];
    if (b->on_host || o->backend || o->quiet) return;
    const Candidate *best = choice_best(c);
    fprintf(stderr, "%s: %s on the GPU (%s): %.1f MiB, in host memory: %.1f MiB, predicted %.1f tokens/s%s%s\n", o->program, choice_text(c, text), b->detail,
            best->device / 0x1p20, best->host / 0x1p20, best->decode, *why ? "; less than planned: " : "", why);
}

bool place_look(Backend *b, Model *m, const PlaceOptions *options, Err *e) {
    PlaceOptions o = *options;
    Choice c = {0};
    const bool ok = kv_check(m, &o.session, e) && place_experts(m, &o, e) && choose(b, m, &o, &c, e);
    if (ok) say(&o, b, &c, "");
    choice_close(&c);
    return ok;
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

// Memory came in pieces, or others took some: a smaller plan, and in the end none. A device that failed is left at once.
static bool shrink(Backend *b, Model *m, const PlaceOptions *o, Choice *c, const char *why, Err *e) {
    Err none;
    if (b->first_error.text[0] || !choice_less(c, &none) || choice_best(c)->device <= 0) {
        place_close(b, m);
        return instead(b, o, why, e);
    }
    if (!b->host && !open_host(b, o, e)) return false;
    place_set(m, &c->units, choice_best(c)->place.part);
    model_each(m, unload_old, &(Move){.b = b, .m = m});
    return true;
}

// That a token may bring, of the largest size.
static int most_experts(const Session *s, const Choice *c) {
    double bytes = 0;
    if (!s->place[1] || !c->plan.u) return 0;
    for (int i = 0; i < c->units.n; i++)
        if (c->units.unit[i].kind == UNIT_EXPERTS) bytes = fmax(bytes, (double)c->units.unit[i].bytes / c->units.unit[i].n_part);
    return bytes > 0 ? keeper_most(1 / choice_best(c)->decode, machine_stream_bandwidth(&c->machine), bytes) : 0;
}

bool place_open(Session *s, Backend *b, Model *m, const PlaceOptions *options, Err *e) {
    PlaceOptions chosen = *options, *o = &chosen;
    Choice c = {0};
    Err why = {0}, first = {0};
    bool device, ok = true, there = false;
    m->gguf.no_mmap = o->no_mmap;
    if (!place_experts(m, o, e) || !choose(b, m, o, &c, e)) ok = false;
    while (ok && !there) {
        ok = check_host_memory(b, m, &o->session, e);
        if (!ok || (there = bring(s, b, m, o, &device, &why))) break;
        if (!first.text[0]) first = why;
        ok = device && !o->backend ? shrink(b, m, o, &c, first.text, e) : err_set(e, "%s", why.text);
    }
    if (ok) s->machine = c.machine;
    if (ok && !is_off(o->residency)) ok = resident_open(s, most_experts(s, &c), e);
    if (ok) say(o, b, &c, first.text);
    ok = ok && fetch_host(b, m, e);
    if (ok && !o->no_pin) place_pin(s, b, m);
    if (o->no_pin) s->machine.gpu.up_mapped = 0;
    choice_close(&c);
    return ok;
}
