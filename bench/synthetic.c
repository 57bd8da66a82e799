// synthetic.c: see synthetic.h. A shape and a mix of types become a list of tensors; the list is counted or written.
#include "synthetic.h"

#include <stdlib.h>
#include <strings.h>
#include <sys/statvfs.h>

#include "console.h"
#include "gguf.h"

typedef struct Shape {
    const char *name, *arch, *size, *like;
    int n_layer, n_embd, n_ff, n_head, n_head_kv, head_dim, n_vocab;
    bool own_head;                          // else the embedding is the head, too
    float rope_base;                        // 0: the architecture's own
    bool rope_factors;                      // the file has rope_freqs
    int window, period;                     // every period-th layer sees everything, the others a window
    int head_dim_global, n_head_kv_global;  // of those that see everything; 0: as the others
    bool k_is_v;                            // ... which have no attn_v
    int n_shared, n_ff_shared;              // the last layers read another's keys (theirs are in the file, unused) and may have a wider FFN
    int n_embd_per_layer;
    int n_expert, n_expert_used, n_ff_expert;
} Shape;

// Of spec/models.md, section 2.
static const Shape SHAPES[] = {
    {"1b", "llama", "1B", "Llama 3.2 1B", 16, 2048, 8192, 32, 8, 64, 128256, .rope_base = 5e5f, .rope_factors = true},
    {"3b", "llama", "3B", "Llama 3.2 3B", 28, 3072, 8192, 24, 8, 128, 128256, .rope_base = 5e5f, .rope_factors = true},
    {"8b", "llama", "8B", "Llama 3.1 8B", 32, 4096, 14336, 32, 8, 128, 128256, .own_head = true, .rope_base = 5e5f, .rope_factors = true},
    {"llama2-7b", "llama", "7B", "Llama 2 7B", 32, 4096, 11008, 32, 32, 128, 32000, .own_head = true, .rope_base = 1e4f},
    {"gemma2-2b", "gemma2", "2B", "Gemma 2 2B", 26, 2304, 9216, 8, 4, 256, 256000, .window = 4096, .period = 2},
    {"gemma2-9b", "gemma2", "9B", "Gemma 2 9B", 42, 3584, 14336, 16, 8, 256, 256000, .window = 4096, .period = 2},
    {"gemma3-1b", "gemma3", "1B", "Gemma 3 1B", 26, 1152, 6912, 4, 1, 256, 262144, .window = 512, .period = 6},
    {"gemma3-4b", "gemma3", "4B", "Gemma 3 4B", 34, 2560, 10240, 8, 4, 256, 262208, .window = 1024, .period = 6},
    {"gemma3-12b", "gemma3", "12B", "Gemma 3 12B", 48, 3840, 15360, 16, 8, 256, 262208, .window = 1024, .period = 6},
    {"e2b", "gemma4", "E2B", "Gemma 4 E2B", 35, 1536, 6144, 8, 1, 256, 262144, .window = 512, .period = 5, .head_dim_global = 512, .n_shared = 20,
     .n_ff_shared = 12288, .n_embd_per_layer = 256},
    {"e4b", "gemma4", "E4B", "Gemma 4 E4B", 42, 2560, 10240, 8, 2, 256, 262144, .window = 512, .period = 6, .head_dim_global = 512, .n_shared = 18,
     .n_ff_shared = 10240, .n_embd_per_layer = 256},
    {"26b", "gemma4", "26B-A4B", "Gemma 4 26B-A4B", 30, 2816, 2112, 16, 8, 256, 262144, .window = 1024, .period = 6, .head_dim_global = 512,
     .n_head_kv_global = 2, .k_is_v = true, .n_expert = 128, .n_expert_used = 8, .n_ff_expert = 704},
    {"31b", "gemma4", "31B", "Gemma 4 31B", 60, 5376, 21504, 32, 16, 256, 262144, .window = 1024, .period = 6, .head_dim_global = 512,
     .n_head_kv_global = 4, .k_is_v = true},
    {"tiny", "llama", "tiny", "8b, for tests", 2, 256, 512, 4, 2, 64, 512, .own_head = true, .rope_base = 5e5f, .rope_factors = true},
    {"tiny-gemma2", "gemma2", "tiny", "gemma2-2b, for tests", 2, 256, 512, 4, 2, 64, 512, .window = 16, .period = 2},
    {"tiny-gemma3", "gemma3", "tiny", "gemma3-1b, for tests", 6, 288, 512, 4, 1, 64, 512, .window = 16, .period = 6},
    {"tiny-e2b", "gemma4", "tiny", "e2b, for tests", 6, 256, 288, 4, 1, 32, 512, .window = 16, .period = 3, .head_dim_global = 64, .n_shared = 3,
     .n_ff_shared = 512, .n_embd_per_layer = 32},
    {"tiny-26b", "gemma4", "tiny", "26b, for tests", 3, 256, 288, 4, 2, 32, 512, .window = 16, .period = 3, .head_dim_global = 64, .n_head_kv_global = 1,
     .k_is_v = true, .n_expert = 8, .n_expert_used = 2, .n_ff_expert = 96},
};
enum { N_SHAPE = sizeof SHAPES / sizeof *SHAPES };

static const Shape *find(const char *name) {
    for (int i = 0; i < N_SHAPE; i++)
        if (!strcmp(SHAPES[i].name, name)) return &SHAPES[i];
    return NULL;
}

// What a file's name ends in, the matrices' type (with Q4_K_M, most of them), general.file_type.
static const struct {
    const char *name;
    int type, number;
} MIXES[] = {{"Q4_K_M", TYPE_Q4_K, 15}, {"Q8_0", TYPE_Q8_0, 7}, {"F16", TYPE_F16, 1}};
enum { N_MIX = sizeof MIXES / sizeof *MIXES };

bool synthetic_parse(const char *text, Synthetic *s, Err *e) {
    char shape[32];
    const char *colon = strchr(text, ':');
    snprintf(shape, sizeof shape, "%.*s", colon ? (int)(colon - text) : (int)strlen(text), text);
    *s = (Synthetic){.shape = find(shape)};
    if (!s->shape) return err_set(e, "shape '%s', expected one of bench synth --list, as 8b", text);
    while (colon && s->mix < N_MIX && strcasecmp(colon + 1, MIXES[s->mix].name)) s->mix++;
    return s->mix < N_MIX || err_set(e, "type '%s', expected Q4_K_M, Q8_0 or F16", colon + 1);
}

// ---- the list of tensors ----

// When a row of a batch is multiplied with a matrix.
typedef enum {
    ALWAYS,
    LATE,  // after the last layer that writes keys: only a row whose logits are wanted
    HEAD,  // only a row whose logits are wanted
    NEVER  // a table that is read by rows, or not at all
} When;

typedef struct {
    char name[64];
    int type, n_dims;
    uint64_t ne[3]; // fastest first
    When when;
    double share;   // of its slices that a row is multiplied with
} Part;

typedef struct {
    Part part[1200];
    int n;
    const Shape *shape;
    int mix;
    uint64_t bytes, n_param;
} Parts;

// layer -1: not of a layer. Where a row is not a multiple of a K-quant's block, the types that quantisers take then.
static Part *put(Parts *p, int layer, const char *name, int type, int n_col, int n_row, int n_slice) {
    Part *t = &p->part[p->n++];
    if (n_col % 256) type = type == TYPE_Q4_K ? TYPE_Q5_0 : type == TYPE_Q6_K ? TYPE_Q8_0 : type;
    *t = (Part){.type = type, .n_dims = n_slice > 1 ? 3 : n_row > 1 ? 2 : 1, .ne = {(uint64_t)n_col, (uint64_t)n_row, (uint64_t)n_slice}, .share = 1};
    if (layer < 0) snprintf(t->name, sizeof t->name, "%s", name);
    else snprintf(t->name, sizeof t->name, "blk.%d.%s", layer, name);
    if (layer >= p->shape->n_layer - p->shape->n_shared - 1) t->when = LATE; // the last one that writes keys; queries, too, of those after it
    p->bytes += (uint64_t)type_row_bytes((TensorType)type, n_col) * t->ne[1] * t->ne[2];
    p->n_param += t->ne[0] * t->ne[1] * t->ne[2];
    return t;
}
static void vector(Parts *p, int layer, const char *name, int n) { put(p, layer, name, TYPE_F32, n, 1, 1); }
// type: of a Q4_K_M file
static Part *stack(Parts *p, int layer, const char *name, int type, int n_col, int n_row, int n_slice) {
    return put(p, layer, name, p->mix ? MIXES[p->mix].type : type, n_col, n_row, n_slice);
}
static Part *matrix(Parts *p, int layer, const char *name, int type, int n_col, int n_row) { return stack(p, layer, name, type, n_col, n_row, 1); }

static bool is_global(const Shape *s, int l) { return !s->period || l % s->period == s->period - 1; }
static int head_dim(const Shape *s, int l) { return is_global(s, l) && s->head_dim_global ? s->head_dim_global : s->head_dim; }
static int head_kv(const Shape *s, int l) { return is_global(s, l) && s->n_head_kv_global ? s->n_head_kv_global : s->n_head_kv; }
static bool is_shared(const Shape *s, int l) { return l >= s->n_layer - s->n_shared; }
static int ff(const Shape *s, int l) { return is_shared(s, l) ? s->n_ff_shared : s->n_ff; }
static bool has_v(const Shape *s, int l) { return !(s->k_is_v && is_global(s, l)); }

// Which of n tensors get Q6_K for what matters most in a Q4_K_M file: the first and last eighth and every third between.
static int more(int i, int n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2 ? TYPE_Q6_K : TYPE_Q4_K; }

static void list_parts(Parts *p, const Synthetic *which) {
    const Shape *s = which->shape;
    const bool gemma = !strncmp(s->arch, "gemma", 5), gemma4 = !strcmp(s->arch, "gemma4"), qk_norm = gemma4 || !strcmp(s->arch, "gemma3");
    const int E = s->n_embd, P = s->n_embd_per_layer;
    *p = (Parts){.shape = s, .mix = which->mix};
    matrix(p, -1, "token_embd.weight", s->own_head ? TYPE_Q4_K : TYPE_Q6_K, E, s->n_vocab)->when = s->own_head ? NEVER : HEAD;
    if (s->own_head) matrix(p, -1, "output.weight", TYPE_Q6_K, E, s->n_vocab)->when = HEAD;
    vector(p, -1, "output_norm.weight", E);
    if (gemma4 || s->rope_factors) vector(p, -1, "rope_freqs.weight", (s->head_dim_global ? s->head_dim_global : s->head_dim) / 2);
    if (P) {
        matrix(p, -1, "per_layer_token_embd.weight", TYPE_Q6_K, P * s->n_layer, s->n_vocab)->when = NEVER;
        put(p, -1, "per_layer_model_proj.weight", TYPE_BF16, E, P * s->n_layer, 1);
        vector(p, -1, "per_layer_proj_norm.weight", P);
    }
    int n_v = 0, v = 0;
    for (int l = 0; l < s->n_layer; l++) n_v += has_v(s, l);
    for (int l = 0; l < s->n_layer; l++) {
        const int q = s->n_head * head_dim(s, l), kv = head_kv(s, l) * head_dim(s, l), better = more(l, s->n_layer);
        const When writes = is_shared(s, l) ? NEVER : ALWAYS;
        vector(p, l, "attn_norm.weight", E);
        matrix(p, l, "attn_q.weight", TYPE_Q4_K, E, q)->when = is_shared(s, l) ? LATE : ALWAYS;
        matrix(p, l, "attn_k.weight", TYPE_Q4_K, E, kv)->when = writes;
        if (has_v(s, l)) matrix(p, l, "attn_v.weight", more(v++, n_v), E, kv)->when = writes;
        matrix(p, l, "attn_output.weight", TYPE_Q4_K, q, E);
        if (qk_norm) vector(p, l, "attn_q_norm.weight", head_dim(s, l));
        if (qk_norm) vector(p, l, "attn_k_norm.weight", head_dim(s, l));
        vector(p, l, "ffn_norm.weight", E);
        matrix(p, l, "ffn_gate.weight", TYPE_Q4_K, E, ff(s, l));
        matrix(p, l, "ffn_up.weight", TYPE_Q4_K, E, ff(s, l));
        matrix(p, l, "ffn_down.weight", better, ff(s, l), E);
        if (gemma) vector(p, l, "post_attention_norm.weight", E);
        if (gemma) vector(p, l, "post_ffw_norm.weight", E);
        if (s->n_expert) {
            const double share = (double)s->n_expert_used / s->n_expert;
            put(p, l, "ffn_gate_inp.weight", TYPE_F32, E, s->n_expert, 1);
            vector(p, l, "ffn_gate_inp.scale", E);
            vector(p, l, "pre_ffw_norm_2.weight", E);
            vector(p, l, "post_ffw_norm_1.weight", E);
            vector(p, l, "post_ffw_norm_2.weight", E);
            stack(p, l, "ffn_gate_up_exps.weight", TYPE_Q4_K, E, 2 * s->n_ff_expert, s->n_expert)->share = share;
            stack(p, l, "ffn_down_exps.weight", better, s->n_ff_expert, E, s->n_expert)->share = share;
            vector(p, l, "ffn_down_exps.scale", s->n_expert);
        }
        if (P) {
            matrix(p, l, "inp_gate.weight", TYPE_Q4_K, E, P);
            matrix(p, l, "proj.weight", TYPE_Q4_K, P, E);
            vector(p, l, "post_norm.weight", E);
        }
        if (gemma4) vector(p, l, "layer_output_scale.weight", 1);
    }
}

static uint64_t part_bytes(const Part *t) { return (uint64_t)type_row_bytes((TensorType)t->type, (int64_t)t->ne[0]) * t->ne[1] * t->ne[2]; }

// The list of a model; kept until the next call.
static const Parts *parts_of(const Synthetic *s) {
    static Parts p;
    list_parts(&p, s);
    return &p;
}

Synthetic synthetic_at(int i) { return (Synthetic){i < N_SHAPE ? &SHAPES[i] : NULL, 0}; }

SyntheticCost synthetic_cost(const Synthetic *s) {
    const Parts *p = parts_of(s);
    SyntheticCost c = {.name = s->shape->name, .like = s->shape->like, .mix = MIXES[s->mix].name, .type = (TensorType)MIXES[s->mix].type,
                       .n_param = p->n_param, .bytes = p->bytes, .for_tests = !strncmp(s->shape->name, "tiny", 4)};
    for (const Part *t = p->part; t < p->part + p->n; t++) {
        c.n_tensor[t->type]++;
        if (t->when != NEVER) c.decode_bytes += t->share * (double)part_bytes(t);
        if (t->when == ALWAYS && t->n_dims > 1) c.prefill_flop += 2 * t->share * (double)(t->ne[0] * t->ne[1] * t->ne[2]);
    }
    return c;
}

// ---- metadata ----

static void set(GgufWriter *w, const Shape *s, const char *suffix, int value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->arch, suffix);
    gguf_set_u32(w, key, (uint32_t)value);
}
static void set_float(GgufWriter *w, const Shape *s, const char *suffix, float value) {
    char key[96];
    snprintf(key, sizeof key, "%s.%s", s->arch, suffix);
    gguf_set_f32(w, key, value);
}
static void set_each(GgufWriter *w, const Shape *s, const char *suffix, int (*of)(const Shape *, int)) {
    int32_t value[128];
    char key[96];
    for (int l = 0; l < s->n_layer; l++) value[l] = of(s, l);
    snprintf(key, sizeof key, "%s.%s", s->arch, suffix);
    gguf_set_array(w, key, GGUF_I32, value, (uint64_t)s->n_layer);
}

static void set_keys(GgufWriter *w, const Shape *s, int mix) {
    char text[96];
    const bool llama = !strcmp(s->arch, "llama");
    gguf_set_string(w, "general.architecture", s->arch, strlen(s->arch));
    snprintf(text, sizeof text, "random weights, %s", s->like);
    gguf_set_string(w, "general.name", text, strlen(text));
    gguf_set_string(w, "general.size_label", s->size, strlen(s->size));
    gguf_set_u32(w, "general.file_type", (uint32_t)MIXES[mix].number);
    set(w, s, "block_count", s->n_layer);
    set(w, s, "context_length", !strcmp(s->arch, "gemma2") ? 8192 : s->rope_base == 1e4f ? 4096 : s->n_embd == 1152 ? 32768 : 131072);
    set(w, s, "embedding_length", s->n_embd);
    set_each(w, s, "feed_forward_length", ff);
    set(w, s, "attention.head_count", s->n_head);
    set_each(w, s, "attention.head_count_kv", head_kv);
    set_float(w, s, "attention.layer_norm_rms_epsilon", llama ? 1e-5f : 1e-6f);
    set_float(w, s, "rope.freq_base", s->rope_base ? s->rope_base : !strcmp(s->arch, "gemma2") ? 1e4f : 1e6f);
    set(w, s, "attention.key_length", s->head_dim_global ? s->head_dim_global : s->head_dim);
    set(w, s, "attention.value_length", s->head_dim_global ? s->head_dim_global : s->head_dim);
    set(w, s, "rope.dimension_count", s->head_dim_global ? s->head_dim_global : s->head_dim);
    set(w, s, "vocab_size", s->n_vocab);
    if (s->window) set(w, s, "attention.sliding_window", s->window);
    if (!strcmp(s->arch, "gemma3")) set_float(w, s, "rope.freq_base_swa", 10000);
    if (!strcmp(s->arch, "gemma3") && s->window > 512) {
        gguf_set_string(w, "gemma3.rope.scaling.type", "linear", 6);
        set_float(w, s, "rope.scaling.factor", 8);
    }
    if (strcmp(s->arch, "gemma4")) return;
    bool local[128];
    for (int l = 0; l < s->n_layer; l++) local[l] = !is_global(s, l);
    gguf_set_array(w, "gemma4.attention.sliding_window_pattern", GGUF_BOOL, local, (uint64_t)s->n_layer);
    set(w, s, "attention.key_length_swa", s->head_dim);
    set(w, s, "rope.dimension_count_swa", s->head_dim);
    set_float(w, s, "rope.freq_base_swa", 10000);
    set(w, s, "attention.shared_kv_layers", s->n_shared);
    set(w, s, "embedding_length_per_layer_input", s->n_embd_per_layer);
    if (!s->n_expert) return;
    set(w, s, "expert_count", s->n_expert);
    set(w, s, "expert_used_count", s->n_expert_used);
    set(w, s, "expert_feed_forward_length", s->n_ff_expert);
}

// ---- weights ----

enum { UNIT = 16 * 9 * 5 * 7 * 11 * 17, PIECE = 8 * UNIT }; // bytes; a unit holds whole blocks of every type used

static uint64_t random_state = 1;
static uint64_t random_bits(void) { // splitmix64
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// Random codes under scales that give weights of about the size of a trained model's: near 0.02, none infinite.
static void fill_random(uint8_t *p, int type) {
    if (type == TYPE_F32 || type == TYPE_F16 || type == TYPE_BF16) {
        const size_t size = (size_t)type_info(type)->bytes;
        for (size_t i = 0; i < PIECE; i += size) type_info(type)->from_f32(&(float){(float)(int32_t)random_bits() * 0x1p-31f * 0.035f}, p + i, 1, NULL);
        return;
    }
    for (size_t i = 0; i < PIECE; i += 8) memcpy(p + i, &(uint64_t){random_bits()}, 8);
    const F16 d = f16_from_f32(type == TYPE_Q4_K ? 8e-5f : type == TYPE_Q6_K ? 2e-5f : type == TYPE_Q5_0 ? 2e-3f : 3e-4f), dmin = f16_from_f32(6e-4f);
    const size_t block = (size_t)type_info(type)->bytes, at = type == TYPE_Q6_K ? offsetof(BlockQ6_K, d) : 0; // the others begin with d
    for (size_t i = 0; i < PIECE; i += block) {
        memcpy(p + i + at, &d, 2);
        if (type == TYPE_Q4_K) memcpy(p + i + offsetof(BlockQ4_K, dmin), &dmin, 2);
    }
}

// A vector: norms, scales and factors that change nothing; of gemma4's rotation only the first quarter of the pairs turns.
static bool write_vector(GgufWriter *w, const Shape *s, const Part *t, Err *e) {
    const bool rope = !strcmp(t->name, "rope_freqs.weight") && s->head_dim_global;
    for (uint64_t i = 0; i < t->ne[0]; i++)
        if (!gguf_writer_data(w, &(float){rope && i >= t->ne[0] / 4 ? 1e30f : 1}, sizeof(float), e)) return false;
    return true;
}

// Every matrix is cut out of one random piece of its type, each from another place on, again and again.
static bool write_matrix(GgufWriter *w, const uint8_t *piece, size_t from, uint64_t bytes, Err *e) {
    for (; bytes; from = 0) {
        const size_t n = bytes < PIECE - from ? (size_t)bytes : PIECE - from;
        if (!gguf_writer_data(w, piece + from, n, e)) return false;
        bytes -= n;
    }
    return true;
}

bool synthetic_write(const Synthetic *s, const char *path, bool header_only, Err *e) {
    const Parts *p = parts_of(s);
    uint8_t *piece[TYPE_COUNT] = {0};
    char folder[4096];
    struct statvfs disk;
    snprintf(folder, sizeof folder, "%.*s", strrchr(path, '/') ? (int)(strrchr(path, '/') - path + 1) : 1, strrchr(path, '/') ? path : ".");
    if (!header_only && !statvfs(folder, &disk) && (uint64_t)disk.f_bavail * disk.f_frsize < p->bytes + (1 << 20))
        return err_set(e, "%s: needs %.2f GB, the disk has %.2f GB left", path, (double)p->bytes * 1e-9, (double)disk.f_bavail * (double)disk.f_frsize * 1e-9);
    GgufWriter *w;
    if (!gguf_writer_open(&w, path, e)) return false;
    set_keys(w, s->shape, s->mix);
    for (int i = 0; i < p->n; i++) gguf_add_tensor(w, p->part[i].name, p->part[i].type, p->part[i].n_dims, p->part[i].ne);
    Progress bar;
    progress_start(&bar, "writing random weights");
    bool ok = true;
    double done = 0;
    for (int i = 0; ok && i < p->n; i++) {
        const Part *t = &p->part[i];
        if (t->n_dims == 1) ok = write_vector(w, s->shape, t, e);
        else if (header_only) ok = gguf_writer_hole(w, part_bytes(t), e);
        else {
            if (!piece[t->type] && (piece[t->type] = malloc(PIECE))) fill_random(piece[t->type], t->type);
            ok = piece[t->type] ? write_matrix(w, piece[t->type], (size_t)(i % 8) * UNIT, part_bytes(t), e) : err_set(e, "no memory for the random weights");
        }
        ok = ok && gguf_writer_next(w, e);
        progress_step(&bar, done += (double)part_bytes(t), (double)p->bytes);
    }
    progress_end(&bar);
    for (int i = 0; i < TYPE_COUNT; i++) free(piece[i]);
    if (ok) return gguf_writer_close(w, e);
    gguf_writer_abort(w);
    return false;
}
