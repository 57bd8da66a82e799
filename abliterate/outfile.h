// outfile.h: a large file that appears under its name only when it is complete. outfile_open; outfile_write until all is there;
// outfile_sync; read it back under the name tmp; outfile_commit. outfile_close in any case: it removes what was not committed.
// Killed at any moment, nothing is left but PATH.tmp, which the next one removes.
#ifndef OUTFILE_H
#define OUTFILE_H

#include "base.h"

typedef struct {
    char *path, *tmp;
    int fd;      // -1: none
    bool left;   // tmp exists and is ours
    uint64_t n;  // bytes it will have
    uint64_t at; // where the next ones go
} OutFile;

// Takes the room for n bytes, and further ones beside it (of other files in the same folder), at once: a full disk is an error here,
// not after all the work.
MUST_CHECK bool outfile_open(OutFile *o, const char *path, uint64_t n, uint64_t further, Err *e);
MUST_CHECK bool outfile_write(OutFile *o, const void *p, size_t n, Err *e);
MUST_CHECK bool outfile_sync(OutFile *o, Err *e); // on the disk, and out of memory: what is read now comes from there
MUST_CHECK bool outfile_commit(OutFile *o, Err *e);
void outfile_close(OutFile *o);

// Refuses an output, or its temporary file, that is one of n inputs (NULL: none), by any name or link.
MUST_CHECK bool outfile_check(const char *path, const char *const *inputs, int n, Err *e);
// Would both names be the same file? They need not exist, their folders do.
bool outfile_same(const char *a, const char *b);

// What ends a program must not leave gigabytes behind: SIGTERM and SIGHUP set `interrupted` (console.h), as Ctrl-C does. And a limit
// of file sizes is an error of outfile_write.
void catch_end(void);

#endif
