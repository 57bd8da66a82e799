// bench_kernels.c: bench kernels: one operation of the CPU backend at a time, held against reading the same memory and against
// multiplying alone. In turn, `reps` times: reading, multiplying, the operation; a share is the median of the ratios of neighbours.
// Matrix products for every weight type: with one row (decode) of a buffer larger than the caches, with many (prompts) of a matrix
// of 4096 x 4096. What fits into the caches is read from there, and so is what it is compared with. On a device: bench_ops.
#include <math.h>
#include <stdlib.h>
#include <strings.h>

#include "bench.h"
#include "console.h"
#include "options.h"
#include "peaks.h"
#include "results.h"

static const char HELP[] =
    "bench kernels [NAME] [options]   operations of the CPU backend one at a time; NAME: only those with it in their name or type\n"
    "\n"
    "  -t, --threads N      default: all this process may use\n"
    "  -r, --reps N         repetitions (default 7)\n"
    "  --rows N             rows of a prompt (default 256)\n"
    "  -m, --mib N          MiB of weights that one row is multiplied with (default 512)\n"
    "  --isa NAME           auto, portable, avx2, avxvnni, avx512vnni, amx: use no more than this\n"
    "  -o, --output FORMAT  md (default), json, csv\n";

enum { N_COL = 4096, PATTERN_ROWS = 16, HEADS = 32, KV_HEADS = 8, HEAD_DIM = 128, KEYS = 4096, EXPERTS = 128, USED = 8, N_EMBD = 2816, N_FF = 704 };

typedef struct {
    const char *name, *isa_name, *output;
    int threads, reps, n_rows, mib;
    bool help;
    Format format;
    Isa isa;
} Options;

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-t", "--threads", OPTION_INT, O(threads), 1, 1024}, {"-r", "--reps", OPTION_INT, O(reps), 1, MAX_REPS}, {"--rows", NULL, OPTION_INT, O(n_rows), 2, 1 << 14},
    {"-m", "--mib", OPTION_INT, O(mib), 1, 1 << 14},      {"--isa", NULL, OPTION_TEXT, O(isa_name), 0, 0},    {"-o", "--output", OPTION_TEXT, O(output), 0, 0},
    {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
#undef O
};

typedef struct {
    Backend b;
    char *weights;   // `mib` MiB
    size_t n_bytes;
    float *x, *y;    // [n_rows][N_COL] and as much as any operation writes
    void *keys;      // of KvLayer
    Tensor matrix, gate, up, down;
    Rope rope;
    int expert[USED];
    float expert_weight[USED];
} Bench;

typedef struct Case Case;
struct Case {
    const char *op, *type, *isa;
    int n_rows, n_threads;
    void (*run)(Bench *k, const Case *c);
    const void *memory;  // what it reads, [n_bytes]; NULL: activations, which are in the caches
    int64_t n_bytes;
    double bytes, flop;  // read and written at least; two for a multiplication and addition; flop NaN: not what it is about
    PeakKind kind;
    Series ns, stream, stream_share, peak, peak_share;
    double avg_ns, stddev_ns, gbps, stream_gbps, share_of_stream, gflops, peak_gflops, share_of_peak;
};

static const Field FIELDS[] = {
#define F(key, kind, field) {key, FIELD_##kind, offsetof(Case, field)}
    F("op", TEXT, op), F("type", TEXT, type), F("isa", TEXT, isa), F("n_rows", INT, n_rows), F("n_threads", INT, n_threads), F("avg_ns", REAL, avg_ns),
    F("stddev_ns", REAL, stddev_ns), F("samples_ns", SERIES, ns), F("bytes", REAL, bytes), F("flop", REAL, flop), F("read_gbps", REAL, gbps),
    F("stream_gbps", REAL, stream_gbps), F("share_of_stream", REAL, share_of_stream), F("gflops", REAL, gflops), F("peak_gflops", REAL, peak_gflops),
    F("share_of_peak", REAL, share_of_peak),
#undef F
};

// ---- the operations ----

static void run_matmul(Bench *k, const Case *c) { k->b.matmul(&k->b, k->y, &k->matrix, NULL, k->x, c->n_rows); }
static void run_attention(Bench *k, const Case *c) {
    const KvLayer kv = {.k = k->keys, .v = (char *)k->keys + KV_HEADS * KEYS * HEAD_DIM * 2, .n_cell = KEYS, .n_head_kv = KV_HEADS, .head_dim = HEAD_DIM};
    k->b.attention(&k->b, &(AttentionArgs){.y = k->y, .q = k->x, .kv = &kv, .n_rows = c->n_rows, .pos = KEYS - c->n_rows, .n_head = HEADS,
                                           .scale = 1 / sqrtf(HEAD_DIM)});
}
static void run_experts(Bench *k, const Case *c) {
    for (int u = 0; u < USED; u++) k->expert[u] = (k->expert[u] + USED) % EXPERTS; // others than last time
    k->b.moe_ffn(&k->b, &(MoeArgs){.y = k->y, .gate = &k->gate, .up = &k->up, .down = &k->down, .x = k->x, .expert = k->expert,
                                   .weight = k->expert_weight, .n_rows = c->n_rows, .n_used = USED, .act = ACT_GELU_TANH});
}
static void run_norm(Bench *k, const Case *c) { k->b.norm(&k->b, k->y, NULL, k->x, c->n_rows, N_COL, 1e-6f); }
static void run_rope(Bench *k, const Case *c) { k->b.rope(&k->b, k->y, &k->rope, c->n_rows, HEADS, HEAD_DIM, 1000); }
static void run_gated(Bench *k, const Case *c) { k->b.gated(&k->b, k->y, k->x, k->x, (int64_t)c->n_rows * N_COL, ACT_SILU); }
static void run_add(Bench *k, const Case *c) { k->b.add(&k->b, k->y, k->x, (int64_t)c->n_rows * N_COL); }

// Rows of random weights at p; a few are quantised and repeated. n_row 0: as many as there is room for.
static Tensor fill(Bench *k, TensorType type, int n_row, int n_col, int n_slice, char *p) {
    const int64_t row = type_row_bytes(type, n_col), room = (int64_t)k->n_bytes / row, all = n_row ? (int64_t)n_row * n_slice : room;
    for (int64_t r = 0; r < all; r++)
        if (r < PATTERN_ROWS) type_info((int)type)->from_f32(k->x + r * 64, p + r * row, n_col, NULL);
        else memcpy(p + r * row, p + (r - PATTERN_ROWS) * row, (size_t)row);
    return (Tensor){.name = "bench", .type = type, .n_row = (int)(all / n_slice), .n_col = n_col, .n_slice = n_slice, .host = p};
}

static bool stack(Tensor *t, Err *e) { // where its slices are
    if (!(t->slices = malloc(sizeof *t->slices * EXPERTS))) return err_set(e, "no memory for a list of experts");
    for (int i = 0; i < EXPERTS; i++) t->slices[i] = (const char *)t->host + i * (tensor_bytes(t) / EXPERTS);
    return true;
}

// ---- measuring ----

static bool measure(Bench *k, const Options *o, Case *c, Err *e) {
    c->run(k, c); // warm up
    for (int i = 0; i < o->reps; i++) {
        const double stream = c->memory ? stream_gbps_of(c->memory, c->n_bytes, o->threads) : NAN, peak = peak_gflops(c->kind, o->isa, o->threads), start = seconds_now();
        double seconds;
        int passes = 0;
        do c->run(k, c), passes++;
        while ((seconds = seconds_now() - start) < 0.02);
        seconds /= passes;
        series_add(&c->ns, seconds * 1e9);
        series_add(&c->stream, stream);
        series_add(&c->stream_share, c->bytes / seconds * 1e-9 / stream);
        series_add(&c->peak, peak);
        series_add(&c->peak_share, c->flop / seconds * 1e-9 / peak);
    }
    const double seconds = series_median(&c->ns) * 1e-9;
    c->avg_ns = series_mean(&c->ns), c->stddev_ns = series_sd(&c->ns);
    c->gbps = c->bytes / seconds * 1e-9, c->stream_gbps = series_median(&c->stream), c->share_of_stream = series_median(&c->stream_share);
    c->gflops = c->flop / seconds * 1e-9, c->peak_gflops = series_median(&c->peak), c->share_of_peak = series_median(&c->peak_share);
    return k->b.sync(&k->b, e);
}

enum { MAX_CASE = 2 * TYPE_COUNT + 16 };
static Case cases[MAX_CASE];
static int n_case;

static bool contains(const char *text, const char *part) {
    for (; *text; text++)
        if (!strncasecmp(text, part, strlen(part))) return true;
    return false;
}

static void add_case(const Options *o, const Case *c) {
    if (o->name && !contains(c->op, o->name) && !contains(c->type, o->name)) return;
    Case *to = &cases[n_case++];
    *to = *c;
    to->isa = isa_name(o->isa), to->n_threads = o->threads;
}

static void list_cases(const Options *o, const Bench *k) {
    for (int rows = 1;; rows = o->n_rows) {
        for (int t = 0; t < TYPE_COUNT; t++)
            if (type_info(t) && type_info(t)->from_f32)
                add_case(o, &(Case){.op = "matmul", .type = type_info(t)->name, .n_rows = rows, .run = run_matmul, .memory = k->weights, .kind = peak_kind((TensorType)t)});
        const double row = N_COL, seen = 2.0 * KV_HEADS * KEYS * HEAD_DIM * 2, pairs = rows * (KEYS - (rows - 1) / 2.0);
        add_case(o, &(Case){.op = "attention", .type = "F16", .n_rows = rows, .run = run_attention, .memory = k->keys, .n_bytes = (int64_t)seen, .kind = PEAK_F32,
                            .bytes = seen, .flop = 4.0 * HEADS * HEAD_DIM * pairs});
        const int64_t expert = tensor_bytes(&k->gate) + tensor_bytes(&k->up) + tensor_bytes(&k->down);
        if (rows == 1)
            add_case(o, &(Case){.op = "experts", .type = "Q4_K, Q5_0", .n_rows = 1, .run = run_experts, .memory = k->weights, .n_bytes = expert,
                                .bytes = (double)expert / EXPERTS * USED, .flop = 2.0 * 3 * N_EMBD * N_FF * USED, .kind = PEAK_INT8});
        const Case plain[] = {{.op = "norm", .run = run_norm, .bytes = 8 * row * rows}, {.op = "rope", .run = run_rope, .bytes = 8 * row * rows},
                              {.op = "gated", .run = run_gated, .bytes = 12 * row * rows}, {.op = "add", .run = run_add, .bytes = 12 * row * rows}};
        for (int i = 0; i < 4 && rows > 1; i++) {
            Case c = plain[i];
            c.type = "F32", c.n_rows = rows, c.flop = NAN, c.kind = PEAK_F32;
            add_case(o, &c);
        }
        if (rows == o->n_rows) return;
    }
}

// The weights that a case is about are made when its turn comes: they share one buffer.
static bool prepare(Bench *k, Case *c, Err *e) {
    if (c->run == run_experts) {
        char *p = k->weights;
        Tensor *const part[] = {&k->gate, &k->up, &k->down};
        for (int i = 0; i < 3; p += tensor_bytes(part[i]), i++) {
            free(part[i]->slices);
            *part[i] = i < 2 ? fill(k, TYPE_Q4_K, N_FF, N_EMBD, EXPERTS, p) : fill(k, TYPE_Q5_0, N_EMBD, N_FF, EXPERTS, p);
            if (!stack(part[i], e)) return false;
        }
    }
    if (c->run != run_matmul) return true;
    k->matrix = fill(k, (TensorType)type_by_name(c->type), c->n_rows == 1 ? 0 : N_COL, N_COL, 1, k->weights);
    c->n_bytes = tensor_bytes(&k->matrix);
    c->bytes = (double)c->n_bytes;
    c->flop = 2.0 * k->matrix.n_row * N_COL * c->n_rows;
    return true;
}

static bool open_bench(Bench *k, const Options *o, Err *e) {
    // Buffers for the largest: N_COL floats for each row, weights of 4096 x 4096 floats, and all experts.
    k->gate = k->up = (Tensor){.type = TYPE_Q4_K, .n_row = N_FF, .n_col = N_EMBD, .n_slice = EXPERTS};
    k->down = (Tensor){.type = TYPE_Q5_0, .n_row = N_EMBD, .n_col = N_FF, .n_slice = EXPERTS};
    const size_t experts = (size_t)(2 * tensor_bytes(&k->gate) + tensor_bytes(&k->down)), least = (size_t)N_COL * N_COL * 4;
    k->n_bytes = (size_t)o->mib << 20;
    const size_t room = k->n_bytes > experts ? k->n_bytes : experts > least ? experts : least, n_x = (size_t)N_COL * (size_t)max_int(o->n_rows, PATTERN_ROWS),
                 n_y = k->n_bytes / (N_COL / 4) > n_x ? k->n_bytes / (N_COL / 4) : n_x, n_keys = 2 * (size_t)KV_HEADS * KEYS * HEAD_DIM;
    k->weights = aligned_alloc(64, (room + 63) / 64 * 64);
    k->x = aligned_alloc(64, n_x * 4);
    k->y = aligned_alloc(64, (n_y * 4 + 63) / 64 * 64);
    k->keys = aligned_alloc(64, n_keys * sizeof(F16));
    double *freq = malloc(sizeof *freq * HEAD_DIM / 2);
    k->rope = (Rope){ROPE_HALVES, HEAD_DIM, 1, freq};
    if (!k->weights || !k->x || !k->y || !k->keys || !freq) return err_set(e, "no memory for %d MiB of weights", o->mib);
    memset(k->y, 0, n_y * 4);
    for (size_t i = 0; i < n_x; i++) k->x[i] = (float)rand() / (float)RAND_MAX * 2 - 1;
    for (size_t i = 0; i < n_keys; i++) ((F16 *)k->keys)[i] = f16_from_f32(k->x[i % n_x]);
    for (int i = 0; i < HEAD_DIM / 2; i++) freq[i] = pow(10000, -2.0 * i / HEAD_DIM);
    for (int u = 0; u < USED; u++) k->expert[u] = u, k->expert_weight[u] = 1.0f / USED;
    return backend_open_cpu(&k->b, o->threads, o->isa, e) &&
           k->b.reserve(&k->b, &(Limits){.n_rows = o->n_rows, .n_col = N_COL, .n_ctx = KEYS, .n_head = HEADS, .head_dim = HEAD_DIM, .n_embd = N_EMBD,
                                         .n_ff_expert = N_FF, .n_expert = EXPERTS, .n_expert_used = USED, .n_vocab = 1}, e);
}

static void close_bench(Bench *k) {
    backend_close(&k->b);
    free((void *)k->rope.freq);
    free(k->weights);
    free(k->x);
    free(k->y);
    free(k->keys);
    free(k->gate.slices);
    free(k->up.slices);
    free(k->down.slices);
}

static bool print_table(const Options *o, Err *e) {
    Table t;
    if (!table_open(&t, 9, e)) return false;
    const char *const heads[] = {"op", "type", "rows", "us", "GB/s", "of stream", "GFLOP/s", "of peak", "peak"};
    for (int i = 0; i < 9; i++) table_text(&t, "%s", heads[i]);
    for (const Case *c = cases; c < cases + n_case; c++) {
        table_text(&t, "%s", c->op);
        table_text(&t, "%s", c->type);
        table_text(&t, "%d", c->n_rows);
        table_text(&t, "%.1f ± %.1f", c->avg_ns * 1e-3, c->stddev_ns * 1e-3);
        table_number(&t, "%.2f", c->gbps);
        table_number(&t, "%.1f %%", 100 * c->share_of_stream);
        table_number(&t, "%.1f", c->gflops);
        table_number(&t, "%.1f %%", 100 * c->share_of_peak);
        table_text(&t, "%s", PEAK_NAMES[c->kind]);
    }
    table_print_close(stdout, &t, 2);
    printf("\n%s, %d threads, median of %d; shares of reading alone and of multiplying alone, measured in turn\n", isa_name(o->isa), o->threads, o->reps);
    return true;
}

Status bench_kernels(int argc, char **argv, Err *e) {
    static Bench k;
    Options o = {.reps = 7, .n_rows = 256, .mib = 512};
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, &o, argc, argv, &o.name, "the name", e) || !format_parse(o.output, &o.format, e)) return USAGE;
    if (o.help) {
        fputs(HELP, stdout);
        return DONE;
    }
    const int isa = o.isa_name ? isa_by_name(o.isa_name) : ISA_AUTO;
    if (isa < 0) return err_set(e, "option --isa is '%s', expected auto, portable, avx2, avxvnni, avx512vnni or amx", o.isa_name), USAGE;
    o.isa = isa == ISA_AUTO ? isa_best() : (Isa)isa;
    o.threads = threads_or_all(o.threads);
    bool ok = open_bench(&k, &o, e);
    if (ok) list_cases(&o, &k);
    if (ok && !n_case) {
        close_bench(&k);
        return err_set(e, "no operation or type has '%s' in its name", o.name), USAGE;
    }
    Progress bar;
    progress_start(&bar, "measuring");
    for (int i = 0; ok && i < n_case; i++) {
        ok = prepare(&k, &cases[i], e) && measure(&k, &o, &cases[i], e);
        progress_step(&bar, i + 1, n_case);
    }
    progress_end(&bar);
    if (ok && o.format == FORMAT_MD) ok = print_table(&o, e);
    if (ok && o.format == FORMAT_JSON) report_json(stdout, FIELDS, sizeof FIELDS / sizeof *FIELDS, cases, sizeof *cases, n_case);
    if (ok && o.format == FORMAT_CSV) report_csv(stdout, FIELDS, sizeof FIELDS / sizeof *FIELDS, cases, sizeof *cases, n_case);
    close_bench(&k);
    return ok ? DONE : FAILED;
}
