// select.h: which candidate direction is the behaviour's? Each is removed (does the behaviour go?), added (does it come?) and
// weighed by what it does to other answers, on prompts it was not made from; and it is compared with directions that mean
// nothing. After extraction_means.
#ifndef SELECT_H
#define SELECT_H

#include "extract.h"
#include "first.h"
#include "stats.h"

// What a direction does, on the check prompts.
typedef struct {
    double bypass; // mean opener score of target prompts with it removed
    double induce; // of contrast prompts with it added
    double kl;     // mean KL(base || removed) of contrast prompts
} Effect;

typedef struct {
    Extraction *x;
    First base[2], now[2];  // first tokens of the check prompts, untouched and under the intervention
    double base_score[2];   // mean opener scores, untouched
    Larger labels;          // do unseen target prompts open differently from unseen contrast prompts?
    int chosen;             // candidate, -1: none
    char why[200];          // there is none
    Effect *random, *shuffled; // [n_control]
    double *shuffled_cos;   // [n_control] with the chosen direction
    int n_control;
    double *site_mean[2];   // [tap_n_site] mean of r.x at the chosen position, per side, over the training prompts
} Selection;

// Scores every candidate and picks one. chosen = -1 with a reason is a result, not an error.
MUST_CHECK bool selection_make(Selection *s, Extraction *x, Err *e);
void selection_free(Selection *s);
// The direction as it will be saved: the chosen candidate, or (extraction without selection) every layer's own.
MUST_CHECK bool selection_direction(const Selection *s, const Extraction *x, Direction *d, Err *e);

#endif
