// embedding.c: see embedding.h
#include "embedding.h"

#include <math.h>
#include <stdlib.h>

#include "codes.h"
#include "repair.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // the same files from every compiler
#endif

enum { ROWS = 64 }; // of an item

typedef struct {
    float *target, *value, *above, *below, *fresh; // [n_embd]
    float *scale, *offset;
    uint16_t *code;
    int8_t *move;
    char *row; // one row's bytes
    Repair *repair;
} Scratch;

typedef struct {
    const Embedding *x;
    int64_t first;
    int n;
    char *out;
    Scratch *scratch;     // [threads]
    EditFigures *figures; // [items]
} Job;

static void along(const Embedding *x, const float *row, double *out) {
    const int n = x->t->n_col;
    for (int k = 0; k < x->n_vec; k++) {
        out[k] = 0;
        for (int i = 0; i < n; i++) out[k] += x->basis[(int64_t)k * n + i] * (double)row[i];
    }
}

static double square_error(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

static void values(const Embedding *x, const Scratch *s, int from, int n) {
    const int group = codes_group(x->t->type);
    for (int i = from; i < from + n; i += group)
        codes_values(x->t->type, s->code + i, min_int(group, from + n - i), s->scale[i / group], s->offset[i / group], s->value + i, s->above + i, s->below + i);
}

// The nearest codes to the target: on the row's own scales, or where that is nearer on new ones.
static void round_row(const Embedding *x, const Scratch *s, char *out, EditFigures *f) {
    const TensorType type = x->t->type;
    const TypeInfo *t = type_info((int)type);
    const int n = x->t->n_col, group = codes_group(type);
    codes_get(type, out, n, s->code, s->scale, s->offset);
    for (int i = 0; i < n; i += group) codes_nearest(type, s->target + i, min_int(group, n - i), s->scale[i / group], s->offset[i / group], s->code + i);
    values(x, s, 0, n);
    if (t->block == 1) return;
    t->from_f32(s->target, s->row, n, NULL);
    t->to_f32(s->row, s->fresh, n);
    f->n_block += n / t->block;
    for (int i = 0; i < n; i += t->block) {
        if (!(square_error(s->fresh + i, s->target + i, t->block) < square_error(s->value + i, s->target + i, t->block))) continue;
        char *block = out + (int64_t)i / t->block * t->bytes;
        memcpy(block, s->row + (int64_t)i / t->block * t->bytes, (size_t)t->bytes);
        codes_get(type, block, t->block, s->code + i, s->scale + i / group, s->offset + i / group);
        values(x, s, i, t->block);
        f->n_refit++;
    }
}

static void edit_row(const Job *a, const Scratch *s, int r, EditFigures *f) {
    const Embedding *x = a->x;
    const TypeInfo *t = type_info((int)x->t->type);
    const int n = x->t->n_col, group = codes_group(x->t->type);
    const void *was = tensor_row(x->t, 0, a->first + r);
    double have[MAX_VEC], p[MAX_VEC];
    t->to_f32(was, s->target, n);
    along(x, s->target, have);
    f->n += n;
    f->n_col++;
    for (int i = 0; i < n; i++) f->norm += (double)s->target[i] * (double)s->target[i];
    for (int k = 0; k < x->n_vec; k++) f->before += have[k] * have[k];
    if (!a->out) return;
    const size_t bytes = (size_t)type_row_bytes(x->t->type, n);
    char *out = a->out + (size_t)r * bytes;
    memcpy(out, was, bytes);
    for (int i = 0; i < n; i++) {
        double less = 0;
        for (int k = 0; k < x->n_vec; k++) less += x->basis[(int64_t)k * n + i] * have[k];
        s->target[i] = (float)(s->target[i] - x->strength * less);
    }
    if (!group) memcpy(out, s->target, bytes);
    else {
        round_row(x, s, out, f);
        f->rounded += square_error(s->value, s->target, n);
        along(x, s->value, p);
        for (int k = 0; k < x->n_vec; k++) p[k] -= (1 - x->strength) * have[k];
        const Column c = {s->target, s->value, s->above, s->below};
        if (!repair_column(s->repair, &c, p, (x->n_vec > 1 ? EDIT_TOLERANCE_SEVERAL : EDIT_TOLERANCE) * x->usual, s->move)) {
            double left = 0;
            for (int k = 0; k < x->n_vec; k++) left += p[k] * p[k];
            f->n_missed += sqrt(left) > EDIT_LEAK * x->usual;
        }
        for (int i = 0; i < n; i++) {
            if (!s->move[i]) continue;
            s->code[i] = codes_move(s->code[i], s->scale[i / group], s->move[i]);
            f->n_flip++;
        }
        codes_set(x->t->type, out, n, s->code);
    }
    t->to_f32(out, s->value, n); // as it is stored
    f->error += square_error(s->value, s->target, n);
    t->to_f32(was, s->fresh, n);
    f->change += square_error(s->value, s->fresh, n);
    for (int i = 0; i < n; i++) f->n_changed += s->value[i] != s->fresh[i];
    along(x, s->value, p);
    for (int k = 0; k < x->n_vec; k++) {
        const double left = p[k] - (1 - x->strength) * have[k];
        f->after += p[k] * p[k];
        f->residue += left * left;
    }
}

static void edit_rows(const void *args, int item, int thread) {
    const Job *a = args;
    for (int r = item * ROWS; r < min_int(a->n, (item + 1) * ROWS); r++) edit_row(a, &a->scratch[thread], r, &a->figures[item]);
}

static void scratch_close(Scratch *s) {
    free(s->target);
    free(s->scale);
    free(s->code);
    free(s->move);
    free(s->row);
    repair_close(s->repair);
}

static bool scratch_open(Scratch *s, const Embedding *x) {
    const size_t n = (size_t)x->t->n_col;
    s->target = malloc(sizeof *s->target * 5 * n);
    s->scale = malloc(sizeof *s->scale * 2 * n);
    s->code = malloc(sizeof *s->code * n);
    s->move = malloc(n);
    s->row = malloc((size_t)type_row_bytes(x->t->type, x->t->n_col));
    s->repair = repair_open(x->t->n_col, x->n_vec, x->basis);
    if (!s->target || !s->scale || !s->code || !s->move || !s->row || !s->repair) return false;
    s->value = s->target + n;
    s->above = s->value + n;
    s->below = s->above + n;
    s->fresh = s->below + n;
    s->offset = s->scale + n;
    return true;
}

bool embedding_rows(Pool *pool, int n_thread, const Embedding *x, int64_t first, int n, void *out, EditFigures *f, Err *e) {
    const int n_item = (n + ROWS - 1) / ROWS;
    Job a = {x, first, n, out, calloc((size_t)n_thread, sizeof *a.scratch), calloc((size_t)n_item, sizeof *a.figures)};
    bool ok = a.scratch && a.figures;
    for (int t = 0; ok && t < n_thread; t++) ok = scratch_open(&a.scratch[t], x);
    if (ok) pool_run(pool, edit_rows, &a, n_item);
    for (int i = 0; ok && i < n_item; i++) edit_add(f, &a.figures[i]);
    for (int t = 0; a.scratch && t < n_thread; t++) scratch_close(&a.scratch[t]);
    free(a.scratch);
    free(a.figures);
    return ok || err_set(e, "%s: no memory for its rows in %d threads", x->t->name, n_thread);
}
