// abliterate.c: the program `abliterate`. So far one step of the technique: extract, the difference of means of the residual
// stream over two prompt sets, per layer, as a GGUF file of directions.
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "console.h"
#include "means.h"

static const char HELP[] =
    "abliterate extract MODEL.gguf --target A.txt --contrast B.txt [-o OUT.gguf]\n"
    "\n"
    "Finds the direction in the residual stream that tells the prompts of A (which show a behaviour) from those of B (which do\n"
    "not): mean over A minus mean over B, at the last token of each prompt, after every layer. One prompt a line.\n"
    "\n"
    "  --target FILE, --contrast FILE   the two prompt sets, at least 2 prompts each\n"
    "  -o FILE                          write unit directions as tensors direction.N (N: the layer they leave), float32\n"
    "  -sys TEXT                        a system prompt for every prompt\n"
    "  -c N                             tokens of context (default 2048)\n"
    "  -t N                             threads (default: all this process may use)\n"
    "  --backend cpu|ref                default cpu\n"
    "  -h, --help;  --version\n"
    "\n"
    "Prints, per layer: the length of the difference; the cosine between the differences of two halves of the prompts (near 1:\n"
    "the same direction whichever prompts are taken); and the length relative to the mean length of the stream.\n";

typedef struct {
    const char *model, *target, *contrast, *out, *system, *backend;
    int n_ctx, threads;
    bool help, version;
} Options;

static bool number(const char *name, const char *text, int max, int *out, Err *e) {
    char *end;
    errno = 0;
    const long v = strtol(text, &end, 10);
    if (end == text || *end || errno || v < 1 || v > max) return err_set(e, "option %s is '%s', expected a whole number from 1 to %d", name, text, max);
    *out = (int)v;
    return true;
}

static bool parse_options(Options *o, int argc, char **argv, Err *e) {
    *o = (Options){.backend = "cpu", .n_ctx = 2048};
    if (argc > 1 && (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help"))) return o->help = true;
    if (argc > 1 && !strcmp(argv[1], "--version")) return o->version = true;
    if (argc < 2) return err_set(e, "no command given, expected extract");
    if (strcmp(argv[1], "extract")) return err_set(e, "unknown command '%s', expected extract", argv[1]);
    for (int i = 2; i < argc; i++) {
        const char *name = argv[i];
        if (!strcmp(name, "-h") || !strcmp(name, "--help")) return o->help = true;
        if (name[0] != '-') {
            if (o->model) return err_set(e, "unexpected argument '%s': the model is already '%s'", name, o->model);
            o->model = name;
            continue;
        }
        const char **text = !strcmp(name, "--target") ? &o->target : !strcmp(name, "--contrast") ? &o->contrast : !strcmp(name, "-o") ? &o->out
                          : !strcmp(name, "-sys") ? &o->system : !strcmp(name, "--backend") ? &o->backend : !strcmp(name, "-m") ? &o->model : NULL;
        int *whole = !strcmp(name, "-c") ? &o->n_ctx : !strcmp(name, "-t") ? &o->threads : NULL;
        if (!text && !whole) return err_set(e, "unknown option '%s'", name);
        if (++i == argc) return err_set(e, "option %s needs a value", name);
        if (text) *text = argv[i];
        else if (!number(name, argv[i], whole == &o->threads ? 1024 : 1 << 24, whole, e)) return false;
    }
    if (!o->model) return err_set(e, "no model given");
    if (!o->target || !o->contrast) return err_set(e, "%s is missing", o->target ? "--contrast" : "--target");
    if (strcmp(o->backend, "cpu") && strcmp(o->backend, "ref")) return err_set(e, "option --backend is '%s', expected cpu or ref", o->backend);
    return true;
}

static double dot(const double *a, const double *b, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// The zero vector has no direction: cosine 0.
static double cosine(const double *a, const double *b, int n) {
    const double l = sqrt(dot(a, a, n) * dot(b, b, n));
    return l > 0 ? dot(a, b, n) / l : 0;
}

static void print_table(const Means *t, const Means *c, const double *all, const double *even, const double *odd) {
    const int n = t->n_embd;
    printf("layer   |difference|   half.half cosine   of the stream\n");
    for (int l = 0; l < t->n_layer; l++) {
        const size_t at = (size_t)l * (size_t)n;
        double stream = 0; // length of the mean stream of the contrast set
        for (int i = 0; i < n; i++) {
            const double mean = (c->sum[0][at + (size_t)i] + c->sum[1][at + (size_t)i]) / (c->n[0] + c->n[1]);
            stream += mean * mean;
        }
        const double length = sqrt(dot(all + at, all + at, n));
        printf("%5d   %12.4g   %16.4f   %11.1f %%\n", l, length, cosine(even + at, odd + at, n), stream > 0 ? 100 * length / sqrt(stream) : 0);
    }
}

static bool write_directions(const char *path, const Options *o, const Means *t, const Means *c, const double *all, Err *e) {
    GgufWriter *w;
    if (!gguf_writer_open(&w, path, e)) return false;
    const int n = t->n_embd;
    const char *base = strrchr(o->model, '/') ? strrchr(o->model, '/') + 1 : o->model;
    float *unit = malloc(sizeof(float) * (size_t)n);
    bool ok = unit || err_set(e, "%s: no memory for a direction", path);
    gguf_set_string(w, "general.architecture", "controlvector", 13);
    gguf_set_string(w, "abliterate.model", base, strlen(base));
    gguf_set_u32(w, "abliterate.target_prompts", (uint32_t)(t->n[0] + t->n[1]));
    gguf_set_u32(w, "abliterate.contrast_prompts", (uint32_t)(c->n[0] + c->n[1]));
    for (int l = 1; l < t->n_layer; l++) { // the format knows no layer 0
        char name[32];
        snprintf(name, sizeof name, "direction.%d", l);
        gguf_add_tensor(w, name, TYPE_F32, 1, (uint64_t[]){(uint64_t)n});
    }
    for (int l = 1; ok && l < t->n_layer; l++) {
        const double *d = all + (size_t)l * (size_t)n, length = sqrt(dot(d, d, n));
        for (int i = 0; i < n; i++) unit[i] = length > 0 ? (float)(d[i] / length) : 0;
        ok = gguf_writer_data(w, unit, sizeof(float) * (size_t)n, e) && gguf_writer_next(w, e);
    }
    free(unit);
    if (ok) return gguf_writer_close(w, e);
    gguf_writer_abort(w);
    return false;
}

static bool extract(const Options *o, Err *e) {
    Model m = {0};
    Tokenizer *tok = NULL;
    Backend b = {0};
    Session s = {0};
    Prompts target = {0}, contrast = {0};
    Means t = {0}, c = {0};
    Chat chat;
    double *all = NULL, *even = NULL, *odd = NULL;

    bool ok = prompts_read(&target, o->target, e) && prompts_read(&contrast, o->contrast, e) && model_open(&m, o->model, e) && tokenizer_open(&tok, &m.gguf, e) &&
              (!strcmp(o->backend, "ref") ? backend_open_ref(&b, e) : backend_open_cpu(&b, o->threads, ISA_AUTO, e));
    ok = ok && chat_from_file(&chat, &m.gguf, tok, e);
    ok = ok && session_open(&s, &m, &b, &(SessionParams){.n_ctx = o->n_ctx, .n_batch = min_int(512, o->n_ctx)}, e);
    ok = ok && means_init(&t, m.c.n_layer, m.c.n_embd, e) && means_init(&c, m.c.n_layer, m.c.n_embd, e);
    if (ok) {
        const Reader r = {.m = &m, .tok = tok, .chat = &chat, .system = o->system, .s = &s};
        const size_t bytes = sizeof(double) * (size_t)m.c.n_layer * (size_t)m.c.n_embd;
        catch_interrupt(true);
        ok = means_add(&t, &r, &target, "target prompts", e) && means_add(&c, &r, &contrast, "contrast prompts", e);
        if (ok && interrupted) ok = err_set(e, "interrupted, nothing is written");
        all = malloc(bytes);
        even = malloc(bytes);
        odd = malloc(bytes);
        if (ok && (!all || !even || !odd)) ok = err_set(e, "no memory for the differences");
    }
    if (ok) {
        mean_difference(&t, &c, -1, all);
        mean_difference(&t, &c, 0, even);
        mean_difference(&t, &c, 1, odd);
        print_table(&t, &c, all, even, odd);
        if (o->out) ok = write_directions(o->out, o, &t, &c, all, e);
    }
    if (ok && o->out) fprintf(stderr, "%s: directions of layers 1 to %d\n", o->out, m.c.n_layer - 1);
    free(all);
    free(even);
    free(odd);
    means_free(&t);
    means_free(&c);
    prompts_free(&target);
    prompts_free(&contrast);
    session_close(&s);
    backend_close(&b);
    tokenizer_close(tok);
    model_close(&m);
    return ok;
}

int main(int argc, char **argv) {
    spin_briefly(argv);
    Options o;
    Err e = {0};
    if (!parse_options(&o, argc, argv, &e)) {
        fprintf(stderr, "abliterate: %s (abliterate --help explains)\n", e.text);
        return 2;
    }
    if (o.help || o.version) fputs(o.help ? HELP : "abliterate.c abliterate 0.1\n", stdout);
    else if (!extract(&o, &e)) {
        fprintf(stderr, "abliterate: %s\n", e.text);
        return 1;
    }
    return fflush(stdout) ? 1 : 0;
}
