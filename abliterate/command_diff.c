// command_diff.c: `abliterate diff`: what the differences of two files have in common, and the direction they were made with.
#include "abliterate.h"
#include "console.h"
#include "diff.h"

const char DIFF_HELP[] =
    "abliterate diff A.gguf B.gguf [-o DIR.gguf] [options]\n"
    "    A: the original file, B: one that somebody has edited. Which tensors differ, the energy of the first singular directions of\n"
    "    every difference, and whether one direction of the residual stream explains them all.\n"
    "\n"
    "  -o FILE                    write the direction found (its sign cannot be known)\n"
    "  --json FILE                write the figures there, too\n"
    "  -s, --seed N               of the first vectors of the iteration (default 1)\n"
    "  -t N                       threads\n";

typedef struct {
    const char *a, *b, *out, *json;
    int64_t seed;
    int threads;
} DiffOptions;

static const Option OPTIONS[] = {
#define O(field) offsetof(DiffOptions, field)
    {"-o", "--out", OPTION_TEXT, O(out), 0, 0},
    {"--json", NULL, OPTION_TEXT, O(json), 0, 0},
    {"-s", "--seed", OPTION_INT64, O(seed), 0, 9007199254740992.0},
    {"-t", "--threads", OPTION_INT, O(threads), 1, 1024},
#undef O
};

static void json_members(const void *of, FILE *f) { diff_json(of, f); }

Outcome diff_command(int argc, char **argv, Err *e) {
    static Pair p;
    static Diff d;
    DiffOptions o = {.seed = 1};
    if (argc > 1 && argv[1][0] != '-') { // the first of two files
        o.a = argv[1];
        argc--;
        argv++;
    }
    if (!options_parse(OPTIONS, sizeof OPTIONS / sizeof *OPTIONS, &o, argc, argv, &o.b, "the edited file", e)) return USAGE;
    if (!o.a || !o.b) return err_set(e, "two files are needed: the original and the edited one"), USAGE;
    catch_interrupt(true);
    bool ok = pair_open(&p, o.a, o.b, o.threads, e) && diff_measure(&d, &p, (uint64_t)o.seed, e);
    if (ok) {
        diff_text(&d, stdout);
        ok = (!o.json || pair_json(&p, o.json, json_members, &d, e)) && (!o.out || diff_save(&d, o.out, e));
        if (ok && o.json) fprintf(stderr, "%s: written\n", o.json);
        if (ok && o.out) fprintf(stderr, "%s: written\n", o.out);
    }
    diff_free(&d);
    pair_close(&p);
    return ok ? DONE : FAILED;
}
