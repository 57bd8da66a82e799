// machine.h: machines as data, for cards and hosts that need not be there: what plan.h and timeline.h compute with. One row of a
// table each; a row says where its numbers come from, and `measured` whether anything of it was measured or all is assumed.
// machine_measure replaces a host's numbers by those of this machine.
#ifndef MACHINE_H
#define MACHINE_H

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
    double launch;               // what a launch of a decoded token (host: an op) costs beside its bytes
    double token;                // once a token: starting it, bringing the sampled id back
    double rate;                 // of a long prompt's products, sustained
    double up_pinned, up_pageable, down; // of a GPU: its link
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

// This machine as a host: how fast the cpu backend multiplies one row, and 64, with the model's matrices, those of each weight type apart and
// at most 512 MiB of it. They are where the model will be read from; zeros are as fast.
// Seconds, more if the file is not in memory yet.
MUST_CHECK bool machine_measure(Processor *host, Model *m, int threads, Isa isa, Err *e);

#endif
