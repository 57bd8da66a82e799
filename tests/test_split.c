// test_split.c: a model on two sides. With float32 weights every placement must compute the same, on the reference files of every
// architecture, but for what the rounding of keys and values to F16 makes of it; with the files' own types, a device of every size from too small to large enough takes what fits, says so, and
// stays within its memory; the host's memory of what it took is free again. On the emulator of tests/emu; without it, SKIP.
// test_split -v prints figures; test_split llama: only files so named.
#include <math.h>
#include "emu/emu_test.h"
#include "pages.h"
#include "place.h"
#include "reference.h"

#pragma weak emu_config // without the emulator they are not there
#pragma weak emu_memory_used

static bool verbose;
static int ids[N_TOKEN];

static bool logits_of(Session *s, int n_token, float *logits, Err *e) {
    s->on_logits = keep_logits;
    s->on_logits_ctx = &(Outputs){.logits = logits, .n_vocab = s->m->c.n_vocab};
    const bool ok = session_eval(s, ids, n_token, e);
    s->on_logits = NULL;
    return ok;
}

// -- every placement of float32 weights -----------------------------------------------------------------------------------

typedef struct {
    void *memory[4096];
    int n;
} Kept;

static void *keep(Kept *k, size_t bytes) {
    void *p = malloc(bytes);
    if (!p || k->n == 4096) abort();
    return k->memory[k->n++] = p;
}

// The same weights as float32: what is left of a difference is the order of additions.
static bool widen(void *ctx, Tensor *t, int layer, bool ffn) {
    Kept *k = ctx;
    (void)layer, (void)ffn;
    if (t->type == TYPE_F32) return true;
    const size_t n = (size_t)t->n_row * (size_t)t->n_col;
    float *x = keep(k, sizeof(float) * n * (size_t)t->n_slice);
    for (int s = 0; s < t->n_slice; s++) {
        for (int r = 0; r < t->n_row; r++) type_info(t->type)->to_f32(tensor_row(t, s, r), x + (size_t)s * n + (size_t)r * (size_t)t->n_col, t->n_col);
        if (t->slices) t->slices[s] = x + (size_t)s * n;
    }
    t->host = x;
    t->type = TYPE_F32;
    return true;
}

// Unit `unit` (place.h) alone on the device, with all that read the same keys; Gemma 3n's layers are whole.
static void place_one(Model *m, int unit) {
    const int l = m->c.n_layer - (unit + 1) / 2;
    place_set(m, 0);
    if (unit == 0) m->head_on_host = false;
    else if (unit % 2 && !m->c.n_stream) m->layers[l].ffn_on_host = false;
    else
        for (int i = 0; i < m->c.n_layer; i++)
            if (m->layers[i].d.kv_source == m->layers[l].d.kv_source) {
                m->layers[i].attn_on_host = false;
                if (m->c.n_stream) m->layers[i].ffn_on_host = false;
            }
}

typedef bool OpenBackend(Backend *b, Err *e);
static bool open_cuda(Backend *b, Err *e) { return backend_open_cuda(b, 0, e); }
static bool open_cpu(Backend *b, Err *e) { return backend_open_cpu(b, 1, ISA_AUTO, e); }

// Eight rows at a time: attention of more reads queries as halves on the device.
static bool evaluate(Model *m, OpenBackend *open, bool split, int n_token, float *logits, Err *e) {
    Backend b = {0}, host = {0};
    Session s = {0};
    bool ok = open(&b, e);
    if (ok && split && (ok = backend_open_cpu(&host, 1, ISA_AUTO, e))) b.host = &host;
    ok = ok && (b.on_host || place_load(&b, m, e)) &&
         session_open(&s, m, &b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = 8, .all_logits = true}, e) && logits_of(&s, n_token, logits, e);
    session_close(&s);
    place_unload(&b, m);
    backend_close(&host);
    backend_close(&b);
    return ok;
}

static void test_placements(const char *name, Model *m) {
    enum { N = 20 }; // tokens: more than a window of 16
    static Kept kept;
    const int n_unit = 1 + 2 * m->c.n_layer;
    const size_t n = (size_t)N * (size_t)m->c.n_vocab;
    float *want = calloc(n, sizeof(float)), *got = calloc(n, sizeof(float));
    Err e = {{0}};
    if (m->per_layer_token_embd) widen(&kept, (Tensor *)m->per_layer_token_embd, 0, false);
    widen(&kept, (Tensor *)m->token_embd, 0, false);
    (void)!model_each(m, widen, &kept);
    bool ok = evaluate(m, open_cpu, false, N, want, &e) && evaluate(m, backend_open_ref, false, N, got, &e);
    const double rounding = sqrt(nmse(want, got, (int64_t)n));
    double worst = 0;
    int at = 0;
    for (int i = 0; ok && i < n_unit + 2; i++) { // each unit alone; half of them; all
        if (m->c.n_stream && i % 10 && i < n_unit) continue; // of many layers, all alike, every fifth
        if (i < n_unit) place_one(m, i);
        else place_set(m, i == n_unit ? n_unit / 2 | 1 : n_unit);
        ok = evaluate(m, open_cuda, i <= n_unit, N, got, &e);
        const double apart = sqrt(nmse(got, want, (int64_t)n));
        if (apart > worst) worst = apart, at = i;
        // A value next to a half of F16 goes the other way after another order of additions: what is before a cache may differ by
        // what all of the rounding costs. The head and the last FFN are before none.
        const double bound = i < 2 ? 1e-5 : rounding;
        CHECK(apart < bound, "%s: placement %d of %d: logits differ by %.2e of their length, expected < %.1e", name, i, n_unit, apart, bound);
    }
    CHECK(ok, "%s: %s", name, e.text);
    if (verbose) printf("%-20s float32 weights: at most %.1e apart (unit %d); F16 keys and values cost %.1e\n", name, worst, at, rounding);
    while (kept.n) free(kept.memory[--kept.n]);
    free(want);
    free(got);
}

// -- every size of a device -----------------------------------------------------------------------------------------------

typedef struct {
    const char *name;
    Model m;
    PlaceOptions o;
    float *want, *got;
    double bound;
    char said[4096];   // on stderr
    double layers;     // on the device, and 0.25 for the head
    int n_size, n_placement;
} Sweep;

// place_open, or with s NULL only place_look, and what it says: one line.
static bool open_and_listen(Sweep *w, Session *s, Backend *b, Err *e) {
    FILE *f = tmpfile();
    const int saved = dup(2);
    fflush(stderr);
    if (!f || saved < 0 || dup2(fileno(f), 2) < 0) abort();
    const bool ok = s ? place_open(s, b, &w->m, &w->o, e) : place_look(b, &w->m, &w->o, e);
    fflush(stderr);
    dup2(saved, 2);
    close(saved);
    rewind(f);
    w->said[fread(w->said, 1, sizeof w->said - 1, f)] = 0;
    fclose(f);
    w->layers = 0;
    if (strstr(w->said, "everything runs on the CPU\n") == NULL)
        CHECK(sscanf(w->said, "test: %lf of", &w->layers) == 1 && strstr(w->said, "in host memory"), "%s says '%s'", w->name, w->said);
    CHECK(strchr(w->said, '\n') == w->said + strlen(w->said) - 1, "%s says more than a line: '%s'", w->name, w->said);
    w->layers += strstr(w->said, "and the head") ? 0.25 : 0;
    return ok;
}

// What the options allow, in at most cap bytes of the device. Only a placement that the last call had not is brought there.
static void check_size(Sweep *w, uint64_t cap) {
    const double before = w->layers;
    Session s = {0};
    Backend b = {0};
    Err e = {{0}};
    bool ok = open_and_listen(w, NULL, &b, &e);
    place_close(&b, &w->m);
    w->n_size++;
    if (w->layers == before) return;
    const double chosen = w->layers;
    ok = ok && open_and_listen(w, &s, &b, &e);
    CHECK(ok && w->layers == chosen, "%s: chosen %g layers, brought %g: %s", w->name, chosen, w->layers, e.text);
    CHECK(emu_memory_used() <= cap, "%s: %zu bytes of the device are used, %llu may be", w->name, emu_memory_used(), (unsigned long long)cap);
    if (ok && w->want && w->n_placement % 3 == 2) { // some: the emulator's time
        CHECK(logits_of(&s, N_TOKEN, w->got, &e), "%s: %s", w->name, e.text);
        const double apart = nmse(w->got, w->want, (int64_t)N_TOKEN * w->m.c.n_vocab);
        CHECK(apart <= w->bound, "%s: NMSE %.2e, expected <= %.2e: %s", w->name, apart, w->bound, w->said);
    }
    w->n_placement++;
    session_close(&s);
    place_close(&b, &w->m);
    CHECK(emu_memory_used() == 0, "%s: %zu bytes are left on the device", w->name, emu_memory_used());
}

// Devices of every size, and then a cap of every size on a large one, in steps of half a unit from too little to enough.
static void test_sizes(const char *name, const char *path, double nmse_of_file) {
    enum { LEAST = 4 << 20, RESERVE = 384 << 20 }; // less than the backend's own buffers; place.c
    const size_t memory = emu_config.memory;
    Sweep w = {.name = name, .layers = -1,
               .o = {.program = "test", .threads = 1, .gpu_layers = 90, .session = {.n_ctx = N_TOKEN, .n_batch = N_TOKEN, .all_logits = true}}};
    Err e = {{0}};
    if (!model_open(&w.m, path, &e)) {
        CHECK(false, "%s", e.text);
        return;
    }
    const size_t n = (size_t)N_TOKEN * (size_t)w.m.c.n_vocab;
    float *want = w.want = calloc(n, sizeof(float));
    w.got = calloc(n, sizeof(float));
    w.bound = 4 * 1.2 * nmse_of_file; // both are within 1.2 times nmse_of_file of the exact logits, so within (1 + 1)^2 times that of each other
    CHECK(evaluate(&w.m, open_cpu, false, N_TOKEN, want, &e), "%s: %s", name, e.text);
    const double all = w.m.c.n_layer + 0.25;
    const uint64_t step = w.m.weight_bytes / (uint64_t)(4 * w.m.c.n_layer), most = LEAST + 4 * (w.m.weight_bytes + (1 << 20));
    for (int vram = 0; vram < 2; vram++) {
        char text[32];
        double before = 0;
        for (uint64_t room = LEAST; room < most; room += step) {
            snprintf(text, sizeof text, "%lluK", (unsigned long long)(room >> 10));
            if (vram) w.o.vram = text;
            else emu_config.memory = emu_config.reserve + RESERVE + room;
            check_size(&w, room);
            CHECK(room > LEAST ? w.layers >= before : w.layers == 0, "%s: %g layers with %s, %g with less", name, w.layers, text, before);
            before = w.layers;
            if (w.layers == all) break;
        }
        CHECK(w.layers == all, "%s: not all of it fits into four times its size", name);
        emu_config.memory = memory;
        w.want = NULL; // the same placements again: their sizes are enough
    }
    CHECK(w.n_placement > w.m.c.n_layer, "%s: only %d placements", name, w.n_placement);
    if (verbose) printf("%-20s %d sizes of a device, %d placements\n", name, w.n_size, w.n_placement);
    free(want);
    free(w.got);
    model_close(&w.m);
}

// -- host memory ----------------------------------------------------------------------------------------------------------

// What is on the device takes no host memory; the rest is mapped, or with no_mmap read.
static void test_pages(const char *path) {
    for (int no_mmap = 0; no_mmap < 2; no_mmap++) {
        int before = 0;
        for (int gpu_layers = 0; gpu_layers <= 30; gpu_layers += 15) {
            Model m;
            Session s = {0};
            Backend b = {0};
            Err e = {{0}};
            const PlaceOptions o = {.program = "test", .threads = 1, .gpu_layers = gpu_layers, .no_mmap = no_mmap, .quiet = true,
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
    for (int i = 0; i < N_FILE; i++) {
        if (!strstr(FILES[i].name, only)) continue;
        char path[128];
        Model m;
        Err e = {{0}};
        snprintf(path, sizeof path, "reference/%s.gguf", FILES[i].name);
        const bool ok = shared_path(path) && model_open(&m, shared_path(path), &e);
        CHECK(ok, "%s: %s", path, e.text);
        if (!ok) continue;
        test_placements(FILES[i].name, &m);
        model_close(&m);
        static const char *const kinds[] = {"llama3-Q4_K_M", "llama-moe-Q4_K_M", "gemma3n-Q8_0", "gemma4-e-Q4_K_M", "gemma4-moe-Q4_K_M"};
        for (int k = 0; k < 5; k++)
            if (!strcmp(FILES[i].name, kinds[k])) test_sizes(FILES[i].name, shared_path(path), FILES[i].nmse);
    }
    return test_end();
}
