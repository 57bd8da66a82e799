// test_search.c: the search for the best edit on the demo models: it beats the fixed edit of all layers within 60 trials, does the
// same again for the same seed whatever the threads, goes on where it was stopped, and writes what it measured.
#include <math.h>

#include "search.h"
#include "select.h"
#include "test.h"

#define DEMO "abliterate/demo/"

static bool verbose;
static char folder[] = "/tmp/test_search.XXXXXX";

static const char *path_of(const char *name) { return file_in(folder, name); }

static SearchOptions options(const char *model, const char *direction) {
    return (SearchOptions){.lab = {.model = model, .place = {.backend = "cpu", .threads = 2}, .n_seq = 16, .quiet = true}, .direction = direction, .target = DEMO "magic.txt",
                           .contrast = DEMO "crafts.txt", .trials = 60, .train = -1, .check = -1, .seed = 1, .pick = -1};
}

static void keep_openers(void *ctx, GgufWriter *w) {
    const Openers *o = ctx;
    int32_t id[256];
    for (int i = 0; i < o->n; i++) id[i] = o->id[i];
    gguf_set_array(w, "abliterate.openers", GGUF_I32, id, (uint64_t)o->n);
}

// The direction as demo.sh extracts it, into `one`, and with every layer's own vector into `each`.
static bool extract(const char *model, const char *one, const char *each) {
    ExtractOptions o = {.lab = options(model, NULL).lab, .target = DEMO "magic.txt", .contrast = DEMO "crafts.txt", .positions = 16, .train = -1, .check = -1, .seed = 1,
                        .max_kl = 0.1, .max_layer = 0.8, .n_control = 1};
    if (getenv("SANITIZED")) o.train = 16, o.check = 6; // ten times slower
    static Lab lab;
    static Extraction x;
    static Selection s;
    Direction d = {0};
    Err e = {0};
    bool ok = lab_open(&lab, &o.lab, &e) && extraction_open(&x, &lab, &o, &e) && extraction_openers(&x, &e) && extraction_means(&x, &e) && selection_make(&s, &x, &e);
    for (int i = 0; ok && i < 2; i++) {
        o.per_layer = i;
        ok = selection_direction(&s, &x, &d, &e) && direction_save(&d, i ? each : one, keep_openers, &x.openers, &e);
        direction_free(&d);
    }
    CHECK(ok, "%s: %s", model, e.text);
    selection_free(&s);
    extraction_close(&x);
    lab_close(&lab);
    return ok;
}

// A whole search; the trials stay in s, which search_close takes.
static bool search(Search *s, Lab *lab, const SearchOptions *o, Err *e) { return lab_open(lab, &o->lab, e) && search_open(s, lab, o, e) && search_run(s, e); }

static bool same_trial(const Trial *a, const Trial *b) { return !memcmp(a->u, b->u, sizeof a->u) && a->score == b->score && a->kl == b->kl; }

static void test_kernel(void) {
    const Kernel k = {.centre = 10, .width = 4, .peak = 1.2, .floor = 0.4};
    for (int l = 0; l < 20; l++) {
        const int away = abs(l - 10);
        const double expect = away <= 2 ? 1.2 : away >= 4 ? 0.4 : 0.8;
        CHECK(fabs(kernel_at(&k, l) - expect) < 1e-12, "layer %d: strength %.3f, expected %.3f", l, kernel_at(&k, l), expect);
    }
    const Kernel flat = {.centre = 1, .width = 0.5, .peak = 0.7, .floor = 0.7};
    for (int l = 0; l < 5; l++) CHECK(kernel_at(&flat, l) == 0.7, "a flat kernel is %.17g in layer %d", kernel_at(&flat, l), l);
}

// What the search says of trial k, measured by hand with the direction as it is saved and loaded.
static void check_saved(Search *s, Lab *lab, int k) {
    Direction d = {0}, back = {0};
    Err e = {0};
    First now[2] = {{0}, {0}};
    const int L = lab->m.c.n_layer;
    CHECK(search_direction(s, k, &d, &e) && direction_save(&d, path_of("best.gguf"), NULL, NULL, &e) && direction_load(&back, path_of("best.gguf"), &lab->m, &e), "%s", e.text);
    CHECK(d.mode == MODE_WRITE && back.mode == MODE_WRITE && back.strength == 1 && back.shape && !memcmp(back.shape, d.shape, sizeof(float) * (size_t)L * N_SHAPE),
          "trial %d: mode and strengths come back", k);
    for (int i = 0; i < L * N_SHAPE; i++)
        if (k == 0) CHECK(d.shape[i] == (i % N_SHAPE < s->n_part), "the fixed edit has strength %.9g in layer %d, part %d", (double)d.shape[i], i / N_SHAPE, i % N_SHAPE);
        else CHECK(d.shape[i] >= 0 && d.shape[i] <= 1.5f, "trial %d has strength %g", k, (double)d.shape[i]);
    char note[256];
    steer_clear(&lab->steer);
    lab->steer.first = -1;
    bool ok = steer_load(&lab->steer, path_of("best.gguf"), note, &e) && steer_prepare(&lab->steer, &e);
    lab->steer.on = true;
    for (int side = 0; ok && side < 2; side++)
        ok = first_open(&now[side], lab, s->set[side].n, true, false, &e) && first_read(&now[side], lab, &s->set[side], &s->openers, s->base[side].logits, NULL, &e);
    lab->steer.on = false;
    CHECK(ok, "%s", e.text);
    if (ok) {
        const double score = mean_of(now[TARGET].score, now[TARGET].n), kl = mean_of(now[CONTRAST].kl, now[CONTRAST].n);
        // loading makes the vector's length 1 once more: a last digit
        CHECK(fabs(score - s->trial[k].score) < 0.02 && fabs(kl - s->trial[k].kl) < 0.02 * kl, "trial %d: score %.4f KL %.4g, measured by hand %.4f %.4g", k, s->trial[k].score,
              s->trial[k].kl, score, kl);
    }
    for (int side = 0; side < 2; side++) first_close(&now[side]);
    direction_free(&d);
    direction_free(&back);
    unlink(path_of("best.gguf"));
}

static void test_model(const char *name, bool whole) {
    static Lab lab, lab2;
    static Search s, again;
    Err e = {0};
    char model[128];
    snprintf(model, sizeof model, DEMO "%s.gguf", name);
    const bool slow = getenv("SANITIZED");
    if (!extract(model, path_of("one.gguf"), path_of("each.gguf"))) return;

    SearchOptions o = options(model, path_of("one.gguf"));
    char one[256], each[256], state[256];
    snprintf(one, sizeof one, "%s", path_of("one.gguf"));
    snprintf(each, sizeof each, "%s", path_of("each.gguf"));
    snprintf(state, sizeof state, "%s", path_of("state.gguf"));
    o.direction = one;
    if (slow) o.trials = 27, o.train = 4, o.check = 2;
    if (!search(&s, &lab, &o, &e)) {
        CHECK(false, "%s: %s", name, e.text);
        return;
    }
    const Trial *fixed = &s.trial[0], *best = &s.trial[s.chosen];
    CHECK(s.n_trial == o.trials && s.n_part == 2 && s.n_dim == 8, "%s: %d trials of %d coordinates", name, s.n_trial, s.n_dim);
    CHECK(fixed->score < 0 && s.untouched[TARGET] > 3, "%s: the fixed edit takes the score from %.2f to %.2f", name, s.untouched[TARGET], fixed->score);
    if (!slow) CHECK(best->score <= fixed->score && best->kl < fixed->kl, "%s: score %.3f KL %.4g do not beat the fixed edit's %.3f %.4g", name, best->score, best->kl, fixed->score, fixed->kl);
    int front = 0;
    for (int i = 0; i < s.n_trial; i++) {
        const Trial *t = &s.trial[i];
        bool beaten = false;
        for (int j = 0; j < s.n_trial; j++)
            beaten |= s.trial[j].score <= t->score && s.trial[j].kl <= t->kl && (s.trial[j].score < t->score || s.trial[j].kl < t->kl);
        CHECK(t->pareto == !beaten, "%s: trial %d is %son the front", name, i, t->pareto ? "" : "not ");
        front += t->pareto;
        if (t->score <= fixed->score) CHECK(t->kl >= best->kl, "%s: trial %d has a lower KL than the chosen one", name, i);
        for (int k = 0; k < s.n_dim; k++) CHECK(t->u[k] >= 0 && t->u[k] <= 1, "%s: trial %d: coordinate %d is %g", name, i, k, t->u[k]);
    }
    CHECK(front >= 5, "%s: only %d trials on the front", name, front);
    check_saved(&s, &lab, 0);
    check_saved(&s, &lab, s.chosen);
    if (!slow) {
        CHECK(search_check(&s, &e) && s.checked[0][0] > 3 && s.checked[1][0] < 0 && s.checked[2][0] < 0 && s.checked[2][1] < 0.02, "%s: on other prompts score %.2f, fixed %.2f, chosen %.2f, KL %.3g",
              name, s.checked[0][0], s.checked[1][0], s.checked[2][0], s.checked[2][1]);
    }
    if (verbose)
        printf("%s: fixed edit score %.2f KL %.3g, trial %d %.2f %.3g; on other prompts fixed %.2f %.3g, chosen %.2f %.3g\n", name, fixed->score, fixed->kl, s.chosen, best->score,
               best->kl, s.checked[1][0], s.checked[1][1], s.checked[2][0], s.checked[2][1]);

    if (whole) { // stopped twice on the way, with other threads: the same trials
        o.lab.place.threads = 1;
        o.lab.n_seq = 5;
        o.state = state;
        for (int stop = 0; stop < 3; stop++) {
            o.trials = stop == 0 ? 9 : stop == 1 ? 12 : slow ? 26 : 27;
            interrupted = stop == 1; // before the first new trial
            const bool ok = search(&again, &lab2, &o, &e);
            interrupted = 0;
            if (stop == 1) CHECK(!ok && strstr(e.text, "interrupted") && strstr(e.text, "goes on from"), "%s: an interrupted search says how to go on: %s", name, e.text);
            else {
                CHECK(ok && again.n_trial == o.trials, "%s: %s", name, e.text);
                for (int i = 0; i < again.n_trial; i++)
                    CHECK(same_trial(&s.trial[i], &again.trial[i]), "%s: trial %d is another after stopping, with other threads: %.17g %.17g, was %.17g %.17g", name, i, again.trial[i].score,
                          again.trial[i].kl, s.trial[i].score, s.trial[i].kl);
            }
            search_close(&again);
            lab_close(&lab2);
        }
        o.trials = 3;
        o.pick = 2;
        CHECK(search(&again, &lab2, &o, &e) && again.chosen == 2, "%s: a trial can be picked: %d %s", name, again.chosen, e.text);
        search_close(&again);
        lab_close(&lab2);
        o.pick = -1;
        o.seed = 2; // other prompts, other trials; the state of another seed is not used
        o.train = 8;
        CHECK(search(&again, &lab2, &o, &e) && !same_trial(&s.trial[1], &again.trial[1]) && memcmp(s.trial[1].u, again.trial[1].u, sizeof s.trial[1].u), "%s: another seed: %s", name, e.text);
        search_close(&again);
        lab_close(&lab2);
        unlink(state);

        // a file with a vector for each layer: trial 0 takes it as it is, others one of its rows for all layers, or between two
        o.state = NULL;
        o.direction = each;
        o.trials = 12;
        for (int between = 0; between < 2; between++) {
            int n_whole = 0, n_between = 0;
            o.interpolate = between;
            CHECK(search(&again, &lab2, &o, &e) && again.n_dim == 9 && again.n_row == lab2.m.c.n_layer - 1, "%s: %s", name, e.text);
            for (int i = 0; i < again.n_trial; i++) {
                const double row = search_row(&again, &again.trial[i]);
                if (row < 0) continue;
                CHECK(i && row >= 2 && row <= lab2.m.c.n_layer, "%s: trial %d takes the vector entering layer %g", name, i, row);
                if (row == floor(row)) n_whole++;
                else n_between++;
                Direction d = {0};
                CHECK(search_direction(&again, i, &d, &e) && d.single && d.shape, "%s", e.text);
                double cos = 0, length = 0;
                const float *a = direction_row(&again.d, (int)row), *b = direction_row(&again.d, min_int((int)row + 1, lab2.m.c.n_layer));
                for (int c = 0; c < d.n_embd; c++) cos += (double)d.row[c] * ((1 - row + floor(row)) * a[c] + (row - floor(row)) * b[c]), length += (double)d.row[c] * d.row[c];
                CHECK(fabs(length - 1) < 1e-5 && cos > (row == floor(row) ? 1 - 1e-6 : 0.7), "%s: the vector entering layer %g: length %.6f, cosine %.6f", name, row, length, cos);
                direction_free(&d);
            }
            CHECK(between ? n_between > 0 : n_whole > 0 && !n_between, "%s: %d trials take a row, %d something between two", name, n_whole, n_between);
            search_close(&again);
            lab_close(&lab2);
        }
    }
    search_close(&s);
    lab_close(&lab);
    unlink(one);
    unlink(each);
}

// Gemma 3n cannot be edited: refused before any prompt is read.
static void test_refused(const char *model) {
    static Lab lab;
    static Search s;
    Err e = {0};
    Direction d = {0};
    SearchOptions o = options(model, path_of("d.gguf"));
    char path[256];
    snprintf(path, sizeof path, "%s", path_of("d.gguf"));
    o.direction = path;
    o.lab.no_template = true;
    CHECK(lab_open(&lab, &o.lab, &e), "%s", e.text);
    double *v = calloc((size_t)lab.m.c.n_embd, sizeof *v);
    v[0] = 1;
    CHECK(direction_single(&d, lab.m.c.n_layer, lab.m.c.n_embd, v, &e) && direction_save(&d, path, NULL, NULL, &e), "%s", e.text);
    CHECK(!search_open(&s, &lab, &o, &e) && strstr(e.text, "several residual streams"), "gemma3n: %s", e.text);
    direction_free(&d);
    search_close(&s);
    lab_close(&lab);
    free(v);
    unlink(path);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    if (!mkdtemp(folder)) return 1;
    test_kernel();
    test_model("llama-Q8_0", true);
    if (!getenv("SANITIZED")) test_model("gemma-Q8_0", false);
    if (shared_path("reference/gemma3n-Q8_0.gguf")) test_refused(shared_path("reference/gemma3n-Q8_0.gguf"));
    else test_skip("reference/gemma3n-Q8_0.gguf");
    rmdir(folder);
    return test_end();
}
