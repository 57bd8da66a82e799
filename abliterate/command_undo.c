// command_undo.c: `abliterate undo`: an edited model becomes the original again, bit for bit.
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>

#include "abliterate.h"
#include "console.h"
#include "outfile.h"
#include "sha256.h"
#include "undo.h"

const char UNDO_HELP[] =
    "abliterate undo EDITED.gguf -o ORIGINAL.gguf [options]\n"
    "\n"
    "Restores the model that `abliterate edit` was given, bit for bit. The SHA-256 of the edited file is checked before, that of the\n"
    "restored one after it was written.\n"
    "\n"
    "  --undo FILE                what `abliterate edit` kept (default EDITED.undo)\n"
    "  -o FILE                    the restored model\n"
    "  -q, --quiet                no progress\n";

typedef struct {
    const char *edited, *undo, *out;
    bool quiet;
} UndoCommand;

static const Option UNDO[] = {
    {"--undo", NULL, OPTION_TEXT, offsetof(UndoCommand, undo), 0, 0},
    {"-o", "--out", OPTION_TEXT, offsetof(UndoCommand, out), 0, 0},
    {"-q", "--quiet", OPTION_FLAG, offsetof(UndoCommand, quiet), 0, 0},
};

typedef struct {
    const UndoCommand *o;
    Sha256 sum;
    const Gguf *g; // the edited file
    OutFile *out;  // NULL: only the sum
    Progress progress;
    double done, total;
} Restoring;

static bool take(void *ctx, const uint8_t *p, uint64_t n, Err *e) {
    Restoring *x = ctx;
    for (size_t k; n; p += k, n -= k) {
        k = n < 1 << 20 ? (size_t)n : 1 << 20;
        sha256_add(&x->sum, p, k);
        if (x->out && !outfile_write(x->out, p, k, e)) return false;
        gguf_forget(x->g, p, k);
        x->done += (double)k;
        if (!x->o->quiet) progress_step(&x->progress, x->done, x->total);
        if (interrupted) return err_set(e, "%s: interrupted, nothing is written", x->o->out);
    }
    return true;
}

// SHA-256 of a whole file that is mapped.
static bool sum_of(Restoring *x, const Gguf *g, char hex[65], Err *e) {
    uint64_t n;
    const uint8_t *p = gguf_bytes(g, &n);
    x->g = g;
    x->out = NULL;
    sha256_start(&x->sum);
    if (!take(x, p, n, e)) return false;
    sha256_end(&x->sum, hex);
    return true;
}

static bool restore(Restoring *x, const Undo *u, const Gguf *g, OutFile *out, Err *e) {
    char hex[65];
    uint64_t n;
    const uint8_t *edited = gguf_bytes(g, &n);
    x->total = (double)n + 2 * (double)u->n;
    if (!sum_of(x, g, hex, e)) return false;
    if (strcmp(hex, u->edited)) return err_set(e, "%s: has SHA-256 %s, %s is for %s", x->o->edited, hex, u->g.path, u->edited);
    if (!outfile_open(out, x->o->out, u->n, 0, e)) return false;
    x->out = out;
    x->g = g;
    sha256_start(&x->sum);
    if (!undo_each(u, edited, n, take, x, e)) return false;
    sha256_end(&x->sum, hex);
    if (strcmp(hex, u->original)) return err_set(e, "%s: damaged: it gives a file with SHA-256 %s, expected %s", u->g.path, hex, u->original);
    Gguf back;
    if (!outfile_sync(out, e) || !gguf_open(&back, out->tmp, e)) return false;
    const bool ok = sum_of(x, &back, hex, e);
    gguf_close(&back);
    if (ok && strcmp(hex, u->original)) return err_set(e, "%s: read back, it is not what was written: the disk or the memory is damaged", x->o->out);
    return ok && outfile_commit(out, e);
}

Outcome undo_command(int argc, char **argv, Err *e) {
    UndoCommand o = {0};
    if (!options_parse(UNDO, sizeof UNDO / sizeof *UNDO, &o, argc, argv, &o.edited, "the edited model", e)) return USAGE;
    if (!o.edited) return err_set(e, "no edited model given"), USAGE;
    if (!o.out) return err_set(e, "-o is missing"), USAGE;
    char *path = malloc(strlen(o.edited) + sizeof ".undo");
    if (!path) return err_set(e, "no memory"), FAILED;
    sprintf(path, "%s.undo", o.edited);
    if (!o.undo) o.undo = path;
    static Restoring x;
    static Undo u;
    static Gguf g;
    OutFile out = {.fd = -1};
    x.o = &o;
    catch_end();
    progress_start(&x.progress, "restoring");
    const bool ok = outfile_check(o.out, (const char *const[]){o.edited, o.undo}, 2, e) && undo_open(&u, o.undo, e) && gguf_open(&g, o.edited, e) && restore(&x, &u, &g, &out, e);
    progress_end(&x.progress);
    char edit[160];
    if (ok) printf("%s: %.2f MiB, SHA-256 %s: the original\n", o.out, (double)u.n / 0x1p20, u.original);
    if (ok && undo_tells(&u, edit, sizeof edit)) printf("undone: %s\n", edit);
    outfile_close(&out);
    undo_close(&u);
    gguf_close(&g);
    free(path);
    return ok ? DONE : FAILED;
}
