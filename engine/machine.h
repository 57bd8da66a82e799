// machine.h: machines as data, for cards and hosts that need not be there: what plan.h and timeline.h compute with. One row of a
// table each; a row says where its numbers come from, and `measured` whether anything of it was measured or all is assumed.
// For this machine there may be a calibration, a text file of numbers that `bench calibrate` has measured (machine_file.c); without one
// machine_measure measures the host with the model's matrices (machine_measure.c), and its GPU is taken to be as in the table.
#ifndef MACHINE_H
#define MACHINE_H

#include "console.h"
#include "model.h"

// A device or a host. Seconds, bytes, bytes per second, operations per second (a multiplication and addition is 2).
typedef struct {
    const char *name;            // as --gpu and --host take it
    const char *label;           // for people; of a GPU also how what the driver calls it ends
    const char *measured;        // NULL: every number is assumed, from the sources in machine.c; else how
    double memory;               // as marketed; 0: not looked at
    double usable;               // of it that one program can have
    double reserve;              // of that, not for weights, KV and work buffers: the context, kernels' scratch
    double bandwidth;            // peak of its memory
    double share;                // of it that products of a decoded token reach
    double share_of[TYPE_COUNT]; // the same of one weight type; 0: share
    double experts;              // of what products reach, what a token's chosen experts reach, whose rows lie apart; 0: as much
    double launch;               // what a launch of a decoded token (host: an op) costs beside its bytes
    double token;                // once a token: starting it, bringing the sampled id back
    double rate;                 // of a long prompt's products, sustained
    double rate_of[TYPE_COUNT];  // the same of one weight type; 0: not known. machine_fit makes `rate` of them
    double up_pinned, up_pageable, down; // of a GPU: its link
    double up_mapped;            // of a GPU: up from a file's pages that are pinned (Backend.pin); 0: not known, or they cannot be
    double fill;                 // of a host: into pinned slots (kernels/fill.h); 0: not known
    double handoff;              // of a GPU: the stream from one side to the other, one way
} Processor;

typedef struct {
    Processor gpu; // name NULL: none
    Processor host;
} Machine;

// NULL: there is none with this name.
const Processor *machine_gpu(const char *name);
const Processor *machine_host(const char *name);
const Processor *machine_gpu_like(const char *detail); // the one that a backend's detail names
const char *machine_names(bool gpu);                   // "a, b or c", for messages

double machine_read_seconds(const Processor *p, const double bytes[TYPE_COUNT]);
double machine_type_seconds(const Processor *p, TensorType type, double bytes);
// Of weights that come to the device for a prompt, out of the mapped file (kernels/cuda_stream.cu): from its pages, or by way of pinned slots, which
// threads fill while others are copied.
double machine_stream_bandwidth(const Machine *m);
double machine_fill(const Processor *host); // `fill`, or what it is taken to be

// What is wanted, as --gpu and --host have it: a name of the table; "this" or NULL: what is here; gpu "none".
typedef struct {
    const char *gpu, *host;
    const Backend *device; // for gpu "this": the one that is open; NULL: it is looked for
    int threads;           // of the host, 0: all
    Isa isa;
    bool at_once;         // what is here and not calibrated is not measured or refused, but taken for an RTX 3060 with 12 GB and DDR4-3200
} MachineQuery;
// note: one line about a calibration that is there and not used; text[0] == 0: there is none to say.
MUST_CHECK bool machine_describe(Machine *k, Model *m, const MachineQuery *q, Err *note, Err *e);

// ---- measuring a host ----

// This machine as a host: how fast the cpu backend multiplies one row, and 64, with the model's matrices, those of each weight type apart and
// at most 512 MiB of it. They are where the model will be read from; zeros are as fast. A layer's chosen experts, and
// what an op costs beside its bytes.
// Seconds, more if the file is not in memory yet. m NULL: made-up matrices, of every type; bar NULL: no progress is shown.
MUST_CHECK bool machine_measure(Processor *host, Model *m, int threads, Isa isa, Progress *bar, Err *e);
// `rate` for the mix of weight types that this model has.
void machine_fit(Processor *p, Model *m);

// ---- the calibration ----

typedef struct {
    char cpu[128], isa[16], gpu[96], date[32]; // of what; gpu "": none
    int threads;
    Processor processor[2];                    // the host, the GPU
    char remark[256];                          // what the planner has no use for; "" when it was read
} Calibration;

const char *machine_cpu_name(void);
// "NVIDIA GeForce RTX 3060" of "NVIDIA GeForce RTX 3060, sm_86, 11.6 GiB free"
void machine_gpu_name(char *name, size_t size, const char *detail);
// Where it is looked for: $XDG_CACHE_HOME or ~/.cache, abliterate/machine-HOST.txt. False: there is no such place.
bool machine_path(char *path, size_t size);
MUST_CHECK bool machine_create(SafeFile *f, const char *path, Err *e); // and the folders it is in; then machine_print, safe_close
void machine_print(FILE *f, const Calibration *c);
MUST_CHECK bool machine_load(Calibration *c, const char *path, Err *e);

#endif
