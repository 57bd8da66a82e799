// calibrate.c: bench calibrate: measures this machine for the planner (engine/machine.h) and keeps the numbers in a text file. The host:
// reading alone, products of every weight type with one row and with a prompt's, chosen experts, what an op costs beside its bytes. The GPU, if there is one:
// its own copy, the same products as shares of it, launches, the link, the hand-off of a row. On the emulated device everything runs once, in
// small, and its figures say nothing.
#include <fcntl.h>
#include <math.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "bench.h"
#include "fill.h"
#include "machine.h"
#include "options.h"
#include "peaks.h"
#include "results.h"
#include "yardstick.h"

static const char HELP[] =
    "bench calibrate [MODEL.gguf]   measures this machine, for the planner (run --plan, -ngl); half a minute\n"
    "                               with a model: only the weight types that it has, with its matrices\n"
    "\n"
    "  -o, --output FILE    where the numbers go (default: where the planner looks, $XDG_CACHE_HOME or ~/.cache, abliterate/machine-HOST.txt)\n"
    "  -t, --threads N      CPU threads (default: all this process may use)\n"
    "  --isa NAME           auto, portable, avx2, avxvnni, avx512vnni, amx: use no more than this\n"
    "  --no-gpu             only the host\n";

typedef struct {
    const char *model, *output, *isa;
    int threads;
    bool no_gpu, help;
} Options;

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-o", "--output", OPTION_TEXT, O(output), 0, 0}, {"-t", "--threads", OPTION_INT, O(threads), 1, 1024}, {"--isa", NULL, OPTION_TEXT, O(isa), 0, 0},
    {"--no-gpu", NULL, OPTION_FLAG, O(no_gpu), 0, 0}, {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
#undef O
};

static double median(double *x, int n) {
    Series s = {0};
    for (int i = 0; i < n; i++) series_add(&s, x[i]);
    return series_median(&s);
}

// ---- the host ----

enum { STREAM_MIB = 512, STREAM_REPS = 3 };

// Reading alone, and filling slots, before and after the products, in turn with nothing else.
static bool stream(double *x, double *fill, int threads, Err *e) {
    const size_t bytes = (size_t)STREAM_MIB << 20;
    char *memory = aligned_alloc(64, bytes);
    if (!memory) return err_set(e, "no memory for %d MiB to read", STREAM_MIB);
    memset(memory, 1, bytes);
    for (int i = 0; i < STREAM_REPS; i++) {
        x[i] = 1e9 * stream_gbps_of(memory, (int64_t)bytes, threads);
        fill[i] = 1e9 * fill_gbps(memory, (int64_t)bytes, FILL_SLOT_BYTES, FILL_SLOTS);
    }
    free(memory);
    return true;
}

static bool calibrate_host(Calibration *c, Model *m, Isa isa, Err *e) {
    double reading[2 * STREAM_REPS], fill[2 * STREAM_REPS];
    Progress bar;
    Processor *p = &c->processor[0];
    progress_start(&bar, "measuring the host");
    const bool ok = stream(reading, fill, c->threads, e) && machine_measure(p, m, c->threads, isa, &bar, e) &&
                    stream(reading + STREAM_REPS, fill + STREAM_REPS, c->threads, e);
    progress_end(&bar);
    if (!ok) return false;
    const double alone = median(reading, 2 * STREAM_REPS);
    for (int t = 0; t < TYPE_COUNT; t++) p->share_of[t] *= p->bandwidth / alone;
    p->bandwidth = alone;
    p->fill = median(fill, 2 * STREAM_REPS);
    const double running = peaks_share_running();
    if (running < 0.9) fprintf(stderr, "bench: the threads were running %.0f %% of the time: other programs run beside this one, calibrate again without\n", 100 * running);
    return true;
}

// ---- the GPU ----

typedef struct {
    Backend b;
    bool timed;
    size_t matrix; // bytes
    int64_t borrowed; // of a weight
    int n, n_col, n_rows, reps;
    Progress bar;
} Gpu;

// Seconds of one call of work(ctx, 0 .. n - 1), median. What comes again may be captured as a graph the second time.
static double seconds_of(Gpu *g, void (*work)(void *ctx, int i), void *ctx, int n, Err *e) {
    double s[8] = {0};
    for (int r = g->timed ? -3 : 0; r < g->reps; r++) {
        const double start = seconds_now();
        double spent;
        int passes = 0;
        do {
            for (int i = 0; i < n; i++) work(ctx, i);
            if (!g->b.sync(&g->b, e)) return 0;
            passes++;
        } while ((spent = seconds_now() - start) < 0.02 && g->timed);
        if (r >= 0) s[r] = spent / passes / n;
    }
    return median(s, g->reps);
}

typedef struct {
    Gpu *g;
    char *device, *other; // other: of the device, or of the host
    size_t bytes;
} Copy;
static void copy(void *ctx, int i) {
    const Copy *c = ctx;
    (void)i;
    if (!yardstick_copy(&c->g->b, c->device, c->other, c->bytes)) backend_fail(&c->g->b, "the device's copy fails");
}
static void up(void *ctx, int i) {
    const Copy *c = ctx;
    (void)i;
    c->g->b.upload(&c->g->b, c->device, c->other, c->bytes);
}
static void down(void *ctx, int i) {
    const Copy *c = ctx;
    (void)i;
    c->g->b.download(&c->g->b, c->other, c->device, c->bytes);
}

static bool copies(Gpu *g, Processor *p, Err *e) {
    const size_t large = g->timed ? 256u << 20 : 64u << 10, link = large / 4;
    char *a = g->b.alloc(&g->b, large), *b = g->b.alloc(&g->b, large), *host = calloc(1, link);
    bool ok = (a && b && host) || err_set(e, "GPU: no memory for copies of %zu MiB", large >> 20);
    if (ok) {
        p->bandwidth = 2 * (double)large / seconds_of(g, copy, &(Copy){g, a, b, large}, 1, e);
        p->up_pageable = (double)link / seconds_of(g, up, &(Copy){g, a, host, link}, 1, e);
        p->down = (double)link / seconds_of(g, down, &(Copy){g, a, host, link}, 1, e);
        ok = g->b.sync(&g->b, e);
    }
    g->b.free(&g->b, a);
    g->b.free(&g->b, b);
    free(host);
    return ok;
}

typedef struct {
    Gpu *g;
    Tensor t[2]; // halves of what is mapped
} Borrow;
static void borrow(void *ctx, int i) {
    Borrow *k = ctx;
    Tensor view;
    const Tensor *const t = &k->t[i];
    if (k->g->b.borrow(&k->g->b, &view, &t, 1, NULL, 1) != 1) backend_fail(&k->g->b, "a weight of %lld bytes is not borrowed", (long long)tensor_bytes(t));
}

// Weights from a file's pages that are pinned: the model's file, or the program's own. 0, and why, where they cannot be.
static double from_file(Gpu *g, const char *path, Err *why, Err *e) {
    enum { N_COL = 4096 };
    const int64_t row = type_row_bytes(TYPE_Q4_K, N_COL), page = 4096;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    struct stat st;
    int64_t half = fd >= 0 && !fstat(fd, &st) ? st.st_size / 2 / page * page : 0;
    if (half > g->borrowed) half = g->borrowed;
    void *p = half >= row ? mmap(NULL, (size_t)(2 * half), PROT_READ, MAP_SHARED, fd, 0) : MAP_FAILED;
    double rate = 0;
    if (p == MAP_FAILED) err_set(why, "no file to map");
    else if (g->b.pin(&g->b, p, (size_t)(2 * half), why)) {
        Borrow k = {.g = g};
        for (int i = 0; i < 2; i++)
            k.t[i] = (Tensor){.name = "of a file", .type = TYPE_Q4_K, .n_row = (int)(half / row), .n_col = N_COL, .n_slice = 1, .host = (const char *)p + i * half};
        rate = (double)tensor_bytes(&k.t[0]) / seconds_of(g, borrow, &k, 2, e);
        g->b.unpin(&g->b);
    }
    if (p != MAP_FAILED) munmap(p, (size_t)(2 * half));
    if (fd >= 0) close(fd);
    return rate;
}

// Neighbours take different rows: products of the same rows would become one launch.
typedef struct {
    Gpu *g;
    const Tensor *w; // [n]
    float *x[2], *y;
    int n_rows;
} Products;
static void product(void *ctx, int i) {
    const Products *k = ctx;
    k->g->b.matmul(&k->g->b, k->y, &k->w[i], NULL, k->x[i % 2], k->n_rows);
}

// One type: bytes per second with one row, through more memory than the device's caches hold, as a share of its copy; operations per second of many rows.
static bool products(Gpu *g, Processor *p, TensorType type, const void *zeros, Err *e) {
    const int n_row = max_int(16, (int)((int64_t)g->matrix / type_row_bytes(type, g->n_col)));
    const size_t row = sizeof(float) * (size_t)g->n_col;
    Tensor *w = calloc((size_t)g->n, sizeof *w);
    Products k = {g, w, {g->b.alloc(&g->b, row * (size_t)g->n_rows), g->b.alloc(&g->b, row * (size_t)g->n_rows)},
                  g->b.alloc(&g->b, sizeof(float) * (size_t)n_row * (size_t)g->n_rows), 1};
    bool ok = (w && k.x[0] && k.x[1] && k.y) || err_set(e, "GPU: no memory to measure products of %s", type_info((int)type)->name);
    for (int i = 0; i < g->n && ok; i++) {
        w[i] = (Tensor){.name = "zeros", .type = type, .n_row = n_row, .n_col = g->n_col, .n_slice = 1, .host = zeros};
        ok = g->b.load(&g->b, &w[i], e);
    }
    if (ok) {
        p->share_of[type] = (double)tensor_bytes(w) / seconds_of(g, product, &k, g->n, e) / p->bandwidth;
        k.n_rows = g->n_rows;
        p->rate_of[type] = 2.0 * k.n_rows * n_row * g->n_col / seconds_of(g, product, &k, g->n, e);
        ok = g->b.sync(&g->b, e);
    }
    for (int i = 0; w && i < g->n; i++)
        if (w[i].dev) g->b.free(&g->b, w[i].dev);
    g->b.free(&g->b, k.x[0]);
    g->b.free(&g->b, k.x[1]);
    g->b.free(&g->b, k.y);
    free(w);
    return ok;
}

static bool has_type(void *ctx, Tensor *t, int layer, bool ffn) {
    bool *has = ctx;
    (void)layer, (void)ffn;
    if (t->n_row > 1) has[t->type] = true;
    return true;
}

static bool measure_gpu(Gpu *g, Calibration *c, Model *m, const char *file, Err *e) {
    enum { N_EMBD = 2816 };
    Processor *p = &c->processor[1];
    bool has[TYPE_COUNT] = {false};
    double alone, down_pinned;
    Err why = {{0}};
    void *zeros = calloc(1, g->matrix + (1 << 20)); // and a row more
    const Limits limits = {.n_rows = g->n_rows, .n_col = g->n_col, .n_ctx = 1, .n_head = 1, .head_dim = 64, .n_vocab = 1, .ring_bytes = 2 * (uint64_t)g->borrowed + (1 << 20)};
    if (m) model_each(m, has_type, has);
    *p = (Processor){.reserve = 0.3e9}; // the context, kernels' scratch: engine/machine.c
    bool ok = (zeros || err_set(e, "no memory to measure with")) && g->b.reserve(&g->b, &limits, e) && yardstick_memory(&g->b, &p->memory, e) && copies(g, p, e) &&
              yardstick_launch(&g->b, &alone, &p->launch, &p->token, e) && yardstick_link(&g->b, g->timed ? 64u << 20 : 64u << 10, &p->up_pinned, &down_pinned, e) &&
              yardstick_handoff(&g->b, N_EMBD, &p->handoff, e);
    if (ok) p->up_mapped = from_file(g, file, &why, e), ok = g->b.sync(&g->b, e);
    for (int t = 0; t < TYPE_COUNT && ok; t++) {
        progress_step(&g->bar, t + 1, TYPE_COUNT);
        if (type_info(t) && cuda_supports((TensorType)t) && (!m || has[t])) ok = products(g, p, (TensorType)t, zeros, e);
    }
    if (ok)
        snprintf(c->remark, sizeof c->remark, "%sa launch alone %.3g us, to pinned memory %.3g GB/s%s%.100s", g->timed ? "" : "emulated, the GPU's figures say nothing; ",
                 alone * 1e6, down_pinned * 1e-9, why.text[0] ? "; pages of a file: " : "", why.text);
    free(zeros);
    return ok;
}

// Without a GPU: what is missing is said in the file, and no error.
static bool calibrate_gpu(Calibration *c, Model *m, const char *file, Err *e) {
    Gpu g = {0};
    Err why;
    if (!backend_open_cuda(&g.b, 0, &why)) {
        snprintf(c->remark, sizeof c->remark, "no GPU: %.200s", why.text);
        return true;
    }
    g.timed = strncmp(g.b.detail, "emulated", 8);
    g.matrix = g.timed ? 32 << 20 : 16 << 10;
    g.borrowed = g.timed ? 32 << 20 : 64 << 10;
    g.n = g.timed ? 8 : 2;
    g.n_col = g.timed ? 4096 : 256;
    g.n_rows = g.timed ? 2048 : 16;
    g.reps = g.timed ? 5 : 1;
    machine_gpu_name(c->gpu, sizeof c->gpu, g.b.detail);
    progress_start(&g.bar, "measuring the GPU");
    const bool ok = measure_gpu(&g, c, m, file, e);
    progress_end(&g.bar);
    backend_close(&g.b);
    return ok;
}

// ---- the command ----

static bool calibrate(const Options *o, Model *m, const char *path, Err *e) {
    static Calibration c;
    const Isa wanted = o->isa ? (Isa)isa_by_name(o->isa) : ISA_AUTO;
    const time_t now = time(NULL);
    c.threads = threads_or_all(o->threads);
    snprintf(c.cpu, sizeof c.cpu, "%s", machine_cpu_name());
    snprintf(c.isa, sizeof c.isa, "%s", isa_name(wanted == ISA_AUTO ? isa_best() : wanted));
    strftime(c.date, sizeof c.date, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    SafeFile f;
    Err none;
    if (!machine_create(&f, path, e)) return false; // before half a minute is gone
    (void)!safe_close(&f, false, &none);            // which somebody may end
    if (!calibrate_host(&c, m, wanted, e) || !(o->no_gpu || calibrate_gpu(&c, m, m ? o->model : "/proc/self/exe", e)) || !machine_create(&f, path, e)) return false;
    machine_print(f.f, &c);
    if (!safe_close(&f, true, e)) return false;
    machine_print(stdout, &c);
    fprintf(stderr, "bench: written to %s\n", path);
    return true;
}

Status bench_calibrate(int argc, char **argv, Err *e) {
    static Options o;
    static Model m;
    char place[4096];
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, &o, argc, argv, &o.model, "the model", e)) return USAGE;
    if (o.help) {
        fputs(HELP, stdout);
        return DONE;
    }
    if (o.isa && isa_by_name(o.isa) < 0) return err_set(e, "option --isa is '%s', expected auto, portable, avx2, avxvnni, avx512vnni or amx", o.isa), USAGE;
    if (!o.output && !machine_path(place, sizeof place)) return err_set(e, "neither XDG_CACHE_HOME nor HOME is set: where to? -o FILE"), USAGE;
    const bool ok = (!o.model || model_open(&m, o.model, e)) && calibrate(&o, o.model ? &m : NULL, o.output ? o.output : place, e);
    if (o.model) model_close(&m);
    return ok ? DONE : FAILED;
}
