// gated_cuda.cu: act(gate) * up, and Gemma 3n's sparse gate
#include "cuda_common.cuh"

__global__ void __launch_bounds__(BLOCK) gated_each(float *y, const float *gate, const float *up, int64_t n, Activation act) {
    const int64_t i = (int64_t)blockIdx.x * BLOCK + threadIdx.x;
    if (i < n) y[i] = silu_or_gelu(gate[i], act) * up[i];
}

void gated_cuda(Backend *b, float *y, const float *gate, const float *up, int64_t n, Activation act) {
    if (n) LAUNCH(b, gated_each, grid_for(n), BLOCK, 0, y, gate, up, n, act);
}

// A block per row, three passes: mean, spread about the mean, cut.
__global__ void __launch_bounds__(BLOCK) sparsify_rows(float *x, float multiplier, int n_col) {
    __shared__ float slots[BLOCK / WARP];
    const int tid = threadIdx.x;
    float *row = x + (size_t)blockIdx.x * n_col;
    float sum = 0, squares = 0;
    for (int i = tid; i < n_col; i += BLOCK) sum += row[i];
    const float mean = block_sum(sum, slots) / n_col;
    for (int i = tid; i < n_col; i += BLOCK) squares += (row[i] - mean) * (row[i] - mean);
    const float cut = mean + multiplier * sqrtf(block_sum(squares, slots) / (n_col > 1 ? n_col - 1 : 1));
    for (int i = tid; i < n_col; i += BLOCK) row[i] = row[i] > cut ? row[i] - cut : 0;
}

void sparsify_cuda(Backend *b, float *x, float multiplier, int n_rows, int n_col) {
    LAUNCH(b, sparsify_rows, (unsigned)n_rows, BLOCK, 0, x, multiplier, n_col);
}
