// test_window.c: a sliding-window layer holds exactly its window, and no chunk of a prompt sees anything else than it would token by token.
// On the reference models with windows (16 and 32 positions), with a prompt of 150 tokens: the logits of chunks above and below the
// window are the bits of chunks of one; of several sequences those of each alone; with Q8_0 keys and values, too. Rewinding. Then what a
// KV cache of Q8_0 costs in accuracy, of all models (-v prints the table).
#include "kv.h"
#include "random.h"
#include "reference.h"

enum { N = 150, N_CTX = 160 };
static int ids[N_CTX];
static bool verbose;

typedef struct {
    int chunk, n_seq;
    TensorType type;
} How;

static const int LENGTH[3] = {N, 61, 9};

static void keep(void *ctx, const float *logits, int seq, int pos) {
    Outputs *o = ctx;
    memcpy(o->logits + ((size_t)seq * N + (size_t)pos) * (size_t)o->n_vocab, logits, sizeof(float) * (size_t)o->n_vocab);
}

// Logits [n_seq][N][n_vocab] of every row: the first sequences of LENGTH, fed together.
static bool run(const Model *m, Backend *b, How how, float *logits) {
    Session s;
    Err e = {0};
    Feed feed[3];
    for (int i = 0; i < how.n_seq; i++) feed[i] = (Feed){.seq = i, .ids = ids + i, .n = LENGTH[i], .n_logits = LENGTH[i]};
    memset(logits, 0, sizeof(float) * (size_t)(how.n_seq * N) * (size_t)m->c.n_vocab);
    bool ok = session_open(&s, m, b, &(SessionParams){.n_ctx = N_CTX, .n_batch = how.chunk, .n_seq = how.n_seq, .all_logits = true, .type_k = how.type, .type_v = how.type}, &e);
    if (ok) {
        Outputs o = {.logits = logits, .n_vocab = m->c.n_vocab};
        s.on_logits = keep;
        s.on_logits_ctx = &o;
        ok = session_eval_batch(&s, feed, how.n_seq, &e);
        session_close(&s);
    }
    CHECK(ok, "chunks of %d: %s", how.chunk, e.text);
    return ok;
}

// few: one chunk above the window, one below
static void compare(const Model *m, Backend *b, TensorType type, bool few, const char *what) {
    const size_t n = (size_t)N * (size_t)m->c.n_vocab;
    float *one = malloc(sizeof(float) * n), *got = malloc(3 * sizeof(float) * n);
    if (one && got && run(m, b, (How){1, 1, type}, one)) {
        static const int chunks[] = {N, 48, 17, 16, 7, 2};
        for (int i = few; i < (int)(sizeof chunks / sizeof *chunks); i += 1 + 3 * few)
            if (run(m, b, (How){chunks[i], 1, type}, got)) CHECK(!memcmp(one, got, sizeof(float) * n), "%s: chunks of %d and of 1 give other logits", what, chunks[i]);
        const int chunk = few ? 39 : 220;
        float *alone = calloc(3 * n, sizeof(float)); // the same tokens, token by token
        if (alone && run(m, b, (How){1, 3, type}, alone) && run(m, b, (How){chunk, 3, type}, got)) {
            CHECK(!memcmp(one, alone, sizeof(float) * n), "%s: three sequences and one give other logits", what);
            CHECK(!memcmp(alone, got, 3 * sizeof(float) * n), "%s: three sequences in chunks of %d and of 1 give other logits", what, chunk);
        }
        free(alone);
    }
    free(one);
    free(got);
}

static void test_cells(const Model *m, const Backend *b, const char *name) {
    const SessionParams p = {.n_ctx = N_CTX, .n_batch = 48, .n_seq = 1}, short_one = {.n_ctx = 12, .n_batch = 12, .n_seq = 1};
    for (int l = 0; l < m->c.n_layer; l++) {
        const LayerDesc *d = &m->layers[l].d;
        CHECK(kv_cells(m, &p, l) == (d->window ? d->window : N_CTX), "%s: layer %d with a window of %d has %d cells", name, l, d->window, kv_cells(m, &p, l));
        CHECK(kv_cells(m, &short_one, l) == 12, "%s: layer %d has %d cells for a context of 12", name, l, kv_cells(m, &short_one, l));
        const uint64_t bytes = d->kv_source == l ? 2 * (uint64_t)(d->window ? d->window : N_CTX) * (uint64_t)(d->n_head_kv * d->head_dim) * (b->kv_type == TYPE_F32 ? 4 : 2) : 0;
        CHECK(session_kv_bytes(m, b, &p, l) == bytes, "%s: layer %d has %llu bytes of KV, expected %llu", name, l, (unsigned long long)session_kv_bytes(m, b, &p, l), (unsigned long long)bytes);
    }
}

// By one position always; by more only while no ring has come round.
static void test_rewind(const Model *m, Backend *b, const char *name) {
    const size_t n = sizeof(float) * (size_t)m->c.n_vocab;
    float *want = malloc(n);
    Session s;
    Err e = {0};
    int window = N_CTX;
    for (int l = 0; l < m->c.n_layer; l++)
        if (m->layers[l].d.window) window = min_int(window, m->layers[l].d.window);
    const bool open = want && session_open(&s, m, b, &(SessionParams){.n_ctx = N_CTX, .n_batch = 30}, &e);
    CHECK(open, "%s", e.text);
    if (!open) return;
    for (int end = window; end <= N; end += end == window ? 1 : N - window - 1) {
        CHECK(session_rewind(&s, 0, 0) == 0 && session_eval(&s, ids, end, &e), "%s: %s", name, e.text);
        memcpy(want, s.logits, n);
        for (int again = 0; again < 3; again++) {
            CHECK(session_rewind(&s, 0, end - 1) == end - 1 && session_pos(&s) == end - 1, "%s: the last of %d positions cannot be forgotten", name, end);
            CHECK(session_eval(&s, ids + end - 1, 1, &e) && !memcmp(want, s.logits, n), "%s: the last of %d tokens again gives other logits", name, end);
        }
        const int back = session_rewind(&s, 0, end - 2), expected = end > window ? 0 : end - 2;
        CHECK(back == expected, "%s: rewinding %d to %d reaches %d, expected %d", name, end, end - 2, back, expected);
        CHECK(session_eval(&s, ids + back, end - back, &e) && !memcmp(want, s.logits, n), "%s: after rewinding %d by 2 the logits are others", name, end);
    }
    session_close(&s);
    free(want);
}

// Another ring is used between a layer and the one that reads its keys.
static void test_late_reader(Model *m, Backend *b, const char *what) {
    const SessionParams p = {.n_ctx = N_CTX, .n_batch = 48, .n_seq = 1};
    LayerDesc *d = &m->layers[4].d;
    const int source = d->kv_source, window = d->window;
    bool fits = source == 2 && window > 0;
    for (int l = 1; l < 3; l++) fits = fits && m->layers[l].d.window == window && m->layers[l].d.kv_source == l;
    CHECK(fits, "%s is not the model it was", what);
    if (!fits) return;
    d->kv_source = 1;
    CHECK(kv_cells(m, &p, 1) == window - 1 + 48 && kv_cells(m, &p, 2) == window, "%s: %d and %d cells", what, kv_cells(m, &p, 1), kv_cells(m, &p, 2));
    compare(m, b, TYPE_F32, false, what);
    d->kv_source = source;
}

static bool logits_of(const Model *m, Backend *b, TensorType type, float *logits) {
    Session s;
    Err e = {0};
    bool ok = session_open(&s, m, b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = N_TOKEN, .all_logits = true, .type_k = type, .type_v = type}, &e);
    if (ok) {
        Outputs o = {.logits = logits, .n_vocab = m->c.n_vocab};
        s.on_logits = keep_logits;
        s.on_logits_ctx = &o;
        ok = session_eval(&s, ids, N_TOKEN, &e);
        session_close(&s);
    }
    CHECK(ok, "%s", e.text);
    return ok;
}

// What Q8_0 keys and values cost beside F16 on ref, where nothing else is rounded: at most half of what 8-bit activations cost the
// independent engine with this file, or with llama3-Q8_0 where that is more (seen: 0.38 of it). -v prints that, and how far the cpu backend is
// from the independent engine with either: | NMSE | mean KL | most | same top-1 | NMSE F16, Q8_0, ratio | mean KL F16, Q8_0, ratio |
static void test_accuracy(int which, const Model *m, Backend *ref, Backend *cpu) {
    enum { REF_F16, REF_Q8, CPU_F16, CPU_Q8, WANT, N_KIND };
    const size_t n = (size_t)N_TOKEN * (size_t)m->c.n_vocab;
    const char *name = FILES[which].name;
    char path[128];
    float *logits[N_KIND];
    double error[3], mean[3], worst[3], top1[3]; // Q8_0 from F16 on ref; F16, Q8_0 on cpu from the independent engine
    snprintf(path, sizeof path, "reference/%s.logits.f32", name);
    bool ok = (logits[WANT] = read_floats(shared_path(path), n));
    for (int i = 0; i < WANT; i++) ok &= (logits[i] = malloc(sizeof(float) * n)) && logits_of(m, i < CPU_F16 ? ref : cpu, i % 2 ? TYPE_Q8_0 : TYPE_F16, logits[i]);
    for (int i = 0; i < 3 && ok; i++) {
        const float *a = logits[i + 1], *b = i ? logits[WANT] : logits[REF_F16];
        error[i] = nmse(a, b, (int64_t)n);
        divergence(a, b, m->c.n_vocab, &mean[i], &worst[i], &top1[i]);
    }
    if (verbose && ok)
        printf("| %-20s | %.1e | %.1e | %.1e | %.3f | %.2e | %.2e | %.2f | %.2e | %.2e | %.2f |\n", name, error[0], mean[0], worst[0], top1[0], error[1], error[2], error[2] / error[1],
               mean[1], mean[2], mean[2] / mean[1]);
    const double nmse_limit = 0.5 * fmax(FILES[which].nmse, 9.41e-4), kl_limit = 0.5 * fmax(FILES[which].kl_mean, 3.42e-3);
    CHECK(ok && error[0] > 0 && error[0] <= nmse_limit && mean[0] <= kl_limit, "%s: Q8_0 KV on ref: NMSE %.2e, mean KL %.2e, expected <= %.1e, %.1e", name, error[0], mean[0],
          nmse_limit, kl_limit);
    for (int i = 0; i < N_KIND; i++) free(logits[i]);
}

static void test_file(int which) {
    const char *name = FILES[which].name;
    char what[160];
    Model m;
    Err e = {0};
    Backend ref = {0}, cpu = {0};
    if (!open_reference(which, &m)) return;
    const bool ok = backend_open_ref(&ref, &e) && backend_open_cpu(&cpu, 1, ISA_AUTO, &e);
    CHECK(ok, "%s: %s", name, e.text);
    bool windows = false;
    for (int l = 0; l < m.c.n_layer; l++) windows |= m.layers[l].d.window > 0;
    if (ok && windows) {
        test_cells(&m, &ref, name);
        test_cells(&m, &cpu, name);
        for (int i = 0; i < 2; i++) {
            const TensorType type = i ? TYPE_Q8_0 : TYPE_F32;
            snprintf(what, sizeof what, "%s, cpu, %s", name, i ? "Q8_0" : "F16");
            compare(&m, &cpu, type, i || getenv("SANITIZED"), what); // ten times slower
        }
        test_rewind(&m, &ref, name);
        snprintf(what, sizeof what, "%s, ref", name);
        if (strstr(name, "gemma4-e")) compare(&m, &ref, TYPE_F32, true, what);
        if (strstr(name, "gemma4-e")) test_late_reader(&m, &cpu, "a reader behind another ring");
    }
    if (ok) test_accuracy(which, &m, &ref, &cpu);
    backend_close(&cpu);
    backend_close(&ref);
    model_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[argc - 1], "-v");
    FILE *f = shared_path("reference/tokens.i32") ? fopen(shared_path("reference/tokens.i32"), "rb") : NULL;
    if (f && fread(ids, sizeof(int), N_TOKEN, f) == N_TOKEN) {
        for (int i = N_TOKEN; i < N_CTX; i++) ids[i] = (ids[i - N_TOKEN] + 7 * i) % 300 + 3;
        for (int i = 0; i < N_FILE; i++)
            if (argc - verbose < 2 || strstr(FILES[i].name, argv[1])) test_file(i);
    } else test_skip("../shared/reference is not there");
    if (f) fclose(f);
    return test_end();
}
