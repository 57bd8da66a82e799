// fill.c: see fill.h
#include "fill.h"

#include "base.h"

enum {
    PIECE = 128 << 10, // that a thread copies at a time: so little that memcpy writes into the caches
    MAX_THREADS = 4
};

int fill_threads(void) { return min_int(processors_allowed(), MAX_THREADS); }

Pool *fill_open(void) { return pool_open(fill_threads()); }

typedef struct {
    char *to;
    const char *from;
    size_t bytes;
} Fill;

static void fill_piece(const void *args, int item, int thread) {
    const Fill *f = args;
    const size_t at = (size_t)item * PIECE, left = f->bytes - at;
    (void)thread;
    memcpy(f->to + at, f->from + at, left < (size_t)PIECE ? left : (size_t)PIECE);
}

void fill_slot(Pool *p, void *slot, const void *from, size_t bytes) {
    pool_run(p, fill_piece, &(Fill){slot, from, bytes}, (int)((bytes + PIECE - 1) / PIECE));
}
