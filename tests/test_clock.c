// test_clock.c: the scheduling code that runs - session, forward pass, recorded ops, graphs, copies, waits - against the simulator that the planner
// believes (engine/timeline.h): both with the same description of a machine, models of real shape, and placements of every kind that can be
// executed. The code runs on the emulated device, as phantom: every launch, copy and wait is the real one and costs what the description says,
// nothing is computed (tests/emu/emu_clock.h). The two must agree on the time of a token, and of a prompt; and of tokens whose routers choose as a
// made-up trace says, where experts follow use (engine/resident.h): what is brought is what the rule says, and takes the time that was foreseen.
// test_clock -v: the times, and where they go; test_clock 26b: only shapes so named; -b 2048: prompts in such passes; test_clock -svg FILE: what ran, drawn.
#include <malloc.h>
#include <math.h>

#include "emu/emu_clock.h"
#include "emu/emu_test.h"
#include "choice.h"
#include "resident.h"
#include "residency.h"
#include "test.h"

#pragma weak emu_config // without the emulator they are not there
#pragma weak emu_price
#pragma weak emu_phantom_runs
#pragma weak emu_host_takes
#pragma weak emu_host_gives
#pragma weak emu_spend_host
#pragma weak emu_choose_experts
#pragma weak emu_chooser
#pragma weak emu_trace
#pragma weak emu_spans
#pragma weak emu_clear_spans
#pragma weak emu_clock_us
#pragma weak emu_reset
#pragma weak emu_memory_used
#pragma weak emu_registered_bytes

static bool verbose;
static int n_batch; // 0: as chosen
static Machine machine;
static Backend cpu; // what the charged host computes with

// ---- the machine ----

static double seconds_of(const Processor *p, const EmuWork *k) {
    const double read = machine_read_seconds(p, k->bytes) + machine_type_seconds(p, TYPE_F16, k->kv);
    return k->n_rows == 1 ? read : fmax(read, k->flop / p->rate);
}
static double price(const EmuWork *k) { return 1e6 * seconds_of(&machine.gpu, k); }

// The description knows two figures: what a token costs beside its work when all of it is on the device (positions up, a graph, the id down), and a
// hand-off, one way (down; or up, with positions and a graph). A small copy up and a graph are parts of them.
static void describe(const char *gpu, const char *host) {
    machine = (Machine){*machine_gpu(gpu), *machine_host(host)};
    const Processor *g = &machine.gpu;
    const double graph_and_copy = g->token - g->handoff, copy = g->handoff - graph_and_copy;
    emu_config.launch_us = 1e6 * g->launch;
    emu_config.copy_us = 1e6 * copy;
    emu_config.graph_us = 1e6 * (graph_and_copy - copy);
    emu_config.sync_us = 1e6 * (g->handoff - copy);
    emu_config.fill = machine_fill(&machine.host) * 1e-9;
    emu_config.flag_us = 1e6 * g->handoff;
    emu_config.h2d = g->up_pinned * 1e-9;
    emu_config.d2h = g->down * 1e-9;
    emu_config.dram = g->bandwidth * g->share * 1e-9;
    emu_config.memory = (size_t)g->memory;
    emu_price = price;
}

// ---- the host, as a backend that charges ----

static void charge(const EmuWork *k, const char *name) {
    emu_spend_host(k && k->name ? k->name : name, 1e6 * (machine.host.launch + (k ? seconds_of(&machine.host, k) : 0)));
}

static void host_matmuls(Backend *b, const Matmul *m, int n, const float *x, int n_rows) {
    EmuWork k = {0};
    for (int i = 0; i < n; i++) emu_add_matrix(&k, m[i].w, n_rows);
    charge(&k, "");
    if (!emu_config.phantom) cpu.matmuls(b, m, n, x, n_rows);
}
static void host_matmul(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    host_matmuls(b, &(Matmul){y, w, bias}, 1, x, n_rows);
}
static void host_gated_matmul(Backend *b, const GatedArgs *a) {
    EmuWork k = {0};
    emu_add_matrix(&k, a->gate, a->n_rows);
    if (a->up) emu_add_matrix(&k, a->up, a->n_rows);
    charge(&k, "");
    if (!emu_config.phantom) cpu.gated_matmul(b, a);
}
static void host_attention(Backend *b, const AttentionArgs *a) {
    EmuWork k = {0};
    emu_add_attention(&k, a);
    charge(&k, "");
    if (!emu_config.phantom) cpu.attention(b, a);
}
static void host_moe_ffn(Backend *b, const MoeArgs *a) {
    EmuWork k = {0};
    const double bytes = sizeof(float) * (double)a->n_rows * a->gate->n_col;
    emu_host_takes(1e6 * bytes / machine.gpu.down); // if it is lent
    emu_add_experts(&k, a, a->expert, a->slot);
    charge(&k, "");
    emu_host_gives(1e6 * bytes / machine.gpu.up_pinned);
    if (!emu_config.phantom) cpu.moe_ffn(b, a);
}
static void host_moe_route(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used) {
    charge(NULL, "router");
    if (!emu_config.phantom) {
        cpu.moe_route(b, expert, weight, logits, scale, n_rows, n_expert, n_used);
        return;
    }
    for (int r = 0; r < n_rows; r++)
        for (int u = 0; u < n_used; u++) expert[r * n_used + u] = emu_choose_experts(n_expert, u, expert + r * n_used);
}
// Ops that read no weights to speak of.
#define SMALL(op, params, ...)                          \
    static void host_##op params {                      \
        charge(NULL, #op);                              \
        if (!emu_config.phantom) cpu.op(__VA_ARGS__);   \
    }
SMALL(embed, (Backend *b, float *y, const Tensor *table, const int *ids, int n, float scale), b, y, table, ids, n, scale)
SMALL(norm, (Backend *b, float *y, const Tensor *w, const float *x, int n, int n_col, float eps), b, y, w, x, n, n_col, eps)
SMALL(rope, (Backend *b, float *x, const Rope *rope, int n, int n_head, int dim, int pos), b, x, rope, n, n_head, dim, pos)
SMALL(kv_write, (Backend *b, const KvLayer *kv, const float *k, const float *v, int n, int pos), b, kv, k, v, n, pos)
SMALL(gated, (Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act), b, y, gate, up, n, act)
SMALL(add, (Backend *b, float *x, const float *y, int64_t n), b, x, y, n)
SMALL(scale, (Backend *b, float *x, float s, int64_t n), b, x, s, n)
SMALL(softcap, (Backend *b, float *x, float cap, int64_t n), b, x, cap, n)
SMALL(copy_rows, (Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n, int n_col), b, dst, dst_stride, src, src_stride, n, n_col)
SMALL(top, (Backend *b, const TopArgs *a), b, a)

static bool open_host(Backend *b, Err *e) {
    if (!backend_open_cpu(&cpu, 1, ISA_AUTO, e)) return false;
    *b = cpu;
    b->matmul = host_matmul, b->matmuls = host_matmuls, b->gated_matmul = host_gated_matmul, b->attention = host_attention;
    b->moe_ffn = host_moe_ffn, b->moe_route = host_moe_route, b->embed = host_embed, b->norm = host_norm, b->rope = host_rope;
    b->kv_write = host_kv_write, b->gated = host_gated, b->add = host_add, b->scale = host_scale, b->softcap = host_softcap;
    b->copy_rows = host_copy_rows, b->top = host_top;
    return true;
}

// ---- the device ----

static Backend emulated; // as it was opened

// What goes through pinned buffers is copied there by the host first: a pageable copy is that and the one over the link.
static void charge_copy(size_t bytes) {
    emu_spend_host("copy", 1e6 * (double)bytes * (1 / machine.gpu.up_pageable - 1 / machine.gpu.up_pinned));
}
static void device_upload(Backend *b, void *dst, const void *src, size_t bytes) {
    charge_copy(bytes);
    emulated.upload(b, dst, src, bytes);
}
static void device_download(Backend *b, void *dst, const void *src, size_t bytes) {
    emulated.download(b, dst, src, bytes);
    charge_copy(bytes);
}
static bool device_load(Backend *b, Tensor *t, Err *e) { // only its place
    t->dev = b->alloc(b, (size_t)tensor_bytes(t));
    return t->dev || err_set(e, "%s: no memory", t->name);
}

static bool open_device(Backend *b, Err *e) {
    if (!backend_open_cuda(b, 0, e)) return false;
    emulated = *b;
    b->upload = device_upload;
    b->download = device_download;
    if (emu_config.phantom) b->load = device_load;
    return true;
}

// ---- a placement ----

// As place_load, but that nothing is read from the file.
static bool load_one(void *ctx, Tensor *t, int layer, bool ffn) {
    Backend *b = ((void **)ctx)[0];
    Model *m = ((void **)ctx)[1];
    Layer *l = layer < m->c.n_layer ? &m->layers[layer] : NULL;
    Tensor *part = !l ? NULL : t == l->ffn_gate_exps ? &l->part[0] : t == l->ffn_up_exps ? &l->part[1] : t == l->ffn_down_exps ? &l->part[2] : NULL;
    const bool on_host = !l ? m->head_on_host : ffn ? l->ffn_on_host : l->attn_on_host;
    const int n = part ? l->n_expert_device : on_host ? 0 : t->n_slice;
    Tensor *to = n == t->n_slice ? t : n ? part : NULL;
    Err e;
    if (!to) return true;
    if (to != t) *to = *t, to->n_slice = n;
    return b->load(b, to, &e);
}

// ---- what ran, as a timeline ----

static EventKind kind_of(const EmuSpan *v) {
    if (v->lane == EMU_LANE_COPY) return EVENT_COPY;
    if (!strcmp(v->name, "wait") || !strcmp(v->name, "copy")) return EVENT_HANDOFF;
    return strstr(v->name, "attn") || !strcmp(v->name, "attention") || strstr(v->name, "model_proj") ? EVENT_ATTENTION
         : strstr(v->name, "_exps") ? EVENT_EXPERTS
         : !strncmp(v->name, "blk.", 4) ? EVENT_FFN : EVENT_HEAD;
}

// Spans from `from` microseconds on. What has no weights of its own (a launch, a norm) is for what comes next on its lane.
static bool record(Timeline *t, double from) {
    int n, first[N_LANE] = {-1, -1, -1};
    const EmuSpan *v = emu_spans(&n);
    *t = (Timeline){.event = calloc((size_t)n + 1, sizeof *t->event), .record = true};
    if (!t->event) return false;
    for (int i = 0; i < n; i++) {
        const Lane lane = v[i].lane == EMU_LANE_DEVICE ? LANE_DEVICE : v[i].lane == EMU_LANE_HOST ? LANE_HOST : LANE_COPY;
        const bool small = lane != LANE_COPY && !strchr(v[i].name, '.') && strcmp(v[i].name, "attention") && strcmp(v[i].name, "wait") &&
                           strcmp(v[i].name, "copy");
        if (v[i].start < from) continue;
        t->end = fmax(t->end, 1e-6 * (v[i].end - from));
        t->busy[lane] += 1e-6 * (v[i].end - v[i].start);
        if (first[lane] < 0) first[lane] = t->n;
        const char *number = strchr(v[i].name, '.');
        t->event[t->n++] = (Event){kind_of(&v[i]), lane, number ? atoi(number + 1) : 0, 1e-6 * (v[i].start - from), 1e-6 * (v[i].end - from)};
        if (small && i + 1 < n) continue;
        for (int k = first[lane]; k < t->n; k++)
            if (t->event[k].lane == lane) {
                t->event[k].kind = t->event[t->n - 1].kind;
                t->event[k].layer = t->event[t->n - 1].layer;
                t->by_kind[lane][t->event[k].kind] += t->event[k].end - t->event[k].start;
            }
        first[lane] = -1;
    }
    return true;
}

static void print_times(const char *what, const Timeline *t) {
    printf("         %-9s", what);
    for (int lane = 0; lane < N_LANE; lane++) {
        if (t->busy[lane] <= 0) continue;
        printf("  %s %.0f %%:", LANE_NAMES[lane], 100 * t->busy[lane] / t->end);
        for (int k = 0; k < N_EVENT_KIND; k++)
            if (t->by_kind[lane][k] > 0 && k != EVENT_WAIT) printf(" %s %.3f", EVENT_NAMES[k], t->by_kind[lane][k] * 1e3);
    }
    printf("\n");
}

// ---- running ----

enum { DEPTH = 1024, WARM = 3, TOKENS = 24, PROMPT = 2048, N_CTX = 4096 };

typedef struct {
    int n_token, depth;    // tokens one by one, after so many positions, of which the last WARM are fed, too
    int n_prompt, n_batch; // n_token 0: a prompt, in passes of n_batch
    uint64_t ring_bytes;   // for weights of the host that a prompt needs on the device; 0: they stay where they are
    bool waits;            // a needless synchronisation at every tap of the stream
    bool pinned;           // the host's weights are
    bool alone;            // the device has all of it: no host beside it
    const Trace *trace;    // what routers choose; NULL: by chance. The tokens of its second half are timed
    int most;              // experts that a token may bring
} Want;

typedef struct {
    double seconds;   // of a token, or of the prompt
    int launches;     // of a token
    double device;    // bytes that are allocated there
    double host;      // bytes of host memory: of the heap, where pinned memory is, too, and of weights
    int64_t brought;  // experts
    Timeline t;       // of the last token, or the prompt
} Ran;

static void wait_here(void *ctx, const TapSite *site) {
    Err e;
    (void)ctx;
    if (!site->backend->sync(site->backend, &e)) CHECK(false, "%s", e.text);
}

static double heap(void) {
    const struct mallinfo2 i = mallinfo2();
    return (double)(i.uordblks + i.hblkhd);
}

static bool add_host_weight(void *ctx, Tensor *t, int layer, bool ffn) {
    const Model *m = ((void **)ctx)[0];
    const Layer *l = layer < m->c.n_layer ? &m->layers[layer] : NULL;
    const bool expert = l && (t == l->ffn_gate_exps || t == l->ffn_up_exps || t == l->ffn_down_exps);
    const int here = expert ? t->n_slice - l->n_expert_device : !l ? m->head_on_host : ffn ? l->ffn_on_host : l->attn_on_host;
    *((double **)ctx)[1] += (double)(tensor_bytes(t) / t->n_slice) * here;
    return true;
}
// Bytes of what stays in the file.
static double host_weights(Model *m) {
    double bytes = m->per_layer_token_embd ? (double)tensor_bytes(m->per_layer_token_embd) : 0;
    (void)!model_each(m, add_host_weight, (void *[]){m, &bytes});
    if (m->token_embd != m->output || (!m->head_on_host && m->layers[0].attn_on_host)) bytes += (double)tensor_bytes(m->token_embd);
    return bytes;
}

static const Trace *steering; // what routers choose,
static int64_t n_steered;     // and how much of it has been

static int steer_router(int n_expert, int taken, const int *chosen) {
    (void)n_expert, (void)taken, (void)chosen;
    return steering->id[n_steered++];
}

static bool run(Model *m, const Want *want, Ran *ran, Err *e) {
    static int ids[N_CTX];
    const int warm = want->trace ? want->trace->n_token / 2 : WARM;
    steering = want->trace;
    n_steered = 0;
    emu_chooser = steering ? steer_router : NULL;
    Backend b = {0}, host = {0};
    Session s = {0};
    emu_reset();
    const double before = heap();
    *ran = (Ran){.host = host_weights(m)};
    bool ok = open_device(&b, e) && (want->alone || open_host(&host, e));
    if (ok && !want->alone) b.host = &host;
    ok = ok && (model_each(m, load_one, (void *[]){&b, m}) || err_set(e, "its weights do not fit")) && place_load(&b, m, e) &&
         session_open(&s, m, &b, &(SessionParams){.n_ctx = N_CTX, .n_batch = want->n_batch, .ring_bytes = want->ring_bytes}, e) &&
         (!want->waits || session_add_tap(&s, (Tap){.call = wait_here, .wanted_only = true}, e));
    ran->host += heap() - before;
    s.machine = machine;
    if (ok && want->pinned) {
        place_pin(&s, &b, m);
        ok = emu_registered_bytes() > 0 || err_set(e, "nothing is pinned: %s", s.pinned);
    }
    ok = ok && (!want->most || resident_open(&s, want->most, e));
    if (ok) session_want_top(&s, 1, NULL);
    double begin = 0, last = 0;
    int64_t launches = 0;
    const int n = want->n_token ? warm + want->n_token : 1;
    if (ok && want->n_token) s.seq[0].pos = want->depth - warm; // as if it had been fed
    for (int i = 0; ok && i < n; i++) {
        ok = b.sync(&b, e);
        if (i == 0 || i == warm) begin = emu_clock_us(), launches = cuda_launches(&b);
        last = emu_clock_us();
        emu_clear_spans();
        ok = ok && session_eval(&s, ids, want->n_token ? 1 : want->n_prompt, e);
    }
    if (ok) {
        const int count = want->n_token ? want->n_token : 1;
        ran->seconds = 1e-6 * (emu_clock_us() - begin) / count;
        ran->launches = (int)(cuda_launches(&b) - launches) / count;
        ran->device = (double)emu_memory_used();
        ran->brought = s.resident ? s.resident->n_brought + s.resident->keeper.n_swap : 0;
        ok = record(&ran->t, last) || err_set(e, "no memory for a timeline");
    }
    session_close(&s);
    place_unload(&b, m);
    backend_close(&host);
    backend_close(&b);
    return ok;
}

// ---- what the simulator says ----

static struct {
    const char *path; // NULL: nothing is drawn
    char title[64][160];
    Timeline t[64];
    int n;
} drawing;

static void draw(const char *shape, const char *name, const char *what, Timeline *t) {
    if (!drawing.path || drawing.n == 64) {
        timeline_close(t);
        return;
    }
    snprintf(drawing.title[drawing.n], sizeof drawing.title[0], "%s, %s: a token, %s, %.3f ms", shape, name, what, t->end * 1e3);
    drawing.t[drawing.n++] = *t;
}

static void check_one(const char *shape, const char *name, const char *what, const Timeline *predicted, const Ran *ran, double limit) {
    const double off = ran->seconds / predicted->end - 1;
    CHECK(fabs(off) <= limit, "%s, %s: a %s takes %.3f ms, the simulator says %.3f", shape, name, what, ran->seconds * 1e3, predicted->end * 1e3);
    if (!verbose) return;
    printf("%-9s %-36s %-6s predicted %10.3f ms, ran %10.3f ms (%+5.1f %%), %d launches\n", shape, name, what, predicted->end * 1e3,
           ran->seconds * 1e3, 100 * off, ran->launches);
    print_times("predicted", predicted);
    print_times("ran", &ran->t);
}

// how: ring_bytes and pinned of the prompt, alone of both.
static void check_times(const char *shape, const char *name, Model *m, const PlanUnits *u, const Candidate *c, const Placement *p, const Want *how, double limit) {
    Err e = {{0}};
    Timeline token = {.record = drawing.path != NULL}, prompt = {0};
    Ran t = {0}, q = {0};
    timeline_token(&token, u, p, &machine, DEPTH + TOKENS / 2);
    timeline_prompt(&prompt, u, p, &machine, PROMPT);
    place_set(m, u, p->part);
    Want prompts = *how;
    prompts.n_prompt = PROMPT, prompts.n_batch = u->chunk;
    const bool ok = run(m, &(Want){.n_token = TOKENS, .depth = DEPTH, .n_batch = 1, .alone = how->alone}, &t, &e) && run(m, &prompts, &q, &e);
    CHECK(ok, "%s, %s: %s", shape, name, e.text);
    if (ok) {
        check_one(shape, name, "token", &token, &t, limit);
        check_one(shape, name, "prompt", &prompt, &q, limit);
        if (verbose)
            printf("         memory    GPU: predicted %.3f GB, used %.3f; host: predicted %.3f, used %.3f\n", c->device * 1e-9, q.device * 1e-9, c->host * 1e-9,
                   q.host * 1e-9);
        CHECK(c->device <= 0 || q.device <= 1.03 * c->device, "%s, %s: %.0f bytes of the device, planned %.0f", shape, name, q.device, c->device);
        CHECK(q.host <= 1.03 * c->host, "%s, %s: %.0f bytes of host memory, planned %.0f", shape, name, q.host, c->host);
    }
    draw(shape, name, "predicted", &token);
    draw(shape, name, "ran", &t.t);
    timeline_close(&prompt);
    timeline_close(&q.t);
}

static bool choose(const char *shape, const char *path, Model *m, Choice *c, int batch) {
    Err e = {{0}}, bad = {{0}};
    *c = (Choice){.machine = machine};
    const bool open = model_open(m, path, &e);
    const bool ok = open && choice_make(c, NULL, m, &(PlaceOptions){.session = {.n_ctx = N_CTX, .n_batch = batch}}, &e, &bad);
    CHECK(ok, "%s: %s%s", shape, e.text, bad.text);
    if (open && !ok) model_close(m);
    return ok;
}

// What the planner would choose from on this card, with prompts' weights that come to it and without. One thing of the copied ones the simulator does not
// know: threads that fill slots launch the ops, too, and there is no time for that where they fill no faster than the link is.
static void test_shape(const char *shape, const char *path) {
    Model m;
    Choice c;
    if (!choose(shape, path, &m, &c, n_batch)) return;
    for (int f = 0; f < N_FAMILY; f++) {
        Placement p = c.plan.best[f].place;
        if (!p.part || f == FAMILY_WHOLE) continue; // what nobody would do
        Want how = {.alone = plan_is_whole(&c.plan, &c.plan.best[f])};
        if (p.ring > 0) {
            char name[64];
            how.ring_bytes = c.session.ring_bytes;
            snprintf(name, sizeof name, "%s, copied", FAMILY_NAMES[f]);
            check_times(shape, name, &m, &c.units, &c.plan.best[f], &p, &how, 0.06);
            how.pinned = true;
            snprintf(name, sizeof name, "%s, copied, pinned", FAMILY_NAMES[f]);
            check_times(shape, name, &m, &c.units, &c.plan.best[f], &p, &how, 0.05);
        }
        p.ring = 0;
        check_times(shape, FAMILY_NAMES[f], &m, &c.units, &c.plan.best[f], &p, &(Want){.alone = how.alone}, 0.05);
    }
    choice_close(&c);
    model_close(&m);
}

// What plans for described cards say of the kernels' scratch (cuda_scratch.h), against what is allocated.
static void test_scratch(const char *shape, const char *path) {
    Model m;
    Err e = {{0}};
    if (!model_open(&m, path, &e)) return; // test_shape says so
    for (int n = 512; n <= 2048; n *= 2) {
        Backend b = {0};
        const SessionParams p = {.n_ctx = N_CTX, .n_batch = n};
        emu_reset();
        const bool open = open_device(&b, &e);
        const size_t before = emu_memory_used();
        CHECK(open && session_reserve(&m, &b, &p, &e), "%s: %s", shape, e.text);
        const double took = (double)(emu_memory_used() - before), said = (double)session_scratch_bytes(&m, &p);
        if (verbose) printf("%-9s scratch for %4d rows: predicted %.1f MB, allocated %.1f\n", shape, n, said * 1e-6, took * 1e-6);
        CHECK(fabs(took / said - 1) < 0.03, "%s: scratch of %.0f bytes, planned %.0f", shape, took, said);
        backend_close(&b);
    }
    model_close(&m);
}

// ---- experts that follow use ----

// The rule alone on a trace, with the first n_slot[layer] experts there: what the second half finds and brings.
static bool replay(Kept *k, const Trace *t, const int *n_slot, int most, int64_t *brought, Err *e) {
    const int half = t->n_token / 2, n = t->n_token - half;
    Keeper keeper;
    *k = (Kept){.away = calloc((size_t)(t->n_layer * (t->n_used + 1)), sizeof *k->away), .brought = calloc((size_t)t->n_layer, sizeof *k->brought)};
    if (!k->away || !k->brought || !keeper_open(&keeper, t->n_layer, t->n_expert, t->n_used, most, e)) return false;
    *brought = 0;
    for (int l = 0; l < t->n_layer; l++)
        for (int x = 0; x < n_slot[l]; x++) keeper_known(&keeper, l, x)->place = EXPERT_HERE;
    for (int i = 0; i < t->n_token; i++) {
        for (int l = 0; l < t->n_layer; l++) {
            const int n_here = keeper_saw(&keeper, l, trace_at(t, i, l), t->n_used);
            if (i >= half) k->away[l * (t->n_used + 1) + t->n_used - n_here] += 1.0 / n, k->hit += (double)n_here / n / t->n_used / t->n_layer;
        }
        const int n_swap = keeper_step(&keeper);
        for (int j = 0; j < n_swap && i >= half; j++) k->brought[keeper.swap[j].layer] += 1.0 / n, k->uploads += 1.0 / n;
        *brought += n_swap;
    }
    keeper_close(&keeper);
    return true;
}

static void check_residency(const char *shape, Model *m, const PlanUnits *u, const Placement *share, uint64_t ring, double zipf, double stay, int n_token, double limit) {
    Trace t;
    Kept k = {0};
    Err e = {{0}};
    Ran ran = {0};
    Timeline line = {0}, still = {0};
    char name[64];
    int n_slot[MAX_LAYER], n_layer = 0, at = 0;
    double expert = 0;
    int64_t brought;
    Residency *r = calloc((size_t)u->n, sizeof *r);
    bool ok = r && trace_shape(&t, m, &e) && trace_draw(&t, n_token, zipf, stay, 1, &e);
    for (int i = 0; i < u->n; i++)
        if (u->unit[i].kind == UNIT_EXPERTS) n_slot[n_layer++] = share->part[i], expert = fmax(expert, (double)u->unit[i].bytes / u->unit[i].n_part);
    Placement p = *share;
    timeline_token(&still, u, &p, &machine, DEPTH + n_token / 4);
    const int most = keeper_most(still.end, machine_stream_bandwidth(&machine), expert);
    ok = ok && replay(&k, &t, n_slot, most, &brought, &e);
    for (int i = 0; ok && i < u->n; i++)
        if (u->unit[i].kind == UNIT_EXPERTS) {
            r[i] = (Residency){k.away + at * (t.n_used + 1), k.brought[at] * (double)u->unit[i].bytes / u->unit[i].n_part};
            at++;
        }
    p.residency = r;
    place_set(m, u, p.part);
    ok = ok && run(m, &(Want){.n_token = n_token - n_token / 2, .depth = DEPTH, .n_batch = 1, .ring_bytes = ring, .trace = &t, .most = most}, &ran, &e);
    CHECK(ok, "%s: %s", shape, e.text);
    if (ok) {
        timeline_token(&line, u, &p, &machine, DEPTH + n_token / 4);
        snprintf(name, sizeof name, "choices of %g, %g", zipf, stay);
        CHECK(ran.brought == brought, "%s, %s: %lld experts were brought, the rule says %lld", shape, name, (long long)ran.brought, (long long)brought);
        if (verbose) printf("%s, %s: %d and more of %d experts there, %.1f %% hits, %.2f brought a token, %d may be\n", shape, name, n_slot[n_layer - 1], t.n_expert, 100 * k.hit, k.uploads, most);
        check_one(shape, name, "token", &line, &ran, limit);
    }
    timeline_close(&ran.t);
    residency_close(&k);
    trace_close(&t);
    free(r);
}

static void test_residency(const char *shape, const char *path) {
    Model m;
    Choice c;
    if (!choose(shape, path, &m, &c, 0)) return;
    const Placement *p = &c.plan.best[FAMILY_SHARE].place;
    check_residency(shape, &m, &c.units, p, c.session.ring_bytes, 0, 0, 100, 0.02);
    check_residency(shape, &m, &c.units, p, c.session.ring_bytes, 0.7, 0.3, 300, 0.05);
    check_residency(shape, &m, &c.units, p, c.session.ring_bytes, 1, 0, 300, 0.05);
    check_residency(shape, &m, &c.units, p, c.session.ring_bytes, 0, 0.8, 100, 0.12); // 70 MB a token; that they take the host's memory, too, this clock does not know
    check_residency(shape, &m, &c.units, p, c.session.ring_bytes, 0.3, 0.95, 100, 0.05);
    choice_close(&c);
    model_close(&m);
}

// ---- launches ----

// All on the device: what units.c says a token launches, against what it does.
static void test_launches(const char *name, const char *path) {
    Model m;
    PlanUnits u = {0};
    Err e = {{0}};
    Ran t = {0};
    bool ok = model_open(&m, path, &e);
    if (ok && !(ok = units_open(&u, &m, &(SessionParams){.n_ctx = N_CTX, .n_batch = 1}, sizeof(F16), &e))) model_close(&m);
    CHECK(ok, "%s: %s", name, e.text);
    if (!ok) return;
    int n[N_UNIT_KIND] = {0}, all = 0, *part = calloc((size_t)u.n, sizeof *part);
    for (int i = 0; i < u.n; i++) n[u.unit[i].kind] += u.unit[i].n_launch, all += u.unit[i].n_launch, part[i] = u.unit[i].n_part;
    place_set(&m, &u, part);
    emu_config.memory = (size_t)100 << 30;
    CHECK(run(&m, &(Want){.n_token = 1, .depth = DEPTH, .n_batch = 1}, &t, &e), "%s: %s", name, e.text);
    if (verbose)
        printf("%-20s %3d launches predicted (attention %d, FFN %d, experts %d, head %d), %3d counted\n", name, all, n[UNIT_ATTENTION], n[UNIT_FFN],
               n[UNIT_EXPERTS], n[UNIT_HEAD], t.launches);
    CHECK(t.launches == all, "%s: %d launches of a token, units.c says %d", name, t.launches, all);
    timeline_close(&t.t);
    emu_config.memory = (size_t)machine.gpu.memory;
    free(part);
    units_close(&u);
    model_close(&m);
}

// ---- that the clock is one ----

// The reference model of experts, half of each layer's here and there, and every third layer's attention: computed for real it takes the same
// time as without computing. And waiting at every tap of the stream is seen.
static void test_clock(const char *path) {
    Model m;
    PlanUnits u = {0};
    Err e = {{0}};
    Ran phantom = {0}, real = {0}, waits = {0};
    bool ok = model_open(&m, path, &e);
    if (ok && !(ok = units_open(&u, &m, &(SessionParams){.n_ctx = N_CTX, .n_batch = 1}, sizeof(F16), &e))) model_close(&m);
    CHECK(ok, "%s", e.text);
    if (!ok) return;
    int *part = calloc((size_t)u.n, sizeof *part);
    for (int i = 0; i < u.n; i++) {
        const Unit *x = &u.unit[i];
        part[i] = x->kind == UNIT_EXPERTS ? x->n_part / 2 : x->kind == UNIT_ATTENTION ? x->layer % 3 > 0 : x->kind > UNIT_TABLE;
    }
    place_set(&m, &u, part);
    const Want want = {.n_token = 6, .depth = WARM, .n_batch = 1};
    ok = run(&m, &want, &phantom, &e);
    emu_config.phantom = 0;
    ok = ok && run(&m, &want, &real, &e);
    emu_config.phantom = 1;
    CHECK(ok, "%s", e.text);
    if (verbose) printf("a token of 6: phantom %.3f us, computed %.3f us\n", phantom.seconds * 1e6, real.seconds * 1e6);
    CHECK(fabs(real.seconds / phantom.seconds - 1) < 0.02, "a token takes %.3f us computed, %.3f us as phantom", real.seconds * 1e6,
          phantom.seconds * 1e6);
    for (int i = 0; i < u.n; i++) part[i] = u.unit[i].kind > UNIT_TABLE ? u.unit[i].n_part : 0;
    place_set(&m, &u, part);
    timeline_close(&phantom.t);
    ok = run(&m, &want, &phantom, &e) && run(&m, &(Want){.n_token = 6, .depth = WARM, .n_batch = 1, .waits = true}, &waits, &e);
    CHECK(ok, "%s", e.text);
    const double each = 1e6 * (waits.seconds - phantom.seconds) / (m.c.n_layer * 3); // three taps a layer and more
    if (verbose)
        printf("all on the device: a token takes %.1f us, %.1f us with a wait at every tap: %.1f us for each of 3 in a layer\n", phantom.seconds * 1e6,
               waits.seconds * 1e6, each);
    CHECK(each > emu_config.sync_us, "waiting at every tap costs %.2f us each", each);
    timeline_close(&phantom.t);
    timeline_close(&real.t);
    timeline_close(&waits.t);
    free(part);
    units_close(&u);
    model_close(&m);
}

// bench synth, which is beside bin/run
static bool write_shape(const char *shape, char *path, size_t n) {
    char command[1024];
    const char *program = getenv("RUN");
    if (!program) program = "bin/run";
    const char *slash = strrchr(program, '/');
    snprintf(path, n, "/tmp/test_clock-%s-%ld.gguf", shape, (long)getpid());
    snprintf(command, sizeof command, "%.*s/bench synth %s %s --header-only", slash ? (int)(slash - program) : 1, slash ? program : ".", shape, path);
    return system(command) == 0;
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    static const char *const SHAPES[] = {"8b", "e2b", "26b", "31b"};
    const char *only = "";
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "-v")) verbose = true;
        else if (!strcmp(argv[i], "-b") && i + 1 < argc) n_batch = atoi(argv[++i]);
        else if (!strcmp(argv[i], "-svg") && i + 1 < argc) drawing.path = argv[++i];
        else only = argv[i];
    if (!&emu_config || backend_cuda_devices() == 0) {
        test_skip("no emulated device");
        return test_end();
    }
    static const char *const run[] = {"lend", "collect", NULL};
    emu_phantom_runs = run;
    emu_config.phantom = emu_trace = 1;
    describe("rtx3060-12g", "ddr4-3200");
    static const char *const REFERENCES[] = {"llama2-tied-Q4_K_M", "llama3-Q4_K_M", "llama-moe-Q4_K_M", "gemma1-Q4_K_M", "gemma2-Q4_K_M", "gemma3-Q4_K_M",
                                             "gemma3n-Q8_0",
                                             "gemma4-dense-Q4_K_M", "gemma4-e-Q4_K_M", "gemma4-moe-Q4_K_M", "llama3-Q8_0", "llama3-F16"};
    for (size_t i = 0; i < sizeof REFERENCES / sizeof *REFERENCES; i++) {
        char path[64];
        if (!strstr(REFERENCES[i], only)) continue;
        snprintf(path, sizeof path, "reference/%s.gguf", REFERENCES[i]);
        if (!shared_path(path)) test_skip(path);
        else test_launches(REFERENCES[i], shared_path(path));
    }
    for (size_t i = 0; i < sizeof SHAPES / sizeof *SHAPES; i++) {
        char path[64];
        if (!strstr(SHAPES[i], only)) continue;
        if (write_shape(SHAPES[i], path, sizeof path)) {
            test_launches(SHAPES[i], path);
            test_shape(SHAPES[i], path);
            test_scratch(SHAPES[i], path);
            if (!strcmp(SHAPES[i], "26b")) test_residency(SHAPES[i], path);
        } else test_skip("bench synth did not write a model");
        unlink(path);
    }
    if (!*only && shared_path("reference/gemma4-moe-Q4_K_M.gguf")) test_clock(shared_path("reference/gemma4-moe-Q4_K_M.gguf"));
    FILE *f = drawing.path ? fopen(drawing.path, "w") : NULL;
    const char *title[64];
    for (int i = 0; i < drawing.n; i++) title[i] = drawing.title[i];
    if (f) timeline_svg(f, drawing.t, title, drawing.n);
    CHECK(!drawing.path || (f && fclose(f) == 0), "%s was not written", drawing.path);
    while (drawing.n) timeline_close(&drawing.t[--drawing.n]);
    return test_end();
}
