// test_reference.c: whole models against outputs that an independent engine made (../shared/reference; SKIP when absent).
// ref: NMSE <= 1e-9 of logits and residuals. cpu, at every SIMD level this machine has: at most 1.2 times the error of the
// independent engine's own fast path. Prefill in chunks of 1, 7 and 48 must agree; decoding one by one rounds in another way. test_reference -v prints the figures.
#include "ref.h"
#include "reference.h"

static bool verbose;

static void keep_residual(void *ctx, const TapSite *s) {
    Outputs *o = ctx;
    if (s->point != TAP_RESID_PRE || s->layer == 0) return;
    float *dst = o->residual + ((size_t)(s->layer - 1) * N_TOKEN + (size_t)s->span->pos) * (size_t)s->n_col;
    s->backend->download(s->backend, dst, s->rows, sizeof(float) * (size_t)s->n_rows * (size_t)s->n_col);
}

// All 48 tokens in chunks, as a prompt or (decode) one by one; a window shorter than the prompt must wrap its ring, so the context is
// no larger than needed.
static bool evaluate(const Model *m, Backend *b, const int *ids, int chunk, bool decode, Outputs *o, bool with_tap) {
    Session s;
    Err e;
    o->n_vocab = m->c.n_vocab;
    o->n_embd = m->c.n_embd;
    bool ok = session_open(&s, m, b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = chunk, .all_logits = true}, &e);
    if (ok && with_tap) ok = session_add_tap(&s, (Tap){.call = keep_residual, .ctx = o}, &e);
    if (ok) {
        s.on_logits = keep_logits;
        s.on_logits_ctx = o;
        for (int i = 0; ok && i < N_TOKEN; i += decode ? 1 : N_TOKEN) ok = session_eval(&s, ids + i, decode ? 1 : N_TOKEN, &e);
        session_close(&s);
    }
    CHECK(ok, "%s: %s", b->name, e.text);
    return ok;
}

// The same prompts once more: only the likeliest tokens come to the host, with and without a bias.
static void test_likeliest(Session *s, const Feed *feed, const char *logits, const char *name) {
    enum { K = 5 };
    const int n_vocab = s->m->c.n_vocab;
    float *bias = calloc((size_t)n_vocab, sizeof *bias);
    Likely want[3 * K];
    Err e = {0};
    for (int way = 0; way < 3; way++) { // no bias, the likeliest ids out, then all logits again
        session_want_top(s, way < 2 ? K : 0, way ? bias : NULL);
        for (int i = 0; i < 3; i++) session_rewind(s, i, 0);
        CHECK(session_eval_batch(s, feed, 3, &e) && s->n_top == (way < 2 ? K : 0), "%s, %s: %d likeliest: %s", name, s->b->name, s->n_top, e.text);
        if (way == 2) CHECK(!memcmp(logits, s->logits, 3 * sizeof(float) * (size_t)n_vocab), "%s, %s: other logits after the likeliest", name, s->b->name);
        if (way == 2) break;
        top_ref(NULL, &(TopArgs){.y = want, .logits = (const float *)logits, .bias = way ? bias : NULL, .n_rows = 3, .n_vocab = n_vocab, .k = K});
        for (int i = 0; i < 3; i++) {
            CHECK(!memcmp(want + i * K, s->top + i * MAX_TOP, sizeof *want * K), "%s, %s: other ids than the likeliest of sequence %d, way %d", name, s->b->name, i, way);
            bias[want[i * K].id] = -INFINITY;
        }
    }
    free(bias);
}

// Three prompts of different lengths beside each other, cut into batches of 20 rows, give what each gives alone, to the bit.
static void test_side_by_side(const Model *m, Backend *b, const int *ids, const char *name) {
    const Feed feed[3] = {{2, ids, 48, 1}, {1, ids + 5, 12, 1}, {0, ids + 10, 21, 1}};
    const size_t row = sizeof(float) * (size_t)m->c.n_vocab;
    char *alone = malloc(3 * row);
    Session s = {0};
    Err e = {0};
    bool ok = session_open(&s, m, b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = N_TOKEN}, &e);
    for (int i = 0; ok && i < 3; i++) {
        session_rewind(&s, 0, 0);
        ok = session_eval(&s, feed[i].ids, feed[i].n, &e);
        memcpy(alone + (size_t)feed[i].seq * row, s.logits, row);
    }
    session_close(&s);
    ok = ok && session_open(&s, m, b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = 20, .n_seq = 3}, &e) && session_eval_batch(&s, feed, 3, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (ok) {
        CHECK(!memcmp(alone, s.logits, 3 * row), "%s, %s: prompts beside each other give other logits than alone", name, b->name);
        CHECK(s.seq[2].pos == 48 && s.seq[1].pos == 12 && s.seq[0].pos == 21, "positions %d %d %d", s.seq[2].pos, s.seq[1].pos, s.seq[0].pos);
        CHECK(!session_eval_batch(&s, (Feed[]){feed[1], feed[1]}, 2, &e), "one sequence twice in a batch");
        test_likeliest(&s, feed, alone, name);
    }
    session_close(&s);
    free(alone);
}

static void test_file(int which, const int *ids) {
    char path[128];
    Err e;
    Model m;
    if (!open_reference(which, &m)) return;
    const char *name = FILES[which].name;
    const size_t n_logit = (size_t)N_TOKEN * (size_t)m.c.n_vocab, n_resid = (size_t)m.c.n_layer * N_TOKEN * (size_t)m.c.n_embd;
    Outputs o = {.logits = calloc(n_logit, sizeof(float)), .residual = calloc(n_resid, sizeof(float))};
    float *first = calloc(n_logit, sizeof(float));
    snprintf(path, sizeof path, "reference/%s.logits.f32", name);
    float *want = read_floats(shared_path(path), n_logit);
    snprintf(path, sizeof path, "reference/%s.residual.f32", name);
    float *want_resid = FILES[which].residual ? read_floats(shared_path(path), n_resid) : NULL;
    CHECK(want, "%s: no reference logits of the right size", name);
    CHECK(want_resid || !FILES[which].residual, "%s: no reference residuals of the right size", name);

    Backend b;
    if (!backend_open_ref(&b, &e)) CHECK(false, "%s", e.text);
    for (int i = 0; i < 3 && want; i++) {
        const int chunk = i == 0 ? 48 : i == 1 ? 7 : 1;
        if (i == 2 && getenv("SANITIZED")) break; // ten times slower
        if (!evaluate(&m, &b, ids, chunk, false, &o, true)) break;
        const double err = nmse(o.logits, want, n_logit), err_resid = want_resid ? nmse(o.residual, want_resid, n_resid) : 0;
        CHECK(err <= 1e-9, "%s ref, chunks of %d: logits NMSE %.2e, expected <= 1e-9", name, chunk, err);
        CHECK(err_resid <= 1e-9, "%s ref, chunks of %d: residual NMSE %.2e, expected <= 1e-9", name, chunk, err_resid);
        if (i == 0) memcpy(first, o.logits, sizeof(float) * n_logit);
        else CHECK(nmse(o.logits, first, n_logit) <= 1e-12, "%s ref: chunks of %d and 48 differ by NMSE %.2e", name, chunk, nmse(o.logits, first, n_logit));
        if (verbose) printf("%-20s ref         chunk %2d  NMSE logits %.2e residual %.2e\n", name, chunk, err, err_resid);
        if (i == 0) { // without a tap the logits are the same bits
            evaluate(&m, &b, ids, 48, false, &o, false);
            CHECK(!memcmp(first, o.logits, sizeof(float) * n_logit), "%s: a tap that only looks changes the logits", name);
        }
    }
    test_side_by_side(&m, &b, ids, name);
    backend_close(&b);

    for (int isa = ISA_PORTABLE; isa <= ISA_AVX512VNNI && want; isa++) {
        if (!isa_works((Isa)isa)) {
            char what[96];
            snprintf(what, sizeof what, "%s at %s: not on this machine", name, isa_name((Isa)isa));
            test_skip(what);
            continue;
        }
        if (!backend_open_cpu(&b, 2, (Isa)isa, &e)) {
            CHECK(false, "%s", e.text);
            continue;
        }
        for (int i = 0; i < 4; i++) {
            const int chunk = i == 0 ? 48 : i == 1 ? 7 : 1;
            const bool decode = i == 3;
            if (i == 2 && getenv("SANITIZED")) continue;
            if (!evaluate(&m, &b, ids, chunk, decode, &o, false)) break;
            char how[64];
            snprintf(how, sizeof how, decode ? "%s decode" : "%s chunk %d", isa_name((Isa)isa), chunk);
            check_reference(which, how, o.logits, want, m.c.n_vocab, 1.2, verbose);
            if (i == 0) memcpy(first, o.logits, sizeof(float) * n_logit);
            else CHECK(decode || nmse(o.logits, first, n_logit) <= 1e-9, "%s %s: chunks of %d and 48 differ by NMSE %.2e", name, isa_name((Isa)isa), chunk, nmse(o.logits, first, n_logit));
        }
        test_side_by_side(&m, &b, ids, name);
        backend_close(&b);
    }
    free(first);
    free(want);
    free(want_resid);
    free(o.logits);
    free(o.residual);
    model_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    int ids[N_TOKEN];
    float *raw = read_floats(shared_path("reference/tokens.i32"), N_TOKEN);
    if (!raw) {
        test_skip("../shared/reference is not there");
        return test_end();
    }
    memcpy(ids, raw, sizeof ids);
    free(raw);
    for (int i = 0; i < N_FILE; i++) test_file(i, ids);
    return test_end();
}
