// command_edit.c: `abliterate edit`: its command line, what it refuses, the stamp. The figures: edit_show.c.
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "abliterate.h"
#include "console.h"
#include "edit_show.h"
#include "outfile.h"
#include "sha256.h"

const char EDIT_HELP[] =
    "abliterate edit MODEL.gguf --direction DIR.gguf -o OUT.gguf [options]\n"
    "\n"
    "Takes the direction out of every matrix that writes to the residual stream, in the types the file has, so that nothing along it\n"
    "is left after rounding. Only those tensors change, and the keys gain a stamp (abliterate.edit.*).\n"
    "\n"
    "  --direction FILE           what is removed (several: as one subspace)\n"
    "  --layers A-B               layers whose matrices change (default all)\n"
    "  --strength S               1: all of it (default: what the direction file says)\n"
    "  -o FILE                    the edited model; --dry-run: only the figures\n"
    "  --undo FILE                where the original bytes go (default OUT.undo); --no-undo: nowhere\n"
    "  --strict                   no stamp: the header stays as it is, and the size (verify and undo know the edit by its undo file)\n"
    "  --contrast FILE            prompts that should be answered as before: where a norm follows the matrix, its gain is\n"
    "                             corrected by the mean change of what it divides by\n"
    "  --promote Q6_K|Q8_0        edited matrices of coarser types take this one: less rounding, a larger file\n"
    "  --from FILE                the same model in F16, BF16 or F32: its weights are edited and rounded to the types of MODEL\n"
    "  --embeddings               edit the token embedding, too (llama, gemma3, gemma4); a tied head gets a copy of the old one\n"
    "  --again                    also a file that says this direction was removed already\n"
    "  --json FILE                the figures of every tensor\n" LAB_HELP;

static const Option EDIT[] = {
#define O(field) offsetof(EditCommand, field)
    {"-m", "--model", OPTION_TEXT, O(lab.model), 0, 0},
    {"--direction", "--dir", OPTION_LIST, O(directions), 0, 0},
    {"--layers", NULL, OPTION_TEXT, O(layers), 0, 0},
    {"--strength", NULL, OPTION_REAL, O(strength), -1000, 1000},
    {"-o", "--out", OPTION_TEXT, O(out), 0, 0},
    {"--undo", NULL, OPTION_TEXT, O(undo), 0, 0},
    {"--no-undo", NULL, OPTION_FLAG, O(no_undo), 0, 0},
    {"--strict", NULL, OPTION_FLAG, O(strict), 0, 0},
    {"--contrast", NULL, OPTION_TEXT, O(contrast), 0, 0},
    {"--promote", NULL, OPTION_TEXT, O(promote), 0, 0},
    {"--from", NULL, OPTION_TEXT, O(from), 0, 0},
    {"--embeddings", NULL, OPTION_FLAG, O(embeddings), 0, 0},
    {"--again", NULL, OPTION_FLAG, O(again), 0, 0},
    {"--dry-run", NULL, OPTION_FLAG, O(dry_run), 0, 0},
    {"--json", NULL, OPTION_TEXT, O(json), 0, 0},
    LAB_OPTIONS,
#undef O
};

// ---- what is asked for ----

static int promoted_type(const char *name) {
    const int type = name ? type_by_name(name) : -1;
    return type == TYPE_Q6_K || type == TYPE_Q8_0 ? type : -1;
}

static bool check(EditCommand *o, Err *e) {
    if (!check_lab(&o->lab, e)) return false;
    if (!o->directions.n) return err_set(e, "--direction is missing");
    if (!o->out && !o->dry_run) return err_set(e, "-o is missing (or --dry-run)");
    if (o->out && o->dry_run) return err_set(e, "--dry-run writes no file, but -o is given");
    if (o->promote && promoted_type(o->promote) < 0) return err_set(e, "option --promote is '%s', expected Q6_K or Q8_0", o->promote);
    if (o->strict && o->promote) return err_set(e, "--strict keeps the header, --promote changes it");
    if (o->undo && o->no_undo) return err_set(e, "--undo and --no-undo");
    if (o->undo && o->dry_run) return err_set(e, "--dry-run writes no file, but --undo is given");
    return true;
}

// No output is an input, by any name; nor are two outputs the same.
static bool check_paths(Editing *x, Err *e) {
    const EditCommand *o = x->o;
    const char *inputs[OPTION_LIST_MAX + 3] = {o->lab.model, o->from, o->contrast};
    for (int i = 0; i < o->directions.n; i++) inputs[3 + i] = o->directions.text[i];
    const int n = 3 + o->directions.n;
    if (o->json && !outfile_check(o->json, inputs, n, e)) return false;
    if (o->dry_run) return true;
    if (!o->no_undo) {
        x->undo = malloc(strlen(o->undo ? o->undo : o->out) + sizeof ".undo");
        if (!x->undo) return err_set(e, "%s: no memory", o->out);
        sprintf(x->undo, "%s%s", o->undo ? o->undo : o->out, o->undo ? "" : ".undo");
    }
    const char *const outputs[3] = {o->out, x->undo, o->json};
    for (int i = 0; i < 3; i++)
        for (int k = i + 1; k < 3; k++)
            if (outputs[i] && outputs[k] && outfile_same(outputs[i], outputs[k])) return err_set(e, "%s: is to receive two of: the model, its undo file, the figures", outputs[i]);
    return outfile_check(o->out, inputs, n, e) && (!x->undo || outfile_check(x->undo, inputs, n, e));
}

static void note(const Editing *x, const char *text) {
    if (*text && !x->o->lab.quiet) fprintf(stderr, "abliterate: %s\n", text);
}

bool content_hash(const char *path, char hex[65], Err *e) {
    Gguf g;
    Sha256 s;
    if (!gguf_open(&g, path, e)) return false;
    sha256_start(&s);
    for (uint64_t i = 0; i < g.n_tensor; i++) sha256_add(&s, g.tensors[i].data, (size_t)g.tensors[i].bytes);
    sha256_end(&s, hex);
    gguf_close(&g);
    return true;
}

static bool load_directions(Editing *x, Err *e) {
    const EditCommand *o = x->o;
    steer_open(&x->steer, x->m, NULL);
    for (int i = 0; i < o->directions.n; i++) {
        char text[256];
        if (!steer_load(&x->steer, o->directions.text[i], text, e) || !content_hash(o->directions.text[i], x->hash[i], e)) return false;
        note(x, text);
        if (x->steer.dir[i].mode != MODE_ADD) continue;
        snprintf(text, sizeof text, "%.100s proposes to be added; an edit removes it", o->directions.text[i]);
        note(x, text);
    }
    if (x->steer.mode == MODE_ADD) x->steer.strength = 1; // the file's number is of something else
    if (!isnan(o->strength)) x->steer.strength = o->strength;
    x->first = 0;
    x->last = x->m->c.n_layer - 1;
    return !o->layers || steer_parse_layers(o->layers, x->m->c.n_layer, &x->first, &x->last, e);
}

// Edits are numbered from 0; the keys of one are added, those of others stay.
static bool check_stamps(Editing *x, Err *e) {
    for (;; x->n_before++) {
        char key[64];
        snprintf(key, sizeof key, "abliterate.edit.%d.direction", x->n_before);
        const GgufKey *k = gguf_key(&x->m->gguf, key);
        if (!k) return true;
        for (uint64_t i = 0; !x->o->again && k->strings && i < k->n; i++)
            for (int d = 0; d < x->steer.n_dir; d++)
                if (k->strings[i].n == 64 && !memcmp(k->strings[i].p, x->hash[d], 64))
                    return err_set(e, "%s: %s was removed from it already, says its stamp; --again edits it nevertheless", x->m->gguf.path, x->o->directions.text[d]);
    }
}

// ---- the gains ----

static bool measure_gains(Editing *x, Err *e) {
    PromptFile file = {0};
    PromptSet set = {0};
    if (!prompts_read(&file, x->o->contrast, 1, e)) return false;
    if (!edit_has_norm(&x->file.edit)) {
        note(x, "no norm follows the edited matrices, so there is no gain to correct by --contrast");
        prompts_free(&file);
        return true;
    }
    bool ok = lab_encode(&x->lab, &file, NULL, file.n, &set, e) && lab_ready(&x->lab, set_longest(&set), 1, e) &&
              edit_watch_open(&x->watch, &x->file.edit, x->steer.dir, x->steer.n_dir, &x->file.o.edit, e) && session_add_tap(&x->lab.s, edit_watch_tap(&x->watch), e);
    if (ok) {
        Bar bar;
        bar_start(&bar, "prompts", set.n);
        ok = lab_read(&x->lab, &(Reading){.prompt = set.ids, .n = set.n}, x->o->lab.quiet ? NULL : &bar, e);
        bar_end(&bar);
        if (ok && interrupted) ok = err_set(e, "interrupted, nothing is written");
        if (ok && x->watch.failed) ok = err_set(e, "no memory for rows of the stream");
        if (ok) edit_file_gains(&x->file, &x->watch);
        x->n_prompt = set.n;
    }
    set_free(&set);
    prompts_free(&file);
    return ok;
}

// ---- the stamp ----

static const char METHOD[] = "orthogonal projection of every matrix that writes to the residual stream, oblique before post-norms; codes repaired after rounding";

// Into the edited model, and into its undo file: there also of an edit that leaves the header as it was.
static void stamp_keys(const void *ctx, GgufWriter *w) {
    const Editing *x = ctx;
    const EditCommand *o = x->o;
    char key[64], text[256];
    GgufString hashes[MAX_DIRECTIONS];
    for (int i = 0; i < x->steer.n_dir; i++) hashes[i] = (GgufString){x->hash[i], 64};
    snprintf(text, sizeof text, "%d-%d", x->first, x->last);
    const char *const texts[][2] = {{"version", "0.1"}, {"method", METHOD}, {"layers", text}, {"promoted", o->promote}, {"gains", x->n_prompt ? "corrected" : NULL}};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        snprintf(key, sizeof key, "abliterate.edit.%d.%s", x->n_before, texts[i][0]);
        if (texts[i][1]) gguf_set_string(w, key, texts[i][1], strlen(texts[i][1]));
    }
    snprintf(key, sizeof key, "abliterate.edit.%d.direction", x->n_before);
    gguf_set_strings(w, key, hashes, (uint64_t)x->steer.n_dir);
    snprintf(key, sizeof key, "abliterate.edit.%d.strength", x->n_before);
    gguf_set_f32(w, key, (float)x->steer.strength);
    snprintf(key, sizeof key, "abliterate.edit.%d.tensors", x->n_before);
    gguf_set_u32(w, key, (uint32_t)x->file.n);
    snprintf(key, sizeof key, "abliterate.edit.%d.embedding", x->n_before);
    gguf_set_bool(w, key, o->embeddings);
    const float *shape = x->steer.dir[0].shape;
    snprintf(key, sizeof key, "abliterate.edit.%d.shape", x->n_before);
    if (shape) gguf_set_array(w, key, GGUF_F32, shape, (uint64_t)x->m->c.n_layer * N_SHAPE);
}

static bool stamp(const Editing *x, char hash_key[64], GgufWriter **out, Err *e) {
    *out = NULL;
    if (x->o->strict) return true;
    if (!gguf_writer_open(out, NULL, e)) return false;
    stamp_keys(x, *out);
    memset(hash_key, 0, 64);
    snprintf(hash_key, 64, "abliterate.edit.%d.base_sha256", x->n_before);
    gguf_set_string(*out, hash_key, "0000000000000000000000000000000000000000000000000000000000000000", 64);
    const Tensor *t = x->m->token_embd;
    if (x->file.adds_head) gguf_add_tensor(*out, "output.weight", (int)t->type, 2, (uint64_t[]){(uint64_t)t->n_col, (uint64_t)t->n_row});
    return true;
}

// ---- the command ----

// Measured, 2 threads: a weight takes about as long as reading, hashing and writing 20 bytes. Per byte of the new tensors.
static double cost_of(const EditFile *x) {
    double weights = 0, bytes = 0;
    for (int i = 0; i < x->n; i++) {
        const GgufTensor *t = &x->m->gguf.tensors[x->of[i].tensor];
        const TypeInfo *type = type_info((int)x->of[i].out_type);
        const double n = (double)t->ne[0] * (double)t->ne[1] * (double)t->ne[2];
        weights += n;
        bytes += n / type->block * type->bytes;
    }
    return 20 * weights / bytes;
}

static bool write_figures(void *ctx, const Rewritten *f, Err *e) {
    Editing *x = ctx;
    return x->has_json = edit_json(x, f, e);
}

static bool write_model(Editing *x, Err *e) {
    GgufWriter *w = NULL;
    char hash_key[64];
    bool ok = stamp(x, hash_key, &w, e);
    if (ok && x->file.adds_head && !w) ok = err_set(e, "--strict keeps the header; --embeddings adds a tensor to it");
    // The figures are there if and only if the model is: written when all else is done, removed if the model then gets no name.
    const Rewrite r = {.g = &x->m->gguf, .path = x->o->out, .undo = x->undo, .type = x->file.type, .stamp = w, .hash_key = w ? hash_key : NULL,
                       .make = edit_file_make, .complete = x->o->json ? write_figures : NULL, .note = stamp_keys, .complete_ctx = x, .ctx = &x->file, .cost = cost_of(&x->file), .quiet = x->o->lab.quiet};
    ok = ok && rewrite_file(&r, &x->done, e);
    if (!ok && x->has_json) unlink(x->o->json);
    gguf_writer_abort(w);
    return ok;
}

static bool dry_run(Editing *x, Err *e) {
    Progress p;
    bool ok = true;
    progress_start(&p, "computing");
    for (int i = 0; ok && i < x->file.n; i++) {
        if (interrupted) ok = err_set(e, "interrupted");
        const GgufTensor *t = &x->m->gguf.tensors[x->file.of[i].tensor];
        ok = ok && edit_file_make(&x->file, x->file.of[i].tensor, NULL, e);
        gguf_forget(&x->m->gguf, t->data, t->bytes);
        if (!x->o->lab.quiet) progress_step(&p, i + 1, x->file.n);
    }
    progress_end(&p);
    return ok;
}

static bool run(Editing *x, Err *e) {
    const EditCommand *o = x->o;
    if (o->contrast) {
        if (!lab_open(&x->lab, &o->lab, e)) return false;
        x->m = &x->lab.m;
    } else {
        if (!model_open(&x->model, o->lab.model, e)) return false;
        x->m = &x->model;
    }
    if (!check_paths(x, e) || !load_directions(x, e) || !check_stamps(x, e)) return false;
    const EditFileOptions file = {.dirs = x->steer.dir, .n_dir = x->steer.n_dir, .edit = {.strength = x->steer.strength, .first = x->first, .last = x->last},
                                  .promote = promoted_type(o->promote), .from = o->from, .embeddings = o->embeddings,
                                  .n_thread = o->lab.place.threads ? o->lab.place.threads : processors_allowed()};
    if (!edit_file_open(&x->file, x->m, &file, e) || (o->contrast && !measure_gains(x, e)) || !edit_file_list(&x->file, e)) return false;
    if (o->dry_run ? !dry_run(x, e) : !write_model(x, e)) return false;
    edit_print(x);
    return !o->json || !o->dry_run || edit_json(x, NULL, e);
}

Outcome edit_command(int argc, char **argv, Err *e) {
    EditCommand o = {.lab = {.n_seq = 16}, .strength = NAN};
    if (!options_parse(EDIT, sizeof EDIT / sizeof *EDIT, &o, argc, argv, &o.lab.model, "the model", e) || !check(&o, e)) return USAGE;
    static Editing x;
    x = (Editing){.o = &o};
    catch_end();
    const bool ok = run(&x, e);
    edit_watch_close(&x.watch);
    edit_file_close(&x.file);
    steer_close(&x.steer);
    if (x.lab.m.gguf.path) lab_close(&x.lab);
    model_close(&x.model);
    free(x.undo);
    free(x.done.hash);
    return ok ? DONE : FAILED;
}
