// report_json.c: the report as JSON, every number that report.h holds.
#include <math.h>

#include "console.h"
#include "json.h"
#include "report.h"

static void interval(FILE *f, const char *name, Interval i) {
    fprintf(f, ", \"%s\": [", name);
    json_number(f, i.low);
    fputs(", ", f);
    json_number(f, i.high);
    fputc(']', f);
}

static void answers(FILE *f, const char *name, const Answers *a) {
    static const char *const STATE[2] = {"without", "with"};
    if (!a->path) return;
    fprintf(f, ",\n  \"%s\": {\"file\": ", name);
    json_text(f, a->path);
    fprintf(f, ", \"sha256\": \"%s\", \"prompts\": %d, \"expected_answers\": %d", a->file.sha256, a->n, a->n_expected);
    for (int with = 0; with < 2; with++) {
        const int n = a->n - a->degenerate[with];
        fprintf(f, ",\n    \"%s\": {\"marked\": %d, \"degenerate\": %d, \"correct\": %d", STATE[with], a->marked[with], a->degenerate[with], a->correct[with]);
        json_named(f, "marked_rate", n ? (double)a->marked[with] / n : NAN);
        interval(f, "marked_interval", a->marked_rate[with]);
        json_named(f, "correct_rate", a->n_expected ? (double)a->correct[with] / a->n_expected : NAN);
        interval(f, "correct_interval", a->correct_rate[with]);
        json_named(f, "score", a->mean[with]);
        interval(f, "score_interval", a->interval[with]);
        json_numbers(f, "scores", a->score[with], a->n);
        fputs(", \"answers\": [", f);
        for (int i = 0; i < a->n; i++) {
            if (i) fputs(", ", f);
            json_text(f, a->answer[with][i]);
        }
        fputs("]}", f);
    }
    fputs(",\n    \"texts\": [", f);
    for (int i = 0; i < a->n; i++) {
        if (i) fputs(", ", f);
        json_text(f, a->prompt[i]);
    }
    fputs("]}", f);
}

static void divergence(FILE *f, const char *name, const Divergence *d) {
    if (!d->n) return;
    fprintf(f, ",\n  \"%s\": {\"n\": %d", name, d->n);
    json_named(f, "mean", d->mean);
    json_named(f, "p95", d->p95);
    json_named(f, "p99", d->p99);
    json_named(f, "highest", d->highest);
    json_named(f, "same_top", d->same);
    fputc('}', f);
}

static void stream(FILE *f, const Report *r) {
    static const char *const NAME[2][2] = {{"target_without", "target_with"}, {"contrast_without", "contrast_with"}};
    const int cells = r->n_pos * (r->n_layer + 1);
    fprintf(f, ",\n  \"stream\": {\"rows\": \"positions, the last token first\", \"columns\": %d, \"positions\": [", r->n_layer + 1);
    for (int i = 0; i < r->n_pos; i++) {
        if (i) fputs(", ", f);
        json_text(f, r->position[i]);
    }
    fputc(']', f);
    for (int side = 0; side < 2; side++)
        for (int with = 0; with < 2; with++) {
            char name[64];
            snprintf(name, sizeof name, "cosine_%s", NAME[side][with]);
            json_numbers(f, name, r->cosine[side][with], cells);
            snprintf(name, sizeof name, "component_%s", NAME[side][with]);
            json_numbers(f, name, r->component[side][with], cells);
        }
    json_numbers(f, "difference", r->difference, cells);
    fputc('}', f);
}

bool report_json(const Report *r, const char *path, Err *e) {
    SafeFile file;
    if (!safe_open(&file, path, e)) return false;
    FILE *f = file.f;
    fputs("{\n  \"tool\": \"abliterate.c 0.1\", \"model\": ", f);
    json_text(f, r->model);
    fputs(", \"architecture\": ", f);
    json_text(f, r->architecture);
    fprintf(f, ", \"fingerprint\": \"%s\", \"backend\": ", r->fingerprint);
    json_text(f, r->backend);
    fprintf(f, ", \"layers\": %d, \"width\": %d,\n  \"direction\": ", r->n_layer, r->n_embd);
    json_text(f, r->direction);
    fputs(", \"made_from\": ", f);
    json_text(f, r->made_from);
    fprintf(f, ", \"direction_layer\": %d, \"direction_position\": %d, \"mode\": \"%s\", \"first_layer\": %d, \"last_layer\": %d, \"seed\": %lld", r->direction_layer,
            r->direction_position, mode_name(r->mode), r->first_layer, r->last_layer, (long long)r->o->seed);
    json_named(f, "strength", r->strength);
    if (*r->edited) {
        fputs(", \"edited\": ", f);
        json_text(f, r->edited);
    }
    fputs(", \"openers\": ", f);
    json_text(f, r->opener_text);
    answers(f, "target", &r->side[SIDE_TARGET]);
    answers(f, "contrast", &r->side[SIDE_CONTRAST]);
    answers(f, "keep", &r->side[SIDE_KEEP]);
    divergence(f, "kl_first_token", &r->kl_first);
    divergence(f, "kl_forced", &r->kl_forced);
    divergence(f, "kl_text", &r->kl_text);
    fprintf(f, ",\n  \"text_tokens\": %d", r->text_tokens);
    json_numbers(f, "own_answer_cross_entropy", r->ce, r->kl_forced.n ? 2 : 0);
    json_numbers(f, "perplexity", r->perplexity, r->text_tokens ? 2 : 0);
    json_numbers(f, "perplexity_error", r->perplexity_error, r->text_tokens ? 2 : 0);
    fputs(",\n  \"questions\": [", f);
    for (int k = 0; k < r->n_quiz; k++) {
        const Quiz *q = &r->quiz[k];
        fputs(k ? ",\n    {\"file\": " : "\n    {\"file\": ", f);
        json_text(f, q->path);
        fprintf(f, ", \"n\": %d, \"right_without\": %d, \"right_with\": %d, \"same_choice\": %d", q->n, q->right[0], q->right[1], q->same);
        interval(f, "interval_without", q->rate[0]);
        interval(f, "interval_with", q->rate[1]);
        fputc('}', f);
    }
    fputs("],\n  \"controls\": [", f);
    for (int k = 0; k < r->n_control; k++) {
        const Control *c = &r->control[k];
        fprintf(f, "%s\n    {\"kind\": \"%s\"", k ? "," : "", c->kind);
        json_named(f, "cosine", c->cos);
        json_named(f, "score", c->score);
        json_named(f, "kl", c->kl);
        if (c->marked >= 0) fprintf(f, ", \"marked\": %d, \"degenerate\": %d", c->marked, c->degenerate);
        fputc('}', f);
    }
    fputs("],\n  \"curves\": {\"mode\": ", f);
    json_text(f, mode_name(r->mode));
    json_numbers(f, "strength", r->curve_strength, N_CURVE);
    json_numbers(f, "target", r->curve_target, N_CURVE);
    json_numbers(f, "contrast", r->curve_contrast, N_CURVE);
    json_numbers(f, "kl", r->curve_kl, N_CURVE);
    if (r->has_add) {
        json_numbers(f, "add_strength", r->add_strength, N_CURVE);
        json_numbers(f, "add_target", r->add_target, N_CURVE);
        json_numbers(f, "add_contrast", r->add_contrast, N_CURVE);
    }
    fputc('}', f);
    stream(f, r);
    fputs("\n}\n", f);
    return safe_close(&file, true, e);
}
