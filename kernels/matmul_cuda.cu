// matmul_cuda.cu: y = W x (+ bias), also for the chosen ones of a stack of experts.
//
// Few rows of x (decoding): matvec. A warp owns ROWS rows of W and reads each once for up to N rows of x: lane l takes groups
// l, l + 32, ... of 32 elements, 16 bytes of codes at a time, neighbouring lanes side by side. Nothing is shared between warps.
//   matvec_int8   quantised W, x rounded to 8 bits in groups of 16 (Act8): with w = s (code - offset) + m,
//                 sum w x = s d sum code q + (m - offset s) d sum q: integer products four at a time (dp4a), then a few
//                 float operations per group. Error: the rounding of x, at most d / 2 per element.
//   matvec_float  F32, F16, BF16, and, for one row of x, quantised W whose x must not be rounded (Tensor.precise): float products.
//   gated_int8, gated_float   the same products for act(gate x) * (up x): 32 neighbouring outputs a block, rounded for what reads them.
// Many rows of x (reading a prompt): a block makes a tile of y from tiles of W, unpacked once, and of x in shared memory.
//   matmul_mma    quantised W, x rounded as above, on tensor cores (sm_80 and later): the same products as matvec_int8, so that
//                 a prompt read at once and token by token differ by float rounding only.
//   matmul_tiles  everything else, all float.
// From 128 rows on cuBLAS is asked first, where it is there (gemm_cuda.cu): all float16. For experts the slots are sorted by
// expert first, so that a tile has one expert's weights and the rows that chose it.
// Bytes moved per output: a row of W / rows of x; limits: n_col of a quantised W is a multiple of 32 (of its block).
#include "cuda_ptx.cuh"
#include "cuda_quant.cuh"

enum { WARPS = 4 }; // per block of matvec

// ---- rounding of activations ----

__global__ void __launch_bounds__(BLOCK) round_act8(Act8 out, const float *x, int64_t n_group) {
    const int64_t item = (int64_t)blockIdx.x * BLOCK + threadIdx.x, group = item / 8 < n_group ? item / 8 : n_group - 1;
    const int part = (int)(item % 8);
    round_quad(out, (size_t)group, part, ((const float4 *)x)[group * 8 + part], item / 8 < n_group);
}

void cuda_round_act8(Backend *b, Act8 out, const float *x, int n_rows, int n_col) {
    const int64_t n_group = (int64_t)n_rows * (n_col / 32);
    LAUNCH(b, round_act8, grid_for(n_group * 8), BLOCK, 0, out, x, n_group);
}

Act8 cuda_act8(Backend *b, const float *x, int n_rows, int n_col) {
    Cuda *c = cuda_of(b);
    const int64_t n = (int64_t)n_rows * n_col;
    if (c->rounded != x || c->n_rounded != n) {
        cuda_round_act8(b, c->act8, x, n_rows, n_col);
        cuda_has_rounded(c, x, n, c->act8);
    }
    return c->rounded8;
}

// ---- few rows ----

enum { MAX_PARTS = 3, ROWS = 2 }; // matrices of a launch: queries, keys and values; rows of W of a warp

// One of the matrices, and the blocks before its own.
typedef struct {
    Weights w;
    float *y;          // [n_x or n_slot][n_row]
    const float *bias; // [n_row] or NULL
    int n_row, first_block;
} Part;

// For experts, blockIdx.y is the slot: row slot / share of x, the expert it wants, row slot of y.
typedef struct {
    Part part[MAX_PARTS];
    int n_part;
    const float *x;    // [n_x][n_col], or
    Act8 x8;           // the same, rounded
    int n_col, n_x;
    Chosen chosen;     // expert NULL: one matrix
    int share;
} Matvec;

__device__ __forceinline__ Act8 skip_groups(Act8 a, size_t n) {
    a.low += n;
    a.high += n;
    a.scale += n;
    return a;
}

// Sums over a lane's groups: rows first .. first + ROWS - 1 of w, beyond the end the last again, times n_x rows of x.
template <TensorType T, int N> __device__ __forceinline__ void
dot_int8(float (&sum)[ROWS][N], const Weights &w, const Act8 &x8, int first, int n_row, int n_group, int n_x, int lane) {
    constexpr Format F = format_of(T);
#pragma unroll (N <= 2 ? 2 : 1) // loads of two groups in flight, while there are registers for them
    for (int g = lane; g < n_group; g += WARP) {
        int q[ROWS][8];
        float s[ROWS][2], m[ROWS][2];
#pragma unroll
        for (int r = 0; r < ROWS; r++) {
            const size_t group = (size_t)min(first + r, n_row - 1) * n_group + g;
            load_codes<T>(w, group, q[r]);
            load_scales<T>(w, group, s[r], m[r]);
            if (F.offset) {
                m[r][0] -= F.offset * s[r][0];
                m[r][1] -= F.offset * s[r][1];
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            const size_t at = (size_t)min(n, n_x - 1) * n_group + g;
            const uint4 u = x8.low[at], v = x8.high[at];
            const float4 k = x8.scale[at];
#pragma unroll
            for (int r = 0; r < ROWS; r++) {
                int low = __dp4a(q[r][0], (int)u.x, 0), high = __dp4a(q[r][4], (int)v.x, 0);
                low = __dp4a(q[r][1], (int)u.y, low), high = __dp4a(q[r][5], (int)v.y, high);
                low = __dp4a(q[r][2], (int)u.z, low), high = __dp4a(q[r][6], (int)v.z, high);
                low = __dp4a(q[r][3], (int)u.w, low), high = __dp4a(q[r][7], (int)v.w, high);
                if (F.halves) sum[r][n] += s[r][0] * (k.x * (float)low) + s[r][1] * (k.y * (float)high) + (m[r][0] * k.z + m[r][1] * k.w);
                else sum[r][n] += s[r][0] * (k.x * (float)low + k.y * (float)high) + m[r][0] * (k.z + k.w);
            }
        }
    }
}

// Elements that a lane takes at a time: 16 bytes of a float type, a group of a quantised one; 1 where rows are not aligned.
__host__ __device__ constexpr int piece_of(TensorType type, bool wide) {
    return format_of(type).groups ? 32 : !wide ? 1 : type == TYPE_F32 ? 4 : 8;
}

template <TensorType T, int PIECE> __device__ __forceinline__ void load_piece(const Weights &w, size_t row, int n_col, int at, float v[PIECE]) {
    const size_t start = row * (size_t)n_col + at;
    if constexpr (PIECE == 32) {
        int q[8];
        float s[2], m[2];
        const size_t group = start / 32;
        load_codes<T>(w, group, q);
        load_scales<T>(w, group, s, m);
#pragma unroll
        for (int i = 0; i < PIECE; i++) v[i] = s[i / 16 % 2] * (byte_of(q[i / 4 % 8], i % 4) - format_of(T).offset) + m[i / 16 % 2];
    } else if constexpr (PIECE == 1) {
        v[0] = load_one<T>(w, start);
    } else {
        load_wide<T, PIECE>(w, start, v);
    }
}

// The same with x [n_x][n_col] as it is, for R rows.
template <TensorType T, int PIECE, int R, int N> __device__ __forceinline__ void
dot_float(float (&sum)[R][N], const Weights &weights, const float *x_rows, int first, int n_row, int n_col, int n_x, int lane) {
    for (int at = lane * PIECE; at < n_col; at += WARP * PIECE) {
        float w[R][PIECE];
#pragma unroll
        for (int r = 0; r < R; r++) load_piece<T, PIECE>(weights, (size_t)min(first + r, n_row - 1), n_col, at, w[r]);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float *x = x_rows + (size_t)min(n, n_x - 1) * n_col + at;
#pragma unroll
            for (int i = 0; i < PIECE; i += 4) {
                float4 v = make_float4(0, 0, 0, 0);
                if (PIECE == 1) v.x = x[0];
                else v = *(const float4 *)(x + i);
#pragma unroll
                for (int r = 0; r < R; r++) {
                    if constexpr (PIECE == 1) sum[r][n] += w[r][0] * v.x;
                    else sum[r][n] += w[r][i] * v.x + w[r][i + 1] * v.y + w[r][i + 2] * v.z + w[r][i + 3] * v.w;
                }
            }
        }
    }
}

// The sums over the lanes, to y: of rows first .. first + R - 1, for n_x rows of x.
template <int R, int N> __device__ __forceinline__ void store_sums(float *y, const Part &p, float (&sum)[R][N], int first, int n_x, int lane) {
#pragma unroll
    for (int r = 0; r < R; r++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float total = warp_sum(sum[r][n]);
            if (lane == 0 && first + r < p.n_row && n < n_x) y[(size_t)n * p.n_row + first + r] = total + (p.bias ? p.bias[first + r] : 0);
        }
}

__device__ __forceinline__ const Part &part_of(const Matvec &a) {
    int k = 0;
    while (k + 1 < a.n_part && (int)blockIdx.x >= a.part[k + 1].first_block) k++;
    return a.part[k];
}

template <TensorType T, int N> __global__ void __launch_bounds__(WARPS * WARP, N == 8 ? 2 : 0) matvec_int8(const __grid_constant__ Matvec a) {
    const int tid = threadIdx.x, lane = tid % WARP, slot = blockIdx.y, n_group = a.n_col / 32;
    const Part &p = part_of(a);
    const int first = ((blockIdx.x - p.first_block) * WARPS + tid / WARP) * ROWS;
    const int slice = N == 1 && a.chosen.expert ? slice_for(a.chosen, slot) : 0; // experts: one row
    if (first >= p.n_row || slice < 0) return; // a whole warp
    float sum[ROWS][N] = {};
    dot_int8<T, N>(sum, slice_of(p.w, slice), skip_groups(a.x8, (size_t)(slot / a.share) * n_group), first, p.n_row, n_group,
                   a.n_x, lane);
    store_sums(p.y + (size_t)slot * p.n_row, p, sum, first, a.n_x, lane);
}

template <TensorType T, int PIECE, int R, int N> __global__ void __launch_bounds__(WARPS * WARP, N == 8 ? 2 : 0) matvec_float(const __grid_constant__ Matvec a) {
    const int tid = threadIdx.x, lane = tid % WARP, slot = blockIdx.y;
    const Part &p = part_of(a);
    const int first = ((blockIdx.x - p.first_block) * WARPS + tid / WARP) * R;
    const int slice = N == 1 && a.chosen.expert ? slice_for(a.chosen, slot) : 0; // experts: one row
    if (first >= p.n_row || slice < 0) return; // a whole warp
    float sum[R][N] = {};
    dot_float<T, PIECE, R, N>(sum, slice_of(p.w, slice), a.x + (size_t)(slot / a.share) * a.n_col, first, p.n_row, a.n_col,
                              a.n_x, lane);
    store_sums(p.y + (size_t)slot * p.n_row, p, sum, first, a.n_x, lane);
}

static bool is_wide(TensorType type, int n_col) { return n_col % (type == TYPE_F32 ? 4 : 8) == 0; }

// All parts are of this type, and int8 or not.
template <int N> static void launch_matvec(Backend *b, Matvec a, TensorType type, bool int8, int n_slot) {
    const int rows = type_info(type)->block > 1 && !int8 ? 1 : ROWS; // 32 floats of W fill the registers: one row of it, one of x
    int n_block = 0, n_row = 0;
    for (int k = 0; k < a.n_part; k++) {
        a.part[k].first_block = n_block;
        n_block += (int)blocks_for(a.part[k].n_row, WARPS * rows);
        n_row += a.part[k].n_row;
    }
    const dim3 grid((unsigned)n_block, (unsigned)n_slot);
    CU_HOST_COST((double)n_slot * n_row * (double)type_row_bytes(type, a.n_col), 2.0 * n_slot * a.n_x * n_row * a.n_col);
    if (int8) with_quantised_type(type, [&](auto tag) { LAUNCH(b, (matvec_int8<decltype(tag)::type, N>), grid, WARPS * WARP, 0, a); });
    else with_type(type, [&](auto tag) {
        constexpr TensorType T = decltype(tag)::type;
        if constexpr (format_of(T).groups > 0) {
            if constexpr (N == 1) LAUNCH(b, (matvec_float<T, piece_of(T, true), 1, 1>), grid, WARPS * WARP, 0, a);
        } else if (is_wide(type, a.n_col)) LAUNCH(b, (matvec_float<T, piece_of(T, true), ROWS, N>), grid, WARPS * WARP, 0, a);
        else LAUNCH(b, (matvec_float<T, piece_of(T, false), ROWS, N>), grid, WARPS * WARP, 0, a);
    });
}

static void choose_rows(Backend *b, const Matvec &a, TensorType type, bool int8) {
    if (a.n_x == 1) launch_matvec<1>(b, a, type, int8, 1);
    else if (a.n_x == 2) launch_matvec<2>(b, a, type, int8, 1);
    else if (a.n_x <= 4) launch_matvec<4>(b, a, type, int8, 1);
    else launch_matvec<8>(b, a, type, int8, 1);
}

// ---- gate and up in one ----

enum { GATED_WARPS = 8, GATED_ROWS = 32 }; // outputs of a block: one group of what reads them next; a warp makes two at a time

// For experts as above.
typedef struct {
    Weights gate, up;
    float *y, *up_y;      // act(gate x) * (up x), up x or NULL: [n_slot][n_row]
    const float *up_x;    // up x is this, [n_row]; NULL: a product
    const float *x;
    Act8 x8, y8;          // y8: y rounded, if `round`
    bool round;
    int n_row, n_col;
    Activation act;
    Chosen chosen;
    int share;
} Gated;

// Outputs first and first + 1 of a warp, from the lanes' sums; to `made`, too.
__device__ __forceinline__ void store_gated(const Gated &a, float (&gate)[ROWS][1], float (&up)[ROWS][1], int first, int slot, float *made) {
#pragma unroll
    for (int r = 0; r < ROWS; r++) {
        const float g = warp_sum(gate[r][0]), u = a.up_x ? a.up_x[min(first + r, a.n_row - 1)] : warp_sum(up[r][0]), y = silu_or_gelu(g, a.act) * u;
        if (threadIdx.x % WARP != 0) continue;
        made[r] = y;
        if (first + r >= a.n_row) continue;
        a.y[(size_t)slot * a.n_row + first + r] = y;
        if (a.up_y) a.up_y[(size_t)slot * a.n_row + first + r] = u;
    }
}

__device__ __forceinline__ void round_gated(const Gated &a, const float *made, int slot) {
    const int tid = threadIdx.x;
    if (!a.round) return; // the whole block
    __syncthreads();
    if (tid < WARP) round_quad(a.y8, (size_t)slot * (a.n_row / GATED_ROWS) + blockIdx.x, tid % 8, ((const float4 *)made)[tid % 8], tid < 8);
}

template <TensorType T> __global__ void __launch_bounds__(GATED_WARPS * WARP) gated_int8(const __grid_constant__ Gated a) {
    __shared__ __align__(16) float made[GATED_ROWS];
    const int tid = threadIdx.x, lane = tid % WARP, slot = blockIdx.y, n_group = a.n_col / 32, slice = a.chosen.expert ? slice_for(a.chosen, slot) : 0;
    if (slice < 0) return; // the whole block
    const Act8 x8 = skip_groups(a.x8, (size_t)(slot / a.share) * n_group);
#pragma unroll 1
    for (int out = tid / WARP * ROWS; out < GATED_ROWS; out += GATED_WARPS * ROWS) {
        const int first = blockIdx.x * GATED_ROWS + out;
        float gate[ROWS][1] = {}, up[ROWS][1] = {};
        dot_int8<T, 1>(gate, slice_of(a.gate, slice), x8, first, a.n_row, n_group, 1, lane);
        if (!a.up_x) dot_int8<T, 1>(up, slice_of(a.up, slice), x8, first, a.n_row, n_group, 1, lane);
        store_gated(a, gate, up, first, slot, made + out);
    }
    round_gated(a, made, slot);
}

template <TensorType T, int PIECE> __global__ void __launch_bounds__(GATED_WARPS * WARP) gated_float(const __grid_constant__ Gated a) {
    __shared__ __align__(16) float made[GATED_ROWS];
    const int tid = threadIdx.x, lane = tid % WARP, slot = blockIdx.y, slice = a.chosen.expert ? slice_for(a.chosen, slot) : 0;
    if (slice < 0) return; // the whole block
    const float *x = a.x + (size_t)(slot / a.share) * a.n_col;
#pragma unroll 1
    for (int out = tid / WARP * ROWS; out < GATED_ROWS; out += GATED_WARPS * ROWS) {
        const int first = blockIdx.x * GATED_ROWS + out;
        float gate[ROWS][1] = {}, up[ROWS][1] = {};
        dot_float<T, PIECE, ROWS, 1>(gate, slice_of(a.gate, slice), x, first, a.n_row, a.n_col, 1, lane);
        if (!a.up_x) dot_float<T, PIECE, ROWS, 1>(up, slice_of(a.up, slice), x, first, a.n_row, a.n_col, 1, lane);
        store_gated(a, gate, up, first, slot, made + out);
    }
    round_gated(a, made, slot);
}

static bool make_a_pair(const Tensor *gate, const Tensor *up) {
    return gate->dev && !gate->precise &&
           (!up || (gate->type == up->type && gate->n_row == up->n_row && gate->n_col == up->n_col && !up->precise && up->dev));
}

static void launch_gated(Backend *b, const Gated &a, TensorType type, int n_slot) {
    const dim3 grid((unsigned)blocks_for(a.n_row, GATED_ROWS), (unsigned)n_slot);
    CU_HOST_COST(2.0 * n_slot * a.n_row * (double)type_row_bytes(type, a.n_col), 4.0 * n_slot * a.n_row * a.n_col);
    with_type(type, [&](auto tag) {
        constexpr TensorType T = decltype(tag)::type;
        if constexpr (format_of(T).groups > 0) LAUNCH(b, gated_int8<T>, grid, GATED_WARPS * WARP, 0, a);
        else if (is_wide(type, a.n_col)) LAUNCH(b, (gated_float<T, piece_of(T, true)>), grid, GATED_WARPS * WARP, 0, a);
        else LAUNCH(b, (gated_float<T, piece_of(T, false)>), grid, GATED_WARPS * WARP, 0, a);
    });
}

bool cuda_gated_matmul(Backend *b, float *y, float *up_y, const Tensor *gate, const Tensor *up, const float *up_x, const float *x, Activation act,
                       bool round) {
    const Cuda *c = cuda_of(b);
    const bool int8 = cuda_wants_act8(gate);
    if (!make_a_pair(gate, up) || (uintptr_t)x % 16 || (int8 && !cuda_rounds(b, gate, 1)) || (round && (gate->n_row % 32 || gate->n_row > c->limits.n_col)))
        return false;
    Gated a = {weights_of(gate), up ? weights_of(up) : Weights{}, y, up_y, up_x, x, {}, c->gated8, round, gate->n_row, gate->n_col, act, {}, 1};
    if (int8) a.x8 = cuda_act8(b, x, 1, gate->n_col);
    launch_gated(b, a, gate->type, 1);
    return true;
}

bool cuda_expert_gated(Backend *b, float *y, Act8 y8, bool round, const Tensor *gate, const Tensor *up, const float *x, Act8 x8, Chosen chosen,
                       int n_slot, int share, Activation act) {
    if (!make_a_pair(gate, up) || (round && gate->n_row % 32)) return false;
    const Gated a = {weights_of(gate), weights_of(up), y, NULL, NULL, x, x8, y8, round, gate->n_row, gate->n_col, act, chosen, share};
    launch_gated(b, a, gate->type, n_slot);
    return true;
}

// ---- many rows ----

enum { TILE = 64, DEPTH = 32 }; // rows of W in a tile; columns are walked DEPTH at a time

typedef struct {
    float *y;             // [n_x][n_row]
    Weights w;
    const float *bias, *x; // [n_row] or NULL; [n_x][n_col]
    Act8 x8;               // the same, rounded, for matmul_mma
    int n_row, n_col, n_x;
    // Experts: tile t is slots order[first .. first + n - 1] of one expert; slot s is row s / share of x, row s of y.
    const ExpertTile *tile; // or NULL
    const int *order;
    int share;
} Tiled;

// The rows of x of this block.
template <int X_TILE> __device__ __forceinline__ ExpertTile tile_of(const Tiled &a) {
    const int first = blockIdx.y * X_TILE;
    return a.tile ? a.tile[blockIdx.y] : ExpertTile{0, first, min(X_TILE, a.n_x - first)};
}

// n floats of x, zeros beyond `left`.
template <int n> __device__ __forceinline__ void load_x(const float *x, int left, bool aligned, float v[n]) {
    if (aligned && left >= n) {
#pragma unroll
        for (int i = 0; i < n; i += 4) {
            const float4 f = *(const float4 *)(x + i);
            v[i] = f.x, v[i + 1] = f.y, v[i + 2] = f.z, v[i + 3] = f.w;
        }
    } else {
#pragma unroll
        for (int i = 0; i < n; i++) v[i] = i < left ? x[i] : 0;
    }
}

__device__ __forceinline__ void load_each(const float *p, float (&v)[4]) {
    const float4 f = *(const float4 *)p;
    v[0] = f.x, v[1] = f.y, v[2] = f.z, v[3] = f.w;
}
__device__ __forceinline__ void load_each(const float *p, float (&v)[2]) {
    const float2 f = *(const float2 *)p;
    v[0] = f.x, v[1] = f.y;
}

// grid (rows of W / TILE, rows of x / X_TILE or expert tiles). Thread (i, j) of 16 x 16 makes outputs 4i .. 4i+3 of EACH rows of x.
// The next columns are on their way to registers while those in shared memory are multiplied. Column k of a tile lies in
// shared line k; a thread writes neighbouring columns, so its row's place is turned (^) by the column: 32 banks for a warp.
template <TensorType T, int X_TILE> __global__ void __launch_bounds__(BLOCK) matmul_tiles(Tiled a) {
    constexpr int EACH = X_TILE / 16, BRING = X_TILE * DEPTH / BLOCK; // BRING: elements of x that a thread brings in; of W: 8
    __shared__ __align__(16) float ws[DEPTH][TILE], xs[DEPTH][X_TILE];
    const int tid = threadIdx.x, o0 = blockIdx.x * TILE, i = tid % 16 * 4, j = tid / 16 * EACH;
    const ExpertTile t = tile_of<X_TILE>(a);
    const int first = t.first, n = t.n;
    if (n == 0) return; // the whole block
    const Weights w = a.tile ? slice_of(a.w, t.expert) : a.w;
    // Lines beyond the end repeat the last: their outputs are not stored.
    const int w_line = tid / 4, w_column = tid % 4 * 8, x_line = tid / (DEPTH / BRING), x_column = tid % (DEPTH / BRING) * BRING;
    const size_t w_row = (size_t)min(o0 + w_line, a.n_row - 1);
    const int x_row = first + min(x_line, n - 1);
    const float *x = a.x + (size_t)(a.tile ? a.order[x_row] / a.share : x_row) * a.n_col + x_column;
    const bool aligned = a.n_col % 4 == 0;
    float sum[EACH][4] = {}, w_next[8], x_next[BRING];
    load8<T>(w, w_row, a.n_col, w_column, w_next);
    load_x<BRING>(x, a.n_col - x_column, aligned, x_next);
    for (int k0 = 0; k0 < a.n_col; k0 += DEPTH) {
#pragma unroll
        for (int c = 0; c < 8; c++) ws[w_column + c][w_line ^ w_column] = w_next[c];
#pragma unroll
        for (int c = 0; c < BRING; c++) xs[x_column + c][x_line ^ x_column] = x_next[c];
        __syncthreads();
        if (k0 + DEPTH < a.n_col) {
            load8<T>(w, w_row, a.n_col, k0 + DEPTH + w_column, w_next);
            load_x<BRING>(x + k0 + DEPTH, a.n_col - k0 - DEPTH - x_column, aligned, x_next);
        }
#pragma unroll 8
        for (int k = 0; k < DEPTH; k++) {
            const float4 u = *(const float4 *)&ws[k][i ^ k / 8 * 8];
            const float us[4] = {u.x, u.y, u.z, u.w};
            float v[EACH];
            load_each(&xs[k][j ^ k / BRING * BRING], v);
#pragma unroll
            for (int r = 0; r < EACH; r++)
#pragma unroll
                for (int o = 0; o < 4; o++) sum[r][o] += us[o] * v[r];
        }
        __syncthreads();
    }
#pragma unroll
    for (int r = 0; r < EACH; r++) {
        if (j + r >= n) continue;
        const size_t row = a.tile ? a.order[first + j + r] : first + j + r;
#pragma unroll
        for (int o = 0; o < 4; o++)
            if (o0 + i + o < a.n_row) a.y[row * a.n_row + o0 + i + o] = sum[r][o] + (a.bias ? a.bias[o0 + i + o] : 0);
    }
}

enum { STEP = 4, LINE = STEP * 8 + 4 }; // groups of 32 columns in shared memory; words of a line of them: 4 more, and 8 lines lie in 32 banks

// The same grid. Eight warps: 4 x 2, each 16 rows of W times X_TILE / 2 rows of x, in squares of 16 x 8. A group's two halves
// have scales of their own, so each half is multiplied alone, the other being zero.
template <TensorType T, int X_TILE> __global__ void __launch_bounds__(BLOCK) matmul_mma(Tiled a) {
    constexpr Format F = format_of(T);
    constexpr int SQUARES = X_TILE / 16;
    __shared__ __align__(16) unsigned ws[TILE][LINE], xs[X_TILE][LINE]; // codes
    __shared__ __align__(16) float4 w_scale[STEP][TILE], x_scale[STEP][X_TILE]; // s and m of both halves; Act8.scale
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, o0 = blockIdx.x * TILE, n_group = a.n_col / 32;
    const ExpertTile t = tile_of<X_TILE>(a);
    const int first = t.first, n = t.n;
    if (n == 0) return; // the whole block
    const Weights w = a.tile ? slice_of(a.w, t.expert) : a.w;
    // A thread brings in group tid % STEP of row tid / STEP, of W and of x. Rows beyond the end repeat the last.
    const int line = tid / STEP, sub = tid % STEP, x_row = first + min(line, n - 1);
    const size_t w_at = (size_t)min(o0 + line, a.n_row - 1) * n_group, x_at = (size_t)(a.tile ? a.order[x_row] / a.share : x_row) * n_group;
    const int row = warp % 4 * 16 + lane / 4, col = warp / 4 * (X_TILE / 2), part = lane % 4; // rows `row`, row + 8; columns col + ...
    float sum[SQUARES][4] = {};
    for (int g0 = 0; g0 < n_group; g0 += STEP) {
        const int g = g0 + sub;
        int q[8] = {0};
        float s[2] = {0}, m[2] = {0};
        uint4 low = make_uint4(0, 0, 0, 0), high = low;
        float4 scale = make_float4(0, 0, 0, 0);
        if (g < n_group) {
            load_codes<T>(w, w_at + g, q);
            load_scales<T>(w, w_at + g, s, m);
            if (line < X_TILE) low = a.x8.low[x_at + g], high = a.x8.high[x_at + g], scale = a.x8.scale[x_at + g];
        }
        __syncthreads(); // the step before has been read
        *(uint4 *)&ws[line][sub * 8] = make_uint4((unsigned)q[0], (unsigned)q[1], (unsigned)q[2], (unsigned)q[3]);
        *(uint4 *)&ws[line][sub * 8 + 4] = make_uint4((unsigned)q[4], (unsigned)q[5], (unsigned)q[6], (unsigned)q[7]);
        w_scale[sub][line] = make_float4(s[0], s[1], m[0] - F.offset * s[0], m[1] - F.offset * s[1]);
        if (line < X_TILE) {
            *(uint4 *)&xs[line][sub * 8] = low;
            *(uint4 *)&xs[line][sub * 8 + 4] = high;
            x_scale[sub][line] = scale;
        }
        __syncthreads();
#pragma unroll
        for (int k = 0; k < STEP; k++) {
            const unsigned *p = &ws[row][k * 8 + part], *p8 = &ws[row + 8][k * 8 + part];
            const uint32_t a_low[4] = {p[0], p8[0], 0, 0}, a_high[4] = {0, 0, p[4], p8[4]};
            const float4 u[2] = {w_scale[k][row], w_scale[k][row + 8]};
#pragma unroll
            for (int c = 0; c < SQUARES; c++) {
                const uint32_t b[2] = {xs[col + c * 8 + lane / 4][k * 8 + part], xs[col + c * 8 + lane / 4][k * 8 + part + 4]};
                const float4 v[2] = {x_scale[k][col + c * 8 + part * 2], x_scale[k][col + c * 8 + part * 2 + 1]};
                int in_low[4] = {0}, in_high[4] = {0};
                mma_s8(in_low, a_low, b);
                mma_s8(in_high, a_high, b);
#pragma unroll
                for (int i = 0; i < 4; i++) {
                    const float4 f = u[i / 2], h = v[i % 2];
                    if (F.halves) sum[c][i] += f.x * (h.x * (float)in_low[i]) + f.y * (h.y * (float)in_high[i]) + (f.z * h.z + f.w * h.w);
                    else sum[c][i] += f.x * (h.x * (float)in_low[i] + h.y * (float)in_high[i]) + f.z * (h.z + h.w);
                }
            }
        }
    }
#pragma unroll
    for (int c = 0; c < SQUARES; c++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const int o = o0 + row + i / 2 * 8, r = col + c * 8 + part * 2 + i % 2;
            if (o >= a.n_row || r >= n) continue;
            const size_t to = a.tile ? a.order[first + r] : first + r;
            a.y[to * a.n_row + o] = sum[c][i] + (a.bias ? a.bias[o] : 0);
        }
}

// n_tile: of experts, or of X_TILE rows of x. int8: a.x8 is filled.
template <int X_TILE> static void launch_tiles(Backend *b, const Tiled &a, TensorType type, bool int8, int64_t n_tile) {
    const dim3 grid((unsigned)blocks_for(a.n_row, TILE), (unsigned)n_tile);
    if (int8) with_quantised_type(type, [&](auto tag) { LAUNCH(b, (matmul_mma<decltype(tag)::type, X_TILE>), grid, BLOCK, 0, a); });
    else with_type(type, [&](auto tag) { LAUNCH(b, (matmul_tiles<decltype(tag)::type, X_TILE>), grid, BLOCK, 0, a); });
}

// ---- the op ----

static bool is_tiled(const Tensor *w, int n_rows) { return n_rows > MAX_MATVEC_ROWS || (n_rows > 1 && w->precise); }

bool cuda_rounds(const Backend *b, const Tensor *w, int n_rows) {
    const Cuda *c = cuda_of(b);
    return cuda_wants_act8(w) && (!is_tiled(w, n_rows) || c->has_mma) && w->n_col <= c->limits.n_col && n_rows <= c->limits.n_rows && !cuda_gemm_takes(c, w, n_rows);
}

static void tiled_product(Backend *b, const Matmul &p, const float *x, Act8 x8, bool int8, int n_rows) {
    const Tensor *w = p.w;
    const Tiled a = {p.y, weights_of(w), cuda_vector(b, p.bias), x, x8, w->n_row, w->n_col, n_rows, NULL, NULL, 1};
    CU_HOST_COST((double)tensor_bytes(w) + 4.0 * n_rows * (w->n_row + w->n_col), 2.0 * n_rows * w->n_row * w->n_col);
    if (n_rows <= 32) launch_tiles<32>(b, a, w->type, int8, 1);
    else launch_tiles<64>(b, a, w->type, int8, blocks_for(n_rows, 64));
}

void cuda_matmul(Backend *b, const Matmul *p, int n, const float *x, int n_rows) {
    const Cuda *c = cuda_of(b);
    Matvec a = {};
    bool halves = false; // x lies in cuBLAS's form already
    for (int k = 0; k < n; k++) {
        const Tensor *w = p[k].w;
        if (!cuda_vector(b, w) || (p[k].bias && !cuda_vector(b, p[k].bias))) return;
        if ((uintptr_t)x % 16) {
            backend_fail(b, "cuda backend: the input of %s does not start at a multiple of 16 bytes", w->name);
            return;
        }
        if (cuda_gemm_takes(c, w, n_rows)) {
            cuda_gemm_matmul(b, &p[k], x, n_rows, halves);
            halves = true;
            continue;
        }
        const bool tiled = is_tiled(w, n_rows), int8 = cuda_wants_act8(w) && (!tiled || c->has_mma);
        if (int8 && !cuda_rounds(b, w, n_rows)) {
            backend_fail(b, "cuda backend: %s: %d rows of %d, reserved are %d of %d", w->name, n_rows, w->n_col, c->limits.n_rows, c->limits.n_col);
            return;
        }
        const Act8 x8 = int8 ? cuda_act8(b, x, n_rows, w->n_col) : Act8{};
        if (tiled) {
            tiled_product(b, p[k], x, x8, int8, n_rows);
            continue;
        }
        a.x = x, a.x8 = x8, a.n_col = w->n_col, a.n_x = n_rows, a.share = 1;
        a.part[a.n_part++] = Part{weights_of(w), p[k].y, cuda_vector(b, p[k].bias), w->n_row, 0};
        const Tensor *next = k + 1 < n ? p[k + 1].w : NULL;
        if (next && next->type == w->type && next->precise == w->precise && a.n_part < MAX_PARTS) continue; // it joins the launch
        choose_rows(b, a, w->type, int8);
        a.n_part = 0;
    }
}

void cuda_expert_matvec(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, Chosen chosen, int n_slot, int share) {
    const Matvec a = {{{weights_of(w), y, NULL, w->n_row, 0}}, 1, x, x8, w->n_col, 1, chosen, share};
    launch_matvec<1>(b, a, w->type, cuda_wants_act8(w), n_slot);
}

void cuda_expert_tiles(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, int n_tile, int share) {
    const Cuda *c = cuda_of(b);
    const Tiled a = {y, weights_of(w), NULL, x, x8, w->n_row, w->n_col, 0, c->tile, c->order, share};
    launch_tiles<EXPERT_TILE>(b, a, w->type, cuda_wants_act8(w) && c->has_mma, n_tile);
}
