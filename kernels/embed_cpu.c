// embed_cpu.c: y[r] = scale * table[ids[r]]. One row of the table is unpacked per token: rarely worth more than plain C.
#include "cpu.h"

typedef struct {
    float *y;
    const Tensor *table;
    const int *ids;
    float scale;
} Embed;

static void embed_row(const void *args, int r, int thread) {
    const Embed *a = args;
    (void)thread;
    const int n = a->table->n_col;
    float *out = a->y + (int64_t)r * n;
    type_info((int)a->table->type)->to_f32(tensor_row(a->table, 0, a->ids[r]), out, n);
    for (int i = 0; i < n; i++) out[i] *= a->scale;
}

void embed_cpu(Backend *b, float *y, const Tensor *table, const int *ids, int n_rows, float scale) {
    share(b, (int64_t)n_rows * table->n_col, embed_row, &(Embed){y, table, ids, scale}, n_rows);
}
