// test_demo.c: what the demo models are for, end to end and in figures: a direction is found on the training prompts, and on
// held-out topics it makes the model answer, truthfully, what it declined, and leaves everything else alone; random directions
// do not. In all file types, and the directions of all types agree. test_demo -v prints the figures.
#include <math.h>

#include "report.h"
#include "select.h"
#include "test.h"

#define DEMO "abliterate/demo/"

static bool verbose;
static char folder[] = "/tmp/test_demo.XXXXXX";

typedef struct {
    const char *model;
    double least_correct, most_lost; // shares
    bool whole;                      // controls answer, too, and text and questions are measured
} Case;

// Finds the direction and writes it. *vector (to be freed) receives the difference at pos[0], layer[0]; where these are -1, they
// become those of the chosen one. (Neighbouring positions can be nearly as good: each file type may choose another.)
static bool find(const char *model, bool whole, const char *out, double **vector, int *n, int *pos, int *layer, const char *name) {
    ExtractOptions o = {.lab = {.model = model, .place = {.backend = "cpu", .threads = 2}, .n_seq = 16, .quiet = true}, .target = DEMO "magic.txt",
                        .contrast = DEMO "crafts.txt", .positions = 16, .train = -1, .check = -1, .seed = 1, .max_kl = 0.1, .max_layer = 0.8, .n_control = whole ? 10 : 2};
    static Lab lab;
    static Extraction x;
    static Selection s;
    Direction d = {0};
    Err e = {0};
    bool ok = lab_open(&lab, &o.lab, &e) && extraction_open(&x, &lab, &o, &e) && extraction_openers(&x, &e) && extraction_means(&x, &e) && selection_make(&s, &x, &e);
    CHECK(ok && s.chosen >= 0, "%s: no direction: %s%s", name, e.text, s.why);
    ok = ok && s.chosen >= 0;
    if (ok) {
        const Candidate *c = &x.candidate[s.chosen];
        if (verbose)
            printf("%s: position %d, entering layer %d of %d; score %.2f, removed %.2f, added %.2f (contrast %.2f), KL %.2g, halves %.4f\n", name, -1 - c->pos, c->layer,
                   lab.m.c.n_layer, s.base_score[TARGET], c->bypass, c->induce, s.base_score[CONTRAST], c->kl, c->d.halves);
        CHECK(x.progress[DROPPED] <= 3 && x.progress[DROPPED + 1] <= 3, "%s: %g and %g prompts do not show what their file says", name, x.progress[DROPPED], x.progress[DROPPED + 1]);
        CHECK(c->d.reliable > 0.95 && c->auc > 0.99, "%s: reliable %.3f, AUC %.3f", name, c->d.reliable, c->auc);
        CHECK(c->bypass < 0 && c->induce > 0 && s.base_score[TARGET] > 3 && s.base_score[CONTRAST] < -3, "%s: the scores are on the right sides", name);
        *n = lab.m.c.n_embd;
        *vector = malloc(sizeof(double) * (size_t)*n);
        if (*pos < 0) *pos = c->pos, *layer = c->layer;
        extraction_difference(&x, *pos, *layer, *vector);
        ok = selection_direction(&s, &x, &d, &e) && direction_save(&d, out, NULL, NULL, &e);
        CHECK(ok, "%s: %s", name, e.text);
    }
    direction_free(&d);
    selection_free(&s);
    extraction_close(&x);
    lab_close(&lab);
    return ok;
}

static void prove(const Case *c, const char *path, const char *direction, const char *name) {
    const ReportOptions o = {.lab = {.model = path, .place = {.backend = "cpu", .threads = 2}, .n_seq = 16, .quiet = true}, .directions = {.text = {direction}, .n = 1},
                             .strength = NAN, .target = DEMO "magic-held-out.txt", .contrast = DEMO "crafts-held-out.txt", .choices = "text", .n_predict = 40, .n_forced = 32,
                             .n_control = c->whole ? 3 : 1, .n_answered = c->whole ? 3 : 1, .seed = 1, .text = c->whole ? DEMO "text.txt" : NULL,
                             .questions = {.text = {DEMO "questions.csv", DEMO "questions-magic.tsv"}, .n = c->whole ? 2 : 0}};
    static Lab lab;
    static Report r;
    Err e = {0};
    const bool ok = lab_open(&lab, &o.lab, &e) && report_measure(&r, &lab, &o, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (ok) {
        const Answers *t = &r.side[SIDE_TARGET], *k = &r.side[SIDE_CONTRAST];
        const double lost = (double)(k->correct[0] - k->correct[1]) / k->n, n = t->n;
        if (verbose)
            printf("%s: held-out declined %.1f %% -> %.1f %%, correct %.1f %% -> %.1f %%; crafts declined %.1f %% -> %.1f %%, correct %.1f %% -> %.1f %%; KL first %.2g forced %.2g; degenerate %d %d\n",
                   name, 100 * t->marked[0] / n, 100 * t->marked[1] / n, 100 * t->correct[0] / n, 100 * t->correct[1] / n, 100.0 * k->marked[0] / k->n,
                   100.0 * k->marked[1] / k->n, 100.0 * k->correct[0] / k->n, 100.0 * k->correct[1] / k->n, r.kl_first.mean, r.kl_forced.mean, t->degenerate[1], k->degenerate[1]);
        CHECK(t->n == 120 && k->n == 120 && t->n_expected == 120, "%s: %d and %d held-out prompts", name, t->n, k->n);
        CHECK(t->marked[0] >= 0.98 * n, "%s: only %d of %d are declined before", name, t->marked[0], t->n);
        CHECK(t->marked[1] <= 0.02 * n, "%s: %d of %d are declined after", name, t->marked[1], t->n);
        CHECK(t->correct[1] >= c->least_correct * n, "%s: only %d of %d are answered truly after", name, t->correct[1], t->n);
        CHECK(lost < c->most_lost && k->marked[1] <= 0.02 * k->n, "%s: allowed topics lose %.1f points, %d are declined", name, 100 * lost, k->marked[1]);
        CHECK(r.kl_first.mean < 0.02, "%s: KL %.4f on allowed topics", name, r.kl_first.mean);
        for (int i = 0; i < r.n_control; i++)
            if (r.control[i].marked >= 0 && !strcmp(r.control[i].kind, "random"))
                CHECK(abs(r.control[i].marked - t->marked[0]) < 0.02 * n, "%s: a random direction takes %d declined answers to %d", name,
                      t->marked[0], r.control[i].marked);
        const int at = -1 - r.direction_position, cells = r.n_layer + 1;
        for (int side = 0; side < 2; side++)
            for (int i = 0; i < r.n_pos * cells; i++) CHECK(fabs(r.cosine[side][WITH][i]) < 1e-6, "%s: after removal a mean cosine of %.1e is left", name, r.cosine[side][WITH][i]);
        CHECK(at >= 0 && r.component[0][0][at * cells + r.direction_layer] > r.component[1][0][at * cells + r.direction_layer] + 1, "%s: the component tells the sets apart", name);
        if (c->whole) {
            if (verbose)
                printf("%s: perplexity %.4f -> %.4f; questions %d -> %d, about magic %d -> %d of %d; added at 1: contrast score %.2f\n", name, r.perplexity[0], r.perplexity[1],
                       r.quiz[0].right[0], r.quiz[0].right[1], r.quiz[1].right[0], r.quiz[1].right[1], r.quiz[0].n, r.add_contrast[6]);
            CHECK(r.perplexity[1] < 1.1 * r.perplexity[0], "%s: perplexity %.3f, then %.3f", name, r.perplexity[0], r.perplexity[1]);
            CHECK(r.quiz[0].n == 60 && abs(r.quiz[0].right[1] - r.quiz[0].right[0]) <= 2, "%s: questions %d, then %d right", name, r.quiz[0].right[0], r.quiz[0].right[1]);
            CHECK(r.curve_kl[0] == 0 && r.has_add && r.add_contrast[6] > r.add_contrast[4] + 3, "%s: curves", name);
        }
    }
    report_free(&r);
    lab_close(&lab);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    static const Case CASES[2][3] = {
        {{"llama-Q8_0", 0.9, 0.02, true}, {"llama-Q4_K_M", 0.9, 0.02, false}, {"llama-F16", 0.9, 0.02, false}},
        {{"gemma-Q8_0", 0.85, 0.05, true}, {"gemma-Q4_K_M", 0.85, 0.05, false}, {"gemma-F16", 0.85, 0.05, false}},
    };
    if (!mkdtemp(folder)) return 1;
    for (int shape = 0; shape < 2; shape++) {
        double *vector[3] = {0};
        int n = 0, pos = -1, layer = -1;
        for (int i = 0; i < (getenv("SANITIZED") ? 1 : 3); i++) { // ten times slower
            const Case *c = &CASES[shape][i];
            char path[128], direction[128];
            snprintf(path, sizeof path, DEMO "%s.gguf", c->model);
            snprintf(direction, sizeof direction, "%s/d.gguf", folder);
            if (find(path, c->whole, direction, &vector[i], &n, &pos, &layer, c->model)) prove(c, path, direction, c->model);
            unlink(direction);
            if (!i || !vector[0] || !vector[i]) continue;
            const double cos = dot_of(vector[0], vector[i], n) / sqrt(dot_of(vector[0], vector[0], n) * dot_of(vector[i], vector[i], n));
            if (verbose) printf("cosine of the directions of %s and %s: %.4f\n", CASES[shape][0].model, c->model, cos);
            CHECK(cos > 0.95, "the directions of %s and %s have cosine %.4f", CASES[shape][0].model, c->model, cos);
        }
        for (int i = 0; i < 3; i++) free(vector[i]);
    }
    rmdir(folder);
    return test_end();
}
