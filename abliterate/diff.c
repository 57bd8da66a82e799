// diff.c: see diff.h
#include "diff.h"

#include <math.h>
#include <stdlib.h>

#include "console.h"
#include "json.h"
#include "means.h"
#include "stats.h"

enum { N_ROUND = 5, N_STEP = 4, N_PASS = N_ROUND + N_STEP + 4 }; // most passes over the differences

const char *how_name(How how) {
    static const char *const NAMES[N_HOW] = {"plain", "oblique", "gained"};
    return NAMES[how];
}

void diff_free(Diff *d) {
    for (int i = 0; d->row && i < d->n; i++) singular_free(&d->row[i].s);
    free(d->row);
    for (int h = 0; h < N_HOW; h++) free(d->r[h]);
    *d = (Diff){0};
}

// What the i-th value of give is multiplied by to become that of r: 1, g, or 1 / g (where g is near zero: less).
static double to_r(const Writer *w, How how, int i, double floor2) {
    const double g = w && w->gain ? w->gain[i] : 1;
    return how == HOW_PLAIN ? 1 : how == HOW_OBLIQUE ? g : g / (g * g + floor2);
}

// Gains below a hundredth of their root mean square count as near zero.
static double floor_of(const Writer *w, int n) {
    double sum = 0;
    for (int i = 0; w && w->gain && i < n; i++) sum += (double)w->gain[i] * w->gain[i];
    return 1e-4 * sum / n;
}

static const Writer *writer_of(const Diff *d, const DiffRow *row) { return row->t->writer >= 0 ? &d->p->writers.of[row->t->writer] : NULL; }

static void unit(double *v, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += v[i] * v[i];
    for (int i = 0; i < n && sum > 0; i++) v[i] /= sqrt(sum);
}

// ---- each tensor alone ----

static bool find_rows(Diff *d, uint64_t seed, Err *e) {
    const Pair *p = d->p;
    double total = 0, done = 0;
    bool ok = true;
    Held held = {0};
    Progress bar;
    for (int i = 0; i < p->n_tensor; i++) total += pair_differs(p, i) ? (double)p->tensor[i].a->bytes : 0;
    progress_start(&bar, "differences");
    for (int i = 0; ok && i < p->n_tensor && !interrupted; i++) {
        const TensorPair *t = &p->tensor[i];
        if (!pair_differs(p, i) || !t->readable || t->bias || t->ma.n_row < 2 || t->ma.n_col < 2) continue;
        const bool writer = t->writer >= 0, embedding = !strcmp(t->a->name_z, "token_embd.weight"), side = t->ma.n_col == p->a.c.n_embd && t->ma.n_slice == 1;
        DiffRow *row = &d->row[d->n++];
        *row = (DiffRow){.t = t, .writes = writer || embedding, .transposed = !writer && side, .on_stream = writer || side};
        for (int h = 0; h < N_HOW; h++) row->cos[h] = row->right[h] = row->strength[h] = row->explained[h] = NAN;
        MatrixSums sum;
        ok = held_set(&held, p->pool, &t->ma, &t->mb, row->transposed, e) && singular_find(&row->s, &held, p->pool, seed, e) &&
             matrix_sums(p->pool, &t->ma, NULL, NULL, 0, false, &sum, NULL, NULL, e);
        row->norm2 = held.norm2 * held.step;
        row->a2 = sum.a2;
        d->n_writes += row->writes && row->norm2 > 0;
        done += (double)t->a->bytes;
        progress_step(&bar, done, total);
    }
    progress_end(&bar);
    held_close(&held);
    return ok && (!interrupted || err_set(e, "interrupted"));
}

// ---- what they have in common ----

// From the singular directions alone: the first eigenvector of the sum of their outer products, weighted by their shares.
static bool first_guess(Diff *d, How how, uint64_t seed, Err *e) {
    const int n = d->p->a.c.n_embd;
    double *r = d->r[how], *y = malloc(sizeof *y * (size_t)n), *z = malloc(sizeof *z * (size_t)n);
    Rng rng = rng_seed(seed, 0xD1);
    for (int i = 0; i < n; i++) r[i] = rng_normal(&rng);
    for (int turn = 0; y && z && turn < 50; turn++) {
        memset(y, 0, sizeof *y * (size_t)n);
        for (int k = 0; k < d->n; k++) {
            const DiffRow *row = &d->row[k];
            const Writer *w = writer_of(d, row);
            const double floor2 = floor_of(w, n);
            double length = 0;
            for (int j = 0; row->writes && j < row->s.k; j++) {
                double along = 0, square = 0;
                for (int i = 0; i < n; i++) {
                    z[i] = to_r(w, how, i, floor2) * row->s.u[(int64_t)j * n + i];
                    along += z[i] * r[i];
                    square += z[i] * z[i];
                }
                if (j == 0) length = square;
                for (int i = 0; i < n && length > 0; i++) y[i] += row->s.share[j] * along / length * z[i];
            }
        }
        unit(y, n);
        memcpy(r, y, sizeof *r * (size_t)n);
    }
    const bool ok = y && z;
    free(y);
    free(z);
    return ok || err_set(e, "no memory for the common direction");
}

typedef struct {
    Held held;
    double *q, *y;      // [n_how][n]
    double *c, *t, *a;  // [n_how][n_other] D' give, D' take, A' take
    double *sum;        // [n_how][n]; in halves: [2][n_how][n]
    double *first, *gradient, *p, *x; // [2][n_how][n] of the conjugate gradients
} Scratch;

// Unit vectors that the differences show along each way's r, to q.
static void set_give(const Diff *d, const DiffRow *row, Scratch *w) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    const Writer *writer = writer_of(d, row);
    const double floor2 = floor_of(writer, n);
    for (int j = 0; j < k; j++) {
        double square = 0;
        for (int i = 0; i < n; i++) {
            const double t = to_r(writer, (How)j, i, floor2);
            w->q[(int64_t)j * n + i] = fabs(t) > 1e-30 ? d->r[j][i] / t : 0;
            square += w->q[(int64_t)j * n + i] * w->q[(int64_t)j * n + i];
        }
        for (int i = 0; i < n && square > 0; i++) w->q[(int64_t)j * n + i] /= sqrt(square);
    }
}

static double take_of(const Writer *w, int j, int i) { return j != HOW_PLAIN && w->gain ? w->gain[i] : 1; }

static void set_take(const Diff *d, const DiffRow *row, const double *const *v, Scratch *w) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    for (int i = 0; i < n; i++)
        for (int j = 0; j < k; j++) w->q[(int64_t)j * n + i] = take_of(writer_of(d, row), j, i) * v[j][i];
}

// sum += T D (D' T r) / |T D|^2 without the diagonal, T from give to r, for each way at once.
static void add_row(const Diff *d, const DiffRow *row, const Held *h, Scratch *w) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    const Writer *writer = writer_of(d, row);
    const double floor2 = floor_of(writer, n);
    for (int i = 0; i < n; i++)
        for (int j = 0; j < k; j++) w->q[(int64_t)j * n + i] = to_r(writer, (How)j, i, floor2) * d->r[j][i];
    held_right(h, d->p->pool, w->q, k, w->c);
    held_left(h, d->p->pool, w->c, k, w->y);
    for (int j = 0; j < k; j++) {
        double energy = 0;
        for (int i = 0; i < n; i++) {
            const double t = to_r(writer, (How)j, i, floor2);
            energy += t * t * h->row2[i];
        }
        for (int i = 0; i < n && energy > 0; i++) {
            const double t = to_r(writer, (How)j, i, floor2);
            w->sum[(int64_t)j * n + i] += t * (w->y[(int64_t)j * n + i] - h->row2[i] * w->q[(int64_t)j * n + i]) / energy;
        }
    }
}

// The next iterate from sum = M r without M's diagonal, which is taken from the eigenvector: l r_i^2, l its value. Returns how far
// it has moved: 1 - cos.
static double next(double *r, double *sum, int n) {
    double along = 0, fourth = 0, cos = 0;
    for (int i = 0; i < n; i++) {
        along += r[i] * sum[i];
        fourth += pow(r[i], 4);
    }
    const double l = fmax(0, along) / fmax(1e-3, 1 - fourth);
    for (int i = 0; i < n; i++) sum[i] += l * pow(r[i], 3);
    unit(sum, n);
    for (int i = 0; i < n; i++) cos += sum[i] * r[i];
    memcpy(r, sum, sizeof *r * (size_t)n);
    return 1 - fabs(cos);
}

// How near a tensor's own first direction is to r, and how much of D is along it.
static void judge_left(const Diff *d, DiffRow *row, const Held *h, Scratch *w) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    const Writer *writer = writer_of(d, row);
    const double floor2 = floor_of(writer, n);
    set_give(d, row, w);
    held_right(h, d->p->pool, w->q, k, w->c);
    for (int j = 0; j < k; j++) {
        double cos = 0, length = 0, along = 0;
        for (int i = 0; i < n; i++) {
            const double z = to_r(writer, (How)j, i, floor2) * row->s.u[i];
            cos += z * d->r[j][i];
            length += z * z;
        }
        for (int64_t i = 0; i < h->n_other; i++) along += w->c[j * h->n_other + i] * w->c[j * h->n_other + i];
        row->cos[j] = length > 0 ? fabs(cos) / sqrt(length) : NAN;
        row->explained[j] = along / h->norm2;
    }
}

// ---- what rounding hides ----

// A change of less than half a step is rounded away, so that where r is small, D shows even less of it. The other side of D tells
// more: what was taken there, c = A' take, is a sum over all of r. So r is moved to where A' take is what D shows, in the sense of
// least squares over all matrices, each weighed by 1 / |A|^2, by a few steps of conjugate gradients. What D shows is noisy, too:
// even and odd layers are solved for apart, and of the step only that share is made with which the one half's explains the other.
static int half_of(const DiffRow *row, const Diff *d) { return writer_of(d, row)->layer & 1; }

// gradient += T A (s c - A' T r) / |A|^2, c = D' give, T from r to take, s the factor that brings c nearest to A' T r.
static bool add_gradient(const Diff *d, const DiffRow *row, Scratch *w, Err *e) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    Held *h = &w->held;
    bool ok = held_set(h, d->p->pool, &row->t->ma, &row->t->mb, false, e);
    set_give(d, row, w);
    if (ok) held_right(h, d->p->pool, w->q, k, w->c);
    ok = ok && held_set(h, d->p->pool, &row->t->ma, NULL, false, e);
    set_take(d, row, (const double *const *)d->r, w);
    if (ok) held_right(h, d->p->pool, w->q, k, w->a);
    for (int j = 0; ok && j < k; j++) {
        double both = 0, square = 0;
        for (int64_t i = 0; i < h->n_other; i++) both += w->a[j * h->n_other + i] * w->c[j * h->n_other + i], square += w->c[j * h->n_other + i] * w->c[j * h->n_other + i];
        for (int64_t i = 0; i < h->n_other; i++) w->a[j * h->n_other + i] = square > 0 ? both / square * w->c[j * h->n_other + i] - w->a[j * h->n_other + i] : 0;
    }
    if (ok) held_left(h, d->p->pool, w->a, k, w->y);
    double *sum = w->first + (int64_t)half_of(row, d) * k * n;
    for (int i = 0; ok && i < n && h->norm2 > 0; i++)
        for (int j = 0; j < k; j++) sum[(int64_t)j * n + i] += take_of(writer_of(d, row), j, i) * w->y[(int64_t)j * n + i] / h->norm2;
    return ok;
}

// sum += T A A' T p / |A|^2
static bool add_product(const Diff *d, const DiffRow *row, Scratch *w, Err *e) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    const double *p[N_HOW];
    double *sum = w->sum + (int64_t)half_of(row, d) * k * n;
    for (int j = 0; j < k; j++) p[j] = w->p + ((int64_t)half_of(row, d) * k + j) * n;
    Held *h = &w->held;
    const bool ok = held_set(h, d->p->pool, &row->t->ma, NULL, false, e);
    set_take(d, row, p, w);
    if (ok) held_right(h, d->p->pool, w->q, k, w->a);
    if (ok) held_left(h, d->p->pool, w->a, k, w->y);
    for (int i = 0; ok && i < n && h->norm2 > 0; i++)
        for (int j = 0; j < k; j++) sum[(int64_t)j * n + i] += take_of(writer_of(d, row), j, i) * w->y[(int64_t)j * n + i] / h->norm2;
    return ok;
}

// How the other side of a tensor's difference fits r.
static bool judge_right(const Diff *d, DiffRow *row, Scratch *w, Err *e) {
    const int k = d->n_how;
    Held *h = &w->held;
    bool ok = held_set(h, d->p->pool, &row->t->ma, &row->t->mb, false, e);
    set_give(d, row, w);
    if (ok) held_right(h, d->p->pool, w->q, k, w->c);
    set_take(d, row, (const double *const *)d->r, w);
    if (ok) held_right(h, d->p->pool, w->q, k, w->t);
    ok = ok && held_set(h, d->p->pool, &row->t->ma, NULL, false, e);
    if (ok) held_right(h, d->p->pool, w->q, k, w->a);
    for (int j = 0; ok && j < k; j++) {
        double aa = 0, cc = 0, ac = 0, at = 0;
        for (int64_t i = 0; i < h->n_other; i++) {
            const double a = w->a[j * h->n_other + i], c = w->c[j * h->n_other + i];
            aa += a * a;
            cc += c * c;
            ac -= a * c;
            at -= a * w->t[j * h->n_other + i];
        }
        row->right[j] = aa > 0 && cc > 0 ? ac / sqrt(aa * cc) : NAN;
        row->strength[j] = aa > 0 ? at / aa : NAN; // take'D = -s c, as take'give = 1
    }
    return ok;
}

// ---- all of it ----

// The passes over the differences, in their order.
typedef enum { PASS_POWER, PASS_LEFT, PASS_GRADIENT, PASS_PRODUCT, PASS_RIGHT } Pass;

static bool pass(Diff *d, Pass which, Scratch *w, Err *e) {
    bool ok = true;
    for (int i = 0; ok && i < d->n && !interrupted; i++) {
        DiffRow *row = &d->row[i];
        const bool writer = row->t->writer >= 0;
        if (!(row->norm2 > 0) || !(which == PASS_POWER ? row->writes : which == PASS_LEFT ? row->on_stream : writer)) continue;
        if (which == PASS_GRADIENT) ok = add_gradient(d, row, w, e);
        else if (which == PASS_PRODUCT) ok = add_product(d, row, w, e);
        else if (which == PASS_RIGHT) ok = judge_right(d, row, w, e);
        else {
            ok = held_set(&w->held, d->p->pool, &row->t->ma, &row->t->mb, row->transposed, e);
            if (ok && which == PASS_POWER) add_row(d, row, &w->held, w);
            else if (ok) judge_left(d, row, &w->held, w);
                }
    }
    return ok;
}

static bool sharpen(Diff *d, Scratch *w, Progress *bar, Err *e) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    const size_t bytes = sizeof(double) * 2 * (size_t)k * (size_t)n;
    double gg[2 * N_HOW];
    memset(w->first, 0, bytes);
    memset(w->x, 0, bytes);
    bool ok = pass(d, PASS_GRADIENT, w, e);
    memcpy(w->gradient, w->first, bytes);
    memcpy(w->p, w->first, bytes);
    for (int j = 0; j < 2 * k; j++) gg[j] = dot_of(w->p + (int64_t)j * n, w->p + (int64_t)j * n, n);
    for (int step = 0; ok && step < N_STEP; step++) {
        memset(w->sum, 0, bytes);
        ok = pass(d, PASS_PRODUCT, w, e);
        progress_step(bar, N_ROUND + 2 + step, N_PASS);
        for (int j = 0; ok && j < 2 * k; j++) { // each half and way on its own
            double *g = w->gradient + (int64_t)j * n, *p = w->p + (int64_t)j * n, *x = w->x + (int64_t)j * n, *q = w->sum + (int64_t)j * n;
            const double curve = dot_of(p, q, n), size = curve > 0 ? gg[j] / curve : 0;
            for (int i = 0; i < n; i++) x[i] += size * p[i], g[i] -= size * q[i];
            const double now = dot_of(g, g, n);
            for (int i = 0; i < n; i++) p[i] = g[i] + (gg[j] > 0 ? now / gg[j] : 0) * p[i];
            gg[j] = now;
        }
    }
    memcpy(w->p, w->x + (int64_t)k * n, bytes / 2); // each half's step for the other
    memcpy(w->p + (int64_t)k * n, w->x, bytes / 2);
    memset(w->sum, 0, bytes);
    ok = ok && pass(d, PASS_PRODUCT, w, e);
    for (int j = 0; ok && j < k; j++) {
        double slope = 0, curve = 0;
        for (int half = 0; half < 2; half++) {
            const int64_t at = ((int64_t)half * k + j) * n;
            slope += dot_of(w->p + at, w->first + at, n);
            curve += dot_of(w->p + at, w->sum + at, n);
        }
        const double share = curve > 0 ? fmin(1, fmax(0, slope / curve)) : 0;
        for (int i = 0; i < n; i++) d->r[j][i] += share / 2 * (w->x[(int64_t)j * n + i] + w->x[(int64_t)(k + j) * n + i]);
        unit(d->r[j], n);
    }
    return ok;
}

static bool search(Diff *d, uint64_t seed, Scratch *w, Err *e) {
    const int n = d->p->a.c.n_embd, k = d->n_how;
    bool ok = true, settled = false;
    Progress bar;
    progress_start(&bar, "common direction");
    for (int j = 0; ok && j < k; j++) ok = first_guess(d, (How)j, seed, e);
    for (int round = 0; ok && round < N_ROUND && !settled; round++) {
        memset(w->sum, 0, sizeof *w->sum * (size_t)(n * k));
        ok = pass(d, PASS_POWER, w, e);
        settled = true;
        for (int j = 0; ok && j < k; j++) settled &= next(d->r[j], w->sum + (int64_t)j * n, n) < 1e-7;
        progress_step(&bar, round + 1, N_PASS);
    }
    ok = ok && pass(d, PASS_LEFT, w, e) && sharpen(d, w, &bar, e) && pass(d, PASS_RIGHT, w, e);
    progress_end(&bar);
    return ok && (!interrupted || err_set(e, "interrupted"));
}

static bool find_common(Diff *d, uint64_t seed, Err *e) {
    const size_t n = (size_t)d->p->a.c.n_embd * N_HOW;
    size_t most = 1;
    for (int i = 0; i < d->n; i++) {
        const Matrix *m = &d->row[i].t->ma;
        const size_t other = d->row[i].transposed ? (size_t)m->n_row : (size_t)m->n_slice * (size_t)m->n_col;
        if (other > most) most = other;
    }
    most *= (size_t)d->n_how;
    double *all = malloc(sizeof *all * (12 * n + 3 * most));
    if (!all) return err_set(e, "no memory for the common direction");
    double *rest = all + 12 * n;
    Scratch w = {.q = all, .y = all + n, .sum = all + 2 * n, .first = all + 4 * n, .gradient = all + 6 * n, .p = all + 8 * n, .x = all + 10 * n,
                 .c = rest, .t = rest + most, .a = rest + 2 * most};
    const bool ok = search(d, seed, &w, e);
    held_close(&w.held);
    free(all);
    return ok;
}

static void choose(Diff *d) {
    const int n = d->p->a.c.n_embd;
    double best = -INFINITY;
    d->by_chance = d->n_writes ? pow(1 + sqrt((double)d->n_writes / n), 2) / d->n_writes : NAN; // Marchenko and Pastur 1967
    for (int j = 0; j < d->n_how; j++) {
        int judged = 0, n_right = 0;
        for (int i = 0; i < d->n; i++) {
            const DiffRow *row = &d->row[i];
            if (!row->writes || isnan(row->cos[j])) continue;
            judged++;
            d->cos[j] += row->cos[j];
            d->square[j] += row->cos[j] * row->cos[j];
            if (!isnan(row->right[j])) n_right++, d->right[j] += row->right[j];
        }
        if (judged) d->cos[j] /= judged, d->square[j] /= judged;
        if (n_right) d->right[j] /= n_right;
        const double fit = d->cos[j] * (n_right ? fmax(0, d->right[j]) : 1);
        if (judged && fit > best) best = fit, d->how = (How)j;
    }
    d->common = d->n_writes && (d->right[d->how] > 0.5 || d->square[d->how] > 1.5 * d->by_chance);
}

bool diff_measure(Diff *d, const Pair *p, uint64_t seed, Err *e) {
    *d = (Diff){.p = p, .n_how = 1};
    if (!p->writers.n) return err_set(e, "%s", p->why_none.text);
    for (int i = 0; i < p->writers.n; i++)
        if (p->writers.of[i].gain) d->n_how = N_HOW;
    d->row = calloc((size_t)p->n_tensor + 1, sizeof *d->row);
    bool ok = d->row != NULL;
    for (int j = 0; j < d->n_how; j++) ok &= (d->r[j] = calloc((size_t)p->a.c.n_embd, sizeof(double))) != NULL;
    if (!ok) return err_set(e, "no memory for the differences of %d tensors", p->n_tensor);
    if (!find_rows(d, seed, e) || (d->n_writes && !find_common(d, seed, e))) return false;
    choose(d);
    return true;
}

// Strength 1 where B was edited, 0 elsewhere; everywhere where the embedding was, too.
static bool set_shape(const Diff *d, Direction *out, Err *e) {
    float *shape = calloc((size_t)out->n_layer * N_SHAPE, sizeof *shape);
    bool embedding = false;
    for (int i = 0; shape && i < d->n; i++) {
        const Writer *w = writer_of(d, &d->row[i]);
        if (w) shape[w->layer * N_SHAPE + part_shape(w->part)] = 1;
        else embedding |= d->row[i].writes;
    }
    const bool ok = shape ? direction_set_shape(out, embedding ? NULL : shape, e) : err_set(e, "no memory for the strengths of %d layers", out->n_layer);
    free(shape);
    return ok;
}

bool diff_direction(const Diff *d, Direction *out, Err *e) {
    const char *path = d->p->a.gguf.path, *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    if (!d->n_writes) return err_set(e, "%s and %s: no matrix that writes to the residual stream differs", path, d->p->b.path);
    if (!d->common)
        return err_set(e, "%s: its differences have no direction in common: mean cos^2 %.3f, by chance %.3f", d->p->b.path, d->square[d->how], d->by_chance);
    if (!direction_single(out, d->p->a.c.n_layer, d->p->a.c.n_embd, d->r[d->how], e)) return false;
    free(out->contrast); // not known
    out->contrast = NULL;
    out->mode = MODE_WRITE;
    if (!set_shape(d, out, e)) {
        direction_free(out);
        return false;
    }
    snprintf(out->model, sizeof out->model, "%.90s", name);
    model_fingerprint(&d->p->a, out->fingerprint);
    return true;
}

static void set_keys(void *ctx, GgufWriter *w) {
    const Diff *d = ctx;
    static const char METHOD[] = "recovered from the difference of two files' weights";
    const char *path = d->p->b.path, *name = strrchr(path, '/') ? strrchr(path, '/') + 1 : path;
    gguf_set_string(w, "glp.method", METHOD, sizeof METHOD - 1);
    gguf_set_string(w, "abliterate.recovered_from", name, strlen(name));
    gguf_set_string(w, "abliterate.recovered_as", how_name(d->how), strlen(how_name(d->how)));
    gguf_set_f32(w, "abliterate.recovered_cosine", (float)d->cos[d->how]);
}

bool diff_save(const Diff *d, const char *path, Err *e) {
    Direction out = {0};
    const bool ok = diff_direction(d, &out, e) && direction_save(&out, path, set_keys, (void *)d, e);
    direction_free(&out);
    return ok;
}

// ---- showing ----

static const char *figure(char out[24], double v, const char *format) {
    if (isnan(v)) return "-";
    snprintf(out, 24, format, v);
    return out;
}

void diff_text(const Diff *d, FILE *out) {
    static const char *const FORMULA[N_HOW] = {"W - r r'W", "W - (r/g)(g*r)'W, g the post-norm's gain", "W - u u'W, u = g*r/|g*r|, g the post-norm's gain"};
    const Pair *p = d->p;
    const int h = d->how;
    int added = 0;
    for (int i = 0; i < p->n_tensor; i++) added += !p->tensor[i].a;
    fprintf(out, "Tensors    %d equal, byte for byte; %d differ, %d of them matrices that write to the residual stream\n", p->n_same, p->n_tensor - p->n_same - added,
            d->n_writes);
    for (int i = 0; i < p->n_tensor; i++) {
        const TensorPair *t = &p->tensor[i];
        if (!t->a) fprintf(out, "Only in B  %s\n", t->b->name_z);
        else if (!t->same && (!t->readable || t->bias || t->ma.n_row < 2)) fprintf(out, "Vector     %s\n", t->b->name_z);
    }
    if (d->n)
        fprintf(out, "\n%-34s %-7s %10s  %-25s %8s %9s %9s %9s\n", "matrix", "type", "|B-A|/|A|", "energy of directions 1-4", "|cos| r", "right", "strength", "along r");
    for (int i = 0; i < d->n; i++) {
        const DiffRow *row = &d->row[i];
        char cos[24], right[24], strength[24], explained[24], energy[64];
        size_t n = 0;
        for (int j = 0; j < row->s.k; j++) n += (size_t)snprintf(energy + n, sizeof energy - n, "%5.1f%%", 100 * row->s.share[j]);
        fprintf(out, "%-34s %-7s %10.3e  %-25s %8s %9s %9s %9s\n", row->t->a->name_z, type_info(row->t->mb.type)->name, row->a2 > 0 ? sqrt(row->norm2 / row->a2) : NAN, energy,
                figure(cos, row->cos[h], "%.4f"), figure(right, row->right[h], "%.4f"), figure(strength, row->strength[h], "%.3f"),
                figure(explained, 100 * row->explained[h], "%.1f %%"));
    }
    if (!d->n_writes) return;
    fprintf(out, "\nOne direction r for all matrices that write to the stream? Mean over them:\n");
    for (int j = 0; j < d->n_how; j++)
        fprintf(out, "  %-8s |cos| %.4f  right side %.4f   %s%s\n", how_name((How)j), d->cos[j], d->right[j], FORMULA[j], j == h ? "  <- fits best" : "");
    fprintf(out, "%s: mean cos^2 %.3f, by chance %.3f\n", d->common ? "Yes" : "No", d->square[h], d->by_chance);
}

void diff_json(const Diff *d, FILE *f) {
    fprintf(f, "\"equal\": %d, \"common\": %s, \"fits_best\": \"%s\"", d->p->n_same, d->common ? "true" : "false", how_name(d->how));
    json_named(f, "by_chance", d->by_chance);
    fputs(",\n  \"ways\": [", f);
    for (int j = 0; j < d->n_how; j++) {
        fprintf(f, "%s{\"way\": \"%s\"", j ? ", " : "", how_name((How)j));
        json_named(f, "cos", d->cos[j]);
        json_named(f, "right", d->right[j]);
        json_named(f, "cos2", d->square[j]);
        fputc('}', f);
    }
    fputs("],\n  \"matrices\": [", f);
    for (int i = 0; i < d->n; i++) {
        const DiffRow *row = &d->row[i];
        fputs(i ? ",\n    {\"name\": " : "\n    {\"name\": ", f);
        json_text(f, row->t->a->name_z);
        fprintf(f, ", \"type\": \"%s\", \"writes\": %s", type_info(row->t->mb.type)->name, row->writes ? "true" : "false");
        json_named(f, "relative_change", row->a2 > 0 ? sqrt(row->norm2 / row->a2) : NAN);
        json_numbers(f, "energy", row->s.share, row->s.k);
        json_named(f, "cos", row->cos[d->how]);
        json_named(f, "right", row->right[d->how]);
        json_named(f, "strength", row->strength[d->how]);
        json_named(f, "along", row->explained[d->how]);
        fputc('}', f);
    }
    fputs("]", f);
    if (d->n_writes) json_numbers(f, "direction", d->r[d->how], d->p->a.c.n_embd);
}
