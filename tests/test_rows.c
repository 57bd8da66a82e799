// test_rows.c: rows whose logits nobody wants are dropped after the last layer that writes keys and values. The logits of the
// others must be those of a pass that computes every row: the same bits, unless so few are left that the cpu backend multiplies
// them in another way (kernels/gemm.h): then nearly the same. On every model of ../shared/reference, several sequences
// beside each other, in batches of 48, 7 and 1 rows, with an intervention, and with a model split between two backends.
#include "halves.h"
#include "reference.h"
#include "steer.h"

enum { N_SEQ = 3, MOST = N_SEQ * N_TOKEN };

static int ids[N_TOKEN];
static bool quick; // under sanitizers, ten times slower

typedef struct {
    bool every_row;    // the full pass
    bool watched;      // a tap that is not content with the wanted rows
    int chunk;
    int wanted;        // rows of the third prompt whose logits are wanted
    bool alike;
    Steer *steer;      // NULL: none
} How;

typedef struct {
    float *logits;     // [N_SEQ * N_TOKEN][n_vocab], zero where not wanted
    int n_vocab, n_layer;
    int shown;         // rows leaving the last layer, as a tap sees it
    bool astray;       // spans that are not the rows
} Trial;

static void keep_row(void *ctx, const float *logits, int seq, int pos) {
    Trial *k = ctx;
    memcpy(k->logits + (size_t)(seq * N_TOKEN + pos) * (size_t)k->n_vocab, logits, sizeof(float) * (size_t)k->n_vocab);
}

static void count_rows(void *ctx, const TapSite *t) {
    Trial *k = ctx;
    int n = 0;
    for (int i = 0; i < t->n_span; i++) n += t->span[i].n;
    k->astray |= t->point != TAP_STREAMS && n != t->n_rows;
    if (t->point == TAP_RESID_PRE && t->layer == k->n_layer) k->shown += t->n_rows;
}

// Three prompts, of which the logits of 1, 0 and some rows are wanted; then a token more for each, which reads what was cached.
static bool run(const Model *m, Backend *b, How how, Trial *k) {
    const Feed prompts[N_SEQ] = {{2, ids, 40, 1}, {1, ids + 5, 12, 0}, {0, ids + 10, 21, how.wanted}};
    const Feed tokens[N_SEQ] = {{0, ids + 3, 1, 1}, {1, ids + 4, 1, 1}, {2, ids + 5, 1, 1}};
    Session s;
    Err e = {0};
    memset(k->logits, 0, sizeof(float) * MOST * (size_t)m->c.n_vocab);
    k->n_vocab = m->c.n_vocab;
    k->n_layer = m->c.n_layer;
    k->shown = 0;
    k->astray = false;
    bool ok = session_open(&s, m, b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = how.chunk, .n_seq = N_SEQ, .every_row = how.every_row, .alike = how.alike}, &e);
    ok = ok && (!how.steer || session_add_tap(&s, steer_tap(how.steer), &e)) &&
         session_add_tap(&s, (Tap){.call = count_rows, .ctx = k, .wanted_only = !how.watched}, &e);
    if (ok) {
        s.on_logits = keep_row;
        s.on_logits_ctx = k;
        ok = session_eval_batch(&s, prompts, N_SEQ, &e);
        CHECK(ok && s.seq[0].pos == 21 && s.seq[1].pos == 12 && s.seq[2].pos == 40, "positions %d %d %d: %s", s.seq[0].pos, s.seq[1].pos, s.seq[2].pos, e.text);
        ok = ok && session_eval_batch(&s, tokens, N_SEQ, &e);
        session_close(&s);
    }
    CHECK(ok && !k->astray, "spans of other rows than a tap is shown: %s", e.text);
    return ok;
}

// Two ways of rounding inputs to 8 bits, in the last layers: 1e-4 of the square at most was seen. A row in the wrong place has 1.
static bool nearly_equal(const float *a, const float *b, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - b[i]) * ((double)a[i] - b[i]);
        size += (double)b[i] * b[i];
    }
    return difference <= 5e-4 * size && size > 0;
}

static void compare(const Model *m, Backend *b, Steer *steer, const char *what) {
    const size_t n = MOST * (size_t)m->c.n_vocab;
    Trial full = {.logits = malloc(sizeof(float) * n)}, part = {.logits = malloc(sizeof(float) * n)};
    for (int i = quick; i < 5; i += quick ? 3 : 1) {
        const int chunk = i % 3 == 0 ? 73 : i == 1 ? 7 : 1, wanted = i < 3 ? 5 : 2; // of one prompt, which counts
        const bool alike = i == 4;
        if (!run(m, b, (How){.every_row = true, .chunk = chunk, .wanted = wanted, .steer = steer}, &full)) break;
        CHECK(full.shown == 76, "%s: %d rows of the full pass leave the last layer, expected 76", what, full.shown);
        if (!run(m, b, (How){.chunk = chunk, .wanted = wanted, .alike = alike, .steer = steer}, &part)) break;
        CHECK(part.shown == wanted + 4, "%s, chunks of %d: %d rows leave the last layer, expected the %d that are wanted", what, chunk, part.shown, wanted + 4);
        if (wanted == 5 || alike || strcmp(b->name, "cpu")) CHECK(!memcmp(full.logits, part.logits, sizeof(float) * n), "%s, chunks of %d: wanted rows alone get other logits", what, chunk);
        else CHECK(nearly_equal(part.logits, full.logits, n), "%s, chunks of %d: few wanted rows alone get other logits", what, chunk);
    }
    if (run(m, b, (How){.watched = true, .chunk = 20, .wanted = 5, .steer = steer}, &part))
        CHECK(part.shown == 76, "%s: a tap that wants all rows saw %d of 76", what, part.shown);
    free(full.logits);
    free(part.logits);
}

static void test_file(int which) {
    const char *name = FILES[which].name;
    char what[160];
    Model m;
    Err e = {0};
    Backend ref = {0}, cpu = {0}, host = {0};
    if (!open_reference(which, &m)) return;
    const bool ok = backend_open_ref(&ref, &e) && backend_open_cpu(&cpu, 1, ISA_AUTO, &e) && backend_open_cpu(&host, 1, ISA_AUTO, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (!ok) return;
    snprintf(what, sizeof what, "%s, ref", name);
    if (!quick || m.c.n_layer < 7) compare(&m, &ref, NULL, what);
    snprintf(what, sizeof what, "%s, cpu", name);
    if (!quick) compare(&m, &cpu, NULL, what);

    double *r = calloc((size_t)m.c.n_embd, sizeof *r);
    for (int i = 0; i < m.c.n_embd; i++) r[i] = i % 7 - 3;
    Direction d;
    Steer steer;
    steer_open(&steer, &m, &cpu);
    if (direction_single(&d, m.c.n_layer, m.c.n_embd, r, &e) && steer_use(&steer, &d, &e)) {
        snprintf(what, sizeof what, "%s, cpu, steered", name);
        compare(&m, &cpu, &steer, what);
    } else CHECK(false, "%s: %s", name, e.text);
    steer_close(&steer);
    free(r);

    cpu.host = &host; // two places, each with work buffers and caches of its own
    const int n_unit = 1 + 2 * m.c.n_layer;
    for (int units = 1; units < n_unit; units += quick ? n_unit : m.c.n_stream ? 12 : 3) { // Gemma 3n's layers are not halved
        place_halves(&m, units);
        snprintf(what, sizeof what, "%s, %d of %d units at one of two places", name, units, n_unit);
        compare(&m, &cpu, NULL, what);
    }
    place_halves(&m, n_unit);
    for (int l = 0; l < m.c.n_layer && !m.c.n_stream; l++) m.layers[l].n_expert_device = (m.layers[l].ffn_on_host = l % 2) ? 0 : m.layers[l].d.n_expert; // to and fro
    snprintf(what, sizeof what, "%s, every other FFN at another place", name);
    compare(&m, &cpu, NULL, what);
    place_halves(&m, n_unit);
    backend_close(&host);
    backend_close(&cpu);
    backend_close(&ref);
    model_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    quick = getenv("SANITIZED");
    FILE *f = shared_path("reference/tokens.i32") ? fopen(shared_path("reference/tokens.i32"), "rb") : NULL;
    if (f && fread(ids, sizeof(int), N_TOKEN, f) == N_TOKEN) {
        for (int i = 0; i < N_FILE; i++)
            if (argc < 2 || strstr(FILES[i].name, argv[1])) test_file(i);
    } else test_skip("../shared/reference is not there");
    if (f) fclose(f);
    return test_end();
}
