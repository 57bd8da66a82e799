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
//   fill      where it was not measured, FILL_SHARE of what products read: what this code reaches of reading with the same threads, one or two, on the
//             Xeon of bench/RESULTS.md, where cores are the limit; no GPU read the slots meanwhile. A desktop's four have the caches' speed, and one
//             byte of its memory's traffic for each that they copy
//   up_mapped not assumed: drivers and file systems may refuse
#include "machine.h"

#include <math.h>
#include <unistd.h>

#include "pool.h"

#define GIB (1024.0 * 1024 * 1024)
#define FILL_SHARE 0.55
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

double machine_fill(const Processor *host) { return host->fill > 0 ? host->fill : FILL_SHARE * host->bandwidth * host->share; }
double machine_stream_bandwidth(const Machine *m) { return m->gpu.up_mapped > 0 ? m->gpu.up_mapped : fmin(m->gpu.up_pinned, machine_fill(&m->host)); }

double machine_read_seconds(const Processor *p, const double bytes[TYPE_COUNT]) {
    double s = 0;
    for (int t = 0; t < TYPE_COUNT; t++)
        if (bytes[t] > 0) s += machine_type_seconds(p, (TensorType)t, bytes[t]);
    return s;
}

// ---- this machine ----

const char *machine_cpu_name(void) {
    static char line[256];
    char *name = NULL;
    FILE *f = fopen("/proc/cpuinfo", "r");
    while (f && !name && fgets(line, sizeof line, f))
        if (!strncmp(line, "model name", 10) && (name = strchr(line, ':'))) {
            line[strcspn(line, "\n")] = 0;
            for (name++; *name == ' ';) name++;
        }
    if (f) fclose(f);
    return name && *name ? name : "unknown processor";
}

void machine_gpu_name(char *name, size_t size, const char *detail) {
    const char *end = strstr(detail, ", sm_");
    snprintf(name, size, "%.*s", (int)(end ? (size_t)(end - detail) : strlen(detail)), detail);
}

static bool is_known(void *ctx, Tensor *t, int layer, bool ffn) {
    const Processor *p = ctx;
    (void)layer, (void)ffn;
    return t->n_row == 1 || p->share_of[t->type] > 0;
}

static bool host_fits(const Calibration *c, Model *m, const MachineQuery *q, const char *path, Err *note) {
    const int threads = q->threads > 0 ? q->threads : processors_allowed();
    const char *cpu = machine_cpu_name(), *isa = isa_name(q->isa == ISA_AUTO ? isa_best() : q->isa);
    if (strcmp(c->cpu, cpu) || c->threads != threads || strcmp(c->isa, isa))
        return err_set(note, "%.200s is of %.80s, %d threads, %s, this is %.80s, %d, %s: not used", path, c->cpu, c->threads, c->isa, cpu, threads, isa);
    return model_each(m, is_known, (void *)&c->processor[0]) ||
           err_set(note, "%.200s does not know all weight types of this model: not used for the host", path);
}

// As it is in the calibration, or in the table: what is free is looked up, speeds are not.
static bool this_gpu(Processor *gpu, const Calibration *c, const char *path, const MachineQuery *q, Err *note, Err *e) {
    Backend own = {0};
    const Backend *b = q->device;
    Err why = {{0}};
    char name[96];
    if (!b && !backend_open_cuda(&own, 0, &why)) {
        backend_close(&own);
        return !q->gpu || err_set(e, "--gpu this: %s", why.text);
    }
    if (!b) b = &own;
    machine_gpu_name(name, sizeof name, b->detail);
    const Processor *like = machine_gpu_like(b->detail);
    if (!like && q->at_once) like = &GPUS[0];
    const bool fits = c && !strcmp(c->gpu, name), ok = fits || like || err_set(e, "--gpu this: nothing is known of %s, expected bench calibrate, or --gpu %s", name, machine_names(true));
    if (c && !fits) err_set(note, "%.200s is of %s, this is %s: not used for the GPU", path, *c->gpu ? c->gpu : "no GPU", name);
    if (ok) {
        *gpu = fits ? c->processor[1] : *like;
        gpu->usable = (double)b->free_bytes;
        gpu->name = "this";
    }
    backend_close(&own);
    return ok;
}

bool machine_describe(Machine *k, Model *m, const MachineQuery *q, Err *note, Err *e) {
    static Calibration c; // its texts are pointed to
    char path[4096];
    const bool gpu_here = !q->gpu || !strcmp(q->gpu, "this"), host_here = !q->host || !strcmp(q->host, "this");
    *k = (Machine){0};
    note->text[0] = 0;
    const bool has = (gpu_here || host_here) && machine_path(path, sizeof path) && !access(path, F_OK) && machine_load(&c, path, note);
    if (!gpu_here && strcmp(q->gpu, "none")) k->gpu = *machine_gpu(q->gpu);
    if (gpu_here && !this_gpu(&k->gpu, has ? &c : NULL, path, q, note, e)) return false;
    if (!host_here) k->host = *machine_host(q->host);
    else if (has && host_fits(&c, m, q, path, note)) k->host = c.processor[0];
    else if (q->at_once) k->host = HOSTS[0];
    else if (!machine_measure(&k->host, m, q->threads, q->isa, NULL, e)) return false;
    machine_fit(&k->gpu, m);
    machine_fit(&k->host, m);
    return true;
}

// ---- prompts of a model ----

typedef struct {
    const Processor *p;
    double weights, seconds; // seconds of a product with all of them, times a constant
} Mix;

static bool mix_in(void *ctx, Tensor *t, int layer, bool ffn) {
    Mix *x = ctx;
    (void)layer, (void)ffn;
    const double n = (double)t->n_slice * t->n_row * t->n_col, rate = x->p->rate_of[t->type];
    if (t->n_row > 1 && rate > 0) x->weights += n, x->seconds += n / rate;
    return true;
}

void machine_fit(Processor *p, Model *m) {
    Mix x = {.p = p};
    model_each(m, mix_in, &x);
    if (x.seconds > 0) p->rate = x.weights / x.seconds;
}
