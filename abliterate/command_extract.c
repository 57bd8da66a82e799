// command_extract.c: `abliterate extract` and `abliterate select`: reads the prompts, finds the direction, says what it found.
#include <math.h>
#include <stdlib.h>
#include <unistd.h>

#include "abliterate.h"
#include "picture.h"
#include "select.h"

static void print_prompts(const Extraction *x) {
    static const char *const NAME[2] = {"target", "contrast"};
    for (int side = 0; side < 2; side++) {
        printf("%-10s%s: %d prompts, %d to learn from, %d to check on", NAME[side], x->file[side].path, x->file[side].n, x->train[side].n, x->check[side].n);
        if (!x->o->keep_all) printf("; %.0f left out because their answer begins the other way", x->progress[DROPPED + side]);
        putchar('\n');
    }
    printf("positions %d after the instruction:", x->n_pos);
    const Ids *ids = &x->train[TARGET].ids[0];
    for (int pos = x->n_pos - 1; pos >= 0; pos--) {
        char text[48];
        lab_token(x->lab, ids->id[ids->n - 1 - pos], text);
        printf(" %d %s", -1 - pos, text);
    }
    putchar('\n');
}

static void print_openers(const Extraction *x) {
    printf("openers   ");
    if (x->o->openers) printf("from %s:", x->o->openers);
    else printf("of target answers (probability there, in contrast answers):");
    for (int i = 0; i < x->openers.n && i < 8; i++) {
        char text[48];
        lab_token(x->lab, x->openers.id[i], text);
        if (x->o->openers) printf(" %s", text);
        else printf(" %s %.3f %.3f%s", text, x->openers.target[i], x->openers.contrast[i], i + 1 < x->openers.n ? "," : "");
    }
    if (x->openers.n > 8) printf(" ... (%d in all)", x->openers.n);
    putchar('\n');
}

static void print_mask(const Extraction *x) {
    if (!x->o->mask) return;
    printf("massive   %d coordinate%s set to zero:", x->n_masked, x->n_masked == 1 ? "" : "s");
    for (int i = 0, shown = 0; i < x->lab->m.c.n_embd && shown < 16; i++)
        if (x->mask[i]) printf(" %d", i), shown++;
    putchar('\n');
}

// Without selection: the last position, layer by layer.
static void print_layers(const Extraction *x) {
    const int n = x->lab->m.c.n_embd;
    double *v = malloc(sizeof *v * 3 * (size_t)n);
    if (!v) return;
    printf("\nDifference of means at the last position\nlayer  length  |r|/|x|   |r|^2/noise   halves%s\n", x->o->mask ? "   |r|^2 masked" : "");
    for (int l = 0; l <= x->lab->m.c.n_layer; l++) {
        const Difference d = difference_of(&x->mean[TARGET], &x->mean[CONTRAST], 0, l, x->mask, v, v + n);
        printf("%5d %7.3g %8.3f %13.3g %8.4f", l, d.length, d.stream, d.signal, d.halves);
        if (x->o->mask) printf(" %12.1f %%", 100 * d.masked);
        putchar('\n');
    }
    free(v);
}

// Where the two sets differ: every layer's difference against the noise of its estimate.
static void print_picture(const Extraction *x, const Selection *s) {
    const int L = x->lab->m.c.n_layer, n = x->lab->m.c.n_embd, best = s ? s->chosen : -1;
    double *value = calloc((size_t)x->n_pos * (size_t)(L + 1), sizeof *value), *r = malloc(sizeof *r * (size_t)n), *v = malloc(sizeof *v * 3 * (size_t)n);
    char (*name)[64] = calloc((size_t)x->n_pos, sizeof *name);
    const char **names = calloc((size_t)x->n_pos, sizeof *names);
    if (value && r && v && name && names) {
        if (best >= 0) extraction_difference(x, x->candidate[best].pos, x->candidate[best].layer, r);
        for (int row = 0; row < x->n_pos; row++) {
            const int pos = x->n_pos - 1 - row;
            char text[48];
            const Ids *ids = &x->train[TARGET].ids[0];
            lab_token(x->lab, ids->id[ids->n - 1 - pos], text);
            snprintf(name[row], sizeof *name, "%d %s", -1 - pos, text);
            names[row] = name[row];
            for (int l = 0; l <= L; l++) {
                double *at = &value[row * (L + 1) + l];
                const Difference d = difference_of(&x->mean[TARGET], &x->mean[CONTRAST], pos, l, x->mask, v, v + n);
                if (best >= 0) *at = d.length > 0 ? dot_of(v, r, n) / (d.length * x->candidate[best].d.length) : 0;
                else *at = d.length > 0 ? d.halves : 0;
            }
        }
        printf("\nWhere it lives: %s, by position and layer entered (%d: leaving the last)\n",
               best >= 0 ? "cosine of the difference of means with the chosen direction" : "cosine of the difference of means between two halves of the prompts", L);
        picture_print(stdout, &(Picture){.value = value, .n_row = x->n_pos, .n_col = L + 1, .low = 0, .high = 1, .row_name = names, .column = "layer",
                                         .mark_row = best >= 0 ? x->n_pos - 1 - x->candidate[best].pos : -1, .mark_col = best >= 0 ? x->candidate[best].layer : -1});
    }
    free(value);
    free(r);
    free(v);
    free(name);
    free(names);
}

static int by_bypass(const void *a, const void *b) {
    const Candidate *x = *(const Candidate *const *)a, *y = *(const Candidate *const *)b;
    if (!x->why != !y->why) return x->why ? 1 : -1;
    if (isnan(x->bypass) != isnan(y->bypass)) return isnan(x->bypass) ? 1 : -1;
    if (x->bypass != y->bypass && !isnan(x->bypass)) return x->bypass < y->bypass ? -1 : 1;
    return x < y ? -1 : x > y;
}

static void print_candidates(const Extraction *x, const Selection *s) {
    const Candidate **c = malloc(sizeof *c * (size_t)max_int(x->n_candidate, 1));
    if (!c) return;
    for (int k = 0; k < x->n_candidate; k++) c[k] = &x->candidate[k];
    qsort(c, (size_t)x->n_candidate, sizeof *c, by_bypass);
    const int shown = x->o->all_candidates ? x->n_candidate : min_int(x->n_candidate, 10);
    printf("\nCandidates%s: score s of an answer's first token, log odds of an opener; untouched %.2f on target, %.2f on contrast prompts\n",
           shown < x->n_candidate ? " (the best 10; select prints all)" : "", s->base_score[TARGET], s->base_score[CONTRAST]);
    printf("position layer  length  |r|/|x|   |r|^2/noise   halves     AUC   bypass   induce        KL\n");
    for (int k = 0; k < shown; k++)
        printf("%8d %5d %7.3g %8.3f %13.3g %8.4f %7.3f %8.2f %8.2f %9.3g%s%s\n", -1 - c[k]->pos, c[k]->layer, c[k]->d.length, c[k]->d.stream,
               c[k]->d.signal, c[k]->d.halves, c[k]->auc, c[k]->bypass, c[k]->induce, c[k]->kl,
               s->chosen >= 0 && c[k] == &x->candidate[s->chosen] ? "  <- chosen" : c[k]->why ? "  " : "", c[k]->why ? c[k]->why : "");
    free(c);
}

static void print_controls(const Selection *s) {
    if (!s->n_control) return;
    printf("\nControls, treated the same way          bypass                 KL (mean)  induce (highest)\n");
    for (int kind = 0; kind < 2; kind++) {
        const Effect *f = kind ? s->shuffled : s->random;
        double low = INFINITY, high = -INFINITY, kl = 0, induce = -INFINITY, most_cos = 0;
        for (int k = 0; k < s->n_control; k++) {
            low = fmin(low, f[k].bypass);
            high = fmax(high, f[k].bypass);
            kl += f[k].kl / s->n_control;
            induce = fmax(induce, f[k].induce);
            most_cos = fmax(most_cos, fabs(s->shuffled_cos[k]));
        }
        char name[64];
        if (kind) snprintf(name, sizeof name, "%d shuffled labels (|cos| <= %.2f)", s->n_control, most_cos);
        else snprintf(name, sizeof name, "%d random directions", s->n_control);
        printf("  %-36s %7.2f .. %-7.2f %12.3g  %12.2f\n", name, low, high, kl, induce);
    }
}

// ---- the file ----

typedef struct {
    const Extraction *x;
    const Selection *s;
} Facts;

static void facts(void *ctx, GgufWriter *w) {
    const Facts *f = ctx;
    const Extraction *x = f->x;
    const Selection *s = f->s;
    static const char *const SIDE[2] = {"target", "contrast"};
    char key[96], text[512];
    const char *name[2];
    for (int side = 0; side < 2; side++) {
        name[side] = strrchr(x->file[side].path, '/') ? strrchr(x->file[side].path, '/') + 1 : x->file[side].path;
        snprintf(key, sizeof key, "abliterate.%s.file", SIDE[side]);
        gguf_set_string(w, key, name[side], strlen(name[side]));
        snprintf(key, sizeof key, "abliterate.%s.sha256", SIDE[side]);
        gguf_set_string(w, key, x->file[side].sha256, 64);
        snprintf(key, sizeof key, "abliterate.%s.prompts", SIDE[side]);
        gguf_set_u32(w, key, (uint32_t)(x->mean[side].n[0] + x->mean[side].n[1]));
        snprintf(key, sizeof key, "abliterate.%s.left_out", SIDE[side]);
        gguf_set_u32(w, key, (uint32_t)x->progress[DROPPED + side]);
        snprintf(key, sizeof key, "abliterate.%s.check", SIDE[side]);
        gguf_set_u32(w, key, (uint32_t)x->check[side].n);
    }
    snprintf(text, sizeof text, "%.200s minus %.200s", name[TARGET], name[CONTRAST]);
    gguf_set_string(w, "glp.contrast", text, strlen(text));
    snprintf(text, sizeof text, "%lld", (long long)x->o->seed);
    gguf_set_string(w, "abliterate.seed", text, strlen(text));
    gguf_set_string(w, "abliterate.template", chat_family_name(&x->lab->chat), strlen(chat_family_name(&x->lab->chat)));
    if (x->o->lab.system) gguf_set_string(w, "abliterate.system", x->o->lab.system, strlen(x->o->lab.system));
    gguf_set_bool(w, "abliterate.mask_massive", x->o->mask);
    gguf_set_f32(w, "abliterate.winsorise", (float)x->o->winsorise);
    if (x->o->shuffle) gguf_set_bool(w, "abliterate.labels_shuffled", true);
    if (!s) return;
    const Candidate *c = &x->candidate[s->chosen];
    const struct { const char *key; double value; } numbers[] = {
        {"bypass", c->bypass}, {"induce", c->induce}, {"kl", c->kl}, {"base_target", s->base_score[TARGET]}, {"base_contrast", s->base_score[CONTRAST]},
        {"halves", c->d.halves}, {"reliable", c->d.reliable}, {"signal_to_noise", c->d.signal}, {"auc", c->auc},
    };
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        snprintf(key, sizeof key, "abliterate.score.%s", numbers[i].key);
        gguf_set_f32(w, key, (float)numbers[i].value);
    }
    double worst = INFINITY;
    for (int k = 0; k < s->n_control; k++) worst = fmin(worst, s->random[k].bypass);
    if (s->n_control) gguf_set_f32(w, "abliterate.control.random_bypass_lowest", (float)worst);
    if (s->site_mean[TARGET]) {
        float *mean = malloc(sizeof *mean * (size_t)tap_n_site(x->lab->m.c.n_layer));
        for (int i = 0; mean && i < tap_n_site(x->lab->m.c.n_layer); i++) mean[i] = (float)s->site_mean[TARGET][i];
        if (mean) gguf_set_array(w, "abliterate.target_component", GGUF_F32, mean, (uint64_t)tap_n_site(x->lab->m.c.n_layer));
        free(mean);
    }
    int32_t ids[256];
    for (int i = 0; i < x->openers.n; i++) ids[i] = x->openers.id[i];
    gguf_set_array(w, "abliterate.openers", GGUF_I32, ids, (uint64_t)x->openers.n);
}

static bool save(const Extraction *x, const Selection *s, Err *e) {
    Direction d;
    if (!selection_direction(s, x, &d, e)) return false;
    Facts f = {x, s};
    const bool ok = direction_save(&d, x->o->out, facts, &f, e);
    direction_free(&d);
    if (ok) fprintf(stderr, "%s: written\n", x->o->out);
    if (ok && x->state_path && !x->o->state) unlink(x->state_path); // asked for by name, it is kept
    return ok;
}

// ---- the command ----

static bool run(Extraction *x, Selection *s, Err *e) {
    const ExtractOptions *o = x->o;
    if (!o->no_select && (!extraction_openers(x, e) || (o->write_openers && !openers_write(&x->openers, o->write_openers, x->lab, e)))) return false;
    if (!extraction_means(x, e) || !extraction_keep(x, o->state != NULL, e)) return false;
    print_prompts(x);
    if (!o->no_select) print_openers(x);
    print_mask(x);
    if (o->no_select) {
        print_picture(x, NULL);
        print_layers(x);
        return !o->out || save(x, NULL, e);
    }
    if (!selection_make(s, x, e)) return false;
    if (!extraction_keep(x, o->state != NULL, e)) return false;
    print_picture(x, s);
    print_candidates(x, s);
    print_controls(s);
    if (s->chosen < 0) return err_set(e, "no usable direction: %s", s->why);
    const Candidate *c = &x->candidate[s->chosen];
    printf("\nChosen: position %d, entering layer %d of %d. Removing it takes the score from %.2f to %.2f, adding it takes contrast prompts from %.2f to %.2f; KL %.3g\n",
           -1 - c->pos, c->layer, x->lab->m.c.n_layer, s->base_score[TARGET], c->bypass, s->base_score[CONTRAST], c->induce, c->kl);
    if (o->mask) printf("The coordinates set to zero held %.1f %% of its square.\n", 100 * c->d.masked);
    fflush(stdout);
    return !o->out || save(x, s, e);
}

bool command_extract(const ExtractOptions *o, Err *e) {
    static Lab lab;
    static Extraction x;
    static Selection s;
    s.chosen = -1;
    catch_interrupt(true);
    const bool ok = lab_open(&lab, &o->lab, e) && extraction_open(&x, &lab, o, e) && run(&x, &s, e);
    selection_free(&s);
    extraction_close(&x);
    lab_close(&lab);
    return ok;
}

// ---- show ----

static void print_key(const GgufKey *k) {
    printf("%-36.*s ", (int)(k->key.n < 120 ? k->key.n : 120), k->key.p);
    const uint64_t n = k->type == GGUF_ARRAY ? k->n : 1, shown = n < 12 ? n : 12;
    for (uint64_t i = 0; i < shown; i++) {
        if (k->elem == GGUF_STRING)
            for (uint64_t c = 0; c < k->strings[i].n && c < 200; c++) putchar((unsigned char)k->strings[i].p[c] < ' ' ? '?' : k->strings[i].p[c]);
        else if (gguf_is_float(k->elem)) printf("%.6g", gguf_elem_float(k, i));
        else printf("%lld", (long long)gguf_elem_int(k, i));
        if (i + 1 < shown) putchar(' ');
    }
    if (shown < n) printf(" ... (%llu)", (unsigned long long)n);
    putchar('\n');
}

bool command_show(const char *path, Err *e) {
    Gguf g;
    if (!gguf_open(&g, path, e)) return false;
    GgufString arch = {0};
    bool ok = gguf_get_string(&g, "general.architecture", &arch, e);
    if (ok && (arch.n != 13 || memcmp(arch.p, "controlvector", 13))) ok = err_set(e, "%s: architecture '%.*s', expected 'controlvector'", path, (int)(arch.n < 40 ? arch.n : 40), arch.p);
    for (uint64_t i = 0; ok && i < g.n_key; i++) print_key(&g.keys[i]);
    const float *first = NULL;
    for (uint64_t i = 0; ok && i < g.n_tensor; i++) {
        const GgufTensor *t = &g.tensors[i];
        if (t->type != TYPE_F32) continue;
        const float *v = t->data;
        double square = 0, along = 0, other = 0;
        if (!first) first = v;
        for (uint64_t k = 0; k < t->ne[0]; k++) {
            square += (double)v[k] * v[k];
            along += (double)v[k] * first[k];
            other += (double)first[k] * first[k];
        }
        printf("%-36s %llu values, length %.4f, cosine with the first %.4f\n", t->name_z, (unsigned long long)t->ne[0], sqrt(square), along / sqrt(square * other));
    }
    gguf_close(&g);
    return ok;
}
