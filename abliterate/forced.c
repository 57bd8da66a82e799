// forced.c: see forced.h
#include "forced.h"

#include <stdlib.h>

#include "stats.h"

typedef struct {
    Forced *f;
    int with;
    float *base;        // logits of this group's rows without the intervention, or NULL
    int group_row;      // total index of the group's first row
    int n_vocab;
} Pass;

// The row from_end positions before the end predicts continuation token n_cont - 1 - from_end.
static void on_logits(void *ctx, int prompt, int from_end, const float *logits) {
    const Pass *p = ctx;
    Forced *f = p->f;
    const Ids *ids = &f->ids[prompt];
    const int k = f->n_cont[prompt] - 1 - from_end, at = f->first[prompt] + k;
    const int want = ids->id[ids->n - f->n_cont[prompt] + k];
    f->loss[p->with][at] = log_sum_exp(logits, p->n_vocab) - logits[want];
    if (!p->base) return;
    float *base = p->base + (int64_t)(at - p->group_row) * p->n_vocab;
    if (!p->with) memcpy(base, logits, sizeof(float) * (size_t)p->n_vocab);
    else {
        f->kl[at] = kl_divergence(base, logits, p->n_vocab);
        f->same[at] = arg_max(base, p->n_vocab) == arg_max(logits, p->n_vocab);
    }
}

void forced_free(Forced *f) {
    free(f->first);
    free(f->loss[0]);
    free(f->loss[1]);
    free(f->kl);
    free(f->same);
    *f = (Forced){0};
}

bool forced_run(Forced *f, Lab *lab, const Ids *ids, const int *n_cont, int n, bool with_kl, Bar *bar, Err *e) {
    enum { MOST_BYTES = 256 << 20 }; // of kept logits
    *f = (Forced){.ids = ids, .n_cont = n_cont, .n = n, .first = calloc((size_t)max_int(n, 1), sizeof(int))};
    Ids *input = calloc((size_t)max_int(n, 1), sizeof *input);
    int longest = 1;
    for (int i = 0; i < n && f->first; i++) {
        f->first[i] = f->total;
        f->total += n_cont[i];
        longest = max_int(longest, n_cont[i]);
    }
    const int V = lab->m.c.n_vocab, fit = (int)(MOST_BYTES / ((int64_t)longest * V * (int64_t)sizeof(float)));
    const int group = with_kl ? max_int(1, min_int(lab->s.p.n_seq, fit)) : lab->s.p.n_seq;
    const size_t total = (size_t)max_int(f->total, 1);
    for (int k = 0; k < 2; k++) f->loss[k] = calloc(total, sizeof(double));
    float *base = NULL;
    if (with_kl) {
        f->kl = calloc(total, sizeof(double));
        f->same = calloc(total, sizeof(bool));
        base = malloc(sizeof(float) * (size_t)group * (size_t)longest * (size_t)V);
    }
    bool ok = (f->first && input && f->loss[0] && f->loss[1] && (!with_kl || (f->kl && f->same && base))) || err_set(e, "no memory for %d tokens", f->total);
    for (int i = 0; ok && i < n; i++) input[i] = (Ids){.id = ids[i].id, .n = ids[i].n - 1}; // the last one predicts nothing that is known
    for (int first = 0; ok && first < n && !interrupted; first += group) {
        Pass p = {.f = f, .base = base, .group_row = f->first[first], .n_vocab = V};
        for (p.with = 0; ok && p.with < 2; p.with++) {
            lab->steer.on = p.with;
            ok = lab_read(lab, &(Reading){.prompt = input, .n = min_int(n, first + group), .start = first, .logits_of = n_cont, .on_logits = on_logits, .ctx = &p}, bar, e);
        }
    }
    lab->steer.on = false;
    free(base);
    free(input);
    return ok;
}
