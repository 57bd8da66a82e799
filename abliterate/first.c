// first.c: see first.h
#include "first.h"

#include <stdlib.h>

#include "stats.h"

bool first_open(First *f, const Lab *lab, int n, bool with_kl, bool with_logits, Err *e) {
    const size_t k = (size_t)max_int(n, 1), V = (size_t)lab->m.c.n_vocab;
    *f = (First){.n = n, .score = calloc(k, sizeof(double)), .top = calloc(k, sizeof(int)), .kl = with_kl ? calloc(k, sizeof(double)) : NULL,
                 .logits = with_logits ? malloc(k * V * sizeof(float)) : NULL};
    return (f->score && f->top && (f->kl || !with_kl) && (f->logits || !with_logits)) || err_set(e, "no memory for the first tokens of %d prompts", n);
}

void first_close(First *f) {
    free(f->score);
    free(f->kl);
    free(f->top);
    free(f->logits);
    *f = (First){0};
}

void first_take(First *f, int prompt, const float *logits, int n_vocab, const Openers *o, const float *base) {
    const int64_t at = (int64_t)prompt * n_vocab;
    f->score[prompt] = opener_score(o, logits, n_vocab);
    f->top[prompt] = arg_max(logits, n_vocab);
    if (base && f->kl) f->kl[prompt] = kl_divergence(base + at, logits, n_vocab);
    if (f->logits) memcpy(f->logits + at, logits, sizeof(float) * (size_t)n_vocab);
}

typedef struct {
    First *f;
    const Openers *o;
    const float *base;
    int n_vocab;
} Task;

static void on_logits(void *ctx, int prompt, int from_end, const float *logits) {
    const Task *t = ctx;
    (void)from_end;
    first_take(t->f, prompt, logits, t->n_vocab, t->o, t->base);
}

bool first_read(First *f, Lab *lab, const PromptSet *set, const Openers *o, const float *base, Bar *bar, Err *e) {
    Task t = {f, o, base, lab->m.c.n_vocab};
    return lab_read(lab, &(Reading){.prompt = set->ids, .n = set->n, .n_logits = 1, .on_logits = on_logits, .ctx = &t}, bar, e);
}
