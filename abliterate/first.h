// first.h: how a model begins its answers, under the intervention that lab.steer holds at the moment: opener score, divergence
// from how it began without, likeliest token. What bypass, induce and KL of a candidate direction are means of.
#ifndef FIRST_H
#define FIRST_H

#include "openers.h"

typedef struct {
    double *score;  // [n] opener score
    double *kl;     // [n] KL(base || now); NULL: not wanted
    int *top;       // [n] likeliest first token
    float *logits;  // [n][n_vocab] kept; NULL: not wanted
    int n;
} First;
// base: logits kept by an earlier reading of the same prompts; NULL: no kl.
MUST_CHECK bool first_open(First *f, const Lab *lab, int n, bool with_kl, bool with_logits, Err *e);
void first_close(First *f);
void first_take(First *f, int prompt, const float *logits, int n_vocab, const Openers *o, const float *base); // one prompt's
MUST_CHECK bool first_read(First *f, Lab *lab, const PromptSet *set, const Openers *o, const float *base, Bar *bar, Err *e);

#endif
