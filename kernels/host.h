// host.h: the memory operations of backends whose buffers lie in host memory (ref and cpu).
#ifndef HOST_H
#define HOST_H

#include <stdlib.h>
#include "backend.h"

static inline void free_host(Backend *b, void *p) {
    (void)b;
    free(p);
}

static inline void copy_host(Backend *b, void *dst, const void *src, size_t bytes) {
    (void)b;
    memcpy(dst, src, bytes);
}

// Of head h the cells of positions pos .. pos + n - 1, whose rows take `bytes` each, from one ring to another.
static inline void copy_cells(char *to, int to_cells, const char *from, int from_cells, int h, int n, int pos, int64_t bytes) {
    for (int i = 0, k; i < n; i += k) {
        const int a = (pos + i) % to_cells, b = (pos + i) % from_cells;
        k = min_int(n - i, min_int(to_cells - a, from_cells - b));
        memcpy(to + ((int64_t)h * to_cells + a) * bytes, from + ((int64_t)h * from_cells + b) * bytes, (size_t)(k * bytes));
    }
}

// Codes and scales, or elements of other types, of keys or of values.
static inline void copy_head(const KvLayer *to, void *to_rows, const KvLayer *from, void *from_rows, TensorType type, int h, int n, int pos) {
    const int dim = to->head_dim;
    copy_cells((char *)to_rows, to->n_cell, (const char *)from_rows, from->n_cell, h, n, pos, type == TYPE_Q8_0 ? dim : type_row_bytes(type, dim));
    if (type == TYPE_Q8_0)
        copy_cells((char *)kv_scales(to, to_rows), to->n_cell, (const char *)kv_scales(from, from_rows), from->n_cell, h, n, pos, dim / 32 * (int64_t)sizeof(F16));
}

// Ops return when they are done.
static inline bool sync_host(Backend *b, Err *e) {
    if (b->first_error.text[0]) return err_set(e, "%s", b->first_error.text);
    return true;
}

#endif
