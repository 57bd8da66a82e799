// bench_model.c: the program `bench`: how fast is a model here, and how fast could it be?
// Decoding one token reads every weight once, so tokens/s times the bytes of weights is a bandwidth, and the fair ceiling
// is what the same threads reach when they only read these same bytes. Every repetition measures that reading, then the
// prefill, then the decoding, one after the other, so that a busy or throttled machine slows all three alike; printed are
// medians with the lowest and highest value, and the median of the repetitions' own ratios.
// On a GPU that ceiling is not measured here (bench_ops copies device memory); nor is anything on the emulated device.
// Tokens are random ids, fed one by one (decode) or in batches (prefill) from an empty context; nothing is sampled.
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/statvfs.h>
#include <unistd.h>
#include "console.h"
#include "options.h"
#include "place.h"
#include "steer.h"
#include "stream.h"
#include "synthetic.h"
#ifdef _OPENMP
#include <omp.h>
#endif

static const char HELP[] =
    "bench MODEL.gguf [options]     tokens/s of a model, and decode's share of the memory bandwidth\n"
    "bench --synthetic 8b [options] the same for random weights in the shape of Llama 3.1 8B Q4_K_M, in a temporary file;\n"
    "                               --synthetic list prints all shapes\n"
    "\n"
    "  -p N                 prefill N tokens (default 128; 0: no prefill)\n"
    "  -n N                 decode N tokens (default 64; 0: no decode)\n"
    "  -r N                 repetitions (default 5)\n"
    "  -t, --threads N      CPU threads (default: all this process may use)\n"
    "  -b, --batch-size N   prefill in pieces of N tokens (default 512)\n"
    "  -ngl, --gpu-layers N layers on the GPU, from the output end; --vram 12G: use no more of its memory\n"
    "  --no-mmap            read the file instead of mapping it\n"
    "  --backend NAME       cpu, ref (the slow exact one, on one thread), cuda (all of the model); default: as -ngl says\n"
    "  --ablate             decode also while a random direction is projected out at every site, and what that costs\n"
    "  --every-row          prefill computes every row to the end, not only those whose logits are wanted\n"
    "  --isa NAME           auto, portable, avx2, avxvnni, avx512vnni: use no more than this\n"
    "  -h, --help\n";

enum { MAX_REPS = 1000 };

typedef struct {
    const char *model, *synthetic;
    int n_prefill, n_decode, reps, n_batch;
    bool ablate, every_row, help;
    PlaceOptions place;
} Options;

// ---- options ----

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-m", "--model", OPTION_TEXT, O(model), 0, 0},
    {"--synthetic", NULL, OPTION_TEXT, O(synthetic), 0, 0},
    PLACE_OPTIONS(O(place)),
    {"--ablate", NULL, OPTION_FLAG, O(ablate), 0, 0},
    {"-p", "--prefill", OPTION_INT, O(n_prefill), 0, 1 << 20},
    {"-n", "--decode", OPTION_INT, O(n_decode), 0, 1 << 20},
    {"-r", "--reps", OPTION_INT, O(reps), 1, MAX_REPS},
    {"-b", "--batch-size", OPTION_INT, O(n_batch), 1, 1 << 20},
    {"--every-row", NULL, OPTION_FLAG, O(every_row), 0, 0},
    {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
#undef O
};

static bool parse_options(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.place.program = "bench", .n_prefill = 128, .n_decode = 64, .reps = 5, .n_batch = 512};
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, o, argc, argv, &o->model, "the model", e)) return false;
    if (o->help) return true;
    if (!o->model == !o->synthetic) return err_set(e, o->model ? "both a model and --synthetic" : "no model given: bench MODEL.gguf");
    if (o->synthetic && strcmp(o->synthetic, "list") && !synthetic_known(o->synthetic))
        return err_set(e, "option --synthetic is '%s', expected a shape of --synthetic list, as 8b", o->synthetic);
    if (!place_check(&o->place, e)) return false;
    if (!o->n_prefill && !o->n_decode) return err_set(e, "-p 0 and -n 0: nothing to measure");
    if (o->ablate && !o->n_decode) return err_set(e, "--ablate and -n 0: nothing to compare");
    return true;
}

// ---- the synthetic model ----

static char temporary[4096], unfinished[4096 + 8]; // removed on the way out, also on a signal

static void remove_files(void) {
    if (temporary[0]) unlink(temporary);
    if (unfinished[0]) unlink(unfinished);
    temporary[0] = unfinished[0] = 0;
}

static void on_signal(int sig) {
    if (temporary[0]) unlink(temporary);
    if (unfinished[0]) unlink(unfinished);
    signal(sig, SIG_DFL);
    raise(sig);
}

// A file name that nothing else has, in $TMPDIR, or in memory if it fits there, or in /tmp.
static bool make_synthetic(const char *shape, Err *e) {
    const char *folder = getenv("TMPDIR");
    struct statvfs disk;
    const uint64_t bytes = synthetic_bytes(shape) + (64 << 20);
    if (!folder || !*folder) folder = !statvfs("/dev/shm", &disk) && (uint64_t)disk.f_bavail * disk.f_frsize > bytes && !access("/dev/shm", W_OK) ? "/dev/shm" : "/tmp";
    if (strlen(folder) > 3900) return err_set(e, "TMPDIR is too long a name");
    snprintf(temporary, sizeof temporary, "%s/bench-%ld-%llx.gguf", folder, (long)getpid(), (unsigned long long)(seconds_now() * 1e6));
    snprintf(unfinished, sizeof unfinished, "%s.tmp", temporary);
    const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (int i = 0; i < 3; i++) signal(signals[i], on_signal);
    return synthetic_write(shape, temporary, e);
}

// ---- measuring ----

typedef struct {
    const uint8_t *p;
    int64_t n;
} Piece; // of the weights that one token reads

typedef struct {
    Piece *piece;
    int n;
    double bytes;
    double prefill_flop; // 2 for each weight of a matrix that a token is multiplied with; neither the head nor attention
} Weights;

// What decoding one token reads: every matrix once; of the embedding only a row, unless it is the head as well; of the
// experts those that are used (for reading alone the first ones stand in for them). The KV cache is not counted.
static bool weights_read(const Model *m, Weights *w, Err *e) {
    enum { SIZE = 256 << 10 };
    *w = (Weights){0};
    for (int pass = 0; pass < 2; pass++) { // count, then fill
        w->n = 0;
        w->bytes = w->prefill_flop = 0;
        for (int i = 0; i < m->n_tensor; i++) {
            const Tensor *t = &m->tensors[i];
            bool skip = (t == m->token_embd && m->output != t) || t == m->per_layer_token_embd;
            for (int k = 0; k < i && !skip; k++) skip = !strcmp(t->name, m->tensors[k].name); // a view of a stack
            for (int l = 0; l < m->c.n_layer && !skip; l++)
                skip = m->layers[l].d.kv_source != l && (t == m->layers[l].attn_k || t == m->layers[l].attn_v);
            if (skip) continue;
            const LayerDesc *d = &m->layers[0].d;
            for (int l = 0; l < m->c.n_layer; l++)
                if (t == m->layers[l].ffn_gate_exps || t == m->layers[l].ffn_up_exps || t == m->layers[l].ffn_down_exps) d = &m->layers[l].d;
            const int slices = t->n_slice > 1 && t->n_slice == d->n_expert ? d->n_expert_used : t->n_slice;
            const int64_t bytes = tensor_bytes(t) / t->n_slice;
            for (int s = 0; s < slices; s++)
                for (int64_t at = 0; at < bytes; at += SIZE, w->n++)
                    if (pass) w->piece[w->n] = (Piece){(const uint8_t *)(t->slices ? t->slices[s] : t->host) + at, bytes - at < SIZE ? bytes - at : SIZE};
            w->bytes += (double)bytes * slices;
            if (t != m->output && t->n_row > 1) w->prefill_flop += 2.0 * t->n_row * t->n_col * slices;
        }
        if (!pass && !(w->piece = malloc(sizeof *w->piece * (size_t)w->n))) return err_set(e, "no memory for a list of %d pieces of weights", w->n);
    }
    return true;
}

static volatile uint64_t sink; // keeps the reads

static void read_once(const Weights *w, int threads) {
    uint64_t total = 0;
    (void)threads;
#pragma omp parallel for num_threads(threads) schedule(dynamic) reduction(+ : total)
    for (int i = 0; i < w->n; i++) total += sum_bytes(w->piece[i].p, w->piece[i].n);
    sink += total;
}

// GB/s: as many passes as take a tenth of a second (one for a large model).
static double read_speed(const Weights *w, int threads) {
    const double start = seconds_now();
    double spent;
    int passes = 0;
    do {
        read_once(w, threads);
        passes++;
        spent = seconds_now() - start;
    } while (spent < 0.1);
    return w->bytes * passes / spent * 1e-9;
}

// Tokens/s for n tokens, `step` at a time, from an empty context.
static bool speed(Session *s, const int *ids, int n, int step, double *tokens_per_second, Err *e) {
    session_rewind(s, 0, 0);
    const double start = seconds_now();
    for (int i = 0; i < n; i += step)
        if (!session_eval(s, ids + i, min_int(step, n - i), e)) return false;
    *tokens_per_second = n / (seconds_now() - start);
    return true;
}

typedef struct {
    double value[MAX_REPS];
    int n;
} Series;

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static bool timed = true; // false: on the emulated device, whose time says nothing

static void print_series(const char *label, Series *s) {
    if (!s->n) return;
    qsort(s->value, (size_t)s->n, sizeof *s->value, by_value);
    const double median = (s->value[(s->n - 1) / 2] + s->value[s->n / 2]) / 2;
    if (timed) printf("%-28s %10.2f %10.2f %10.2f\n", label, median, s->value[0], s->value[s->n - 1]);
    else printf("%-28s emulated, no timing\n", label);
}

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

static bool measure(Session *s, Steer *steer, const Options *o, int threads, Err *e) {
    static Series prefill, flops, decode, used, read, ratio, ablated, lost;
    const Backend *b = s->place[0];
    Weights w;
    int *ids = malloc(sizeof *ids * (size_t)max_int(o->n_prefill, o->n_decode));
    bool ok = weights_read(s->m, &w, e) && (ids || err_set(e, "no memory for the token ids"));
    for (int i = 0; ok && i < max_int(o->n_prefill, o->n_decode); i++) ids[i] = rand() % s->m->c.n_vocab;
    const int n_warm = min_int(o->n_decode ? o->n_decode : o->n_prefill, 4), reps = timed ? o->reps : 1;
    const bool on_gpu = !strcmp(b->name, "cuda");
    int64_t launches = on_gpu ? cuda_launches(b) : 0;
    double tokens;
    ok = ok && speed(s, ids, n_warm, 1, &tokens, e) && logits_finite(s, e); // all weights touched, threads awake
    launches = on_gpu ? cuda_launches(b) - launches : 0;
    if (ok && on_gpu && o->n_prefill) ok = speed(s, ids, o->n_prefill, o->n_prefill, &tokens, e) && logits_finite(s, e); // its kernels are loaded when first used
    if (ok && o->ablate) ok = open_ablation(steer, s, e) && speed(s, ids, n_warm, 1, &tokens, e) && logits_finite(s, e);
    const int all_taps = s->n_tap;
    for (int r = 0; ok && r < reps; r++) {
        if (isatty(STDERR_FILENO)) fprintf(stderr, "\rrepetition %d of %d\033[K", r + 1, reps);
        if (b->on_host) read.value[read.n++] = read_speed(&w, threads);
        s->n_tap = 0;
        if (o->n_prefill) {
            ok = speed(s, ids, o->n_prefill, o->n_prefill, &tokens, e);
            prefill.value[prefill.n++] = tokens;
            flops.value[flops.n++] = tokens * w.prefill_flop * 1e-12;
        }
        if (!ok || !o->n_decode) continue;
        ok = speed(s, ids, o->n_decode, 1, &tokens, e);
        decode.value[decode.n++] = tokens;
        used.value[used.n++] = tokens * w.bytes * 1e-9;
        if (b->on_host) ratio.value[ratio.n++] = 100 * tokens * w.bytes * 1e-9 / read.value[r];
        s->n_tap = all_taps;
        if (!ok || !o->ablate) continue;
        ok = speed(s, ids, o->n_decode, 1, &tokens, e);
        ablated.value[ablated.n++] = tokens;
        lost.value[lost.n++] = 100 * (1 - tokens / decode.value[r]);
    }
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
    if (ok) {
        char label[2][40];
        snprintf(label[0], sizeof label[0], "prefill %d, tokens/s", o->n_prefill);
        snprintf(label[1], sizeof label[1], "decode %d, tokens/s", o->n_decode);
        printf("weights read     %.2f MB per token\n", w.bytes * 1e-6);
        if (on_gpu) printf("kernel launches  %.1f per token\n", (double)launches / n_warm);
        printf("\n%-28s %10s %10s %10s\n", "", "median", "lowest", "highest");
        print_series(label[0], &prefill);
        print_series("prefill, TFLOP/s", &flops);
        print_series(label[1], &decode);
        print_series("decode, weights GB/s", &used);
        print_series("reading only, GB/s", &read);
        print_series("decode / reading only, %", &ratio);
        print_series("decode ablated, tokens/s", &ablated);
        print_series("lost by ablation, %", &lost);
    }
    free(ids);
    free(w.piece);
    return ok;
}

static bool bench(const Options *o, Model *m, Backend *b, Session *s, Steer *steer, Err *e) {
    if (o->synthetic && !make_synthetic(o->synthetic, e)) return false;
    const bool opened = model_open(m, o->synthetic ? temporary : o->model, e);
    remove_files(); // the mapping keeps the bytes
    if (!opened) return false;
    PlaceOptions p = o->place;
    p.session = (SessionParams){.n_ctx = max_int(max_int(o->n_prefill, o->n_decode), 4), .n_batch = min_int(o->n_batch, max_int(o->n_prefill, 1)),
                                .every_row = o->every_row};
    if (!place_open(s, b, m, &p, e)) return false;
    int threads = strcmp(b->name, "ref") ? p.threads : 1;
#ifdef _OPENMP
    if (!threads) threads = omp_get_num_procs();
#else
    threads = 1;
#endif
    timed = strncmp(b->detail, "emulated", 8);
    printf("model            %s: %s, %d layers x %d, %.2f million parameters, %.2f MiB\n", o->synthetic ? "random weights" : o->model, m->c.arch,
           m->c.n_layer, m->c.n_embd, (double)m->n_param * 1e-6, (double)m->weight_bytes / 0x1p20);
    printf("backend          %s: %s\nrepetitions      %d\n", b->name, b->detail, timed ? o->reps : 1);
    return measure(s, steer, o, threads, e);
}

int main(int argc, char **argv) {
    spin_briefly(argv);
    Options o;
    Err e = {0};
    if (!parse_options(&o, argc, argv, &e)) {
        fprintf(stderr, "bench: %s (bench --help lists the options)\n", e.text);
        return 2;
    }
    if (o.help) {
        fputs(HELP, stdout);
        return fflush(stdout) ? 1 : 0;
    }
    static Model m;
    static Backend b;
    static Session s;
    static Steer steer;
    if (o.synthetic && !strcmp(o.synthetic, "list")) {
        synthetic_list(stdout);
        return fflush(stdout) ? 1 : 0;
    }
    bool ok = bench(&o, &m, &b, &s, &steer, &e);
    remove_files();
    steer_close(&steer);
    session_close(&s);
    place_close(&b, &m);
    model_close(&m);
    if (ok && (fflush(stdout) || ferror(stdout))) ok = err_set(&e, "standard output: %s", strerror(errno));
    if (!ok) fprintf(stderr, "bench: %s\n", e.text);
    return ok ? 0 : 1;
}
