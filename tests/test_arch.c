// test_arch.c: what a file may say in more than one way means the same; what this program cannot do is refused by name.
// The variants are written from ../shared/reference (SKIP when absent) and must give the same bits of logits on ref.
#include <math.h>
#include <unistd.h>

#include "session.h"
#include "test.h"

enum { N_TOKEN = 24 };
static char folder[] = "/tmp/test_arch_XXXXXX";

static const char *path_of(const char *name) { return file_in(folder, name); }

// ---- rewriting a file ----

typedef enum { AS_IS, OLD_EXPERTS, FUSED_QKV, DROP_TENSOR, OTHER_TYPE } Change;
typedef struct {
    Change change;
    const char *tensor;             // of DROP_TENSOR, OTHER_TYPE
    const char *key, *text;         // a string key set to text
    const char *number_key;         // a float key
    float number;
    int part, n_part;               // writes tensors i with i % n_part == part
} Edit;

typedef struct {
    char name[80];
    int type, n_dims;
    uint64_t ne[4];
    const void *piece[3];
    uint64_t bytes[3];
    int n_piece;
} Out;

static const GgufTensor *layer_tensor(const Gguf *g, int layer, const char *what) {
    char name[80];
    snprintf(name, sizeof name, "blk.%d.%s.weight", layer, what);
    return gguf_tensor(g, name);
}

static Out whole(const GgufTensor *t) {
    Out o = {.type = t->type, .n_dims = t->n_dims, .piece = {t->data}, .bytes = {t->bytes}, .n_piece = 1};
    memcpy(o.ne, t->ne, sizeof o.ne);
    snprintf(o.name, sizeof o.name, "%s", t->name_z);
    return o;
}

// What becomes of tensor i of the source: out[0, n).
static int changed(const Gguf *g, const GgufTensor *t, const Edit *edit, Out *out) {
    int layer = -1;
    char what[64] = "";
    const bool in_layer = sscanf(t->name_z, "blk.%d.%63[a-z_].weight", &layer, what) == 2;
    out[0] = whole(t);
    if (edit->change == DROP_TENSOR) return strcmp(t->name_z, edit->tensor) != 0;
    if (edit->change == OTHER_TYPE && !strcmp(t->name_z, edit->tensor)) { // same element count, a type we know by name only
        out[0].type = 16;
        out[0].bytes[0] = t->ne[0] * t->ne[1] / 256 * 66;
    }
    if (edit->change == OLD_EXPERTS && in_layer && strstr(what, "_exps") && t->n_dims == 3) {
        const int n = (int)t->ne[2];
        for (int s = 0; s < n; s++) {
            out[s] = whole(t);
            snprintf(out[s].name, sizeof out[s].name, "blk.%d.%.*s.%d.weight", layer, (int)strcspn(what, "_") + 1 + (int)strcspn(what + strcspn(what, "_") + 1, "_"), what, s);
            out[s].n_dims = 2;
            out[s].ne[2] = 1;
            out[s].bytes[0] = t->bytes / (uint64_t)n;
            out[s].piece[0] = (const char *)t->data + (uint64_t)s * out[s].bytes[0];
        }
        return n;
    }
    if (edit->change == FUSED_QKV && in_layer) {
        const GgufTensor *k = layer_tensor(g, layer, "attn_k"), *v = layer_tensor(g, layer, "attn_v"), *q = layer_tensor(g, layer, "attn_q");
        if (q->type == k->type && q->type == v->type) { // types differ in half of the layers of a Q4_K_M file
            if (!strcmp(what, "attn_k") || !strcmp(what, "attn_v")) return 0;
            if (!strcmp(what, "attn_q")) {
                snprintf(out[0].name, sizeof out[0].name, "blk.%d.attn_qkv.weight", layer);
                out[0].ne[1] = q->ne[1] + k->ne[1] + v->ne[1];
                out[0].piece[1] = k->data, out[0].bytes[1] = k->bytes;
                out[0].piece[2] = v->data, out[0].bytes[2] = v->bytes;
                out[0].n_piece = 3;
            }
        }
    }
    return 1;
}

static bool rewrite(const char *from, const char *to, const Edit *edit, Err *e) {
    Gguf g;
    GgufWriter *w = NULL;
    if (!gguf_open(&g, from, e)) return false;
    bool ok = gguf_writer_open(&w, to, e);
    for (uint64_t i = 0; ok && i < g.n_key; i++)
        if (!edit->part) gguf_copy_key(w, &g.keys[i]);
    if (ok && edit->key) gguf_set_string(w, edit->key, edit->text, strlen(edit->text));
    if (ok && edit->number_key) gguf_set_f32(w, edit->number_key, edit->number);
    if (ok && edit->n_part) {
        gguf_set_u16(w, "split.no", (uint16_t)edit->part);
        gguf_set_u16(w, "split.count", (uint16_t)edit->n_part);
        gguf_set_i32(w, "split.tensors.count", (int32_t)g.n_tensor);
    }
    static Out out[512];
    for (int pass = 0; ok && pass < 2; pass++)
        for (uint64_t i = 0; ok && i < g.n_tensor; i++) {
            if (edit->n_part && i % (uint64_t)edit->n_part != (uint64_t)edit->part) continue;
            const int n = changed(&g, &g.tensors[i], edit, out);
            for (int o = 0; ok && o < n; o++) {
                if (pass == 0) gguf_add_tensor(w, out[o].name, out[o].type, out[o].n_dims, out[o].ne);
                for (int p = 0; ok && pass == 1 && p < out[o].n_piece; p++) ok = gguf_writer_data(w, out[o].piece[p], out[o].bytes[p], e);
                if (ok && pass == 1) ok = gguf_writer_next(w, e);
            }
        }
    if (ok) ok = gguf_writer_close(w, e);
    else gguf_writer_abort(w);
    gguf_close(&g);
    return ok;
}

// ---- running ----

static bool logits_of(const char *path, float **logits, int *n, Err *e) {
    Model m = {0};
    Backend b = {0};
    Session s = {0};
    int ids[N_TOKEN];
    for (int i = 0; i < N_TOKEN; i++) ids[i] = (i * 37 + 11) % 300;
    bool ok = model_open(&m, path, e) && backend_open_ref(&b, e) && session_open(&s, &m, &b, &(SessionParams){.n_ctx = N_TOKEN, .n_batch = 8}, e) && session_eval(&s, ids, N_TOKEN, e);
    *logits = NULL;
    if (ok) {
        *n = m.c.n_vocab;
        *logits = malloc(sizeof(float) * (size_t)*n);
        memcpy(*logits, s.logits, sizeof(float) * (size_t)*n);
    }
    session_close(&s);
    backend_close(&b);
    model_close(&m);
    return ok;
}

static void same_logits(const char *what, const char *source, const char *variant) {
    float *a, *b;
    int n = 0, n_b = 0;
    Err e = {0};
    CHECK(logits_of(source, &a, &n, &e), "%s: %s", what, e.text);
    CHECK(logits_of(variant, &b, &n_b, &e), "%s: %s", what, e.text);
    CHECK(a && b && n == n_b && !memcmp(a, b, sizeof(float) * (size_t)n), "%s gives other logits", what);
    free(a);
    free(b);
}

static void refused(const char *what, const char *path, const char *says) {
    Model m = {0};
    Err e = {0};
    const bool ok = model_open(&m, path, &e);
    CHECK(!ok && strstr(e.text, says) && !strchr(e.text, '\n'), "%s: %s, expected an error with '%s'", what, ok ? "opens" : e.text, says);
    if (ok) model_close(&m);
}

static void variant(const char *what, const char *source, Edit edit) {
    Err e = {0};
    CHECK(rewrite(source, path_of("v.gguf"), &edit, &e), "%s: %s", what, e.text);
    same_logits(what, source, path_of("v.gguf"));
}

static void refused_variant(const char *what, const char *source, Edit edit, const char *says) {
    Err e = {0};
    CHECK(rewrite(source, path_of("v.gguf"), &edit, &e), "%s: %s", what, e.text);
    refused(what, path_of("v.gguf"), says);
}

// ---- rope scaling: the table of angles, against the formulas written down once more ----

static void test_scaling(const char *source) {
    Err e = {0};
    Model plain = {0}, m = {0};
    CHECK(rewrite(source, path_of("v.gguf"), &(Edit){.key = "llama.rope.scaling.type", .text = "linear", .number_key = "llama.rope.scaling.factor", .number = 4}, &e), "%s", e.text);
    CHECK(model_open(&plain, source, &e) && model_open(&m, path_of("v.gguf"), &e), "%s", e.text);
    if (!m.layers || !plain.layers) return;
    const int half = m.layers[0].d.rope.n_rot / 2;
    for (int i = 0; i < half; i++)
        CHECK(fabs(m.layers[0].d.rope.freq[i] * 4 - plain.layers[0].d.rope.freq[i]) <= 1e-15, "linear scaling by 4 turns pair %d by %g, plain %g", i, m.layers[0].d.rope.freq[i], plain.layers[0].d.rope.freq[i]);
    model_close(&m);
    CHECK(rewrite(source, path_of("v.gguf"), &(Edit){.key = "llama.rope.scaling.type", .text = "yarn", .number_key = "llama.rope.scaling.factor", .number = 8}, &e), "%s", e.text);
    CHECK(model_open(&m, path_of("v.gguf"), &e), "%s", e.text);
    if (m.layers) { // the two wavelengths between which YaRN blends, arXiv 2309.00071 section 3.2
        const LayerDesc *d = &m.layers[0].d;
        const double pi = acos(-1), n_rot = d->rope.n_rot, base = d->rope_base, ctx = m.c.n_ctx_train;
        double low = floor(n_rot * log(ctx / (32 * 2 * pi)) / (2 * log(base))), high = ceil(n_rot * log(ctx / (2 * pi)) / (2 * log(base)));
        low = low < 0 ? 0 : low;
        high = high > n_rot - 1 ? n_rot - 1 : high;
        for (int i = 0; i < half; i++) {
            double ramp = (i - low) / (high - low > 0.001 ? high - low : 0.001);
            ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
            const double full = plain.layers[0].d.rope.freq[i], expected = full / 8 * ramp + full * (1 - ramp);
            CHECK(fabs(d->rope.freq[i] - expected) <= 1e-7 * expected, "YaRN by 8 turns pair %d by %g, expected %g", i, d->rope.freq[i], expected);
        }
        CHECK(fabs(d->rope.magnitude - (1 + 0.1 * log(8))) < 1e-6, "YaRN by 8 has magnitude %g", (double)d->rope.magnitude);
    }
    model_close(&m);
    model_close(&plain);
}

// ---- the session ----

static void test_session(const char *source, bool window) {
    Err e = {0};
    Model m = {0};
    Backend b = {0};
    Session s = {0};
    int ids[48];
    for (int i = 0; i < 48; i++) ids[i] = (i * 37 + 11) % 300;
    CHECK(model_open(&m, source, &e) && backend_open_ref(&b, &e), "%s", e.text);
    CHECK(session_open(&s, &m, &b, &(SessionParams){.n_ctx = 48, .n_batch = 8}, &e), "%s", e.text);
    float *first = malloc(sizeof(float) * (size_t)m.c.n_vocab);
    CHECK(session_eval(&s, ids, 40, &e), "%s", e.text);
    memcpy(first, s.logits, sizeof(float) * (size_t)m.c.n_vocab);
    const int at = session_rewind(&s, 0, 12); // a ring of 16 cells has forgotten what position 12 sees
    CHECK(at == (window ? 0 : 12), "rewinding 40 tokens to 12 reaches %d", at);
    CHECK(session_eval(&s, ids + at, 40 - at, &e), "%s", e.text);
    CHECK(!memcmp(first, s.logits, sizeof(float) * (size_t)m.c.n_vocab), "after rewinding the same tokens give the same logits");
    CHECK(session_rewind(&s, 0, 40) == 40, "rewinding by nothing");
    CHECK(!session_eval(&s, ids, 9, &e) && strstr(e.text, "48"), "more than the context holds: %s", e.text);
    CHECK(session_pos(&s) == 40, "nothing of it was fed: %d", session_pos(&s));
    CHECK(!session_eval(&s, (int[]){m.c.n_vocab}, 1, &e), "an id beyond the vocabulary is refused");
    free(first);
    session_close(&s);
    backend_close(&b);
    model_close(&m);
}

int main(int argc, char **argv) {
    test_begin(argc, argv);
    const char *llama = shared_path("reference/llama3-Q8_0.gguf"), *moe = shared_path("reference/llama-moe-Q4_K_M.gguf"), *gemma = shared_path("reference/gemma3-Q4_K_M.gguf");
    if (!llama || !moe || !gemma) {
        test_skip("../shared/reference is not there");
        return test_end();
    }
    if (!mkdtemp(folder)) return 1;
    variant("a copy", llama, (Edit){0});
    variant("one tensor per expert", moe, (Edit){.change = OLD_EXPERTS});
    variant("fused Q, K and V", llama, (Edit){.change = FUSED_QKV});
    test_scaling(llama);
    test_session(llama, false);
    test_session(gemma, true);

    Err e = {0};
    for (int part = 0; part < 3; part++) {
        char name[64];
        snprintf(name, sizeof name, "s-%05d-of-00003.gguf", part + 1);
        CHECK(rewrite(llama, path_of(name), &(Edit){.part = part, .n_part = 3}, &e), "%s", e.text);
    }
    same_logits("a file in three parts", llama, path_of("s-00001-of-00003.gguf"));
    refused("the second part alone", path_of("s-00002-of-00003.gguf"), "part 2 of 3");
    unlink(path_of("s-00003-of-00003.gguf"));
    refused("a missing part", path_of("s-00001-of-00003.gguf"), "00003-of-00003");

    refused_variant("an unknown architecture", llama, (Edit){.key = "general.architecture", .text = "mamba"}, "'mamba'");
    refused_variant("an adapter", llama, (Edit){.key = "general.type", .text = "adapter"}, "'adapter'");
    refused_variant("an unknown rope scaling", llama, (Edit){.key = "llama.rope.scaling.type", .text = "longrope"}, "'longrope'");
    refused_variant("a missing tensor", llama, (Edit){.change = DROP_TENSOR, .tensor = "blk.1.attn_v.weight"}, "blk.1.attn_v.weight is missing");
    refused_variant("a type without kernels", llama, (Edit){.change = OTHER_TYPE, .tensor = "blk.1.ffn_up.weight"}, "blk.1.ffn_up.weight has type IQ2_XXS");
    const char *vocab = shared_path("vocab/llama-spm.gguf");
    if (vocab) refused("a vocabulary", vocab, "vocabulary");
    else test_skip("vocab/llama-spm.gguf");

    static const char *const FILES[] = {"v.gguf", "s-00001-of-00003.gguf", "s-00002-of-00003.gguf"};
    for (int i = 0; i < 3; i++) unlink(path_of(FILES[i]));
    rmdir(folder);
    return test_end();
}
