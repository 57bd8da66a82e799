// keeper.h: the rule by which experts change places where not all of them fit on the device: one that was just missed is brought for one that is there, if the
// uses that are expected of the two differ by more than bringing one costs. What is to be expected is learned from the text itself: of all
// layers' experts that were last used so long ago, and so often, how many uses did the next tokens bring? Where routers choose by chance that is as
// many of each kind, and nothing is ever brought; where choices are repeated, or some experts are more popular, it is not.
// The one rule of the simulation (residency.h) and of what runs (resident.h). Its decisions depend on the choices alone. Pure.
//
// For each token: keeper_saw for every layer that has chosen, keeper_step. What is brought after a token is there after the next one.
#ifndef KEEPER_H
#define KEEPER_H

#include "model.h"

// Classes of experts: how many tokens ago they were used, and how often, as a share of what is usual.
enum { KEEPER_AGES = 6, KEEPER_RATES = 12, KEEPER_CLASSES = KEEPER_AGES * KEEPER_RATES };

typedef enum { EXPERT_AWAY, EXPERT_HERE, EXPERT_COMING } ExpertPlace;

typedef struct {
    float score;    // uses, each of which counts half as much HALF_LIFE tokens later (LRFU, Lee et al. 2001)
    int used;       // token of the last use
    uint8_t place;  // ExpertPlace
    uint8_t class;  // when its window began; KEEPER_CLASSES: it has none yet
    uint16_t uses;  // in the window
} Known;

typedef struct {
    int layer, in, out; // layer: as keeper_saw has it
} Swap;

typedef struct {
    int n_layer, n_expert, n_used;
    int most;          // experts that a token may bring
    double cost;       // of bringing one, in uses; a test may set it
    int token;         // that comes
    double weight;     // what the score of an expert would be that was used by every token
    Known *known;      // [n_layer][n_expert]
    uint16_t *id;      // [n_layer][n_used] chosen by this token
    int *n_id;         // [n_layer] of them; 0: the layer was not seen
    Swap *swap;        // [n_swap] of the last step: `out` is gone, `in` is on its way
    int n_swap;
    // Windows that are over, by the class at their beginning: how many, uses in them, and the class at their end.
    double n[KEEPER_CLASSES], uses[KEEPER_CLASSES], next[KEEPER_CLASSES][KEEPER_CLASSES];
    double worth[KEEPER_CLASSES];     // uses to come, a window's DISCOUNT times as much as those of the one before
    float limit[KEEPER_RATES];        // scores at which rates begin, now
} Keeper;

MUST_CHECK bool keeper_open(Keeper *k, int n_layer, int n_expert, int n_used, int most, Err *e);
void keeper_close(Keeper *k);
static inline Known *keeper_known(const Keeper *k, int layer, int expert) { return k->known + (int64_t)layer * k->n_expert + expert; }
// How many of the n chosen experts were there.
int keeper_saw(Keeper *k, int layer, const uint16_t *id, int n);
// What was on its way is there. Returns how many experts are to be brought: swap[].
int keeper_step(Keeper *k);
void keeper_arrive(Keeper *k); // that alone, between two tokens
// How many experts a token of so many seconds may bring: those whose copies take half of it.
int keeper_most(double token_seconds, double bytes_per_second, double expert_bytes);

#endif
