// steer.h: a run-time intervention on the residual stream with one or more directions. steer_open; steer_load or steer_use;
// set mode, strength, layers, on (plain fields); steer_prepare after every change; add steer_tap to a session. What is changed
// acts from the next token on. Off, or with strength 0, the tap does nothing at all: the run is bit-identical to one without.
#ifndef STEER_H
#define STEER_H

#include "direction.h"

enum { MAX_DIRECTIONS = 8 };

typedef struct {
    const Model *m;
    Backend *b;
    Direction dir[MAX_DIRECTIONS];
    const char *path[MAX_DIRECTIONS]; // where they came from, for messages; NULL: not from a file. Owned
    int n_dir;
    // What is wanted; take effect in steer_prepare.
    SteerMode mode;
    double strength;
    int first, last;  // layers, inclusive; first -1: the mode's own choice (all; add: the layer of the direction)
    bool keep_embedding; // mode write leaves the embedding as it is, as an edit of the weights does; so it does with a shape
    bool on;
    // Made by steer_prepare.
    int act_first, act_last;
    int n_entry, rank;    // distinct sets of vectors: 1 or n_layer + 1; most vectors in a set
    float *vec[2];        // on the backend, and on its host: [n_entry][rank][n_embd]. Orthonormal but in mode add
    int *n_vec;           // [n_entry] vectors in each set
    float *keep;          // [tap_n_site][rank] affine, one-sided: the components that stay
    float *amount;        // [n_layer + 1][rank] add: strength * length
    // The component along the first direction of the last row of sequence 0, before anything is done to it there.
    int watch;            // measured entering this layer; -1: not
    double component;
    float *watched;       // host [n_embd]
} Steer;

void steer_open(Steer *s, const Model *m, Backend *b); // no directions, mode project, strength 1, on
void steer_close(Steer *s);
// Adds a direction file; the first one sets mode and strength to what it proposes. *note (may be NULL) gets a line worth
// telling the user, or "".
MUST_CHECK bool steer_load(Steer *s, const char *path, char note[256], Err *e);
MUST_CHECK bool steer_use(Steer *s, Direction *d, Err *e); // replaces all directions by this one, which is taken over
void steer_clear(Steer *s);                                // no directions
MUST_CHECK bool steer_prepare(Steer *s, Err *e);
Tap steer_tap(Steer *s);
// "8-20", "8-", "-20", "8", "all" of layers 0 .. n_layer - 1.
MUST_CHECK bool steer_parse_layers(const char *text, int n_layer, int *first, int *last, Err *e);
MUST_CHECK bool steer_parse_mode(const char *text, SteerMode *mode, Err *e);

#endif
