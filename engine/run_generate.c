// run_generate.c: one answer: prompt ids into the session, then sample, print, feed back, until something says stop.
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "run.h"

// ---- what is never said ----

static bool banned(const void *ctx, int id) {
    const Run *r = ctx;
    if (id >= tokenizer_n_vocab(r->tok) || tokenizer_is_suppressed(r->tok, id)) return true;
    return r->o.ignore_eos && tokenizer_is_end(r->tok, id);
}

// Once, before the first logits. A sampler that chooses among few gets only these from the session.
static bool ban(Run *r, Err *e) {
    if (r->sampler.banned) return true;
    r->sampler.banned = banned;
    r->sampler.banned_ctx = r;
    const int k = sampler_wants_top(&r->sampler), n_vocab = r->m.c.n_vocab;
    if (!k) return true;
    float *bias = malloc(sizeof *bias * (size_t)n_vocab);
    if (!bias) return err_set(e, "no memory for a list of the tokens that are never said");
    for (int id = 0; id < n_vocab; id++) bias[id] = banned(r, id) ? -INFINITY : 0;
    session_want_top(&r->s, k, bias);
    free(bias);
    return true;
}

// ---- feeding ----

static bool prefill_step(void *ctx, int done, int total) {
    progress_step(ctx, done, total);
    return asked_to_stop();
}

bool run_feed(Run *r, const Ids *ids, Err *e) {
    if (!ban(r, e)) return false;
    int common = 0;
    while (common < ids->n - 1 && common < r->cached.n && ids->id[common] == r->cached.id[common]) common++;
    common = session_rewind(&r->s, 0, common); // a window may have forgotten: then from the start
    r->cached.n = common;
    Progress p;
    progress_start(&p, "reading the prompt");
    r->s.on_progress = prefill_step;
    r->s.on_progress_ctx = &p;
    const double start = seconds_now();
    const bool ok = session_eval(&r->s, ids->id + common, ids->n - common, e);
    r->prompt_seconds += seconds_now() - start;
    r->s.on_progress = NULL;
    progress_end(&p);
    r->prompt_tokens += (uint64_t)(session_pos(&r->s) - common);
    for (int i = common; i < session_pos(&r->s); i++)
        if (!ids_push(&r->cached, ids->id[i])) return err_set(e, "no memory for the conversation");
    for (int i = common; i < session_pos(&r->s); i++) sampler_accept(&r->sampler, ids->id[i]);
    return ok;
}

// ---- an answer on its way out ----

typedef struct {
    Run *r;
    bool chat, started;       // started: something visible was printed (leading blanks of a chat answer are dropped)
    char *text;               // content so far
    size_t n, cap, printed;
    ChatPart last;
    bool stopped, out_of_memory;
    const char *stop[16];     // stop texts that are no tokens
    int n_stop;
} Answer;

static void show(Answer *a, ChatPart part, const char *p, size_t n) {
    if (a->r->mute) return;
    if (part == CHAT_THOUGHT) { // beside the answer, not in it
        const bool colour = is_terminal(STDERR_FILENO);
        fprintf(stderr, "%s%.*s%s", colour ? "\033[2m" : "", (int)n, p, colour ? "\033[0m" : "");
    } else {
        if (a->last == CHAT_THOUGHT) fputc('\n', stderr);
        fwrite(p, 1, n, stdout);
        fflush(stdout);
    }
    a->last = part;
}

// How much of the text can be printed: up to a stop text, or up to what may become one.
static size_t printable(Answer *a, bool flush) {
    size_t limit = a->n;
    for (int s = 0; s < a->n_stop; s++) {
        const size_t n = strlen(a->stop[s]);
        for (size_t i = a->printed; i < a->n; i++) {
            const size_t have = a->n - i < n ? a->n - i : n;
            if (memcmp(a->text + i, a->stop[s], have)) continue;
            if (have == n) {
                a->stopped = true;
                a->n = i;
                return i;
            }
            if (!flush && i < limit) limit = i;
        }
    }
    return limit;
}

static void content(void *ctx, ChatPart part, const char *p, size_t n) {
    Answer *a = ctx;
    if (part == CHAT_THOUGHT) {
        show(a, part, p, n);
        return;
    }
    while (a->chat && !a->started && n && (*p == ' ' || *p == '\n')) p++, n--;
    if (!n || a->stopped) return;
    a->started = true;
    if (a->n + n + 1 > a->cap) {
        const size_t cap = 2 * (a->n + n + 1);
        char *bigger = realloc(a->text, cap);
        if (!bigger) {
            a->out_of_memory = true;
            return;
        }
        a->text = bigger;
        a->cap = cap;
    }
    memcpy(a->text + a->n, p, n);
    a->n += n;
    a->text[a->n] = 0;
}

static void print_content(Answer *a, bool flush) {
    const size_t upto = printable(a, flush);
    if (upto > a->printed) show(a, CHAT_CONTENT, a->text + a->printed, upto - a->printed);
    a->printed = upto > a->printed ? upto : a->printed;
}

// Nothing visible comes before what will be generated: SPM's first token then brings a blank that is not part of the text.
static bool starts_text(const Run *r) {
    size_t n = 0;
    for (int i = 0; i < r->cached.n && !n; i++) tokenizer_bytes(r->tok, r->cached.id[i], false, &n);
    return !n && tokenizer_is_spm(r->tok);
}

bool run_generate(Run *r, int n_predict, bool chat, char **answer, StopReason *why, Err *e) {
    Answer a = {.r = r, .chat = chat};
    int stop_id[16], n_stop_id = 0;
    const char *const *stops = chat ? chat_stops(&r->chat) : NULL;
    for (int i = 0; stops && stops[i] && i < 16; i++) {
        const int id = tokenizer_find(r->tok, stops[i], strlen(stops[i]));
        if (id >= 0) stop_id[n_stop_id++] = id;
        else a.stop[a.n_stop++] = stops[i];
    }
    ChatParser parser;
    chat_parser_init(&parser, &r->chat);
    Utf8Stream utf8 = {.strip_space = !chat && starts_text(r)};
    char *bytes = NULL;
    size_t n_bytes = 0, cap_bytes = 0;
    bool ok = true;
    *why = STOP_LIMIT;
    const double start = seconds_now();
    for (int made = 0; n_predict < 0 || made < n_predict; made++) {
        if (asked_to_stop()) {
            *why = STOP_INTERRUPT;
            break;
        }
        const int id = r->s.n_top ? sampler_next_top(&r->sampler, r->s.top, r->s.n_top) : sampler_next(&r->sampler, r->s.logits);
        bool end = id < 0 || (!r->o.ignore_eos && tokenizer_is_end(r->tok, id));
        for (int i = 0; i < n_stop_id && !r->o.ignore_eos; i++) end |= id == stop_id[i];
        if (end) {
            *why = STOP_END;
            break;
        }
        size_t n;
        const char *p = tokenizer_bytes(r->tok, id, false, &n);
        n_bytes = 0;
        if (!utf8_stream_push(&utf8, p, n, false, &bytes, &n_bytes, &cap_bytes)) a.out_of_memory = true;
        if (chat) chat_parser_push(&parser, bytes, n_bytes, false, content, &a);
        else content(&a, CHAT_CONTENT, bytes, n_bytes);
        print_content(&a, false);
        if (a.stopped) {
            *why = STOP_END;
            break;
        }
        if (a.out_of_memory && !(ok = err_set(e, "no memory for the answer"))) break;
        if (ferror(stdout) && !(ok = err_set(e, "standard output: cannot write"))) break;
        r->answer_tokens++;
        if (r->steer.watch >= 0 && !(ok = run_bar_note(r, id, e))) break;
        if (session_pos(&r->s) == r->s.p.n_ctx) {
            *why = STOP_CONTEXT;
            break;
        }
        sampler_accept(&r->sampler, id);
        if (!(ok = session_eval(&r->s, &id, 1, e))) break;
        if (!ids_push(&r->cached, id) && !(ok = err_set(e, "no memory for the conversation"))) break;
    }
    r->answer_seconds += seconds_now() - start;
    n_bytes = 0;
    if (ok && !a.stopped && utf8_stream_push(&utf8, NULL, 0, true, &bytes, &n_bytes, &cap_bytes)) {
        if (chat) chat_parser_push(&parser, bytes, n_bytes, true, content, &a);
        else content(&a, CHAT_CONTENT, bytes, n_bytes);
        print_content(&a, true);
    }
    free(bytes);
    if (answer && ok) {
        *answer = a.text ? a.text : strdup("");
        if (!*answer) ok = err_set(e, "no memory for the answer");
        else (*answer)[a.n < strlen(*answer) ? a.n : strlen(*answer)] = 0;
    } else free(a.text);
    return ok;
}

void run_print_speed(const Run *r) {
    if (r->o.quiet) return;
    fflush(stdout);
    fprintf(stderr, "prompt %llu tokens, %.1f t/s; generated %llu tokens, %.1f t/s (%s: %s)", (unsigned long long)r->prompt_tokens,
            r->prompt_seconds > 0 ? (double)r->prompt_tokens / r->prompt_seconds : 0, (unsigned long long)r->answer_tokens,
            r->answer_seconds > 0 ? (double)r->answer_tokens / r->answer_seconds : 0, r->b.name, r->b.detail);
    const Resident *x = r->s.resident;
    if (x && x->n_choice)
        fprintf(stderr, "; %.1f %% of the chosen experts on the GPU, %lld brought", 100.0 * (double)x->n_here / (double)x->n_choice, (long long)x->n_brought);
    fputc('\n', stderr);
}

bool run_once(Run *r, const char *text, size_t n, Err *e) {
    const bool chat = r->chat.family != NULL;
    Ids ids = {0};
    bool ok;
    if (chat) {
        char *user = strndup(text, n); // a NUL inside ends it, as in every template engine
        const Message m[2] = {{ROLE_SYSTEM, (char *)r->o.system}, {ROLE_USER, user}};
        Prompt p = {0};
        ok = user || err_set(e, "no memory for the prompt");
        ok = ok && chat_render(&r->chat, r->o.system ? m : m + 1, 0, r->o.system ? 2 : 1, true, &p, e) &&
             tokenizer_encode_segments(r->tok, p.seg, p.n, !r->o.no_bos, &ids, e);
        prompt_free(&p);
        free(user);
    } else {
        if (r->o.system) fprintf(stderr, "run: -sys: this model has no prompt template, the system prompt is not used\n");
        ok = tokenizer_encode(r->tok, text, n, !r->o.no_bos, !r->o.no_parse_special, &ids, e);
    }
    StopReason why = STOP_END;
    if (ok && !ids.n) ok = err_set(e, "the prompt has no tokens");
    if (ok && ids.n > r->s.p.n_ctx) // the session would say the same; -c is the way out
        ok = err_set(e, "the prompt has %d tokens, the context %d; use a larger -c", ids.n, r->s.p.n_ctx);
    if (ok) {
        catch_stops(true);
        ok = run_feed(r, &ids, e);
        if (ok && !chat && !r->o.no_echo) fwrite(text, 1, n, stdout);
        if (ok && !interrupted) ok = run_generate(r, r->o.n_predict, chat, NULL, &why, e);
        catch_stops(false);
        if (ok) {
            putchar('\n');
            run_bar_print(r);
            if (why == STOP_CONTEXT) fprintf(stderr, "run: stopped: the context of %d tokens is full (-c)\n", r->s.p.n_ctx);
            run_print_speed(r);
        }
    }
    ids_free(&ids);
    return ok;
}
