// compare.c: bench compare: two files of `bench -o json` (or of llama-bench -o json), test by test.
#include <ctype.h>
#include <math.h>
#include <stdlib.h>

#include "bench.h"
#include "console.h"
#include "results.h"

static const char HELP[] =
    "bench compare A.json B.json    two runs, test by test: B's speed as a multiple of A's. A * marks a difference larger than both\n"
    "                               standard deviations together\n";

// What is wanted of a test. A number that is not there is NaN, a text "".
typedef struct {
    char model[96];
    double n_prompt, n_gen, n_depth, n_threads, avg, sd, stream, peak, ablate;
} Test;

enum { MAX_TEST = 1024 };
typedef struct {
    Test test[MAX_TEST];
    int n;
} File;

// ---- reading: JSON as far as it is needed, an array of objects of scalars and arrays ----

typedef struct {
    const char *path, *p, *begin;
    Err *e;
} Reader;

static bool wrong(const Reader *r, const char *expected) {
    int line = 1;
    for (const char *p = r->begin; p < r->p; p++) line += *p == '\n';
    return err_set(r->e, "%s: line %d: expected %s", r->path, line, expected);
}

static char peek(Reader *r) {
    while (*r->p == ' ' || *r->p == '\t' || *r->p == '\n' || *r->p == '\r') r->p++;
    return *r->p;
}

static bool take(Reader *r, char c) {
    if (peek(r) != c) return false;
    r->p++;
    return true;
}

static bool read_text(Reader *r, char *text, size_t size) { // escapes stay as they are
    size_t n = 0;
    if (!take(r, '"')) return wrong(r, "a text");
    for (; *r->p && *r->p != '"'; r->p++) {
        if (*r->p == '\\' && r->p[1]) r->p++;
        if (n + 1 < size) text[n++] = *r->p;
    }
    text[n] = 0;
    return take(r, '"') || wrong(r, "the end of a text");
}

// A value: its text or number; of an array or object only that it ends.
static bool read_value(Reader *r, char *text, size_t size, double *number, int depth) {
    *text = 0;
    *number = NAN;
    const char c = peek(r);
    if (c == '"') return read_text(r, text, size);
    if (c == '[' || c == '{') {
        const char end = c == '[' ? ']' : '}';
        char inner[96];
        double ignored;
        r->p++;
        if (depth == 8) return wrong(r, "less nesting");
        if (take(r, end)) return true;
        do {
            if (c == '{' && !(read_text(r, inner, sizeof inner) && (take(r, ':') || wrong(r, "':'")))) return false;
            if (!read_value(r, inner, sizeof inner, &ignored, depth + 1)) return false;
        } while (take(r, ','));
        return take(r, end) || wrong(r, c == '[' ? "',' or ']'" : "',' or '}'");
    }
    static const char *const words[] = {"false", "true", "null"};
    for (int i = 0; i < 3; i++)
        if (!strncmp(r->p, words[i], strlen(words[i]))) {
            r->p += strlen(words[i]);
            *number = i < 2 ? i : NAN;
            return true;
        }
    if (c != '-' && !isdigit((unsigned char)c)) return wrong(r, "a value");
    char *end;
    *number = strtod(r->p, &end);
    r->p = end;
    return true;
}

static bool read_test(Reader *r, Test *t) {
    const struct {
        const char *key;
        double *to;
    } numbers[] = {{"n_prompt", &t->n_prompt}, {"n_gen", &t->n_gen}, {"n_depth", &t->n_depth}, {"n_threads", &t->n_threads}, {"avg_ts", &t->avg},
                   {"stddev_ts", &t->sd}, {"share_of_stream", &t->stream}, {"share_of_peak", &t->peak}, {"ablate", &t->ablate}};
    char key[96], text[96];
    double number;
    *t = (Test){.n_prompt = NAN, .n_gen = NAN, .avg = NAN, .sd = NAN, .stream = NAN, .peak = NAN}; // llama-bench knows no ablation, old ones no depth
    if (!take(r, '{')) return wrong(r, "'{', a test of bench -o json");
    do {
        if (!read_text(r, key, sizeof key) || !(take(r, ':') || wrong(r, "':'")) || !read_value(r, text, sizeof text, &number, 0)) return false;
        if (!strcmp(key, "model_type")) memcpy(t->model, text, sizeof text);
        for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
            if (!strcmp(key, numbers[i].key)) *numbers[i].to = number;
    } while (take(r, ','));
    if (!take(r, '}')) return wrong(r, "',' or '}'");
    if (!*t->model || isnan(t->n_prompt) || isnan(t->n_gen) || isnan(t->avg)) return wrong(r, "a test with model_type, n_prompt, n_gen and avg_ts");
    return true;
}

static bool read_file(File *f, const char *path, Err *e) {
    char *text;
    size_t n;
    if (!read_whole_file(path, &text, &n, e)) return false;
    Reader r = {path, text, text, e};
    bool ok = take(&r, '[') || wrong(&r, "'[', results of bench -o json");
    f->n = 0;
    if (ok && peek(&r) == ']') ok = wrong(&r, "at least one test");
    while (ok) {
        ok = f->n < MAX_TEST ? read_test(&r, &f->test[f->n++]) : wrong(&r, "no more than 1024 tests");
        if (!ok || !take(&r, ',')) break;
    }
    if (ok) ok = take(&r, ']') || wrong(&r, "',' or ']'");
    if (ok && peek(&r)) ok = wrong(&r, "the end of the file");
    if (ok && r.p != text + n) ok = wrong(&r, "no NUL");
    free(text);
    return ok;
}

// ---- comparing ----

static bool same(const Test *a, const Test *b) {
    return !strcmp(a->model, b->model) && a->n_prompt == b->n_prompt && a->n_gen == b->n_gen && a->n_depth == b->n_depth && a->ablate == b->ablate;
}

// The test of b that is the same as a's i-th: of several (numbers of threads, say) the one in the same place. NULL: there is none.
static const Test *partner(const File *a, int i, const File *b) {
    int before = 0;
    for (int k = 0; k < i; k++) before += same(&a->test[k], &a->test[i]);
    for (int k = 0; k < b->n; k++)
        if (same(&b->test[k], &a->test[i]) && before-- == 0) return &b->test[k];
    return NULL;
}

static bool compare(const File *a, const File *b, Err *e) {
    Table t;
    if (!table_open(&t, 11, e)) return false;
    const char *const heads[] = {"model", "test", "threads", "A, t/s", "B, t/s", "B / A", "", "A of stream", "B of stream", "A of peak", "B of peak"};
    int met = 0;
    for (int i = 0; i < 11; i++) table_text(&t, "%s", heads[i]);
    for (int i = 0; i < a->n && t.n + 11 <= MAX_CELL; i++) {
        const Test *x = &a->test[i], *y = partner(a, i, b);
        if (!y) continue;
        met++;
        char depth[32] = "";
        if (x->n_depth > 0) snprintf(depth, sizeof depth, " @ d%.0f", x->n_depth);
        const char *const ablated = x->ablate > 0 ? ", ablated" : "";
        table_text(&t, "%s", x->model);
        if (x->n_prompt > 0 && x->n_gen > 0) table_text(&t, "pp%.0f+tg%.0f%s%s", x->n_prompt, x->n_gen, depth, ablated);
        else table_text(&t, "%s%.0f%s%s", x->n_prompt > 0 ? "pp" : "tg", x->n_prompt > 0 ? x->n_prompt : x->n_gen, depth, ablated);
        if (x->n_threads == y->n_threads) table_text(&t, "%.0f", x->n_threads);
        else table_text(&t, "%.0f, %.0f", x->n_threads, y->n_threads);
        table_text(&t, "%.2f ± %.2f", x->avg, x->sd);
        table_text(&t, "%.2f ± %.2f", y->avg, y->sd);
        table_number(&t, "%.3f", y->avg / x->avg);
        table_text(&t, "%s", fabs(y->avg - x->avg) > x->sd + y->sd ? "*" : "");
        table_number(&t, "%.1f %%", 100 * x->stream);
        table_number(&t, "%.1f %%", 100 * y->stream);
        table_number(&t, "%.1f %%", 100 * x->peak);
        table_number(&t, "%.1f %%", 100 * y->peak);
    }
    if (met) {
        table_print_close(stdout, &t, 2);
        printf("\n* the difference exceeds the sum of both standard deviations");
        if (met < a->n || met < b->n) printf("; only in A: %d tests, only in B: %d", a->n - met, b->n - met);
        putchar('\n');
        return true;
    }
    free(t.cell);
    return err_set(e, "the files have no test of the same model in common");
}

Status bench_compare(int argc, char **argv, Err *e) {
    static File a, b;
    if (argc == 2 && (!strcmp(argv[1], "-h") || !strcmp(argv[1], "--help"))) {
        fputs(HELP, stdout);
        return DONE;
    }
    if (argc != 3) return err_set(e, "expected two files: bench compare A.json B.json"), USAGE;
    return read_file(&a, argv[1], e) && read_file(&b, argv[2], e) && compare(&a, &b, e) ? DONE : FAILED;
}
