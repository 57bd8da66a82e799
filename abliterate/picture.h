// picture.h: a heat map in the terminal: rows and columns of numbers as shades.
#ifndef PICTURE_H
#define PICTURE_H

#include "base.h"

// value [n_row][n_col] of `low` (blank) to `high` (solid), NaN left empty; row names to the left, column numbers above.
// mark_row, mark_col: framed; -1: none.
typedef struct {
    const double *value;
    int n_row, n_col;
    double low, high;
    const char *const *row_name;
    const char *column; // what the columns are
    int mark_row, mark_col;
} Picture;
void picture_print(FILE *out, const Picture *p);

#endif
