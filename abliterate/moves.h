// moves.h: what elements of a column could be moved to, and at what price (for repair.c and repair_several.c).
#ifndef MOVES_H
#define MOVES_H

#include "repair.h"

typedef struct {
    float cost; // growth of the squared error, less what the change is worth
    int i, by;  // element, and where to from where it is now: +1, -1
} Move;

// How far element i goes when moved by +-1 from where `move` has it: 0 (as it was), or the point above or below, from where only
// the way back is known.
static inline float move_step(const Column *c, const int8_t *move, int i, int by) { return (move[i] ? move[i] : by) > 0 ? c->above[i] : c->below[i]; }

// The moves of n elements, up to two of each, into out [2 * n]; returns how many. worth [n]: per unit of each element; NAN: it stays
// where it is.
int moves_from(const Column *c, int n, const float *worth, const int8_t *move, Move *out);
// Brings the k cheapest of n to the front.
void moves_select(Move *m, int n, int k);

#endif
