// edit_file.c: see edit_file.h
#include "edit_file.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>

#include "embedding.h"

enum { ROWS = 4096 }; // of the embedding at once
#define NOTHING 1e-4  // kappa of a matrix that does not write along the direction: an edit would only add rounding (it was edited before)

// ---- a second file of the same model ----

// The distance of the first rows of both, relative to those of a: rounding leaves at most about a quarter (2-bit types).
static bool distance(const Tensor *a, const Tensor *b, double *out, Err *e) {
    const int n = a->n_col, rows = min_int(a->n_row, 16);
    float *x = malloc(sizeof *x * 2 * (size_t)n), *y = x + n;
    if (!x) return err_set(e, "no memory for a row of %d weights", n);
    double error = 0, norm = 0;
    for (int r = 0; r < rows; r++) {
        type_info((int)a->type)->to_f32(tensor_row(a, 0, r), x, n);
        type_info((int)b->type)->to_f32(tensor_row(b, 0, r), y, n);
        for (int i = 0; i < n; i++) {
            error += ((double)x[i] - (double)y[i]) * ((double)x[i] - (double)y[i]);
            norm += (double)x[i] * (double)x[i];
        }
    }
    free(x);
    *out = error > 0 ? sqrt(error / norm) : 0;
    return true;
}

static bool open_from(EditFile *x, Err *e) {
    const char *path = x->o.from;
    if (!model_open(&x->from, path, e)) return false;
    if (strcmp(x->from.c.arch, x->m->c.arch)) return err_set(e, "%s: architecture %s, expected %s as the model", path, x->from.c.arch, x->m->c.arch);
    if (!writers_open(&x->from_writers, &x->from, e)) return false;
    if (x->from_writers.n != x->edit.writers.n) return err_set(e, "%s: %d matrices write to the stream, expected %d as in the model", path, x->from_writers.n, x->edit.writers.n);
    for (int i = 0; i < x->edit.writers.n; i++) {
        const Tensor *a = x->edit.writers.of[i].w, *b = x->from_writers.of[i].w;
        if (strcmp(a->name, b->name) || a->n_row != b->n_row || a->n_col != b->n_col || a->n_slice != b->n_slice)
            return err_set(e, "%s: %s has %d x %d x %d weights, expected %s with %d x %d x %d", path, b->name, b->n_slice, b->n_row, b->n_col, a->name, a->n_slice, a->n_row, a->n_col);
        double d = 0;
        if (!distance(a, b, &d, e)) return false;
        if (!(d <= 0.5)) return err_set(e, "%s: %s differs from the model's by %.0f %%: not the same model", path, b->name, 100 * d);
    }
    return true;
}

// ---- opening ----

static bool check_embeddings(const Model *m, Err *e) {
    static const char *const ALLOWED[] = {"llama", "gemma3", "gemma4"};
    for (size_t i = 0; i < sizeof ALLOWED / sizeof *ALLOWED; i++)
        if (!strcmp(m->c.arch, ALLOWED[i])) return true;
    return err_set(e, "--embeddings: the head of %s is its embedding, and other engines take no other; use the direction at run time", m->c.arch);
}

// The component that the embedding holds.
static bool measure_embedding(EditFile *x, Err *e) {
    double mix[64];
    x->n_basis = directions_basis(x->o.dirs, x->o.n_dir, 0, x->basis, mix);
    if (!x->n_basis) return !x->o.embeddings || err_set(e, "--embeddings: the direction has no vector for the stream entering layer 0");
    const Embedding a = {.t = x->m->token_embd, .n_vec = x->n_basis, .basis = x->basis};
    for (int first = 0; first < a.t->n_row; first += ROWS) {
        const int n = min_int(ROWS, a.t->n_row - first);
        if (!embedding_rows(x->pool, x->o.n_thread, &a, first, n, NULL, &x->embedding, e)) return false;
        gguf_forget(&x->m->gguf, tensor_row(a.t, 0, first), (uint64_t)n * (uint64_t)type_row_bytes(a.t->type, a.t->n_col));
    }
    return true;
}

bool edit_file_open(EditFile *x, const Model *m, const EditFileOptions *o, Err *e) {
    const uint64_t n_tensor = m->gguf.n_tensor;
    *x = (EditFile){.m = m, .o = *o};
    if (m->gguf.n_map != 1) return err_set(e, "%s: is split into %d files; merge them first (llama-gguf-split --merge)", m->gguf.path, m->gguf.n_map);
    if (!edit_open(&x->edit, m, o->dirs, o->n_dir, &o->edit, e) || (o->from && !open_from(x, e)) || (o->embeddings && !check_embeddings(m, e))) return false;
    x->pool = pool_open(o->n_thread);
    x->of = calloc((size_t)n_tensor + 1, sizeof *x->of);
    x->item = malloc(sizeof *x->item * ((size_t)n_tensor + 1));
    x->type = malloc(sizeof *x->type * ((size_t)n_tensor + 1));
    x->factor = malloc(sizeof *x->factor * ((size_t)x->edit.writers.n + 1));
    x->basis = malloc(sizeof *x->basis * (size_t)o->n_dir * (size_t)m->c.n_embd);
    if (!x->pool || !x->of || !x->item || !x->type || !x->factor || !x->basis) return err_set(e, "%s: no memory for %d threads and %" PRIu64 " tensors", m->gguf.path, o->n_thread, n_tensor);
    for (uint64_t i = 0; i < n_tensor; i++) x->item[i] = x->type[i] = -1;
    for (int i = 0; i < x->edit.writers.n; i++) x->factor[i] = 1;
    return measure_embedding(x, e);
}

void edit_file_close(EditFile *x) {
    edit_close(&x->edit);
    writers_close(&x->from_writers);
    if (x->o.from) model_close(&x->from);
    if (x->pool) pool_close(x->pool);
    free(x->of);
    free(x->item);
    free(x->type);
    free(x->factor);
    free(x->basis);
    *x = (EditFile){0};
}

void edit_file_gains(EditFile *x, const EditWatch *watch) {
    for (int i = 0; i < x->edit.writers.n; i++)
        if (x->edit.of[i].n_vec) x->factor[i] = edit_scale(watch, i);
}

// ---- what changes ----

// The wanted type where it is finer and the rows allow it; --promote Q6_K: rows that are no multiple of 256 become Q8_0.
static TensorType promoted(TensorType type, int promote, int n_col) {
    const int wanted[2] = {promote, TYPE_Q8_0};
    for (int i = 0; promote >= 0 && i < 2; i++) {
        const TypeInfo *t = type_info(wanted[i]), *now = type_info((int)type);
        if (t->bytes * now->block <= now->bytes * t->block) return type;
        if (n_col % t->block == 0) return (TensorType)wanted[i];
    }
    return type;
}

static void mark(EditFile *x, uint64_t tensor, Edited one) {
    one.tensor = tensor;
    x->item[tensor] = x->n;
    x->type[tensor] = (int)one.out_type;
    x->of[x->n++] = one;
}

// The file's tensor that holds slice s of a writer.
static bool find(const EditFile *x, const Tensor *t, int s, uint64_t *at, Err *e) {
    const Gguf *g = &x->m->gguf;
    const void *p = tensor_row(t, s, 0);
    for (*at = 0; *at < g->n_tensor; ++*at)
        if (g->tensors[*at].data == p && g->tensors[*at].bytes) return true;
    return err_set(e, "%s: %s: slice %d begins no tensor of the file", g->path, t->name, s);
}

static bool list_vector(EditFile *x, const Tensor *t, EditedKind kind, int writer, Err *e) {
    const GgufTensor *g = gguf_tensor(&x->m->gguf, t->name);
    const uint64_t at = g ? (uint64_t)(g - x->m->gguf.tensors) : 0;
    if (!g || !type_info(g->type)->from_f32) return err_set(e, "%s: %s cannot be written as %s", x->m->gguf.path, t->name, g ? type_info(g->type)->name : "?");
    if (x->item[at] < 0) // a norm that two branches share is one tensor
        mark(x, at, (Edited){.kind = kind, .writer = writer, .n_slice = 1, .type = (TensorType)g->type, .out_type = (TensorType)g->type, .factor = x->factor[writer]});
    return true;
}

static bool list_writer(EditFile *x, int i, Err *e) {
    const Writer *w = &x->edit.writers.of[i];
    const Tensor *t = w->w;
    const TensorType out = promoted(t->type, x->o.promote, t->n_col);
    if (!type_info((int)out)->from_f32) return err_set(e, "%s: %s has type %s, which this program does not write; --promote Q6_K or Q8_0", x->m->gguf.path, t->name, type_info((int)out)->name);
    uint64_t at;
    const bool apart = t->slices && t->n_slice > 1 && find(x, t, 1, &at, &(Err){0}); // files of 2023: a tensor for each expert
    for (int s = 0; s < (apart ? t->n_slice : 1); s++) {
        if (!find(x, t, s, &at, e)) return false;
        mark(x, at, (Edited){.kind = EDITED_MATRIX, .writer = i, .slice = s, .n_slice = apart ? 1 : t->n_slice, .type = t->type, .out_type = out});
    }
    if (w->bias && !list_vector(x, w->bias, EDITED_BIAS, i, e)) return false;
    return !w->norm || x->factor[i] == 1 || list_vector(x, w->norm, EDITED_GAIN, i, e);
}

static int by_tensor(const void *a, const void *b) {
    const uint64_t x = ((const Edited *)a)->tensor, y = ((const Edited *)b)->tensor;
    return (x > y) - (x < y);
}

bool edit_file_list(EditFile *x, Err *e) {
    const Tensor *t = x->m->token_embd;
    for (int i = 0; i < x->edit.writers.n; i++)
        if (x->edit.of[i].n_vec && !list_writer(x, i, e)) return false;
    if (x->o.embeddings) {
        uint64_t at;
        if (!find(x, t, 0, &at, e)) return false;
        mark(x, at, (Edited){.kind = EDITED_EMBEDDING, .writer = -1, .n_slice = 1, .type = t->type, .out_type = t->type});
        x->adds_head = x->m->output == t;
    }
    if (!x->n) return err_set(e, "%s: nothing changes: within these layers the direction has no vector, or the strength is 0", x->m->gguf.path);
    qsort(x->of, (size_t)x->n, sizeof *x->of, by_tensor);
    for (int i = 0; i < x->n; i++) x->item[x->of[i].tensor] = i;
    return true;
}

// ---- their bytes ----

static bool put(Rewriting *w, const void *p, size_t n, Err *e) { return !w || rewrite_put(w, p, n, e); }

static bool make_matrix(EditFile *x, Edited *one, Rewriting *w, Err *e) {
    const Tensor *t = x->edit.writers.of[one->writer].w, *from = x->o.from ? x->from_writers.of[one->writer].w : t;
    const size_t bytes = (size_t)(type_row_bytes(one->out_type, t->n_col) * t->n_row);
    void *out = malloc(bytes);
    bool ok = out || err_set(e, "%s: no memory for %.1f MiB", t->name, (double)bytes / 0x1p20);
    for (int s = one->slice; ok && s < one->slice + one->n_slice; s++) {
        const Slice slice = {.type = from->type, .rows = tensor_row(from, s, 0), .out_type = one->out_type, .out = out,
                             .grid = one->out_type == t->type ? tensor_row(t, s, 0) : NULL};
        EditFigures f;
        ok = edit_matrix(x->pool, x->o.n_thread, &x->edit, one->writer, &slice, &f, e);
        if (ok && slice.grid == slice.rows && edit_kappa(&x->edit, one->writer, &f) < NOTHING) {
            memcpy(out, slice.rows, bytes);
            f = (EditFigures){.n = f.n, .n_col = f.n_col, .before = f.before, .after = f.before, .norm = f.norm};
        }
        ok = ok && put(w, out, bytes, e);
        if (ok) edit_add(&one->f, &f);
        if (ok && x->o.from) gguf_forget(&x->from.gguf, slice.rows, (uint64_t)(type_row_bytes(from->type, from->n_col) * from->n_row));
    }
    one->kappa = edit_kappa(&x->edit, one->writer, &one->f);
    free(out);
    return ok;
}

// A bias without the direction, a gain times its factor.
static bool make_vector(EditFile *x, Edited *one, Rewriting *w, Err *e) {
    const Writer *y = &x->edit.writers.of[one->writer];
    const Change *c = &x->edit.of[one->writer];
    const float *was = one->kind == EDITED_BIAS ? y->bias->host : y->norm->host;
    const int n = x->edit.n_embd;
    const size_t bytes = (size_t)type_row_bytes(one->out_type, n);
    float *v = malloc(sizeof *v * (size_t)n);
    void *out = malloc(bytes);
    bool ok = (v && out) || err_set(e, "no memory for a vector of %d", n);
    if (ok) {
        if (one->kind == EDITED_BIAS) edit_bias(&x->edit, one->writer, was, v);
        else
            for (int i = 0; i < n; i++) v[i] = (float)(one->factor * (double)was[i]);
        type_info((int)one->out_type)->from_f32(v, out, n, NULL);
        type_info((int)one->out_type)->to_f32(out, v, n); // as it is stored
        EditFigures *f = &one->f;
        f->n = n;
        f->n_col = 1;
        for (int i = 0; i < n; i++) {
            f->n_changed += v[i] != was[i];
            f->norm += (double)was[i] * (double)was[i];
            f->change += ((double)v[i] - (double)was[i]) * ((double)v[i] - (double)was[i]);
        }
        for (int k = 0; one->kind == EDITED_BIAS && k < c->n_vec; k++) {
            double before = 0, after = 0;
            for (int i = 0; i < n; i++) before += c->take[(int64_t)k * n + i] * (double)was[i], after += c->take[(int64_t)k * n + i] * (double)v[i];
            f->before += before * before;
            f->after += after * after;
            f->residue += (after - (1 - c->strength) * before) * (after - (1 - c->strength) * before);
        }
        one->kappa = one->kind == EDITED_BIAS ? edit_kappa(&x->edit, one->writer, f) : 0;
        ok = put(w, out, bytes, e);
    }
    free(v);
    free(out);
    return ok;
}

static bool make_embedding(EditFile *x, Edited *one, Rewriting *w, Err *e) {
    const Tensor *t = x->m->token_embd;
    const size_t row = (size_t)type_row_bytes(t->type, t->n_col);
    const Embedding a = {.t = t, .n_vec = x->n_basis, .basis = x->basis, .strength = x->o.edit.strength, .usual = sqrt(x->embedding.before / t->n_row)};
    char *out = malloc(row * ROWS);
    bool ok = out || err_set(e, "%s: no memory for %d rows", t->name, ROWS);
    for (int64_t first = 0; ok && first < t->n_row; first += ROWS) {
        const int n = min_int(ROWS, (int)(t->n_row - first));
        ok = embedding_rows(x->pool, x->o.n_thread, &a, first, n, out, &one->f, e) && put(w, out, row * (size_t)n, e);
    }
    one->kappa = one->f.norm > 0 ? sqrt(t->n_col * one->f.before / one->f.norm) : 0;
    free(out);
    return ok;
}

bool edit_file_make(void *ctx, uint64_t i, Rewriting *w, Err *e) {
    EditFile *x = ctx;
    if (i >= x->m->gguf.n_tensor) return put(w, x->m->token_embd->host, (size_t)tensor_bytes(x->m->token_embd), e); // the head's copy
    Edited *one = &x->of[x->item[i]];
    one->f = (EditFigures){0};
    switch (one->kind) {
    case EDITED_MATRIX: return make_matrix(x, one, w, e);
    case EDITED_BIAS:
    case EDITED_GAIN: return make_vector(x, one, w, e);
    case EDITED_EMBEDDING: return make_embedding(x, one, w, e);
    }
    return false;
}
