// residency.h: is it worth keeping the experts that are used most on the device, where not all fit? A trace of which experts every token chose is
// replayed against rules of what a layer's slots on the device hold; what they would hit, and bring over the link, goes into the simulator
// (timeline.h). Pure but for the files.
//
// A trace is text: the line "abliterate experts 1", then lines "key value" (model NAME, experts N, used N, prompt N: so many of the tokens were
// read, not generated; random 1: the weights are random, and so is this), then a line for every token and layer with experts, in order of the text
// and of the layers:
//   TOKEN LAYER EXPERT EXPERT ...      all from 0; `used` different experts, those of the largest weight first
// A line that begins with # is for people.
#ifndef RESIDENCY_H
#define RESIDENCY_H

#include "model.h"

typedef struct {
    char model[64];
    int n_layer, n_expert, n_used; // layers: those with experts
    int n_token, n_prompt;
    bool random;                   // of random weights, or made up
    int layer[MAX_LAYER];          // [n_layer] which of the model's they are
    uint16_t *id;                  // [n_token][n_layer][n_used]
    int cap;                       // tokens that there is room for
} Trace;
static inline const uint16_t *trace_at(const Trace *t, int token, int layer) {
    return t->id + ((int64_t)token * t->n_layer + layer) * t->n_used;
}
MUST_CHECK bool trace_room(Trace *t, int n_token, Err *e); // for so many; what n_layer ... say must be there
MUST_CHECK bool trace_load(Trace *t, const char *path, Err *e);
// Without tokens: what a trace of this model has.
MUST_CHECK bool trace_shape(Trace *t, const Model *m, Err *e);
MUST_CHECK bool trace_load_of(Trace *t, const char *path, const Model *m, Err *e); // a trace of another shape is an error
MUST_CHECK bool trace_save(const Trace *t, const char *path, Err *e);
void trace_close(Trace *t);
// Made up: of each layer's experts the i-th most popular is drawn i^-zipf as often as the first, which is another in every layer; each of the token
// before stays with probability `stay`. n_layer, n_expert, n_used, layer, random are the caller's.
MUST_CHECK bool trace_draw(Trace *t, int n_token, double zipf, double stay, uint64_t seed, Err *e);

// How the layers use their experts, averages over the layers.
typedef struct {
    double effective; // experts that were as many if all were used as often: e^entropy
    double hottest;   // share of all choices of the tenth that is used most
    double never;     // experts that nobody chose
    double again;     // share of choices that the token before made, too; by chance n_used / n_expert
} ExpertUse;
ExpertUse trace_use(const Trace *t);

// What is in the slots of a layer. A token finds there what was there before it.
typedef enum {
    KEEP_RANDOM,  // any, for good
    KEEP_HOTTEST, // what the first half of the trace used most, for good
    KEEP_RECENT,  // every miss is brought at once, for what was not used for longest (LRU): nothing that could be built
    KEEP_WORTH    // as KEEP_RANDOM to begin with; then what keeper.h says: the rule that runs
} Keep;
enum { N_KEEP = KEEP_WORTH + 1 };
extern const char *const KEEP_NAMES[N_KEEP];

// Over the second half of the trace; the first is there to learn and to fill the slots.
typedef struct {
    double hit;      // share of choices that were on the device
    double uploads;  // experts brought for each token, all layers
    double *away;    // [n_layer][n_used + 1] how often so many of a token's experts were not there
    double *brought; // [n_layer] experts brought for each token
} Kept;
// Trace of at least two tokens; 0 <= n_slot <= n_expert; most: experts that a token may bring, of KEEP_WORTH.
MUST_CHECK bool residency_replay(Kept *k, const Trace *t, Keep keep, int n_slot, int most, Err *e);
void residency_close(Kept *k);
// Of one layer, after all of the trace: experts by how often they were chosen, of equals the lower number first.
void residency_order(const Trace *t, int layer, uint16_t *order); // [n_expert]
// KEEP_HOTTEST for every number of slots, away [0 .. n_expert][n_used + 1] as Kept.away: learned from the first half, counted in the second, so
// that what is predicted is not what was learned from. A text of another kind may choose others all the same.
void residency_hottest(const Trace *t, int layer, double *away);

#endif
