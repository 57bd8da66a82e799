// attention_ref.c: the KV cache of one layer, and softmax(scale q.k) v over it (arXiv 1706.03762; grouped heads 2305.13245)
#include <math.h>
#include "ref.h"

static float *cell(void *base, const KvLayer *kv, int head, int pos) {
    return (float *)base + ((int64_t)head * kv->n_cell + pos % kv->n_cell) * kv->head_dim;
}

void kv_write_ref(Backend *b, const KvLayer *kv, const float *k, const float *v, int n_rows, int pos) {
    (void)b;
    for (int r = 0; r < n_rows; r++)
        for (int h = 0; h < kv->n_head_kv; h++) {
            const int64_t from = ((int64_t)r * kv->n_head_kv + h) * kv->head_dim;
            memcpy(cell(kv->k, kv, h, pos + r), k + from, sizeof(float) * (size_t)kv->head_dim);
            memcpy(cell(kv->v, kv, h, pos + r), v + from, sizeof(float) * (size_t)kv->head_dim);
        }
}

void attention_ref(Backend *b, const AttentionArgs *a) {
    const KvLayer *kv = a->kv;
    const int n = kv->head_dim, group = a->n_head / kv->n_head_kv;
    double *score = ((RefScratch *)b->priv)->score, *sum = ((RefScratch *)b->priv)->sum;
    for (int r = 0; r < a->n_rows; r++)
        for (int h = 0; h < a->n_head; h++) {
            const int last = a->pos + r; // sees itself and what came before, the nearest `window` positions
            const int first = a->window > 0 ? max_int(0, last - a->window + 1) : 0;
            const float *q = a->q + ((int64_t)r * a->n_head + h) * n;
            double highest = -INFINITY, total = 0;
            for (int j = first; j <= last; j++) {
                const float *k = cell(kv->k, kv, h / group, j);
                double s = 0;
                for (int i = 0; i < n; i++) s += (double)q[i] * k[i];
                s *= a->scale;
                if (a->softcap > 0) s = a->softcap * tanh(s / a->softcap);
                score[j - first] = s;
                if (s > highest) highest = s;
            }
            for (int i = 0; i < n; i++) sum[i] = 0;
            for (int j = first; j <= last; j++) {
                const double p = exp(score[j - first] - highest);
                const float *v = cell(kv->v, kv, h / group, j);
                total += p;
                for (int i = 0; i < n; i++) sum[i] += p * v[i];
            }
            float *y = a->y + ((int64_t)r * a->n_head + h) * n;
            for (int i = 0; i < n; i++) y[i] = (float)(sum[i] / total);
        }
}
