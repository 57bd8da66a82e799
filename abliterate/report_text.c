// report_text.c: the report as a table for the terminal.
#include <math.h>

#include "picture.h"
#include "report.h"

static const char *const SIDE[N_SIDE] = {"target", "contrast", "keep"};

static const char *percent(char out[64], int k, int n, Interval i) {
    if (n) snprintf(out, 64, "%.1f %% (%d of %d; %.1f .. %.1f)", 100.0 * k / n, k, n, 100 * i.low, 100 * i.high);
    else snprintf(out, 64, "none");
    return out;
}

static const char *estimate(char out[64], double mean, Interval i) {
    snprintf(out, 64, "%.2f (%.2f .. %.2f)", mean, i.low, i.high);
    return out;
}

static void print_answers(const Report *r, FILE *out) {
    char a_[64], b_[64];
    fprintf(out, "\n%-28s%-36s%s\n", "Behaviour", "without", "with          (95 % intervals)");
    for (int side = 0; side < N_SIDE; side++) {
        const Answers *a = &r->side[side];
        if (!a->path) continue;
        fprintf(out, "%s: %s, %d prompts\n", SIDE[side], a->path, a->n);
        fprintf(out, "  %-26s%-36s%s\n", "first-token log odds", estimate(a_, a->mean[0], a->interval[0]), estimate(b_, a->mean[1], a->interval[1]));
        fprintf(out, "  %-26s%-36s%s\n", "marked answers", percent(a_, a->marked[0], a->n - a->degenerate[0], a->marked_rate[0]),
                percent(b_, a->marked[1], a->n - a->degenerate[1], a->marked_rate[1]));
        if (a->n_expected)
            fprintf(out, "  %-26s%-36s%s\n", "correct answers", percent(a_, a->correct[0], a->n_expected, a->correct_rate[0]),
                    percent(b_, a->correct[1], a->n_expected, a->correct_rate[1]));
        fprintf(out, "  %-26s%-36d%d\n", "degenerate answers", a->degenerate[0], a->degenerate[1]);
    }
}

// A component that was removed is rounding: no minus sign before zeros.
static double tidy(double v) { return fabs(v) < 0.0005 ? 0 : v; }

static void print_map(const Report *r, FILE *out) {
    static const char *const STATE[2] = {"without", "with"};
    const char *names[64];
    const int columns = r->n_layer + 1;
    double cell[64 * 128];
    if (r->n_pos > 64 || columns > 128) return;
    fprintf(out, "\nWhere it lives: mean cosine of the stream with the direction, by position and layer entered (blank: 0 or less, solid: 0.8 and more;\na random direction has %.3f)\n", 1 / sqrt(r->n_embd));
    for (int side = 0; side < 2; side++)
        for (int with = 0; with < 2; with++) {
            for (int row = 0; row < r->n_pos; row++) {
                names[row] = r->position[r->n_pos - 1 - row];
                for (int c = 0; c < columns; c++) cell[row * columns + c] = r->cosine[side][with][(r->n_pos - 1 - row) * columns + c];
            }
            fprintf(out, "%s prompts, %s\n", SIDE[side], STATE[with]);
            picture_print(out, &(Picture){.value = cell, .n_row = r->n_pos, .n_col = columns, .low = 0, .high = 0.8, .row_name = names, .column = "layer",
                                          .mark_row = r->direction_position < 0 ? r->n_pos + r->direction_position : -1, .mark_col = r->direction_layer});
        }
    const int at = r->direction_position < 0 && -r->direction_position <= r->n_pos ? -1 - r->direction_position : 0;
    fprintf(out, "component r.x at position %d, and as a share of the distance between the two means\n  layer  target: without    with   contrast: without    with   share without\n", -1 - at);
    for (int l = 0; l < columns; l++) {
        const int k = at * columns + l;
        const double gap = r->component[0][0][k] - r->component[1][0][k];
        fprintf(out, "  %5d  %15.3f %7.3f %19.3f %7.3f %15.3f\n", l, tidy(r->component[0][0][k]), tidy(r->component[0][1][k]), tidy(r->component[1][0][k]),
                tidy(r->component[1][1][k]), r->difference[k] > 0 ? tidy(gap / r->difference[k]) : 0);
    }
}

static void print_divergence(const char *name, const Divergence *d, FILE *out) {
    if (d->n) fprintf(out, "  %-36s %9.3g %9.3g %9.3g %9.3g %8.1f %% %8d\n", name, d->mean, d->p95, d->p99, d->highest, 100 * d->same, d->n);
}

static void print_damage(const Report *r, FILE *out) {
    fprintf(out, "\nWhat else changes                         KL mean      95 %%      99 %%   highest   same top        n\n");
    print_divergence("contrast prompts, first token", &r->kl_first, out);
    print_divergence("contrast prompts, own answer forced", &r->kl_forced, out);
    print_divergence("text", &r->kl_text, out);
    if (r->kl_forced.n) fprintf(out, "  cross-entropy of the original's own answers: %.4f without, %.4f with (%+.4f)\n", r->ce[0], r->ce[1], r->ce[1] - r->ce[0]);
    if (r->text_tokens)
        fprintf(out, "  perplexity of %s: %.4f +- %.4f without, %.4f +- %.4f with (%d tokens)\n", r->o->text, r->perplexity[0], r->perplexity_error[0], r->perplexity[1],
                r->perplexity_error[1], r->text_tokens);
    for (int f = 0; f < r->n_quiz; f++) {
        const Quiz *q = &r->quiz[f];
        char a[64], b[64];
        fprintf(out, "  %s, %d questions: right %s without, %s with; %d answered alike\n", q->path, q->n, percent(a, q->right[0], q->n, q->rate[0]),
                percent(b, q->right[1], q->n, q->rate[1]), q->same);
    }
}

static void print_controls(const Report *r, FILE *out) {
    if (!r->n_control) return;
    const Answers *t = &r->side[SIDE_TARGET];
    fprintf(out, "\nControls in its place     |cos| with it   score of target prompts       KL first token   marked\n");
    fprintf(out, "  %-24s %13s %23.2f %20s   %d of %d\n", "nothing", "", t->mean[0], "0", t->marked[0], t->n - t->degenerate[0]);
    fprintf(out, "  %-24s %13.3f %23.2f %20.3g   %d of %d\n", "the direction", 1.0, t->mean[1], r->kl_first.mean, t->marked[1], t->n - t->degenerate[1]);
    for (int k = 0; k < r->n_control;) {
        int n = 0, asked = 0, marked = 0;
        double low = INFINITY, high = -INFINITY, kl = 0, most = 0;
        const char *kind = r->control[k].kind;
        for (; k < r->n_control && r->control[k].kind == kind; k++, n++) {
            const Control *c = &r->control[k];
            low = fmin(low, c->score);
            high = fmax(high, c->score);
            kl += c->kl;
            most = fmax(most, fabs(c->cos));
            if (c->marked >= 0) asked += t->n - c->degenerate, marked += c->marked;
        }
        char name[48], answered[48] = "not asked";
        snprintf(name, sizeof name, "%d %s", n, kind);
        if (asked) snprintf(answered, sizeof answered, "%d of %d", marked, asked);
        fprintf(out, "  %-24s   at most %.3f %12.2f .. %7.2f %20.3g   %s\n", name, most, low, high, kl / n, answered);
    }
    const double effect = t->mean[0] - t->mean[1];
    fprintf(out, "  The direction lowers the score by %.2f, %s the 95 %% quantile of random directions (%.2f)", effect, effect > r->random_score_95 ? "beyond" : "NOT beyond", r->random_score_95);
    if (r->random_kl > 0) fprintf(out, "; its KL is %.1f times theirs", r->kl_first.mean / r->random_kl);
    fprintf(out, ".\n");
}

static void print_curves(const Report *r, FILE *out) {
    if (*r->edited) return;
    fprintf(out, "\nStrength (%s)    ", mode_name(r->mode));
    for (int k = 0; k < N_CURVE; k++) fprintf(out, " %7.2f", r->curve_strength[k]);
    fprintf(out, "\n  target score        ");
    for (int k = 0; k < N_CURVE; k++) fprintf(out, " %7.2f", r->curve_target[k]);
    fprintf(out, "\n  contrast score      ");
    for (int k = 0; k < N_CURVE; k++) fprintf(out, " %7.2f", r->curve_contrast[k]);
    fprintf(out, "\n  contrast KL         ");
    for (int k = 0; k < N_CURVE; k++) fprintf(out, " %7.2g", r->curve_kl[k]);
    if (r->has_add) {
        fprintf(out, "\nAdded, times its length");
        for (int k = 0; k < N_CURVE; k++) fprintf(out, "%s%7.2f", k ? " " : "", r->add_strength[k]);
        fprintf(out, "\n  target score        ");
        for (int k = 0; k < N_CURVE; k++) fprintf(out, " %7.2f", r->add_target[k]);
        fprintf(out, "\n  contrast score      ");
        for (int k = 0; k < N_CURVE; k++) fprintf(out, " %7.2f", r->add_contrast[k]);
    }
    fputc('\n', out);
}

static void print_examples(const Report *r, FILE *out) {
    fprintf(out, "\nSome answers\n");
    for (int side = 0; side < N_SIDE; side++) {
        const Answers *a = &r->side[side];
        for (int i = 0; a->path && i < a->n && i < 3; i++)
            fprintf(out, "  > %s\n    without: %s%s\n    with:    %s%s\n", a->prompt[i], a->answer[0][i], a->is_marked[0][i] ? "  [marked]" : "", a->answer[1][i],
                    a->is_marked[1][i] ? "  [marked]" : "");
    }
}

void report_text(const Report *r, FILE *out) {
    fprintf(out, "Model      %s (%s, %d layers, %d wide)\nDirection  %s", r->model, r->architecture, r->n_layer, r->n_embd, r->direction);
    if (*r->made_from) fprintf(out, ", made from %s", r->made_from);
    if (r->direction_layer >= 0) fprintf(out, ", measured entering layer %d at position %d", r->direction_layer, r->direction_position);
    if (*r->edited) fprintf(out, "\nWith       the weights of %s", r->edited);
    else fprintf(out, "\nActs as    %s, strength %g, layers %d-%d", mode_name(r->mode), r->strength, r->first_layer, r->last_layer);
    fprintf(out, "\nOpeners    %s\n", r->opener_text);
    print_answers(r, out);
    print_map(r, out);
    print_damage(r, out);
    print_controls(r, out);
    print_curves(r, out);
    print_examples(r, out);
}
