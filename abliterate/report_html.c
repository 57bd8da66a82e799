// report_html.c: the report as one page to look at: HTML with inline CSS and SVG, no script, nothing loaded from elsewhere. The
// same report gives the same bytes. What was not measured is left out. Text from files goes through put_text or TEXT, numbers
// through NUM or PERCENT (figure.h), so that whatever a model or a file says, the page stays valid.
//
// One code in all charts: hue is the prompt set; filled or solid is without the intervention, hollow or dashed with it.
#include <math.h>
#include <stdlib.h>

#include "console.h"
#include "page.h"
#include "report.h"

static const char ODDS[] = "mean log odds of an opener as first token";
enum { MOST_POINTS = 200, PROMPT_SHOWN = 600, ANSWER_SHOWN = 1200 };

static const char *const SIDE_NAME[N_SIDE] = {"target", "contrast", "keep"}, *const SIDE_TITLE[N_SIDE] = {"Target prompts", "Contrast prompts", "Prompts to keep"};
static const char *const WITH_NAME[2] = {"without", "with"};
static const char *const ARM_NAME[2 * N_SIDE] = {"target, without", "target, with", "contrast, without", "contrast, with", "keep, without", "keep, with"};
static const char *const MODE_FORMULA[N_MODE] = {
    [MODE_PROJECT] = "x &minus; s r (r&middot;x), entering each layer and after each addition",
    [MODE_WRITE] = "w &minus; s r (r&middot;w), each addend w and the embedding",
    [MODE_AFFINE] = "x &minus; s r (r&middot;x &minus; m), m the mean of r&middot;x over contrast prompts",
    [MODE_ONE_SIDED] = "x &minus; s r max(0, r&middot;x &minus; m), m the mean of r&middot;x over contrast prompts",
    [MODE_ADD] = "x + s c r, c the length of the difference of means",
};

static const char *base_name(const char *path) { return strrchr(path, '/') ? strrchr(path, '/') + 1 : path; }

// ---- what was done ----

static bool is_there(const Answers *a) { return a->path && a->n > 0; }

static void put_verdict(FILE *f, const Report *r) {
    const double drop = r->side[SIDE_TARGET].mean[WITHOUT] - r->side[SIDE_TARGET].mean[WITH];
    fputs("<ul class=\"verdict\">\n", f);
    for (int side = 0; side < N_SIDE; side++) {
        const Answers *a = &r->side[side];
        if (!is_there(a)) continue;
        fprintf(f, "<li><b>%s &rarr; %s</b> ", PERCENT(share(a->marked[0], a->n - a->degenerate[0])), PERCENT(share(a->marked[1], a->n - a->degenerate[1])));
        fprintf(f, "%s: answers with a marker</li>\n", SIDE_TITLE[side]);
    }
    if (r->kl_first.n) fprintf(f, "<li><b>KL %s</b> Contrast prompts: change of the first token</li>\n", NUM(r->kl_first.mean));
    if (r->n_control && isfinite(drop) && isfinite(r->random_score_95))
        fprintf(f, "<li><b>%s vs. %s</b> Drop of the target score: this direction vs. 95&nbsp;%% of random ones</li>\n", NUM(drop), NUM(r->random_score_95));
    fputs("</ul>\n", f);
}

#define FACT(name, ...) (fprintf(f, "<div><dt>%s</dt><dd>", name), fprintf(f, __VA_ARGS__), fputs("</dd></div>\n", f))

static void put_facts(FILE *f, const Report *r) {
    const ReportOptions *o = r->o;
    fputs("<dl class=\"facts\">\n", f);
    FACT("Model", "%s", TEXT(r->model, 90));
    FACT("Architecture", "%s, %d layers of width %d, %s million parameters", TEXT(r->architecture, 32), r->n_layer, r->n_embd, NUM(r->n_param_millions));
    FACT("Fingerprint", "<code>%s</code>, run on %s", TEXT(r->fingerprint, 12), TEXT(r->backend, 90));
    FACT("Direction", "%s%s%s", TEXT(r->direction, 90), *r->made_from ? ", made from " : "", TEXT(r->made_from, 90));
    if (r->direction_layer >= 0) FACT("Measured", "entering layer %d, position &minus;%d", r->direction_layer, abs(r->direction_position));
    if (*r->edited) FACT("Intervention", "the weights of %s", TEXT(r->edited, 90));
    else FACT("Intervention", "%s: %s", mode_name(r->mode), MODE_FORMULA[r->mode]);
    if (!*r->edited) FACT("Strength", "s = %s, in layers %d to %d", NUM(r->strength), r->first_layer, r->last_layer);
    for (int side = 0; side < N_SIDE; side++)
        if (is_there(&r->side[side])) FACT(SIDE_TITLE[side], "%d from %s", r->side[side].n, TEXT(base_name(r->side[side].path), 90));
    if (o->lab.system) FACT("System prompt", "%s", TEXT(o->lab.system, 90));
    if (r->text_tokens && o->text) FACT("Text", "%s, %d tokens scored", TEXT(base_name(o->text), 90), r->text_tokens);
    FACT("Markers", "%d, %s", r->n_marker, o->markers ? TEXT(base_name(o->markers), 90) : "the program's own");
    FACT("Openers", "%d: <code>%s</code>", r->n_opener, TEXT(r->opener_text, 100));
    FACT("Seed", "%lld", (long long)o->seed);
    fputs("</dl>\n", f);
}

// ---- behaviour ----

static void answer_chart(FILE *f, const Report *r, bool correct) {
    Rate rate[N_SIDE];
    int n = 0;
    for (int side = 0; side < N_SIDE; side++) {
        const Answers *a = &r->side[side];
        if (!is_there(a) || (correct && !a->n_expected)) continue;
        Rate *b = &rate[n++];
        *b = (Rate){.group = SIDE_TITLE[side], .hue = SIDE_NAME[side]};
        for (int with = 0; with < 2; with++) {
            b->k[with] = correct ? a->correct[with] : a->marked[with];
            b->n[with] = correct ? a->n_expected : a->n - a->degenerate[with];
            b->within[with] = correct ? a->correct_rate[with] : a->marked_rate[with];
        }
    }
    rate_chart(f, correct ? "Answers that hold the expected text" : "Answers with a marker", rate, n);
}

static void score_chart(FILE *f, const Report *r) {
    const char *name[2 * N_SIDE];
    int arm[2 * N_SIDE], n = 0;
    Range range = NO_RANGE;
    for (int k = 0; k < 2 * N_SIDE; k++) {
        const Answers *a = &r->side[k / 2];
        if (!is_there(a)) continue;
        range_add(&range, a->mean[k % 2]);
        for (int i = 0; a->score[k % 2] && i < min_int(a->n, MOST_POINTS); i++) range_add(&range, a->score[k % 2][i]);
        arm[n] = k;
        name[n++] = ARM_NAME[k];
    }
    if (!(range.low <= range.high)) return;
    const Axis x = axis_of(range, STRIP_LEFT, WIDE - 16, 6);
    strip_open(f, "How answers begin", name, n, &x, "log odds of an opener as first token");
    for (int k = 0; k < n; k++) {
        const int with = arm[k] % 2;
        const Answers *a = &r->side[arm[k] / 2];
        const char *hue = SIDE_NAME[arm[k] / 2];
        for (int i = 0; a->score[with] && i < min_int(a->n, MOST_POINTS); i++)
            dot(f, at(&x, a->score[with][i]), strip_y(k) + jitter(i), 2, "cloud", hue, "%s: %s", a->prompt ? TEXT(a->prompt[i], 60) : "", NUM(a->score[with][i]));
        whisker(f, at(&x, a->interval[with].low), at(&x, a->interval[with].high), strip_y(k));
        dot(f, at(&x, a->mean[with]), strip_y(k), 5, with ? "hollow" : "dot", hue, "%s: mean %s, 95 %% interval %s to %s",
            name[k], NUM(a->mean[with]), NUM(a->interval[with].low), NUM(a->interval[with].high));
    }
    svg_close(f);
}

static void put_behaviour(FILE *f, const Report *r) {
    fprintf(f, "<section><h2>Behaviour</h2>\n<p>How many answers contain one of %d marker texts that stand for the behaviour; whiskers are 95&nbsp;%% Wilson "
               "intervals. And how likely the model is to <em>begin</em> its answer with one of the openers, as log odds: above 0 an opener is likelier than "
               "not (after Arditi et al. 2024). Small dots are single prompts, large ones means with 95&nbsp;%% bootstrap intervals.</p>\n<p class=\"keys\">",
            r->n_marker);
    legend(f, "ink", false, false, "filled: without the intervention");
    legend(f, "ink", true, false, "hollow: with it");
    fputs("</p><div class=\"row\">\n", f);
    answer_chart(f, r, false);
    score_chart(f, r);
    answer_chart(f, r, true);
    fputs("</div>\n", f);
    table_row(f, true, "Without &rarr; with\tPrompts\tMarked\tDegenerate\tCorrect\tMean first-token score");
    for (int side = 0; side < N_SIDE; side++) {
        const Answers *a = &r->side[side];
        char correct[64] = "&ndash;";
        if (a->n_expected) snprintf(correct, sizeof correct, "%d &rarr; %d of %d", a->correct[0], a->correct[1], a->n_expected);
        if (is_there(a)) table_row(f, false, "%s\t%d\t%d &rarr; %d\t%d &rarr; %d\t%s\t%s &rarr; %s", SIDE_NAME[side], a->n, a->marked[0], a->marked[1],
                                   a->degenerate[0], a->degenerate[1], correct, NUM(a->mean[0]), NUM(a->mean[1]));
    }
    table_end(f);
    fputs("<p class=\"note\">A degenerate answer has no visible text or goes round in circles; it counts neither as marked nor as unmarked.</p></section>\n", f);
}

// ---- where the direction lives ----

static int64_t cell_of(const Report *r, int pos, int layer) { return (int64_t)pos * (r->n_layer + 1) + layer; }

// Where it was measured, as a row of the stream's figures; -1: unknown or not shown.
static int measured_row(const Report *r) {
    const int row = -1 - r->direction_position;
    return r->direction_layer >= 0 && row >= 0 && row < r->n_pos ? row : -1;
}

// The cell's number and colour; most: the cosine that has the strongest colour.
static void heat_cell(FILE *f, const Report *r, int arm, int pos, int layer, double most, int x, int y, int w, int h) {
    const int64_t k = cell_of(r, pos, layer);
    const double v = r->cosine[arm / 2][arm % 2][k], *component = r->component[arm / 2][arm % 2];
    const int hue = isfinite(v) ? max_int(0, min_int(N_HUE - 1, (int)lround((v / most + 1) / 2 * (N_HUE - 1)))) : N_HUE, strength = abs(hue - N_HUE / 2);
    const bool out = layer == r->n_layer;
    fprintf(f, "<path class=\"c%d\" d=\"M%d %dh%dv%dh-%dz\"><title>%s, %s layer %d: cosine %s, r&middot;x %s (sets %s apart)</title></path>\n", hue, x, y, w, h, w,
            TEXT(r->position[pos], 40), out ? "leaving" : "entering", layer - out, NUM(v),
            NUM(component ? component[k] : NAN), NUM(r->difference ? r->difference[k] : NAN));
    if (w >= 36 && isfinite(v))
        label(f, x + w / 2.0, y + h / 2.0 + 4, strength > 17 ? "cell strong" : strength > 10 ? "cell half" : "cell",
              "%s%.2f", v < -0.005 ? "&minus;" : "", fabs(v));
}

// The last position is the lowest row, as one reads.
static void heat_panel(FILE *f, const Report *r, int arm, double most) {
    const int cols = r->n_layer + 1, w = max_int(7, min_int(60, 308 / cols)), h = max_int(13, min_int(28, 240 / r->n_pos));
    const int left = 112, bottom = 4 + h * r->n_pos, every = (25 + w) / w;
    char caption[64];
    snprintf(caption, sizeof caption, "%s, %s the intervention", SIDE_TITLE[arm / 2], WITH_NAME[arm % 2]);
    svg_open(f, caption, fmax(left + w * cols + 14, WIDE), bottom + 36, true);
    for (int pos = 0; pos < r->n_pos; pos++) {
        const int y = bottom - h * (pos + 1);
        label(f, left - 7, y + h / 2.0 + 4, "tick end", "%s", TEXT(r->position[pos], 15));
        for (int l = 0; l < cols; l++) heat_cell(f, r, arm, pos, l, most, left + w * l, y, w, h);
    }
    for (int l = 0; l < r->n_layer; l += every)
        if (w * (r->n_layer - l) >= 24) label(f, left + w * (l + 0.5), bottom + 15, "tick mid", "%d", l);
    label(f, left + w * (r->n_layer + 0.5), bottom + 15, "tick mid", "out");
    label(f, left + w * cols / 2.0, bottom + 31, "axis mid", "entering layer");
    if (measured_row(r) >= 0) fprintf(f, "<path class=\"frame\" d=\"M%d %dh%dv%dh-%dz\"/>\n",
                                      left + w * r->direction_layer, bottom - h * (measured_row(r) + 1), w, h, w);
    svg_close(f);
}

static void component_charts(FILE *f, const Report *r) {
    const int n = r->n_layer + 1, row = max_int(measured_row(r), 0);
    const int64_t at_row = cell_of(r, row, 0);
    double *layer = malloc(sizeof *layer * 2 * (size_t)n), *along = layer + n;
    Line line[4];
    int k = 0;
    if (!layer) return; // a figure less
    for (int arm = 0; arm < 4; arm++)
        if (r->component[arm / 2][arm % 2]) line[k++] = (Line){ARM_NAME[arm], SIDE_NAME[arm / 2], arm % 2, r->component[arm / 2][arm % 2] + at_row};
    for (int l = 0; l < n; l++) {
        layer[l] = l;
        along[l] = r->component[0][0] && r->component[1][0] ? r->component[0][0][at_row + l] - r->component[1][0][at_row + l] : NAN;
    }
    char caption[TEXT_SIZE + 64], title[48];
    snprintf(caption, sizeof caption, "Component along the direction at position %s", TEXT(r->position[row], 40));
    snprintf(title, sizeof title, "entering layer (%d: leaving the last)", r->n_layer);
    Chart c = {caption, title, "mean of r&middot;x", layer, n, k, line, r->direction_layer >= 0 ? r->direction_layer : NAN, "measured here"};
    line_chart(f, &c);
    const Line apart[] = {{"distance", "ink", false, r->difference ? r->difference + at_row : along}, {"along the direction", "ink", true, along}};
    c.caption = "Distance of the two sets there, without the intervention";
    c.y_title = "solid: between the means; dashed: of it along the direction";
    c.line = apart;
    c.n_line = 2;
    if (r->difference) line_chart(f, &c);
    free(layer);
}

static void line_keys(FILE *f, int n_arm, bool both) {
    fputs("<p class=\"keys\">", f);
    for (int arm = 0; arm < n_arm; arm += both ? 1 : 2) legend(f, SIDE_NAME[arm / 2], arm % 2, true, both ? ARM_NAME[arm] : SIDE_TITLE[arm / 2]);
    fputs("</p>\n", f);
}

static void put_stream(FILE *f, const Report *r) {
    Range range = {0, 0};
    for (int arm = 0; arm < 4; arm++)
        for (int64_t k = 0; r->cosine[arm / 2][arm % 2] && k < cell_of(r, r->n_pos, 0); k++) range_add(&range, r->cosine[arm / 2][arm % 2][k]);
    const double raw = fmax(0.01, fmax(range.high, -range.low)), most = raw > 0.5 ? 1 : ceil(raw * 20) / 20;
    if (r->n_pos < 1 || !r->cosine[0][0]) return;
    fprintf(f, "<section><h2>Where the direction lives</h2>\n<p>Each cell is the mean cosine between the residual stream and the direction: a column is the "
               "stream entering that layer (<i>out</i>: leaving the last one), a row a position from the end of the prompt. Orange points along the direction, "
               "blue against it, and without a colour there is nothing of it (a random direction has %s). %sWhere target and contrast prompts differ, the direction tells them apart; with "
               "the intervention one sees what is left of it.</p>\n",
            NUM(1 / sqrt(r->n_embd)), measured_row(r) >= 0 ? "The framed cell is where it was measured. " : "");
    fputs("<svg class=\"scale\" role=\"img\" aria-label=\"Colour scale of the cosine\" viewBox=\"0 0 300 30\">", f);
    for (int i = 0; i < N_HUE; i++) fprintf(f, "<path class=\"c%d\" d=\"M%d 0h6v12h-6z\"/>", i, 27 + 6 * i);
    for (int i = -2; i <= 2; i++) label(f, 150 + 60 * i, 26, "tick mid", "%s%s", i > 0 ? "+" : "", NUM(i * most / 2));
    fputs("</svg>\n<div class=\"row\">\n", f);
    for (int arm = 0; arm < 4; arm++)
        if (r->cosine[arm / 2][arm % 2]) heat_panel(f, r, arm, most);
    fputs("</div>\n<p>The same along one row, not divided by the length of the stream: the component r&middot;x, layer by layer.</p>\n", f);
    line_keys(f, 4, true);
    fputs("<div class=\"row\">\n", f);
    component_charts(f, r);
    fputs("</div></section>\n", f);
}

// ---- what else changes ----

static const char *const DIVERGENCE_NAME[3] = {"first token", "own answers", "text"};

static void divergence_chart(FILE *f, const Divergence *const d[3], double random) {
    const char *name[4];
    const Divergence *row[4];
    int n = 0;
    Range range = NO_RANGE;
    for (int i = 0; i < 3; i++)
        if (d[i]->n) {
            row[n] = d[i];
            name[n++] = DIVERGENCE_NAME[i];
            range_add(&range, fmin(d[i]->mean, d[i]->p95));
            range_add(&range, d[i]->highest);
        }
    range_add(&range, random);
    const Axis x = log_axis_of(range, STRIP_LEFT, WIDE - 16);
    if (isfinite(random)) name[n] = "random";
    strip_open(f, "How far the predictions move", name, n + isfinite(random), &x, "KL divergence in nats, logarithmic");
    for (int i = 0; i < n; i++) {
        const double y = strip_y(i), p99 = at(&x, row[i]->p99);
        if (isfinite(p99)) fprintf(f, "<path class=\"whisker\" d=\"M%.1f %.1fH%.1f\"/>\n", at(&x, row[i]->mean), y, p99);
        dot(f, at(&x, row[i]->mean), y, 5, "dot", row[i] == d[2] ? "ink" : "contrast", "%s: mean %s", name[i], NUM(row[i]->mean));
        dot(f, at(&x, row[i]->p95), y, 3, "dot", "ink", "%s: 95 %% of tokens below %s", name[i], NUM(row[i]->p95));
        dot(f, p99, y, 3, "dot", "ink", "%s: 99 %% of tokens below %s", name[i], NUM(row[i]->p99));
        dot(f, at(&x, row[i]->highest), y, 3.5, "hollow", "ink", "%s: highest %s", name[i], NUM(row[i]->highest));
    }
    dot(f, at(&x, random), strip_y(n), 4, "control", "ink", "random directions, first token: mean %s", NUM(random));
    svg_close(f);
}

static void put_damage(FILE *f, const Report *r) {
    const Divergence *const d[3] = {&r->kl_first, &r->kl_forced, &r->kl_text};
    char name[MAX_QUIZ][TEXT_SIZE];
    Rate rate[MAX_QUIZ];
    const bool any = d[0]->n || d[1]->n || d[2]->n;
    if (!any && !r->n_quiz) return;
    for (int i = 0; i < r->n_quiz; i++) {
        const Quiz *q = &r->quiz[i];
        rate[i] = (Rate){short_text(name[i], base_name(q->path), 50), "ink", {q->right[0], q->right[1]}, {q->n, q->n}, {q->rate[0], q->rate[1]}};
    }
    fprintf(f, "<section><h2>What else changes</h2>\n<p>An intervention that only removes the behaviour leaves everything else alone. The KL divergence says how "
               "far the next-token probabilities move (0: not at all%s). Large dot: mean; the line runs to the "
               "99th percentile, with the 95th marked; hollow: highest. <i>Own answers</i>: tokens of the original's answers to contrast prompts, forced upon "
               "both.</p>\n<div class=\"row\">\n", *r->edited ? "" : "; same file, so nothing but the intervention counts");
    if (any) divergence_chart(f, d, r->n_control && d[0]->n ? r->random_kl : NAN);
    rate_chart(f, "Multiple choice, right answers", rate, r->n_quiz);
    fputs("</div>\n", f);
    if (any) table_row(f, true, "KL divergence\tTokens\tMean\t95th percentile\t99th percentile\tHighest\tSame likeliest token");
    for (int i = 0; i < 3; i++)
        if (d[i]->n) table_row(f, false, "%s\t%d\t%s\t%s\t%s\t%s\t%s", DIVERGENCE_NAME[i], d[i]->n, NUM(d[i]->mean), NUM(d[i]->p95), NUM(d[i]->p99),
                               NUM(d[i]->highest), PERCENT(d[i]->same));
    if (any) table_end(f);
    if (r->kl_forced.n || r->text_tokens) {
        table_row(f, true, "Loss\tWithout\tWith\tChange");
        if (r->kl_forced.n) table_row(f, false, "cross-entropy of own answers, nats\t%s\t%s\t%s", NUM(r->ce[0]), NUM(r->ce[1]), NUM(r->ce[1] - r->ce[0]));
        if (r->text_tokens)
            table_row(f, false, "perplexity of the text\t%s &plusmn; %s\t%s &plusmn; %s\t%s", NUM(r->perplexity[0]), NUM(r->perplexity_error[0]),
                      NUM(r->perplexity[1]), NUM(r->perplexity_error[1]), NUM(r->perplexity[1] - r->perplexity[0]));
        table_end(f);
    }
    if (r->n_quiz) table_row(f, true, "Multiple choice\tQuestions\tRight without\tRight with\tSame choice");
    for (int i = 0; i < r->n_quiz; i++) {
        const Quiz *q = &r->quiz[i];
        table_row(f, false, "%s\t%d\t%d\t%d\t%d", name[i], q->n, q->right[0], q->right[1], q->same);
    }
    if (r->n_quiz) table_end(f);
    fputs("</section>\n", f);
}

// ---- controls ----

enum { MOST_KINDS = 6 };

// kl: damage instead of effect.
static void control_chart(FILE *f, const Report *r, bool kl) {
    const char *name[2 + MOST_KINDS];
    const double here = kl ? r->kl_first.mean : r->side[SIDE_TARGET].mean[WITH], before = kl ? NAN : r->side[SIDE_TARGET].mean[WITHOUT];
    int n = 0;
    Range range = NO_RANGE;
    range_add(&range, here);
    range_add(&range, before);
    if (!kl) name[n++] = "untouched";
    const int first = n + 1;
    name[n++] = "this direction";
    for (int i = 0; i < r->n_control; i++) {
        range_add(&range, kl ? r->control[i].kl : r->control[i].score);
        if ((!i || strcmp(r->control[i].kind, r->control[i - 1].kind)) && n < first + MOST_KINDS) name[n++] = r->control[i].kind;
    }
    if (!(range.low <= range.high)) return;
    const Axis x = kl ? log_axis_of(range, STRIP_LEFT, WIDE - 16) : axis_of(range, STRIP_LEFT, WIDE - 16, 6);
    strip_open(f, kl ? "Damage: first token of contrast prompts" : "Effect: score of target prompts", name, n, &x,
               kl ? "mean KL divergence in nats, logarithmic" : ODDS);
    if (isfinite(here)) fprintf(f, "<path class=\"mark\" d=\"M%.1f %dV%.1f\"/>\n", at(&x, here), STRIP_TOP, strip_y(n) - STRIP_ROW / 2.0);
    if (isfinite(before)) fprintf(f, "<path class=\"mark\" d=\"M%.1f %dV%.1f\"/>\n", at(&x, before), STRIP_TOP, strip_y(n) - STRIP_ROW / 2.0);
    dot(f, at(&x, before), strip_y(0), 5.5, "dot", "target", "untouched: %s", NUM(before));
    dot(f, at(&x, here), strip_y(first - 1), 5.5, "hollow", "target", "this direction: %s", NUM(here));
    for (int i = 0, row = first - 1; i < r->n_control; i++) {
        const Control *c = &r->control[i];
        if (!i || strcmp(c->kind, c[-1].kind)) row++;
        if (row < n) dot(f, at(&x, kl ? c->kl : c->score), strip_y(row) + jitter(i), 3.6, "control", "ink", "%s: |cos| with the direction %s, score %s, KL %s",
                         c->kind, NUM(fabs(c->cos)), NUM(c->score), NUM(c->kl));
    }
    svg_close(f);
}

static void put_controls(FILE *f, const Report *r) {
    if (!r->n_control) return;
    fputs("<section><h2>Controls</h2>\n<p>Would any direction do? The same intervention with others: random ones, means of the same prompts with shuffled "
          "labels, and the mean of the contrast prompts. The direction counts for something if its effect is far from theirs (dashed lines) and its damage is "
          "not. Shuffled labels may by chance lie along the direction, and then work like it: see |cos|.", f);
    if (isfinite(r->random_score_95)) fprintf(f, " 95&nbsp;%% of random directions lower the score by at most %s.", NUM(r->random_score_95));
    fputs("</p>\n<div class=\"row\">\n", f);
    control_chart(f, r, false);
    if (r->kl_first.n) control_chart(f, r, true);
    fputs("</div>\n", f);
    table_row(f, true, "Control\t|cos| with the direction\tTarget score\tKL, contrast\tMarked target answers\tDegenerate");
    const Answers *a = &r->side[SIDE_TARGET];
    table_row(f, false, "untouched\t&ndash;\t%s\t0\t%d of %d\t%d", NUM(a->mean[0]), a->marked[0], a->n - a->degenerate[0], a->degenerate[0]);
    table_row(f, false, "this direction\t1\t%s\t%s\t%d of %d\t%d", NUM(a->mean[1]), NUM(r->kl_first.n ? r->kl_first.mean : NAN),
              a->marked[1], a->n - a->degenerate[1], a->degenerate[1]);
    for (int i = 0; i < r->n_control; i++) {
        const Control *c = &r->control[i];
        char marked[32] = "not asked", degenerate[16] = "";
        if (c->marked >= 0) snprintf(marked, sizeof marked, "%d of %d", c->marked, a->n - c->degenerate);
        if (c->degenerate >= 0) snprintf(degenerate, sizeof degenerate, "%d", c->degenerate);
        table_row(f, false, "%s\t%s\t%s\t%s\t%s\t%s", c->kind, NUM(fabs(c->cos)), NUM(c->score), NUM(c->kl), marked, degenerate);
    }
    table_end(f);
    fputs("</section>\n", f);
}

// ---- how much ----

static void put_curves(FILE *f, const Report *r) {
    const Line score[] = {{SIDE_TITLE[0], "target", false, r->curve_target}, {SIDE_TITLE[1], "contrast", false, r->curve_contrast}};
    const Line add[] = {{SIDE_TITLE[0], "target", false, r->add_target}, {SIDE_TITLE[1], "contrast", false, r->add_contrast}};
    const Line kl = {SIDE_TITLE[1], "contrast", false, r->curve_kl};
    if (!(r->curve_strength[N_CURVE - 1] > r->curve_strength[0]) && !r->has_add) return;
    fprintf(f, "<section><h2>How much</h2>\n<p>The same intervention (%s) at other strengths%s. ", mode_name(r->mode),
            r->mode == MODE_ADD ? "" : ": 0 is the untouched model, 1 removes the whole component, 2 turns it around");
    if (r->has_add) fputs("Adding the direction asks the reverse question, whether it is enough to <em>cause</em> the behaviour: contrast prompts should then "
                          "begin like target prompts (strength 1: the distance between the sets' means).", f);
    fputs("</p>\n", f);
    line_keys(f, 4, false);
    fputs("<div class=\"row\">\n", f);
    line_chart(f, &(Chart){"Effect by strength", "strength", ODDS, r->curve_strength, N_CURVE, 2, score, r->strength, "this report"});
    line_chart(f, &(Chart){"Damage by strength", "strength", "mean KL of the first token, nats", r->curve_strength, N_CURVE, 1, &kl, r->strength, "this report"});
    if (r->has_add) line_chart(f, &(Chart){"Adding it at its layer", "strength (below 0: subtracted)", ODDS, r->add_strength, N_CURVE, 2, add, NAN, ""});
    fputs("</div></section>\n", f);
}

// ---- answers ----

static void answer_cards(FILE *f, const Report *r, Side side, int most) {
    const Answers *a = &r->side[side];
    if (!is_there(a) || !a->prompt || !a->answer[0] || !a->answer[1]) return;
    fprintf(f, "<h3><span class=\"swatch %s\"></span>%s, %d of %d</h3>\n", SIDE_NAME[side], SIDE_TITLE[side], min_int(most, a->n), a->n);
    for (int i = 0; i < min_int(most, a->n); i++) {
        fputs("<article><p class=\"prompt\" dir=\"auto\">", f);
        put_text(f, a->prompt[i], PROMPT_SHOWN);
        fputs("</p>\n", f);
        for (int with = 0; with < 2; with++) {
            const char *text = a->answer[with][i];
            fprintf(f, "<div><p class=\"who\">%s%s</p><p class=\"answer\" dir=\"auto\">",
                    WITH_NAME[with], a->is_marked[with] && a->is_marked[with][i] ? " <b>marked</b>" : "");
            if (text && *text) put_text(f, text, ANSWER_SHOWN);
            else fputs("<i>(nothing)</i>", f);
            fputs("</p></div>\n", f);
        }
        fputs("</article>\n", f);
    }
}

static void put_answers(FILE *f, const Report *r) {
    if (!r->side[SIDE_TARGET].answer[WITH] && !r->side[SIDE_CONTRAST].answer[WITH]) return;
    fputs("<section><h2>Answers</h2>\n<p>The first answers, without and with the intervention, so that you can judge for yourself what a marker stands "
          "for.</p>\n", f);
    answer_cards(f, r, SIDE_TARGET, 12);
    answer_cards(f, r, SIDE_CONTRAST, 6);
    fputs("</section>\n", f);
}

// ---- the page ----

static void put_head(FILE *f, const Report *r) {
    const char *done = r->mode == MODE_ADD ? "added" : "removed";
    page_open(f, "A direction %s: %s", done, TEXT(r->model, 60));
    fprintf(f, "<header>\n<p class=\"over\">%s in %s</p>\n<h1>One direction %s: what changes</h1>\n", TEXT(r->direction, 60), TEXT(r->model, 60), done);
    put_verdict(f, r);
    put_facts(f, r);
    fputs("</header>\n", f);
}

bool report_html(const Report *r, const char *path, Err *e) {
    SafeFile out;
    if (!safe_open(&out, path, e)) return false;
    FILE *f = out.f;
    put_head(f, r);
    put_behaviour(f, r);
    put_stream(f, r);
    put_damage(f, r);
    put_controls(f, r);
    put_curves(f, r);
    put_answers(f, r);
    fputs("<section><h2>What this shows, and what not</h2>\n<footer><p>One checkpoint's behaviour on these prompts. Markers and first tokens are proxies: read "
          "the answers. That a behaviour goes away with a direction shows that the direction mediates it; it does not show what the model knows, nor that this "
          "is the only way it can come about. Intervals cover the choice of prompts, not of the model or the direction.</p>\n<p>Method: Arditi et al. 2024, "
          "<i>Refusal in Language Models Is Mediated by a Single Direction</i>, <a href=\"https://arxiv.org/abs/2406.11717\">arXiv 2406.11717</a>. Made by "
          "<code>abliterate report</code> of abliterate.c.</p></footer></section>\n", f);
    page_close(f);
    return safe_close(&out, true, e);
}
