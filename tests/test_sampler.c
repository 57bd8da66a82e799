// The sampler against distributions worked out here the long way: a full sort, the steps one by one, in llama.cpp's order.
#include <float.h>
#include <math.h>
#include "sampler.h"
#include "test.h"

static SamplerParams plain(void) { return (SamplerParams){.temp = 1, .top_k = 0, .top_p = 1, .min_p = 0, .repeat_penalty = 1, .repeat_last_n = 64, .seed = 1}; }

static Sampler open_with(SamplerParams p, int n_vocab) {
    Sampler s;
    Err e;
    if (!sampler_open(&s, &p, n_vocab, &e)) {
        printf("FAIL: %s\n", e.text);
        exit(1);
    }
    return s;
}

static int once(SamplerParams p, const float *logits, int n) {
    Sampler s = open_with(p, n);
    const int id = sampler_next(&s, logits);
    sampler_close(&s);
    return id;
}

// ---- the long way ----

static const float *sort_key;
static int by_key(const void *a, const void *b) {
    const int i = *(const int *)a, j = *(const int *)b;
    return sort_key[i] != sort_key[j] ? (sort_key[i] > sort_key[j] ? -1 : 1) : i - j;
}

// Probabilities [n] of all ids; logits are those after the penalty. Ids not to be drawn have -INFINITY.
static void expected(const SamplerParams *p, const float *logits, int n, double *prob) {
    int *order = malloc(sizeof *order * (size_t)n), kept = 0;
    for (int i = 0; i < n; i++)
        if (logits[i] > -INFINITY) order[kept++] = i;
    sort_key = logits;
    qsort(order, (size_t)kept, sizeof *order, by_key);
    if (p->top_k > 0 && p->top_k < kept) kept = p->top_k;
    double sum = 0, reached = 0;
    const double highest = (double)logits[order[0]];
    for (int i = 0; i < kept; i++) sum += exp((double)logits[order[i]] - highest);
    int nucleus = 0;
    while (nucleus < kept && (nucleus == 0 || reached < (double)p->top_p * sum)) reached += exp((double)logits[order[nucleus++]] - highest);
    if (p->top_p < 1) kept = nucleus;
    while (kept > 1 && exp((double)logits[order[kept - 1]] - highest) < (double)p->min_p) kept--;
    for (int i = 0; i < n; i++) prob[i] = 0;
    sum = 0;
    for (int i = 0; i < kept; i++) sum += prob[order[i]] = exp(((double)logits[order[i]] - highest) / (double)p->temp);
    for (int i = 0; i < n; i++) prob[i] /= sum;
    free(order);
}

// Draws many and compares. Pearson's statistic over ids expected at least 8 times has mean df and deviation sqrt(2 df); it is
// accepted below df + 6 deviations + 10, which a right sampler misses once in about 1e8. An impossible id is refused outright.
static void frequencies(int line, SamplerParams p, const float *logits, const float *penalised, int n, const int *recent, int n_recent,
                        bool (*banned)(const void *, int)) {
    enum { DRAWS = 20000 };
    double *prob = malloc(sizeof *prob * (size_t)n);
    int *count = calloc((size_t)n, sizeof *count);
    Sampler s = open_with(p, n);
    s.banned = banned;
    for (int i = 0; i < n_recent; i++) sampler_accept(&s, recent[i]);
    expected(&p, penalised, n, prob);
    bool possible = true;
    for (int i = 0; i < DRAWS; i++) {
        const int id = sampler_next(&s, logits);
        if (id < 0 || id >= n || prob[id] <= 0) {
            possible = false;
            CHECK(false, "line %d: drew %d, which cannot be", line, id);
            break;
        }
        count[id]++;
    }
    double chi = 0;
    int df = -1, rest = DRAWS;
    double rest_prob = 1;
    for (int i = 0; i < n; i++) {
        const double want = DRAWS * prob[i];
        if (want < 8) continue;
        chi += (count[i] - want) * (count[i] - want) / want;
        df++;
        rest -= count[i];
        rest_prob -= prob[i];
    }
    if (rest_prob * DRAWS >= 8) chi += (rest - rest_prob * DRAWS) * (rest - rest_prob * DRAWS) / (rest_prob * DRAWS), df++;
    const double limit = df + 6 * sqrt(2.0 * (df > 0 ? df : 1)) + 10;
    CHECK(possible && chi < limit, "line %d: chi square %.1f for %d degrees of freedom, expected under %.1f", line, chi, df, limit);
    sampler_close(&s);
    free(prob);
    free(count);
}
#define FREQUENCIES(p, logits, n) frequencies(__LINE__, p, logits, logits, n, NULL, 0, NULL)

// Which ids ever come, as a string of 0 and 1.
static const char *support(SamplerParams p, const float *logits, int n) {
    static char seen[64];
    memset(seen, '0', 64);
    seen[n] = 0;
    p.temp = 1e30f; // even; the cuts come before
    Sampler s = open_with(p, n);
    for (int i = 0; i < 2000; i++) {
        const int id = sampler_next(&s, logits);
        if (id >= 0 && id < n) seen[id] = '1';
    }
    sampler_close(&s);
    return seen;
}
#define SUPPORT(p, logits, want) CHECK(!strcmp(support(p, logits, (int)strlen(want)), want), "kept %s, expected %s", support(p, logits, (int)strlen(want)), want)

static float some_logit(uint64_t *state) { // reproducible, from -8 to 8
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (float)(*state >> 40) * (16.0f / (1 << 24)) - 8;
}

static void test_greedy(void) {
    SamplerParams p = plain();
    p.temp = 0;
    CHECK(once(p, (float[]){1, 3, 2}, 3) == 1, "the largest");
    CHECK(once(p, (float[]){1, 3, 2, 3, 3}, 5) == 1, "a tie goes to the lower id");
    CHECK(once(p, (float[]){0, 0, 0}, 3) == 0, "all equal");
    CHECK(once(p, (float[]){-5, -3, -4}, 3) == 1, "all negative");
    CHECK(once(p, (float[]){7}, 1) == 0, "one token");
    CHECK(once(p, (float[]){NAN, 1, NAN, 2, NAN}, 5) == 3, "NaN is never chosen");
    CHECK(once(p, (float[]){1, INFINITY, -INFINITY}, 3) == 1, "infinity is large");
    CHECK(once(p, (float[]){-FLT_MAX, -INFINITY}, 2) == 0, "the lowest finite");
    CHECK(once(p, (float[]){NAN, NAN}, 2) == -1, "nothing to choose");
    CHECK(once(p, (float[]){-INFINITY, -INFINITY}, 2) == -1, "nothing to choose");
    p.temp = -1;
    CHECK(once(p, (float[]){1, 3, 2}, 3) == 1, "a negative temperature is greedy");
    p.temp = NAN;
    CHECK(once(p, (float[]){1, 3, 2}, 3) == 1, "no temperature is greedy");
    p = plain();
    p.temp = 1e-30f;
    CHECK(once(p, (float[]){1, 3, 2}, 3) == 1, "almost zero");
}

static void test_cuts(void) {
    // probabilities .4 .3 .2 .1, ids shuffled: 1 has .4, 3 has .3, 0 has .2, 2 has .1
    const float l[] = {logf(.2f), logf(.4f), logf(.1f), logf(.3f)};
    SamplerParams p = plain();
    SUPPORT(p, l, "1111");
    for (int k = 1; k <= 6; k++) {
        p.top_k = k;
        SUPPORT(p, l, k == 1 ? "0100" : k == 2 ? "0101" : k == 3 ? "1101" : "1111");
    }
    p = plain();
    const struct { float top_p; const char *want; } nucleus[] = {{0, "0100"}, {.39f, "0100"}, {.41f, "0101"}, {.69f, "0101"}, {.71f, "1101"}, {.89f, "1101"}, {.91f, "1111"}, {1, "1111"}};
    for (int i = 0; i < 8; i++) {
        p.top_p = nucleus[i].top_p;
        SUPPORT(p, l, nucleus[i].want);
    }
    p = plain();
    const struct { float min_p; const char *want; } floors[] = {{0, "1111"}, {.24f, "1111"}, {.26f, "1101"}, {.49f, "1101"}, {.51f, "0101"}, {.74f, "0101"}, {.76f, "0100"}, {1, "0100"}};
    for (int i = 0; i < 8; i++) {
        p.min_p = floors[i].min_p;
        SUPPORT(p, l, floors[i].want);
    }
    p = plain(); // top_p is of what top_k left: .4/.7 = .57
    p.top_k = 2;
    p.top_p = .56f;
    SUPPORT(p, l, "0100");
    p.top_p = .58f;
    SUPPORT(p, l, "0101");
    p = plain(); // the shorter list wins
    p.top_p = .95f;
    p.min_p = .6f;
    SUPPORT(p, l, "0101");
    p.top_p = .3f;
    SUPPORT(p, l, "0100");
    p = plain(); // ties at the border go to the lower ids
    const float equal[8] = {0};
    p.top_k = 3;
    SUPPORT(p, equal, "11100000");
    p = plain();
    p.top_p = .5f;
    SUPPORT(p, equal, "11110000");
    p = plain();
    p.min_p = 1;
    SUPPORT(p, equal, "11111111");
    const float broken[] = {NAN, 1, -INFINITY, 2, NAN, 1.5f};
    for (int k = 0; k < 8; k++) {
        p = plain();
        p.top_k = k;
        SUPPORT(p, broken, k == 1 ? "000100" : k == 2 ? "000101" : "010101");
    }
}

static void test_frequencies(void) {
    const float small[] = {0, 1, 2, -1, 1.5f, -30};
    SamplerParams p = plain();
    FREQUENCIES(p, small, 6);
    p.temp = .5f;
    FREQUENCIES(p, small, 6);
    p.temp = 3;
    FREQUENCIES(p, small, 6);
    p.temp = 1e30f;
    FREQUENCIES(p, small, 6);
    p = sampler_defaults();
    p.seed = 7;
    FREQUENCIES(p, small, 6);
    float large[300];
    uint64_t state = 5;
    for (int i = 0; i < 300; i++) large[i] = some_logit(&state);
    for (int seed = 0; seed < 2; seed++) {
        p = sampler_defaults();
        p.seed = (uint64_t)seed;
        FREQUENCIES(p, large, 300);
        p = plain();
        p.seed = (uint64_t)seed;
        FREQUENCIES(p, large, 300);
        p.top_k = 33;
        FREQUENCIES(p, large, 300);
        p.top_k = 0;
        p.top_p = .7f;
        FREQUENCIES(p, large, 300);
        p.top_p = 1;
        p.min_p = .1f;
        FREQUENCIES(p, large, 300);
        p.top_p = .99999f;
        p.min_p = 0;
        p.temp = 2;
        FREQUENCIES(p, large, 300);
    }
}

static bool ban_some(const void *ctx, int id) {
    (void)ctx;
    return id == 1 || id == 4 || id >= 100;
}
static bool ban_all(const void *ctx, int id) {
    (void)ctx;
    (void)id;
    return true;
}

static void test_banned(void) {
    float l[200], allowed[200];
    uint64_t state = 9;
    for (int i = 0; i < 200; i++) l[i] = some_logit(&state) + (float)(ban_some(NULL, i) ? 20 : 0); // the banned ones are the likeliest
    for (int i = 0; i < 200; i++) allowed[i] = ban_some(NULL, i) ? -INFINITY : l[i];
    SamplerParams p = plain();
    frequencies(__LINE__, p, l, allowed, 200, NULL, 0, ban_some);
    p = sampler_defaults();
    frequencies(__LINE__, p, l, allowed, 200, NULL, 0, ban_some);
    p.top_k = 1;
    frequencies(__LINE__, p, l, allowed, 200, NULL, 0, ban_some);
    p = plain();
    p.top_p = .5f;
    frequencies(__LINE__, p, l, allowed, 200, NULL, 0, ban_some);
    p.temp = 0;
    Sampler s = open_with(p, 200);
    s.banned = ban_some;
    int best = 0;
    for (int i = 0; i < 200; i++)
        if (allowed[i] > allowed[best]) best = i;
    CHECK(sampler_next(&s, l) == best, "greedy among the allowed");
    s.banned = ban_all;
    CHECK(sampler_next(&s, l) == -1, "all banned");
    sampler_close(&s);
}

static void test_penalty(void) {
    const float l[] = {2, -2, 1, 0, 3};
    const int recent[] = {0, 1, 3, 0, 1};
    SamplerParams p = plain();
    p.repeat_penalty = 2;
    frequencies(__LINE__, p, l, (float[]){1, -4, 1, 0, 3}, 5, recent, 5, NULL); // once each
    p.repeat_last_n = 2;                                                        // only 0 and 1, the last two
    frequencies(__LINE__, p, l, (float[]){1, -4, 1, 0, 3}, 5, recent, 5, NULL);
    p.repeat_last_n = 1;
    frequencies(__LINE__, p, l, (float[]){2, -4, 1, 0, 3}, 5, recent, 5, NULL);
    p.repeat_last_n = 0;
    frequencies(__LINE__, p, l, l, 5, recent, 5, NULL);
    p.repeat_last_n = -1; // all
    frequencies(__LINE__, p, l, (float[]){1, -4, 1, 0, 3}, 5, recent, 5, NULL);
    p.repeat_penalty = .5f; // a reward
    frequencies(__LINE__, p, l, (float[]){4, -1, 1, 0, 3}, 5, recent, 5, NULL);
    p.repeat_penalty = 1;
    frequencies(__LINE__, p, l, l, 5, recent, 5, NULL);
    p = plain();
    p.repeat_penalty = 4;
    p.temp = 0;
    Sampler s = open_with(p, 5);
    static const int want[] = {4, 0, 2, 4, 4}; // 3 2 1 0 -2, then .75 .5 .25
    for (int i = 0; i < 5; i++) {
        const int id = sampler_next(&s, l);
        CHECK(id == want[i], "step %d: %d, expected %d", i, id, want[i]);
        sampler_accept(&s, id);
    }
    sampler_accept(&s, -1);
    sampler_accept(&s, 5);
    sampler_accept(&s, 1 << 30);
    CHECK(sampler_next(&s, l) == 4, "ids that do not exist are not remembered");
    sampler_close(&s);
}

static void test_seed(void) {
    enum { N = 300, STEPS = 200 };
    float l[N], before[N];
    uint64_t state = 3;
    for (int i = 0; i < N; i++) l[i] = before[i] = some_logit(&state);
    SamplerParams p = sampler_defaults();
    p.temp = 5;
    p.repeat_penalty = 1.1f;
    int ids[3][STEPS], equal = 0;
    for (int run = 0; run < 3; run++) {
        p.seed = run == 2 ? 43 : 42;
        Sampler s = open_with(p, N);
        for (int i = 0; i < STEPS; i++) sampler_accept(&s, ids[run][i] = sampler_next(&s, l));
        sampler_close(&s);
    }
    CHECK(!memcmp(ids[0], ids[1], sizeof ids[0]), "the same seed gives the same ids");
    for (int i = 0; i < STEPS; i++) equal += ids[0][i] == ids[2][i];
    CHECK(equal < STEPS / 2, "another seed gives others: %d of %d equal", equal, STEPS);
    CHECK(!memcmp(l, before, sizeof l), "the logits are left alone");
}

static void test_extremes(void) {
    static const float values[] = {0, 1e-45f, 1e-30f, .5f, 1, 1e30f, FLT_MAX};
    static const float extremes[] = {FLT_MAX, -FLT_MAX, INFINITY, -INFINITY, NAN, 0, 1e-45f, -1e-45f, 88, -104, 700, FLT_MAX};
    enum { N = sizeof extremes / sizeof *extremes };
    int bad = 0;
    for (int t = 0; t < 7; t++)
        for (int q = 0; q < 7; q++)
            for (int m = 0; m < 7; m++)
                for (int r = 0; r < 7; r++)
                    for (int k = -1; k < 4; k++) {
                        const SamplerParams p = {.temp = values[t], .top_k = k == 3 ? INT32_MAX : k, .top_p = values[q], .min_p = values[m],
                                                 .repeat_penalty = values[r], .repeat_last_n = k == 0 ? INT32_MAX : 3, .seed = UINT64_MAX};
                        if (k == 0 && t + q + m + r > 0) continue; // that one allocates much
                        Sampler s = open_with(p, N);
                        for (int i = 0; i < 5; i++) {
                            const int id = sampler_next(&s, extremes);
                            bad += id < 0 || id >= N || isnan(extremes[id]) || extremes[id] == -INFINITY;
                            sampler_accept(&s, id);
                        }
                        sampler_close(&s);
                    }
    CHECK(bad == 0, "%d of the draws with extreme numbers chose what cannot be chosen", bad);
    Sampler s;
    Err e = {0};
    const SamplerParams p = plain();
    CHECK(!sampler_open(&s, &p, 0, &e) && e.text[0], "no vocabulary: %s", e.text);
    sampler_close(&s);
    CHECK(!sampler_open(&s, &p, -1, &e), "no vocabulary");
    sampler_close(&s);
}

// Every third id is never wanted, nor are the first two.
static bool third(const void *ctx, int id) {
    (void)ctx;
    return id < 2 || id % 3 == 0;
}

// From the likeliest that op top finds, the same ids come as from all logits.
static void test_top(void) {
    enum { N = 700, STEPS = 40 };
    static const int tops[] = {0, 1, 2, 40, MAX_TOP, MAX_TOP + 1, N + 5};
    static const float cuts[] = {0, .05f, .5f, .95f, 1};
    static float l[N], bias[N];
    for (int i = 0; i < N; i++) bias[i] = third(NULL, i) ? -INFINITY : 0;
    Backend b[2];
    Err e;
    const bool open = backend_open_ref(&b[0], &e) && backend_open_cpu(&b[1], 1, ISA_AUTO, &e);
    CHECK(open, "%s", e.text);
    uint64_t state = 11;
    int cases = 0, few = 0, wrong = 0;
    for (int k = 0; open && k < 7; k++)
        for (int p = 0; p < 5; p++)
            for (int m = 0; m < 5; m++)
                for (int temp = 0; temp < 4; temp++)
                    for (int ban = 0; ban < 2; ban++, cases++) {
                        const SamplerParams params = {.temp = 0.4f * (float)(temp * temp), .top_k = tops[k], .top_p = cuts[p], .min_p = cuts[m], .repeat_penalty = 1,
                                                      .seed = (uint64_t)cases};
                        Sampler all = open_with(params, N), top = open_with(params, N);
                        all.banned = ban ? third : NULL;
                        const int want = sampler_wants_top(&top);
                        few += want > 0;
                        CHECK(want == (temp == 0 ? 1 : tops[k] > 0 && tops[k] <= MAX_TOP ? tops[k] : 0), "wants the %d likeliest, temperature %g, top-k %d", want,
                              (double)params.temp, tops[k]);
                        for (int i = 0; i < STEPS && want; i++) {
                            for (int j = 0; j < N; j++) l[j] = i % 4 == 0 ? rintf(some_logit(&state)) : some_logit(&state); // ties, too
                            if (i % 5 == 1) l[5] = INFINITY, l[7] = FLT_MAX, l[4] = NAN, l[9] = INFINITY;
                            for (int j = 0; i % 5 == 2 && j < N; j++) l[j] = j < 6 ? l[j] : -INFINITY; // hardly any left
                            if (i == 3) for (int j = 0; j < N; j++) l[j] = NAN;                        // none
                            Likely y[MAX_TOP];
                            Backend *on = &b[i % 2];
                            on->top(on, &(TopArgs){.y = y, .logits = l, .bias = ban ? bias : NULL, .n_rows = 1, .n_vocab = N, .k = want});
                            const int id = sampler_next(&all, l);
                            wrong += id != sampler_next_top(&top, y, want) || (i == 3) != (id < 0);
                        }
                        sampler_close(&all);
                        sampler_close(&top);
                    }
    CHECK(wrong == 0 && few > 500, "%d ids from the likeliest are others than from all, in %d cases", wrong, few);
    SamplerParams p = plain();
    p.top_k = 40;
    p.repeat_penalty = 1.1f;
    Sampler s = open_with(p, N);
    CHECK(sampler_wants_top(&s) == 0, "a penalty may bring up any id");
    sampler_close(&s);
    backend_close(&b[0]);
    backend_close(&b[1]);
}

// ---- the file's recommendations ----

static bool from_file(void (*set)(GgufWriter *), SamplerParams *p, Err *e) {
    char path[] = "/tmp/test_sampler.XXXXXX";
    const int fd = mkstemp(path);
    if (fd >= 0) close(fd);
    GgufWriter *w;
    Gguf g;
    bool ok = gguf_writer_open(&w, path, e);
    if (ok) {
        gguf_set_string(w, "general.architecture", "llama", 5);
        set(w);
        ok = gguf_writer_close(w, e) && gguf_open(&g, path, e);
    }
    if (ok) {
        ok = sampler_defaults_from_file(p, &g, e);
        gguf_close(&g);
    }
    unlink(path);
    return ok;
}

static void set_all(GgufWriter *w) {
    gguf_set_f32(w, "general.sampling.temp", 1);
    gguf_set_i32(w, "general.sampling.top_k", 64);
    gguf_set_f32(w, "general.sampling.top_p", .5f);
    gguf_set_f32(w, "general.sampling.min_p", .25f);
    gguf_set_f32(w, "general.sampling.penalty_repeat", 1.5f);
    gguf_set_i32(w, "general.sampling.penalty_last_n", 128);
    gguf_set_i32(w, "general.sampling.mirostat", 2); // not ours
}
static void set_none(GgufWriter *w) { gguf_set_u32(w, "general.file_type", 0); }
static void set_minus(GgufWriter *w) {
    gguf_set_i32(w, "general.sampling.top_k", -1);
    gguf_set_i32(w, "general.sampling.penalty_last_n", -1);
}
static void bad_temp(GgufWriter *w) { gguf_set_f32(w, "general.sampling.temp", -1); }
static void bad_nan(GgufWriter *w) { gguf_set_f32(w, "general.sampling.temp", NAN); }
static void bad_top_p(GgufWriter *w) { gguf_set_f32(w, "general.sampling.top_p", 1.5f); }
static void bad_min_p(GgufWriter *w) { gguf_set_f32(w, "general.sampling.min_p", -.1f); }
static void bad_penalty(GgufWriter *w) { gguf_set_f32(w, "general.sampling.penalty_repeat", 0); }
static void bad_top_k(GgufWriter *w) { gguf_set_i32(w, "general.sampling.top_k", -7); }
static void bad_type(GgufWriter *w) { gguf_set_string(w, "general.sampling.top_k", "64", 2); }
static void bad_last_n(GgufWriter *w) { gguf_set_u32(w, "general.sampling.penalty_last_n", UINT32_MAX); }

static void test_file(void) {
    const SamplerParams d = sampler_defaults();
    CHECK(d.temp == .8f && d.top_k == 40 && d.top_p == .95f && d.min_p == .05f && d.repeat_penalty == 1, "the defaults");
    SamplerParams p = d;
    Err e = {0};
    CHECK(from_file(set_all, &p, &e) && p.temp == 1 && p.top_k == 64 && p.top_p == .5f && p.min_p == .25f && p.repeat_penalty == 1.5f && p.repeat_last_n == 128,
          "all keys: %s", e.text);
    p = d;
    CHECK(from_file(set_none, &p, &e) && !memcmp(&p, &d, sizeof p), "no keys: %s", e.text);
    CHECK(from_file(set_minus, &p, &e) && p.top_k == 0 && p.repeat_last_n == -1, "minus one: %s", e.text);
    const struct { void (*set)(GgufWriter *); const char *key; } bad[] = {{bad_temp, "temp"}, {bad_nan, "temp"}, {bad_top_p, "top_p"}, {bad_min_p, "min_p"},
        {bad_penalty, "penalty_repeat"}, {bad_top_k, "top_k"}, {bad_type, "top_k"}, {bad_last_n, "penalty_last_n"}};
    for (int i = 0; i < 8; i++) {
        p = d;
        e.text[0] = 0;
        CHECK(!from_file(bad[i].set, &p, &e) && strstr(e.text, bad[i].key) && !memcmp(&p, &d, sizeof p), "a bad %s: '%s'", bad[i].key, e.text);
    }
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    test_greedy();
    test_cuts();
    test_frequencies();
    test_banned();
    test_penalty();
    test_seed();
    test_extremes();
    test_top();
    test_file();
    return test_end();
}
