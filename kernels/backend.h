// backend.h: the op table. Everything above it is device-blind, everything below it is model-blind. Valid C11 and C++.
//
// Protocol: backend_open_*; reserve once (the only allocation of scratch); alloc buffers; call ops in order; sync once per
// forward pass; free; close. Ops return nothing: a backend keeps its *first* error and sync reports it. Ops never allocate.
// All activations are float32, row-major: one row per token. n_rows counts tokens unless said otherwise. Outputs never
// overlap inputs unless an op says "in place allowed". Weights are Tensors (host: t->host, CUDA: t->dev).
// The meaning of each op is its <op>_ref.c.
#ifndef BACKEND_H
#define BACKEND_H

#include "quant.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef enum { ACT_SILU = 1, ACT_GELU_TANH } Activation;
typedef enum { ROPE_ADJACENT = 1, ROPE_HALVES } RopePairing; // pairs (2i, 2i+1), or (i, i + n_rot/2)

// Rotation of one layer type: angle of pair i at position p = p * freq[i]; cos and sin are multiplied by magnitude.
typedef struct {
    RopePairing pairing;
    int n_rot;          // rotated width, even, <= head_dim; the rest passes through
    float magnitude;    // 1 except YaRN
    const double *freq; // [n_rot/2] radians per position, all scaling already inside; host memory
} Rope;

// Keys and values of one layer. Position p lives in cell p % n_cell: a sliding-window layer is a ring. Elements are halves, on ref
// floats; or Q8_0 (head_dim a multiple of 32): first the codes of all, a byte each, then the scales of all groups of 32, halves.
typedef struct {
    void *k, *v; // [n_head_kv][n_cell][head_dim]
    int n_cell, n_head_kv, head_dim;
    TensorType type_k, type_v; // 0: the backend's kv_type
} KvLayer;

// Where the scales of Q8_0 begin.
static inline void *kv_scales(const KvLayer *kv, void *codes) { return (char *)codes + (int64_t)kv->n_head_kv * kv->n_cell * kv->head_dim; }

// One matrix of several that are multiplied with the same rows x [n_rows][w->n_col].
typedef struct {
    float *y;               // [n_rows][w->n_row]
    const Tensor *w, *bias; // bias NULL: none
} Matmul;

typedef struct {
    float *y;                          // [n_rows][n_ff]: act(gate x) * (up x), and their biases
    const Tensor *gate, *up;           // [n_ff][n_col] each; up NULL: `factor` in the place of up x
    const Tensor *gate_bias, *up_bias; // NULL: none
    const float *factor;               // n_rows rows of n_ff floats, factor_stride floats apart
    int factor_stride;
    const float *x;                    // [n_rows][n_col]
    float *scratch;                    // [n_rows][n_ff], left in any state
    int n_rows;
    Activation act;
} GatedArgs;

typedef struct {
    float *y;          // [n_rows][n_head][head_dim]
    const float *q;    // [n_rows][n_head][head_dim], rotated
    const KvLayer *kv; // holds positions up to pos + n_rows - 1
    int n_rows, pos;   // position of row 0
    int n_head;        // query heads; head h reads KV head h / (n_head / n_head_kv)
    int window;        // visible keys per query including itself; 0 = all
    float scale;       // multiplies q.k
    float softcap;     // c tanh(score/c) before the mask; 0 = none
} AttentionArgs;

typedef struct {
    float *y;                        // [n_rows][n_embd]: sum over the chosen experts of weight * down(act(gate x) * up x)
    const Tensor *gate, *up, *down;  // n_slice experts each: [n_ff][n_embd], [n_ff][n_embd], [n_embd][n_ff]
    const float *x;                  // [n_rows][n_embd]
    const int *expert;               // [n_rows][n_used]
    const float *weight;             // [n_rows][n_used]
    // [number of experts] which slice of gate, up and down each is; -1: it is computed elsewhere, and adds nothing here. In this
    // backend's memory; NULL: expert e is slice e. A row none of whose experts is here becomes 0.
    const int *slot;
    int n_rows, n_used;
    Activation act;
} MoeArgs;

typedef struct {
    float *x;           // [n_rows][n_col], in place
    const float *dir;   // [n_col] unit vector, in this backend's memory
    int n_rows, n_col;
    float amount;       // how much of the component is taken away, 1 = all
    float keep;         // the component that is left when all is taken; 0: x ends at right angles to dir
    bool one_sided;     // touch only rows whose component is above keep
} ProjectArgs;

enum { MAX_TOP = 128 };
enum { BORROW_PIECE = 8 << 20 }; // bytes of a matrix that an op borrows at a time: more would only wait for each other (Backend.borrow)

typedef struct {
    int id;
    float logit;
} Likely;

typedef struct {
    Likely *y;           // [n_rows][k] in descending order, of equals the lower id first
    const float *logits; // [n_rows][n_vocab]; NaN counts as -infinity, +infinity as FLT_MAX
    const float *bias;   // [n_vocab] added to every row: 0, or -infinity for an id that is not wanted; NULL = none
    int n_rows, n_vocab;
    int k;               // 1 to MAX_TOP, not above n_vocab
} TopArgs;

// What reserve prepares for: the largest of everything that will be asked.
typedef struct {
    int n_rows;            // tokens per call
    int n_col;             // inputs of any matrix
    int n_ctx, n_head, head_dim;
    int n_embd, n_ff_expert, n_expert, n_expert_used; // experts: 0 when there are none
    int n_vocab;
    uint64_t ring_bytes;   // that are borrowed at a time: twice what one op needs, so that the next can be copied meanwhile; 0: none
} Limits;

typedef struct Backend Backend;
struct Backend {
    const char *name; // "ref", "cpu", "cuda"
    char detail[96];  // for people: "avx512vnni, 2 threads"
    TensorType kv_type; // of K and V, unless asked for another: F16; F32 on ref
    bool on_host;     // buffers can be read and written by the caller directly
    uint64_t free_bytes; // of a device's memory, after open or reserve; 0: host
    uint64_t ring_bytes; // what borrow has room for, after reserve; 0: Limits asked for none, or there was no memory for it
    uint64_t pinned_bytes; // of host memory, that is pinned
    int batch;        // tokens that are computed together, of which an op may see a part; 0: an op sees all. See gemm.h
    Err first_error;  // text[0] == 0: none
    Backend *host;    // runs the parts of a model that this device has no room for (Layer.attn_on_host ...); NULL: there are none
    void *priv;

    // memory
    MUST_CHECK bool (*reserve)(Backend *b, const Limits *limits, Err *e);
    void *(*alloc)(Backend *b, size_t bytes); // zeroed; NULL when there is no memory
    void (*free)(Backend *b, void *p);
    void (*upload)(Backend *b, void *dst, const void *src_host, size_t bytes); // src has been read on return
    void (*download)(Backend *b, void *dst_host, const void *src, size_t bytes); // complete on return
    // Brings a weight to where the ops read it and sets t->dev; undone by free(t->dev). NULL: ops read t->host. A table that
    // only embed reads may stay where it is.
    MUST_CHECK bool (*load)(Backend *b, Tensor *t, Err *e);
    // For prompts: of each of n_t weights in host memory the slices slice[0 .. n - 1], or the first of them that fit (NULL: 0 .. n - 1, all or none), in
    // this backend's memory; view[i]: t[i] with dev set and those slices. They are copied while this backend computes what was recorded before, and
    // are there for ops recorded until the next borrow or sync; till then the views have to stay where they are. Returns how many slices; 0: not one
    // fits into ring_bytes. NULL: ops read t->host. A vector or matrix that was not loaded, an op borrows by itself, a large matrix piece by piece.
    int (*borrow)(Backend *b, Tensor *view, const Tensor *const *t, int n_t, const int *slice, int n);
    // Host memory that borrow shall copy from where it is, without buffers between; n bytes that may be read and stay where they are until unpin,
    // which is of all that is pinned. Whole pages, none of them twice. False: it cannot be, and is no error of an op. NULL: ops read t->host.
    MUST_CHECK bool (*pin)(Backend *b, const void *p, size_t bytes, Err *e);
    void (*unpin)(Backend *b); // waits for what is copied
    // Weights that change places between tokens (engine/resident.h): slice `slice` of `from`, in host memory, is to become slice `to_slice` of `to`, which was
    // loaded and is like it. It is copied while this backend computes, and while the host waits for what it will be lent. No op that was recorded may read the
    // old slice any more, none the new one before settle. NULL: ops read t->host. It needs some of ring_bytes.
    void (*bring)(Backend *b, const Tensor *to, int to_slice, const Tensor *from, int slice);
    void (*settle)(Backend *b); // ops recorded from now on find all that was to be brought
    MUST_CHECK bool (*sync)(Backend *b, Err *e); // waits; false with the first error since open
    void (*wake)(Backend *b); // work will come soon, and should not find threads that sleep; NULL: nobody sleeps
    void (*close)(Backend *b);

    // y[r] = scale * table[ids[r]]; ids on the host, checked by the caller
    void (*embed)(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale);
    // y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * w; w NULL = no gain. In place allowed. (RMSNorm, arXiv 1910.07467)
    // Head norms: n_rows = tokens * heads, n_col = head_dim.
    void (*norm)(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps);
    // y[r][o] = sum_i w[o][i] x[r][i] + bias[o]; bias NULL = none
    void (*matmul)(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows);
    // the same for n matrices, whose outputs do not overlap
    void (*matmuls)(Backend *b, const Matmul *m, int n, const float *x, int n_rows);
    // In place: rotate x [n_rows][n_head][head_dim]; row r is at position pos + r. (RoFormer, arXiv 2104.09864)
    void (*rope)(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos);
    // k, v [n_rows][n_head_kv][head_dim] into the cells of positions pos .. pos + n_rows - 1
    void (*kv_write)(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos);
    // the cells of positions pos .. pos + n - 1 of one cache into those of another, of the same heads and types
    void (*kv_copy)(Backend *b, const KvLayer *to, const KvLayer *from, int n, int pos);
    void (*attention)(Backend *b, const AttentionArgs *a);
    // y[i] = act(gate[i]) * up[i], n elements. In place on gate or up allowed.
    void (*gated)(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act);
    void (*gated_matmul)(Backend *b, const GatedArgs *a); // products and activation in one
    // softmax over all n_expert logits of a row, the n_used largest (lower index first on ties) in descending order,
    // renormalised by max(their sum, 2^-14), times scale[expert] (scale: vector of n_expert, NULL = 1)
    void (*moe_route)(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used);
    void (*moe_ffn)(Backend *b, const MoeArgs *a);
    // Experts that the host computes while this backend does what follows; NULL: it cannot. gate, up, down and slot are in the memory of
    // b->host, the rest of `a` in this backend's; a->y is not used. Nothing else may be lent before it is collected.
    void (*moe_lend)(Backend *b, const MoeArgs *a);
    void (*moe_collect)(Backend *b, float *y, int n_rows, int n_embd, bool add); // y = (add: y +=) what the host's moe_ffn came to
    void (*on_lent)(void *ctx, const MoeArgs *a); // when set, called when the host has got what was lent: x, expert and weight are in its memory
    void *on_lent_ctx;
    void (*add)(Backend *b, float *x, const float *y, int64_t n);     // x[i] += y[i]
    void (*scale)(Backend *b, float *x, float s, int64_t n);          // x[i] *= s
    void (*softcap)(Backend *b, float *x, float cap, int64_t n);      // x[i] = cap * tanh(x[i] / cap)
    // x[r] -= amount * (dir . x[r] - keep) * dir (Directional ablation, arXiv 2406.11717, 2.4; with keep: arXiv 2411.09003)
    void (*project_out)(Backend *b, const ProjectArgs *a);
    // x[r] += amount * dir, dir [n_col] in this backend's memory (Activation addition, arXiv 2308.10248)
    void (*add_dir)(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount);
    // dst[r] = src[r] for n_rows rows of n_col floats, row starts dst_stride and src_stride floats apart
    void (*copy_rows)(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col);
    // the k largest of each row of logits, with their ids
    void (*top)(Backend *b, const TopArgs *a);

    // Used by Gemma 3n only (engine/altup.c).
    void (*mul_cols)(Backend *b, float *x, const Tensor *w, int n_rows); // x[r][i] *= w[i]
    // y[j][r] += sum_i coef[r][j * n_in + i] x[i][r] over streams: y [n_out][n_rows][n_col], x [n_in][n_rows][n_col]
    void (*mix_streams)(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col);
    // u[r] *= |target[r]| / |u[r]| (Euclidean); a zero row stays zero
    void (*match_length)(Backend *b, float *u, const float *target, int n_rows, int n_col);
    // x[r][i] = max(0, x[r][i] - (mean + multiplier * sd)) of row r, sd with n_col - 1
    void (*sparsify)(Backend *b, float *x, float multiplier, int n_rows, int n_col);
};

typedef enum { ISA_AUTO, ISA_PORTABLE, ISA_AVX2, ISA_AVXVNNI, ISA_AVX512VNNI, ISA_AMX } Isa;
int isa_by_name(const char *name); // "auto", "portable", "avx2", "avxvnni", "avx512vnni", "amx"; -1 unknown
const char *isa_name(Isa isa);
Isa isa_best(void);                // the highest that CPUID and XGETBV allow here; never amx, which nobody has measured
bool isa_works(Isa isa);           // can run on this machine; amx: tried in a child process

// threads 0: one per CPU this process may use.
MUST_CHECK bool backend_open_ref(Backend *b, Err *e);
MUST_CHECK bool backend_open_cpu(Backend *b, int threads, Isa isa, Err *e);
MUST_CHECK bool backend_open_cuda(Backend *b, int device, Err *e); // cuda_none.c: always an error
int backend_cuda_devices(void);                                    // 0 without CUDA
int64_t cuda_launches(const Backend *b);                           // kernels that a cuda backend has launched since it was opened
void cuda_wait_at_most(Backend *b, int ms);                        // device for host and host for device, of what is lent (10,000 and 120,000)
bool cuda_supports(TensorType type);                               // load would take a tensor of this type; false without CUDA
static inline void backend_close(Backend *b) {
    if (b && b->close) b->close(b);
}
// Keeps the first error only. For op implementations.
PRINTF_LIKE(2, 3) static inline void backend_fail(Backend *b, const char *format, ...) {
    if (b->first_error.text[0]) return;
    va_list args;
    va_start(args, format);
    vsnprintf(b->first_error.text, sizeof b->first_error.text, format, args);
    va_end(args);
}

#ifdef __cplusplus
}
#endif
#endif
