// edit.h: what becomes of every matrix that writes to the residual stream (writers.h) when directions are removed from the
// weights. edit_open; for each writer with n_vec > 0: edit_matrix for each slice, edit_bias; edit_close. Knows no file.
//
// With the post-norms' gain g (1: none), r_k orthonormal in the residual stream, strength s (spec: abliteration.md, 5.1 and 5.2):
//   W' = W - s sum_k give_k (take_k' W)      take_k = g * r_k      give_k = r_k / g
// What is added then is y' = (y - s sum_k r_k (r_k . y)) / scale: exactly the run-time mode write, but for one positive number per
// token, the change of the norm's root mean square (edit_watch.h measures it; it can go into the norm's gain).
// Where |g_i| < eps rms(g), give_k divides by eps rms(g) twice and multiplies by g_i instead, so that a coordinate which hardly
// shows is not blown up; give is then made dual to take again (take_j . give_k = 1 where j = k, else 0), so that nothing is left along r.
#ifndef EDIT_H
#define EDIT_H

#include "direction.h"
#include "pool.h"
#include "writers.h"

typedef struct {
    double strength; // 1: all of it
    int first, last; // layers, inclusive
    double eps;      // a gain below this share of the gains' root mean square is near zero; 0: EDIT_EPS, behind two norms EDIT_EPS_TWO
} EditOptions;
#define EDIT_EPS 0.01
#define EDIT_EPS_TWO 0.1 // of 0.01 .. 100 the nearest to the run-time write (0.05 .. 0.2 are alike), see edit.c
// What the repair leaves of a column's component, as a share of the root mean square of what was there:
#define EDIT_TOLERANCE 3e-6           // its aim
#define EDIT_TOLERANCE_SEVERAL 9e-6   // with several directions, which are harder to meet at once
#define EDIT_LEAK 1e-5                // more is reported (n_missed)

typedef struct {
    int n_vec;            // 0: nothing to do: outside the layers, no direction there, or strength 0
    double strength;      // with the factor of the direction's shape for this layer and part
    double *take, *give;  // [n_vec][n_embd]
    int n_small;          // coordinates whose gain is near zero
} Change;

typedef struct {
    int n_embd;
    Writers writers;
    Change *of;           // [writers.n]
    double *vectors;      // what take and give point into
} Edit;

MUST_CHECK bool edit_open(Edit *x, const Model *m, const Direction *dirs, int n_dir, const EditOptions *o, Err *e);
void edit_close(Edit *x); // accepts zeroed ones

// One slice of a writer's matrix. All rows lie back to back; out overlaps neither of the others.
typedef struct {
    TensorType type;     // of the weights
    const void *rows;    // [n_row][n_col]
    TensorType out_type;
    void *out;           // [n_row][n_col] of out_type
    const void *grid;    // [n_row][n_col] of out_type: what the file holds now. Its scales are kept where new ones are not better,
                         // so that the codes that change are few. NULL: new scales throughout
} Slice;

// Of a sample of the columns, rounded plainly with new scales.
typedef struct {
    double before, residue, norm, error; // as below
} EditPlain;

// Sums over elements and columns; those of several slices may be added (edit_add).
typedef struct {
    int64_t n, n_changed;       // elements; those whose value is another than that of grid (NULL: all)
    int64_t n_flip;             // codes moved by the repair
    int64_t n_block, n_refit;   // blocks; those with new scales (of those with a grid)
    int64_t n_col, n_missed;    // columns; those of which the repair left more than EDIT_LEAK
    double before, after;       // |take' W|^2 and |take' W_new|^2, W_new read back from the stored bytes
    double residue;             // |take' W_new - (1 - s) take' W|^2
    double norm, change;        // |W|^2, |W_new - W|^2
    double error, rounded;      // |W_new - W'|^2, and the same before the repair
    EditPlain plain;            // what rounding alone would leave
} EditFigures;

// Deterministic, whatever the threads. Ctrl-C (interrupted, console.h) ends it soon, with an error. Works on stripes of 256 columns; memory: 6 bytes for each element of a stripe and thread.
// pool NULL: the caller alone (n_thread 1).
MUST_CHECK bool edit_matrix(Pool *pool, int n_thread, const Edit *x, int writer, const Slice *s, EditFigures *f, Err *e);
void edit_add(EditFigures *sum, const EditFigures *one);
double edit_leak(const EditFigures *f);                             // residue against what was there; strength 1: |take' W_new| / |take' W|
double edit_kappa(const Edit *x, int writer, const EditFigures *f); // sqrt(n_row) |take' W| / (|take| |W|); 1: like a random direction
void edit_bias(const Edit *x, int writer, const float *bias, float *out); // [n_embd]

// What edit_open and edit_watch_open share. Are these directions and options in order?
MUST_CHECK bool edit_check(const Direction *dirs, int n_dir, const EditOptions *o, Err *e);
// Fills of [writers.n] behind all gains of each writer, or behind its last norm alone. vectors [writers.n][2][n_dir][n_embd] is what they
// point into. False: no memory.
MUST_CHECK bool edit_changes(const Writers *w, bool last_norm, const Direction *dirs, int n_dir, const EditOptions *o, Change *of, double *vectors);

#endif
