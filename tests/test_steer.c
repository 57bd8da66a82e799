// test_steer.c: directions as files, and what each mode of intervention does to the stream, on every architecture of
// ../shared/reference and on the demo models. test_steer -v prints the largest |cos(x, r)| after every site.
#include <math.h>

#include "rig.h"
#include "sha256.h"

static bool verbose;
static char folder[] = "/tmp/test_steer.XXXXXX";

static const char *path_of(const char *name) {
    static char path[256];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static uint64_t state = 1;
static double uniform(void) { // -1 .. 1
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)(state >> 32) * 0x1p-31;
}

static void random_vector(double *v, int n) {
    for (int i = 0; i < n; i++) v[i] = uniform() + uniform() + uniform();
}

// ---- what a run shows ----

typedef struct {
    const double *r;         // [n_vector][n] orthonormal
    int n_vector;
    double worst_cos;        // at stream sites
    double low, high;        // r[0].x at stream sites
    const float *expect;     // [tap_n_site] r[0].x that affine leaves; NULL: not looked at
    double worst_expect;     // relative to |x|
    int sites;
    int n_layer;
} Look;

static void look(void *ctx, const TapSite *t) {
    Look *l = ctx;
    const bool stream = tap_site(t->point, t->layer) >= 0 || t->point == TAP_STREAMS;
    if (!stream) return;
    l->sites++;
    if (t->point == TAP_STREAMS && t->layer == l->n_layer) return; // merged next, and looked at then
    for (int r = 0; r < t->n_rows; r++) {
        const float *x = t->rows + (size_t)r * (size_t)t->n_col;
        double length = 0;
        for (int i = 0; i < t->n_col; i++) length += (double)x[i] * x[i];
        for (int k = 0; k < l->n_vector; k++) {
            double along = 0;
            for (int i = 0; i < t->n_col; i++) along += l->r[k * t->n_col + i] * x[i];
            l->worst_cos = fmax(l->worst_cos, fabs(along) / sqrt(length));
            if (k) continue;
            l->low = fmin(l->low, along);
            l->high = fmax(l->high, along);
            if (l->expect && t->point != TAP_STREAMS)
                l->worst_expect = fmax(l->worst_expect, fabs(along - (double)l->expect[tap_site(t->point, t->layer)]) / sqrt(length));
        }
    }
}

static Look seen; // by the tap of every rig

static bool watch(Rig *g, const char *path) {
    Err e = {0};
    seen = (Look){0};
    if (!rig_open(g, path)) return false;
    const bool ok = session_add_tap(&g->s, (Tap){.call = look, .ctx = &seen}, &e);
    CHECK(ok, "%s: %s", path, e.text);
    return ok;
}

static void run(Rig *g) {
    seen = (Look){.n_layer = g->m.c.n_layer, .r = seen.r, .n_vector = seen.n_vector, .expect = seen.expect, .low = INFINITY, .high = -INFINITY};
    rig_run(g);
}

static double distance(const float *a, const float *b, int n) { // relative, squared
    double num = 0, den = 0;
    for (int i = 0; i < n; i++) num += ((double)a[i] - b[i]) * ((double)a[i] - b[i]), den += (double)b[i] * b[i];
    return num / den;
}

static void prepare(Rig *g, SteerMode mode, double strength, int first, int last) {
    Err e = {0};
    g->steer.mode = mode;
    g->steer.strength = strength;
    g->steer.first = first;
    g->steer.last = last;
    CHECK(steer_prepare(&g->steer, &e), "%s", e.text);
}

// A run in this mode with these strengths by layer and part (NULL: none).
static void run_as(Rig *g, SteerMode mode, double strength, const float *shape) {
    Err e = {0};
    CHECK(direction_set_shape(&g->steer.dir[0], shape, &e), "%s", e.text);
    prepare(g, mode, strength, -1, -1);
    run(g);
}

static void use(Rig *g, const double *v) {
    Direction d;
    Err e = {0};
    CHECK(direction_single(&d, g->m.c.n_layer, g->m.c.n_embd, v, &e) && steer_use(&g->steer, &d, &e), "%s", e.text);
}

// Strengths by layer and part: of 1 they are mode write without the embedding, of 0 nothing; and each acts on its own addends.
typedef struct {
    const double *r; // [n_embd]
    int n_col;
    double *along;   // [n_layer][N_SHAPE] sum of |r.w| over the rows of the last run
    double *entering; // [n_layer + 1]
} Addends;

static void sum_addends(void *ctx, const TapSite *t) {
    Addends *a = ctx;
    const int part = t->point == TAP_ATTN_OUT ? SHAPE_ATTN : t->point == TAP_MLP_OUT ? SHAPE_FFN : t->point == TAP_PLE_OUT ? SHAPE_PER_LAYER : -1;
    double *to = part >= 0 ? &a->along[t->layer * N_SHAPE + part] : t->point == TAP_RESID_PRE ? &a->entering[t->layer] : NULL;
    for (int r = 0; to && r < t->n_rows; r++) {
        double along = 0;
        for (int i = 0; i < t->n_col; i++) along += a->r[i] * t->rows[(size_t)r * (size_t)t->n_col + (size_t)i];
        *to += fabs(along);
    }
}

static void test_shape(Rig *g, const char *name, const float *plain) {
    Err e = {0};
    const int L = g->m.c.n_layer, V = g->m.c.n_vocab, n_part = g->m.c.n_embd_per_layer ? N_SHAPE : N_SHAPE - 1;
    const size_t logits = sizeof(float) * (size_t)V;
    float *kept = malloc(logits), *shape = calloc((size_t)L * N_SHAPE, sizeof *shape);
    double *along = calloc(2 * (size_t)L * N_SHAPE, sizeof *along), *entering = calloc(2 * (size_t)(L + 1), sizeof *entering);
    Addends a = {.r = seen.r, .along = along, .entering = entering};
    CHECK(session_add_tap(&g->s, (Tap){.call = sum_addends, .ctx = &a}, &e), "%s", e.text);
    run_as(g, MODE_WRITE, 0, NULL); // r.w of every addend, untouched
    CHECK(!memcmp(plain, g->logits, logits), "%s: watching changes the logits", name);
    a.along = along + (ptrdiff_t)L * N_SHAPE;
    a.entering = entering + L + 1;

    run_as(g, MODE_WRITE, 1, NULL);
    CHECK(a.entering[0] < 1e-5 * entering[0], "%s: mode write leaves the embedding's component %.2e of %.2e", name, a.entering[0], entering[0]);
    g->steer.keep_embedding = true;
    memset(a.entering, 0, sizeof *entering * (size_t)(L + 1));
    run_as(g, MODE_WRITE, 1, NULL);
    memcpy(kept, g->logits, logits);
    CHECK(a.entering[0] == entering[0], "%s: the embedding is kept, but its component is %.9g, was %.9g", name, a.entering[0], entering[0]);
    g->steer.keep_embedding = false;

    for (int i = 0; i < L * N_SHAPE; i++) shape[i] = 1;
    run_as(g, MODE_WRITE, 1, shape);
    CHECK(!memcmp(kept, g->logits, logits), "%s: factors of 1 are not mode write without the embedding", name);
    run_as(g, MODE_PROJECT, 0, shape);
    CHECK(!memcmp(plain, g->logits, logits), "%s: strength 0 with a shape changes the logits", name);
    for (int i = 0; i < L * N_SHAPE; i++) shape[i] = 0;
    run_as(g, MODE_WRITE, 1, shape);
    CHECK(!memcmp(plain, g->logits, logits), "%s: factors of 0 change the logits", name);

    // one addend of one layer: what comes before it is untouched, it loses 3/4 of its component
    for (int part = 0; part < n_part; part++) {
        const int l = L / 2, at = l * N_SHAPE + part;
        shape[at] = 1.5f;
        memset(a.along, 0, sizeof *along * (size_t)L * N_SHAPE);
        memset(a.entering, 0, sizeof *entering * (size_t)(L + 1));
        run_as(g, MODE_WRITE, 0.5, shape);
        for (int i = 0; i < at; i++) CHECK(a.along[i] == along[i], "%s: part %d of layer %d, and before it part %d of layer %d changes", name, part, l, i % N_SHAPE, i / N_SHAPE);
        for (int i = 0; i <= l; i++) CHECK(a.entering[i] == entering[i], "%s: part %d of layer %d, and before it the stream entering layer %d changes", name, part, l, i);
        CHECK(fabs(a.along[at] - 0.25 * along[at]) < 1e-5 * along[at], "%s: part %d of layer %d keeps %.7f of its component, expected 0.25", name, part, l, a.along[at] / along[at]);
        shape[at] = 0;
    }
    // directions removed together need the same shape
    Direction second;
    CHECK(direction_single(&second, L, g->m.c.n_embd, seen.r, &e), "%s", e.text);
    g->steer.dir[1] = second;
    g->steer.n_dir = 2;
    shape[0] = 1;
    CHECK(direction_set_shape(&g->steer.dir[0], shape, &e) && !steer_prepare(&g->steer, &e) && strstr(e.text, "not those of"), "%s: one shape of two: %s", name, e.text);
    CHECK(direction_set_shape(&g->steer.dir[1], shape, &e) && steer_prepare(&g->steer, &e), "%s: the same shape twice: %s", name, e.text);
    shape[0] = 2;
    CHECK(direction_set_shape(&g->steer.dir[1], shape, &e) && !steer_prepare(&g->steer, &e), "%s: two shapes", name);
    g->steer.mode = MODE_PROJECT;
    CHECK(steer_prepare(&g->steer, &e), "%s: project does not look at shapes: %s", name, e.text);
    direction_free(&g->steer.dir[1]);
    g->steer.n_dir = 1;
    CHECK(direction_set_shape(&g->steer.dir[0], NULL, &e), "%s", e.text);
    g->s.n_tap--;
    free(kept);
    free(shape);
    free(along);
    free(entering);
}

static void test_modes(const char *path) {
    Rig g;
    Err e = {0};
    if (!watch(&g, path)) return;
    const char *name = strrchr(path, '/') + 1;
    const int n = g.m.c.n_embd, L = g.m.c.n_layer, V = g.m.c.n_vocab;
    double *r = malloc(sizeof *r * 2 * (size_t)n);
    float *plain = malloc(sizeof *plain * (size_t)V), *projected = malloc(sizeof *plain * (size_t)V);
    random_vector(r, n);
    double length = 0;
    for (int i = 0; i < n; i++) length += r[i] * r[i];
    for (int i = 0; i < n; i++) r[i] /= sqrt(length);
    seen.r = r;
    seen.n_vector = 1;

    run(&g); // no direction at all
    memcpy(plain, g.logits, sizeof *plain * (size_t)V);
    const double low = seen.low, high = seen.high;
    CHECK(seen.sites == 2 * (2 * L + 1 + (g.m.c.n_embd_per_layer ? L : 0) + (g.m.c.n_stream > 0)), "%s: %d stream sites seen in two batches", name, seen.sites);
    CHECK(seen.worst_cos > 1e-3, "%s: the stream has no component along a random direction", name);

    use(&g, r);
    prepare(&g, MODE_PROJECT, 0, -1, -1);
    run(&g);
    CHECK(!memcmp(plain, g.logits, sizeof *plain * (size_t)V), "%s: strength 0 changes the logits", name);
    prepare(&g, MODE_PROJECT, 1, -1, -1);
    g.steer.on = false;
    run(&g);
    CHECK(!memcmp(plain, g.logits, sizeof *plain * (size_t)V), "%s: off changes the logits", name);
    g.steer.on = true;
    run(&g);
    memcpy(projected, g.logits, sizeof *plain * (size_t)V);
    if (verbose) printf("%-24s project leaves |cos| <= %.1e at %d sites\n", name, seen.worst_cos, seen.sites);
    CHECK(seen.worst_cos < 1e-6, "%s: project leaves |cos| %.2e", name, seen.worst_cos);
    CHECK(distance(projected, plain, V) > 1e-8, "%s: project changes nothing", name);

    // write = project where every write is projected, up to rounding (8-bit inputs make a difference of their own)
    if (g.m.c.n_stream) CHECK((g.steer.mode = MODE_WRITE, !steer_prepare(&g.steer, &e)) && strstr(e.text, "use project"), "%s: write is refused: %s", name, e.text);
    else {
        prepare(&g, MODE_WRITE, 1, -1, -1);
        run(&g);
        CHECK(seen.worst_cos < 1e-5, "%s: write leaves |cos| %.2e", name, seen.worst_cos);
        CHECK(distance(g.logits, projected, V) < 0.05 * distance(projected, plain, V) + 1e-4, "%s: write and project differ by %.2e, project and nothing by %.2e", name,
              distance(g.logits, projected, V), distance(projected, plain, V));
    }

    if (!g.m.c.n_stream) test_shape(&g, name, plain);
    g.steer.mode = MODE_PROJECT;

    // one layer only: what earlier layers wrote stays until there
    prepare(&g, MODE_PROJECT, 1, L - 1, L - 1);
    run(&g);
    CHECK(seen.worst_cos > 1e-3 && distance(g.logits, plain, V) > 0, "%s: the last layer only", name);

    Direction *d = &g.steer.dir[0];
    for (int i = 0; i < tap_n_site(L); i++) d->contrast[i] = (float)(0.1 * (i % 5) - 0.2);
    float *expect = malloc(sizeof *expect * (size_t)tap_n_site(L));
    memcpy(expect, d->contrast, sizeof *expect * (size_t)tap_n_site(L));
    seen.expect = expect;
    prepare(&g, MODE_AFFINE, 1, -1, -1);
    run(&g);
    CHECK(seen.worst_expect < 1e-6, "%s: affine leaves a component %.2e from the contrast mean", name, seen.worst_expect);
    seen.expect = NULL;
    for (int i = 0; i < tap_n_site(L); i++) d->contrast[i] = 0;
    prepare(&g, MODE_ONE_SIDED, 1, -1, -1);
    run(&g);
    if (!g.m.c.n_stream) CHECK(seen.high < 1e-5 * fabs(high) + 1e-5, "%s: one-sided leaves %.2e above 0", name, seen.high);
    CHECK(seen.low < -1e-3 || low > -1e-3, "%s: one-sided touches the other side: %.2e, was %.2e", name, seen.low, low);

    d->layer = 1;
    d->length[1] = 3;
    prepare(&g, MODE_ADD, 1, -1, -1);
    CHECK(g.steer.act_first == 1 && g.steer.act_last == 1, "%s: add acts entering its own layer", name);
    run(&g);
    CHECK(distance(g.logits, plain, V) > 0, "%s: add changes nothing", name);
    prepare(&g, MODE_ADD, 1, 0, L - 1);
    seen.low = 0;
    run(&g);
    CHECK(seen.high > high + 1, "%s: adding 3 in every layer raises the component from %.2f to %.2f", name, high, seen.high);
    free(expect);

    // two directions that are far from orthogonal are removed as one plane, in either order
    double *u = r + n;
    random_vector(u, n);
    for (int i = 0; i < n; i++) u[i] = 3 * r[i] + 0.3 * u[i] / sqrt(n);
    double apart = 0;
    for (int order = 0; order < 2; order++) {
        Direction second;
        use(&g, order ? u : r);
        CHECK(direction_single(&second, L, n, order ? r : u, &e), "%s", e.text);
        g.steer.dir[1] = second;
        g.steer.n_dir = 2;
        prepare(&g, MODE_PROJECT, 1, -1, -1);
        double both[2] = {0, 0};
        for (int k = 0; k < 2; k++) { // one vector at a time is looked at
            double unit = 0;
            double *w = malloc(sizeof *w * (size_t)n);
            for (int i = 0; i < n; i++) w[i] = r[k * n + i], unit += w[i] * w[i];
            for (int i = 0; i < n; i++) w[i] /= sqrt(unit);
            seen.r = w;
            run(&g);
            both[k] = seen.worst_cos;
            free(w);
            seen.r = r;
        }
        CHECK(both[0] < 1e-6 && both[1] < 1e-6, "%s: two directions leave |cos| %.2e and %.2e", name, both[0], both[1]);
        if (order) apart = distance(g.logits, projected, V);
        memcpy(projected, g.logits, sizeof *plain * (size_t)V);
    }
    const double changed = distance(projected, plain, V); // 8-bit inputs make small differences larger
    CHECK(apart < 0.1 * changed + 1e-6, "%s: the order of two directions matters: %.2e of %.2e", name, apart, changed);
    free(r);
    free(plain);
    free(projected);
    rig_close(&g);
}

// ---- files ----

static void extra_keys(void *ctx, GgufWriter *w) { gguf_set_string(w, "abliterate.note", ctx, strlen(ctx)); }

static void short_shape(void *ctx, GgufWriter *w) {
    (void)ctx;
    gguf_set_array(w, "abliterate.shape", GGUF_F32, (float[]){1, 1, 1}, 3);
}

// A hand-made file: what is wrong with it is up to the caller.
typedef struct {
    const char *arch, *mode, *hook, *own_mode;
    int n_embd, first, last, n_layer, type;
    float value;
} Made;

static void make(const char *path, const Made *f) {
    GgufWriter *w;
    Err e = {0};
    CHECK(gguf_writer_open(&w, path, &e), "%s", e.text);
    gguf_set_string(w, "general.architecture", f->arch, strlen(f->arch));
    if (f->mode) gguf_set_string(w, "glp.mode", f->mode, strlen(f->mode));
    if (f->hook) gguf_set_string(w, "glp.hook_point", f->hook, strlen(f->hook));
    if (f->own_mode) gguf_set_string(w, "abliterate.mode", f->own_mode, strlen(f->own_mode));
    if (f->n_layer) gguf_set_u32(w, "abliterate.n_layer", (uint32_t)f->n_layer);
    char name[32];
    float *v = calloc((size_t)f->n_embd, sizeof *v);
    for (int l = f->first; l <= f->last; l++) {
        snprintf(name, sizeof name, "direction.%d", l);
        gguf_add_tensor(w, name, f->type, 1, (uint64_t[]){(uint64_t)f->n_embd});
    }
    for (int l = f->first; l <= f->last; l++) {
        v[l % f->n_embd] = f->value;
        CHECK(gguf_writer_data(w, v, (f->type == TYPE_F32 ? sizeof(float) : 2) * (size_t)f->n_embd, &e) && gguf_writer_next(w, &e), "%s", e.text);
        v[l % f->n_embd] = 0;
    }
    CHECK(gguf_writer_close(w, &e), "%s", e.text);
    free(v);
}

// A vector direction.N alone is added to the stream leaving layer N, before which nothing changes; of several streams to each, as
// llama.cpp does it (held against version 0.5.0: logits of random vectors in one layer at a time, NMSE 1e-7 in F32).
typedef struct {
    int layer;
    bool streams; // several
    float *rows;  // [at] what enters layer
    size_t at;
    double before; // sum of |x| of what enters earlier ones
} Entering;

static void keep_entering(void *ctx, const TapSite *t) {
    Entering *k = ctx;
    const size_t n = (size_t)t->n_rows * (size_t)t->n_col;
    if (t->point != (k->streams ? TAP_STREAMS : TAP_RESID_PRE)) return;
    for (size_t i = 0; i < n && t->layer < k->layer; i++) k->before += fabs((double)t->rows[i]);
    if (t->layer == k->layer) memcpy(k->rows + k->at, t->rows, sizeof *t->rows * n), k->at += n;
}

static void test_add(const char *path) {
    Rig g;
    Err e = {0};
    char note[256];
    if (!rig_open(&g, path)) return;
    const char *name = strrchr(path, '/') + 1;
    const int n = g.m.c.n_embd, L = g.m.c.n_layer, S = g.m.c.n_stream ? g.m.c.n_stream : 1;
    const size_t count = (size_t)S * N_TOKEN * (size_t)n;
    float *rows = malloc(sizeof *rows * 2 * count);
    Entering k = {.streams = S > 1};
    CHECK(session_add_tap(&g.s, (Tap){.call = keep_entering, .ctx = &k}, &e), "%s", e.text);
    for (int N = 1; N < L; N += L - 2 > 0 ? L - 2 : 1) { // the first and the last
        double before[2], off = 0;
        make(path_of("cv.gguf"), &(Made){.arch = "controlvector", .n_embd = n, .first = N, .last = N, .value = 2});
        CHECK(steer_load(&g.steer, path_of("cv.gguf"), note, &e) && steer_prepare(&g.steer, &e), "%s", e.text);
        k.layer = N + 1;
        for (int on = 0; on < 2; on++) {
            g.steer.on = on;
            k.rows = rows + on * count;
            k.at = 0;
            k.before = 0;
            run(&g);
            before[on] = k.before;
            CHECK(k.at == count, "%s: %zu values enter layer %d, expected %zu", name, k.at, N + 1, count);
        }
        for (size_t i = 0; i < count; i++) {
            const double want = rows[i] + (double)((int)(i % (size_t)n) == N % n ? 2 : 0);
            off = fmax(off, fabs(rows[count + i] - want) / (fabs(want) + 1));
        }
        CHECK(off < 1e-6 && before[0] == before[1], "%s: direction.%d alone: entering layer %d off by %.2e; before it %.9g, was %.9g", name, N, N + 1, off, before[1], before[0]);
        steer_clear(&g.steer);
    }
    unlink(path_of("cv.gguf"));
    free(rows);
    rig_close(&g);
}

static void test_files(const char *path) {
    Rig g;
    Err e = {0};
    char note[256];
    if (!watch(&g, path)) return;
    const int n = g.m.c.n_embd, L = g.m.c.n_layer;
    double *r = malloc(sizeof *r * (size_t)n);
    random_vector(r, n);
    Direction d, back = {0};
    CHECK(direction_single(&d, L, n, r, &e), "%s", e.text);
    d.layer = 2;
    d.position = -3;
    d.length[2] = 1.5f;
    for (int i = 0; i < tap_n_site(L); i++) d.contrast[i] = (float)i;
    snprintf(d.model, sizeof d.model, "some.gguf");
    model_fingerprint(&g.m, d.fingerprint);
    float shape[512 * N_SHAPE];
    for (int i = 0; i < L * N_SHAPE; i++) shape[i] = (float)uniform();
    CHECK(direction_set_shape(&d, shape, &e), "%s", e.text);
    d.mode = MODE_WRITE;
    CHECK(direction_save(&d, path_of("d.gguf"), NULL, NULL, &e) && direction_load(&back, path_of("d.gguf"), &g.m, &e), "%s", e.text);
    CHECK(back.mode == MODE_WRITE && back.shape && !memcmp(back.shape, shape, sizeof *shape * (size_t)L * N_SHAPE), "strengths by layer and part come back");
    direction_free(&back);
    shape[L] = NAN;
    CHECK(direction_set_shape(&d, shape, &e) && direction_save(&d, path_of("d.gguf"), NULL, NULL, &e), "%s", e.text);
    CHECK(!direction_load(&back, path_of("d.gguf"), &g.m, &e) && strstr(e.text, "abliterate.shape holds nan"), "a strength that is no number: %s", e.text);
    CHECK(direction_set_shape(&d, NULL, &e), "%s", e.text);
    d.mode = MODE_PROJECT;
    CHECK(direction_save(&d, path_of("d.gguf"), short_shape, NULL, &e), "%s", e.text);
    CHECK(!direction_load(&back, path_of("d.gguf"), &g.m, &e) && strstr(e.text, "array of"), "a shape of other layers: %s", e.text);
    CHECK(direction_save(&d, path_of("d.gguf"), extra_keys, (void *)"hello", &e), "%s", e.text);
    CHECK(direction_load(&back, path_of("d.gguf"), &g.m, &e), "%s", e.text);
    CHECK(back.single && back.layer == 2 && back.position == -3 && back.mode == MODE_PROJECT && back.strength == 1 && back.length[2] == 1.5f && back.length[1] == 0,
          "what was saved comes back");
    double off = 0;
    for (int i = 0; i < n; i++) off = fmax(off, fabs((double)back.row[i] - d.row[i])); // loading makes the length 1 once more
    CHECK(off < 1e-7 && !memcmp(back.contrast, d.contrast, sizeof(float) * (size_t)tap_n_site(L)), "the vector comes back");
    CHECK(!strcmp(back.model, "some.gguf") && !strcmp(back.fingerprint, d.fingerprint), "the model's name and fingerprint come back");
    direction_free(&back);
    CHECK(steer_load(&g.steer, path_of("d.gguf"), note, &e) && !*note, "%s%s", e.text, note);
    steer_clear(&g.steer);
    d.fingerprint[0] = d.fingerprint[0] == '0' ? '1' : '0';
    CHECK(direction_save(&d, path_of("d.gguf"), NULL, NULL, &e), "%s", e.text);
    CHECK(steer_load(&g.steer, path_of("d.gguf"), note, &e) && strstr(note, "other weights"), "a direction of other weights gets a note: '%s' %s", note, e.text);
    steer_clear(&g.steer);
    direction_free(&d);
    CHECK(!direction_single(&d, L, n, (double[8192]){0}, &e), "a zero vector is no direction");
    CHECK(!direction_single(&d, L, 1, (double[]){NAN}, &e), "nor is NaN");

    // Only direction.3 is there: the stream leaving layer 3 is what a file of others means, and no other
    make(path_of("one.gguf"), &(Made){.arch = "controlvector", .mode = "project", .n_embd = n, .first = 3, .last = 3, .value = 2});
    if (L > 4) {
        CHECK(steer_load(&g.steer, path_of("one.gguf"), note, &e) && steer_prepare(&g.steer, &e), "%s", e.text);
        for (int l = 0; l <= L; l++) CHECK(g.steer.n_vec[l] == (l == 4), "layer %d has %d vectors", l, g.steer.n_vec[l]);
        steer_clear(&g.steer);
    }
    // A plain control vector is added, with its own length
    make(path_of("cv.gguf"), &(Made){.arch = "controlvector", .n_embd = n, .first = 1, .last = L - 1, .value = 2});
    CHECK(steer_load(&g.steer, path_of("cv.gguf"), note, &e) && steer_prepare(&g.steer, &e) && g.steer.mode == MODE_ADD, "%s", e.text);
    CHECK(g.steer.n_dir == 1 && g.steer.amount[2] == 2 && g.steer.amount[0] == 0 && g.steer.act_first == 0 && g.steer.act_last == L - 1, "a control vector acts where it has vectors");
    make(path_of("cv.gguf"), &(Made){.arch = "controlvector", .n_embd = n, .first = L - 1, .last = L - 1, .value = 2});
    float *plain = malloc(sizeof *plain * (size_t)g.m.c.n_vocab);
    g.steer.on = false;
    run(&g);
    memcpy(plain, g.logits, sizeof *plain * (size_t)g.m.c.n_vocab);
    g.steer.on = true;
    steer_clear(&g.steer);
    CHECK(steer_load(&g.steer, path_of("cv.gguf"), note, &e) && steer_prepare(&g.steer, &e), "%s", e.text);
    run(&g);
    CHECK(distance(g.logits, plain, g.m.c.n_vocab) > 0, "the vector of the last layer is added to what leaves it");
    free(plain);
    g.steer.mode = MODE_AFFINE;
    CHECK(!steer_prepare(&g.steer, &e) && strstr(e.text, "contrast"), "affine without means is refused: %s", e.text);
    steer_clear(&g.steer);

    static const struct {
        const char *why, *says;
        Made f;
    } BAD[] = {
        {"another architecture", "expected 'controlvector'", {.arch = "llama", .first = 1, .last = 1, .value = 1}},
        {"an unknown mode", "expected project or add", {.arch = "controlvector", .mode = "twist", .first = 1, .last = 1, .value = 1}},
        {"an unknown own mode", "abliterate.mode", {.arch = "controlvector", .own_mode = "twist", .first = 1, .last = 1, .value = 1}},
        {"another hook", "hook_point", {.arch = "controlvector", .mode = "project", .hook = "ffn_out_pre_residual", .first = 1, .last = 1, .value = 1}},
        {"direction.0", "direction.0", {.arch = "controlvector", .first = 0, .last = 1, .value = 1}},
        {"a layer too many", "layers 0 to", {.arch = "controlvector", .first = 1, .last = 999, .value = 1}},
        {"another number of layers", "999 layers", {.arch = "controlvector", .first = 1, .last = 1, .n_layer = 999, .value = 1}},
        {"another width", "the residual stream", {.arch = "controlvector", .n_embd = 31, .first = 1, .last = 1, .value = 1}},
        {"another type", "expected F32", {.arch = "controlvector", .first = 1, .last = 1, .type = TYPE_F16, .value = 1}},
        {"NaN", "not finite", {.arch = "controlvector", .first = 1, .last = 1, .value = NAN}},
        {"nothing in it", "no direction", {.arch = "controlvector", .first = 1, .last = 1, .value = 0}},
    };
    for (size_t i = 0; i < sizeof BAD / sizeof *BAD; i++) {
        Made f = BAD[i].f;
        if (!f.n_embd) f.n_embd = n;
        make(path_of("bad.gguf"), &f);
        CHECK(!direction_load(&back, path_of("bad.gguf"), &g.m, &e) && strstr(e.text, BAD[i].says), "%s: %s", BAD[i].why, e.text);
    }
    // One changed byte of a vector is noticed
    FILE *file = fopen(path_of("d.gguf"), "r+b");
    CHECK(file && !fseek(file, -5, SEEK_END) && fputc(0x11, file) == 0x11 && !fclose(file), "cannot damage the file");
    CHECK(!direction_load(&back, path_of("d.gguf"), &g.m, &e) && strstr(e.text, "damaged"), "a damaged file: %s", e.text);
    CHECK(!direction_load(&back, path, &g.m, &e) && !direction_load(&back, path_of("none.gguf"), &g.m, &e), "a model, or nothing, is no direction");

    static const char *const NAMES[] = {"d.gguf", "one.gguf", "cv.gguf", "bad.gguf"};
    for (int i = 0; i < 4; i++) unlink(path_of(NAMES[i]));
    free(r);
    rig_close(&g);
}

static void test_layers(void) {
    static const struct {
        const char *text;
        int first, last; // -2: refused
    } CASES[] = {{"8-20", 8, 20}, {"8", 8, 8}, {"8-", 8, 31}, {"-20", 0, 20}, {"all", 0, 31}, {"0-31", 0, 31}, {"31", 31, 31}, {"32", -2, 0}, {"0-32", -2, 0},
                 {"20-8", -2, 0}, {"", -2, 0}, {"-", -2, 0}, {"a", -2, 0}, {"1-2x", -2, 0}, {"--3", -2, 0}, {"99999999999999999999", -2, 0}, {"all3", -2, 0}};
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        int first = -5, last = -5;
        Err e = {0};
        const bool ok = steer_parse_layers(CASES[i].text, 32, &first, &last, &e);
        CHECK(ok == (CASES[i].first != -2) && (!ok || (first == CASES[i].first && last == CASES[i].last)), "layers '%s': %d, %d-%d", CASES[i].text, ok, first, last);
        CHECK(ok || strstr(e.text, "0-31"), "layers '%s': %s", CASES[i].text, e.text);
    }
}

static void test_sha256(void) { // FIPS 180-4 examples; a million a's in odd pieces
    char hex[65];
    sha256_of("", 0, hex);
    CHECK(!strcmp(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"), "empty: %s", hex);
    sha256_of("abc", 3, hex);
    CHECK(!strcmp(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"), "abc: %s", hex);
    sha256_of("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    CHECK(!strcmp(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1"), "two blocks: %s", hex);
    Sha256 s;
    char a[977];
    memset(a, 'a', sizeof a);
    sha256_start(&s);
    for (int left = 1000000; left > 0; left -= (int)sizeof a) sha256_add(&s, a, left < (int)sizeof a ? (size_t)left : sizeof a);
    sha256_end(&s, hex);
    CHECK(!strcmp(hex, "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0"), "a million: %s", hex);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (!mkdtemp(folder)) return 1;
    test_sha256();
    test_layers();
    static const char *const FILES[] = {"gemma1-Q4_K_M", "gemma2-Q4_K_M", "gemma3-Q4_K_M", "gemma3n-Q8_0", "gemma4-dense-Q4_K_M", "gemma4-e-Q4_K_M",
                                        "gemma4-moe-Q4_K_M", "llama-moe-Q4_K_M", "llama2-tied-Q4_K_M", "llama3-F16", "llama3-Q4_K_M", "llama3-Q8_0"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char path[128];
        snprintf(path, sizeof path, "reference/%s.gguf", FILES[i]);
        if (!shared_path(path)) {
            test_skip(path);
            continue;
        }
        test_modes(shared_path(path));
        test_add(shared_path(path));
    }
    test_modes("abliterate/demo/llama-Q8_0.gguf");
    test_add("abliterate/demo/llama-Q8_0.gguf");
    test_files("abliterate/demo/llama-Q8_0.gguf");
    if (shared_path("reference/gemma3-Q4_K_M.gguf")) test_files(shared_path("reference/gemma3-Q4_K_M.gguf"));
    rmdir(folder);
    return test_end();
}
