// bench_ops.c: how near are the ops of the cuda backend to what the device can do?
//   bench_ops [--backend cuda|cpu] [-m 64M] [-r 5] [--small] [type]
// Decode: a product with one row of activations reads its weights once, attention with one query its keys and values, experts
// theirs. Their GB/s (1e9 bytes of weights, or of keys and values) are given as a share of a device copy, bytes read and written.
// Prefill: TFLOP/s of products with many rows, as a share of cuBLAS's own best, a float16 product of 8192 x 8192 x 8192 on random
// numbers. Small ops: microseconds each, in a row.
//
// Every call works on other memory than the ones before, 1 GiB in turn, so that no cache (50 MB on an H100) holds any of it. A
// measurement is wall clock around calls that take 10 ms together, with their sync; what is compared is measured in turn; printed
// are medians over repetitions, of the ratios too. On the emulated device (tests/emu) every op runs once and nothing is timed.
// The cpu backend is there for tests of this program; bench_kernels measures it well.
#include <math.h>
#include <stdlib.h>
#include "console.h"
#include "options.h"
#include "place.h"
#include "yardstick.h"

typedef struct {
    uint64_t matrix, cold; // bytes of a matrix; of all memory that is gone through in turn
    int n_col, n_rows;     // of a matrix; of prefill's activations
    int depth;             // positions that attention sees
    int gemm;              // cuBLAS multiplies two such squares
    int n_embd, n_ff, n_expert, n_used; // experts
} Sizes;
static const Sizes REAL = {64 << 20, 1 << 30, 4096, 2048, 4096, 8192, 2816, 704, 128, 8};
static const Sizes SMALL = {32 << 10, 64 << 10, 256, 130, 64, 32, 256, 96, 8, 2};

enum { MAX_REPS = 101, PATTERN_ROWS = 16, MAX_CALLS = 2000 };

typedef struct {
    const char *backend, *matrix, *only;
    int reps;
    bool small;
} Options;

static const Option OPTIONS[] = {
    {"--backend", NULL, OPTION_TEXT, offsetof(Options, backend), 0, 0}, {"-m", NULL, OPTION_TEXT, offsetof(Options, matrix), 0, 0},
    {"-r", "--reps", OPTION_INT, offsetof(Options, reps), 1, MAX_REPS}, {"--small", NULL, OPTION_FLAG, offsetof(Options, small), 0, 0},
};

static Backend b;
static Sizes size;
static Options options;
static bool timed; // false: on the emulated device

static void stop(const char *why) {
    fprintf(stderr, "bench_ops: %s\n", why);
    exit(1);
}

static void *memory(uint64_t bytes) {
    void *p = b.alloc(&b, (size_t)bytes);
    if (!p) stop("no device memory");
    return p;
}

static float noise(void) { // uniform in [-1, 1)
    static uint32_t state = 1;
    state = state * 1664525u + 1013904223u;
    return (float)(int32_t)state * 0x1p-31f;
}

static float *noise_on_device(int64_t n) {
    const size_t bytes = sizeof(float) * (size_t)n;
    float *x = malloc(bytes), *there = memory(bytes);
    if (!x) stop("no memory");
    for (int64_t i = 0; i < n; i++) x[i] = noise();
    b.upload(&b, there, x, bytes);
    free(x);
    return there;
}

// ---- time ----

// Calls work(ctx, 0 .. n - 1), again and again: `passes` times.
typedef struct {
    void (*work)(void *ctx, int i);
    void *ctx;
    int n, passes;
} Job;

// Seconds of one call.
static double run(const Job *j) {
    Err e;
    const double start = seconds_now();
    for (int p = 0; p < j->passes; p++)
        for (int i = 0; i < j->n; i++) j->work(j->ctx, i);
    if (!b.sync(&b, &e)) stop(e.text);
    return (seconds_now() - start) / j->passes / j->n;
}

// Runs it, and chooses how often makes 10 ms, in a list of ops that a device's queue can hold. What comes again may be captured as
// a graph the second time, and takes its own time only from the third on.
static Job make_job(void (*work)(void *ctx, int i), void *ctx, int n) {
    Job j = {work, ctx, n, 1};
    Err e;
    if (!b.sync(&b, &e)) stop(e.text); // what was queued before is none of it
    for (int i = 0; i < (timed ? 2 : 1); i++) run(&j);
    if (timed) j.passes = max_int(1, min_int(1 + (int)(0.01 / (run(&j) * n)), MAX_CALLS / n));
    return j;
}

static int by_value(const void *a, const void *c) {
    const double x = *(const double *)a, y = *(const double *)c;
    return (x > y) - (x < y);
}
static double median(double *x, int n) {
    qsort(x, (size_t)n, sizeof *x, by_value);
    return (x[(n - 1) / 2] + x[n / 2]) / 2;
}

// A line: the label, amount / time of the job, and its share of what the other job moves or computes; beside NULL: no share.
static void report(const char *label, const Job *j, double amount, const Job *beside, double beside_amount, const char *unit) {
    double value[MAX_REPS], share[MAX_REPS];
    if (timed) {
        const double start = seconds_now();
        for (int i = 0; i < 3 || seconds_now() - start < 0.05; i++) run(j); // idle devices are slow at first
        for (int r = 0; r < options.reps; r++) {
            const double other = beside ? beside_amount / run(beside) : NAN;
            value[r] = amount / run(j);
            share[r] = 100 * value[r] / other;
        }
        printf("%-40s %10.1f %s", label, median(value, options.reps), unit);
        if (beside) printf("  %6.1f %%", median(share, options.reps));
        printf("\n");
    } else printf("%-40s emulated, no timing\n", label);
    fflush(stdout);
}

// ---- the device's own copy, and cuBLAS ----

typedef struct {
    char *from, *to;
    uint64_t bytes;
} Copy;

static void copy(void *ctx, int i) {
    const Copy *c = ctx;
    (void)i;
    if (b.on_host) memcpy(c->to, c->from, c->bytes);
    else if (!yardstick_copy(&b, c->to, c->from, c->bytes)) stop("the device's copy fails");
}

// The same by our own op, in rows of 1024 floats.
static void copy_rows(void *ctx, int i) {
    const Copy *c = ctx;
    (void)i;
    b.copy_rows(&b, (float *)c->to, 1024, (const float *)c->from, 1024, (int)(c->bytes / 4096), 1024);
}

static void gemm(void *ctx, int i) {
    (void)i;
    if (!yardstick_gemm(ctx)) stop("cublasGemmEx fails");
}

// ---- products ----

typedef struct {
    Tensor *w;
    const float *x[2];
    float *y;
    int n_rows;
} Products;

// Neighbours take different rows: products of the same rows would become one launch, and round them once. So these figures hold
// the rounding, which a model does in the step before.
static void product(void *ctx, int i) {
    const Products *p = ctx;
    b.matmul(&b, p->y, &p->w[i], NULL, p->x[i % 2], p->n_rows);
}

// n rows of n_col weights: a few quantised ones, repeated.
static void fill_rows(char *p, TensorType type, int64_t n, int n_col) {
    const int64_t row = type_row_bytes(type, n_col);
    float *x = malloc(sizeof(float) * (size_t)n_col);
    if (!x) stop("no memory");
    for (int64_t r = 0; r < n; r++) {
        if (r >= PATTERN_ROWS) {
            memcpy(p + r * row, p + (r - PATTERN_ROWS) * row, (size_t)row);
            continue;
        }
        for (int i = 0; i < n_col; i++) x[i] = 0.02f * noise();
        type_info((int)type)->from_f32(x, p + r * row, n_col, NULL);
    }
    free(x);
}

static void load(Tensor *t) {
    Err e;
    if (b.load && !b.load(&b, t, &e)) stop(e.text);
}

// Matrices of one type and size: one row of x, and many where that is wanted.
static void bench_type(TensorType type, uint64_t matrix, bool prefill, const Job *copy_job, const Copy *c, const Job *gemm_job, double gemm_flop) {
    const int64_t row = type_row_bytes(type, size.n_col), n_row = max_int(PATTERN_ROWS, (int)((int64_t)matrix / row)), bytes = n_row * row;
    const int n = max_int(2, (int)((int64_t)size.cold / bytes)), n_host = b.load ? 1 : n; // the host's are copied to the device
    Tensor *w = calloc((size_t)n, sizeof *w);
    char *host = malloc((size_t)(n_host * bytes)), label[64];
    if (!w || !host) stop("no memory");
    fill_rows(host, type, n_host * n_row, size.n_col);
    for (int i = 0; i < n; i++) {
        w[i] = (Tensor){.name = "weights", .type = type, .n_row = (int)n_row, .n_col = size.n_col, .n_slice = 1, .host = host + i % n_host * bytes};
        load(&w[i]);
    }
    const int n_rows = prefill ? size.n_rows : 1;
    const int64_t n_x = (int64_t)n_rows * size.n_col;
    float *x = noise_on_device(2 * n_x), *y = memory(sizeof(float) * (size_t)n_rows * (size_t)n_row);
    Products p = {w, {x, x + n_x}, y, 1};
    Job j = make_job(product, &p, n);
    snprintf(label, sizeof label, "%s, 1 row, %.4g MB", type_info((int)type)->name, (double)matrix * 1e-6);
    report(label, &j, (double)bytes * 1e-9, copy_job, 2 * (double)c->bytes * 1e-9, "GB/s");
    if (prefill) {
        p.n_rows = n_rows;
        j = make_job(product, &p, n);
        snprintf(label, sizeof label, "%s, %d rows", type_info((int)type)->name, n_rows);
        report(label, &j, 2e-12 * (double)n_rows * (double)n_row * size.n_col, gemm_job, gemm_flop * 1e-12, "TFLOP/s");
    }
    for (int i = 0; i < n; i++)
        if (w[i].dev) b.free(&b, w[i].dev);
    b.free(&b, x);
    b.free(&b, y);
    free(w);
    free(host);
}

// ---- attention and experts ----

typedef struct {
    KvLayer *kv; // [n]
    AttentionArgs a;
} Queries;

static void attend(void *ctx, int i) {
    Queries *q = ctx;
    q->a.kv = &q->kv[i];
    b.attention(&b, &q->a);
}

static void bench_attention(int n_head, int n_head_kv, int head_dim, const Job *copy_job, const Copy *c) {
    const int64_t row = (int64_t)n_head_kv * head_dim, bytes = 2 * row * size.depth * (int64_t)sizeof(F16);
    const int n = max_int(2, (int)((int64_t)size.cold / bytes)), step = min_int(size.n_rows, size.depth);
    KvLayer *kv = calloc((size_t)n, sizeof *kv);
    if (!kv) stop("no memory");
    float *x = noise_on_device(max_int(step * n_head_kv, n_head) * (int64_t)head_dim), *y = memory(sizeof(float) * (size_t)(n_head * head_dim));
    for (int i = 0; i < n; i++) {
        kv[i] = (KvLayer){.k = memory((uint64_t)bytes / 2), .v = memory((uint64_t)bytes / 2), .n_cell = size.depth, .n_head_kv = n_head_kv, .head_dim = head_dim};
        for (int pos = 0; pos < size.depth; pos += step) b.kv_write(&b, &kv[i], x, x, min_int(step, size.depth - pos), pos);
    }
    Queries q = {kv, {.y = y, .q = x, .n_rows = 1, .pos = size.depth - 1, .n_head = n_head, .scale = 1 / sqrtf((float)head_dim)}};
    const Job j = make_job(attend, &q, n);
    char label[64];
    snprintf(label, sizeof label, "attention, %d/%d heads of %d, %d deep", n_head, n_head_kv, head_dim, size.depth);
    report(label, &j, (double)bytes * 1e-9, copy_job, 2 * (double)c->bytes * 1e-9, "GB/s");
    for (int i = 0; i < n; i++) {
        b.free(&b, kv[i].k);
        b.free(&b, kv[i].v);
    }
    b.free(&b, x);
    b.free(&b, y);
    free(kv);
}

typedef struct {
    MoeArgs a;
    const int *expert; // [n_expert / n_used][n_used]: each call takes others
} Choices;

static void experts(void *ctx, int i) {
    Choices *c = ctx;
    c->a.expert = c->expert + i * c->a.n_used;
    b.moe_ffn(&b, &c->a);
}

static Tensor stack_of(TensorType type, int n_row, int n_col, const void **slices, char **host) {
    *host = malloc((size_t)(n_row * type_row_bytes(type, n_col)));
    if (!*host) stop("no memory");
    fill_rows(*host, type, n_row, n_col);
    for (int s = 0; s < size.n_expert; s++) slices[s] = *host;
    Tensor t = {.name = "experts", .type = type, .n_row = n_row, .n_col = n_col, .n_slice = size.n_expert, .host = *host, .slices = slices};
    load(&t);
    return t;
}

// The experts of Gemma 4 26B-A4B in a Q4_K_M file.
static void bench_experts(const Job *copy_job, const Copy *c) {
    const void *slices[3][MAX_EXPERT];
    char *host[3], label[64];
    Tensor gate = stack_of(TYPE_Q4_K, size.n_ff, size.n_embd, slices[0], &host[0]), up = stack_of(TYPE_Q4_K, size.n_ff, size.n_embd, slices[1], &host[1]),
           down = stack_of(TYPE_Q5_0, size.n_embd, size.n_ff, slices[2], &host[2]);
    const int n = size.n_expert / size.n_used;
    int order[MAX_EXPERT];
    float share[MAX_EXPERT];
    for (int i = 0; i < n * size.n_used; i++) { // a call's experts lie apart
        order[i] = i % size.n_used * n + i / size.n_used;
        share[i] = 1 / (float)size.n_used;
    }
    int *expert = memory(sizeof order);
    float *weight = memory(sizeof share), *x = noise_on_device(size.n_embd), *y = memory(sizeof(float) * (size_t)size.n_embd);
    b.upload(&b, expert, order, sizeof(int) * (size_t)(n * size.n_used));
    b.upload(&b, weight, share, sizeof(float) * (size_t)size.n_used);
    Choices choices = {{.y = y, .gate = &gate, .up = &up, .down = &down, .x = x, .weight = weight, .n_rows = 1, .n_used = size.n_used, .act = ACT_GELU_TANH}, expert};
    const Job j = make_job(experts, &choices, n);
    const double bytes = (double)(tensor_bytes(&gate) + tensor_bytes(&up) + tensor_bytes(&down)) / size.n_expert * size.n_used;
    snprintf(label, sizeof label, "experts, %d of %d, Q4_K and Q5_0", size.n_used, size.n_expert);
    report(label, &j, bytes * 1e-9, copy_job, 2 * (double)c->bytes * 1e-9, "GB/s");
    Tensor *const all[] = {&gate, &up, &down};
    for (int i = 0; i < 3; i++) {
        if (all[i]->dev) b.free(&b, all[i]->dev);
        free(host[i]);
    }
    void *const buffers[] = {expert, weight, x, y};
    for (int i = 0; i < 4; i++) b.free(&b, buffers[i]);
}

// ---- small ops ----

typedef struct {
    float *x;
    const float *y, *dir;
} Row;

static void small_add(void *ctx, int i) { (void)i; b.add(&b, ((Row *)ctx)->x, ((Row *)ctx)->y, size.n_col); }
static void small_norm(void *ctx, int i) { (void)i; b.norm(&b, ((Row *)ctx)->x, NULL, ((Row *)ctx)->x, 1, size.n_col, 1e-5f); }
static void small_project(void *ctx, int i) {
    (void)i;
    b.project_out(&b, &(ProjectArgs){.x = ((Row *)ctx)->x, .dir = ((Row *)ctx)->dir, .n_rows = 1, .n_col = size.n_col, .amount = 1});
}

static void bench_small(void) {
    Row row = {noise_on_device(size.n_col), noise_on_device(size.n_col), noise_on_device(size.n_col)};
    const struct { const char *name; void (*work)(void *ctx, int i); } ops[] = {{"add", small_add}, {"norm", small_norm}, {"project_out", small_project}};
    b.scale(&b, (float *)row.dir, 1 / sqrtf((float)size.n_col / 3), size.n_col); // about a unit vector
    for (int i = 0; i < 3; i++) {
        char label[64];
        const Job j = make_job(ops[i].work, &row, timed ? 100 : 2);
        snprintf(label, sizeof label, "%s, a row of %d, microseconds", ops[i].name, size.n_col);
        if (timed) {
            double us[MAX_REPS];
            for (int r = 0; r < options.reps; r++) us[r] = 1e6 * run(&j);
            printf("%-40s %10.2f\n", label, median(us, options.reps));
        } else printf("%-40s emulated, no timing\n", label);
    }
    b.free(&b, row.x);
    b.free(&b, (float *)row.y);
    b.free(&b, (float *)row.dir);
}

// ---- all ----

int main(int argc, char **argv) {
    options = (Options){.backend = "cuda", .reps = 7};
    Err e = {{0}};
    bool ok = options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, &options, argc, argv, &options.only, "the type", &e);
    size = options.small ? SMALL : REAL;
    if (ok && options.matrix) ok = place_parse_bytes(options.matrix, &size.matrix, &e);
    if (ok && strcmp(options.backend, "cuda") && strcmp(options.backend, "cpu")) ok = err_set(&e, "option --backend is '%s', expected cuda or cpu", options.backend);
    if (ok && options.only && (type_by_name(options.only) < 0 || !type_info(type_by_name(options.only))->from_f32))
        ok = err_set(&e, "'%s' is no weight type that can be written", options.only);
    if (!ok) {
        fprintf(stderr, "bench_ops: %s\n", e.text);
        return 2;
    }
    const bool cpu = !strcmp(options.backend, "cpu");
    const Limits limits = {.n_rows = size.n_rows, .n_col = max_int(size.n_col, size.n_embd), .n_ctx = size.depth, .n_head = 32, .head_dim = 512,
                           .n_embd = size.n_embd, .n_ff_expert = size.n_ff, .n_expert = size.n_expert, .n_expert_used = size.n_used};
    if (!(cpu ? backend_open_cpu(&b, 0, ISA_AUTO, &e) : backend_open_cuda(&b, 0, &e)) || !b.reserve(&b, &limits, &e)) stop(e.text);
    timed = strncmp(b.detail, "emulated", 8);
    printf("%s: %s\nmedians of %d, and the share of the copy (GB/s) or of cuBLAS (TFLOP/s), measured in turn\n", b.name, b.detail, options.reps);

    Copy c = {memory(size.cold / 4), memory(size.cold / 4), size.cold / 4};
    const Job copy_job = make_job(copy, &c, 1), rows_job = make_job(copy_rows, &c, 1);
    report("device copy", &copy_job, 2 * (double)c.bytes * 1e-9, NULL, 0, "GB/s");
    report("copy_rows", &rows_job, 2 * (double)c.bytes * 1e-9, &copy_job, 2 * (double)c.bytes * 1e-9, "GB/s");
    SquareGemm g = {0};
    Job gemm_job;
    const double gemm_flop = 2 * pow(size.gemm, 3);
    const bool has_gemm = !cpu && yardstick_gemm_open(&g, &b, size.gemm, &e);
    if (has_gemm) {
        gemm_job = make_job(gemm, &g, 1);
        report("cuBLAS, float16", &gemm_job, gemm_flop * 1e-12, NULL, 0, "TFLOP/s");
    } else printf("%-40s not measured: %s\n", "cuBLAS, float16", cpu ? "no GPU" : e.text);

    for (int t = 0; t < TYPE_COUNT; t++) {
        if (!type_info(t) || !type_info(t)->from_f32 || (options.only && t != type_by_name(options.only))) continue;
        const bool prefill = t == TYPE_Q4_K || t == TYPE_Q6_K || t == TYPE_Q8_0 || t == TYPE_Q5_0 || t == TYPE_F16 || options.only;
        bench_type((TensorType)t, size.matrix, prefill, &copy_job, &c, has_gemm ? &gemm_job : NULL, gemm_flop);
        if (prefill) bench_type((TensorType)t, 4 * size.matrix, false, &copy_job, &c, NULL, 0);
    }
    if (!options.only) {
        bench_attention(32, 8, 128, &copy_job, &c); // Llama 3.1 8B
        bench_attention(8, 4, 256, &copy_job, &c);  // Gemma 2 2B
        bench_attention(16, 2, 512, &copy_job, &c); // Gemma 4 26B-A4B, layers that see everything
        bench_experts(&copy_job, &c);
        bench_small();
    }
    yardstick_gemm_close(&g, &b);
    b.free(&b, c.from);
    b.free(&b, c.to);
    if (!b.sync(&b, &e)) stop(e.text);
    backend_close(&b);
    return fflush(stdout) ? 1 : 0;
}
