// means.h: the mean residual stream entering every layer, at every position after the instruction, over a set of prompts; the
// difference of two such means; and what says whether that difference is more than noise.
#ifndef MEANS_H
#define MEANS_H

#include "base.h"

// Sums in double over the prompts of one set, in two halves (every second prompt) so that one can check the other.
// Layers 0 .. n_layer: entering layer l; n_layer: leaving the last. Positions from the end: 0 is the last token.
typedef struct {
    int n_pos, n_layer, n_embd;
    double n[2];      // prompts in each half
    double *sum[2];   // [n_pos][n_layer + 1][n_embd]
    double *square[2]; // [n_pos][n_layer + 1] sum of |x|^2
    double *size;     // [n_layer + 1][n_embd] sum of |x_i| over both halves and all positions
} Means;
MUST_CHECK bool means_init(Means *a, int n_pos, int n_layer, int n_embd, Err *e);
void means_free(Means *a);
static inline int64_t means_at(const Means *a, int pos, int layer) { return (int64_t)pos * (a->n_layer + 1) + layer; }
void means_add(Means *a, int half, int pos, int layer, const float *x);

// How the difference at (pos, layer) stands out.
typedef struct {
    double length;    // |mean target - mean contrast|
    double noise;     // expected |.|^2 of it if there were no difference: tr(S_T) / n_T + tr(S_C) / n_C
    double signal;    // length^2 / noise: about 1 if there is no difference
    double halves;    // cosine of the differences of the two halves
    double reliable;  // of the whole, from that: 2c / (1 + c) (Spearman and Brown 1910)
    double stream;    // length relative to the mean length of the contrast stream
    double masked;    // share of |.|^2 in the coordinates that are masked
} Difference;

// out [n_embd]. half 0 or 1: of that half only, -1: of all. mask [n_embd]: coordinates set to zero; NULL: none.
void mean_difference(const Means *target, const Means *contrast, int pos, int layer, int half, const bool *mask, double *out);
// out [n_embd] receives the difference. scratch: 2 n_embd doubles.
Difference difference_of(const Means *target, const Means *contrast, int pos, int layer, const bool *mask, double *out, double *scratch);

// Massive activations: coordinates whose mean |x_i| exceeds 100 times the median in a quarter of the layers, in both sets
// (arXiv 2402.17762). Marks them; returns how many, -1: no memory.
int massive_coordinates(const Means *target, const Means *contrast, bool *mask);
// Clamps a row to its own `share` quantile of |x_i|. scratch: n floats.
void winsorise(float *x, int n, double share, float *scratch);

double dot_of(const double *a, const double *b, int n);

#endif
