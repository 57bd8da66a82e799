// questions.c: see questions.h. Fields are cut out of the file's bytes in place.
#include "questions.h"

#include <stdlib.h>

#include "console.h"

enum { N_FIELD = 1 + N_CHOICE + 1 };

void questions_free(Questions *q) {
    free(q->q);
    free(q->bytes);
    *q = (Questions){0};
}

// One record from *at into fields; false with a reason if it is malformed. The record's end is written over.
static bool record(char **at, char separator, char *field[N_FIELD], int *n_field, const char **why) {
    char *p = *at;
    *n_field = 0;
    for (;;) {
        char *begin = p, *w = p;
        if (separator == ',' && *p == '"') {
            p++;
            for (;; *w++ = *p++) {
                if (!*p) return *why = "a quote is not closed", false;
                if (*p == '"' && p[1] == '"') p++;
                else if (*p == '"') break;
            }
            p++;
            if (*p && *p != separator && *p != '\n' && *p != '\r') return *why = "text follows a closing quote", false;
        } else {
            while (*p && *p != separator && *p != '\n' && *p != '\r') p++;
            w = p;
        }
        const char end = *p;
        if (*n_field < N_FIELD) field[*n_field] = begin;
        ++*n_field;
        if (end == separator) p++;
        else if (end == '\r' && p[1] == '\n') p += 2;
        else if (end) p++;
        *w = 0;
        if (end != separator) break;
    }
    *at = p;
    return true;
}

static int letter(const char *s) { return (s[0] >= 'A' && s[0] <= 'D') || (s[0] >= 'a' && s[0] <= 'd') ? (s[1] ? -1 : (s[0] | 32) - 'a') : -1; }

bool questions_parse(Questions *q, const char *path, char *bytes, Err *e) {
    *q = (Questions){.bytes = bytes};
    int tabs = 0;
    for (const char *p = bytes; *p && *p != '\n'; p++) tabs += *p == '\t';
    const char separator = tabs == N_FIELD - 1 ? '\t' : ',';
    char *at = bytes;
    if (!strncmp(at, "\xEF\xBB\xBF", 3)) at += 3; // byte order mark
    for (int number = 1; *at; number++) {
        char *field[N_FIELD];
        const char *why = "";
        int n;
        if (*at == '\n' || *at == '\r') { // an empty line
            at++;
            number--;
            continue;
        }
        if (!record(&at, separator, field, &n, &why)) return err_set(e, "%s: record %d: %s", path, number, why);
        if (n != N_FIELD) return err_set(e, "%s: record %d has %d fields, expected question, A, B, C, D, answer", path, number, n);
        const int answer = letter(field[N_FIELD - 1]);
        if (answer < 0 && number == 1) continue; // a heading
        if (answer < 0) return err_set(e, "%s: record %d: the answer is '%.20s', expected A, B, C or D", path, number, field[N_FIELD - 1]);
        if (q->n % 64 == 0) {
            Question *more = realloc(q->q, sizeof *more * ((size_t)q->n + 64));
            if (!more) return err_set(e, "%s: no memory for the questions", path);
            q->q = more;
        }
        Question *item = &q->q[q->n++];
        item->text = field[0];
        for (int i = 0; i < N_CHOICE; i++) item->choice[i] = field[1 + i];
        item->answer = answer;
    }
    return q->n || err_set(e, "%s: holds no question", path);
}

bool questions_read(Questions *q, const char *path, Err *e) {
    char *bytes;
    size_t n;
    *q = (Questions){0};
    if (!read_whole_file(path, &bytes, &n, e)) return false;
    if (memchr(bytes, 0, n)) {
        free(bytes);
        return err_set(e, "%s: holds a NUL byte, expected a text file", path);
    }
    return questions_parse(q, path, bytes, e);
}
