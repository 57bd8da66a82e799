// contributions.c: see contributions.h
#include "contributions.h"

#include <math.h>
#include <stdlib.h>

#include "pair.h" // writer_vectors

void contributions_free(Contributions *c) {
    free(c->of);
    free(c->stream);
    free(c->expert);
    free(c->chosen);
    *c = (Contributions){0};
}

// Room in a backend's memory for the rows that are looked at, and one expert of each.
typedef struct {
    Backend *b;
    float *x, *y, *weight; // [n_row][n_embd] twice, [n_row][n_used]
    int *expert;           // [n_row][n_used]
} Bench;

typedef struct {
    Contributions *c;
    const Lab *lab;
    const PromptSet *set;
    const double *r;
    double *scale;      // [n_layer + 1]: of what is written in layer l; n_layer: 1
    float *row;
    // Of models with experts, n_used of each row, the most of any layer
    Writers writers;
    int n_used;
    Bench bench[2];
    double *take;       // [n_embd]
    int n_row;          // of this layer's rows those that are looked at,
    int64_t *sample;    // [batch] which samples they are,
    int *expert;        // [batch][n_used] their experts,
    float *weight, *one; // [batch][n_used] the weights of these; with all but one 0
    double *adds, *all; // [batch][n_used] what each adds, [batch] all together, before the last norm
} Pass;

static double dot(const double *r, const float *x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += r[i] * x[i];
    return sum;
}

static double along(const Pass *p, const float *x) { return dot(p->r, x, p->lab->m.c.n_embd); }

// The stream itself: as it begins, and as it ends.
static void stream_row(void *ctx, int prompt, int from_end, int site, const float *x) {
    const Pass *p = ctx;
    const int L = p->lab->m.c.n_layer;
    const int64_t sample = (int64_t)prompt * p->c->n_pos + from_end;
    if (site == tap_site(TAP_RESID_PRE, 0)) p->c->of[sample * p->c->n_site] = (float)(along(p, x) * p->scale[0]);
    if (site == tap_site(TAP_RESID_PRE, L)) p->c->stream[sample] = along(p, x);
}

// Which sample row i of a span is; -1: none.
static int64_t sample_of(const Pass *p, const Span *g, int i) {
    const int prompt = p->lab->first + g->seq, from_end = p->set->ids[prompt].n - 1 - (g->pos + i);
    return from_end < p->c->n_pos ? (int64_t)prompt * p->c->n_pos + from_end : -1;
}

static const float *row_of(const Pass *p, const TapSite *t, int row) {
    t->backend->download(t->backend, p->row, t->rows + (int64_t)row * t->n_col, sizeof(float) * (size_t)t->n_col);
    return p->row;
}

static double rms(const float *x, int n, float eps) {
    double square = 0;
    for (int i = 0; i < n; i++) square += (double)x[i] * (double)x[i];
    return sqrt(square / n + (double)eps);
}

// Every chosen expert of the rows that are looked at, with the weights of the others 0: the very sums that the layer added up.
static void each_expert(Pass *p, const TapSite *t) {
    Backend *b = t->backend;
    const Bench *q = &p->bench[p->bench[1].b == b];
    const Layer *w = &p->lab->m.layers[t->layer];
    const int n_used = t->moe->n_used, n_embd = t->n_col;
    const size_t row_bytes = sizeof(float) * (size_t)n_used;
    p->n_row = 0;
    for (int i = 0; i < p->writers.n; i++)
        if (p->writers.of[i].layer == t->layer && p->writers.of[i].part == PART_EXPERTS) writer_vectors(&p->writers.of[i], p->r, p->take, NULL, n_embd);
    for (const Span *g = t->span; g < t->span + t->n_span; g++)
        for (int i = 0; i < g->n; i++) {
            const int row = g->row + i;
            if ((p->sample[p->n_row] = sample_of(p, g, i)) < 0) continue;
            const float *y = row_of(p, t, row);
            p->all[p->n_row] = dot(p->take, y, n_embd);
            const double norm = w->post_ffw_norm_2 ? rms(y, n_embd, p->lab->m.c.norm_eps) : 1;
            for (int j = 0; j < n_used; j++) p->adds[p->n_row * n_used + j] = 1 / norm;
            p->all[p->n_row] /= norm;
            b->download(b, p->expert + p->n_row * n_used, t->moe->expert + (int64_t)row * n_used, row_bytes);
            b->download(b, p->weight + p->n_row * n_used, t->moe->weight + (int64_t)row * n_used, row_bytes);
            b->copy_rows(b, q->x + (int64_t)p->n_row * n_embd, n_embd, t->moe->x + (int64_t)row * n_embd, n_embd, 1, n_embd);
            p->n_row++;
        }
    b->upload(b, q->expert, p->expert, row_bytes * (size_t)p->n_row);
    MoeArgs moe = *t->moe;
    moe.y = q->y, moe.x = q->x, moe.expert = q->expert, moe.weight = q->weight, moe.n_rows = p->n_row;
    for (int j = 0; p->n_row && j < n_used; j++) {
        for (int i = 0; i < p->n_row * n_used; i++) p->one[i] = i % n_used == j ? p->weight[i] : 0;
        b->upload(b, q->weight, p->one, row_bytes * (size_t)p->n_row);
        b->moe_ffn(b, &moe);
        for (int i = 0; i < p->n_row; i++) {
            b->download(b, p->row, q->y + (int64_t)i * n_embd, sizeof(float) * (size_t)n_embd);
            p->adds[i * n_used + j] *= dot(p->take, p->row, n_embd);
        }
    }
}

// The last norm divides all that is summed by the same.
static void experts_added(Pass *p, const TapSite *t) {
    Contributions *c = p->c;
    const Layer *w = &p->lab->m.layers[t->layer];
    const int n_used = w->d.n_expert_used;
    int k = 0;
    for (const Span *g = t->span; g < t->span + t->n_span; g++)
        for (int i = 0; i < g->n; i++) {
            if (sample_of(p, g, i) < 0) continue;
            const double factor = p->scale[t->layer] / (w->post_ffw_norm ? rms(row_of(p, t, g->row + i), t->n_col, p->lab->m.c.norm_eps) : 1);
            float *to = c->expert + (p->sample[k] * c->n_layer + t->layer) * c->n_expert;
            double sum = 0;
            for (int j = 0; j < n_used; j++) {
                const int e = p->expert[k * n_used + j];
                to[e] += (float)(p->adds[k * n_used + j] * factor);
                c->chosen[t->layer * c->n_expert + e]++;
                sum += p->adds[k * n_used + j] * factor;
            }
            c->expert_error = fmax(c->expert_error, fabs(sum - p->all[k] * factor));
            k++;
        }
}

static void written_rows(void *ctx, const TapSite *t) {
    Pass *p = ctx;
    const int which = t->point == TAP_ATTN_OUT ? SHAPE_ATTN : t->point == TAP_MLP_OUT ? SHAPE_FFN : t->point == TAP_PLE_OUT ? SHAPE_PER_LAYER : -1;
    if (t->point == TAP_EXPERTS && p->n_used) each_expert(p, t);
    if (t->point == TAP_MLP_SUM && p->n_used) experts_added(p, t);
    if (which < 0) return;
    for (const Span *g = t->span; g < t->span + t->n_span; g++)
        for (int i = 0; i < g->n; i++) {
            const int64_t sample = sample_of(p, g, i);
            if (sample >= 0) p->c->of[sample * p->c->n_site + site_of(t->layer, which)] = (float)(along(p, row_of(p, t, g->row + i)) * p->scale[t->layer]);
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
    const double usual = square > 0 ? sqrt(square / c->n_sample) : 1;
    c->error = worst / usual;
    c->expert_error /= usual;
}

// What experts need, if the model has any: at most n_row rows of a batch are looked at.
static bool pass_experts(Pass *p, int n_row, Err *e) {
    Contributions *c = p->c;
    const Model *m = &p->lab->m;
    for (int l = 0; l < m->c.n_layer; l++) {
        if (!m->layers[l].ffn_gate_inp) continue;
        c->n_expert = max_int(c->n_expert, m->layers[l].d.n_expert);
        p->n_used = max_int(p->n_used, m->layers[l].d.n_expert_used);
    }
    if (!p->n_used) return true;
    const size_t n = (size_t)n_row, n_pair = n * (size_t)p->n_used, row = (size_t)m->c.n_embd, n_each = (size_t)c->n_layer * (size_t)c->n_expert;
    c->expert = calloc((size_t)c->n_sample * n_each, sizeof *c->expert);
    c->chosen = calloc(n_each, sizeof *c->chosen);
    p->take = malloc(sizeof *p->take * row);
    p->sample = malloc(sizeof *p->sample * (n + 1)); // one more: it is asked for before it counts
    p->expert = malloc(sizeof *p->expert * n_pair);
    p->weight = malloc(sizeof *p->weight * n_pair);
    p->one = malloc(sizeof *p->one * n_pair);
    p->adds = malloc(sizeof *p->adds * n_pair);
    p->all = malloc(sizeof *p->all * n);
    bool ok = c->expert && c->chosen && p->take && p->sample && p->expert && p->weight && p->one && p->adds && p->all;
    for (int i = 0; ok && i < 2; i++) {
        Bench *q = &p->bench[i];
        if (!(q->b = p->lab->s.place[i])) continue;
        q->x = q->b->alloc(q->b, sizeof(float) * n * row);
        q->y = q->b->alloc(q->b, sizeof(float) * n * row);
        q->weight = q->b->alloc(q->b, sizeof(float) * n_pair);
        q->expert = q->b->alloc(q->b, sizeof(int) * n_pair);
        ok = q->x && q->y && q->weight && q->expert;
    }
    return (ok || err_set(e, "no memory for %d experts at %d positions", c->n_expert, c->n_sample)) && writers_open(&p->writers, m, e);
}

static void pass_close(Pass *p) {
    for (int i = 0; i < 2; i++) {
        Bench *q = &p->bench[i];
        void *const of[] = {q->x, q->y, q->weight, q->expert};
        for (int k = 0; k < 4; k++)
            if (of[k]) q->b->free(q->b, of[k]);
    }
    writers_close(&p->writers);
    free(p->take);
    free(p->sample);
    free(p->expert);
    free(p->weight);
    free(p->one);
    free(p->adds);
    free(p->all);
    free(p->scale);
    free(p->row);
}

bool contributions_measure(Contributions *c, Lab *lab, const PromptSet *set, int n_pos, const double *r, Bar *bar, Err *e) {
    const int L = lab->m.c.n_layer;
    *c = (Contributions){.n_site = site_count(L), .n_prompt = set->n, .n_pos = n_pos, .n_sample = set->n * n_pos, .n_layer = L};
    c->of = calloc((size_t)c->n_sample * (size_t)c->n_site, sizeof *c->of);
    c->stream = calloc((size_t)c->n_sample, sizeof *c->stream);
    Pass p = {.c = c, .lab = lab, .set = set, .r = r, .scale = malloc(sizeof *p.scale * ((size_t)L + 1)), .row = malloc(sizeof(float) * (size_t)lab->m.c.n_embd)};
    bool ok = (c->of && c->stream && p.scale && p.row) || err_set(e, "no memory for the contributions at %d positions", c->n_sample);
    if (ok) p.scale[L] = 1;
    for (int l = L - 1; ok && l >= 0; l--) p.scale[l] = p.scale[l + 1] * (lab->m.layers[l].output_scale != 0 ? lab->m.layers[l].output_scale : 1);
    // Ahead of the lab's own tap, which stays the last.
    const int at = lab->s.n_tap - 1;
    ok = ok && pass_experts(&p, min_int(lab->s.p.n_batch, max_int(1, lab->s.p.n_seq) * n_pos), e) && session_add_tap(&lab->s, (Tap){0}, e);
    if (ok) {
        lab->s.taps[at + 1] = lab->s.taps[at];
        lab->s.taps[at] = (Tap){.call = written_rows, .ctx = &p};
        ok = lab_read(lab, &(Reading){.prompt = set->ids, .n = set->n, .n_last = n_pos, .on_row = stream_row, .ctx = &p}, bar, e);
        lab->s.taps[at] = lab->s.taps[at + 1];
        lab->s.n_tap--;
    }
    pass_close(&p);
    if (ok) check_sums(c);
    return ok;
}

// The mean over prompts of the values of one position, n of each sample, taken away from another's.
static void centre(float *of, int n_prompt, const float *other, int n_other, int n_pos, int64_t n) {
    for (int pos = 0; pos < n_pos; pos++)
        for (int64_t k = 0; k < n; k++) {
            double sum = 0;
            for (int i = 0; i < n_other; i++) sum += other[((int64_t)i * n_pos + pos) * n + k];
            for (int i = 0; i < n_prompt; i++) of[((int64_t)i * n_pos + pos) * n + k] -= (float)(sum / n_other);
        }
}

void contributions_centre(Contributions *c, const Contributions *other) {
    centre(c->of, c->n_prompt, other->of, other->n_prompt, c->n_pos, c->n_site);
    if (c->n_expert) centre(c->expert, c->n_prompt, other->expert, other->n_prompt, c->n_pos, (int64_t)c->n_layer * c->n_expert);
}

// ---- the fewest ----

// What n parts write, one after the other: [n][n_sample]. Part 0, the embedding, is none of them.
typedef struct {
    const float *of;
    int n, n_sample;
} Parts;

static double square(const double *e, int n) {
    double sum = 0;
    for (int s = 0; s < n; s++) sum += e[s] * e[s];
    return sum;
}

// The part of which one that is edited more (step -1: less) leaves least of e. 0: none.
static int best_part(const Parts *c, double *e, const bool *allowed, int step, double *least) {
    const double whole = square(e, c->n_sample);
    int best = 0;
    *least = INFINITY;
    for (int k = 1; k < c->n; k++) {
        const float *x = c->of + (int64_t)k * c->n_sample;
        double both = 0, own = 0; // |e - step x|^2 = |e|^2 - 2 step e.x + |x|^2
        for (int s = 0; allowed[k] && s < c->n_sample; s++) both += e[s] * (double)x[s], own += (double)x[s] * (double)x[s];
        const double left = fmax(0, whole - 2 * step * both + own);
        if (allowed[k] && left < *least) *least = left, best = k;
    }
    for (int s = 0; best && s < c->n_sample; s++) e[s] -= step * (double)c->of[(int64_t)best * c->n_sample + s];
    if (best) *least = square(e, c->n_sample);
    return best;
}

// Edits the allowed parts, each time the one after which least is left, until no more than `share` is. e: all that is written.
static int forward(const Parts *c, double *e, bool *allowed, double share, double whole, int *order, double *left) {
    int n = 0;
    double least;
    for (int k; !(n && left[n - 1] <= share) && (k = best_part(c, e, allowed, 1, &least)); n++) {
        allowed[k] = false;
        order[n] = k;
        left[n] = sqrt(least / whole);
    }
    return n;
}

static int fewest(const Parts *c, double share, int *order, double *left) {
    const size_t n_sample = (size_t)c->n_sample;
    double *all = calloc(3 * n_sample + 1, sizeof *all), *again = all + n_sample, *e = again + n_sample, least;
    bool *writes = calloc(2 * (size_t)c->n, sizeof *writes), *needed = writes + c->n;
    int n = 0;
    const bool ok = all && writes;
    for (int k = 1; ok && k < c->n; k++)
        for (int s = 0; s < c->n_sample; s++) {
            const float x = c->of[(int64_t)k * c->n_sample + s];
            all[s] += (double)x;
            writes[k] |= x != 0;
        }
    const double whole = ok ? square(all, c->n_sample) : 0;
    if (ok && whole > 0) {
        memcpy(again, all, sizeof *all * n_sample);
        memcpy(needed, writes, sizeof *writes * (size_t)c->n);
        // From all of them, those that are not missed may stay.
        for (int k; (k = best_part(c, e, needed, -1, &least)) && least <= share * share * whole;) needed[k] = false;
        int n_needed = 0;
        for (int k = 1; k < c->n; k++) n_needed += needed[k];
        n = forward(c, all, writes, share, whole, order, left);
        if (n > n_needed) n = forward(c, again, needed, share, whole, order, left);
    }
    free(all);
    free(writes);
    return n;
}

int contributions_fewest(const Contributions *c, double share, int *order, double *left) {
    float *of = malloc(sizeof *of * (size_t)c->n_site * (size_t)c->n_sample);
    for (int k = 0; of && k < c->n_site; k++)
        for (int s = 0; s < c->n_sample; s++) of[(int64_t)k * c->n_sample + s] = c->of[(int64_t)s * c->n_site + k];
    const int n = of ? fewest(&(Parts){of, c->n_site, c->n_sample}, share, order, left) : 0;
    free(of);
    return n;
}

double contributions_beside(const Contributions *c, int sample, int layer) {
    double x = c->of[(int64_t)sample * c->n_site + site_of(layer, SHAPE_FFN)];
    for (int k = 0; k < c->n_expert; k++) x -= c->expert[((int64_t)sample * c->n_layer + layer) * c->n_expert + k];
    return x;
}

int contributions_fewest_tensors(const Contributions *c, const Writers *w, double share, int *order, double *left) {
    const int n_tensor = tensor_count(c);
    float *of = calloc((size_t)n_tensor * (size_t)c->n_sample, sizeof *of);
    for (int i = 0; of && i < w->n; i++) {
        const int l = w->of[i].layer, k = site_of(l, part_shape(w->of[i].part));
        for (int s = 0; s < c->n_sample; s++) {
            if (w->of[i].part != PART_EXPERTS) {
                of[(int64_t)k * c->n_sample + s] = w->of[i].part == PART_FFN ? (float)contributions_beside(c, s, l) : c->of[(int64_t)s * c->n_site + k];
                continue;
            }
            for (int x = 0; x < c->n_expert; x++) of[(int64_t)expert_tensor(c, l, x) * c->n_sample + s] = c->expert[((int64_t)s * c->n_layer + l) * c->n_expert + x];
        }
    }
    const int n = of ? fewest(&(Parts){of, n_tensor, c->n_sample}, share, order, left) : 0;
    free(of);
    return n;
}

// Sum of squares over samples of what is left: e less the sites first .. last.
static double square_without(const Contributions *c, const double *e, int first, int last) {
    double sum = 0;
    for (int s = 0; s < c->n_sample; s++) {
        double left = e[s];
        for (int k = first; k <= last; k++) left -= c->of[(int64_t)s * c->n_site + k];
        sum += left * left;
    }
    return sum;
}

static double *all_layers(const Contributions *c) {
    double *e = calloc((size_t)c->n_sample + 1, sizeof *e);
    for (int s = 0; e && s < c->n_sample; s++)
        for (int k = 1; k < c->n_site; k++) e[s] += c->of[(int64_t)s * c->n_site + k];
    return e;
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
