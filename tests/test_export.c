// test_export.c: directions for other engines and from them. A LoRA adapter, read back, makes of the weights what the formula
// says, for every architecture, experts and all, and a model with it merged answers as the run-time path does; a control vector
// adds what mode add adds; files of others are read as they mean them.
#include <math.h>

#include "export.h"
#include "rig.h"

static char folder[] = "/tmp/test_export.XXXXXX";
static const char *path_of(const char *name) { return file_in(folder, name); }

static uint64_t state = 1;
static double uniform(void) { // -1 .. 1
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int32_t)(state >> 32) * 0x1p-31;
}

// A random direction, the same for all layers or another for each.
static void random_direction(Direction *d, const Model *m, bool per_layer) {
    Err e = {0};
    const int n = m->c.n_embd, rows = per_layer ? m->c.n_layer + 1 : 1;
    double *v = malloc(sizeof *v * (size_t)n);
    float *all = malloc(sizeof *all * (size_t)n * (size_t)rows);
    for (int r = 0; r < rows; r++) {
        for (int i = 0; i < n; i++) v[i] = uniform() + uniform();
        if (r) direction_free(d);
        CHECK(direction_single(d, m->c.n_layer, n, v, &e), "%s", e.text);
        memcpy(all + (size_t)r * (size_t)n, d->row, sizeof *all * (size_t)n);
    }
    free(d->row);
    free(v);
    d->row = all;
    d->single = !per_layer;
    for (int l = 0; l <= m->c.n_layer; l++) d->length[l] = 1 + 0.5f * (float)l;
}

static double dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// Orthonormal rows of the directions that serve inside a layer.
static void rows_of(const Direction *dirs, int n_dir, int layer, double *out) {
    const int n = dirs->n_embd;
    for (int k = 0; k < n_dir; k++) {
        double *v = out + (int64_t)k * n;
        for (int i = 0; i < n; i++) v[i] = direction_row(&dirs[k], layer + 1)[i];
        for (int pass = 0; pass < 2; pass++)
            for (int j = 0; j < k; j++) {
                const double along = dot(v, out + (int64_t)j * n, n);
                for (int i = 0; i < n; i++) v[i] -= along * out[(int64_t)j * n + i];
            }
        const double length = sqrt(dot(v, v, n));
        for (int i = 0; i < n; i++) v[i] /= length;
    }
}

static const GgufTensor *adapter_tensor(const Gguf *g, const char *matrix, const char *end) {
    char name[96];
    snprintf(name, sizeof name, "%s.%s", matrix, end);
    return gguf_tensor(g, name);
}

static bool has_text(const Gguf *g, const char *key, const char *want) {
    GgufString s = {0};
    Err e;
    return gguf_get_string(g, key, &s, &e) && s.n == strlen(want) && !memcmp(s.p, want, s.n);
}

// give [n_dir][n] of the directions r behind the gain with eps 0.01 (edit.h): r / g, where |g| < 0.01 rms(g) r g / (0.01 rms(g))^2; then combined so that
// (g r_j) . give_k = 1 where j = k, else 0.
static void give_of(const double *r, int n_dir, int n, const float *gain, double *give) {
    double square = 0, m[2][2] = {{1, 0}, {0, 1}};
    for (int i = 0; gain && i < n; i++) square += (double)gain[i] * gain[i] / n;
    for (int i = 0; i < n; i++) {
        const double g = gain ? gain[i] : 1, least = gain ? 0.01 * sqrt(square) : 0;
        for (int k = 0; k < n_dir; k++) give[(int64_t)k * n + i] = r[(int64_t)k * n + i] * g / fmax(g * g, least * least);
    }
    for (int j = 0; j < n_dir; j++)
        for (int k = 0; k < n_dir; k++) {
            m[j][k] = 0;
            for (int i = 0; i < n; i++) m[j][k] += r[(int64_t)j * n + i] * (gain ? gain[i] : 1) * give[(int64_t)k * n + i];
        }
    const double det = m[0][0] * m[1][1] - m[0][1] * m[1][0];
    for (int i = 0; i < n; i++) {
        const double a = give[i], b = n_dir == 2 ? give[n + i] : 0;
        give[i] = (a * m[1][1] - b * m[1][0]) / det;
        if (n_dir == 2) give[n + i] = (b * m[0][0] - a * m[0][1]) / det;
    }
}

// One slice of a matrix: W + B A / scale against W - s sum_k give_k ((g * r_k)' W). scale: of the expert; an adapter is added to scale W x.
static void check_slice(const char *name, const Writer *w, int slice, double scale, const double *r, int n_dir, double strength, const float *a, const float *b, bool leaks) {
    const int rows = w->w->n_row, cols = w->w->n_col;
    float *x = malloc(sizeof *x * (size_t)rows * (size_t)cols);
    double *give = malloc(sizeof *give * (size_t)n_dir * (size_t)rows);
    give_of(r, n_dir, rows, w->gain, give);
    double *along = calloc((size_t)n_dir * (size_t)cols, sizeof *along), *left = calloc((size_t)n_dir * (size_t)cols, sizeof *left), worst = 0, most = 0, before = 0, after = 0;
    for (int i = 0; i < rows; i++) {
        type_info(w->w->type)->to_f32(tensor_row(w->w, slice, i), x + (int64_t)i * cols, cols);
        for (int k = 0; k < n_dir; k++)
            for (int c = 0; c < cols; c++) along[(int64_t)k * cols + c] += r[(int64_t)k * rows + i] * (w->gain ? w->gain[i] : 1) * x[(int64_t)i * cols + c];
    }
    for (int i = 0; i < rows; i++)
        for (int c = 0; c < cols; c++) {
            double ideal = 0, adapter = 0;
            for (int k = 0; k < n_dir; k++) {
                ideal -= strength * give[(int64_t)k * rows + i] * along[(int64_t)k * cols + c];
                adapter += (double)b[(int64_t)i * n_dir + k] * a[(int64_t)k * cols + c] / scale;
            }
            worst = fmax(worst, fabs(ideal - adapter));
            most = fmax(most, fabs(ideal));
            for (int k = 0; k < n_dir; k++) left[(int64_t)k * cols + c] += r[(int64_t)k * rows + i] * (w->gain ? w->gain[i] : 1) * (x[(int64_t)i * cols + c] + adapter);
        }
    for (int64_t i = 0; i < (int64_t)n_dir * cols; i++) before += along[i] * along[i], after += left[i] * left[i];
    CHECK(worst < 1e-6 * most && most > 0, "%s: %s slice %d: W + B A is %.2e from the ideal edit, whose largest change is %.2e", name, w->w->name, slice, worst, most);
    if (leaks) CHECK(sqrt(after / before) < 1e-6, "%s: %s slice %d: leak %.2e", name, w->w->name, slice, sqrt(after / before));
    free(x);
    free(give);
    free(along);
    free(left);
}

static void test_lora(const char *file) {
    Model m = {0};
    Err e = {0};
    Gguf g;
    Direction dirs[2];
    LoraFacts facts;
    Writers writers = {0};
    const char *name = strrchr(file, '/') + 1;
    Pool *pool = pool_open(2);
    if (!model_open(&m, file, &e) || !writers_open(&writers, &m, &e)) {
        CHECK(false, "%s: %s", name, e.text);
        return;
    }
    const int L = m.c.n_layer;
    double *r = malloc(sizeof *r * 2 * (size_t)m.c.n_embd);
    for (int i = 0; i < 2; i++) random_direction(&dirs[i], &m, i);
    for (int turn = 0; turn < 3; turn++) { // one direction; one with strengths of its own; two of them, in some layers, in part
        const int n_dir = turn == 2 ? 2 : 1, first = turn == 2 ? 1 : 0, last = turn == 2 ? max_int(1, L - 2) : L - 1;
        const double strength = turn == 2 ? 0.7 : 1;
        float shape[512 * N_SHAPE];
        for (int i = 0; i < L * N_SHAPE; i++) shape[i] = i % 4 ? 0.25f * (float)(i % 5) : 0;
        CHECK(direction_set_shape(&dirs[0], turn == 1 ? shape : NULL, &e), "%s", e.text);
        const bool ok = export_lora(&m, dirs, n_dir, &(EditOptions){.strength = strength, .first = first, .last = last, .eps = 0.01}, pool, path_of("lora.gguf"), &facts, &e) &&
                        gguf_open(&g, path_of("lora.gguf"), &e);
        CHECK(ok, "%s: %s", name, e.text);
        if (!ok) continue;
        float alpha = 0;
        CHECK(has_text(&g, "general.type", "adapter") && has_text(&g, "adapter.type", "lora") && has_text(&g, "general.architecture", m.c.arch), "%s: keys of an adapter", name);
        CHECK(gguf_key(&g, "adapter.lora.alpha") && gguf_key(&g, "adapter.lora.alpha")->type == GGUF_F32 && gguf_get_float(&g, "adapter.lora.alpha", &alpha, &e) && alpha == (float)n_dir, "%s: alpha %g, rank %d", name, (double)alpha, n_dir);
        int n = 0, n_expert = 0, n_scaled = 0;
        for (int i = 0; i < writers.n; i++) {
            const Writer *w = &writers.of[i];
            const int part = w->part == PART_ATTN ? SHAPE_ATTN : w->part == PART_PER_LAYER ? SHAPE_PER_LAYER : SHAPE_FFN;
            const double s = strength * (turn == 1 ? (double)shape[w->layer * N_SHAPE + part] : 1);
            const GgufTensor *a = adapter_tensor(&g, w->w->name, "lora_a"), *b = adapter_tensor(&g, w->w->name, "lora_b");
            if (w->layer < first || w->layer > last || s == 0) {
                CHECK(!a && !b, "%s: %s is not to be changed", name, w->w->name);
                continue;
            }
            n++;
            n_expert += w->part == PART_EXPERTS;
            const uint64_t slices = (uint64_t)w->w->n_slice;
            // what readers ask of it: a.ne[0] = W.ne[0], b.ne[1] = W.ne[1], a.ne[1] = b.ne[0]: the rank; stacks as high as W's
            const bool fits = a && b && a->type == TYPE_F32 && b->type == TYPE_F32 && a->ne[0] == (uint64_t)w->w->n_col && a->ne[1] == (uint64_t)n_dir && a->ne[2] == slices &&
                              b->ne[0] == (uint64_t)n_dir && b->ne[1] == (uint64_t)w->w->n_row && b->ne[2] == slices;
            CHECK(fits, "%s: the adapter of %s", name, w->w->name);
            rows_of(dirs, n_dir, w->layer, r);
            const Tensor *scales = w->part == PART_EXPERTS ? m.layers[w->layer].ffn_down_exps_scale : NULL;
            n_scaled += scales != NULL;
            for (int k = 0; fits && k < w->w->n_slice; k++)
                check_slice(name, w, k, scales ? ((const float *)scales->host)[k] : 1, r, n_dir, s, (const float *)a->data + (size_t)k * a->ne[0] * a->ne[1], (const float *)b->data + (size_t)k * b->ne[0] * b->ne[1], s == 1);
        }
        CHECK(g.n_tensor == 2 * (uint64_t)n && facts.n_matrix == n && n > 0, "%s: %d tensors for %d matrices", name, (int)g.n_tensor, n);
        CHECK(!m.layers[L / 2].ffn_down_exps || turn == 1 || n_expert > 0, "%s: experts are left out", name);
        CHECK(!strstr(name, "gemma4-moe") || turn == 1 || n_scaled > 0, "%s: its experts' scales are not there", name);
        for (uint64_t i = 0; i < g.n_tensor; i++) CHECK(!strncmp(g.tensors[i].name_z, "blk.", 4), "%s: %s is in an adapter", name, g.tensors[i].name_z);
        gguf_close(&g);
    }
    CHECK(!export_lora(&m, dirs, 1, &(EditOptions){.strength = 0, .first = 0, .last = L - 1}, pool, path_of("none.gguf"), &facts, &e) && strstr(e.text, "no matrix") &&
          access(path_of("none.gguf"), F_OK), "%s: strength 0: %s", name, e.text);
    for (int i = 0; i < 2; i++) direction_free(&dirs[i]);
    free(r);
    unlink(path_of("lora.gguf"));
    writers_close(&writers);
    model_close(&m);
    pool_close(pool);
}

// ---- what it does to a model ----

static double distance(const float *a, const float *b, int n) {
    double num = 0, den = 0;
    for (int i = 0; i < n; i++) num += ((double)a[i] - b[i]) * ((double)a[i] - b[i]), den += (double)b[i] * b[i];
    return sqrt(num / den);
}

// A copy of the model in float32 with the adapter merged (NULL: without).
static void merge(const char *model, const char *lora, const char *out) {
    Gguf g, l = {0};
    GgufWriter *w;
    Err e = {0};
    CHECK(gguf_open(&g, model, &e) && (!lora || gguf_open(&l, lora, &e)) && gguf_writer_open(&w, out, &e), "%s", e.text);
    for (uint64_t i = 0; i < g.n_key; i++) gguf_copy_key(w, &g.keys[i]);
    for (uint64_t i = 0; i < g.n_tensor; i++) gguf_add_tensor(w, g.tensors[i].name_z, TYPE_F32, g.tensors[i].n_dims, g.tensors[i].ne);
    for (uint64_t i = 0; i < g.n_tensor; i++) {
        const GgufTensor *t = &g.tensors[i], *a = lora ? adapter_tensor(&l, t->name_z, "lora_a") : NULL, *b = lora ? adapter_tensor(&l, t->name_z, "lora_b") : NULL;
        const uint64_t n = t->ne[0] * t->ne[1] * t->ne[2], cols = t->ne[0];
        float *x = malloc(sizeof *x * n);
        type_info(t->type)->to_f32(t->data, x, (int64_t)n);
        for (uint64_t r = 0; a && r < t->ne[1]; r++)
            for (uint64_t k = 0; k < a->ne[1]; k++)
                for (uint64_t c = 0; c < cols; c++) x[r * cols + c] += ((const float *)b->data)[r * a->ne[1] + k] * ((const float *)a->data)[k * cols + c];
        CHECK(gguf_writer_data(w, x, sizeof *x * n, &e) && gguf_writer_next(w, &e), "%s", e.text);
        free(x);
    }
    CHECK(gguf_writer_close(w, &e), "%s", e.text);
    gguf_close(&g);
    if (lora) gguf_close(&l);
}

static void test_merged(const char *file) {
    Rig g;
    Err e = {0};
    Direction d, copy;
    LoraFacts facts;
    Pool *pool = pool_open(1);
    merge(file, NULL, path_of("f32.gguf"));
    if (!rig_open(&g, path_of("f32.gguf"))) return;
    const int V = g.m.c.n_vocab;
    state = 7;
    random_direction(&d, &g.m, true);
    state = 7;
    random_direction(&copy, &g.m, true);
    CHECK(export_lora(&g.m, &d, 1, &(EditOptions){.strength = 1, .first = 0, .last = g.m.c.n_layer - 1}, pool, path_of("lora.gguf"), &facts, &e), "%s", e.text);
    float *plain = malloc(sizeof *plain * (size_t)V), *steered = malloc(sizeof *steered * (size_t)V);
    memcpy(plain, rig_run(&g), sizeof *plain * (size_t)V);
    g.steer.mode = MODE_WRITE;
    g.steer.keep_embedding = true;
    CHECK(steer_use(&g.steer, &copy, &e), "%s", e.text);
    memcpy(steered, rig_run(&g), sizeof *steered * (size_t)V);
    rig_close(&g);
    merge(file, path_of("lora.gguf"), path_of("merged.gguf"));
    if (rig_open(&g, path_of("merged.gguf"))) {
        const double off = distance(rig_run(&g), steered, V), effect = distance(plain, steered, V);
        CHECK(off < 1e-4 && effect > 1e-3, "%s: merged and run-time logits differ by %.2e, the effect is %.2e", file, off, effect);
        rig_close(&g);
    }
    direction_free(&d);
    free(plain);
    free(steered);
    pool_close(pool);
    static const char *const NAMES[] = {"f32.gguf", "merged.gguf", "lora.gguf"};
    for (int i = 0; i < 3; i++) unlink(path_of(NAMES[i]));
}

// ---- control vectors ----

// What llama.cpp's reader asks of a control vector (tried with version 0.5.0): vectors direction.N, float32, N from 1, all of one width.
static void check_readable(const char *path, int n_layer, int n_embd) {
    Gguf g;
    Err e = {0};
    CHECK(gguf_open(&g, path, &e), "%s", e.text);
    CHECK(has_text(&g, "general.architecture", "controlvector") && g.n_tensor == (uint64_t)n_layer - 1, "%s: %d vectors", path, (int)g.n_tensor);
    for (uint64_t i = 0; i < g.n_tensor; i++) {
        const GgufTensor *t = &g.tensors[i];
        char name[32];
        snprintf(name, sizeof name, "direction.%d", (int)i + 1);
        CHECK(!strcmp(t->name_z, name) && t->type == TYPE_F32 && t->n_dims == 1 && t->ne[0] == (uint64_t)n_embd, "%s: %s: type %d, %d dimensions of %d", path, t->name_z, t->type, t->n_dims, (int)t->ne[0]);
    }
    gguf_close(&g);
}

static void test_cvector(const char *file) {
    Rig g;
    Err e = {0};
    char note[256];
    int n;
    if (!rig_open(&g, file)) return;
    const int L = g.m.c.n_layer, E = g.m.c.n_embd, V = g.m.c.n_vocab;
    float *want = malloc(sizeof *want * (size_t)V), *plain = malloc(sizeof *plain * (size_t)V);
    memcpy(plain, rig_run(&g), sizeof *plain * (size_t)V);
    for (int per_layer = 0; per_layer < 2; per_layer++) {
        Direction d, used, back;
        state = 11;
        random_direction(&d, &g.m, per_layer);
        state = 11;
        random_direction(&used, &g.m, per_layer);
        d.layer = used.layer = per_layer ? -1 : L - 1;
        // what mode add does with the direction itself; a control vector cannot hold what enters layers 0 and 1
        g.steer.mode = MODE_ADD;
        g.steer.strength = 1.5;
        g.steer.first = per_layer ? 2 : -1;
        g.steer.last = L - 1;
        CHECK(steer_use(&g.steer, &used, &e), "%s", e.text);
        memcpy(want, rig_run(&g), sizeof *want * (size_t)V);
        CHECK(export_cvector(&d, 1.5, per_layer ? 2 : -1, L - 1, path_of("cv.gguf"), &n, &e) && n == (per_layer ? L - 1 : 1), "%d vectors: %s", n, e.text);
        steer_clear(&g.steer);
        g.steer.first = -1;
        CHECK(steer_load(&g.steer, path_of("cv.gguf"), note, &e) && g.steer.mode == MODE_ADD && g.steer.strength == 1 && steer_prepare(&g.steer, &e), "%s", e.text);
        const double off = distance(rig_run(&g), want, V), effect = distance(plain, want, V);
        CHECK(off < 1e-5 * effect + 1e-6 && effect > 1e-4, "%s: the control vector's logits differ by %.2e, the effect is %.2e", per_layer ? "per layer" : "single", off, effect);
        CHECK(direction_load_alone(&back, path_of("cv.gguf"), &e) && back.n_layer == L && back.n_embd == E && back.mode == MODE_ADD, "%s", e.text);
        direction_free(&back);
        Gguf file_of;
        CHECK(gguf_open(&file_of, path_of("cv.gguf"), &e), "%s", e.text);
        for (uint64_t i = 0; i < file_of.n_key; i++) CHECK(strncmp(file_of.keys[i].key.p, "glp.", 4) && strncmp(file_of.keys[i].key.p, "abliterate.", 11), "a plain control vector has keys of ours");
        gguf_close(&file_of);
        check_readable(path_of("cv.gguf"), L, E);
        memset(d.length, 0, sizeof(float) * (size_t)(L + 1));
        CHECK(!export_cvector(&d, 1, -1, -1, path_of("none.gguf"), &n, &e) && strstr(e.text, "nothing to add") && access(path_of("none.gguf"), F_OK), "without lengths: %s", e.text);
        direction_free(&d);
        steer_clear(&g.steer);
        unlink(path_of("cv.gguf"));
    }
    free(want);
    free(plain);
    rig_close(&g);
}

// A file as repeng and llama.cpp's cvector-generator write it: no keys of ours, layer l marked by coordinate l.
static void make_foreign(const char *path, int n_embd, int first, int last) {
    GgufWriter *w;
    Err e = {0};
    CHECK(gguf_writer_open(&w, path, &e), "%s", e.text);
    gguf_set_string(w, "general.architecture", "controlvector", 13);
    gguf_set_string(w, "controlvector.model_hint", "llama", 5);
    gguf_set_i32(w, "controlvector.layer_count", last - first + 1);
    char name[32];
    float *v = calloc((size_t)n_embd, sizeof *v);
    for (int l = first; l <= last; l++) {
        snprintf(name, sizeof name, "direction.%d", l);
        gguf_add_tensor(w, name, TYPE_F32, 1, (uint64_t[]){(uint64_t)n_embd});
    }
    for (int l = first; l <= last; l++) {
        v[l] = 3;
        CHECK(gguf_writer_data(w, v, sizeof *v * (size_t)n_embd, &e) && gguf_writer_next(w, &e), "%s", e.text);
        v[l] = 0;
    }
    CHECK(gguf_writer_close(w, &e), "%s", e.text);
    free(v);
}

static void test_foreign(const char *file) {
    Model m = {0};
    Err e = {0};
    Direction d, back;
    CHECK(model_open(&m, file, &e), "%s", e.text);
    const int L = m.c.n_layer;
    make_foreign(path_of("foreign.gguf"), m.c.n_embd, 1, L - 1);
    for (int shift = 0; shift < 2; shift++) {
        CHECK(direction_load(&d, path_of("foreign.gguf"), &m, &e) && d.mode == MODE_ADD && !d.single, "%s", e.text);
        if (shift) CHECK(export_from_generator(&d, "foreign.gguf", &e), "%s", e.text);
        for (int l = 0; l <= L; l++) { // entering l
            const int is = shift ? l : l - 1; // direction.is
            const bool any = is >= 1 && is < L;
            for (int i = 0; i < m.c.n_embd; i++)
                CHECK(direction_row(&d, l)[i] == (any && i == is), "%s: entering layer %d, coordinate %d is %g", shift ? "the generator's" : "repeng's", l, i, (double)direction_row(&d, l)[i]);
            CHECK(d.length[l] == (any ? 3 : 0), "length entering layer %d is %g", l, (double)d.length[l]);
        }
        d.mode = MODE_PROJECT;
        CHECK(direction_save(&d, path_of("ours.gguf"), NULL, NULL, &e) && direction_load(&back, path_of("ours.gguf"), &m, &e) && back.mode == MODE_PROJECT, "%s", e.text);
        check_readable(path_of("ours.gguf"), L, m.c.n_embd);
        for (int l = 2; l <= L; l++) CHECK(!memcmp(direction_row(&back, l), direction_row(&d, l), sizeof(float) * (size_t)m.c.n_embd), "the vector entering layer %d comes back", l);
        direction_free(&d);
        direction_free(&back);
    }
    random_direction(&d, &m, false);
    CHECK(!export_from_generator(&d, "ours.gguf", &e) && strstr(e.text, "no file of llama.cpp's"), "a file of ours is not shifted: %s", e.text);
    direction_free(&d);
    make_foreign(path_of("foreign.gguf"), m.c.n_embd, 2, 2); // one layer only
    CHECK(direction_load_alone(&d, path_of("foreign.gguf"), &e) && d.n_layer == 3 && d.n_embd == m.c.n_embd, "%s", e.text);
    direction_free(&d);
    CHECK(!direction_load_alone(&d, file, &e) && strstr(e.text, "not a file of directions"), "a model: %s", e.text);
    unlink(path_of("foreign.gguf"));
    unlink(path_of("ours.gguf"));
    model_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    if (!mkdtemp(folder)) return 1;
    static const char *const FILES[] = {"gemma1-Q4_K_M", "gemma2-Q4_K_M", "gemma3-Q4_K_M", "gemma4-dense-Q4_K_M", "gemma4-e-Q4_K_M", "gemma4-moe-Q4_K_M",
                                        "llama-moe-Q4_K_M", "llama2-tied-Q4_K_M", "llama3-F16", "llama3-Q8_0"};
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        char path[128];
        snprintf(path, sizeof path, "reference/%s.gguf", FILES[i]);
        if (shared_path(path)) test_lora(shared_path(path));
        else test_skip(path);
    }
    test_lora("abliterate/demo/gemma-Q8_0.gguf");
    test_lora("abliterate/demo/llama-Q4_K_M.gguf");
    if (shared_path("reference/llama3-F16.gguf")) test_merged(shared_path("reference/llama3-F16.gguf"));
    else test_skip("reference/llama3-F16.gguf");
    test_cvector("abliterate/demo/llama-Q8_0.gguf");
    test_foreign("abliterate/demo/llama-Q8_0.gguf");
    rmdir(folder);
    return test_end();
}
