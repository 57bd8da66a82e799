// rewrite.h: writes a GGUF file that is another but for some of its tensors, byte by byte.
//
// What stays: every key, every other tensor, the padding between them, their order, and whatever follows the last of them. With
// no stamp the header stays, too, and the file has the same size. Written beside its name, read back and compared, then renamed;
// the bytes that are no more go into an undo file first. One pass reads the old file and writes the new one, a second reads both.
// Memory: the header, and what make holds.
#ifndef REWRITE_H
#define REWRITE_H

#include "gguf.h"

typedef struct Rewriting Rewriting;

typedef struct {
    char before[65], after[65]; // SHA-256 of both files
    uint64_t bytes, undo_bytes; // of the new file and its undo file
    char (*hash)[2][65];        // [g->n_tensor] SHA-256 of each changed tensor before and after; the caller's, free
} Rewritten;

typedef struct {
    const Gguf *g;          // the old file; one that is split is refused
    const char *path;       // the new one
    const char *undo;       // NULL: none
    const int *type;        // [g->n_tensor] that each tensor will have, changed; -1: it stays
    GgufWriter *stamp;      // keys and tensors to add (gguf_writer_open without a path); NULL: the header stays, hence every type
    const char *hash_key;   // a key of the stamp, a string of 64 characters: receives the old file's SHA-256; NULL: none
    // Gives the bytes of tensor i of the old file, or of added tensor i - n_tensor, to rewrite_put, in pieces.
    bool (*make)(void *ctx, uint64_t i, Rewriting *w, Err *e);
    // Once the file and its undo file are complete and checked, before the file gets its name: what else belongs to it. NULL: nothing.
    bool (*complete)(void *ctx, const Rewritten *f, Err *e);
    // Keys for the undo file; NULL: none.
    void (*note)(const void *ctx, GgufWriter *undo);
    void *complete_ctx; // of these two
    void *ctx;
    double cost;            // of a byte that make gives, where one that is copied costs 1: for the time left
    bool quiet;
} Rewrite;

// After an error nothing is left behind. f may be partly filled.
MUST_CHECK bool rewrite_file(const Rewrite *r, Rewritten *f, Err *e);
MUST_CHECK bool rewrite_put(Rewriting *w, const void *p, size_t n, Err *e);

#endif
