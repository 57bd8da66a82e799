// contributions.h: how much of a direction every part of a model writes to the residual stream, measured on prompts. What a site
// writes counts as it arrives in the stream leaving the last layer: Gemma 4 multiplies the stream by a number at the end of each
// layer, hence whatever earlier layers wrote, too. All sites together are then that stream:
//   sum over sites of r . w_site * (product of the output scales it passes) = r . x_L
// Experts of a layer, and a dense FFN beside them, write as one site: what one expert added cannot be seen at a tap.
#ifndef CONTRIBUTIONS_H
#define CONTRIBUTIONS_H

#include "lab.h"

// Sites: 0 the embedding; then N_SHAPE a layer (direction.h).
static inline int site_of(int layer, int which) { return 1 + layer * N_SHAPE + which; }
static inline int site_count(int n_layer) { return 1 + n_layer * N_SHAPE; }
static inline int site_layer(int site) { return (site - 1) / N_SHAPE; }
static inline int site_which(int site) { return (site - 1) % N_SHAPE; }

typedef struct {
    int n_site, n_prompt, n_pos, n_sample; // samples: prompt * n_pos + position from the end
    float *of;       // [n_sample][n_site]
    double *stream;  // [n_sample] r . x_L, measured
    double error;    // the largest |sum - r . x_L|, as a share of the root mean square of r . x_L
} Contributions;

// r [n_embd]; the lab is ready, without an intervention. n_pos: last positions of every prompt. Ctrl-C: ends early, with success.
MUST_CHECK bool contributions_measure(Contributions *c, Lab *lab, const PromptSet *set, int n_pos, const double *r, Bar *bar, Err *e);
void contributions_free(Contributions *c);
// Take away what another set writes on average, position by position: what is left is what sets these prompts apart. Same n_pos.
void contributions_centre(Contributions *c, const Contributions *other);

// The fewest sites (without the embedding) whose writes have to go so that of what all layers write together, only `share` of its
// root mean square stays. Greedily, from none upwards and from all downwards (the one does not see that several matter only
// together, the other that two cancel), the smaller of the two. To first order: a site that goes changes what later ones write.
// order [n_site]: those that go, the one that takes away most first; left [n_site]: the share that stays after each. Returns how many.
int contributions_fewest(const Contributions *c, double share, int *order, double *left);
// The shortest range of whole layers that does it; the earliest of several.
void contributions_range(const Contributions *c, double share, int *first, int *last);

#endif
