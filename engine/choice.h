// choice.h: from what a program was asked for (place.h) and a machine to a plan (plan.h): choice_make, any number of choice_less, choice_close.
// place.c executes what is chosen, run --plan prints it.
#ifndef CHOICE_H
#define CHOICE_H

#include "place.h"
#include "plan.h"

enum { BATCH_HOST = 512, BATCH_DEVICE = 2048 }; // tokens per pass: on the host, of a split model at least; of a device

// A plan with what it was made from.
typedef struct {
    Machine machine;
    PlanUnits units;
    Pin *pin;              // [units.n]
    Plan plan;
    SessionParams session; // n_batch is chosen
    int n_less;            // smaller plans that followed
} Choice;

// For a device that is open; its work memory is reserved, to know how much is left. b NULL: for the card that c->machine describes. False: bad
// is set where the options cannot be meant, why where there is no plan.
MUST_CHECK bool choice_make(Choice *c, Backend *b, Model *m, const PlaceOptions *o, Err *why, Err *bad);
MUST_CHECK bool choice_less(Choice *c, Err *e); // a plan with less memory of the device
void choice_close(Choice *c);
static inline const Candidate *choice_best(const Choice *c) { return &c->plan.best[c->plan.chosen]; }
// What of the model is on the device, "18 of 30 layers and the head"
const char *choice_text(const Choice *c, char text[160]);

#endif
