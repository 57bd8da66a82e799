// place.h: chooses where a model runs, and brings it there. A unit of placement is half a layer: attention with its KV cache, or
// the FFN with its experts and the per-layer input; one more unit is the head. Units go to the device from the output end, as
// many as fit, so that the stream crosses once per pass.
#ifndef PLACE_H
#define PLACE_H

#include "session.h"

typedef struct {
    const char *program; // for messages
    const char *backend; // "cpu", "ref", "cuda" (all of the model); NULL: as gpu_layers says
    const char *isa;     // of the cpu backend, isa_by_name
    int threads;         // of the cpu backend; 0: one per CPU
    int gpu_layers;      // -ngl: layers on the GPU, counted from the output end, which is one, too; <= 0: none
    uint64_t vram;       // most bytes of weights, KV cache and work buffers there; 0: what is free, less a reserve
    SessionParams session; // that will be opened; n_ctx <= 0: the default
    bool quiet;
    bool look_only;      // for what prints facts: the weights stay where they are
} PlaceOptions;

// Bytes of the units of a model, counted from the output end: [0] the head, then FFN and attention of each layer, the last
// first. With `whole`, attention cannot be without its FFN (Gemma 3n's layers).
typedef struct {
    const uint64_t *bytes; // [n]
    int n;                 // 1 + 2 * n_layer
    bool whole;
} Units;

// How many units, from the output end, go to the device: within gpu_layers and the budget. Pure.
int place_units(const Units *u, int gpu_layers, uint64_t budget);

// "12G", "800M", "64K"
MUST_CHECK bool place_parse_bytes(const char *text, uint64_t *bytes, Err *e);
// Opens the backend (and its host) and loads the weights. What -ngl asks for and cannot be is said on stderr and the CPU does
// the rest; what backend names and is not there is an error.
MUST_CHECK bool place_open(Backend *b, Model *m, const PlaceOptions *o, Err *e);
void place_close(Backend *b, Model *m);

// Its steps: the first n_device units to the device, the others to the host; the weights of what is there (split: there only).
void place_set(Model *m, int n_device);
MUST_CHECK bool place_load(Backend *b, Model *m, bool split, Err *e);
void place_unload(Backend *b, Model *m);

#endif
