// test_split.c: a model on two sides. With float32 weights every placement must compute the same as the CPU, prompts and decoded tokens,
// with a direction removed or not, but for what the rounding of keys and values to F16 makes of it. With the files' own types a device of every
// size from nothing to enough takes what is planned and fits, says so, and what it takes there and in host memory is what was predicted; so
// when any single allocation fails. The host's memory of what went to the device is free again. On the emulator of tests/emu; without it, SKIP.
// test_split -v prints figures; test_split llama: only files so named. By default: the sizes of every reference file, its allocations (of larger files
// every second; of Gemma 3n every third size and tenth allocation); all placements of two files, some of three. With SPLIT=full in the environment
// all of every file, with a direction removed and without, and every plan computes a prompt and tokens (25 minutes of one core).
#include <math.h>
#include "choice.h"
#include "emu/emu_test.h"
#include "float32.h"
#include "pages.h"
#include "reference.h"
#include "residency.h"
#include "steer.h"

#pragma weak emu_config // without the emulator they are not there
#pragma weak emu_memory_used

static bool verbose, full;
static int ids[N_TOKEN];

// A prompt, the last n_decode tokens one by one.
static bool logits_of(Session *s, int n_token, int n_decode, float *logits, Err *e) {
    s->on_logits = keep_logits;
    s->on_logits_ctx = &(Outputs){.logits = logits, .n_vocab = s->m->c.n_vocab};
    bool ok = session_eval(s, ids, n_token - n_decode, e);
    for (int i = n_token - n_decode; ok && i < n_token; i++) ok = session_eval(s, ids + i, 1, e);
    s->on_logits = NULL;
    return ok;
}

// -- every placement of float32 weights -----------------------------------------------------------------------------------

// What can be: attention is where the keys are that it reads, Gemma 3n's layers are whole.
static void settle(const PlanUnits *u, int *part, int unit) {
    for (int i = 0; i < u->n; i++) {
        if (u->unit[unit].kind == UNIT_ATTENTION && u->unit[i].kind == UNIT_ATTENTION && u->unit[i].source == u->unit[unit].source) part[i] = part[unit];
        if (u->whole && u->unit[i].kind == UNIT_FFN) part[i] = part[i - 1];
    }
}

// A trace that wants the last experts on the device first; in each layer beginning with another.
static char trace_path[64];
static bool write_trace(const Model *m, Err *e) {
    Trace t;
    if (!trace_shape(&t, m, e)) return false;
    const int n = t.n_expert, used = t.n_used;
    bool ok = true;
    for (int x = 0; x <= n - used; x++)
        for (int again = 0; again <= x && (ok = ok && trace_room(&t, t.n_token + 1, e)); again++, t.n_token++)
            for (int l = 0; l < t.n_layer; l++) // x, and those that are always there
                for (int u = 0; u < used; u++) t.id[(t.n_token * t.n_layer + l) * used + u] = (uint16_t)(((u ? n - u : x) + l) % n);
    snprintf(trace_path, sizeof trace_path, "/tmp/test_split.%ld.trace", (long)getpid());
    ok = ok && trace_save(&t, trace_path, e);
    trace_close(&t);
    return ok;
}

enum { MANY = 20 }; // layers, all alike

typedef bool OpenBackend(Backend *b, Err *e);
static bool open_cuda(Backend *b, Err *e) { return backend_open_cuda(b, 0, e); }
static bool open_cpu(Backend *b, Err *e) { return backend_open_cpu(b, 1, ISA_AUTO, e); }

enum { SHORT = 18, DECODE = 2, BATCH = 8 }; // tokens: more than a window of 16; of each kind of pass one that is replayed. Of more rows at a time
                                            // attention reads queries as halves on the device

// remove: all of one direction.
static bool evaluate(Model *m, OpenBackend *open, bool split, bool remove, int n_token, float *logits, Err *e) {
    Backend b = {0}, host = {0};
    Session s = {0};
    Steer steer;
    Direction d = {0};
    double vector[4096];
    for (int i = 0; i < m->c.n_embd; i++) vector[i] = sin(i * i);
    bool ok = open(&b, e);
    if (ok && split && (ok = backend_open_cpu(&host, 1, ISA_AUTO, e))) b.host = &host;
    steer_open(&steer, m, &b);
    ok = ok && (b.on_host || place_load(&b, m, e)) &&
         session_open(&s, m, &b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = BATCH, .all_logits = true}, e);
    if (ok && remove)
        ok = direction_single(&d, m->c.n_layer, m->c.n_embd, vector, e) && steer_use(&steer, &d, e) && steer_prepare(&steer, e) &&
             session_add_tap(&s, steer_tap(&steer), e);
    ok = ok && logits_of(&s, n_token, DECODE, logits, e);
    session_close(&s);
    steer_close(&steer);
    place_unload(&b, m);
    backend_close(&host);
    backend_close(&b);
    return ok;
}

typedef struct {
    const char *name;
    Model *m;
    PlanUnits u;
    int *part;             // [u.n]
    float *want[2], *got;  // without and with a direction removed
    size_t n;
    double rounding;       // of keys and values to F16
    double worst;
    int n_placement;
} Placements;

static void check_placement(Placements *k, double bound, const char *what, int unit) {
    Err e = {{0}};
    bool split = false;
    for (int i = 0; i < k->u.n; i++) split |= k->u.unit[i].kind >= UNIT_ATTENTION && k->part[i] < k->u.unit[i].n_part;
    place_set(k->m, &k->u, k->part);
    const bool both = full && k->m->c.n_layer <= MANY;
    const int n = k->n_placement++, turn = (n + n / 2) % 2; // not always with the same side
    for (int remove = both ? 0 : turn; remove <= (both ? 1 : turn); remove++) {
        const bool ok = evaluate(k->m, open_cuda, split, remove, SHORT, k->got, &e);
        const double apart = ok ? sqrt(nmse(k->got, k->want[remove], (int64_t)k->n)) : INFINITY;
        if (apart > k->worst) k->worst = apart;
        // A value next to a half of F16 goes the other way after another order of additions: each may differ from what would be exact by
        // what all of the rounding costs. The head and the last FFN are before no cache.
        CHECK(apart < bound, "%s: %s, unit %d%s: logits differ by %.2e of their length, expected < %.1e %s", k->name, what, unit, remove ? ", a direction removed" : "",
              apart, bound, e.text);
    }
}

static void fill(Placements *k, int attention, int ffn, int head, int experts) { // 0, 1; of experts how many halves of a layer's, -1: one
    for (int i = 0; i < k->u.n; i++) {
        const Unit *x = &k->u.unit[i];
        k->part[i] = x->kind == UNIT_ATTENTION ? attention : x->kind == UNIT_FFN ? ffn : x->kind == UNIT_HEAD ? head : x->kind != UNIT_EXPERTS ? 0
                   : experts < 0 ? 1 : experts * x->n_part / 2;
    }
}

static void test_placements(const char *name, Model *m, bool some) { // some: less, where the emulator takes its time
    static Memory kept;
    Placements k = {.name = name, .m = m, .n = (size_t)SHORT * (size_t)m->c.n_vocab};
    Err e = {{0}};
    for (int i = 0; i < 2; i++) k.want[i] = calloc(k.n, sizeof(float));
    k.got = calloc(k.n, sizeof(float));
    widen_model(m, &kept);
    bool ok = units_open(&k.u, m, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = BATCH}, sizeof(F16), &e) && (k.part = calloc((size_t)k.u.n, sizeof *k.part));
    for (int i = 0; i < 2; i++) ok = ok && evaluate(m, open_cpu, false, i, SHORT, k.want[i], &e);
    ok = ok && evaluate(m, backend_open_ref, false, false, SHORT, k.got, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (!ok) return;
    k.rounding = sqrt(nmse(k.want[0], k.got, (int64_t)k.n));
    for (int i = 0; i < k.u.n; i++) {
        const Unit *x = &k.u.unit[i];
        if (x->kind < UNIT_ATTENTION || (k.u.whole && (x->kind == UNIT_FFN || (!full && x->layer % 15)))) continue; // of many layers, all alike, a few
        if (some && x->layer > 0 && x->layer < m->c.n_layer - 1) continue;
        const double bound = x->kind == UNIT_HEAD || (x->kind != UNIT_ATTENTION && x->layer == m->c.n_layer - 1) ? 1e-5 : 2 * k.rounding;
        for (int there = some && x->layer == 0; there < (some && x->layer ? 1 : 2); there++) { // some: of the first layer on the host, else on the device
            fill(&k, there, there, there, 2 * there);
            k.part[i] = there ? 0 : x->n_part;
            settle(&k.u, k.part, i);
            check_placement(&k, there ? 2 * k.rounding : bound, there ? "alone on the host" : "alone on the device", i);
        }
    }
    fill(&k, 1, 1, 1, 2);
    check_placement(&k, 2 * k.rounding, "all on the device", 0);
    if (m->layers[m->c.n_layer - 1].d.n_expert)
        for (int experts = -1; experts <= 2; experts++) // one, none, half, all
            for (int with = 0; with < 4; with++) { // the rest on the host, on the device, FFN elsewhere than attention
                if ((experts == 0 && with == 0) || (experts == 2 && with == 3) || (some && (with % 3 == 0 || experts % 2 == 0))) continue;
                fill(&k, with % 2, with / 2, with % 2, experts);
                check_placement(&k, 2 * k.rounding, "experts one, 0, half, all, elsewhere than others", experts * 4 + with);
            }
    if (m->layers[m->c.n_layer - 1].d.n_expert) {
        ok = place_experts(m, &(PlaceOptions){.experts = trace_path}, &e);
        const int l = m->c.n_layer - 1, n = m->layers[l].d.n_expert;
        CHECK(ok && m->layers[l].expert_order[n - 1] == l % n, "%s: an order of experts: %s", name, ok ? "the last is another" : e.text);
        for (int experts = -1; ok && experts <= 1; experts += 2) // one, half
            for (int with = some ? 3 : 0; with < 4; with++) {
                fill(&k, with % 2, with / 2, with % 2, experts);
                check_placement(&k, 2 * k.rounding, "experts one, half, in the order of a trace", experts * 4 + with);
            }
    }
    if (verbose) printf("%-20s float32 weights, %d placements: at most %.1e apart; F16 keys and values cost %.1e\n", name, k.n_placement, k.worst, k.rounding);
    widen_free(&kept);
    for (int i = 0; i < 2; i++) free(k.want[i]);
    free(k.got);
    free(k.part);
    units_close(&k.u);
}

// -- every size of a device -----------------------------------------------------------------------------------------------

typedef struct {
    const char *name;
    Model m;
    PlaceOptions o;
    float *want, *got;
    double bound;
    char said[4096], before[4096]; // on stderr; what is where, of the last call
    double device, host;           // bytes it predicts; 0: everything runs on the CPU
    int n_size, n_placement, n_check;
} Sweep;

// place_open, and what it says: one line.
static bool open_and_listen(Sweep *w, Session *s, Backend *b, Err *e) {
    FILE *f = tmpfile();
    const int saved = dup(2);
    fflush(stderr);
    if (!f || saved < 0 || dup2(fileno(f), 2) < 0) abort();
    const bool ok = place_open(s, b, &w->m, &w->o, e);
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    rewind(f);
    w->said[fread(w->said, 1, sizeof w->said - 1, f)] = 0;
    fclose(f);
    w->device = w->host = 0;
    const char *at = strstr(w->said, " free): ");
    if (!strstr(w->said, "everything runs on the CPU\n"))
        CHECK(at && sscanf(at, " free): %lf MiB, in host memory: %lf", &w->device, &w->host) == 2, "%s says '%s'", w->name, w->said);
    CHECK(strchr(w->said, '\n') == w->said + strlen(w->said) - 1, "%s says more than a line: '%s'", w->name, w->said);
    w->device *= 0x1p20, w->host *= 0x1p20;
    return ok;
}

static bool host_weights(void *ctx, Tensor *t, int layer, bool ffn) {
    Sweep *w = ctx;
    const Layer *l = layer < w->m.c.n_layer ? &w->m.layers[layer] : NULL;
    const bool expert = l && (t == l->ffn_gate_exps || t == l->ffn_up_exps || t == l->ffn_down_exps);
    const int here = expert ? t->n_slice - l->n_expert_device : !l ? w->m.head_on_host : ffn ? l->ffn_on_host : l->attn_on_host;
    w->host -= (double)(tensor_bytes(t) / t->n_slice) * here;
    return true;
}

// What of the prediction for host memory is left when all that is there is taken away.
static void check_host(Sweep *w, const Backend *b) {
    w->host -= 8 << 20; // pinned
    const double predicted = w->host;
    const SessionParams *p = &w->o.session;
    uint64_t kv, acts;
    (void)!model_each(&w->m, host_weights, w);
    if (w->m.token_embd != w->m.output || (!w->m.head_on_host && w->m.layers[0].attn_on_host)) w->host -= (double)tensor_bytes(w->m.token_embd);
    if (w->m.per_layer_token_embd) w->host -= (double)tensor_bytes(w->m.per_layer_token_embd);
    if (b->host) session_bytes(&w->m, b->host, p, &kv, &acts), w->host -= (double)acts;
    for (int l = 0; l < w->m.c.n_layer; l++)
        if (w->m.layers[l].attn_on_host && b->host) w->host -= (double)session_kv_bytes(&w->m, b->host, p, l);
    CHECK(w->host >= -0.03 * predicted - 0x1p17, "%s: %.0f bytes of host memory are predicted, it is %.0f more", w->name, predicted, -w->host);
}

// Opens, and now and then computes.
static void check_open(Sweep *w, bool compute) {
    Session s = {0};
    Backend b = {0};
    Err e = {{0}};
    const bool ok = open_and_listen(w, &s, &b, &e);
    CHECK(ok, "%s: %s", w->name, e.text);
    CHECK((double)emu_memory_used() <= 1.03 * w->device, "%s: %zu bytes of the device are used, %.0f predicted", w->name, emu_memory_used(), w->device);
    if (ok && w->device > 0) check_host(w, &b);
    if (ok && compute) { // some: the emulator's time
        CHECK(logits_of(&s, N_TOKEN, full ? DECODE : 0, w->got, &e), "%s: %s", w->name, e.text);
        const double apart = nmse(w->got, w->want, (int64_t)N_TOKEN * w->m.c.n_vocab);
        CHECK(apart <= w->bound, "%s: NMSE %.2e, expected <= %.2e: %s", w->name, apart, w->bound, w->said);
        w->n_check++;
    }
    session_close(&s);
    place_close(&b, &w->m);
    CHECK(emu_memory_used() == 0, "%s: %zu bytes are left on the device", w->name, emu_memory_used());
}

static void test_sizes(const char *name, const char *path, double nmse_of_file) {
    enum { STEPS = 64, RESERVE = 384 << 20 }; // choice.c
    const Machine slow = {*machine_gpu("rtx3060-12g"), {.name = "slow", .label = "", .bandwidth = 1e9, .share = 1, .launch = 1e-5, .rate = 1e9}};
    const size_t memory = emu_config.memory;
    Sweep w = {.name = name, .o = {.program = "test", .threads = 1, .machine = &slow, .session = {.n_ctx = N_TOKEN, .n_batch = N_TOKEN, .all_logits = true}}};
    Err e = {{0}};
    if (!model_open(&w.m, path, &e)) {
        CHECK(false, "%s", e.text);
        return;
    }
    const size_t n = (size_t)N_TOKEN * (size_t)w.m.c.n_vocab;
    w.want = calloc(n, sizeof(float));
    w.got = calloc(n, sizeof(float));
    w.bound = 4 * 1.2 * nmse_of_file; // both are within 1.2 times nmse_of_file of the exact logits, so within (1 + 1)^2 times that of each other
    CHECK(evaluate(&w.m, open_cpu, false, false, N_TOKEN, w.want, &e), "%s: %s", name, e.text);
    check_open(&w, false);
    CHECK(strstr(w.said, " layers and the head on the GPU"), "%s: not all of it is on a large device: %s", name, w.said);
    const double all = w.device;
    for (int step = 0; step <= STEPS; step += !full && w.m.c.n_layer > MANY ? 3 : 1) { // every second as what is free, else as what may be used
        char vram[32];
        const uint64_t room = (uint64_t)(all * step / STEPS) + 4096;
        snprintf(vram, sizeof vram, "%lluK", (unsigned long long)(room >> 10));
        w.o.vram = step % 2 ? vram : NULL;
        if (step > STEPS / 2 && w.m.layers[0].d.n_expert) w.o.experts = trace_path;
        if (step % 2 == 0) emu_config.memory = emu_config.reserve + RESERVE + room;
        check_open(&w, full || step % 32 == 21);
        emu_config.memory = memory;
        w.n_size++;
        CHECK(w.device <= (double)room + 0x1p17, "%s: %.0f bytes of the device are planned, %.0f may be", name, w.device, (double)room);
        *strchrnul(w.said, '(') = 0;
        if (!strcmp(w.said, w.before)) continue;
        strcpy(w.before, w.said);
        w.n_placement++;
    }
    CHECK(w.n_placement > w.n_size / 2, "%s: only %d placements", name, w.n_placement);
    // Any allocation fails, once: a plan that is smaller, or the CPU.
    char vram[32];
    snprintf(vram, sizeof vram, "%lluK", (unsigned long long)(all * 0.9) >> 10);
    w.o.vram = vram;
    int n_less = 0, n_none = 0, n_quiet = 0, k = 1;
    for (; k < 10000; k += full || w.m.c.n_layer < 6 ? 1 : w.m.c.n_layer > MANY ? 10 : 2) { // of many layers, all alike, some
        emu_config.fail_alloc = k;
        check_open(&w, (full && (w.m.c.n_layer <= MANY || k % 10 == 1)) || k == 15);
        if (emu_config.fail_alloc) break; // there were not so many
        n_quiet += w.device > 0 && !strstr(w.said, "; less than planned: "); // the ring for prompts: they do without
        n_less += w.device > 0;
        n_none += w.device == 0;
    }
    emu_config.fail_alloc = 0;
    CHECK(k > 15 && n_less > 8 && n_none < 12 && n_quiet <= 1, "%s: %d allocations, %d lead to less, %d of them without a word, %d to nothing", name, k, n_less, n_quiet, n_none);
    if (verbose)
        printf("%-20s %d sizes of a device, %d placements; %d allocations: %d lead to less on the device, %d to nothing; %d times computed\n", name, w.n_size,
               w.n_placement, k - 1, n_less, n_none, w.n_check);
    free(w.want);
    free(w.got);
    model_close(&w.m);
}

// -- host memory ----------------------------------------------------------------------------------------------------------

// What is on the device takes no host memory; the rest is mapped, or with no_mmap read.
static void test_pages(const char *path) {
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        int before = 0;
        static const char *const layers[] = {"0", "15", "30"};
        const Machine slow = {*machine_gpu("rtx3060-12g"), {.name = "slow", .label = "", .bandwidth = 1e9, .share = 1, .launch = 1e-5, .rate = 1e9}};
        for (int i = 0; i < 3; i++) {
            const int gpu_layers = 15 * i;
            Model m;
            Session s = {0};
            Backend b = {0};
            Err e = {{0}};
            const PlaceOptions o = {.program = "test", .threads = 1, .gpu_layers = layers[i], .machine = &slow, .no_mmap = no_mmap, .quiet = true,
                                    .session = {.n_ctx = 16, .n_batch = 16}};
            const bool ok = model_open(&m, path, &e) && place_open(&s, &b, &m, &o, &e);
            CHECK(ok, "%s", e.text);
            const Pages k = pages_of_model(&m);
            const int left = no_mmap ? k.memory : k.file, other = no_mmap ? k.file : k.memory;
            if (verbose) printf("%s, -ngl %d: %d of %d pages of weights are in host memory\n", no_mmap ? "read" : "mapped", gpu_layers, left, k.pages);
            CHECK(k.pages > 500 && other == 0, "%d pages, %d of them not as they should be", k.pages, other);
            CHECK(gpu_layers ? left <= before : left == k.pages, "-ngl %d: %d of %d pages, %d with less on the device", gpu_layers, left, k.pages, before);
            before = left;
            session_close(&s);
            place_close(&b, &m);
            model_close(&m);
        }
        CHECK(before == 0, "no_mmap %d: %d pages of weights are in host memory when all is on the device", no_mmap, before);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    const char *only = "";
    for (int i = 1; i < argc; i++)
        if (!strcmp(argv[i], "-v")) verbose = true;
        else only = argv[i];
    if (&emu_config) emu_config.views = 1;
    full = getenv("SPLIT") && !strcmp(getenv("SPLIT"), "full");
    if (!&emu_config || backend_cuda_devices() == 0) {
        test_skip("no emulated device");
        return test_end();
    }
    FILE *f = shared_path("reference/tokens.i32") ? fopen(shared_path("reference/tokens.i32"), "rb") : NULL;
    if (!f || fread(ids, sizeof(int), N_TOKEN, f) != N_TOKEN) {
        test_skip("../shared/reference is not there");
        return test_end();
    }
    fclose(f);
    if (shared_path("reference/gemma3n-Q8_0.gguf")) test_pages(shared_path("reference/gemma3n-Q8_0.gguf"));
    static const char *const PLACED[] = {"llama3-Q4_K_M", "llama-moe-Q4_K_M", "gemma3n-Q8_0", "gemma4-e-Q4_K_M", "gemma4-moe-Q4_K_M"};
    for (int i = 0; i < N_FILE; i++) {
        const char *name = FILES[i].name;
        char path[128];
        Model m;
        Err e = {{0}};
        bool placed = full;
        for (int k = 0; k < 5; k++) placed |= !strcmp(name, PLACED[k]);
        if (!strstr(name, only)) continue;
        snprintf(path, sizeof path, "reference/%s.gguf", name);
        const bool ok = shared_path(path) && model_open(&m, shared_path(path), &e) && (!m.layers[0].d.n_expert || write_trace(&m, &e));
        CHECK(ok, "%s: %s", path, e.text);
        if (!ok) continue;
        if (placed) test_placements(name, &m, !full && strstr(name, "gemma4"));
        model_close(&m);
        test_sizes(name, shared_path(path), FILES[i].nmse);
        unlink(trace_path);
    }
    return test_end();
}
