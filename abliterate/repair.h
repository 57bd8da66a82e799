// repair.h: after rounding one column of a matrix to the points it can be stored at, moves the cheapest few of its elements to a
// neighbouring point, so that the column's components along the given vectors become what they should be.
// (spec: abliteration.md, 5.3, "round-and-repair".)
#ifndef REPAIR_H
#define REPAIR_H

#include "base.h"

enum { MAX_VEC = 8 };

typedef struct {
    const float *target;                // [n] what each element should be
    const float *value, *above, *below; // [n] what it is; how far the next points lie (0: there is none)
} Column;

typedef struct Repair Repair;
// For columns of n elements. take [n_vec][n] is borrowed. NULL: no memory.
Repair *repair_open(int n, int n_vec, const double *take);
void repair_close(Repair *r); // accepts NULL

// p [n_vec]: components of value less those wanted; on return, those after the moves. move [n]: +1 to the next point above, -1
// below, 0 stay. Tries to bring |p| under tolerance with the least growth of |value - target|^2; true: it is.
bool repair_column(Repair *r, const Column *c, double *p, double tolerance, int8_t *move);

#endif
