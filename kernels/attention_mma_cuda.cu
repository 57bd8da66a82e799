// attention_mma_cuda.cu: softmax(scale q.k) v of many queries on tensor cores (FlashAttention-2: arXiv 2307.08691).
//
// A block takes 64 queries that read one KV head - neighbouring rows and the heads of a group - past the keys they see, in
// tiles of KEYS. 16 queries are the rows of one warp's products (mma m16n8k16: halves, sums in float):
//   scores   S (16, KEYS) = Q K^T; Q rounded to half once, then in registers
//   softmax  a running maximum m and sum l per query, in float; weights P = 2^(S - m), what was summed before shrinks by
//            2^(m_old - m). The registers of S, rounded to half, are already those that the next product wants of P
//   values   O (16, D) += P V, in registers until the end
// Heads of more than 256 need more registers than there are: SPLIT warps then share 16 queries. Each sums the scores over its
// own part of the columns, adds the other's through shared memory, and goes on with its columns of V and O.
//
// K and V lie in shared memory, rows of D halves whose pieces of 16 bytes are exchanged so that eight rows of a matrix never
// meet in a bank (ldmatrix). One is copied (cp.async) while the other is multiplied; two barriers per tile. Tiles no query
// of the block sees are not visited; only those that some query sees in part are masked.
//
// A tile is 256 KEYS D operations and 4 KEYS D bytes of K and V: 64 a byte. An RTX 3060 (28 multiprocessors, 256 multiply-adds
// a clock with float sums, 25 TFLOP/s) can thus ask its L2 for 400 GB/s. nvcc 13 for sm_86, no spills:
//   head size up to   KEYS   warps   registers   shared memory   blocks (warps) on a multiprocessor
//              64      64      4        162          16 KiB         3 (12)
//              96      64      4        168          24             3 (12)
//             128      32      4        165          16             3 (12)
//             256      32      4        255          32             2  (8)
//             512      32      8        255          80             1  (8)
//
// Rounding: q by at most 2^-11 of itself, as k was when it was stored, or is now, of Q8_0 (a code times its scale); each weight by 2^-11 of itself, below 2^-14 by 2^-25.
// Does not do: devices without mma.m16n8k16 (sm_75), few queries (attention_cuda.cu has less to waste on those).
#include "cuda_common.cuh"
#include "cuda_ptx.cuh"

enum { QUERIES = 64, MIN_QUERIES = 32 }; // of a block; below these half of its work would be for nothing
static const float LOG2_E = 1.44269504f;

typedef struct {
    float *y, *part; // part [n_query of all heads][n_split][head_dim + 2]: sums, m, l
    const float *q;
    const void *k, *v;
    const __half *k_scale, *v_scale; // NULL: halves; else codes of Q8_0
    int n_query, group, pos, n_head, head_dim, n_cell, window; // n_query: of one KV head, n_rows * group
    float scale, softcap; // scale: of scores in powers of 2, or, where they are capped, as they are
    int n_split, per_split; // keys; a split holds a multiple of KEYS
} AttendMma;

// Where piece `chunk` (8 halves) of a row of D lies. Eight rows' pieces of one number are in different banks: a row of 64 k
// halves always begins in bank 0; one of 96 in bank 0 or 16, by turns.
template <int D> __device__ __forceinline__ int place(int row, int chunk) {
    return row * D + 8 * (chunk ^ (D % 64 == 0 ? row % 8 : row / 2 % 4));
}
// The same for row + 16 k and chunk + n from place(row, chunk), chunk = 0 or 1, n even: nothing to compute where k and n are known.
template <int D> __device__ __forceinline__ int moved(int from, int k, int n) {
    enum { PERIOD = D % 64 == 0 ? 64 : 32 };
    return (from ^ n * 8 % PERIOD) + n * 8 / PERIOD * PERIOD + k * 16 * D;
}

__device__ __forceinline__ uint32_t pack(__half2_raw both) { return both.x | (uint32_t)both.y << 16; }
__device__ __forceinline__ uint32_t pack(float low, float high) { return pack(__floats2half2_rn(low, high)); }

// The cells of keys tile .. tile + KEYS - 1, on their way into shared memory. Those from end on are the last key once more:
// their weight will be 0, but what it multiplies must be a number. Codes (CODES, and there are scales) are there at once, as halves.
template <int D, int KEYS, int THREADS, bool CODES>
__device__ __forceinline__ void fetch_tile(__half *to, const void *cells, const __half *scales, size_t head, int tile, int end, int n_cell, int head_dim) {
    const int cell = tile % n_cell; // no more keys are visible than there are cells
#pragma unroll 2
    for (int i = threadIdx.x; i < KEYS * (D / 8); i += THREADS) {
        const int key = i / (D / 8), chunk = i % (D / 8), at = cell + min(key, end - 1 - tile);
        if (chunk * 8 >= head_dim) continue;
        const size_t from = head + (size_t)(at < n_cell ? at : at - n_cell) * head_dim + chunk * 8;
        if (CODES && scales) {
            float x[8];
            load_elements<true>(x, cells, scales, from);
            *(uint4 *)(to + place<D>(key, chunk)) = make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
        } else cp_async16(to + place<D>(key, chunk), (const __half *)cells + from);
    }
    cp_async_commit();
}

// Where among the rows of q and y query i of KV head h is.
__device__ __forceinline__ size_t row_of(const AttendMma &a, int h, int i) { return (size_t)(i / a.group) * a.n_head + h * a.group + i % a.group; }

// grid (tiles of QUERIES, KV heads, splits of the keys), BLOCKS of them on a multiprocessor; query i of a KV head is row i / group, head h * group + i % group
template <int D, int SPLIT, int KEYS, int BLOCKS, bool CODES>
__global__ void __launch_bounds__(QUERIES / 16 * SPLIT * WARP, BLOCKS) attend_mma(AttendMma a) {
    enum { WARPS = QUERIES / 16 * SPLIT, THREADS = WARPS * WARP, COLS = D / SPLIT }; // COLS: of a warp
    static_assert(2 * KEYS >= QUERIES, "the queries do not fit");
    __half *ks = (__half *)cu_dyn_smem, *vs = ks + KEYS * D;                         // [KEYS][D]
    float4 *swap = (float4 *)(vs + KEYS * D);                                        // [WARPS][KEYS / 8][WARP], where SPLIT > 1
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, g = lane / 4, t = lane % 4;
    const int h = blockIdx.y, first = (gridDim.x - 1 - blockIdx.x) * QUERIES; // the last see most: they begin first
    const int last = min(first + (int)QUERIES, a.n_query) - 1, mine = first + warp / SPLIT * 16, first_col = warp % SPLIT * COLS;
    const int from = a.window > 0 ? max(0, a.pos + first / a.group - a.window + 1) : 0; // .. pos + last / group: seen by any of them
    const int begin = from + blockIdx.z * a.per_split, end = min(a.pos + last / a.group + 1, begin + a.per_split);
    const size_t head = (size_t)h * a.n_cell * a.head_dim;

    // The queries, where keys and values will be. What is not there is 0, also beside heads narrower than D: it stays.
    for (int i = tid; i < 2 * KEYS * (D / 8); i += THREADS) {
        const int query = first + i / (D / 8), col = i % (D / 8) * 8;
        uint4 to = make_uint4(0, 0, 0, 0);
        if (query <= last && col < a.head_dim) {
            const float4 *x = (const float4 *)(a.q + row_of(a, h, query) * a.head_dim + col), low = x[0], high = x[1];
            to = make_uint4(pack(low.x, low.y), pack(low.z, low.w), pack(high.x, high.y), pack(high.z, high.w));
        }
        *(uint4 *)(ks + place<D>(i / (D / 8), i % (D / 8))) = to;
    }
    __syncthreads();
    const int k_lane = place<D>(lane / 16 * 8 + lane % 8, lane / 8 % 2) + first_col; // what ldmatrix asks this lane for
    const int v_lane = place<D>(lane % 16, lane / 16) + first_col;
    uint32_t q[COLS / 16][4];
#pragma unroll
    for (int c = 0; c < COLS / 16; c++) ldmatrix_x4(q[c], ks + moved<D>(v_lane, warp / SPLIT, 2 * c));
    __syncthreads();
    if (begin < end) fetch_tile<D, KEYS, THREADS, CODES>(ks, a.k, a.k_scale, head, begin, end, a.n_cell, a.head_dim);

    // A lane holds what mma gives it: rows g and g + 8 of the warp's 16 queries.
    const int pos[2] = {a.pos + (mine + g) / a.group, a.pos + (mine + g + 8) / a.group};
    float o[COLS / 8][4], m[2] = {-INFINITY, -INFINITY}, l[2] = {0, 0};
#pragma unroll
    for (int n = 0; n < COLS / 8; n++) o[n][0] = o[n][1] = o[n][2] = o[n][3] = 0;

    for (int tile = begin; tile < end; tile += KEYS) {
        cp_async_wait<0>();
        __syncthreads(); // the keys are there; the values before are no longer read
        fetch_tile<D, KEYS, THREADS, CODES>(vs, a.v, a.v_scale, head, tile, end, a.n_cell, a.head_dim);

        float s[KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < KEYS / 8; n++) s[n][0] = s[n][1] = s[n][2] = s[n][3] = 0;
#pragma unroll
        for (int c = 0; c < COLS / 16; c++)
#pragma unroll
            for (int n = 0; n < KEYS / 16; n++) {
                uint32_t k[4]; // 8 keys, columns c * 16 .. + 7, .. + 15; the 8 keys after them
                ldmatrix_x4(k, ks + moved<D>(k_lane, n, 2 * c));
                mma_f16(s[2 * n], q[c], k);
                mma_f16(s[2 * n + 1], q[c], k + 2);
            }
        if (SPLIT > 1) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) swap[(warp * (KEYS / 8) + n) * WARP + lane] = make_float4(s[n][0], s[n][1], s[n][2], s[n][3]);
        }
        cp_async_wait<0>();
        __syncthreads(); // the values are there; the keys are no longer read
        if (tile + KEYS < end) fetch_tile<D, KEYS, THREADS, CODES>(ks, a.k, a.k_scale, head, tile + KEYS, end, a.n_cell, a.head_dim);
        if (SPLIT > 1) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                const float4 x = swap[((warp ^ 1) * (KEYS / 8) + n) * WARP + lane]; // x + y = y + x: both warps go on with the same scores
                s[n][0] += x.x, s[n][1] += x.y, s[n][2] += x.z, s[n][3] += x.w;
            }
        }

#pragma unroll
        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
            for (int e = 0; e < 4; e++) s[n][e] *= a.scale;
        if (a.softcap > 0) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) // c tanh(s / c), tanh x = 1 - 2 / (1 + e^2x)
                    s[n][e] = a.softcap * LOG2_E * (1 - __fdividef(2, 1 + exp2f(s[n][e] * (2 * LOG2_E / a.softcap))));
        }
        if (tile + KEYS - 1 > a.pos + mine / a.group || (a.window > 0 && tile <= a.pos + (mine + 15) / a.group - a.window)) {
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                for (int e = 0; e < 4; e++) {
                    const int j = tile + n * 8 + 2 * t + e % 2, at = pos[e / 2];
                    if (j > at || (a.window > 0 && j <= at - a.window)) s[n][e] = -INFINITY;
                }
        }

        uint32_t p[KEYS / 16][4];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float highest = m[r];
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) highest = fmaxf(highest, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 1));
            highest = fmaxf(highest, __shfl_xor_sync(ALL_LANES, highest, 2));
            const float from = highest > -INFINITY ? highest : 0, shrink = exp2f(m[r] - from); // nothing seen yet: all become 0
            m[r] = highest;
            l[r] *= shrink;
#pragma unroll
            for (int n = 0; n < KEYS / 8; n++) {
                const __half2 weights = __floats2half2_rn(exp2f(s[n][2 * r] - from), exp2f(s[n][2 * r + 1] - from));
                const float2 rounded = __half22float2(weights); // these are what is divided by their sum
                l[r] += rounded.x + rounded.y;
                p[n / 2][n % 2 * 2 + r] = pack(weights);
            }
#pragma unroll
            for (int n = 0; n < COLS / 8; n++) o[n][2 * r] *= shrink, o[n][2 * r + 1] *= shrink;
        }

#pragma unroll
        for (int c = 0; c < KEYS / 16; c++)
#pragma unroll
            for (int n = 0; n < COLS / 16; n++) {
                uint32_t v[4]; // columns n * 16 .. + 7 of 8 keys, of the 8 after them; the same of the 8 columns after them
                ldmatrix_x4_trans(v, vs + moved<D>(v_lane, c, 2 * n));
                mma_f16(o[2 * n], p[c], v);
                mma_f16(o[2 * n + 1], p[c], v + 2);
            }
    }

#pragma unroll
    for (int r = 0; r < 2; r++) {
        l[r] += __shfl_xor_sync(ALL_LANES, l[r], 1);
        l[r] += __shfl_xor_sync(ALL_LANES, l[r], 2);
        const int query = mine + g + 8 * r;
        if (query > last) continue;
        float *to = a.y + row_of(a, h, query) * a.head_dim, share = 1 / l[r];
        if (a.n_split > 1) {
            to = a.part + (row_of(a, h, query) * a.n_split + blockIdx.z) * (a.head_dim + 2), share = 1;
            if (t == 0 && first_col == 0) to[a.head_dim] = m[r] / LOG2_E, to[a.head_dim + 1] = l[r];
        }
#pragma unroll
        for (int n = 0; n < COLS / 8; n++) {
            const int col = first_col + n * 8 + 2 * t;
            if (col < a.head_dim) *(float2 *)(to + col) = make_float2(o[n][2 * r] * share, o[n][2 * r + 1] * share);
        }
    }
}

template <int D, int SPLIT, int KEYS, int BLOCKS, bool CODES> static void launch_type(Backend *b, AttendMma a) {
    enum { WARPS = QUERIES / 16 * SPLIT, SHARED = 2 * KEYS * D * 2 + (SPLIT > 1 ? WARPS * WARP * KEYS / 8 * 16 : 0), LEAST = 4 * KEYS };
    const Cuda *c = cuda_of(b);
    const int n_head_kv = a.n_head / a.group, tiles = (int)blocks_for(a.n_query, QUERIES), n_row = a.n_query / a.group;
    const int n_key = a.window > 0 ? min_int(a.pos, a.window - 1) + n_row : a.pos + n_row; // no block sees more
    // Blocks for every multiprocessor, if there are keys and scratch for them.
    const int wanted = min_int(BLOCKS * c->n_sm / (tiles * n_head_kv), (int)blocks_for(n_key, LEAST));
    a.n_split = a.head_dim > c->limits.head_dim ? 1 : max_int(1, min_int(wanted, (int)(c->n_part / ((int64_t)n_row * a.n_head))));
    a.per_split = (int)blocks_for(blocks_for(n_key, a.n_split), KEYS) * KEYS;
    a.n_split = (int)blocks_for(n_key, a.per_split);
    if (!cuda_check(b, "shared memory for attend_mma", cudaFuncSetAttribute(attend_mma<D, SPLIT, KEYS, BLOCKS, CODES>, cudaFuncAttributeMaxDynamicSharedMemorySize, SHARED)))
        return;
    const double seen = a.window > 0 ? n_key : a.pos + 0.5 * n_row;
    const double elements = (a.k_scale ? 1.0625 : 2) + (a.v_scale ? 1.0625 : 2); // bytes
    CU_HOST_COST(elements * seen * n_head_kv * a.head_dim * tiles, 4 * seen * a.n_query * n_head_kv * a.head_dim);
    LAUNCH(b, (attend_mma<D, SPLIT, KEYS, BLOCKS, CODES>), dim3((unsigned)tiles, (unsigned)n_head_kv, (unsigned)a.n_split), WARPS * WARP, SHARED, a);
    if (a.n_split > 1) cuda_merge_parts(b, a.y, a.n_split, n_row * a.n_head, a.head_dim, false);
}

template <int D, int SPLIT, int KEYS, int BLOCKS> static void launch(Backend *b, const AttendMma &a) {
    if (a.k_scale || a.v_scale) launch_type<D, SPLIT, KEYS, BLOCKS, true>(b, a);
    else launch_type<D, SPLIT, KEYS, BLOCKS, false>(b, a);
}

bool attention_mma_cuda(Backend *b, const AttentionArgs *args) {
    const KvLayer *kv = args->kv;
    const int group = args->n_head / kv->n_head_kv, n_query = args->n_rows * group, D = kv->head_dim;
    if (!cuda_of(b)->has_mma || n_query < MIN_QUERIES || D % 8 || D > 512) return false;
    const AttendMma a = {args->y, cuda_of(b)->part, args->q, kv->k, kv->v, cuda_key_scales(kv), cuda_value_scales(kv), n_query, group, args->pos, args->n_head, D,
                         kv->n_cell, args->window, args->scale * (args->softcap > 0 ? 1 : LOG2_E), args->softcap, 1, 0};
    if (D <= 64) launch<64, 1, 64, 3>(b, a);
    else if (D <= 96) launch<96, 1, 64, 3>(b, a);
    else if (D <= 128) launch<128, 1, 32, 3>(b, a);
    else if (D <= 256) launch<256, 1, 32, 2>(b, a);
    else launch<512, 2, 32, 1>(b, a);
    return true;
}
