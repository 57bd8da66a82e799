// quantize.c: makes the other files of a demo model from its F16 file. Not a general tool: no importance matrix, tensors of two
// dimensions only.
//
//   quantize IN.gguf OUT.gguf q8_0|q4_k_m
//
// Q8_0: every matrix. Q4_K_M, the mix of that name: Q4_K; Q6_K for the head (the embedding when it is the head, too) and, in
// the layers that matter most, for attn_v and ffn_down.
#include <stdlib.h>

#include "gguf.h"

static int layer_of(const char *name) {
    int layer;
    return sscanf(name, "blk.%d.", &layer) == 1 ? layer : -1;
}

// The first and the last eighth of the layers, and every third between them.
static bool matters_most(int layer, int n_layer) { return layer < n_layer / 8 || layer >= 7 * n_layer / 8 || (layer - n_layer / 8) % 3 == 2; }

static int type_for(const Gguf *g, const GgufTensor *t, bool q4, int n_layer) {
    if (t->n_dims != 2) return t->type;
    if (!q4) return TYPE_Q8_0;
    const bool head = !strcmp(t->name_z, gguf_tensor(g, "output.weight") ? "output.weight" : "token_embd.weight");
    const bool delicate = strstr(t->name_z, "attn_v.") || strstr(t->name_z, "ffn_down.");
    return head || (delicate && matters_most(layer_of(t->name_z), n_layer)) ? TYPE_Q6_K : TYPE_Q4_K;
}

static bool convert(const GgufTensor *t, int type, GgufWriter *w, Err *e) {
    const TypeInfo *from = type_info(t->type), *to = type_info(type);
    if (type == t->type) return gguf_writer_data(w, t->data, (size_t)t->bytes, e) && gguf_writer_next(w, e);
    if (!from->to_f32 || !to->from_f32) return err_set(e, "%s: cannot turn %s into %s", t->name_z, from->name, to->name);
    if (t->ne[0] % (uint64_t)to->block) return err_set(e, "%s: rows of %d, %s needs a multiple of %d", t->name_z, (int)t->ne[0], to->name, to->block);
    const int64_t n = (int64_t)t->ne[0], in = n / from->block * from->bytes, out = n / to->block * to->bytes;
    float *row = malloc(sizeof *row * (size_t)n);
    char *packed = malloc((size_t)out);
    bool ok = (row && packed) || err_set(e, "%s: no memory for a row", t->name_z);
    for (uint64_t r = 0; ok && r < t->ne[1]; r++) {
        from->to_f32((const char *)t->data + (int64_t)r * in, row, n);
        to->from_f32(row, packed, n, NULL);
        ok = gguf_writer_data(w, packed, (size_t)out, e);
    }
    free(row);
    free(packed);
    return ok && gguf_writer_next(w, e);
}

static bool quantize(const char *from, const char *to, bool q4, Err *e) {
    Gguf g;
    GgufWriter *w = NULL;
    if (!gguf_open(&g, from, e)) return false;
    int n_layer = 0;
    for (uint64_t i = 0; i < g.n_tensor; i++) n_layer = max_int(n_layer, layer_of(g.tensors[i].name_z) + 1);
    bool ok = gguf_writer_open(&w, to, e);
    for (uint64_t i = 0; ok && i < g.n_key; i++) gguf_copy_key(w, &g.keys[i]);
    if (ok) gguf_set_u32(w, "general.file_type", q4 ? 15 : 7);
    for (uint64_t i = 0; ok && i < g.n_tensor; i++) gguf_add_tensor(w, g.tensors[i].name_z, type_for(&g, &g.tensors[i], q4, n_layer), g.tensors[i].n_dims, g.tensors[i].ne);
    for (uint64_t i = 0; ok && i < g.n_tensor; i++) ok = convert(&g.tensors[i], type_for(&g, &g.tensors[i], q4, n_layer), w, e);
    if (ok) ok = gguf_writer_close(w, e);
    else gguf_writer_abort(w);
    gguf_close(&g);
    return ok;
}

int main(int argc, char **argv) {
    Err e = {0};
    const bool q4 = argc == 4 && !strcmp(argv[3], "q4_k_m");
    if (argc != 4 || (!q4 && strcmp(argv[3], "q8_0"))) {
        fprintf(stderr, "usage: quantize IN.gguf OUT.gguf q8_0|q4_k_m\n");
        return 2;
    }
    if (quantize(argv[1], argv[2], q4, &e)) return 0;
    fprintf(stderr, "quantize: %s\n", e.text);
    return 1;
}
