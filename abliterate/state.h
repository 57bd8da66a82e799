// state.h: what a long run has computed so far, kept beside its output so that it can go on after Ctrl-C or a crash: a GGUF
// file (architecture abliterate.state) of float64 arrays.
#ifndef STATE_H
#define STATE_H

#include "base.h"

typedef struct {
    const char *name;
    double *v;
    int64_t n;
} StateArray;

// of: a digest of everything the result depends on.
MUST_CHECK bool state_save(const char *path, const char *of, const StateArray *a, int n, Err *e);
// *found: the file was there and of the same settings; its values are in the arrays. A damaged file is an error.
MUST_CHECK bool state_load(const char *path, const char *of, const StateArray *a, int n, bool *found, Err *e);

#endif
