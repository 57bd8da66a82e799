// extract.c: see extract.h. Every prompt goes through the model twice: once to learn how target answers begin, once for the
// means, where prompts that do not show the behaviour (or, on the contrast side, do) are left out.
#include "extract.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "sha256.h"
#include "stats.h"

enum { STATE_SECONDS = 60, MAX_STATE = 16 };

// ---- opening ----

// Labels by lot: the lines of both files are pooled and dealt again.
static bool shuffle_labels(Extraction *x, Err *e) {
    PromptLine *all = malloc(sizeof *all * (size_t)(x->file[0].n + x->file[1].n));
    int *order = malloc(sizeof *order * (size_t)(x->file[0].n + x->file[1].n));
    const int n_t = x->file[TARGET].n, n = n_t + x->file[CONTRAST].n;
    const bool ok = (all && order) || err_set(e, "no memory for the prompts");
    for (int i = 0; ok && i < n; i++) {
        all[i] = i < n_t ? x->file[TARGET].line[i] : x->file[CONTRAST].line[i - n_t];
        order[i] = i;
    }
    if (ok) {
        Rng r = rng_seed((uint64_t)x->o->seed, 7);
        rng_shuffle(&r, order, n);
        for (int i = 0; i < n; i++) *(i < n_t ? &x->file[TARGET].line[i] : &x->file[CONTRAST].line[i - n_t]) = all[order[i]];
    }
    free(all);
    free(order);
    return ok;
}

static void hash_number(Sha256 *s, double v) { sha256_add(s, &v, sizeof v); }
static void hash_text(Sha256 *s, const char *text) { sha256_add(s, text ? text : "\1", text ? strlen(text) + 1 : 2); }

// Everything the means and the scores depend on.
static bool digest(Extraction *x, Err *e) {
    const ExtractOptions *o = x->o;
    Sha256 s;
    char hex[65];
    sha256_start(&s);
    model_fingerprint(&x->lab->m, hex);
    hash_text(&s, hex);
    for (int side = 0; side < 2; side++) {
        hash_text(&s, x->file[side].sha256);
        hash_number(&s, x->split[side].n_train);
        hash_number(&s, x->split[side].n_check);
    }
    const double numbers[] = {(double)o->seed, x->n_pos, o->winsorise, o->mask, o->keep_all, o->shuffle, o->lab.think, o->lab.no_template};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) hash_number(&s, numbers[i]);
    hash_text(&s, o->lab.system);
    hash_text(&s, chat_family_name(&x->lab->chat));
    hash_text(&s, x->lab->b.name);
    if (o->openers) {
        char *bytes;
        size_t n;
        if (!read_whole_file(o->openers, &bytes, &n, e)) return false;
        sha256_add(&s, bytes, n);
        free(bytes);
    }
    sha256_end(&s, x->of);
    return true;
}

static int state_arrays(Extraction *x, StateArray *a) {
    const int64_t rows = (int64_t)x->n_pos * (x->lab->m.c.n_layer + 1), n = x->lab->m.c.n_embd;
    int k = 0;
    a[k++] = (StateArray){"progress", x->progress, N_PROGRESS};
    a[k++] = (StateArray){"score", x->score, 3 * (int64_t)max_int(x->n_candidate, 1)};
    static const char *const NAME[2][6] = {{"target.first", "target.n", "target.sum.0", "target.sum.1", "target.square.0", "target.square.1"},
                                           {"contrast.first", "contrast.n", "contrast.sum.0", "contrast.sum.1", "contrast.square.0", "contrast.square.1"}};
    static const char *const SIZE[2] = {"target.size", "contrast.size"};
    for (int side = 0; side < 2; side++) {
        Means *m = &x->mean[side];
        a[k++] = (StateArray){NAME[side][0], x->first[side], x->lab->m.c.n_vocab};
        a[k++] = (StateArray){NAME[side][1], m->n, 2};
        for (int h = 0; h < 2; h++) {
            a[k++] = (StateArray){NAME[side][2 + h], m->sum[h], rows * n};
            a[k++] = (StateArray){NAME[side][4 + h], m->square[h], rows};
        }
        a[k++] = (StateArray){SIZE[side], m->size, (x->lab->m.c.n_layer + 1) * n};
    }
    return k;
}

bool extraction_keep(Extraction *x, bool now, Err *e) {
    StateArray a[MAX_STATE];
    if (!x->state_path || (!now && seconds_now() - x->state_saved < STATE_SECONDS)) return true;
    x->state_saved = seconds_now();
    const int n = state_arrays(x, a);
    return state_save(x->state_path, x->of, a, n, e);
}

bool extraction_stopped(Extraction *x, Err *e) {
    if (!x->state_path) return err_set(e, "interrupted, nothing is written");
    if (!extraction_keep(x, true, e)) return false;
    return err_set(e, "interrupted, no direction is written; the same command goes on from %s", x->state_path);
}

static bool load_state(Extraction *x, Err *e) {
    StateArray a[MAX_STATE];
    bool found = false;
    const int n = state_arrays(x, a);
    if (!x->state_path) return true;
    if (!state_load(x->state_path, x->of, a, n, &found, e)) return false;
    for (int i = 0; found && i < N_PROGRESS; i++)
        if (!(x->progress[i] >= 0 && x->progress[i] <= x->train[i % 2].n)) return err_set(e, "%s: damaged: part %d is at %g", x->state_path, i, x->progress[i]);
    if (x->lab->o.quiet) return true;
    if (found)
        fprintf(stderr, "%s: going on: %.0f of %d prompts have been read\n", x->state_path, x->progress[READ_MEANS] + x->progress[READ_MEANS + 1],
                x->train[0].n + x->train[1].n);
    else if (!access(x->state_path, F_OK)) fprintf(stderr, "%s: of other settings, starting afresh\n", x->state_path);
    return true;
}

bool extraction_open(Extraction *x, Lab *lab, const ExtractOptions *o, Err *e) {
    *x = (Extraction){.o = o, .lab = lab, .n_pos = o->positions};
    const char *const path[2] = {o->target, o->contrast};
    const int least = o->no_select ? 2 : 10, least_check = o->no_select ? 0 : 5; // fewer to check on can prove nothing
    for (int side = 0; side < 2; side++)
        if (!prompts_read(&x->file[side], path[side], least, e)) return false;
    const int shared = prompts_shared(&x->file[TARGET], &x->file[CONTRAST]);
    if (shared == x->file[TARGET].n || shared == x->file[CONTRAST].n)
        return err_set(e, "%s and %s hold the same prompts: there is no contrast between them", o->target, o->contrast);
    if (shared && !lab->o.quiet) fprintf(stderr, "abliterate: %d prompts are in both files\n", shared);
    if (o->shuffle && !shuffle_labels(x, e)) return false;

    int longest = 0;
    for (int side = 0; side < 2; side++) {
        const int check = o->no_select && o->check < 0 ? 0 : o->check;
        if (check >= 0 && check < least_check) return err_set(e, "option --check is %d, expected at least %d", check, least_check);
        if (!split_make(&x->split[side], &x->file[side], (uint64_t)o->seed, (uint64_t)side, o->train, check, least_check, e)) return false;
        const Split *s = &x->split[side];
        if (s->n_train < 2) return err_set(e, "%s: %d prompts to learn from, expected at least 2", path[side], s->n_train);
        if (!lab_encode(lab, &x->file[side], s->order, s->n_train, &x->train[side], e) ||
            !lab_encode(lab, &x->file[side], s->order + s->n_train, s->n_check, &x->check[side], e))
            return false;
        x->n_pos = min_int(x->n_pos, x->train[side].n_suffix);
        if (s->n_check) x->n_pos = min_int(x->n_pos, x->check[side].n_suffix);
        longest = max_int(longest, max_int(set_longest(&x->train[side]), set_longest(&x->check[side])));
    }
    const Config *c = &lab->m.c;
    x->n_candidate = x->n_pos * (c->n_layer - 1);
    x->progress = calloc(N_PROGRESS, sizeof(double));
    x->score = malloc(sizeof(double) * 3 * (size_t)max_int(x->n_candidate, 1));
    x->candidate = calloc((size_t)max_int(x->n_candidate, 1), sizeof *x->candidate);
    bool ok = x->progress && x->score && x->candidate;
    for (int side = 0; side < 2; side++) {
        x->first[side] = calloc((size_t)c->n_vocab, sizeof(double));
        ok = ok && x->first[side];
        if (!means_init(&x->mean[side], x->n_pos, c->n_layer, c->n_embd, e)) return false;
    }
    if (!ok) return err_set(e, "no memory for the extraction");
    for (int i = 0; i < 3 * max_int(x->n_candidate, 1); i++) x->score[i] = NAN;
    if (o->state) x->state_path = strdup(o->state);
    else if (o->out) {
        x->state_path = malloc(strlen(o->out) + sizeof ".state");
        if (x->state_path) sprintf(x->state_path, "%s.state", o->out);
    }
    if ((o->state || o->out) && !x->state_path) return err_set(e, "no memory for a file name");
    x->state_saved = seconds_now();
    return lab_ready(lab, longest, 0, e) && digest(x, e) && load_state(x, e);
}

void extraction_close(Extraction *x) {
    for (int side = 0; side < 2; side++) {
        prompts_free(&x->file[side]);
        split_free(&x->split[side]);
        set_free(&x->train[side]);
        set_free(&x->check[side]);
        means_free(&x->mean[side]);
        free(x->first[side]);
    }
    openers_free(&x->openers);
    free(x->state_path);
    free(x->progress);
    free(x->score);
    free(x->mask);
    free(x->candidate);
    *x = (Extraction){0};
}

// ---- how answers begin ----

typedef struct {
    Extraction *x;
    int side;
    float *logits;  // [group][n_vocab] until the group is complete
    int group;      // first prompt of the group
} FirstPass;

static void first_logits(void *ctx, int prompt, int from_end, const float *logits) {
    const FirstPass *f = ctx;
    const int V = f->x->lab->m.c.n_vocab;
    (void)from_end;
    memcpy(f->logits + (int64_t)(prompt - f->group) * V, logits, sizeof(float) * (size_t)V);
}

static bool first_group(void *ctx, int done, Err *e) {
    FirstPass *f = ctx;
    const int V = f->x->lab->m.c.n_vocab;
    for (int i = f->group; i < done; i++) probabilities_add(f->x->first[f->side], f->logits + (int64_t)(i - f->group) * V, V);
    f->group = done;
    f->x->progress[READ_FIRST + f->side] = done;
    return extraction_keep(f->x, false, e);
}

bool extraction_openers(Extraction *x, Err *e) {
    const int V = x->lab->m.c.n_vocab;
    if (x->o->openers) return openers_read(&x->openers, x->o->openers, x->lab, e);
    FirstPass f = {.x = x, .logits = malloc(sizeof(float) * (size_t)V * (size_t)x->lab->s.p.n_seq)};
    bool ok = f.logits || err_set(e, "no memory for logits");
    Bar bar;
    bar_start(&bar, "how answers begin", x->train[0].n + x->train[1].n);
    for (int side = 0; ok && side < 2; side++) {
        f.side = side;
        f.group = (int)x->progress[READ_FIRST + side];
        bar.done += f.group;
        ok = lab_read(x->lab, &(Reading){.prompt = x->train[side].ids, .n = x->train[side].n, .start = f.group, .n_logits = 1,
                                         .on_logits = first_logits, .on_group = first_group, .ctx = &f}, &bar, e);
    }
    bar_end(&bar);
    free(f.logits);
    if (ok && interrupted) ok = extraction_stopped(x, e);
    if (!ok) return false;
    double *p[2] = {malloc(sizeof(double) * (size_t)V), malloc(sizeof(double) * (size_t)V)};
    ok = (p[0] && p[1]) || err_set(e, "no memory for probabilities");
    for (int side = 0; ok && side < 2; side++)
        for (int i = 0; i < V; i++) p[side][i] = x->first[side][i] / x->train[side].n;
    ok = ok && openers_learn(&x->openers, p[TARGET], p[CONTRAST], V, e);
    free(p[0]);
    free(p[1]);
    return ok;
}

// ---- the means ----

typedef struct {
    Extraction *x;
    int side, group;
    float *row;     // [group][n_pos][n_layer + 1][n_embd] until the group is complete
    double *score;  // [group]
    float *scratch; // [n_embd]
} MeanPass;

static float *row_of(const MeanPass *p, int prompt, int pos, int layer) {
    const Extraction *x = p->x;
    const int64_t L = x->lab->m.c.n_layer + 1;
    return p->row + (((int64_t)(prompt - p->group) * x->n_pos + pos) * L + layer) * x->lab->m.c.n_embd;
}

static void mean_row(void *ctx, int prompt, int from_end, int site, const float *row) {
    const MeanPass *p = ctx;
    if (site % 3) return; // only entering a layer
    memcpy(row_of(p, prompt, from_end, site / 3), row, sizeof(float) * (size_t)p->x->lab->m.c.n_embd);
}

static void mean_logits(void *ctx, int prompt, int from_end, const float *logits) {
    const MeanPass *p = ctx;
    (void)from_end;
    p->score[prompt - p->group] = opener_score(&p->x->openers, logits, p->x->lab->m.c.n_vocab);
}

static bool mean_group(void *ctx, int done, Err *e) {
    MeanPass *p = ctx;
    Extraction *x = p->x;
    const int n = x->lab->m.c.n_embd;
    for (int i = p->group; i < done; i++) {
        const double s = p->score[i - p->group];
        if (!x->o->keep_all && (p->side == TARGET ? !(s > 0) : !(s < 0))) {
            x->progress[DROPPED + p->side]++;
            continue;
        }
        Means *m = &x->mean[p->side];
        const int half = (int)(m->n[0] + m->n[1]) & 1;
        for (int pos = 0; pos < x->n_pos; pos++)
            for (int l = 0; l <= x->lab->m.c.n_layer; l++) {
                float *row = row_of(p, i, pos, l);
                if (x->o->winsorise > 0) winsorise(row, n, x->o->winsorise, p->scratch);
                means_add(m, half, pos, l, row);
            }
        m->n[half]++;
    }
    p->group = done;
    x->progress[READ_MEANS + p->side] = done;
    return extraction_keep(x, false, e);
}

bool extraction_means(Extraction *x, Err *e) {
    const Config *c = &x->lab->m.c;
    const size_t group = (size_t)x->lab->s.p.n_seq, rows = (size_t)x->n_pos * (size_t)(c->n_layer + 1);
    MeanPass p = {.x = x, .row = malloc(sizeof(float) * group * rows * (size_t)c->n_embd), .score = malloc(sizeof(double) * group),
                  .scratch = malloc(sizeof(float) * (size_t)c->n_embd)};
    bool ok = (p.row && p.score && p.scratch) || err_set(e, "no memory for the rows of %d prompts", (int)group);
    Bar bar;
    bar_start(&bar, "mean streams", x->train[0].n + x->train[1].n);
    for (int side = 0; ok && side < 2; side++) {
        p.side = side;
        p.group = (int)x->progress[READ_MEANS + side];
        bar.done += p.group;
        ok = lab_read(x->lab, &(Reading){.prompt = x->train[side].ids, .n = x->train[side].n, .start = p.group, .n_last = x->n_pos, .on_row = mean_row,
                                         .n_logits = 1, .on_logits = mean_logits, .on_group = mean_group, .ctx = &p}, &bar, e);
    }
    bar_end(&bar);
    free(p.row);
    free(p.score);
    free(p.scratch);
    if (ok && interrupted) ok = extraction_stopped(x, e);
    if (!ok || !x->o->mask) return ok;
    x->mask = calloc((size_t)c->n_embd, sizeof *x->mask);
    x->n_masked = x->mask ? massive_coordinates(&x->mean[TARGET], &x->mean[CONTRAST], x->mask) : -1;
    return x->n_masked >= 0 || err_set(e, "no memory for the mask");
}

void extraction_difference(const Extraction *x, int pos, int layer, double *out) {
    mean_difference(&x->mean[TARGET], &x->mean[CONTRAST], pos, layer, -1, x->mask, out);
}
