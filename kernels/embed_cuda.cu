// embed_cuda.cu: y[r] = scale * table[ids[r]].
//
// A table that is also the head lies on the device; the ids travel as a kernel parameter: no buffer to fill, nothing to wait
// for. A table that was not loaded stays in the mapped file (per-layer tables have gigabytes, of which a token reads
// kilobytes): its rows are unpacked here and sent.
#include "cuda_quant.cuh"

enum { MAX_IDS = 256 }; // rows per launch: 1 KiB of parameters
typedef struct {
    int id[MAX_IDS];
} Ids;

// grid (rows, n_col / (8 * BLOCK)): a thread unpacks eight neighbours
template <TensorType T> __global__ void __launch_bounds__(BLOCK)
embed_rows(float *y, Weights table, const __grid_constant__ Ids ids, int n_col, float scale) {
    const int k = (blockIdx.y * BLOCK + threadIdx.x) * 8;
    if (k >= n_col) return;
    float v[8];
    load8<T>(table, (size_t)ids.id[blockIdx.x], n_col, k, v);
    float *out = y + (size_t)blockIdx.x * n_col + k;
#pragma unroll
    for (int i = 0; i < 8; i++)
        if (k + i < n_col) out[i] = v[i] * scale;
}

static void embed_from_host(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    const size_t n_col = (size_t)table->n_col, row = sizeof(float) * n_col;
    const int most = (int)(STAGE_BYTES / row);
    if (!most) backend_fail(b, "cuda backend: %s: rows of %d, at most %d fit", table->name, table->n_col, (int)(STAGE_BYTES / sizeof(float)));
    for (int r = 0, n; r < n_rows && most; r += n) {
        n = min_int(most, n_rows - r);
        float *stage = (float *)cuda_stage(b);
        if (!stage) return;
        for (int k = 0; k < n; k++) type_info(table->type)->to_f32(tensor_row(table, 0, ids[r + k]), stage + (size_t)k * n_col, table->n_col);
        for (size_t i = 0; i < (size_t)n * n_col; i++) stage[i] *= scale;
        if (!cuda_send_stage(b, y + (size_t)r * n_col, (size_t)n * row)) return;
    }
}

void embed_cuda(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    if (!table->dev) {
        embed_from_host(b, y, table, ids, n_rows, scale);
        return;
    }
    const Weights w = weights_of(table);
    const int n_col = table->n_col;
    for (int r = 0; r < n_rows; r += MAX_IDS) {
        const int n = min_int(MAX_IDS, n_rows - r);
        Ids some;
        memcpy(some.id, ids + r, sizeof(int) * (size_t)n);
        with_type(table->type, [&](auto tag) {
            const dim3 grid((unsigned)n, grid_for((n_col + 7) / 8));
            LAUNCH(b, (embed_rows<decltype(tag)::type>), grid, BLOCK, 0, y + (size_t)r * n_col, w, some, n_col, scale);
        });
    }
}
