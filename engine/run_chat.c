// run_chat.c: the conversation. Every turn renders the whole history, keeps the longest common prefix of the KV cache and
// evaluates the rest, so that edits of the history (a dropped thought, /system, /load) are always right and rarely cost much.
#include <errno.h>
#include <stdlib.h>
#include <unistd.h>
#include "lineedit.h"
#include "run.h"

typedef struct {
    Message *m;
    int n, cap;
} History;

static bool push(History *h, Role role, const char *text, Err *e) {
    if (h->n == h->cap) {
        const int cap = h->cap ? 2 * h->cap : 16;
        Message *p = realloc(h->m, sizeof *p * (size_t)cap);
        if (!p) return err_set(e, "no memory for the conversation");
        h->m = p;
        h->cap = cap;
    }
    char *copy = strdup(text);
    if (!copy) return err_set(e, "no memory for the conversation");
    h->m[h->n++] = (Message){role, copy};
    return true;
}

static void cut(History *h, int n) {
    while (h->n > n) free(h->m[--h->n].text);
}

static bool set_system(History *h, const char *text, Err *e) {
    const bool has = h->n && h->m[0].role == ROLE_SYSTEM;
    if (!*text) { // none from now on
        if (has) {
            free(h->m[0].text);
            memmove(h->m, h->m + 1, sizeof *h->m * (size_t)--h->n);
        }
        return true;
    }
    if (!has) {
        if (!push(h, ROLE_SYSTEM, text, e)) return false;
        const Message system = h->m[h->n - 1];
        memmove(h->m + 1, h->m, sizeof *h->m * (size_t)(h->n - 1));
        h->m[0] = system;
        return true;
    }
    char *copy = strdup(text);
    if (!copy) return err_set(e, "no memory for the conversation");
    free(h->m[0].text);
    h->m[0].text = copy;
    return true;
}

// ---- /save and /load: a plain text file; each message is "role bytes", a newline, the text, a newline ----

static const char MAGIC[] = "abliterate chat 1\n";
static const char *const ROLES[] = {"system", "user", "assistant"};

static bool save(const History *h, const char *path, Err *e) {
    SafeFile f;
    if (!safe_open(&f, path, e)) return false;
    fputs(MAGIC, f.f);
    for (int i = 0; i < h->n; i++) fprintf(f.f, "%s %zu\n%s\n", ROLES[h->m[i].role], strlen(h->m[i].text), h->m[i].text);
    return safe_close(&f, true, e);
}

static bool load(History *h, const char *path, Err *e) {
    char *text;
    size_t n;
    if (!read_whole_file(path, &text, &n, e)) return false;
    const size_t magic = strlen(MAGIC);
    History read = {0};
    bool ok = n >= magic && !memcmp(text, MAGIC, magic);
    for (char *p = text + magic, *end = text + n; ok && p < end;) {
        char role[16];
        size_t bytes;
        int used = 0, which = -1;
        ok = sscanf(p, "%15s %zu%n", role, &bytes, &used) == 2 && used > 0 && p[used] == '\n' && bytes < (size_t)(end - p - used - 1);
        for (int i = 0; ok && i < 3; i++)
            if (!strcmp(role, ROLES[i])) which = i;
        ok = ok && which >= 0;
        if (!ok) break;
        p += used + 1;
        ok = p[bytes] == '\n';
        if (!ok) break;
        p[bytes] = 0;
        ok = push(&read, (Role)which, p, e);
        p += bytes + 1;
    }
    free(text);
    if (!ok) {
        cut(&read, 0);
        free(read.m);
        return err_set(e, "%s: not a saved conversation (or damaged)", path);
    }
    cut(h, 0);
    free(h->m);
    *h = read;
    return true;
}

// ---- turns ----

static bool render(Run *r, const History *h, bool generate, Ids *ids, Err *e) {
    Prompt p = {0};
    ids->n = 0;
    const bool ok = chat_render(&r->chat, h->m, 0, h->n, generate, &p, e) && tokenizer_encode_segments(r->tok, p.seg, p.n, !r->o.no_bos, ids, e);
    prompt_free(&p);
    return ok;
}

static void say_full(const Run *r, int need) {
    fprintf(stderr, "the conversation needs %d tokens, the context holds %d: /clear starts a new one, /save keeps this one, -c makes room\n", need, r->s.p.n_ctx);
}

// One message and its answer. A failed or refused turn leaves the history as it was.
static bool turn(Run *r, History *h, const char *line, Ids *ids, Err *e) {
    const int before = h->n;
    char *answer = NULL;
    StopReason why = STOP_END;
    bool ok = push(h, ROLE_USER, line, e) && render(r, h, true, ids, e);
    if (ok && ids->n + 1 > r->s.p.n_ctx) {
        say_full(r, ids->n);
        cut(h, before);
        return true;
    }
    catch_stops(true);
    ok = ok && run_feed(r, ids, e);
    if (ok && interrupted) {
        fprintf(stderr, "\n(stopped while reading the prompt)\n");
        catch_stops(false);
        cut(h, before);
        return true;
    }
    ok = ok && run_generate(r, r->o.n_predict, true, &answer, &why, e);
    catch_stops(false);
    putchar('\n');
    fflush(stdout);
    run_bar_print(r);
    if (ok && why == STOP_INTERRUPT) fprintf(stderr, "(stopped)\n");
    if (ok && why == STOP_CONTEXT) say_full(r, session_pos(&r->s));
    ok = ok && push(h, ROLE_ASSISTANT, answer, e);
    free(answer);
    if (!ok) cut(h, before);
    return ok;
}

// Without a template: the text goes on from where it is.
static bool complete(Run *r, const char *line, Ids *text, Err *e) {
    StopReason why;
    const int before = text->n;
    if (!tokenizer_encode(r->tok, line, strlen(line), text->n == 0 && !r->o.no_bos, !r->o.no_parse_special, text, e)) return false;
    if (text->n == before) return true;
    if (text->n + 1 > r->s.p.n_ctx) {
        say_full(r, text->n);
        text->n = before;
        return true;
    }
    catch_stops(true);
    bool ok = run_feed(r, text, e);
    if (ok) {
        fputs(line, stdout);
        if (!interrupted) ok = run_generate(r, r->o.n_predict, false, NULL, &why, e);
    }
    catch_stops(false);
    putchar('\n');
    fflush(stdout);
    run_bar_print(r);
    text->n = 0; // what the session holds now is the text
    for (int i = 0; ok && i < r->cached.n; i++) ok = ids_push(text, r->cached.id[i]) || err_set(e, "no memory for the text");
    return ok;
}

// /ab: the answer to one more message without and with the directions, each computed from the start of the conversation and
// with the same random numbers. The conversation stays as it was.
static bool compare(Run *r, History *h, const char *line, Ids *text, Err *e) {
    if (!r->steer.n_dir) {
        fprintf(stderr, "/ab compares with a direction: /dir FILE loads one\n");
        return true;
    }
    const bool was_on = r->steer.on, chat = r->chat.family != NULL;
    const uint64_t rng = r->sampler.rng;
    const int before = h->n;
    char *answer[2] = {NULL, NULL};
    Ids ids = {0};
    bool ok = true;
    if (chat) {
        ok = push(h, ROLE_USER, line, e) && render(r, h, true, &ids, e);
        cut(h, before);
    } else {
        for (int i = 0; ok && i < text->n; i++) ok = ids_push(&ids, text->id[i]) || err_set(e, "no memory for the text");
        ok = ok && tokenizer_encode(r->tok, line, strlen(line), ids.n == 0 && !r->o.no_bos, !r->o.no_parse_special, &ids, e);
    }
    if (ok && ids.n + 1 > r->s.p.n_ctx) say_full(r, ids.n);
    else if (ok && ids.n) {
        catch_stops(true);
        r->mute = true;
        for (int with = 0; ok && with < 2 && !interrupted; with++) {
            StopReason why;
            if (is_terminal(STDERR_FILENO)) fprintf(stderr, "\r%s the direction ...\033[K", with ? "with" : "without");
            r->steer.on = with;
            r->sampler.rng = rng;
            r->cached.n = 0;
            sampler_forget(&r->sampler);
            ok = run_feed(r, &ids, e) && run_generate(r, r->o.n_predict, chat, &answer[with], &why, e);
        }
        if (is_terminal(STDERR_FILENO)) fprintf(stderr, "\r\033[K");
        r->mute = false;
        catch_stops(false);
        if (ok) run_two_columns("without", answer[0] ? answer[0] : "", "with the direction", answer[1] ? answer[1] : "(stopped)");
        run_bar_print(r);
    }
    r->steer.on = was_on;
    r->sampler.rng = rng;
    r->cached.n = 0; // computed anew, as it is set now
    sampler_forget(&r->sampler);
    free(answer[0]);
    free(answer[1]);
    ids_free(&ids);
    return ok;
}

static const char COMMANDS[] =
    "/help             this list\n"
    "/clear            forget the conversation (the system prompt stays)\n"
    "/system TEXT      tell the model something first; without TEXT: show it; /system - removes it\n"
    "/dir FILE ...     intervene with these directions; /dir shows them, /dir - drops them\n"
    "/on, /off         switch them; /strength 0.7, /layers 8-20, /mode NAME change how they act, from the next token on\n"
    "/ab TEXT          the answer without and with them, beside each other; the conversation stays as it is\n"
    "/bar              after each answer show the component along the direction, token by token\n"
    "/save FILE        write the conversation; /load FILE reads one\n"
    "/exit             or Ctrl-D; Ctrl-C stops an answer\n";

// True: the line was a command. *done: leave the chat.
static bool command(Run *r, History *h, Ids *text, const char *line, bool *done) {
    if (line[0] != '/') return false;
    char name[16] = "";
    int used = 0;
    sscanf(line, "%15s%n", name, &used);
    const char *rest = line + used + strspn(line + used, " \t");
    Err e = {0};
    bool ok = true;
    if (!strcmp(name, "/exit") || !strcmp(name, "/quit") || !strcmp(name, "/bye")) *done = true;
    else if (!strcmp(name, "/help") || !strcmp(name, "/?")) fputs(COMMANDS, stderr);
    else if (!strcmp(name, "/clear")) {
        cut(h, h->n && h->m[0].role == ROLE_SYSTEM ? 1 : 0);
        text->n = 0;
        fprintf(stderr, "(a new conversation)\n");
    } else if (!strcmp(name, "/system")) {
        if (!r->chat.family) fprintf(stderr, "this model has no prompt template, so no system prompt\n");
        else if (!*rest) fprintf(stderr, "system: %s\n", h->n && h->m[0].role == ROLE_SYSTEM ? h->m[0].text : "(none)");
        else if ((ok = set_system(h, strcmp(rest, "-") ? rest : "", &e))) fprintf(stderr, "(system prompt %s)\n", strcmp(rest, "-") ? "set" : "removed");
    } else if (!strcmp(name, "/save") || !strcmp(name, "/load")) {
        const bool saving = name[1] == 's';
        if (!*rest) fprintf(stderr, "%s needs a file name\n", name);
        else if ((ok = saving ? save(h, rest, &e) : load(h, rest, &e)))
            fprintf(stderr, "(%d messages %s %s)\n", h->n, saving ? "saved to" : "loaded from", rest);
    } else if (!strcmp(name, "/ab")) {
        if (!*rest) fprintf(stderr, "/ab needs a text\n");
        else ok = compare(r, h, rest, text, &e);
    } else if (!run_steer_command(r, name, rest)) fprintf(stderr, "unknown command %s; /help lists them\n", name);
    if (!ok) fprintf(stderr, "run: %s\n", e.text);
    return true;
}

bool run_chat(Run *r, Err *e) {
    History h = {0};
    Ids ids = {0};
    LineEdit edit;
    if (!r->o.quiet) {
        fprintf(stderr, "%s, %s, context %d tokens. /help lists the commands.\n", r->o.model, r->b.detail, r->s.p.n_ctx);
        if (!r->chat.family) fprintf(stderr, "No prompt template: the model continues your text.\n");
    }
    bool ok = line_open(&edit, r->o.history, e);
    if (ok && r->o.system && r->chat.family) ok = set_system(&h, r->o.system, e);
    for (bool done = false; ok && !done;) {
        char *line = NULL;
        const int got = line_read(&edit, "> ", &line);
        if (got == 0) done = true; // Ctrl-D
        else if (got > 0 && line[strspn(line, " \t\n")] && !command(r, &h, &ids, line, &done))
            ok = r->chat.family ? turn(r, &h, line, &ids, e) : complete(r, line, &ids, e);
        free(line);
    }
    line_close(&edit);
    if (r->answer_tokens) run_print_speed(r);
    cut(&h, 0);
    free(h.m);
    ids_free(&ids);
    return ok;
}
