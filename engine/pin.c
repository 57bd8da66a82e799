// pin.c: see pin.h
#include "pin.h"

#include <stdlib.h>
#include <unistd.h>

void pages_add(PageRuns *s, const void *p, uint64_t bytes) {
    const uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE), at = (uintptr_t)p;
    if (s->n == s->cap) {
        const int cap = s->cap ? 2 * s->cap : 256;
        PageRun *more = realloc(s->run, sizeof *more * (size_t)cap);
        if (!more) {
            s->no_memory = true;
            return;
        }
        s->run = more;
        s->cap = cap;
    }
    s->run[s->n++] = (PageRun){(const char *)(at / page * page), (const char *)((at + (uintptr_t)bytes + page - 1) / page * page)};
}

static int by_start(const void *a, const void *b) {
    const char *x = ((const PageRun *)a)->start, *y = ((const PageRun *)b)->start;
    return (x > y) - (x < y);
}

void pages_join(PageRuns *s) {
    int n = 0;
    if (s->n) qsort(s->run, (size_t)s->n, sizeof *s->run, by_start);
    for (int i = 0; i < s->n; i++) {
        PageRun *last = n ? &s->run[n - 1] : NULL;
        if (!last || s->run[i].start > last->end) s->run[n++] = s->run[i];
        else if (s->run[i].end > last->end) last->end = s->run[i].end;
    }
    s->n = n;
}

uint64_t pages_bytes(const PageRuns *s) {
    uint64_t bytes = 0;
    for (int i = 0; i < s->n; i++) bytes += (uint64_t)(s->run[i].end - s->run[i].start);
    return bytes;
}

void pages_pin(PageRuns *s, Backend *b, uint64_t most, Progress *bar, Err *note) {
    pages_join(s);
    const double all = (double)pages_bytes(s);
    note->text[0] = 0;
    if (s->no_memory) err_set(note, "no memory");
    for (int i = 0; i < s->n && !note->text[0]; i++) {
        const uint64_t bytes = (uint64_t)(s->run[i].end - s->run[i].start);
        if (bytes > most) err_set(note, "no more than half of the memory is pinned");
        else if (b->pin(b, s->run[i].start, (size_t)bytes, note)) most -= bytes;
        progress_step(bar, (double)b->pinned_bytes, all);
    }
}

void pages_close(PageRuns *s) {
    free(s->run);
    *s = (PageRuns){0};
}
