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

// Ops return when they are done.
static inline bool sync_host(Backend *b, Err *e) {
    if (b->first_error.text[0]) return err_set(e, "%s", b->first_error.text);
    return true;
}

#endif
