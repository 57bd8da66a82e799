// edit_show.c: see edit_show.h
#include "edit_show.h"

#include <math.h>
#include <stdlib.h>

#include "json.h"

bool edit_has_norm(const Edit *x) {
    for (int i = 0; i < x->writers.n; i++)
        if (x->of[i].n_vec && x->writers.of[i].norm) return true;
    return false;
}

typedef struct {
    EditedKind kind;
    Part part;
    TensorType type, out_type;
    int n;
    double low, high, leak, plain; // kappa; the largest leaks
    EditFigures f;
} Group;

static const char *group_name(EditedKind kind, Part part) {
    return kind == EDITED_GAIN ? "post-norm gains" : kind == EDITED_EMBEDDING ? "embedding" : kind == EDITED_BIAS ? "biases" : part_name(part);
}

static double ratio(double a, double b) { return b > 0 ? sqrt(a / b) : 0; }

static int gather(const EditFile *x, Group *g, int most) {
    int n = 0;
    for (int i = 0; i < x->n; i++) {
        const Edited *one = &x->of[i];
        const Part part = one->kind == EDITED_MATRIX ? x->edit.writers.of[one->writer].part : 0;
        int k = 0;
        while (k < n && (g[k].kind != one->kind || g[k].part != part || g[k].type != one->type || g[k].out_type != one->out_type)) k++;
        if (k == most) continue;
        if (k == n) g[n++] = (Group){.kind = one->kind, .part = part, .type = one->type, .out_type = one->out_type, .low = INFINITY};
        g[k].n++;
        g[k].low = fmin(g[k].low, one->kappa);
        g[k].high = fmax(g[k].high, one->kappa);
        g[k].leak = fmax(g[k].leak, edit_leak(&one->f));
        g[k].plain = fmax(g[k].plain, ratio(one->f.plain.residue, one->f.plain.before));
        edit_add(&g[k].f, &one->f);
    }
    return n;
}

static void print_small(const EditFile *x) {
    int n = 0, layers = 0, last = -1;
    for (int i = 0; i < x->edit.writers.n; i++) {
        const Change *c = &x->edit.of[i];
        if (!c->n_vec || !c->n_small) continue;
        n += c->n_small;
        layers += x->edit.writers.of[i].layer != last;
        last = x->edit.writers.of[i].layer;
    }
    if (n) printf("%d gains of norms in %d layers are near zero: there the edit is regularised.\n", n, layers);
}

// Root mean square over all tokens of what the stream entering layer 0 holds of the direction.
static double embedding_rms(const Editing *x) {
    const double scale = x->m->c.embed_scale != 0 ? (double)x->m->c.embed_scale : 1;
    return scale * sqrt(x->file.embedding.before / x->m->token_embd->n_row);
}

static void print_embedding(const Editing *x) {
    const EditFile *f = &x->file;
    const Direction *d = &x->steer.dir[0];
    const Tensor *t = x->m->token_embd;
    if (!f->n_basis) return;
    const double kappa = sqrt(t->n_col * f->embedding.before / (f->n_basis * f->embedding.norm));
    if (f->o.embeddings) {
        printf("The embedding's component along the direction, rms %.3g over tokens (kappa %.2f), is removed%s.\n", embedding_rms(x), kappa,
               f->adds_head ? "; the head reads a copy of the old one (output.weight)" : "");
        return;
    }
    printf("The embedding keeps its component along the direction: rms %.3g over tokens, kappa %.2f", embedding_rms(x), kappa);
    if (d->layer >= 0 && d->length[d->layer] > 0) printf("; the difference the direction was made from has length %.3g (layer %d)", (double)d->length[d->layer], d->layer);
    printf(".\n");
}

static void print_table(const Editing *x) {
    const EditFile *f = &x->file;
    Group g[64];
    const int n = gather(f, g, 64);
    int64_t missed = 0, columns = 0, unreached = 0;
    printf("%-16s %-13s %7s  %-13s %10s %10s %9s %9s %9s %9s %9s %9s\n", "edited", "type", "tensors", "kappa", "component", "after", "leak", "(plain)", "changed", "change",
           "error", "(plain)");
    for (int i = 0; i < n; i++) {
        char type[32], kappa[32] = "", error[32] = "", plain[2][32] = {"", ""};
        const EditFigures *y = &g[i].f;
        const bool codes = g[i].kind == EDITED_MATRIX || g[i].kind == EDITED_EMBEDDING;
        snprintf(type, sizeof type, "%s%s%s", type_info((int)g[i].type)->name, g[i].type != g[i].out_type ? " > " : "",
                 g[i].type != g[i].out_type ? type_info((int)g[i].out_type)->name : "");
        if (g[i].kind != EDITED_GAIN) snprintf(kappa, sizeof kappa, "%.2f - %.2f", g[i].low, g[i].high);
        if (codes) snprintf(error, sizeof error, "%.2g", ratio(y->error, y->norm));
        if (y->plain.before > 0) {
            snprintf(plain[0], sizeof plain[0], "%.2g", g[i].plain);
            snprintf(plain[1], sizeof plain[1], "%.2g", ratio(y->plain.error, y->plain.norm));
        }
        printf("%-16s %-13s %7d  %-13s ", group_name(g[i].kind, g[i].part), type, g[i].n, kappa);
        if (g[i].kind == EDITED_GAIN) printf("%10s %10s %9s %9s ", "", "", "", "");
        else printf("%10.3g %10.2g %9.2g %9s ", sqrt(y->before), sqrt(y->after), g[i].leak, plain[0]);
        printf("%7.2f %% %9.2g %9s %9s\n", y->n ? 100.0 * (double)y->n_changed / (double)y->n : 0, ratio(y->change, y->norm), error, plain[1]);
        columns += y->n_col;
        missed += y->n_missed;
        unreached += g[i].leak > 1e-5;
    }
    printf("kappa: how much more a matrix writes along the direction than a random one. component: |take'W| before and after. leak: the largest\n"
           "share of it left that should be gone. changed: weights that have another value. change, error: |W_new - W| / |W|, |W_new - ideal| / |W|.\n"
           "(plain): what rounding to the type would leave without the repair, measured on an eighth of the columns of large matrices.\n");
    if (missed) printf("%lld of %lld columns keep more than %g of the usual component.\n", (long long)missed, (long long)columns, EDIT_LEAK);
    if (unreached) printf("The leak of some is above 1e-5.\n");
    print_small(f);
    double low = INFINITY, high = 0;
    for (int i = 0; i < f->n; i++)
        if (f->of[i].kind == EDITED_GAIN) low = fmin(low, f->of[i].factor), high = fmax(high, f->of[i].factor);
    if (high > 0) printf("Gains of post-norms times %.5f to %.5f, from %d prompts.\n", low, high, x->n_prompt);
    else if (edit_has_norm(&f->edit) && !x->n_prompt) printf("Gains of post-norms stay; --contrast FILE corrects them.\n");
    print_embedding(x);
}

static void print_done(const Editing *x) {
    const Rewritten *d = &x->done;
    const EditCommand *o = x->o;
    printf("\n%s: %.2f MiB, %d of %llu tensors changed, SHA-256 %s\n", o->out, (double)d->bytes / 0x1p20, x->file.n, (unsigned long long)x->m->gguf.n_tensor, d->after);
    printf("read back from the disk: every changed tensor as computed, all others as in %s (SHA-256 %s)\n", o->lab.model, d->before);
    if (x->undo) printf("undo:   abliterate undo %s%s%s -o ORIGINAL.gguf   (%s, %.2f MiB)\n", o->out, o->undo ? " --undo " : "", o->undo ? o->undo : "", x->undo, (double)d->undo_bytes / 0x1p20);
    printf("verify: abliterate verify %s %s", o->lab.model, o->out);
    for (int i = 0; i < o->directions.n; i++) printf(" --direction %s", o->directions.text[i]);
    putchar('\n');
}

void edit_print(const Editing *x) {
    print_table(x);
    if (!x->o->dry_run) print_done(x);
}

bool edit_json(const Editing *x, const Rewritten *done, Err *e) {
    const EditFile *y = &x->file;
    SafeFile s;
    if (!safe_open(&s, x->o->json, e)) return false;
    FILE *f = s.f;
    fputs("{\"model\": ", f);
    json_text(f, x->o->lab.model);
    fputs(", \"out\": ", f);
    if (x->o->out) json_text(f, x->o->out);
    else fputs("null", f);
    if (done) fprintf(f, ", \"sha256\": [\"%s\", \"%s\"]", done->before, done->after);
    fputs(", \"directions\": [", f);
    for (int i = 0; i < x->steer.n_dir; i++) fprintf(f, "%s\"%s\"", i ? ", " : "", x->hash[i]);
    fprintf(f, "], \"first_layer\": %d, \"last_layer\": %d", x->first, x->last);
    json_named(f, "strength", x->steer.strength);
    json_named(f, "embedding_rms", embedding_rms(x));
    fputs(",\n  \"tensors\": [", f);
    for (int i = 0; i < y->n; i++) {
        const Edited *t = &y->of[i];
        const EditFigures *g = &t->f;
        fprintf(f, "%s\n    {\"name\": ", i ? "," : "");
        json_text(f, x->m->gguf.tensors[t->tensor].name_z);
        fprintf(f, ", \"what\": \"%s\"", group_name(t->kind, t->kind == EDITED_MATRIX ? y->edit.writers.of[t->writer].part : 0));
        if (t->writer >= 0) json_named(f, "layer", y->edit.writers.of[t->writer].layer);
        fprintf(f, ", \"type\": [\"%s\", \"%s\"]", type_info((int)t->type)->name, type_info((int)t->out_type)->name);
        const struct { const char *name; double v; } numbers[] = {
            {"kappa", t->kappa}, {"before", sqrt(g->before)}, {"after", sqrt(g->after)}, {"leak", edit_leak(g)}, {"weights", (double)g->n}, {"changed", (double)g->n_changed},
            {"moved", (double)g->n_flip}, {"columns", (double)g->n_col}, {"missed", (double)g->n_missed}, {"change", ratio(g->change, g->norm)},
            {"error", ratio(g->error, g->norm)}, {"rounded", ratio(g->rounded, g->norm)},
            {"plain_leak", ratio(g->plain.residue, g->plain.before)}, {"plain_error", ratio(g->plain.error, g->plain.norm)}, {"factor", t->kind == EDITED_GAIN ? t->factor : NAN}};
        for (size_t k = 0; k < sizeof numbers / sizeof *numbers; k++) json_named(f, numbers[k].name, numbers[k].v);
        if (done) fprintf(f, ", \"sha256\": [\"%s\", \"%s\"]", done->hash[t->tensor][0], done->hash[t->tensor][1]);
        fputc('}', f);
    }
    fputs("\n  ]}\n", f);
    return safe_close(&s, true, e);
}
