// command_export.c: `abliterate export`: a direction as a control vector, as a LoRA adapter, or, from files of others, as a direction
// file of ours.
#include <math.h>
#include <sys/stat.h>

#include "abliterate.h"
#include "export.h"

const char EXPORT_HELP[] =
    "abliterate export DIR.gguf -o OUT.gguf --lora MODEL.gguf | --cvector | --project [options]\n"
    "\n"
    "  --lora MODEL               a LoRA adapter that does what abliterate edit would do to the weights of MODEL, to be switched and\n"
    "                             scaled live by engines that read adapters (several directions: one of as many ranks)\n"
    "  --cvector                  a plain control vector, which engines ADD to the stream: another thing than removing the direction\n"
    "  --project                  a direction file of ours, mode project: to remove what a control vector of others points along\n"
    "  --direction FILE           more directions; --lora removes them as one subspace\n"
    "  --strength S               times this (default: what the file says, or 1)\n"
    "  --layers A-B               in these layers only (--cvector: entering them; default as in run)\n"
    "  --from-cvector-generator   DIR is from llama.cpp's cvector-generator, which numbers its layers one higher than its reader\n"
    "  -t N, -q                   threads; only errors\n";

typedef struct {
    OptionList directions;
    const char *first, *out, *lora, *layers;
    bool cvector, project, from_generator, quiet;
    double strength;
    int threads;
} ExportOptions;

static const Option EXPORT[] = {
#define O(field) offsetof(ExportOptions, field)
    {"-o", "--out", OPTION_TEXT, O(out), 0, 0},
    {"--lora", NULL, OPTION_TEXT, O(lora), 0, 0},
    {"--cvector", NULL, OPTION_FLAG, O(cvector), 0, 0},
    {"--project", NULL, OPTION_FLAG, O(project), 0, 0},
    {"--direction", "--dir", OPTION_LIST, O(directions), 0, 0},
    {"--strength", NULL, OPTION_REAL, O(strength), -1000, 1000},
    {"--layers", NULL, OPTION_TEXT, O(layers), 0, 0},
    {"--from-cvector-generator", NULL, OPTION_FLAG, O(from_generator), 0, 0},
    {"-t", "--threads", OPTION_INT, O(threads), 1, 1024},
    {"-q", "--quiet", OPTION_FLAG, O(quiet), 0, 0},
#undef O
};

static bool load(const ExportOptions *o, const char *path, const Model *m, Direction *d, Err *e) {
    if (!(m ? direction_load(d, path, m, e) : direction_load_alone(d, path, e))) return false;
    if (!o->from_generator || export_from_generator(d, path, e)) return true;
    direction_free(d);
    return false;
}

// Without --strength: what the file proposes for the same thing.
static double strength_of(const ExportOptions *o, const Direction *d, bool to_add) {
    return !isnan(o->strength) ? o->strength : (d->mode == MODE_ADD) == to_add ? d->strength : 1;
}

static bool write_cvector(const ExportOptions *o, const Direction *d, Err *e) {
    int first = -1, last = -1, n;
    if (o->layers && !steer_parse_layers(o->layers, d->n_layer, &first, &last, e)) return false;
    if (!export_cvector(d, strength_of(o, d, true), first, last, o->out, &n, e)) return false;
    if (!o->quiet)
        fprintf(stderr, "%s: written: vectors in %d of layers 1-%d. Note: engines ADD a control vector, with scale 1 towards the behaviour and with -1 away from it, always by\n"
                        "the same amount. That is not the removal of the direction; --lora and `abliterate edit` are.\n", o->out, n, d->n_layer - 1);
    return true;
}

// A vector where there was none before stays out: the format begins with the stream leaving layer 1.
static bool write_project(const ExportOptions *o, Direction *d, Err *e) {
    if (o->layers) return err_set(e, "option --layers is for --lora and --cvector; run and edit take it with a direction file");
    d->strength = (float)strength_of(o, d, false);
    d->mode = MODE_PROJECT;
    if (!direction_save(d, o->out, NULL, NULL, e)) return false;
    if (!o->quiet) fprintf(stderr, "%s: written\n", o->out);
    return true;
}

static bool write_lora(const ExportOptions *o, const Model *m, const Direction *dirs, int n_dir, Err *e) {
    EditOptions x = {.strength = strength_of(o, dirs, false), .first = 0, .last = m->c.n_layer - 1};
    LoraFacts facts;
    if (o->layers && !steer_parse_layers(o->layers, m->c.n_layer, &x.first, &x.last, e)) return false;
    char hex[65];
    model_fingerprint(m, hex);
    for (int i = 0; i < n_dir && !o->quiet; i++)
        if (strcmp(hex, dirs[i].fingerprint)) fprintf(stderr, "abliterate: direction %d was made from other weights, or does not say from which\n", i + 1);
    Pool *pool = pool_open(o->threads ? o->threads : processors_allowed());
    if (!pool) return err_set(e, "no threads");
    const bool ok = export_lora(m, dirs, n_dir, &x, pool, o->out, &facts, e);
    pool_close(pool);
    if (!ok) return false;
    if (!o->quiet)
        fprintf(stderr, "%s: written: rank %d for %d matrices, %.1f million parameters; scale 1 is strength %g. The embedding stays as it is.\n", o->out, n_dir, facts.n_matrix,
                1e-6 * (double)facts.n_param, x.strength);
    if (facts.n_bias) fprintf(stderr, "abliterate: note: %d biases write along the direction, too; an adapter cannot change them\n", facts.n_bias);
    return true;
}

// What is read must not be replaced by what is written.
static bool check_out(const ExportOptions *o, Err *e) {
    struct stat out, in;
    if (stat(o->out, &out)) return true;
    for (int i = -1; i < o->directions.n; i++) {
        const char *path = i < 0 ? o->lora : o->directions.text[i];
        if (path && !stat(path, &in) && in.st_dev == out.st_dev && in.st_ino == out.st_ino) return err_set(e, "%s: is read, so it cannot be written", path);
    }
    return true;
}

static bool command(const ExportOptions *o, Err *e) {
    static Model m;
    Direction dirs[OPTION_LIST_MAX] = {{0}};
    int n = 0;
    catch_interrupt(true);
    bool ok = check_out(o, e) && (!o->lora || model_open(&m, o->lora, e));
    for (; ok && n < o->directions.n; n += ok) ok = load(o, o->directions.text[n], o->lora ? &m : NULL, &dirs[n], e);
    ok = ok && (o->lora ? write_lora(o, &m, dirs, n, e) : o->cvector ? write_cvector(o, dirs, e) : write_project(o, dirs, e));
    for (int i = 0; i < n; i++) direction_free(&dirs[i]);
    if (o->lora) model_close(&m);
    return ok;
}

Outcome export_command(int argc, char **argv, Err *e) {
    ExportOptions o = {.strength = NAN};
    if (!options_parse(EXPORT, sizeof EXPORT / sizeof *EXPORT, &o, argc, argv, &o.first, "the direction", e)) return USAGE;
    if (o.first) {
        if (o.directions.n == OPTION_LIST_MAX) return err_set(e, "%d directions, expected at most %d", o.directions.n + 1, OPTION_LIST_MAX), USAGE;
        memmove(o.directions.text + 1, o.directions.text, sizeof *o.directions.text * (size_t)o.directions.n++);
        o.directions.text[0] = o.first;
    }
    if (!o.directions.n) return err_set(e, "no direction given"), USAGE;
    if (!o.out) return err_set(e, "-o is missing"), USAGE;
    if ((o.lora != NULL) + o.cvector + o.project != 1) return err_set(e, "expected one of --lora MODEL, --cvector and --project"), USAGE;
    if (!o.lora && o.directions.n > 1) return err_set(e, "%d directions, expected one (only --lora takes several)", o.directions.n), USAGE;
    return command(&o, e) ? DONE : FAILED;
}
