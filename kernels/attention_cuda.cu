// attention_cuda.cu: the KV cache of one layer, float16 or Q8_0, and softmax(scale q.k) v over it (flash decoding: arXiv 2205.14135,
// split over the keys).
//
// The queries that read one KV head - neighbouring rows and the heads of a group - go through together, up to Q of them in a
// block, so that a key or value is loaded once for all. A block has four warps; each walks over the block's keys in tiles of
// 32 on its own, with a running maximum m and sum l per query:
//   scores   LANES lanes share a key, 8 elements (16 bytes) each, V times; their partial sums are added by shuffles
//   softmax  lane = key of the tile: new maximum, weights p = exp(score - m), what was summed before shrinks by exp(m_old - m)
//   values   LANES lanes share a value again; lane sums stay in registers until the end
// Then the warps' sums are merged in shared memory. With few queries the keys are split over several blocks, which leave
// (sum, m, l) in scratch for merge_parts. Bytes moved: K and V of what is visible, once per block of queries.
#include "cuda_common.cuh"

enum { ATTEND_WARPS = 4, KEYS = 32, CHUNK = ATTEND_WARPS * KEYS }; // CHUNK: a split holds a multiple of it

__global__ void __launch_bounds__(BLOCK) write_cells(void *to_k, __half *k_scale, void *to_v, __half *v_scale, const float *k, const float *v, int n_head,
                                                     int n_cell, int head_dim, const int *pos) {
    const int item = blockIdx.y * BLOCK + threadIdx.x, h = item / head_dim, i = item % head_dim; // grid (rows, width / BLOCK)
    if (h >= n_head) return; // whole warps, where there are scales
    const size_t from = (size_t)blockIdx.x * n_head * head_dim + item, to = ((size_t)h * n_cell + (*pos + (int)blockIdx.x) % n_cell) * head_dim + i;
    write_element(to_k, k_scale, to, k[from], true);
    write_element(to_v, v_scale, to, v[from], true);
}

void kv_write_cuda(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, const int *pos) {
    LAUNCH(b, write_cells, dim3((unsigned)n_rows, grid_for((int64_t)kv->n_head_kv * kv->head_dim)), BLOCK, 0, kv->k, cuda_key_scales(kv), kv->v,
           cuda_value_scales(kv), k, v, kv->n_head_kv, kv->n_cell, kv->head_dim, pos);
}

// Rows of cells, `width` T each, of keys or values.
template <typename T> struct CellRing {
    T *to;
    const T *from;
    int width;
};

// Cells of positions *pos + blockIdx.x; grid (positions, heads, 2)
template <typename T> __global__ void __launch_bounds__(WARP) copy_cells(CellRing<T> keys, CellRing<T> values, int to_cells, int from_cells, const int *pos) {
    const CellRing<T> ring = blockIdx.z ? values : keys;
    const int p = *pos + (int)blockIdx.x;
    T *to = ring.to + ((size_t)blockIdx.y * to_cells + p % to_cells) * ring.width;
    const T *from = ring.from + ((size_t)blockIdx.y * from_cells + p % from_cells) * ring.width;
    for (int i = threadIdx.x; i < ring.width; i += WARP) to[i] = from[i];
}

// Elements go in pieces of 16 bytes: head_dim is a multiple of 8 halves or 32 codes.
void kv_copy_cuda(Backend *b, const KvLayer *to, const KvLayer *from, int n, const int *pos) {
    const int D = to->head_dim, groups = D / WARP, per_piece[2] = {to->type_k == TYPE_Q8_0 ? 16 : 8, to->type_v == TYPE_Q8_0 ? 16 : 8};
    const dim3 grid((unsigned)n, (unsigned)to->n_head_kv, 2);
    LAUNCH(b, copy_cells<uint4>, grid, WARP, 0, CellRing<uint4>{(uint4 *)to->k, (const uint4 *)from->k, D / per_piece[0]},
           CellRing<uint4>{(uint4 *)to->v, (const uint4 *)from->v, D / per_piece[1]}, to->n_cell, from->n_cell, pos);
    if (to->type_k != TYPE_Q8_0 && to->type_v != TYPE_Q8_0) return;
    LAUNCH(b, copy_cells<__half>, grid, WARP, 0, CellRing<__half>{cuda_key_scales(to), cuda_key_scales(from), cuda_key_scales(to) ? groups : 0},
           CellRing<__half>{cuda_value_scales(to), cuda_value_scales(from), cuda_value_scales(to) ? groups : 0}, to->n_cell, from->n_cell, pos);
}

typedef struct {
    float *y, *part;      // part [n_query of all heads][n_split][head_dim + 2]
    const float *q;
    const void *k, *v;
    const __half *k_scale, *v_scale; // NULL: halves
    const int *pos;
    int n_rows, n_head, n_head_kv, head_dim, n_cell, window;
    float scale, softcap;
    int n_split;
} Attend;

// No block sees more keys.
__host__ __device__ static inline int most_keys(int pos, int n_rows, int window) {
    return window > 0 && window - 1 < pos ? window - 1 + n_rows : pos + n_rows;
}

// Floats of shared memory: the queries and four warps' scores; afterwards, in the same place, four warps' sums, m and l.
static inline int shared_floats(int n_query, int head_dim) {
    return max_int(n_query * head_dim + ATTEND_WARPS * n_query * KEYS, ATTEND_WARPS * n_query * (head_dim + 2));
}

// grid (queries / Q, KV heads, splits); query i of a KV head is row i / group, head h * group + i % group
// At least two blocks per multiprocessor: said, ptxas uses the registers there are; left to choose, it spilled a few.
template <int LANES, int V, int Q, bool CODES> __global__ void __launch_bounds__(ATTEND_WARPS * WARP, 2) attend(Attend a) {
    const int tid = threadIdx.x, lane = tid % WARP, warp = tid / WARP, D = a.head_dim;
    const int h = blockIdx.y, group = a.n_head / a.n_head_kv, first = blockIdx.x * Q, n_q = min(Q, a.n_rows * group - first);
    float *qs = (float *)cu_dyn_smem, *score = qs + Q * D + warp * Q * KEYS; // [Q][D]; [Q][KEYS] of this warp
    for (int i = tid; i < Q * D; i += ATTEND_WARPS * WARP) {
        const int query = first + i / D;
        qs[i] = i / D < n_q ? a.q[((size_t)(query / group) * a.n_head + h * group + query % group) * D + i % D] * a.scale : 0;
    }
    __syncthreads();

    const int at_pos = *a.pos, first_pos = at_pos + first / group, last_pos = at_pos + (first + n_q - 1) / group; // of the block's queries
    const int per_split = (most_keys(at_pos, a.n_rows, a.window) + a.n_split * CHUNK - 1) / (a.n_split * CHUNK) * CHUNK;
    const int from = a.window > 0 ? max(0, first_pos - a.window + 1) : 0;                    // all that any of them sees
    const int begin = from + blockIdx.z * per_split, end = min(last_pos + 1, begin + per_split);
    const size_t head = (size_t)h * a.n_cell * D;
    const int sub = lane / LANES, part = lane % LANES; // WARP / LANES keys at a time
    float m[Q], l[Q], sum[Q][V * 8];
#pragma unroll
    for (int i = 0; i < Q; i++) {
        m[i] = -INFINITY, l[i] = 0;
#pragma unroll
        for (int e = 0; e < V * 8; e++) sum[i][e] = 0;
    }

    for (int tile = begin + warp * KEYS; tile < end; tile += CHUNK) {
        const int cell = tile % a.n_cell, n_key = min((int)KEYS, end - tile); // no more keys are visible than there are cells
#pragma unroll 2
        for (int at = 0; at < KEYS; at += WARP / LANES) {
            const int key = at + sub, c = cell + key < a.n_cell ? cell + key : cell + key - a.n_cell;
            float dot[Q];
#pragma unroll
            for (int i = 0; i < Q; i++) dot[i] = 0;
#pragma unroll
            for (int v = 0; v < V; v++) {
                const int e = (v * LANES + part) * 8;
                if (key >= n_key || e >= D) continue;
                float k[8];
                load_elements<CODES>(k, a.k, a.k_scale, head + (size_t)c * D + e);
#pragma unroll
                for (int i = 0; i < Q; i++) {
                    const float4 u = *(const float4 *)(qs + i * D + e), w = *(const float4 *)(qs + i * D + e + 4);
                    dot[i] += k[0] * u.x + k[1] * u.y + k[2] * u.z + k[3] * u.w + k[4] * w.x + k[5] * w.y + k[6] * w.z + k[7] * w.w;
                }
            }
#pragma unroll
            for (int i = 0; i < Q; i++) {
#pragma unroll
                for (int step = LANES / 2; step; step /= 2) dot[i] += __shfl_xor_sync(ALL_LANES, dot[i], step);
                if (part == 0) score[i * KEYS + key] = dot[i];
            }
        }
        __syncwarp();
#pragma unroll
        for (int i = 0; i < Q; i++) {
            const int pos = at_pos + (first + i) / group, j = tile + lane;
            const bool visible = i < n_q && lane < n_key && j <= pos && (a.window == 0 || j > pos - a.window);
            float s = score[i * KEYS + lane];
            if (a.softcap > 0) s = a.softcap * tanhf(s / a.softcap);
            const float highest = fmaxf(m[i], warp_max(visible ? s : -INFINITY));
            const float p = visible ? expf(s - highest) : 0, shrink = m[i] > -INFINITY ? expf(m[i] - highest) : 0;
            m[i] = highest;
            l[i] = l[i] * shrink + warp_sum(p);
            score[i * KEYS + lane] = p;
#pragma unroll
            for (int e = 0; e < V * 8; e++) sum[i][e] *= shrink;
        }
        __syncwarp();
#pragma unroll 2
        for (int at = 0; at < KEYS; at += WARP / LANES) {
            const int key = at + sub, c = cell + key < a.n_cell ? cell + key : cell + key - a.n_cell;
#pragma unroll
            for (int v = 0; v < V; v++) {
                const int e = (v * LANES + part) * 8;
                if (key >= n_key || e >= D) continue;
                float x[8];
                load_elements<CODES>(x, a.v, a.v_scale, head + (size_t)c * D + e);
#pragma unroll
                for (int i = 0; i < Q; i++) {
                    const float p = score[i * KEYS + key];
#pragma unroll
                    for (int k = 0; k < 8; k++) sum[i][v * 8 + k] += p * x[k];
                }
            }
        }
        __syncwarp(); // the next tile writes scores
    }

    // Lanes with the same part, then the warps.
    __syncthreads(); // queries and scores are no longer read
    float *sums = (float *)cu_dyn_smem, *ms = sums + ATTEND_WARPS * Q * D, *ls = ms + ATTEND_WARPS * Q; // [warp][Q][D], [warp][Q], [warp][Q]
#pragma unroll
    for (int i = 0; i < Q; i++) {
#pragma unroll
        for (int e = 0; e < V * 8; e++) {
            float x = sum[i][e];
#pragma unroll
            for (int step = LANES; step < WARP; step *= 2) x += __shfl_xor_sync(ALL_LANES, x, step);
            const int at = (e / 8 * LANES + part) * 8 + e % 8;
            if (sub == 0 && at < D) sums[(warp * Q + i) * D + at] = x;
        }
        if (lane == 0) ms[warp * Q + i] = m[i], ls[warp * Q + i] = l[i];
    }
    __syncthreads();
    for (int at = tid; at < n_q * D; at += ATTEND_WARPS * WARP) {
        const int i = at / D, e = at % D, query = first + i;
        float highest = -INFINITY, x = 0, total = 0;
#pragma unroll
        for (int w = 0; w < ATTEND_WARPS; w++) highest = fmaxf(highest, ms[w * Q + i]);
#pragma unroll
        for (int w = 0; w < ATTEND_WARPS; w++) {
            const float share = ls[w * Q + i] > 0 ? expf(ms[w * Q + i] - highest) : 0;
            x += share * sums[(w * Q + i) * D + e];
            total += share * ls[w * Q + i];
        }
        const size_t out = (size_t)(query / group) * a.n_head + h * group + query % group;
        if (a.n_split == 1) a.y[out * D + e] = x / total;
        else {
            float *to = a.part + (out * a.n_split + blockIdx.z) * (D + 2);
            to[e] = x;
            if (e == 0) to[D] = highest, to[D + 1] = total;
        }
    }
}

// A warp per 32 elements of a (row, head), which it also rounds if asked; grid (rows * heads, head_dim / 32). A split that saw
// nothing has total 0.
__global__ void __launch_bounds__(WARP) merge_parts(float *y, Act8 y8, bool round, const float *part, int n_split, int head_dim) {
    __shared__ __align__(16) float made[WARP];
    const int D = head_dim, lane = threadIdx.x, e = blockIdx.y * WARP + lane;
    part += (size_t)blockIdx.x * n_split * (D + 2);
    float highest = -INFINITY, x = 0, total = 0;
    for (int s = lane; s < n_split; s += WARP) highest = fmaxf(highest, part[s * (D + 2) + D]);
    highest = warp_max(highest);
    for (int s = 0; s < n_split; s++) {
        const float *p = part + s * (D + 2), share = p[D + 1] > 0 ? expf(p[D] - highest) : 0;
        if (e < D) x += share * p[e];
        total += share * p[D + 1];
    }
    if (e < D) y[(size_t)blockIdx.x * D + e] = x / total;
    if (!round) return;
    made[lane] = x / total;
    __syncwarp();
    round_quad(y8, (size_t)blockIdx.x * (D / WARP) + blockIdx.y, lane % 8, ((const float4 *)made)[lane % 8], lane < 8);
}

bool cuda_merge_parts(Backend *b, float *y, int n_split, int n, int head_dim, bool round) {
    const Cuda *c = cuda_of(b);
    round = round && head_dim % WARP == 0;
    LAUNCH(b, merge_parts, dim3((unsigned)n, (unsigned)blocks_for(head_dim, WARP)), WARP, 0, y, c->act8, round, c->part, n_split, head_dim);
    return round;
}

template <int LANES, int V, int Q> static bool launch_attend(Backend *b, Attend a, int pos, bool round) {
    const Cuda *c = cuda_of(b);
    const int n_query = a.n_rows * (a.n_head / a.n_head_kv), tiles = (int)blocks_for(n_query, Q), base = tiles * a.n_head_kv;
    const int n_key = most_keys(pos, a.n_rows, a.window);
    // Two blocks per multiprocessor, if there are keys for them. base < 2 n_sm where n_split > 1: fewer than 4 n_sm Q parts.
    const int wanted = base < 2 * c->n_sm ? (int)blocks_for(2 * c->n_sm, base) : 1;
    a.n_split = max_int(1, min_int(wanted, (int)blocks_for(n_key, CHUNK)));
    if (a.n_split > 1 && ((int64_t)a.n_rows * a.n_head * a.n_split > c->n_part || a.head_dim > c->limits.head_dim)) {
        backend_fail(b, "cuda backend: attention over heads of %d, reserved are %d", a.head_dim, c->limits.head_dim);
        return false;
    }
    const size_t shared = sizeof(float) * (size_t)shared_floats(Q, a.head_dim);
    const double elements = (a.k_scale ? 1.0625 : 2) + (a.v_scale ? 1.0625 : 2); // bytes
    CU_HOST_COST(elements * n_key * a.n_head_kv * a.head_dim * tiles, 4.0 * n_key * n_query * a.n_head_kv * a.head_dim);
    const dim3 grid((unsigned)tiles, (unsigned)a.n_head_kv, (unsigned)a.n_split);
    if (a.k_scale || a.v_scale) LAUNCH(b, (attend<LANES, V, Q, true>), grid, ATTEND_WARPS * WARP, shared, a);
    else LAUNCH(b, (attend<LANES, V, Q, false>), grid, ATTEND_WARPS * WARP, shared, a);
    return a.n_split > 1 && cuda_merge_parts(b, a.y, a.n_split, a.n_rows * a.n_head, a.head_dim, round);
}

template <int LANES, int V> static bool choose_queries(Backend *b, const Attend &a, int pos, bool round) {
    const int n_query = a.n_rows * (a.n_head / a.n_head_kv);
    if (n_query == 1) return launch_attend<LANES, V, 1>(b, a, pos, round);
    if (n_query == 2) return launch_attend<LANES, V, 2>(b, a, pos, round);
    if (n_query <= 4 || V > 1) return launch_attend<LANES, V, 4>(b, a, pos, round); // registers for 64 elements of sums
    return launch_attend<LANES, V, 8 / V>(b, a, pos, round);
}

bool attention_cuda(Backend *b, const AttentionArgs *args, const int *pos, bool round) {
    if (args->n_rows > MAX_MATVEC_ROWS && attention_mma_cuda(b, args)) return false; // what may be replayed has its position in *pos
    const KvLayer *kv = args->kv;
    const int D = kv->head_dim;
    if (D % 8 || D > 512) {
        backend_fail(b, "cuda backend: attention heads of %d, expected a multiple of 8 up to 512", D);
        return false;
    }
    const Attend a = {args->y, cuda_of(b)->part, args->q, kv->k, kv->v, cuda_key_scales(kv), cuda_value_scales(kv), pos, args->n_rows, args->n_head,
                      kv->n_head_kv, D, kv->n_cell, args->window, args->scale, args->softcap, 1};
    if (D <= 64) return choose_queries<8, 1>(b, a, args->pos, round);
    if (D <= 128) return choose_queries<16, 1>(b, a, args->pos, round);
    if (D <= 256) return choose_queries<32, 1>(b, a, args->pos, round);
    return choose_queries<32, 2>(b, a, args->pos, round);
}
