// openers.c: see openers.h
#include "openers.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <stdlib.h>

#include "stats.h"

enum { MOST = 256 }; // a set that needs more tokens tells nothing

void openers_free(Openers *o) {
    free(o->id);
    free(o->target);
    free(o->contrast);
    *o = (Openers){0};
}

static bool allocate(Openers *o, int n, Err *e) {
    *o = (Openers){.id = calloc((size_t)max_int(n, 1), sizeof(int)), .target = calloc((size_t)max_int(n, 1), sizeof(double)),
                   .contrast = calloc((size_t)max_int(n, 1), sizeof(double))};
    return (o->id && o->target && o->contrast) || err_set(e, "no memory for %d opener tokens", n);
}

bool openers_learn(Openers *o, const double *p_target, const double *p_contrast, int n_vocab, Err *e) {
    if (!allocate(o, MOST, e)) return false;
    double all = 0, covered = 0;
    for (int i = 0; i < n_vocab; i++) all += fmax(0, p_target[i] - p_contrast[i]);
    o->apart = all;
    while (o->n < MOST && covered < 0.8 * all) { // few are needed: picking the largest again and again is quick enough
        int best = -1;
        double most = 0;
        for (int i = 0; i < n_vocab; i++) {
            const double gap = p_target[i] - p_contrast[i];
            bool taken = false;
            for (int k = 0; gap > most && k < o->n; k++) taken |= o->id[k] == i;
            if (gap > most && !taken) most = gap, best = i;
        }
        if (best < 0) break;
        o->id[o->n] = best;
        o->target[o->n] = p_target[best];
        o->contrast[o->n++] = p_contrast[best];
        covered += most;
    }
    return true;
}

bool openers_read(Openers *o, const char *path, const Lab *lab, Err *e) {
    char *bytes;
    size_t n;
    if (!read_whole_file(path, &bytes, &n, e)) return false;
    bool ok = allocate(o, MOST, e);
    for (char *line = bytes, *next; ok && *line; line = next) {
        const size_t length = strcspn(line, "\r\n");
        next = line + length + (line[length] != 0);
        line[length] = 0;
        if (!length) continue;
        int id = -1;
        char *end;
        errno = 0;
        const long number = strtol(line, &end, 10);
        if (isdigit((unsigned char)*line) && (!*end || *end == '\t')) {
            ok = (!errno && number < lab->m.c.n_vocab) || err_set(e, "%s: token %s, the vocabulary ends at %d", path, line, lab->m.c.n_vocab - 1);
            id = (int)number;
        } else {
            Ids ids = {0};
            ok = tokenizer_encode(lab->tok, line, length, false, false, &ids, e) && (ids.n || err_set(e, "%s: '%.40s' has no tokens", path, line));
            if (ok) id = ids.id[0];
            ids_free(&ids);
        }
        for (int i = 0; ok && i < o->n; i++)
            if (o->id[i] == id) id = -1; // named twice
        if (ok && id >= 0 && o->n == MOST) ok = err_set(e, "%s: more than %d tokens", path, MOST);
        if (ok && id >= 0) o->id[o->n++] = id;
    }
    free(bytes);
    return ok && (o->n || err_set(e, "%s: names no token", path));
}

bool openers_of_direction(Openers *o, const char *path, int n_vocab, Err *e) {
    Gguf g;
    if (!gguf_open(&g, path, e)) return false;
    const GgufKey *k = gguf_key(&g, "abliterate.openers");
    bool ok = true;
    if (k && k->type == GGUF_ARRAY && gguf_is_integer(k->elem) && k->n > 0 && k->n <= 256) {
        o->id = calloc((size_t)k->n, sizeof *o->id);
        ok = o->id || err_set(e, "no memory for the openers");
        for (uint64_t i = 0; ok && i < k->n; i++) {
            const int64_t id = gguf_elem_int(k, i);
            if (id >= 0 && id < n_vocab) o->id[o->n++] = (int)id;
        }
    }
    gguf_close(&g);
    return ok;
}

bool openers_write(const Openers *o, const char *path, const Lab *lab, Err *e) {
    SafeFile f;
    if (!safe_open(&f, path, e)) return false;
    for (int i = 0; i < o->n; i++) {
        char text[48];
        lab_token(lab, o->id[i], text);
        fprintf(f.f, "%d\t%s\n", o->id[i], text);
    }
    return safe_close(&f, true, e);
}

double opener_score(const Openers *o, const float *logits, int n_vocab) {
    const double all = log_sum_exp(logits, n_vocab);
    double p = 0;
    for (int i = 0; i < o->n; i++) p += exp(logits[o->id[i]] - all);
    return log(p + 1e-8) - log(fmax(0, 1 - p) + 1e-8);
}

void probabilities_add(double *sum, const float *logits, int n_vocab) {
    const double all = log_sum_exp(logits, n_vocab);
    for (int i = 0; i < n_vocab; i++) sum[i] += exp(logits[i] - all);
}
