// edit_matrix.c: edit_matrix of edit.h: the change of one matrix, into the type it is stored in. By stripes of 256 columns and all rows:
// components along take; what the weights should be; the nearest points they can be stored at; the repair, column by column; and
// everything once more from the stored bytes, for the figures.
#include <math.h>
#include <stdlib.h>

#include "codes.h"
#include "console.h"
#include "edit.h"
#include "repair.h"

#ifdef __clang__
#pragma STDC FP_CONTRACT OFF // the same files from every compiler
#endif

enum { STRIPE = 256, PANEL = 16, SAMPLED = 8 }; // one stripe of so many is rounded plainly, too, to compare

typedef struct {
    float *target;         // [n_row][STRIPE] what the weights should be
    uint16_t *code;        // [n_row][STRIPE]
    float *scale, *offset; // [n_row][groups of a stripe]
    float *column[4];      // [PANEL][n_row, padded]: target, value, above, below
    int8_t *move;          // [n_row]
    Repair *repair;
} Scratch;

typedef struct {
    const Change *c;
    const Slice *s;
    int n_row, n_col, stride; // stride: of a column of the scratch
    Scratch *scratch;         // [threads]
    EditFigures *figures;     // [stripes]
} Job;

static const char *at(const void *rows, TensorType type, int n_col, int row, int col) {
    const TypeInfo *t = type_info((int)type);
    return (const char *)rows + row * type_row_bytes(type, n_col) + (int64_t)col / t->block * t->bytes;
}

// components[k][j] = take_k . column j of the rows, [MAX_VEC][STRIPE]; returns |W|^2 of the stripe.
static double components(const Change *c, const float *rows, int n_row, int width, double (*out)[STRIPE]) {
    double norm = 0;
    for (int k = 0; k < c->n_vec; k++) memset(out[k], 0, sizeof out[k]);
    for (int i = 0; i < n_row; i++) {
        const float *w = rows + (int64_t)i * STRIPE;
        for (int k = 0; k < c->n_vec; k++) {
            const double t = c->take[(int64_t)k * n_row + i];
            for (int j = 0; j < width; j++) out[k][j] += t * (double)w[j];
        }
        double square = 0;
        for (int j = 0; j < width; j++) square += (double)w[j] * (double)w[j];
        norm += square;
    }
    return norm;
}

static double square_error(const float *a, const float *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
    return sum;
}

// Row i of the stripe in the out type: scales of the grid or new ones, block by block whichever comes nearer to the target, and
// the codes for them. A fresh grid leaves about a twelfth of a squared step per element: where the old one leaves less than half
// of that, a new one is not tried.
static void choose_grid(const Job *a, const Scratch *x, int i, int col, int width, EditFigures *f) {
    const Slice *s = a->s;
    const TypeInfo *t = type_info((int)s->out_type);
    const int group = codes_group(s->out_type), n_group = STRIPE / group;
    const float *target = x->target + (int64_t)i * STRIPE;
    char *out = (char *)at(s->out, s->out_type, a->n_col, i, col);
    uint16_t *code = x->code + (int64_t)i * STRIPE;
    float *scale = x->scale + (int64_t)i * n_group, *offset = x->offset + (int64_t)i * n_group;
    const char *grid = s->grid ? at(s->grid, s->out_type, a->n_col, i, col) : NULL;
    if (t->block == 1) {
        if (grid) memcpy(out, grid, (size_t)width * (size_t)t->bytes);
        else t->from_f32(target, out, width, NULL);
        codes_get(s->out_type, out, width, code, scale, offset);
        for (int j = 0; j < width; j += group) codes_nearest(s->out_type, target + j, min_int(group, width - j), 1, 0, code + j);
        return;
    }
    for (int j = 0; j < width; j += t->block, out += t->bytes) {
        float value[STRIPE], above[STRIPE], below[STRIPE];
        double kept = INFINITY, fresh = 0;
        f->n_block++;
        if (grid) {
            memcpy(out, grid + (int64_t)j / t->block * t->bytes, (size_t)t->bytes);
            codes_get(s->out_type, out, t->block, code + j, scale + j / group, offset + j / group);
            kept = 0;
            for (int g = j; g < j + t->block; g += group) {
                const float sc = scale[g / group], of = offset[g / group];
                codes_nearest(s->out_type, target + g, group, sc, of, code + g);
                codes_values(s->out_type, code + g, group, sc, of, value + g - j, above + g - j, below + g - j);
                for (int l = g - j; l < g - j + group; l++) {
                    const double step = fmax((double)above[l], (double)below[l]);
                    fresh += step * step / 24;
                }
            }
            kept = square_error(value, target + j, t->block);
            if (kept <= fresh) continue;
        }
        char block[256];
        t->from_f32(target + j, block, t->block, NULL);
        t->to_f32(block, value, t->block);
        if (grid && !(square_error(value, target + j, t->block) < kept)) continue;
        memcpy(out, block, (size_t)t->bytes);
        codes_get(s->out_type, out, t->block, code + j, scale + j / group, offset + j / group);
        f->n_refit += grid != NULL;
    }
}

// What rounding the target with new scales would leave, as tools do that do not repair.
static void round_plainly(const Job *a, const Scratch *x, int width, double (*want)[STRIPE], const EditFigures *f, EditPlain *plain) {
    const TypeInfo *t = type_info((int)a->s->out_type);
    double along[MAX_VEC][STRIPE] = {{0}};
    char row[STRIPE * sizeof(float)];
    float value[STRIPE];
    for (int i = 0; i < a->n_row; i++) {
        const float *target = x->target + (int64_t)i * STRIPE;
        t->from_f32(target, row, width, NULL);
        t->to_f32(row, value, width);
        plain->error += square_error(value, target, width);
        for (int k = 0; k < a->c->n_vec; k++)
            for (int j = 0; j < width; j++) along[k][j] += a->c->take[(int64_t)k * a->n_row + i] * (double)value[j];
    }
    for (int k = 0; k < a->c->n_vec; k++)
        for (int j = 0; j < width; j++) plain->residue += (along[k][j] - want[k][j]) * (along[k][j] - want[k][j]);
    plain->before = f->before;
    plain->norm = f->norm;
}

// Repairs the columns from .. from + n - 1 of the stripe. want [MAX_VEC][STRIPE]: the components they should have; usual: how large
// those of a column were.
static void repair_panel(const Job *a, const Scratch *x, int from, int n, double (*want)[STRIPE], double usual, EditFigures *f) {
    const TensorType type = a->s->out_type;
    const int group = codes_group(type), n_group = STRIPE / group, n_vec = a->c->n_vec;
    const double tolerance = usual * (n_vec > 1 ? EDIT_TOLERANCE_SEVERAL : EDIT_TOLERANCE);
    for (int i = 0; i < a->n_row; i++) {
        float value[PANEL], above[PANEL], below[PANEL];
        const int64_t g = (int64_t)i * n_group + from / group;
        codes_values(type, x->code + (int64_t)i * STRIPE + from, n, x->scale[g], x->offset[g], value, above, below);
        for (int j = 0; j < n; j++) {
            const int64_t to = (int64_t)j * a->stride + i;
            x->column[0][to] = x->target[(int64_t)i * STRIPE + from + j];
            x->column[1][to] = value[j];
            x->column[2][to] = above[j];
            x->column[3][to] = below[j];
        }
    }
    for (int j = 0; j < n && !interrupted; j++) {
        const int64_t col = (int64_t)j * a->stride;
        const Column c = {x->column[0] + col, x->column[1] + col, x->column[2] + col, x->column[3] + col};
        double p[MAX_VEC];
        f->rounded += square_error(c.value, c.target, a->n_row);
        for (int k = 0; k < n_vec; k++) {
            p[k] = -want[k][from + j];
            for (int i = 0; i < a->n_row; i++) p[k] += a->c->take[(int64_t)k * a->n_row + i] * (double)c.value[i];
        }
        if (!repair_column(x->repair, &c, p, tolerance, x->move)) {
            double square = 0;
            for (int k = 0; k < n_vec; k++) square += p[k] * p[k];
            f->n_missed += !(sqrt(square) <= EDIT_LEAK * usual);
        }
        for (int i = 0; i < a->n_row; i++) {
            if (!x->move[i]) continue;
            uint16_t *code = x->code + (int64_t)i * STRIPE + from + j;
            *code = codes_move(*code, x->scale[(int64_t)i * n_group + (from + j) / group], x->move[i]);
            f->n_flip++;
        }
    }
}

// What the stored bytes hold now, against what was there and what should be.
static void read_back(const Job *a, const Scratch *x, int col, int width, double (*want)[STRIPE], EditFigures *f) {
    const Slice *s = a->s;
    const TypeInfo *in = type_info((int)s->type), *out = type_info((int)s->out_type);
    float was[STRIPE], grid[STRIPE], now[STRIPE];
    for (int i = 0; i < a->n_row; i++) { // the target is compared and then replaced by what is stored
        float *target = x->target + (int64_t)i * STRIPE;
        in->to_f32(at(s->rows, s->type, a->n_col, i, col), was, width);
        out->to_f32(at(s->out, s->out_type, a->n_col, i, col), now, width);
        f->error += square_error(now, target, width);
        f->change += square_error(now, was, width);
        if (s->grid) out->to_f32(at(s->grid, s->out_type, a->n_col, i, col), grid, width);
        for (int j = 0; j < width; j++) f->n_changed += !s->grid || now[j] != grid[j];
        memcpy(target, now, sizeof *now * (size_t)width);
    }
    double along[MAX_VEC][STRIPE];
    components(a->c, x->target, a->n_row, width, along);
    for (int k = 0; k < a->c->n_vec; k++)
        for (int j = 0; j < width; j++) {
            f->after += along[k][j] * along[k][j];
            f->residue += (along[k][j] - want[k][j]) * (along[k][j] - want[k][j]);
        }
}

static void edit_stripe(const void *args, int item, int thread) {
    const Job *a = args;
    const Slice *s = a->s;
    const Scratch *x = &a->scratch[thread];
    const Change *c = a->c;
    EditFigures *f = &a->figures[item];
    const TypeInfo *in = type_info((int)s->type);
    const int col = item * STRIPE, width = min_int(STRIPE, a->n_col - col), n = a->n_row;
    double along[MAX_VEC][STRIPE], want[MAX_VEC][STRIPE];

    if (interrupted) return;
    for (int i = 0; i < n; i++) in->to_f32(at(s->rows, s->type, a->n_col, i, col), x->target + (int64_t)i * STRIPE, width);
    f->norm = components(c, x->target, n, width, along);
    f->n = (int64_t)n * width;
    f->n_col = width;
    for (int j = 0; j < width; j++) {
        bool finite = true; // a column that is not is left as it is
        for (int k = 0; k < c->n_vec; k++) finite = finite && isfinite(along[k][j]);
        for (int k = 0; k < c->n_vec; k++) {
            f->before += along[k][j] * along[k][j];
            want[k][j] = finite ? (1 - c->strength) * along[k][j] : along[k][j];
        }
    }
    for (int i = 0; i < n; i++) { // W' = W - s sum_k give_k (take_k' W)
        float *w = x->target + (int64_t)i * STRIPE;
        double less[STRIPE] = {0};
        for (int k = 0; k < c->n_vec; k++)
            for (int j = 0; j < width; j++) less[j] += c->give[(int64_t)k * n + i] * (along[k][j] - want[k][j]);
        for (int j = 0; j < width; j++) w[j] = (float)((double)w[j] - less[j]);
    }

    if (!codes_group(s->out_type)) { // float32: nothing to round
        for (int i = 0; i < n; i++) memcpy((char *)at(s->out, s->out_type, a->n_col, i, col), x->target + (int64_t)i * STRIPE, sizeof(float) * (size_t)width);
    } else {
        const double usual = fmax(sqrt(f->before / width), 1e-4 * sqrt(f->norm / (double)f->n));
        if (item % SAMPLED == 0) round_plainly(a, x, width, want, f, &f->plain);
        for (int i = 0; i < n; i++) choose_grid(a, x, i, col, width, f);
        for (int j = 0; j < width; j += PANEL) repair_panel(a, x, j, min_int(PANEL, width - j), want, usual, f);
        for (int i = 0; i < n; i++) codes_set(s->out_type, (char *)at(s->out, s->out_type, a->n_col, i, col), width, x->code + (int64_t)i * STRIPE);
    }
    if (!interrupted) read_back(a, x, col, width, want, f);
}

static void scratch_close(Scratch *x) {
    free(x->target);
    free(x->code);
    free(x->scale);
    free(x->offset);
    for (int i = 0; i < 4; i++) free(x->column[i]);
    free(x->move);
    repair_close(x->repair);
}

static bool scratch_open(Scratch *x, const Job *a) {
    const int group = codes_group(a->s->out_type);
    const size_t n = (size_t)a->n_row, n_group = group ? (size_t)(STRIPE / group) : 1;
    x->target = malloc(sizeof *x->target * n * STRIPE);
    if (!group) return x->target;
    x->code = malloc(sizeof *x->code * n * STRIPE);
    x->scale = malloc(sizeof *x->scale * n * n_group);
    x->offset = malloc(sizeof *x->offset * n * n_group);
    bool ok = true;
    for (int i = 0; i < 4; i++) {
        x->column[i] = malloc(sizeof(float) * PANEL * (size_t)a->stride);
        ok = ok && x->column[i];
    }
    x->move = malloc(n);
    x->repair = repair_open(a->n_row, a->c->n_vec, a->c->take);
    return ok && x->target && x->code && x->scale && x->offset && x->move && x->repair;
}

bool edit_matrix(Pool *pool, int n_thread, const Edit *x, int writer, const Slice *s, EditFigures *f, Err *e) {
    const Tensor *w = x->writers.of[writer].w;
    const TypeInfo *in = type_info((int)s->type), *out = type_info((int)s->out_type);
    *f = (EditFigures){0};
    if (!in || !in->to_f32 || w->n_col % in->block) return err_set(e, "%s: cannot read rows of %d columns stored as %s", w->name, w->n_col, in ? in->name : "an unknown type");
    if (!out || !out->to_f32 || w->n_col % out->block) return err_set(e, "%s: rows of %d columns cannot be stored as %s", w->name, w->n_col, out ? out->name : "an unknown type");
    const int n_stripe = (w->n_col + STRIPE - 1) / STRIPE;
    Job a = {.c = &x->of[writer], .s = s, .n_row = w->n_row, .n_col = w->n_col, .stride = w->n_row + PANEL};
    a.scratch = calloc((size_t)n_thread, sizeof *a.scratch);
    a.figures = calloc((size_t)n_stripe, sizeof *a.figures);
    bool ok = a.scratch && a.figures;
    for (int t = 0; ok && t < n_thread; t++) ok = scratch_open(&a.scratch[t], &a);
    if (ok && pool) pool_run(pool, edit_stripe, &a, n_stripe);
    for (int i = 0; ok && !pool && i < n_stripe; i++) edit_stripe(&a, i, 0);
    for (int i = 0; ok && i < n_stripe; i++) edit_add(f, &a.figures[i]);
    for (int t = 0; a.scratch && t < n_thread; t++) scratch_close(&a.scratch[t]);
    free(a.scratch);
    free(a.figures);
    if (!ok) return err_set(e, "%s: no memory for stripes of %d rows in %d threads", w->name, w->n_row, n_thread);
    return !interrupted || err_set(e, "interrupted, nothing is written");
}
