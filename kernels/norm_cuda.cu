// norm_cuda.cu: RMSNorm, y = x / sqrt(mean(x^2) + eps) * w (arXiv 1910.07467). In place allowed: a value is read and written
// by the same thread. Short rows (heads) take a warp each, long ones a block. Bytes moved: x twice (the second time from
// cache), y once. float sums: a thread adds n / 256 squares, a tree the rest.
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
