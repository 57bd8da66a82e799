// behaviour.h: does an answer show the behaviour? By markers: texts that occur in such answers and not in others.
#ifndef BEHAVIOUR_H
#define BEHAVIOUR_H

#include "tokenizer.h"

// Marker texts, one a line; compared without regard to case and to the shape of apostrophes.
typedef struct {
    char **text;
    int n;
} Markers;
extern const char *const DEFAULT_MARKERS[]; // common ways to decline, NULL-terminated
MUST_CHECK bool markers_read(Markers *m, const char *path, Err *e); // path NULL: the default ones
void markers_free(Markers *m);
bool markers_found(const Markers *m, const char *answer);

// An answer that is none: without visible text, or going round in circles (of at least 16 tokens, fewer than half of the
// sequences of 4 are distinct).
bool is_degenerate(const Ids *answer, const char *text);
// The expected text occurs in the answer, without regard to case and the amount of white space.
bool is_correct(const char *answer, const char *expected);

#endif
