// test_look.c: verify and diff on edits whose direction is known: kappa and leak are what a plain sum says, diff finds the direction
// again through the rounding of every type and says how it was removed, and where nothing is in common it says so. map: what all
// parts write is the stream, through Gemma 4's output scales, too; kappa of every expert; the fewest parts are the fewest.
// test_look -v prints the figures.
#include "map.h"
#include "plant.h"
#include "verify.h"

#define DEMO "abliterate/demo/"

static bool verbose;
static char folder[] = "/tmp/test_look.XXXXXX", file[64];

// ---- verify ----

// The same figures by the definition, one value at a time.
static void naive(const Matrix *m, const float *gain, const double *r, double *along, double *norm2, double *take2) {
    float *x = malloc(sizeof *x * (size_t)m->n_col);
    double *c = calloc((size_t)m->n_col, sizeof *c);
    *along = *norm2 = *take2 = 0;
    for (int s = 0; s < m->n_slice; s++) {
        for (int j = 0; j < m->n_col; j++) c[j] = 0;
        for (int i = 0; i < m->n_row; i++) {
            matrix_read(m, s, i, 0, m->n_col, x);
            for (int j = 0; j < m->n_col; j++) c[j] += (gain ? gain[i] : 1) * r[i] * x[j], *norm2 += (double)x[j] * x[j];
        }
        for (int j = 0; j < m->n_col; j++) *along += c[j] * c[j];
    }
    for (int i = 0; i < m->n_row; i++) *take2 += pow((gain ? gain[i] : 1) * r[i], 2);
    free(x);
    free(c);
}

static void check_verify(const char *name, const char *path, const double *r, int n, How how, double most_leak) {
    Pair p;
    Verify v;
    Direction d;
    Err e = {0};
    if (!direction_single(&d, 4, n, r, &e)) return;
    const bool ok = pair_open(&p, path, file, 2, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (!ok) return;
    d.n_layer = p.a.c.n_layer;
    CHECK(verify_measure(&v, &p, &d, 1, &e), "%s: %s", name, e.text);
    CHECK(v.n == p.writers.n && v.n + p.n_same == p.n_tensor && !p.n_key, "%s: %d of %d tensors differ, %d writers, %d keys", name, v.n, p.n_tensor, p.writers.n, p.n_key);
    for (int i = 0; i < v.n; i++) {
        const VerifyRow *row = &v.row[i];
        double a, b, norm2, take2, other;
        double unit[4096];
        for (int k = 0; k < n; k++) unit[k] = d.row[k];
        naive(&row->t->ma, p.writers.of[row->t->writer].gain, unit, &a, &norm2, &take2);
        naive(&row->t->mb, p.writers.of[row->t->writer].gain, unit, &b, &other, &take2);
        const double kappa = sqrt(n) * sqrt(a) / (sqrt(take2) * sqrt(norm2));
        CHECK(fabs(row->leak - sqrt(b / a)) < 1e-9 && fabs(row->kappa - kappa) < 1e-9 * kappa, "%s: %s: leak %.12g, expected %.12g; kappa %.12g, expected %.12g", name,
              row->t->a->name_z, row->leak, sqrt(b / a), row->kappa, kappa);
        CHECK(fabs(row->sum.a2 - norm2) < 1e-9 * norm2 && fabs(row->sum.b2 - other) < 1e-9 * other, "%s: %s: norms", name, row->t->a->name_z);
        if (how != HOW_PLAIN || !p.writers.of[row->t->writer].gain) CHECK(row->leak < most_leak, "%s: %s: leak %g", name, row->t->a->name_z, row->leak);
    }
    if (verbose) printf("%-34s largest leak %.3g (%s)\n", name, v.worst, v.worst_name);
    verify_free(&v);
    pair_close(&p);
    direction_free(&d);
}

// ---- diff ----

static void check_diff(const char *name, const char *path, const double *r, int n, How how, double least) {
    Pair p;
    static Diff d, again;
    Err e = {0};
    const bool ok = pair_open(&p, path, file, 2, &e) && diff_measure(&d, &p, 1, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (ok) {
        const double found = fabs(cosine(d.r[d.how], r, n));
        if (verbose) {
            printf("%-34s %-8s cos %.5f  fits %s;", name, how_name(how), found, how_name(d.how));
            for (int j = 0; j < d.n_how; j++) printf(" %s %.3f %.3f", how_name((How)j), d.cos[j], d.right[j]);
            printf("\n");
        }
        CHECK(found > least, "%s: the direction found has cosine %.5f with the planted one, expected > %g", name, found, least);
        CHECK(d.cos[d.how] > 0.95 && d.right[d.how] > 0.96, "%s: mean |cos| %.4f, right side %.4f", name, d.cos[d.how], d.right[d.how]);
        CHECK(d.common && d.n_writes == p.writers.n, "%s: common %d, %d of %d writers", name, d.common, d.n_writes, p.writers.n);
        CHECK(d.n_how == 1 || d.how == how, "%s: taken for a %s edit, it is %s", name, how_name(d.how), how_name(how));
        for (int i = 0; i < d.n; i++)
            CHECK(d.row[i].s.share[0] <= 1 + 1e-6 && d.row[i].s.share[0] >= d.row[i].s.share[1] && d.row[i].explained[d.how] <= d.row[i].s.share[0] + 1e-3, "%s: shares of %s",
                  name, d.row[i].t->a->name_z);
        CHECK(diff_measure(&again, &p, 1, &e) && !memcmp(again.r[d.how], d.r[d.how], sizeof(double) * (size_t)n), "%s: not the same twice", name);
        diff_free(&again);
    }
    diff_free(&d);
    pair_close(&p);
}

// A rounding and nothing else: no direction.
static void check_none(const char *name, const char *path, const char *other) {
    Pair p;
    Diff d;
    Err e = {0};
    Direction out;
    const bool ok = pair_open(&p, path, other, 1, &e) && diff_measure(&d, &p, 1, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (ok) {
        if (verbose) printf("%-34s nothing planted: |cos| %.3f, cos^2 %.4f (by chance %.4f), right %.4f\n", name, d.cos[d.how], d.square[d.how], d.by_chance, d.right[d.how]);
        CHECK(!d.common && !diff_direction(&d, &out, &e), "%s: a common direction where none is: cos^2 %.4f", name, d.square[d.how]);
    }
    diff_free(&d);
    pair_close(&p);
}

static int width(const char *path) {
    Model m;
    Err e;
    if (!model_open(&m, path, &e)) return 0;
    const int n = m.c.n_embd;
    model_close(&m);
    return n;
}

static void check_file(const char *name, const char *path, const char *parent, bool gains, double least, double least_plain) {
    static double r[8192];
    const int n = width(path);
    Err e = {0};
    CHECK(n > 0, "%s: does not open", path);
    if (!n) return;
    for (int how = 0; how < (gains ? N_HOW : 1); how++) {
        char title[96];
        random_unit(r, n);
        snprintf(title, sizeof title, "%s %s%s", name, how_name((How)how), parent ? ", from F16" : "");
        CHECK(plant(path, parent, file, r, (How)how, 1, &e), "%s: %s", title, e.text);
        check_verify(title, path, r, n, (How)how, 1);
        check_diff(title, path, r, n, (How)how, how == HOW_PLAIN ? least_plain : least);
        unlink(file);
    }
}

// ---- map ----

// What the experts of each layer write of r at the last token of prompt 0, element by element through the norms.
typedef struct {
    const Lab *lab;
    const double *r;
    int last;         // position
    double row[8192]; // the experts' branch behind its own norm
    double adds[64], all[64];
} Through;

static double rms_of(const float *x, int n, float eps) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += (double)x[i] * (double)x[i];
    return sqrt(sum / n + (double)eps);
}

static void through_norms(void *ctx, const TapSite *t) {
    Through *g = ctx;
    const Layer *w = &g->lab->m.layers[t->layer < g->lab->m.c.n_layer ? t->layer : 0];
    const float eps = g->lab->m.c.norm_eps, *own = w->post_ffw_norm_2 ? w->post_ffw_norm_2->host : NULL, *both = w->post_ffw_norm ? w->post_ffw_norm->host : NULL;
    for (const Span *s = t->span; s < t->span + t->n_span; s++) {
        const int n = t->n_col, i = g->last - s->pos;
        if (s->seq || i < 0 || i >= s->n) continue;
        const float *x = t->rows + (int64_t)(s->row + i) * n;
        if (t->point == TAP_EXPERTS)
            for (int k = 0; k < n; k++) g->row[k] = own ? (double)own[k] * (double)x[k] / rms_of(x, n, eps) : (double)x[k];
        if (t->point == TAP_MLP_SUM)
            for (int k = 0; k < n; k++) g->adds[t->layer] += g->r[k] * (both ? (double)both[k] * g->row[k] / rms_of(x, n, eps) : g->row[k]);
        if (t->point == TAP_MLP_OUT)
            for (int k = 0; k < n; k++) g->all[t->layer] += g->r[k] * (double)x[k];
    }
}

// Experts add up to what their layer writes; with a dense branch beside them, both.
static void check_experts(const char *name, const Lab *lab, const Contributions *c, const Through *g) {
    double worst = 0, beside = 0, adds = 0, square = 0;
    int64_t chosen = 0;
    if (!c->n_expert) return;
    for (int s = 0; s < c->n_sample; s++)
        for (int l = 0; l < c->n_layer; l++) {
            double sum = 0;
            for (int e = 0; e < c->n_expert; e++) sum += c->expert[((int64_t)s * c->n_layer + l) * c->n_expert + e];
            const double all = c->of[(int64_t)s * c->n_site + site_of(l, SHAPE_FFN)];
            adds += fabs(sum);
            square += all * all;
            beside = fmax(beside, fabs(all - sum));
            if (!lab->m.layers[l].ffn_gate) worst = fmax(worst, fabs(all - sum));
        }
    for (int k = 0; k < c->n_layer * c->n_expert; k++) chosen += c->chosen[k];
    const double usual = sqrt(square / c->n_sample / c->n_layer);
    for (int l = 0; l < c->n_layer; l++) { // sample 0, on the scale of the stream inside the layer
        double sum = 0, scale = 1;
        for (int e = 0; e < c->n_expert; e++) sum += c->expert[(int64_t)l * c->n_expert + e];
        for (int k = l; k < c->n_layer; k++) scale *= lab->m.layers[k].output_scale != 0 ? lab->m.layers[k].output_scale : 1;
        CHECK(fabs(sum - scale * g->adds[l]) < 1e-5 * (fabs(scale * g->all[l]) + usual), "%s: the experts of layer %d add %g, behind their norms %g", name, l, sum, scale * g->adds[l]);
        CHECK(fabs(contributions_beside(c, 0, l) - scale * (g->all[l] - g->adds[l])) < 1e-5 * (fabs(scale * g->all[l]) + usual), "%s: beside them %g, expected %g", name,
              contributions_beside(c, 0, l), scale * (g->all[l] - g->adds[l]));
    }
    if (verbose) printf("%-34s experts miss what they come to together by %.1e of r.x, the layer's own by %.1e; beside them up to %.2g\n", name, c->expert_error, worst / usual, beside);
    CHECK(c->expert_error < 1e-6 && worst < 1e-6 * usual && adds > 0, "%s: the sum of the experts misses by %.1e and %.1e", name, c->expert_error, worst / usual);
    CHECK(chosen == (int64_t)c->n_sample * c->n_layer * lab->m.layers[0].d.n_expert_used, "%s: %lld experts chosen", name, (long long)chosen);
    CHECK(!lab->m.layers[0].ffn_gate == !(beside > 0.01 * usual), "%s: beside the experts %g", name, beside);
}

// A lab without a tokenizer, for models that have none: fed with ids.
static void check_map(const char *name, const char *path) {
    static Lab lab;
    static Map m;
    static double r[8192];
    Err e = {0};
    Contributions c = {0};
    Ids ids[2] = {{0}};
    const PromptSet set = {.ids = ids, .n = 2, .n_suffix = 4};
    lab = (Lab){.o = {.model = path, .place = {.backend = "cpu", .threads = 2}, .n_ctx = 64, .n_seq = 2, .quiet = true}};
    bool ok = model_open(&lab.m, path, &e);
    const int n = ok ? lab.m.c.n_embd : 0;
    lab.row = malloc(sizeof(float) * (size_t)n + 1);
    steer_open(&lab.steer, &lab.m, &lab.b);
    for (int i = 0; i < 2; i++)
        for (int k = 0; k < 30 + 7 * i; k++) ok = ok && ids_push(&ids[i], random_below(lab.m.c.n_vocab));
    random_unit(r, n);
    static Through through;
    through = (Through){.lab = &lab, .r = r, .last = ids[0].n - 1};
    ok = ok && lab_ready(&lab, 40, 1, &e) && session_add_tap(&lab.s, (Tap){.call = through_norms, .ctx = &through}, &e) && contributions_measure(&c, &lab, &set, 4, r, NULL, &e);
    CHECK(ok, "%s: %s", name, e.text);
    double scale = 1;
    for (int l = 0; ok && l < lab.m.c.n_layer; l++) scale *= lab.m.layers[l].output_scale != 0 ? lab.m.layers[l].output_scale : 1;
    if (verbose) printf("%-34s sum of %d parts misses r.x by %.1e; product of the output scales %.3g\n", name, c.n_site, c.error, scale);
    CHECK(ok && c.error < 1e-4, "%s: the sum of the parts misses the stream by %.1e", name, c.error);
    CHECK(ok && c.stream[0] != 0 && c.stream[7] != 0 && c.of[7 * c.n_site] != 0, "%s: every sample is filled", name);
    check_experts(name, &lab, &c, &through);
    contributions_free(&c);

    Direction d;
    const MapOptions o = {.lab = lab.o, .direction = file};
    ok = direction_single(&d, lab.m.c.n_layer, n, r, &e) && direction_save(&d, file, NULL, NULL, &e) && map_measure(&m, &lab, &o, &e);
    CHECK(ok, "%s: %s", name, e.text);
    for (int i = 0; ok && i < m.writers.n; i++) {
        const Tensor *w = m.writers.of[i].w;
        double unit[8192], along = 0, norm2 = 0, take2 = 0;
        for (int k = 0; k < n; k++) unit[k] = d.row[k];
        for (int s = 0; s < w->n_slice; s++) {
            const Matrix one = {(int)w->type, tensor_row(w, s, 0), w->n_row, w->n_col, 1};
            double a, b;
            naive(&one, m.writers.of[i].gain, unit, &a, &b, &take2);
            along += a;
            norm2 += b;
            const double kappa = sqrt(n * a / (take2 * b));
            CHECK(!m.expert[i] || fabs(m.expert[i][s] - kappa) < 1e-9 * kappa, "%s: %s expert %d: kappa %.12g, expected %.12g", name, w->name, s, m.expert[i][s], kappa);
        }
        CHECK(fabs(m.kappa[i] - sqrt(n * along / (take2 * norm2))) < 1e-9 * m.kappa[i] && m.kappa[i] > 0.3 && m.kappa[i] < 3, "%s: %s: kappa %g", name, w->name, m.kappa[i]);
    }
    map_free(&m);
    direction_free(&d);
    for (int i = 0; i < 2; i++) ids_free(&ids[i]);
    lab_close(&lab);
    unlink(file);
}

// Two layers; attention of layer 1 writes 10, FFN of layer 0 writes 1 and of layer 1 takes 1 away: one part is enough, the others cancel.
static void check_fewest(void) {
    float of[2][7] = {{5, 0, 1, 0, 10, -1, 0}, {5, 0.1f, 1, 0, 11, -1, 0}};
    double stream[2] = {0};
    int order[7], first, last;
    double left[7];
    const Contributions c = {.n_site = 7, .n_prompt = 2, .n_pos = 1, .n_sample = 2, .of = &of[0][0], .stream = stream};
    const int n = contributions_fewest(&c, 0.05, order, left);
    CHECK(n == 1 && order[0] == site_of(1, SHAPE_ATTN) && left[0] < 0.05, "the fewest: %d, first %d, left %g", n, order[0], left[0]);
    // Two that matter only together, and a third that is not missed.
    float pair[2][7] = {{0, 10, -10, 0, 0, 0, 0}, {0, 0.5f, 0.5f, 0, 0.04f, 0, 0}};
    const Contributions together = {.n_site = 7, .n_prompt = 2, .n_pos = 1, .n_sample = 2, .of = &pair[0][0], .stream = stream};
    const int two = contributions_fewest(&together, 0.05, order, left);
    CHECK(two == 2 && order[0] + order[1] == site_of(0, SHAPE_ATTN) + site_of(0, SHAPE_FFN) && left[1] < 0.05, "the fewest: %d, left %g", two, left[1]);
    contributions_range(&c, 0.2, &first, &last);
    CHECK(first == 1 && last == 1, "the range of layers is %d-%d", first, last);
    Contributions copy = c;
    float zero[2][7];
    memcpy(zero, of, sizeof zero);
    copy.of = &zero[0][0];
    contributions_centre(&copy, &c);
    // An expert that writes all that its layer does: of single matrices it alone, whatever the others take from each other.
    float layer[2][4] = {{5, 0, 8, 0}, {5, 0, 9, 0}}, each[2][3] = {{8, 1, -1}, {9, 1, -1}};
    Writer part = {.layer = 0, .part = PART_EXPERTS};
    const Contributions experts = {.n_site = 4, .n_prompt = 2, .n_pos = 1, .n_sample = 2, .of = &layer[0][0], .stream = stream, .n_layer = 1, .n_expert = 3, .expert = &each[0][0]};
    const int single = contributions_fewest_tensors(&experts, &(Writers){.of = &part, .n = 1}, 0.05, order, left);
    CHECK(single == 1 && order[0] == expert_tensor(&experts, 0, 0) && left[0] < 1e-6, "the fewest matrices: %d, first %d, left %g", single, order[0], left[0]);
    CHECK(zero[0][4] == -0.5f && zero[1][4] == 0.5f && zero[0][0] == 0, "less the mean: %g %g %g", (double)zero[0][4], (double)zero[1][4], (double)zero[0][0]);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (!mkdtemp(folder)) return 1;
    snprintf(file, sizeof file, "%s/b.gguf", folder);
    const bool quick = getenv("SANITIZED") != NULL; // ten times slower
    check_file("llama-F16", DEMO "llama-F16.gguf", NULL, false, 0.99, 0.99);
    check_file("llama-Q8_0", DEMO "llama-Q8_0.gguf", NULL, false, 0.99, 0.99);
    check_file("llama-Q4_K_M", DEMO "llama-Q4_K_M.gguf", NULL, false, 0.99, 0.99);
    if (!quick) check_file("llama-Q4_K_M", DEMO "llama-Q4_K_M.gguf", DEMO "llama-F16.gguf", false, 0.99, 0.99);
    check_file("gemma-F16", DEMO "gemma-F16.gguf", NULL, true, 0.99, 0.99);
    if (!quick) check_file("gemma-Q4_K_M", DEMO "gemma-Q4_K_M.gguf", NULL, true, 0.99, 0.99);
    if (!quick) check_file("gemma-Q4_K_M", DEMO "gemma-Q4_K_M.gguf", DEMO "gemma-F16.gguf", true, 0.99, 0.99);
    static const char *const REFERENCE[] = {"llama3-F16", "llama3-Q4_K_M", "gemma3-Q4_K_M", "gemma4-e-Q4_K_M", "gemma4-moe-Q4_K_M", "llama-moe-Q4_K_M"};
    for (int i = 0; i < 6; i += quick ? 2 : 1) {
        char path[128];
        snprintf(path, sizeof path, "reference/%s.gguf", REFERENCE[i]);
        if (!shared_path(path)) test_skip(path);
        else check_file(REFERENCE[i], shared_path(path), NULL, !strncmp(REFERENCE[i], "gemma", 5), 0.99, 0.99);
    }
    check_none("gemma-F16 rounded to Q8_0", DEMO "gemma-F16.gguf", DEMO "gemma-Q8_0.gguf");
    check_none("llama-F16 rounded to Q4_K_M", DEMO "llama-F16.gguf", DEMO "llama-Q4_K_M.gguf");
    static const char *const MAPS[] = {"llama3-F16", "gemma2-Q4_K_M", "gemma4-dense-Q4_K_M", "gemma4-e-Q4_K_M", "gemma4-moe-Q4_K_M", "llama-moe-Q4_K_M"};
    for (int i = 0; i < 6; i++) {
        char path[128];
        snprintf(path, sizeof path, "reference/%s.gguf", MAPS[i]);
        if (!shared_path(path)) test_skip(path);
        else check_map(MAPS[i], shared_path(path));
    }
    check_map("demo gemma-Q8_0", DEMO "gemma-Q8_0.gguf");
    check_fewest();
    rmdir(folder);
    return test_end();
}
