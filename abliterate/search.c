// search.c: see search.h.
//
// The sequence is R_d (M. Roberts 2018, "The unreasonable effectiveness of quasirandom sequences"): multiples of the powers of 1/g
// modulo 1, g the root of g^(d+1) = g + 1, shifted by the seed (Cranley and Patterson 1976). The steps are those of an evolution
// strategy with an archive: a good trial as parent, Gaussian steps in some of its coordinates, reflected at the walls.
#include "search.h"

#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "sha256.h"
#include "stats.h"

enum { N_START = 24, MOST_SEARCHED = 64 }; // trials 1 .. N_START - 1 are the sequence's
#define MOST_STRENGTH 1.5
#define FIRST_STEP 0.25
#define LAST_STEP 0.02
#define STEP_SHRINKS 0.95
#define STATE_SECONDS 10

// ---- from a point of the unit cube to an edit ----

static int first_coordinate(const Search *s, int part) { return (s->n_row > 0) + 4 * part; }

Kernel search_kernel(const Search *s, const Trial *t, int part) {
    const double *u = t->u + first_coordinate(s, part);
    const int L = s->d.n_layer;
    const double peak = MOST_STRENGTH * u[2];
    return (Kernel){.centre = u[0] * (L - 1), .width = pow(L, u[1]), .peak = peak, .floor = peak * fmax(0, 2 * u[3] - 1)}; // one half of the cube: a range of layers only
}

double kernel_at(const Kernel *k, int layer) {
    const double x = fmin(1, fmax(0, 2 * (1 - fabs(layer - k->centre) / k->width)));
    return k->floor + x * (k->peak - k->floor);
}

double search_row(const Search *s, const Trial *t) {
    if (!s->n_row || t->u[0] < 0.5) return -1;
    const double at = fmin(2 * t->u[0] - 1, 1) * (s->n_row - 1);
    const int i = min_int((int)at, s->n_row - 1), next = min_int(i + 1, s->n_row - 1);
    if (!s->o->interpolate) return s->row[at - i < 0.5 ? i : next];
    return s->row[i] + (at - i) * (s->row[next] - s->row[i]);
}

// Strength 1 everywhere, the vectors as the file has them.
static void fixed_edit(const Search *s, Trial *t) {
    *t = (Trial){.u = {0}};
    for (int part = 0; part < s->n_part; part++) {
        double *u = t->u + first_coordinate(s, part);
        u[0] = u[1] = 0.5;
        u[2] = 1 / MOST_STRENGTH;
        u[3] = 1;
    }
}

static bool copy_direction(const Direction *from, Direction *to, Err *e) {
    const size_t rows = from->single ? 1 : (size_t)from->n_layer + 1, sites = (size_t)tap_n_site(from->n_layer);
    *to = *from;
    to->shape = NULL;
    to->row = malloc(rows * (size_t)from->n_embd * sizeof(float));
    to->length = malloc(((size_t)from->n_layer + 1) * sizeof(float));
    to->contrast = from->contrast ? malloc(sites * sizeof(float)) : NULL;
    if (!to->row || !to->length || (from->contrast && !to->contrast)) {
        direction_free(to);
        return err_set(e, "no memory for a direction");
    }
    memcpy(to->row, from->row, rows * (size_t)from->n_embd * sizeof(float));
    memcpy(to->length, from->length, ((size_t)from->n_layer + 1) * sizeof(float));
    if (from->contrast) memcpy(to->contrast, from->contrast, sites * sizeof(float));
    return true;
}

// The vector at a place between two rows, which are unit vectors and of one sign.
static bool vector_between(const Search *s, double row, Direction *d, Err *e) {
    const int n = s->d.n_embd, low = (int)row;
    int high = low;
    for (int i = 0; i < s->n_row && high <= low; i++) high = s->row[i]; // the next one that holds a vector
    const float *a = direction_row(&s->d, low), *b = direction_row(&s->d, max_int(high, low));
    const double share = high > low ? (row - low) / (high - low) : 0;
    double *v = malloc(sizeof *v * (size_t)n);
    if (!v) return err_set(e, "no memory for a direction");
    for (int i = 0; i < n; i++) v[i] = (1 - share) * a[i] + share * b[i];
    const bool ok = direction_single(d, s->d.n_layer, n, v, e);
    free(v);
    if (!ok) return false;
    memcpy(d->length, s->d.length, sizeof *d->length * ((size_t)s->d.n_layer + 1));
    free(d->contrast); // never measured along this vector
    d->contrast = NULL;
    d->layer = (int)lround(row);
    d->position = s->d.position;
    memcpy(d->model, s->d.model, sizeof d->model);
    memcpy(d->fingerprint, s->d.fingerprint, sizeof d->fingerprint);
    return true;
}

bool search_direction(const Search *s, int trial, Direction *d, Err *e) {
    const Trial *t = &s->trial[trial];
    const double row = search_row(s, t);
    if (!(row < 0 ? copy_direction(&s->d, d, e) : vector_between(s, row, d, e))) return false;
    const int L = s->d.n_layer;
    float *shape = calloc((size_t)L * N_SHAPE, sizeof *shape);
    bool ok = shape || err_set(e, "no memory for the strengths of %d layers", L);
    for (int part = 0; ok && part < s->n_part; part++) {
        const Kernel k = search_kernel(s, t, part);
        for (int l = 0; l < L; l++) shape[l * N_SHAPE + part] = (float)kernel_at(&k, l);
    }
    ok = ok && direction_set_shape(d, shape, e);
    d->mode = MODE_WRITE;
    d->strength = 1;
    free(shape);
    if (!ok) direction_free(d);
    return ok;
}

// ---- opening ----

static void hash_number(Sha256 *s, double v) { sha256_add(s, &v, sizeof v); }
static void hash_text(Sha256 *s, const char *text) { sha256_add(s, text ? text : "\1", text ? strlen(text) + 1 : 2); }

// Everything a trial's result depends on but the trials before it.
static void digest(Search *s) {
    const SearchOptions *o = s->o;
    Sha256 sha;
    char hex[65];
    sha256_start(&sha);
    model_fingerprint(&s->lab->m, hex);
    hash_text(&sha, hex);
    hash_text(&sha, s->direction_sha256);
    for (int side = 0; side < 2; side++) {
        hash_text(&sha, s->file[side].sha256);
        hash_number(&sha, s->set[side].n);
        hash_number(&sha, s->split[side].n_train);
    }
    const double numbers[] = {(double)o->seed, o->interpolate, o->lab.think, o->lab.no_template, N_START};
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) hash_number(&sha, numbers[i]);
    for (int i = 0; i < s->openers.n; i++) hash_number(&sha, s->openers.id[i]);
    hash_text(&sha, o->lab.system);
    hash_text(&sha, chat_family_name(&s->lab->chat));
    hash_text(&sha, s->lab->b.name);
    sha256_end(&sha, s->of);
}

static bool load_direction(Search *s, Err *e) {
    char *bytes;
    size_t n;
    if (!direction_load(&s->d, s->o->direction, &s->lab->m, e) || !read_whole_file(s->o->direction, &bytes, &n, e)) return false;
    sha256_of(bytes, n, s->direction_sha256);
    free(bytes);
    const int L = s->d.n_layer;
    s->row = calloc((size_t)L + 1, sizeof *s->row);
    if (!s->row) return err_set(e, "no memory for the rows of %s", s->o->direction);
    for (int l = 0; l <= L && !s->d.single; l++) {
        const float *row = direction_row(&s->d, l);
        bool any = false;
        for (int i = 0; i < s->d.n_embd && !any; i++) any = row[i] != 0;
        if (any) s->row[s->n_row++] = l;
    }
    s->n_part = s->lab->m.c.n_embd_per_layer ? N_SHAPE : N_SHAPE - 1;
    s->n_dim = first_coordinate(s, s->n_part);
    return true;
}

static bool read_prompts(Search *s, Err *e) {
    const SearchOptions *o = s->o;
    const char *const path[2] = {o->target, o->contrast};
    int longest = 0;
    for (int side = 0; side < 2; side++) {
        if (!prompts_read(&s->file[side], path[side], 5, e)) return false;
        if (!split_make(&s->split[side], &s->file[side], (uint64_t)o->seed, (uint64_t)side, o->train, o->check, 0, e)) return false;
        const Split *p = &s->split[side];
        const int n = o->train < 0 ? min_int(p->n_train, MOST_SEARCHED) : p->n_train;
        if (n < 1) return err_set(e, "%s: no prompts are left to search on", path[side]);
        if (!lab_encode(s->lab, &s->file[side], p->order, n, &s->set[side], e) || !lab_encode(s->lab, &s->file[side], p->order + p->n_train, p->n_check, &s->check_set[side], e))
            return false;
        longest = max_int(longest, max_int(set_longest(&s->set[side]), set_longest(&s->check_set[side])));
    }
    if (!strcmp(s->file[0].sha256, s->file[1].sha256)) return err_set(e, "%s and %s hold the same prompts: there is no contrast between them", o->target, o->contrast);
    return lab_ready(s->lab, longest, 0, e);
}

// The openers given, or those the direction was selected with, or those that tell the two sets apart.
static bool find_openers(Search *s, Err *e) {
    const int V = s->lab->m.c.n_vocab;
    if (s->o->openers) return openers_read(&s->openers, s->o->openers, s->lab, e);
    if (!openers_of_direction(&s->openers, s->o->direction, V, e)) return false;
    if (s->openers.n) return true;
    double *p = calloc(2 * (size_t)V, sizeof *p);
    bool ok = p || err_set(e, "no memory for probabilities");
    First f = {0};
    for (int side = 0; ok && side < 2; side++) {
        ok = first_open(&f, s->lab, s->set[side].n, false, true, e) && first_read(&f, s->lab, &s->set[side], &s->openers, NULL, NULL, e);
        for (int i = 0; ok && i < f.n; i++) probabilities_add(p + (int64_t)side * V, f.logits + (int64_t)i * V, V);
        for (int i = 0; ok && i < V; i++) p[(int64_t)side * V + i] /= f.n;
        first_close(&f);
    }
    if (ok && interrupted) ok = err_set(e, "interrupted, nothing is written"); // no state, either: of openers half learned
    ok = ok && openers_learn(&s->openers, p, p + V, V, e);
    free(p);
    return ok;
}

static bool load_state(Search *s, Err *e) {
    bool found = false;
    for (int i = 0; i < 2 * MAX_TRIAL; i++) s->kept[i] = NAN;
    if (!s->state_path) return true;
    if (!state_load(s->state_path, s->of, &(StateArray){"trial", s->kept, 2 * MAX_TRIAL}, 1, &found, e)) return false;
    if (s->lab->o.quiet) return true;
    int n = 0;
    while (n < MAX_TRIAL && !isnan(s->kept[2 * n])) n++;
    if (found) fprintf(stderr, "%s: going on: %d trials are done\n", s->state_path, n);
    else if (!access(s->state_path, F_OK)) fprintf(stderr, "%s: of other settings, starting afresh\n", s->state_path);
    return true;
}

static bool keep_state(Search *s, bool now, Err *e) {
    if (!s->state_path || (!now && seconds_now() - s->state_saved < STATE_SECONDS)) return true;
    s->state_saved = seconds_now();
    return state_save(s->state_path, s->of, &(StateArray){"trial", s->kept, 2 * MAX_TRIAL}, 1, e);
}

static bool stopped(Search *s, Err *e) {
    if (!s->state_path) return err_set(e, "interrupted, nothing is written");
    if (!keep_state(s, true, e)) return false;
    return err_set(e, "interrupted after %d trials, no direction is written; the same command goes on from %s", s->n_trial, s->state_path);
}

static bool steer_as(Search *s, int trial, Err *e) {
    Direction d;
    Steer *steer = &s->lab->steer;
    if (!search_direction(s, trial, &d, e)) return false;
    steer->mode = MODE_WRITE;
    steer->strength = 1;
    steer->first = -1;
    steer->on = true;
    if (steer_use(steer, &d, e)) return true;
    direction_free(&d);
    return false;
}

bool search_open(Search *s, Lab *lab, const SearchOptions *o, Err *e) {
    memset(s, 0, sizeof *s);
    s->o = o;
    s->lab = lab;
    s->chosen = -1;
    for (int i = 0; i < 3; i++) s->checked[i][0] = s->checked[i][1] = NAN;
    if (!load_direction(s, e) || !read_prompts(s, e)) return false;
    fixed_edit(s, &s->trial[0]);
    if (!steer_as(s, 0, e)) return false; // what cannot be edited is refused before anything is read
    lab->steer.on = false;
    if (!find_openers(s, e)) return false;
    s->kept = malloc(sizeof *s->kept * 2 * MAX_TRIAL);
    if (!s->kept) return err_set(e, "no memory for %d trials", MAX_TRIAL);
    if (o->state) s->state_path = strdup(o->state);
    else if (o->out) {
        s->state_path = malloc(strlen(o->out) + sizeof ".state");
        if (s->state_path) sprintf(s->state_path, "%s.state", o->out);
    }
    if ((o->state || o->out) && !s->state_path) return err_set(e, "no memory for a file name");
    s->state_saved = seconds_now();
    digest(s);
    if (!load_state(s, e)) return false;

    const double start = seconds_now();
    Bar bar;
    bar_start(&bar, "untouched", s->set[0].n + s->set[1].n);
    bool ok = true;
    for (int side = 0; ok && side < 2; side++) {
        ok = first_open(&s->base[side], lab, s->set[side].n, false, side == CONTRAST, e) && first_open(&s->now[side], lab, s->set[side].n, true, false, e) &&
             first_read(&s->base[side], lab, &s->set[side], &s->openers, NULL, &bar, e);
        s->untouched[side] = mean_of(s->base[side].score, s->base[side].n);
    }
    bar_end(&bar);
    s->seconds = seconds_now() - start;
    return ok;
}

void search_close(Search *s) {
    for (int side = 0; side < 2; side++) {
        prompts_free(&s->file[side]);
        split_free(&s->split[side]);
        set_free(&s->set[side]);
        set_free(&s->check_set[side]);
        first_close(&s->base[side]);
        first_close(&s->now[side]);
    }
    openers_free(&s->openers);
    direction_free(&s->d);
    free(s->row);
    free(s->state_path);
    free(s->kept);
    memset(s, 0, sizeof *s);
}

// ---- where to look ----

static void next_of_sequence(const Search *s, int k, double *u) {
    const int d = s->n_dim;
    double g = 2;
    for (int i = 0; i < 64; i++) g = pow(1 + g, 1.0 / (d + 1)); // converges to the root
    Rng rng = rng_seed((uint64_t)s->o->seed, 0x5E);
    double power = 1;
    for (int i = 0; i < d; i++) {
        const double shift = (double)(rng_next(&rng) >> 11) * 0x1p-53;
        power /= g;
        u[i] = fmod(shift + k * power, 1);
    }
}

static double reflected(double x) {
    x = fmod(fabs(x), 2);
    return x > 1 ? 2 - x : x;
}

static bool beats(const Trial *a, const Trial *b) { return a->score <= b->score && a->kl <= b->kl && (a->score < b->score || a->kl < b->kl); }

// Who is on the Pareto front of the trials done, and the one to be chosen. Of equals, the first.
static void rank(Search *s) {
    for (int i = 0; i < s->n_trial; i++) {
        Trial *t = &s->trial[i];
        t->pareto = isfinite(t->score) && isfinite(t->kl);
        for (int j = 0; j < s->n_trial && t->pareto; j++)
            t->pareto = !beats(&s->trial[j], t) && !(j < i && s->trial[j].score == t->score && s->trial[j].kl == t->kl);
    }
    s->chosen = 0;
    for (int i = 1; i < s->n_trial; i++)
        if (s->trial[i].score <= s->trial[0].score && s->trial[i].kl < s->trial[s->chosen].kl) s->chosen = i;
}

// What the trial does to the score, as a share of what the fixed edit does.
double search_effect(const Search *s, const Trial *t) { return (s->untouched[TARGET] - t->score) / (s->untouched[TARGET] - s->trial[0].score); }

// The KL it would have at the fixed edit's effect: for small changes the effect grows with the strength and the KL with its square.
// Who falls short is charged double: the strength may have to come from worse places.
static double merit(const Search *s, const Trial *t) {
    const double effect = search_effect(s, t);
    return effect > 0.5 && isfinite(t->kl) ? t->kl / pow(effect, effect < 1 ? 4 : 2) : INFINITY;
}

// Strengths times `scale`; where the peak cannot grow, the width does.
static void rescale(const Search *s, double scale, double *u) {
    for (int part = 0; part < s->n_part; part++) {
        double *at = u + first_coordinate(s, part);
        const double peak = scale * at[2];
        at[2] = fmin(1, peak);
        at[1] = fmin(1, at[1] + fmax(0, log(peak)) / log(s->d.n_layer));
    }
}

// Of the trials with the lowest merit the n-th (0: the best); -1: there are not as many.
static int nth_by_merit(const Search *s, int n) {
    bool taken[MAX_TRIAL] = {false};
    int best = -1;
    for (int k = 0; k <= n; k++) {
        best = -1;
        for (int i = 0; i < s->n_trial; i++)
            if (!taken[i] && isfinite(merit(s, &s->trial[i])) && (best < 0 || merit(s, &s->trial[i]) < merit(s, &s->trial[best]))) best = i;
        if (best < 0) return -1;
        taken[best] = true;
    }
    return best;
}

// A step from the best trial, or from one of the five best, brought to the fixed edit's effect; one time in four from any trial of
// the front that has at least half of that effect.
static void next_step(const Search *s, int k, double *u) {
    Rng rng = rng_seed((uint64_t)s->o->seed, 0x57E90000u + (uint64_t)k);
    const double size = fmax(LAST_STEP, FIRST_STEP * pow(STEP_SHRINKS, k - N_START));
    int front[MAX_TRIAL], n = 0;
    for (int i = 0; i < s->n_trial; i++)
        if (s->trial[i].pareto && search_effect(s, &s->trial[i]) >= 0.5) front[n++] = i;
    const int way = rng_below(&rng, 4), rank_of_way = way < 2 ? 0 : rng_below(&rng, 5);
    int parent = way < 3 ? nth_by_merit(s, rank_of_way) : n ? front[rng_below(&rng, n)] : -1;
    if (parent < 0) parent = s->chosen;
    const Trial *from = &s->trial[parent];
    memcpy(u, from->u, sizeof from->u);
    const int always = rng_below(&rng, s->n_dim);
    for (int i = 0; i < s->n_dim; i++) {
        const bool moves = rng_below(&rng, 2) || i == always;
        const double step = size * rng_normal(&rng);
        if (moves) u[i] = reflected(u[i] + step);
    }
    const double effect = search_effect(s, from);
    if (way < 3 && effect > 0.5) rescale(s, fmin(1.3, fmax(1 / 1.3, 1.01 / effect)), u);
}

// ---- trials ----

static bool measure(Search *s, const PromptSet set[2], const float *base, First now[2], double *score, double *kl, Bar *bar, Err *e) {
    if (!first_read(&now[TARGET], s->lab, &set[TARGET], &s->openers, NULL, bar, e) || !first_read(&now[CONTRAST], s->lab, &set[CONTRAST], &s->openers, base, bar, e))
        return false;
    *score = mean_of(now[TARGET].score, set[TARGET].n);
    *kl = mean_of(now[CONTRAST].kl, set[CONTRAST].n);
    if (isnan(*score) || isnan(*kl)) *score = *kl = INFINITY;
    return true;
}

bool search_run(Search *s, Err *e) {
    const int each = s->set[0].n + s->set[1].n;
    char label[96] = "trials";
    bool ok = true;
    Bar bar;
    bar_start(&bar, label, (double)s->o->trials * each);
    for (int k = 0; ok && k < s->o->trials && !interrupted; k++) {
        Trial *t = &s->trial[k];
        if (k == 0) fixed_edit(s, t);
        else {
            *t = (Trial){.u = {0}};
            if (k < N_START) next_of_sequence(s, k, t->u);
            else next_step(s, k, t->u);
        }
        double *kept = s->kept + 2 * k;
        if (isnan(kept[0])) {
            ok = steer_as(s, k, e) && measure(s, s->set, s->base[CONTRAST].logits, s->now, &t->score, &t->kl, &bar, e);
            if (!ok || interrupted) break;
            kept[0] = t->score;
            kept[1] = t->kl;
            ok = keep_state(s, false, e);
        } else bar.done += each;
        t->score = kept[0];
        t->kl = kept[1];
        s->n_trial = k + 1;
        rank(s);
        snprintf(label, sizeof label, "trial %d of %d; score %.2f KL %.3g, fixed edit %.2f %.3g", s->n_trial, s->o->trials, s->trial[s->chosen].score, s->trial[s->chosen].kl,
                 s->trial[0].score, s->trial[0].kl);
    }
    bar_end(&bar);
    s->lab->steer.on = false;
    if (ok && interrupted) ok = stopped(s, e);
    if (!ok || !keep_state(s, s->o->state != NULL, e)) return false;
    if (s->o->pick >= s->n_trial) return err_set(e, "option --pick is %d, expected one of the trials 0 to %d", s->o->pick, s->n_trial - 1);
    if (s->o->pick >= 0) s->chosen = s->o->pick;
    return true;
}

bool search_check(Search *s, Err *e) {
    const int n_t = s->check_set[TARGET].n, n_c = s->check_set[CONTRAST].n;
    if (!n_t || !n_c) return true;
    First base[2] = {{0}, {0}}, now[2] = {{0}, {0}};
    bool ok = true;
    Bar bar;
    bar_start(&bar, "prompts not searched on", 3.0 * (n_t + n_c));
    for (int side = 0; ok && side < 2; side++)
        ok = first_open(&base[side], s->lab, s->check_set[side].n, false, side == CONTRAST, e) && first_open(&now[side], s->lab, s->check_set[side].n, true, false, e) &&
             first_read(&base[side], s->lab, &s->check_set[side], &s->openers, NULL, &bar, e);
    if (ok) s->checked[0][0] = mean_of(base[TARGET].score, n_t), s->checked[0][1] = 0;
    const int trial[2] = {0, s->chosen};
    for (int i = 0; ok && i < 2; i++)
        ok = steer_as(s, trial[i], e) && measure(s, s->check_set, base[CONTRAST].logits, now, &s->checked[1 + i][0], &s->checked[1 + i][1], &bar, e);
    bar_end(&bar);
    s->lab->steer.on = false;
    for (int side = 0; side < 2; side++) {
        first_close(&base[side]);
        first_close(&now[side]);
    }
    return ok && (!interrupted || stopped(s, e));
}
