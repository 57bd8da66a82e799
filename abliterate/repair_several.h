// repair_several.h: repair_column where several vectors are taken out: p is a vector of n_vec components.
#ifndef REPAIR_SEVERAL_H
#define REPAIR_SEVERAL_H

#include "repair.h"

typedef struct Several Several;
Several *several_open(int n, int n_vec, const double *take); // NULL: no memory
void several_close(Several *r);                              // accepts NULL
bool several_column(Several *r, const Column *c, double *p, double tolerance, int8_t *move); // as repair_column

#endif
