// map.h: who writes a direction: from the weights alone (kappa of every matrix that writes to the residual stream, and of each
// expert), and measured on prompts (contributions.h), each expert's too; and which few of them to edit. Three forms: text, JSON, one HTML page.
#ifndef MAP_H
#define MAP_H

#include "contributions.h"
#include "pair.h"

typedef struct {
    LabOptions lab;
    const char *direction, *prompts, *contrast; // prompts NULL: from the weights alone
    const char *out, *html, *json; // NULL: not written
    double remove;              // share of the component that the suggestion is to remove
    int limit, positions;       // prompts of each file, 0: all; last positions, 0: those that all prompts share
} MapOptions;

typedef struct {
    const MapOptions *o;
    char model[128], architecture[32], fingerprint[65], direction[128];
    int n_layer, n_embd, row;   // row: the direction's, entering this layer, that is measured on prompts
    bool per_layer;             // the direction has a row for each layer: kappa is of the layer's own
    Writers writers;
    double *kappa;              // [writers.n]
    double **expert;            // [writers.n] each NULL or [n_slice]: kappa of each expert
    double kappa_embedding;
    // On prompts; n_prompt 0: not measured
    int n_prompt, n_contrast, n_pos, n_site;
    double *mean, *rms;         // [n_site] over prompts and positions, of what is above the contrast prompts' mean
    bool *there;                // [n_site] the model has such a site
    double stream_mean, stream_rms, error;
    int *order, n_order;        // [n_site] the fewest sites
    double *left;               // [n_site]
    int first, last;            // the shortest range of layers
    // What each expert adds, of models that have some; n_expert 0: none
    int n_expert;
    double *expert_mean, *expert_rms, *expert_share; // [n_layer][n_expert], like mean and rms; the share of the positions it was chosen at
    double *beside;             // [n_layer] mean of the dense branch beside them
    double expert_error;
    int *tensor, n_tensor;      // [n_site + n_layer * n_expert] the fewest single tensors (contributions.h),
    double *tensor_left;
} Map;

MUST_CHECK bool map_measure(Map *m, Lab *lab, const MapOptions *o, Err *e);
void map_free(Map *m);
void map_site(const Map *m, int site, char out[40]); // "FFN of layer 3"
void map_tensor(const Map *m, int tensor, char out[40]); // "expert 5 of layer 3", "shared FFN of layer 3"
// The `most` experts of a layer that add or take away most, the strongest first; returns how many there are.
int map_strongest(const Map *m, int layer, int most, int *out);
void map_text(const Map *m, FILE *out);
// The direction again, of strength 1 at the fewest sites and 0 at all others, for run and edit.
MUST_CHECK bool map_save(const Map *m, const Model *model, const char *path, Err *e);
MUST_CHECK bool map_json(const Map *m, const char *path, Err *e);
MUST_CHECK bool map_html(const Map *m, const char *path, Err *e);

#endif
