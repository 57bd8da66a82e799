// model.c: open = map the file, describe it (arch.c), find its tensors (bind.c); close = free in reverse.
#include <stdlib.h>
#include "model.h"
#include "sha256.h"

void *model_alloc(Model *m, size_t bytes) {
    if (m->n_owned == m->cap_owned) {
        const int cap = m->cap_owned ? 2 * m->cap_owned : 64;
        void **p = realloc(m->owned, sizeof *p * (size_t)cap);
        if (!p) return NULL;
        m->owned = p;
        m->cap_owned = cap;
    }
    void *p = calloc(1, bytes ? bytes : 1);
    if (p) m->owned[m->n_owned++] = p;
    return p;
}

bool model_from_gguf(Model *m, Err *e) {
    return arch_describe(m, e) && model_bind(m, e);
}

bool model_open(Model *m, const char *path, Err *e) {
    memset(m, 0, sizeof *m);
    if (gguf_open(&m->gguf, path, e) && model_from_gguf(m, e)) return true;
    model_close(m);
    return false;
}

void model_close(Model *m) {
    if (!m) return;
    while (m->n_owned) free(m->owned[--m->n_owned]);
    free(m->owned);
    gguf_close(&m->gguf);
    memset(m, 0, sizeof *m);
}

void model_fingerprint(const Model *m, char *hex) {
    Sha256 s;
    sha256_start(&s);
    for (uint64_t i = 0; i < m->gguf.n_tensor; i++) {
        const GgufTensor *t = &m->gguf.tensors[i];
        const size_t piece = t->bytes < 4096 ? (size_t)t->bytes : 4096;
        const uint32_t type = (uint32_t)t->type;
        sha256_add(&s, t->name_z, sizeof t->name_z);
        sha256_add(&s, &type, sizeof type);
        sha256_add(&s, t->ne, sizeof t->ne);
        sha256_add(&s, t->data, piece);
        sha256_add(&s, (const char *)t->data + t->bytes - piece, piece);
    }
    sha256_end(&s, hex);
}
