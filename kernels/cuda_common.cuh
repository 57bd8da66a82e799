// cuda_common.cuh: what the files of the cuda backend share: its private part, launches, and sums over a warp or a block.
//
// One non-blocking stream does everything, in order. Ops only launch: they never allocate, and never wait but for a pinned
// buffer (embed from a table on the host). Buffers that ops
// read in pieces of 16 bytes start at a multiple of 16: alloc gives 256, and rows keep it when n_col is a multiple of 4.
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
    MAX_EXPERTS = WARP * WARP // that moe_route can choose from
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

typedef struct {
    int n_sm;
    bool has_mma;                 // tensor cores with 8-bit products of 16 x 8 x 32: sm_80 and later
    cudaStream_t stream;
    Limits limits;
    char *stage[N_STAGE];         // pinned host memory
    cudaEvent_t staged[N_STAGE];  // its last copy is done
    int turn;
    char *raw;                    // [STAGE_BYTES] device: blocks as in the file, on their way into planes

    // Scratch, made by reserve.
    void *scratch;
    Act8 act8;           // [n_rows][n_col]
    float *part;         // [n_part][head_dim + 2]: unfinished attention outputs, then their maximum and sum
    int64_t n_part;
    // Experts; a slot is one (row, chosen expert) pair: row * n_used + u.
    Act8 hidden_act8;    // [n_slot][n_ff_expert]
    float *gate, *up;    // [n_slot][n_ff_expert]
    float *down;         // [n_slot][n_embd]
    int *order;          // [n_slot] slots sorted by expert
    ExpertTile *tile;    // [cuda_expert_tile_count(n_slot, n_expert)]
} Cuda;

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
    if (e != cudaSuccess) backend_fail(b, "cuda backend: launching %.*s: %s", (int)strcspn(kernel, "<"), kernel, cudaGetErrorString(e));
    return e == cudaSuccess;
}

static inline int64_t blocks_for(int64_t n, int64_t per_block) { return (n + per_block - 1) / per_block; }
// Blocks along x for n elements, BLOCK threads each.
static inline unsigned grid_for(int64_t n) { return (unsigned)blocks_for(n, BLOCK); }

// The pinned buffer whose turn it is [STAGE_BYTES], when its last copy is done; NULL: failed. Then: to dst, in stream order.
char *cuda_stage(Backend *b);
bool cuda_send_stage(Backend *b, void *dst, size_t bytes);
// A weight of one row of floats on the device; NULL for NULL. A tensor that was not loaded is an error.
const float *cuda_vector(Backend *b, const Tensor *t);
// y rows of matmul for a stack of experts: slot s computes W[expert[s]] x[s / share] -> y[s]; expert [n_slot] on the device.
void cuda_expert_matvec(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, const int *expert, int n_slot, int share);
// The same for many slots, sorted into the n_tile tiles of c->order and c->tile.
void cuda_expert_tiles(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, int n_tile, int share);
// No more tiles than this can come of n_slot slots: full ones, and one for the rest of every expert.
static inline int64_t cuda_expert_tile_count(int64_t n_slot, int64_t n_expert) {
    return n_slot / EXPERT_TILE + (n_expert < n_slot ? n_expert : n_slot);
}
// x [n_rows][n_col] -> out
void cuda_round_act8(Backend *b, Act8 out, const float *x, int n_rows, int n_col);
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

// Sum over a block of BLOCK threads, the same in every thread. slots [BLOCK / WARP] in shared memory; every thread calls.
__device__ __forceinline__ float block_sum(float x, float *slots) {
    const int tid = threadIdx.x;
    x = warp_sum(x);
    __syncthreads(); // slots may still be read from the sum before
    if (tid % WARP == 0) slots[tid / WARP] = x;
    __syncthreads();
    float sum = 0;
#pragma unroll
    for (int i = 0; i < BLOCK / WARP; i++) sum += slots[i];
    return sum;
}

// x * sigmoid(z). GELU's tanh form, 0.5 x (1 + tanh u) (arXiv 1606.08415), is the same with z = 2 u, and loses nothing where
// tanh is close to -1.
__device__ __forceinline__ float silu_or_gelu(float x, Activation act) {
    const float two_sqrt_2_over_pi = 1.59576912f;
    const float z = act == ACT_SILU ? x : two_sqrt_2_over_pi * x * (1 + 0.044715f * x * x);
    return x / (1 + expf(-z));
}

// ---- the ops ----

void embed_cuda(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale);
void norm_cuda(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps);
void matmul_cuda(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows);
void rope_cuda(Backend *b, float *x, const Rope *rope, int n_rows, int n_head, int head_dim, int pos);
void kv_write_cuda(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos);
void attention_cuda(Backend *b, const AttentionArgs *a);
void gated_cuda(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act);
void moe_route_cuda(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used);
void moe_ffn_cuda(Backend *b, const MoeArgs *a);
void add_cuda(Backend *b, float *x, const float *y, int64_t n);
void scale_cuda(Backend *b, float *x, float s, int64_t n);
void softcap_cuda(Backend *b, float *x, float cap, int64_t n);
void project_out_cuda(Backend *b, const ProjectArgs *a);
void add_dir_cuda(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount);
void copy_rows_cuda(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col);
void mul_cols_cuda(Backend *b, float *x, const Tensor *w, int n_rows);
void mix_streams_cuda(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col);
void match_length_cuda(Backend *b, float *u, const float *target, int n_rows, int n_col);
void sparsify_cuda(Backend *b, float *x, float multiplier, int n_rows, int n_col);

#endif
