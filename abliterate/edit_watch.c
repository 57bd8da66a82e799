// edit_watch.c: see edit_watch.h
#include "edit_watch.h"

#include <math.h>
#include <stdlib.h>

#include "repair.h" // MAX_VEC

bool edit_watch_open(EditWatch *g, const Edit *x, const Direction *dirs, int n_dir, const EditOptions *o, Err *e) {
    const size_t n = (size_t)x->writers.n + 1;
    *g = (EditWatch){.x = x};
    if (!edit_check(dirs, n_dir, o, e)) return false;
    g->of = calloc(n, sizeof *g->of);
    g->vectors = malloc(sizeof *g->vectors * 2 * (size_t)n_dir * (size_t)x->n_embd * n);
    g->sum = calloc(n, sizeof *g->sum);
    g->n_row = calloc(n, sizeof *g->n_row);
    if (g->of && g->vectors && g->sum && g->n_row && edit_changes(&x->writers, true, dirs, n_dir, o, g->of, g->vectors)) return true;
    edit_watch_close(g);
    return err_set(e, "no memory for the vectors of %d matrices", x->writers.n);
}

void edit_watch_close(EditWatch *g) {
    free(g->of);
    free(g->vectors);
    free(g->sum);
    free(g->n_row);
    free(g->rows);
    *g = (EditWatch){0};
}

// The first writer of a site; -1: nobody writes there.
static int writer_at(const Writers *w, TapPoint site, int layer) {
    for (int i = 0; i < w->n; i++)
        if (w->of[i].layer == layer && w->of[i].site == site) return i;
    return -1;
}

// y = g z / rms: of what is added, z is known but for the scale, and so is z' = z - s sum_k give_k (take_k . z).
static double quotient(const Change *c, const float *gain, const float *y, int n) {
    double before = 0, after = 0, along[MAX_VEC] = {0};
    for (int i = 0; i < n; i++)
        for (int k = 0; k < c->n_vec && gain[i] != 0; k++) along[k] += c->take[(int64_t)k * n + i] * (double)y[i] / (double)gain[i];
    for (int i = 0; i < n; i++) {
        const double z = gain[i] != 0 ? (double)y[i] / (double)gain[i] : 0;
        double less = 0;
        for (int k = 0; k < c->n_vec; k++) less += c->give[(int64_t)k * n + i] * along[k];
        before += z * z;
        after += (z - c->strength * less) * (z - c->strength * less);
    }
    return before > 0 ? sqrt(after / before) : 1;
}

static void watch_rows(void *ctx, const TapSite *t) {
    EditWatch *g = ctx;
    const Writers *w = &g->x->writers;
    const int i = writer_at(w, t->point, t->layer);
    const size_t n = (size_t)t->n_rows * (size_t)t->n_col;
    if (i < 0 || !w->of[i].norm || !g->of[i].n_vec) return;
    if (n > g->cap) {
        float *more = realloc(g->rows, sizeof *more * n);
        g->failed = g->failed || !more;
        if (!more) return;
        g->rows = more;
        g->cap = n;
    }
    t->backend->download(t->backend, g->rows, t->rows, sizeof *g->rows * n);
    for (int row = 0; row < t->n_rows; row++) {
        const double q = quotient(&g->of[i], w->of[i].norm->host, g->rows + (int64_t)row * t->n_col, t->n_col);
        if (!isfinite(q)) continue;
        g->sum[i] += q;
        g->n_row[i]++;
    }
}

Tap edit_watch_tap(EditWatch *g) { return (Tap){.call = watch_rows, .ctx = g}; }

double edit_scale(const EditWatch *g, int writer) {
    const int i = writer_at(&g->x->writers, g->x->writers.of[writer].site, g->x->writers.of[writer].layer);
    return g->n_row[i] ? g->sum[i] / (double)g->n_row[i] : 1;
}
