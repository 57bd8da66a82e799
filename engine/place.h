// place.h: chooses where a model runs, and brings it there. The units of placement are those of units.h: attention with its KV cache, the
// dense FFN with the router, the experts of a layer (some here, some there), the head. A plan (plan.h) for this machine says which go to
// the device. Tables that only embed reads stay in host memory; a head that is tied to one is on the device once, and serves both there.
#ifndef PLACE_H
#define PLACE_H

#include "options.h"
#include "units.h"

typedef struct {
    const char *program;    // for messages
    const char *backend;    // "cpu", "ref", "cuda" (all of the model); NULL: as planned
    const char *isa;        // of the cpu backend, isa_by_name; NULL: auto
    int threads;            // of the cpu backend; 0: one per CPU
    const char *gpu_layers; // -ngl: at most so many layers on the GPU, counted from the output end, which is one, too; "all"; "auto", NULL: no such bound
    const char *cache_k, *cache_v; // types of the KV cache, "f16" or "q8_0"; NULL: the backend's; for session.type_k, type_v
    const char *vram;       // most memory to use there, "12G"; NULL: what is free, less
    const char *reserve;    // what of it to leave free; NULL: 384M
    bool cpu_moe;           // experts stay on the host,
    int n_cpu_moe;          // or those of the first so many layers
    const char *experts;    // a trace (residency.h): where experts of a layer are on both sides, those chosen most are on the device; NULL: the first
    const char *residency;  // "off": experts stay where they are; NULL, "auto": they follow use while it runs (resident.h)
    OptionList override;    // "REGEX=CPU", "REGEX=GPU"
    const Machine *machine; // whose speeds to plan with; NULL: this one's
    bool no_mmap;           // read the file instead of mapping it
    bool no_pin;            // weights of the host that prompts copy to the device stay pageable
    bool quiet;
    SessionParams session;  // that will be opened; n_batch 0: chosen (choice.c)
} PlaceOptions;

// The rows of a table of options (options.h) for a PlaceOptions at offset `at`; place_check after parsing.
#define PLACE_OPTIONS(at) \
    {"-t", "--threads", OPTION_INT, (at) + offsetof(PlaceOptions, threads), 1, 1024}, \
    {"-ngl", "--gpu-layers", OPTION_TEXT, (at) + offsetof(PlaceOptions, gpu_layers), 0, 0}, \
    {"--n-gpu-layers", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, gpu_layers), 0, 0}, \
    {"-ctk", "--cache-type-k", OPTION_TEXT, (at) + offsetof(PlaceOptions, cache_k), 0, 0}, \
    {"-ctv", "--cache-type-v", OPTION_TEXT, (at) + offsetof(PlaceOptions, cache_v), 0, 0}, \
    {"--vram", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, vram), 0, 0}, \
    {"--reserve", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, reserve), 0, 0}, \
    {"--cpu-moe", "-cmoe", OPTION_FLAG, (at) + offsetof(PlaceOptions, cpu_moe), 0, 0}, \
    {"--n-cpu-moe", "-ncmoe", OPTION_INT, (at) + offsetof(PlaceOptions, n_cpu_moe), 0, 1 << 20}, \
    {"--override-tensor", "-ot", OPTION_LIST, (at) + offsetof(PlaceOptions, override), 0, 0}, \
    {"--experts", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, experts), 0, 0}, \
    {"--residency", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, residency), 0, 0}, \
    {"--no-mmap", NULL, OPTION_FLAG, (at) + offsetof(PlaceOptions, no_mmap), 0, 0}, \
    {"--no-pin", NULL, OPTION_FLAG, (at) + offsetof(PlaceOptions, no_pin), 0, 0}, \
    {"--backend", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, backend), 0, 0}, \
    {"--isa", NULL, OPTION_TEXT, (at) + offsetof(PlaceOptions, isa), 0, 0}
MUST_CHECK bool place_check(const PlaceOptions *o, Err *e);
int place_gpu_layers(const PlaceOptions *o); // of checked options: how many; -1: auto
// cache_k or cache_v as SessionParams want it.
static inline TensorType place_cache_type(const char *name) { return name ? (TensorType)type_by_name(name) : (TensorType)0; }

// Opens the backend (and its host), brings the weights to where they are computed with, and opens the session. Without a device that is the
// CPU. What a device has no memory for after all leads to a smaller plan, and in the end to the CPU; a line on stderr says what is where, and why it is
// less than planned. What backend names and is not there is an error. After an error as after use: session_close, place_close.
MUST_CHECK bool place_open(Session *s, Backend *b, Model *m, const PlaceOptions *o, Err *e);
void place_close(Backend *b, Model *m);
// Only the choice: opens the backend and says what would be where.
MUST_CHECK bool place_look(Backend *b, Model *m, const PlaceOptions *o, Err *e);

// ---- its steps ----

// "12G", "800M", "64K"
MUST_CHECK bool place_parse_bytes(const char *text, uint64_t *bytes, Err *e);
// Which experts go to the device first, as o->experts says: before units are counted. Done by place_open and place_look.
MUST_CHECK bool place_experts(Model *m, const PlaceOptions *o, Err *e);
// Parts [u->n] of the units to the device, the rest to the host.
void place_set(Model *m, const PlanUnits *u, const int *part);
// The weights of what is on the device, those that are not there yet; all of them when it has no host. Their pages of the file are
// given back.
MUST_CHECK bool place_load(Backend *b, Model *m, Err *e);
// After place_load and session_open: weights of the host that prompts may want are pinned, as far as they can be; s->pinned says how far. Undone by
// place_unload.
void place_pin(Session *s, Backend *b, Model *m);
void place_unload(Backend *b, Model *m);

#endif
