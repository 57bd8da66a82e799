// cuda_common.cuh: what the files of the cuda backend share: its private part, launches, and sums over a warp or a block.
//
// The op table only records (cuda_queue.cu); what was recorded runs when somebody wants to see a result, neighbours together
// (cuda_fuse.cu), by the functions <op>_cuda. One non-blocking stream does everything, in order. These functions only launch:
// they never allocate or wait, and read what changes from token to token - positions, ids - from device memory, so that a
// launch can be repeated as part of a CUDA graph. Buffers that are read in pieces of 16 bytes start at a multiple of 16: alloc
// gives 256, and rows keep it when n_col is a multiple of 4.
#ifndef CUDA_COMMON_CUH
#define CUDA_COMMON_CUH

#include "cuda_port.cuh"
#include "backend.h"

enum {
    WARP = 32,
    BLOCK = 256,              // threads of a block where nothing speaks for another number
    STAGE_BYTES = 4 << 20,    // of each pinned buffer between host and device
    N_STAGE = 2,              // one is filled while the other is copied
    MAX_MATVEC_ROWS = 8,      // rows of x up to which the weights are streamed once by matvec; above, tiles
    EXPERT_TILE = 32,         // rows of x of one expert that are multiplied together
    MAX_EXPERTS = WARP * WARP, // that moe_route can choose from
    TOP_SLICE = 4096,         // logits of which a block chooses the likeliest
    MAX_OPS = 4096,           // that are recorded before they run
    ARG_WORDS = 1 << 16,      // of positions, ids and embedding rows that recorded ops may have
    N_REPLAY = 8              // CUDA graphs that are kept
};
static const unsigned ALL_LANES = 0xffffffffu;

// Rows of activations rounded to 8 bits, in groups of 32: x[i] ~ d * q[i], d = max |x| / 127 over half a group (3/4 of the
// noise of a d for all 32). The codes of the two halves lie apart, so that neighbouring lanes load neighbouring 16 bytes.
typedef struct {
    uint4 *low, *high; // [n_rows][n_col / 32] codes of elements 0..15, 16..31
    float4 *scale;     // [n_rows][n_col / 32] d of the low half, of the high; sum of d * q over the low half, the high
} Act8;

// Some of the slots of one expert: order[first .. first + n - 1], n <= EXPERT_TILE; n = 0: none are left.
typedef struct {
    int expert, first, n;
} ExpertTile;

// Which expert each slot of an op wants, and which slice of the weights that is. Both on the device.
typedef struct {
    const int *expert; // [n_slot]
    const int *slice;  // [number of experts], -1: not here; NULL: expert e is slice e (MoeArgs.slot)
} Chosen;

typedef unsigned long long TopKey; // a logit with its id (top_cuda.cu)

struct Op; // cuda_queue.cuh
struct Replay;
struct Pin; // cuda_pin.cu
struct Pool; // pool.h
typedef struct Ring Ring; // cuda_stream.cu

typedef struct {
    int n_sm;
    bool has_mma;                 // tensor cores with 8-bit products of 16 x 8 x 32: sm_80 and later
    cudaStream_t stream;
    Limits limits;
    char *stage[N_STAGE];         // pinned host memory
    cudaEvent_t staged[N_STAGE];  // its last copy is done
    int turn;
    char *raw;                    // [STAGE_BYTES] device: blocks as in the file, on their way into planes
    struct Pool *pool;            // fill.h: threads that copy what is in host memory into pinned memory

    // What is recorded and has not run.
    struct Op *op;                // [MAX_OPS]
    int n_op;
    int *arg, *arg_dev;           // [ARG_WORDS] positions, ids, rows; the same on the device when the ops run
    int n_arg, pos_arg;           // pos_arg: the last position that was put there, or -1
    bool may_repeat;              // few rows, as in decoding: worth a graph
    struct Replay *replay;        // [N_REPLAY]
    bool borrowed;                // ops may read the ring: not worth a graph, which would find other weights there
    uint64_t n_flush, n_launch;   // kernels, those of graphs included

    // While ops run: x8 of a product that follows at once may be there already.
    const float *rounded;         // what was rounded; NULL: nothing
    int64_t n_rounded;            // elements of it
    Act8 rounded8;

    // Scratch, made by reserve.
    void *scratch;
    Act8 act8;           // [n_rows][n_col]
    Act8 gated8;         // [n_col]: made by a product that reads act8
    float *part;         // [n_part][head_dim + 2]: unfinished attention outputs, then their maximum and sum
    int64_t n_part;
    TopKey *top_key[2];  // [n_vocab / TOP_SLICE][MAX_TOP] the likeliest of each slice; from one launch to the next
    // Experts; a slot is one (row, chosen expert) pair: row * n_used + u.
    Act8 hidden_act8;    // [n_slot][n_ff_expert]
    float *gate, *up;    // [n_slot][n_ff_expert]
    float *down;         // [n_slot][n_embd]
    int *order;          // [n_slot] slots sorted by expert
    ExpertTile *tile;    // [cuda_expert_tile_count(n_slot, n_expert)]
    struct Gemm *gemm;   // cuBLAS and its scratch (gemm_cuda.cu); NULL: not found, or never enough rows
    struct Handoff *handoff; // what is lent to the host (handoff_cuda.cu); NULL: no host, or no experts
    int64_t n_lent;      // numbers that are lent and not collected, as recorded
    int wait_ms, patience_ms; // the device waits so long for the host, the host for the device
    Ring *ring;          // what is borrowed (cuda_stream.cu); NULL: nothing can be
    struct Pin *pin;     // [n_pin] host memory that is copied from where it is, in the order of its addresses
    int n_pin;
} Cuda;

// Of Q8_0 keys and values; else NULL.
static inline __half *cuda_key_scales(const KvLayer *kv) { return kv->type_k == TYPE_Q8_0 ? (__half *)kv_scales(kv, kv->k) : NULL; }
static inline __half *cuda_value_scales(const KvLayer *kv) { return kv->type_v == TYPE_Q8_0 ? (__half *)kv_scales(kv, kv->v) : NULL; }

static inline Cuda *cuda_of(const Backend *b) { return (Cuda *)b->priv; }

static inline bool cuda_check(Backend *b, const char *what, cudaError_t e) {
    if (e != cudaSuccess) backend_fail(b, "cuda backend: %s: %s", what, cudaGetErrorString(e));
    return e == cudaSuccess;
}
// LAUNCH(b, kernel, grid, block, shared bytes, arguments ...); a kernel with commas in its name goes in parentheses.
#define LAUNCH(b, kernel, grid, block, shared, ...) \
    cuda_launched(b, #kernel, CU_LAUNCH(kernel, grid, block, shared, cuda_of(b)->stream, __VA_ARGS__))
static inline bool cuda_launched(Backend *b, const char *kernel, cudaError_t e) {
    if (*kernel == '(') kernel++;
    cuda_of(b)->n_launch++;
    if (e != cudaSuccess) backend_fail(b, "cuda backend: launching %.*s: %s", (int)strcspn(kernel, "<"), kernel, cudaGetErrorString(e));
    return e == cudaSuccess;
}

static inline int64_t blocks_for(int64_t n, int64_t per_block) { return (n + per_block - 1) / per_block; }
// Blocks along x for n elements, BLOCK threads each.
static inline unsigned grid_for(int64_t n) { return (unsigned)blocks_for(n, BLOCK); }

// The pinned buffer whose turn it is [STAGE_BYTES], when its last copy is done; NULL: failed. Then: to dst, in stream order.
char *cuda_stage(Backend *b);
bool cuda_send_stage(Backend *b, void *dst, size_t bytes);
// bytes <= STAGE_BYTES from host to device through it, in the order of the stream.
bool cuda_copy_in(Backend *b, void *dst, const void *src, size_t bytes);
// A weight of one row of floats on the device; NULL for NULL. A tensor that was not loaded is an error.
const float *cuda_vector(Backend *b, const Tensor *t);
// y = W x for n matrices W of one x [n_rows][n_col], in as few launches as their types allow.
void cuda_matmul(Backend *b, const Matmul *p, int n, const float *x, int n_rows);
// y = act(gate x) * (up x) for one row of x; also to up_y what up x is, and to c->gated8, if `round`, what y is. up NULL: up_x in
// the place of up x. False: not of two such matrices, nothing was done.
bool cuda_gated_matmul(Backend *b, float *y, float *up_y, const Tensor *gate, const Tensor *up, const float *up_x, const float *x, Activation act,
                       bool round);
// The same for the chosen experts: slot s is its expert and row s / share of x; y [n_slot][n_row], y8 its rounding. Nothing for slots whose
// expert is not here.
bool cuda_expert_gated(Backend *b, float *y, Act8 y8, bool round, const Tensor *gate, const Tensor *up, const float *x, Act8 x8, Chosen chosen,
                       int n_slot, int share, Activation act);
// y rows of matmul for a stack of experts: slot s computes W[its expert] x[s / share] -> y[s]
void cuda_expert_matvec(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, Chosen chosen, int n_slot, int share);
// The same for many slots, sorted into the n_tile tiles of c->order and c->tile.
void cuda_expert_tiles(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, int n_tile, int share);
// No more tiles than this can come of n_slot slots: full ones, and one for the rest of every expert.
static inline int64_t cuda_expert_tile_count(int64_t n_slot, int64_t n_expert) {
    return n_slot / EXPERT_TILE + (n_expert < n_slot ? n_expert : n_slot);
}
// x [n_rows][n_col] -> out
void cuda_round_act8(Backend *b, Act8 out, const float *x, int n_rows, int n_col);
// x [n_rows][w's columns] rounded, in c->rounded8: made by the op before, or now, in c->act8.
Act8 cuda_act8(Backend *b, const float *x, int n_rows, int n_col);
static inline void cuda_has_rounded(Cuda *c, const float *x, int64_t n, Act8 x8) { c->rounded = x, c->n_rounded = n, c->rounded8 = x8; }
// A product with this many rows of x reads them rounded.
bool cuda_rounds(const Backend *b, const Tensor *w, int n_rows);

// Experts that the host computes, in the order of calls: open in reserve; lend and collect are launched, serve is the host's part of one that
// was lent and launched: it waits for it. check: after the stream was waited for, whether all has come.
bool cuda_handoff_open(Backend *b, Err *e);
void cuda_serve(Backend *b, const MoeArgs *lent, int batch);
void cuda_handoff_check(Backend *b);
void cuda_handoff_close(Cuda *c);

// What lies between two matrices of a layer. Steps that are not there: NULL, false, 1.
typedef struct {
    const float *gain; // NULL: 1
    float eps;         // 0: no norm
} Gain;
typedef struct {
    const float *dir;      // NULL: none; the rest as in ProjectArgs
    float amount, keep;
    bool one_sided;
} Projection;
typedef struct {
    float *x, *out;        // [n_rows][n_col]: x += out, or out NULL
    Gain norm_x, norm_out; // first x = norm(x), out = norm(out); not norm_x alone
    Projection from_out;   // then of out
    float scale;           // after the addition x *= scale
    Projection from_x;     // then of x
    float *y;              // y = norm_y(x) * y_scale; NULL: none
    Gain norm_y;
    float y_scale;
    bool round;            // y8 = y, or x if there is no y; n_col a multiple of 32
    Act8 y8;
    int n_col;
} Between;
void cuda_between(Backend *b, const Between *a, int n_rows);
static inline bool cuda_fits_between(int n_col) { return n_col % 4 == 0 && n_col <= 11264; } // 44 KiB of shared memory

// Small ops on the same n elements, done one after the other by a thread for each: x += y, x *= s, x = y, x[i] *= y[i % n_col], soft cap.
typedef enum { STEP_ADD, STEP_SCALE, STEP_COPY, STEP_MUL_COLS, STEP_SOFTCAP } StepKind;
typedef struct {
    StepKind kind;
    int n_col;
    float *x;
    const float *y;
    float s;
} Step;
enum { MAX_STEPS = 12 };
typedef struct {
    Step step[MAX_STEPS];
    int n;
} Steps;
void cuda_steps(Backend *b, const Steps *a, int64_t n);

// Norms of heads (eps 0: none), rotation, and the KV cache, in one go. k NULL: no keys and values.
typedef struct {
    float *q, *k, *v;      // [n_rows][n_head or kv.n_head_kv][head_dim], in place
    const float *gain[3];  // of q, k, v
    float eps[3];
    Rope rope;             // freq on the host
    KvLayer kv;
    __half *k_scale, *v_scale; // of kv, if it is Q8_0
    int n_rows, n_head, head_dim;
    const int *pos;        // on the device
} Heads;
void cuda_heads(Backend *b, const Heads *h);

// cuBLAS, in the order of calls: open before scratch is carved, bytes of it, start with it. Where it is not there c->gemm is NULL.
void cuda_gemm_open(Cuda *c);
uint64_t cuda_gemm_bytes(const Cuda *c);
void cuda_gemm_start(Cuda *c, char *scratch);
void cuda_gemm_close(Cuda *c);
// A product is for it; then: the product. x_is_there: it is the x of the product before.
bool cuda_gemm_takes(const Cuda *c, const Tensor *w, int n_rows);
void cuda_gemm_matmul(Backend *b, const Matmul *p, const float *x, int n_rows, bool x_is_there);
// Its heart, c->gemm being there: y [n_x], rows stride apart, = W [n_row][n_col] x [n_x][n_col], float16. False: failed.
bool cuda_gemm(Backend *b, float *y, int stride, const void *w, const void *x, int n_row, int n_x, int n_col);

// For op borrow, with c->limits.ring_bytes; c->ring NULL after open: no memory for it.
void cuda_ring_open(Backend *b);
void cuda_ring_close(Cuda *c);
void cuda_ring_launched(Backend *b, const struct Op *op, int n);

// Backend.pin and unpin; are these bytes pinned?
bool cuda_pin(Backend *b, const void *p, size_t bytes, Err *e);
void cuda_unpin(Backend *b);
bool cuda_is_pinned(const Backend *b, const void *p, size_t bytes);
int cuda_borrow(Backend *b, Tensor *view, const Tensor *const *t, int n_t, const int *slice, int n);
// In the place of what was not loaded what was borrowed, together; bias NULL, and what they point to: none. False: failed.
bool cuda_here(Backend *b, const Tensor **w, const Tensor **bias);
// A matrix that was not loaded and is larger than BORROW_PIECE or half of the ring comes in pieces of so many rows, for n_rows rows of x; 0: it is not so.
int cuda_rows_here(const Backend *b, const Tensor *w, int n_rows);
// Rows first .. first + n - 1 of it, and of its bias. Returns room for [n_rows][n] outputs, as long as the rows are there; NULL: failed.
float *cuda_borrow_rows(Backend *b, const Tensor **w, const Tensor **bias, int first, int n, int n_rows);
void cuda_bring(Backend *b, const Tensor *to, int to_slice, const Tensor *from, int slice);
void cuda_settle(Backend *b);
// A little of what is to be brought, by the calling thread. False: there is nothing, or it would have to wait.
bool cuda_bring_some(Backend *b);
static inline bool cuda_wants_act8(const Tensor *w) { return type_info(w->type)->block > 1 && !w->precise; }

// ---- device ----

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (int step = WARP / 2; step; step /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, step));
    return x;
}

// Sum over a block of THREADS threads, the same in every thread. slots [THREADS / WARP] in shared memory; every thread calls.
template <int THREADS = BLOCK> __device__ __forceinline__ float block_sum(float x, float *slots) {
    const int tid = threadIdx.x;
    x = warp_sum(x);
    __syncthreads(); // slots may still be read from the sum before
    if (tid % WARP == 0) slots[tid / WARP] = x;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < THREADS / WARP; i++) sum += slots[i];
    return sum;
}

// The slice of a slot's expert; -1: it is not here.
__device__ __forceinline__ int slice_for(const Chosen &c, int slot) {
    const int expert = c.expert[slot];
    return c.slice ? c.slice[expert] : expert;
}

// Four neighbours v of a row, rounded into out; eight neighbouring lanes make a group of 32, part 0..7 of it. Lanes that are
// beyond the end take part, not valid.
__device__ __forceinline__ void round_quad(const Act8 &out, size_t group, int part, float4 v, bool valid) {
    float largest = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
    for (int step = 2; step; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(ALL_LANES, largest, step));
    const bool zero = largest < 0x1p-100f; // 127 / largest must not overflow
    const float d = zero ? 0 : largest / 127, inverse = zero ? 0 : 127 / largest;
    const int a = __float2int_rn(v.x * inverse), b = __float2int_rn(v.y * inverse);
    const int c = __float2int_rn(v.z * inverse), e = __float2int_rn(v.w * inverse);
    int sum = a + b + c + e;
    sum += __shfl_xor_sync(ALL_LANES, sum, 1);
    sum += __shfl_xor_sync(ALL_LANES, sum, 2); // of this half
    const int other = __shfl_xor_sync(ALL_LANES, sum, 4);
    const float other_d = __shfl_xor_sync(ALL_LANES, d, 4);
    if (!valid) return;
    const unsigned codes = (unsigned)(a & 0xff) | (unsigned)(b & 0xff) << 8 | (unsigned)(c & 0xff) << 16 | (unsigned)(e & 0xff) << 24;
    ((unsigned *)(part < 4 ? out.low : out.high))[group * 4 + part % 4] = codes;
    if (part == 0) out.scale[group] = make_float4(d, other_d, d * (float)sum, other_d * (float)other);
}

// Element `at` of keys or values becomes x: a half, or, where there are scales, a code of Q8_0 (quantize_q8_0). A warp writes 32
// neighbours, of one group then; lanes that have none (of halves) are not valid.
__device__ __forceinline__ void write_element(void *cells, __half *scales, size_t at, float x, bool valid) {
    if (!scales) {
        if (valid) ((__half *)cells)[at] = __float2half_rn(x);
        return;
    }
    const float d = warp_max(fabsf(x)) / 127;
    ((int8_t *)cells)[at] = (int8_t)__float2int_rn(x * (d > 0 ? 1 / d : 0));
    if (at % WARP == 0) scales[at / WARP] = __float2half_rn(d);
}

// Eight neighbours from element `at` on, a multiple of 8. CODES: where there are scales they are codes; else there are none.
template <bool CODES> __device__ __forceinline__ void load_elements(float out[8], const void *cells, const __half *scales, size_t at) {
    if (CODES && scales) {
        const uint2 raw = *(const uint2 *)((const int8_t *)cells + at);
        const float d = __half2float(scales[at / WARP]);
#pragma unroll
        for (int i = 0; i < 8; i++) out[i] = d * (float)(int8_t)((i < 4 ? raw.x : raw.y) >> 8 * (i % 4) & 0xff);
        return;
    }
    const uint4 raw = *(const uint4 *)((const __half *)cells + at);
    const unsigned word[4] = {raw.x, raw.y, raw.z, raw.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
        __half2_raw both;
        both.x = (unsigned short)(word[i] & 0xffff);
        both.y = (unsigned short)(word[i] >> 16);
        const float2 f = __half22float2(__half2(both));
        out[2 * i] = f.x;
        out[2 * i + 1] = f.y;
    }
}

// x * sigmoid(z). GELU's tanh form, 0.5 x (1 + tanh u) (arXiv 1606.08415), is the same with z = 2 u, and loses nothing where
// tanh is close to -1.
__device__ __forceinline__ float silu_or_gelu(float x, Activation act) {
    const float two_sqrt_2_over_pi = 1.59576912f;
    const float z = act == ACT_SILU ? x : two_sqrt_2_over_pi * x * (1 + 0.044715f * x * x);
    return x / (1 + expf(-z));
}

// ---- the ops ----
// As backend.h says; positions and ids lie on the device.

void embed_cuda(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale);
void norm_cuda(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps);
void rope_cuda(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, const int *pos);
void kv_write_cuda(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, const int *pos);
void kv_copy_cuda(Backend *b, const KvLayer *to, const KvLayer *from, int n, const int *pos);
// Up to MAX_MATVEC_ROWS rows: a->pos only decides how many blocks there are, *pos may be less. True if y was also rounded, into
// c->act8, as was asked.
bool attention_cuda(Backend *b, const AttentionArgs *a, const int *pos, bool round);
bool attention_mma_cuda(Backend *b, const AttentionArgs *a); // many queries on tensor cores; false: not these arguments, nothing was done
// What n_split parts each of n rows of heads in c->part come to, to y, and rounded to c->act8 if `round`; true if it was.
bool cuda_merge_parts(Backend *b, float *y, int n_split, int n, int head_dim, bool round);
void gated_cuda(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act);
void moe_route_cuda(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used);
void moe_ffn_cuda(Backend *b, const MoeArgs *a);
void moe_lend_cuda(Backend *b, const MoeArgs *a);
void moe_collect_cuda(Backend *b, float *y, int n_rows, int n_embd, bool add);
void add_cuda(Backend *b, float *x, const float *y, int64_t n);
void scale_cuda(Backend *b, float *x, float s, int64_t n);
void softcap_cuda(Backend *b, float *x, float cap, int64_t n);
void project_out_cuda(Backend *b, const ProjectArgs *a);
void add_dir_cuda(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount);
void copy_rows_cuda(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col);
void top_cuda(Backend *b, const TopArgs *a);
void mul_cols_cuda(Backend *b, float *x, const Tensor *w, int n_rows);
void mix_streams_cuda(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col);
void match_length_cuda(Backend *b, float *u, const float *target, int n_rows, int n_col);
void sparsify_cuda(Backend *b, float *x, float multiplier, int n_rows, int n_col);

#endif
