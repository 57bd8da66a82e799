// pages.h: how much of this process's memory the weights of a model take, and whether it is the file's (Linux, proc(5) pagemap).
#ifndef PAGES_H
#define PAGES_H

#include <fcntl.h>
#include "model.h"
#include "test.h"

typedef struct {
    int fd;
    int pages, file, memory; // that weights fill; of them in memory: the file's own, and others
} Pages;

// Whole pages of matrices; vectors may have been converted.
static inline bool count_pages(void *ctx, Tensor *t, int layer, bool ffn) {
    Pages *k = ctx;
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), bytes = (uintptr_t)(tensor_bytes(t) / t->n_slice);
    (void)layer, (void)ffn;
    if (t->n_row == 1) return true;
    for (int s = 0; s < t->n_slice; s++)
        for (uintptr_t at = (uintptr_t)tensor_row(t, s, 0), p = (at + page - 1) / page * page; p + page <= at + bytes; p += page) {
            uint64_t entry = 0;
            if (pread(k->fd, &entry, sizeof entry, (off_t)(p / page * sizeof entry)) != sizeof entry) abort();
            k->pages++;
            if (entry >> 63) *(entry >> 61 & 1 ? &k->file : &k->memory) += 1;
        }
    return true;
}

static inline Pages pages_of_model(Model *m) {
    Pages k = {.fd = open("/proc/self/pagemap", O_RDONLY)};
    if (k.fd < 0) return k;
    (void)!model_each(m, count_pages, &k);
    close(k.fd);
    return k;
}

#endif
