// machine.c: see machine.h
//
// Sources. "spec" is spec/performance.md. Bandwidths and tensor rates of GPUs without a section: NVIDIA's data sheets (dense int8).
//   usable    spec 2.4: 11.8 GB of a card sold as 12 GB (12 GiB), the same share of the others
//   reserve   spec 2.4: 0.3 GB for context and scratch
//   share     spec 2.1: eG 0.85, H200 0.75; hosts: eC * BC = 40 GB/s of 51.2, 70 of 89.6
//   launch    spec 2.1: tL = 15 us (H200 18, a host 8) for a layer of 10 launches; more launches take as much more
//   token     spec 4.3: 10 us for the graph, 10 to 20 for the id
//   rate      spec 2.5: 20 T of 102 int8 operations, what peers sustain; H200 350 T. Hosts: spec 2.5, 1 T (8 cores, AVX2); spec 3.1, 0.25 T
//             for a core with AVX-VNNI
//   up, down  spec 2.5: 22 GB/s pinned and 6.5 pageable over PCIe 4.0 x16; half of it over x8; H200 (PCIe 5.0) twice
//   handoff   spec 2.1: tS = 15 us
#include "machine.h"

#include <math.h>
#include <stdlib.h>

#include "console.h"

#define GIB (1024.0 * 1024 * 1024)
#define CARD(gib, gbps, int8_tops)                                                                                                        \
    .memory = (gib) * GIB, .usable = (gib) * GIB * 11.8e9 / (12 * GIB), .reserve = 0.3e9, .bandwidth = (gbps) * 1e9, .share = 0.85, .launch = 1.5e-6, \
    .token = 25e-6, .rate = (int8_tops) * 1e12 * 20 / 102, .handoff = 15e-6
#define PCIE4(lanes) .up_pinned = 22e9 * (lanes) / 16, .up_pageable = 6.5e9 * (lanes) / 16, .down = 22e9 * (lanes) / 16

static const Processor GPUS[] = {
    {"rtx3060-12g", "RTX 3060", CARD(12, 360, 102), PCIE4(16)},
    {"rtx4060ti-16g", "RTX 4060 Ti", CARD(16, 288, 177), PCIE4(8)},
    {"rtx3080-10g", "RTX 3080", CARD(10, 760, 238), PCIE4(16)},
    {"rtx3090", "RTX 3090", CARD(24, 936, 284), PCIE4(16)},
    {"rtx4090", "RTX 4090", CARD(24, 1008, 661), PCIE4(16)},
    {"h200", "H200", .memory = 141e9, .usable = 139e9, .reserve = 0.5e9, .bandwidth = 4800e9, .share = 0.75, .launch = 1.8e-6, .token = 25e-6, .rate = 350e12,
     .up_pinned = 44e9, .up_pageable = 13e9, .down = 44e9, .handoff = 15e-6},
};
static const Processor HOSTS[] = {
    {"ddr4-3200", "8 cores with AVX2, two channels of DDR4-3200", .bandwidth = 51.2e9, .share = 40 / 51.2, .launch = 0.8e-6, .token = 0, .rate = 1e12},
    {"ddr5-5600", "8 cores with AVX-VNNI, two channels of DDR5-5600", .bandwidth = 89.6e9, .share = 70 / 89.6, .launch = 0.8e-6, .token = 0, .rate = 2e12},
};
#define COUNT(a) (int)(sizeof(a) / sizeof *(a))

static const Processor *find(const Processor *p, int n, const char *name) {
    for (int i = 0; i < n; i++)
        if (!strcmp(p[i].name, name)) return &p[i];
    return NULL;
}
const Processor *machine_gpu(const char *name) { return find(GPUS, COUNT(GPUS), name); }
const Processor *machine_host(const char *name) { return find(HOSTS, COUNT(HOSTS), name); }

const Processor *machine_gpu_like(const char *detail) {
    for (int i = 0; i < COUNT(GPUS); i++) {
        const char *at = strstr(detail, GPUS[i].label);
        if (at && at[strlen(GPUS[i].label)] == ',') return &GPUS[i]; // an "RTX 3060 Ti" is another card
    }
    return NULL;
}

const char *machine_names(bool gpu) {
    static char text[256];
    const Processor *p = gpu ? GPUS : HOSTS;
    const int n = gpu ? COUNT(GPUS) : COUNT(HOSTS);
    size_t at = 0;
    for (int i = 0; i < n; i++) at += (size_t)snprintf(text + at, sizeof text - at, "%s, ", p[i].name);
    snprintf(text + at - 2, sizeof text - at + 2, gpu ? ", this or none" : " or this");
    return text;
}

double machine_type_seconds(const Processor *p, TensorType type, double bytes) {
    return bytes / (p->bandwidth * (p->share_of[type] > 0 ? p->share_of[type] : p->share));
}

double machine_read_seconds(const Processor *p, const double bytes[TYPE_COUNT]) {
    double s = 0;
    for (int t = 0; t < TYPE_COUNT; t++)
        if (bytes[t] > 0) s += machine_type_seconds(p, (TensorType)t, bytes[t]);
    return s;
}

// ---- this machine ----

enum { MIB = 512, REPS = 5, PROMPT_ROWS = 64, PROMPT_MIB = 4 };

// The matrices of one type, experts one by one: about MIB of them.
typedef struct {
    TensorType type;
    Tensor *t; // [n]
    int n, cap;
    int64_t bytes;
    int n_row, n_col; // the largest
    bool failed;
} Matrices;

static bool collect(void *ctx, Tensor *t, int layer, bool ffn) {
    Matrices *a = ctx;
    (void)layer, (void)ffn;
    for (int s = 0; t->type == a->type && t->n_row > 1 && s < t->n_slice && a->bytes < (int64_t)MIB << 20; s++) {
        if (a->n == a->cap) {
            const int cap = a->cap ? 2 * a->cap : 64;
            Tensor *more = realloc(a->t, sizeof *more * (size_t)cap);
            if (!more) return !(a->failed = true);
            a->t = more;
            a->cap = cap;
        }
        Tensor *one = &a->t[a->n++];
        *one = *t;
        one->host = tensor_row(t, s, 0);
        one->n_slice = 1;
        one->slices = NULL;
        a->bytes += tensor_bytes(one);
        a->n_row = max_int(a->n_row, t->n_row);
        a->n_col = max_int(a->n_col, t->n_col);
    }
    return true;
}

static int by_size(const void *a, const void *b) { return (*(const double *)a > *(const double *)b) - (*(const double *)a < *(const double *)b); }

// Median seconds of one row's products with all of them.
static double pass_seconds(Backend *b, float *y, const Tensor *t, int n, const float *x, int n_rows) {
    double s[REPS];
    for (int i = -1; i < REPS; i++) { // one brings them into memory
        const double start = seconds_now();
        int passes = 0;
        do {
            for (int k = 0; k < n; k++) b->matmul(b, y, &t[k], NULL, x, n_rows);
            passes++;
        } while (seconds_now() - start < 0.02);
        if (i >= 0) s[i] = (seconds_now() - start) / passes;
    }
    qsort(s, REPS, sizeof *s, by_size);
    return s[REPS / 2];
}

// One type's speeds: bytes per second with one row; adds to the seconds and operations of prompts.
static bool measure_type(Processor *host, Backend *b, Matrices *a, double *prompt_flop, double *prompt_seconds, Err *e) {
    float *x = aligned_alloc(64, sizeof(float) * PROMPT_ROWS * ((size_t)a->n_col + 15) / 16 * 16);
    float *y = aligned_alloc(64, sizeof(float) * PROMPT_ROWS * ((size_t)a->n_row + 15) / 16 * 16);
    const bool ok = (x && y) || err_set(e, "no memory to measure with");
    if (ok) {
        for (int i = 0; i < PROMPT_ROWS * a->n_col; i++) x[i] = (float)(i % 17 - 8) / 8;
        host->share_of[a->type] = (double)a->bytes / pass_seconds(b, y, a->t, a->n, x, 1);
        int n = 0;
        for (int64_t bytes = 0; n < a->n && (n == 0 || bytes < PROMPT_MIB << 20); n++) {
            bytes += tensor_bytes(&a->t[n]);
            *prompt_flop += 2.0 * PROMPT_ROWS * a->t[n].n_row * a->t[n].n_col;
        }
        *prompt_seconds += pass_seconds(b, y, a->t, n, x, PROMPT_ROWS);
    }
    free(x);
    free(y);
    return ok;
}

bool machine_measure(Processor *host, Model *m, int threads, Isa isa, Err *e) {
    Backend b = {0};
    double flop = 0, seconds = 0;
    const Limits limits = {.n_rows = PROMPT_ROWS, .n_col = 1 << 16, .n_ctx = 1, .n_head = 1, .head_dim = 64, .n_vocab = 1};
    bool ok = backend_open_cpu(&b, threads, isa, e) && b.reserve(&b, &limits, e);
    *host = (Processor){.name = "this", .label = "this machine", .share = 1,
                         .measured = "measured just now: products of the model's matrices with one row, and with 64"};
    for (int type = 0; type < TYPE_COUNT && ok; type++) {
        Matrices a = {.type = (TensorType)type};
        model_each(m, collect, &a);
        ok = a.failed ? err_set(e, "no memory to measure with") : a.n == 0 || a.n_col > limits.n_col || measure_type(host, &b, &a, &flop, &seconds, e);
        free(a.t);
        host->bandwidth = fmax(host->bandwidth, host->share_of[type]);
    }
    for (int type = 0; type < TYPE_COUNT && ok; type++) host->share_of[type] /= host->bandwidth;
    host->rate = seconds > 0 ? flop / seconds : 0;
    ok = ok && b.sync(&b, e);
    backend_close(&b);
    return ok;
}
