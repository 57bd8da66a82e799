// run_steer.c: directions in the program `run`: the flags, the commands of a chat, the bar, two answers beside each other.
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <unistd.h>
#include "run.h"

static void say_state(const Run *r) {
    const Steer *s = &r->steer;
    if (!s->n_dir) {
        fprintf(stderr, "(no direction)\n");
        return;
    }
    fprintf(stderr, "(");
    for (int i = 0; i < s->n_dir; i++) fprintf(stderr, "%s%s", i ? " + " : "", s->path[i]);
    const bool write = s->mode == MODE_WRITE, shaped = write && s->dir[0].shape;
    fprintf(stderr, ": %s, strength %g%s, layers %d-%d%s%s)\n", mode_name(s->mode), s->strength, shaped ? " times its own by layer and part" : "", s->act_first, s->act_last,
            write && (shaped || s->keep_embedding) ? ", not the embedding" : "", s->on ? "" : ", off");
}

// The component is watched where the direction was measured; in the middle if the file does not say where.
static void set_watch(Run *r, bool on) {
    const Steer *s = &r->steer;
    r->steer.watch = !on || !s->n_dir ? -1 : s->dir[0].layer >= 0 ? s->dir[0].layer : r->m.c.n_layer / 2;
}

static bool load(Run *r, const char *path, Err *e) {
    char note[256];
    if (!steer_load(&r->steer, path, note, e)) return false;
    if (*note && !r->o.quiet) fprintf(stderr, "run: %s\n", note);
    return true;
}

bool run_open_steer(Run *r, Err *e) {
    const Options *o = &r->o;
    Steer *s = &r->steer;
    steer_open(s, &r->m, &r->b);
    for (int i = 0; i < o->directions.n; i++)
        if (!load(r, o->directions.text[i], e)) return false;
    if (o->mode && !steer_parse_mode(o->mode, &s->mode, e)) return false;
    if (!isnan(o->strength)) s->strength = o->strength;
    s->keep_embedding = o->keep_embedding;
    if (o->layers && !steer_parse_layers(o->layers, r->m.c.n_layer, &s->first, &s->last, e)) return false;
    if (!steer_prepare(s, e)) return false;
    set_watch(r, o->bar);
    if (s->n_dir && !o->quiet) say_state(r);
    return session_add_tap(&r->s, steer_tap(s), e);
}

void run_close_steer(Run *r) {
    steer_close(&r->steer);
    ids_free(&r->bar_id);
    free(r->bar_value);
    r->bar_value = NULL;
}

// ---- commands ----

// Replaces the directions by those of the files; on an error all stays as it was.
static bool replace(Run *r, const char *names, Err *e) {
    Steer fresh;
    char *list = strdup(names), *rest = list, *name;
    if (!list) return err_set(e, "no memory for the file names");
    const Steer old = r->steer;
    steer_open(&fresh, &r->m, &r->b);
    r->steer = fresh;
    bool ok = true;
    while (ok && (name = strtok_r(rest, " \t", &rest))) ok = load(r, name, e);
    if (ok && old.n_dir) { // how they act stays
        r->steer.mode = old.mode;
        r->steer.strength = old.strength;
        r->steer.first = old.first;
        r->steer.last = old.last;
        r->steer.keep_embedding = old.keep_embedding;
    }
    r->steer.on = old.n_dir ? old.on : true;
    ok = ok && steer_prepare(&r->steer, e);
    Steer gone = ok ? old : r->steer;
    if (!ok) r->steer = old;
    steer_close(&gone);
    set_watch(r, r->o.bar);
    free(list);
    return ok;
}

bool run_steer_command(Run *r, const char *name, const char *rest) {
    Steer *s = &r->steer;
    Err e = {0};
    bool ok = true;
    if (!strcmp(name, "/dir")) {
        if (!strcmp(rest, "-")) {
            steer_clear(s);
            set_watch(r, false);
            ok = steer_prepare(s, &e);
        } else if (*rest) ok = replace(r, rest, &e);
    } else if (!strcmp(name, "/on") || !strcmp(name, "/off")) s->on = !strcmp(name, "/on");
    else if (!strcmp(name, "/bar")) {
        r->o.bar = !r->o.bar;
        set_watch(r, r->o.bar);
        fprintf(stderr, "(bar %s)\n", r->o.bar ? "on" : "off");
        return true;
    } else if (!strcmp(name, "/mode") || !strcmp(name, "/strength") || !strcmp(name, "/layers")) {
        const SteerMode mode = s->mode;
        const double strength = s->strength;
        const int first = s->first, last = s->last;
        if (!*rest) ;
        else if (name[1] == 'm') ok = steer_parse_mode(rest, &s->mode, &e);
        else if (name[1] == 'l') ok = steer_parse_layers(rest, r->m.c.n_layer, &s->first, &s->last, &e);
        else {
            char *end;
            errno = 0;
            s->strength = strtod(rest, &end);
            if (end == rest || *end || errno || !(fabs(s->strength) <= 1000)) ok = err_set(&e, "strength '%s', expected a number from -1000 to 1000", rest);
        }
        ok = ok && steer_prepare(s, &e);
        if (!ok) {
            Err again;
            s->mode = mode;
            s->strength = strength;
            s->first = first;
            s->last = last;
            if (!steer_prepare(s, &again)) fprintf(stderr, "run: %s\n", again.text);
        }
    } else return false;
    if (ok) say_state(r);
    else fprintf(stderr, "run: %s\n", e.text);
    return true;
}

// ---- the bar ----

bool run_bar_note(Run *r, int id, Err *e) {
    const int n = r->bar_id.n;
    if (n % 256 == 0) {
        double *more = realloc(r->bar_value, sizeof *more * (size_t)(n + 256));
        if (!more) return err_set(e, "no memory for the bar");
        r->bar_value = more;
    }
    r->bar_value[n] = r->steer.component;
    return ids_push(&r->bar_id, id) || err_set(e, "no memory for the bar");
}

void run_bar_print(Run *r) {
    enum { HALF = 20 };
    const int n = r->bar_id.n;
    double most = 1e-30;
    for (int i = 0; i < n; i++) most = fmax(most, fabs(r->bar_value[i]));
    if (n) fprintf(stderr, "component along the direction, entering layer %d, where each token was predicted\n", r->steer.watch);
    for (int i = 0; i < n; i++) {
        const double v = r->bar_value[i];
        const int length = (int)lround(fabs(v) / most * HALF);
        size_t bytes;
        const char *text = tokenizer_bytes(r->tok, r->bar_id.id[i], true, &bytes);
        fprintf(stderr, "%9.3f ", v);
        for (int c = -HALF; c < HALF; c++) {
            const bool full = v < 0 ? c >= -length && c < 0 : c < length && c >= 0;
            fputs(c == 0 && !full ? "|" : full ? is_utf8() ? "\xE2\x96\x88" : "#" : " ", stderr);
        }
        fputc(' ', stderr);
        for (size_t k = 0; k < bytes; k++) fputc((unsigned char)text[k] < ' ' ? '.' : text[k], stderr);
        fputc('\n', stderr);
    }
    r->bar_id.n = 0;
}

// ---- two columns ----

static int is_tail(char c) { return (c & 0xC0) == 0x80; } // of a UTF-8 character

// The next line of *text, at most width characters, broken at a blank where there is one. Prints it padded; false: no more.
static bool put_line(const char **text, int width, bool pad) {
    const char *p = *text, *end = p, *blank = NULL;
    int n = 0;
    if (!*p) {
        if (pad) printf("%*s", width, "");
        return false;
    }
    while (*end && *end != '\n') {
        if (*end == ' ' && n <= width) blank = end;
        if (!is_tail(*end) && n == width) break;
        if (!is_tail(*end)) n++;
        end++;
    }
    if (*end && *end != '\n' && *end != ' ' && blank && blank > p) end = blank;
    n = 0;
    for (const char *c = p; c < end; c++) n += !is_tail(*c);
    printf("%.*s%*s", (int)(end - p), p, pad ? width - n : 0, "");
    while (*end == ' ') end++;
    if (*end == '\n') end++;
    *text = end;
    return true;
}

void run_two_columns(const char *left_title, const char *left, const char *right_title, const char *right) {
    const int width = max_int(10, (terminal_width(STDOUT_FILENO) - 3) / 2);
    const char *bar = is_utf8() ? " \xE2\x94\x82 " : " | ";
    printf("%-*s%s%s\n", width, left_title, bar, right_title);
    for (int i = 0; i < 2 * width + 3; i++) fputs(is_utf8() ? (i == width + 1 ? "\xE2\x94\xBC" : "\xE2\x94\x80") : i == width + 1 ? "+" : "-", stdout);
    putchar('\n');
    while (*left || *right) {
        (void)put_line(&left, width, true);
        fputs(bar, stdout);
        (void)put_line(&right, width, false);
        putchar('\n');
    }
    fflush(stdout);
}
