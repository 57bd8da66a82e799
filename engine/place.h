// place.h: chooses where a model runs, and brings it there. A unit of placement is half a layer: attention with its KV cache, or
// the FFN with its experts and the per-layer input; one more unit is the head. Units go to the device from the output end, as
// many as fit, so that the stream crosses once per pass. Tables that only embed reads stay in host memory; a head that is tied
// to one is on the device once, and serves both there.
#ifndef PLACE_H
#define PLACE_H

#include "options.h"
#include "session.h"

typedef struct {
    const char *program; // for messages
    const char *backend; // "cpu", "ref", "cuda" (all of the model); NULL: as gpu_layers says
    const char *isa;     // of the cpu backend, isa_by_name; NULL: auto
    int threads;         // of the cpu backend; 0: one per CPU
    int gpu_layers;      // -ngl: layers on the GPU, counted from the output end, which is one, too; <= 0: none
    const char *cache_k, *cache_v; // types of the KV cache, "f16" or "q8_0"; NULL: the backend's; for session.type_k, type_v
    const char *vram;    // most memory to use there, "12G"; NULL: what is free, less a reserve
    bool no_mmap;        // read the file instead of mapping it
    bool quiet;
    SessionParams session; // that will be opened; n_batch 0: chosen, long where all that is asked for fits on the device
} PlaceOptions;

// The rows of a table of options (options.h) for a PlaceOptions at offset `at`; place_check after parsing.
#define PLACE_OPTIONS(at) \
    {"-t", "--threads", OPTION_INT, (at) + offsetof(PlaceOptions, threads), 1, 1024}, \
    {"-ngl", "--gpu-layers", OPTION_INT, (at) + offsetof(PlaceOptions, gpu_layers), 0, 1 << 20}, \
    {"--n-gpu-layers", NULL, OPTION_INT, (at) + offsetof(PlaceOptions, gpu_layers), 0, 1 << 20}, \
    {"-ctk", "--cache-type-k", OPTION_TEXT, (at) + offsetof(PlaceOptions, cache_k), 0, 0}, \
    {"-ctv", "--cache-type-v", OPTION_TEXT, (at) + offsetof(PlaceOptions, cache_v), 0, 0}, \
    {"--vram", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, vram), 0, 0}, \
    {"--no-mmap", NULL, OPTION_FLAG, (at) + offsetof(PlaceOptions, no_mmap), 0, 0}, \
    {"--backend", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, backend), 0, 0}, \
    {"--isa", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, isa), 0, 0}
MUST_CHECK bool place_check(const PlaceOptions *o, Err *e);
MUST_CHECK bool place_check_cache(const PlaceOptions *o, Err *e); // a part of it
// cache_k or cache_v as SessionParams want it.
static inline TensorType place_cache_type(const char *name) { return name ? (TensorType)type_by_name(name) : (TensorType)0; }

// Opens the backend (and its host), brings the weights to where they are computed with, and opens the session. What -ngl asks for
// and does not fit, or fails, is said on stderr, and the CPU does it; what backend names and is not there is an error. After an
// error as after use: session_close, place_close.
MUST_CHECK bool place_open(Session *s, Backend *b, Model *m, const PlaceOptions *o, Err *e);
void place_close(Backend *b, Model *m);
// Only the choice: opens the backend and says what would be where.
MUST_CHECK bool place_look(Backend *b, Model *m, const PlaceOptions *o, Err *e);

// ---- its steps ----

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
// The first n_device units to the device, the others to the host.
void place_set(Model *m, int n_device);
// The weights of what is on the device, those that are not there yet; all of them when it has no host. Their pages of the file are
// given back.
MUST_CHECK bool place_load(Backend *b, Model *m, Err *e);
void place_unload(Backend *b, Model *m);

#endif
