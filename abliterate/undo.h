// undo.h: the file that gives an edited model its original bytes back: GGUF with architecture `abliterate.undo`. No second format.
//
// The original is a row of pieces, each of them either bytes of the edited file or bytes that only the undo file has. Keys:
//   abliterate.undo.at [n_piece] u64    where the piece lies in the edited file; 2^64 - 1: it is the next tensor of the undo file
//   abliterate.undo.bytes [n_piece] u64 its length
//   abliterate.undo.original, .edited   SHA-256 of both files
//   abliterate.edit.N.*                 what the edit was: the keys that an edited model is stamped with, also where it is not (--strict)
// Its tensors (I8) have the names of those that were changed, and `abliterate.header` for everything before the data.
#ifndef UNDO_H
#define UNDO_H

#include "gguf.h"

#define UNDO_STORED UINT64_MAX

typedef struct {
    uint64_t at;      // in the edited file, or UNDO_STORED
    uint64_t n;
    const char *name; // stored: of the tensor;
    const void *p;    // its bytes
} UndoPiece;

// g: the original, which the pieces lie in. note (NULL: nothing) may add keys.
MUST_CHECK bool undo_write(const char *path, const Gguf *g, const UndoPiece *piece, uint64_t n_piece, const char original[65], const char edited[65],
                           void (*note)(const void *ctx, GgufWriter *undo), const void *ctx, Err *e);

typedef struct {
    Gguf g;
    UndoPiece *piece; // [n_piece]
    uint64_t n_piece;
    uint64_t n;       // bytes of the original
    char original[65], edited[65];
} Undo;

MUST_CHECK bool undo_open(Undo *u, const char *path, Err *e);
void undo_close(Undo *u); // accepts zeroed ones
// Are the n bytes the edited file that it is for? Reads all of them.
bool undo_is_for(const Undo *u, const uint8_t *edited, uint64_t n);
// What it says of the edit, for people: "direction 1a2b3c4d..., strength 1, layers 0-31"; several edits: the last. False: nothing (it is of an older version).
bool undo_tells(const Undo *u, char *out, size_t n);
// The original's bytes, in order and at most a MiB at once, from the n bytes of the edited file. take: until it returns false.
MUST_CHECK bool undo_each(const Undo *u, const uint8_t *edited, uint64_t n, bool (*take)(void *ctx, const uint8_t *p, uint64_t n, Err *e), void *ctx, Err *e);

#endif
