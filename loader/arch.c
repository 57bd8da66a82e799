// arch.c: the only file that knows architecture names. Turns the metadata of a file into Config and one LayerDesc per
// layer; everything after this is data. One short function per architecture; what they share is in describe_common.
//
// Facts that have bitten:
//  - Norm gains of gemma, gemma2, gemma3 already contain the "1 +"; gemma3n and gemma4 have none. Never add 1.
//  - llama rotates adjacent pairs (the converter permuted Q and K); all others rotate halves.
//  - Llama 3.1+ files have no rope.scaling keys, only the tensor rope_freqs.weight, which *divides* the angle.
//  - A lone rope.scaling.factor means linear. Linear scaling of gemma3 applies to its global layers only.
//  - gemma2 and gemma3 27B scale scores by 1/sqrt(n_embd/n_head), not 1/sqrt(head_dim); only n_layer tells.
//  - key_length of gemma4 is that of the *global* layers; local ones have key_length_swa.
//  - The window counts the current token: W keys are visible.
//  - gemma3n stores shared_kv_layers as a float; files written by others leave it out.
#include <math.h>
#include "model.h"

typedef struct {
    Model *m;
    Config *c;

    Err *e;
    bool ok;
} Reader; // keeps the first error, so that a description reads as a list of keys

static const char *key_name(const Reader *r, const char *suffix, char buf[128]) {
    snprintf(buf, 128, "%s.%s", r->c->arch, suffix);
    return buf;
}

// A string of the file, fit for a message: printable and not too long.
static const char *shown(GgufString s, char out[41]) {
    const size_t n = s.n < 40 ? (size_t)s.n : 40;
    for (size_t i = 0; i < n; i++) out[i] = s.p[i] >= ' ' && s.p[i] <= '~' ? s.p[i] : '?';
    out[n] = 0;
    return out;
}

static bool has(const Reader *r, const char *suffix) {
    char key[128];
    return gguf_key(&r->m->gguf, key_name(r, suffix, key)) != NULL;
}

static int64_t get_int(Reader *r, const char *suffix, int64_t fallback, int64_t min, int64_t max) {
    char key[128];
    int64_t v = fallback;
    if (r->ok) r->ok = gguf_get_int(&r->m->gguf, key_name(r, suffix, key), min, max, &v, r->e);
    return v;
}

static int64_t need_int(Reader *r, const char *suffix, int64_t min, int64_t max) {
    char key[128];
    if (r->ok && !has(r, suffix)) r->ok = err_set(r->e, "%s: the file has no key %s", r->m->gguf.path, key_name(r, suffix, key));
    return get_int(r, suffix, min, min, max);
}

static float get_float(Reader *r, const char *suffix, float fallback) {
    char key[128];
    float v = fallback;
    if (r->ok) r->ok = gguf_get_float(&r->m->gguf, key_name(r, suffix, key), &v, r->e);
    return v;
}

static float get_positive(Reader *r, const char *suffix, float fallback) {
    const float v = get_float(r, suffix, fallback);
    char key[128];
    if (r->ok && !(v > 0)) r->ok = err_set(r->e, "%s: %s is %g, expected a positive number", r->m->gguf.path, key_name(r, suffix, key), (double)v);
    return v;
}

// "One number for all layers, or an array with one for each."
static int64_t layer_int(Reader *r, const char *suffix, int layer, int64_t fallback, int64_t min, int64_t max) {
    char name[128];
    const GgufKey *k = gguf_key(&r->m->gguf, key_name(r, suffix, name));
    if (!r->ok || !k || k->type != GGUF_ARRAY) return get_int(r, suffix, fallback, min, max);
    if (!gguf_is_integer(k->elem) || k->n < (uint64_t)r->c->n_layer) {
        r->ok = err_set(r->e, "%s: %s is an array of %llu x %s, expected %d integers", r->m->gguf.path, name, (unsigned long long)k->n,
                        gguf_type_name(k->elem), r->c->n_layer);
        return fallback;
    }
    const int64_t v = gguf_elem_int(k, (uint64_t)layer);
    if (v < min || v > max) {
        r->ok = err_set(r->e, "%s: %s[%d] is %lld, expected %lld to %lld", r->m->gguf.path, name, layer, (long long)v, (long long)min, (long long)max);
        return fallback;
    }
    return v;
}

static float layer_float(Reader *r, const char *suffix, int layer, float fallback) {
    char name[128];
    const GgufKey *k = gguf_key(&r->m->gguf, key_name(r, suffix, name));
    if (!r->ok || !k) return fallback;
    if (k->type != GGUF_ARRAY) return get_float(r, suffix, fallback);
    if (!gguf_is_float(k->elem) || k->n < (uint64_t)r->c->n_layer) {
        r->ok = err_set(r->e, "%s: %s is an array of %llu x %s, expected %d floats", r->m->gguf.path, name, (unsigned long long)k->n,
                        gguf_type_name(k->elem), r->c->n_layer);
        return fallback;
    }
    return (float)gguf_elem_float(k, (uint64_t)layer);
}

// Is layer l local (sliding window)? An array says so itself; an integer T means "all but every T-th".
static bool is_local(Reader *r, int layer, int period) {
    char name[128];
    const GgufKey *k = gguf_key(&r->m->gguf, key_name(r, "attention.sliding_window_pattern", name));
    if (k && k->type == GGUF_ARRAY) return layer_int(r, "attention.sliding_window_pattern", layer, 0, 0, 1) != 0;
    const int t = (int)get_int(r, "attention.sliding_window_pattern", period, 0, MAX_LAYER);
    return t == 0 || layer % t < t - 1;
}

// The keys that mean the same everywhere. Fills every layer.
static void describe_common(Reader *r, float default_eps, float default_base, RopePairing pairing, Activation act) {
    Config *c = r->c;
    c->n_embd = (int)need_int(r, "embedding_length", 1, 1 << 17);
    c->n_ctx_train = (int)need_int(r, "context_length", 1, INT32_MAX);
    c->norm_eps = default_eps;
    if (default_eps <= 0 && r->ok && !has(r, "attention.layer_norm_rms_epsilon"))
        r->ok = err_set(r->e, "%s: the file has no key %s.attention.layer_norm_rms_epsilon", r->m->gguf.path, c->arch);
    c->norm_eps = get_float(r, "attention.layer_norm_rms_epsilon", default_eps);
    if (r->ok && !(c->norm_eps >= 0)) r->ok = err_set(r->e, "%s: norm epsilon is %g", r->m->gguf.path, (double)c->norm_eps);
    c->embed_scale = 1;

    char key[128];
    bool causal = true;
    if (r->ok) r->ok = gguf_get_bool(&r->m->gguf, key_name(r, "attention.causal", key), &causal, r->e);
    if (r->ok && !causal) r->ok = err_set(r->e, "%s: an embedding model (%s is false) cannot generate text", r->m->gguf.path, key);

    // RoPE scaling: a lone factor means linear.
    GgufString scaling = {"linear", 6};
    if (r->ok) r->ok = gguf_get_string(&r->m->gguf, key_name(r, "rope.scaling.type", key), &scaling, r->e);
    const bool none = scaling.n == 4 && !memcmp(scaling.p, "none", 4);
    const bool yarn = scaling.n == 4 && !memcmp(scaling.p, "yarn", 4);
    char text[41];
    if (r->ok && !none && !yarn && !(scaling.n == 6 && !memcmp(scaling.p, "linear", 6)))
        r->ok = err_set(r->e, "%s: rope scaling '%s' is not supported (none, linear and yarn are)", r->m->gguf.path, shown(scaling, text));
    float factor = get_float(r, "rope.scale_linear", 0);
    factor = get_float(r, "rope.scaling.factor", factor);
    if (r->ok && factor < 0) r->ok = err_set(r->e, "%s: rope scaling factor is %g, expected a positive number", r->m->gguf.path, (double)factor);
    const float rope_scale = none || factor == 0 ? 1 : 1 / factor;
    const int yarn_ctx = yarn ? (int)get_int(r, "rope.scaling.original_context_length", c->n_ctx_train, 1, INT32_MAX) : 0;
    const float attn_factor = yarn ? get_positive(r, "rope.scaling.attn_factor", 1) : 1;
    const float base = get_positive(r, "rope.freq_base", default_base);

    for (int l = 0; l < c->n_layer && r->ok; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        d->n_head = (int)layer_int(r, "attention.head_count", l, 0, 0, 1 << 14);
        if (r->ok && d->n_head == 0) r->ok = err_set(r->e, "%s: %s.attention.head_count of layer %d is missing or 0", r->m->gguf.path, c->arch, l);
        if (!r->ok) return;
        d->n_head_kv = (int)layer_int(r, "attention.head_count_kv", l, d->n_head, 1, 1 << 14);
        d->head_dim = (int)get_int(r, "attention.key_length", c->n_embd / d->n_head, 1, 1 << 14);
        get_int(r, "attention.value_length", d->head_dim, d->head_dim, d->head_dim); // no known model differs
        d->n_ff = (int)layer_int(r, "feed_forward_length", l, 0, 0, 1 << 20);
        d->n_expert = (int)get_int(r, "expert_count", 0, 0, MAX_EXPERT);
        if (d->n_expert) {
            d->n_expert_used = (int)need_int(r, "expert_used_count", 1, d->n_expert);
            d->n_ff_expert = (int)get_int(r, "expert_feed_forward_length", d->n_ff, 1, 1 << 20);
        }
        d->attn_scale = 1 / sqrtf((float)d->head_dim);
        d->kv_source = l;
        d->act = act;
        d->rope_base = base;
        d->rope_scale = rope_scale;
        d->yarn_ctx = rope_scale != 1 ? yarn_ctx : 0;
        d->rope = (Rope){.pairing = pairing, .n_rot = (int)get_int(r, "rope.dimension_count", d->head_dim, 0, 1 << 14)};
        d->rope.magnitude = d->yarn_ctx ? (1 + 0.1f * logf(1 / rope_scale)) * attn_factor : attn_factor;
    }
}

static void make_local(LayerDesc *d, int window, float base) {
    d->window = window;
    d->rope_base = base;
    d->rope_scale = 1;
    d->yarn_ctx = 0;
    d->rope.magnitude = 1;
}

// The last n_shared layers read the KV cache of the last earlier layer of their own kind (local or global).
static void share_kv(Reader *r, int n_shared) {
    const int own = r->c->n_layer - n_shared;
    for (int l = own; l < r->c->n_layer && r->ok; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        int source = own - 1;
        while (source >= 0 && (r->m->layers[source].d.window > 0) != (d->window > 0)) source--;
        if (source < 0)
            r->ok = err_set(r->e, "%s: layer %d shares a %s KV cache, but no such layer comes before layer %d", r->m->gguf.path, l,
                            d->window ? "local" : "global", own);
        d->kv_source = source;
    }
}

static void scale_as_27b(Reader *r, int n_layer_of_27b) {
    for (int l = 0; l < r->c->n_layer && r->c->n_layer == n_layer_of_27b && r->ok; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        d->attn_scale = 1 / sqrtf((float)max_int(r->c->n_embd / d->n_head, 1));
    }
}

static void llama(Reader *r) {
    describe_common(r, 0, 10000, ROPE_ADJACENT, ACT_SILU);
    for (int l = 0; l < r->c->n_layer; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        d->rope_factors = true;
        if (d->n_expert) d->n_ff = 0; // feed_forward_length was the width of one expert
    }
}

static void gemma(Reader *r) {
    describe_common(r, 1e-6f, 10000, ROPE_HALVES, ACT_GELU_TANH);
    r->c->embed_scale = sqrtf((float)r->c->n_embd);
}

static void gemma2(Reader *r) {
    gemma(r);
    const int window = (int)get_int(r, "attention.sliding_window", 4096, 0, INT32_MAX);
    const float cap = get_float(r, "attn_logit_softcapping", 50);
    r->c->final_softcap = get_float(r, "final_logit_softcapping", 30);
    for (int l = 0; l < r->c->n_layer && r->ok; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        d->attn_softcap = cap;
        if (is_local(r, l, 2)) {
            d->window = window;
            d->rope_base = get_positive(r, "rope.freq_base_swa", d->rope_base);
        }
    }
    scale_as_27b(r, 46);
}

static void gemma3(Reader *r) {
    const bool dialect = !has(r, "rope.freq_base"); // files of other writers: own key names, some left out
    describe_common(r, 1e-6f, get_positive(r, "rope.global.freq_base", 1e6f), ROPE_HALVES, ACT_GELU_TANH);
    r->c->embed_scale = sqrtf((float)r->c->n_embd);
    r->c->final_softcap = get_float(r, "final_logit_softcapping", 0);
    const int window = (int)get_int(r, "attention.sliding_window", 0, 0, INT32_MAX);
    const float local_base = get_positive(r, "rope.freq_base_swa", get_positive(r, "rope.local.freq_base", 10000));
    for (int l = 0; l < r->c->n_layer && r->ok; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        if (window && is_local(r, l, 6)) make_local(d, window, local_base);
        else if (dialect && !has(r, "rope.scaling.factor") && r->c->n_ctx_train >= 131072) d->rope_scale = 1.0f / 8;
    }
    scale_as_27b(r, 62);
}

static void gemma3n(Reader *r) {
    describe_common(r, 1e-6f, 1e6f, ROPE_HALVES, ACT_GELU_TANH);
    Config *c = r->c;
    c->embed_scale = sqrtf((float)c->n_embd);
    c->final_softcap = get_float(r, "final_logit_softcapping", 30);
    c->n_embd_per_layer = (int)get_int(r, "embedding_length_per_layer_input", 256, 1, 1 << 16);
    c->n_stream = (int)get_int(r, "altup.num_inputs", 4, 2, MAX_STREAM);
    c->stream_active = (int)get_int(r, "altup.active_idx", 0, 0, 0); // every published model has 0
    const int window = (int)need_int(r, "attention.sliding_window", 1, INT32_MAX);
    const float local_base = get_positive(r, "rope.freq_base_swa", get_positive(r, "rope.freq_base_local", 10000));
    for (int l = 0; l < c->n_layer && r->ok; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        if (is_local(r, l, 5)) make_local(d, window, local_base);
        d->attn_scale = 1;
        d->v_norm = true;
        d->sparsity = layer_float(r, "activation_sparsity_scale", l, l < 10 ? 1.6448533535f : 0);
        if (!(d->sparsity > 0)) d->sparsity = 0; // the file says "none" with -infinity
    }
    share_kv(r, (int)get_int(r, "attention.shared_kv_layers", max_int(c->n_layer - 20, 0), 0, c->n_layer - 1));
}

static void gemma4(Reader *r) {
    describe_common(r, 1e-6f, 1e6f, ROPE_HALVES, ACT_GELU_TANH);
    Config *c = r->c;
    c->embed_scale = sqrtf((float)c->n_embd);
    c->final_softcap = get_float(r, "final_logit_softcapping", 30);
    c->n_embd_per_layer = (int)get_int(r, "embedding_length_per_layer_input", 0, 0, 1 << 16);
    const int window = (int)need_int(r, "attention.sliding_window", 1, INT32_MAX);
    const int local_dim = (int)need_int(r, "attention.key_length_swa", 1, 1 << 14);
    const float local_base = get_positive(r, "rope.freq_base_swa", 10000);
    if (r->ok && !has(r, "attention.sliding_window_pattern"))
        r->ok = err_set(r->e, "%s: the file has no key gemma4.attention.sliding_window_pattern", r->m->gguf.path);
    for (int l = 0; l < c->n_layer && r->ok; l++) {
        LayerDesc *d = &r->m->layers[l].d;
        if (layer_int(r, "attention.sliding_window_pattern", l, 0, 0, 1)) { // a scalar is a flag for all layers here
            make_local(d, window, local_base);
            d->head_dim = local_dim;
            d->rope.n_rot = (int)get_int(r, "rope.dimension_count_swa", local_dim, 0, 1 << 14);
        } else {
            d->rope_factors = true;
        }
        d->attn_scale = 1;
        d->v_norm = true;
    }
    share_kv(r, (int)get_int(r, "attention.shared_kv_layers", 0, 0, c->n_layer - 1));
}

static const struct {
    const char *name;
    void (*describe)(Reader *r);
    const char *required; // tensors beyond the common ones
} ARCHS[] = {
    {"llama", llama, "attn_v"},
    {"gemma", gemma, "attn_v"},
    {"gemma2", gemma2, "attn_v post_attention_norm post_ffw_norm"},
    {"gemma3", gemma3, "attn_v attn_q_norm attn_k_norm post_attention_norm post_ffw_norm"},
    {"gemma3n", gemma3n,
     "attn_v attn_q_norm attn_k_norm post_attention_norm post_ffw_norm inp_gate proj post_norm altup_correct_coef "
     "altup_correct_scale altup_predict_coef altup_router altup_router_norm laurel_l laurel_r laurel_post_norm"},
    {"gemma4", gemma4, "attn_q_norm attn_k_norm post_attention_norm post_ffw_norm"},
};
enum { N_ARCH = sizeof ARCHS / sizeof *ARCHS };

const char *arch_required(const char *arch) {
    for (int i = 0; i < N_ARCH; i++)
        if (!strcmp(ARCHS[i].name, arch)) return ARCHS[i].required;
    return "";
}

// What holds for every model, whatever the file says.
static bool check(const Model *m, Err *e) {
    for (int l = 0; l < m->c.n_layer; l++) {
        const LayerDesc *d = &m->layers[l].d;
        if (d->n_head % d->n_head_kv)
            return err_set(e, "%s: layer %d has %d heads and %d KV heads, expected a multiple", m->gguf.path, l, d->n_head, d->n_head_kv);
        if (d->rope.n_rot > d->head_dim || d->rope.n_rot % 2)
            return err_set(e, "%s: layer %d rotates %d dimensions of heads of %d, expected an even number no larger", m->gguf.path, l, d->rope.n_rot, d->head_dim);
        if ((int64_t)d->n_head * d->head_dim > 1 << 20) return err_set(e, "%s: layer %d has %d heads of %d, too wide", m->gguf.path, l, d->n_head, d->head_dim);
        const LayerDesc *s = &m->layers[d->kv_source].d;
        if (s->n_head_kv != d->n_head_kv || s->head_dim != d->head_dim)
            return err_set(e, "%s: layer %d reads the KV cache of layer %d, but their heads differ (%d x %d, %d x %d)", m->gguf.path, l,
                           d->kv_source, d->n_head_kv, d->head_dim, s->n_head_kv, s->head_dim);
        if (d->n_ff == 0 && d->n_expert == 0)
            return err_set(e, "%s: %s.feed_forward_length of layer %d is missing or 0", m->gguf.path, m->c.arch, l);
    }
    return true;
}

bool arch_describe(Model *m, Err *e) {
    GgufString arch = {0}, type = {0};
    if (!gguf_get_string(&m->gguf, "general.architecture", &arch, e)) return false;
    if (!gguf_get_string(&m->gguf, "general.type", &type, e)) return false;
    if (!arch.n) return err_set(e, "%s: the file has no general.architecture", m->gguf.path);
    char text[41];
    int which = -1;
    for (int i = 0; i < N_ARCH; i++)
        if (strlen(ARCHS[i].name) == arch.n && !memcmp(ARCHS[i].name, arch.p, arch.n)) which = i;
    if (type.n && !(type.n == 5 && !memcmp(type.p, "model", 5)))
        return err_set(e, "%s: this is a file of type '%s', expected a model", m->gguf.path, shown(type, text));
    if (which < 0)
        return err_set(e, "%s: architecture '%s' is not supported (llama, gemma, gemma2, gemma3, gemma3n and gemma4 are)", m->gguf.path, shown(arch, text));
    Reader r = {.m = m, .c = &m->c, .e = e, .ok = true};
    snprintf(m->c.arch, sizeof m->c.arch, "%s", ARCHS[which].name);
    m->c.n_layer = (int)need_int(&r, "block_count", 1, MAX_LAYER);
    if (!r.ok) return false;
    m->layers = model_alloc(m, sizeof *m->layers * (size_t)m->c.n_layer);
    if (!m->layers) return err_set(e, "%s: no memory for %d layers", m->gguf.path, m->c.n_layer);
    ARCHS[which].describe(&r);
    return r.ok && check(m, e);
}
