// edit.c: see edit.h.
#include "edit.h"

#include <math.h>
#include <stdlib.h>

#include "repair.h" // MAX_VEC

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // the same files from every compiler
#endif

static double dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

static void subtract(double *v, const double *other, double amount, int n) {
    for (int i = 0; i < n; i++) v[i] -= amount * other[i];
}

// give <- combinations of its vectors with take_j . give_k = 1 where j = k, else 0 (Gauss-Jordan). A vector that lies in
// coordinates without gain writes nothing and is dropped; returns how many are left.
static int make_dual(double *take, double *give, int n_vec, int n) {
    int kept = 0;
    for (int k = 0; k < n_vec; k++) {
        double *t = take + (int64_t)kept * n, *g = give + (int64_t)kept * n;
        memmove(t, take + (int64_t)k * n, sizeof *t * (size_t)n);
        memmove(g, give + (int64_t)k * n, sizeof *g * (size_t)n);
        const double least = 1e-9 * sqrt(dot(t, t, n) * dot(g, g, n));
        for (int j = 0; j < kept; j++) subtract(g, give + (int64_t)j * n, dot(take + (int64_t)j * n, g, n), n);
        const double size = dot(t, g, n);
        if (!(size > least)) continue;
        for (int i = 0; i < n; i++) g[i] /= size;
        for (int j = 0; j < kept; j++) subtract(give + (int64_t)j * n, g, dot(t, give + (int64_t)j * n, n), n);
        kept++;
    }
    return kept;
}

// take and give of the vectors in basis behind the gain (NULL: none). Returns how many of them change anything.
static int vectors_of(const double *basis, int n_vec, int n, const float *gain, double eps, double *take, double *give, int *n_small) {
    double square = 0, least;
    *n_small = 0;
    for (int i = 0; gain && i < n; i++) square += (double)gain[i] * gain[i];
    least = eps * sqrt(square / n);
    for (int i = 0; i < n; i++) {
        const double g = gain ? gain[i] : 1, floor = gain ? fmax(g * g, least * least) : 1;
        *n_small += gain && fabs(g) < least;
        for (int k = 0; k < n_vec; k++) {
            const double r = basis[(int64_t)k * n + i];
            take[(int64_t)k * n + i] = g * r;
            give[(int64_t)k * n + i] = floor > 0 ? r * g / floor : 0;
        }
    }
    return make_dual(take, give, n_vec, n);
}

static float shape_of(const Direction *dirs, const Writer *w) {
    const int part = part_shape(w->part);
    return dirs->shape ? dirs->shape[w->layer * N_SHAPE + part] : 1;
}

// The same strengths for all: they are removed as one subspace.
bool edit_check(const Direction *dirs, int n_dir, const EditOptions *o, Err *e) {
    if (n_dir < 1 || n_dir > MAX_VEC) return err_set(e, "%d directions, expected 1 to %d", n_dir, MAX_VEC);
    if (!isfinite(o->strength)) return err_set(e, "strength %g, expected a finite number", o->strength);
    for (int i = 1; i < n_dir; i++) {
        const float *a = dirs[0].shape, *b = dirs[i].shape;
        if (!a != !b || (a && memcmp(a, b, sizeof *a * (size_t)dirs->n_layer * N_SHAPE)))
            return err_set(e, "direction %d: its strengths by layer and part are not those of direction 1, which are expected of directions removed together", i + 1);
    }
    return true;
}

// Fills c [n] for the writers: what each is to lose, behind all its gains or behind the last norm alone. vectors [n][2][n_dir][n_embd].
bool edit_changes(const Writers *writers, bool last_norm, const Direction *dirs, int n_dir, const EditOptions *o, Change *of, double *vectors) {
    const int n = dirs->n_embd;
    const size_t size = (size_t)n_dir * (size_t)n;
    double *basis = malloc(sizeof *basis * size), mix[MAX_VEC * MAX_VEC];
    for (int i = 0; basis && i < writers->n; i++) {
        const Writer *w = &writers->of[i];
        const float *last = w->norm ? w->norm->host : NULL, *gain = last_norm ? last : w->gain;
        // Branches with norms of their own (Gemma 4 with experts) are weighed against each other by these: what blows up the
        // smallest coordinates of one makes it weaker everywhere.
        const bool two = gain && last && memcmp(gain, last, sizeof *gain * (size_t)n);
        const double eps = o->eps > 0 ? o->eps : two ? EDIT_EPS_TWO : EDIT_EPS;
        Change *c = &of[i];
        c->take = vectors + 2 * size * (size_t)i;
        c->give = c->take + size;
        c->strength = o->strength * shape_of(dirs, w);
        if (w->layer < o->first || w->layer > o->last || c->strength == 0) continue;
        const int n_vec = directions_basis(dirs, n_dir, w->layer + 1, basis, mix); // the row of the stream leaving the layer, as steer.c
        c->n_vec = vectors_of(basis, n_vec, n, gain, eps, c->take, c->give, &c->n_small);
    }
    const bool ok = basis != NULL;
    free(basis);
    return ok;
}

bool edit_open(Edit *x, const Model *m, const Direction *dirs, int n_dir, const EditOptions *o, Err *e) {
    *x = (Edit){.n_embd = m->c.n_embd};
    if (!edit_check(dirs, n_dir, o, e) || !writers_open(&x->writers, m, e)) return false;
    x->of = calloc((size_t)x->writers.n + 1, sizeof *x->of);
    x->vectors = malloc(sizeof *x->vectors * 2 * (size_t)n_dir * (size_t)x->n_embd * ((size_t)x->writers.n + 1));
    if (x->of && x->vectors && edit_changes(&x->writers, false, dirs, n_dir, o, x->of, x->vectors)) return true;
    err_set(e, "no memory for the vectors of %d matrices", x->writers.n);
    edit_close(x);
    return false;
}

void edit_close(Edit *x) {
    writers_close(&x->writers);
    free(x->of);
    free(x->vectors);
    *x = (Edit){0};
}

void edit_bias(const Edit *x, int writer, const float *bias, float *out) {
    const Change *c = &x->of[writer];
    double along[MAX_VEC];
    for (int k = 0; k < c->n_vec; k++) {
        along[k] = 0;
        for (int i = 0; i < x->n_embd; i++) along[k] += c->take[(int64_t)k * x->n_embd + i] * bias[i];
    }
    for (int i = 0; i < x->n_embd; i++) {
        double less = 0;
        for (int k = 0; k < c->n_vec; k++) less += c->give[(int64_t)k * x->n_embd + i] * along[k];
        out[i] = (float)(bias[i] - c->strength * less);
    }
}

void edit_add(EditFigures *sum, const EditFigures *one) {
    sum->n += one->n;
    sum->n_changed += one->n_changed;
    sum->n_flip += one->n_flip;
    sum->n_block += one->n_block;
    sum->n_refit += one->n_refit;
    sum->n_col += one->n_col;
    sum->n_missed += one->n_missed;
    sum->before += one->before;
    sum->after += one->after;
    sum->residue += one->residue;
    sum->norm += one->norm;
    sum->change += one->change;
    sum->error += one->error;
    sum->rounded += one->rounded;
    sum->plain.before += one->plain.before;
    sum->plain.residue += one->plain.residue;
    sum->plain.norm += one->plain.norm;
    sum->plain.error += one->plain.error;
}

double edit_leak(const EditFigures *f) { return f->before > 0 ? sqrt(f->residue / f->before) : 0; }

double edit_kappa(const Edit *x, int writer, const EditFigures *f) {
    const Change *c = &x->of[writer];
    const double take = c->n_vec ? dot(c->take, c->take, c->n_vec * x->n_embd) : 0;
    return take > 0 && f->norm > 0 ? sqrt(x->n_embd * f->before / (take * f->norm)) : 0;
}
