// select.c: see select.h. The scores and the rule are those of Arditi et al. 2024, appendix C: lowest bypass among the candidates
// with KL <= 0.1, induce > 0 and a layer below 0.8 of all; candidates within 0.3 of it are equal, and the lowest KL among them
// wins. Beyond the paper a direction must hold on prompts it was not made from: the labels must show in how the model answers
// them, r.x must tell them apart, the two halves of the training prompts must agree, and removing it must do more than
// removing any random direction.
#include "select.h"

#include <math.h>
#include <stdlib.h>

#define NEAR_TIE 0.3
#define LEAST_RELIABLE 0.9
#define MOST_P 0.01

void selection_free(Selection *s) {
    for (int side = 0; side < 2; side++) {
        first_close(&s->base[side]);
        first_close(&s->now[side]);
        free(s->site_mean[side]);
    }
    free(s->random);
    free(s->shuffled);
    free(s->shuffled_cos);
    *s = (Selection){.chosen = -1};
}

// ---- the check prompts, untouched ----

typedef struct {
    Extraction *x;
    int side;
    double *along;  // [n_candidate][2][check]: r.x
    const float *unit; // [n_candidate][n_embd]
    int most;       // check prompts of the larger side
    First *first;
    int n_vocab;
} BasePass;

static int candidate_at(const Extraction *x, int pos, int layer) { return pos * (x->lab->m.c.n_layer - 1) + layer - 1; }

static void base_row(void *ctx, int prompt, int from_end, int site, const float *row) {
    const BasePass *p = ctx;
    const int n = p->x->lab->m.c.n_embd, layer = site / 3;
    if (site % 3 || layer == 0 || layer == p->x->lab->m.c.n_layer) return;
    const int64_t k = candidate_at(p->x, from_end, layer);
    const float *r = p->unit + k * n;
    double along = 0;
    for (int i = 0; i < n; i++) along += (double)r[i] * row[i];
    p->along[(k * 2 + p->side) * p->most + prompt] = along;
}

static void base_logits(void *ctx, int prompt, int from_end, const float *logits) {
    const BasePass *p = ctx;
    (void)from_end;
    first_take(p->first, prompt, logits, p->n_vocab, &p->x->openers, NULL);
}

// Opener scores and logits of the check prompts, and how well every candidate tells them apart.
static bool read_base(Selection *s, Err *e) {
    Extraction *x = s->x;
    const int n = x->lab->m.c.n_embd, most = max_int(x->check[0].n, x->check[1].n);
    const size_t count = (size_t)max_int(x->n_candidate, 1);
    float *unit = calloc(count * (size_t)n, sizeof *unit);
    double *along = calloc(count * 2 * (size_t)most, sizeof *along), *r = malloc(sizeof *r * (size_t)n), *scratch = malloc(sizeof *scratch * 2 * (size_t)n);
    bool ok = (unit && along && r && scratch) || err_set(e, "no memory for %d candidates", x->n_candidate);
    for (int pos = 0; ok && pos < x->n_pos; pos++)
        for (int l = 1; l < x->lab->m.c.n_layer; l++) {
            Candidate *c = &x->candidate[candidate_at(x, pos, l)];
            *c = (Candidate){.pos = pos, .layer = l, .bypass = NAN, .induce = NAN, .kl = NAN};
            c->d = difference_of(&x->mean[TARGET], &x->mean[CONTRAST], pos, l, x->mask, r, scratch);
            for (int i = 0; i < n && c->d.length > 0; i++) unit[candidate_at(x, pos, l) * n + i] = (float)(r[i] / c->d.length);
        }
    Bar bar;
    bar_start(&bar, "check prompts", x->check[0].n + x->check[1].n);
    for (int side = 0; ok && side < 2; side++) {
        BasePass p = {.x = x, .side = side, .along = along, .unit = unit, .most = most, .first = &s->base[side], .n_vocab = x->lab->m.c.n_vocab};
        ok = lab_read(x->lab, &(Reading){.prompt = x->check[side].ids, .n = x->check[side].n, .n_last = x->n_pos, .on_row = base_row, .n_logits = 1,
                                         .on_logits = base_logits, .ctx = &p}, &bar, e);
        s->base_score[side] = mean_of(s->base[side].score, s->base[side].n);
    }
    bar_end(&bar);
    for (int k = 0; ok && k < x->n_candidate; k++) {
        const Larger apart = larger(along + ((int64_t)k * 2 + TARGET) * most, x->check[TARGET].n, along + ((int64_t)k * 2 + CONTRAST) * most, x->check[CONTRAST].n);
        x->candidate[k].auc = apart.auc;
        x->candidate[k].p = apart.p;
    }
    s->labels = larger(s->base[TARGET].score, s->base[TARGET].n, s->base[CONTRAST].score, s->base[CONTRAST].n);
    free(unit);
    free(along);
    free(r);
    free(scratch);
    return ok;
}

// ---- what a direction does ----

// vector [n_embd], of any length; `length` is what is added entering `layer`.
static bool effect_of(Selection *s, const double *vector, double length, int layer, Effect *out, Bar *bar, Err *e) {
    Extraction *x = s->x;
    Steer *steer = &x->lab->steer;
    Direction d;
    if (!direction_single(&d, x->lab->m.c.n_layer, x->lab->m.c.n_embd, vector, e)) return false;
    d.layer = layer;
    d.length[layer] = (float)length;
    steer->mode = MODE_PROJECT;
    steer->strength = 1;
    steer->first = -1;
    steer->on = true;
    bool ok = steer_use(steer, &d, e) && first_read(&s->now[TARGET], x->lab, &x->check[TARGET], &x->openers, NULL, bar, e) &&
              first_read(&s->now[CONTRAST], x->lab, &x->check[CONTRAST], &x->openers, s->base[CONTRAST].logits, bar, e);
    if (ok) {
        out->bypass = mean_of(s->now[TARGET].score, s->now[TARGET].n);
        out->kl = mean_of(s->now[CONTRAST].kl, s->now[CONTRAST].n);
        steer->mode = MODE_ADD;
        ok = steer_prepare(steer, e) && first_read(&s->now[CONTRAST], x->lab, &x->check[CONTRAST], &x->openers, s->base[CONTRAST].logits, bar, e);
        out->induce = mean_of(s->now[CONTRAST].score, s->now[CONTRAST].n);
    }
    steer->on = false;
    return ok;
}

static const char *objection(const Selection *s, const Candidate *c) {
    const ExtractOptions *o = s->x->o;
    if (c->layer >= o->max_layer * s->x->lab->m.c.n_layer) return "layer too late";
    if (!(c->d.length > 0)) return "no difference";
    if (!isfinite(c->bypass) || !isfinite(c->induce) || !isfinite(c->kl)) return "not a number";
    if (c->kl > o->max_kl) return "KL too large";
    if (c->induce < o->min_induce) return "does not induce";
    if (c->d.reliable < LEAST_RELIABLE) return "halves disagree";
    if (!(c->p < MOST_P)) return "does not separate";
    return NULL;
}

static bool score_candidates(Selection *s, Err *e) {
    Extraction *x = s->x;
    const int L = x->lab->m.c.n_layer, each = x->check[TARGET].n + 2 * x->check[CONTRAST].n;
    double *r = malloc(sizeof *r * (size_t)x->lab->m.c.n_embd);
    bool ok = r || err_set(e, "no memory for a direction");
    int n_late = 0;
    for (int k = 0; k < x->n_candidate; k++) n_late += x->candidate[k].layer >= x->o->max_layer * L;
    Bar bar;
    bar_start(&bar, "candidates", (double)(x->n_candidate - n_late) * each);
    for (int k = 0; ok && k < x->n_candidate && !interrupted; k++) {
        Candidate *c = &x->candidate[k];
        double *kept = x->score + 3 * k; // from an earlier run
        if (c->layer >= x->o->max_layer * L) continue;
        if (isnan(kept[0]) && c->d.length > 0) {
            Effect f;
            extraction_difference(x, c->pos, c->layer, r);
            ok = effect_of(s, r, c->d.length, c->layer, &f, &bar, e);
            if (!ok || interrupted) break;
            kept[0] = f.bypass;
            kept[1] = f.induce;
            kept[2] = f.kl;
            ok = extraction_keep(x, false, e);
        } else bar.done += each;
        c->bypass = kept[0];
        c->induce = kept[1];
        c->kl = kept[2];
    }
    bar_end(&bar);
    free(r);
    return ok;
}

static void choose(Selection *s) {
    Extraction *x = s->x;
    double lowest = INFINITY;
    s->chosen = -1;
    for (int k = 0; k < x->n_candidate; k++) {
        x->candidate[k].why = objection(s, &x->candidate[k]);
        if (!x->candidate[k].why) lowest = fmin(lowest, x->candidate[k].bypass);
    }
    for (int k = 0; k < x->n_candidate; k++) {
        const Candidate *c = &x->candidate[k];
        if (c->why || c->bypass > lowest + NEAR_TIE) continue;
        if (s->chosen < 0 || c->kl < x->candidate[s->chosen].kl) s->chosen = k;
    }
}

// ---- controls ----

typedef struct {
    Extraction *x;
    int side, pos, site;
    float *rows;        // [train of both][n_embd] at the chosen site
    const float *unit;  // [n_embd]
    double *site_mean;  // sums
} ProfilePass;

static void profile_row(void *ctx, int prompt, int from_end, int site, const float *row) {
    const ProfilePass *p = ctx;
    const int n = p->x->lab->m.c.n_embd;
    if (from_end != p->pos) return;
    if (site == p->site) memcpy(p->rows + ((int64_t)(p->side == TARGET ? 0 : p->x->train[TARGET].n) + prompt) * n, row, sizeof(float) * (size_t)n);
    double along = 0;
    for (int i = 0; i < n; i++) along += (double)p->unit[i] * row[i];
    p->site_mean[site] += along;
}

static bool run_controls(Selection *s, Err *e) {
    Extraction *x = s->x;
    const Candidate *c = &x->candidate[s->chosen];
    const int n = x->lab->m.c.n_embd, n_t = x->train[TARGET].n, n_all = n_t + x->train[CONTRAST].n, n_control = x->o->n_control;
    s->n_control = n_control;
    s->random = calloc((size_t)max_int(n_control, 1), sizeof *s->random);
    s->shuffled = calloc((size_t)max_int(n_control, 1), sizeof *s->shuffled);
    s->shuffled_cos = calloc((size_t)max_int(n_control, 1), sizeof *s->shuffled_cos);
    double *r = malloc(sizeof *r * (size_t)n), *v = malloc(sizeof *v * (size_t)n);
    float *unit = malloc(sizeof *unit * (size_t)n), *rows = calloc((size_t)n_all * (size_t)n, sizeof *rows);
    int *order = malloc(sizeof *order * (size_t)n_all);
    bool ok = s->random && s->shuffled && s->shuffled_cos && r && v && unit && rows && order;
    for (int side = 0; side < 2; side++) {
        s->site_mean[side] = calloc((size_t)tap_n_site(x->lab->m.c.n_layer), sizeof(double));
        ok = ok && s->site_mean[side];
    }
    if (!ok) err_set(e, "no memory for the controls");
    if (ok) {
        extraction_difference(x, c->pos, c->layer, r);
        for (int i = 0; i < n; i++) unit[i] = (float)(r[i] / c->d.length);
    }
    Bar bar;
    bar_start(&bar, "controls", n_all + 2.0 * n_control * (x->check[TARGET].n + 2 * x->check[CONTRAST].n));
    for (int side = 0; ok && side < 2; side++) {
        ProfilePass p = {.x = x, .side = side, .pos = c->pos, .site = 3 * c->layer, .rows = rows, .unit = unit, .site_mean = s->site_mean[side]};
        ok = lab_read(x->lab, &(Reading){.prompt = x->train[side].ids, .n = x->train[side].n, .n_last = c->pos + 1, .on_row = profile_row, .ctx = &p}, &bar, e);
        for (int i = 0; i < tap_n_site(x->lab->m.c.n_layer); i++) s->site_mean[side][i] /= x->train[side].n;
    }
    Rng rng = rng_seed((uint64_t)x->o->seed, 0xC0);
    for (int k = 0; ok && k < n_control && !interrupted; k++) {
        for (int i = 0; i < n; i++) v[i] = rng_normal(&rng);
        ok = effect_of(s, v, c->d.length, c->layer, &s->random[k], &bar, e);
        for (int i = 0; i < n_all; i++) order[i] = i;
        rng_shuffle(&rng, order, n_all);
        memset(v, 0, sizeof *v * (size_t)n);
        for (int i = 0; i < n_all; i++) {
            const double share = i < n_t ? 1.0 / n_t : -1.0 / (n_all - n_t);
            for (int j = 0; j < n; j++) v[j] += share * rows[(int64_t)order[i] * n + j];
        }
        s->shuffled_cos[k] = dot_of(v, r, n) / sqrt(dot_of(v, v, n) * dot_of(r, r, n));
        ok = ok && effect_of(s, v, c->d.length, c->layer, &s->shuffled[k], &bar, e);
    }
    bar_end(&bar);
    free(r);
    free(v);
    free(unit);
    free(rows);
    free(order);
    return ok;
}

// ---- the verdict ----

// False: there is no direction to be found, and why says so.
static bool labels_hold(Selection *s) {
    const Extraction *x = s->x;
    for (int side = 0; side < 2; side++) {
        const double kept = x->mean[side].n[0] + x->mean[side].n[1];
        if (kept >= 4) continue;
        snprintf(s->why, sizeof s->why, "only %.0f of %d %s prompts %s an opener", kept, x->train[side].n, side == TARGET ? "target" : "contrast",
                 side == TARGET ? "are answered with" : "are answered without");
        return false;
    }
    if (s->labels.p < MOST_P) return true;
    snprintf(s->why, sizeof s->why, "on prompts it has not learned from, target answers begin no differently from contrast answers (AUC %.2f, p %.2g)", s->labels.auc, s->labels.p);
    return false;
}

static bool beats_controls(Selection *s) {
    const Candidate *c = &s->x->candidate[s->chosen];
    const double effect = s->base_score[TARGET] - c->bypass, half = (s->base_score[TARGET] - s->base_score[CONTRAST]) / 2;
    double most = -INFINITY;
    for (int k = 0; k < s->n_control; k++) most = fmax(most, s->base_score[TARGET] - s->random[k].bypass);
    if (!(effect > most)) {
        snprintf(s->why, sizeof s->why, "removing the best candidate lowers the score by %.2f, removing a random direction by up to %.2f", effect, most);
        return false;
    }
    if (effect < half) {
        snprintf(s->why, sizeof s->why, "removing the best candidate lowers the score by %.2f, less than half of the %.2f that lie between the two sets", effect, 2 * half);
        return false;
    }
    return true;
}

bool selection_make(Selection *s, Extraction *x, Err *e) {
    *s = (Selection){.x = x, .chosen = -1};
    x->lab->steer.on = false;
    for (int side = 0; side < 2; side++)
        if (!first_open(&s->base[side], x->lab, x->check[side].n, false, side == CONTRAST, e) || !first_open(&s->now[side], x->lab, x->check[side].n, true, false, e))
            return false;
    if (!read_base(s, e)) return false;
    if (interrupted) return extraction_stopped(x, e);
    if (!labels_hold(s)) return true;
    if (!score_candidates(s, e)) return false;
    if (interrupted) return extraction_stopped(x, e);
    choose(s);
    if (s->chosen < 0) {
        snprintf(s->why, sizeof s->why, "every candidate fails a test; the last column says which");
        return true;
    }
    if (!run_controls(s, e)) return false;
    if (interrupted) return extraction_stopped(x, e);
    if (!beats_controls(s)) {
        x->candidate[s->chosen].why = "no better than chance";
        s->chosen = -1;
    }
    return true;
}

bool selection_direction(const Selection *s, const Extraction *x, Direction *d, Err *e) {
    const Config *c = &x->lab->m.c;
    const Candidate *best = s && s->chosen >= 0 ? &x->candidate[s->chosen] : NULL;
    double *r = malloc(sizeof *r * (size_t)c->n_embd);
    if (!r) return err_set(e, "no memory for the direction");
    extraction_difference(x, best ? best->pos : 0, best ? best->layer : c->n_layer, r);
    bool ok = direction_single(d, c->n_layer, c->n_embd, r, e);
    const bool per_layer = ok && (!best || x->o->per_layer);
    if (per_layer) {
        float *rows = calloc((size_t)(c->n_layer + 1) * (size_t)c->n_embd, sizeof *rows);
        ok = rows || err_set(e, "no memory for the directions");
        if (ok) {
            free(d->row);
            d->row = rows;
            d->single = false;
        }
    }
    for (int l = 0; ok && l <= c->n_layer; l++) {
        extraction_difference(x, best ? best->pos : 0, l, r);
        const double length = sqrt(dot_of(r, r, c->n_embd));
        d->length[l] = (float)length;
        for (int i = 0; i < c->n_embd && per_layer && length > 0; i++) d->row[(int64_t)l * c->n_embd + i] = (float)(r[i] / length);
    }
    if (ok && best) {
        d->layer = best->layer;
        d->position = -1 - best->pos;
    }
    if (ok && best && !per_layer) for (int i = 0; i < tap_n_site(c->n_layer); i++) d->contrast[i] = (float)s->site_mean[CONTRAST][i];
    else if (ok) {
        free(d->contrast);
        d->contrast = NULL;
    }
    if (ok) {
        const char *slash = strrchr(x->o->lab.model, '/');
        snprintf(d->model, sizeof d->model, "%.90s", slash ? slash + 1 : x->o->lab.model);
        model_fingerprint(&x->lab->m, d->fingerprint);
    }
    free(r);
    if (!ok) direction_free(d);
    return ok;
}
