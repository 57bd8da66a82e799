// contributions.h: how much of a direction every part of a model writes to the residual stream, measured on prompts. What a site
// writes counts as it arrives in the stream leaving the last layer: Gemma 4 multiplies the stream by a number at the end of each
// layer, hence whatever earlier layers wrote, too. All sites together are then that stream:
//   sum over sites of r . w_site * (product of the output scales it passes) = r . x_L
// Experts of a layer, and a dense FFN beside them, write as one site. What each of the experts adds to it is measured, too: of the
// rows that are looked at, each chosen one is computed again alone, y_j. Norms on the way to the stream are linear once what they
// divide by is known:
//   expert j adds   scale * (gain * r) . y_j / (rms(sum of y_j) rms(sum with the dense branch))      gain: of both norms, multiplied
// and the dense branch the rest.
#ifndef CONTRIBUTIONS_H
#define CONTRIBUTIONS_H

#include "lab.h"
#include "writers.h"

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
    int n_layer, n_expert; // the most of any layer; 0: none
    float *expert;   // [n_sample][n_layer][n_expert]: where it was not chosen 0
    int64_t *chosen; // [n_layer][n_expert] by how many samples
    double expert_error;   // the largest |sum of a layer's experts - what they come to together|, as a share of the same
} Contributions;

// Single tensors: what is edited may be one of them. Below n_site: the site's, of an FFN with experts the dense branch beside them;
// from there on experts.
static inline int expert_tensor(const Contributions *c, int layer, int expert) { return c->n_site + layer * c->n_expert + expert; }
static inline int tensor_count(const Contributions *c) { return c->n_site + c->n_layer * c->n_expert; }

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
// The same of single tensors, the writers' matrices: order, left [tensor_count].
int contributions_fewest_tensors(const Contributions *c, const Writers *w, double share, int *order, double *left);
// What the dense branch of a layer with experts adds.
double contributions_beside(const Contributions *c, int sample, int layer);
// The shortest range of whole layers that does it; the earliest of several.
void contributions_range(const Contributions *c, double share, int *first, int *last);

#endif
