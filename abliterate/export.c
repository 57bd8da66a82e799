// export.c: see export.h
#include "export.h"

#include <math.h>
#include <stdlib.h>

#include "console.h"
#include "steer.h"

enum { STRIPE = 256 };

static void set_text(GgufWriter *w, const char *key, const char *text) { gguf_set_string(w, key, text, strlen(text)); }

// ---- control vectors ----

bool export_from_generator(Direction *d, const char *path, Err *e) {
    if (d->single || d->layer >= 0 || *d->fingerprint) return err_set(e, "%s: is no file of llama.cpp's cvector-generator: its vectors are where they belong", path);
    const size_t row = (size_t)d->n_embd;
    memmove(d->row, d->row + row, sizeof(float) * row * (size_t)d->n_layer);
    memmove(d->length, d->length + 1, sizeof(float) * (size_t)d->n_layer);
    memset(d->row + row * (size_t)d->n_layer, 0, sizeof(float) * row);
    d->length[d->n_layer] = 0;
    return true;
}

bool export_cvector(const Direction *d, double strength, int first, int last, const char *path, int *n, Err *e) {
    const int L = d->n_layer;
    const bool one = d->single && d->layer >= 0;
    if (d->n_layer < 2) return err_set(e, "%s: a control vector holds the streams leaving layers 1 and up; this model has only layer 0", path);
    if (first < 0) first = one ? d->layer : 0, last = one ? d->layer : L - 1;
    float *add = calloc((size_t)L * (size_t)d->n_embd, sizeof *add); // [L], by the layer they leave
    if (!add) return err_set(e, "%s: no memory for %d vectors", path, L);
    *n = 0;
    for (int l = 1; l < L; l++) {
        const int entering = l + 1;
        const bool within = (entering >= first && entering <= last) || (entering == L && last == L - 1 && !d->single);
        const float length = one ? d->length[d->layer] : d->length[entering], *row = direction_row(d, entering);
        bool any = false;
        for (int i = 0; i < d->n_embd && within; i++) {
            float *to = add + (int64_t)l * d->n_embd + i;
            *to = (float)(strength * length) * row[i];
            any |= *to != 0;
        }
        *n += any;
    }
    GgufWriter *w = NULL;
    bool ok = *n || err_set(e, "%s: nothing to add entering layers %d-%d that a control vector can hold (2 and up), or the direction has no length there", path, first, last);
    if ((ok = ok && gguf_writer_open(&w, path, e))) {
        set_text(w, "general.architecture", "controlvector");
        set_text(w, "general.type", "controlvector");
        if (*d->model) set_text(w, "general.base_model.0.name", d->model);
        set_text(w, "general.description", "to be added to the residual stream leaving layer N; not a projection");
        gguf_set_u32(w, "controlvector.layer_count", (uint32_t)(L - 1));
        char name[32];
        for (int l = 1; l < L; l++) {
            snprintf(name, sizeof name, "direction.%d", l);
            gguf_add_tensor(w, name, TYPE_F32, 1, (uint64_t[]){(uint64_t)d->n_embd});
        }
        for (int l = 1; ok && l < L; l++) ok = gguf_writer_data(w, add + (int64_t)l * d->n_embd, sizeof *add * (size_t)d->n_embd, e) && gguf_writer_next(w, e);
        if (ok) ok = gguf_writer_close(w, e);
        else gguf_writer_abort(w);
    }
    free(add);
    return ok;
}

// ---- LoRA ----

typedef struct {
    const Change *c;
    const Tensor *w;
    int slice;
    float *a; // [n_vec][n_col]
} Take;

// A stripe of columns of A = s take' W.
static void take_stripe(const void *args, int item, int thread) {
    (void)thread;
    const Take *t = args;
    const Tensor *w = t->w;
    const int from = item * STRIPE, n = min_int(STRIPE, w->n_col - from);
    const int64_t skip = type_row_bytes(w->type, from);
    float x[STRIPE];
    double sum[MAX_DIRECTIONS][STRIPE] = {{0}};
    for (int r = 0; r < w->n_row; r++) {
        type_info(w->type)->to_f32((const char *)tensor_row(w, t->slice, r) + skip, x, n);
        for (int k = 0; k < t->c->n_vec; k++) {
            const double take = t->c->take[(int64_t)k * w->n_row + r];
            for (int i = 0; i < n; i++) sum[k][i] += take * x[i];
        }
    }
    for (int k = 0; k < t->c->n_vec; k++)
        for (int i = 0; i < n; i++) t->a[(int64_t)k * w->n_col + from + i] = (float)(t->c->strength * sum[k][i]);
}

// Of experts in one matrix each (files of 2023) readers make one stack, under its name.
static void lora_name(const Writer *w, const char *end, char out[64]) {
    if (w->part == PART_EXPERTS) snprintf(out, 64, "blk.%d.ffn_down_exps.weight%s", w->layer, end);
    else snprintf(out, 64, "%.50s%s", w->w->name, end);
}

static void add_tensors(GgufWriter *out, const Writer *w, int rank) {
    char name[64];
    const int dims = w->part == PART_EXPERTS ? 3 : 2;
    lora_name(w, ".lora_a", name);
    gguf_add_tensor(out, name, TYPE_F32, dims, (uint64_t[]){(uint64_t)w->w->n_col, (uint64_t)rank, (uint64_t)w->w->n_slice});
    lora_name(w, ".lora_b", name);
    gguf_add_tensor(out, name, TYPE_F32, dims, (uint64_t[]){(uint64_t)rank, (uint64_t)w->w->n_row, (uint64_t)w->w->n_slice});
}

// a [rank][n_col], b [n_row][rank]: scratch. Vectors that a matrix does not have (edit.h) are zero. scale: what each slice's product
// is multiplied by afterwards (Gemma 4's experts), NULL: nothing. llama.cpp does that before it adds B A x, so B has to bring it along.
static bool write_adapter(GgufWriter *out, const Writer *w, const float *scale, const Change *c, int rank, Pool *pool, float *a, float *b, Err *e) {
    const size_t n_a = (size_t)rank * (size_t)w->w->n_col, n_b = (size_t)rank * (size_t)w->w->n_row;
    bool ok = true;
    for (int s = 0; ok && s < w->w->n_slice; s++) {
        memset(a, 0, sizeof *a * n_a);
        pool_run(pool, take_stripe, &(Take){c, w->w, s, a}, (w->w->n_col + STRIPE - 1) / STRIPE);
        ok = gguf_writer_data(out, a, sizeof *a * n_a, e);
    }
    ok = ok && gguf_writer_next(out, e);
    memset(b, 0, sizeof *b * n_b);
    for (int s = 0; ok && s < w->w->n_slice; s++) {
        for (int k = 0; k < c->n_vec; k++)
            for (int r = 0; r < w->w->n_row; r++) b[(size_t)r * (size_t)rank + (size_t)k] = (float)(-c->give[(int64_t)k * w->w->n_row + r] * (scale ? scale[s] : 1));
        ok = gguf_writer_data(out, b, sizeof *b * n_b, e);
    }
    return ok && gguf_writer_next(out, e);
}

static bool has_bias(const Writer *w, const Change *c) {
    double most = 0, size = 0;
    for (int k = 0; w->bias && k < c->n_vec; k++) {
        double along = 0;
        for (int i = 0; i < w->bias->n_col; i++) along += c->take[(int64_t)k * w->bias->n_col + i] * ((const float *)w->bias->host)[i];
        most = fmax(most, fabs(along));
    }
    for (int i = 0; w->bias && i < w->bias->n_col; i++) size = fmax(size, fabs((double)((const float *)w->bias->host)[i]));
    return most > 1e-6 * size;
}

static bool write_lora(GgufWriter *out, const Model *m, const Edit *x, int rank, Pool *pool, LoraFacts *facts, Err *e) {
    const Writers *ws = &x->writers;
    size_t n_col = 0;
    double total = 0, done = 0;
    for (int i = 0; i < ws->n; i++) {
        const Writer *w = &ws->of[i];
        if (!x->of[i].n_vec) continue;
        facts->n_matrix++;
        facts->n_bias += has_bias(w, &x->of[i]);
        facts->n_param += (int64_t)rank * (w->w->n_col + w->w->n_row) * w->w->n_slice;
        n_col = (size_t)w->w->n_col > n_col ? (size_t)w->w->n_col : n_col;
        total += (double)w->w->n_row * w->w->n_col * w->w->n_slice;
        add_tensors(out, w, rank);
    }
    if (!facts->n_matrix) return err_set(e, "%s: no matrix writes along the direction in these layers", m->gguf.path);
    float *a = malloc(sizeof *a * (size_t)rank * n_col), *b = malloc(sizeof *b * (size_t)rank * (size_t)x->n_embd);
    bool ok = (a && b) || err_set(e, "no memory for an adapter of rank %d", rank);
    Progress bar;
    progress_start(&bar, "adapter");
    for (int i = 0; ok && i < ws->n; i++) {
        const Writer *w = &ws->of[i];
        if (!x->of[i].n_vec) continue;
        const Tensor *scale = w->part == PART_EXPERTS ? m->layers[w->layer].ffn_down_exps_scale : NULL;
        ok = write_adapter(out, w, scale ? scale->host : NULL, &x->of[i], rank, pool, a, b, e);
        done += (double)w->w->n_row * w->w->n_col * w->w->n_slice;
        progress_step(&bar, done, total);
        if (ok && interrupted) ok = err_set(e, "interrupted, nothing is written");
    }
    progress_end(&bar);
    free(a);
    free(b);
    return ok;
}

bool export_lora(const Model *m, const Direction *dirs, int n_dir, const EditOptions *o, Pool *pool, const char *path, LoraFacts *facts, Err *e) {
    Edit x;
    GgufWriter *w = NULL;
    *facts = (LoraFacts){0};
    if (!edit_open(&x, m, dirs, n_dir, o, e)) return false;
    bool ok = gguf_writer_open(&w, path, e);
    if (ok) {
        set_text(w, "general.type", "adapter");
        set_text(w, "general.architecture", m->c.arch);
        set_text(w, "general.description", "removes a direction from the residual stream (abliterate.c): W + B A");
        if (*dirs->model) set_text(w, "general.base_model.0.name", dirs->model);
        set_text(w, "adapter.type", "lora");
        gguf_set_f32(w, "adapter.lora.alpha", (float)n_dir); // the rank: a scale of 1 is then 1
        gguf_set_f32(w, "abliterate.strength", (float)o->strength);
        gguf_set_array(w, "abliterate.layers", GGUF_I32, (int32_t[]){o->first, o->last}, 2);
        ok = write_lora(w, m, &x, n_dir, pool, facts, e);
        if (ok) ok = gguf_writer_close(w, e);
        else gguf_writer_abort(w);
    }
    edit_close(&x);
    return ok;
}
