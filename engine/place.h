// place.h: chooses where a model runs, and brings it there.
#ifndef PLACE_H
#define PLACE_H

#include "model.h"

typedef struct {
    const char *program; // for messages
    const char *backend; // "cpu", "ref", "cuda"; NULL: cpu, or cuda where gpu_layers asks for all of the model and it fits
    const char *isa;     // of the cpu backend, isa_by_name
    int threads;         // of the cpu backend; 0: one per CPU
    int gpu_layers;      // -ngl: layers on the GPU, counted from the output end, which is one, too; <= 0: none
    bool quiet;
    bool look_only;      // for what prints facts: the weights stay where they are
} PlaceOptions;

// Opens the backend and loads the weights. That -ngl cannot be followed is said on stderr, and the CPU does the work; what
// backend names and is not there is an error.
MUST_CHECK bool place_open(Backend *b, Model *m, const PlaceOptions *o, Err *e);
void place_close(Backend *b, Model *m);

#endif
