// pair.c: see pair.h
#include "pair.h"

#include <math.h>
#include <stdlib.h>

#include "console.h"
#include "json.h"

enum { CHUNK = 4 << 20 }; // bytes compared by one thread at a time

typedef struct {
    const char *a, *b;
    uint64_t n;
    bool *differs; // [chunks]
} Chunks;

static void compare_chunk(const void *args, int item, int thread) {
    const Chunks *c = args;
    const uint64_t at = (uint64_t)item * CHUNK, n = c->n - at < CHUNK ? c->n - at : CHUNK;
    (void)thread;
    c->differs[item] = memcmp(c->a + at, c->b + at, (size_t)n) != 0;
}

static bool same_bytes(Pool *pool, const GgufTensor *a, const GgufTensor *b, bool *same, Err *e) {
    const uint64_t n = (a->bytes + CHUNK - 1) / CHUNK;
    *same = a->type == b->type;
    if (!*same || n > INT32_MAX) return *same ? err_set(e, "%s: %llu bytes are too many to compare", a->name_z, (unsigned long long)a->bytes) : true;
    Chunks c = {a->data, b->data, a->bytes, calloc((size_t)n + 1, sizeof(bool))};
    if (!c.differs) return err_set(e, "%s: no memory to compare it", a->name_z);
    pool_run(pool, compare_chunk, &c, (int)n);
    for (uint64_t i = 0; i < n; i++) *same &= !c.differs[i];
    free(c.differs);
    return true;
}

static bool same_key(const GgufKey *a, const GgufKey *b) {
    if (a->type != b->type || a->elem != b->elem || a->n != b->n) return false;
    if (a->elem == GGUF_STRING) {
        for (uint64_t i = 0; i < a->n; i++)
            if (a->strings[i].n != b->strings[i].n || memcmp(a->strings[i].p, b->strings[i].p, (size_t)a->strings[i].n)) return false;
        return true;
    }
    static const uint8_t SIZE[] = {[GGUF_U8] = 1, [GGUF_I8] = 1, [GGUF_U16] = 2, [GGUF_I16] = 2, [GGUF_U32] = 4, [GGUF_I32] = 4, [GGUF_F32] = 4, [GGUF_BOOL] = 1,
                                   [GGUF_U64] = 8, [GGUF_I64] = 8, [GGUF_F64] = 8};
    return !memcmp(a->raw, b->raw, (size_t)a->n * SIZE[a->elem]);
}

static const GgufKey *key_of(const Gguf *g, const GgufKey *k) {
    char name[256];
    if (k->key.n >= sizeof name) return NULL;
    memcpy(name, k->key.p, (size_t)k->key.n);
    name[k->key.n] = 0;
    return gguf_key(g, name);
}

static bool compare_keys(Pair *p, Err *e) {
    const Gguf *a = &p->a.gguf, *b = &p->b;
    p->key = calloc((size_t)(a->n_key + b->n_key + 1), sizeof *p->key);
    if (!p->key) return err_set(e, "no memory to compare the keys");
    for (uint64_t i = 0; i < b->n_key; i++) {
        const GgufKey *k = &b->keys[i], *old = key_of(a, k);
        if (!old || !same_key(old, k)) p->key[p->n_key++] = (KeyPair){k, old ? KEY_CHANGED : KEY_ADDED};
    }
    for (uint64_t i = 0; i < a->n_key; i++)
        if (!key_of(b, &a->keys[i])) p->key[p->n_key++] = (KeyPair){&a->keys[i], KEY_REMOVED};
    return true;
}

// The writer a tensor of A belongs to. Experts may be a tensor each.
static void find_writer(const Pair *p, TensorPair *t) {
    t->writer = -1;
    for (int i = 0; t->a && i < p->writers.n; i++) {
        const Writer *w = &p->writers.of[i];
        bool is = w->w->host == t->a->data;
        for (int s = 1; w->w->slices && s < w->w->n_slice; s++) is |= w->w->slices[s] == t->a->data;
        const bool bias = w->bias && !strcmp(w->bias->name, t->a->name_z);
        if (is || bias) {
            t->writer = i;
            t->bias = bias;
        }
    }
    if (t->bias && t->readable) // a column
        for (int i = 0; i < 2; i++) {
            Matrix *m = i ? &t->mb : &t->ma;
            if (type_info(m->type)->block > 1) t->readable = false;
            m->n_row = m->n_col;
            m->n_col = 1;
        }
}

static bool compare_tensors(Pair *p, Err *e) {
    const Gguf *a = &p->a.gguf, *b = &p->b;
    Progress bar;
    double done = 0;
    p->tensor = calloc((size_t)b->n_tensor + 1, sizeof *p->tensor);
    if (!p->tensor) return err_set(e, "no memory to compare %llu tensors", (unsigned long long)b->n_tensor);
    for (uint64_t i = 0; i < a->n_tensor; i++)
        if (!gguf_tensor(b, a->tensors[i].name_z)) return err_set(e, "%s: has no tensor %s, which %s has", b->path, a->tensors[i].name_z, a->path);
    progress_start(&bar, "comparing");
    bool ok = true;
    for (uint64_t i = 0; ok && i < b->n_tensor && !interrupted; i++) {
        TensorPair *t = &p->tensor[p->n_tensor++];
        t->b = &b->tensors[i];
        t->a = gguf_tensor(a, t->b->name_z);
        if (t->a && memcmp(t->a->ne, t->b->ne, sizeof t->a->ne)) {
            ok = err_set(e, "%s: %s is %llu x %llu x %llu, in %s %llu x %llu x %llu: not the same model", b->path, t->b->name_z, (unsigned long long)t->b->ne[2],
                         (unsigned long long)t->b->ne[1], (unsigned long long)t->b->ne[0], a->path, (unsigned long long)t->a->ne[2],
                         (unsigned long long)t->a->ne[1], (unsigned long long)t->a->ne[0]);
            break;
        }
        if (t->a) ok = same_bytes(p->pool, t->a, t->b, &t->same, e);
        t->readable = t->a && matrix_of(&t->ma, t->a) && matrix_of(&t->mb, t->b);
        find_writer(p, t);
        p->n_same += t->same;
        done += (double)t->b->bytes;
        progress_step(&bar, done, (double)b->data_bytes);
    }
    progress_end(&bar);
    return ok && (!interrupted || err_set(e, "interrupted"));
}

bool pair_open(Pair *p, const char *a, const char *b, int threads, Err *e) {
    *p = (Pair){0};
    if (!model_open(&p->a, a, e) || !gguf_open(&p->b, b, e)) return false;
    GgufString arch = {0};
    if (!gguf_get_string(&p->b, "general.architecture", &arch, e)) return false;
    if (arch.n != strlen(p->a.c.arch) || memcmp(arch.p, p->a.c.arch, (size_t)arch.n))
        return err_set(e, "%s: architecture '%.*s', %s has '%s': not the same model", b, (int)(arch.n < 64 ? arch.n : 64), arch.n ? arch.p : "", a, p->a.c.arch);
    if (!writers_open(&p->writers, &p->a, &p->why_none)) p->writers = (Writers){0};
    p->pool = pool_open(threads ? threads : processors_allowed());
    if (!p->pool) return err_set(e, "no memory for the threads");
    return compare_keys(p, e) && compare_tensors(p, e);
}

void pair_close(Pair *p) {
    if (p->pool) pool_close(p->pool);
    free(p->tensor);
    free(p->key);
    writers_close(&p->writers);
    gguf_close(&p->b);
    model_close(&p->a);
    *p = (Pair){0};
}

bool pair_json(const Pair *p, const char *path, void (*members)(const void *of, FILE *f), const void *of, Err *e) {
    SafeFile file;
    if (!safe_open(&file, path, e)) return false;
    fputs("{\n  \"tool\": \"abliterate.c 0.1\", \"a\": ", file.f);
    json_text(file.f, p->a.gguf.path);
    fputs(", \"b\": ", file.f);
    json_text(file.f, p->b.path);
    fputs(", ", file.f);
    members(of, file.f);
    fputs("\n}\n", file.f);
    return safe_close(&file, true, e);
}

void writer_vectors(const Writer *w, const double *r, double *take, double *give, int n) {
    for (int i = 0; i < n; i++) {
        const double g = w->gain ? w->gain[i] : 1;
        if (take) take[i] = g * r[i];
        if (give) give[i] = g != 0 ? r[i] / g : 0;
    }
}

int layer_basis(const Direction *d, int n_dir, int layer, double *rows) {
    double mix[MOST_VECTORS * MOST_VECTORS];
    return directions_basis(d, n_dir, layer + 1, rows, mix);
}
