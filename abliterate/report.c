// report.c: measures what report.h holds. Every figure is taken twice on the same file, without and with the intervention; the
// baseline of every divergence is the same file, so a direction that does nothing has a divergence of exactly 0.
#include "report.h"

#include <math.h>
#include <stdlib.h>

#include "first.h"
#include "means.h"

enum { TEXT_WINDOW = 512 };

typedef struct {
    Report *r;
    Lab *lab;
    const ReportOptions *o;
    PromptFile file[N_SIDE];
    PromptSet set[N_SIDE];
    Openers openers;
    Markers markers;
    First first[N_SIDE][2];
    Ids *answer[N_SIDE][2];     // [n]
    Means mean[2];              // target, contrast; untouched
    float *row;                 // [n target + n contrast][n_embd]: untouched, where the direction was measured
    int at_pos, at_layer;       // there
    Ids *window;                // of the text, [n_window]
    int *window_cont, n_window;
    Questions questions[MAX_QUIZ];
    Ids *quiz_ids[MAX_QUIZ];    // letters: [n]; texts: [4 n], with the choice's text behind
    int *quiz_cont[MAX_QUIZ];
} Work;

static const char *base_name(const char *path) { return strrchr(path, '/') ? strrchr(path, '/') + 1 : path; }

static bool by_text(const ReportOptions *o) { return !strcmp(o->choices, "text"); }

// ---- opening ----

static bool load_directions(Work *w, Err *e) {
    const ReportOptions *o = w->o;
    Steer *s = &w->lab->steer;
    Report *r = w->r;
    for (int i = 0; i < o->directions.n; i++) {
        char note[256] = "";
        if (!w->lab->edited && !steer_load(s, o->directions.text[i], note, e)) return false;
        if (*note && !o->lab.quiet) fprintf(stderr, "abliterate: %s\n", note);
        const size_t n = strlen(r->direction);
        snprintf(r->direction + n, sizeof r->direction - n, "%s%s", n ? " + " : "", base_name(o->directions.text[i]));
    }
    if (o->mode && !steer_parse_mode(o->mode, &s->mode, e)) return false;
    if (!isnan(o->strength)) s->strength = o->strength;
    s->keep_embedding = o->keep_embedding;
    if (o->layers && !steer_parse_layers(o->layers, w->lab->m.c.n_layer, &s->first, &s->last, e)) return false;
    if (w->lab->edited) {
        snprintf(r->edited, sizeof r->edited, "%s", base_name(w->lab->edited->o.model));
        if (!*r->direction) snprintf(r->direction, sizeof r->direction, "found in the differences");
    }
    const Direction *d = &s->dir[0];
    r->direction_layer = d->layer;
    r->direction_position = d->layer >= 0 ? d->position : 0;
    snprintf(r->made_from, sizeof r->made_from, "%s", d->model);
    r->mode = s->mode;
    r->strength = s->strength;
    return true;
}

static bool prepare_directions(Work *w, Err *e) {
    Steer *s = &w->lab->steer;
    if (!steer_prepare(s, e)) return false;
    s->on = false;
    w->r->first_layer = s->act_first;
    w->r->last_layer = s->act_last;
    return true;
}

static bool read_prompts(Work *w, Err *e) {
    const ReportOptions *o = w->o;
    const char *const path[N_SIDE] = {o->target, o->contrast, o->keep};
    for (int side = 0; side < N_SIDE; side++) {
        if (!path[side]) continue;
        if (!prompts_read(&w->file[side], path[side], 1, e)) return false;
        const int n = o->limit ? min_int(o->limit, w->file[side].n) : w->file[side].n;
        if (!lab_encode(w->lab, &w->file[side], NULL, n, &w->set[side], e)) return false;
        Answers *a = &w->r->side[side];
        a->path = path[side];
        a->n = n;
        a->prompt = calloc((size_t)n, sizeof *a->prompt);
        if (!a->prompt) return err_set(e, "no memory for %d prompts", n);
        for (int i = 0; i < n; i++) {
            a->prompt[i] = w->set[side].line[i]->text;
            a->n_expected += w->set[side].line[i]->answer != NULL;
        }
    }
    if (!strcmp(w->file[0].sha256, w->file[1].sha256)) return err_set(e, "%s and %s hold the same prompts: there is no contrast between them", o->target, o->contrast);
    w->r->n_pos = min_int(16, min_int(w->set[0].n_suffix, w->set[1].n_suffix));
    w->at_layer = w->r->direction_layer > 0 ? w->r->direction_layer : w->lab->m.c.n_layer / 2;
    w->at_pos = w->r->direction_position < 0 ? -1 - w->r->direction_position : 0;
    w->r->n_pos = max_int(w->r->n_pos, 1);
    if (w->at_pos >= w->r->n_pos) w->at_pos = 0;
    return true;
}

// The text in windows, each beginning with BOS; the second half of each is scored.
static bool read_text(Work *w, Err *e) {
    char *text;
    size_t n;
    Ids ids = {0};
    if (!w->o->text) return true;
    if (!read_whole_file(w->o->text, &text, &n, e)) return false;
    bool ok = tokenizer_encode(w->lab->tok, text, n, true, false, &ids, e);
    free(text);
    const bool bos = tokenizer_add_bos(w->lab->tok) && tokenizer_bos(w->lab->tok) >= 0;
    const int size = min_int(TEXT_WINDOW, w->lab->o.n_ctx);
    if (ok && ids.n < 4) ok = err_set(e, "%s: %d tokens, too few for a perplexity", w->o->text, ids.n);
    const int n_window = ok ? max_int(1, ids.n / size) : 0;
    w->window = calloc((size_t)max_int(n_window, 1), sizeof *w->window);
    w->window_cont = calloc((size_t)max_int(n_window, 1), sizeof *w->window_cont);
    if (ok && (!w->window || !w->window_cont)) ok = err_set(e, "%s: no memory", w->o->text);
    for (int i = 0; ok && i < n_window; i++) {
        const int k = min_int(size, ids.n - i * size);
        for (int j = 0; ok && j < k; j++) ok = ids_push(&w->window[i], j == 0 && bos ? tokenizer_bos(w->lab->tok) : ids.id[i * size + j]) || err_set(e, "no memory for the text");
        w->window_cont[i] = k - k / 2;
        w->n_window = i + 1;
    }
    ids_free(&ids);
    return ok;
}

static bool append_text(char **to, const char *format, const char *a, const char *b) {
    const size_t n = *to ? strlen(*to) : 0, more = strlen(format) + strlen(a) + strlen(b) + 1;
    char *p = realloc(*to, n + more);
    if (!p) return false;
    snprintf(p + n, more, format, a, b);
    *to = p;
    return true;
}

// Letters: the question with its choices and a request for one letter. Texts: the question alone; the choices follow as answers.
static bool encode_question(Work *w, const Question *q, Ids *out, Err *e) {
    char *text = NULL;
    static const char *const LETTER[N_CHOICE] = {"A", "B", "C", "D"};
    bool ok = append_text(&text, "%s%s", q->text, "");
    for (int i = 0; ok && i < N_CHOICE && !by_text(w->o); i++) ok = append_text(&text, "\n%s. %s", LETTER[i], q->choice[i]);
    if (ok && !by_text(w->o)) ok = append_text(&text, "%s%s", w->lab->chat.family ? "\nAnswer with the letter only." : "\nAnswer:", "");
    if (!ok) {
        free(text);
        return err_set(e, "no memory for a question");
    }
    PromptLine line = {text, NULL};
    const PromptFile one = {.path = "a question", .line = &line, .n = 1};
    PromptSet set = {0};
    ok = lab_encode(w->lab, &one, NULL, 1, &set, e);
    if (ok) {
        *out = set.ids[0];
        set.ids[0] = (Ids){0};
    }
    set_free(&set);
    free(text);
    return ok;
}

static bool read_questions(Work *w, Err *e) {
    for (int f = 0; f < w->o->questions.n; f++) {
        Questions *q = &w->questions[f];
        if (!questions_read(q, w->o->questions.text[f], e)) return false;
        if (w->o->limit) q->n = min_int(q->n, w->o->limit);
        const int each = by_text(w->o) ? N_CHOICE : 1;
        w->quiz_ids[f] = calloc((size_t)(q->n * each), sizeof(Ids));
        w->quiz_cont[f] = calloc((size_t)(q->n * each), sizeof(int));
        if (!w->quiz_ids[f] || !w->quiz_cont[f]) return err_set(e, "no memory for the questions");
        for (int i = 0; i < q->n * each; i++) {
            Ids *ids = &w->quiz_ids[f][i];
            const Question *item = &q->q[i / each];
            if (!encode_question(w, item, ids, e)) return false;
            if (!by_text(w->o)) continue;
            const int before = ids->n;
            const char *choice = item->choice[i % each];
            if (!tokenizer_encode(w->lab->tok, choice, strlen(choice), false, false, ids, e)) return false;
            w->quiz_cont[f][i] = ids->n - before;
            if (ids->n == before) return err_set(e, "%s: question %d: choice %c is empty", w->o->questions.text[f], i / each + 1, 'A' + i % each);
            if (ids->n > w->lab->o.n_ctx) return err_set(e, "%s: question %d has %d tokens, the context %d; use a larger -c", w->o->questions.text[f], i / each + 1, ids->n, w->lab->o.n_ctx);
        }
    }
    w->r->n_quiz = w->o->questions.n;
    return true;
}

static bool open_session(Work *w, Err *e) {
    int longest = 0, alone = 0;
    for (int side = 0; side < N_SIDE; side++) longest = max_int(longest, set_longest(&w->set[side]));
    for (int i = 0; i < w->n_window; i++) alone = max_int(alone, w->window[i].n);
    for (int f = 0; f < w->o->questions.n; f++)
        for (int i = 0; i < w->questions[f].n * (by_text(w->o) ? N_CHOICE : 1); i++) alone = max_int(alone, w->quiz_ids[f][i].n);
    return lab_ready(w->lab, max_int(longest, alone - w->o->n_predict), max_int(w->o->n_predict, 1), e);
}

// ---- the stream and the first tokens ----

typedef struct {
    Work *w;
    int side, with;
} StreamPass;

static void stream_row(void *ctx, int prompt, int from_end, int site, const float *x) {
    const StreamPass *p = ctx;
    Work *w = p->w;
    const int n = w->lab->m.c.n_embd, layer = site / 3;
    if (site % 3) return;
    const float *d = direction_row(&w->lab->steer.dir[0], layer);
    double along = 0, length = 0;
    for (int i = 0; i < n; i++) along += (double)d[i] * x[i], length += (double)x[i] * x[i];
    const int64_t at = means_at(&w->mean[0], from_end, layer);
    w->r->component[p->side][p->with][at] += along / w->r->side[p->side].n;
    w->r->cosine[p->side][p->with][at] += length > 0 ? along / sqrt(length) / w->r->side[p->side].n : 0;
    if (p->with) return;
    means_add(&w->mean[p->side], 0, from_end, layer, x);
    if (from_end == w->at_pos && layer == w->at_layer)
        memcpy(w->row + ((int64_t)(p->side ? w->set[0].n : 0) + prompt) * n, x, sizeof(float) * (size_t)n);
}

static void stream_logits(void *ctx, int prompt, int from_end, const float *logits) {
    const StreamPass *p = ctx;
    (void)from_end;
    First *f = p->w->first[p->side];
    first_take(&f[p->with], prompt, logits, p->w->lab->m.c.n_vocab, &p->w->openers, p->with ? f[WITHOUT].logits : NULL);
}

// Without openers from a file or the direction: those that tell these two sets apart.
static bool learn_openers(Work *w, Err *e) {
    const int V = w->lab->m.c.n_vocab;
    double *p = calloc(2 * (size_t)V, sizeof *p);
    bool ok = p || err_set(e, "no memory for probabilities");
    for (int side = 0; ok && side < 2; side++) {
        for (int i = 0; i < w->set[side].n; i++) probabilities_add(p + (int64_t)side * V, w->first[side][WITHOUT].logits + (int64_t)i * V, V);
        for (int i = 0; i < V; i++) p[(int64_t)side * V + i] /= w->set[side].n;
    }
    ok = ok && openers_learn(&w->openers, p, p + V, V, e);
    for (int side = 0; ok && side < N_SIDE; side++)
        for (int i = 0; i < w->set[side].n; i++)
            w->first[side][WITHOUT].score[i] = opener_score(&w->openers, w->first[side][WITHOUT].logits + (int64_t)i * V, V);
    free(p);
    return ok;
}

static bool measure_stream(Work *w, Err *e) {
    Report *r = w->r;
    const size_t cells = (size_t)r->n_pos * (size_t)(r->n_layer + 1);
    int total = 0;
    bool ok = true;
    r->difference = calloc(cells, sizeof(double));
    r->position = calloc((size_t)r->n_pos, sizeof *r->position);
    w->row = calloc((size_t)(w->set[0].n + w->set[1].n), sizeof(float) * (size_t)r->n_embd);
    for (int side = 0; side < N_SIDE; side++) {
        total += 2 * w->set[side].n;
        for (int with = 0; with < 2; with++) {
            if (side < 2) {
                r->cosine[side][with] = calloc(cells, sizeof(double));
                r->component[side][with] = calloc(cells, sizeof(double));
                ok = ok && r->cosine[side][with] && r->component[side][with];
            }
            if (w->set[side].n && !first_open(&w->first[side][with], w->lab, w->set[side].n, with, !with, e)) return false;
        }
        if (side < 2 && !means_init(&w->mean[side], r->n_pos, r->n_layer, r->n_embd, e)) return false;
    }
    if (!ok || !r->difference || !r->position || !w->row) return err_set(e, "no memory for the stream's figures");
    Bar bar;
    bar_start(&bar, "the stream", total);
    for (int with = 0; ok && with < 2; with++) {
        w->lab->steer.on = with;
        for (int side = 0; ok && side < N_SIDE; side++) {
            StreamPass p = {w, side, with};
            ok = !w->set[side].n || lab_read(w->lab, &(Reading){.prompt = w->set[side].ids, .n = w->set[side].n, .n_last = r->n_pos, .on_row = side < 2 ? stream_row : NULL,
                                                                .n_logits = 1, .on_logits = stream_logits, .ctx = &p}, &bar, e);
        }
        if (ok && !with && !w->openers.n && !interrupted) ok = learn_openers(w, e);
    }
    w->lab->steer.on = false;
    bar_end(&bar);
    if (!ok || interrupted) return ok;

    double *v = malloc(sizeof *v * (size_t)r->n_embd);
    if (!v) return err_set(e, "no memory for a difference");
    for (int side = 0; side < 2; side++) w->mean[side].n[0] = w->set[side].n;
    for (int pos = 0; pos < r->n_pos; pos++) {
        char text[48];
        const Ids *ids = &w->set[0].ids[0];
        lab_token(w->lab, ids->id[ids->n - 1 - pos], text);
        snprintf(r->position[pos], sizeof *r->position, "%d %s", -1 - pos, text);
        for (int l = 0; l <= r->n_layer; l++) {
            mean_difference(&w->mean[0], &w->mean[1], pos, l, 0, NULL, v);
            r->difference[means_at(&w->mean[0], pos, l)] = sqrt(dot_of(v, v, r->n_embd));
        }
    }
    free(v);
    for (int side = 0; side < N_SIDE; side++) {
        Answers *a = &r->side[side];
        for (int with = 0; with < 2 && a->path; with++) {
            a->score[with] = w->first[side][with].score;
            a->mean[with] = mean_of(a->score[with], a->n);
            a->interval[with] = bootstrap(a->score[with], a->n, (uint64_t)w->o->seed);
        }
    }
    return true;
}

static Divergence divergence(const double *kl, int n, int same) {
    Divergence d = {.n = n, .mean = mean_of(kl, n), .p95 = quantile_of(kl, n, 0.95), .p99 = quantile_of(kl, n, 0.99), .highest = quantile_of(kl, n, 1)};
    d.same = n ? (double)same / n : NAN;
    return d;
}

// ---- answers ----

// Answers of the target prompts under the intervention of the moment, only counted.
static bool count_answers(Work *w, int *marked, int *degenerate, Bar *bar, Err *e) {
    const PromptSet *set = &w->set[SIDE_TARGET];
    Ids *answer = calloc((size_t)set->n, sizeof *answer);
    bool *ended = calloc((size_t)set->n, sizeof *ended);
    bool ok = (answer && ended) || err_set(e, "no memory for answers");
    ok = ok && lab_answer(w->lab, set->ids, set->n, w->o->n_predict, answer, ended, bar, e);
    *marked = *degenerate = 0;
    for (int i = 0; ok && i < set->n; i++) {
        char *text;
        ok = lab_text(w->lab, &answer[i], &text, e);
        if (!ok) break;
        const bool broken = is_degenerate(&answer[i], text);
        *degenerate += broken;
        *marked += !broken && markers_found(&w->markers, text);
        free(text);
    }
    for (int i = 0; answer && i < set->n; i++) ids_free(&answer[i]);
    free(answer);
    free(ended);
    return ok;
}

static bool measure_answers(Work *w, Err *e) {
    int total = 0;
    bool ok = true;
    for (int side = 0; side < N_SIDE; side++) total += 2 * w->set[side].n;
    Bar bar;
    bar_start(&bar, "answers", total);
    for (int side = 0; ok && side < N_SIDE && !interrupted; side++) {
        Answers *a = &w->r->side[side];
        if (!a->path) continue;
        bool *ended = calloc((size_t)a->n, sizeof *ended);
        for (int with = 0; ok && with < 2 && !interrupted; with++) {
            Ids *answer = w->answer[side][with] = calloc((size_t)a->n, sizeof(Ids));
            a->answer[with] = calloc((size_t)a->n, sizeof(char *));
            a->is_marked[with] = calloc((size_t)a->n, sizeof(bool));
            w->lab->steer.on = with;
            ok = (answer && ended && a->answer[with] && a->is_marked[with]) || err_set(e, "no memory for answers");
            ok = ok && lab_answer(w->lab, w->set[side].ids, a->n, w->o->n_predict, answer, ended, &bar, e);
            for (int i = 0; ok && i < a->n; i++) {
                const char *expected = w->set[side].line[i]->answer;
                ok = lab_text(w->lab, &answer[i], &a->answer[with][i], e);
                if (!ok) break;
                const bool broken = is_degenerate(&answer[i], a->answer[with][i]);
                a->is_marked[with][i] = !broken && markers_found(&w->markers, a->answer[with][i]);
                a->degenerate[with] += broken;
                a->marked[with] += a->is_marked[with][i];
                a->correct[with] += expected && is_correct(a->answer[with][i], expected);
            }
            a->marked_rate[with] = wilson(a->marked[with], a->n - a->degenerate[with]);
            a->correct_rate[with] = wilson(a->correct[with], a->n_expected);
        }
        free(ended);
    }
    w->lab->steer.on = false;
    bar_end(&bar);
    return ok;
}

// ---- what else changes ----

static bool measure_forced(Work *w, Err *e) {
    const PromptSet *set = &w->set[SIDE_CONTRAST];
    Ids *ids = calloc((size_t)set->n, sizeof *ids);
    int *cont = calloc((size_t)set->n, sizeof *cont), n = 0, same = 0;
    bool ok = (ids && cont) || err_set(e, "no memory for the forced answers");
    for (int i = 0; ok && i < set->n; i++) { // the original's own answers
        const Ids *answer = &w->answer[SIDE_CONTRAST][WITHOUT][i];
        cont[n] = min_int(answer->n, w->o->n_forced);
        if (!cont[n]) continue;
        for (int k = 0; ok && k < set->ids[i].n; k++) ok = ids_push(&ids[n], set->ids[i].id[k]);
        for (int k = 0; ok && k < cont[n]; k++) ok = ids_push(&ids[n], answer->id[k]);
        if (!ok) err_set(e, "no memory for the forced answers");
        n++;
    }
    Forced f = {0};
    Bar bar;
    bar_start(&bar, "forced answers", 2.0 * n);
    ok = ok && forced_run(&f, w->lab, ids, cont, n, true, &bar, e);
    bar_end(&bar);
    if (ok && !interrupted) {
        for (int i = 0; i < f.total; i++) same += f.same[i];
        w->r->kl_forced = divergence(f.kl, f.total, same);
        for (int with = 0; with < 2; with++) w->r->ce[with] = mean_of(f.loss[with], f.total);
        same = 0;
        for (int i = 0; i < set->n; i++) same += w->first[SIDE_CONTRAST][0].top[i] == w->first[SIDE_CONTRAST][1].top[i];
        w->r->kl_first = divergence(w->first[SIDE_CONTRAST][WITH].kl, set->n, same);
    }
    forced_free(&f);
    for (int i = 0; ids && i < set->n; i++) ids_free(&ids[i]);
    free(ids);
    free(cont);
    return ok;
}

static bool measure_text(Work *w, Err *e) {
    if (!w->n_window) return true;
    Forced f = {0};
    Bar bar;
    int same = 0;
    bar_start(&bar, "perplexity", 2.0 * w->n_window);
    const bool ok = forced_run(&f, w->lab, w->window, w->window_cont, w->n_window, true, &bar, e);
    bar_end(&bar);
    if (ok && !interrupted) {
        w->r->text_tokens = f.total;
        for (int i = 0; i < f.total; i++) same += f.same[i];
        w->r->kl_text = divergence(f.kl, f.total, same);
        for (int with = 0; with < 2; with++) {
            const double mean = mean_of(f.loss[with], f.total);
            double square = 0;
            for (int i = 0; i < f.total; i++) square += (f.loss[with][i] - mean) * (f.loss[with][i] - mean);
            w->r->perplexity[with] = exp(mean);
            w->r->perplexity_error[with] = exp(mean) * sqrt(square / fmax(1, f.total - 1) / f.total);
        }
    }
    forced_free(&f);
    return ok;
}

typedef struct {
    const Lab *lab;
    int *choice;        // [n]
    unsigned char *letter; // [n_vocab] 1 + which letter a token is, with or without a blank before it
} LetterPass;

static void letter_logits(void *ctx, int prompt, int from_end, const float *logits) {
    const LetterPass *p = ctx;
    double share[N_CHOICE] = {0};
    (void)from_end;
    const int V = p->lab->m.c.n_vocab;
    const double all = log_sum_exp(logits, V);
    for (int i = 0; i < V; i++)
        if (p->letter[i]) share[p->letter[i] - 1] += exp(logits[i] - all);
    for (int i = 1; i < N_CHOICE; i++)
        if (share[i] > share[p->choice[prompt]]) p->choice[prompt] = i;
}

static bool choose_letters(Work *w, int f, int *choice[2], Bar *bar, Err *e) {
    const int V = w->lab->m.c.n_vocab;
    LetterPass p = {.lab = w->lab, .letter = calloc((size_t)V, 1)};
    bool ok = p.letter || err_set(e, "no memory for the letters"), any = false;
    for (int i = 0; ok && i < min_int(V, tokenizer_n_vocab(w->lab->tok)); i++) {
        size_t n;
        const char *text = tokenizer_bytes(w->lab->tok, i, false, &n);
        if (n == 2 && *text == ' ') text++, n--;
        if (n == 1 && *text >= 'A' && *text <= 'D') p.letter[i] = (unsigned char)(1 + *text - 'A'), any = true;
    }
    if (ok && !any) ok = err_set(e, "the vocabulary has no token A to D; use --choices text");
    for (int with = 0; ok && with < 2; with++) {
        p.choice = choice[with];
        w->lab->steer.on = with;
        ok = lab_read(w->lab, &(Reading){.prompt = w->quiz_ids[f], .n = w->questions[f].n, .n_logits = 1, .on_logits = letter_logits, .ctx = &p}, bar, e);
    }
    w->lab->steer.on = false;
    free(p.letter);
    return ok;
}

// The choice with the lowest loss per byte of its text (acc_norm of the usual harness).
static bool choose_texts(Work *w, int f, int *choice[2], Bar *bar, Err *e) {
    Forced done = {0};
    const Questions *q = &w->questions[f];
    const bool ok = forced_run(&done, w->lab, w->quiz_ids[f], w->quiz_cont[f], q->n * N_CHOICE, false, bar, e);
    for (int with = 0; ok && with < 2; with++)
        for (int i = 0; i < q->n; i++) {
            double best = INFINITY;
            for (int c = 0; c < N_CHOICE; c++) {
                const int at = i * N_CHOICE + c;
                double loss = 0;
                for (int k = 0; k < done.n_cont[at]; k++) loss += done.loss[with][done.first[at] + k];
                loss /= (double)strlen(q->q[i].choice[c]);
                if (loss < best) best = loss, choice[with][i] = c;
            }
        }
    forced_free(&done);
    return ok;
}

static bool measure_questions(Work *w, Err *e) {
    bool ok = true;
    for (int f = 0; ok && f < w->r->n_quiz && !interrupted; f++) {
        const Questions *q = &w->questions[f];
        Quiz *quiz = &w->r->quiz[f];
        int *choice[2] = {calloc((size_t)q->n, sizeof(int)), calloc((size_t)q->n, sizeof(int))};
        *quiz = (Quiz){.path = w->o->questions.text[f], .n = q->n};
        ok = (choice[0] && choice[1]) || err_set(e, "no memory for the questions");
        Bar bar;
        bar_start(&bar, "questions", 2.0 * q->n * (by_text(w->o) ? N_CHOICE : 1));
        ok = ok && (by_text(w->o) ? choose_texts(w, f, choice, &bar, e) : choose_letters(w, f, choice, &bar, e));
        bar_end(&bar);
        for (int i = 0; ok && i < q->n; i++) {
            for (int with = 0; with < 2; with++) quiz->right[with] += choice[with][i] == q->q[i].answer;
            quiz->same += choice[0][i] == choice[1][i];
        }
        for (int with = 0; with < 2; with++) quiz->rate[with] = wilson(quiz->right[with], q->n);
        free(choice[0]);
        free(choice[1]);
    }
    return ok;
}

// ---- controls and curves ----

// The mean scores and the divergence under what lab.steer is set to.
static bool effect_now(Work *w, First now[2], double *target, double *contrast, double *kl, Bar *bar, Err *e) {
    w->lab->steer.on = true;
    bool ok = first_read(&now[0], w->lab, &w->set[SIDE_TARGET], &w->openers, NULL, bar, e) &&
              first_read(&now[1], w->lab, &w->set[SIDE_CONTRAST], &w->openers, w->first[SIDE_CONTRAST][WITHOUT].logits, bar, e);
    w->lab->steer.on = false;
    *target = mean_of(now[0].score, now[0].n);
    if (contrast) *contrast = mean_of(now[1].score, now[1].n);
    *kl = mean_of(now[1].kl, now[1].n);
    return ok;
}

// A control takes the direction's place: the same layers and strength, as many random directions as there are directions.
// Affine and one-sided need means along the direction, which a control has not; it is projected out instead.
static bool measure_control(Work *w, Control *c, const Steer *real, const double *vector, Rng *rng, First now[2], bool answers, Bar *bar, Err *e) {
    const int n = w->r->n_embd, L = w->r->n_layer;
    Steer *s = &w->lab->steer;
    double *random = malloc(sizeof *random * (size_t)n);
    bool ok = random || err_set(e, "no memory for a control");
    steer_open(s, real->m, real->b);
    s->mode = real->mode == MODE_WRITE || real->mode == MODE_ADD ? real->mode : MODE_PROJECT;
    s->strength = real->strength;
    s->first = real->act_first;
    s->last = real->act_last;
    s->keep_embedding = real->keep_embedding;
    for (int k = 0; ok && k < (vector ? 1 : real->n_dir); k++) {
        for (int i = 0; i < n && !vector; i++) random[i] = rng_normal(rng);
        const double *v = vector ? vector : random;
        ok = direction_single(&s->dir[k], L, n, v, e);
        if (!ok) break;
        for (int l = 0; l <= L; l++) s->dir[k].length[l] = real->dir[0].single && real->dir[0].layer >= 0 ? real->dir[0].length[real->dir[0].layer] : real->dir[0].length[l];
        s->n_dir++;
        ok = direction_set_shape(&s->dir[k], real->dir[0].shape, e);
        if (k) continue;
        const float *d = direction_row(&real->dir[0], w->at_layer);
        c->cos = 0;
        for (int i = 0; i < n; i++) c->cos += (double)d[i] * s->dir[0].row[i];
    }
    ok = ok && steer_prepare(s, e) && effect_now(w, now, &c->score, NULL, &c->kl, bar, e);
    c->marked = c->degenerate = -1;
    if (ok && answers && !interrupted) {
        s->on = true;
        ok = count_answers(w, &c->marked, &c->degenerate, bar, e);
    }
    s->on = false;
    steer_close(s);
    free(random);
    return ok;
}

static bool measure_controls(Work *w, Err *e) {
    Report *r = w->r;
    const ReportOptions *o = w->o;
    const int n = r->n_embd, n_t = w->set[0].n, n_all = n_t + w->set[1].n, each = n_t + w->set[1].n, answered = min_int(o->n_answered, o->n_control);
    r->control = calloc(2 * (size_t)o->n_control + 1, sizeof *r->control);
    double *v = malloc(sizeof *v * (size_t)n), *drop = calloc((size_t)max_int(o->n_control, 1), sizeof *drop);
    int *order = malloc(sizeof *order * (size_t)n_all);
    First now[2] = {{0}, {0}};
    bool ok = (r->control && v && order && drop) || err_set(e, "no memory for the controls");
    ok = ok && first_open(&now[0], w->lab, n_t, true, false, e) && first_open(&now[1], w->lab, w->set[1].n, true, false, e);
    const Steer real = w->lab->steer;
    Rng rng = rng_seed((uint64_t)o->seed, 0xC0);
    Bar bar;
    bar_start(&bar, "controls", (2.0 * o->n_control + 1) * each + 2.0 * answered * n_t);
    for (int k = 0; ok && k < o->n_control && !interrupted; k++) {
        Control *c = &r->control[r->n_control++];
        c->kind = "random";
        ok = measure_control(w, c, &real, NULL, &rng, now, k < answered, &bar, e);
        drop[k] = r->side[0].mean[WITHOUT] - c->score;
        r->random_kl += c->kl / o->n_control;
    }
    for (int k = 0; ok && k < o->n_control && !interrupted; k++) {
        Control *c = &r->control[r->n_control++];
        c->kind = "shuffled labels";
        for (int i = 0; i < n_all; i++) order[i] = i;
        rng_shuffle(&rng, order, n_all);
        memset(v, 0, sizeof *v * (size_t)n);
        for (int i = 0; i < n_all; i++)
            for (int j = 0; j < n; j++) v[j] += w->row[(int64_t)order[i] * n + j] * (i < n_t ? 1.0 / n_t : -1.0 / (n_all - n_t));
        ok = measure_control(w, c, &real, v, &rng, now, k < answered, &bar, e);
    }
    if (ok && o->n_control && !interrupted) {
        Control *c = &r->control[r->n_control++];
        c->kind = "contrast mean";
        memset(v, 0, sizeof *v * (size_t)n);
        for (int i = n_t; i < n_all; i++)
            for (int j = 0; j < n; j++) v[j] += w->row[(int64_t)i * n + j] / (n_all - n_t);
        ok = measure_control(w, c, &real, v, &rng, now, false, &bar, e);
    }
    w->lab->steer = real;
    bar_end(&bar);
    r->random_score_95 = o->n_control ? quantile_of(drop, o->n_control, 0.95) : NAN;
    first_close(&now[0]);
    first_close(&now[1]);
    free(v);
    free(drop);
    free(order);
    return ok;
}

static bool measure_curves(Work *w, Err *e) {
    Report *r = w->r;
    if (w->lab->edited) return true; // has one strength
    Steer *s = &w->lab->steer;
    const double strength = s->strength;
    const SteerMode mode = s->mode;
    const int first = s->first, last = s->last;
    First now[2] = {{0}, {0}};
    bool ok = first_open(&now[0], w->lab, w->set[0].n, true, false, e) && first_open(&now[1], w->lab, w->set[1].n, true, false, e);
    r->has_add = s->dir[0].layer >= 0 && s->dir[0].length[s->dir[0].layer] > 0;
    Bar bar;
    bar_start(&bar, "strengths", (double)N_CURVE * (1 + r->has_add) * (w->set[0].n + w->set[1].n));
    for (int k = 0; ok && k < N_CURVE && !interrupted; k++) {
        s->strength = r->curve_strength[k] = 0.25 * k;
        ok = steer_prepare(s, e) && effect_now(w, now, &r->curve_target[k], &r->curve_contrast[k], &r->curve_kl[k], &bar, e);
    }
    s->mode = MODE_ADD;
    s->first = -1; // entering its own layer
    for (int k = 0; ok && r->has_add && k < N_CURVE && !interrupted; k++) {
        double kl;
        s->strength = r->add_strength[k] = -2 + 0.5 * k;
        ok = steer_prepare(s, e) && effect_now(w, now, &r->add_target[k], &r->add_contrast[k], &kl, &bar, e);
    }
    bar_end(&bar);
    s->mode = mode;
    s->strength = strength;
    s->first = first;
    s->last = last;
    first_close(&now[0]);
    first_close(&now[1]);
    return ok && steer_prepare(s, e);
}

// ---- all of it ----

static void describe(Work *w) {
    Report *r = w->r;
    const Model *m = &w->lab->m;
    snprintf(r->model, sizeof r->model, "%s", base_name(w->o->lab.model));
    snprintf(r->architecture, sizeof r->architecture, "%s", m->c.arch);
    snprintf(r->backend, sizeof r->backend, "%s", w->lab->b.name); // not the threads and instructions: they change nothing
    model_fingerprint(m, r->fingerprint);
    r->n_layer = m->c.n_layer;
    r->n_embd = m->c.n_embd;
    r->n_param_millions = (double)m->n_param / 1e6;
}

static void name_openers(Work *w) {
    Report *r = w->r;
    size_t n = 0;
    r->n_opener = w->openers.n;
    r->n_marker = w->markers.n;
    for (int i = 0; i < w->openers.n && i < 8; i++) {
        char text[48];
        lab_token(w->lab, w->openers.id[i], text);
        n += (size_t)snprintf(r->opener_text + n, sizeof r->opener_text - n, "%s%s", i ? " " : "", text);
    }
    if (w->openers.n > 8) snprintf(r->opener_text + n, sizeof r->opener_text - n, " ... (%d in all)", w->openers.n);
}

static bool measure(Work *w, Err *e) {
    const ReportOptions *o = w->o;
    if (!load_directions(w, e) || !read_prompts(w, e) || !markers_read(&w->markers, o->markers, e)) return false;
    if (o->openers ? !openers_read(&w->openers, o->openers, w->lab, e) : o->directions.n && !openers_of_direction(&w->openers, o->directions.text[0], w->lab->m.c.n_vocab, e)) return false;
    if (!read_text(w, e) || !read_questions(w, e) || !open_session(w, e) || !prepare_directions(w, e)) return false;
    describe(w);
    bool (*const steps[])(Work *, Err *) = {measure_stream, measure_answers, measure_forced, measure_text, measure_questions, measure_controls, measure_curves};
    for (size_t i = 0; i < sizeof steps / sizeof *steps && !interrupted; i++)
        if (!steps[i](w, e)) return false;
    name_openers(w);
    return !interrupted || err_set(e, "interrupted, no report is written");
}

bool report_measure(Report *r, Lab *lab, const ReportOptions *o, Err *e) {
    static Work w; // large
    w = (Work){.r = r, .lab = lab, .o = o};
    *r = (Report){.o = o, .direction_layer = -1};
    const bool ok = measure(&w, e);
    for (int side = 0; side < N_SIDE; side++) {
        for (int with = 0; with < 2; with++) {
            for (int i = 0; w.answer[side][with] && i < w.set[side].n; i++) ids_free(&w.answer[side][with][i]);
            free(w.answer[side][with]);
            if (r->side[side].score[with]) w.first[side][with].score = NULL; // the report's now
            first_close(&w.first[side][with]);
        }
        if (side < 2) means_free(&w.mean[side]);
        set_free(&w.set[side]);
        // the prompts' texts are the report's: the file stays open until report_free
        r->side[side].file = w.file[side];
    }
    for (int f = 0; f < MAX_QUIZ; f++) {
        for (int i = 0; w.quiz_ids[f] && i < w.questions[f].n * (by_text(o) ? N_CHOICE : 1); i++) ids_free(&w.quiz_ids[f][i]);
        free(w.quiz_ids[f]);
        free(w.quiz_cont[f]);
        questions_free(&w.questions[f]);
    }
    for (int i = 0; i < w.n_window; i++) ids_free(&w.window[i]);
    free(w.window);
    free(w.window_cont);
    free(w.row);
    openers_free(&w.openers);
    markers_free(&w.markers);
    return ok;
}

void report_free(Report *r) {
    for (int side = 0; side < N_SIDE; side++) {
        Answers *a = &r->side[side];
        for (int with = 0; with < 2; with++) {
            free(a->score[with]);
            for (int i = 0; a->answer[with] && i < a->n; i++) free(a->answer[with][i]);
            free(a->answer[with]);
            free(a->is_marked[with]);
            if (side < 2) {
                free(r->cosine[side][with]);
                free(r->component[side][with]);
            }
        }
        free(a->prompt);
        prompts_free(&a->file);
    }
    free(r->position);
    free(r->difference);
    free(r->control);
    *r = (Report){0};
}
