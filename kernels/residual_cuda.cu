// residual_cuda.cu: the small ops on the residual stream: add, scale, soft cap, projection, copies, and Gemma 3n's streams.
// A thread per element, or a block per row where the row is summed. Rows count along x of the grid, which has room for 2^31.
#include "cuda_common.cuh"

__global__ void __launch_bounds__(BLOCK) add_each(float *x, const float *y, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) x[i] += y[i];
}

__global__ void __launch_bounds__(BLOCK) scale_each(float *x, float s, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) x[i] *= s;
}

__global__ void __launch_bounds__(BLOCK) softcap_each(float *x, float cap, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) x[i] = cap * tanhf(x[i] / cap);
}

void add_cuda(Backend *b, float *x, const float *y, int64_t n) {
    if (n) LAUNCH(b, add_each, grid_for(n), BLOCK, 0, x, y, n);
}

void scale_cuda(Backend *b, float *x, float s, int64_t n) {
    if (n) LAUNCH(b, scale_each, grid_for(n), BLOCK, 0, x, s, n);
}

void softcap_cuda(Backend *b, float *x, float cap, int64_t n) {
    if (n) LAUNCH(b, softcap_each, grid_for(n), BLOCK, 0, x, cap, n);
}

__global__ void __launch_bounds__(BLOCK) run_steps(const __grid_constant__ Steps a, int64_t n) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i >= n) return;
    for (int k = 0; k < a.n; k++) { // through memory: a buffer of one step may be that of the next
        const Step &p = a.step[k];
        switch (p.kind) {
        case STEP_ADD: p.x[i] += p.y[i]; break;
        case STEP_SCALE: p.x[i] *= p.s; break;
        case STEP_COPY: p.x[i] = p.y[i]; break;
        case STEP_MUL_COLS: p.x[i] *= p.y[i % p.n_col]; break;
        case STEP_SOFTCAP: p.x[i] = p.s * tanhf(p.x[i] / p.s); break;
        }
    }
}

void cuda_steps(Backend *b, const Steps *a, int64_t n) {
    LAUNCH(b, run_steps, grid_for(n), BLOCK, 0, *a, n);
}

__global__ void __launch_bounds__(BLOCK) project_rows(ProjectArgs a) {
    __shared__ float slots[BLOCK / WARP];
    const int tid = threadIdx.x;
    float *row = a.x + (size_t)blockIdx.x * a.n_col;
    float sum = 0;
    for (int i = tid; i < a.n_col; i += BLOCK) sum += a.dir[i] * row[i];
    const float along = block_sum(sum, slots) - a.keep;
    if (a.one_sided && along <= 0) return; // the whole block
    for (int i = tid; i < a.n_col; i += BLOCK) row[i] -= a.amount * along * a.dir[i];
}

void project_out_cuda(Backend *b, const ProjectArgs *a) { LAUNCH(b, project_rows, (unsigned)a->n_rows, BLOCK, 0, *a); }

// grid (rows, n_col / BLOCK) from here on
__global__ void __launch_bounds__(BLOCK) add_dir_rows(float *x, const float *dir, int n_col, float amount) {
    const int i = blockIdx.y * BLOCK + threadIdx.x;
    if (i < n_col) x[(size_t)blockIdx.x * n_col + i] += amount * dir[i];
}

__global__ void __launch_bounds__(BLOCK) copy_each_row(float *dst, int dst_stride, const float *src, int src_stride, int n_col) {
    const int i = blockIdx.y * BLOCK + threadIdx.x;
    if (i < n_col) dst[(size_t)blockIdx.x * dst_stride + i] = src[(size_t)blockIdx.x * src_stride + i];
}

__global__ void __launch_bounds__(BLOCK) mul_each_row(float *x, const float *w, int n_col) {
    const int i = blockIdx.y * BLOCK + threadIdx.x;
    if (i < n_col) x[(size_t)blockIdx.x * n_col + i] *= w[i];
}

// grid (rows, n_col / BLOCK, n_out)
__global__ void __launch_bounds__(BLOCK) mix_each(float *y, const float *coef, const float *x, int n_out, int n_in, int n_col) {
    const int i = blockIdx.y * BLOCK + threadIdx.x, j = blockIdx.z;
    if (i >= n_col) return;
    const size_t stream = (size_t)gridDim.x * n_col, at = (size_t)blockIdx.x * n_col + i;
    const float *c = coef + ((size_t)blockIdx.x * n_out + j) * n_in;
    float sum = y[(size_t)j * stream + at];
    for (int s = 0; s < n_in; s++) sum += c[s] * x[(size_t)s * stream + at];
    y[(size_t)j * stream + at] = sum;
}

__global__ void __launch_bounds__(BLOCK) match_rows(float *u, const float *target, int n_col) {
    __shared__ float slots[BLOCK / WARP];
    const int tid = threadIdx.x;
    const size_t at = (size_t)blockIdx.x * n_col;
    float have = 0, want = 0;
    for (int i = tid; i < n_col; i += BLOCK) {
        have += u[at + i] * u[at + i];
        want += target[at + i] * target[at + i];
    }
    have = block_sum(have, slots);
    want = block_sum(want, slots);
    const float s = have > 0 ? sqrtf(want / have) : 0;
    for (int i = tid; i < n_col; i += BLOCK) u[at + i] *= s;
}

static dim3 row_grid(int n_rows, int n_col, int n_layer) { return dim3((unsigned)n_rows, grid_for(n_col), (unsigned)n_layer); }

void add_dir_cuda(Backend *b, float *x, const float *dir, int n_rows, int n_col, float amount) {
    LAUNCH(b, add_dir_rows, row_grid(n_rows, n_col, 1), BLOCK, 0, x, dir, n_col, amount);
}

void copy_rows_cuda(Backend *b, float *dst, int dst_stride, const float *src, int src_stride, int n_rows, int n_col) {
    LAUNCH(b, copy_each_row, row_grid(n_rows, n_col, 1), BLOCK, 0, dst, dst_stride, src, src_stride, n_col);
}

void mul_cols_cuda(Backend *b, float *x, const Tensor *w, int n_rows) {
    const float *gain = cuda_vector(b, w);
    if (gain) LAUNCH(b, mul_each_row, row_grid(n_rows, w->n_col, 1), BLOCK, 0, x, gain, w->n_col);
}

void mix_streams_cuda(Backend *b, float *y, const float *coef, const float *x, int n_out, int n_in, int n_rows, int n_col) {
    LAUNCH(b, mix_each, row_grid(n_rows, n_col, n_out), BLOCK, 0, y, coef, x, n_out, n_in, n_col);
}

void match_length_cuda(Backend *b, float *u, const float *target, int n_rows, int n_col) {
    LAUNCH(b, match_rows, (unsigned)n_rows, BLOCK, 0, u, target, n_col);
}
