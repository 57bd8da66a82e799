// prompts.h: prompt files: one prompt a line, UTF-8; after a TAB may stand the answer that is expected (only `report` uses it).
// Empty lines do not count. And their split into a part to learn from and a part to check on.
#ifndef PROMPTS_H
#define PROMPTS_H

#include "base.h"

typedef struct {
    const char *text;
    const char *answer; // NULL: none given
} PromptLine;

typedef struct {
    char *path;
    char *bytes;
    PromptLine *line;
    int n;
    char sha256[65]; // of the file's bytes
} PromptFile;

// Fewer than `least` prompts are an error.
MUST_CHECK bool prompts_read(PromptFile *p, const char *path, int least, Err *e);
void prompts_free(PromptFile *p); // accepts zeroed ones
int prompts_shared(const PromptFile *a, const PromptFile *b); // how many prompts of a are in b, too

// The prompts in an order drawn from the seed: the first n_train to learn from, the next n_check to check on.
typedef struct {
    int *order;
    int n_train, n_check;
} Split;
// check, train: how many; -1: a fifth, at most 32, at least least_check; all the others.
MUST_CHECK bool split_make(Split *s, const PromptFile *p, uint64_t seed, uint64_t stream, int train, int check, int least_check, Err *e);
void split_free(Split *s);

#endif
