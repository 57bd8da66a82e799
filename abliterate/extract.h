// extract.h: from two prompt files to the means of the residual stream. In this order: extraction_open (files, split, ids),
// extraction_openers (how do target answers begin?), extraction_means; then select.h. What has been computed is kept in a
// state file, so that a run that was stopped goes on where it was.
#ifndef EXTRACT_H
#define EXTRACT_H

#include "means.h"
#include "openers.h"
#include "state.h"

enum { TARGET, CONTRAST }; // the two sides

typedef struct {
    LabOptions lab;
    const char *target, *contrast, *out, *state, *openers, *write_openers;
    int positions;      // at most this many after the instruction
    int train, check;   // prompts of each file to learn from, to check on; -1: chosen
    int64_t seed;
    double winsorise;   // quantile of |x_i| at which a row is clamped; 0: not
    bool mask;          // massive activations
    bool keep_all;      // also prompts that do not show (target) or do show (contrast) the behaviour
    bool shuffle;       // labels are drawn by lot: a test of the tool
    bool no_select, per_layer;
    // select
    double max_kl, max_layer, min_induce;
    int n_control;
    bool all_candidates; // print all of them
} ExtractOptions;

// A candidate direction and what it does (select.c).
typedef struct {
    int pos, layer;     // from the end, 0 the last token; entering this layer
    Difference d;
    double auc, p;      // does r.x tell unseen target prompts from unseen contrast prompts?
    double bypass, induce, kl; // NAN: not scored
    const char *why;    // it cannot be used; NULL: it can
} Candidate;

typedef struct {
    const ExtractOptions *o;
    Lab *lab;
    PromptFile file[2];
    Split split[2];
    PromptSet train[2], check[2];
    int n_pos;
    char of[65];        // digest of the settings
    char *state_path;   // NULL: nothing is kept
    double state_saved; // when

    double *first[2];   // [n_vocab] sums of first-token probabilities
    Openers openers;
    Means mean[2];
    double *progress;   // [N_PROGRESS] how far each part is; kept in the state file
    double *score;      // [n_candidate][3] bypass, induce, KL; NAN: not yet
    bool *mask;         // [n_embd] or NULL
    int n_masked;

    int n_candidate;    // n_pos * (n_layer - 1): layers 1 .. n_layer - 1
    Candidate *candidate;
} Extraction;

// progress
enum { READ_FIRST = 0, READ_MEANS = 2, DROPPED = 4, N_PROGRESS = 6 }; // each for target and contrast

MUST_CHECK bool extraction_open(Extraction *x, Lab *lab, const ExtractOptions *o, Err *e);
void extraction_close(Extraction *x);
MUST_CHECK bool extraction_openers(Extraction *x, Err *e);
MUST_CHECK bool extraction_means(Extraction *x, Err *e);
// Keeps the state if it is time (or `now`).
MUST_CHECK bool extraction_keep(Extraction *x, bool now, Err *e);
// After Ctrl-C: keeps the state and says how to go on. Always false.
bool extraction_stopped(Extraction *x, Err *e);
// The difference at (pos, layer) with the mask applied: out [n_embd].
void extraction_difference(const Extraction *x, int pos, int layer, double *out);

#endif
