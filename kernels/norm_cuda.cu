// norm_cuda.cu: RMSNorm, y = x / sqrt(mean(x^2) + eps) * w (arXiv 1910.07467). In place allowed: a value is read and written
// by the same thread. Short rows (heads) take a warp each, long ones a block. Bytes moved: x twice (the second time from
// cache), y once. float sums: a thread adds n / 256 squares, a tree the rest.
// And what a layer does between two matrices, in one launch: norm of the output, addition to the stream, projections, norm of the
// stream, rounding for the next product.
#include "cuda_common.cuh"

enum { SHORT_ROW = 1024 };

__global__ void __launch_bounds__(BLOCK) norm_short(float *y, const float *w, const float *x, int n_rows, int n_col, float eps) {
    const int tid = threadIdx.x, lane = tid % WARP, r = blockIdx.x * (BLOCK / WARP) + tid / WARP;
    if (r >= n_rows) return; // a whole warp
    const size_t at = (size_t)r * n_col;
    float squares = 0;
    for (int i = lane; i < n_col; i += WARP) squares += x[at + i] * x[at + i];
    const float s = 1 / sqrtf(warp_sum(squares) / n_col + eps);
    for (int i = lane; i < n_col; i += WARP) y[at + i] = x[at + i] * s * (w ? w[i] : 1.0f);
}

__global__ void __launch_bounds__(BLOCK) norm_long(float *y, const float *w, const float *x, int n_col, float eps) {
    __shared__ float slots[BLOCK / WARP];
    const int tid = threadIdx.x;
    const size_t at = (size_t)blockIdx.x * n_col;
    float squares = 0;
    for (int i = tid; i < n_col; i += BLOCK) squares += x[at + i] * x[at + i];
    const float s = 1 / sqrtf(block_sum(squares, slots) / n_col + eps);
    for (int i = tid; i < n_col; i += BLOCK) y[at + i] = x[at + i] * s * (w ? w[i] : 1.0f);
}

void norm_cuda(Backend *b, float *y, const Tensor *w, const float *x, int n_rows, int n_col, float eps) {
    const float *gain = cuda_vector(b, w);
    if ((w && !gain) || n_rows == 0) return;
    if (n_col <= SHORT_ROW) LAUNCH(b, norm_short, (unsigned)blocks_for(n_rows, BLOCK / WARP), BLOCK, 0, y, gain, x, n_rows, n_col, eps);
    else LAUNCH(b, norm_long, (unsigned)n_rows, BLOCK, 0, y, gain, x, n_col, eps);
}

enum { BETWEEN = 512 }; // threads

__device__ __forceinline__ float4 times(float4 v, float s, const float *gain, int i) {
    const float4 g = gain ? ((const float4 *)gain)[i] : make_float4(1, 1, 1, 1);
    return make_float4(v.x * s * g.x, v.y * s * g.y, v.z * s * g.z, v.w * s * g.w);
}
__device__ __forceinline__ float square(float4 v) { return v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w; }

// 1 / length of a row as the norm means it; every thread calls.
__device__ __forceinline__ float row_factor(const float4 *row, int n_quad, float eps, float *slots) {
    float squares = 0;
    for (int i = threadIdx.x; i < n_quad; i += BETWEEN) squares += square(row[i]);
    return 1 / sqrtf(block_sum<BETWEEN>(squares, slots) / (4 * n_quad) + eps);
}

__device__ __forceinline__ float4 minus(float4 v, float s, const float *dir, int i) {
    const float4 d = ((const float4 *)dir)[i];
    return make_float4(v.x - s * d.x, v.y - s * d.y, v.z - s * d.z, v.w - s * d.w);
}
__device__ __forceinline__ float along(float4 v, const float *dir, int i) {
    const float4 d = ((const float4 *)dir)[i];
    return v.x * d.x + v.y * d.y + v.z * d.z + v.w * d.w;
}
// How much of dir is taken away, from this thread's part of the product with it; every thread calls.
__device__ __forceinline__ float taken(const Projection &p, float part, float *slots) {
    const float above = block_sum<BETWEEN>(part, slots) - p.keep;
    return p.one_sided && above <= 0 ? 0 : p.amount * above;
}

// A block per row; a thread keeps to its own four-element pieces, so that only the sums need the block.
__global__ void __launch_bounds__(BETWEEN) between_matrices(const __grid_constant__ Between a) {
    __shared__ float slots[BETWEEN / WARP];
    float4 *row = (float4 *)cu_dyn_smem; // what x is at last
    const int tid = threadIdx.x, n_quad = a.n_col / 4;
    const size_t at = (size_t)blockIdx.x * n_quad;
    float4 *x = (float4 *)a.x + at, *out = a.out ? (float4 *)a.out + at : NULL, *y = a.y ? (float4 *)a.y + at : NULL;
    const float by_x = a.norm_x.eps > 0 ? row_factor(x, n_quad, a.norm_x.eps, slots) : 1;
    const float by_out = a.norm_out.eps > 0 ? row_factor(out, n_quad, a.norm_out.eps, slots) : 1;
    float part = 0, take_out = 0;
    if (a.from_out.dir) {
        for (int i = tid; i < n_quad; i += BETWEEN)
            part += along(a.norm_out.eps > 0 ? times(out[i], by_out, a.norm_out.gain, i) : out[i], a.from_out.dir, i);
        take_out = taken(a.from_out, part, slots);
        part = 0;
    }
    for (int i = tid; i < n_quad; i += BETWEEN) {
        float4 u = x[i];
        if (out) {
            float4 v = out[i];
            if (a.norm_x.eps > 0) u = times(u, by_x, a.norm_x.gain, i);
            if (a.norm_out.eps > 0) v = times(v, by_out, a.norm_out.gain, i);
            if (a.from_out.dir) v = minus(v, take_out, a.from_out.dir, i);
            if (a.norm_out.eps > 0 || a.from_out.dir) out[i] = v;
            x[i] = u = make_float4((u.x + v.x) * a.scale, (u.y + v.y) * a.scale, (u.z + v.z) * a.scale, (u.w + v.w) * a.scale);
        }
        row[i] = u;
        if (a.from_x.dir) part += along(u, a.from_x.dir, i);
    }
    if (a.from_x.dir) {
        const float take = taken(a.from_x, part, slots);
        for (int i = tid; i < n_quad; i += BETWEEN) x[i] = row[i] = minus(row[i], take, a.from_x.dir, i);
    }
    const float by = y ? row_factor(row, n_quad, a.norm_y.eps, slots) * a.y_scale : 1;
    for (int first = tid / WARP * WARP; first < n_quad; first += BETWEEN) { // whole warps: lanes beyond the end help to round
        const int i = first + tid % WARP;
        float4 v = make_float4(0, 0, 0, 0);
        if (i < n_quad) {
            v = row[i];
            if (y) y[i] = v = times(v, by, a.norm_y.gain, i);
        }
        if (a.round) round_quad(a.y8, (at + i) / 8, i % 8, v, i < n_quad);
    }
}

void cuda_between(Backend *b, const Between *a, int n_rows) {
    LAUNCH(b, between_matrices, (unsigned)n_rows, BETWEEN, sizeof(float) * (size_t)a->n_col, *a);
}
