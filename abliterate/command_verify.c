// command_verify.c: `abliterate verify`: what an edit has done to the weights of a file, and, with prompts, to what it answers.
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "abliterate.h"
#include "console.h"
#include "diff.h"
#include "sha256.h"
#include "undo.h"
#include "verify.h"

const char VERIFY_HELP[] =
    "abliterate verify A.gguf B.gguf [--direction DIR.gguf] [options]\n"
    "    A: the original file, B: the edited one. For every tensor that differs: how many values changed and how far, the leak\n"
    "    |take' B| / |take' A| (what is left of the direction in what it writes; 0: nothing), and kappa of A (1: wrote no more of it\n"
    "    than of a random direction). Without --direction: of the direction that diff finds in the two files.\n"
    "\n"
    "  --direction FILE           what was removed (several: as one subspace)\n"
    "  --json FILE                write the figures of the weights there, too\n"
    "\n"
    "With prompts the report follows: A without, B with the edit, from the same engine.\n"
    "  --target FILE, --contrast FILE   prompts that show the behaviour, and prompts that do not; best ones not used by extract\n"
    "  --keep FILE, --text FILE, --questions FILE, --choices C, --markers FILE, --openers FILE, -n N, --forced N, --limit N, -s N,\n"
    "  --html FILE                as in report (--html, --report-json: where to write it, too)\n" LAB_HELP;

typedef struct {
    ReportOptions r; // lab.model: A
    const char *b, *json;
} VerifyOptions;

static const Option OPTIONS[] = {
#define O(field) offsetof(VerifyOptions, r.field)
    {"--direction", "--dir", OPTION_LIST, O(directions), 0, 0},
    {"--json", NULL, OPTION_TEXT, offsetof(VerifyOptions, json), 0, 0},
    {"--report-json", NULL, OPTION_TEXT, O(json), 0, 0},
    REPORT_OPTIONS,
#undef O
};

// Of the files given, or what diff finds. None is no error: then there is no leak to measure.
static bool find_directions(const VerifyOptions *o, const Pair *p, Direction *dirs, int *n, Err *e) {
    *n = 0;
    for (int i = 0; i < o->r.directions.n; i++, ++*n)
        if (!direction_load(&dirs[i], o->r.directions.text[i], &p->a, e)) return false;
    if (*n || !p->writers.n) return true;
    static Diff d;
    Err why;
    const bool ok = diff_measure(&d, p, (uint64_t)o->r.seed, e);
    if (ok && diff_direction(&d, &dirs[0], &why)) {
        *n = 1;
        printf("Direction  none given: the one found in the differences (%s edit, mean |cos| %.4f)\n", how_name(d.how), d.cos[d.how]);
    } else if (ok) printf("Direction  none given, none found: %s\n", why.text);
    diff_free(&d);
    return ok;
}

// Is a hash among the directions of the edits that the keys tell of? *n: how many edits they tell of.
static bool names(const Gguf *g, const char *hash, int *n) {
    bool found = false;
    *n = 0;
    for (int edit = 0; edit < 1000; edit++) { // an undo file tells of one, which need not be the first
        char key[64];
        snprintf(key, sizeof key, "abliterate.edit.%d.direction", edit);
        const GgufKey *k = gguf_key(g, key);
        *n += k != NULL;
        for (uint64_t i = 0; k && k->strings && i < k->n; i++) found |= k->strings[i].n == strlen(hash) && !memcmp(k->strings[i].p, hash, strlen(hash));
    }
    return found;
}

// An edit that leaves no stamp (--strict) is known by its undo file: B.undo names B by its SHA-256, and tells what was done.
static bool find_undo(const Pair *p, const char *b, Undo *u) {
    char *path = malloc(strlen(b) + sizeof ".undo"), text[160];
    Err why;
    if (!path) return false;
    sprintf(path, "%s.undo", b);
    bool found = false;
    if (!access(path, F_OK)) {
        uint64_t n, n_a;
        const uint8_t *bytes = gguf_bytes(&p->b, &n), *bytes_a = gguf_bytes(&p->a.gguf, &n_a);
        char hex[65];
        if (!undo_open(u, path, &why)) printf("Undo       %s\n", why.text);
        else if (!undo_is_for(u, bytes, n)) printf("Undo       %s is of another file than B\n", path);
        else {
            found = true;
            sha256_of(bytes_a, (size_t)n_a, hex);
            printf("Undo       %s: B was made by abliterate edit, %s%s%s\n", path, strcmp(hex, u->original) ? "of another file than A" : "of A",
                   undo_tells(u, text, sizeof text) ? ": " : "", undo_tells(u, text, sizeof text) ? text : "");
        }
        if (!found) undo_close(u);
    }
    free(path);
    return found;
}

// Does B's stamp (abliterate edit), or its undo file (NULL: none), name this direction file?
static bool print_stamp(const Gguf *b, const Gguf *undo, const char *path, Err *e) {
    char hash[65];
    int n, n_undo = 0;
    if (!content_hash(path, hash, e)) return false;
    bool found = names(b, hash, &n);
    if (undo) found |= names(undo, hash, &n_undo);
    if (n + n_undo) printf("Stamp      of %s: %s is %s that was removed\n", n ? "B" : "the undo file", path, found ? "a direction" : "NOT a direction");
    return true;
}

static void json_members(const void *of, FILE *f) { verify_json(of, f); }

static bool weights(const VerifyOptions *o, Direction *dirs, int *n_dir, Err *e) {
    static Pair p;
    static Verify v;
    bool ok = pair_open(&p, o->r.lab.model, o->b, o->r.lab.place.threads, e) && find_directions(o, &p, dirs, n_dir, e) && verify_measure(&v, &p, dirs, *n_dir, e);
    if (ok) {
        if (!p.writers.n) printf("Leak       not measured: %s\n", p.why_none.text);
        int n_stamp;
        static Undo u;
        names(&p.b, "", &n_stamp);
        const bool undo = !n_stamp && find_undo(&p, o->b, &u);
        for (int i = 0; ok && i < o->r.directions.n; i++) ok = print_stamp(&p.b, undo ? &u.g : NULL, o->r.directions.text[i], e);
        if (undo) undo_close(&u);
        verify_text(&v, stdout);
        ok = ok && (!o->json || pair_json(&p, o->json, json_members, &v, e));
        if (ok && o->json) fprintf(stderr, "%s: written\n", o->json);
    }
    verify_free(&v);
    pair_close(&p);
    return ok;
}

// The report of A, whose other side is B.
static bool behaviour(const VerifyOptions *o, Direction *dirs, int n_dir, Err *e) {
    static Lab a, b;
    static Report r;
    LabOptions of_b = o->r.lab;
    of_b.model = o->b;
    bool ok = lab_open(&a, &o->r.lab, e) && lab_open(&b, &of_b, e);
    if (ok && a.m.c.n_vocab != b.m.c.n_vocab) ok = err_set(e, "%s: %d tokens, %s has %d", of_b.model, b.m.c.n_vocab, o->r.lab.model, a.m.c.n_vocab);
    a.edited = &b;
    for (int i = 0; ok && i < n_dir; i++) {
        a.steer.dir[i] = dirs[i];
        a.steer.n_dir++;
        dirs[i] = (Direction){0};
    }
    ok = ok && report_measure(&r, &a, &o->r, e);
    if (ok) {
        putchar('\n');
        report_text(&r, stdout);
        ok = (!o->r.json || report_json(&r, o->r.json, e)) && (!o->r.html || report_html(&r, o->r.html, e));
        if (ok && o->r.json) fprintf(stderr, "%s: written\n", o->r.json);
        if (ok && o->r.html) fprintf(stderr, "%s: written\n", o->r.html);
    }
    report_free(&r);
    lab_close(&b);
    lab_close(&a);
    return ok;
}

Outcome verify_command(int argc, char **argv, Err *e) {
    VerifyOptions o = {.r = {.lab = {.n_seq = 16}, .strength = NAN, .choices = "letters", .n_predict = 64, .n_forced = 32, .seed = 1}};
    static Direction dirs[MOST_VECTORS];
    int n_dir = 0;
    if (argc > 1 && argv[1][0] != '-') { // the first of two files
        o.r.lab.model = argv[1];
        argc--;
        argv++;
    }
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, &o, argc, argv, &o.b, "the edited file", e)) return USAGE;
    if (!o.r.lab.model || !o.b) return err_set(e, "two files are needed: the original and the edited one"), USAGE;
    if (!check_lab(&o.r.lab, e)) return USAGE;
    if (!o.r.target != !o.r.contrast) return err_set(e, "%s is missing", o.r.target ? "--contrast" : "--target"), USAGE;
    if (!o.r.target && (o.r.html || o.r.json || o.r.text || o.r.keep || o.r.questions.n))
        return err_set(e, "a report needs prompts: --target and --contrast are missing"), USAGE;
    if (strcmp(o.r.choices, "letters") && strcmp(o.r.choices, "text")) return err_set(e, "option --choices is '%s', expected letters or text", o.r.choices), USAGE;
    catch_interrupt(true);
    bool ok = weights(&o, dirs, &n_dir, e);
    if (ok && o.r.target && !n_dir) ok = err_set(e, "the report needs a direction: --direction is missing, and the two files do not show one");
    if (ok && o.r.target) {
        fflush(stdout);
        ok = behaviour(&o, dirs, n_dir, e);
    }
    for (int i = 0; i < n_dir; i++) direction_free(&dirs[i]);
    return ok ? DONE : FAILED;
}
