// bench_model.c: tokens/s of a model, with llama-bench's tests, columns and keys: pp512 reads a prompt of 512 random tokens, tg128
// decodes 128, one by one; "@ d4096": after 4096 others, which are not timed. Nothing is sampled. Beside it, what they could be: every
// repetition of every test measures reading alone and multiplying alone (peaks.h), then the test, one after the other, so that a busy
// or throttled machine slows all three alike; a share is the median of the repetitions' own ratios.
// On a GPU those ceilings are not measured here (bench_ops copies device memory); nor is anything on the emulated device.
#include <ctype.h>
#include <math.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <time.h>

#include "bench.h"
#include "commit.h"
#include "console.h"
#include "machine.h"
#include "place.h"
#include "results.h"
#include "steer.h"
#include "synth.h"
#include "work.h"

static const char HELP[] =
    "bench MODEL.gguf [options]           tokens/s of a model, and its shares of what memory and processor could do\n"
    "bench --synthetic 8b[:Q8_0] ...      the same for random weights in the shape of Llama 3.1 8B (bench synth --list: others)\n"
    "bench synth SHAPE OUT.gguf [TYPE]    writes such a model: Q4_K_M, Q8_0, F16\n"
    "bench kernels [NAME] [options]       one operation and weight type at a time\n"
    "bench roofline [options]             this machine's ceilings, and what published models could reach on it\n"
    "bench compare A.json B.json          two runs side by side\n"
    "bench calibrate [MODEL.gguf]         measures this machine, for the planner\n"
    "bench experts MODEL.gguf -f TEXT     which experts a model chooses, and what keeping some of them on the GPU would bring\n"
    "\n"
    "  -p, --prefill LIST   pp: prompts of so many tokens, \"128,512\" (default 512; 0: none)\n"
    "  -n, --decode LIST    tg: decode so many tokens (default 128; 0: none)\n"
    "  -d, --depth LIST     after so many other tokens (default 0)\n"
    "  -t, --threads LIST   CPU threads (default: all this process may use)\n"
    "  -r, --reps N         repetitions (default 5)\n"
    "  -o, --output FORMAT  md (default), json, csv; to standard output\n"
    "  -b, --batch-size N   prompts in pieces of N tokens (default 512)\n"
    "  -ngl, --gpu-layers N what goes to the GPU, as in run (default auto); so are --vram --reserve --cpu-moe --n-cpu-moe -ot --experts --residency\n"
    "  --no-mmap --no-pin   read the file instead of mapping it; leave pages unpinned that prompts copy to the GPU\n"
    "  --backend NAME       cpu, ref (the slow exact one, on one thread), cuda (all of the model); default: as planned\n"
    "  --ablate             every test also while a random direction is projected out at every site\n"
    "  --every-row          prompts compute every row to the end, not only those whose logits are wanted\n"
    "  -ctk TYPE -ctv TYPE  of the KV cache: f16 (default) or q8_0\n"
    "  --isa NAME           auto, portable, avx2, avxvnni, avx512vnni, amx: use no more than this\n"
    "  -h, --help\n";

// ---- options ----

enum { MAX_LIST = 16, MAX_ROW = 512 };

typedef struct {
    int value[MAX_LIST], n;
} List;

typedef struct {
    const char *model, *synthetic, *prompts, *gens, *depths, *threads, *output;
    int reps, n_batch;
    bool ablate, every_row, help;
    PlaceOptions place;
    List n_prompt, n_gen, n_depth, n_thread;
    Format format;
    Synthetic shape;
} Options;

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-m", "--model", OPTION_TEXT, O(model), 0, 0},
    {"--synthetic", NULL, OPTION_TEXT, O(synthetic), 0, 0},
    {"-p", "--prefill", OPTION_TEXT, O(prompts), 0, 0},
    {"-n", "--decode", OPTION_TEXT, O(gens), 0, 0},
    {"-d", "--depth", OPTION_TEXT, O(depths), 0, 0},
    {"-t", "--threads", OPTION_TEXT, O(threads), 0, 0}, // before the one of PLACE_OPTIONS
    PLACE_OPTIONS(O(place)),
    {"-r", "--reps", OPTION_INT, O(reps), 1, MAX_REPS},
    {"-o", "--output", OPTION_TEXT, O(output), 0, 0},
    {"-b", "--batch-size", OPTION_INT, O(n_batch), 1, 1 << 20},
    {"--ablate", NULL, OPTION_FLAG, O(ablate), 0, 0},
    {"--every-row", NULL, OPTION_FLAG, O(every_row), 0, 0},
    {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
#undef O
};

static bool parse_list(const char *option, const char *text, int min, List *list, Err *e) {
    list->n = 0;
    for (const char *p = text;; p++) {
        char *end;
        const long v = isdigit((unsigned char)*p) ? strtol(p, &end, 10) : -1;
        if (v < min || v > 1 << 20 || (*end && *end != ',') || list->n == MAX_LIST)
            return err_set(e, "option %s is '%s', expected up to %d whole numbers from %d to %d, as 128,512", option, text, MAX_LIST, min, 1 << 20);
        list->value[list->n++] = (int)v;
        if (!*end) return true;
        p = end;
    }
}

static int largest(const List *list) {
    int max = 0;
    for (int i = 0; i < list->n; i++) max = max_int(max, list->value[i]);
    return max;
}

static bool parse_options(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.place.program = "bench", .prompts = "512", .gens = "128", .depths = "0", .threads = "0", .reps = 5, .n_batch = 512};
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, o, argc, argv, &o->model, "the model", e)) return false;
    if (o->help) return true;
    if (!o->model == !o->synthetic) return err_set(e, o->model ? "both a model and --synthetic" : "no model given: bench MODEL.gguf");
    if (o->synthetic && !synthetic_parse(o->synthetic, &o->shape, e)) return false;
    if (!place_check(&o->place, e) || !format_parse(o->output, &o->format, e)) return false;
    if (!parse_list("-p", o->prompts, 0, &o->n_prompt, e) || !parse_list("-n", o->gens, 0, &o->n_gen, e) ||
        !parse_list("-d", o->depths, 0, &o->n_depth, e) || !parse_list("-t", o->threads, strcmp(o->threads, "0") ? 1 : 0, &o->n_thread, e))
        return false;
    if (largest(&o->n_thread) > 1024) return err_set(e, "option -t is '%s', expected at most 1024", o->threads);
    const int n = (o->n_prompt.n + o->n_gen.n) * o->n_depth.n * o->n_thread.n * (1 + o->ablate);
    if (n > MAX_ROW) return err_set(e, "the lists of -p, -n, -d and -t make %d tests, expected at most %d", n, MAX_ROW);
    return largest(&o->n_prompt) || largest(&o->n_gen) || err_set(e, "-p 0 and -n 0: nothing to measure");
}

// ---- a row of results ----

typedef struct {
    // as llama-bench has them
    const char *build_commit, *cpu_info, *gpu_info, *backends, *model_filename, *model_type, *type_k, *type_v, *test_time;
    int64_t model_size, model_n_params;
    int n_batch, n_threads, n_gpu_layers, n_prompt, n_gen, n_depth;
    bool use_mmap;
    double avg_ns, stddev_ns, avg_ts, stddev_ts;
    Series ns, ts;
    // and what it lacks
    bool ablate, every_row;
    const char *isa, *peak_kind;
    double median_ts, lost, bytes, flop, read_gbps, stream_gbps, share_of_stream, gflops, peak_gflops, share_of_peak, launches;
    int64_t peak_rss_bytes;
    double running;
    Series stream, stream_share, peak, peak_share;
} Row;

static const Field FIELDS[] = {
#define F(key, kind, field) {key, FIELD_##kind, offsetof(Row, field)}
    F("build_commit", TEXT, build_commit), F("cpu_info", TEXT, cpu_info), F("gpu_info", TEXT, gpu_info), F("backends", TEXT, backends),
    F("model_filename", TEXT, model_filename), F("model_type", TEXT, model_type), F("model_size", INT64, model_size),
    F("model_n_params", INT64, model_n_params), F("n_batch", INT, n_batch), F("n_ubatch", INT, n_batch), F("n_threads", INT, n_threads),
    F("type_k", TEXT, type_k), F("type_v", TEXT, type_v), F("n_gpu_layers", INT, n_gpu_layers), F("use_mmap", FLAG, use_mmap),
    F("n_prompt", INT, n_prompt), F("n_gen", INT, n_gen), F("n_depth", INT, n_depth), F("test_time", TEXT, test_time),
    F("avg_ns", REAL, avg_ns), F("stddev_ns", REAL, stddev_ns), F("avg_ts", REAL, avg_ts), F("stddev_ts", REAL, stddev_ts),
    F("samples_ns", SERIES, ns), F("samples_ts", SERIES, ts),
    F("median_ts", REAL, median_ts), F("ablate", FLAG, ablate), F("lost_by_ablation", REAL, lost), F("every_row", FLAG, every_row), F("isa", TEXT, isa),
    F("read_bytes", REAL, bytes), F("read_gbps", REAL, read_gbps), F("stream_gbps", REAL, stream_gbps), F("share_of_stream", REAL, share_of_stream),
    F("weight_flop", REAL, flop), F("gflops", REAL, gflops), F("peak_kind", TEXT, peak_kind), F("peak_gflops", REAL, peak_gflops),
    F("share_of_peak", REAL, share_of_peak), F("peak_rss_bytes", INT64, peak_rss_bytes), F("share_running", REAL, running),
    F("launches_per_token", REAL, launches),
#undef F
};
enum { N_FIELD = sizeof FIELDS / sizeof *FIELDS };

static Row rows[MAX_ROW];
static int n_row;

static bool print_table(const Options *o, bool timed, Err *e) {
    Table t;
    bool gpu = false;
    for (int r = 0; r < n_row; r++) gpu |= rows[r].n_gpu_layers > 0;
    if (!table_open(&t, gpu ? 13 : 12, e)) return false;
    const char *const heads[] = {"model", "size", "params", "backend", "threads", "ngl", "test", "t/s", "GB/s", "of stream", "GFLOP/s", "of peak", "peak memory"};
    for (int i = 0; i < 13; i++)
        if (i != 5 || gpu) table_text(&t, "%s", heads[i]);
    for (const Row *r = rows; r < rows + n_row; r++) {
        const double gib = (double)r->model_size / 0x1p30;
        char test[64];
        int n = snprintf(test, sizeof test, r->n_prompt ? "pp%d" : "tg%d", r->n_prompt ? r->n_prompt : r->n_gen);
        if (r->n_depth) n += snprintf(test + n, sizeof test - (size_t)n, " @ d%d", r->n_depth);
        if (r->ablate) snprintf(test + n, sizeof test - (size_t)n, ", ablated");
        table_text(&t, "%s", r->model_type);
        table_text(&t, gib < 1 ? "%.2f MiB" : "%.2f GiB", gib < 1 ? gib * 1024 : gib);
        table_text(&t, r->model_n_params < 1000000000 ? "%.2f M" : "%.2f B", (double)r->model_n_params / (r->model_n_params < 1000000000 ? 1e6 : 1e9));
        table_text(&t, "%s", r->backends);
        table_text(&t, "%d", r->n_threads);
        if (gpu) table_text(&t, "%d", r->n_gpu_layers);
        table_text(&t, "%s", test);
        if (timed) table_text(&t, "%.2f ± %.2f", r->avg_ts, r->stddev_ts);
        else table_text(&t, "emulated, no timing");
        table_number(&t, "%.2f", r->read_gbps);
        table_number(&t, "%.1f %%", 100 * r->share_of_stream);
        table_number(&t, "%.1f", r->gflops);
        table_number(&t, "%.1f %%", 100 * r->share_of_peak);
        table_text(&t, "%.0f MiB", (double)r->peak_rss_bytes / 0x1p20);
    }
    table_print_close(stdout, &t, 1);
    const Row *last = &rows[n_row - 1];
    printf("\n%s%s%s", last->cpu_info, *last->isa ? ", " : "", last->isa);
    if (*last->gpu_info) printf(", %s", last->gpu_info);
    if (isfinite(last->stream_gbps)) printf("; reading alone %.1f GB/s", last->stream_gbps);
    if (isfinite(last->peak_gflops)) printf(", %s products alone %.0f GFLOP/s", last->peak_kind, last->peak_gflops);
    if (isfinite(last->launches)) printf("; %.1f kernel launches per token", last->launches);
    printf("\nbuild: %s, %d repetitions\n", last->build_commit, timed ? o->reps : 1);
    return true;
}

// ---- about the model ----

// As llama-bench names it. asked: 0: the backend's own
static const char *cache_type(const Session *s, TensorType asked) {
    const TensorType type = asked ? asked : s->place[0]->kv_type;
    return type == TYPE_F16 ? "f16" : type == TYPE_Q8_0 ? "q8_0" : "f32";
}

// "llama 8B Q4_K - Medium", as llama-bench names it. File types: spec/gguf.md.
static const char *model_type(const Model *m) {
    static const char *const types[] = {"all F32", "F16", "Q4_0", "Q4_1", NULL, NULL, NULL, "Q8_0", "Q5_0", "Q5_1", "Q2_K - Medium", "Q3_K - Small",
                                        "Q3_K - Medium", "Q3_K - Large", "Q4_K - Small", "Q4_K - Medium", "Q5_K - Small", "Q5_K - Medium", "Q6_K"};
    static char text[128];
    int64_t type = -1;
    char size[32];
    GgufString label = {0};
    Err ignored;
    if (!gguf_get_int(&m->gguf, "general.file_type", 0, 1000, &type, &ignored)) type = -1;
    if (gguf_get_string(&m->gguf, "general.size_label", &label, &ignored) && label.n && label.n < sizeof size) snprintf(size, sizeof size, "%.*s", (int)label.n, label.p);
    else snprintf(size, sizeof size, m->n_param < 1000000000 ? "%.0fM" : "%.1fB", (double)m->n_param / (m->n_param < 1000000000 ? 1e6 : 1e9));
    const char *name = type >= 0 && type < (int64_t)(sizeof types / sizeof *types) && types[type] ? types[type] : type_info(m->layers[0].attn_q->type)->name;
    snprintf(text, sizeof text, "%s %s %s", m->c.arch, size, name);
    for (char *c = text; *c; c++)
        if (*c < ' ' || *c > '~' || *c == '|') *c = '?';
    return text;
}

// All tensors of the file, as llama-bench counts them, also those that nothing reads.
static int64_t count_params(const Gguf *g) {
    uint64_t n = 0;
    for (uint64_t i = 0; i < g->n_tensor; i++) n += g->tensors[i].ne[0] * g->tensors[i].ne[1] * g->tensors[i].ne[2] * g->tensors[i].ne[3];
    return (int64_t)n;
}

static const char *time_now(void) {
    static char text[32];
    const time_t now = time(NULL);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", gmtime(&now));
    return text;
}

// ---- measuring ----

// A token whose logits are no numbers would be timed for nothing.
static bool logits_finite(const Session *s, Err *e) {
    for (int i = 0; i < s->m->c.n_vocab; i++)
        if (!isfinite(s->logits[i])) return err_set(e, "logit %d of %d is %g, expected a finite number", i, s->m->c.n_vocab, (double)s->logits[i]);
    return true;
}

// A tap that takes a random direction away wherever a run with --direction would.
static bool open_ablation(Steer *steer, Session *s, Err *e) {
    const Config *c = &s->m->c;
    double *vector = malloc(sizeof *vector * (size_t)c->n_embd);
    Direction d;
    steer_open(steer, s->m, s->place[0]);
    if (!vector) return err_set(e, "no memory for a direction");
    for (int i = 0; i < c->n_embd; i++) vector[i] = (double)rand() / RAND_MAX - 0.5;
    const bool ok = direction_single(&d, c->n_layer, c->n_embd, vector, e) && steer_use(steer, &d, e) && session_add_tap(s, steer_tap(steer), e);
    free(vector);
    return ok;
}

// One session, for all tests of one number of threads.
typedef struct {
    const Options *o;
    Session *s;
    Weights w;
    const int *ids;
    int threads;       // that compute; of a device 0
    int all_taps;
    Isa isa;
    bool timed;        // false: on the emulated device, whose time says nothing
    Progress bar;
    double done, total;
} Run;

// Seconds for a prompt of n_prompt tokens, or for n_gen tokens one by one, from `depth` on; those before are there afterwards.
static bool take(Run *k, int depth, int n_prompt, int n_gen, double *seconds, Err *e) {
    Session *s = k->s;
    const int at = session_rewind(s, 0, depth);
    if (at < depth && !session_eval(s, k->ids + at, depth - at, e)) return false;
    const double start = seconds_now();
    if (n_prompt && !session_eval(s, k->ids + depth, n_prompt, e)) return false;
    for (int i = 0; i < n_gen; i++)
        if (!session_eval(s, k->ids + depth + i, 1, e)) return false;
    *seconds = seconds_now() - start;
    return true;
}

static Work work_of_test(const Run *k, const Row *r) {
    if (r->n_prompt) return work_of(&k->w, k->s, r->n_depth, r->n_prompt);
    Work all = {0};
    for (int i = 0; i < r->n_gen; i++) {
        const Work one = work_of(&k->w, k->s, r->n_depth + i, 1);
        all = (Work){all.bytes + one.bytes, all.flop + one.flop};
    }
    return all;
}

static bool repeat(Run *k, Row *r, Err *e) {
    const double stream = k->threads ? stream_gbps(k->w.piece, k->w.n_piece, k->threads) : NAN;
    const double peak = k->threads ? peak_gflops(k->w.kind, k->isa, k->threads) : NAN;
    double seconds;
    k->s->n_tap = r->ablate ? k->all_taps : 0;
    if (!take(k, r->n_depth, r->n_prompt, r->n_gen, &seconds, e)) return false;
    const Work work = work_of_test(k, r);
    r->bytes = work.bytes;
    r->flop = work.flop;
    if (!k->timed) return true;
    series_add(&r->ns, seconds * 1e9);
    series_add(&r->ts, (r->n_prompt + r->n_gen) / seconds);
    series_add(&r->stream, stream);
    series_add(&r->stream_share, work.bytes / seconds * 1e-9 / stream);
    series_add(&r->peak, peak);
    series_add(&r->peak_share, work.flop / seconds * 1e-9 / peak);
    return true;
}

// An ablated test's row follows that of the same test without.
static void summarise(Row *r) {
    struct rusage use;
    r->avg_ns = series_mean(&r->ns), r->stddev_ns = series_sd(&r->ns);
    r->avg_ts = series_mean(&r->ts), r->stddev_ts = series_sd(&r->ts), r->median_ts = series_median(&r->ts);
    const double seconds = series_median(&r->ns) * 1e-9;
    r->read_gbps = r->bytes / seconds * 1e-9, r->gflops = r->flop / seconds * 1e-9;
    r->stream_gbps = series_median(&r->stream), r->share_of_stream = series_median(&r->stream_share);
    r->peak_gflops = series_median(&r->peak), r->share_of_peak = series_median(&r->peak_share);
    if (!getrusage(RUSAGE_SELF, &use)) r->peak_rss_bytes = (int64_t)use.ru_maxrss * 1024;
    r->lost = NAN;
    if (!r->ablate) return;
    Series lost = {0};
    for (int i = 0; i < r->ts.n; i++) series_add(&lost, 1 - r->ts.value[i] / r[-1].ts.value[i]);
    r->lost = series_median(&lost);
}

// For the progress bar: a guess at how much faster tokens of a prompt are.
static double effort(int n_prompt, int n_gen) { return 0.2 * n_prompt + n_gen; }

// All tests at one depth, in turn; their rows are [first, n_row).
static bool measure(Run *k, int first, Err *e) {
    const int reps = k->timed ? k->o->reps : 1;
    for (int i = 0; i < reps; i++)
        for (int r = first; r < n_row; r++) {
            if (!repeat(k, &rows[r], e)) return false;
            progress_step(&k->bar, k->done += effort(rows[r].n_prompt, rows[r].n_gen), k->total);
        }
    const double running = k->threads ? peaks_share_running() : NAN;
    for (int r = first; r < n_row; r++) {
        summarise(&rows[r]);
        rows[r].running = running;
    }
    if (running < 0.9)
        fprintf(stderr, "bench: the %d threads were running %.0f %% of the time: other programs run beside this one, or there are fewer processors\n",
                k->threads, 100 * running);
    return true;
}

static void add_row(const Row *like, int depth, int n_prompt, int n_gen, bool ablate) {
    if (!n_prompt && !n_gen) return;
    Row *r = &rows[n_row++];
    *r = *like;
    r->n_depth = depth, r->n_prompt = n_prompt, r->n_gen = n_gen, r->ablate = ablate;
}

// Weights touched, threads awake, a device's kernels loaded; and what the model says is a number.
static bool warm_up(Run *k, int n_prompt, Steer *steer, double *launches, Err *e) {
    const Backend *b = k->s->place[0];
    const bool cuda = !strcmp(b->name, "cuda");
    const int64_t before = cuda ? cuda_launches(b) : 0;
    double seconds;
    if (!take(k, 0, 0, 4, &seconds, e) || !logits_finite(k->s, e)) return false;
    *launches = cuda ? (double)(cuda_launches(b) - before) / 4 : NAN;
    if (n_prompt && (!take(k, 0, cuda ? n_prompt : min_int(n_prompt, 16), 0, &seconds, e) || !logits_finite(k->s, e))) return false;
    if (k->o->ablate && (!open_ablation(steer, k->s, e) || !take(k, 0, 0, 4, &seconds, e) || !logits_finite(k->s, e))) return false;
    k->all_taps = k->s->n_tap;
    return true;
}

static bool run_session(const Options *o, Model *m, Session *s, Steer *steer, const int *ids, bool *timed, Err *e) {
    const Backend *b = s->place[0];
    Run k = {.o = o, .s = s, .ids = ids, .timed = strncmp(b->detail, "emulated", 8)};
    static char backend[32], isa[32];
    int threads = 1;
    double launches = NAN;
    bool ok = weights_open(&k.w, m, e);
    const char *const detail = b->on_host ? b->detail : b->host ? b->host->detail : ""; // "avx512vnni, 2 threads"
    if (sscanf(detail, "%31[^,], %d thread", isa, &threads) < 2) isa[0] = 0;
    if (b->on_host) k.threads = threads, k.isa = isa[0] ? (Isa)isa_by_name(isa) : ISA_PORTABLE;
    snprintf(backend, sizeof backend, "%s", b->name);
    for (char *c = backend; *c; c++) *c = (char)toupper((unsigned char)*c);
    *timed = k.timed;
    ok = ok && warm_up(&k, min_int(largest(&o->n_prompt), o->n_batch), steer, &launches, e);
    const bool all = o->place.backend && !strcmp(b->name, "cuda");
    const Row like = {.build_commit = BUILD_COMMIT, .cpu_info = machine_cpu_name(), .gpu_info = b->on_host ? "" : b->detail, .backends = backend,
                      .model_filename = o->synthetic ? o->synthetic : o->model, .model_type = model_type(m), .type_k = cache_type(s, s->p.type_k), .type_v = cache_type(s, s->p.type_v),
                      .test_time = time_now(), .model_size = (int64_t)m->gguf.data_bytes, .model_n_params = count_params(&m->gguf), .n_batch = o->n_batch, .n_threads = threads,
                      .n_gpu_layers = b->on_host ? 0 : all || place_gpu_layers(&o->place) < 0 ? m->c.n_layer + 1 : place_gpu_layers(&o->place), .use_mmap = !o->place.no_mmap,
                      .every_row = o->every_row, .isa = isa, .peak_kind = PEAK_NAMES[k.w.kind], .launches = launches};
    for (int i = 0; i < o->n_prompt.n; i++) k.total += effort(o->n_prompt.value[i], 0);
    for (int i = 0; i < o->n_gen.n; i++) k.total += effort(0, o->n_gen.value[i]);
    k.total *= o->reps * o->n_depth.n * (1 + o->ablate);
    progress_start(&k.bar, "measuring");
    for (int d = 0; ok && d < o->n_depth.n; d++) {
        const int first = n_row, depth = o->n_depth.value[d];
        for (int i = 0; i < o->n_prompt.n; i++)
            for (int a = 0; a <= o->ablate; a++) add_row(&like, depth, o->n_prompt.value[i], 0, a);
        for (int i = 0; i < o->n_gen.n; i++)
            for (int a = 0; a <= o->ablate; a++) add_row(&like, depth, 0, o->n_gen.value[i], a);
        ok = measure(&k, first, e);
    }
    progress_end(&k.bar);
    weights_close(&k.w);
    return ok;
}

// A backend and a session for every number of threads, one after the other.
static bool run_all(const Options *o, Model *m, bool *timed, Err *e) {
    PlaceOptions p = o->place;
    const int most = largest(&o->n_depth) + max_int(max_int(largest(&o->n_prompt), largest(&o->n_gen)), 16);
    int *ids = malloc(sizeof *ids * (size_t)most);
    bool ok = ids || err_set(e, "no memory for the token ids");
    for (int i = 0; ok && i < most; i++) ids[i] = rand() % m->c.n_vocab;
    p.session = (SessionParams){.n_ctx = most, .n_batch = min_int(o->n_batch, max_int(max_int(largest(&o->n_prompt), largest(&o->n_depth)), 1)), .every_row = o->every_row,
                                .type_k = place_cache_type(p.cache_k), .type_v = place_cache_type(p.cache_v)};
    for (int i = 0; ok && i < o->n_thread.n; i++) {
        static Backend b;
        static Session s;
        static Steer steer;
        b = (Backend){0}, s = (Session){0}, steer = (Steer){0};
        p.threads = o->n_thread.value[i];
        ok = place_open(&s, &b, m, &p, e);
        if (ok && *s.pinned) fprintf(stderr, "bench: of the weights that the host keeps %s\n", s.pinned);
        ok = ok && run_session(o, m, &s, &steer, ids, timed, e);
        steer_close(&steer);
        session_close(&s);
        place_close(&b, m);
    }
    free(ids);
    return ok;
}

Status bench_model(int argc, char **argv, Err *e) {
    static Options o;
    static Model m;
    bool timed = true;
    if (!parse_options(&o, argc, argv, e)) return USAGE;
    if (o.help) {
        fputs(HELP, stdout);
        return DONE;
    }
    bool ok = (o.synthetic ? synth_open(&m, &o.shape, e) : model_open(&m, o.model, e)) && run_all(&o, &m, &timed, e);
    if (ok && o.format == FORMAT_MD) ok = print_table(&o, timed, e);
    if (ok && o.format == FORMAT_JSON) report_json(stdout, FIELDS, N_FIELD, rows, sizeof *rows, n_row);
    if (ok && o.format == FORMAT_CSV) report_csv(stdout, FIELDS, N_FIELD, rows, sizeof *rows, n_row);
    model_close(&m);
    return ok ? DONE : FAILED;
}
