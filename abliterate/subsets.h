// subsets.h: a cheap set of moves whose changes along several vectors add up to what is wanted, within a tolerance. For columns
// of few rows, where the codes leave few combinations to choose from.
#ifndef SUBSETS_H
#define SUBSETS_H

#include "moves.h"

enum { SUBSETS_MOVES = 128 }; // that are looked at, at most

typedef struct Subsets Subsets;
Subsets *subsets_open(int n_vec); // NULL: no memory
void subsets_close(Subsets *s);   // accepts NULL

// cost [n] ascending, along [n_vec][n]: what each move changes; n <= SUBSETS_MOVES. most: subsets of a quarter of the moves that may be
// combined, the time is proportional to its square. True: the sum over the moves with taken[i] is -p within the tolerance.
bool subsets_search(Subsets *s, int n, const float *cost, const float *const *along, const double *p, double tolerance, int most, bool *taken);

#endif
