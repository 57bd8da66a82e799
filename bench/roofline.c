// roofline.c: bench roofline: what this machine's memory and processor can do, and what follows from it for published models, which need
// not be there: decoding a token reads its weights once (at depth 0), and every token of a prompt is multiplied with all of them.
#include <math.h>

#include "bench.h"
#include "fill.h"
#include "options.h"
#include "peaks.h"
#include "results.h"
#include "synthetic.h"

#include <stdlib.h>

static const char HELP[] =
    "bench roofline [options]    this machine's ceilings, and what published models could reach on it\n"
    "\n"
    "  -t, --threads N           up to N threads (default: all this process may use)\n"
    "  -m, --mib N               MiB that are read (default 1024): more than the caches hold\n"
    "  --type NAME               of the models: Q4_K_M (default), Q8_0, F16\n"
    "  -o, --output FORMAT       md (default), json, csv: the last two only of the models\n";

typedef struct {
    const char *type, *output;
    int threads, mib;
    bool help;
    Format format;
} Options;

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-t", "--threads", OPTION_INT, O(threads), 1, 1024}, {"-m", "--mib", OPTION_INT, O(mib), 1, 1 << 14}, {"--type", NULL, OPTION_TEXT, O(type), 0, 0},
    {"-o", "--output", OPTION_TEXT, O(output), 0, 0},     {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
#undef O
};

typedef struct {
    const char *shape, *like, *type, *peak_kind;
    int n_threads;
    int64_t model_size, n_param;
    double decode_bytes, prefill_flop, stream_gbps, peak_gflops, decode_ts, prefill_ts;
} Bound;

static const Field FIELDS[] = {
#define F(field, kind) {#field, FIELD_##kind, offsetof(Bound, field)}
    F(shape, TEXT), F(like, TEXT), F(type, TEXT), F(model_size, INT64), F(n_param, INT64), F(n_threads, INT), F(decode_bytes, REAL), F(prefill_flop, REAL),
    F(stream_gbps, REAL), F(peak_kind, TEXT), F(peak_gflops, REAL), F(decode_ts, REAL), F(prefill_ts, REAL),
#undef F
};

enum { REPS = 5 };

static double median_peak(PeakKind kind, Isa isa, int threads) {
    Series s = {0};
    for (int i = 0; i < REPS; i++) series_add(&s, peak_gflops(kind, isa, threads));
    return series_median(&s);
}

// A line for 1, 2, 4 ... and all threads. best: of the last line, the largest of each kind.
static bool ceilings(const Options *o, const void *memory, int64_t bytes, double *stream, double best[2], Err *e) {
    const Isa isas[] = {ISA_AVX2, ISA_AVXVNNI, ISA_AVX512VNNI};
    Table t;
    if (!table_open(&t, 8, e)) return false;
    table_text(&t, "threads");
    table_text(&t, "reading, GB/s");
    for (int kind = 0; kind < 2; kind++)
        for (int i = 0; i < 3; i++) table_text(&t, "%s %s, GFLOP/s", isa_name(isas[i]), PEAK_NAMES[kind]);
    for (int n = 1;; n = min_int(2 * n, o->threads)) {
        Series s = {0};
        for (int i = 0; i < REPS; i++) series_add(&s, stream_gbps_of(memory, bytes, n));
        *stream = series_median(&s);
        table_text(&t, "%d", n);
        table_number(&t, "%.1f", *stream);
        best[0] = best[1] = NAN;
        for (int kind = 0; kind < 2; kind++)
            for (int i = 0; i < 3; i++) {
                const double peak = median_peak((PeakKind)kind, isas[i], n);
                table_number(&t, "%.0f", peak);
                best[kind] = fmax(best[kind], peak);
            }
        if (n == o->threads) break;
    }
    if (o->format == FORMAT_MD) table_print_close(stdout, &t, 0);
    else free(t.cell);
    return true;
}

// Weights on their way to a device: into slots that stay in the caches, and into larger ones. In turn with reading by as many threads.
static bool fills(const Options *o, const void *memory, int64_t bytes, Err *e) {
    static const int KIB[] = {256, 1024, FILL_SLOT_BYTES >> 10, 4096, 16384, 65536};
    enum { N = sizeof KIB / sizeof *KIB };
    Series s[N], reading = {0};
    Table t;
    if (!table_open(&t, 3, e)) return false;
    memset(s, 0, sizeof s);
    for (int i = 0; i < REPS; i++) {
        series_add(&reading, stream_gbps_of(memory, bytes, fill_threads()));
        for (int k = 0; k < N; k++)
            if ((int64_t)KIB[k] << 10 <= bytes) series_add(&s[k], fill_gbps(memory, bytes, (int64_t)KIB[k] << 10, FILL_SLOTS));
    }
    table_text(&t, "pinned slots filled by %d threads", fill_threads());
    table_text(&t, "GB/s");
    table_text(&t, "of reading");
    for (int k = 0; k < N; k++) {
        const double gbps = series_median(&s[k]);
        table_text(&t, "%d of %.2f MiB", FILL_SLOTS, KIB[k] / 1024.0);
        table_number(&t, "%.1f", gbps);
        table_number(&t, "%.2f", gbps / series_median(&reading));
    }
    if (o->format == FORMAT_MD) putchar('\n'), table_print_close(stdout, &t, 1);
    else free(t.cell);
    return true;
}

static bool models(const Options *o, double stream, const double best[2], Err *e) {
    static Bound bound[64];
    int n = 0;
    Synthetic s;
    Table t;
    if (!table_open(&t, 7, e)) return false;
    const char *const heads[] = {"model", "shape", "size", "read per token", "decode, at most t/s", "GFLOP per prompt token", "prefill, at most t/s"};
    for (int i = 0; i < 7; i++) table_text(&t, "%s", heads[i]);
    for (int i = 0; (s = synthetic_at(i)).shape; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s:%s", synthetic_cost(&s).name, o->type);
        if (!synthetic_parse(name, &s, e)) return false;
        const SyntheticCost c = synthetic_cost(&s);
        if (c.for_tests) continue;
        const double peak = best[peak_kind(c.type)];
        Bound *b = &bound[n++];
        *b = (Bound){c.name, c.like, c.mix, PEAK_NAMES[peak_kind(c.type)], o->threads, (int64_t)c.bytes, (int64_t)c.n_param, c.decode_bytes, c.prefill_flop,
                     stream, peak, stream * 1e9 / c.decode_bytes, peak * 1e9 / c.prefill_flop};
        table_text(&t, "%s %s", c.like, c.mix);
        table_text(&t, "%s", c.name);
        table_text(&t, "%.2f GB", (double)c.bytes * 1e-9);
        table_text(&t, "%.2f GB", c.decode_bytes * 1e-9);
        table_number(&t, "%.1f", b->decode_ts);
        table_number(&t, "%.2f", c.prefill_flop * 1e-9);
        table_number(&t, "%.0f", b->prefill_ts);
    }
    if (o->format == FORMAT_MD) putchar('\n'), table_print_close(stdout, &t, 2);
    else free(t.cell);
    if (o->format == FORMAT_JSON) report_json(stdout, FIELDS, sizeof FIELDS / sizeof *FIELDS, bound, sizeof *bound, n);
    if (o->format == FORMAT_CSV) report_csv(stdout, FIELDS, sizeof FIELDS / sizeof *FIELDS, bound, sizeof *bound, n);
    return true;
}

Status bench_roofline(int argc, char **argv, Err *e) {
    Options o = {.type = "Q4_K_M", .mib = 1024};
    const char *extra = NULL;
    Synthetic s;
    char name[64];
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, &o, argc, argv, &extra, "an argument", e) || !format_parse(o.output, &o.format, e)) return USAGE;
    if (extra) return err_set(e, "unexpected argument '%s'", extra), USAGE;
    if (o.help) {
        fputs(HELP, stdout);
        return DONE;
    }
    snprintf(name, sizeof name, "1b:%s", o.type);
    if (!synthetic_parse(name, &s, e)) return USAGE;
    o.threads = threads_or_all(o.threads);
    const size_t bytes = (size_t)o.mib << 20;
    char *memory = aligned_alloc(64, bytes);
    if (!memory) return err_set(e, "no memory for %d MiB to read", o.mib), FAILED;
    memset(memory, 1, bytes);
    double stream, best[2];
    const bool ok = ceilings(&o, memory, (int64_t)bytes, &stream, best, e) && fills(&o, memory, (int64_t)bytes, e) && models(&o, stream, best, e);
    free(memory);
    return ok ? DONE : FAILED;
}
