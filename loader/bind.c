// bind.c: finds every tensor a model needs, checks its shape and type, and points a Tensor at it. The table below is the
// list of names; GGUF's fastest-first dims are turned into (rows, columns) here and nowhere else.
//
// Vectors (norm gains, biases, scales) become aligned float32: those stored otherwise are converted once, a few kilobytes.
// Fused tensors (attn_qkv, ffn_gate_up_exps) and the old one-tensor-per-expert layout become views: pointers, no copies.
#include <math.h>
#include <stdlib.h>
#include "model.h"

// Sizes that a shape can be made of; the value of each depends on the layer.
typedef enum { ONE, EMBD, Q, KV, HEAD, FF, EXPERTS, FFX, PLE, STREAMS, STREAMS2, ANY } Dim;

typedef struct {
    const char *name; // without "blk.N." and ".weight"
    const char *suffix;
    size_t field;
    Dim rows, cols;   // rows ONE: a vector
} Row;

#define W(field, rows, cols) {#field, ".weight", offsetof(Layer, field), rows, cols}
#define B(field, cols) {#field, ".bias", offsetof(Layer, field##_bias), ONE, cols}
static const Row LAYER_TENSORS[] = {
    W(attn_norm, ONE, EMBD), W(attn_q, Q, EMBD), W(attn_k, KV, EMBD), W(attn_v, KV, EMBD), W(attn_output, EMBD, Q),
    B(attn_q, Q), B(attn_k, KV), B(attn_v, KV), B(attn_output, EMBD),
    W(attn_q_norm, ONE, HEAD), W(attn_k_norm, ONE, HEAD), W(post_attention_norm, ONE, EMBD),
    W(ffn_norm, ONE, EMBD), W(ffn_gate, FF, EMBD), W(ffn_up, FF, EMBD), W(ffn_down, EMBD, FF), W(post_ffw_norm, ONE, EMBD),
    B(ffn_gate, FF), B(ffn_up, FF), B(ffn_down, EMBD),
    W(ffn_gate_inp, EXPERTS, EMBD), {"ffn_gate_inp", ".scale", offsetof(Layer, ffn_gate_inp_scale), ONE, EMBD},
    {"ffn_down_exps", ".scale", offsetof(Layer, ffn_down_exps_scale), ONE, EXPERTS},
    W(pre_ffw_norm_2, ONE, EMBD), W(post_ffw_norm_1, ONE, EMBD), W(post_ffw_norm_2, ONE, EMBD),
    W(inp_gate, PLE, EMBD), W(proj, EMBD, PLE), W(post_norm, ONE, EMBD),
    W(altup_correct_coef, STREAMS, STREAMS), W(altup_correct_scale, ONE, EMBD), W(altup_predict_coef, STREAMS2, STREAMS),
    W(altup_router, STREAMS, EMBD), W(altup_router_norm, ONE, EMBD),
    W(laurel_l, ANY, EMBD), W(laurel_r, EMBD, ANY), W(laurel_post_norm, ONE, EMBD),
};
enum { N_LAYER_TENSORS = sizeof LAYER_TENSORS / sizeof *LAYER_TENSORS, PER_LAYER_MAX = N_LAYER_TENSORS + 8, GLOBAL_MAX = 32 };

static int size_of(const Model *m, const LayerDesc *d, Dim dim) {
    switch (dim) {
    case ONE: return 1;
    case EMBD: return m->c.n_embd;
    case Q: return d->n_head * d->head_dim;
    case KV: return d->n_head_kv * d->head_dim;
    case HEAD: return d->head_dim;
    case FF: return d->n_ff;
    case EXPERTS: return d->n_expert;
    case FFX: return d->n_ff_expert;
    case PLE: return m->c.n_embd_per_layer;
    case STREAMS: return m->c.n_stream;
    case STREAMS2: return m->c.n_stream * m->c.n_stream;
    case ANY: return -1;
    }
    return -1;
}

static Tensor *new_tensor(Model *m) {
    return m->n_tensor < m->cap_tensor ? &m->tensors[m->n_tensor++] : NULL; // capacity covers the table, see model_bind
}

static const TypeInfo *usable_type(const GgufTensor *t) {
    const TypeInfo *info = type_info(t->type);
    return info && info->to_f32 ? info : NULL;
}

// Checks type and shape (-1 = any size) and makes a Tensor of it. NULL with the error set.
static Tensor *make(Model *m, const GgufTensor *t, int n_row, int n_col, int n_slice, Err *e) {
    if (!usable_type(t)) {
        const TypeInfo *info = type_info(t->type);
        err_set(e, "%s: %s has type %s, which this program cannot compute with", m->gguf.path, t->name_z, info ? info->name : "?");
        return NULL;
    }
    const uint64_t want[3] = {(uint64_t)n_col, (uint64_t)n_row, (uint64_t)n_slice};
    const int given[3] = {n_col, n_row, n_slice};
    bool fits = t->ne[3] == 1;
    for (int i = 0; i < 3; i++) fits = fits && t->ne[i] >= 1 && t->ne[i] <= 1 << 24 && (given[i] < 0 || t->ne[i] == want[i]);
    if (!fits) {
        err_set(e, "%s: %s has shape [%llu, %llu, %llu], expected [%d, %d, %d]", m->gguf.path, t->name_z, (unsigned long long)t->ne[0],
                (unsigned long long)t->ne[1], (unsigned long long)t->ne[2], n_col, n_row, n_slice);
        return NULL;
    }
    if (!t->data) {
        err_set(e, "%s: %s has no data (vocabulary-only file)", m->gguf.path, t->name_z);
        return NULL;
    }
    Tensor *out = new_tensor(m);
    if (!out) {
        err_set(e, "%s: more tensors than layers can have", m->gguf.path);
        return NULL;
    }
    *out = (Tensor){.type = (TensorType)t->type, .n_row = (int)t->ne[1], .n_col = (int)t->ne[0], .n_slice = (int)t->ne[2], .host = t->data};
    memcpy(out->name, t->name_z, sizeof out->name);
    m->weight_bytes += t->bytes;
    m->n_param += (int64_t)t->ne[0] * (int64_t)t->ne[1] * (int64_t)t->ne[2];
    return out;
}

// A vector as aligned float32.
static bool floats(Model *m, Tensor *t, Err *e) {
    if (t->type == TYPE_F32 && (uintptr_t)t->host % sizeof(float) == 0) return true;
    float *copy = model_alloc(m, sizeof *copy * (size_t)t->n_col);
    if (!copy) return err_set(e, "%s: no memory for %s", m->gguf.path, t->name);
    type_info(t->type)->to_f32(t->host, copy, t->n_col);
    t->host = copy;
    t->type = TYPE_F32;
    return true;
}

// Rows [first, first + n) of t as a Tensor of their own.
static const Tensor *rows_of(Model *m, const Tensor *t, int first, int n, Err *e) {
    Tensor *view = new_tensor(m);
    if (!view) {
        err_set(e, "%s: more tensors than layers can have", m->gguf.path);
        return NULL;
    }
    *view = *t;
    view->n_row = n;
    const int64_t skip = first * type_row_bytes(t->type, t->n_col);
    view->host = (const char *)t->host + skip;
    if (t->slices) {
        view->slices = model_alloc(m, sizeof *view->slices * (size_t)t->n_slice);
        if (!view->slices) {
            err_set(e, "%s: no memory for %s", m->gguf.path, t->name);
            return NULL;
        }
        for (int s = 0; s < t->n_slice; s++) view->slices[s] = (const char *)t->slices[s] + skip;
    }
    return view;
}

static bool slice_table(Model *m, Tensor *t, Err *e) {
    t->slices = model_alloc(m, sizeof *t->slices * (size_t)t->n_slice);
    if (!t->slices) return err_set(e, "%s: no memory for %s", m->gguf.path, t->name);
    const int64_t bytes = type_row_bytes(t->type, t->n_col) * t->n_row;
    for (int s = 0; s < t->n_slice; s++) t->slices[s] = (const char *)t->host + s * bytes;
    return true;
}

// Optional: *out stays NULL when the file has no such tensor.
static bool bind_one(Model *m, const char *name, int n_row, int n_col, int n_slice, const Tensor **out, Err *e) {
    const GgufTensor *t = gguf_tensor(&m->gguf, name);
    if (!t) return true;
    Tensor *made = make(m, t, n_row, n_col, n_slice, e);
    if (!made || (n_row == 1 && n_slice == 1 && !floats(m, made, e))) return false;
    if (n_slice > 1 && !slice_table(m, made, e)) return false;
    *out = made;
    return true;
}

static bool need(const Model *m, const Tensor *t, const char *name, Err *e) {
    return t || err_set(e, "%s: tensor %s is missing", m->gguf.path, name);
}

// One stack of experts: a 3-D tensor, or (files of 2023) one matrix per expert named ffn_gate.E.weight.
static bool bind_experts(Model *m, int l, const char *what, int n_row, int n_col, int n_expert, const Tensor **out, Err *e) {
    char name[96];
    snprintf(name, sizeof name, "blk.%d.%s_exps.weight", l, what);
    if (!bind_one(m, name, n_row, n_col, n_expert, out, e)) return false;
    if (*out && n_expert == 1 && !(*out)->slices) return slice_table(m, (Tensor *)*out, e);
    if (*out) return true;
    Tensor *stack = NULL;
    for (int s = 0; s < n_expert; s++) {
        snprintf(name, sizeof name, "blk.%d.%s.%d.weight", l, what, s);
        const GgufTensor *t = gguf_tensor(&m->gguf, name);
        if (!t && s == 0) return true;
        if (!t) return err_set(e, "%s: tensor %s is missing", m->gguf.path, name);
        if (s == 0) {
            if (!(stack = make(m, t, n_row, n_col, 1, e))) return false;
            stack->n_slice = n_expert;
            stack->slices = model_alloc(m, sizeof *stack->slices * (size_t)n_expert);
            if (!stack->slices) return err_set(e, "%s: no memory for %s", m->gguf.path, name);
            stack->slices[0] = stack->host;
        } else {
            Tensor *made = make(m, t, n_row, n_col, 1, e);
            if (!made) return false;
            if (made->type != stack->type)
                return err_set(e, "%s: %s has type %s, expected %s as expert 0", m->gguf.path, name, type_info(made->type)->name, type_info(stack->type)->name);
            stack->slices[s] = made->host;
            m->n_tensor--; // only its pointer was needed
        }
    }
    *out = stack;
    return true;
}

static bool bind_layer(Model *m, int l, Err *e) {
    Layer *layer = &m->layers[l];
    const LayerDesc *d = &layer->d;
    char name[96];
    for (int i = 0; i < N_LAYER_TENSORS; i++) {
        const Row *r = &LAYER_TENSORS[i];
        const int rows = size_of(m, d, r->rows), cols = size_of(m, d, r->cols);
        if (rows == 0 || cols == 0) continue; // this model does not have such a part
        if (!m->c.n_stream && (!strncmp(r->name, "altup_", 6) || !strncmp(r->name, "laurel_", 7))) continue; // nor buffers for these
        if (d->kv_source != l && (r->rows == KV || !strcmp(r->name, "attn_k_norm"))) continue; // in the file, but unused
        const Tensor **field = (const Tensor **)((char *)layer + r->field);
        snprintf(name, sizeof name, "blk.%d.%s%s", l, r->name, r->suffix);
        if (!bind_one(m, name, rows, cols, 1, field, e)) return false;
    }
    if (layer->laurel_l && layer->laurel_r && layer->laurel_l->n_row != layer->laurel_r->n_col)
        return err_set(e, "%s: blk.%d.laurel_l has rank %d, laurel_r %d", m->gguf.path, l, layer->laurel_l->n_row, layer->laurel_r->n_col);

    const int q = size_of(m, d, Q), kv = size_of(m, d, KV);
    const Tensor *fused = NULL;
    snprintf(name, sizeof name, "blk.%d.attn_qkv.weight", l);
    if (!layer->attn_q && d->kv_source == l && !bind_one(m, name, q + 2 * kv, m->c.n_embd, 1, &fused, e)) return false;
    if (fused && (!(layer->attn_q = rows_of(m, fused, 0, q, e)) || !(layer->attn_k = rows_of(m, fused, q, kv, e)) ||
                  !(layer->attn_v = rows_of(m, fused, q + kv, kv, e))))
        return false;

    if (d->n_expert && layer->ffn_gate_inp) {
        if (!layer->ffn_down_exps_scale) { // older name
            snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.per_expert_scale", l);
            if (!bind_one(m, name, 1, d->n_expert, 1, &layer->ffn_down_exps_scale, e)) return false;
        }
        const Tensor *gate_up = NULL;
        snprintf(name, sizeof name, "blk.%d.ffn_gate_up_exps.weight", l);
        if (!bind_one(m, name, 2 * d->n_ff_expert, m->c.n_embd, d->n_expert, &gate_up, e)) return false;
        if (gate_up) { // gate rows first
            if (!gate_up->slices && !slice_table(m, (Tensor *)gate_up, e)) return false;
            if (!(layer->ffn_gate_exps = rows_of(m, gate_up, 0, d->n_ff_expert, e)) ||
                !(layer->ffn_up_exps = rows_of(m, gate_up, d->n_ff_expert, d->n_ff_expert, e)))
                return false;
        } else if (!bind_experts(m, l, "ffn_gate", d->n_ff_expert, m->c.n_embd, d->n_expert, &layer->ffn_gate_exps, e) ||
                   !bind_experts(m, l, "ffn_up", d->n_ff_expert, m->c.n_embd, d->n_expert, &layer->ffn_up_exps, e))
            return false;
        if (!bind_experts(m, l, "ffn_down", m->c.n_embd, d->n_ff_expert, d->n_expert, &layer->ffn_down_exps, e)) return false;
        const Tensor *const parts[] = {layer->ffn_gate_exps, layer->ffn_up_exps, layer->ffn_down_exps};
        const char *const names[] = {"ffn_gate_exps", "ffn_up_exps", "ffn_down_exps"};
        for (int i = 0; i < 3; i++) {
            snprintf(name, sizeof name, "blk.%d.%s.weight", l, names[i]);
            if (!need(m, parts[i], name, e)) return false;
        }
        for (int side = 0; side < 2; side++) layer->share[side] = (ExpertShare){.gate = parts[0], .up = parts[1], .down = parts[2]};
    } else if (d->n_expert && !layer->ffn_gate) {
        snprintf(name, sizeof name, "blk.%d.ffn_gate_inp.weight", l);
        return need(m, NULL, name, e);
    }

    // The cut-off at mean + 1.6 sd takes most of the gate's values away, but not their errors (Gemma 3n).
    if (d->sparsity > 0 && layer->ffn_gate) ((Tensor *)layer->ffn_gate)->precise = true;

    // What nobody can do without, and what this architecture cannot.
    char required[512];
    snprintf(required, sizeof required, "attn_norm attn_q attn_k attn_output ffn_norm %s %s", d->n_ff ? "ffn_gate ffn_up ffn_down" : "",
             arch_required(m->c.arch));
    for (int i = 0; i < N_LAYER_TENSORS; i++) {
        const Row *r = &LAYER_TENSORS[i];
        if (strcmp(r->suffix, ".weight")) continue;
        if (d->kv_source != l && (r->rows == KV || !strcmp(r->name, "attn_k_norm"))) continue;
        const char *at = strstr(required, r->name);
        const size_t n = strlen(r->name);
        while (at && !((at == required || at[-1] == ' ') && (at[n] == ' ' || !at[n]))) at = strstr(at + 1, r->name);
        snprintf(name, sizeof name, "blk.%d.%s.weight", l, r->name);
        if (at && !need(m, *(const Tensor **)((char *)layer + r->field), name, e)) return false;
    }
    if (m->c.n_embd_per_layer && (!layer->inp_gate || !layer->proj || !layer->post_norm)) {
        snprintf(name, sizeof name, "blk.%d.%s.weight", l, !layer->inp_gate ? "inp_gate" : !layer->proj ? "proj" : "post_norm");
        return need(m, NULL, name, e);
    }

    const Tensor *scale = NULL;
    snprintf(name, sizeof name, "blk.%d.layer_output_scale.weight", l);
    if (!bind_one(m, name, 1, 1, 1, &scale, e)) return false;
    if (scale) layer->output_scale = *(const float *)scale->host;
    return true;
}

// freq[i]: radians per position of pair i, with every kind of scaling inside (spec: linear, factors, YaRN arXiv 2309.00071).
static bool make_rope(Model *m, int l, const float *factors, int n_factor, Err *e) {
    LayerDesc *d = &m->layers[l].d;
    const int half = d->rope.n_rot / 2;
    if (!d->rope_factors) factors = NULL;
    if (factors && n_factor < half)
        return err_set(e, "%s: rope_freqs.weight has %d factors, layer %d needs %d", m->gguf.path, n_factor, l, half);
    for (int p = 0; p < l; p++) { // layers of one kind share a table
        const LayerDesc *o = &m->layers[p].d;
        if (o->rope.n_rot == d->rope.n_rot && o->rope_base == d->rope_base && o->rope_scale == d->rope_scale && o->yarn_ctx == d->yarn_ctx &&
            o->rope_factors == d->rope_factors) {
            d->rope.freq = o->rope.freq;
            return true;
        }
    }
    double *freq = model_alloc(m, sizeof *freq * (size_t)half);
    if (!freq) return err_set(e, "%s: no memory for rope tables", m->gguf.path);
    double low = 0, high = 0;
    if (d->yarn_ctx) { // pairs turning faster than 32 times in the trained context keep their speed, slower than once are scaled
        const double two_pi = 6.283185307179586, n = d->rope.n_rot, ln_base = log(d->rope_base);
        low = fmax(0, floor(n * log(d->yarn_ctx / (two_pi * 32)) / (2 * ln_base)));
        high = fmin(n - 1, ceil(n * log(d->yarn_ctx / (two_pi * 1)) / (2 * ln_base)));
    }
    for (int i = 0; i < half; i++) {
        const double plain = pow(d->rope_base, -2.0 * i / d->rope.n_rot) / (factors ? factors[i] : 1);
        double keep = 0; // share of the unscaled angle
        if (d->yarn_ctx) keep = 1 - fmin(1, fmax(0, (i - low) / fmax(0.001, high - low)));
        freq[i] = plain * (d->rope_scale * (1 - keep) + keep);
    }
    d->rope.freq = freq;
    return true;
}

int model_most_experts(const Model *m) {
    int n = 0;
    for (int l = 0; l < m->c.n_layer; l++) n = max_int(n, m->layers[l].d.n_expert);
    return n;
}

int model_last_writer(const Model *m) {
    int l = m->c.n_layer - 1;
    while (m->layers[l].d.kv_source != l) l--;
    return l;
}

bool model_bind(Model *m, Err *e) {
    if (m->gguf.n_tensor == 0) return err_set(e, "%s: the file holds a vocabulary and no weights", m->gguf.path);
    Config *c = &m->c;
    m->cap_tensor = c->n_layer * PER_LAYER_MAX + GLOBAL_MAX;
    m->tensors = model_alloc(m, sizeof *m->tensors * (size_t)m->cap_tensor);
    if (!m->tensors) return err_set(e, "%s: no memory for the tensor table", m->gguf.path);

    if (!bind_one(m, "token_embd.weight", -1, c->n_embd, 1, &m->token_embd, e) || !need(m, m->token_embd, "token_embd.weight", e)) return false;
    c->n_vocab = m->token_embd->n_row;
    if (!bind_one(m, "output_norm.weight", 1, c->n_embd, 1, &m->output_norm, e) || !need(m, m->output_norm, "output_norm.weight", e)) return false;
    if (!bind_one(m, "output.weight", c->n_vocab, c->n_embd, 1, &m->output, e)) return false;
    if (!m->output) m->output = m->token_embd; // tied

    const int per_layer = c->n_embd_per_layer * c->n_layer;
    if (per_layer) {
        const Tensor *proj = NULL;
        const int early = c->n_embd_per_layer * model_last_writer(m);
        if (!bind_one(m, "per_layer_token_embd.weight", -1, per_layer, 1, &m->per_layer_token_embd, e) ||
            !bind_one(m, "per_layer_model_proj.weight", per_layer, c->n_embd, 1, &proj, e) ||
            !bind_one(m, "per_layer_proj_norm.weight", 1, c->n_embd_per_layer, 1, &m->per_layer_proj_norm, e) ||
            !need(m, m->per_layer_token_embd, "per_layer_token_embd.weight", e) ||
            !need(m, proj, "per_layer_model_proj.weight", e) || !need(m, m->per_layer_proj_norm, "per_layer_proj_norm.weight", e) ||
            (early && !(m->per_layer_proj[0] = rows_of(m, proj, 0, early, e))) || !(m->per_layer_proj[1] = rows_of(m, proj, early, per_layer - early, e)))
            return false;
    }
    for (int out = 0; out < 2 && c->n_stream; out++) { // one matrix per further stream, views of a 3-D tensor
        const char *name = out ? "altup_unembd_proj.weight" : "altup_proj.weight";
        const Tensor *stack = NULL;
        if (!bind_one(m, name, c->n_embd, c->n_embd, c->n_stream - 1, &stack, e) || !need(m, stack, name, e)) return false;
        for (int s = 0; s < c->n_stream - 1; s++) {
            Tensor *view = new_tensor(m);
            if (!view) return err_set(e, "%s: too many tensors", m->gguf.path);
            *view = *stack;
            view->host = stack->slices ? stack->slices[s] : stack->host;
            view->slices = NULL;
            view->n_slice = 1;
            *(out ? &m->altup_unembd_proj[s] : &m->altup_proj[s]) = view;
        }
    }

    const Tensor *factors = NULL;
    if (!bind_one(m, "rope_freqs.weight", 1, -1, 1, &factors, e)) return false;
    for (int i = 0; factors && i < factors->n_col; i++)
        if (!(((const float *)factors->host)[i] > 0)) return err_set(e, "%s: rope_freqs.weight[%d] is %g, expected a positive number", m->gguf.path, i, (double)((const float *)factors->host)[i]);
    for (int l = 0; l < c->n_layer; l++)
        if (!bind_layer(m, l, e) || !make_rope(m, l, factors ? factors->host : NULL, factors ? factors->n_col : 0, e)) return false;

    int64_t idle = 0; // experts a token does not use
    for (int l = 0; l < c->n_layer; l++)
        for (int i = 0; i < 3; i++) {
            const Tensor *t = i == 0 ? m->layers[l].ffn_gate_exps : i == 1 ? m->layers[l].ffn_up_exps : m->layers[l].ffn_down_exps;
            if (t) idle += (int64_t)t->n_row * t->n_col * (t->n_slice - m->layers[l].d.n_expert_used);
        }
    m->n_param_active = m->n_param - idle;
    return true;
}

// ---- for whoever moves weights ----

// The half of a layer that a row of LAYER_TENSORS belongs to. All of AltUp goes with attention: its layers are not halved.
static bool of_ffn(const Row *row) {
    const char *const names[] = {"ffn_", "pre_ffw", "post_ffw", "inp_gate", "proj", "post_norm"};
    for (size_t i = 0; i < sizeof names / sizeof *names; i++)
        if (!strncmp(row->name, names[i], strlen(names[i]))) return true;
    return false;
}

bool model_each(Model *m, bool (*visit)(void *ctx, Tensor *t, int layer, bool ffn), void *ctx) {
    const Tensor *const first[] = {m->per_layer_proj[0], m->per_layer_proj[1], m->per_layer_proj_norm}, *const head[] = {m->output_norm, m->output};
    for (int i = 0; i < 3; i++)
        if (first[i] && !visit(ctx, (Tensor *)first[i], 0, false)) return false;
    for (int i = 0; i < 2; i++)
        if (head[i] && !visit(ctx, (Tensor *)head[i], m->c.n_layer, false)) return false;
    for (int s = 0; s < MAX_STREAM - 1; s++) {
        if (m->altup_proj[s] && !visit(ctx, (Tensor *)m->altup_proj[s], 0, false)) return false;
        if (m->altup_unembd_proj[s] && !visit(ctx, (Tensor *)m->altup_unembd_proj[s], m->c.n_layer, false)) return false;
    }
    for (int l = 0; l < m->c.n_layer; l++) {
        const Layer *layer = &m->layers[l];
        for (int i = 0; i < N_LAYER_TENSORS; i++) {
            const Tensor *t = *(const Tensor *const *)((const char *)layer + LAYER_TENSORS[i].field);
            if (t && !visit(ctx, (Tensor *)t, l, of_ffn(&LAYER_TENSORS[i]))) return false;
        }
        const Tensor *const experts[] = {layer->ffn_gate_exps, layer->ffn_up_exps, layer->ffn_down_exps};
        for (int i = 0; i < 3; i++)
            if (experts[i] && !visit(ctx, (Tensor *)experts[i], l, true)) return false;
    }
    return true;
}
