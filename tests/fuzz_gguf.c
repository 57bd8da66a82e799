// fuzz_gguf.c: libFuzzer target for everything that is read from a file before its first token: the container, the model's
// description and its tensors, the vocabulary. Any bytes must give an open file or one line of error; what is open is walked
// from end to end, so that a sanitizer sees every pointer that is wrong.
// Works from an empty corpus; models of a few kilobytes as seeds make it reach the binding of tensors at once.
#include "model.h"
#include "tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static volatile uint64_t sink;

static void expect(bool cond) {
    if (!cond) __builtin_trap();
}

static void expect_message(const Err *e) { expect(memchr(e->text, 0, sizeof e->text) && e->text[0] && !strpbrk(e->text, "\n\r")); }

static void walk_keys(const Gguf *g) {
    for (uint64_t i = 0; i < g->n_key; i++) {
        const GgufKey *k = &g->keys[i];
        char name[64] = {0};
        memcpy(name, k->key.p, k->key.n < sizeof name - 1 ? (size_t)k->key.n : sizeof name - 1);
        if (strlen(name) == k->key.n) expect(gguf_key(g, name) == k);

        for (uint64_t j = 0; j < k->n; j++) {
            if (k->elem != GGUF_STRING) sink += (uint64_t)gguf_elem_int(k, j) + (gguf_elem_float(k, j) > 0);
            else if (k->strings[j].n) sink += (uint64_t)(k->strings[j].p[0] + k->strings[j].p[k->strings[j].n - 1]);
        }
        int64_t v = -1;
        float x = 0;
        bool yes = false;
        GgufString s = {0};
        Err e = {""};
        if (!gguf_get_int(g, name, -100, 1000, &v, &e)) expect_message(&e);
        expect(v >= -100 && v <= 1000);
        if (!gguf_get_float(g, name, &x, &e)) expect_message(&e);
        expect(x - x == 0); // finite
        if (!gguf_get_bool(g, name, &yes, &e)) expect_message(&e);
        if (gguf_get_string(g, name, &s, &e)) {
            if (s.n) sink += (uint64_t)s.p[s.n - 1];
        } else expect_message(&e);
    }
}

static void walk_tensors(const Gguf *g) {
    for (uint64_t i = 0; i < g->n_tensor; i++) {
        const GgufTensor *t = &g->tensors[i];
        const uint8_t *bytes = t->data;
        expect(type_info(t->type) && t->n_dims >= 0 && t->n_dims <= 4 && strlen(t->name_z) < sizeof t->name_z);
        expect(gguf_tensor(g, t->name_z) == t);
        if (t->bytes) sink += (uint64_t)bytes[0] + bytes[t->bytes - 1];
    }
}

static void walk_model(const Model *m) {
    expect(m->c.n_layer >= 1 && m->c.n_layer <= MAX_LAYER && m->c.n_embd >= 1 && m->token_embd && m->output_norm && m->output);
    for (int i = 0; i < m->n_tensor; i++) {
        const Tensor *t = &m->tensors[i];
        const int64_t row_bytes = type_row_bytes(t->type, t->n_col);
        for (int s = 0; s < t->n_slice && (s == 0 || t->slices); s++) sink += ((const uint8_t *)tensor_row(t, s, t->n_row - 1))[row_bytes - 1];
    }
    for (int l = 0; l < m->c.n_layer; l++) {
        const LayerDesc *d = &m->layers[l].d;
        expect(d->n_head >= 1 && d->n_head_kv >= 1 && d->n_head % d->n_head_kv == 0 && d->kv_source >= 0 && d->kv_source <= l);
        for (int i = 0; i < d->rope.n_rot / 2; i++) sink += d->rope.freq[i] > 0;
    }
}

static void walk_vocabulary(const Tokenizer *t) {
    static const char text[] = " Hello, w\xC3\xB6rld's  42\n\n<s></s>\t<|eot_id|>\xF0\x9F\x98\x80\xFF<bos>";
    Ids ids = {0};
    Err e = {""};
    if (!tokenizer_encode(t, text, sizeof text - 1, true, true, &ids, &e)) expect_message(&e);
    for (int i = 0; i < ids.n; i++) {
        size_t n = 0;
        const char *p = tokenizer_bytes(t, ids.id[i], true, &n);
        expect(ids.id[i] >= 0 && ids.id[i] < tokenizer_n_vocab(t));
        if (n) sink += (uint64_t)(p[0] + p[n - 1]);
    }
    ids_free(&ids);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    Model m = {0};
    Err e = {""};
    if (!gguf_open_memory(&m.gguf, data, n, &e)) {
        expect_message(&e);
        gguf_close(&m.gguf);
        return 0;
    }
    walk_keys(&m.gguf);
    walk_tensors(&m.gguf);
    Tokenizer *t = NULL;
    if (tokenizer_open(&t, &m.gguf, &e)) walk_vocabulary(t);
    else expect_message(&e);
    tokenizer_close(t);
    if (model_from_gguf(&m, &e)) walk_model(&m);
    else expect_message(&e);
    model_close(&m);
    return 0;
}
