// pin.h: which pages of host memory a device shall copy weights from where they are (Backend.pin): pages_add for what is wanted, in any order, then
// pages_pin, once; Backend.unpin undoes it. Pages that weights of both sides touch are among them; whoever gives pages back (gguf_forget) spares those.
#ifndef PIN_H
#define PIN_H

#include "backend.h"
#include "console.h"

typedef struct {
    const char *start, *end; // whole pages
} PageRun;

typedef struct {
    PageRun *run; // [n]
    int n, cap;
    bool no_memory;
} PageRuns;

void pages_add(PageRuns *s, const void *p, uint64_t bytes);
void pages_join(PageRuns *s); // in the order of addresses, those that touch or overlap being one
uint64_t pages_bytes(const PageRuns *s);
// As many as `most` bytes allow. The first that fails ends it: what is pinned by then is of use, and note says why not all is; else it is empty.
void pages_pin(PageRuns *s, Backend *b, uint64_t most, Progress *bar, Err *note);
void pages_close(PageRuns *s);

#endif
