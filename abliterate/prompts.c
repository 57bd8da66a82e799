// prompts.c: see prompts.h
#include "prompts.h"

#include <stdlib.h>

#include "console.h"
#include "sha256.h"
#include "stats.h"

bool prompts_read(PromptFile *p, const char *path, int least, Err *e) {
    size_t n;
    *p = (PromptFile){0};
    if (!read_whole_file(path, &p->bytes, &n, e)) return false;
    p->path = strdup(path);
    if (!p->path) return err_set(e, "%s: no memory for the prompts", path);
    sha256_of(p->bytes, n, p->sha256);
    if (memchr(p->bytes, 0, n)) return err_set(e, "%s: holds a NUL byte, expected a text file with one prompt a line", path);
    for (char *line = p->bytes; *line;) {
        const size_t length = strcspn(line, "\r\n");
        char *next = line + length + (line[length] != 0), *tab = memchr(line, '\t', length);
        line[length] = 0;
        if (tab) *tab++ = 0;
        if (line[strspn(line, " ")]) {
            if (p->n % 64 == 0) {
                PromptLine *more = realloc(p->line, sizeof *more * ((size_t)p->n + 64));
                if (!more) return err_set(e, "%s: no memory for the prompts", path);
                p->line = more;
            }
            p->line[p->n++] = (PromptLine){line, tab && *tab ? tab : NULL};
        }
        line = next;
    }
    return p->n >= least || err_set(e, "%s: holds %d prompt%s, expected at least %d, one a line", path, p->n, p->n == 1 ? "" : "s", least);
}

void prompts_free(PromptFile *p) {
    free(p->path);
    free(p->bytes);
    free(p->line);
    *p = (PromptFile){0};
}

int prompts_shared(const PromptFile *a, const PromptFile *b) {
    int n = 0;
    for (int i = 0; i < a->n; i++) {
        int j = 0;
        while (j < b->n && strcmp(a->line[i].text, b->line[j].text)) j++;
        n += j < b->n;
    }
    return n;
}

bool split_make(Split *s, const PromptFile *p, uint64_t seed, uint64_t stream, int train, int check, int least_check, Err *e) {
    *s = (Split){.order = malloc(sizeof(int) * (size_t)max_int(p->n, 1))};
    if (!s->order) return err_set(e, "%s: no memory for the split", p->path);
    for (int i = 0; i < p->n; i++) s->order[i] = i;
    Rng r = rng_seed(seed, stream);
    rng_shuffle(&r, s->order, p->n);
    s->n_check = check >= 0 ? check : max_int(least_check, min_int(32, p->n / 5));
    s->n_train = train >= 0 ? train : p->n - s->n_check;
    if (s->n_train >= 1 && s->n_train + s->n_check <= p->n) return true;
    return err_set(e, "%s: holds %d prompts, expected %d to learn from and %d to check on", p->path, p->n, max_int(s->n_train, 1), s->n_check);
}

void split_free(Split *s) {
    free(s->order);
    *s = (Split){0};
}
