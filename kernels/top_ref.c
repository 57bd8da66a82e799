// top_ref.c: the k likeliest tokens.
#include <float.h>
#include <math.h>
#include "ref.h"

void top_ref(Backend *b, const TopArgs *a) {
    (void)b;
    for (int r = 0; r < a->n_rows; r++) {
        const float *logits = a->logits + (int64_t)r * a->n_vocab;
        Likely *y = a->y + (int64_t)r * a->k;
        int n = 0;
        for (int id = 0; id < a->n_vocab; id++) {
            float x = logits[id] + (a->bias ? a->bias[id] : 0);
            x = isnan(x) ? -INFINITY : fminf(x, FLT_MAX);
            if (n == a->k && !(x > y[n - 1].logit)) continue;
            int i = n < a->k ? n++ : n - 1;
            for (; i > 0 && x > y[i - 1].logit; i--) y[i] = y[i - 1]; // ids ascend: of equals the one that is there stays ahead
            y[i] = (Likely){id, x};
        }
    }
}
