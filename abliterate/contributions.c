// contributions.c: see contributions.h
#include "contributions.h"

#include <math.h>
#include <stdlib.h>

void contributions_free(Contributions *c) {
    free(c->of);
    free(c->stream);
    *c = (Contributions){0};
}

typedef struct {
    Contributions *c;
    const Lab *lab;
    const PromptSet *set;
    const double *r, *scale; // scale [n_layer + 1]: of what is written in layer l; n_layer: 1
    float *row;
} Pass;

static double along(const Pass *p, const float *x) {
    double sum = 0;
    for (int i = 0; i < p->lab->m.c.n_embd; i++) sum += p->r[i] * x[i];
    return sum;
}

// The stream itself: as it begins, and as it ends.
static void stream_row(void *ctx, int prompt, int from_end, int site, const float *x) {
    const Pass *p = ctx;
    const int L = p->lab->m.c.n_layer;
    const int64_t sample = (int64_t)prompt * p->c->n_pos + from_end;
    if (site == tap_site(TAP_RESID_PRE, 0)) p->c->of[sample * p->c->n_site] = (float)(along(p, x) * p->scale[0]);
    if (site == tap_site(TAP_RESID_PRE, L)) p->c->stream[sample] = along(p, x);
}

static void written_rows(void *ctx, const TapSite *t) {
    const Pass *p = ctx;
    const int which = t->point == TAP_ATTN_OUT ? SHAPE_ATTN : t->point == TAP_MLP_OUT ? SHAPE_FFN : t->point == TAP_PLE_OUT ? SHAPE_PER_LAYER : -1;
    if (which < 0) return;
    for (const Span *g = t->span; g < t->span + t->n_span; g++) {
        const int prompt = p->lab->first + g->seq, length = p->set->ids[prompt].n;
        for (int i = max_int(0, length - p->c->n_pos - g->pos); i < g->n; i++) {
            const int64_t sample = (int64_t)prompt * p->c->n_pos + length - 1 - (g->pos + i);
            t->backend->download(t->backend, p->row, t->rows + (int64_t)(g->row + i) * t->n_col, sizeof(float) * (size_t)t->n_col);
            p->c->of[sample * p->c->n_site + site_of(t->layer, which)] = (float)(along(p, p->row) * p->scale[t->layer]);
        }
    }
}

static void check_sums(Contributions *c) {
    double square = 0, worst = 0;
    for (int s = 0; s < c->n_sample; s++) {
        double sum = 0;
        for (int k = 0; k < c->n_site; k++) sum += c->of[(int64_t)s * c->n_site + k];
        worst = fmax(worst, fabs(sum - c->stream[s]));
        square += c->stream[s] * c->stream[s];
    }
    c->error = square > 0 ? worst / sqrt(square / c->n_sample) : worst;
}

bool contributions_measure(Contributions *c, Lab *lab, const PromptSet *set, int n_pos, const double *r, Bar *bar, Err *e) {
    const int L = lab->m.c.n_layer;
    *c = (Contributions){.n_site = site_count(L), .n_prompt = set->n, .n_pos = n_pos, .n_sample = set->n * n_pos};
    c->of = calloc((size_t)c->n_sample * (size_t)c->n_site, sizeof *c->of);
    c->stream = calloc((size_t)c->n_sample, sizeof *c->stream);
    double *scale = malloc(sizeof *scale * ((size_t)L + 1));
    Pass p = {c, lab, set, r, scale, malloc(sizeof(float) * (size_t)lab->m.c.n_embd)};
    bool ok = (c->of && c->stream && scale && p.row) || err_set(e, "no memory for the contributions at %d positions", c->n_sample);
    if (ok) scale[L] = 1;
    for (int l = L - 1; ok && l >= 0; l--) scale[l] = scale[l + 1] * (lab->m.layers[l].output_scale != 0 ? lab->m.layers[l].output_scale : 1);
    // Ahead of the lab's own tap, which stays the last.
    const int at = lab->s.n_tap - 1;
    ok = ok && session_add_tap(&lab->s, (Tap){0}, e);
    if (ok) {
        lab->s.taps[at + 1] = lab->s.taps[at];
        lab->s.taps[at] = (Tap){.call = written_rows, .ctx = &p};
        ok = lab_read(lab, &(Reading){.prompt = set->ids, .n = set->n, .n_last = n_pos, .on_row = stream_row, .ctx = &p}, bar, e);
        lab->s.taps[at] = lab->s.taps[at + 1];
        lab->s.n_tap--;
    }
    free(scale);
    free(p.row);
    if (ok) check_sums(c);
    return ok;
}

void contributions_centre(Contributions *c, const Contributions *other) {
    for (int pos = 0; pos < c->n_pos; pos++)
        for (int k = 0; k < c->n_site; k++) {
            double sum = 0;
            for (int i = 0; i < other->n_prompt; i++) sum += other->of[((int64_t)i * other->n_pos + pos) * other->n_site + k];
            for (int i = 0; i < c->n_prompt; i++) c->of[((int64_t)i * c->n_pos + pos) * c->n_site + k] -= (float)(sum / other->n_prompt);
        }
}

// Sum of squares over samples of what is left: e less the sites first .. last.
static double square_without(const Contributions *c, const double *e, int first, int last) {
    double square = 0;
    for (int s = 0; s < c->n_sample; s++) {
        double left = e[s];
        for (int k = first; k <= last; k++) left -= c->of[(int64_t)s * c->n_site + k];
        square += left * left;
    }
    return square;
}

static double *all_layers(const Contributions *c) {
    double *e = calloc((size_t)c->n_sample + 1, sizeof *e);
    for (int s = 0; e && s < c->n_sample; s++)
        for (int k = 1; k < c->n_site; k++) e[s] += c->of[(int64_t)s * c->n_site + k];
    return e;
}

// Sites of which one that is edited more (step -1: less) leaves least. 0: none.
static int best_site(const Contributions *c, double *e, const bool *allowed, int step, double *least) {
    int best = 0;
    *least = INFINITY;
    for (int k = 1; k < c->n_site; k++) {
        if (!allowed[k]) continue;
        double square = 0;
        for (int s = 0; s < c->n_sample; s++) square += pow(e[s] - step * (double)c->of[(int64_t)s * c->n_site + k], 2);
        if (square < *least) *least = square, best = k;
    }
    for (int s = 0; best && s < c->n_sample; s++) e[s] -= step * (double)c->of[(int64_t)s * c->n_site + best];
    return best;
}

// Edits the allowed sites, each time the one after which least is left, until no more than `share` is. e: all that is written.
static int forward(const Contributions *c, double *e, bool *allowed, double share, double square, int *order, double *left) {
    int n = 0;
    double least;
    for (int k; !(n && left[n - 1] <= share) && (k = best_site(c, e, allowed, 1, &least)); n++) {
        allowed[k] = false;
        order[n] = k;
        left[n] = sqrt(least / square);
    }
    return n;
}

int contributions_fewest(const Contributions *c, double share, int *order, double *left) {
    double *all = all_layers(c), *again = all_layers(c), *e = calloc((size_t)c->n_sample + 1, sizeof *e), least;
    bool *writes = calloc((size_t)c->n_site, sizeof *writes), *needed = calloc((size_t)c->n_site, sizeof *needed);
    int n = 0;
    const bool ok = all && again && e && writes && needed;
    const double square = ok ? square_without(c, all, 1, 0) : 0;
    for (int k = 1; ok && square > 0 && k < c->n_site; k++) {
        for (int s = 0; s < c->n_sample; s++) writes[k] |= c->of[(int64_t)s * c->n_site + k] != 0;
        needed[k] = writes[k];
    }
    // From all of them, those that are not missed may stay.
    for (int k; ok && (k = best_site(c, e, needed, -1, &least)) && least <= share * share * square;) needed[k] = false;
    int n_needed = 0;
    for (int k = 1; ok && k < c->n_site; k++) n_needed += needed[k];
    if (ok) n = forward(c, all, writes, share, square, order, left);
    if (n > n_needed) n = forward(c, again, needed, share, square, order, left);
    free(all);
    free(again);
    free(e);
    free(writes);
    free(needed);
    return n;
}

void contributions_range(const Contributions *c, double share, int *first, int *last) {
    double *e = all_layers(c);
    const int L = (c->n_site - 1) / N_SHAPE;
    const double all = e ? square_without(c, e, 1, 0) : 0;
    *first = 0;
    *last = L - 1;
    for (int n = 1; e && n < L; n++)
        for (int l = 0; l + n <= L; l++)
            if (square_without(c, e, site_of(l, 0), site_of(l + n - 1, N_SHAPE - 1)) <= share * share * all) {
                *first = l;
                *last = l + n - 1;
                free(e);
                return;
            }
    free(e);
}
