// direction.c: see direction.h. Formats of others: spec abliteration.md, section 7.
#include "direction.h"

#include <math.h>
#include <stdlib.h>
#include <time.h>

#include "sha256.h"

static const char *const MODES[N_MODE] = {"project", "write", "affine", "one-sided", "add"};
static const char HOOK[] = "residual_stream_post_layer";

const char *mode_name(SteerMode mode) { return MODES[mode]; }

int mode_by_name(const char *name) {
    for (int i = 0; i < N_MODE; i++)
        if (!strcmp(name, MODES[i])) return i;
    return -1;
}

static bool allocate(Direction *d, bool with_contrast, Err *e) {
    const size_t rows = d->single ? 1 : (size_t)d->n_layer + 1;
    d->row = calloc(rows * (size_t)d->n_embd, sizeof(float));
    d->length = calloc((size_t)d->n_layer + 1, sizeof(float));
    if (with_contrast) d->contrast = calloc((size_t)tap_n_site(d->n_layer), sizeof(float));
    return (d->row && d->length && (d->contrast || !with_contrast)) || err_set(e, "no memory for a direction");
}

void direction_free(Direction *d) {
    free(d->row);
    free(d->length);
    free(d->contrast);
    free(d->shape);
    *d = (Direction){0};
}

bool direction_set_shape(Direction *d, const float *shape, Err *e) {
    const size_t bytes = sizeof *shape * (size_t)d->n_layer * N_SHAPE;
    free(d->shape);
    d->shape = shape ? malloc(bytes) : NULL;
    if (shape && !d->shape) return err_set(e, "no memory for the strengths of %d layers", d->n_layer);
    if (shape) memcpy(d->shape, shape, bytes);
    return true;
}

bool direction_single(Direction *d, int n_layer, int n_embd, const double *vector, Err *e) {
    *d = (Direction){.n_embd = n_embd, .n_layer = n_layer, .single = true, .layer = -1, .position = -1, .mode = MODE_PROJECT, .strength = 1};
    double sum = 0;
    for (int i = 0; i < n_embd; i++) sum += vector[i] * vector[i];
    if (!(sum > 0 && isfinite(sum))) return err_set(e, "a direction of length %g has no direction", sqrt(sum));
    if (!allocate(d, true, e)) {
        direction_free(d);
        return false;
    }
    for (int i = 0; i < n_embd; i++) d->row[i] = (float)(vector[i] / sqrt(sum));
    return true;
}

static void subtract(double *v, const double *other, double amount, int n) {
    for (int i = 0; i < n; i++) v[i] -= amount * other[i];
}

int directions_basis(const Direction *dirs, int n_dir, int entering, double *basis, double *mix) {
    const int n = n_dir ? dirs->n_embd : 0;
    int rank = 0;
    for (int d = 0; d < n_dir; d++) {
        const float *row = direction_row(&dirs[d], entering);
        double *v = basis + (int64_t)rank * n, *m = mix + rank * n_dir, square = 0;
        for (int i = 0; i < n; i++) v[i] = row[i];
        for (int i = 0; i < n_dir; i++) m[i] = i == d;
        for (int pass = 0; pass < 2; pass++) // twice is enough (Giraud et al. 2005)
            for (int r = 0; r < rank; r++) {
                const double *other = basis + (int64_t)r * n;
                double along = 0;
                for (int i = 0; i < n; i++) along += v[i] * other[i];
                subtract(v, other, along, n);
                subtract(m, mix + r * n_dir, along, n_dir);
            }
        for (int i = 0; i < n; i++) square += v[i] * v[i];
        if (square < 1e-10) continue;
        for (int i = 0; i < n; i++) v[i] /= sqrt(square);
        for (int i = 0; i < n_dir; i++) m[i] /= sqrt(square);
        rank++;
    }
    return rank;
}

// ---- loading ----

// A text of the file as a C string; absent: "".
static bool text_of(const Gguf *g, const char *key, char *out, size_t cap, Err *e) {
    GgufString s = {0};
    if (!gguf_get_string(g, key, &s, e)) return false;
    const size_t n = s.n < cap - 1 ? (size_t)s.n : cap - 1;
    if (n) memcpy(out, s.p, n);
    out[n] = 0;
    return true;
}

// Earlier GLP files use the prefix dspark.
static const char *glp(const Gguf *g, const char *key, char buffer[64]) {
    snprintf(buffer, 64, "glp.%s", key);
    if (!gguf_key(g, buffer)) {
        char old[64];
        snprintf(old, sizeof old, "dspark.%s", key);
        if (gguf_key(g, old)) memcpy(buffer, old, sizeof old);
    }
    return buffer;
}

static bool load_keys(Direction *d, const Gguf *g, const char *path, bool *ours, bool *is_glp, Err *e) {
    char text[96], key[64];
    int64_t version = 1, rank = 1, layers = d->n_layer, single = 0, layer = -1, position = -1;
    bool zero_based = true;
    if (!text_of(g, "general.architecture", text, sizeof text, e)) return false;
    if (strcmp(text, "controlvector")) return err_set(e, "%s: architecture '%s', expected 'controlvector'", path, text);
    *ours = gguf_key(g, "abliterate.version") != NULL;

    *is_glp = gguf_key(g, glp(g, "mode", key)) != NULL;
    if (!text_of(g, key, text, sizeof text, e)) return false;
    if (*is_glp && strcmp(text, "project") && strcmp(text, "add")) return err_set(e, "%s: %s is '%s', expected project or add", path, key, text);
    d->mode = *is_glp && !strcmp(text, "project") ? MODE_PROJECT : MODE_ADD; // a plain control vector is added
    if (!text_of(g, glp(g, "hook_point", key), text, sizeof text, e)) return false;
    if (*text && strcmp(text, HOOK)) return err_set(e, "%s: %s is '%s', this program knows only %s", path, key, text, HOOK);
    if (!gguf_get_int(g, glp(g, "spec_version", key), 0, INT32_MAX, &version, e) || !gguf_get_int(g, glp(g, "rank", key), 0, INT32_MAX, &rank, e) ||
        !gguf_get_bool(g, glp(g, "layer_ids_zero_based", key), &zero_based, e))
        return false;
    if (version != 1) return err_set(e, "%s: GLP version %lld, expected 1", path, (long long)version);
    if (rank != 1) return err_set(e, "%s: %lld directions per layer, expected 1 (give several files instead)", path, (long long)rank);
    if (!zero_based) return err_set(e, "%s: its layers are counted from 1, expected from 0", path);
    d->strength = 1;
    if (!gguf_get_float(g, glp(g, "alpha_default", key), &d->strength, e)) return false;

    if (!text_of(g, "abliterate.mode", text, sizeof text, e)) return false;
    if (*text) {
        const int mode = mode_by_name(text);
        if (mode < 0) return err_set(e, "%s: abliterate.mode is '%s', expected project, write, affine, one-sided or add", path, text);
        d->mode = (SteerMode)mode;
    }
    if (!gguf_get_int(g, "abliterate.n_layer", 1, INT32_MAX, &layers, e) || !gguf_get_int(g, "abliterate.single", 0, 1, &single, e) ||
        !gguf_get_int(g, "abliterate.layer", -1, MAX_LAYER, &layer, e) || !gguf_get_int(g, "abliterate.position", INT32_MIN, -1, &position, e) ||
        !text_of(g, "abliterate.model", d->model, sizeof d->model, e) || !text_of(g, "abliterate.model_fingerprint", d->fingerprint, sizeof d->fingerprint, e))
        return false;
    if (!*d->model && !text_of(g, "general.base_model.0.name", d->model, sizeof d->model, e)) return false;
    if (layers != d->n_layer) return err_set(e, "%s: made for a model of %lld layers, this one has %d", path, (long long)layers, d->n_layer);
    if (layer > d->n_layer) return err_set(e, "%s: abliterate.layer is %lld, the model has layers 0 to %d", path, (long long)layer, d->n_layer - 1);
    d->single = single;
    d->layer = (int)layer;
    d->position = (int)position;
    return true;
}

// An array of n floats; absent: *found false.
static bool floats_of(const Gguf *g, const char *path, const char *key, float *out, int n, bool *found, Err *e) {
    const GgufKey *k = gguf_key(g, key);
    *found = k != NULL;
    if (!k) return true;
    if (k->type != GGUF_ARRAY || !gguf_is_float(k->elem) || k->n != (uint64_t)n) return err_set(e, "%s: %s is not an array of %d floats", path, key, n);
    for (int i = 0; i < n; i++) {
        out[i] = (float)gguf_elem_float(k, (uint64_t)i);
        if (!isfinite(out[i])) return err_set(e, "%s: %s holds %g", path, key, (double)out[i]);
    }
    return true;
}

static bool load_vectors(Direction *d, const Gguf *g, const char *path, bool *seen, Err *e) {
    Sha256 sha;
    char have[65], want[80], key[64];
    sha256_start(&sha);
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        const GgufTensor *t = &g->tensors[i];
        int layer = -1, used = 0;
        if (sscanf(t->name_z, "direction.%d%n", &layer, &used) != 1 || t->name_z[used] || layer < 0)
            return err_set(e, "%s: tensor '%s', expected only direction.N", path, t->name_z);
        if (layer == 0) return err_set(e, "%s: direction.0 cannot be: the format begins with the stream leaving layer 1", path);
        if (layer >= d->n_layer) return err_set(e, "%s: %s, but the model has layers 0 to %d", path, t->name_z, d->n_layer - 1);
        if (t->type != TYPE_F32) return err_set(e, "%s: %s is %s, expected F32", path, t->name_z, type_info(t->type) ? type_info(t->type)->name : "of an unknown type");
        if (t->bytes != sizeof(float) * t->ne[0] || t->ne[0] != (uint64_t)d->n_embd)
            return err_set(e, "%s: %s has %llu values, the residual stream of the model %d", path, t->name_z, (unsigned long long)(t->bytes / sizeof(float)), d->n_embd);
        sha256_add(&sha, t->data, (size_t)t->bytes);
        float *row = d->single ? d->row : d->row + (int64_t)(layer + 1) * d->n_embd;
        if (d->single && *seen) continue; // the same vector once more
        memcpy(row, t->data, (size_t)t->bytes);
        double sum = 0;
        for (int k = 0; k < d->n_embd; k++) sum += (double)row[k] * row[k];
        if (!isfinite(sum)) return err_set(e, "%s: %s is not finite", path, t->name_z);
        if (sum > 0) *seen = true;
        d->length[layer + 1] = (float)sqrt(sum);
        for (int k = 0; k < d->n_embd && sum > 0; k++) row[k] = (float)(row[k] / sqrt(sum));
    }
    sha256_end(&sha, have);
    if (!text_of(g, glp(g, "content_sha256", key), want, sizeof want, e)) return false;
    if (*want && strcmp(want, have)) return err_set(e, "%s: damaged: its vectors do not have the checksum the file gives", path);
    return *seen || err_set(e, "%s: holds no direction", path);
}

static bool load_shape(Direction *d, const Gguf *g, const char *path, Err *e) {
    bool found;
    if (!gguf_key(g, "abliterate.shape")) return true;
    d->shape = malloc(sizeof *d->shape * (size_t)d->n_layer * N_SHAPE);
    if (!d->shape) return err_set(e, "%s: no memory for the strengths of %d layers", path, d->n_layer);
    return floats_of(g, path, "abliterate.shape", d->shape, d->n_layer * N_SHAPE, &found, e);
}

static bool load(Direction *d, const Gguf *g, const char *path, Err *e) {
    bool ours = false, is_glp = false, seen = false, found = false;
    bool ok = load_keys(d, g, path, &ours, &is_glp, e) && allocate(d, true, e) && load_vectors(d, g, path, &seen, e);
    if (ok && ours) ok = floats_of(g, path, "abliterate.length", d->length, d->n_layer + 1, &found, e);
    if (ok) ok = floats_of(g, path, "abliterate.contrast_component", d->contrast, tap_n_site(d->n_layer), &found, e);
    if (ok && !found) {
        free(d->contrast);
        d->contrast = NULL;
    }
    ok = ok && load_shape(d, g, path, e);
    if (!ok) direction_free(d);
    return ok;
}

bool direction_load(Direction *d, const char *path, const Model *m, Err *e) {
    Gguf g;
    *d = (Direction){.n_embd = m->c.n_embd, .n_layer = m->c.n_layer};
    if (!gguf_open(&g, path, e)) return false;
    const bool ok = load(d, &g, path, e);
    gguf_close(&g);
    return ok;
}

static bool sizes_of(Direction *d, const Gguf *g, const char *path, Err *e) {
    int64_t layers = 0;
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        int layer = -1;
        if (sscanf(g->tensors[i].name_z, "direction.%d", &layer) == 1 && layer < MAX_LAYER && layer >= layers) layers = layer + 1;
    }
    if (layers < 2 || g->tensors[0].ne[0] < 1 || g->tensors[0].ne[0] > 1 << 24) return err_set(e, "%s: is not a file of directions: tensors direction.1 and so on are expected", path);
    if (!gguf_get_int(g, "abliterate.n_layer", layers, MAX_LAYER, &layers, e)) return false;
    d->n_embd = (int)g->tensors[0].ne[0];
    d->n_layer = (int)layers;
    return true;
}

bool direction_load_alone(Direction *d, const char *path, Err *e) {
    Gguf g;
    *d = (Direction){0};
    if (!gguf_open(&g, path, e)) return false;
    const bool ok = sizes_of(d, &g, path, e) && load(d, &g, path, e);
    gguf_close(&g);
    return ok;
}

// ---- saving ----

bool direction_save(const Direction *d, const char *path, void (*more)(void *ctx, GgufWriter *w), void *ctx, Err *e) {
    if (d->n_layer < 2) return err_set(e, "%s: the format holds the streams leaving layers 1 and up; this model has only layer 0", path);
    GgufWriter *w;
    if (!gguf_writer_open(&w, path, e)) return false;
    char name[32], hash[65], day[32];
    const size_t bytes = sizeof(float) * (size_t)d->n_embd;
    const time_t now = time(NULL);
    strftime(day, sizeof day, "%Y-%m-%d", gmtime(&now));
    Sha256 sha;
    sha256_start(&sha);
    for (int l = 1; l < d->n_layer; l++) sha256_add(&sha, direction_row(d, l + 1), bytes);
    sha256_end(&sha, hash);

    const char *const texts[][2] = {
        {"general.architecture", "controlvector"}, {"general.type", "controlvector"}, {"general.base_model.0.name", d->model},
        {"glp.mode", d->mode == MODE_ADD ? "add" : "project"}, {"glp.hook_point", HOOK}, {"glp.method", "difference of means"},
        {"glp.content_sha256", hash}, {"glp.created", day}, {"abliterate.version", "0.1"}, {"abliterate.mode", mode_name(d->mode)},
        {"abliterate.residual", "direction.N: the stream leaving layer N, counted from 0, after any output scale; abliterate.layer: entering that layer"},
        {"abliterate.model", d->model}, {"abliterate.model_fingerprint", d->fingerprint},
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) gguf_set_string(w, texts[i][0], texts[i][1], strlen(texts[i][1]));
    gguf_set_u32(w, "controlvector.layer_count", (uint32_t)(d->n_layer - 1));
    gguf_set_u32(w, "general.base_model.count", 1);
    gguf_set_u32(w, "glp.spec_version", 1);
    gguf_set_u32(w, "glp.rank", 1);
    gguf_set_bool(w, "glp.orthonormal", true);
    gguf_set_bool(w, "glp.layer_ids_zero_based", true);
    gguf_set_f32(w, "glp.alpha_default", d->strength);
    gguf_set_u32(w, "abliterate.n_layer", (uint32_t)d->n_layer);
    gguf_set_bool(w, "abliterate.single", d->single);
    gguf_set_i32(w, "abliterate.layer", d->layer);
    gguf_set_i32(w, "abliterate.position", d->position);
    gguf_set_array(w, "abliterate.length", GGUF_F32, d->length, (uint64_t)d->n_layer + 1);
    if (d->contrast) gguf_set_array(w, "abliterate.contrast_component", GGUF_F32, d->contrast, (uint64_t)tap_n_site(d->n_layer));
    if (d->shape) gguf_set_array(w, "abliterate.shape", GGUF_F32, d->shape, (uint64_t)d->n_layer * N_SHAPE);
    if (more) more(ctx, w);

    for (int l = 1; l < d->n_layer; l++) {
        snprintf(name, sizeof name, "direction.%d", l);
        gguf_add_tensor(w, name, TYPE_F32, 1, (uint64_t[]){(uint64_t)d->n_embd});
    }
    bool ok = true;
    for (int l = 1; ok && l < d->n_layer; l++) ok = gguf_writer_data(w, direction_row(d, l + 1), bytes, e) && gguf_writer_next(w, e);
    if (ok) return gguf_writer_close(w, e);
    gguf_writer_abort(w);
    return false;
}
