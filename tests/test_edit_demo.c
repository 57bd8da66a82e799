// test_edit_demo.c: what an edit of the weights is for, in figures: a direction found on a demo model's training prompts is taken
// out of the file, and the plain edited file answers the held-out questions that the original declines, as truly as the original
// with the direction removed at run time; what was allowed stays as it was. In all file types. test_edit_demo -v prints the figures.
#include <math.h>

#include "behaviour.h"
#include "lab.h"
#include "stats.h"
#include "test.h"

#define DEMO "abliterate/demo/"
enum { N_ANSWER = 40, N_FORCED = 32 };

static bool verbose;
static char folder[] = "/tmp/test_edit_demo.XXXXXX", program[256];

// What a model does with the two held-out sets.
typedef struct {
    int n[2], declined[2], correct[2], degenerate;
} Behaviour;

static bool answer(Lab *lab, const PromptSet *set, int side, Ids *answers, Behaviour *out, Err *e) {
    bool *ended = calloc((size_t)set->n, sizeof *ended);
    Markers markers = {0};
    bool ok = ended && markers_read(&markers, NULL, e) && lab_answer(lab, set->ids, set->n, N_ANSWER, answers, ended, NULL, e);
    out->n[side] = set->n;
    for (int i = 0; ok && i < set->n; i++) {
        char *text;
        ok = lab_text(lab, &answers[i], &text, e);
        if (!ok) break;
        const bool degenerate = is_degenerate(&answers[i], text);
        out->degenerate += degenerate;
        out->declined[side] += !degenerate && markers_found(&markers, text);
        out->correct[side] += !degenerate && is_correct(text, set->line[i]->answer);
        free(text);
    }
    markers_free(&markers);
    free(ended);
    return ok;
}

// Logits at the end of every prompt and after each token of its answer: kept, or compared with what is kept.
typedef struct {
    const int *n, *first; // [prompts] how many, and where they begin
    float *logits;
    int n_vocab;
    bool keep;
    double first_kl, all_kl; // sums
} Forced;

static void take(void *ctx, int prompt, int from_end, const float *logits) {
    Forced *f = ctx;
    const int k = f->n[prompt] - 1 - from_end;
    float *kept = f->logits + (int64_t)(f->first[prompt] + k) * f->n_vocab;
    if (f->keep) memcpy(kept, logits, sizeof *logits * (size_t)f->n_vocab);
    else {
        const double kl = kl_divergence(kept, logits, f->n_vocab);
        f->all_kl += kl;
        if (k == 0) f->first_kl += kl;
    }
}

static bool open(Lab *lab, const char *path, const PromptFile *file, PromptSet *set, Err *e) {
    const LabOptions o = {.model = path, .place = {.backend = "cpu", .threads = 2}, .n_seq = 16, .quiet = true};
    bool ok = lab_open(lab, &o, e);
    for (int side = 0; ok && side < 2; side++) ok = lab_encode(lab, &file[side], NULL, file[side].n, &set[side], e);
    return ok && lab_ready(lab, max_int(set_longest(&set[0]), set_longest(&set[1])), N_ANSWER, e);
}

static void prove(const char *name, double least_correct, double most_lost) {
    char original[128], edited[128], direction[128], command[2048], note[256];
    snprintf(original, sizeof original, DEMO "%s.gguf", name);
    snprintf(edited, sizeof edited, "%s/edited.gguf", folder);
    snprintf(direction, sizeof direction, "%s/d.gguf", folder);
    snprintf(command, sizeof command,
             "%s extract %s --target " DEMO "magic.txt --contrast " DEMO "crafts.txt --controls 2 -q -t 2 -o %s > /dev/null 2>&1 &&"
             "%s edit %s --direction %s --contrast " DEMO "crafts.txt -q -t 2 --no-undo -o %s > %s/table.txt",
             program, original, direction, program, original, direction, edited, folder);
    const int status = system(command);
    CHECK(status == 0, "%s: extract and edit end with %d", name, status);
    if (status) return;

    static Lab lab[2];
    PromptFile file[2] = {0};
    PromptSet set[2][2] = {0};
    Ids *answers[2] = {0}, *forced = NULL;
    int *n = NULL, *first = NULL, total = 0;
    Behaviour plain = {0}, steered = {0}, after = {0};
    Forced f = {0};
    Err e = {0};
    bool ok = prompts_read(&file[0], DEMO "magic-held-out.txt", 1, &e) && prompts_read(&file[1], DEMO "crafts-held-out.txt", 1, &e) &&
              open(&lab[0], original, file, set[0], &e) && open(&lab[1], edited, file, set[1], &e);
    for (int side = 0; ok && side < 2; side++) {
        answers[side] = calloc((size_t)set[0][side].n, sizeof(Ids));
        ok = answers[side] && answer(&lab[0], &set[0][side], side, answers[side], &plain, &e);
    }
    const int n_contrast = ok ? set[0][1].n : 0;
    if (ok) { // the original's own answers to the contrast prompts
        forced = calloc((size_t)n_contrast, sizeof *forced);
        n = calloc((size_t)n_contrast, sizeof *n);
        first = calloc((size_t)n_contrast, sizeof *first);
        ok = forced && n && first;
    }
    for (int i = 0; ok && i < n_contrast; i++) {
        const Ids *p = &set[0][1].ids[i], *a = &answers[1][i];
        for (int k = 0; ok && k < p->n; k++) ok = ids_push(&forced[i], p->id[k]);
        for (int k = 0; ok && k < min_int(a->n, N_FORCED); k++) ok = ids_push(&forced[i], a->id[k]);
        n[i] = 1 + min_int(a->n, N_FORCED);
        first[i] = total;
        total += n[i];
    }
    if (ok) {
        f = (Forced){.n = n, .first = first, .n_vocab = lab[0].m.c.n_vocab};
        f.logits = malloc(sizeof *f.logits * (size_t)total * (size_t)f.n_vocab);
        ok = f.logits != NULL;
    }
    for (int i = 0; ok && i < 2; i++) {
        f.keep = !i;
        ok = lab_read(&lab[i], &(Reading){.prompt = forced, .n = n_contrast, .logits_of = n, .on_logits = take, .ctx = &f}, NULL, &e);
    }
    ok = ok && steer_load(&lab[0].steer, direction, note, &e) && steer_prepare(&lab[0].steer, &e) && answer(&lab[0], &set[0][0], 0, answers[0], &steered, &e) &&
         answer(&lab[1], &set[1][0], 0, answers[0], &after, &e) && answer(&lab[1], &set[1][1], 1, answers[1], &after, &e);
    CHECK(ok, "%s: %s", name, e.text);
    if (ok) {
        const double T = plain.n[0] / 100.0, C = plain.n[1] / 100.0, kl = f.all_kl / total, kl_first = f.first_kl / n_contrast;
        if (verbose)
            printf("%-12s held-out declined %5.1f %% -> run time %5.1f %%, edited %5.1f %%; correct %5.1f %% -> run time %5.1f %%, edited %5.1f %%; crafts correct %5.1f %% -> %5.1f %%, "
                   "declined %.1f %%; KL first %.2g, answers %.2g; degenerate %d\n",
                   name, plain.declined[0] / T, steered.declined[0] / T, after.declined[0] / T, plain.correct[0] / T, steered.correct[0] / T, after.correct[0] / T,
                   plain.correct[1] / C, after.correct[1] / C, after.declined[1] / C, kl_first, kl, after.degenerate);
        CHECK(plain.n[0] == 120 && plain.n[1] == 120, "%s: %d and %d held-out prompts", name, plain.n[0], plain.n[1]);
        CHECK(plain.declined[0] >= 0.98 * plain.n[0], "%s: only %d are declined before", name, plain.declined[0]);
        CHECK(after.declined[0] <= 0.02 * plain.n[0], "%s: %d of %d are declined after the edit", name, after.declined[0], plain.n[0]);
        // within 3 points, and one answer: processors that round otherwise may tip it
        CHECK(after.correct[0] + 1 >= steered.correct[0] - 0.03 * plain.n[0], "%s: %.1f %% are answered truly after the edit, at run time %.1f %%", name, after.correct[0] / T, steered.correct[0] / T);
        CHECK(after.correct[0] >= least_correct * plain.n[0], "%s: only %d of %d are answered truly", name, after.correct[0], plain.n[0]);
        CHECK((plain.correct[1] - after.correct[1]) / C < most_lost && after.declined[1] / C <= 2, "%s: allowed topics lose %.1f points, %d are declined", name,
              (plain.correct[1] - after.correct[1]) / C, after.declined[1]);
        CHECK(kl_first < 0.02 && kl < 0.02, "%s: KL %.4f on first tokens, %.4f on answers", name, kl_first, kl);
    }
    for (int i = 0; i < 2; i++) {
        for (int k = 0; answers[i] && k < set[0][i].n; k++) ids_free(&answers[i][k]);
        free(answers[i]);
    }
    for (int i = 0; forced && i < n_contrast; i++) ids_free(&forced[i]);
    free(forced);
    free(n);
    free(first);
    free(f.logits);
    for (int i = 0; i < 2; i++) {
        set_free(&set[i][0]);
        set_free(&set[i][1]);
        lab_close(&lab[i]);
        prompts_free(&file[i]);
    }
    unlink(edited);
    unlink(direction);
    snprintf(command, sizeof command, "%s/table.txt", folder);
    unlink(command);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    verbose = argc > 1 && !strcmp(argv[1], "-v");
    const char *run = getenv("RUN"), *slash = run ? strrchr(run, '/') : NULL;
    if (slash) snprintf(program, sizeof program, "%.*s/abliterate", (int)(slash - run), run);
    else snprintf(program, sizeof program, "bin/abliterate");
    if (!mkdtemp(folder)) return 1;
    static const char *const TYPES[] = {"Q8_0", "Q4_K_M", "F16"};
    for (int i = 0; i < (getenv("SANITIZED") ? 1 : 3); i++) { // ten times slower
        char name[32];
        snprintf(name, sizeof name, "llama-%s", TYPES[i]);
        prove(name, 0.9, 2);
        snprintf(name, sizeof name, "gemma-%s", TYPES[i]);
        prove(name, 0.85, 2);
    }
    rmdir(folder);
    return test_end();
}
