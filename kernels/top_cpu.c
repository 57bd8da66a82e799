// top_cpu.c: the k likeliest tokens. A list in descending order; pieces of the row in which nothing is above its end, nearly all,
// are passed over by comparisons that compilers vectorise. Memory: a read of the row.
#include <float.h>
#include <math.h>
#include "cpu.h"

enum { STEP = 64 };

static bool any_above(const float *x, const float *bias, int n, float least) {
    int any = 0;
    if (bias)
        for (int i = 0; i < n; i++) any |= x[i] + bias[i] > least;
    else
        for (int i = 0; i < n; i++) any |= x[i] > least;
    return any;
}

static void top_row(const void *args, int r, int thread) {
    const TopArgs *a = args;
    (void)thread;
    const int k = a->k;
    const float *logits = a->logits + (int64_t)r * a->n_vocab;
    Likely *y = a->y + (int64_t)r * k;
    for (int first = 0, n = 0; first < a->n_vocab; first += STEP) {
        const int end = min_int(first + STEP, a->n_vocab);
        if (n == k && !any_above(logits + first, a->bias ? a->bias + first : NULL, end - first, y[k - 1].logit)) continue;
        for (int id = first; id < end; id++) {
            float x = logits[id] + (a->bias ? a->bias[id] : 0);
            x = isnan(x) ? -INFINITY : fminf(x, FLT_MAX);
            if (n == k && !(x > y[k - 1].logit)) continue;
            int i = n < k ? n++ : k - 1;
            for (; i > 0 && x > y[i - 1].logit; i--) y[i] = y[i - 1];
            y[i] = (Likely){id, x};
        }
    }
}

void top_cpu(Backend *b, const TopArgs *a) { share(b, (int64_t)a->n_rows * a->n_vocab, top_row, a, a->n_rows); }
