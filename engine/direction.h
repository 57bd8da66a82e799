// direction.h: a direction of the residual stream, and the file that holds it: GGUF with architecture `controlvector` and one
// float32 vector direction.N for each layer N = 1 .. n_layer - 1, as llama.cpp's control vectors, with the keys of GLP (glp.*)
// and our own (abliterate.*). No second format.
//
// Convention: direction.N belongs to the stream leaving layer N (counted from 0, after any output scale), which is the
// stream entering layer N + 1. In memory rows are numbered by the layer they enter, 0 .. n_layer; n_layer: leaving the last.
#ifndef DIRECTION_H
#define DIRECTION_H

#include "model.h"
#include "tap.h"

// What is done to the stream x with a unit vector r, strength s (spec: abliteration.md, 5.1).
typedef enum {
    MODE_PROJECT,   // x -= s r (r.x)               entering each layer and after each addition
    MODE_WRITE,     // w -= s r (r.w)               each addend w, and the embedding: what an edit of the weights can do
    MODE_AFFINE,    // x -= s r (r.x - m)           sites of project; m: mean of r.x over the contrast prompts there
    MODE_ONE_SIDED, // x -= s r max(0, r.x - m)     the other end of the axis is left alone
    MODE_ADD,       // x += s c r                   entering the chosen layer; c: length of the difference of means
    N_MODE
} SteerMode;
const char *mode_name(SteerMode mode); // "project", "write", "affine", "one-sided", "add"
int mode_by_name(const char *name);    // -1: unknown

// The parts of a layer that write to the stream and can have a strength of their own: the addends of the three kinds of sites.
enum { SHAPE_ATTN, SHAPE_FFN, SHAPE_PER_LAYER, N_SHAPE }; // FFN: with the experts; PER_LAYER: the per-layer input

typedef struct {
    int n_embd, n_layer; // of the model
    bool single;         // one vector for all layers
    float *row;          // single: [n_embd]; else [n_layer + 1][n_embd]. Unit vectors; all zero where there is none
    float *length;       // [n_layer + 1] of the difference of means entering that layer; 0: no vector to add there
    float *contrast;     // [tap_n_site] mean of r.x over the contrast prompts; NULL: unknown
    int layer, position; // where it was measured: entering this layer, at this position from the end (-1: the last).
                         // layer -1: each row at its own
    SteerMode mode;      // what the file proposes
    float strength;
    float *shape;        // [n_layer][N_SHAPE] factor on the strength of mode write, whose embedding then stays as it is, as in an
                         // edit of the weights; NULL: 1 everywhere. Other modes do not look at it
    char model[96], fingerprint[65]; // made from; empty: unknown
} Direction;

// One vector for all layers; copies it (and scales it to unit length).
MUST_CHECK bool direction_single(Direction *d, int n_layer, int n_embd, const double *vector, Err *e);
// Refuses what does not fit the model m: another width, other layers, an unknown mode or hook, damaged content.
MUST_CHECK bool direction_load(Direction *d, const char *path, const Model *m, Err *e);
// The same without a model: width and layers are the file's own (layers: one more than the highest N, where it does not say).
MUST_CHECK bool direction_load_alone(Direction *d, const char *path, Err *e);
// more (may be NULL) sets further keys.
MUST_CHECK bool direction_save(const Direction *d, const char *path, void (*more)(void *ctx, GgufWriter *w), void *ctx, Err *e);
MUST_CHECK bool direction_set_shape(Direction *d, const float *shape, Err *e); // copies; NULL: none
void direction_free(Direction *d); // accepts zeroed ones

static inline const float *direction_row(const Direction *d, int entering) {
    return d->single ? d->row : d->row + (int64_t)entering * d->n_embd;
}

// Orthonormal vectors that span what n_dir directions hold entering a layer, in their order (Gram-Schmidt): taking one after the
// other away is then the projection onto what is at right angles to all of them. Returns how many: fewer than n_dir where one has
// nothing there or is a combination of those before it.
//   basis [n_dir][n_embd], mix [n_dir][n_dir]:  basis k = sum over i of mix[k][i] * row of direction i
int directions_basis(const Direction *dirs, int n_dir, int entering, double *basis, double *mix);

#endif
