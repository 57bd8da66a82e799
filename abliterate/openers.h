// openers.h: the tokens that begin the answers of target prompts and not those of contrast prompts, and the score that says
// how much an answer begins that way: s = log((P + 1e-8) / (1 - P + 1e-8)), P the probability of all openers together
// (arXiv 2406.11717, appendix B, with a learned token set).
#ifndef OPENERS_H
#define OPENERS_H

#include "lab.h"

typedef struct {
    int *id;          // [n] most telling first
    double *target, *contrast; // [n] mean probability at the start of an answer
    int n;
    double apart;     // total variation: how much probability the two sets' first tokens do not share, 0 .. 1
} Openers;

// The smallest set that covers 80 % of the probability that targets have more of. p_target, p_contrast: [n_vocab] means.
MUST_CHECK bool openers_learn(Openers *o, const double *p_target, const double *p_contrast, int n_vocab, Err *e);
// From a file: one a line, a token id (anything after a TAB is a comment) or a text, whose first token is taken.
MUST_CHECK bool openers_read(Openers *o, const char *path, const Lab *lab, Err *e);
// Those a direction file was selected with; n 0: it does not say.
MUST_CHECK bool openers_of_direction(Openers *o, const char *path, int n_vocab, Err *e);
MUST_CHECK bool openers_write(const Openers *o, const char *path, const Lab *lab, Err *e);
void openers_free(Openers *o);

double opener_score(const Openers *o, const float *logits, int n_vocab);
void probabilities_add(double *sum, const float *logits, int n_vocab); // sum += softmax(logits)

#endif
