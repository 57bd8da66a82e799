// pretokenize.h: cuts text into the words inside which byte-level BPE may merge.
#ifndef PRETOKENIZE_H
#define PRETOKENIZE_H

#include "base.h"

typedef struct Splitter Splitter;

// What a value of tokenizer.ggml.pre means.
enum {
    PRE_IGNORE_MERGES = 1,  // a word that is a token as a whole is that token
    PRE_ADD_BOS = 2,        // unless the file says otherwise
    PRE_NO_DEFAULT_IDS = 4, // no BOS and EOS unless the file names them
};
typedef struct {
    const char *names;
    const Splitter *splitter;
    int flags;
} PreTokenizer;

const PreTokenizer *pretokenizer_by_name(const char *name, size_t n); // NULL: unknown

// Cuts cp[0, n) into consecutive words: ends[i] is where word i ends, ends[0] > 0, the last is n. Returns their number.
// ends and scratch hold n entries each.
int pretokenize(const Splitter *s, const uint32_t *cp, int n, int *ends, int *scratch);

#endif
