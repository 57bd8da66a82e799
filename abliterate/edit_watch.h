// edit_watch.h: how much an edit changes the root mean square that the last post-norm of each site divides by. A tap for a session
// that runs the untouched model on prompts which the edit should leave alone; after it, edit_scale is the factor for that norm's gain
// (gain correction; spec: abliteration.md, 5.2).
//
// Of what is added, y = g z / rms(z), the norm's input z is known but for its length, and so is the edited z': so the factor is the
// mean over rows of rms(z') / rms(z).
#ifndef EDIT_WATCH_H
#define EDIT_WATCH_H

#include "edit.h"

typedef struct {
    const Edit *x;
    Change *of;      // [writers.n] for the gain of the last norm alone; the first writer of a site counts
    double *vectors; // what take and give point into
    double *sum;     // [writers.n] of the quotients
    int64_t *n_row;  // [writers.n]
    float *rows;     // host copy of a site's rows
    size_t cap;      // floats there
    bool failed;     // no memory for them: some rows were not seen
} EditWatch;
MUST_CHECK bool edit_watch_open(EditWatch *g, const Edit *x, const Direction *dirs, int n_dir, const EditOptions *o, Err *e); // as edit_open
Tap edit_watch_tap(EditWatch *g);
// 1 where there is no norm, no edit, or no row was seen. The writers of one site have the last norm in common.
double edit_scale(const EditWatch *g, int writer);
void edit_watch_close(EditWatch *g); // accepts zeroed ones

#endif
