// means.h: the mean residual stream after every layer, over a set of prompts.
#ifndef MEANS_H
#define MEANS_H

#include "chat.h"
#include "session.h"

// What is needed to run a prompt as a chat would.
typedef struct {
    const Model *m;
    const Tokenizer *tok;
    const Chat *chat;
    const char *system; // NULL = none
    Session *s;
} Reader;

// The residual stream leaving layers 0 .. n_layer - 1 at the last position of the prompt, summed over prompts in double.
// Even and odd prompts apart, so that one half can check the other.
typedef struct {
    int n_layer, n_embd;
    int n[2];       // prompts in each half
    double *sum[2]; // [n_layer][n_embd]
} Means;
MUST_CHECK bool means_init(Means *a, int n_layer, int n_embd, Err *e);
void means_free(Means *a);

// A text file of prompts, one a line; empty lines do not count.
typedef struct {
    char *text;
    char **line;
    int n;
} Prompts;
MUST_CHECK bool prompts_read(Prompts *p, const char *path, Err *e);
void prompts_free(Prompts *p);

// Runs every prompt through the chat template and adds it. Stops early, with success, after Ctrl-C.
MUST_CHECK bool means_add(Means *a, const Reader *r, const Prompts *p, const char *label, Err *e);

// out[layer][i] = mean(target) - mean(contrast); half 0 or 1 uses that half of both sets only, -1 all.
void mean_difference(const Means *target, const Means *contrast, int half, double *out);

#endif
