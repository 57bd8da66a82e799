// bench_model.c: the program `bench`: how fast is a model here, and how fast could it be?
// Decoding one token reads every weight once, so tokens/s times the bytes of weights is a bandwidth, and the fair ceiling
// is what the same threads reach when they only read these same bytes. Every repetition measures that reading, then the
// prefill, then the decoding, one after the other, so that a busy or throttled machine slows all three alike; printed are
// medians with the lowest and highest value, and the median of the repetitions' own ratios.
// Tokens are random ids, fed one by one (decode) or in batches (prefill) from an empty context; nothing is sampled.
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <unistd.h>
#include "console.h"
#include "options.h"
#include "session.h"
#include "stream.h"
#ifdef _OPENMP
#include <omp.h>
#endif

static const char HELP[] =
    "bench MODEL.gguf [options]     tokens/s of a model, and decode's share of the memory bandwidth\n"
    "bench --synthetic 1b [options] the same for random weights in the shape of Llama 3.2 1B Q4_K_M (0.75 GiB in $TMPDIR, deleted)\n"
    "\n"
    "  -p N                 prefill N tokens (default 128; 0: no prefill)\n"
    "  -n N                 decode N tokens (default 64; 0: no decode)\n"
    "  -r N                 repetitions (default 5)\n"
    "  -t, --threads N      CPU threads (default: all this process may use)\n"
    "  -b, --batch-size N   prefill in pieces of N tokens (default 512)\n"
    "  --backend cpu|ref    default cpu; ref is the slow exact one, on one thread\n"
    "  --isa NAME           auto, portable, avx2, avxvnni, avx512vnni: use no more than this\n"
    "  -h, --help\n";

enum { MAX_REPS = 1000 };

typedef struct {
    const char *model, *synthetic, *backend, *isa;
    int n_prefill, n_decode, reps, threads, n_batch;
    bool help;
} Options;

// ---- options ----

static const Option OPTIONS[] = {
#define O(field) offsetof(Options, field)
    {"-m", "--model", OPTION_TEXT, O(model), 0, 0},
    {"--synthetic", NULL, OPTION_TEXT, O(synthetic), 0, 0},
    {"--backend", NULL, OPTION_TEXT, O(backend), 0, 0},
    {"--isa", NULL, OPTION_TEXT, O(isa), 0, 0},
    {"-p", "--prefill", OPTION_INT, O(n_prefill), 0, 1 << 20},
    {"-n", "--decode", OPTION_INT, O(n_decode), 0, 1 << 20},
    {"-r", "--reps", OPTION_INT, O(reps), 1, MAX_REPS},
    {"-t", "--threads", OPTION_INT, O(threads), 1, 1024},
    {"-b", "--batch-size", OPTION_INT, O(n_batch), 1, 1 << 20},
    {"-h", "--help", OPTION_FLAG, O(help), 0, 0},
#undef O
};

static bool parse_options(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.backend = "cpu", .isa = "auto", .n_prefill = 128, .n_decode = 64, .reps = 5, .n_batch = 512};
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, o, argc, argv, &o->model, "the model", e)) return false;
    if (o->help) return true;
    if (!o->model == !o->synthetic) return err_set(e, o->model ? "both a model and --synthetic" : "no model given: bench MODEL.gguf");
    if (o->synthetic && strcmp(o->synthetic, "1b")) return err_set(e, "option --synthetic is '%s', expected 1b", o->synthetic);
    if (strcmp(o->backend, "cpu") && strcmp(o->backend, "ref")) return err_set(e, "option --backend is '%s', expected cpu or ref", o->backend);
    if (isa_by_name(o->isa) < 0) return err_set(e, "option --isa is '%s', expected auto, portable, avx2, avxvnni or avx512vnni", o->isa);
    if (!o->n_prefill && !o->n_decode) return err_set(e, "-p 0 and -n 0: nothing to measure");
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

static uint64_t random_state = 1;
static uint64_t random_bits(void) { // splitmix64
    uint64_t z = random_state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

// Random codes under scales that give weights of about the size of a trained model's: near 0.02, none infinite.
static void random_rows(uint8_t *p, int type, size_t bytes) {
    for (size_t i = 0; i + 8 <= bytes; i += 8) memcpy(p + i, &(uint64_t){random_bits()}, 8);
    const F16 d = f16_from_f32(type == TYPE_Q4_K ? 8e-5f : 2e-5f), dmin = f16_from_f32(6e-4f);
    const size_t block = (size_t)type_info(type)->bytes;
    for (size_t i = 0; i + block <= bytes; i += block) {
        if (type == TYPE_Q4_K) {
            memcpy(p + i + offsetof(BlockQ4_K, d), &d, 2);
            memcpy(p + i + offsetof(BlockQ4_K, dmin), &dmin, 2);
        } else memcpy(p + i + offsetof(BlockQ6_K, d), &d, 2);
    }
}

typedef struct {
    const char *name; // of the layer's part; NULL: the whole name is in global
    int type, n_col, n_row;
} Shape;

// Which layers get Q6_K in a Q4_K_M file: the first and last eighth and every third between.
static bool more(int i, int n) { return i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2; }

static bool write_synthetic(const char *path, Err *e) {
    enum { LAYERS = 16, EMBD = 2048, FF = 8192, HEADS = 32, HEADS_KV = 8, VOCAB = 128256, KV = EMBD / HEADS * HEADS_KV };
    const Shape embedding = {"token_embd", TYPE_Q6_K, EMBD, VOCAB}, last = {"output_norm", TYPE_F32, EMBD, 1};
    const Shape parts[] = {
        {"attn_norm", TYPE_F32, EMBD, 1},      {"attn_q", TYPE_Q4_K, EMBD, EMBD},  {"attn_k", TYPE_Q4_K, EMBD, KV},
        {"attn_v", TYPE_Q6_K, EMBD, KV},       {"attn_output", TYPE_Q4_K, EMBD, EMBD}, {"ffn_norm", TYPE_F32, EMBD, 1},
        {"ffn_gate", TYPE_Q4_K, EMBD, FF},     {"ffn_up", TYPE_Q4_K, EMBD, FF},    {"ffn_down", TYPE_Q6_K, FF, EMBD},
    };
    enum { PARTS = sizeof parts / sizeof *parts, PIECE = 256 * 210 * 144 };
    Shape all[2 + LAYERS * PARTS];
    char name[2 + LAYERS * PARTS][64];
    int n = 0;
    snprintf(name[n], 64, "%s.weight", embedding.name);
    all[n++] = embedding;
    for (int l = 0; l < LAYERS; l++)
        for (int i = 0; i < PARTS; i++) {
            snprintf(name[n], 64, "blk.%d.%s.weight", l, parts[i].name);
            all[n] = parts[i];
            if (all[n].type == TYPE_Q6_K && !more(l, LAYERS)) all[n].type = TYPE_Q4_K;
            n++;
        }
    snprintf(name[n], 64, "%s.weight", last.name);
    all[n++] = last;

    GgufWriter *w;
    if (!gguf_writer_open(&w, path, e)) return false;
    gguf_set_string(w, "general.architecture", "llama", 5);
    gguf_set_string(w, "general.name", "random weights, 1B", 18);
    gguf_set_u32(w, "general.file_type", 15);
    gguf_set_u32(w, "llama.block_count", LAYERS);
    gguf_set_u32(w, "llama.context_length", 131072);
    gguf_set_u32(w, "llama.embedding_length", EMBD);
    gguf_set_u32(w, "llama.feed_forward_length", FF);
    gguf_set_u32(w, "llama.attention.head_count", HEADS);
    gguf_set_u32(w, "llama.attention.head_count_kv", HEADS_KV);
    gguf_set_f32(w, "llama.attention.layer_norm_rms_epsilon", 1e-5f);
    gguf_set_f32(w, "llama.rope.freq_base", 500000);
    gguf_set_u32(w, "llama.rope.dimension_count", EMBD / HEADS);
    gguf_set_u32(w, "llama.vocab_size", VOCAB);
    uint64_t total = 0, done = 0;
    for (int i = 0; i < n; i++) {
        gguf_add_tensor(w, name[i], all[i].type, all[i].n_row > 1 ? 2 : 1, (uint64_t[]){(uint64_t)all[i].n_col, (uint64_t)all[i].n_row});
        total += (uint64_t)type_row_bytes((TensorType)all[i].type, all[i].n_col) * (uint64_t)all[i].n_row;
    }
    uint8_t *piece = malloc(PIECE);
    bool ok = piece || err_set(e, "no memory for the random weights");
    for (int i = 0, shown = -1; ok && i < n; i++) {
        uint64_t left = (uint64_t)type_row_bytes((TensorType)all[i].type, all[i].n_col) * (uint64_t)all[i].n_row;
        while (ok && left) {
            const size_t k = left < PIECE ? (size_t)left : PIECE;
            if (all[i].type == TYPE_F32)
                for (size_t f = 0; f < k / 4; f++) memcpy(piece + 4 * f, &(float){1}, 4);
            else random_rows(piece, all[i].type, k);
            ok = gguf_writer_data(w, piece, k, e);
            left -= k;
            done += k;
            if (isatty(STDERR_FILENO) && (int)(100 * done / total) != shown)
                fprintf(stderr, "\rwriting random weights  %d %%\033[K", shown = (int)(100 * done / total));
        }
        ok = ok && gguf_writer_next(w, e);
    }
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
    free(piece);
    if (ok) return gguf_writer_close(w, e);
    gguf_writer_abort(w);
    return false;
}

// A file name that nothing else has, in $TMPDIR.
static bool make_synthetic(Err *e) {
    const char *folder = getenv("TMPDIR");
    if (!folder || !*folder) folder = "/tmp";
    if (strlen(folder) > 3900) return err_set(e, "TMPDIR is too long a name");
    snprintf(temporary, sizeof temporary, "%s/bench-%ld-%llx.gguf", folder, (long)getpid(), (unsigned long long)(seconds_now() * 1e6));
    snprintf(unfinished, sizeof unfinished, "%s.tmp", temporary);
    const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (int i = 0; i < 3; i++) signal(signals[i], on_signal);
    return write_synthetic(temporary, e);
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
} Weights;

// What decoding one token reads: every matrix once; of the embedding only a row, unless it is the head as well; of the
// experts those that are used (for reading alone the first ones stand in for them). The KV cache is not counted.
static bool weights_read(const Model *m, Weights *w, Err *e) {
    enum { SIZE = 256 << 10 };
    *w = (Weights){0};
    for (int pass = 0; pass < 2; pass++) { // count, then fill
        w->n = 0;
        w->bytes = 0;
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

static void print_series(const char *label, Series *s) {
    if (!s->n) return;
    qsort(s->value, (size_t)s->n, sizeof *s->value, by_value);
    const double median = (s->value[(s->n - 1) / 2] + s->value[s->n / 2]) / 2;
    printf("%-28s %10.2f %10.2f %10.2f\n", label, median, s->value[0], s->value[s->n - 1]);
}

static bool measure(Session *s, const Options *o, int threads, Err *e) {
    static Series prefill, decode, used, read, ratio;
    Weights w;
    int *ids = malloc(sizeof *ids * (size_t)max_int(o->n_prefill, o->n_decode));
    bool ok = weights_read(s->m, &w, e) && (ids || err_set(e, "no memory for the token ids"));
    for (int i = 0; ok && i < max_int(o->n_prefill, o->n_decode); i++) ids[i] = (int)(random_bits() % (uint64_t)s->m->c.n_vocab);
    double warm;
    const bool decode_first = o->n_decode > 0;
    ok = ok && speed(s, ids, decode_first ? min_int(o->n_decode, 4) : min_int(o->n_prefill, 4), 1, &warm, e); // all weights touched, threads awake
    for (int r = 0; ok && r < o->reps; r++) {
        if (isatty(STDERR_FILENO)) fprintf(stderr, "\rrepetition %d of %d\033[K", r + 1, o->reps);
        read.value[read.n++] = read_speed(&w, threads);
        if (o->n_prefill) ok = speed(s, ids, o->n_prefill, o->n_prefill, &prefill.value[prefill.n++], e);
        if (!ok || !o->n_decode) continue;
        double tokens = 0;
        ok = speed(s, ids, o->n_decode, 1, &tokens, e);
        decode.value[decode.n++] = tokens;
        used.value[used.n++] = tokens * w.bytes * 1e-9;
        ratio.value[ratio.n++] = 100 * tokens * w.bytes * 1e-9 / read.value[r];
    }
    if (isatty(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
    if (ok) {
        char label[2][40];
        snprintf(label[0], sizeof label[0], "prefill %d, tokens/s", o->n_prefill);
        snprintf(label[1], sizeof label[1], "decode %d, tokens/s", o->n_decode);
        printf("weights read     %.2f MB per token\n\n%-28s %10s %10s %10s\n", w.bytes * 1e-6, "", "median", "lowest", "highest");
        print_series(label[0], &prefill);
        print_series(label[1], &decode);
        print_series("decode, weights GB/s", &used);
        print_series("reading only, GB/s", &read);
        print_series("decode / reading only, %", &ratio);
    }
    free(ids);
    free(w.piece);
    return ok;
}

static bool bench(const Options *o, Model *m, Backend *b, Session *s, Err *e) {
    if (o->synthetic && !make_synthetic(e)) return false;
    const bool opened = model_open(m, o->synthetic ? temporary : o->model, e);
    remove_files(); // the mapping keeps the bytes
    if (!opened) return false;
    const bool ref = !strcmp(o->backend, "ref");
    int threads = ref ? 1 : o->threads;
#ifdef _OPENMP
    if (!threads) threads = omp_get_num_procs();
#else
    threads = 1;
#endif
    if (ref ? !backend_open_ref(b, e) : !backend_open_cpu(b, threads, (Isa)isa_by_name(o->isa), e)) return false;
    const SessionParams p = {.n_ctx = max_int(max_int(o->n_prefill, o->n_decode), 4), .n_batch = min_int(o->n_batch, max_int(o->n_prefill, 1))};
    if (!session_open(s, m, b, &p, e)) return false;
    printf("model            %s: %s, %d layers x %d, %.2f million parameters, %.2f MiB\n", o->synthetic ? "random weights" : o->model, m->c.arch,
           m->c.n_layer, m->c.n_embd, (double)m->n_param * 1e-6, (double)m->weight_bytes / 0x1p20);
    printf("backend          %s: %s\nrepetitions      %d\n", b->name, b->detail, o->reps);
    gguf_prefetch(&m->gguf, NULL, NULL);
    return measure(s, o, threads, e);
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
    bool ok = bench(&o, &m, &b, &s, &e);
    remove_files();
    session_close(&s);
    backend_close(&b);
    model_close(&m);
    if (ok && (fflush(stdout) || ferror(stdout))) ok = err_set(&e, "standard output: %s", strerror(errno));
    if (!ok) fprintf(stderr, "bench: %s\n", e.text);
    return ok ? 0 : 1;
}
