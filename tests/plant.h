// plant.h: edits as other tools make them, for tests: a direction removed from every matrix that writes to the residual stream,
// rounded back plainly.
#ifndef PLANT_H
#define PLANT_H

#include <math.h>

#include "diff.h"
#include "random.h"
#include "test.h"

static inline void random_unit(double *r, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) r[i] = gauss(), sum += r[i] * r[i];
    for (int i = 0; i < n; i++) r[i] /= sqrt(sum);
}

static inline double cosine(const double *a, const double *b, int n) {
    double ab = 0, aa = 0, bb = 0;
    for (int i = 0; i < n; i++) ab += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
    return ab / sqrt(aa * bb);
}

// x [n_row][n_col] -= strength * give (take' x) (diff.h says which)
static inline void plant_slice(float *x, int n_row, int n_col, const float *gain, const double *r, How how, double strength) {
    double *c = calloc((size_t)n_col, sizeof *c), *take = malloc(sizeof *take * (size_t)n_row), *give = malloc(sizeof *give * (size_t)n_row), length = 0;
    for (int i = 0; i < n_row; i++) {
        const double g = gain && how != HOW_PLAIN ? gain[i] : 1;
        take[i] = g * r[i];
        give[i] = how == HOW_OBLIQUE ? r[i] / g : take[i];
        length += take[i] * give[i];
    }
    for (int i = 0; i < n_row; i++)
        for (int j = 0; j < n_col; j++) c[j] += take[i] * x[(int64_t)i * n_col + j];
    for (int i = 0; i < n_row; i++)
        for (int j = 0; j < n_col; j++) x[(int64_t)i * n_col + j] -= (float)(strength * give[i] / length * c[j]);
    free(c);
    free(take);
    free(give);
}

// from: the file; parent: where the values are taken from before they are rounded to from's types (NULL: from itself).
static inline bool plant(const char *from, const char *parent, const char *to, const double *r, How how, double strength, Err *e) {
    Model m;
    Gguf values;
    Writers writers = {0};
    GgufWriter *w = NULL;
    if (!model_open(&m, from, e) || !gguf_open(&values, parent ? parent : from, e) || !writers_open(&writers, &m, e) || !gguf_writer_open(&w, to, e)) return false;
    const Gguf *g = &m.gguf;
    for (uint64_t i = 0; i < g->n_key; i++) gguf_copy_key(w, &g->keys[i]);
    for (uint64_t i = 0; i < g->n_tensor; i++) gguf_add_tensor(w, g->tensors[i].name_z, g->tensors[i].type, g->tensors[i].n_dims, g->tensors[i].ne);
    bool ok = true;
    for (uint64_t i = 0; ok && i < g->n_tensor; i++) {
        const GgufTensor *t = &g->tensors[i], *v = gguf_tensor(&values, t->name_z);
        const Writer *writer = NULL;
        for (int k = 0; k < writers.n; k++)
            if (writers.of[k].w->host == t->data) writer = &writers.of[k];
        Matrix from_m, to_m;
        if (!writer || !matrix_of(&from_m, v) || !matrix_of(&to_m, t)) {
            ok = gguf_writer_data(w, t->data, (size_t)t->bytes, e) && gguf_writer_next(w, e);
            continue;
        }
        float *x = malloc(sizeof *x * (size_t)from_m.n_row * (size_t)from_m.n_col);
        const int64_t row_bytes = type_row_bytes((TensorType)t->type, from_m.n_col);
        char *packed = malloc((size_t)row_bytes);
        for (int s = 0; ok && s < from_m.n_slice; s++) {
            for (int k = 0; k < from_m.n_row; k++) matrix_read(&from_m, s, k, 0, from_m.n_col, x + (int64_t)k * from_m.n_col);
            plant_slice(x, from_m.n_row, from_m.n_col, writer->gain, r, how, strength);
            for (int k = 0; ok && k < from_m.n_row; k++) {
                type_info(t->type)->from_f32(x + (int64_t)k * from_m.n_col, packed, from_m.n_col, NULL);
                ok = gguf_writer_data(w, packed, (size_t)row_bytes, e);
            }
        }
        ok = ok && gguf_writer_next(w, e);
        free(x);
        free(packed);
    }
    if (ok) ok = gguf_writer_close(w, e);
    else gguf_writer_abort(w);
    writers_close(&writers);
    gguf_close(&values);
    model_close(&m);
    return ok;
}

#endif
