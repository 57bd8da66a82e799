// lab.c: see lab.h
#include "lab.h"

#include <ctype.h>
#include <math.h>
#include <stdlib.h>

#include "stats.h"

enum { BATCH_ROWS = 256 }; // tokens per forward pass: enough to amortise the weights, few enough to stop soon after Ctrl-C

// ---- opening ----

bool lab_open(Lab *lab, const LabOptions *o, Err *e) {
    *lab = (Lab){.o = *o};
    if (!model_open(&lab->m, o->model, e) || !tokenizer_open(&lab->tok, &lab->m.gguf, e)) return false;
    if (!chat_from_file(&lab->chat, &lab->m.gguf, lab->tok, e)) return false;
    if (o->template_name && !chat_force(&lab->chat, o->template_name))
        return err_set(e, "option --template is '%s', expected one of %s", o->template_name, chat_family_names());
    if (o->no_template) lab->chat.family = NULL;
    lab->chat.thinking = o->think;
    if (!lab->o.n_ctx) lab->o.n_ctx = min_int(8192, lab->m.c.n_ctx_train);
    steer_open(&lab->steer, &lab->m, &lab->b);
    lab->row = malloc(sizeof(float) * (size_t)lab->m.c.n_embd);
    return lab->row || err_set(e, "no memory for a row of the stream");
}

void lab_close(Lab *lab) {
    steer_close(&lab->steer);
    session_close(&lab->s);
    place_close(&lab->b, &lab->m);
    tokenizer_close(lab->tok);
    model_close(&lab->m);
    free(lab->row);
    *lab = (Lab){0};
}

// ---- prompts to ids ----

// Bytes of the template after the user's text.
static size_t suffix_bytes(const Prompt *p) {
    size_t n = 0;
    for (int i = p->n - 1; i >= 0 && p->seg[i].trusted; i--) n += p->seg[i].n;
    return n;
}

// The ids' last tokens that lie within the last `bytes` bytes.
static int tokens_within(const Lab *lab, const Ids *ids, size_t bytes) {
    int n = 0;
    for (size_t used = 0; n < ids->n; n++) {
        size_t k;
        (void)tokenizer_bytes(lab->tok, ids->id[ids->n - 1 - n], true, &k);
        used += k;
        if (used > bytes) break;
    }
    return n;
}

static bool encode(Lab *lab, const char *text, Ids *ids, int *n_suffix, Err *e) {
    if (!lab->chat.family) { // raw text: the last token is all there is
        *n_suffix = 1;
        return tokenizer_encode(lab->tok, text, strlen(text), true, false, ids, e);
    }
    const Message m[2] = {{ROLE_SYSTEM, (char *)lab->o.system}, {ROLE_USER, (char *)text}};
    Prompt p = {0};
    const bool ok = chat_render(&lab->chat, lab->o.system ? m : m + 1, 0, lab->o.system ? 2 : 1, true, &p, e) &&
                    tokenizer_encode_segments(lab->tok, p.seg, p.n, true, ids, e);
    if (ok) *n_suffix = max_int(1, tokens_within(lab, ids, suffix_bytes(&p)));
    prompt_free(&p);
    return ok;
}

bool lab_encode(Lab *lab, const PromptFile *p, const int *order, int n, PromptSet *out, Err *e) {
    *out = (PromptSet){.ids = calloc((size_t)max_int(n, 1), sizeof(Ids)), .line = calloc((size_t)max_int(n, 1), sizeof(PromptLine *)), .n = n, .n_suffix = INT32_MAX};
    if (!out->ids || !out->line) return err_set(e, "%s: no memory for the prompts", p->path);
    for (int i = 0; i < n; i++) {
        Ids *ids = &out->ids[i];
        int n_suffix;
        out->line[i] = &p->line[order ? order[i] : i];
        const char *text = out->line[i]->text;
        if (!encode(lab, text, ids, &n_suffix, e)) return false;
        if (!ids->n) return err_set(e, "%s: the prompt '%.40s' has no tokens", p->path, text);
        if (ids->n > lab->o.n_ctx) return err_set(e, "%s: the prompt '%.40s...' has %d tokens, the context %d; use a larger -c", p->path, text, ids->n, lab->o.n_ctx);
        out->n_suffix = min_int(out->n_suffix, n_suffix);
        const Ids *first = &out->ids[0];
        int same = 0; // tokens at the end that this prompt shares with the first
        while (same < min_int(out->n_suffix, min_int(first->n, ids->n)) && first->id[first->n - 1 - same] == ids->id[ids->n - 1 - same]) same++;
        out->n_suffix = max_int(1, same);
    }
    return true;
}

void set_free(PromptSet *s) {
    for (int i = 0; s->ids && i < s->n; i++) ids_free(&s->ids[i]);
    free(s->ids);
    free(s->line);
    *s = (PromptSet){0};
}

int set_longest(const PromptSet *s) {
    int longest = 0;
    for (int i = 0; i < s->n; i++) longest = max_int(longest, s->ids[i].n);
    return longest;
}

// ---- reading ----

static void show_rows(void *ctx, const TapSite *t) {
    const Lab *lab = ctx;
    const Reading *r = lab->reading;
    const int site = tap_site(t->point, t->layer);
    if (!r || !r->on_row || site < 0) return;
    for (const Span *g = t->span; g < t->span + t->n_span; g++) {
        const int prompt = lab->first + g->seq, length = r->prompt[prompt].n;
        for (int i = max_int(0, length - r->n_last - g->pos); i < g->n; i++) {
            t->backend->download(t->backend, lab->row, t->rows + (int64_t)(g->row + i) * t->n_col, sizeof(float) * (size_t)t->n_col);
            r->on_row(r->ctx, prompt, length - 1 - (g->pos + i), site, lab->row);
        }
    }
}

// Who keeps rows is shown all of them.
static void set_reading(Lab *lab, const Reading *r) {
    lab->reading = r;
    lab->s.taps[lab->s.n_tap - 1].wanted_only = !r || !r->on_row;
}

static void show_logits(void *ctx, const float *logits, int seq, int pos) {
    const Lab *lab = ctx;
    const Reading *r = lab->reading;
    const int prompt = lab->first + seq;
    if (r && r->on_logits) r->on_logits(r->ctx, prompt, r->prompt[prompt].n - 1 - pos, logits);
}

bool lab_ready(Lab *lab, int longest, int n_answer, Err *e) {
    if (lab->edited && !lab_ready(lab->edited, longest, n_answer, e)) return false;
    PlaceOptions p = lab->o.place;
    if (!place_check(&p, e)) return false;
    p.program = "abliterate";
    p.quiet = lab->o.quiet;
    p.session = (SessionParams){.n_ctx = min_int(longest + n_answer, max_int(lab->o.n_ctx, longest)), .n_batch = BATCH_ROWS, .n_seq = lab->o.n_seq, .alike = true,
                                .type_k = place_cache_type(p.cache_k), .type_v = place_cache_type(p.cache_v)};
    if (!place_open(&lab->s, &lab->b, &lab->m, &p, e)) return false;
    lab->s.on_logits = show_logits;
    lab->s.on_logits_ctx = lab;
    return session_add_tap(&lab->s, steer_tap(&lab->steer), e) && session_add_tap(&lab->s, (Tap){.call = show_rows, .ctx = lab}, e); // rows are shown as the intervention leaves them
}

void bar_start(Bar *b, const char *label, double total) {
    *b = (Bar){.total = total};
    progress_start(&b->p, label);
}
void bar_end(Bar *b) { progress_end(&b->p); }

static void bar_step(Bar *b, double n) {
    if (!b) return;
    b->done += n;
    progress_step(&b->p, b->done, b->total);
}

bool lab_read(Lab *lab, const Reading *r, Bar *bar, Err *e) {
    if (lab->edited && lab->steer.on) return lab_read(lab->edited, r, bar, e);
    Feed feed[64];
    const int most = min_int(lab->s.p.n_seq, 64);
    bool ok = true;
    set_reading(lab, r);
    for (int first = r->start; ok && first < r->n && !interrupted; first += most) {
        const int n = min_int(most, r->n - first);
        lab->first = first;
        for (int i = 0; i < n; i++) {
            const Ids *ids = &r->prompt[first + i];
            feed[i] = (Feed){.seq = i, .ids = ids->id, .n = ids->n, .n_logits = r->on_logits ? min_int(r->logits_of ? r->logits_of[first + i] : r->n_logits, ids->n) : 0};
            session_rewind(&lab->s, i, 0);
        }
        ok = session_eval_batch(&lab->s, feed, n, e) && (!r->on_group || r->on_group(r->ctx, first + n, e));
        bar_step(bar, n);
    }
    set_reading(lab, NULL);
    return ok;
}

// ---- answering ----

static bool is_end(const Lab *lab, int id) {
    if (tokenizer_is_end(lab->tok, id)) return true;
    const char *const *stop = lab->chat.family ? chat_stops(&lab->chat) : NULL;
    for (; stop && *stop; stop++)
        if (tokenizer_find(lab->tok, *stop, strlen(*stop)) == id) return true;
    return false;
}

// The likeliest token that may be said.
static int greedy(const Lab *lab, float *logits) {
    const int n_vocab = min_int(lab->m.c.n_vocab, tokenizer_n_vocab(lab->tok));
    for (;;) {
        const int id = arg_max(logits, n_vocab);
        if (!tokenizer_is_suppressed(lab->tok, id)) return id;
        logits[id] = -INFINITY;
    }
}

bool lab_answer(Lab *lab, const Ids *prompt, int n_prompt, int n_predict, Ids *answer, bool *ended, Bar *bar, Err *e) {
    if (lab->edited && lab->steer.on) return lab_answer(lab->edited, prompt, n_prompt, n_predict, answer, ended, bar, e);
    Feed feed[64];
    int last[64];
    const int most = min_int(lab->s.p.n_seq, 64), V = lab->m.c.n_vocab;
    set_reading(lab, NULL);
    for (int first = 0; first < n_prompt && !interrupted; first += most) {
        int active = min_int(most, n_prompt - first);
        const int n = active;
        for (int i = 0; i < n; i++) {
            const Ids *ids = &prompt[first + i];
            feed[i] = (Feed){.seq = i, .ids = ids->id, .n = ids->n, .n_logits = 1};
            session_rewind(&lab->s, i, 0);
            answer[first + i].n = 0;
            ended[first + i] = false;
        }
        for (int made = 0; active && made < n_predict && !interrupted; made++) {
            if (!session_eval_batch(&lab->s, feed, active, e)) return false;
            int left = 0;
            for (int i = 0; i < active; i++) {
                const int seq = feed[i].seq, id = greedy(lab, lab->s.logits + (int64_t)seq * V);
                if (is_end(lab, id)) {
                    ended[first + seq] = true;
                    continue;
                }
                if (!ids_push(&answer[first + seq], id)) return err_set(e, "no memory for an answer");
                if (lab->s.seq[seq].pos == lab->s.p.n_ctx) continue;
                last[seq] = id;
                feed[left++] = (Feed){.seq = seq, .ids = &last[seq], .n = 1, .n_logits = 1};
            }
            active = left;
        }
        bar_step(bar, n);
    }
    return true;
}

typedef struct {
    char *text;
    size_t n, cap;
    bool failed;
} Text;

static void keep_content(void *ctx, ChatPart part, const char *p, size_t n) {
    Text *t = ctx;
    if (part != CHAT_CONTENT) return;
    if (t->n + n + 1 > t->cap) {
        char *more = realloc(t->text, 2 * (t->n + n + 1));
        if (!more) {
            t->failed = true;
            return;
        }
        t->text = more;
        t->cap = 2 * (t->n + n + 1);
    }
    memcpy(t->text + t->n, p, n);
    t->n += n;
}

bool lab_text(const Lab *lab, const Ids *answer, char **text, Err *e) {
    ChatParser parser;
    Utf8Stream utf8 = {0};
    Text out = {.text = malloc(1), .cap = 1};
    char *bytes = NULL;
    size_t n = 0, cap = 0;
    bool ok = out.text != NULL;
    chat_parser_init(&parser, &lab->chat);
    for (int i = 0; ok && i <= answer->n; i++) {
        size_t k = 0;
        const char *p = i < answer->n ? tokenizer_bytes(lab->tok, answer->id[i], false, &k) : NULL;
        n = 0;
        ok = utf8_stream_push(&utf8, p, k, i == answer->n, &bytes, &n, &cap);
        if (!ok) break;
        if (lab->chat.family) chat_parser_push(&parser, bytes, n, i == answer->n, keep_content, &out);
        else keep_content(&out, CHAT_CONTENT, bytes, n);
        ok = !out.failed;
    }
    free(bytes);
    if (!ok) {
        free(out.text);
        return err_set(e, "no memory for an answer's text");
    }
    out.text[out.n] = 0;
    const char *const *stop = lab->chat.family ? chat_stops(&lab->chat) : NULL;
    for (; stop && *stop; stop++) { // stops that are text, not tokens
        char *at = strstr(out.text, *stop);
        if (at) *at = 0;
    }
    const char *from = out.text + strspn(out.text, " \n\t");
    memmove(out.text, from, strlen(from) + 1);
    for (size_t i = strlen(out.text); i && isspace((unsigned char)out.text[i - 1]); i--) out.text[i - 1] = 0;
    *text = out.text;
    return true;
}

void lab_token(const Lab *lab, int id, char out[48]) {
    size_t n, w = 0;
    const char *p = tokenizer_bytes(lab->tok, id, true, &n);
    out[w++] = '"';
    for (size_t i = 0; i < n && w < 40; i++) {
        if (p[i] == '\n') out[w++] = '\\', out[w++] = 'n';
        else out[w++] = (unsigned char)p[i] < ' ' ? '?' : p[i];
    }
    out[w++] = '"';
    out[w] = 0;
}
