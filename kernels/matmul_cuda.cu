// matmul_cuda.cu: y = W x (+ bias), also for the chosen ones of a stack of experts.
//
// Few rows of x (decoding): matvec. A warp owns ROWS rows of W and reads each once for up to N rows of x: lane l takes groups
// l, l + 32, ... of 32 elements, 16 bytes of codes at a time, neighbouring lanes side by side. Nothing is shared between warps.
//   matvec_int8   quantised W, x rounded to 8 bits in groups of 16 (Act8): with w = s (code - offset) + m,
//                 sum w x = s d sum code q + (m - offset s) d sum q: integer products four at a time (dp4a), then a few
//                 float operations per group. Error: the rounding of x, at most d / 2 per element.
//   matvec_float  F32, F16, BF16, and, for one row of x, quantised W whose x must not be rounded (Tensor.precise): float products.
// Many rows of x (reading a prompt): a block makes a tile of y from tiles of W, unpacked once, and of x in shared memory.
//   matmul_mma    quantised W, x rounded as above, on tensor cores (sm_80 and later): the same products as matvec_int8, so that
//                 a prompt read at once and token by token differ by float rounding only.
//   matmul_tiles  everything else, all float.
// cuBLAS, for those who have it, would be asked in launch_tiles before these. For experts the slots are sorted by expert first,
// so that a tile has one expert's weights and the rows that chose it.
// Bytes moved per output: a row of W / rows of x; limits: n_col of a quantised W is a multiple of 32 (of its block).
#include "cuda_ptx.cuh"
#include "cuda_quant.cuh"

enum { WARPS = 4 }; // per block of matvec

// ---- rounding of activations ----

// Eight lanes per group, four for each half, four elements each.
__global__ void __launch_bounds__(BLOCK) round_act8(Act8 out, const float *x, int64_t n_group) {
    const int64_t item = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    const int64_t group = item / 8 < n_group ? item / 8 : n_group - 1; // lanes beyond the end repeat the last group: all take part in the sums
    const int part = (int)(item % 8);
    const float4 v = ((const float4 *)x)[group * 8 + part];
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
    if (item / 8 >= n_group) return;
    const unsigned codes = (unsigned)(a & 0xff) | (unsigned)(b & 0xff) << 8 | (unsigned)(c & 0xff) << 16 | (unsigned)(e & 0xff) << 24;
    ((unsigned *)(part < 4 ? out.low : out.high))[group * 4 + part % 4] = codes;
    if (part == 0) out.scale[group] = make_float4(d, other_d, d * (float)sum, other_d * (float)other);
}

void cuda_round_act8(Backend *b, Act8 out, const float *x, int n_rows, int n_col) {
    const int64_t n_group = (int64_t)n_rows * (n_col / 32);
    LAUNCH(b, round_act8, grid_for(n_group * 8), BLOCK, 0, out, x, n_group);
}

// ---- few rows ----

// For experts, blockIdx.y is the slot: row slot / share of x, expert[slot], row slot of y.
typedef struct {
    float *y;          // [n_x or n_slot][n_row]
    Weights w;
    const float *bias; // [n_row] or NULL
    const float *x;    // [n_x][n_col], or
    Act8 x8;           // the same, rounded
    int n_row, n_col, n_x;
    const int *expert; // [n_slot] on the device, or NULL
    int share;
} Matvec;

__device__ __forceinline__ void choose_expert(Matvec &a) {
    if (!a.expert) return;
    const int slot = blockIdx.y;
    const size_t x_row = (size_t)(slot / a.share), groups = (size_t)(a.n_col / 32);
    a.w = slice_of(a.w, a.expert[slot]);
    a.y += (size_t)slot * a.n_row;
    if (a.x) a.x += x_row * a.n_col;
    a.x8.low += x_row * groups;
    a.x8.high += x_row * groups;
    a.x8.scale += x_row * groups;
}

// The sums over the lanes, to y: of rows first .. first + ROWS - 1, for n_x rows of x.
template <int ROWS, int N> __device__ __forceinline__ void store_sums(const Matvec &a, float sum[ROWS][N], int first, int lane) {
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float total = warp_sum(sum[r][n]);
            if (lane == 0 && first + r < a.n_row && n < a.n_x) a.y[(size_t)n * a.n_row + first + r] = total + (a.bias ? a.bias[first + r] : 0);
        }
}

template <TensorType T, int ROWS, int N> __global__ void __launch_bounds__(WARPS * WARP) matvec_int8(Matvec a) {
    constexpr Format F = format_of(T);
    const int tid = threadIdx.x, lane = tid % WARP, first = (blockIdx.x * WARPS + tid / WARP) * ROWS;
    if (first >= a.n_row) return; // a whole warp
    choose_expert(a);
    const int n_group = a.n_col / 32;
    float sum[ROWS][N] = {};
#pragma unroll (N <= 2 ? 2 : 1) // loads of two groups in flight, while there are registers for them
    for (int g = lane; g < n_group; g += WARP) {
        int q[ROWS][8];
        float s[ROWS][2], m[ROWS][2];
#pragma unroll
        for (int r = 0; r < ROWS; r++) { // rows beyond the end repeat the last: their sums are not stored
            const size_t group = (size_t)min(first + r, a.n_row - 1) * n_group + g;
            load_codes<T>(a.w, group, q[r]);
            load_scales<T>(a.w, group, s[r], m[r]);
            if (F.offset) {
                m[r][0] -= F.offset * s[r][0];
                m[r][1] -= F.offset * s[r][1];
            }
        }
#pragma unroll
        for (int n = 0; n < N; n++) {
            const size_t at = (size_t)min(n, a.n_x - 1) * n_group + g;
            const uint4 u = a.x8.low[at], v = a.x8.high[at];
            const float4 k = a.x8.scale[at];
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
    store_sums<ROWS, N>(a, sum, first, lane);
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

template <TensorType T, int PIECE, int ROWS, int N> __global__ void __launch_bounds__(WARPS * WARP) matvec_float(Matvec a) {
    const int tid = threadIdx.x, lane = tid % WARP, first = (blockIdx.x * WARPS + tid / WARP) * ROWS;
    if (first >= a.n_row) return; // a whole warp
    choose_expert(a);
    float sum[ROWS][N] = {};
    for (int at = lane * PIECE; at < a.n_col; at += WARP * PIECE) {
        float w[ROWS][PIECE];
#pragma unroll
        for (int r = 0; r < ROWS; r++) load_piece<T, PIECE>(a.w, (size_t)min(first + r, a.n_row - 1), a.n_col, at, w[r]);
#pragma unroll
        for (int n = 0; n < N; n++) {
            const float *x = a.x + (size_t)min(n, a.n_x - 1) * a.n_col + at;
#pragma unroll
            for (int i = 0; i < PIECE; i += 4) {
                float4 v = make_float4(0, 0, 0, 0);
                if (PIECE == 1) v.x = x[0];
                else v = *(const float4 *)(x + i);
#pragma unroll
                for (int r = 0; r < ROWS; r++) {
                    if constexpr (PIECE == 1) sum[r][n] += w[r][0] * v.x;
                    else sum[r][n] += w[r][i] * v.x + w[r][i + 1] * v.y + w[r][i + 2] * v.z + w[r][i + 3] * v.w;
                }
            }
        }
    }
    store_sums<ROWS, N>(a, sum, first, lane);
}

template <int N> static void launch_matvec(Backend *b, const Matvec &a, TensorType type, bool int8, int n_slot) {
    constexpr int ROWS = 2;
    const dim3 grid((unsigned)blocks_for(a.n_row, WARPS * ROWS), (unsigned)n_slot), tall((unsigned)blocks_for(a.n_row, WARPS), (unsigned)n_slot);
    const bool wide = a.n_col % (type == TYPE_F32 ? 4 : 8) == 0;
    CU_HOST_COST((double)n_slot * a.n_row * (double)type_row_bytes(type, a.n_col), 2.0 * n_slot * a.n_x * a.n_row * a.n_col);
    if (int8) with_quantised_type(type, [&](auto tag) { LAUNCH(b, (matvec_int8<decltype(tag)::type, ROWS, N>), grid, WARPS * WARP, 0, a); });
    else with_type(type, [&](auto tag) {
        constexpr TensorType T = decltype(tag)::type;
        if constexpr (format_of(T).groups > 0) {
            // 32 elements fill the registers: one row of W, one of x
            if constexpr (N == 1) LAUNCH(b, (matvec_float<T, piece_of(T, true), 1, 1>), tall, WARPS * WARP, 0, a);
        } else if (wide) LAUNCH(b, (matvec_float<T, piece_of(T, true), ROWS, N>), grid, WARPS * WARP, 0, a);
        else LAUNCH(b, (matvec_float<T, piece_of(T, false), ROWS, N>), grid, WARPS * WARP, 0, a);
    });
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

void matmul_cuda(Backend *b, float *y, const Tensor *w, const Tensor *bias, const float *x, int n_rows) {
    Cuda *c = cuda_of(b);
    const float *add = cuda_vector(b, bias);
    if (!cuda_vector(b, w) || (bias && !add) || n_rows == 0) return;
    if ((uintptr_t)x % 16) {
        backend_fail(b, "cuda backend: the input of %s does not start at a multiple of 16 bytes", w->name);
        return;
    }
    const bool tiled = n_rows > MAX_MATVEC_ROWS || (n_rows > 1 && w->precise), int8 = cuda_wants_act8(w) && (!tiled || c->has_mma);
    if (int8 && (w->n_col > c->limits.n_col || n_rows > c->limits.n_rows)) {
        backend_fail(b, "cuda backend: %s: %d rows of %d, reserved are %d of %d", w->name, n_rows, w->n_col, c->limits.n_rows, c->limits.n_col);
        return;
    }
    if (int8) cuda_round_act8(b, c->act8, x, n_rows, w->n_col);
    if (tiled) {
        const Tiled a = {y, weights_of(w), add, x, c->act8, w->n_row, w->n_col, n_rows, NULL, NULL, 1};
        CU_HOST_COST((double)tensor_bytes(w) + 4.0 * n_rows * (w->n_row + w->n_col), 2.0 * n_rows * w->n_row * w->n_col);
        if (n_rows <= 32) launch_tiles<32>(b, a, w->type, int8, 1);
        else launch_tiles<64>(b, a, w->type, int8, blocks_for(n_rows, 64));
        return;
    }
    const Matvec a = {y, weights_of(w), add, x, c->act8, w->n_row, w->n_col, n_rows, NULL, 1};
    if (n_rows == 1) launch_matvec<1>(b, a, w->type, int8, 1);
    else if (n_rows == 2) launch_matvec<2>(b, a, w->type, int8, 1);
    else if (n_rows <= 4) launch_matvec<4>(b, a, w->type, int8, 1);
    else launch_matvec<8>(b, a, w->type, int8, 1);
}

void cuda_expert_matvec(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, const int *expert, int n_slot, int share) {
    const Matvec a = {y, weights_of(w), NULL, x, x8, w->n_row, w->n_col, 1, expert, share};
    launch_matvec<1>(b, a, w->type, cuda_wants_act8(w), n_slot);
}

void cuda_expert_tiles(Backend *b, float *y, const Tensor *w, const float *x, Act8 x8, int n_tile, int share) {
    const Cuda *c = cuda_of(b);
    const Tiled a = {y, weights_of(w), NULL, x, x8, w->n_row, w->n_col, 0, c->tile, c->order, share};
    launch_tiles<EXPERT_TILE>(b, a, w->type, cuda_wants_act8(w) && c->has_mma, n_tile);
}
