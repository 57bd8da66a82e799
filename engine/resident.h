// resident.h: experts that follow use while a model runs. Of layers whose experts are on both sides it sees what each decoded token chose - the host
// is told what it is lent (Backend.on_lent), that costs nothing - and between tokens has experts change places as keeper.h says: the one that goes is the
// host's at once; the one that comes is copied into its slot on the device while the next token is computed (Backend.bring), is the host's meanwhile, too, and
// is there for the token after that. Which ones depends on the choices alone, never on how long a copy takes: a text stays the same from run to run.
//
// Nothing moves in prompts, nor where several sequences are fed, nor where rows must be the same to the bit (SessionParams.alike).
// The maps (ExpertShare.slot) are changed when nothing runs; graphs read them where they are and stay as they are.
#ifndef RESIDENT_H
#define RESIDENT_H

#include "keeper.h"
#include "session.h"

typedef struct Resident {
    Keeper keeper;
    int n_layer, layer[MAX_LAYER]; // layers with experts on both sides, whose FFN is the device's
    int n_expert;                  // of any layer of the model, at most
    int *slot;                     // [the model's layers][n_expert] as Model.slots[0], which the device has
    int *free_slot;                // [keeper.most] where what is on its way goes: of keeper.swap[i]
    bool *in_memory;               // [n_layer][keeper.n_expert] an expert's weights have been, or are being read by the host
    bool listens;                  // what is lent is a decoded token's
    int64_t n_choice, n_here, n_brought; // of decoded tokens: choices, those that were on the device; experts brought
} Resident;

// After place_load and session_open, on a session that is whole. most: experts that a token may bring. s->resident stays NULL where nothing can move.
MUST_CHECK bool resident_open(Session *s, int most, Err *e);
void resident_close(Session *s); // what is on its way arrives before
// Around a pass; s->resident may be NULL. decodes: it is one token.
void resident_before(Session *s, bool decodes);
void resident_after(Session *s);

#endif
