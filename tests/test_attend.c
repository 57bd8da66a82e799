// test_attend.c: prompts where attention's keys and values are the host's: the device computes attention with weights and keys that it borrows, and the
// host has the keys afterwards. With float32 weights, logits and what attention adds (taps) are what the cpu backend says, within what backends
// differ by: of windows (16 and 32 positions) in chunks above and below them, of several sequences, of layers that read another's keys, of Q8_0 keys, in whatever
// order the emulator's streams run, and where the last layers see only the wanted rows; and so are those of the tokens that the host decodes
// afterwards. Then the rule. On the emulator of tests/emu; without it, SKIP. test_attend -v prints figures.
#include "emu/emu_test.h"
#include "float32.h"
#include "kv.h"
#include "place.h"
#include "reference.h"
#include "stream.h"

#pragma weak emu_config // without the emulator they are not there

enum { N_CTX = 130, MORE = 2, N_SEQ = 3, MOST = 120 + MORE };
static const int LENGTH[N_SEQ] = {120, 40, 9};
static int ids[MOST];
static bool verbose;

typedef struct {
    const char *name; // of the model
    int chunk, n_seq;
    TensorType keys;
    bool ffn;         // the FFNs are on the device, else they come, too
    int streams;      // of the emulator
    bool every;       // logits and attention's output of all rows; else the last ones' logits
    bool no_ring;     // the device has no memory for it: the host attends
    int n_ctx;        // 0: N_CTX
} Case;

// Of all rows, [N_SEQ][MOST][n_vocab]; what attention added, [n_layer][N_SEQ][MOST][n_embd].
typedef struct {
    const Model *m;
    float *logits, *added;
    size_t n_logits, n_added;
} Seen;

static bool seen_open(Seen *s, const Model *m) {
    const size_t rows = N_SEQ * MOST;
    *s = (Seen){.m = m, .n_logits = rows * (size_t)m->c.n_vocab, .n_added = rows * (size_t)(m->c.n_layer * m->c.n_embd)};
    return (s->logits = calloc(s->n_logits, sizeof(float))) && (s->added = calloc(s->n_added, sizeof(float)));
}
static void seen_close(Seen *s) {
    free(s->logits);
    free(s->added);
}

static void see_logits(void *ctx, const float *logits, int seq, int pos) {
    const Seen *s = ctx;
    const size_t V = (size_t)s->m->c.n_vocab;
    memcpy(s->logits + (size_t)(seq * MOST + pos) * V, logits, sizeof *logits * V);
}

static void see_added(void *ctx, const TapSite *site) {
    const Seen *s = ctx;
    const size_t E = (size_t)s->m->c.n_embd;
    for (int i = 0; i < site->n_span && site->point == TAP_ATTN_OUT; i++) {
        const Span *g = &site->span[i];
        float *to = s->added + (size_t)((site->layer * N_SEQ + g->seq) * MOST + g->pos) * E;
        site->backend->download(site->backend, to, site->rows + (size_t)g->row * E, sizeof *to * E * (size_t)g->n);
    }
}

static int n_attended; // by the host
static void (*cpu_attention)(Backend *b, const AttentionArgs *a);
static void count_attention(Backend *b, const AttentionArgs *a) {
    n_attended++;
    cpu_attention(b, a);
}

// A link that is worth it for all, on a slow host.
static const Machine fast = {.gpu = {.name = "test", .rate = 1e15, .up_pinned = 1e15, .up_pageable = 1e18, .down = 1e18},
                             .host = {.name = "test", .bandwidth = 1e15, .share = 1, .rate = 1e9}};

typedef enum { CPU, REF, SPLIT } Where;

static bool open_on(Where where, Backend *b, Backend *host, Session *s, Model *m, const Case *c, Err *e) {
    PlanUnits u = {0};
    int part[1024] = {0};
    SessionParams p = {.n_ctx = c->n_ctx ? c->n_ctx : N_CTX, .n_batch = c->chunk, .n_seq = c->n_seq, .all_logits = true,
                       .type_k = where == REF ? 0 : c->keys, .type_v = where == REF ? 0 : c->keys};
    bool ok = where == REF ? backend_open_ref(b, e) : where == CPU ? backend_open_cpu(b, 1, ISA_AUTO, e)
                                                                   : backend_open_cuda(b, 0, e) && backend_open_cpu(host, 1, ISA_AUTO, e);
    if (ok && where == SPLIT) {
        const Backend device = {.kv_type = TYPE_F16};
        b->host = host;
        cpu_attention = host->attention;
        host->attention = count_attention;
        p.ring_bytes = c->no_ring ? (uint64_t)1 << 40 : stream_ring_bytes(m, &device, &p, true, UINT64_MAX);
        ok = units_open(&u, m, &p, sizeof(F16), e);
        for (int i = 0; i < u.n && ok; i++) part[i] = (c->ffn && u.unit[i].kind == UNIT_FFN) || u.unit[i].kind == UNIT_HEAD;
        if (ok) place_set(m, &u, part);
        ok = ok && place_load(b, m, e);
        units_close(&u);
    }
    ok = ok && session_open(s, m, b, &p, e);
    s->machine = fast;
    return ok && b->sync(b, e);
}

// The prompts, then MORE tokens of each sequence one by one. *attended: how often the host did in the prompts.
static bool run(Where where, Model *m, const Case *c, Seen *seen, int *attended, Err *e) {
    Backend b = {0}, host = {0};
    Session s = {0};
    Feed feed[N_SEQ];
    for (int i = 0; i < c->n_seq; i++) feed[i] = (Feed){.seq = i, .ids = ids + i, .n = LENGTH[i], .n_logits = c->every ? LENGTH[i] : 1};
    bool ok = open_on(where, &b, &host, &s, m, c, e);
    s.on_logits = see_logits;
    s.on_logits_ctx = seen;
    ok = ok && (!c->every || session_add_tap(&s, (Tap){.call = see_added, .ctx = seen}, e));
    n_attended = 0;
    ok = ok && session_eval_batch(&s, feed, c->n_seq, e);
    *attended = n_attended;
    for (int k = 0; k < MORE; k++)
        for (int i = 0; i < c->n_seq && ok; i++)
            ok = session_eval_batch(&s, &(Feed){.seq = i, .ids = ids + LENGTH[i] + k - 2 * (i > 0), .n = 1, .n_logits = 1}, 1, e);
    session_close(&s);
    place_unload(&b, m);
    backend_close(&host);
    backend_close(&b);
    return ok;
}

static void test_case(Model *m, const Case *c) {
    Seen cpu = {0}, ref = {0}, got = {0};
    Err e = {{0}};
    int attended = 0;
    const bool memory = seen_open(&cpu, m) && seen_open(&ref, m) && seen_open(&got, m);
    emu_config.streams = c->streams;
    const bool ok = memory && run(CPU, m, c, &cpu, &attended, &e) && run(REF, m, c, &ref, &attended, &e) && run(SPLIT, m, c, &got, &attended, &e);
    CHECK(ok, "%s: %s", c->name, e.text);
    if (ok) {
        const double times = c->keys == TYPE_Q8_0 ? 1 : 4; // what rounding of keys and values costs; on ref they are float32
        const double bound = times * nmse(cpu.logits, ref.logits, (int64_t)cpu.n_logits), apart = nmse(got.logits, cpu.logits, (int64_t)cpu.n_logits);
        const double bound_added = c->every ? times * nmse(cpu.added, ref.added, (int64_t)cpu.n_added) : 0;
        const double added = c->every ? nmse(got.added, cpu.added, (int64_t)cpu.n_added) : 0;
        if (verbose)
            printf("%-20s chunks of %3d, %d sequences, %s keys: logits apart %.1e of %.1e, attention %.1e of %.1e; the host attended %d times\n", c->name, c->chunk,
                   c->n_seq, c->keys == TYPE_Q8_0 ? "q8_0" : "f16", apart, bound, added, bound_added, attended);
        CHECK(apart <= bound, "%s, chunks of %d: logits are %.2e apart, expected <= %.2e", c->name, c->chunk, apart, bound);
        CHECK(added <= bound_added, "%s, chunks of %d: what attention adds is %.2e apart, expected <= %.2e", c->name, c->chunk, added, bound_added);
        CHECK((attended > 0) == c->no_ring || !c->every, "%s, chunks of %d: the host attended %d times in the prompts", c->name, c->chunk, attended);
    }
    seen_close(&cpu), seen_close(&ref), seen_close(&got);
    emu_config.streams = EMU_EAGER;
}

// Whether attention of layer 0 comes, for n rows after pos, as the session stands.
static bool comes(Session *s, int pos, int n) {
    s->span[0] = s->fed[0] = (Span){.pos = pos, .n = n};
    s->n_span = s->n_fed = 1;
    return stream_attention(s, 0, n);
}

static void test_rule(Model *m, const Case *c) {
    Backend b = {0}, host = {0};
    Session s = {0};
    Err e = {{0}};
    const bool ok = open_on(SPLIT, &b, &host, &s, m, c, &e);
    CHECK(ok, "%s", e.text);
    if (ok) {
        const uint64_t ring = b.ring_bytes;
        CHECK(comes(&s, 0, c->chunk) && comes(&s, 0, FEWEST_STREAMED) && !comes(&s, 0, FEWEST_STREAMED - 1), "rows from which attention comes");
        s.p.alike = true;
        CHECK(!comes(&s, 0, c->chunk), "it comes where few rows and many shall be alike");
        s.p.alike = false;
        m->layers[0].attn_on_host = false;
        CHECK(!comes(&s, 0, c->chunk), "it comes where it is");
        m->layers[0].attn_on_host = true;
        const Span late = {.pos = 4000, .n = c->chunk};
        b.ring_bytes = kv_borrow_bytes(&s, 0, &late) - 1;
        CHECK(b.ring_bytes < ring && comes(&s, 20, c->chunk) && !comes(&s, 4000, c->chunk), "keys of 4,000 positions do not fit and come, or those of 20 do not come");
        b.ring_bytes = ring;
        // Between the speeds of link and host is a number of rows that is worth the way.
        const double link = s.machine.gpu.up_pinned = 1e6, rate = s.machine.host.rate = 3e8;
        const Layer *w = &m->layers[0];
        const Tensor *const all[] = {w->attn_norm, w->attn_q, w->attn_k, w->attn_v, w->attn_output};
        double bytes = 0, flop = 0;
        for (int i = 0; i < 5; i++) bytes += (double)tensor_bytes(all[i]), flop += all[i]->n_row > 1 ? 2.0 * all[i]->n_row * all[i]->n_col : 0;
        int least = FEWEST_STREAMED, expected = 1;
        while (least < 4096 && !comes(&s, 0, least)) least++;
        for (double here = 1, there = 0; here >= there && expected < 4096; expected++) {
            const double n = expected + 1, keys = n * (double)session_kv_row_bytes(m, &b, &s.p, 0), scores = 4.0 * w->d.n_head * w->d.head_dim * n * (n + 1) / 2;
            here = (bytes + keys) / link, there = (flop * n + scores) / rate;
        }
        CHECK(least > FEWEST_STREAMED && abs(least - expected) <= 8, "%d rows are worth it, expected about %d", least, expected);
    }
    session_close(&s);
    place_unload(&b, m);
    backend_close(&host);
    backend_close(&b);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (!&emu_config || backend_cuda_devices() == 0) {
        test_skip("no emulated device");
        return test_end();
    }
    for (int i = 0; i < MOST; i++) ids[i] = (i * 37 + 11) % 300;
    static const Case cases[] = { // no chunk of fewer rows than FEWEST_STREAMED
        {"llama3-Q4_K_M", 75, 2, 0, false, EMU_EAGER, true, false, 0},
        {"gemma3-Q4_K_M", 47, 1, 0, true, EMU_LAZY, true, false, 0},
        {"gemma3-Q4_K_M", 38, 3, TYPE_Q8_0, false, EMU_SHUFFLED, true, false, 0},
        {"gemma4-e-Q4_K_M", 38, 3, 0, true, EMU_SHUFFLED, true, false, 0},
        {"gemma4-e-Q4_K_M", 38, 3, 0, true, EMU_LAZY, false, false, 0},
        {"llama3-Q4_K_M", 50, 1, 0, true, EMU_LAZY, true, true, 0},
        {"llama3-Q4_K_M", 30, 1, TYPE_Q8_0, true, EMU_LAZY, true, false, 0},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        const Case *c = &cases[i];
        static Memory kept;
        char path[128];
        Model m;
        Err e = {{0}};
        snprintf(path, sizeof path, "reference/%s.gguf", c->name);
        if (!shared_path(path) || !model_open(&m, shared_path(path), &e)) {
            test_skip(path);
            continue;
        }
        widen_model(&m, &kept);
        test_case(&m, c);
        if (i == 0) test_rule(&m, &(Case){.chunk = 32, .n_seq = 1, .ffn = true, .n_ctx = 8192});
        widen_free(&kept);
        model_close(&m);
    }
    return test_end();
}
