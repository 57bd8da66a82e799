// embed_cpu.c: y[r] = scale * table[ids[r]]. One row of the table is unpacked per token: rarely worth more than plain C.
#include "cpu.h"

void embed_cpu(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    (void)b; // unused without OpenMP
    const int n = table->n_col;
#pragma omp parallel for num_threads(cpu_of(b)->n_thread) if ((int64_t)n_rows * n > SMALL_WORK)
    for (int r = 0; r < n_rows; r++) {
        float *out = y + (int64_t)r * n;
        type_info((int)table->type)->to_f32(tensor_row(table, 0, ids[r]), out, n);
        for (int i = 0; i < n; i++) out[i] *= scale;
    }
}
