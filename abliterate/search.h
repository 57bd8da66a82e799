// search.h: how strongly, in which layers and in which parts should a direction be removed from the weights? A seeded search over
// shapes (direction.h) and, where the file has several, over its vectors, for a low opener score of target prompts (the behaviour
// is gone) at a low KL on contrast prompts (nothing else has changed). Every trial is a reading of prompts on the run-time path,
// mode write without the embedding, which is what an edit of the weights does: no weight is touched. search_open, search_run,
// search_check; then search_direction of any trial. search_close.
//
// Trial 0 is the fixed edit: strength 1 everywhere. The next ones cover the space evenly (a low-discrepancy sequence), all others
// are steps of shrinking size from the best of the trials before. A trial depends on the seed and on the results before it only:
// the same seed gives the same trials, and more of them begin with the same ones.
#ifndef SEARCH_H
#define SEARCH_H

#include "extract.h"
#include "first.h"

enum { MAX_TRIAL = 1000, MAX_DIM = 1 + 4 * N_SHAPE };

typedef struct {
    LabOptions lab;
    const char *direction, *target, *contrast, *out, *state, *json, *openers;
    int trials, train, check; // train, check: prompts of each file to search on, to check on; -1: chosen
    int64_t seed;
    bool interpolate;         // a per-layer file: also vectors between two of its rows
    int pick;                 // this trial is written; -1: the lowest KL among those with a score no worse than trial 0's
} SearchOptions;

// The strength of one part by layer: `peak` within width / 2 layers of the centre, from there straight down to `floor`, which is
// reached `width` layers from it.
typedef struct {
    double centre, width, peak, floor;
} Kernel;

typedef struct {
    double u[MAX_DIM]; // where in the unit cube: [which vector, if there is a choice] then for each part centre, width, peak, floor
    double score, kl;  // means over the target and the contrast prompts; infinite: not a number
    bool pareto;       // no trial is better in one and as good in the other
} Trial;

typedef struct {
    const SearchOptions *o;
    Lab *lab;
    Direction d;               // the file's
    char direction_sha256[65];
    int *row;                  // [n_row] rows of a per-layer file that hold a vector
    int n_row, n_part, n_dim;  // n_part: 2, or 3 with a per-layer input
    PromptFile file[2];
    Split split[2];
    PromptSet set[2], check_set[2];
    Openers openers;
    First base[2], now[2];
    double untouched[2];       // mean scores
    double seconds;            // that a trial takes, from the reading of the untouched model
    Trial trial[MAX_TRIAL];
    int n_trial;               // done
    int chosen;                // -1: none yet
    double checked[3][2];      // on prompts not searched on: untouched, trial 0, the chosen; score, KL. NAN: none
    char of[65];
    char *state_path;          // NULL: nothing is kept
    double *kept;              // [MAX_TRIAL][2] score, KL; NAN: not yet
    double state_saved;
} Search;

MUST_CHECK bool search_open(Search *s, Lab *lab, const SearchOptions *o, Err *e);
void search_close(Search *s); // accepts zeroed ones
MUST_CHECK bool search_run(Search *s, Err *e);   // until o->trials are done; then which are on the Pareto front, and the chosen one
MUST_CHECK bool search_check(Search *s, Err *e); // the chosen one on prompts it was not chosen by
// What the trial removes: a direction with mode write and a shape.
MUST_CHECK bool search_direction(const Search *s, int trial, Direction *d, Err *e);

Kernel search_kernel(const Search *s, const Trial *t, int part);
double kernel_at(const Kernel *k, int layer);
// The vector of a trial: -1: each layer its own (or the only one of the file); else a row entering a layer, perhaps between two.
double search_row(const Search *s, const Trial *t);
double search_effect(const Search *s, const Trial *t); // how much lower the score is, as a share of what trial 0 does

#endif
