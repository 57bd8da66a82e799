// steer.c: see steer.h. Several directions are made orthonormal (directions_basis); without that the result of taking one after
// the other away would depend on their order.
#include "steer.h"

#include <math.h>
#include <stdlib.h>

void steer_open(Steer *s, const Model *m, Backend *b) {
    *s = (Steer){.m = m, .b = b, .strength = 1, .first = -1, .last = -1, .on = true, .watch = -1};
}

static void forget(Steer *s) {
    if (s->vec[0]) s->b->free(s->b, s->vec[0]);
    if (s->vec[1]) s->b->host->free(s->b->host, s->vec[1]);
    free(s->n_vec);
    free(s->keep);
    free(s->amount);
    s->vec[0] = s->vec[1] = s->keep = s->amount = NULL;
    s->n_vec = NULL;
    s->n_entry = s->rank = 0;
}

void steer_clear(Steer *s) {
    forget(s);
    for (int i = 0; i < s->n_dir; i++) {
        direction_free(&s->dir[i]);
        free((char *)s->path[i]);
        s->path[i] = NULL;
    }
    s->n_dir = 0;
}

void steer_close(Steer *s) {
    if (!s || !s->m) return;
    steer_clear(s);
    free(s->watched);
    *s = (Steer){0};
}

bool steer_load(Steer *s, const char *path, char note[256], Err *e) {
    if (note) *note = 0;
    if (s->n_dir == MAX_DIRECTIONS) return err_set(e, "%s: there are already %d directions", path, MAX_DIRECTIONS);
    Direction d;
    char hex[65];
    if (!direction_load(&d, path, s->m, e)) return false;
    char *copy = strdup(path);
    if (!copy) {
        direction_free(&d);
        return err_set(e, "%s: no memory", path);
    }
    if (note && *d.fingerprint) {
        model_fingerprint(s->m, hex);
        if (strcmp(hex, d.fingerprint)) snprintf(note, 256, "%.100s was made from other weights (%.90s)", path, d.model);
    } else if (note && !*d.fingerprint) snprintf(note, 256, "%.100s does not say which model it was made from", path);
    if (!s->n_dir) {
        s->mode = d.mode;
        s->strength = d.strength;
    }
    s->path[s->n_dir] = copy;
    s->dir[s->n_dir++] = d;
    return true;
}

bool steer_use(Steer *s, Direction *d, Err *e) {
    steer_clear(s);
    s->dir[0] = *d;
    s->n_dir = 1;
    *d = (Direction){0};
    return steer_prepare(s, e);
}

bool steer_parse_mode(const char *text, SteerMode *mode, Err *e) {
    const int m = mode_by_name(text);
    if (m < 0) return err_set(e, "mode '%s', expected project, write, affine, one-sided or add", text);
    *mode = (SteerMode)m;
    return true;
}

bool steer_parse_layers(const char *text, int n_layer, int *first, int *last, Err *e) {
    const char *p = text;
    char *end;
    long a = 0, b = n_layer - 1;
    bool ok = *p;
    if (!strcmp(p, "all")) p += 3;
    else {
        if (*p >= '0' && *p <= '9') b = a = strtol(p, &end, 10), p = end;
        else ok = ok && *p == '-';
        if (*p == '-') {
            p++;
            b = n_layer - 1;
            if (*p >= '0' && *p <= '9') b = strtol(p, &end, 10), p = end;
        }
    }
    if (!ok || *p || a > b || b >= n_layer || (!strcmp(text, "-")))
        return err_set(e, "layers '%s', expected A-B within 0-%d", text, n_layer - 1);
    *first = (int)a;
    *last = (int)b;
    return true;
}

// ---- preparing ----

static const char *name_of(const Steer *s, int i) { return s->path[i] ? s->path[i] : "the direction"; }

static const float *shape_of(const Steer *s) { return s->n_dir && s->mode == MODE_WRITE ? s->dir[0].shape : NULL; }

static bool check(const Steer *s, Err *e) {
    if (!isfinite(s->strength)) return err_set(e, "strength %g, expected a finite number", s->strength);
    if (s->mode == MODE_WRITE && s->m->c.n_stream)
        return err_set(e, "mode write: %s keeps several residual streams, which this mode does not cover; use project", s->m->c.arch);
    for (int i = 1; i < s->n_dir && s->mode == MODE_WRITE; i++) { // they are removed as one subspace
        const float *a = s->dir[0].shape, *b = s->dir[i].shape;
        if (!a != !b || (a && memcmp(a, b, sizeof *a * (size_t)s->m->c.n_layer * N_SHAPE)))
            return err_set(e, "%s: its strengths by layer and part are not those of %s, which are expected of directions removed together", name_of(s, i), name_of(s, 0));
    }
    for (int i = 0; i < s->n_dir && (s->mode == MODE_AFFINE || s->mode == MODE_ONE_SIDED); i++)
        if (!s->dir[i].contrast) return err_set(e, "%s: does not hold the contrast prompts' means, which mode %s needs", name_of(s, i), mode_name(s->mode));
    return true;
}

// Which row of a direction serves at a site: entering layer l its own; inside layer l that of the stream leaving it.
static int entry_of(const Steer *s, TapPoint point, int layer) {
    if (s->n_entry == 1) return 0;
    return point == TAP_RESID_PRE || point == TAP_STREAMS ? layer : layer + 1;
}

bool steer_prepare(Steer *s, Err *e) {
    forget(s);
    if (!check(s, e)) return false;
    s->act_first = s->first;
    s->act_last = s->last;
    if (s->first < 0) {
        const bool one = s->mode == MODE_ADD && s->n_dir && s->dir[0].layer >= 0;
        s->act_first = one ? min_int(s->dir[0].layer, s->m->c.n_layer - 1) : 0;
        s->act_last = one ? s->act_first : s->m->c.n_layer - 1;
    }
    if (!s->n_dir) return true;

    const int n = s->m->c.n_embd, L = s->m->c.n_layer, all_sites = tap_n_site(L);
    bool single = true;
    for (int i = 0; i < s->n_dir; i++) single &= s->dir[i].single;
    s->n_entry = single ? 1 : L + 1;
    s->rank = s->n_dir;
    s->n_vec = calloc((size_t)s->n_entry, sizeof *s->n_vec);
    s->keep = calloc((size_t)all_sites * (size_t)s->rank, sizeof *s->keep);
    s->amount = calloc((size_t)(L + 1) * (size_t)s->rank, sizeof *s->amount);
    Backend *const place[2] = {s->b, s->b->host};
    for (int i = 0; i < 2; i++)
        if (place[i]) s->vec[i] = place[i]->alloc(place[i], sizeof(float) * (size_t)s->n_entry * (size_t)s->rank * (size_t)n);
    double *basis = malloc(sizeof *basis * (size_t)s->rank * (size_t)n), *mix = malloc(sizeof *mix * (size_t)s->rank * (size_t)s->rank);
    float *row = malloc(sizeof *row * (size_t)n);
    int *sites = malloc(sizeof *sites * (size_t)all_sites);
    const bool ok = s->n_vec && s->keep && s->amount && s->vec[0] && (!place[1] || s->vec[1]) && basis && mix && row && sites;

    for (int entry = 0; ok && entry < s->n_entry; entry++) {
        int n_site = 0;
        for (int l = 0; l <= L; l++)
            for (TapPoint p = TAP_STREAMS; p <= TAP_PLE_OUT; p++)
                if (tap_site(p, l) >= 0 && tap_site(p, l) < all_sites && entry_of(s, p, l) == entry) sites[n_site++] = tap_site(p, l);
        if (s->mode == MODE_ADD) s->n_vec[entry] = s->n_dir;
        else s->n_vec[entry] = directions_basis(s->dir, s->n_dir, entry, basis, mix);
        for (int k = 0; k < s->n_vec[entry]; k++) {
            if (s->mode == MODE_ADD) memcpy(row, direction_row(&s->dir[k], entry), sizeof *row * (size_t)n);
            else for (int c = 0; c < n; c++) row[c] = (float)basis[(int64_t)k * n + c];
            for (int i = 0; i < 2; i++)
                if (place[i]) place[i]->upload(place[i], s->vec[i] + ((int64_t)entry * s->rank + k) * n, row, sizeof *row * (size_t)n);
            for (int j = 0; j < n_site && s->mode != MODE_ADD; j++) { // keep of a combination is the combination of keeps
                double keep = 0;
                for (int i = 0; i < s->n_dir; i++) keep += s->dir[i].contrast ? mix[k * s->n_dir + i] * s->dir[i].contrast[sites[j]] : 0;
                s->keep[sites[j] * s->rank + k] = (float)keep;
            }
        }
    }
    for (int l = 0; ok && l <= L; l++)
        for (int k = 0; k < s->n_dir; k++) { // a single vector has its own length only where it was measured
            const Direction *d = &s->dir[k];
            const float length = d->single && d->layer >= 0 ? d->length[d->layer] : d->length[l];
            s->amount[l * s->rank + k] = (float)(s->strength * length);
        }
    free(basis);
    free(mix);
    free(row);
    free(sites);
    if (ok) return true;
    forget(s);
    return err_set(e, "no memory for %d directions of %d layers", s->n_dir, L);
}

// ---- acting ----

static bool acts(const Steer *s, TapPoint point, int layer) {
    const bool within = layer >= s->act_first && layer <= s->act_last;
    const bool stream = point == TAP_RESID_MID || point == TAP_RESID_LATE ? within
                      : point == TAP_RESID_PRE && (within || (layer > 0 && layer - 1 >= s->act_first && layer - 1 <= s->act_last)); // leaving the last one, too
    switch (s->mode) {
    case MODE_PROJECT: return stream || (point == TAP_STREAMS && within);
    case MODE_AFFINE:
    case MODE_ONE_SIDED: return stream;
    case MODE_WRITE:
        if (point == TAP_RESID_PRE) return within && layer == 0 && !s->keep_embedding && !shape_of(s);
        return within && (point == TAP_ATTN_OUT || point == TAP_MLP_OUT || point == TAP_PLE_OUT);
    case MODE_ADD: // as llama.cpp adds a control vector: one for each layer also leaving the last one, and of several streams to all
        return point == (s->m->c.n_stream ? TAP_STREAMS : TAP_RESID_PRE) && (within || (s->n_entry > 1 && layer == s->m->c.n_layer && s->act_last == layer - 1));
    default: return false;
    }
}

static float strength_at(const Steer *s, TapPoint point, int layer) {
    const float *shape = shape_of(s);
    const int part = point == TAP_ATTN_OUT ? SHAPE_ATTN : point == TAP_MLP_OUT ? SHAPE_FFN : SHAPE_PER_LAYER;
    return (float)(shape ? s->strength * shape[layer * N_SHAPE + part] : s->strength);
}

static void measure(Steer *s, const TapSite *t) {
    const Span *g = NULL;
    for (int i = 0; i < t->n_span; i++)
        if (t->span[i].seq == 0) g = &t->span[i];
    if (!g || !s->n_dir) return;
    if (!s->watched) s->watched = malloc(sizeof(float) * (size_t)t->n_col);
    if (!s->watched) return;
    t->backend->download(t->backend, s->watched, t->rows + (int64_t)(g->row + g->n - 1) * t->n_col, sizeof(float) * (size_t)t->n_col);
    const float *r = direction_row(&s->dir[0], t->layer);
    s->component = 0;
    for (int i = 0; i < t->n_col; i++) s->component += (double)r[i] * s->watched[i];
}

static void steer_rows(void *ctx, const TapSite *t) {
    Steer *s = ctx;
    if (t->point == TAP_RESID_PRE && t->layer == s->watch) measure(s, t);
    if (!s->on || s->strength == 0 || !s->n_entry || !acts(s, t->point, t->layer)) return;
    const int entry = entry_of(s, t->point, t->layer), site = tap_site(t->point, t->layer);
    const float strength = strength_at(s, t->point, t->layer);
    const bool keeps = s->mode == MODE_AFFINE || s->mode == MODE_ONE_SIDED;
    for (int k = 0; k < s->n_vec[entry] && strength != 0; k++) {
        const float *dir = s->vec[t->backend != s->b] + ((int64_t)entry * s->rank + k) * t->n_col;
        if (s->mode == MODE_ADD) t->backend->add_dir(t->backend, t->rows, dir, t->n_rows, t->n_col, s->amount[t->layer * s->rank + k]);
        else
            t->backend->project_out(t->backend, &(ProjectArgs){.x = t->rows, .dir = dir, .n_rows = t->n_rows, .n_col = t->n_col, .amount = strength,
                                                               .keep = keeps ? s->keep[site * s->rank + k] : 0, .one_sided = s->mode == MODE_ONE_SIDED});
    }
}

Tap steer_tap(Steer *s) { return (Tap){.call = steer_rows, .ctx = s, .wanted_only = true}; }
