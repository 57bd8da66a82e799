// embed_cuda.cu: y[r] = scale * table[ids[r]].
//
// A table that is also the head lies on the device. A table that was not loaded stays in the mapped file (per-layer tables have
// gigabytes, of which a token reads kilobytes): cuda_queue.cu sends rows of it, a few unpacked, many as a small table (ids NULL: all of its rows).
#include "cuda_quant.cuh"

// grid (rows, n_col / (8 * BLOCK)): a thread unpacks eight neighbours
template <TensorType T> __global__ void __launch_bounds__(BLOCK) embed_rows(float *y, Weights table, const int *ids, int n_col, float scale) {
    const int k = (blockIdx.y * BLOCK + threadIdx.x) * 8;
    if (k >= n_col) return;
    float v[8];
    load8<T>(table, ids ? (size_t)ids[blockIdx.x] : blockIdx.x, n_col, k, v);
    float *out = y + (size_t)blockIdx.x * n_col + k;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (k + i < n_col) out[i] = v[i] * scale;
}

void embed_cuda(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    const Weights w = weights_of(table);
    with_type(table->type, [&](auto tag) {
        const dim3 grid((unsigned)n_rows, grid_for((table->n_col + 7) / 8));
        LAUNCH(b, (embed_rows<decltype(tag)::type>), grid, BLOCK, 0, y, w, ids, table->n_col, scale);
    });
}
