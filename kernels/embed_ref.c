// embed_ref.c: y[r] = scale * table[ids[r]]
#include "ref.h"

void embed_ref(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    (void)b;
    const int n = table->n_col;
    for (int r = 0; r < n_rows; r++) {
        float *out = y + (int64_t)r * n;
        type_info(table->type)->to_f32(tensor_row(table, 0, ids[r]), out, n);
        for (int i = 0; i < n; i++) out[i] *= scale;
    }
}
