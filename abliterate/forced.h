// forced.h: a given text under the model, without and with the intervention of lab.steer (teacher forcing): loss of every
// token of a continuation, how far the two distributions are apart, whether their likeliest token is the same.
#ifndef FORCED_H
#define FORCED_H

#include "lab.h"

typedef struct {
    const Ids *ids;     // [n] each: what comes before, then the continuation
    const int *n_cont;  // [n] tokens of the continuation, at least 1 and fewer than there are ids
    int n;
    // Results, for all tokens of all continuations in order, [total].
    int total;
    int *first;         // [n] where each one begins
    double *loss[2];    // -log p, without and with
    double *kl;         // KL(without || with); NULL unless wanted
    bool *same;         // likeliest token; NULL unless wanted
} Forced;

MUST_CHECK bool forced_run(Forced *f, Lab *lab, const Ids *ids, const int *n_cont, int n, bool with_kl, Bar *bar, Err *e); // bar: 2 n steps
void forced_free(Forced *f);

#endif
