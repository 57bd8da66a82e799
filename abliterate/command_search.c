// command_search.c: `abliterate search`: looks for the edit that takes the behaviour away and changes least else, says what it
// found, and writes it as a direction with strengths by layer and part, which `run` and `abliterate edit` use.
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "abliterate.h"
#include "search.h"

const char SEARCH_HELP[] =
    "abliterate search MODEL.gguf --direction DIR.gguf --target A.txt --contrast B.txt [-o BEST.gguf] [options]\n"
    "\n"
    "  --direction FILE           what is to be removed (abliterate extract; with --per-layer its rows are tried, too)\n"
    "  --target FILE, --contrast FILE   prompts that show the behaviour, and prompts that do not\n"
    "  -o FILE                    write the direction with the strengths found: mode write, for run and for abliterate edit\n"
    "  --trials N                 edits to try (default 60); the first is strength 1 everywhere, with which all are compared\n"
    "  --pick N                   write this trial (default: the lowest KL of those with a score no worse than trial 0's)\n"
    "  --interpolate              also try vectors between two rows of the file\n"
    "  -s, --seed N               the same seed, the same trials (default 1)\n"
    "  --state FILE               keep the trials here (default: BEST.gguf.state, deleted when done); Ctrl-C loses nothing\n"
    "  --train N, --check N       prompts of each file to search on (64), to check the result on (a fifth, at most 32)\n"
    "  --openers FILE             tokens that begin answers with the behaviour (default: those of the direction)\n"
    "  --json FILE                write all trials there\n" LAB_HELP;

static const Option SEARCH[] = {
#define O(field) offsetof(SearchOptions, field)
    {"-m", "--model", OPTION_TEXT, O(lab.model), 0, 0},
    {"--direction", "--dir", OPTION_TEXT, O(direction), 0, 0},
    {"--target", NULL, OPTION_TEXT, O(target), 0, 0},
    {"--contrast", NULL, OPTION_TEXT, O(contrast), 0, 0},
    {"-o", "--out", OPTION_TEXT, O(out), 0, 0},
    {"--trials", NULL, OPTION_INT, O(trials), 1, MAX_TRIAL},
    {"--pick", NULL, OPTION_INT, O(pick), 0, MAX_TRIAL - 1},
    {"--interpolate", NULL, OPTION_FLAG, O(interpolate), 0, 0},
    {"-s", "--seed", OPTION_INT64, O(seed), 0, 9007199254740992.0},
    {"--state", NULL, OPTION_TEXT, O(state), 0, 0},
    {"--train", NULL, OPTION_INT, O(train), 1, 1 << 30},
    {"--check", NULL, OPTION_INT, O(check), 0, 1 << 30},
    {"--openers", NULL, OPTION_TEXT, O(openers), 0, 0},
    {"--json", NULL, OPTION_TEXT, O(json), 0, 0},
    LAB_OPTIONS,
#undef O
};

static const char *const PARTS[N_SHAPE] = {"attention", "FFN", "per-layer input"};

// ---- what is printed ----

static void print_setting(const Search *s) {
    static const char *const NAME[2] = {"target", "contrast"};
    printf("direction %s", s->o->direction);
    if (s->n_row) printf(": its own vector in each layer, or one of %d for all layers%s", s->n_row, s->o->interpolate ? ", or one between two" : "");
    putchar('\n');
    for (int side = 0; side < 2; side++)
        printf("%-9s %s: %d prompts, %d to search on, %d to check on; untouched score %.2f\n", NAME[side], s->file[side].path, s->file[side].n, s->set[side].n,
               s->check_set[side].n, s->untouched[side]);
    printf("openers  ");
    for (int i = 0; i < min_int(s->openers.n, 8); i++) {
        char text[48];
        lab_token(s->lab, s->openers.id[i], text);
        printf(" %s", text);
    }
    if (s->openers.n > 8) printf(" ... (%d in all)", s->openers.n);
    putchar('\n');
}

// "1.20 around 2.3, 0.40 from 1.5 layers on"
static void what(const Search *s, const Trial *t, char out[512]) {
    size_t n = 0;
    out[0] = 0;
    for (int part = 0; part < s->n_part; part++) {
        const Kernel k = search_kernel(s, t, part);
        n += (size_t)snprintf(out + n, 512 - n, "%s%s ", part ? "; " : "", part == SHAPE_PER_LAYER ? "input" : PARTS[part]);
        if (k.floor == k.peak) n += (size_t)snprintf(out + n, 512 - n, "%.2f everywhere", k.peak);
        else n += (size_t)snprintf(out + n, 512 - n, "%.2f within %.1f of layer %.1f, %.2f beyond %.1f", k.peak, k.width / 2, k.centre, k.floor, k.width);
    }
    const double row = search_row(s, t);
    if (row >= 0) snprintf(out + n, 512 - n, "; vector entering layer %g", row);
}

static int by_score(const void *a, const void *b) {
    const Trial *x = *(const Trial *const *)a, *y = *(const Trial *const *)b;
    return x->score != y->score ? (x->score < y->score ? -1 : 1) : (x > y) - (x < y);
}

static void print_front(const Search *s) {
    const Trial *front[MAX_TRIAL];
    int n = 0, n_front = 0;
    for (int i = 0; i < s->n_trial; i++) {
        const Trial *t = &s->trial[i];
        n_front += t->pareto;
        if ((t->pareto && search_effect(s, t) >= 0.5) || i == 0 || i == s->chosen) front[n++] = t;
    }
    qsort(front, (size_t)n, sizeof *front, by_score);
    printf("\nOf %d trials no other beats %d in both (score of target prompts, KL on contrast prompts). Those with at least half of the fixed edit's effect,\n"
           "and their strengths within and beyond so many layers of one\ntrial    score        KL\n", s->n_trial, n_front);
    for (int i = 0; i < n; i++) {
        char text[512];
        const int trial = (int)(front[i] - s->trial);
        what(s, front[i], text);
        printf("%5d %8.2f %9.3g  %s%s%s\n", trial, front[i]->score, front[i]->kl, text, trial == 0 ? "  <- the fixed edit" : "", trial == s->chosen ? "  <- chosen" : "");
    }
}

static void print_chosen(const Search *s, const Direction *d) {
    const Trial *t = &s->trial[s->chosen], *fixed = &s->trial[0];
    printf("\nStrengths of trial %d by layer\nlayer", s->chosen);
    for (int part = 0; part < s->n_part; part++) printf(" %15s", PARTS[part]);
    putchar('\n');
    for (int l = 0; l < d->n_layer; l++) {
        printf("%5d", l);
        for (int part = 0; part < s->n_part; part++) printf(" %15.3f", (double)d->shape[l * N_SHAPE + part]);
        putchar('\n');
    }
    if (s->chosen == 0) printf("\nChosen: the fixed edit: score %.2f, KL %.3g\n", fixed->score, fixed->kl);
    else
        printf("\nChosen: trial %d: score %.2f, KL %.3g; the fixed edit has score %.2f, KL %.3g%s\n", s->chosen, t->score, t->kl, fixed->score, fixed->kl,
               t->score <= fixed->score && t->kl < fixed->kl ? ": it is beaten" : "");
    if (isnan(s->checked[0][0])) return;
    printf("On %d and %d prompts not searched on: untouched score %.2f; fixed edit %.2f, KL %.3g; chosen %.2f, KL %.3g\n", s->check_set[TARGET].n, s->check_set[CONTRAST].n,
           s->checked[0][0], s->checked[1][0], s->checked[1][1], s->checked[2][0], s->checked[2][1]);
}

// ---- what is written ----

// What the direction was made from and with which openers, taken over from its file.
static void facts(void *ctx, GgufWriter *w) {
    static const char *const KEEP[] = {"abliterate.target.", "abliterate.contrast.", "abliterate.openers", "abliterate.seed", "abliterate.template", "abliterate.system", "glp.contrast"};
    const Search *s = ctx;
    const Trial *t = &s->trial[s->chosen];
    Gguf g;
    Err e;
    if (gguf_open(&g, s->o->direction, &e)) { // it was a moment ago
        for (uint64_t i = 0; i < g.n_key; i++)
            for (size_t k = 0; k < sizeof KEEP / sizeof *KEEP; k++)
                if (g.keys[i].key.n >= strlen(KEEP[k]) && !memcmp(g.keys[i].key.p, KEEP[k], strlen(KEEP[k]))) gguf_copy_key(w, &g.keys[i]);
        gguf_close(&g);
    }
    char text[32];
    snprintf(text, sizeof text, "%lld", (long long)s->o->seed);
    gguf_set_string(w, "abliterate.search.seed", text, strlen(text));
    gguf_set_string(w, "abliterate.search.direction_sha256", s->direction_sha256, 64);
    gguf_set_u32(w, "abliterate.search.trials", (uint32_t)s->n_trial);
    gguf_set_u32(w, "abliterate.search.trial", (uint32_t)s->chosen);
    const struct { const char *key; double value; } numbers[] = {
        {"abliterate.search.score", t->score}, {"abliterate.search.kl", t->kl}, {"abliterate.search.fixed_score", s->trial[0].score},
        {"abliterate.search.fixed_kl", s->trial[0].kl}, {"abliterate.search.untouched_score", s->untouched[TARGET]},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) gguf_set_f32(w, numbers[i].key, (float)numbers[i].value);
}

static void number(FILE *f, const char *name, double v) {
    fprintf(f, ", \"%s\": ", name);
    if (isfinite(v)) fprintf(f, "%.17g", v);
    else fputs("null", f);
}

static bool write_json(const Search *s, Err *e) {
    SafeFile out;
    if (!safe_open(&out, s->o->json, e)) return false;
    FILE *f = out.f;
    fprintf(f, "{\"seed\": %lld, \"direction_sha256\": \"%s\", \"target_sha256\": \"%s\", \"contrast_sha256\": \"%s\", \"target_prompts\": %d, \"contrast_prompts\": %d",
            (long long)s->o->seed, s->direction_sha256, s->file[TARGET].sha256, s->file[CONTRAST].sha256, s->set[TARGET].n, s->set[CONTRAST].n);
    number(f, "untouched_target_score", s->untouched[TARGET]);
    number(f, "untouched_contrast_score", s->untouched[CONTRAST]);
    static const char *const CHECKED[3] = {"untouched", "fixed", "chosen"};
    for (int i = 0; i < 3; i++) {
        char name[64];
        snprintf(name, sizeof name, "checked_%s_score", CHECKED[i]);
        number(f, name, s->checked[i][0]);
        snprintf(name, sizeof name, "checked_%s_kl", CHECKED[i]);
        number(f, name, s->checked[i][1]);
    }
    fprintf(f, ", \"chosen\": %d, \"trials\": [", s->chosen);
    for (int i = 0; i < s->n_trial; i++) {
        const Trial *t = &s->trial[i];
        fprintf(f, "%s\n  {\"trial\": %d, \"pareto\": %s", i ? "," : "", i, t->pareto ? "true" : "false");
        number(f, "score", t->score);
        number(f, "kl", t->kl);
        if (s->n_row) number(f, "row", search_row(s, t));
        for (int part = 0; part < s->n_part; part++) {
            const Kernel k = search_kernel(s, t, part);
            static const char *const KEYS[N_SHAPE] = {"attention", "ffn", "per_layer_input"};
            fprintf(f, ", \"%s\": {\"centre\": %.17g", KEYS[part], k.centre);
            number(f, "width", k.width);
            number(f, "peak", k.peak);
            number(f, "floor", k.floor);
            fputc('}', f);
        }
        fputc('}', f);
    }
    fputs("\n]}\n", f);
    return safe_close(&out, true, e);
}

static bool run(Search *s, Err *e) {
    print_setting(s);
    fflush(stdout);
    if (!s->o->lab.quiet) fprintf(stderr, "%d trials of %d prompts, about %.3g s\n", s->o->trials, s->set[0].n + s->set[1].n, s->seconds * s->o->trials);
    if (!search_run(s, e) || !search_check(s, e)) return false;
    print_front(s);
    Direction d;
    if (!search_direction(s, s->chosen, &d, e)) return false;
    print_chosen(s, &d);
    fflush(stdout);
    const bool ok = (!s->o->out || direction_save(&d, s->o->out, facts, s, e)) && (!s->o->json || write_json(s, e));
    direction_free(&d);
    if (ok && s->o->out) fprintf(stderr, "%s: written\n", s->o->out);
    if (ok && s->o->json) fprintf(stderr, "%s: written\n", s->o->json);
    if (ok && s->o->out && s->state_path && !s->o->state) unlink(s->state_path); // asked for by name, it is kept
    return ok;
}

static bool command(const SearchOptions *o, Err *e) {
    static Lab lab;
    static Search s;
    catch_interrupt(true);
    const bool ok = lab_open(&lab, &o->lab, e) && search_open(&s, &lab, o, e) && run(&s, e);
    search_close(&s);
    lab_close(&lab);
    return ok;
}

Outcome search_command(int argc, char **argv, Err *e) {
    SearchOptions o = {.lab = {.n_seq = 16}, .trials = 60, .train = -1, .check = -1, .seed = 1, .pick = -1};
    if (!options_parse(SEARCH, sizeof SEARCH / sizeof *SEARCH, &o, argc, argv, &o.lab.model, "the model", e) || !check_lab(&o.lab, e)) return USAGE;
    const char *missing = !o.direction ? "--direction" : !o.target ? "--target" : !o.contrast ? "--contrast" : NULL;
    if (missing) return err_set(e, "%s is missing", missing), USAGE;
    if (o.pick >= o.trials) return err_set(e, "option --pick is %d, expected one of the trials 0 to %d", o.pick, o.trials - 1), USAGE;
    return command(&o, e) ? DONE : FAILED;
}
