// moe_ref.c: mixture of experts: choose, then run the chosen ones (Mixtral, arXiv 2401.04088, section 2.1)
#include <math.h>
#include "ref.h"

void moe_route_ref(Backend *b, int *expert, float *weight, const float *logits, const Tensor *scale, int n_rows, int n_expert, int n_used) {
    (void)b;
    const float *gain = scale ? scale->host : NULL;
    for (int r = 0; r < n_rows; r++, logits += n_expert, expert += n_used, weight += n_used) {
        double highest = -INFINITY, total = 0, chosen = 0;
        for (int i = 0; i < n_expert; i++) highest = logits[i] > highest ? logits[i] : highest;
        for (int i = 0; i < n_expert; i++) total += exp(logits[i] - highest);
        for (int u = 0; u < n_used; u++) {
            int best = -1;
            for (int i = 0; i < n_expert; i++) {
                bool taken = false;
                for (int t = 0; t < u; t++) taken |= expert[t] == i;
                if (!taken && (best < 0 || logits[i] > logits[best])) best = i;
            }
            expert[u] = best;
            weight[u] = (float)(exp(logits[best] - highest) / total);
            chosen += weight[u];
        }
        if (!(chosen > 0x1p-14)) chosen = 0x1p-14;
        for (int u = 0; u < n_used; u++) weight[u] = (float)(weight[u] / chosen * (gain ? gain[expert[u]] : 1.0f));
    }
}

void moe_ffn_ref(Backend *b, const MoeArgs *a) {
    RefScratch *s = b->priv;
    const int n_embd = a->down->n_row, n_ff = a->gate->n_row;
    for (int r = 0; r < a->n_rows; r++) {
        const float *x = a->x + (int64_t)r * a->gate->n_col;
        for (int i = 0; i < n_embd; i++) s->sum[i] = 0;
        for (int u = 0; u < a->n_used; u++) {
            const int e = moe_slice(a, a->expert[(int64_t)r * a->n_used + u]);
            if (e < 0) continue;
            matvec_ref(s->gate, a->gate, e, x, s->row);
            matvec_ref(s->up, a->up, e, x, s->row);
            gated_ref(b, s->gate, s->gate, s->up, n_ff, a->act);
            matvec_ref(s->down, a->down, e, s->gate, s->row);
            for (int i = 0; i < n_embd; i++) s->sum[i] += (double)a->weight[(int64_t)r * a->n_used + u] * s->down[i];
        }
        for (int i = 0; i < n_embd; i++) a->y[(int64_t)r * n_embd + i] = (float)s->sum[i];
    }
}
